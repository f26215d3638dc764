"""One process a run: whoever writes a journal holds a lock on it."""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from zoreward.journal.disk import open_file
from zoreward.records import InputError


def lock(file: FileIO, path: Path) -> None:
    """Take the lock on an open journal, for as long as the file is open.

    The operating system lets go of it when the process ends, however that comes; a file that says "locked" would stay.
    Processes that are forked close their copy of the file: they would keep the lock beyond the end of the run. Without
    locks (Windows, some network file systems) nothing is held.

    Args:
        file: the open journal.
        path: where it is.

    Raises:
        InputError: another process holds it; the file is closed.
    """
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise InputError(
            f"another process is at work on the run in '{path.parent}'", hint="Wait for it, or choose another folder."
        ) from None
    except OSError:  # a file system without locks
        return
    _close_in_children(file)


def shared(file: FileIO) -> FileIO:
    """Return another file that holds the lock of an open one: the lock is let go when both are closed.

    Args:
        file: the open journal.
    """
    other = FileIO(os.dup(file.fileno()))
    _close_in_children(other)
    return other


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the lock on a journal that is only read.

    Args:
        path: where it is.

    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be opened, or is no regular file.
        InputError: another process holds the lock.
    """
    with open_file(path) as plain, FileIO(os.dup(plain.fileno())) as file:
        lock(file, path)
        yield


def _close_in_children(file: FileIO) -> None:
    if hasattr(os, "register_at_fork"):
        found = weakref.ref(file)
        os.register_at_fork(after_in_child=lambda: _close(found()))


def _close(file: FileIO | None) -> None:
    if file is not None:
        with contextlib.suppress(OSError):
            file.close()
