"""Matthews' correlation coefficient."""

from __future__ import annotations

from collections.abc import Sequence

from zoreward import objective


@objective("mcc", range=(-1, 1))
def mcc(predictions: Sequence[int], references: Sequence[int]) -> float:
    """Matthews' correlation between the likeliest choices and the right ones.

    For two choices (TP·TN − FP·FN) / √((TP+FP)(TP+FN)(TN+FP)(TN+FN)); for more, its generalisation. 0 for chance, and
    where one choice is all that occurs.

    Args:
        predictions: N indices, the most likely choice of each row.
        references: N indices, the right choice of each row.

    Source: `sklearn.metrics.matthews_corrcoef`; Matthews 1975.

    >>> mcc([1, 1, 0, 0], [1, 0, 0, 0]).__round__(3)
    0.577
    """
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(references, predictions))
