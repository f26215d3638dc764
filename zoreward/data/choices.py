"""The answers that a row can be given, and which of them is right."""

from __future__ import annotations

import difflib
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from zoreward.data.columns import NamedLabel, broken_text, columns_of, is_missing, listed, values_of
from zoreward.records import InputError, RowError

# Of a new head whose labels are numbers: beyond, they are something else, such as identifiers.
MOST_CLASSES = 10_000
# What a column of answers with names holds.
_PARTS = {"text", "label"}

Chosen = tuple[tuple[str, ...], int]
"""The candidates of a row, and the index of the right one."""


class _Keyed(NamedTuple):
    """Choices, and what is written in front of each.

    Args:
        keys: the label that each answer is for.
        answers: the texts.
        explicit: whether the user says which label each is for; otherwise they are for 0, 1, …
        alike: where the answers are the labels' own names: how both are written to be compared.
    """

    keys: list[str]
    answers: list[str]
    explicit: bool
    alike: Callable[[str], str] | None = None


def fixed_choices(rows: list[dict[str, Any]], choices: Sequence[str], label: str) -> list[Chosen]:
    """The same candidates for every row, and for each the index of the right one.

    Where labels are texts, or the dataset knows their names, choices may be `name=answer`, or the names themselves,
    whatever spaces are around them; also in other capitals, where names do not differ in these alone.

    Raises:
        InputError: fewer than two choices, two alike, or a label that belongs to none; choices that look like
            `label=answer` of other labels, or labels that seem to count from 1.
        UnknownNameError: no row has the column `label`.

    >>> fixed_choices([{"mood": "good"}], ["bad= sad", "good= happy"], "mood")
    [((' sad', ' happy'), 1)]
    >>> fixed_choices([{"mood": "good"}], [" Bad", " Good"], "mood")
    [((' Bad', ' Good'), 1)]
    """
    if isinstance(choices, str) or len(choices) < 2:
        raise InputError("one choice is no choice", hint="give --choice once for each label, at least two")
    for choice in choices:
        if not isinstance(choice, str):
            raise InputError(f"the choice {choice!r} is no text", hint=f"put it in quotes: '{choice}'")
        if broken_text(choice) is not None:
            raise InputError(f"the choice {choice!a:.80} holds half a character", hint="write it in UTF-8")
    labels = values_of(rows, label, "label", "--label")
    keyed = _keyed(choices, labels)
    for what, texts in (("label", keyed.keys), ("answer", keyed.answers)):
        for text in texts:
            if texts.count(text) > 1:
                raise InputError(f"two choices have the {what} {text!r}", hint="every choice needs its own")
    alike = keyed.alike
    spelled = [value if alike is None else alike(_word(value) or "") for value in labels]
    references = [_index(value, keyed.keys) for value in spelled]
    if None in references:
        # Where choices are the names of most labels, the row that does not fit is one of the others.
        fits = {_folded(choice) for choice in choices}
        wrong = [n for n, reference in enumerate(references) if reference is None]
        n = next((n for n in wrong if _folded(_word(labels[n]) or "") not in fits), wrong[0])
        message = f"row {n + 1}: the label {labels[n]!r} belongs to none of the {len(choices)} choices"
        _refuse_slip(rows, label, labels, n, message)
        hint = f"labels in the rows: {_shown(labels)}; choices are for {listed(keyed.keys)}"
        names = label_names(rows, label)
        of_each = flags_of(names, keyed.answers) if len(names) == len(keyed.answers) else "label=answer"
        raise InputError(message, hint=hint if keyed.explicit else f"{hint}; or give {of_each}")
    if not keyed.explicit:
        _refuse_counting_from_one(labels, keyed.answers, label)
    return [(tuple(keyed.answers), reference) for reference in references if reference is not None]


