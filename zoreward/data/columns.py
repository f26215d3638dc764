"""The names of columns, as errors list them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

from zoreward.records import InputError, UnknownNameError


def columns_of(rows: Iterable[dict[str, Any]]) -> list[str]:
    """The columns of all rows, each once, in the order in which they appear."""
    return list(dict.fromkeys(column for row in rows for column in row))


def values_of(rows: list[dict[str, Any]], column: str, what: str, option: str) -> list[Any]:
    """A column as a list, one value a row; numpy's scalars and arrays (datasets, pandas) become Python's.

    Raises:
        UnknownNameError: no row has the column. `what` says what it is for, `option` how it is chosen.
        InputError: a row has no value there.
    """
    columns = columns_of(rows)
    if column not in columns:
        hint = f"give {option}; {columns_hint(column, columns)}"
        raise UnknownNameError(f"no row has the {what} column {column!r}", hint=hint)
    for number, row in enumerate(rows, 1):
        if row.get(column) is None:
            raise InputError(f"row {number} has no {what} in column {column!r}", hint="drop such rows, or fill them")
    return [row[column].tolist() if hasattr(row[column], "tolist") else row[column] for row in rows]


def columns_hint(name: str, columns: Sequence[str]) -> str:
    """The columns there are, and first those that `name` may have meant."""
    return f"{close_hint(name, columns)}the columns are {listed(columns)}"


def close_hint(name: str, names: Iterable[str]) -> str:
    """Ask for the names that look like `name`; nothing where none does.

    >>> close_hint("lable", ["label", "text"]), close_hint("zzz", ["label"])
    ('did you mean label? ', '')
    """
    close = difflib.get_close_matches(name, [str(known) for known in names])
    return f"did you mean {' or '.join(close)}? " if close else ""


def listed(names: Sequence[str], most: int = 50) -> str:
    """Names in one line.

    >>> listed(["a", "b", "c"], most=2), listed([])
    ('a, b, …', 'none')
    """
    return ", ".join([str(name) for name in names[:most]] + ["…"] * (len(names) > most)) or "none"
