"""How errors are told: one line that says what is wrong, one that says what to do."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import cast

import typer

from zoreward.records import ZorewardError
from zoreward.registry import place_of, printable

# Characters of an error or a hint: a list of names may be long.
_LONGEST = 4000

# The one usage error that Typer exports; its base is that of them all.
UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__base__)


def report(error: ZorewardError, *, help_at: Sequence[str] = (), code: int = 2) -> int:
    """Print `error: …` and `hint: …` to stderr and return the exit code.

    Args:
        error: what went wrong.
        help_at: the command whose help is pointed to where nothing better is known.
        code: the exit code.
    """
    hint = error.hint or place_of(error.__cause__) or f"`{' '.join(['zoreward', *help_at])} --help` lists what there is"
    print(f"error: {printable(error, _LONGEST)}", file=sys.stderr)
    print(f"hint: {printable(hint, _LONGEST)}", file=sys.stderr)
    return code


def one_line(text: str) -> str:
    r"""Join the lines of a text.

    >>> one_line("first\n  second  third\n")
    'first second  third'
    """
    return " ".join(line.strip() for line in text.splitlines() if line.strip())
