"""How much of a direction is left once members are rounded to the dtype of the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from zoreward.members.tuned import Tuned
from zoreward.noise import DENSE, Family
from zoreward.records import to_float32

# Entries of each tensor that are looked at: with 200 tensors the cosine is right to 1 %.
SAMPLE = 1024
# Of the cosine between what two members differ by and their direction.
ENOUGH = 0.9
# ε is doubled this often at most: members that are further off are another question than the one that was asked.
DOUBLINGS = 4


@dataclass(frozen=True, slots=True)
class Left:
    """What rounding leaves of a direction.

    Args:
        share: of the entries that the direction moves, how many differ between θ + εz and θ − εz.
        cosine: between what the two members differ by and z; 0 where nothing differs.
    """

    share: float
    cosine: float


@torch.no_grad()
def left_of_directions(tuned: Tuned, eps: float, family: Family = DENSE) -> Left:
    """Return what is left of directions between members whose weights are rounded to their dtype, as dense ones are.

    bfloat16 numbers around w lie 2^-8 to 2^-7 · |w| apart: where ε is small beside that, θ + εz and θ − εz are the same
    for most entries, and what the others differ by is their spacing, not 2εz. Measured on a sample of each tensor, the
    same one each time.

    Args:
        tuned: the weights.
        eps: ε.
        family: of the directions.

    >>> from zoreward.members import tuned_weights
    >>> layer = torch.nn.Linear(64, 64).bfloat16()
    >>> left_of_directions(tuned_weights(layer), 1e-1).cosine > 0.99
    True
    """
    differing = moved = dots = squares = lengths = 0.0
    radius = to_float32(eps)
    for name, weight in tuned.weights.items():
        flat = weight.detach().reshape(-1)
        if not flat.numel() or not family.moves(weight.ndim):
            continue
        wide = torch.promote_types(weight.dtype, torch.float32)
        theta = flat[:: max(1, flat.numel() // SAMPLE)][:SAMPLE].to("cpu", wide)
        z = torch.from_numpy(family.sample(tuned.streams[name], theta.numel())).to(wide)
        z = torch.where(theta.abs() <= tuned.limits.get(name, math.inf), z, 0)
        above, below = ((theta + sign * radius * z).to(weight.dtype).double() for sign in (1, -1))
        difference, z, stands_for = above - below, z.double(), flat.numel() / theta.numel()
        differing += stands_for * int(torch.count_nonzero(difference))
        moved += stands_for * int(torch.count_nonzero(z))
        dots += stands_for * float(difference @ z)
        squares += stands_for * float(difference @ difference)
        lengths += stands_for * float(z @ z)
    return Left(differing / moved if moved else 0.0, dots / math.sqrt(squares * lengths) if squares else 0.0)


def least_eps(tuned: Tuned, eps: float, family: Family = DENSE) -> float:
    """Return the first of ε, 2ε, 4ε, … at which a cosine of 0.9 is left of directions; 16ε at most.

    Args:
        tuned: the weights.
        eps: ε. The other arguments are those of `left_of_directions`.
    """
    for _ in range(DOUBLINGS):
        if left_of_directions(tuned, eps, family).cosine >= ENOUGH:
            break
        eps *= 2
    return eps
