"""The rows of a table: to tune on, to choose by, to report. Free of torch."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from zoreward.bench.plan import Plan, objectives_of
from zoreward.data import Split, Task, check_columns, check_prompts, load_rows, sample_rows, split_rows
from zoreward.data.tasks import Counts
from zoreward.records import InputError, MissingFileError, ZorewardError
from zoreward.registry import Objective

_ENDINGS = (".jsonl", ".json", ".csv", ".parquet")
# What the files of a folder may be called.
_NAMES = {"train": ("train",), "dev": ("dev", "validation"), "test": ("test",)}


def bench_rows(task: Task, folder: Path | None, counts: Counts, seed: int = 0) -> Split:
    """Return a task's rows. Rows that choose are held out of those to tune on; the other split is the test.

    Args:
        task: the task.
        folder: of files, `train`, `dev` and `test`: with two of them the other one is the test, one alone is divided
            into three. None: the task's own data, from the Hub.
        counts: how many; None: as many as the task says.
        seed: of the draw of rows to tune on and dev rows; test rows are the same for all.

    Raises:
        ZorewardError: there are no such rows, or not enough to be divided.
    """
    pools = _own_pools(task) if folder is None else _files(folder)
    wanted = {name: getattr(counts, name) or getattr(task.rows, name) for name in _NAMES}
    for name, what in (("dev", "choose"), ("test", "are reported")):
        if name not in pools and not wanted[name]:
            raise InputError(f"no rows of {task.name!r} {what}", hint=f"say how many to hold out: --{name}-rows 200")
    held = {name: wanted[name] or 0 for name in ("dev", "test") if name not in pools}
    usable = {name: task.kept(rows) for name, rows in pools.items()}
    try:
        parts = split_rows(usable["train"], train=wanted["train"], seed=seed, **held)
    except InputError as error:
        flags = " or ".join(f"--{name}-rows" for name, count in held.items() if count)
        hint = f"lower {flags}, or put dev.jsonl and test.jsonl into --data-dir"
        raise InputError(f"{task.name}: {error}", hint=hint if flags else error.hint) from None
    dev = sample_rows(usable["dev"], wanted["dev"], seed=seed) if "dev" in usable else parts.dev
    test = sample_rows(usable["test"], wanted["test"]) if "test" in usable else parts.test
    for name, drawn in (("train", parts.train), ("dev", dev), ("test", test)):
        if (getattr(counts, name) or 0) > len(drawn):
            flag = f"--{name}-rows"
            message = f"{flag} {getattr(counts, name)}: {task.name} has {len(drawn):,}"
            raise InputError(message, hint=f"lower it, or leave {flag} out")
    return Split(*(task.prepared(drawn) for drawn in (parts.train, dev, test)))


def check_plan(plan: Plan) -> None:
    """Raise if a task's prompt and answers do not fit its rows, for its metric or for what it tunes on.

    Raises:
        ZorewardError: they do not; the message names the rows.
    """
    metric, smooth = objectives_of(plan.task)
    for name in ("train", "dev", "test"):
        for objective in (metric, smooth if name == "train" else None):
            if objective is not None:
                _check(objective, name, plan)


def check_shots(plan: Plan) -> None:
    """Raise if there are too few rows to take the demonstrations of the method `shots` from.

    Raises:
        ZorewardError: there are; the message names the rows.
    """
    metric, _ = objectives_of(plan.task)
    for name in ("dev", "test"):
        _check(metric, name, plan, shots=plan.settings.shots, shot_rows=plan.rows.train)


def _check(objective: Objective, name: str, plan: Plan, shots: int = 0, shot_rows: Any = None) -> None:
    rows = getattr(plan.rows, name)
    try:
        if objective.needs == "completions":
            check_prompts(rows, plan.prompting)
        else:
            prompting = replace(plan.prompting, shots=shots)
            check_columns(rows, prompting, needs=objective.needs, shot_rows=shot_rows)
    except ZorewardError as error:
        raise type(error)(f"the {name} rows of {plan.task.name!r}: {error}", hint=error.hint) from error


def _own_pools(task: Task) -> dict[str, list[dict[str, Any]]]:
    if task.data is None:
        raise InputError(f"the task {task.name!r} names no data", hint="give --data-dir, a folder with train.jsonl")
    if not task.splits:
        return {"train": load_rows(task.data, config=task.data_config, revision=task.revision)}
    return {
        name: load_rows(task.data, config=task.data_config, revision=task.revision, split=split)
        for name, split in task.splits.items()
    }


def _files(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The files of a folder, by what they are for. Two are to tune on and the test; one is both."""
    if not os.path.isdir(folder):  # not Path.is_dir, which raises where a name is too long to be one
        raise MissingFileError(f"there is no folder {folder}", hint="--data-dir has train.jsonl and dev.jsonl")
    files: dict[str, Path] = {}
    for name, stems in _NAMES.items():
        paths = [path for stem in stems for end in _ENDINGS if (path := folder / f"{stem}{end}").is_file()]
        if len(paths) > 1:
            raise InputError(f"{paths[0]} and {paths[1]} are both there", hint="keep one of them")
        if paths:
            files[name] = paths[0]
    if not files:
        raise InputError(f"{folder} holds no rows", hint="name the files train.jsonl, dev.jsonl, test.jsonl")
    if len(files) == 1:
        files = {"train": next(iter(files.values()))}
    elif "train" not in files:
        raise InputError(f"{folder} holds no rows to tune on", hint="name a file train.jsonl")
    elif "test" not in files:
        files["test"] = files.pop("dev")
    return {name: load_rows(path) for name, path in files.items()}
