"""A run as a file: written while it lasts, read back, and replayed on its base weights. See docs/journal.md."""

from zoreward.journal.fingerprint import fingerprint, weights_dtype
from zoreward.journal.reader import load_run, read_journal
from zoreward.journal.replaying import replay
from zoreward.journal.run import Run
from zoreward.journal.trajectory import TRAJECTORY_NAME, read_trajectory
from zoreward.journal.writer import JOURNAL_NAME, Journal

__all__ = [
    "JOURNAL_NAME",
    "TRAJECTORY_NAME",
    "Journal",
    "Run",
    "fingerprint",
    "load_run",
    "read_journal",
    "read_trajectory",
    "replay",
    "weights_dtype",
]
