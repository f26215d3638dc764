"""Terms from plain numbers, as tables of cases have them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from zoreward.noise import Dense, Distribution, Family, LowRank, Subspace
from zoreward.records import Term


def family_of(
    rank: int = 0, b_seed: int | None = None, basis_seed: int | None = None, distribution: Distribution = "normal"
) -> Family:
    """Dense where there is no rank, in a subspace where that has a seed, else of low rank."""
    if basis_seed is not None:
        return Subspace(rank, basis_seed)
    return LowRank(rank, b_seed, distribution) if rank else Dense(distribution)


def term_of(
    seed: int,
    coefficient: float,
    rank: int = 0,
    b_seed: int | None = None,
    basis_seed: int | None = None,
    *,
    block: int | None = None,
    distribution: Distribution = "normal",
) -> Term:
    """A term of that family."""
    return Term(seed, coefficient, family_of(rank, b_seed, basis_seed, distribution), block=block)


def numbers_of(term: Term) -> tuple[int, int | None, int | None]:
    """Rank, seed of b and seed of the subspace of a term, as `reference.low_rank` takes them."""
    family = term.family
    return family.rank, getattr(family, "b_seed", None), getattr(family, "basis_seed", None)


def low_rank(
    seed: int,
    stream: int,
    shape: tuple[int, int],
    rank: int,
    b_seed: int | None = None,
    basis_seed: int | None = None,
    distribution: Distribution = "normal",
) -> NDArray[np.float32]:
    """z of a matrix, by the definition."""
    family = family_of(rank, b_seed, basis_seed, distribution)
    return family.entries(seed, stream, shape, 0, math.prod(shape)).reshape(shape)
