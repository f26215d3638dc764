"""A model that several ranks hold together: each has a part of every layer's matrices, and all read the same rows.

Layers are divided by transformers. The parts are plain tensors, so that members, updates and scores go the way that
they go elsewhere; what they draw is what the whole weight would draw in their place.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch

from zoreward.kernels.parts import Part
from zoreward.members import Tuned, bytes_of, divided
from zoreward.neighbours.of_launchers import launch_of
from zoreward.neighbours.of_transformers import DIVIDED_BY, divided_weights, take_parts_, tensor_plan
from zoreward.noise import canonical_name
from zoreward.records import InputError
from zoreward.scoring.checkpoints import Head, adapter_base, load_config
from zoreward.scoring.loading import blank_model, load_model
from zoreward.scoring.memory import Memory
from zoreward.scoring.ranks import SECONDS, Ranks, store_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_WHOLE = "Leave tensor_parallel out; device_map=auto spreads a model over the GPUs of one process."
# What of a model is counted out among ranks, by the field of its config.
_COUNTS = {
    "num_attention_heads": "attention heads",
    "num_key_value_heads": "heads of keys and values",
    "intermediate_size": "hidden units of a layer",
    "ffn_dim": "hidden units of a layer",
}


@dataclass(frozen=True, slots=True, eq=False)
class Division:
    """Which parts of a model this rank holds.

    Args:
        ranks: those that hold it together.
        parts: canonical name → where this rank's part lies in the whole weight; of those that are divided.
    """

    ranks: Ranks
    parts: Mapping[str, Part]

    def whole(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """Return a whole weight, on the CPU. All ranks must ask for the same.

        Args:
            name: its canonical name.
            weight: this rank's part, or the weight where it is not divided.
        """
        if name not in self.parts:
            return weight.detach().cpu()
        return torch.cat(self.ranks.tensors(weight), dim=self.parts[name].dim)

    def wholes(self, model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the name of each weight of a model, and the whole weight, one after the other."""
        for name, weight in model.named_parameters():
            yield name, self.whole(canonical_name(name), weight)

    def state(self, model: torch.nn.Module) -> dict[str, torch.Tensor]:
        """Return the state of the whole model, for rank 0 to save; of other ranks it has none."""
        every = {name: self.whole(canonical_name(name), weight) for name, weight in model.state_dict().items()}
        return every if self.ranks.first else {}

    def own(self, name: str, whole: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Return what of a whole weight is this rank's."""
        return self.parts[name].of(whole, weight) if name in self.parts else whole

    def of(self, tuned: Tuned) -> Tuned:
        """Return the tuned weights as the parts that they are."""
        return divided(tuned, self.parts)


def check_division(name: str, size: int, head: Head, *, trust_remote_code: bool = False) -> None:
    """Find out, before any weight is read, that a model cannot be divided.

    Args:
        name: a folder or Hub id.
        size: among how many ranks.
        head: what the model gives for a row.
        trust_remote_code: run the code that comes with it.

    Raises:
        InputError: it is of a kind that is not divided yet, or has a number of heads that leaves some over.
    """
    if adapter_base(name) is not None:
        raise InputError(
            f"'{name}' is an adapter, and of a divided model all weights are tuned", hint="Merge it first."
        )
    config = load_config(name, trust_remote_code=trust_remote_code).get_text_config()
    if head.kind != "causal":
        raise InputError(f"a {head.kind} is not divided among ranks yet", hint=_WHOLE)
    for field, told in _COUNTS.items():
        count = getattr(config, field, None)
        if isinstance(count, int) and count % size:
            fits = [str(one) for one in range(2, size) if not count % one]
            hint = f"Take {' or '.join(fits)} ranks." if fits else _WHOLE
            raise InputError(f"{size} ranks cannot share the {count} {told} of '{name}'", hint=hint)
    _plan_of(name, trust_remote_code)


def load_divided(name: str, ranks: Ranks, device: torch.device, **place: Any) -> tuple[PreTrainedModel, Division]:
    """Load what of a model is this rank's: of divided layers no rank reads more. All ranks must load the same.

    Args:
        name: a folder or Hub id.
        ranks: that hold it together.
        device: of this rank.
        place: `dtype` and `trust_remote_code`; see `load_model`.

    Raises:
        ZorewardError: it cannot be loaded, or divided.
    """
    plan = _plan_of(name, place.get("trust_remote_code", False))
    with seen_by_transformers(device, ranks.size):
        model = load_model(name, device=device, divided=(plan, ranks.size), **place)
    try:
        found = take_parts_(model, plan, ranks.size)
    except ValueError as error:
        raise InputError(f"'{name}' is not divided among ranks yet: {error}", hint=_WHOLE) from error
    return model, Division(ranks, {canonical_name(name): Part(*one) for name, one in found.items()})


def divided_memory(memory: Memory, model: torch.nn.Module, size: int) -> Memory:
    """Return what a rank needs of the memory that one process would: its parts, and a whole tensor of each shape.

    Args:
        memory: of a process that holds the whole model.
        model: it may lie on torch's meta device.
        size: among how many ranks it is divided.
    """
    parts = dict(divided_weights(model, tensor_plan(model) or {}))
    shapes = {tuple(weight.shape): weight for weight in parts.values()}
    spared = bytes_of(parts.values()) * (size - 1) // size
    return replace(memory, weights=memory.weights - spared, scratch=memory.scratch + bytes_of(shapes.values()))


def _plan_of(name: str, trust_remote_code: bool) -> dict[str, str]:
    blank = blank_model(name, dtype="auto", device=torch.device("cpu"), trust_remote_code=trust_remote_code)
    plan = None if blank is None else tensor_plan(blank)
    if plan is None:
        kind = type(blank).__name__ if blank is not None else "this model"
        raise InputError(f"'{name}' cannot be divided among ranks: nobody says how, for {kind}", hint=_WHOLE)
    if strange := sorted(set(plan.values()) - DIVIDED_BY):
        raise InputError(f"'{name}' is not divided among ranks yet: its layers are cut by {strange[0]}", hint=_WHOLE)
    return plan


@contextmanager
def seen_by_transformers(device: torch.device, size: int) -> Iterator[None]:
    """Begin the process group of so many ranks by which layers gather, unless there is one, and name this one's GPU."""
    from torch import distributed

    launch = launch_of()
    assert launch is not None
    if not distributed.is_initialized():
        group, rank = divmod(launch.rank, size)
        store = distributed.PrefixStore(f"zoreward/{launch.restart}/model-{group}", store_of(launch))
        how: dict[str, Any] = {"rank": rank, "world_size": size, "timeout": timedelta(seconds=SECONDS)}
        if device.type == "cuda":
            how["device_id"] = torch.device("cuda", device.index or 0)
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", store=store, **how)
    before = os.environ.get("LOCAL_RANK")
    os.environ["LOCAL_RANK"] = str(device.index or 0)
    try:
        yield
    finally:
        if before is None:
            del os.environ["LOCAL_RANK"]
        else:
            os.environ["LOCAL_RANK"] = before
