"""SQuAD's F1."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from zoreward import objective
from zoreward_objectives.answers import best_of_answers, f_measure, normalized


@objective("token-f1", range=(0, 1))
class TokenF1:
    """SQuAD's F1: the words that a completion shares with the right answer.

    F1 = 2·shared / (words of the completion + words of the answer), words counted as often as they occur, without
    case, punctuation and articles. Where a row has several right answers, the best counts.

    Source: SQuAD's evaluation script (Rajpurkar et al. 2016).

    >>> TokenF1()(["the river Seine"], answer=["Seine"])
    [0.6666666666666666]
    """

    def __init__(self, *, answer_column: str = "answer"):
        """Set what is compared.

        Args:
            answer_column: the column of the right answers; it holds a text, or a list of texts.
        """
        self._answer = answer_column

    def __call__(self, completions: Sequence[Any], **columns: Any) -> list[float]:
        """Return the F1 of each completion."""
        return best_of_answers(_f1, completions, columns, self._answer)


def _f1(text: str, right: str) -> float:
    words, wanted = normalized(text).split(), normalized(right).split()
    if not words or not wanted:
        return float(words == wanted)
    return f_measure((Counter(words) & Counter(wanted)).total(), len(words), len(wanted))
