"""`zoreward objectives`, and the list of objectives in the help of a command."""

from __future__ import annotations

import math
from typing import Annotated, Any

import typer

from zoreward.cli.options import escape
from zoreward.cli.terminal import json_line
from zoreward.records import ZorewardError, one_line, printable
from zoreward.registry import Entry, Objective, describe_objective, list_objectives

_SHIPPED_BY = "zoreward"


def add_objectives(group: typer.Typer) -> None:
    """Give a group one command for each objective, for its help only. Objectives of strangers are not loaded."""
    for entry in list_objectives():
        found = _shipped(entry)
        text = found.help if isinstance(found, Objective) else found or f"from {entry.distribution}"
        group.command(printable(entry.name), help=escape(text))(_listed)


def show_objectives(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """List the objectives, and where each comes from."""
    rows = [_row(entry) for entry in list_objectives()]
    if as_json:
        print(json_line({"objectives": rows}))
        return 0
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "needs", "range", "from", "", box=box.SIMPLE_HEAD)
    for row in rows:
        low, high = row["range"] or ("", "")
        ends = f"{'−∞' if low is None else low} to {'∞' if high is None else high}" if row["range"] else ""
        cells = (row["name"], row["needs"] or "?", ends, row["distribution"], row["help"])
        table.add_row(*map(escape, cells))
    Console().print(table)
    return 0


def _row(entry: Entry) -> dict[str, Any]:
    needs: str | None
    found = _shipped(entry)
    ends: tuple[float | None, ...] | None = None
    if isinstance(found, Objective):
        needs, text = found.needs, found.help
        # JSON knows no infinity.
        ends = found.range and tuple(end if math.isfinite(end) else None for end in found.range)
    else:
        needs, text = None, found or f"loaded when used: zoreward tune {entry.name} --help"
    return {"name": entry.name, "needs": needs, "range": ends, "distribution": entry.distribution, "help": text}


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
