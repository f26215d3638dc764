"""Templates over the columns of a row, and what they can do to a text before it stands in the prompt."""

from __future__ import annotations

import numbers
import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from zoreward.data.columns import (
    broken_text,
    close_hint,
    column_in,
    columns_hint,
    columns_of,
    field_value,
    is_conversation,
    listed,
)
from zoreward.records import InputError

# Characters that a text is filled up to, at most: `{sentence:>80}`.
_WIDEST = 10_000


class _Filling(string.Formatter):
    """`str.format`, with filters behind a column: `{question|strip}`."""

    def format_field(self, value: Any, format_spec: str) -> str:
        if any(int(width[-9:]) > _WIDEST or len(width) > 9 for width in re.findall(r"\d+", format_spec)):
            raise ValueError(f"{format_spec:.40} makes a text of more than {_WIDEST:,} characters")
        return str(super().format_field(value, format_spec))

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        path, *filters = field_name.split("|")
        value, first = super().get_field(path, args, kwargs)
        for name in filters:
            if not isinstance(value, str):
                raise TypeError(f"the filter {name} is for texts, not for a {type(value).__name__}")
            value = FILTERS[name](value)
        return value, first


def fill(template: str, rows: list[dict[str, Any]], option: str) -> list[str]:
    """The template filled with each row.

    Behind a column, and behind a `|`, stands what is done to its text: one of `FILTERS`. A list, a dict or another
    value that is no text is refused, because nobody wants Python's spelling of it in a prompt; `{answers!r}` has it.

    Raises:
        InputError: the template is malformed, names no column, or does not fit a row. `option` names the template.

    >>> fill("{sentence} It was", [{"sentence": "fine"}], "--template")
    ['fine It was']
    >>> fill("{ask|strip|as_question}", [{"ask": "is it so "}], "--template")
    ['Is it so?']
    """
    fields = fields_of(template, option)
    columns = columns_of(rows)
    if not fields:
        column = template.strip()
        hint = f"did you mean {{{column}}}?" if column in columns else f"name a column in braces: {listed(columns)}"
        raise InputError(f"{option} {template!r} names no column, so all rows would get the same text", hint=hint)
    for field in fields:
        if (column := column_in(field)) not in columns:
            raise InputError(f"{option}: no row has the column {column!r}", hint=columns_hint(column, columns))
    spelled = {field for _, field, _, conversion in string.Formatter().parse(template) if conversion}
    plain = [field for field in fields if field not in spelled]
    return [_fill_row(template, fields, plain, row, f"row {number}", option) for number, row in enumerate(rows, 1)]


def warn_of_empty(rows: Sequence[dict[str, Any]], template: str | None, prompt: str) -> None:
    """Say, once, that all that a prompt is made of is empty text in some rows, as empty cells of a CSV are.

    It is made of the columns that the template names; where there is none, of the column `prompt`.

    One of several may be empty, as a title or a context is; with none of them nothing of the row is asked.
    """
    columns = {prompt} if template is None else {column_in(field) for field in fields_of(template, "--template")}
    empty = [
        number
        for number, row in enumerate(rows, 1)
        if all(isinstance(row.get(column), str) and not row[column].strip() for column in columns)
    ]
    if empty and columns:
        from transformers.utils import logging

        others = f" (and {len(empty) - 1:,} more)" if len(empty) > 1 else ""
        logging.get_logger(__name__).warning_once(
            f"Row {empty[0]}{others} asks nothing: there is no text in {listed(sorted(columns))}."
            " Drop such rows, or fill them."
        )


def fields_of(template: str, option: str) -> list[str]:
    """The fields of a template, as they are written in it: `answers[0]`.

    Raises:
        InputError: the template is malformed, or asks for a filter that does not exist.

    >>> fields_of("{answers[0]} is {score:{width}} {{so}}", "--template")
    ['answers[0]', 'score', 'width']
    """
    if broken_text(template) is not None:
        raise InputError(f"{option} {template!a:.80} holds half a character", hint="write it in UTF-8")
    fields = []
    try:
        for _, field, spec, _ in string.Formatter().parse(template):
            if field is not None:
                fields.append(field)
                fields += fields_of(spec or "", option)
    except ValueError as error:
        raise InputError(f"{option} {template!r}: {error}", hint="write {{ or }} for a brace that is meant") from None
    for field in fields:
        if not column_in(field) or column_in(field).isdigit():
            raise InputError(f"{option} {template!r}: {{{field}}} names no column", hint="write the column: {sentence}")
        path = field.partition("|")[0]
        if "." in path:
            hint = f"what stands in a column is named in brackets: {{{path.replace('.', '[', 1)}]}}"
            raise InputError(f"{option} {template!r}: {{{field}}} asks for an attribute", hint=hint)
        for name in field.split("|")[1:]:
            if name not in FILTERS:
                hint = f"{close_hint(name, FILTERS)}the filters are {listed(list(FILTERS))}"
                raise InputError(f"{option}: {{{field}}} asks for the filter {name!r}, which does not exist", hint=hint)
    return fields


