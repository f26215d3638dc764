"""Dense directions: every element of a tensor has a number of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from zoreward.noise.family import Draw, Family
from zoreward.noise.seeds import Distribution, Purpose


@dataclass(frozen=True)
class Dense(Family):
    """z of a tensor is `definition.entries`, as many as it has elements. Kernels have rules for it.

    Args:
        distribution: of the entries.

    >>> (Dense().entries(seed=0, stream=0, shape=(2, 2), start=1, count=2) * 8**0.5).round().tolist()
    [0.0, 1.0]
    """

    name: ClassVar[str] = "dense"
    about: ClassVar[str] = "of every weight"

    distribution: Distribution = "normal"

    def draws(self, seed: int, shape: tuple[int, ...]) -> tuple[Draw, ...]:
        """Return z itself."""
        return (Draw(seed, Purpose.DIRECTION, shape),)

    def lines(self, parts: Sequence[Any], rows: Any) -> Any:
        """Return lines of what was drawn."""
        [z] = parts
        return z.reshape(-1, z.shape[-1] if z.shape else 1)[rows]

    def to_json(self, seed: int) -> list[int | str]:
        """Return nothing: a term without a family is dense."""
        return []


DENSE = Dense()
