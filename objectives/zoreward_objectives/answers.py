"""What the objectives that compare texts have in common: the text of a completion, and the right answers of a row."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_PUNCTUATION = frozenset(string.punctuation)


def text_of(completion: Any) -> str:
    """Return the text of a completion: itself, or what the last of its messages says.

    >>> text_of("four"), text_of([{"role": "assistant", "content": "four"}])
    ('four', 'four')
    """
    return completion if isinstance(completion, str) else str(completion[-1]["content"] or "")


def answers_of(columns: Mapping[str, Any], column: str, n_rows: int) -> list[list[str]]:
    """Return the right answers of each row: at least one; the empty answer where a row has an empty list.

    A column holds one answer, a list of them, or SQuAD's `{"text": […], …}`.

    Raises:
        LookupError: there is no such column.
        ValueError: a row has no answer.

    >>> answers_of({"answer": ["4", ["four", 4], {"text": ["IV"]}]}, "answer", 3)
    [['4'], ['four', '4'], ['IV']]
    """
    if column not in columns:
        lists = (name for name, values in columns.items() if isinstance(values, list))
        known = ", ".join(sorted({*lists} - {"prompts", "completion_ids"})) or "none"
        raise LookupError(
            f"no row has the column {column!r} of right answers; there are {known}: set the option answer_column"
        )
    answers = []
    for row, value in enumerate(columns[column]):
        if isinstance(value, Mapping):
            value = value.get("text")
        if value is None:
            raise ValueError(f"row {row} has no answer in the column {column!r}")
        answers.append([str(answer) for answer in value] or [""] if isinstance(value, list | tuple) else [str(value)])
    if len(answers) != n_rows:
        raise ValueError(f"{len(answers)} answers for {n_rows} completions")
    return answers


def best_of_answers(
    measure: Callable[[str, str], float], completions: Sequence[Any], columns: Mapping[str, Any], column: str
) -> list[float]:
    """Return for each completion the measure against the right answer that it fits best."""
    answers = answers_of(columns, column, len(completions))
    return [
        max(measure(text_of(completion), right) for right in rights)
        for completion, rights in zip(completions, answers, strict=True)
    ]


def normalized(text: str) -> str:
    """Return a text as SQuAD compares it: in lower case, without punctuation, articles and needless space.

    Source: `normalize_answer` of SQuAD's evaluation script (Rajpurkar et al. 2016).

    >>> normalized("  The  Eiffel-Tower, a tower!")
    'eiffeltower tower'
    """
    plain = "".join(character for character in text.lower() if character not in _PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


def f_measure(shared: int, found: int, right: int) -> float:
    """Return the harmonic mean of precision shared/found and recall shared/right; 0 where nothing is shared.

    >>> f_measure(shared=1, found=2, right=1)
    0.6666666666666666
    """
    return 2 * shared / (found + right) if shared else 0.0
