"""A run as a file: written while it lasts, read back, and replayed on its base weights. See docs/journal.md."""

from zoreward.journal.fingerprint import fingerprint, weights_dtype
from zoreward.journal.reader import has_journal, load_run, read_journal, reopen, resumable_run
from zoreward.journal.replaying import advance, checked_base, replay
from zoreward.journal.snapshot import SNAPSHOT_NAME, read_snapshot, remove_snapshot, write_snapshot
from zoreward.journal.stored import StoredRun, moves
from zoreward.journal.trajectory import TRAJECTORY_NAME, read_trajectory, write_trajectory
from zoreward.journal.writer import JOURNAL_NAME, Journal

__all__ = [
    "JOURNAL_NAME",
    "SNAPSHOT_NAME",
    "TRAJECTORY_NAME",
    "Journal",
    "StoredRun",
    "advance",
    "checked_base",
    "fingerprint",
    "has_journal",
    "load_run",
    "moves",
    "read_journal",
    "read_snapshot",
    "read_trajectory",
    "remove_snapshot",
    "reopen",
    "replay",
    "resumable_run",
    "weights_dtype",
    "write_snapshot",
    "write_trajectory",
]
