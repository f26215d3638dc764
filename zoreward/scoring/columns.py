"""Rows as columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zoreward.records import Example


def columns_of(examples: Sequence[Example]) -> dict[str, list[Any]]:
    """Return the rows' columns as lists; a row without a column has None there."""
    names = dict.fromkeys(name for example in examples for name in example.row)
    return {name: [example.row.get(name) for example in examples] for name in names}
