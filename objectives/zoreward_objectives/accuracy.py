"""Accuracy."""

from __future__ import annotations

from collections.abc import Sequence

from zoreward import objective


@objective("accuracy", range=(0, 1))
def accuracy(predictions: Sequence[int], references: Sequence[int]) -> list[float]:
    """Share of rows whose most likely choice is the right one.

    Args:
        predictions: N indices, the most likely choice of each row.
        references: N indices, the right choice of each row.

    Returns: for each row 1.0 where the two agree, else 0.0.

    >>> accuracy([1, 0, 2], [1, 1, 2])
    [1.0, 0.0, 1.0]
    """
    return [float(predicted == right) for predicted, right in zip(predictions, references, strict=True)]
