"""What past states are good for: the mean of the last ones, and sums of what several runs moved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from zoreward.journal.reader import load_run
from zoreward.journal.replaying import Model, advance, checked_base, checked_step
from zoreward.journal.stored import StoredRun
from zoreward.records import InputError

Progress = Callable[[int], object]


@torch.no_grad()
def replay_mean(
    run: StoredRun | str | Path, model: Model, last: int, *, step: int | None = None, progress: Progress | None = None
) -> Model:
    """Move base weights to the mean of a run's last states (Polyak and Juditsky 1992, "Acceleration of averaging").

        θ̄ = 1/N Σ θ_t over the last N steps that led to the weights after `step`

    Sums are float64, rounded to the weights' dtype once. Kept beside the model is a float64 copy of the tuned weights.

    Args:
        run: as for `replay`, as are the model, `step` and `progress`.
        model: the base; changed in place.
        last: N, from 1 to as many steps as led there.
        step: how many steps; by default all.
        progress: called now and then with the steps done.

    Raises:
        InputError: what `replay` raises; or the run has not so many steps.

    Example:
        >>> model = replay_mean("runs/sst2", model, 100)  # doctest: +SKIP
    """
    run = run if isinstance(run, StoredRun) else load_run(run)
    path = run.path(checked_step(run, step))
    if not 1 <= last <= len(path):
        raise InputError(f"there is no mean of {last} states: {len(path)} steps led there", hint="Take fewer.")
    model, tuned = checked_base(run, model)
    done, sums = 0, dict[str, torch.Tensor]()
    for end in (one + 1 for one in path[-last:]):
        advance(run, model, tuned, done, end, progress)
        done = end
        for name, weight in tuned.weights.items():
            sums[name] = weight.double() + sums[name] if name in sums else weight.double()
    for name, weight in tuned.weights.items():
        weight.copy_(sums[name] / last)
    return model


def check_sum(runs: Sequence[StoredRun]) -> None:
    """Refuse to add up what runs over different bases did.

    Raises:
        InputError: they have no base in common.
    """
    if len(runs) > 1 and any(run.header.get(own) for run in runs for own in ("adapter", "head", "start")):
        hint = "Merge runs of --tune full, last-N or another choice of the base's own weights."
        raise InputError("runs that made an adapter or a head have no base in common", hint=hint)
    if len({(run.header["fingerprint"], run.header["dtype"]) for run in runs}) > 1:
        hint = "Merge runs that began with the same model, in the same dtype."
        raise InputError("the runs began with other weights than each other", hint=hint)


@torch.no_grad()
def replay_sum(
    runs: Sequence[StoredRun | str | Path],
    model: Model,
    *,
    scale: float = 1.0,
    step: int | None = None,
    progress: Progress | None = None,
) -> Model:
    """Move base weights by what several runs moved them together, times a factor (task arithmetic).

        θ = θ_base + s · Σ_i (θ_i − θ_base)

    Differences and sums are float64, rounded to the weights' dtype once; of one run with s = 1 that is the replay, bit
    for bit, wherever float64 holds the differences. Kept beside the model are two copies of the tuned weights.

    Args:
        runs: over one base, each as for `replay`; of several none with an adapter or a head of its own, whose weights
            have no base in common.
        model: the base; changed in place.
        scale: s; below 0 the model unlearns.
        step: how many steps of each; by default all.
        progress: called now and then with the steps done.

    Raises:
        InputError: what `replay` raises; or several runs have no base in common; or a weight is so large that its dtype
            cannot hold it.

    Source: Ilharco et al. 2023, arXiv 2212.04089.

    Example:
        >>> model = replay_sum(["runs/sst2", "runs/rte"], model, scale=0.5)  # doctest: +SKIP
    """
    loaded = [run if isinstance(run, StoredRun) else load_run(run) for run in runs]
    check_sum(loaded)
    ends = [checked_step(run, step) for run in loaded]
    bases: dict[str, torch.Tensor] = {}
    moved: dict[str, torch.Tensor] = {}
    every: dict[str, Any] = {}
    for run, end in zip(loaded, ends, strict=True):
        model, tuned = checked_base(run, model)
        every |= tuned.weights
        bases |= {name: weight.clone() for name, weight in tuned.weights.items() if name not in bases}
        advance(run, model, tuned, 0, end, progress)
        for name, weight in tuned.weights.items():
            own = weight.double() - bases[name].double()
            moved[name] = moved[name] + own if name in moved else own
            weight.copy_(bases[name])
    for name, weight in every.items():
        weight.copy_(bases[name].double() + scale * moved[name])
        if not bool(weight.isfinite().all()):
            raise InputError(f"{name:.200} would be beyond {weight.dtype}", hint="Take a smaller factor.")
    return model
