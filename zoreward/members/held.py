"""Perturbed copies that stay where they are in memory from one step to the next, as a CUDA graph reads them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch

from zoreward.members.grouping import filled, perturbed_copies
from zoreward.members.tuned import Tuned
from zoreward.records import Member


class HeldCopies:
    """Copies of all tuned weights of a model at M members.

    Args:
        tuned: the weights.

    Attributes:
        moves: how often they went elsewhere, because their number or the weights' shapes were others.
    """

    def __init__(self, tuned: Tuned):
        self.moves = 0
        self._slots, self._kernels = list(tuned.slots), tuned.kernels
        # With a limit a copy is another tensor than the kernel's, with blocks a kernel's tensors change by turns.
        self._in_place = not tuned.limits and not tuned.blocks
        self._held: dict[int, list[torch.Tensor]] = {}

    @torch.no_grad()
    def fill(self, members: Sequence[Member]) -> None:
        """Make the copies those of these members, in the old place if there are as many."""
        if not self._fit(len(members)):
            self.moves += 1
            self._held = perturbed_copies(self._slots, members, self._kernels)
        elif self._in_place:
            perturbed_copies(self._slots, members, self._kernels, self._held)
        else:
            fresh = perturbed_copies(self._slots, members, self._kernels)
            torch._foreach_copy_(_flat(self._held), [copy for key in self._held for copy in fresh[key]])

    def _fit(self, count: int) -> bool:
        """Whether the copies are those of the weights as they are now, at as many members."""
        weights = {id(slot.weight): slot.weight for slot in self._slots}
        return self._held.keys() == weights.keys() and all(
            len(copies) == count and copies[0].shape == weights[key].shape and copies[0].dtype == weights[key].dtype
            for key, copies in self._held.items()
        )

    def shown(self, member: int) -> AbstractContextManager[None]:
        """Show the model as one of the members, by its place, as long as the context lasts."""
        return filled(self._slots, lambda slot: self._held[id(slot.weight)][member])


def _flat(copies: dict[int, list[torch.Tensor]]) -> list[torch.Tensor]:
    return [copy for own in copies.values() for copy in own]
