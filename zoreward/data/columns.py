"""Columns: their names, as errors list them, what stands in them, and what a dataset's schema says of them."""

from __future__ import annotations

import difflib
import json
import numbers
import re
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from zoreward.neighbours.of_datasets import names_of_classes
from zoreward.records import InputError, UnknownNameError, ZorewardError

Row = dict[str, Any]
"""One dataset example: column → value."""


class PlacedRow(Row):
    """A row that knows where it was read, whatever rows it stands among later.

    Args:
        values: column → value.
        source: the file or dataset.
        unit: what is counted there, `line` or `row`.
        number: which one it is, from 1 on.
    """

    __slots__ = ("number", "source", "unit")

    def __init__(self, values: Row, source: str, unit: str, number: int):
        super().__init__(values)
        self.source, self.unit, self.number = source, unit, number

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self), self.source, self.unit, self.number)


@contextmanager
def placed(rows: Sequence[Row]) -> Iterator[None]:
    """Have an error that begins with the number of one of these rows begin with the place where that was read.

    >>> with placed([PlacedRow({}, "train.csv", "line", 7)]):
    ...     raise InputError("row 1 has no label")
    Traceback (most recent call last):
    zoreward.records.InputError: train.csv, line 7 has no label
    """
    try:
        yield
    except ZorewardError as error:
        found = re.match(r"row (\d+)\b", str(error))
        number = int(found[1]) if found else 0
        if found is None or not 0 < number <= len(rows) or not isinstance(row := rows[number - 1], PlacedRow):
            raise
        told = f"{row.source}, {row.unit} {row.number}{str(error)[found.end() :]}"
        raise type(error)(told, hint=error.hint) from error


def columns_of(rows: Iterable[dict[str, Any]]) -> list[str]:
    """The columns of all rows, each once, in the order in which they appear."""
    return list(dict.fromkeys(column for row in rows for column in row))


def values_of(rows: list[dict[str, Any]], column: str, what: str, option: str) -> list[Any]:
    """A column as a list, one value a row; numpy's scalars and arrays (datasets, pandas) become Python's.

    Args:
        rows: at least one.
        column: its name; or a path into it, as templates write it: `choices[text]`, `answers[0]`.
        what: the column is for.
        option: that names the column.

    Raises:
        UnknownNameError: no row has the column.
        InputError: a row has no value there.

    >>> values_of([{"answer": {"key": "A"}}], "answer[key]", "label", "--label")
    ['A']
    """
    columns = columns_of(rows)
    name = column if column in columns else column_in(column)
    if name not in columns:
        hint = f"give {option}; {columns_hint(name, columns)}"
        path = "" if name == column else f", which {column!r} begins with"
        raise UnknownNameError(f"no row has the {what} column {name!r}{path}", hint=hint)
    values = []
    for number, row in enumerate(rows, 1):
        value: Any = row.get(column) if name == column else field_value(column, row, f"row {number}", option)
        if is_missing(value):
            hint = "drop such rows, or fill them"
            raise InputError(f"row {number} has no {what} in column {column!r}{_as_nan(value)}", hint=hint)
        values.append(value.tolist() if hasattr(value, "tolist") else value)
    return values


def column_in(field: str) -> str:
    """The column that a field of a template, or a path, begins with: `a` of `a[b]|strip`."""
    return re.split(r"[.\[|]", field, maxsplit=1)[0]


def field_value(path: str, row: dict[str, Any], where: str, option: str) -> Any:
    """What stands at `answers[0]` in a row.

    Raises:
        InputError: nothing stands there, or None, or NaN. `where` names the row, `option` the template.
    """
    column = column_in(path)
    if "." in path:
        raise InputError(f"{option}: {path!r} asks for an attribute", hint="write {column[key]}")
    if column not in row:
        raise InputError(f"{where} has no column {column!r}, which {option} names", hint=f"it has {listed(list(row))}")
    try:
        value, _ = string.Formatter().get_field(path, (), row)
    except (LookupError, AttributeError, TypeError, ValueError) as error:
        message = f"{where}: {{{path}}} of {option} finds nothing ({type(error).__name__}: {error})"
        raise InputError(message, hint=f"the column {column!r} holds {row[column]!r:.80}") from None
    if is_missing(value):
        message = f"{where}: {{{path}}} of {option} is empty ({'None' if value is None else 'NaN'})"
        raise InputError(message, hint="drop such rows, or fill them")
    return value


