"""What a family of directions is. One file for each family holds all that there is to say of it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from zoreward.noise.seeds import DISTRIBUTIONS, Distribution, Purpose

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Draw(NamedTuple):
    """An array of `definition.entries` from 0 on: of a seed, for a purpose, of a shape."""

    seed: int
    purpose: Purpose
    shape: tuple[int, ...]


class Family(ABC):
    """A family of directions: which z a seed means, for a tensor of a stream and a shape.

    A family is a frozen dataclass of whole numbers, and of a distribution if it has one. It says what is drawn for a
    tensor (`draws`) and how z is made of that (`lines`): that is enough for all kernels. What it has beside can make
    it faster: a `rank`, or a rule in `zoreward.kernels`.

    Attributes:
        name: in a journal, and for `noise`, if there is an `about`.
        about: what z is, for the help; "" where no option names the family.
        refreshes: whether `at_step` depends on `refresh`.
        has_bases: whether `parts` are made of bases of a subspace that last for many directions, and that kernels keep:
            then it has a `basis_seed`, see `zoreward.kernels.subspaces`.
        distribution: of the entries that it draws.
        rank: where z of a matrix is a·bᵀ/√rank with `parts` a (m, rank) and b (n, rank), so that outputs can be
            corrected: that rank. Else 0: members are made as copies.
    """

    name: ClassVar[str]
    about: ClassVar[str] = ""
    refreshes: ClassVar[bool] = False
    has_bases: ClassVar[bool] = False
    distribution: Distribution = "normal"
    rank: int = 0

    def __post_init__(self) -> None:
        if self.distribution not in DISTRIBUTIONS:
            raise ValueError(f"distribution must be one of {', '.join(DISTRIBUTIONS)}, not {self.distribution!r}")

    @abstractmethod
    def draws(self, seed: int, shape: tuple[int, ...]) -> tuple[Draw, ...]:
        """Return what is drawn for z of a tensor of a shape: as many, for the same purposes, whatever the
        shape; no other family has a purpose of it."""

    @abstractmethod
    def lines(self, parts: Sequence[Any], rows: Any) -> Any:
        """Return some lines of z, as long as the tensor's last dimension.

        Only with what arrays of NumPy and of torch both have, and one operation at a time: nothing may be fused.

        Args:
            parts: what `draws` tells, drawn.
            rows: the numbers of the lines, an array of whole numbers; of the tensor seen as one matrix.
        """

    def moves(self, ndim: int) -> bool:
        """Whether z has a part in tensors of `ndim` dimensions."""
        return True

    def at_step(self, run_seed: int, step: int, k: int, refresh: int) -> Family:
        """Return the family of direction `k` of a step: what it shares with others derives from the run's seed."""
        return self

    def parts(self, seed: int, stream: int, shape: tuple[int, ...]) -> tuple[NDArray[np.float32], ...]:
        """Return what `draws` tells, by the definition."""
        from zoreward.noise.definition import entries

        return tuple(
            entries(draw.seed, stream, 0, math.prod(draw.shape), draw.purpose, self.distribution).reshape(draw.shape)
            for draw in self.draws(seed, shape)
        )

    def piece(
        self, parts: Sequence[Any], shape: tuple[int, ...], start: int, count: int, numbers: Callable[[int, int], Any]
    ) -> Any:
        """Return the elements `start` … `start + count − 1` of z, flat.

        Args:
            parts: as for `lines`.
            shape: of the tensor.
            start: flat index.
            count: how many; at least one.
            numbers: (first, end) → the whole numbers from first on, up to end, as an array: `np.arange`.
        """
        columns = shape[-1] if shape else 1
        first, end = start // columns, -(-(start + count) // columns)
        return self.lines(parts, numbers(first, end)).reshape(-1)[start - first * columns :][:count]

    def entries(self, seed: int, stream: int, shape: tuple[int, ...], start: int, count: int) -> NDArray[np.float32]:
        """Return the elements `start` … `start + count − 1` of z of a tensor, by the definition: float32, flat."""
        import numpy as np

        z: NDArray[np.float32] = self.piece(self.parts(seed, stream, shape), shape, start, count, np.arange)
        return z

    def sample(self, stream: int, count: int) -> NDArray[np.float32]:
        """Return so many entries of some direction, to see what rounding leaves of them."""
        side = math.isqrt(max(0, count - 1)) + 1
        return self.entries(0, stream, (side, side), 0, count)

    def lasting_numbers(self, shape: tuple[int, ...]) -> int:
        """How many float32 numbers are kept for a tensor when members are gone, for later directions of the family."""
        return 0

    def to_json(self, seed: int) -> list[int | str]:
        """Return what a journal says of the family behind a term's seed and coefficient; not its distribution."""
        return [self.name, *(getattr(self, name) for name in self.options() if name != "distribution")]

    @classmethod
    def options(cls) -> list[str]:
        """The names of what tells one of the family from another."""
        return [field.name for field in fields(cls)]  # type: ignore[arg-type]


def check_seed(seed: Any) -> None:
    """Check a seed of a direction, or of what directions share.

    Raises:
        ValueError: it is none.
    """
    if not (type(seed) is int and 0 <= seed < 2**64):
        raise ValueError(f"a seed of a direction lies between 0 and 2^64 - 1, not {seed}")
