"""Tensors as the Triton kernels read them: a table of where they lie, and which units of them programs work through.

See `triton_kernels`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from zoreward.kernels.subspaces import Weight

# Up to so many elements all tensors go in one launch, which takes Python longer than the GPU. Beyond, those made of
# whole blocks have a launch of their own, which is faster: an update in 0.88 of the time on an H100.
ONE_LAUNCH = 1 << 28


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
        lines: of the table; field 1 is a tensor's elements, field 3 is filled in.
        block: elements that a program has in hand at a time.
        unit: elements of a program.
        device: where it is read.
    """
    one_launch = sum(line[1] for line in lines) <= ONE_LAUNCH and any(line[1] % block for line in lines)
    owners: dict[bool, list[int]] = {True: [], False: []}
    placed = []
    for number, line in enumerate(lines):
        own = owners[line[1] % block == 0 and not one_launch]
        placed.append([*line[:3], len(own), *line[4:]])
        own += [number] * -(-line[1] // unit)
    parts = [
        (torch.tensor(own, dtype=torch.int32).to(device, non_blocking=True), whole)
        for whole, own in owners.items()
        if own
    ]
    return Table(torch.tensor(placed, dtype=torch.int64).to(device, non_blocking=True), parts)
