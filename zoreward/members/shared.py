"""What hangs in a model's modules while members share it: made once, and hung again by each context that is like it.

For OPT-13B that is 324 forwards and the copies of 400 vectors: 36 ms of Python on a CPU core when they were made anew
in each step, 5 to 10 now. A GPU has nothing to do meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from zoreward.members.grouping import Grouping
from zoreward.members.held import HeldCopies
from zoreward.members.hooked import place_of
from zoreward.members.low_rank import HeldFactors, are_factored, corrected_forward, member_factors, split
from zoreward.members.tuned import Owner, Slot, Tuned, bytes_of
from zoreward.records import Member

SCRATCH_SHARE = 32
"""The copies of a module at several members are made in one pass if together they take no more than this part of all
weights: reading the weights and drawing the noise once is worth that much memory."""

Change = tuple[nn.Module, str, Callable[..., Any]]
"""A module, the name of a method, and what hangs in its place."""


class Shared:
    """A model that M members share.

    Args:
        tuned: its tuned weights.
        members: M members; later ones may take their place if `key_of` is the same for them.
        keep_bytes: see `zoreward.members.members_at`.
        may_copy: see `zoreward.members.low_rank.corrected_forward`.

    Attributes:
        grouping: the rows of the call in flight.
        lasts: whether it may be kept for other members: not if it holds copies of matrices, which take memory.
    """

    def __init__(self, tuned: Tuned, members: Sequence[Member], keep_bytes: int, may_copy: bool):
        owners = tuned.shown_by(members)
        corrected, copied = split(owners) if are_factored(members) else ([], owners)
        keep_all = fit(copied, len(members), keep_bytes)
        self.lasts = not (keep_all and copied)
        self._kernels = tuned.kernels
        self._factored = [slot for _, slot, _ in corrected]
        # Vectors always: they are many, and so small that a launch for each module's would be all they cost.
        self._kept = HeldCopies([s for s in slots_of(copied) if keep_all or s.weight.ndim < 2], tuned.kernels)
        self._kept.fill(members)
        self.grouping = Grouping(members, self._kept.copies, tuned.kernels, pass_bytes(tuned))
        forwards = [
            *((owner, corrected_forward(self.grouping, owner, slot, correct, may_copy=may_copy))
              for owner, slot, correct in corrected),
            *((owner, self.grouping.forward_of(owner, slots)) for owner, slots in copied),
        ]  # fmt: skip
        self._changes: list[Change] = [(owner, place_of(owner), forward) for owner, forward in forwards]
        self._changes += [(module, "compute_bias", self.grouping.table_of(module)) for module in tuned.tables]
        self._found = self._own_methods()

    def fits(self) -> bool:
        """Whether the modules run what they ran when this was made."""
        return all(now is then for now, then in zip(self._own_methods(), self._found, strict=True))

    def move_to(self, members: Sequence[Member]) -> None:
        """Make the copies of vectors those of other members."""
        self._kept.fill(members)
        self.grouping.take(members, self._kept.copies)

    @contextmanager
    def shown(self, held: HeldFactors | None) -> Iterator[None]:
        """Show the model as the members, as long as the context lasts."""
        grouping = self.grouping
        factors = member_factors(self._factored, grouping.members, self._kernels) if self._factored else {}
        grouping.factors = factors if held is None else held.filled(factors)
        try:
            for module, name, shown in self._changes:
                module.__dict__[name] = shown
            yield
        finally:
            grouping.factors = {}
            for (module, name, _), method in zip(self._changes, self._found, strict=True):
                if method is None:
                    module.__dict__.pop(name, None)
                else:
                    module.__dict__[name] = method

    def _own_methods(self) -> list[Callable[..., Any] | None]:
        return [module.__dict__.get(name) for module, name, _ in self._changes]


def key_of(tuned: Tuned, members: Sequence[Member], keep_bytes: int, may_copy: bool) -> Hashable:
    """Return what members have in common that can share a model by the same forwards."""
    weight = next(iter(tuned.weights.values()))
    kinds = frozenset((term.family.name, term.block) for member in members for term in member)
    return len(members), kinds, keep_bytes, may_copy, weight.dtype, weight.device


def slots_of(owners: Iterable[Owner]) -> list[Slot]:
    """Return the slots of all owners."""
    return [slot for _, slots in owners for slot in slots]


def fit(owners: Iterable[Owner], members: int, keep_bytes: int) -> bool:
    """Whether copies of all weights of these owners, at so many members, may be kept."""
    return bytes_of(slot.weight for slot in slots_of(owners)) * members <= keep_bytes


def pass_bytes(tuned: Tuned) -> int:
    """Return the bytes up to which a module's copies at several members are made in one pass."""
    return bytes_of(tuned.weights.values()) // SCRATCH_SHARE
