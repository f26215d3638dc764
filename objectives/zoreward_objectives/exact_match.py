"""Exact match."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zoreward import objective
from zoreward_objectives.answers import best_of_answers, normalized


@objective("exact-match", range=(0, 1))
class ExactMatch:
    """Share of completions that are a right answer, as SQuAD compares them.

    Case, punctuation, articles and space do not count, unless asked for. Where a row has several right answers, one
    is enough.

    Source: SQuAD's evaluation script (Rajpurkar et al. 2016).

    >>> ExactMatch()(["The Seine.", "a river"], answer=["Seine", ["Rhine", "Rhone"]])
    [1.0, 0.0]
    """

    def __init__(self, *, answer_column: str = "answer", strict: bool = False):
        """Set what is compared.

        Args:
            answer_column: the column of the right answers; it holds a text, or a list of texts.
            strict: only space at both ends does not count; case, punctuation and articles do.
        """
        self._answer = answer_column
        self._form = str.strip if strict else normalized

    def __call__(self, completions: Sequence[Any], **columns: Any) -> list[float]:
        """Return for each completion 1.0 where it is a right answer, else 0.0."""
        return best_of_answers(self._same, completions, columns, self._answer)

    def _same(self, text: str, right: str) -> float:
        return float(self._form(text) == self._form(right))
