"""What the objectives that make others have in common: options of theirs as text, and errors that say what to do."""

from __future__ import annotations

import json
from typing import Any, TypeVar

E = TypeVar("E", bound=Exception)


def split_option(written: str) -> tuple[str, str]:
    """Return name and value of an option written as name=value.

    Raises:
        ValueError: there is no "=".

    >>> split_option("scale=3")
    ('scale', '3')
    """
    name, equals, value = written.partition("=")
    if not equals:
        raise ValueError(f"the option {written!r} is not written as name=value")
    return name, value


def read_value(value: str) -> Any:
    """Return a number, true, false, null or a list as JSON writes it; everything else is text.

    >>> read_value("0.5"), read_value("true"), read_value("plus")
    (0.5, True, 'plus')
    """
    try:
        return json.loads(value)
    except ValueError:
        return value


def hinted(error: E, hint: str) -> E:
    """Return the error with a note, which is shown as its hint."""
    error.add_note(hint)
    return error
