"""What we use of Typer without its promise: what it takes over from the Click that it vendors, and its completion."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Any, cast

import typer

# Private: Typer exports one usage error; its base is that of them all, with a `ctx` and `format_message`.
UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__base__)


def source_of(context: typer.Context, name: str) -> str:
    """Return where the value of an option is from: "COMMANDLINE", "DEFAULT_MAP" or "DEFAULT"; "" for another's name.

    Private: the method, and these names.
    """
    source = context.get_parameter_source(name)
    return "" if source is None else source.name


def words_of(context: typer.Context) -> tuple[str, ...]:
    """Return the words of the command line, as they were typed.

    Private: that what `main(obj=…)` was given stands at the root of the contexts.
    """
    return tuple(context.find_root().obj or ())


def print_help(command: Any, names: Sequence[str]) -> bool:
    """Print the help of a command without parsing a line, and return whether there is such a command.

    To convert the value of the help's own flag, Typer 0.29 imports pydantic, a quarter of the time that a help takes.

    Private: the class of contexts, and how one is made.

    Args:
        command: the command line.
        names: of the program, of a command of it, of a command of that.
    """
    context = None
    with ExitStack() as scopes:
        for place, name in enumerate(names):
            command = command if place == 0 else getattr(command, "get_command", lambda *_: None)(context, name)
            if command is None:
                return False
            context = command.context_class(command, info_name=name, parent=context, **command.context_settings)
            scopes.enter_context(context.scope(cleanup=False))
        assert context is not None
        typer.echo(context.get_help(), color=context.color)
    return True


def words_to_complete() -> list[str] | None:
    """Return the whole words of a command line that a shell asks to complete; None where no shell asks.

    Private: the variables in which the scripts of `--install-completion` ask: for all shells but bash Typer's own.
    """
    if not os.environ.get("_ZOREWARD_COMPLETE"):
        return None
    line = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS", "")
    words: list[str] = line.split()
    with suppress(ValueError):  # a quotation that is not closed
        words = shlex.split(line)
    is_bash, ends = "COMP_WORDS" in os.environ, line[-1:].isspace()
    whole = int(os.environ.get("COMP_CWORD") or 0) if is_bash else len(words) if ends else len(words) - 1
    return words[1 : max(1, whole)]
