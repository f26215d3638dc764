"""Perturbed copies that stay where they are in memory from one step to the next, as a CUDA graph reads them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch

from zoreward.members.grouping import filled, perturbed_copies
from zoreward.members.tuned import Kernels, Slot
from zoreward.neighbours.of_torch import copy_all_
from zoreward.records import Member


class HeldCopies:
    """Copies of tuned weights at M members.

    Args:
        slots: where the weights hang.
        kernels: by device.

    Attributes:
        copies: weight's id → its copies at each member.
        moves: how often they went elsewhere, because their number or the weights' shapes were others.
    """

    def __init__(self, slots: Sequence[Slot], kernels: Kernels):
        self.copies: dict[int, list[torch.Tensor]] = {}
        self.moves = 0
        self._slots, self._kernels = list(slots), kernels
        self._weights = {id(slot.weight): slot.weight for slot in slots}
        # With a limit a copy is another tensor than the kernel's, with blocks a kernel's tensors change by turns.
        self._in_place = all(slot.limit is None and slot.block is None for slot in slots)

    @torch.no_grad()
    def fill(self, members: Sequence[Member]) -> None:
        """Make the copies those of these members, in the old place if there are as many."""
        if not self._fit(len(members)):
            self.moves += 1
            self.copies = perturbed_copies(self._slots, members, self._kernels)
        elif self._in_place:
            perturbed_copies(self._slots, members, self._kernels, self.copies)
        else:
            fresh = perturbed_copies(self._slots, members, self._kernels)
            copy_all_(_flat(self.copies), [copy for key in self.copies for copy in fresh[key]])

    def _fit(self, count: int) -> bool:
        """Whether the copies are those of the weights as they are now, at as many members."""
        return self.copies.keys() == self._weights.keys() and all(
            len(copies) == count
            and copies[0].shape == (weight := self._weights[key]).shape
            and copies[0].dtype == weight.dtype
            and copies[0].device == weight.device
            for key, copies in self.copies.items()
        )

    def shown(self, member: int) -> AbstractContextManager[None]:
        """Show the model as one of the members, by its place, as long as the context lasts."""
        return filled(self._slots, lambda slot: self.copies[id(slot.weight)][member])


def _flat(copies: dict[int, list[torch.Tensor]]) -> list[torch.Tensor]:
    return [copy for own in copies.values() for copy in own]
