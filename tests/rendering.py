"""`zoreward.data`'s functions about prompts, with the options of `Prompting` as arguments."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from zoreward import data
from zoreward.config import Prompting
from zoreward.records import Example

_NAMES = {one.name for one in fields(Prompting)}


def _parted(given: dict[str, Any]) -> tuple[Prompting, dict[str, Any]]:
    prompting = Prompting(**{name: value for name, value in given.items() if name in _NAMES})
    return prompting, {name: value for name, value in given.items() if name not in _NAMES}


def render(rows: Any, tokenizer: Any, **given: Any) -> list[Example]:
    prompting, others = _parted(given)
    return data.render(rows, tokenizer, prompting, **others)


def render_prompts(rows: Any, tokenizer: Any, **given: Any) -> list[Example]:
    prompting, others = _parted(given)
    return data.render_prompts(rows, tokenizer, prompting, **others)


def check_columns(rows: Any, **given: Any) -> None:
    prompting, others = _parted(given)
    data.check_columns(rows, prompting, **others)


def check_prompts(rows: Any, **given: Any) -> None:
    data.check_prompts(rows, Prompting(**given))
