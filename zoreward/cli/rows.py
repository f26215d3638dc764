"""The rows that `tune` and `eval` work on: loaded, divided, made ready and checked. Free of torch."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from zoreward.cli.prepare import Rows, check_rows, head_for, shot_rows_of
from zoreward.cli.task import is_own_data
from zoreward.config import Common, EvalOptions, TuneOptions
from zoreward.data import Split, Task, k_shot_rows, load_rows, sample_rows, split_rows
from zoreward.records import InputError, ZorewardError
from zoreward.registry import Objective


@dataclass(frozen=True, slots=True)
class TuningRows:
    """What a run is given.

    Args:
        train: rows to tune on.
        dev: rows that choose; None without.
        shots: rows for demonstrations; None: those to tune on.
        test: rows that are scored once, at the end; None without.
    """

    train: Rows
    dev: Rows | None
    shots: Rows | None
    test: Rows | None


def tuning_rows(objective: Objective, at_end: Objective, options: TuneOptions, task: Task | None) -> TuningRows:
    """Return the rows of a run, once the prompt's options are known to fit them.

    Args:
        objective: what is tuned on, and what the dev rows are scored by.
        at_end: what the test rows are scored by.
        options: of the command.
        task: the task, if there is one.

    Raises:
        ZorewardError: rows cannot be read or divided, or a template, a label or a choice does not fit.
    """
    shots = shot_rows_of(objective, options, task)
    pool = _pool(options, task)
    parts = _divided(pool, options, task)
    train = _prepared(task, parts.train)
    head = head_for(options, train) if objective.needs == "choices" else None
    check_rows(objective, options, train, shots, head)
    dev, test = _dev_rows(parts, options, task), _test_rows(parts, options, task)
    for found, source, scorer in ((dev, options.eval_data, objective), (test, options.test_data, at_end)):
        if found is not None:
            with _named(source or str(options.data)):
                check_rows(scorer, options, found, shots or train, head)
    _check_counts({"train": train, "dev": dev, "test": test}, options, task)
    if task is not None or parts.dev or test is not None:
        _say(train, dev, test, options)
    return TuningRows(train, dev, shots, test)


def scored_rows(objective: Objective, options: EvalOptions, task: Task | None) -> tuple[Rows, Rows | None]:
    """Return the rows that `eval` scores, and those for demonstrations; None: the rows themselves.

    With a task's own data, demonstrations come from the rows that one would tune on.
    """
    shots = shot_rows_of(objective, options, task)
    rows = _pool(options, task)
    drawn = sample_rows(rows, options.test_rows)
    _say_which(len(rows), len(drawn), options)
    rows = _prepared(task, drawn)
    _check_counts({"test": rows}, options, task)
    if task is not None and options.shots and shots is None and is_own_data(task, options) and "train" in task.splits:
        pool = _pool(options, task, split=task.splits["train"])
        train, dev = task.rows.train, 0 if "dev" in task.splits else task.rows.dev or 0
        shots = _prepared(task, split_rows(pool, train=train, dev=dev, seed=options.split_seed).train)
    head = head_for(options, rows) if objective.needs == "choices" else None
    check_rows(objective, options, rows, shots, head)
    return rows, shots


def has_dev_rows(options: TuneOptions) -> bool:
    """Return whether the options ask for dev rows."""
    return any((options.eval_data, options.eval_split, options.dev_rows, options.k_shot))


def _pool(options: Common, task: Task | None, split: str | None = None) -> Rows:
    """The rows of --data: of a split of the task's, or those that are asked for."""
    limit = None if split else options.limit
    return _kept(task, load_rows(str(options.data), limit=limit, **_place(options, split or options.split)))


def _place(options: Common, split: str | None) -> dict[str, Any]:
    return {"config": options.data_config, "revision": options.revision, "split": split}


def _kept(task: Task | None, rows: Rows) -> Rows:
    return rows if task is None else task.kept(rows)


def _prepared(task: Task | None, rows: Rows) -> Rows:
    return rows if task is None else task.prepared(rows)