def _fill_row(template: str, fields: list[str], plain: list[str], row: dict[str, Any], where: str, option: str) -> str:
    for field in fields:
        path = field.partition("|")[0]
        value = field_value(path, row, where, option)
        if field in plain and not _reads_as_text(value):
            kind = "messages" if is_conversation(value) else f"a {type(value).__name__}"
            raise InputError(f"{where}: {{{path}}} of {option} is {kind}, not a text", hint=_part_hint(path, value))
    try:
        return _Filling().vformat(template, (), row)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where} does not fit {option} {template!r}: {error}", hint="mind what follows ':'") from None


def _reads_as_text(value: Any) -> bool:
    """Whether `str` of a value is what a person would write for it.

    >>> [_reads_as_text(value) for value in ("a", 1, 0.5, ["a"], {"a": 1}, b"a")]
    [True, True, True, False, False, False]
    """
    if isinstance(value, bytes) or getattr(value, "ndim", 0) > 0:  # ndim: an array of numpy
        return False
    # Lists, dicts and objects that say nothing of the kind have `object.__str__`, which calls `repr`.
    return isinstance(value, numbers.Number) or type(value).__str__ is not object.__str__


def _part_hint(path: str, value: Any) -> str:
    if is_conversation(value):
        whole = f"leave the template out and give --prompt {path}, then they go through the chat template"
        return f"{whole}; or name a part of them: {{{path}[0][content]}}"
    if isinstance(value, dict):
        keys = [str(key) for key in value]
        return f"name one of its keys, {{{path}[{keys[0]}]}}; they are {listed(keys)}" if keys else "it is empty"
    if hasattr(value, "__getitem__") and not isinstance(value, bytes):
        return f"name one of its items: {{{path}[0]}}"
    return "a template takes texts and numbers"


# What a template can do to a text before it stands in the prompt: `{question|as_question}`


def strip(text: str) -> str:
    """Without white space at both ends.

    >>> strip(" a film ")
    'a film'
    """
    return text.strip()


def lower(text: str) -> str:
    """In small letters.

    >>> lower("The Man")
    'the man'
    """
    return text.lower()


def lower_first_letter(text: str) -> str:
    """Its first letter small.

    >>> lower_first_letter("The Man")
    'the Man'
    """
    return text[:1].lower() + text[1:]


def lower_first_word(text: str) -> str:
    """Its first word in small letters, unless that is "I".

    >>> lower_first_word("The Man left."), lower_first_word("I left.")
    ('the Man left.', 'I left.')
    """
    first, space, rest = text.partition(" ")
    return text if first == "I" else first.lower() + space + rest


def as_question(text: str) -> str:
    """Its first letter large, and a question mark at its end.

    >>> as_question("is it true"), as_question("Is it?")
    ('Is it true?', 'Is it?')
    """
    return text[:1].upper() + text[1:] + ("" if text.endswith("?") else "?")


def drop_dot(text: str) -> str:
    """Without white space at its end, then without its last full stop.

    >>> drop_dot("It rained. "), drop_dot("Why?")
    ('It rained', 'Why?')
    """
    return text.rstrip().removesuffix(".")


def drop_last_letter(text: str) -> str:
    """Without its last character, whatever that is.

    >>> drop_last_letter("It rained.")
    'It rained'
    """
    return text[:-1]


FILTERS: dict[str, Callable[[str], str]] = {
    one.__name__: one
    for one in (strip, lower, lower_first_letter, lower_first_word, as_question, drop_dot, drop_last_letter)
}
"""All there are, by the name that stands in a template."""
