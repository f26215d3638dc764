"""The answers that a row can be given, and which of them is right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zoreward.data.columns import listed, values_of
from zoreward.records import InputError

# Of a new head whose labels are numbers: beyond, they are something else, such as identifiers.
MOST_CLASSES = 10_000

Chosen = tuple[tuple[str, ...], int]
"""The candidates of a row, and the index of the right one."""


def fixed_choices(rows: list[dict[str, Any]], choices: Sequence[str], label: str) -> list[Chosen]:
    """The same candidates for every row, and for each the index of the right one.

    Raises:
        InputError: fewer than two choices, two alike, or a label that belongs to none.
        UnknownNameError: no row has the column `label`.

    >>> fixed_choices([{"mood": "good"}], ["bad= sad", "good= happy"], "mood")
    [((' sad', ' happy'), 1)]
    """
    if isinstance(choices, str) or len(choices) < 2:
        raise InputError("one choice is no choice", hint="give --choice once for each label, at least two")
    for choice in choices:
        if not isinstance(choice, str):
            raise InputError(f"the choice {choice!r} is no text", hint=f"put it in quotes: '{choice}'")
    labels = values_of(rows, label, "label", "--label")
    spelled = {spelling for value in labels for spelling in _spellings(value)}
    keys, answers = [str(index) for index in range(len(choices))], list(choices)
    pairs = [choice.partition("=") for choice in choices]
    named = all(equals for _, equals, _ in pairs) and any(key in spelled for key, _, _ in pairs)
    if named:
        keys, answers = [key for key, _, _ in pairs], [text for _, _, text in pairs]
    for what, texts in (("label", keys), ("answer", answers)):
        for text in texts:
            if texts.count(text) > 1:
                raise InputError(f"two choices have the {what} {text!r}", hint="every choice needs its own")
    index = {key: i for i, key in enumerate(keys)}
    references = [next((index[s] for s in _spellings(value) if s in index), -1) for value in labels]
    if -1 in references:
        wrong = references.index(-1)
        known = listed(list(dict.fromkeys(map(repr, labels))))
        hint = f"labels in the rows: {known}; choices are for {listed(keys)}{'' if named else '; or give label=answer'}"
        raise InputError(
            f"row {wrong + 1}: the label {labels[wrong]!r} belongs to none of the {len(choices)} choices", hint=hint
        )
    return [(tuple(answers), reference) for reference in references]


def class_choices(rows: list[dict[str, Any]], classes: Sequence[str], label: str) -> list[Chosen]:
    """The same classes for every row, and for each the index of the right one: a label is a class's name or its number.

    Raises:
        InputError: a label that belongs to none.
        UnknownNameError: no row has the column `label`.

    >>> class_choices([{"mood": "good"}, {"mood": 0}], ["bad", "good"], "mood")
    [(('bad', 'good'), 1), (('bad', 'good'), 0)]
    """
    labels = values_of(rows, label, "label", "--label")
    numbers = [str(number) for number in range(len(classes))]
    references = [next((p for p in (_place(v, classes), _place(v, numbers)) if p is not None), -1) for v in labels]
    if -1 in references:
        wrong = references.index(-1)
        hint = f"the classes are {listed(classes)}; or give --choice once for each label, in their order"
        raise InputError(
            f"row {wrong + 1}: the label {labels[wrong]!r} is none of the {len(classes)} classes", hint=hint
        )
    return [(tuple(classes), reference) for reference in references]


def classes_of(rows: list[dict[str, Any]], choices: Sequence[str] | None, label: str) -> tuple[str, ...]:
    """The classes that rows ask for: the choices; else the labels, numbers from 0 on or names in alphabetical order.

    Raises:
        InputError: fewer than two, or numbers too large to be labels.
        UnknownNameError: no row has the column `label`.

    >>> classes_of([{"label": "sad"}, {"label": "happy"}], None, "label"), classes_of([{"label": 1}], None, "label")
    (('happy', 'sad'), ('LABEL_0', 'LABEL_1'))
    """
    if choices is not None:
        return tuple(answer.strip() for answer in fixed_choices(rows, choices, label)[0][0])
    labels = values_of(rows, label, "label", "--label")
    spelled = {_spellings(value)[0] for value in labels}
    if all(one.isdecimal() for one in spelled):
        if (largest := max(map(int, spelled))) >= MOST_CLASSES:
            hint = "labels are numbered from 0 on; or give --choice once for each"
            raise InputError(f"the label {largest} would be one of {largest + 1:,} classes", hint=hint)
        found = tuple(f"LABEL_{number}" for number in range(largest + 1))
    else:
        found = tuple(sorted(spelled))
    if len(found) < 2:
        hint = "give rows of every class, or --choice once for each"
        raise InputError(f"all rows have the label {labels[0]!r}, and one class is no choice", hint=hint)
    return found


def row_choices(rows: list[dict[str, Any]], column: str, label: str) -> list[Chosen]:
    """Each row's own candidates, from a column of lists, and the index of the right one.

    A number or a bool in the column `label` is an index. Strings are read in one way for all rows: as texts where each
    is one of its row's answers, as indices where each is one ("0", "1", …). Where both could be and they disagree,
    nothing is guessed. A list of labels names several right answers: the first of them is the right one, and the
    others are left out of the candidates, so that nobody is scored against an answer that is right too.

    Raises:
        InputError: a row without a list of two or more different texts, or with a label that belongs to none of them;
            labels that can be read in two ways.
        UnknownNameError: no row has the column.

    >>> row_choices([{"ends": [" sat", " ran", " flew"], "label": 2}], "ends", "label")
    [((' sat', ' ran', ' flew'), 2)]
    >>> row_choices([{"ends": [" sat", " ran", " flew"], "label": [" ran", " sat"]}], "ends", "label")
    [((' ran', ' flew'), 0)]
    """
    found = values_of(rows, column, "answers", "--choice-column")
    labels = values_of(rows, label, "label", "--label")
    if any(isinstance(value, list | tuple) for value in labels):
        found, labels = _with_one_label(found, labels)
    candidates = [_answers(value, number, column) for number, value in enumerate(found, 1)]
    indices = [_place(value, [str(i) for i in range(len(own))]) for value, own in zip(labels, candidates, strict=True)]
    places = [
        _place(value, own) if isinstance(value, str) else index
        for value, own, index in zip(labels, candidates, indices, strict=True)
    ]
    for number, (place, index, value) in enumerate(zip(places, indices, labels, strict=True), 1):
        if None not in places and None not in indices and place != index:
            raise InputError(
                f"row {number}: the label {value!r} is one answer's text and another's index",
                hint="give the labels as integers, counted from 0",
            )
    references = indices if None in places and None not in indices else places
    chosen: list[Chosen] = []
    for number, (own, reference, value) in enumerate(zip(candidates, references, labels, strict=True), 1):
        if reference is None:
            raise InputError(
                f"row {number}: the label {value!r} belongs to none of its {len(own)} answers",
                hint=f"a label is 0 to {len(own) - 1}, or the text of an answer: {listed([repr(a) for a in own])}",
            )
        chosen.append((own, reference))
    return chosen


def _with_one_label(found: list[Any], labels: list[Any]) -> tuple[list[Any], list[Any]]:
    """The answers without those that are right beside the first right one, and the first right one of each row."""
    left, firsts = [], []
    for number, (own, label) in enumerate(zip(found, labels, strict=True), 1):
        several = list(label) if isinstance(label, list | tuple) else [label]
        if not several or not all(isinstance(one, str) for one in several):
            hint = "several right answers are a list of their texts"
            raise InputError(f"row {number}: the labels {several!r:.80} name no answer", hint=hint)
        left.append([one for one in own if one not in several[1:]] if isinstance(own, list | tuple) else own)
        firsts.append(several[0])
    return left, firsts


def _answers(value: Any, number: int, column: str) -> tuple[str, ...]:
    where = f"row {number}: the column {column!r}"
    if not isinstance(value, list | tuple):
        raise InputError(
            f"{where} holds a {type(value).__name__}, not a list of answers",
            hint='it looks like ["one", "two"]; CSV files hold no lists, .jsonl files do',
        )
    if len(value) < 2:
        raise InputError(f"{where} holds {len(value)} answers", hint="a choice needs at least two: drop such rows")
    for answer in value:
        if not isinstance(answer, str):
            raise InputError(f"{where} holds {answer!r:.80}, which is no text", hint="every answer is a string")
        if not answer:
            raise InputError(f"{where} holds an empty answer", hint="every answer needs some text")
        if value.count(answer) > 1:
            raise InputError(f"{where} holds {answer!r:.80} twice", hint="the answers of a row differ")
    return tuple(value)


def _place(label: Any, texts: Sequence[str]) -> int | None:
    """Where a label stands among texts; None where it does not."""
    return next((texts.index(spelling) for spelling in _spellings(label) if spelling in texts), None)


def _spellings(label: Any) -> tuple[str, ...]:
    """How a label may be written in `label=answer`; for a number also its index.

    >>> _spellings(True), _spellings(2.0), _spellings("positive")
    (('1', 'true', 'True'), ('2',), ('positive',))
    """
    if isinstance(label, bool):
        return str(int(label)), str(label).lower(), str(label)
    if isinstance(label, float) and label.is_integer():
        return (str(int(label)),)
    return (str(label),)