def _divided(pool: Rows, options: TuneOptions, task: Task | None) -> Split:
    """The rows of --data: to tune on, and those that are held out of them."""
    elsewhere = options.eval_data is not None or options.eval_split is not None
    dev = 0 if elsewhere else options.dev_rows or 0
    test = 0 if _test_source(options, task) else options.test_rows or 0
    if options.k_shot is None:
        return split_rows(pool, train=options.train_rows, dev=dev, test=test, seed=options.split_seed)
    for name in ("train_rows", "dev_rows"):
        if getattr(options, name) is not None:
            flag = f"--{name.replace('_', '-')}"
            raise InputError(f"--k-shot and {flag} say two things about the same rows", hint="give one of them")
    held = split_rows(pool, test=test)
    parts = k_shot_rows(held.train, options.label, options.k_shot, seed=options.split_seed)
    return Split(parts.train, [] if elsewhere else parts.dev, held.test)


def _dev_rows(parts: Split, options: TuneOptions, task: Task | None) -> Rows | None:
    source, split = options.eval_data or str(options.data), options.eval_split
    if options.eval_data is None and split is None:
        return _prepared(task, parts.dev) if parts.dev else None
    place = _place(options, split) if source == options.data else {"split": split}
    with _named(source):
        rows = _kept(task, load_rows(source, limit=options.eval_limit, **place))
        return _prepared(task, sample_rows(rows, options.dev_rows, seed=options.split_seed))


def _test_source(options: TuneOptions, task: Task | None) -> tuple[str, dict[str, Any]] | None:
    """Where the test rows are, unless they are held out of --data."""
    if options.test_data is not None:
        return options.test_data, {}
    if task is not None and is_own_data(task, options) and "test" in task.splits:
        return str(options.data), _place(options, task.splits["test"])
    return None


def _test_rows(parts: Split, options: TuneOptions, task: Task | None) -> Rows | None:
    found = _test_source(options, task)
    if found is None:
        return _prepared(task, parts.test) if parts.test else None
    with _named(found[0]):
        return _prepared(task, sample_rows(_kept(task, load_rows(found[0], **found[1])), options.test_rows))


def _check_counts(parts: dict[str, Rows | None], options: Common, task: Task | None) -> None:
    """Refuse more rows than there are; a task may name more than a part of its data holds."""
    for name, rows in parts.items():
        wanted = getattr(options, f"{name}_rows")
        of_task = getattr(task.rows, name) if task is not None and is_own_data(task, options) else None
        if rows is not None and wanted is not None and wanted > len(rows) and wanted != of_task:
            raise InputError(
                f"--{name}-rows {wanted}: there are {len(rows):,}", hint=f"lower it, or leave --{name}-rows out"
            )


def _say(train: Rows, dev: Rows | None, test: Rows | None, options: TuneOptions) -> None:
    """Say how many rows there are, and where there are fewer than were asked for."""
    told = []
    for rows, name, what in (
        (train, "train_rows", "to tune on"),
        (dev, "dev_rows", "dev"),
        (test, "test_rows", "test"),
    ):
        if rows is not None:
            fewer = f" (of {getattr(options, name):,})" if (getattr(options, name) or 0) > len(rows) else ""
            told.append(f"{len(rows):,}{fewer} {what}")
    if test is not None and options.test_rows == len(test):
        told[-1] += f", drawn as `eval --test-rows {len(test)}` draws them (--limit takes the first ones)"
    print(f"rows: {', '.join(told)}", file=sys.stderr)


def _say_which(count: int, drawn: int, options: Common) -> None:
    """Say which rows `eval` scores, where they are not all: `tune` draws its test rows, and does not take the first."""
    told = [f"the first {count:,}"] if options.limit == count else []
    told += [f"{drawn:,} drawn of {count:,}, as `tune --test-rows {drawn}` draws them"] if drawn < count else []
    if told:
        print(f"rows: {'; '.join(told)}", file=sys.stderr)


@contextlib.contextmanager
def _named(path: str) -> Iterator[None]:
    """Say which file an error is about."""
    try:
        yield
    except ZorewardError as error:
        if path in str(error):
            raise
        raise type(error)(f"{path}: {error}", hint=error.hint) from error
