"""ROUGE."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from zoreward import objective
from zoreward_objectives.answers import best_of_answers, f_measure


@objective("rouge", range=(0, 1))
class Rouge:
    """ROUGE-1, ROUGE-2 or ROUGE-L as F-measure: the words, pairs of words or order that a completion shares.

    Words are runs of letters and digits of any script, in lower case, not stemmed. Where a row has several right
    answers, the best counts. For English the numbers are those of the package `rouge_score`.

    Source: Lin 2004, "ROUGE: a package for automatic evaluation of summaries".

    >>> Rouge()(["the cat sat"], answer=["the cat sat down there"])
    [0.75]
    """

    def __init__(self, *, variant: Literal["rouge1", "rouge2", "rougeL"] = "rougeL", answer_column: str = "answer"):
        """Set what is compared.

        Args:
            variant: what is shared; rouge1 is words, rouge2 pairs of neighbouring words, rougeL the longest common
                subsequence of words.
            answer_column: the column of the right answers; it holds a text, or a list of texts.
        """
        if variant not in ("rouge1", "rouge2", "rougeL"):
            raise ValueError(f"there is no variant {variant!r} of ROUGE here: take rouge1, rouge2 or rougeL")
        self._variant = variant
        self._answer = answer_column

    def __call__(self, completions: Sequence[Any], **columns: Any) -> list[float]:
        """Return the F-measure of each completion."""
        return best_of_answers(self._measure, completions, columns, self._answer)

    def _measure(self, text: str, right: str) -> float:
        words, wanted = _words(text), _words(right)
        if self._variant == "rougeL":
            return f_measure(_longest_common(words, wanted), len(words), len(wanted))
        size = int(self._variant[-1])
        pieces, right_pieces = _pieces(words, size), _pieces(wanted, size)
        return f_measure((pieces & right_pieces).total(), pieces.total(), right_pieces.total())


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def _pieces(words: Sequence[str], size: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[i:] for i in range(size)), strict=False))


def _longest_common(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence.

    >>> _longest_common("abcbd", "bdcb")
    3
    """
    lengths = [0] * (len(second) + 1)
    for one in first:
        diagonal = 0
        for j, other in enumerate(second, 1):
            above = lengths[j]
            lengths[j] = diagonal + 1 if one == other else max(above, lengths[j - 1])
            diagonal = above
    return lengths[-1]
