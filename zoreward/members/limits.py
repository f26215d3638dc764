"""Tuning only the small weights of each tensor: Sparse MeZO's mask, which is made from the weights and never stored."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch

from zoreward.members.tuned import Tuned, by_kernel
from zoreward.records import Update

LARGEST = torch.finfo(torch.float32).max
"""A limit beyond which no weight lies: a run's header has room for no larger number."""


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
