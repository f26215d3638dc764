"""`members_at`: the model at other weights. `update_`: other weights for the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from zoreward.members.blocks import check_blocks, own_updates
from zoreward.members.grouping import Grouping, filled, patched, perturbed_copies
from zoreward.members.limits import update_limited_
from zoreward.members.low_rank import HeldFactors, corrected_forward, member_factors, split
from zoreward.members.tuned import Owner, Slot, Tuned, by_kernel, bytes_of, tuned_weights
from zoreward.records import Member, Update

KEEP_BYTES = 2 << 30
"""Perturbed copies are kept for the whole context up to this size; beyond it they are made a module at a time."""

SCRATCH_SHARE = 32
"""The copies of a module at several members are made in one pass if together they take no more than this part of all
weights: reading the weights and drawing the noise once is worth that much memory."""


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
    owners = tuned.shown_by(members)
    if len(members) == 1 and fit(owners, 1, keep_bytes):
        kept = perturbed_copies(_slots(owners), members, tuned.kernels)
        with filled(_slots(owners), lambda slot: kept[id(slot.weight)][0]):
            yield
        return
    low_rank = any(members) and all(term.rank for member in members for term in member)
    corrected, copied = split(owners) if low_rank else ([], owners)
    factors = member_factors([slot for _, slot, _ in corrected], members, tuned.kernels) if corrected else {}
    if held is not None:
        factors = held.filled(factors)
    keep_all = fit(copied, len(members), keep_bytes)
    # Vectors always: they are many, and so small that a launch for each module's would be all they cost.
    kept = perturbed_copies([s for s in _slots(copied) if keep_all or s.weight.ndim < 2], members, tuned.kernels)
    grouping = Grouping(members, kept, tuned.kernels, pass_bytes(tuned))
    with ExitStack() as stack:
        for part in _called_parts(model):
            handle = part.register_forward_pre_hook(grouping.see_rows, prepend=True, with_kwargs=True)
            stack.callback(handle.remove)
        for owner, slot, correct in corrected:
            factors_here = factors[id(slot.weight)]
            forward = corrected_forward(grouping, owner, slot, correct, factors_here, may_copy=held is None)
            stack.enter_context(patched(owner, forward))
        for owner, slots in copied:
            stack.enter_context(patched(owner, grouping.forward_of(owner, slots)))
        for module in tuned.tables:
            stack.enter_context(patched(module, grouping.table_of(module), "compute_bias"))
        yield


def _called_parts(model: Any) -> list[nn.Module]:
    """The modules that are called with rows: the model; also its encoder, which `generate` calls alone, and decoder."""
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return [model, model.get_encoder(), model.get_decoder()]
    return [model]


def _slots(owners: Iterable[Owner]) -> list[Slot]:
    return [slot for _, slots in owners for slot in slots]


def fit(owners: Iterable[Owner], members: int, keep_bytes: int) -> bool:
    """Whether copies of all weights of these owners, at so many members, may be kept."""
    return bytes_of(slot.weight for slot in _slots(owners)) * members <= keep_bytes


def pass_bytes(tuned: Tuned) -> int:
    """Return the bytes up to which a module's copies at several members are made in one pass."""
    return bytes_of(tuned.weights.values()) // SCRATCH_SHARE


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
    names_of: dict[int | None, list[str]] = {}
    for name in tuned.weights:
        names_of.setdefault(tuned.blocks.get(name), []).append(name)
    for block, names in names_of.items():
        _updates_of_block_(tuned, names, own_updates(updates, block))


def _updates_of_block_(tuned: Tuned, names: Sequence[str], updates: Sequence[Update]) -> None:
    if tuned.limits:
        for update in updates:
            update_limited_(tuned, names, update)
    elif updates:
        pairs = ((tuned.weights[name], tuned.streams[name]) for name in names)
        for kernel, weights in by_kernel(pairs, tuned.kernels):
            bases = [tuned.base[weight] for weight, _ in weights] if tuned.base else None
            kernel.replay_all_(weights, updates, bases)


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
