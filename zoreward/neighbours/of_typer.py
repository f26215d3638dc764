"""What we use of Typer without its promise: what it takes over from the Click that it vendors."""

from __future__ import annotations

from typing import cast

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
