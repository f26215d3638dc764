"""A run as a file: written while it lasts, read back, and replayed on its base weights. See docs/journal.md."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from zoreward.journal.fingerprint import fingerprint, weights_dtype
from zoreward.journal.reader import has_journal, load_run, read_journal, reopen, resumable_run
from zoreward.journal.stored import StoredRun, moves
from zoreward.journal.writer import JOURNAL_NAME, TRAJECTORY_NAME, Journal

if TYPE_CHECKING:
    from zoreward.journal.history import replay_mean, replay_sum
    from zoreward.journal.replaying import advance, checked_base, replay
    from zoreward.journal.snapshot import SNAPSHOT_NAME, read_snapshot, remove_snapshot, write_snapshot
    from zoreward.journal.trajectory import read_trajectory, write_trajectory

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
    "replay_mean",
    "replay_sum",
    "resumable_run",
    "weights_dtype",
    "write_snapshot",
    "write_trajectory",
]

# What moves weights needs torch, which takes seconds to import, and arrays NumPy: who reads a run waits for neither.
_MODULES = {
    **dict.fromkeys(("replay_mean", "replay_sum"), "history"),
    **dict.fromkeys(("advance", "checked_base", "replay"), "replaying"),
    **dict.fromkeys(("SNAPSHOT_NAME", "read_snapshot", "remove_snapshot", "write_snapshot"), "snapshot"),
    **dict.fromkeys(("read_trajectory", "write_trajectory"), "trajectory"),
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'zoreward.journal' has no attribute {name!r}")
    return getattr(import_module(f"zoreward.journal.{_MODULES[name]}"), name)
