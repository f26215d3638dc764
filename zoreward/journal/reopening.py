"""Going on with a journal that a process left behind."""

from __future__ import annotations

from pathlib import Path

from zoreward.journal.disk import open_file
from zoreward.journal.locking import lock
from zoreward.journal.reader import scan
from zoreward.journal.stored import StoredRun
from zoreward.journal.trajectory import TRAJECTORY_NAME
from zoreward.journal.writer import JOURNAL_NAME, Journal
from zoreward.records import InputError


def reopen(folder: str | Path, *, sync: bool = False) -> tuple[Journal, StoredRun | None] | None:
    """Open the journal of a run to append to it, and read it. A last line that was cut off is taken away.

    Args:
        folder: the run folder.
        sync: wait for the disk after each line; see `Journal`.

    Returns:
        The journal, locked, and what it holds, None where not even its header is whole; None without a journal.

    Raises:
        InputError: another process is at work on it, it is damaged, or cannot be opened.
    """
    path = Path(folder).absolute() / JOURNAL_NAME
    if not has_journal(folder):
        return None
    try:
        file = path.open("r+b", buffering=0)
        try:
            lock(file, path)
            with path.open("rb") as lines:
                found = scan(path, lines)
            return Journal.resumed(path, file, end=found.end, crc=found.crc, sync=sync), found.run
        except BaseException:
            file.close()
            raise
    except OSError as error:
        raise InputError(f"{path} cannot be opened: {error.strerror}", hint="Look at its permissions.") from error


def has_journal(folder: str | Path) -> bool:
    """Return whether there is a journal in a run folder, to go on with.

    Raises:
        InputError: the run is there without it, or something else has its name.
    """
    path = Path(folder) / JOURNAL_NAME
    if not path.exists():
        if (path.parent / TRAJECTORY_NAME).exists():
            raise InputError(
                f"'{folder}' holds {TRAJECTORY_NAME} but no {JOURNAL_NAME}",
                hint="Such a run can be replayed, but not resumed.",
            )
        return False
    if not path.is_file():
        raise InputError(f"{path} is no journal", hint="Choose another folder.")
    return True


def resumable_run(folder: str | Path) -> StoredRun | None:
    """Read the journal in a run folder as `reopen` does, and leave it as it is.

    Returns:
        What it holds; None where not even its header is whole.

    Raises:
        OSError: it cannot be read.
        InputError: it is damaged.
    """
    path = Path(folder) / JOURNAL_NAME
    with open_file(path) as file:
        return scan(path, file).run
