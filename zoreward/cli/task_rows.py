"""The task of `tune` and `eval`, and their rows: loaded, divided, made ready and checked. Free of torch."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import typer

from zoreward.cli.offers import offering
from zoreward.cli.prepare import Rows, check_for_model, check_rows, kind_for, shot_rows_of
from zoreward.cli.saving import keeps_last
from zoreward.config import Common, EvalOptions, TuneOptions
from zoreward.data import (
    BORDER,
    MASK,
    Split,
    Task,
    k_shot_rows,
    load_rows,
    load_task,
    placed,
    sample_rows,
    seen_before,
    split_rows,
)
from zoreward.neighbours.of_typer import source_of
from zoreward.records import InputError, ZorewardError
from zoreward.registry import Objective

_Options = TypeVar("_Options", bound=Common)
# One row in five chooses the best step, up to as many as tell a fall of an eighth from noise, where there are as many
# rows as this. See docs/decisions/0034-from-a-csv.md.
ENOUGH_TO_HOLD_OUT, MOST_HELD_OUT = 200, 64


def with_task(context: typer.Context, options: _Options) -> tuple[_Options, Task | None]:
    """Return the options, with what the task says where they are not given, and the task.

    Of a task that has one for masked models too, `NAME-masked`, a masked model gets that. A classifier reads the
    columns alone; its classes are the labels.

    Raises:
        ZorewardError: there is no such task, it is for other models, or there are no rows.
    """
    if options.task is None:
        if options.bare:
            raise InputError("--bare is for a task", hint="--task sst2 --bare; or write your own --template")
        if options.data is None:
            raise InputError("there are no rows", hint="give --data, a file or a Hub dataset, or --task")
        return options, None
    given = {option.name for option in fields(options) if source_of(context, option.name) not in ("", "DEFAULT")}
    task, kind = _task_and_kind(options)
    prompt = _text_alone(task) if kind == "classifier" else _prompt(task, options.bare, given)
    of_task = {**prompt, **_data(task, options)}
    options = replace(options, **{n: value for n, value in of_task.items() if n not in given and value is not None})
    if options.data is None:
        raise InputError(f"the task {task.name!r} names no data", hint="give --data, a file or a Hub dataset")
    return options, task


def task_of(options: Common) -> Task | None:
    """Return the task of options in which all that it says stands already; None without one.

    Raises:
        ZorewardError: there is no such task, or it is for other models.
    """
    return None if options.task is None else _task_and_kind(options)[0]


def _task_and_kind(options: Common) -> tuple[Task, str]:
    task = load_task(str(options.task))
    kind = kind_for(options)
    return _for_kind(task, kind), kind


def options_for(source: str, task: Task | None) -> dict[str, Any]:
    """Return what the task says about the options of an objective: nothing, where it is not the task's."""
    from zoreward.bench.plan import options_of_task

    return options_of_task(task) if task is not None and task.objective == source else {}


def is_own_data(task: Task | None, options: Common) -> bool:
    """Return whether --data is the task's own, so that its other splits and its numbers of rows count."""
    return task is not None and options.data == task.data


def _for_kind(task: Task, kind: str) -> Task:
    """The task, or that of the same rows for this kind of model."""
    if kind == "masked" and task.model == "causal":
        try:
            return load_task(f"{task.name}-masked")
        except ZorewardError:
            hint = "`zoreward tasks` lists those for masked models"
            raise InputError(
                f"the task {task.name!r} is for causal models, and this one is masked", hint=hint
            ) from None
    if kind not in ("masked", "classifier"):  # of which the latter reads no mask
        refuse_masked(task)
    return task


def refuse_masked(task: Task) -> None:
    """Raise if a task is for masked models.

    Raises:
        InputError: it is.
    """
    if task.model == "masked":
        hint = "`zoreward tasks` lists those for causal models"
        with contextlib.suppress(ZorewardError):
            other = load_task(task.name.removesuffix("-masked"))
            hint = f"for causal models there is {other.name}" if other.model == "causal" else hint
        raise InputError(f"the task {task.name!r} is for masked models", hint=hint)