def is_missing(value: Any) -> bool:
    """Whether a value stands for none: None, or NaN, as pandas and numpy write it.

    >>> is_missing(float("nan")), is_missing(0), is_missing("nan")
    (True, False, False)
    """
    if type(value).__name__ in ("NAType", "NaTType"):  # pandas' own, which answer no comparison
        return True
    return value is None or (isinstance(value, numbers.Real) and bool(value != value))


def is_conversation(value: Any) -> bool:
    """Whether a value is a list of messages, each with a role and a content, or tool calls in its place."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(message, dict) and "role" in message and not message.keys().isdisjoint(("content", "tool_calls"))
            for message in value
        )
    )


def broken_text(value: Any) -> str | None:
    """The first text in a value that cannot be written as UTF-8.

    >>> broken_text([{"content": "fine"}, {"content": "fine \\ud83d"}])
    'fine \\ud83d'
    """
    if isinstance(value, str):
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                return value
        return None
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return next((text for part in parts if (text := broken_text(part)) is not None), None)


def _as_nan(value: Any) -> str:
    return "" if value is None else " (NaN)"


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


# The names of classes that are stored as numbers


class NamedLabel(int):
    """The number of a class, as the dataset stores it, which also knows the names of all classes.

    Args:
        number: of the class, 0 ≤ number < len(names).
        names: of the classes, in the order of their numbers.

    >>> label = NamedLabel(1, ("neg", "pos"))
    >>> label == 1, label.name, label.names
    (True, 'pos', ('neg', 'pos'))
    """

    names: tuple[str, ...]

    def __new__(cls, number: int, names: tuple[str, ...] = ()) -> NamedLabel:
        label = super().__new__(cls, number)
        label.names = names
        return label

    @property
    def name(self) -> str:
        """The name of this class."""
        return self.names[self]


def class_names(features: object) -> dict[str, tuple[str, ...]]:
    """The names of the classes of each column that is a `ClassLabel`, from the features of a dataset.

    Args:
        features: those of a `datasets.Dataset`, or what the key `huggingface` of a file's schema says of them.

    >>> class_names({"label": {"names": ["neg", "pos"], "_type": "ClassLabel"}, "text": {"_type": "Value"}})
    {'label': ('neg', 'pos')}
    """
    names_of = {}
    for column, feature in features.items() if isinstance(features, Mapping) else ():
        if names := names_of_classes(feature):
            names_of[column] = names
    return names_of


def class_names_in(metadata: Mapping[bytes, bytes] | None) -> dict[str, tuple[str, ...]]:
    """The same from the metadata of an Arrow schema, into which `datasets` writes its features.

    >>> class_names_in(None), class_names_in({b"huggingface": b"no JSON"})
    ({}, {})
    """
    try:
        return class_names(json.loads((metadata or {})[b"huggingface"])["info"]["features"])
    except (KeyError, TypeError, ValueError):  # another program's file
        return {}


def with_class_names(rows: Iterable[Row], names: Mapping[str, tuple[str, ...]]) -> list[Row]:
    """The rows, the numbers of classes as `NamedLabel`. What is no number of a class (None, −1) stays as it is."""
    return [
        {**row, **{column: _named(row[column], known) for column, known in names.items() if column in row}}
        if names
        else dict(row)
        for row in rows
    ]


def _named(value: Any, names: tuple[str, ...]) -> Any:
    is_number = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(names)
    return NamedLabel(value, names) if is_number else value
