"""What members differ by: perturbed copies of weights, and factors of low-rank directions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch

from zoreward.members.restrictions import kept, slots_by_members
from zoreward.members.tuned import Kernels, Slot, by_kernel
from zoreward.neighbours.of_torch import copy_all_, weights_in
from zoreward.noise.factors import inv_sqrt_rank
from zoreward.records import Member


def perturbed_copies(
    slots: Iterable[Slot],
    members: Sequence[Member],
    kernels: Kernels,
    into: Mapping[int, list[torch.Tensor]] | None = None,
) -> dict[int, list[torch.Tensor]]:
    """Return the copies of the slots' weights at each member, by the weight's id.

    Args:
        slots: none of which has a limit or a block, if there is an `into`.
        members: M members.
        kernels: by device.
        into: what an earlier call gave for these slots and as many members: to be written over and returned.
    """
    slot_of = {id(slot.weight): slot for slot in slots}
    found = {
        id(weight): [kept(weight, copy, slot_of[id(weight)].limit) for copy in copies]
        for own, some in slots_by_members(slot_of.values(), members)
        for kernel, weights in by_kernel([(slot.weight, slot.stream) for slot in some], kernels)
        for there in [into and [into[id(weight)] for weight, _ in weights]]
        for (weight, _), copies in zip(weights, kernel.perturb_all(weights, own, there), strict=True)
    }
    return {key: found[key] for key in slot_of}  # in one order, whichever block has its turn


@contextmanager
def filled(slots: Iterable[Slot], copy_of: Callable[[Slot], torch.Tensor]) -> Iterator[None]:
    """Hang other tensors into the slots, and the weights back when the context ends, however it ends."""
    filled: list[Slot] = []
    try:
        for slot in slots:
            weights_in(slot.holder)[slot.key] = copy_of(slot)
            filled.append(slot)
        yield
    finally:
        for slot in filled:
            weights_in(slot.holder)[slot.key] = slot.weight


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


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """Σ coefficient · z of one matrix W (m, n) at each member, as a·bᵀ; cast to the dtype of W once.

    Args:
        whole: (M, ·, R), R the ranks of a member's terms together: lines of the factors of all matrices of a dtype.
        lines: where those of a begin, m, where those of b begin, n.
    """

    whole: torch.Tensor
    lines: tuple[int, int, int, int]

    @property
    def a(self) -> torch.Tensor:
        """(M, m, R), times coefficient/√r; zeros where a member has fewer ranks. Each member's lies in one piece."""
        return self.whole.narrow(1, self.lines[0], self.lines[1])

    @property
    def b(self) -> torch.Tensor:
        """(M, n, R). Each member's lies in one piece."""
        return self.whole.narrow(1, self.lines[2], self.lines[3])


class HeldFactors:
    """Factors that stay where they are in memory from one context to the next, as a CUDA graph reads them.

    Attributes:
        moves: how often they went elsewhere, because their number or their shapes were others.
    """

    def __init__(self) -> None:
        self.moves = 0
        self._held: dict[int, Factors] = {}

    @torch.no_grad()
    def filled(self, fresh: dict[int, Factors]) -> dict[int, Factors]:
        """Return factors with the numbers of `fresh`, in the old place if they fit there."""
        new, old = _places(fresh), _places(self._held)
        if new == old:
            copy_all_(_wholes(self._held), _wholes(fresh))
        else:
            self.moves += 1
            self._held = fresh
        return self._held


def _wholes(factors: dict[int, Factors]) -> list[torch.Tensor]:
    return list({id(own.whole): own.whole for own in factors.values()}.values())


def _places(factors: dict[int, Factors]) -> list[Any]:
    return [(key, own.lines, own.whole.shape, own.whole.dtype) for key, own in factors.items()]


@torch.no_grad()
def member_factors(
    slots: Iterable[Slot], members: Sequence[Member], kernels: Kernels, dtype: torch.dtype | None = None
) -> dict[int, Factors]:
    """Return the factors of the slots' matrices at each member, by the weight's id; in its dtype by default."""
    slots = list(slots)
    found: dict[int, Factors] = {}
    for own, some in slots_by_members(slots, members):
        found |= _factors(some, own, kernels, dtype)
    return {id(slot.weight): found[id(slot.weight)] for slot in slots}


def _factors(
    slots: Iterable[Slot], members: Sequence[Member], kernels: Kernels, dtype: torch.dtype | None
) -> dict[int, Factors]:
    terms = list({term.direction: term for member in members for term in member}.values())
    ends = list(accumulate(term.family.rank for term in terms))
    columns_of = {term.direction: range(end - term.family.rank, end) for term, end in zip(terms, ends, strict=True)}
    # The columns of all factors side by side that a member uses, each with its scale; filled up with 0 · the first.
    used = [
        [
            (column, term.coefficient * inv_sqrt_rank(term.family.rank))
            for term in member
            for column in columns_of[term.direction]
        ]
        for member in members
    ]
    width = max(map(len, used))
    used = [[*some, *[(0, 0.0)] * (width - len(some))] for some in used]
    found: dict[int, Factors] = {}
    matrices = {id(slot.weight): (slot.weight, slot.stream) for slot in slots}
    for kernel, weights in by_kernel(matrices.values(), kernels):
        device = weights[0][0].device
        # Not made on the device: that would wait until it has done all it was asked to.
        columns = torch.tensor([[column for column, _ in some] for some in used]).to(device, non_blocking=True)
        scales = torch.tensor([[scale for _, scale in some] for some in used]).to(device, non_blocking=True)
        # All matrices at once: one by one, they would cost a GPU some ten launches each.
        lines = kernel.factor_lines(weights, terms)[:, columns]
        sides = [weight.shape for weight, _ in weights]
        b_place = sum(m for m, _ in sides)
        lines[:b_place] *= scales
        dtypes = {dtype or weight.dtype for weight, _ in weights}
        wholes = {one: lines.to(one).transpose(0, 1).contiguous() for one in dtypes}
        a_place = 0
        for (weight, _), (m, n) in zip(weights, sides, strict=True):
            found[id(weight)] = Factors(wholes[dtype or weight.dtype], (a_place, m, b_place, n))
            a_place, b_place = a_place + m, b_place + n
    return found
