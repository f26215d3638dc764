"""`members_at`: the model at other weights, and what that takes of memory. `update_`: other weights for the model.

What hangs in a model's modules while members share it is made once, and hung again by each context that is like it. For
OPT-13B that is 324 forwards and the copies of 400 vectors: 36 ms of Python on a CPU core when they were made anew in
each step, 5 to 10 now. A GPU has nothing to do meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from zoreward.members.copies import HeldCopies, HeldFactors, filled, member_factors, perturbed_copies
from zoreward.members.forwards import place_of
from zoreward.members.grouping import Grouping, members_at_once
from zoreward.members.low_rank import are_factored, corrected_forward, split
from zoreward.members.restrictions import check_blocks, own_updates, update_limited_
from zoreward.members.tuned import Owner, Slot, Tuned, by_kernel, bytes_of, tuned_weights
from zoreward.records import Member, Update

KEEP_BYTES = 2 << 30
"""Perturbed copies are kept for the whole context up to this size; beyond it they are made a module at a time."""

SCRATCH_SHARE = 32
"""The copies of a module at several members are made in one pass if together they take no more than this part of all
weights: reading the weights and drawing the noise once is worth that much memory."""

_Change = tuple[nn.Module, str, Callable[..., Any]]
"""A module, the name of a method, and what hangs in its place."""


@contextmanager
def members_at(
    model: nn.Module,
    members: Sequence[Member],
    *,
    tuned: Tuned | None = None,
    keep_bytes: int = KEEP_BYTES,
    held: HeldFactors | None = None,
) -> Iterator[None]:
    """Show `model` as M members at once, for as long as the context lasts.

    The rows of each call are grouped by member: the first R / M rows see member 0, the next R / M rows member 1, and
    so on; with one member every row sees it. The model may be called many times, with other numbers of rows and tokens,
    as `generate` does. θ is not touched: whatever happens inside, it is bit for bit the same afterwards.

    Where all terms have a rank, several members need no perturbed weights: the outputs of linear and embedding layers
    are corrected instead. Only other modules that own a matrix take copies.

    Args:
        model: any module. Its outputs must have rows in their first dimension.
        members: M members.
        tuned: `tuned_weights(model)`, if it is at hand.
        keep_bytes: perturbed copies are all kept while the context lasts if they fit this many bytes, otherwise made
            again for each call of a module: then a weight that is read without a call of its module (as Mamba's are)
            is seen unperturbed.
        held: where low-rank factors are kept in place from one context to the next; then nothing that they can correct
            takes copies.

    Raises:
        InputError: a call inside has rows that M does not divide, or a layer is called with neither rows nor tokens.
        ValueError: a term has a block that the weights do not have.

    Example:
        >>> import torch
        >>> from zoreward.records import Term
        >>> net = torch.nn.Linear(2, 1)
        >>> with torch.no_grad(), members_at(net, ((Term(1, 0.1),), (Term(1, -0.1),))):
        ...     plus, minus = net(torch.ones(1, 2).repeat(2, 1))
    """
    tuned = tuned or tuned_weights(model)
    check_blocks(tuned, members=members)
    if len(members) == 1 and _fit(owners := tuned.shown_by(members), 1, keep_bytes):
        kept = perturbed_copies(_slots_of(owners), members, tuned.kernels)
        with filled(_slots_of(owners), lambda slot: kept[id(slot.weight)][0]):
            yield
        return
    key = _key_of(tuned, members, keep_bytes, held is None)
    shared = tuned.shared.pop(key, None)  # a context inside this one has its own
    if shared is not None and shared.fits():
        shared.move_to(members)
    else:
        shared = _Shared(tuned, members, keep_bytes, held is None)
    with ExitStack() as stack:
        for part in called_parts(model):
            handle = part.register_forward_pre_hook(shared.grouping.see_rows, prepend=True, with_kwargs=True)
            stack.callback(handle.remove)
        stack.enter_context(shared.shown(held))
        yield
    if shared.lasts:
        tuned.shared[key] = shared


def called_parts(model: Any) -> list[nn.Module]:
    """The modules that are called with rows: the model; also its encoder, which `generate` calls alone, and decoder."""
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return [model, model.get_encoder(), model.get_decoder()]
    return [model]


def update_(model: nn.Module, update: Update, *, tuned: Tuned | None = None) -> None:
    """Move the weights: θ ← round(θ + Σ coefficient · z(seed) − decay · θ − anchor · (θ − θ_base)).

    With `updates_` the only writer of weights. float32 sums in the order of the terms; one rounding at the end,
    stochastic for half precision.

    Args:
        model: the model; changed in place.
        update: what to add and to take away.
        tuned: `tuned_weights(model)`, if it is at hand; for an anchor `anchored(tuned_weights(model))`.

    Raises:
        ValueError: the update has an anchor, and no base was kept; or a block that the weights do not have.

    Example:
        >>> import torch
        >>> from zoreward.records import Term
        >>> net = torch.nn.Linear(2, 1)
        >>> update_(net, Update(decay=0.0, terms=(Term(1, 0.5),), rounding_seed=0))
    """
    updates_(model, (update,), tuned=tuned)


def updates_(model: nn.Module, updates: Sequence[Update], *, tuned: Tuned | None = None) -> None:
    """Move the weights by one update after the other, in one pass over them; the same bits as `update_` for each.

    On a CPU the factors of all low-rank terms are held at once: give some dozen terms at a time.

    Args:
        model: the model; changed in place.
        updates: in their order; each is rounded by itself.
        tuned: `tuned_weights(model)`, if it is at hand.

    Example:
        >>> import torch
        >>> from zoreward.records import Term
        >>> net = torch.nn.Linear(2, 1)
        >>> updates_(net, [Update(0.0, (Term(seed, 0.5),), rounding_seed=0) for seed in range(3)])
    """
    tuned = tuned or tuned_weights(model)
    if any(update.anchor for update in updates):
        if not tuned.base:
            raise ValueError("an update has an anchor, and no base was kept: see zoreward.members.anchored")
        if tuned.limits:
            raise ValueError("an anchor pulls on all weights, and limits let some rest")
    check_blocks(tuned, updates)
    for block, parts in _weights_by_block(tuned).items():
        own = own_updates(updates, block)
        if tuned.limits:
            for update in own:
                update_limited_(tuned, [name for name in tuned.weights if tuned.blocks.get(name) == block], update)
        elif own:
            for kernel, weights in parts:
                bases = [tuned.base[weight] for weight, _ in weights] if tuned.base else None
                kernel.replay_all_(weights, own, bases)


_Weights = list[tuple[torch.Tensor, int]]


def _weights_by_block(tuned: Tuned) -> dict[int | None, list[tuple[Any, _Weights]]]:
    """The weights of each block with their streams, by kernel.

    Found once, as long as they stay on their devices: between the scores of a step and its update a GPU waits.
    """
    devices = [weight.device for weight in tuned.weights.values()]
    known = tuned.shared.get("updates")
    if known is None or known[0] != devices:
        found: dict[int | None, _Weights] = {}
        for name, weight in tuned.weights.items():
            found.setdefault(tuned.blocks.get(name), []).append((weight, tuned.streams[name]))
        parts = {block: list(by_kernel(weights, tuned.kernels)) for block, weights in found.items()}
        known = tuned.shared["updates"] = devices, parts
    by_block: dict[int | None, list[tuple[Any, _Weights]]] = known[1]
    return by_block


def anchored(tuned: Tuned) -> Tuned:
    """Return the tuned weights with a copy of each as it is now, towards which an update's anchor pulls.

    Args:
        tuned: the weights, as they are before any update.

    Example:
        >>> import torch
        >>> from zoreward.members import tuned_weights
        >>> net = torch.nn.Linear(2, 1)
        >>> tuned = anchored(tuned_weights(net))
        >>> before = net.weight.clone()
        >>> _ = net.weight.data.add_(1.0)
        >>> update_(net, Update(0.0, (), rounding_seed=0, anchor=0.5), tuned=tuned)
        >>> torch.allclose(net.weight, before + 0.5)
        True
    """
    base: dict[torch.Tensor, torch.Tensor] = {}
    pairs = ((weight, tuned.streams[name]) for name, weight in tuned.weights.items())
    for kernel, weights in by_kernel(pairs, tuned.kernels):
        copies = kernel.perturb_all(weights, ((),))
        base |= {weight: copy for (weight, _), [copy] in zip(weights, copies, strict=True)}
    return replace(tuned, base=base)


class _Shared:
    """A model that M members share.

    Args:
        tuned: its tuned weights.
        members: M members; later ones may take their place if `_key_of` is the same for them.
        keep_bytes: see `zoreward.members.members_at`.
        may_copy: see `zoreward.members.low_rank.corrected_forward`.

    Attributes:
        grouping: the rows of the call in flight.
        lasts: whether it may be kept for other members: not if it holds copies of matrices, which take memory.
    """

    def __init__(self, tuned: Tuned, members: Sequence[Member], keep_bytes: int, may_copy: bool):
        owners = tuned.shown_by(members)
        corrected, copied = split(owners) if are_factored(members) else ([], owners)
        keep_all = _fit(copied, len(members), keep_bytes)
        self.lasts = not (keep_all and copied)
        self._kernels = tuned.kernels
        self._factored = [slot for _, slot, _ in corrected]
        # Vectors always: they are many, and so small that a launch for each module's would be all they cost.
        self._kept = HeldCopies([s for s in _slots_of(copied) if keep_all or s.weight.ndim < 2], tuned.kernels)
        self._kept.fill(members)
        self.grouping = Grouping(members, self._kept.copies, tuned.kernels, _pass_bytes(tuned))
        forwards = [
            *((owner, corrected_forward(self.grouping, owner, slot, correct, may_copy=may_copy))
              for owner, slot, correct in corrected),
            *((owner, self.grouping.forward_of(owner, slots)) for owner, slots in copied),
        ]  # fmt: skip
        self._changes: list[_Change] = [(owner, place_of(owner), forward) for owner, forward in forwards]
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


def _key_of(tuned: Tuned, members: Sequence[Member], keep_bytes: int, may_copy: bool) -> Hashable:
    """Return what members have in common that can share a model by the same forwards."""
    weight = next(iter(tuned.weights.values()))
    kinds = frozenset((term.family.name, term.block) for member in members for term in member)
    return len(members), kinds, keep_bytes, may_copy, weight.dtype, weight.device


def _slots_of(owners: Iterable[Owner]) -> list[Slot]:
    """Return the slots of all owners."""
    return [slot for _, slots in owners for slot in slots]


def _fit(owners: Iterable[Owner], members: int, keep_bytes: int) -> bool:
    """Whether copies of all weights of these owners, at so many members, may be kept."""
    return bytes_of(slot.weight for slot in _slots_of(owners)) * members <= keep_bytes


def _pass_bytes(tuned: Tuned) -> int:
    """Return the bytes up to which a module's copies at several members are made in one pass."""
    return bytes_of(tuned.weights.values()) // SCRATCH_SHARE


def scratch_bytes(tuned: Tuned, members: Sequence[Member], keep_bytes: int = KEEP_BYTES) -> int:
    """Return the bytes that `members_at` holds at a time for these members: copies of weights, or factors of low rank.

    The weights are not read: they may be on torch's meta device. What is left out are large linear layers of low rank
    that take copies on a GPU because they see many tokens.

    Args:
        tuned: the tuned weights.
        members: M members.
        keep_bytes: as for `members_at`.

    Example:
        >>> import torch
        >>> from zoreward.members import tuned_weights
        >>> from zoreward.records import Term
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Linear(4, 2)).to("meta")
        >>> couple = ((Term(1, 0.1),), (Term(1, -0.1),))
        >>> scratch_bytes(tuned_weights(net), couple), scratch_bytes(tuned_weights(net), couple, keep_bytes=0)
        (368, 176)
    """
    owners = tuned.shown_by(members)
    if len(members) == 1 and _fit(owners, 1, keep_bytes):
        return bytes_of(slot.weight for _, slots in owners for slot in slots)
    corrected, copied = split(owners) if are_factored(members) else ([], owners)
    columns = len(members) * max((sum(term.family.rank for term in member) for member in members), default=0)
    matrices = {id(slot.weight): slot.weight for _, slot, _ in corrected}.values()
    factors = columns * sum(sum(weight.shape) * weight.element_size() for weight in matrices)
    if _fit(copied, len(members), keep_bytes):
        return factors + len(members) * bytes_of(slot.weight for _, slots in copied for slot in slots)
    vectors = bytes_of(slot.weight for _, slots in copied for slot in slots if slot.weight.ndim < 2)
    largest = 0
    for _, slots in copied:
        made = [slot for slot in slots if slot.weight.ndim >= 2]
        at_once = min(len(members), members_at_once(made, _pass_bytes(tuned)))
        largest = max(largest, at_once * bytes_of(slot.weight for slot in made))
    return factors + len(members) * vectors + largest


def kept_members(tuned: Tuned, members: Sequence[Member], keep_bytes: int = KEEP_BYTES) -> int:
    """Return of how many of these members `members_at` keeps all copies, so that each is made once for many passes.

    Args:
        tuned: the tuned weights.
        members: M members.
        keep_bytes: as for `members_at`.

    Returns:
        0 to M; M where they need no copies of matrices.

    Example:
        >>> import torch
        >>> from zoreward.members import tuned_weights
        >>> from zoreward.records import Term
        >>> net = torch.nn.Linear(8, 4).to("meta")
        >>> kept_members(tuned_weights(net), [(Term(1, 0.1),), (Term(1, -0.1),)], keep_bytes=200)
        1
    """
    if are_factored(members):
        return len(members)
    own = bytes_of(slot.weight for slot in _slots_of(tuned.shown_by(members)))
    return min(len(members), keep_bytes // max(1, own))


def lasting_bytes(tuned: Tuned, members: Sequence[Member]) -> int:
    """Return the bytes that the members' directions leave for later ones: float32, as of the bases of subspaces.

    Args:
        tuned: the tuned weights.
        members: M members.

    Example:
        >>> import torch
        >>> from zoreward.members import tuned_weights
        >>> from zoreward.noise import Subspace
        >>> from zoreward.records import Term
        >>> couple = ((Term(1, 0.1, Subspace(2, 5)),), (Term(1, -0.1, Subspace(2, 5)),))
        >>> lasting_bytes(tuned_weights(torch.nn.Linear(8, 4)), couple)
        96
    """
    families = {term.family for member in members for term in member}
    shapes = [tuple(weight.shape) for weight in tuned.weights.values()]
    return 4 * sum(family.lasting_numbers(shape) for family in families for shape in shapes)
