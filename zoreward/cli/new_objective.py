"""`zoreward new-objective`: a package that brings an objective of one's own, with a test."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import typer

from zoreward.cli.flags import command
from zoreward.cli.prepare import check_folder, next_to
from zoreward.cli.printing import Outcome
from zoreward.config import NewObjectiveOptions
from zoreward.records import InputError, StorageError
from zoreward.registry import list_objectives

_PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "zoreward-{name}"
version = "0.1.0"
description = "An objective for zoreward."
requires-python = ">=3.11"
dependencies = ["zoreward"]

[project.optional-dependencies]
test = ["pytest"]

# The key is the objective's name: `zoreward tune {name}` exists as soon as this package is installed.
[project.entry-points."zoreward.objectives"]
{name} = "{module}:{function}"

[tool.hatch.build.targets.wheel]
include = ["{module}.py"]
"""

_OF_COMPLETIONS = """\
from zoreward import objective


@objective("{name}")
def {function}(completions, *, target: int = 100, **columns) -> list[float]:
    \"\"\"Reward completions that are about as long as a target.

    The first line is the command's help. `columns` holds each column of the rows, as a list.

    Args:
        target: characters. A keyword-only parameter is an option: --target.
    \"\"\"
    texts = [text if isinstance(text, str) else text[0]["content"] for text in completions]
    return [-abs(len(text) - target) / target for text in texts]
"""

_OF_CHOICES = """\
from zoreward import objective


@objective("{name}", range=(-1, 1))
def {function}(predictions, references, *, price: float = 1.0, **columns) -> list[float]:
    \"\"\"Right answers, less a price for each wrong one.

    The first line is the command's help. `columns` holds each column of the rows, as a list.

    Args:
        price: of a wrong answer, up to 1. A keyword-only parameter is an option: --price.
    \"\"\"
    return [1.0 if answer == right else -price for answer, right in zip(predictions, references)]
"""

_TEST = """\
from {module} import {function}
from zoreward import get_objective
from zoreward.testing import check_objective


def test_it_keeps_to_the_contract():
    check_objective({function})


def test_what_it_is_worth():
    assert get_objective({function}{option}).score({outputs}) == {score}
"""

_WORTH = {
    "completions": (", target=4", '2, completions=["four", "two"]', "-0.125"),
    "choices": (", price=0.5", "2, predictions=[1, 0], references=[1, 1]", "0.25"),
}


def make_command() -> Callable[..., int]:
    """Return the command that writes a package."""
    return command(_new_objective, NewObjectiveOptions)


def _new_objective(context: typer.Context, options: NewObjectiveOptions) -> Outcome:
    name = options.name
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        suggested = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-0123456789") or "brevity"
        raise InputError(f"{name!r} is no name for an objective", hint=f"zoreward new-objective {suggested}")
    if name in {entry.name for entry in list_objectives()}:
        hint = f"choose another name: zoreward new-objective my-{name}"
        raise InputError(f"there is an objective {name!r} already", hint=hint)
    folder = options.output or f"zoreward-{name}"
    check_folder(folder)
    if os.path.lexists(folder):
        hint = f"give another folder: --output {shlex.quote(str(next_to(Path(folder))))}"
        raise InputError(f"'{folder}' exists already", hint=hint)
    function = name.replace("-", "_")
    option, outputs, score = _WORTH[options.needs]
    words = {"name": name, "module": f"zoreward_{function}", "function": function}
    words |= {"option": option, "outputs": outputs, "score": score}
    source = _OF_COMPLETIONS if options.needs == "completions" else _OF_CHOICES
    files = {"pyproject.toml": _PROJECT, f"{words['module']}.py": source, f"tests/test_{function}.py": _TEST}
    try:
        for path, text in files.items():
            Path(folder, path).parent.mkdir(parents=True, exist_ok=True)
            Path(folder, path).write_text(text.format(**words), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"'{folder}' cannot be written: {error.strerror}", hint="choose another --output") from error
    quoted = shlex.quote(folder)
    commands = [f"pip install -e {quoted}", f"pytest {quoted}", f"zoreward tune {name} -h"]
    return Outcome({"folder": folder, "files": list(files), "next": commands}, "\n".join([f"{folder}:", *commands]))
