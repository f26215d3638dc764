"""What the objectives that make others have in common: options of theirs as text, and errors that say what to do."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection
from typing import Any, TypeVar

E = TypeVar("E", bound=Exception)


def read_options(written: list[str] | None, texts: Collection[str] = ()) -> dict[str, Any]:
    """Return options that are written as name=value, by name.

    A value is a number, true, false, null or a list as JSON writes it; everything else is text.

    Args:
        written: the options.
        texts: names of those whose value is always text.

    Raises:
        ValueError: there is no "=".

    >>> read_options(["scale=0.5", "plus=true", "mode=sum", "title=3"], texts=["title"])
    {'scale': 0.5, 'plus': True, 'mode': 'sum', 'title': '3'}
    """
    options: dict[str, Any] = {}
    for option in written or ():
        name, equals, value = option.partition("=")
        if not equals:
            raise ValueError(f"the option {option!r} is not written as name=value")
        options[name] = value
        with contextlib.suppress(ValueError):
            if name not in texts:
                options[name] = json.loads(value)
    return options


def hinted(error: E, hint: str) -> E:
    """Return the error with a note, which is shown as its hint."""
    error.add_note(hint)
    return error