def _text_alone(task: Task) -> dict[str, Any]:
    """What a classifier is given of a task: the columns, and the labels."""
    if task.bare is None or task.choices is None:
        hint = "take one with choices for all rows, such as sst2, rte or boolq; or write --template and --label"
        raise InputError(f"the task {task.name!r} is none for a classifier", hint=hint)
    columns = [column.strip() for column in task.bare.replace(MASK, "\n").split("\n") if column.strip()]
    return {"template": (f" {BORDER} " if len(columns) == 2 else " ").join(columns), "label": task.label}


def _prompt(task: Task, bare: bool, given: set[str]) -> dict[str, Any]:
    if bare and task.bare is None:
        raise InputError(f"the task {task.name!r} has no bare prompt", hint="write bare: '{column}' into its file")
    said = vars(task.prompting) | vars(task.writing) | ({"template": task.bare} if bare else {})
    replaced = {"choices": "choice_column", "choice_column": "choices"}  # by the other one, where that is given
    return {name: value for name, value in said.items() if replaced.get(name) not in given}


def _data(task: Task, options: Common) -> dict[str, Any]:
    """What the task says about rows; nothing where others are given."""
    if options.data not in (None, task.data):
        return {}
    of_task: dict[str, Any] = {"data": task.data, "data_config": task.data_config, "revision": task.revision}
    if not isinstance(options, TuneOptions):
        split = task.splits.get("test") or task.splits.get("train")
        return {**of_task, "split": split, "test_rows": task.rows.test}
    of_task |= {"split": task.splits.get("train"), "test_rows": task.rows.test}
    if options.eval_data is None and options.eval_split is None:
        of_task["eval_split"] = task.splits.get("dev")
        if options.k_shot is None:
            of_task["dev_rows"] = task.rows.dev
    if options.k_shot is None:
        of_task["train_rows"] = task.rows.train
    if options.train_rows is None and options.dev_rows is None:
        of_task["k_shot"] = task.rows.k_shot
    return of_task


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


def tuning_rows(
    objective: Objective, at_end: Objective, options: TuneOptions, task: Task | None, words: Sequence[str] = ()
) -> TuningRows:
    """Return the rows of a run, once the prompt's options are known to fit them.

    Args:
        objective: what is tuned on, and what the dev rows are scored by.
        at_end: what the test rows are scored by.
        options: of the command.
        task: the task, if there is one.
        words: of the command, as they were typed.

    Raises:
        ZorewardError: rows cannot be read or divided, or a template, a label or a choice does not fit.
    """
    shots = shot_rows_of(objective, options, task)
    pool = _pool(options, task)
    if held := _to_hold_out(len(pool) - (options.test_rows or 0), options, task):
        options = replace(options, dev_rows=held)
    parts = _divided(pool, options, task)
    train = _prepared(task, parts.train)
    with offering(words, objective, options, train):
        head = check_for_model(objective, options, train, shots)
    dev, test = _dev_rows(parts, options, task), _test_rows(parts, options, task)
    if options.metric and not dev:
        raise InputError(
            "--metric has no dev rows to report on", hint="give --dev-rows 64 or --eval-data, or leave it out"
        )
    for held_out, source, scorer in ((dev, options.eval_data, objective), (test, options.test_data, at_end)):
        if held_out is not None:
            with _named(source or str(options.data)):
                check_rows(scorer, options, held_out, shots or train, head)
    _check_counts({"train": train, "dev": dev, "test": test}, options, task)
    if task is not None or parts.dev or test is not None:
        why = "held out of --data, as no others choose; --dev-rows says how many, --keep last tunes on all"
        _say(train, dev, test, options, why if held else "")
    for line in seen_before(train, dev, test):
        print(line, file=sys.stderr)
    return TuningRows(train, dev, shots, test)


def scored_rows(
    objective: Objective, options: EvalOptions, task: Task | None, words: Sequence[str] = ()
) -> tuple[Rows, Rows | None]:
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
    with offering(words, objective, options, rows):
        check_for_model(objective, options, rows, shots)
    return rows, shots


