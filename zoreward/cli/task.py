"""`--task`: defaults for the options of `tune` and `eval`, and what they say about splits. Free of torch."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import fields, replace
from typing import Any, TypeVar

import typer

from zoreward.cli.prepare import kind_for
from zoreward.config import Common, TuneOptions
from zoreward.data import BORDER, MASK, Task, load_task
from zoreward.neighbours.of_typer import source_of
from zoreward.records import InputError, ZorewardError

_Options = TypeVar("_Options", bound=Common)


def with_objective(words: list[str]) -> list[str]:
    """Return the words of a command with the task's objective, where they name a task and no objective.

    `tune` takes what the paper tunes on, `eval` what it reports.

    >>> with_objective(["eval", "--task", "sst2"]), with_objective(["tune", "f1", "--task", "sst2"])
    (['eval', 'accuracy', '--task', 'sst2'], ['tune', 'f1', '--task', 'sst2'])
    """
    if len(words) < 2 or words[0] not in ("tune", "eval") or not words[1].startswith("-"):
        return words
    named = [after for word, after in itertools.pairwise(words) if word == "--task"]
    named += [word.partition("=")[2] for word in words if word.startswith("--task=")]
    if not named:
        return words
    task = load_task(named[0])
    objective = task.train_on or task.objective if words[0] == "tune" else task.objective
    return [words[0], objective, *words[1:]]


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
    given = {one.name for one in fields(options) if _is_given(context, one.name)}
    task = load_task(options.task)
    kind = kind_for(options)
    task = _for_kind(task, kind)
    prompt = _text_alone(task) if kind == "classifier" else _prompt(task, options.bare, given)
    of_task = {**prompt, **_data(task, options)}
    options = replace(options, **{n: value for n, value in of_task.items() if n not in given and value is not None})
    if options.data is None:
        raise InputError(f"the task {task.name!r} names no data", hint="give --data, a file or a Hub dataset")
    return options, task


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


def _is_given(context: typer.Context, name: str) -> bool:
    return source_of(context, name) not in ("", "DEFAULT")


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
    found: dict[str, Any] = {"data": task.data, "data_config": task.data_config, "revision": task.revision}
    if not isinstance(options, TuneOptions):
        split = task.splits.get("test") or task.splits.get("train")
        return {**found, "split": split, "test_rows": task.rows.test}
    found |= {"split": task.splits.get("train"), "test_rows": task.rows.test}
    if options.eval_data is None and options.eval_split is None:
        found["eval_split"] = task.splits.get("dev")
        if options.k_shot is None:
            found["dev_rows"] = task.rows.dev
    if options.k_shot is None:
        found["train_rows"] = task.rows.train
    if options.train_rows is None and options.dev_rows is None:
        found["k_shot"] = task.rows.k_shot
    return found
