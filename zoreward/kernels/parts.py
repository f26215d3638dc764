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
from zoreward.neighbours.of_torch import copy_all_
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


_LINES = torch.contiguous_format
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
        for some in self._filled(weights, pieces):
            made = self._kernel.perturb_all([(whole, weights[n][1]) for n, whole in some], members)
            for (number, _), copies in zip(some, made, strict=True):
                weight, stream = weights[number]
                cut = [self._parts[stream].of(copy, weight) for copy in copies]
                if into:
                    copy_all_(into[number], cut)
                else:  # no view of a large whole, which would keep it
                    found[number] = cut if weight.ndim < 2 else [copy.clone(memory_format=_LINES) for copy in cut]
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
        for some in self._filled(weights, pieces):
            self._kernel.replay_all_([(whole, weights[n][1]) for n, whole in some], updates)
            copy_all_([weights[n][0] for n, _ in some], self._in_place(weights, some))

    def _pieces(self, weights: Sequence[Weight]) -> dict[int, int]:
        """The numbers of the tensors that are whole, or a piece that begins where the kernel can, and where it does."""
        found = {}
        for number, (weight, stream) in enumerate(weights):
            place = self._parts[stream].place if stream in self._parts else 0
            if place is not None and (not place or (place % self._kernel.aligned == 0 and weight.dtype in _FAST)):
                found[number] = place
        return found

    def _filled(self, weights: Sequence[Weight], pieces: Mapping[int, int]) -> Iterator[list[tuple[int, torch.Tensor]]]:
        """The other tensors by number, with whole ones that hold them: all vectors, then one after the other.

        A vector's whole is its own, as vectors are many; matrices of a shape share one.
        """
        others = [number for number in range(len(weights)) if number not in pieces]
        vectors = [number for number in others if weights[number][0].ndim < 2]
        for numbers in ([vectors] if vectors else []) + [[n] for n in others if weights[n][0].ndim > 1]:
            some = []
            for number in numbers:
                weight, stream = weights[number]
                shape = self._parts[stream].shape
                key = weight.dtype, weight.device, stream if weight.ndim < 2 else shape
                if key not in self._wholes:
                    self._wholes[key] = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
                some.append((number, self._wholes[key]))
            copy_all_(self._in_place(weights, some), [weights[n][0] for n in numbers])
            yield some

    def _in_place(self, weights: Sequence[Weight], some: Sequence[tuple[int, torch.Tensor]]) -> list[torch.Tensor]:
        """The places of some parts in their wholes."""
        return [self._parts[weights[number][1]].of(whole, weights[number][0]) for number, whole in some]
