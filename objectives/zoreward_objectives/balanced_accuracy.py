"""Balanced accuracy."""

from __future__ import annotations

from collections.abc import Sequence

from zoreward import objective


@objective("balanced-accuracy", range=(0, 1))
def balanced_accuracy(predictions: Sequence[int], references: Sequence[int]) -> float:
    """Mean over the right choices that occur of the share of their rows that is found.

    A model that always takes the most frequent of C choices gets 1/C, however skewed the rows are.

    Args:
        predictions: N indices, the most likely choice of each row.
        references: N indices, the right choice of each row.

    Source: `sklearn.metrics.recall_score` with `average="macro"` over the choices that occur.

    >>> balanced_accuracy([1, 1, 1, 0], [1, 1, 1, 1]), balanced_accuracy([1, 1, 1, 1], [1, 1, 1, 0])
    (0.75, 0.5)
    """
    from sklearn.metrics import recall_score

    return float(recall_score(references, predictions, labels=sorted(set(references)), average="macro"))
