"""The journal of a run while it is written."""

from __future__ import annotations

import contextlib
import errno
import math
import os
from collections.abc import Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any, Self

from zoreward.journal.disk import lock, shared, sync_folder
from zoreward.journal.lines import MAX_LINE, encode
from zoreward.noise import NOISE_VERSION
from zoreward.records import InputError, Rewind, StepRecord, Update

JOURNAL_NAME, TRAJECTORY_NAME = "journal.jsonl", "trajectory.safetensors"


class Journal:
    """The open journal of one run: one JSON object a line, each of a kind, only ever appended to.

    | kind | when | what |
    |---|---|---|
    | `header` | first | whatever the steps depend on: noise version, base weights, streams, method, options, versions |
    | `step` | once a step | scores, learning rate, and the update as terms |
    | `evaluation` | when rows to choose by were scored | the score at that step |
    | `rewind` | when the run went back to an earlier step | which, and what rates are multiplied by from then on |

    A term is [seed, coefficient] and what its family says of itself; see `Family.to_json`. Each line carries a
    checksum; docs/journal.md has the format.

    When `append` returns, the operating system has the line: it survives the end of the process, however that comes. To
    survive a power cut as well it must be on the disk, which `sync` waits for.

    While it is open no other process can open it; see `zoreward.journal.disk.lock`.

    Args:
        folder: the run folder; made if it does not exist.
        header: whatever the steps depend on; `noise_version` is added. A run can be replayed with `fingerprint`,
            `dtype` and `streams`, and stored as a trajectory with `method`.
        sync: wait for the disk after each line: a median of 2 to 4 ms in place of 0.05 ms, for steps of one direction
            on two busy cores and a cloud disk (benchmarks/journal.py).

    Raises:
        FileExistsError: the folder holds a journal already.
        InputError: another process is at work on it, or a line would be longer than a reader takes.
        OSError: a line cannot be written, or the file is gone from its folder; then the journal ends with the line
            before.

    Example:
        >>> with Journal(folder, {"fingerprint": "…", "streams": {}}) as journal:  # doctest: +SKIP
        ...     journal.append(step)
    """

    def __init__(self, folder: str | Path, header: dict[str, Any], *, sync: bool = False):
        path = Path(folder).absolute() / JOURNAL_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file, self._path, self._sync = path.open("xb", buffering=0), path, sync
        lock(self._file, path)
        try:
            self.begin(header)
        except BaseException:  # a folder with an empty journal would look like a run
            self._file.close()
            with contextlib.suppress(OSError):
                path.unlink()
            raise

    @classmethod
    def resumed(cls, path: Path, file: FileIO, *, end: int, crc: int, sync: bool = False) -> Self:
        """Return the journal in a file that is open for reading and writing, and locked.

        Args:
            path: the file's absolute path.
            file: the file.
            end: bytes of its whole lines; what stands behind them is cut off.
            crc: the checksum of the last of them; 0 where there are none.
            sync: wait for the disk after each line.
        """
        journal = cls.__new__(cls)
        journal._file, journal._path, journal._sync = file, path, sync
        journal._crc, journal._end = crc, end
        if file.seek(0, os.SEEK_END) > end:
            file.truncate(end)
        file.seek(end)
        return journal

    def begin(self, header: dict[str, Any]) -> None:
        """Write the header, as the only line."""
        self._file.truncate(0)
        self._file.seek(0)
        self._crc = self._end = 0
        self._write({"kind": "header", "noise_version": NOISE_VERSION, **header})
        if self._sync:
            sync_folder(self._path.parent)

    def append(self, record: StepRecord) -> None:
        """Write one step: its scores, and the update that followed from them.

        Raises:
            ValueError: its terms have several distributions, as those of no method have.
        """
        update = record.update
        self._write(
            {
                "kind": "step",
                "step": record.step,
                "scores": [None if math.isnan(score) else score for score in record.scores],
                "lr": record.lr,
                "decay": update.decay,
                **({"anchor": update.anchor} if update.anchor else {}),
                "terms": [[term.seed, term.coefficient, *term.family.to_json(term.seed)] for term in update.terms],
                **_blocks(update),
                **_distribution(update),
                "rounding_seed": update.rounding_seed,
            }
        )

    def append_evaluation(
        self,
        step: int,
        score: float,
        metrics: Mapping[str, float | None] | None = None,
        groups: Sequence[float] = (),
    ) -> None:
        """Write the score of an evaluation after `step` steps, and what else is known of it: numbers, or None.

        `groups` are what each group of rows says of the score.
        """
        more: dict[str, Any] = {"metrics": dict(metrics)} if metrics else {}
        more |= {"groups": list(groups)} if groups else {}
        self._write({"kind": "evaluation", "step": step, "score": score, **more})

    def append_rewind(self, rewind: Rewind) -> None:
        """Write that the run goes back to an earlier step."""
        self._write({"kind": "rewind", "step": rewind.step, "to": rewind.to, "rate": rewind.rate})

    def held(self) -> FileIO:
        """Return a file that holds the lock too, so that the run stays ours until it is closed as well."""
        return shared(self._file)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _write(self, fields: dict[str, Any]) -> None:
        # Writing to a file that was removed works, and nobody would ever read it.
        if not os.path.samestat(os.stat(self._path), os.fstat(self._file.fileno())):
            raise FileNotFoundError(errno.ENOENT, "another file has taken its place", str(self._path))
        line, crc = encode(fields, self._crc)
        if len(line) > MAX_LINE:
            raise InputError(f"a line of the journal would take {len(line)} bytes", hint="Take fewer directions.")
        rest = memoryview(line)
        try:
            while rest:  # a raw file may take a part only
                rest = rest[self._file.write(rest) :]
            if self._sync:
                os.fsync(self._file.fileno())
        except BaseException:  # a full disk took the first part: what is written later must not follow it
            with contextlib.suppress(OSError):
                self._file.truncate(self._end)
                self._file.seek(self._end)
            raise
        self._crc, self._end = crc, self._end + len(line)


def _blocks(update: Update) -> dict[str, Any]:
    """The block whose turn it is; and those of the terms, where some are of another, as momentum's are."""
    blocks = [term.block for term in update.terms]
    turn = {} if update.block is None else {"block": update.block}
    return turn if set(blocks) <= {update.block} else {**turn, "term_blocks": blocks}


def _distribution(update: Update) -> dict[str, Any]:
    """The distribution of the terms, where it is not `normal`."""
    found = {term.family.distribution for term in update.terms} or {"normal"}
    if len(found) > 1:
        raise ValueError(f"a step's terms have one distribution, not {', '.join(sorted(found))}")
    return {} if found == {"normal"} else {"distribution": min(found)}
