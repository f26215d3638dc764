"""Low-rank directions: z of a matrix is a product of two thin ones."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from zoreward.noise.family import Draw, Family, check_seed
from zoreward.noise.seeds import Distribution, Purpose, derive_seed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Beyond any use, and within any memory: a rank may stand in a stranger's file.
MAX_RANK = 4096


class Factored(Family):
    """Directions z = a·bᵀ/√r of matrices, each with factors a (m, r) and b (n, r).

        z[i, j] = (a[i, 0]·b[j, 0] + a[i, 1]·b[j, 1] + … + a[i, r−1]·b[j, r−1]) · float32(1/√r)

    Each product and each sum is rounded to float32, in this order; nothing is fused. Each entry has mean 0 and variance
    1. Tensors with more or fewer dimensions than two are left as they are.
    """

    refreshes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (type(self.rank) is int and 1 <= self.rank <= MAX_RANK):
            raise ValueError(f"a rank is a whole number from 1 to {MAX_RANK:,}, not {self.rank}")
        super().__post_init__()

    def moves(self, ndim: int) -> bool:
        """Whether a tensor is a matrix."""
        return ndim == 2

    def lines(self, parts: Sequence[Any], rows: Any) -> Any:
        """Return lines of a·bᵀ/√r."""
        a, b = parts
        z = a[rows, 0][:, None] * b[:, 0]
        for k in range(1, self.rank):
            z += a[rows, k][:, None] * b[:, k]
        if self.rank > 1:  # float32(1/√1) changes nothing
            z *= inv_sqrt_rank(self.rank)
        return z


@dataclass(frozen=True)
class LowRank(Factored):
    """Directions whose factors are `definition.entries`, on two purposes of their own.

    Args:
        rank: r ≥ 1.
        b_seed: of the factor b, where several directions share theirs; None: the direction's, as for the factor a.
        distribution: of the entries of a and b.

    >>> round(float(LowRank(1).entries(seed=0, stream=0, shape=(3, 2), start=5, count=1)[0]), 6)  # 1/√8 · 4/√8
    0.5
    """

    name: ClassVar[str] = "low-rank"
    about: ClassVar[str] = "of matrices, by a low rank"

    rank: int
    b_seed: int | None = None
    distribution: Distribution = "normal"

    def __post_init__(self) -> None:
        check_seed(self.b_seed or 0)
        super().__post_init__()

    def draws(self, seed: int, shape: tuple[int, ...]) -> tuple[Draw, ...]:
        """Return a and b."""
        parts = zip(self.seeds(seed), (Purpose.FACTOR_A, Purpose.FACTOR_B), shape, strict=True)
        return tuple(Draw(own, purpose, (size, self.rank)) for own, purpose, size in parts)

    def seeds(self, seed: int) -> tuple[int, int]:
        """Return the seeds of the factors a and b.

        >>> LowRank(1).seeds(7), LowRank(1, b_seed=3).seeds(7)
        ((7, 7), (7, 3))
        """
        return seed, seed if self.b_seed is None else self.b_seed

    def at_step(self, run_seed: int, step: int, k: int, refresh: int) -> Family:
        """Steps from a multiple of `refresh` on share the factors b of its directions (LOZO)."""
        start = step - step % refresh
        return self if start == step else replace(self, b_seed=derive_seed(run_seed, start, k))

    def sample(self, stream: int, count: int) -> NDArray[np.float32]:
        """Return entries of which no two are in a row or a column."""
        from zoreward.noise.definition import entries

        a, b = (entries(own, stream, 0, count * self.rank, distribution=self.distribution) for own in (0, 1))
        products: NDArray[np.float32] = (a * b).reshape(count, self.rank).sum(axis=1) * inv_sqrt_rank(self.rank)
        return products

    def to_json(self, seed: int) -> list[int | str]:
        """Return the rank, and the seed of b where it is another."""
        return [self.rank] if self.b_seed in (None, seed) else [self.rank, *self.seeds(seed)[1:]]


def inv_sqrt_rank(rank: int) -> float:
    """Return 1/√r, computed in float64 and rounded to float32.

    >>> inv_sqrt_rank(4)
    0.5
    """
    [rounded] = struct.unpack("<f", struct.pack("<f", 1 / math.sqrt(rank)))
    return float(rounded)
