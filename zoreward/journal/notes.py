"""What people want to look at and no replay or resume needs, beside the journal: one JSON object a line.

    {"kind": "session", "command": "zoreward tune …", …}      when `train` begins, and goes on
    {"kind": "answers", "step": 20, "confusion": [[…], …]}    of the dev rows, at each evaluation
    {"kind": "end", "seconds": 12.5, "first": 0, "steps": 40} when it ends, however that comes, but by a kill

Nothing depends on it: a note that cannot be written is left out, and a line that cannot be read is skipped.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoreward.journal.disk import open_file
from zoreward.journal.lines import parse

NOTES_NAME = "notes.jsonl"
MOST_BYTES = 64 << 20
"""Of the file, at most: an evaluation of texts takes 20 kB at most."""


def append_note(folder: str | Path, kind: str, fields: Mapping[str, Any]) -> None:
    """Add a note to a run folder. The line break stands in front: what a kill cut off must not take the next one along.

    Args:
        folder: the run folder.
        kind: of the note.
        fields: what JSON can hold; of other values their `str`, and null for a number that is not finite.
    """
    with contextlib.suppress(OSError, ValueError, RecursionError):
        line = json.dumps({"kind": kind, **_finite(fields)}, default=str)
        path = Path(folder, NOTES_NAME)
        if path.is_file() or not path.exists():  # a FIFO would never open
            with path.open("a", encoding="ascii") as file:
                file.write(f"\n{line}")


def read_notes(folder: str | Path) -> list[dict[str, Any]]:
    """Return the notes of a run folder, in order; none where there is no such file."""
    try:
        with open_file(Path(folder, NOTES_NAME)) as file:
            lines = file.read(MOST_BYTES).splitlines()
    except OSError:
        return []
    notes = []
    for line in lines:
        with contextlib.suppress(ValueError):
            notes.append(parse(line))
    return notes


def remove_notes(folder: str | Path) -> None:
    """Remove the notes of a run that had this folder before."""
    with contextlib.suppress(OSError):
        Path(folder, NOTES_NAME).unlink(missing_ok=True)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _finite(item) for name, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
