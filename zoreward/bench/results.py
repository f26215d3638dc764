"""`results.jsonl`: what a table is made of, one line a run, written when the run is done. Free of torch."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from zoreward.bench.plan import Run, Settings
from zoreward.records import InputError, StorageError

Result = dict[str, Any]
_NAMES = tuple(Run.__dataclass_fields__)
# Of which the value itself says what changed; of others only a digest is kept.
_SHOWN = ("model", "rows", *Settings.__dataclass_fields__)


class Results:
    """The results in a folder, those of earlier commands too.

    A line that a kill tore, the last one, is dropped.

    Args:
        folder: which holds `results.jsonl`, or will.

    Raises:
        InputError: the folder is a file, or its results cannot be read.

    Attributes:
        runs: the result of each run that is done, or failed.
    """

    def __init__(self, folder: Path):
        self.path = folder / "results.jsonl"
        self.runs: dict[Run, Result] = {}
        self._configurations: dict[str, dict[str, Any]] = {}
        self._whole = self._size = 0  # bytes of whole lines, and with the torn one
        if folder.exists() and not folder.is_dir():
            raise InputError(f"--output {folder} is a file", hint="give a folder")
        for fields in self._read():
            if fields.pop("kind") == "task":
                self._configurations[fields["task"]] = fields
            else:
                run = Run(**{name: fields.pop(name) for name in _NAMES})
                self.runs[replace(run, rates=tuple(run.rates))] = fields

    def check(self, configuration: dict[str, Any]) -> None:
        """Refuse a task whose runs so far were done with something else.

        Raises:
            InputError: says what is another.
        """
        then = self._configurations.get(configuration["task"])
        configuration = json.loads(json.dumps(configuration))
        changed = [] if then is None else [name for name in configuration if then.get(name) != configuration[name]]
        if then is not None and changed:
            name = changed[0]
            values = f" was {then.get(name)}, and is {configuration[name]}"
            change = name.replace("_", "-") + (values if name in _SHOWN else " have changed")
            raise InputError(
                f"{self.path} was begun with something else: {configuration['task']}'s {change}",
                hint="say what was said then, or choose another folder for --output",
            )

    def begin(self, configuration: dict[str, Any]) -> None:
        """Write down what the runs of a task are done with."""
        if configuration["task"] not in self._configurations:
            self._append({"kind": "task", **configuration})
            self._configurations[configuration["task"]] = configuration

    def add(self, run: Run, result: Result) -> None:
        """Write down what came of a run; not if it failed, so that the same command tries it again.

        Raises:
            StorageError: it cannot be written.
        """
        if not result.get("failed"):
            self._append({"kind": "run", **asdict(run), **result})
        self.runs[run] = result

    def _append(self, fields: dict[str, Any]) -> None:
        line = json.dumps(fields, allow_nan=False) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                if file.seek(0, os.SEEK_END) == self._size:  # else another command, of other tasks, has written since
                    file.truncate(self._whole)
                file.write(line.encode("ascii"))
                file.flush()
                os.fsync(file.fileno())
                self._whole = self._size = file.tell()
        except OSError as error:
            raise StorageError(
                f"{self.path} cannot be written: {error.strerror}", hint="make room, and say the same command again"
            ) from error

    def _read(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        try:
            whole, newline, torn = self.path.read_bytes().rpartition(b"\n")
            entries = [json.loads(line) for line in whole.splitlines()]
            known = all(isinstance(entry, dict) and entry["kind"] in ("task", "run") for entry in entries)
            known = known and all(name in entry for entry in entries if entry["kind"] == "run" for name in _NAMES)
            if not known or any("task" not in entry for entry in entries):
                raise ValueError("a line is no result")
        except (OSError, ValueError, KeyError) as error:
            hint = "choose another folder for --output"
            raise InputError(f"{self.path} cannot be read: {' '.join(str(error).split())}", hint=hint) from error
        self._whole = len(whole) + len(newline)
        self._size = self._whole + len(torn)
        return entries
