"""Minus the calibration error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from zoreward import objective

if TYPE_CHECKING:
    import numpy as np


@objective("calibration-error", range=(-1, 0))
class CalibrationError:
    """Minus the expected calibration error: how far confidence is from accuracy, negated so that higher is better.

    −Σ_b |b|/N · |acc(b) − conf(b)|, over the bins b of rows of like confidence. The confidence of a row is its largest
    probability among the choices, softmax of their mean log-probabilities per token. It does not ask for accuracy: a
    model that always says "50 %" and is right half the time has no error.

    Source: Guo, Pleiss, Sun, Weinberger 2017, arXiv 1706.04599.

    >>> import numpy as np
    >>> round(CalibrationError()([0, 0], [0, 1], np.log([[0.8, 0.2], [0.8, 0.2]])), 6)
    -0.3
    """

    def __init__(self, *, bins: int = 15):
        """Set how finely confidence is told apart.

        Args:
            bins: equally wide bins of confidence.

        Raises:
            ValueError: fewer than one bin.
        """
        if bins < 1:
            raise ValueError(f"bins must be at least 1, not {bins}")
        self._bins = bins

    def __call__(self, predictions: Sequence[int], references: Sequence[int], logprobs: np.ndarray) -> float:
        """Return the negated error of the batch.

        Args:
            predictions: N indices, the most likely choice of each row.
            references: N indices, the right choice of each row.
            logprobs: (N, C), mean log-probability per token of each choice; −inf where a row has fewer choices.
        """
        import numpy as np

        # exp(−Σ…) of the largest: 1 / Σ exp(ℓ − max ℓ), which overflows nowhere
        confidences = 1 / np.exp(logprobs - logprobs.max(axis=1, keepdims=True)).sum(axis=1)
        rows: dict[int, list[float]] = {}
        for confidence, predicted, right in zip(confidences.tolist(), predictions, references, strict=True):
            here = min(int(confidence * self._bins), self._bins - 1)
            rows.setdefault(here, []).append((predicted == right) - confidence)
        return -math.fsum(abs(math.fsum(gaps)) for gaps in rows.values()) / len(predictions)


calibration_error = CalibrationError  # the name at its entry point
