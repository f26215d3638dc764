"""A person's own preferences, asked for."""

from __future__ import annotations

from zoreward import objective
from zoreward_objectives.preference import Preference


@objective("human", range=(float("-inf"), 1))
class Human(Preference):
    """How far the texts that you prefer gain over the others: shows two texts, asks, and tunes on the answers.

    `zoreward tune human` lets the model write two texts behind a prompt of --data, at temperature 1 unless told
    otherwise, asks which is better, and keeps each answer as a row: prompt, chosen and rejected. When all questions are
    answered it tunes on these rows as `preference` does, by the smooth share of pairs that gain. Answers
    that are in the file already are not asked for again.

    Source: Malladi et al. 2023, arXiv 2305.17333, who name preferences and feedback of people as scores to tune on; the
    score is that of `preference`.

    >>> Human(answers="answers.jsonl").questions
    10
    """

    asks_people = True

    def __init__(self, *, answers: str | None = None, questions: int = 10, beta: float = 0.5):
        """Set what is asked.

        Args:
            answers: a .jsonl file that keeps the answers, and may have some already.
            questions: how many answers there are to be, those in the file among them.
            beta: β of preference: how soon a row that has gained counts no more.

        Raises:
            ValueError: there are no questions, or β is not positive and finite.
        """
        super().__init__(beta=beta)
        if questions < 1:
            raise ValueError(f"questions must be at least 1, not {questions}")
        self.answers, self.questions = answers, questions