def refuse_slips(rows: list[dict[str, Any]], label: str) -> None:
    """Refuse rows whose labels are to become classes where one of them is empty, or almost another of many rows.

    Raises:
        RowError: one is; the message says where.

    >>> refuse_slips([*[{"mood": "happy"}] * 10, {"mood": "hapy"}], "mood")
    Traceback (most recent call last):
    zoreward.records.RowError: row 11: the label 'hapy' is almost 'happy', which 10 rows have
    hint: mend the row, or leave it out; if it is a class: --choice once for each
    """
    labels = [row.get(label) for row in rows]
    for wrong in dict.fromkeys(one for one in labels if isinstance(one, str)):
        _refuse_slip(rows, label, labels, labels.index(wrong))


def _refuse_slip(
    rows: list[dict[str, Any]], label: str, labels: Sequence[Any], n: int, message: str | None = None
) -> None:
    """Refuse the label of row n where it is empty, or almost another of many rows: no class is to be made of it."""
    wrong = labels[n]
    if not isinstance(wrong, str) or (wrong.strip() and _word(wrong) is None):  # 10 is no slip of 100
        return
    others = [f"{name} {str(value)[:40]!r}" for name, value in rows[n].items() if name != label][:2]
    where = f" ({', '.join(others)})" if others else ""
    if not wrong.strip():
        raise RowError(f"row {n + 1} has an empty {label!r}{where}", hint="fill it in, or leave the row out")
    counts = Counter(name for name in labels if isinstance(name, str))
    often = [name for name, count in counts.items() if count >= 10 * counts[wrong]]
    if near := difflib.get_close_matches(wrong, often, n=1, cutoff=0.75):
        if message is not None:
            raise RowError(f"{message}{where}", hint=f"did you mean {near[0]!r}? mend the row, or leave it out")
        message = f"row {n + 1}: the label {wrong!r} is almost {near[0]!r}, which {counts[near[0]]:,} rows have"
        raise RowError(
            f"{message}{where}", hint="mend the row, or leave it out; if it is a class: --choice once for each"
        )


def _keyed(choices: Sequence[str], labels: Sequence[Any]) -> _Keyed:
    """Choices as `label=answer`, as the labels' own names, or in the order of the labels."""
    pairs = [choice.partition("=") for choice in choices]
    by_name = _keyed_by_name(choices, labels)
    if all(equals for _, equals, _ in pairs):
        keys = [key for key, _, _ in pairs]
        if any(key in spelled for spelled in map(_all_spellings, labels) for key in keys):
            return _Keyed(keys, [text for _, _, text in pairs], True)
        if by_name is None:
            given = [shlex.quote(f"{number}={choice}") for number, choice in enumerate(choices)]
            raise InputError(
                f"every choice has an '=', and what stands in front of it is no label: {listed(keys)}",
                hint=f"labels in the rows: {_shown(labels)}; for answers with an '=' give --choice {given[0]} …",
            )
    return by_name or _Keyed([str(index) for index in range(len(choices))], list(choices), False)


def _keyed_by_name(choices: Sequence[str], labels: Sequence[Any]) -> _Keyed | None:
    """Choices that are the names of all labels, and maybe more; None where they are not."""
    words = {_word(value) for value in labels}
    for alike in (str.strip, _folded):
        keys = [alike(choice) for choice in choices]
        names = {None if word is None else alike(word) for word in words}
        if len(set(keys)) == len(keys) and len(names) == len(words) and names <= set(keys):
            return _Keyed(keys, list(choices), True, alike)
    return None


def label_names(rows: list[dict[str, Any]], column: str) -> list[str]:
    """The different labels of a column as texts, in alphabetical order; in the dataset's, where it knows their names.

    Numbers stand in the order of numbers. Rows without a label do not count.

    >>> label_names([{"label": "praise"}, {"label": "bug"}, {}], "label"), label_names([{"label": 10}], "label")
    (['bug', 'praise'], ['10'])
    """
    labels = [row[column] for row in rows if not is_missing(row.get(column))]
    named = next((label for label in labels if isinstance(label, NamedLabel)), None)
    if named is not None:
        return list(named.names)
    if not all(isinstance(label, str | int | float) for label in labels):
        return []
    names = {_spellings(label)[0].strip() for label in labels}
    return sorted(names - {""}, key=lambda name: (int(name) if name.isdecimal() else 0, name))


