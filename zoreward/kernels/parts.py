"""A kernel for tensors that are parts of whole ones: the bits of a part are those that the whole one would have there.

What an element draws follows from its flat index in the whole tensor. So the whole one's place is taken by a tensor of
its shape, in which only the part counts: the kernel beneath works on that, and the part is cut out. It draws what other
parts need, too: a part takes as long as the whole. Kept are tensors of the shapes of the wholes, each once.
"""

from __future__ import annotations

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
        plain = [number for number, (_, stream) in enumerate(weights) if stream not in self._parts]
        there = [found[number] for number in plain] if into else None
        if plain:
            made = self._kernel.perturb_all([weights[number] for number in plain], members, there)
            for number, copies in zip(plain, made, strict=True):
                found[number] = copies
        for number, part, whole in self._filled(weights):
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
        plain = [(weight, stream) for weight, stream in weights if stream not in self._parts]
        if plain:
            self._kernel.replay_all_(plain, updates)
        for number, part, whole in self._filled(weights):
            weight, stream = weights[number]
            self._kernel.replay_all_([(whole, stream)], updates)
            weight.copy_(part.of(whole, weight))

    def _filled(self, weights: Sequence[Weight]) -> Iterator[tuple[int, Part, torch.Tensor]]:
        """The tensors that are parts, one after the other: their numbers, places, and whole ones that hold them."""
        for number, (weight, stream) in enumerate(weights):
            if (part := self._parts.get(stream)) is not None:
                key = part.shape, weight.dtype, weight.device
                if key not in self._wholes:
                    self._wholes[key] = torch.zeros(part.shape, dtype=weight.dtype, device=weight.device)
                part.of(self._wholes[key], weight).copy_(weight)
                yield number, part, self._wholes[key]
