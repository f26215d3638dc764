"""Rows as texts: what is asked, what can be answered, what is right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from zoreward.config import Prompting
from zoreward.data.choices import Chosen, class_choices, fixed_choices, row_choices
from zoreward.data.templates import fill
from zoreward.records import InputError


class Text(NamedTuple):
    """A row as text.

    Args:
        number: of the row, counted from 1.
        prompt: the filled template, demonstrations in front.
        candidates: the answers.
        reference: index of the right one.
    """

    number: int
    prompt: str
    candidates: tuple[str, ...]
    reference: int


def texts_of(rows: list[dict[str, Any]], needs: str, prompting: Prompting, classes: Sequence[str] = ()) -> list[Text]:
    """Every row as text; where the options name no answers, they are `classes`.

    Raises:
        InputError, UnknownNameError: an option is missing, or does not fit the rows.
    """
    if not rows:
        raise InputError("there are no rows", hint="give at least one row")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise InputError(f"row {number} is a {type(row).__name__}, not a dict", hint="a row is {column: value}")
    if needs not in ("choices", "likelihood"):
        raise InputError(f"no prompts are known for {needs!r}", hint="it is choices or likelihood")
    if prompting.template is None:
        judged = "; or rows with prompt, chosen and rejected" if needs == "choices" else ""
        raise InputError("there is no prompt", hint=f"give --template '{{sentence}} It was', with your columns{judged}")
    asked = fill(prompting.template, rows, "--template")
    chosen = _right(rows, prompting) if needs == "likelihood" else _chosen(rows, prompting, classes)
    return [Text(i, text, *own) for i, (text, own) in enumerate(zip(asked, chosen, strict=True), 1)]


def _right(rows: list[dict[str, Any]], prompting: Prompting) -> list[Chosen]:
    """The right answer as the only candidate: `answer`, or else the right one of the choices."""
    if prompting.answer is not None:
        return [((right,), 0) for right in fill(prompting.answer, rows, "--answer")]
    if prompting.choices is None and prompting.choice_column is None:
        raise InputError("there is no right answer", hint="give --answer ' {answer}', with your columns")
    return [((candidates[reference],), 0) for candidates, reference in _chosen(rows, prompting)]


def _chosen(rows: list[dict[str, Any]], prompting: Prompting, classes: Sequence[str] = ()) -> list[Chosen]:
    if prompting.choices is not None and prompting.choice_column is not None:
        raise InputError(
            "there are answers for all rows and a column of answers",
            hint="give --choice or --choice-column, not both",
        )
    if prompting.choice_column is not None:
        return row_choices(rows, prompting.choice_column, prompting.label)
    if prompting.choices is None and classes:
        return class_choices(rows, classes, prompting.label)
    if prompting.choices is None:
        raise InputError(
            "there are no answers to choose from",
            hint="give --choice once for each label, or --choice-column where every row has its own answers",
        )
    return fixed_choices(rows, prompting.choices, prompting.label)
