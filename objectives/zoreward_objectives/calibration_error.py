"""Minus the calibration error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from zoreward import objective

if TYPE_CHECKING:
    import numpy as np


@objective("calibration-error", range=(-1, 0))
def calibration_error(
    predictions: Sequence[int], references: Sequence[int], logprobs: np.ndarray, *, bins: int = 15
) -> float:
    """Minus the expected calibration error: how far confidence is from accuracy, negated so that higher is better.

    −Σ_b |b|/N · |acc(b) − conf(b)|, over the bins b of rows of like confidence. The confidence of a row is its largest
    probability among the choices, softmax of their mean log-probabilities per token. It does not ask for accuracy: a
    model that always says "50 %" and is right half the time has no error.

    Args:
        predictions: N indices, the most likely choice of each row.
        references: N indices, the right choice of each row.
        logprobs: (N, C), mean log-probability per token of each choice; −inf where a row has fewer choices.
        bins: equally wide bins of confidence.

    Raises:
        ValueError: fewer than one bin.

    Source: Guo, Pleiss, Sun, Weinberger 2017, arXiv 1706.04599.

    >>> import numpy as np
    >>> round(calibration_error([0, 0], [0, 1], np.log([[0.8, 0.2], [0.8, 0.2]])), 6)
    -0.3
    """
    import numpy as np

    if bins < 1:
        raise ValueError(f"bins must be at least 1, not {bins}")
    # exp(−Σ…) of the largest: 1 / Σ exp(ℓ − max ℓ), which overflows nowhere
    confidences = 1 / np.exp(logprobs - logprobs.max(axis=1, keepdims=True)).sum(axis=1)
    rows: dict[int, list[float]] = {}
    for confidence, predicted, right in zip(confidences.tolist(), predictions, references, strict=True):
        here = min(int(confidence * bins), bins - 1)
        rows.setdefault(here, []).append((predicted == right) - confidence)
    return -math.fsum(abs(math.fsum(gaps)) for gaps in rows.values()) / len(predictions)
