"""Directions that are Kronecker products, as KronZO's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from zoreward.noise.family import Draw, Family
from zoreward.noise.seeds import Distribution, Purpose


@dataclass(frozen=True)
class Kronecker(Family):
    """Directions z = A ⊗ B of m × n matrices, with A (m₁, n₁) and B (m/m₁, n/n₁).

        z[i, j] = A[i div p, j div q] · B[i mod p, j mod q],  (p, q) the shape of B

    m₁ and n₁ are the divisors of m and n nearest to their roots: see `divisor`. One product, rounded to float32. Each
    entry has mean 0 and variance 1; √(mn) numbers or so, twice, make mn of them, of full rank. Tensors with more or
    fewer dimensions than two are left as they are, as by low-rank directions: of a vector one of the parts would be
    nearly all of it, and a product of two numbers has heavier tails than one.

    Args:
        distribution: of the entries of A and B.

    >>> Kronecker("rademacher").entries(seed=0, stream=0, shape=(2, 2), start=0, count=4).tolist()
    [-1.0, 1.0, 1.0, 1.0]
    """

    name: ClassVar[str] = "kronecker"
    about: ClassVar[str] = "of matrices, as A ⊗ B"

    distribution: Distribution = "normal"

    def moves(self, ndim: int) -> bool:
        """Whether a tensor is a matrix."""
        return ndim == 2

    def draws(self, seed: int, shape: tuple[int, ...]) -> tuple[Draw, ...]:
        """Return A and B."""
        a = tuple(map(divisor, shape))
        b = tuple(size // part for size, part in zip(shape, a, strict=True))
        return Draw(seed, Purpose.KRONECKER_A, a), Draw(seed, Purpose.KRONECKER_B, b)

    def lines(self, parts: Sequence[Any], rows: Any) -> Any:
        """Return lines of A ⊗ B."""
        a, b = parts
        z = a[rows // len(b)][:, :, None] * b[rows % len(b)][:, None, :]
        return z.reshape(len(rows), -1)


def divisor(size: int) -> int:
    """Return the divisor nearest to √size: the greatest up to it. Its partner is as near only where it is the same.

    >>> divisor(5120), divisor(36), divisor(7)
    (64, 6, 1)
    """
    return next((part for part in range(math.isqrt(size), 0, -1) if size % part == 0), 1)
