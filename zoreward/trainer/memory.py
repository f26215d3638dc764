"""What memory a run needs: said, or refused, before its weights are read."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from zoreward.members import Tuned, bytes_of, lora_config, tuned_weights
from zoreward.neighbours.of_peft import quiet_peft
from zoreward.records import Example, InputError, Query
from zoreward.scoring import Head, Memory, blank_model, check_memory, needed_memory
from zoreward.trainer.drift import keeps_base
from zoreward.trainer.inputs import check_directions, cut_into_blocks, name_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from zoreward.trainer.options import ZOConfig


def checked_memory(
    model: PreTrainedModel | str,
    args: ZOConfig,
    peft_config: Any,
    query: Query,
    needs: str,
    examples: Sequence[Example],
    *,
    adapter: bool,
    head: Head,
) -> Memory | None:
    """Return what memory a run needs; None where it cannot be told, as of quantised weights or several devices.

    Args:
        model: the model, or the folder or Hub id that it will be loaded from.
        args: completed options.
        peft_config: of the adapter that will be put in.
        query: the first one.
        needs: what the objective needs.
        examples: the rows to tune on.
        adapter: whether an adapter is tuned, without which the model is its own base.
        head: what the model gives for a row.

    Raises:
        NoRoomError: it cannot fit.
        InputError: no weight is tuned, or none that the directions move; or there are no blocks to tune in turn.
    """
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
    if tuned is not None:
        check_directions(tuned, args)
    elsewhere = args.base_device is not None and torch.device(args.base_device).type != args.device.type
    copied = bytes_of(blank.parameters()) if keeps_base(args) and not adapter and not elsewhere else 0
    copied += bytes_of(tuned.weights.values()) if args.anchor > 0 and tuned is not None else 0
    memory = needed_memory(
        blank,
        tuned,
        max(query.parts, key=len),
        examples,
        rows=len(examples) if query.rows == "all" else args.train_batch_size * args.gradient_accumulation_steps,
        new_tokens=args.max_completion_length if needs == "completions" else 0,
        copied=copied,
        device=args.device,
    )
    if memory is not None:
        check_memory(memory, Path(name_of(model)).name or type(model).__name__, dtype)
    return memory


def _tuned(model: Any, args: ZOConfig, peft_config: Any, blank: bool) -> Tuned | None:
    """What is tuned; None for a prefix, and for an adapter that is yet to be put into a loaded model."""
    if peft_config is None and args.tune not in ("lora", "prefix"):
        return cut_into_blocks(model, tuned_weights(model, args.tune), args)
    if args.tune == "prefix" or not blank:
        return None
    config = peft_config or lora_config(model, args.lora_rank, args.lora_alpha)
    try:
        from peft import get_peft_model

        with torch.random.fork_rng(devices=[]), torch.device("meta"), quiet_peft():
            adapted = get_peft_model(model, copy.deepcopy(config))
            return cut_into_blocks(adapted, tuned_weights(adapted), args)
    except InputError:
        raise
    except Exception:  # what does not fit together is told when the adapter is made
        return None
