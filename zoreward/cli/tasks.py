"""`zoreward tasks`."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer

from zoreward.cli.options import escape
from zoreward.cli.terminal import json_line
from zoreward.data import Task, list_tasks


def show_tasks(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """List the papers' tasks, each for `--task NAME`."""
    tasks = list_tasks()
    if as_json:
        print(json_line({"tasks": [_described(task) for task in tasks]}))
        return 0
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "models", "reports", "", box=box.SIMPLE_HEAD)
    for task in tasks:
        table.add_row(task.name, task.model, task.objective, escape(task.about))
    Console().print(table)
    return 0


def _described(task: Task) -> dict[str, Any]:
    found = dataclasses.asdict(task)
    return {name: value for name, value in found.items() if value not in (None, {}, [])}
