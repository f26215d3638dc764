"""Minus cross-entropy across the choices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from zoreward import objective

if TYPE_CHECKING:
    import numpy as np


@objective("neg-cross-entropy", range=(float("-inf"), 0))
def neg_cross_entropy(logprobs: np.ndarray, references: Sequence[int]) -> list[float]:
    """Minus the cross-entropy across the choices, by their mean log-probability per token.

    ℓ[r] − log Σ_c exp(ℓ[c]), with ℓ the row's log-probabilities and r its right choice; in float64. It has a slope
    where accuracy is flat, so it is the usual objective to start a classification with.

    Args:
        logprobs: (N, C), mean log-probability per token of each choice; −inf where a row has fewer choices.
        references: N indices, the right choice of each row.

    Returns: one number ≤ 0 for each row.

    Source: the classification loss of MeZO, Malladi et al. 2023, arXiv 2305.17333.

    >>> import numpy as np
    >>> [round(score, 4) for score in neg_cross_entropy(np.log([[0.1, 0.3], [0.2, 0.2]]), [1, 0])]
    [-0.2877, -0.6931]
    """
    import numpy as np

    values = np.asarray(logprobs, dtype=np.float64)
    right = values[np.arange(len(values)), list(references)]
    return (right - np.logaddexp.reduce(values, axis=1)).tolist()
