"""A kernel for tensors that are parts of whole ones: the bits of a part are those that the whole one would have there.

What an element draws follows from its flat index in the whole tensor. Some lines of a matrix are one piece of it: the
kernel beneath is told where that begins, and draws for them alone. Columns are many pieces, and other lines may begin
where a GPU's programs do not: then a tensor of the whole one's shape takes their place, in which only the part counts,
and the part is cut out. That takes as long as the whole. Tensors of these shapes are kept, each once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from zoreward.kernels.subspaces import Weight
from zoreward.records import Member, Update


@dataclass(frozen=True, slots=True)
class Part:
    """Where a tensor lies in the whole one.

    Args:
        shape: of the whole one.
        dim: along which dimension it is cut.
        first: where the part begins there.
    """

    shape: tuple[int, ...]
    dim: int
    first: int

    def of(self, whole: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
        """Return the part's place in a whole tensor.

        >>> Part((4,), 0, 2).of(torch.arange(4), torch.zeros(2)).tolist()
        [2, 3]
        """
        return whole.narrow(self.dim, self.first, part.shape[self.dim])

    @property
    def place(self) -> int | None:
        """The flat index of its first element where it is one piece of the whole tensor; None where it is not.

        >>> Part((4, 3), 0, 2).place, Part((4, 3), 1, 2).place
        (6, None)
        """
        return self.first * math.prod(self.shape[1:]) if self.dim == 0 else None


# What a GPU's kernel works on by itself.
_FAST = (torch.float32, torch.bfloat16, torch.float16)


class PartKernels:
    """The functions of a kernel, for tensors of which some are parts; of dense directions.

    Args:
        kernel: works on whole tensors.
        parts: stream → where the tensor of this stream lies; of those that are parts.
    """

    def __init__(self, kernel: Any, parts: Mapping[int, Part]) -> None:
        self._kernel, self._parts = kernel, dict(parts)
        self._wholes: dict[tuple[Any, ...], torch.Tensor] = {}

    @torch.no_grad()
    def perturb_all(self, weights: Sequence[Weight], members: Sequence[Member], into: Any = None) -> Any:
        """See `zoreward.kernels.cpu.perturb_all`."""
        found: list[list[torch.Tensor]] = into or [[] for _ in weights]
        pieces = self._pieces(weights)
        if pieces:
            there = [found[number] for number in pieces] if into else None
            made = self._kernel.perturb_all([weights[n] for n in pieces], members, there, [*pieces.values()])
            for number, copies in zip(pieces, made, strict=True):
                found[number] = copies
        for number, part, whole in self._filled(weights, pieces):
            weight, stream = weights[number]
            [copies] = self._kernel.perturb_all([(whole, stream)], members)
            cut = [part.of(copy, weight) for copy in copies]
            if into:
                for place, copy in zip(into[number], cut, strict=True):
                    place.copy_(copy)
            else:
                found[number] = [copy.clone(memory_format=torch.contiguous_format) for copy in cut]
        return found

    @torch.no_grad()
    def replay_all_(self, weights: Sequence[Weight], updates: Sequence[Update], bases: Any = None) -> None:
        """See `zoreward.kernels.cpu.replay_all_`.

        Raises:
            ValueError: there are bases.
        """
        if bases is not None:
            raise ValueError("an anchor pulls on whole weights, and these are parts")
        pieces = self._pieces(weights)
        if pieces:
            self._kernel.replay_all_([weights[n] for n in pieces], updates, None, [*pieces.values()])
        for number, part, whole in self._filled(weights, pieces):
            weight, stream = weights[number]
            self._kernel.replay_all_([(whole, stream)], updates)
            weight.copy_(part.of(whole, weight))

    def _pieces(self, weights: Sequence[Weight]) -> dict[int, int]:
        """The numbers of the tensors that are whole, or a piece that begins where the kernel can, and where it does."""
        found = {}
        for number, (weight, stream) in enumerate(weights):
            place = self._parts[stream].place if stream in self._parts else 0
            if place is not None and (not place or (place % self._kernel.aligned == 0 and weight.dtype in _FAST)):
                found[number] = place
        return found

    def _filled(self, weights: Sequence[Weight], pieces: Mapping[int, int]) -> Iterator[tuple[int, Part, torch.Tensor]]:
        """The other tensors, one after the other: their numbers, places, and whole ones that hold them."""
        for number, (weight, stream) in enumerate(weights):
            if number not in pieces:
                part = self._parts[stream]
                key = part.shape, weight.dtype, weight.device
                if key not in self._wholes:
                    self._wholes[key] = torch.zeros(part.shape, dtype=weight.dtype, device=weight.device)
                part.of(self._wholes[key], weight).copy_(weight)
                yield number, part, self._wholes[key]
