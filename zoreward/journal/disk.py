"""Files that are there as a whole or not at all, also after a power cut; and files that are opened without waiting."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


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
