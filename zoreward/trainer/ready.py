"""The model of a run: what memory it needs, what is tuned of it, how it is loaded, and an ε that its dtype shows."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.utils import logging

from zoreward.journal import weights_dtype
from zoreward.members import (
    ENOUGH,
    Tuned,
    adapted,
    anchored,
    are_factored,
    by_layer,
    bytes_of,
    check_merge,
    check_no_adapter,
    in_blocks,
    least_eps,
    left_of_directions,
    limited,
    lora_config,
    smallest,
    tuned_weights,
    with_prefix,
)
from zoreward.neighbours.of_peft import quiet_peft
from zoreward.neighbours.of_transformers import use_one_gpu_
from zoreward.records import InputError, Query
from zoreward.scoring import (
    Division,
    Head,
    Memory,
    Ranks,
    blank_model,
    check_memory,
    divided_memory,
    load_divided,
    load_model,
    load_with_head,
    needed_memory,
)
from zoreward.trainer.engines import LOCAL, check_share
from zoreward.trainer.inputs import Given, name_of
from zoreward.trainer.options import family_of_run, takes_turns
from zoreward.trainer.penalty import keeps_base

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from zoreward.trainer.options import ZOConfig

# Where a run keeps the prefix that it began with: it holds activations, whose last bits are those of one device.
START_NAME = "start"
# What a larger ε must bring back of a direction, as a cosine.
WORTH_RAISING = 0.05


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
        division: which parts of the model this rank holds; None where it has it all.
    """

    model: Any
    tuned: Tuned
    head: Head
    dtype: str
    source: str
    start: str | None
    makes_adapter: bool
    new_weights: list[str]
    division: Division | None = None


def checked_memory(model: PreTrainedModel | str, given: Given, query: Query, peft_config: Any) -> Memory | None:
    """Return what memory a run needs; None where it cannot be told, as of quantised weights or several devices.

    Args:
        model: the model, or the folder or Hub id that it will be loaded from.
        given: what the run is given beside it.
        query: the first one.
        peft_config: of the adapter that will be put in.

    Raises:
        NoRoomError: it cannot fit.
        InputError: no weight is tuned, or none that the directions move; or there are no blocks to tune in turn.
    """
    args, head, examples = given.args, given.head, given.examples
    blank: Any = model
    if args.device_map is not None:
        return None
    if isinstance(model, str):
        place = {"dtype": args.dtype, "device": args.device, "trust_remote_code": args.trust_remote_code}
        blank = blank_model(model, **place, classes=len(head.classes) if head.is_new else 0)
    elif getattr(model, "is_quantized", False) or getattr(model, "hf_device_map", None):
        return None
    if blank is None:
        return None
    dtype = next(blank.parameters()).dtype
    tuned = _tuned(blank, args, peft_config, isinstance(model, str))
    elsewhere = args.base_device is not None and torch.device(args.base_device).type != args.device.type
    copied = bytes_of(blank.parameters()) if keeps_base(args) and not given.adapter and not elsewhere else 0
    copied += bytes_of(tuned.weights.values()) if args.anchor > 0 and tuned is not None else 0
    members, batch = max(query.parts, key=len), args.train_batch_size * args.gradient_accumulation_steps
    rows = len(examples) if query.rows == "all" else batch
    if query.rows_per_direction and are_factored(query.members):  # which share passes, as many as there are
        members, rows = query.members, query.rows_per_direction
    writes = given.objective.needs == "completions" and args.engine == LOCAL
    memory = needed_memory(
        blank,
        tuned,
        members if writes or given.objective.needs != "completions" else ((),),
        examples,
        rows=rows,
        new_tokens=args.max_completion_length if writes else 0,
        copied=copied,
        device=args.device,
    )
    if memory is not None and args.tensor_parallel is not None:
        memory = divided_memory(memory, blank, args.tensor_parallel)
    if memory is not None:
        check_memory(memory, Path(name_of(model)).name or type(model).__name__, dtype)
        check_share(args.gpu_memory_utilization, args.device, memory.free - memory.certain)
    return memory


