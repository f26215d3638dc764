"""`zoreward objectives`, `zoreward tasks` and `zoreward doctor`: what there is, here and on this machine."""

from __future__ import annotations

import dataclasses
import math
import platform
from typing import Annotated, Any

import typer

from zoreward import __version__
from zoreward.cli.flags import escape
from zoreward.cli.printing import json_line, show_table
from zoreward.data import Task, list_tasks
from zoreward.neighbours.releases import neighbours, newer_than_tested
from zoreward.records import ZorewardError, one_line, printable
from zoreward.registry import Entry, Objective, describe_objective, list_objectives

_SHIPPED_BY = "zoreward"
# What a release may be that is not only newer than the newest that was tested.
_PROBLEMS = ("missing", "too old")


def add_objectives(group: typer.Typer) -> None:
    """Give a group one command for each objective, for its help only. Objectives of strangers are not loaded."""
    for entry in list_objectives():
        objective = _shipped(entry)
        text = objective.help if isinstance(objective, Objective) else objective or f"from {entry.distribution}"
        group.command(printable(entry.name), help=escape(text))(_listed)


def show_objectives(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """List the objectives, and where each comes from."""
    rows = [_row(entry) for entry in list_objectives()]
    if as_json:
        print(json_line({"objectives": rows}))
        return 0
    cells = []
    for row in rows:
        low, high = row["range"] or ("", "")
        ends = f"{'−∞' if low is None else low} to {'∞' if high is None else high}" if row["range"] else ""
        cells.append((row["name"], row["needs"] or "?", ends, row["distribution"], row["help"]))
    show_table(("name", "needs", "range", "from", ""), cells)
    return 0


def _row(entry: Entry) -> dict[str, Any]:
    row = {"name": entry.name, "needs": None, "range": None, "distribution": entry.distribution}
    objective = _shipped(entry)
    if not isinstance(objective, Objective):
        return {**row, "help": objective or f"loaded when used: zoreward tune {entry.name} --help"}
    ends = objective.range and tuple(end if math.isfinite(end) else None for end in objective.range)  # JSON's numbers
    return {**row, "needs": objective.needs, "range": ends, "help": objective.help}


def _shipped(entry: Entry) -> Objective | str:
    """The objective if zoreward ships it, why it cannot be loaded, or "" for one of a stranger's."""
    if entry.distribution != _SHIPPED_BY:
        return ""  # loading it may take long, or fail
    try:
        return describe_objective(entry.name)
    except ZorewardError as error:
        return one_line(str(error))


def _listed() -> None:
    pass


def show_tasks(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """List the papers' tasks, each for `--task NAME`."""
    tasks = list_tasks()
    if as_json:
        print(json_line({"tasks": [_described(task) for task in tasks]}))
        return 0
    rows = [(task.name, task.model, task.objective, task.about) for task in tasks]
    show_table(("name", "models", "reports", ""), rows)
    return 0


def _described(task: Task) -> dict[str, Any]:
    fields = dataclasses.asdict(task)
    return {name: value for name, value in fields.items() if value not in (None, {}, [])}


def show_health() -> int:
    """Say which libraries, which GPUs and how much memory zoreward finds here, and what does not fit."""
    print(f"zoreward {__version__} · Python {platform.python_version()} · {platform.system()} {platform.machine()}")
    libraries = list(neighbours())
    width = max(len(library.name) for library in libraries)
    for library in libraries:
        taken = f"{library.floor} to {library.tested}" if library.floor else f"up to {library.tested}"
        print(f"  {library.name:<{width}}  {library.installed or '-':<14} {taken:<20} {library.problem}".rstrip())
    for line in _devices():
        print(line)
    wrong = [f"{library.name} is {library.problem}" for library in libraries if library.problem in _PROBLEMS]
    if wrong:
        print(f"{', '.join(wrong)}: pip install --upgrade zoreward")
    if line := newer_than_tested():
        print(f"{line}; if something fails, try those first")
    return 1 if wrong else 0


def _devices() -> list[str]:
    """What there is to compute with; a torch that cannot be imported is a line too."""
    try:
        import torch
        from psutil import virtual_memory
    except Exception as error:  # whatever a broken installation raises
        return [f"torch cannot be imported: {type(error).__name__}: {error}"]
    memory = virtual_memory()
    lines = [f"memory: {memory.available / 1e9:.3g} of {memory.total / 1e9:.3g} GB free"]
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        lines.append(f"GPU {index}: {name}, {free / 1e9:.3g} of {total / 1e9:.3g} GB free")
    if len(lines) == 1:
        built = torch.version.cuda or torch.version.hip
        lines.append("GPU: none" + ("" if built else ", and this torch is built without CUDA"))
    return lines