def _folded(text: str) -> str:
    return text.strip().casefold()


def _refuse_counting_from_one(labels: Sequence[Any], answers: Sequence[str], column: str) -> None:
    """Refuse numbers that seem to count from 1 where answers in their order are for 0, 1, …

    They seem to where 1, 2, … occur without a gap, 0 does not, and three of them do or all but one of the answers.
    """
    if any(isinstance(value, NamedLabel) for value in labels):
        return  # those of a schema count from 0
    numbers = {int(_spellings(value)[0]) for value in labels}
    highest, count = max(numbers), len(answers)
    if numbers != set(range(1, highest + 1)) or highest < 2 or highest < min(3, count - 1):
        return
    flags = flags_of(range(1, len(answers) + 1), answers)
    raise InputError(
        f"the labels in column {column!r} are 1 to {highest}, never 0, and the first of the {count} answers is for 0",
        hint=f"say which label each is for: {flags}; or 0=… for the first",
    )


def flags_of(labels: Iterable[Any], answers: Sequence[str]) -> str:
    """How answers are typed that say which label each is for.

    >>> flags_of([1, 2], [" bad", " good"])
    "--choice '1= bad' --choice '2= good'"
    """
    pairs = zip(labels, answers, strict=True)
    return " ".join(f"--choice {shlex.quote(f'{label}={answer}')}" for label, answer in pairs)


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
    named = [_class_index(value, classes) for value in labels]
    references = [_index(v, numbers) if place is None else place for v, place in zip(labels, named, strict=True)]
    for number, (value, reference) in enumerate(zip(labels, references, strict=True), 1):
        if reference is None:
            hint = f"the classes are {listed(classes)}; or give --choice once for each label, in their order"
            raise InputError(f"row {number}: the label {value!r} is none of the {len(classes)} classes", hint=hint)
    if set(named) == {None}:
        _refuse_counting_from_one(labels, classes, label)
    return [(tuple(classes), reference) for reference in references if reference is not None]


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
    refuse_slips(rows, label)
    if all(isinstance(value, NamedLabel) for value in labels) and len(labels[0].names) > 1:
        return tuple(labels[0].names)
    spelled = {_spellings(value)[0] for value in labels}
    if all(one.isdecimal() for one in spelled):
        if (largest := max(map(int, spelled))) >= MOST_CLASSES:
            hint = "labels are numbered from 0 on; or give --choice once for each"
            raise InputError(f"the label {largest} would be one of {largest + 1:,} classes", hint=hint)
        classes = tuple(f"LABEL_{number}" for number in range(largest + 1))
    else:
        classes = tuple(sorted(spelled))
    if len(classes) < 2:
        hint = "give rows of every class, or --choice once for each"
        raise InputError(f"all rows have the label {labels[0]!r}, and one class is no choice", hint=hint)
    return classes


