"""A cache of scores: what was computed or paid for once, in a file."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import json
import logging
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoreward.records import InputError, one_line

if TYPE_CHECKING:
    import sqlite3

    from zoreward.registry.objective import Objective

FILE_NAME = "scores.sqlite"
# Of a statement; SQLite takes at least 999 values in one.
_AT_ONCE = 500
# Seconds to wait for another process that writes.
LOCK_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class RowScore:
    """What is known of one row.

    Args:
        score: None where the objective left it out.
        extra: what it logged of the row with `log_extra`, by column.
    """

    score: float | None
    extra: dict[str, Any]


class ScoreCache:
    """The scores in a folder. Several processes may use it at once.

    A file that is damaged, or that cannot be read or written, is one in which nothing is found, with a warning; it is
    not tried again.

    Args:
        folder: made where it does not exist, once there is something to keep.
    """

    def __init__(self, folder: Path):
        self._path = folder.absolute() / FILE_NAME
        self._warned = False
        self._failed: set[str] = set()

    def find(self, keys: Sequence[str]) -> dict[str, RowScore]:
        """Return what is known, by key."""
        known: dict[str, RowScore] = {}

        def look(file: sqlite3.Connection) -> None:
            for start in range(0, len(keys), _AT_ONCE):
                chunk = keys[start : start + _AT_ONCE]
                marks = ", ".join("?" * len(chunk))
                for key, text, check in file.execute(f"SELECT * FROM scores WHERE key IN ({marks})", chunk):
                    if check == _checksum(key, text):
                        known[key] = RowScore(**json.loads(text))
                    else:
                        self._warn("a score is damaged")

        if os.path.exists(self._path):
            self._with_file("read", look)
        return known

    def store(self, rows: Mapping[str, RowScore]) -> None:
        """Keep what is known of these rows."""
        lines = []
        for key, row in rows.items():
            try:
                text = json.dumps({"score": row.score, "extra": row.extra})
            except (TypeError, ValueError):  # what was logged is no JSON; the score is what is paid for
                text = json.dumps({"score": row.score, "extra": {}})
            lines.append((key, text, _checksum(key, text)))
        line = "INSERT OR REPLACE INTO scores VALUES (?, ?, ?)"
        self._with_file("write", lambda file: file.executemany(line, lines))

    def _with_file(self, what: str, work: Callable[[sqlite3.Connection], object]) -> None:
        import sqlite3

        if what in self._failed:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(sqlite3.connect(self._path, timeout=LOCK_TIMEOUT)) as file, file:
                file.execute(
                    "CREATE TABLE IF NOT EXISTS scores"
                    " (key TEXT PRIMARY KEY, row TEXT NOT NULL, crc INTEGER NOT NULL) WITHOUT ROWID"
                )
                work(file)
        except (sqlite3.Error, OSError, ValueError, TypeError) as error:  # the last two: another program's table
            self._failed.add(what)
            self._warn(one_line(error))

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            message = "%s: %s; what it held is asked for again. Delete it to keep scores again."
            logging.getLogger(__name__).warning(message, self._path, reason)


def key_of(name: str, values: Mapping[str, Any], source: str, row: Mapping[str, Any]) -> str:
    """Return what a score is found by: the same only for the same objective, options, source and row.

    Raises:
        TypeError: the row holds what JSON does not.
        ValueError: it holds itself.
    """
    options = json.dumps(values, sort_keys=True, default=str)
    text = json.dumps([name, options, source, row], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def source_of(objective: Objective) -> str:
    """Return a fingerprint of the file that defines an objective's function; of the function where there is no file.

    Raises:
        InputError: its source cannot be read.
    """
    plain: Any = inspect.unwrap(objective.function)
    bound: list[Any] = []  # what a partial has bound is no option, and is in no file
    while isinstance(plain, functools.partial):
        bound.append((plain.args, plain.keywords))
        plain = plain.func
    if not inspect.isroutine(plain):
        plain = type(plain)
    try:
        file = Path(inspect.getsourcefile(plain) or "")
        source = file.read_bytes() if file.is_file() else inspect.getsource(plain).encode()
    except (TypeError, OSError):
        message = f"the source of objective {objective.name!r} cannot be read, so nobody could tell when it has changed"
        raise InputError(message, hint="write it to a file, or leave the cache out") from None
    return hashlib.sha256(source + (repr(bound).encode() if bound else b"")).hexdigest()


def _checksum(key: str, text: str) -> int:
    return zlib.crc32((key + text).encode())