def has_dev_rows(options: TuneOptions) -> bool:
    """Return whether the options ask for dev rows."""
    return any((options.eval_data, options.eval_split, options.dev_rows, options.k_shot))


def _to_hold_out(count: int, options: TuneOptions, task: Task | None) -> int:
    """How many of so many rows choose the best step where nobody says which do; 0: none.

    A run without dev rows cannot tell that it gets worse. Of few rows none can be spared; a task says what it holds
    out; and who keeps the last step chooses none.
    """
    said = has_dev_rows(options) or options.train_rows is not None or options.keep == "last" or task is not None
    said = said or (options.resume and keeps_last(Path(options.output)))  # a run goes on with the rows it began with
    return 0 if said or count < ENOUGH_TO_HOLD_OUT else min(MOST_HELD_OUT, count // 5)


def _pool(options: Common, task: Task | None, split: str | None = None) -> Rows:
    """The rows of --data: of a split of the task's, or those that are asked for."""
    limit = None if split else options.limit
    return _kept(task, load_rows(str(options.data), limit=limit, **_place(options, split or options.split)))


def _place(options: Common, split: str | None) -> dict[str, Any]:
    return {"config": options.data_config, "revision": options.revision, "split": split}


def _kept(task: Task | None, rows: Rows) -> Rows:
    return rows if task is None else task.kept(rows)


def _prepared(task: Task | None, rows: Rows) -> Rows:
    if task is None:
        return rows
    with placed(rows):
        return task.prepared(rows)


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
    with placed(held.train):
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
    place = _test_source(options, task)
    if place is None:
        return _prepared(task, parts.test) if parts.test else None
    with _named(place[0]):
        return _prepared(task, sample_rows(_kept(task, load_rows(place[0], **place[1])), options.test_rows))


def _check_counts(parts: dict[str, Rows | None], options: Common, task: Task | None) -> None:
    """Refuse more rows than there are; a task may name more than a part of its data holds."""
    for name, rows in parts.items():
        wanted = getattr(options, f"{name}_rows")
        of_task = getattr(task.rows, name) if task is not None and is_own_data(task, options) else None
        if rows is not None and wanted is not None and wanted > len(rows) and wanted != of_task:
            raise InputError(
                f"--{name}-rows {wanted}: there are {len(rows):,}", hint=f"lower it, or leave --{name}-rows out"
            )


def _say(train: Rows, dev: Rows | None, test: Rows | None, options: TuneOptions, why: str) -> None:
    """Say how many rows there are, where there are fewer than were asked for, and why some are held out."""
    counts = []
    for rows, name, what in (
        (train, "train_rows", "to tune on"),
        (dev, "dev_rows", "dev"),
        (test, "test_rows", "test"),
    ):
        if rows is not None:
            fewer = f" (of {getattr(options, name):,})" if (getattr(options, name) or 0) > len(rows) else ""
            counts.append(f"{len(rows):,}{fewer} {what}")
    if test is not None and options.test_rows == len(test):
        counts[-1] += f", drawn as `eval --test-rows {len(test)}` draws them (--limit takes the first ones)"
    print(f"rows: {', '.join(counts)}{f' ({why})' if why else ''}", file=sys.stderr)


def _say_which(count: int, drawn: int, options: Common) -> None:
    """Say which rows `eval` scores, where they are not all: `tune` draws its test rows, and does not take the first."""
    parts = [f"the first {count:,}"] if options.limit == count else []
    parts += [f"{drawn:,} drawn of {count:,}, as `tune --test-rows {drawn}` draws them"] if drawn < count else []
    if parts:
        print(f"rows: {'; '.join(parts)}", file=sys.stderr)


@contextlib.contextmanager
def _named(path: str) -> Iterator[None]:
    """Say which file an error is about."""
    try:
        yield
    except ZorewardError as error:
        if path in str(error):
            raise
        raise type(error)(f"{path}: {error}", hint=error.hint) from error
