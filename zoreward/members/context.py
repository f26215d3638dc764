"""`members_at`: the model at other weights. `update_`: other weights for the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from zoreward.members.blocks import check_blocks, own_updates
from zoreward.members.grouping import filled, perturbed_copies
from zoreward.members.limits import update_limited_
from zoreward.members.low_rank import HeldFactors
from zoreward.members.shared import Shared, fit, key_of, slots_of
from zoreward.members.tuned import Tuned, by_kernel, tuned_weights
from zoreward.records import Member, Update

KEEP_BYTES = 2 << 30
"""Perturbed copies are kept for the whole context up to this size; beyond it they are made a module at a time."""


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
    if len(members) == 1 and fit(owners := tuned.shown_by(members), 1, keep_bytes):
        kept = perturbed_copies(slots_of(owners), members, tuned.kernels)
        with filled(slots_of(owners), lambda slot: kept[id(slot.weight)][0]):
            yield
        return
    key = key_of(tuned, members, keep_bytes, held is None)
    shared = tuned.shared.pop(key, None)  # a context inside this one has its own
    if shared is not None and shared.fits():
        shared.move_to(members)
    else:
        shared = Shared(tuned, members, keep_bytes, held is None)
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
