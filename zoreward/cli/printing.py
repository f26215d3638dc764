"""What a command prints: results as JSON or as a table; of an error, what is wrong and what to do, a line each."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zoreward.neighbours.of_launchers import launch_of
from zoreward.records import ZorewardError, named, one_line, printable
from zoreward.registry import place_of

if TYPE_CHECKING:
    from rich.console import Console

# Characters of a line: what a reward raises may hold a whole answer of a server.
_LONGEST = 1000


def report(error: ZorewardError, *, help_at: Sequence[str] = (), code: int = 2) -> int:
    """Print `error: …` and `hint: …` to stderr and return the exit code.

    Args:
        error: what went wrong.
        help_at: the command whose help is pointed to where nothing better is known.
        code: the exit code.
    """
    launch = launch_of()
    if launch is not None and launch.rank:  # rank 0 tells the rest, unless this rank alone has met with it
        print(f"rank {launch.rank}: error: {one_line(error, _LONGEST)}", file=sys.__stderr__)
        return code
    hint = error.hint or place_of(error.__cause__) or f"`{' '.join(['zoreward', *help_at])} --help` lists what there is"
    print(f"error: {one_line(error, _LONGEST)}", file=sys.stderr)
    print(f"hint: {one_line(hint, _LONGEST)}", file=sys.stderr)
    return code


def report_failure(error: BaseException, go_on: str) -> int:
    """Print what made a run fail and how to go on with it, and return the exit code."""
    report(error if isinstance(error, ZorewardError) else ZorewardError(named(error), hint=place_of(error)), code=1)
    if is_first():
        print(printable(go_on), file=sys.stderr)
    return 1


def is_first() -> bool:
    """Return whether this process tells the user, and writes: the only one, or rank 0 of a launch."""
    launch = launch_of()
    return launch is None or launch.rank == 0


@contextlib.contextmanager
def nothing_printed() -> Iterator[None]:
    """Keep what is printed, and what Python warns of, off the terminal: another rank tells it."""
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def unexpected(error: BaseException) -> ZorewardError:
    """Return the error for an exception that nobody has foreseen: what it says, and where it was raised."""
    return ZorewardError(named(error), hint=f"nobody has foreseen this; {place_of(error) or 'it has no place'}")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command has to say in the end, on stdout.

    Args:
        data: with --json, one object.
        show: without, a text; or what prints one.
        code: the exit code.
    """

    data: dict[str, Any]
    show: str | Callable[[], None]
    code: int = 0

    def print(self, *, as_json: bool) -> None:
        """Print it."""
        if as_json:
            print(json_line(self.data))
        elif isinstance(self.show, str):
            print(printable(self.show))
        else:
            self.show()


def show_table(
    heads: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    console: Console | None = None,
    title: str | None = None,
    is_last_bold: bool = False,
) -> None:
    """Print a table; no cell is taken for markup, and a terminal obeys none.

    A table of one row that is wider than the screen stands on end: a line for each column.

    Args:
        heads: of the columns.
        rows: the cells of each.
        console: where; by default stdout.
        title: above the table.
        is_last_bold: whether the last row stands out.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    console, rows = console or Console(), [list(row) for row in rows]
    if len(rows) == 1:
        widths = (3 + max(len(printable(str(text))) for text in column) for column in zip(heads, rows[0], strict=True))
        if 1 + sum(widths) > console.width:
            [row] = rows
            heads, rows = ("", ""), [list(pair) for pair in zip(heads, row, strict=True)]
    columns = (Column(Text(printable(head))) for head in heads)
    table = Table(*columns, box=box.SIMPLE_HEAD, title=title, show_header=any(heads))
    for row in rows:
        table.add_row(*(Text(printable(str(cell))) for cell in row))
    if is_last_bold:
        table.rows[-1].style = "bold"
    console.print(table)


@contextlib.contextmanager
def printable_warnings() -> Iterator[None]:
    """Print what zoreward and transformers log as a terminal may see it, each in one line."""
    ours, theirs = logging.getLogger("zoreward"), logging.getLogger("transformers")
    printed = _Printed(logging.WARNING)
    ours.addHandler(printed)
    filtered = list(theirs.handlers)
    for handler in filtered:
        handler.addFilter(_made_printable)
    try:
        yield
    finally:
        ours.removeHandler(printed)
        for handler in filtered:
            handler.removeFilter(_made_printable)


class _Printed(logging.Handler):
    """Prints to what stderr is at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        print(one_line(record.getMessage(), _LONGEST), file=sys.stderr)


def _made_printable(record: logging.LogRecord) -> bool:
    record.msg, record.args = printable(record.getMessage()), ()
    return True


def json_line(value: Any) -> str:
    r"""Return a value as JSON in one line, which no terminal obeys. A number that is not finite is null: JSON has none.

    >>> json_line({"score": float("nan"), "rows": 2, "name": "\x9b1m"})
    '{"score": null, "rows": 2, "name": "\\u009b1m"}'
    """
    text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, default=str)
    return "".join(character if printable(character) == character else f"\\u{ord(character):04x}" for character in text)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
