"""Members and updates as the Triton kernels read them: lists of 64-bit numbers; see `triton_kernels`."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from zoreward import noise
from zoreward.records import Member, Term

# What moves a tensor.
DENSE, LOW_RANK, DECAY, ANCHOR = 1, 2, 4, 8


def script_of(
    terms: Sequence[Term], begins: dict[Any, int], seed: int = 0, decay: float = 0.0, anchor: float = 0.0
) -> list[int]:
    """The script's lines for one member or update."""
    kind = DENSE * any(term.rank == 0 for term in terms) | LOW_RANK * any(term.rank for term in terms)
    kind |= DECAY * (decay != 0) | ANCHOR * (anchor != 0)
    lines = [seed, _pattern(decay) | _pattern(anchor) << 32, len(terms), kind]
    for term in terms:
        scale = float(noise.inv_sqrt_rank(term.rank)) if term.rank else 1.0
        lines += [term.seed, _pattern(term.coefficient) | _pattern(scale) << 32, term.rank]
        lines.append(begins[term.direction] if term.rank else 0)
    return lines


def alike_of(members: Sequence[Member]) -> int:
    """2 for couples, 1 for other members of one dense term each, otherwise 0."""
    if any(len(member) != 1 or member[0].rank for member in members):
        return 0
    seeds = [member[0].seed for member in members]
    return 2 if seeds[::2] == seeds[1::2] else 1


def _pattern(value: float) -> int:
    """The 32 bits of a float32."""
    [pattern] = struct.unpack("<I", struct.pack("<f", value))
    return int(pattern)
