"""Members and updates as the Triton kernels read them: lists of 64-bit numbers, and factors one behind the other.

See `triton_kernels`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from zoreward.noise import DISTRIBUTIONS, Dense
from zoreward.noise.factors import Factored, inv_sqrt_rank
from zoreward.records import Member, Term

# What moves a tensor.
DENSE, LOW_RANK, DECAY, ANCHOR = 1, 2, 4, 8


def script_of(
    terms: Sequence[Term], begins: dict[Any, int], seed: int = 0, decay: float = 0.0, anchor: float = 0.0
) -> list[int]:
    """The script's lines for one member or update."""
    ranks = [term.family.rank for term in terms]
    kind = DENSE * (0 in ranks) | LOW_RANK * any(ranks)
    kind |= DECAY * (decay != 0) | ANCHOR * (anchor != 0)
    lines = [seed, _pattern(decay) | _pattern(anchor) << 32, len(terms), kind]
    for term, rank in zip(terms, ranks, strict=True):
        scale = inv_sqrt_rank(rank) if rank else 1.0
        lines += [term.seed, _pattern(term.coefficient) | _pattern(scale) << 32, rank]
        lines.append(begins[term.direction] if rank else 0)
    return lines


def alike_of(members: Sequence[Member]) -> int:
    """2 for couples, 1 for other members of one dense term each, otherwise 0."""
    if any(len(member) != 1 or member[0].family.rank for member in members):
        return 0
    seeds = [member[0].seed for member in members]
    return 2 if seeds[::2] == seeds[1::2] else 1


def kinds_of(ndim: int) -> int:
    """What moves a tensor of so many dimensions."""
    return DENSE | LOW_RANK * (ndim == 2) | DECAY * (ndim >= 2) | ANCHOR


def rank_of(terms: Iterable[Term]) -> int:
    """0 where no term has a rank, 1 where that of all is 1, otherwise 2."""
    return min(2, max((term.family.rank for term in terms), default=0))


def drawn_of(terms: Iterable[Term]) -> int | None:
    """Return which entries a launch draws where it adds dense terms: their distribution's place in `DISTRIBUTIONS`.

    None where no launch can: the terms have two distributions, or a family that the kernels have no rule for.
    """
    first, *others = {term.family for term in terms if not isinstance(term.family, Factored)} or {Dense()}
    return DISTRIBUTIONS.index(first.distribution) if isinstance(first, Dense) and not others else None


def padded(side: int) -> int:
    """The lines of a factor with room behind them: the next one begins on a boundary of 16 bytes.

    >>> padded(5)
    8
    """
    return -(-side // 4) * 4


def sides_of(drawn: torch.Tensor, weights: Sequence[tuple[torch.Tensor, int]], rank: int) -> list[torch.Tensor]:
    """a and b of one matrix, a and b of the next, … among the factors of one term."""
    lengths = [side for weight, _ in weights for side in weight.shape]
    pieces = drawn.view(-1, rank).split([padded(length) for length in lengths])
    return [piece[:length] for piece, length in zip(pieces, lengths, strict=True)]


def _pattern(value: float) -> int:
    """The 32 bits of a float32."""
    [pattern] = struct.unpack("<I", struct.pack("<f", value))
    return int(pattern)
