"""Members as LoRA adapters on the disk, as other engines load them.

With z = a·bᵀ/√r a member's W + c·z is an adapter of rank r: B = c/√r · a, A = bᵀ. Where an adapter is tuned, a member
of it is another adapter of its kind, whatever the directions are.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoreward.members import Slot, Tuned, adapter_state, are_factored, has_adapter, member_factors, perturbed_copies
from zoreward.noise import canonical_name
from zoreward.records import Member

# Entries of `normal` are whole numbers over this: in half precision they are exact once it is on the other side.
_SQRT_8 = 8**0.5

State = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Adapter:
    """A member on the disk.

    Args:
        name: that no other adapter has had, or will have: engines know by it what they have read and computed.
        number: the same as a number, from 1.
        folder: with `adapter_config.json` and `adapter_model.safetensors`.
    """

    name: str
    number: int
    folder: Path


class AdapterFiles:
    """Writes members as adapters, each under a name and a path of its own.

    Args:
        model: with what is tuned.
        tuned: that.

    Attributes:
        folder: where adapters are written; None: where temporary files are.
    """

    def __init__(self, model: nn.Module, tuned: Tuned):
        self._model, self._tuned, self._count = model, tuned, 0
        self.folder: Path | None = None
        self._run = uuid.uuid4().hex[:12]  # a server outlives runs, and remembers their adapters

    def rank(self, members: Sequence[Member]) -> int:
        """Return the largest rank of these members' adapters."""
        if has_adapter(self._model):
            config = adapter_state(self._model)[1]
            return max(config.r, *(config.rank_pattern or {}).values(), 1)
        return max((sum(term.family.rank for term in member) for member in members), default=0) or 1

    def problem(self, members: Sequence[Member], taken: Collection[str] | None = None, most: int | None = None) -> str:
        """Return why these members are no adapters that an engine takes; "" where they are.

        Args:
            members: some.
            taken: the modules of which the engine takes adapters; None: of all.
            most: the largest rank that it takes; None: any.
        """
        moved = [member for member in members if member]
        if has_adapter(self._model) or not moved:
            return ""
        if not are_factored(moved):
            return "members along directions of full rank are no LoRA adapters"
        if most is not None and self.rank(moved) > most:
            return f"members have rank {self.rank(moved)}, and there is room for {most}"
        names = _names(self._model)
        for slot in self._moved_by(moved):
            name = names[id(slot.holder)]
            if _named(slot.holder, name, slot.weight, slot.weight) is None or (taken is not None and name not in taken):
                return f"members move {name}, of which there are no adapters"
        return ""

    @contextmanager
    def written(self, members: Sequence[Member]) -> Iterator[list[Adapter | None]]:
        """Yield the adapter of each member, there until the block is left; None for the model as it is."""
        folder = Path(tempfile.mkdtemp(prefix="zoreward-", dir=self.folder))
        try:
            if has_adapter(self._model):
                yield [self._write(folder, *found) for found in self._adapters_at(members)]
            else:
                moved = [member for member in members if member]
                found = iter(self._factors_at(moved) if moved else ())
                yield [self._write(folder, *next(found)) if member else None for member in members]
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _write(self, folder: Path, state: State, config: Any) -> Adapter:
        from safetensors.torch import save_file

        self._count += 1
        adapter = Adapter(f"zoreward-{self._run}-{self._count}", self._count, folder / f"{self._run}-{self._count}")
        adapter.folder.mkdir()
        tensors = {name: tensor.detach().contiguous().clone() for name, tensor in state.items()}  # tied ones are two
        save_file(tensors, adapter.folder / "adapter_model.safetensors")
        if isinstance(config, dict):
            (adapter.folder / "adapter_config.json").write_text(json.dumps(config))
        else:
            config.save_pretrained(str(adapter.folder))
        return adapter

    def _adapters_at(self, members: Sequence[Member]) -> Iterator[tuple[State, Any]]:
        """The adapter that is tuned, at each member."""
        state, config = adapter_state(self._model)
        for member in members:
            copies = perturbed_copies(self._tuned.slots, (member,), self._tuned.kernels)
            yield {name: copies[id(weight)][0] for name, weight in state.items()}, config

    def _factors_at(self, members: Sequence[Member]) -> Iterator[tuple[State, Any]]:
        """What each member adds to the weights."""
        slots, names = self._moved_by(members), _names(self._model)
        # Those of a matrix that hangs in two places are drawn once.
        factors = member_factors(slots, members, self._tuned.kernels, torch.float32)
        for m in range(len(members)):
            state: dict[str, torch.Tensor] = {}
            for slot in slots:
                own, dtype = factors[id(slot.weight)], slot.weight.dtype
                a, b = own.a[m], own.b[m]
                if dtype != torch.float32 and members[m][0].family.distribution == "normal":
                    a, b = a / _SQRT_8, b * _SQRT_8
                state |= _named(slot.holder, names[id(slot.holder)], a.to(dtype), b.to(dtype)) or {}
            rank, modules = own.a.shape[-1], sorted({names[id(slot.holder)] for slot in slots})
            yield state, {**_PLAIN, "r": rank, "lora_alpha": rank, "target_modules": modules}

    def _moved_by(self, members: Sequence[Member]) -> list[Slot]:
        terms = [term for member in members for term in member]
        return [slot for slot in self._tuned.slots if any(term.moves(slot.weight.ndim) for term in terms)]


_PLAIN = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "", "bias": "none"}


def _named(module: nn.Module, name: str, a: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor] | None:
    """The two factors of what is added to a module's weight, as PEFT names them; None where it has no name for them."""
    if type(module).forward is nn.Linear.forward:
        return {f"base_model.model.{name}.lora_A.weight": b.mT, f"base_model.model.{name}.lora_B.weight": a}
    if type(module).forward is nn.Embedding.forward:
        return {f"base_model.model.{name}.lora_embedding_A": a.mT, f"base_model.model.{name}.lora_embedding_B": b}
    return None


def _names(model: nn.Module) -> dict[int, str]:
    return {id(module): canonical_name(f"{name}.")[:-1] for name, module in model.named_modules()}
