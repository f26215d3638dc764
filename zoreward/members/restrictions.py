"""Tuning less than all weights at once: blocks of layers that take turns, or the small weights of each tensor.

Kernels see the terms of one block at a time. Sparse MeZO's mask is made from the weights and never stored.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from zoreward.members.chosen import layer_lists
from zoreward.members.tuned import Slot, Tuned, by_kernel
from zoreward.noise import DENSE, Family
from zoreward.records import InputError, Member, Update

LARGEST = torch.finfo(torch.float32).max
"""A limit beyond which no weight lies: a run's header has room for no larger number."""


def by_layer(model: nn.Module, tuned: Tuned, count: int | None = None, *, family: Family = DENSE) -> dict[str, int]:
    """Return the block of each tuned weight: canonical name → number, from 0.

    Each transformer layer is a block, in their order; what lies outside of them (embeddings, the last norm, the head)
    is the last one. What the directions do not move, as vectors, is no block of its own.

    Args:
        model: the model, with its adapter; may be on torch's meta device.
        tuned: its tuned weights.
        count: put neighbouring layers together until there are so many blocks, of as many layers each as can be; None:
            leave them apart.
        family: of the directions.

    Raises:
        InputError: there are no layers, the weights lie in fewer blocks than two, or in fewer than `count`.
    """
    try:
        lists = layer_lists(model)
    except InputError as error:
        raise InputError(str(error), hint="Take method=spsa: it moves all weights at once.") from None
    prefixes = [f"{place}.{number}." for place, layers in lists for number in range(len(layers))]
    outside = len(prefixes)
    place_of = {
        name: next((place for place, prefix in enumerate(prefixes) if name.startswith(prefix)), outside)
        for name in tuned.weights
    }
    moved = {place_of[name] for name, weight in tuned.weights.items() if family.moves(weight.ndim)}
    if len(moved) < 2:
        hint = "Tune more of the model, or take method=spsa: it moves all weights at once."
        raise InputError("all weights that are tuned lie in one block of layers", hint=hint)
    count = len(moved) if count is None else count
    if not 2 <= count <= len(moved):
        hint = f"Choose 2 to {len(moved)}; a block has a layer at least."
        raise InputError(f"the tuned weights cannot be cut into {count} blocks of layers", hint=hint)
    layers = sorted(moved - {outside})
    groups = count - (outside in moved)
    block_of = {place: number * groups // len(layers) for number, place in enumerate(layers)} | {outside: count - 1}
    return {name: block_of.get(place, 0) for name, place in place_of.items()}


def in_blocks(tuned: Tuned, blocks: Mapping[str, int]) -> Tuned:
    """Return the tuned weights, cut into blocks: terms of a block move its tensors alone, and no other is touched.

    Args:
        tuned: the weights.
        blocks: canonical name → number, of all of them; see `by_layer`.

    Source: Park, Yun, Kim, Kundu, Yang 2025, arXiv 2501.19099.

    Example:
        >>> import torch
        >>> from zoreward.members import tuned_weights, update_
        >>> from zoreward.records import Term
        >>> net = torch.nn.Linear(2, 1)
        >>> tuned = in_blocks(tuned_weights(net), {"weight": 0, "bias": 1})
        >>> before = net.weight.clone()
        >>> from zoreward.records import Term
        >>> update_(net, Update(0.0, (Term(1, 0.5, block=1),), 0, block=1), tuned=tuned)
        >>> torch.equal(net.weight, before)
        True
    """
    name_of = {id(weight): name for name, weight in tuned.weights.items()}
    owners = tuple(
        (owner, tuple(replace(slot, block=blocks[name_of[id(slot.weight)]]) for slot in slots))
        for owner, slots in tuned.owners
    )
    around: dict[nn.Module, list[nn.Module]] = {owner: [] for owner, _ in owners}
    for owner in around:
        for inner in owner.modules():
            if inner is not owner and inner in around:
                around[inner].append(owner)
    return replace(tuned, owners=owners, blocks=dict(blocks), around=around)


def check_blocks(tuned: Tuned, updates: Sequence[Update] = (), members: Sequence[Member] = ()) -> None:
    """Check that updates and members are of blocks that there are: else they would silently move nothing.

    Raises:
        ValueError: one is not.
    """
    asked = {update.block for update in updates} - {None}
    asked |= {term.block for terms in (*members, *(update.terms for update in updates)) for term in terms} - {None}
    if unknown := asked - set(tuned.blocks.values()):
        raise ValueError(f"there is no block {min(map(str, unknown))} of weights: see zoreward.members.in_blocks")


def own_terms(terms: Member, block: int | None) -> Member:
    """Return the terms that move tensors of a block; None: of weights that are not cut.

    >>> from zoreward.records import Term
    >>> first, second = Term(1, 0.5, block=0), Term(2, 0.5, block=1)
    >>> own_terms((first, second), 1) == (second,)
    True
    """
    return tuple(term for term in terms if term.block is None or term.block == block)


def own_updates(updates: Iterable[Update], block: int | None) -> list[Update]:
    """Return what updates do to the tensors of a block, without those that do nothing there."""
    found = []
    for update in updates:
        turn = update.block is None or update.block == block
        decay, anchor = (update.decay, update.anchor) if turn else (0.0, 0.0)
        own = Update(decay, own_terms(update.terms, block), update.rounding_seed, anchor, block=update.block)
        found += [own] if own.moves(2) else []  # what moves no matrix moves nothing
    return found


def slots_by_members(
    slots: Iterable[Slot], members: Sequence[Member]
) -> Iterator[tuple[tuple[Member, ...], list[Slot]]]:
    """Yield what members are to tensors of some blocks, and the slots of these.

    Members of no block are yielded as they are, not as others that equal them: kernels know the last ones again.
    """
    if isinstance(members, tuple) and all(term.block is None for member in members for term in member):
        if slots := list(slots):
            yield members, slots
        return
    groups: dict[tuple[Member, ...], list[Slot]] = {}
    own: dict[int | None, tuple[Member, ...]] = {}
    for slot in slots:
        if slot.block not in own:
            own[slot.block] = tuple(own_terms(member, slot.block) for member in members)
        groups.setdefault(own[slot.block], []).append(slot)
    yield from groups.items()


def in_each_block(tuned: Tuned, members: Sequence[Member]) -> list[Sequence[Member]]:
    """Return the members as they stand in the turn of each block; only them, where there are no blocks."""
    if not tuned.blocks:
        return [members]
    return [_of_block(members, block) for block in sorted(set(tuned.blocks.values()))]


def in_all_blocks(members: Sequence[Member]) -> Sequence[Member]:
    """Return the members as they would stand if all blocks had their turn at once: for a trial of all weights."""
    return _of_block(members, None)


def _of_block(members: Sequence[Member], block: int | None) -> tuple[Member, ...]:
    return tuple(tuple(replace(term, block=block) for term in member) for member in members)


@torch.no_grad()
def smallest(tuned: Tuned, share: float) -> dict[str, float]:
    """Return for each tensor the size up to which its weights are among the smallest: canonical name → limit.

    A tensor of which so many weights are 0 has no limit but the largest number of its dtype, so it is tuned as a whole.
    A limit of 0 would let each weight of an adapter's B, which begins at 0, move once and never again.

    Args:
        tuned: the weights.
        share: how many of a tensor's weights are, 0 < share ≤ 1, rounded up. Weights of the same size are all in.

    >>> from zoreward.members import tuned_weights
    >>> zeros = torch.nn.Linear(2, 1, bias=False)
    >>> _ = zeros.weight.data.zero_()
    >>> smallest(tuned_weights(zeros), 0.5)["weight"] == torch.finfo(torch.float32).max
    True
    """
    limits = {}
    for name, weight in tuned.weights.items():
        sizes = weight.detach().abs().float().flatten()
        limit = float(sizes.kthvalue(math.ceil(share * sizes.numel())).values) if sizes.numel() else 0.0
        limits[name] = limit or min(torch.finfo(weight.dtype).max, LARGEST)
    return limits


def limited(tuned: Tuned, limits: Mapping[str, float]) -> Tuned:
    """Return the tuned weights, of which only those that are at most as large as their tensor's limit are tuned.

        z' = z where |θ| ≤ limit, else 0

    The limits stay, the mask is that of the weights at hand: a weight that has grown beyond its limit rests, and so do
    its decay and its rounding. Members and updates of a step see the same weights, so the same mask; a replay makes the
    same weights, so the same masks. It takes no memory beside one tensor's copy while that is updated.

    Args:
        tuned: the weights.
        limits: canonical name → limit, of all of them.

    Source: Liu et al. 2024, "Sparse MeZO", arXiv 2402.15751.

    Example:
        >>> from zoreward.members import tuned_weights
        >>> tuned = tuned_weights(torch.nn.Linear(2, 1))
        >>> len(limited(tuned, smallest(tuned, 0.5)).limits)
        2
    """
    owners = tuple(
        (owner, tuple(replace(slot, limit=limits[name_of[id(slot.weight)]]) for slot in slots))
        for name_of in [{id(weight): name for name, weight in tuned.weights.items()}]
        for owner, slots in tuned.owners
    )
    return replace(tuned, owners=owners, limits=dict(limits))


def kept(weight: torch.Tensor, changed: torch.Tensor, limit: float | None) -> torch.Tensor:
    """Return `changed` where a weight may change, and else the weight itself.

    >>> kept(torch.tensor([0.5, -2.0]), torch.tensor([0.6, -1.9]), limit=1.0)
    tensor([ 0.6000, -2.0000])
    """
    return changed if limit is None else torch.where(weight.abs() <= limit, changed, weight)


@torch.no_grad()
def update_limited_(tuned: Tuned, names: Iterable[str], update: Update) -> None:
    """Do an update to weights of these names within their limits, a tensor at a time; see `updates_`."""
    for name in names:
        weight = tuned.weights[name]
        before = weight.detach().clone()
        for kernel, same in by_kernel([(weight, tuned.streams[name])], tuned.kernels):
            kernel.replay_all_(same, [update])
        weight.copy_(kept(before, weight, tuned.limits[name]))
