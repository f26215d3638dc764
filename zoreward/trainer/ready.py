"""The model of a run: loaded, with what is put into it, in its place; put back to its base; and the run's header."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.utils import logging

from zoreward.journal import Run, checked_base, fingerprint, weights_dtype
from zoreward.journal.fingerprint import forward_config
from zoreward.members import ENOUGH, Tuned, adapter_options, first_spread, least_eps, left_of_directions
from zoreward.neighbours.of_transformers import use_one_gpu_
from zoreward.records import Example, InputError, ZorewardError
from zoreward.registry import Objective, code_of
from zoreward.scoring import Head, load_model, load_with_head
from zoreward.trainer.comparing import digest_of, options_of
from zoreward.trainer.inputs import loaded_model, name_of, what_is_tuned, with_adapter
from zoreward.trainer.options import family_of_run

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from zoreward.trainer.options import ZOConfig

# Where a run keeps the prefix that it began with: it holds activations, whose last bits are those of one device.
START_NAME = "start"


@dataclass(frozen=True, slots=True, eq=False)
class Ready:
    """The model of a run.

    Args:
        model: with its adapter, where it stands, in eval mode.
        tuned: what is tuned of it.
        head: what it gives for a row.
        dtype: of the base's weights: an adapter may have another.
        source: the folder or Hub id that the run's first weights come from.
        start: the folder of the run's prefix, where it made one; this is then the source.
        makes_adapter: whether the run put in an adapter that a replay makes again.
        new_weights: canonical names of the weights of a new head.
    """

    model: Any
    tuned: Tuned
    head: Head
    dtype: str
    source: str
    start: str | None
    makes_adapter: bool
    new_weights: list[str]


def ready_model(model: PreTrainedModel | PeftModel | str, head: Head, args: ZOConfig, peft_config: Any) -> Ready:
    """Load a model, put in what is asked for, and bring it to its place.

    Args:
        model: a folder or Hub id, or a loaded model.
        head: what it gives for a row, or will.
        args: completed options.
        peft_config: of the adapter that is put in.

    Raises:
        ZorewardError: it cannot be loaded, or nothing of it can be tuned so.
    """
    source, new_weights = name_of(model), list[str]()
    source = os.path.abspath(source) if source and os.path.isdir(source) else source  # read again, wherever we are then
    if isinstance(model, str):
        model, new_weights = loaded_model(model, head, args)
    dtype = weights_dtype(model)  # of the base: an adapter may have another
    loaded: Any = with_adapter(model, args, peft_config)
    made, prefix = loaded is not model, args.tune == "prefix"
    start = str(Path(args.output_dir, START_NAME)) if made and prefix else None
    if getattr(loaded, "hf_device_map", None):
        use_one_gpu_(args)  # else transformers would put a copy of the model on each GPU
    elif not getattr(loaded, "is_quantized", False):
        loaded = loaded.to(args.device)  # before the members are tried on it
    tuned = what_is_tuned(loaded, args)
    loaded.eval().requires_grad_(False)  # no dropout; and autocast would cache copies of weights that want a grad
    return Ready(loaded, tuned, head, dtype, start or source, start, made and not prefix, new_weights)


# What a larger ε must bring back of a direction, as a cosine.
WORTH_RAISING = 0.05


def eps_that_shows(tuned: Tuned, args: ZOConfig, *, given: bool, one_at_a_time: bool = False) -> float:
    """Return the ε of a run: that of its options, or a larger one where rounding would hide the directions.

    Says so if it would. Several members with factors share the weights and their outputs are corrected, so nothing is
    rounded.

    Args:
        tuned: the weights.
        args: completed options.
        given: whether the user gave ε, who keeps it.
        one_at_a_time: whether such members are scored so, each from weights of its own.

    Raises:
        InputError: no entry of the weights differs between members.
    """
    assert args.eps is not None
    family = family_of_run(args)
    if family.rank and not one_at_a_time:
        return args.eps
    left = left_of_directions(tuned, args.eps, family)
    if left.cosine >= ENOUGH:
        return args.eps
    eps = least_eps(tuned, args.eps, family)
    better = left_of_directions(tuned, eps, family)
    if given and not left.share:
        message = f"no weight differs between members at eps={args.eps:g}: its dtype rounds them to the same number"
        raise InputError(message, hint="Leave it out, or take a larger one: MeZO's is 1e-3.")
    dtype = str(max(tuned.weights.values(), key=torch.Tensor.numel).dtype).removeprefix("torch.")
    if better.cosine < left.cosine + WORTH_RAISING:
        logging.get_logger(__name__).warning(
            "Rounded to %s, members at ε %.3g differ in %.0f %% of the weights that a direction moves (cosine %.2f); "
            "a larger ε changes little, as the others are too large for it. --dtype float32 moves them all.",
            *(dtype, args.eps, 100 * left.share, left.cosine),
        )
        return args.eps
    logging.get_logger(__name__).warning(
        "Rounded to %s, members at ε %.3g differ in %.0f %% of the weights that a direction moves (cosine %.2f): "
        "%s %.3g, where they differ in %.0f %% (%.2f).",
        *(dtype, args.eps, 100 * left.share, left.cosine),
        *("better is --eps" if given else "ε is raised to", eps, 100 * better.share, better.cosine),
    )
    return args.eps if given else eps


def header_of(
    ready: Ready,
    objective: Objective,
    method: Any,
    args: ZOConfig,
    tune_rows: Sequence[Example],
    eval_rows: Sequence[Example] | None,
) -> dict[str, Any]:
    """Return the header of a run's journal: all that the run depends on.

    Args:
        ready: the model, which stands at the weights that the run begins with.
        objective: the objective.
        method: the method, a dataclass.
        args: completed options.
        tune_rows: those to tune on.
        eval_rows: those to choose by, or None.
    """
    import transformers

    from zoreward import __version__

    model, limits, blocks, head = ready.model, ready.tuned.limits, ready.tuned.blocks, {}
    if ready.new_weights:  # what makes the run's head again, beside its seed
        head = {"classes": list(ready.head.classes), "weights": ready.new_weights, "spread": first_spread(model)}
    return {
        "objective": objective.name,
        "options": options_of(objective),
        "method": method.for_header(args.method),
        "model": model.name_or_path,
        **({"start": START_NAME} if ready.start else {}),  # in the run folder, wherever that is
        "dtype": ready.dtype,
        "fingerprint": fingerprint(model),
        "config": args.changed(),
        "code": code_of(objective),
        "model_config": forward_config(model),
        "rows": {"tune": digest_of(tune_rows), "evaluate": digest_of(eval_rows)},
        **({"adapter": adapter_options(model)} if ready.makes_adapter else {}),
        **({"head": head} if head else {}),
        "streams": ready.tuned.streams,
        **({"limits": limits} if limits else {}),
        **({"blocks": blocks} if blocks else {}),
        "versions": {"zoreward": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
    }


@torch.no_grad()
def put_base_back_(ready: Ready, run: Run, args: ZOConfig) -> None:
    """Load the weights that a run began with, again, and put them in the place of those of its model.

    Raises:
        InputError: they cannot be loaded, or are others.
    """
    place: dict[str, Any] = {
        "dtype": run.header["dtype"],
        "device": "cpu",
        "trust_remote_code": args.trust_remote_code,
    }
    try:
        if ready.head.is_new:
            base, _ = load_with_head(ready.source, ready.head.classes, args.seed, **place)
        else:
            base = load_model(ready.source, **place)
        _, fresh = checked_base(run, base)
    except ZorewardError as error:
        raise InputError(
            f"the base weights for the best step cannot be loaded again from '{ready.source}': {error}",
            hint=f"zoreward replay {args.output_dir} --step {run.best_step} makes them from another copy.",
        ) from error
    for canonical, weight in ready.tuned.weights.items():
        weight.copy_(fresh.weights[canonical])
