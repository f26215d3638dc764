"""Templates over the columns of a row."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from zoreward.data.columns import columns_hint, columns_of, listed
from zoreward.data.filters import check_filters, filtered
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
        return filtered(value, filters), first


def fill(template: str, rows: list[dict[str, Any]], option: str) -> list[str]:
    """The template filled with each row.

    Behind a column, and behind a `|`, stands what is done to its text: one of `zoreward.data.filters.FILTERS`.

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
    return [_fill_row(template, fields, row, f"row {number}", option) for number, row in enumerate(rows, 1)]


def fields_of(template: str, option: str) -> list[str]:
    """The fields of a template, as they are written in it: `answers[0]`.

    Raises:
        InputError: the template is malformed, or asks for a filter that does not exist.

    >>> fields_of("{answers[0]} is {score:{width}} {{so}}", "--template")
    ['answers[0]', 'score', 'width']
    """
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
        check_filters(field, option)
    return fields


def column_in(field: str) -> str:
    """The column that a field begins with: `a` of `a[b]|strip`."""
    return re.split(r"[.\[|]", field, maxsplit=1)[0]


def field_value(path: str, row: dict[str, Any], where: str, option: str) -> Any:
    """What stands at `answers[0]` in a row.

    Raises:
        InputError: nothing stands there, or None. `where` names the row, `option` the template.
    """
    column = column_in(path)
    if "." in path:
        raise InputError(f"{option}: {path!r} asks for an attribute", hint="write {column[key]}")
    if column not in row:
        raise InputError(f"{where} has no column {column!r}, which {option} names", hint=f"it has {listed(list(row))}")
    try:
        value, _ = string.Formatter().get_field(path, (), row)
    except (LookupError, AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"{where}: {{{path}}} of {option} finds nothing ({type(error).__name__}: {error})",
            hint=f"the column {column!r} holds {row[column]!r:.80}",
        ) from None
    if value is None:
        raise InputError(f"{where}: {{{path}}} of {option} is empty (None)", hint="drop such rows, or fill them")
    return value


def _fill_row(template: str, fields: list[str], row: dict[str, Any], where: str, option: str) -> str:
    for field in fields:
        field_value(field.partition("|")[0], row, where, option)
    try:
        return _Filling().vformat(template, (), row)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where} does not fit {option} {template!r}: {error}", hint="mind what follows ':'") from None