def row_choices(rows: list[dict[str, Any]], column: str, label: str) -> list[Chosen]:
    """Each row's own candidates, from a column of lists, and the index of the right one.

    The column may be a path, `choices[text]`. The answers may have names beside them: `choices` is
    `{"text": […], "label": ["A", "B", …]}`, or a list of such pairs. Where every row's label is one of its names, a
    label is a name.

    Otherwise a number or a bool in the column `label` is an index. Strings are read in one way for all rows: as texts
    where each is one of its row's answers, as indices where each is one ("0", "1", …). Where both could be and they
    disagree, nothing is guessed. A list of labels names several right answers: the first of them is the right one, and
    the others are left out of the candidates, so that nobody is scored against an answer that is right too.

    Raises:
        InputError: a row without a list of two or more different texts, or with a label that belongs to none of them;
            labels that can be read in two ways.
        UnknownNameError: no row has the column.

    >>> row_choices([{"ends": [" sat", " ran", " flew"], "label": 2}], "ends", "label")
    [((' sat', ' ran', ' flew'), 2)]
    >>> row_choices([{"ends": [" sat", " ran", " flew"], "label": [" ran", " sat"]}], "ends", "label")
    [((' ran', ' flew'), 0)]
    >>> row_choices([{"choices": {"text": [" ice", " rock"], "label": ["A", "B"]}, "key": "B"}], "choices", "key")
    [((' ice', ' rock'), 1)]
    """
    answers, names = _lettered(rows, column)
    labels = values_of(rows, label, "label", "--label")
    labels = _without_names(labels, answers, names)
    if any(isinstance(value, list | tuple) for value in labels):
        answers, labels = _with_one_label(answers, labels)
    candidates = [_answers(value, number, column) for number, value in enumerate(answers, 1)]
    indices = [
        _index(value, [str(i) for i in range(len(texts))]) for value, texts in zip(labels, candidates, strict=True)
    ]
    places = [
        _index(value, texts) if isinstance(value, str) else index
        for value, texts, index in zip(labels, candidates, indices, strict=True)
    ]
    for number, (place, index, value) in enumerate(zip(places, indices, labels, strict=True), 1):
        if None not in places and None not in indices and place != index:
            hint = "give the labels as integers, counted from 0"
            raise InputError(f"row {number}: the label {value!r} is one answer's text and another's index", hint=hint)
    references = indices if None in places and None not in indices else places
    _check_references(references, labels, candidates, names)
    chosen = [(texts, place) for texts, place in zip(candidates, references, strict=True) if place is not None]
    _warn_of_counting_from_one(chosen, names, label)
    return chosen


def _check_references(
    references: Sequence[int | None],
    labels: Sequence[Any],
    candidates: Sequence[tuple[str, ...]],
    names: Sequence[list[str] | None],
) -> None:
    """Raise where a label belongs to no answer: about a row where it is no name either, if there is such a row."""
    wrong = [number for number, reference in enumerate(references) if reference is None]
    if wrong:
        number = min(wrong, key=lambda number: str(labels[number]) in (names[number] or ()))
        own, known = candidates[number], names[number]
        named = f"one of the names {listed(known)}, " if known else ""
        raise InputError(
            f"row {number + 1}: the label {labels[number]!r} belongs to none of its {len(own)} answers",
            hint=f"a label is {named}0 to {len(own) - 1}, or the text of an answer: {listed([repr(a) for a in own])}",
        )


def _lettered(rows: list[dict[str, Any]], column: str) -> tuple[list[Any], list[list[str] | None]]:
    """Each row's answers, and the names that stand beside them, as in `{"text": […], "label": […]}`."""
    values = values_of(rows, column, "answers", "--choice-column")
    parent = column if column in columns_of(rows) else column.removesuffix("[text]")
    parents = values_of(rows, parent, "answers", "--choice-column") if parent != column else values
    answers, names = [], []
    for value, parent_value in zip(values, parents, strict=True):
        named = _texts_and_names(parent_value)
        answers.append(named[0] if named and parent == column else value)
        names.append(named[1] if named else None)
    return answers, names


def _texts_and_names(value: Any) -> tuple[list[Any], list[str]] | None:
    """What `{"text": […], "label": […]}` holds, or a list of such pairs; None where it is neither."""
    if isinstance(value, list) and value and all(isinstance(pair, dict) and pair.keys() >= _PARTS for pair in value):
        value = {part: [pair[part] for pair in value] for part in _PARTS}
    if not isinstance(value, dict):
        return None
    texts, names = (_as_list(value.get(part)) for part in ("text", "label"))
    if not isinstance(texts, list) or not isinstance(names, list) or len(texts) != len(names):
        return None
    return texts, [str(name) for name in names]


