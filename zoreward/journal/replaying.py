"""`replay`: base weights + a stored run → tuned weights, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from zoreward.journal.fingerprint import fingerprint, forward_config, other_config, weights_dtype
from zoreward.journal.lines import shown
from zoreward.journal.reader import load_run
from zoreward.journal.stored import StoredRun, directions
from zoreward.members import (
    Tuned,
    adapted,
    anchored,
    check_blocks,
    config_of,
    draw_head_,
    has_adapter,
    in_blocks,
    limited,
    task_type,
    tuned_weights,
    updates_,
)
from zoreward.noise import canonical_name
from zoreward.records import InputError, Update

# Terms of one pass over the weights: beyond a few dozen a pass costs nothing beside its noise, and the low-rank factors
# of a model of 1.3B weights take 4 MB a term of rank 1. One of rank r counts as r.
PASS_TERMS = 64

Model = TypeVar("Model", bound=nn.Module)


def replay(
    run: StoredRun | str | Path,
    model: Model,
    *,
    step: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Model:
    """Move base weights to where a run had them after some steps: bit for bit, on a CPU or a GPU.

    Args:
        run: a run folder, a journal, a trajectory, or what was read from one.
        model: the base, loaded in the dtype in which the run had it; changed in place. An exception in the middle of
            the work leaves it between two steps. For a run that made an adapter: without it. For a run that went on
            with an adapter: with it, as it was. For a run that made a head: with any of as many classes.
        step: how many steps; by default all. 0 changes nothing. Where the run went back, the weights are those that it
            went on from.
        progress: called now and then with the steps done.

    Returns:
        The model; where the run made an adapter, a `PeftModel` around it.

    Raises:
        MissingFileError: there is no such run.
        InputError: the run is damaged, has no such step, or began with other weights; then the model is unchanged.

    Example:
        >>> model = AutoModelForCausalLM.from_pretrained("gpt2", dtype="bfloat16")  # doctest: +SKIP
        >>> model = replay("runs/sst2", model, step=500)  # doctest: +SKIP
    """
    run = run if isinstance(run, StoredRun) else load_run(run)
    steps = checked_step(run, step)
    model, tuned = checked_base(run, model)
    advance(run, model, tuned, 0, steps, progress)
    return model


def advance(
    run: StoredRun,
    model: nn.Module,
    tuned: Tuned,
    start: int,
    steps: int,
    progress: Callable[[int], object] | None = None,
) -> None:
    """Move weights from where a run had them after `start` steps to where it had them after `steps`.

    Args:
        run: the run.
        model: the model, whose weights stand there.
        tuned: its tuned weights, with the run's streams.
        start: how many steps they have done; they are on the way to `steps`.
        steps: how many steps they are to have done; at least `start`.
        progress: called now and then with the steps done.
    """
    path = run.path(steps)
    done = len(run.path(start))
    for updates in _passes(run.updates(steps, start)):
        if any(update.anchor for update in updates) and (tuned.limits or not tuned.base):
            told = "limits, with which there is none" if tuned.limits else "nothing of one"
            raise InputError(f"a step has an anchor, the header says {told}", hint="Ask for another copy.")
        _check_blocks(tuned, updates)
        updates_(model, updates, tuned=tuned)
        done += len(updates)
        if progress is not None:
            progress(path[done - 1] + 1)


def _check_blocks(tuned: Tuned, updates: Sequence[Update]) -> None:
    try:
        check_blocks(tuned, updates)
    except ValueError:
        hint = "Ask for another copy."
        raise InputError("a step has a block that the header does not tell of", hint=hint) from None


def checked_step(run: StoredRun, step: int | None) -> int:
    """Return how many steps are asked for.

    Raises:
        InputError: the run has not so many.
    """
    if step is None:
        return run.n_steps
    if not 0 <= step <= run.n_steps:
        raise InputError(f"there is no step {step}: the run has {run.n_steps}", hint=f"Choose 0 to {run.n_steps}.")
    return step


def checked_base(run: StoredRun, model: Model) -> tuple[Model, Tuned]:
    """Return the model, with the adapter that the run made, and the weights that the run moved, with its streams.

    Raises:
        InputError: the run began with other weights; then the model is as it was.
    """
    dtype = weights_dtype(model)
    if dtype != run.header["dtype"]:
        raise InputError(
            f"the run began with {run.header['dtype']} weights, the model has {dtype}",
            hint=f'Load it with dtype="{run.header["dtype"]}".',
        )
    name = shown(str(run.header.get("model") or ""), 200)
    hint = (
        f"It began with {name}; another revision of it is another base."
        if len(name) > 2
        else "Take the run's own base."
    )
    if "start" in run.header:
        hint = "It began with a prefix of its own, which is in its folder: give --model RUN/start."
    # Of an adapter the messages below say more.
    then, now = (
        {name: value for name, value in config.items() if not name.startswith("peft_config.")}
        for config in (run.header.get("model_config") or {}, forward_config(model))
    )
    if told := other_config(then, now, common=True):
        raise InputError(f"the model is not the run's base: its config is another one, {told}", hint=hint)
    wrapped = _with_adapter(run, model)
    replaced: list[tuple[nn.Parameter, torch.Tensor]] = []
    try:
        replaced = _draw_head(run, wrapped)
        tuned = tuned_weights(wrapped, run.streams)
        if strangers := sorted(tuned.weights.keys() ^ run.streams.keys()):
            message = f"the model is not the run's base: only one of them has {shown(strangers[0], 200)}"
            raise InputError(message, hint=hint)
        if fingerprint(wrapped) != run.header["fingerprint"]:
            raise InputError("the model is not the run's base: its weights have another fingerprint", hint=hint)
    except InputError:
        for weight, was in replaced:
            weight.data.copy_(was)
        if wrapped is not model:
            wrapped.unload()
        raise
    tuned = replace(tuned, streams=run.streams)
    method = run.header.get("method")
    if isinstance(method, dict) and method.get("anchor"):
        tuned = anchored(tuned)
    if run.header.get("blocks"):
        tuned = in_blocks(tuned, run.header["blocks"])
    return wrapped, limited(tuned, run.header["limits"]) if "limits" in run.header else tuned


def _with_adapter(run: StoredRun, model: Any) -> Any:
    options, drawn = run.header.get("adapter"), directions(run.header)
    if options is None:
        return model
    if not isinstance(options, dict) or drawn is None:
        raise InputError("the header does not say what the run's adapter was", hint="Ask for another copy.")
    if has_adapter(model):
        raise InputError("the run made its adapter itself", hint="Give the base without an adapter.")
    return adapted(model, config_of(options, task_type(model)), drawn.seed)


def _draw_head(run: StoredRun, model: nn.Module) -> list[tuple[nn.Parameter, torch.Tensor]]:
    """Give the model the head that the run began with, if the run made one; returns the weights and what they were.

    Raises:
        InputError: the header does not tell, or the model has no such weights.
    """
    options, drawn = run.header.get("head"), directions(run.header)
    if options is None:
        return []
    if drawn is None:
        raise InputError("the header does not say what the run's head was", hint="Ask for another copy.")
    names = options["weights"]
    named = {canonical_name(name): weight for name, weight in model.named_parameters()}
    if strangers := [name for name in names if name not in named]:
        hint = f"Load the base as a classifier of {len(options['classes'])} classes."
        raise InputError(f"the run made a head, and the model has no {strangers[0]!r}", hint=hint)
    was = [(named[name], named[name].detach().clone()) for name in names]
    draw_head_(model, names, drawn.seed, options["spread"])
    return was


def _passes(updates: Iterator[Update]) -> Iterator[list[Update]]:
    taken: list[Update] = []
    terms = 0
    for update in updates:
        taken.append(update)
        terms += max(1, sum(max(1, term.family.rank) for term in update.terms))
        if terms >= PASS_TERMS:
            yield taken
            taken, terms = [], 0
    if taken:
        yield taken
