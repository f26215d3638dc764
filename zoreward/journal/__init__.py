"""A run as a file: written while it lasts, read back, and replayed on its base weights. See docs/journal.md."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from zoreward.journal.fingerprint import fingerprint, weights_dtype
from zoreward.journal.reader import has_journal, load_run, read_journal, reopen, resumable_run
from zoreward.journal.stored import StoredRun, moves
from zoreward.journal.trajectory import TRAJECTORY_NAME, read_trajectory, write_trajectory
from zoreward.journal.writer import JOURNAL_NAME, Journal

if TYPE_CHECKING:
    from zoreward.journal.replaying import advance, checked_base, replay
    from zoreward.journal.snapshot import SNAPSHOT_NAME, read_snapshot, remove_snapshot, write_snapshot

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

# What moves weights needs torch, which takes seconds to import; who reads a run does not wait for it.
_REPLAYING = ("advance", "checked_base", "replay")
_SNAPSHOT = ("SNAPSHOT_NAME", "read_snapshot", "remove_snapshot", "write_snapshot")


def __getattr__(name: str) -> Any:
    if name not in _REPLAYING + _SNAPSHOT:
        raise AttributeError(f"module 'zoreward.journal' has no attribute {name!r}")
    module = "replaying" if name in _REPLAYING else "snapshot"
    return getattr(import_module(f"zoreward.journal.{module}"), name)
