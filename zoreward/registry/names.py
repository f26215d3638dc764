"""Help with a name that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def neighbours(name: str, names: Iterable[str], title: str) -> str:
    names = list(names)
    near = difflib.get_close_matches(name, names, n=3)
    return (f"did you mean {' or '.join(near)}? " if near else "") + f"{title}: {', '.join(names) or 'nothing'}"
