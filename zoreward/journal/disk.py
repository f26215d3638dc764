"""Files: opened without waiting, written as a whole or not at all, also over a power cut, and locked by one process."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import weakref
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from zoreward.records import InputError, MissingFileError


def open_file(path: str | Path) -> BinaryIO:
    """Open a regular file for reading. Whatever else has its name is refused at once: a FIFO would never open.

    Args:
        path: of the file; a link to a regular file will do.

    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be opened, or is no regular file.

    Example:
        >>> with open_file("runs/sst2/snapshot.safetensors") as file:  # doctest: +SKIP
        ...     file.read(8)
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


@contextlib.contextmanager
def opened(path: Path, what: str) -> Iterator[BinaryIO]:
    """Open a file that a user has named, for reading.

    Args:
        path: of the file.
        what: it should be, for errors.

    Raises:
        MissingFileError: there is none.
        InputError: it is no regular file, or cannot be read.
    """
    hint = "Give a run folder, or a file in one."
    if not os.path.exists(path):
        raise MissingFileError(f"there is no {what} {path}", hint=hint)
    if not path.is_file():
        raise InputError(f"{path} is no {what}", hint=hint)
    try:
        with open_file(path) as file:
            yield file
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", hint="Look at its permissions.") from error


def write_whole(path: str | Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file so that its name belongs to the old content or to the new, and never to a part of either.

    Args:
        path: of the file; replaced where it exists.
        write: writes the content.

    Raises:
        OSError: it cannot be written; what had the name before still has it.

    Example:
        >>> write_whole("config.yaml", lambda file: file.write(b"seed: 0"))  # doctest: +SKIP
    """
    path = Path(path)
    unfinished = path.with_name(f"{path.name}.part")
    try:
        unfinished.unlink(missing_ok=True)  # what a kill left behind may be anything
        with unfinished.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


def sync_folder(folder: str | Path) -> None:
    """Have the names in a folder on the disk too, where the file system can be asked for that."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
        finally:
            os.close(handle)


def sync_all(folder: str | Path) -> None:
    """Have all that is in a folder on the disk: its files, and their names."""
    for place, _, names in os.walk(folder):
        for name in names:
            with open_file(Path(place, name)) as file:
                os.fsync(file.fileno())
        sync_folder(place)


def remove(path: str | Path) -> None:
    """Remove what has a name, whatever it is; nothing where there is nothing.

    Raises:
        OSError: it cannot be removed.
    """
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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
