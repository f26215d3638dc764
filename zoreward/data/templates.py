"""Templates over the columns of a row."""

from __future__ import annotations

import re
import string
from typing import Any

from zoreward.data.columns import columns_hint, columns_of, listed
from zoreward.records import InputError


def fill(template: str, rows: list[dict[str, Any]], option: str) -> list[str]:
    """The template filled with each row.

    Raises:
        InputError: the template is malformed, names no column, or does not fit a row. `option` names the template.

    >>> fill("{sentence} It was", [{"sentence": "fine"}], "--template")
    ['fine It was']
    """
    fields = _fields(template, option)
    columns = columns_of(rows)
    if not fields:
        column = template.strip()
        hint = f"did you mean {{{column}}}?" if column in columns else f"name a column in braces: {listed(columns)}"
        raise InputError(f"{option} {template!r} names no column, so all rows would get the same text", hint=hint)
    for field in fields:
        if (column := _column(field)) not in columns:
            raise InputError(f"{option}: no row has the column {column!r}", hint=columns_hint(column, columns))
    return [_fill_row(template, fields, row, f"row {number}", option) for number, row in enumerate(rows, 1)]


def _fields(template: str, option: str) -> list[str]:
    """The fields of a template, as they are written in it: `answers[0]`.

    >>> _fields("{answers[0]} is {score:{width}} {{so}}", "--template")
    ['answers[0]', 'score', 'width']
    """
    fields = []
    try:
        for _, field, spec, _ in string.Formatter().parse(template):
            if field is not None:
                fields.append(field)
                fields += _fields(spec or "", option)
    except ValueError as error:
        raise InputError(f"{option} {template!r}: {error}", hint="write {{ or }} for a brace that is meant") from None
    for field in fields:
        if not _column(field) or _column(field).isdigit():
            raise InputError(f"{option} {template!r}: {{{field}}} names no column", hint="write the column: {sentence}")
    return fields


def _column(field: str) -> str:
    """The column that a field begins with: `a` of `a[b]`."""
    return re.split(r"[.\[]", field, maxsplit=1)[0]


def _fill_row(template: str, fields: list[str], row: dict[str, Any], where: str, option: str) -> str:
    for field in fields:
        if _column(field) not in row:
            raise InputError(
                f"{where} has no column {_column(field)!r}, which {option} names", hint=f"it has {listed(list(row))}"
            )
        try:
            value, _ = string.Formatter().get_field(field, (), row)
        except (LookupError, AttributeError, TypeError, ValueError) as error:
            raise InputError(
                f"{where}: {{{field}}} of {option} finds nothing ({type(error).__name__}: {error})",
                hint=f"the column {_column(field)!r} holds {row[_column(field)]!r:.80}",
            ) from None
        if value is None:
            raise InputError(f"{where}: {{{field}}} of {option} is empty (None)", hint="drop such rows, or fill them")
    try:
        return template.format_map(row)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where} does not fit {option} {template!r}: {error}", hint="mind what follows ':'") from None