def _as_list(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def _without_names(labels: list[Any], answers: list[Any], names: list[list[str] | None]) -> list[Any]:
    """The labels as indices, or as lists of texts, where all of them are names that stand beside the answers."""
    spelled = [[str(one) for one in (value if isinstance(value, list | tuple) else [value])] for value in labels]
    if not all(known is not None and set(of_row) <= set(known) for of_row, known in zip(spelled, names, strict=True)):
        return labels
    indices: list[Any] = []
    for value, of_row, known, texts in zip(labels, spelled, names, answers, strict=True):
        places = [known.index(name) for name in of_row] if known else []
        indices.append([texts[place] for place in places] if isinstance(value, list | tuple) else places[0])
    return indices


def _warn_of_counting_from_one(chosen: Sequence[Chosen], names: Sequence[Any], label: str) -> None:
    """Say so where no answer without a name is ever the first of its row: labels may count from 1."""
    places = {place for own, place in chosen if len(own) > 2}
    if None in names and len(places) > 2 and places == set(range(1, max(places) + 1)):
        from transformers.utils import logging

        logging.get_logger(__name__).warning_once(
            f"The labels in column {label!r} never name a row's first answer: do they count from 1? They are read as "
            "counted from 0."
        )


def _with_one_label(answers: list[Any], labels: list[Any]) -> tuple[list[Any], list[Any]]:
    """The answers without those that are right beside the first right one, and the first right one of each row."""
    others, firsts = [], []
    for number, (texts, label) in enumerate(zip(answers, labels, strict=True), 1):
        rights = list(label) if isinstance(label, list | tuple) else [label]
        if not rights or not all(isinstance(text, str) for text in rights):
            hint = "several right answers are a list of their texts"
            raise InputError(f"row {number}: the labels {rights!r:.80} name no answer", hint=hint)
        others.append([text for text in texts if text not in rights[1:]] if isinstance(texts, list | tuple) else texts)
        firsts.append(rights[0])
    return others, firsts


def _answers(value: Any, number: int, column: str) -> tuple[str, ...]:
    where = f"row {number}: the column {column!r}"
    if not isinstance(value, list | tuple):
        hint = 'it looks like ["one", "two"]; CSV files hold no lists, .jsonl files do'
        raise InputError(f"{where} holds a {type(value).__name__}, not a list of answers", hint=hint)
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


def _index(label: Any, texts: Sequence[str]) -> int | None:
    """Where a label stands among texts; None where it does not.

    Where the dataset knows the names of its labels and all texts are names, a name is looked for, else a number.
    """
    if isinstance(label, NamedLabel) and set(texts) <= set(label.names):
        return texts.index(label.name) if label.name in texts else None
    return next((texts.index(spelling) for spelling in _spellings(label) if spelling in texts), None)


def _class_index(label: Any, classes: Sequence[str]) -> int | None:
    """The same for a model's classes, whose names may be written in other letters than the dataset's."""
    if isinstance(label, NamedLabel):
        folded = [name.strip().casefold() for name in classes]
        if set(folded) == {name.strip().casefold() for name in label.names}:
            return folded.index(label.name.strip().casefold())
    return _index(label, classes)


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


def _all_spellings(label: Any) -> tuple[str, ...]:
    """The same, and the names of all labels where the dataset knows them."""
    return (*_spellings(label), *(label.names if isinstance(label, NamedLabel) else ()))


def _word(label: Any) -> str | None:
    """The name of a label that has one, or is one: a text that is no number."""
    if isinstance(label, NamedLabel):
        return label.name
    return label.strip() if isinstance(label, str) and not label.strip().lstrip("+-").isdecimal() else None


def _shown(labels: Sequence[Any]) -> str:
    """The different labels, with their names where these are known."""
    if isinstance(labels[0], NamedLabel):
        return listed([f"{number} ({name})" for number, name in enumerate(labels[0].names)])
    return listed(list(dict.fromkeys(map(repr, labels))))
