"""The subspaces of SubZero's directions, in torch operations, on any device: the bits of `noise.Subspace.parts`.

A basis lasts for many steps and takes far longer to make than to read, so those that were asked for last are kept. The
matrix products are of whole numbers, or of whole multiples of a power of 2, and their sums fit a float64: they are
exact, so every device and every library gives the same. What is not exact is done by NumPy, on small matrices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch

from zoreward.noise import Purpose, subspace
from zoreward.records import Member, Term, Update

# Numbers of the bases that are made or used at once: a float64 temporary of theirs takes 34 MB.
AT_ONCE = 1 << 22

Weight = tuple[torch.Tensor, int]
"""A tensor and its stream."""

Factors = tuple[torch.Tensor, torch.Tensor]
"""a (m, r) and b (n, r) of a low-rank direction of a matrix (m, n): float32."""

Matrix = tuple[tuple[int, ...], int]
"""Shape and stream of a matrix."""

Draw = Callable[[int, int, Sequence[tuple[int, int]], torch.device], list[torch.Tensor]]
"""(seed, purpose, count and stream of each tensor, device) → the first `count` normals of each."""


def matrices_of(weights: Sequence[Weight]) -> list[Matrix]:
    """Return the matrices among tensors and their streams."""
    return [(tuple(weight.shape), stream) for weight, stream in weights if weight.ndim == 2]


@dataclass(slots=True, eq=False)
class Subspaces:
    """The bases U and V of each matrix, on one device: r·(m + n) float32 numbers a matrix.

    Args:
        draw: gives normals.
        held: (basis seed, rank, shape, stream) → √m·U and √n·V.
    """

    draw: Draw
    held: dict[tuple[int, int, tuple[int, ...], int], Factors] = field(default_factory=dict)

    def hold(self, matrices: Sequence[Matrix], terms: Sequence[Term], device: torch.device) -> None:
        """Have the bases that terms need for these matrices; those of subspaces that none needs any more are let go.

        Nothing changes where no term lies in a subspace.
        """
        families: list[Any] = [term.family for term in terms]
        wanted = {(family.basis_seed, family.rank) for family in families if family.has_bases}
        if wanted:
            for key in [key for key in self.held if key[:2] not in wanted]:
                del self.held[key]
        for seed, rank in sorted(wanted):
            missing = [matrix for matrix in dict.fromkeys(matrices) if (seed, rank, *matrix) not in self.held]
            for some in _alike(missing, rank):
                (m, n), streams = some[0][0], [stream for _, stream in some]
                used = min(m, n, rank)
                sides = [
                    self._bases(seed, rank, used, size, purpose, streams, device)
                    for size, purpose in ((m, Purpose.BASIS_U), (n, Purpose.BASIS_V))
                ]
                for matrix, u, v in zip(some, *sides, strict=True):
                    self.held[seed, rank, *matrix] = u, v

    def factors(self, matrices: Sequence[Matrix], term: Term, device: torch.device) -> list[Factors]:
        """Return the factors of a direction in a subspace that is held, for each matrix."""
        family: Any = term.family
        rank = family.rank
        found: dict[Matrix, Factors] = {}
        for some in _alike(list(dict.fromkeys(matrices)), rank):
            pairs = [self.held[family.basis_seed, rank, *matrix] for matrix in some]
            drawn = self.draw(term.seed, Purpose.CORE, [(rank * rank, stream) for _, stream in some], device)
            counts = _counts(drawn, rank)
            scale = subspace.core_scale(rank, min(*some[0][0], rank))
            a_all = (torch.stack([u for u, _ in pairs]).double() @ counts).mul_(scale).float()
            found |= {matrix: (a, v) for matrix, a, (_, v) in zip(some, a_all, pairs, strict=True)}
        return [found[matrix] for matrix in matrices]

    def _bases(
        self, seed: int, rank: int, used: int, size: int, purpose: int, streams: Sequence[int], device: torch.device
    ) -> torch.Tensor:
        """`subspace.basis` for each stream: (streams, size, rank)."""
        padded = torch.zeros(len(streams), size, rank, device=device)
        if used == size:
            columns = torch.eye(size, dtype=torch.float64, device=device) * math.sqrt(size)
        else:
            drawn = self.draw(seed, purpose, [(size * rank, stream) for stream in streams], device)
            counts = _counts(drawn, rank)[:, :, :used]
            turned = subspace.orthogonalising((counts.mT @ counts).cpu().numpy(), size)
            columns = counts @ torch.from_numpy(turned).to(device)
        padded[:, :, :used] = (torch.round(columns * 2.0**30) * subspace.BASIS_GRID).float()
        return padded


def holding(subspaces: Subspaces | None, draw: Draw, weights: Sequence[Weight], terms: Sequence[Term]) -> Subspaces:
    """Return the subspaces, or new ones, with those that the terms need of all these weights at once."""
    subspaces = subspaces or Subspaces(draw)
    if weights:
        subspaces.hold(matrices_of(weights), terms, weights[0][0].device)
    return subspaces


def _counts(drawn: Sequence[torch.Tensor], rank: int) -> torch.Tensor:
    """popcount − 16 of normals: float64 (tensors, ·, rank)."""
    return torch.round(torch.stack(list(drawn)).double() * math.sqrt(8)).view(len(drawn), -1, rank)


def _alike(matrices: Sequence[Matrix], rank: int) -> Iterator[list[Matrix]]:
    """The matrices of each shape, as many at a time as are worked on at once."""
    by_shape: dict[tuple[int, ...], list[Matrix]] = {}
    for matrix in matrices:
        by_shape.setdefault(matrix[0], []).append(matrix)
    for shape, same in by_shape.items():
        count = max(1, AT_ONCE // max(1, max(shape) * rank))
        for first in range(0, len(same), count):
            yield same[first : first + count]


class Keeping:
    """The functions of a kernel that is a module, `cpu` or `portable`, with the subspaces that they leave behind."""

    def __init__(self, functions: ModuleType) -> None:
        self._functions, self._subspaces = functions, Subspaces(functions.normals)
        self.aligned: int = functions.ALIGNED

    def perturb_all(
        self, weights: Sequence[Weight], members: Sequence[Member], into: Any = None, firsts: Sequence[int] = ()
    ) -> Any:
        """See `zoreward.kernels.cpu.perturb_all`."""
        return self._functions.perturb_all(weights, members, into, self._subspaces, firsts)

    def replay_all_(
        self, weights: Sequence[Weight], updates: Sequence[Update], bases: Any = None, firsts: Sequence[int] = ()
    ) -> None:
        """See `zoreward.kernels.cpu.replay_all_`."""
        self._functions.replay_all_(weights, updates, bases, self._subspaces, firsts)

    def factors_all(self, weights: Sequence[Weight], terms: Sequence[Term]) -> Any:
        """See `zoreward.kernels.cpu.factors_all`."""
        return self._functions.factors_all(weights, terms, self._subspaces)

    def factor_lines(self, weights: Sequence[Weight], terms: Sequence[Term]) -> torch.Tensor:
        """Return a of all matrices, one below the other, then b of all; the terms' ranks side by side: float32."""
        pairs = self.factors_all(weights, terms)
        return torch.cat([torch.cat([own[t][side] for side in (0, 1) for own in pairs]) for t in range(len(terms))], 1)
