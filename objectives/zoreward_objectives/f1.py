"""The F1 score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from zoreward import objective

if TYPE_CHECKING:
    import numpy as np


@objective("f1", range=(0, 1))
class F1:
    """F1 of the choices: the harmonic mean of precision and recall.

    F1 = 2·TP / (2·TP + FP + FN), with the true positives TP, false positives FP and false negatives FN of the whole
    batch; 0 where all three are 0, so take batches in which the positive choice occurs.

    Source: `sklearn.metrics.f1_score`, with `zero_division=0`.

    >>> import numpy as np
    >>> round(F1()([1, 1, 0, 0], [1, 0, 1, 1], np.zeros((4, 2))), 3)
    0.4
    """

    def __init__(self, *, average: Literal["binary", "macro", "micro", "weighted"] = "binary", pos_label: int = 1):
        """Set which choices are scored.

        Args:
            average: binary scores the choice pos_label alone; macro is the plain mean over the choices that occur,
                weighted the mean by their frequency, micro counts all choices together.
            pos_label: index of the choice that counts as positive; for binary only.

        Raises:
            ValueError: `pos_label` is none of two choices, and the average is binary.
        """
        if average == "binary" and pos_label not in (0, 1):
            raise ValueError(f"pos_label={pos_label} is none of the choices 0 and 1")
        self._average, self._pos_label = average, pos_label

    def check_choices(self, count: int) -> None:
        """Raise a ValueError for more choices than the average is for: zoreward asks before it loads a model."""
        if self._average == "binary" and count > 2:
            error = ValueError(f"the F1 of one choice is for two choices, not {count}")
            error.add_note("--average macro")
            raise error

    def __call__(self, predictions: Sequence[int], references: Sequence[int], logprobs: np.ndarray) -> float:
        """Return the F1 of the batch.

        Args:
            predictions: N indices, the most likely choice of each row.
            references: N indices, the right choice of each row.
            logprobs: (N, C); says how many choices there are.

        Raises:
            ValueError: binary with more than two choices.
        """
        from sklearn.metrics import f1_score

        # Judged by the choices on offer, not by those of this batch: a run must not stop at the first batch with three.
        n_choices = logprobs.shape[1]
        if self._average == "binary" and n_choices > 2:
            raise ValueError(f"average='binary' is for two choices, not {n_choices}: take macro, micro or weighted")
        options = {"average": self._average, "pos_label": self._pos_label, "zero_division": 0}
        return float(f1_score(references, predictions, **options))


f1 = F1  # the name at its entry point
