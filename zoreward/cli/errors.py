"""How errors are told: one line that says what is wrong, one that says what to do."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, Sequence

from zoreward.records import ZorewardError, named, one_line, printable
from zoreward.registry import place_of

# Characters of a line: what a reward raises may hold a whole answer of a server.
_LONGEST = 1000


def report(error: ZorewardError, *, help_at: Sequence[str] = (), code: int = 2) -> int:
    """Print `error: …` and `hint: …` to stderr and return the exit code.

    Args:
        error: what went wrong.
        help_at: the command whose help is pointed to where nothing better is known.
        code: the exit code.
    """
    hint = error.hint or place_of(error.__cause__) or f"`{' '.join(['zoreward', *help_at])} --help` lists what there is"
    print(f"error: {one_line(error, _LONGEST)}", file=sys.stderr)
    print(f"hint: {one_line(hint, _LONGEST)}", file=sys.stderr)
    return code


def unexpected(error: BaseException) -> ZorewardError:
    """Return what is told of an exception that nobody has foreseen: what it says, and where it was raised."""
    return ZorewardError(named(error), hint=f"nobody has foreseen this; {place_of(error) or 'it has no place'}")


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
