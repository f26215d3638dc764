"""The prompt that a model was tuned with: taken where none is typed, and told where another one is."""

from __future__ import annotations

import json
import os
import shlex
import sys
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import typer

from zoreward.config import Prompting
from zoreward.data import check_hub, parted, without_content
from zoreward.neighbours.of_typer import source_of
from zoreward.records import printable
from zoreward.registry import Objective

_Options = TypeVar("_Options")
# What a prompt is made of, whatever the columns of the rows are called; and what of it where nothing is to be chosen.
_ASKED = ("template", "choices", "answer", "chat", "system_prompt", "shots")
_OF_TEXTS = ("template", "prompt", "chat", "system_prompt", "chat_template_kwargs")
# Each of them takes the place of the other.
_INSTEAD = {"choices": "choice_column", "choice_column": "choices"}


def as_tuned(context: typer.Context, options: _Options, objective: Objective | None = None) -> _Options:
    """Return the options with the prompt that the model was tuned with, as far as none is given; one line says so.

    Where a prompt is given, or a task has one, it stays, and a line says that the model was tuned with another.

    Args:
        context: of the command, which knows what was typed.
        options: of the command, with those of its task.
        objective: what the rows are for. Preferences bring their own prompts, so nothing is done; None: the model
            writes, and answers make no part of its prompt.
    """
    model: str = options.model  # type: ignore[attr-defined]
    compares = objective is not None and objective.compares_with_base
    if compares or (then := _prompting_of(model)) is None:
        return options
    writes = objective is None or objective.needs == "completions"
    known = {option.name for option in fields(options)}  # type: ignore[arg-type]
    names = [one.name for one in fields(Prompting) if one.name in known and (not writes or one.name in _OF_TEXTS)]
    given = {name for name in names if source_of(context, name) not in ("", "DEFAULT")}
    taken: dict[str, Any] = {}
    if getattr(options, "task", None) is None:
        free = [name for name in names if name not in given and _INSTEAD.get(name) not in given]
        taken = {name: value for name in free if (value := getattr(then, name)) != getattr(options, name)}
        options = replace(options, **taken)  # type: ignore[type-var]
    if taken:
        print(printable(f"asked as the model was tuned: {_typed(taken)}"), file=sys.stderr)
    asked = [name for name in _ASKED if name in names]
    if other := [name for name in asked if not _is_same(name, getattr(then, name), getattr(options, name))]:
        typed = _typed({name: getattr(then, name) for name in other}) or "none of the prompt's options"
        print(printable(f"asked otherwise than the model was tuned, which was with {typed}"), file=sys.stderr)
    return options


def _prompting_of(model: str) -> Prompting | None:
    """How rows became prompts when a model was tuned; None where nothing says so."""
    from zoreward.journal.card import PROMPTING_NAME, read_prompting

    if os.path.isdir(model):
        return read_prompting(Path(model, PROMPTING_NAME))
    with suppress(Exception):  # no such model, no such file, no way to the Hub: who loads the model says what it is
        from huggingface_hub import hf_hub_download, try_to_load_from_cache

        source, place = parted(model)
        path = try_to_load_from_cache(source, PROMPTING_NAME, **place)
        if path is None:  # nobody has asked for it yet
            check_hub(f"the model '{model}'")  # else one without a way there would be waited for
            path = hf_hub_download(source, PROMPTING_NAME, **place)
        return read_prompting(path) if isinstance(path, str) else None
    return None


def _is_same(name: str, tuned: Any, asked: Any) -> bool:
    """Tell whether a model sees the same of an option: not what columns are called."""
    if name == "choices":
        return _same_choices(tuned or [], asked or [])
    if name in ("template", "answer"):
        return (tuned and without_content(tuned)) == (asked and without_content(asked))
    return (tuned != "on") == (asked != "on") if name == "chat" else bool(tuned == asked)


def _same_choices(tuned: list[str], asked: list[str]) -> bool:
    """Tell whether answers stand for the same labels, as far as it can be seen.

    Without labels of their own they stand for labels by their places: in another order each is another label's.
    """
    have_labels = [bool(choices) and all("=" in choice for choice in choices) for choices in (tuned, asked)]
    if have_labels[0] != have_labels[1]:
        texts = [sorted(choice.partition("=")[2] or choice for choice in choices) for choices in (tuned, asked)]
        return texts[0] == texts[1]
    return sorted(tuned) == sorted(asked) if have_labels[0] else tuned == asked


def _typed(asked: dict[str, Any]) -> str:
    """Options as they are typed; those that are at their defaults are left out."""
    words: list[str] = []
    for option in fields(Prompting):
        value = asked.get(option.name, option.default)
        if value == option.default:
            continue
        flag = option.metadata.get("flag") or f"--{option.name.replace('_', '-')}"
        for one in value if isinstance(value, list) else [value]:
            words += [flag, json.dumps(one) if isinstance(one, dict) else str(one).replace("\n", "\\n")]
    return shlex.join(words)
