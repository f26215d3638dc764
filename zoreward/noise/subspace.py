"""Directions in a subspace of matrices that lasts for many steps, SubZero's."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from zoreward.noise.factors import Factored
from zoreward.noise.family import Draw, Family, check_seed
from zoreward.noise.seeds import Purpose, derive_seed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Entries of a basis are multiples of this, so that sums of their products with whole numbers are exact.
BASIS_GRID = 2.0**-30
# A column of whose square no larger share is left depends on those before it.
DEPENDENT = 2.0**-26


@dataclass(frozen=True)
class Subspace(Factored):
    """Directions whose factors a (m, r) and b (n, r) lie in a subspace of m × n matrices.

        a·bᵀ/√r = √(mn)/s · U Z Vᵀ,  s = min(m, n, r),  a = √(mr)/s · UZ,  b = √n · V

    √m·U and √n·V are the `basis` of the subspace, with s columns that are not 0; Z is `normal` from the direction's
    seed, s × s of r × r numbers. So the mean variance of z's entries is 1. UZ is summed exactly, as whole numbers are:
    multiples of 2^−30 times the counts popcount − 16 of Z. While m·r ≤ 2^38 these sums fit a float64, whatever the
    order, fused or not. A sum times the rest of the scale is rounded to float64, then to float32.

    Args:
        rank: r ≥ 1.
        basis_seed: of the subspace.

    >>> a, b = Subspace(4, basis_seed=0).parts(seed=0, stream=0, shape=(3, 2))
    >>> a.shape, (b * b / 2).sum(0).round(6).tolist()  # two columns of length 1, two that are 0
    ((3, 4), [1.0, 1.0, 0.0, 0.0])
    """

    name: ClassVar[str] = "subspace"
    has_bases: ClassVar[bool] = True

    rank: int
    basis_seed: int = 0

    def __post_init__(self) -> None:
        check_seed(self.basis_seed)
        super().__post_init__()

    def draws(self, seed: int, shape: tuple[int, ...]) -> tuple[Draw, ...]:
        """Return what the bases are made of, and Z."""
        u, v = (
            Draw(self.basis_seed, purpose, (size, self.rank))
            for purpose, size in zip((Purpose.BASIS_U, Purpose.BASIS_V), shape, strict=True)
        )
        return u, v, Draw(seed, Purpose.CORE, (self.rank, self.rank))

    def at_step(self, run_seed: int, step: int, k: int, refresh: int) -> Family:
        """All directions of the steps from a multiple of `refresh` on lie in one subspace."""
        return replace(self, basis_seed=derive_seed(run_seed, step - step % refresh, 0))

    def parts(self, seed: int, stream: int, shape: tuple[int, ...]) -> tuple[NDArray[np.float32], ...]:
        """Return the factors a and b of a matrix."""
        import numpy as np

        # popcount − 16 of numbers as they are in `normal`
        u, v, core = (np.rint(drawn * np.sqrt(8.0)) for drawn in super().parts(seed, stream, shape))
        used = min(*shape, self.rank)
        a, b = basis(u, used).astype(np.float64), basis(v, used)
        return ((a @ core) * core_scale(self.rank, used)).astype(np.float32), b

    def lasting_numbers(self, shape: tuple[int, ...]) -> int:
        """The bases U and V of a matrix."""
        return self.rank * sum(shape) if len(shape) == 2 else 0

    def to_json(self, seed: int) -> list[int | str]:
        """Return rank, seed and the seed of the subspace."""
        return [self.rank, seed, self.basis_seed]


def core_scale(rank: int, used: int) -> float:
    """Return what a count popcount − 16 of Z is worth in a = √r/s · (√m·U) Z: √(r/8)/s, or 0 where s is.

    >>> core_scale(rank=8, used=4)
    0.25
    """
    return math.sqrt(rank / 8) / used if used else 0.0


def basis(counts: NDArray[np.float64], used: int) -> NDArray[np.float32]:
    """Return √size times orthonormal columns: float32, shape (size, rank), 0 from column `used` on.

    They are C·T, where C (size, used) are the first counts and T `orthogonalising` of CᵀC: the columns that
    Gram–Schmidt makes of C's. Both products are of whole numbers, so exact, whatever the order. C·T is rounded to the
    nearest multiple of 2^−30, then to float32. Where `used` is `size` the columns are √size · I's.

    Args:
        counts: popcount − 16 of `normal` numbers, shape (size, rank).
        used: how many columns are not 0.

    >>> import numpy as np
    >>> columns = basis(np.array([[4.0, 2.0, 1.0], [0.0, 1.0, 1.0], [0.0, 0.0, 3.0]]), used=2).astype(float)
    >>> bool(np.allclose(columns.T @ columns, 3 * np.diag([1, 1, 0]), atol=1e-4))
    True
    """
    import numpy as np

    size = len(counts)
    if used == size:
        columns = math.sqrt(size) * np.eye(size)
    else:
        some = counts[:, :used]
        columns = some @ orthogonalising(some.T @ some, size)
    padded = np.zeros(counts.shape, np.float32)
    padded[:, :used] = np.rint(columns / BASIS_GRID) * BASIS_GRID
    return padded


def orthogonalising(gram: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Return T for which the columns of C·T are orthogonal and √size long, from CᵀC: float64, shape (…, s, s).

    [D | M] is what is left of [CᵀC | I] when for k = 0, 1, … row k times D_ik/D_kk is taken from each row i > k, and
    T_ik = M_ki · √(size/D_kk). Where D_kk ≤ 2^−26 · (CᵀC)_kk column k depends on those before it: it is left out, and
    is 0 in T. T is rounded to the nearest multiple of 2^(p−48), where p is the least with s · max |T| < 2^p: so sums of
    its products with counts are exact. Every operation is rounded by itself.

    Args:
        gram: CᵀC, whole numbers.
        size: how long the columns of C are.

    >>> import numpy as np
    >>> orthogonalising(np.array([[4.0, 2.0], [2.0, 2.0]]), 4).tolist()  # of the columns (2, 0) and (1, 1)
    [[1.0, -1.0], [0.0, 2.0]]
    """
    import numpy as np

    count = gram.shape[-1]
    rows = np.concatenate([gram, np.broadcast_to(np.eye(count), gram.shape)], axis=-1)
    lengths = np.zeros(gram.shape[:-1])
    for k in range(count):
        pivots = rows[..., k, k]
        new = pivots > DEPENDENT * gram[..., k, k]
        pivots = np.where(new, pivots, 1.0)
        lengths[..., k] = np.where(new, np.sqrt(size / pivots), 0.0)
        shares = np.where(new[..., None], rows[..., k + 1 :, k] / pivots[..., None], 0.0)
        rows[..., k + 1 :, :] -= shares[..., None] * rows[..., k : k + 1, :]
    scaled = rows[..., count:] * lengths[..., None]
    _, powers = np.frexp(count * np.abs(scaled).max(axis=(-2, -1), initial=0.0, keepdims=True))
    rounded = np.ldexp(np.rint(np.ldexp(scaled, 48 - powers)), powers - 48)
    return np.ascontiguousarray(np.swapaxes(rounded, -2, -1))
