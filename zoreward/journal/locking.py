"""One process a run: whoever writes a journal holds a lock on it."""

from __future__ import annotations

import contextlib
import os
import weakref
from io import FileIO
from pathlib import Path

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
    found = weakref.ref(file)
    os.register_at_fork(after_in_child=lambda: _close(found()))


def _close(file: FileIO | None) -> None:
    if file is not None:
        with contextlib.suppress(OSError):
            file.close()
