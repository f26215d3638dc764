"""BLEU."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, Literal

from zoreward import objective
from zoreward_objectives.answers import answers_of, text_of


@objective("bleu", range=(0, 100))
class Bleu:
    """BLEU of all completions together, from 0 to 100, as sacrebleu computes it.

    One number for the batch: counts of matching word sequences are summed before they are divided, so it is not the
    mean of anything. Where a row has several right answers, all of them are its references.

    Source: Papineni et al. 2002; Post 2018, "A call for clarity in reporting BLEU scores" (sacrebleu).

    >>> round(Bleu()(["the cat sat on the mat"], answer=["the cat sat on a mat"]), 1)
    53.7
    """

    def __init__(
        self,
        *,
        answer_column: str = "answer",
        tokenize: Literal["13a", "intl", "char", "zh", "none"] = "13a",
        lowercase: bool = False,
        smooth: Literal["exp", "floor", "add-k", "none"] = "exp",
    ):
        """Set what is compared.

        Args:
            answer_column: the column of the right answers; it holds a text, or a list of texts.
            tokenize: how texts become words; 13a is for European languages, char for others.
            lowercase: leave case out.
            smooth: what is done where no sequence of some length matches.
        """
        from sacrebleu.metrics import BLEU

        self._answer = answer_column
        self._bleu = BLEU(tokenize=tokenize, lowercase=lowercase, smooth_method=smooth)

    def __call__(self, completions: Sequence[Any], **columns: Any) -> float:
        """Return the BLEU of the batch."""
        answers = answers_of(columns, self._answer, len(completions))
        texts = [text_of(completion) for completion in completions]
        # sacrebleu wants all first references, then all second ones; None where a row has fewer
        return float(self._bleu.corpus_score(texts, [list(references) for references in zip_longest(*answers)]).score)
