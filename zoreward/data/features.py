"""What a dataset's schema says of its columns: the names of classes that are stored as numbers. Free of `datasets`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from zoreward.neighbours.of_datasets import names_of_classes

Row = dict[str, Any]


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
    found = {}
    for column, feature in features.items() if isinstance(features, Mapping) else ():
        if names := names_of_classes(feature):
            found[column] = names
    return found


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
