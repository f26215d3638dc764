"""The rows that `tune` and `eval` work on: loaded, divided, made ready and checked. Free of torch."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from zoreward.cli.options import PROMPT_FIELDS
from zoreward.cli.prepare import Rows, check_rows, head_for, shot_rows_of
from zoreward.cli.task import is_own_data
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


def tuning_rows(objective: Objective, at_end: Objective, values: dict[str, Any], task: Task | None) -> TuningRows:
    """Return the rows of a run, once the prompt's options are known to fit them.

    Args:
        objective: what is tuned on, and what the dev rows are scored by.
        at_end: what the test rows are scored by.
        values: the options.
        task: the task, if there is one.

    Raises:
        ZorewardError: rows cannot be read or divided, or a template, a label or a choice does not fit.
    """
    prompt = {name: values[name] for name in PROMPT_FIELDS}
    shots = shot_rows_of(objective, prompt, values, task)
    pool = _kept(task, load_rows(values["data"], limit=values["limit"], **_place(values, values["split"])))
    parts = _divided(pool, values, task)
    train = _prepared(task, parts.train)
    head = head_for(values, train) if objective.needs == "choices" else None
    check_rows(objective, prompt, train, shots, head)
    dev, test = _dev_rows(parts, values, task), _test_rows(parts, values, task)
    for found, source, scorer in ((dev, values["eval_data"], objective), (test, values["test_data"], at_end)):
        if found is not None:
            with _named(source or values["data"]):
                check_rows(scorer, prompt, found, shots or train, head)
    _check_counts({"train": train, "dev": dev, "test": test}, values, task)
    if task is not None or parts.dev or test is not None:
        _say(train, dev, test, values)
    return TuningRows(train, dev, shots, test)


def scored_rows(
    objective: Objective, prompt: dict[str, Any], values: dict[str, Any], task: Task | None
) -> tuple[Rows, Rows | None]:
    """Return the rows that `eval` scores, and those for demonstrations; None: the rows themselves.

    With a task's own data, demonstrations come from the rows that one would tune on.
    """
    shots = shot_rows_of(objective, prompt, values, task)
    rows = _kept(task, load_rows(values["data"], limit=values["limit"], **_place(values, values["split"])))
    drawn = sample_rows(rows, values["test_rows"])
    _say_which(len(rows), len(drawn), values)
    rows = _prepared(task, drawn)
    _check_counts({"test": rows}, values, task)
    if task is not None and values["shots"] and shots is None and is_own_data(task, values) and "train" in task.splits:
        pool = _kept(task, load_rows(values["data"], **_place(values, task.splits["train"])))
        train, dev = task.rows.train, 0 if "dev" in task.splits else task.rows.dev or 0
        shots = _prepared(task, split_rows(pool, train=train, dev=dev, seed=values["split_seed"]).train)
    head = head_for(values, rows) if objective.needs == "choices" else None
    check_rows(objective, prompt, rows, shots, head)
    return rows, shots


def has_dev_rows(values: dict[str, Any]) -> bool:
    """Return whether the options ask for dev rows."""
    return any(values[name] for name in ("eval_data", "eval_split", "dev_rows", "k_shot"))


def _place(values: dict[str, Any], split: str | None) -> dict[str, Any]:
    return {"config": values["data_config"], "revision": values["revision"], "split": split}


def _kept(task: Task | None, rows: Rows) -> Rows:
    return rows if task is None else task.kept(rows)


def _prepared(task: Task | None, rows: Rows) -> Rows:
    return rows if task is None else task.prepared(rows)


def _divided(pool: Rows, values: dict[str, Any], task: Task | None) -> Split:
    """The rows of --data: to tune on, and those that are held out of them."""
    elsewhere = values["eval_data"] is not None or values["eval_split"] is not None
    dev = 0 if elsewhere else values["dev_rows"] or 0
    test = 0 if _test_source(values, task) else values["test_rows"] or 0
    if values["k_shot"] is None:
        return split_rows(pool, train=values["train_rows"], dev=dev, test=test, seed=values["split_seed"])
    for name in ("train_rows", "dev_rows"):
        if values[name] is not None:
            flag = f"--{name.replace('_', '-')}"
            raise InputError(f"--k-shot and {flag} say two things about the same rows", hint="give one of them")
    held = split_rows(pool, test=test)
    parts = k_shot_rows(held.train, values["label"], values["k_shot"], seed=values["split_seed"])
    return Split(parts.train, [] if elsewhere else parts.dev, held.test)


def _dev_rows(parts: Split, values: dict[str, Any], task: Task | None) -> Rows | None:
    source, split = values["eval_data"] or values["data"], values["eval_split"]
    if values["eval_data"] is None and split is None:
        return _prepared(task, parts.dev) if parts.dev else None
    place = _place(values, split) if source == values["data"] else {"split": split}
    with _named(source):
        rows = _kept(task, load_rows(source, limit=values["eval_limit"], **place))
        return _prepared(task, sample_rows(rows, values["dev_rows"], seed=values["split_seed"]))


def _test_source(values: dict[str, Any], task: Task | None) -> tuple[str, dict[str, Any]] | None:
    """Where the test rows are, unless they are held out of --data."""
    if values["test_data"] is not None:
        return values["test_data"], {}
    if task is not None and is_own_data(task, values) and "test" in task.splits:
        return values["data"], _place(values, task.splits["test"])
    return None


def _test_rows(parts: Split, values: dict[str, Any], task: Task | None) -> Rows | None:
    found = _test_source(values, task)
    if found is None:
        return _prepared(task, parts.test) if parts.test else None
    with _named(found[0]):
        return _prepared(task, sample_rows(_kept(task, load_rows(found[0], **found[1])), values["test_rows"]))


def _check_counts(parts: dict[str, Rows | None], values: dict[str, Any], task: Task | None) -> None:
    """Refuse more rows than there are; a task may name more than a part of its data holds."""
    for name, rows in parts.items():
        wanted = values[f"{name}_rows"]
        of_task = getattr(task.rows, name) if task is not None and is_own_data(task, values) else None
        if rows is not None and wanted is not None and wanted > len(rows) and wanted != of_task:
            raise InputError(
                f"--{name}-rows {wanted}: there are {len(rows):,}", hint=f"lower it, or leave --{name}-rows out"
            )


def _say(train: Rows, dev: Rows | None, test: Rows | None, values: dict[str, Any]) -> None:
    """Say how many rows there are, and where there are fewer than were asked for."""
    told = []
    for rows, name, what in (
        (train, "train_rows", "to tune on"),
        (dev, "dev_rows", "dev"),
        (test, "test_rows", "test"),
    ):
        if rows is not None:
            fewer = f" (of {values[name]:,})" if (values[name] or 0) > len(rows) else ""
            told.append(f"{len(rows):,}{fewer} {what}")
    if test is not None and values["test_rows"] == len(test):
        told[-1] += f", drawn as `eval --test-rows {len(test)}` draws them (--limit takes the first ones)"
    print(f"rows: {', '.join(told)}", file=sys.stderr)


def _say_which(count: int, drawn: int, values: dict[str, Any]) -> None:
    """Say which rows `eval` scores, where they are not all: `tune` draws its test rows, and does not take the first."""
    told = [f"the first {count:,}"] if values["limit"] == count else []
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