def _tuned(model: Any, args: ZOConfig, peft_config: Any, blank: bool) -> Tuned | None:
    """What is tuned; None for a prefix, and for an adapter that is yet to be put into a loaded model."""
    if peft_config is None and args.tune not in ("lora", "prefix"):
        return in_turns(model, tuned_weights(model, args.tune), args)
    if args.tune == "prefix" or not blank:
        return None
    config = peft_config or lora_config(model, args.lora_rank, args.lora_alpha)
    try:
        from peft import get_peft_model

        with torch.random.fork_rng(devices=[]), torch.device("meta"), quiet_peft():
            wrapped = get_peft_model(model, copy.deepcopy(config))
            return in_turns(wrapped, tuned_weights(wrapped), args)
    except InputError:
        raise
    except Exception:  # what does not fit together is told when the adapter is made
        return None


def ready_model(
    model: PreTrainedModel | PeftModel | str, head: Head, args: ZOConfig, peft_config: Any, ranks: Ranks
) -> Ready:
    """Load a model, put in what is asked for, and bring it to its place.

    Args:
        model: a folder or Hub id, or a loaded model.
        head: what it gives for a row, or will.
        args: completed options.
        peft_config: of the adapter that is put in.
        ranks: all of them, of which some next to each other hold it together where it is divided.

    Raises:
        ZorewardError: it cannot be loaded, or nothing of it can be tuned so.
    """
    if args.tensor_parallel is not None:
        return _ready_parts(name_of(model), head, args, ranks)
    source, new_weights = name_of(model), list[str]()
    source = os.path.abspath(source) if source and os.path.isdir(source) else source  # read again, wherever we are then
    if isinstance(model, str):
        place: dict[str, Any] = {"dtype": args.dtype, "device": None if args.device_map else args.device}
        place |= {"device_map": args.device_map, "trust_remote_code": args.trust_remote_code}
        if head.is_new:
            model, new_weights = load_with_head(model, head.classes, args.seed, **place)
        else:
            model = load_model(model, **place)
    dtype = weights_dtype(model)  # of the base: an adapter may have another
    loaded: Any = model
    if args.tune == "prefix":
        check_no_adapter(model)
        loaded = with_prefix(model.eval(), args.seed)
    elif peft_config is not None or args.tune == "lora":
        loaded = adapted(model, peft_config or lora_config(model, args.lora_rank, args.lora_alpha), args.seed)
    made, prefix = loaded is not model, args.tune == "prefix"
    start = str(Path(args.output_dir, START_NAME)) if made and prefix else None
    if getattr(loaded, "hf_device_map", None):
        use_one_gpu_(args)  # else transformers would put a copy of the model on each GPU
    elif not getattr(loaded, "is_quantized", False):
        loaded = loaded.to(args.device)  # before the members are tried on it
    if args.merge:
        check_merge(loaded)
    tuned = in_turns(loaded, tuned_weights(loaded, args.tune), args)
    if args.share is not None:
        tuned = limited(tuned, smallest(tuned, args.share))
    elif args.anchor:
        tuned = anchored(tuned)
    loaded.eval().requires_grad_(False)  # no dropout; and autocast would cache copies of weights that want a grad
    return Ready(loaded, tuned, head, dtype, start or source, start, made and not prefix, new_weights)


def _ready_parts(name: str, head: Head, args: ZOConfig, ranks: Ranks) -> Ready:
    """Load this rank's parts of a model that all ranks hold together."""
    place: dict[str, Any] = {"dtype": args.dtype, "trust_remote_code": args.trust_remote_code}
    assert args.tensor_parallel is not None
    model, division = load_divided(name, ranks.within(args.tensor_parallel), args.device, **place)
    tuned = division.of(tuned_weights(model))
    model.eval().requires_grad_(False)
    source = os.path.abspath(name) if os.path.isdir(name) else name
    return Ready(model, tuned, head, weights_dtype(model), source, None, False, [], division)


def in_turns(model: Any, tuned: Tuned, args: ZOConfig) -> Tuned:
    """Return the tuned weights, in their blocks if these are to be tuned in turn.

    Raises:
        InputError: the directions move none of them; there are no layers, or fewer blocks than are asked for.
    """
    family = family_of_run(args)
    if not any(family.moves(weight.ndim) for weight in tuned.weights.values()):
        raise InputError(f"{args.noise} directions move matrices, and none is tuned", hint="Take noise=dense.")
    return in_blocks(tuned, by_layer(model, tuned, args.blocks, family=family)) if takes_turns(args) else tuned


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
