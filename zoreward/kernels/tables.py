"""What the Triton kernels read: tables of tensors, and members and updates as scripts.

A table says where tensors lie, and which units of them programs work through. A script is a list of 64-bit numbers; the
factors that it refers to lie one behind the other. See `triton_kernels`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from zoreward.kernels.subspaces import Weight
from zoreward.noise import DISTRIBUTIONS, Dense
from zoreward.noise.factors import Factored, inv_sqrt_rank
from zoreward.records import Member, Term

# Up to so many elements all tensors go in one launch, which takes Python longer than the GPU. Beyond, those made of
# whole blocks have a launch of their own, which is faster: an update in 0.88 of the time on an H100.
ONE_LAUNCH = 1 << 28

# What moves a tensor.
DENSE, LOW_RANK, DECAY, ANCHOR = 1, 2, 4, 8


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Tensors on a device.

    Args:
        lines: int64 (tensors, fields).
        parts: for each launch: int32, the number of the tensor that each unit belongs to; and whether these tensors
            consist of whole blocks.
    """

    lines: torch.Tensor
    parts: list[tuple[torch.Tensor, bool]]


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """The tensors of one dtype among those of a call.

    Args:
        numbers: which they are.
        weights: the tensors, and their streams.
        copied: tensors whose elements do not lie in order or on a boundary, and the copies to work on.
        like: the tensor from which addresses count.
        lines: of their table; None for float64, and where there are no elements.
        tables: elements of a unit → the table; made when it is needed.
        views: shape, strides and first element of each tensor's copy, among the copies at one member.
        size: the elements of the copies at one member.
        matrices: those of two dimensions.
        quads: whether the lines of all matrices are multiples of four elements.
    """

    numbers: list[int]
    weights: list[Weight]
    copied: list[tuple[torch.Tensor, torch.Tensor]]
    like: torch.Tensor
    lines: list[list[int]] | None
    tables: dict[int, Table]
    views: list[tuple[torch.Size, tuple[int, ...], int]]
    size: int
    matrices: list[Weight]
    quads: bool


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """The groups of some tensors, and where these were then."""

    weights: tuple[torch.Tensor, ...]
    addresses: list[int]
    shapes: list[torch.Size]
    groups: list[Group]


def table_of(lines: Sequence[Sequence[int]], block: int, unit: int, device: torch.device) -> Table:
    """Return the table of tensors, cut into units.

    Args:
        lines: of the table; field 3 is where a tensor begins in the whole one of which it is a part, a multiple of
            `unit`, and field 1 where it ends there: addresses count from where the whole one would begin. Field 3 is
            filled in.
        block: elements that a program has in hand at a time.
        unit: elements of a program.
        device: where it is read.
    """
    one_launch = sum(line[1] - line[3] for line in lines) <= ONE_LAUNCH and any(line[1] % block for line in lines)
    owners: dict[bool, list[int]] = {True: [], False: []}
    placed = []
    for number, line in enumerate(lines):
        own = owners[line[1] % block == 0 and not one_launch]
        placed.append([*line[:3], len(own) - line[3] // unit, *line[4:]])
        own += [number] * -(-(line[1] - line[3]) // unit)
    parts = [
        (torch.tensor(own, dtype=torch.int32).to(device, non_blocking=True), whole)
        for whole, own in owners.items()
        if own
    ]
    return Table(torch.tensor(placed, dtype=torch.int64).to(device, non_blocking=True), parts)


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


def launched_on(device: torch.device) -> AbstractContextManager[Any]:
    """Return the context in which a kernel is launched for tensors of a device.

    >>> with launched_on(torch.device("cpu")):  # in Triton's interpreter
    ...     pass
    """
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)
