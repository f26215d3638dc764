"""The command to copy, where rows need options that were not given: made of the columns and the labels of these rows.

It is never run by itself: a prompt is worth more than many a step, so whoever gets a score has seen it.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from zoreward.cli.prepare import Rows, check_for_model, head_for
from zoreward.config import Common, Prompting
from zoreward.data import MASK, holds_model, label_names, placed
from zoreward.data.choices import refuse_slips
from zoreward.data.columns import column_in, columns_of, listed
from zoreward.data.templates import fields_of
from zoreward.records import RowError, ZorewardError, one_line, printable
from zoreward.registry import Objective

# How columns of labels are called.
_LABELS = ("label", "labels", "class", "category", "target", "topic", "intent", "sentiment")
# What has a meaning in a template. Labels are offered as answers up to this number; and what a hint has room for.
_SYNTAX, _MOST_LABELS, _LONGEST = ".[]|{}!:", 20, 950
_FLAGS = {"template": "--template", "choices": "--choice", "label": "--label"}


@contextlib.contextmanager
def offering(words: Sequence[str], objective: Objective, options: Common, rows: Rows) -> Iterator[None]:
    """Add to an error about options that do not fit rows the command whose options do, if there is one.

    What was given stays where it can. The template, the column of labels and the answers are offered where they are
    missing; of the template columns that do not exist are replaced, and answers that are no labels where labels are
    texts.

    Args:
        words: of the command.
        objective: what the rows are for.
        options: of the command.
        rows: that the error is about.
    """
    try:
        yield
    except ZorewardError as error:
        can_be = objective.needs in ("choices", "likelihood") and not objective.compares_with_base
        can_be = can_be and options.task is None and not options.shots and bool(words)
        can_be = can_be and not isinstance(error, RowError)
        can_be = can_be and not (os.path.isdir(options.model) and not holds_model(options.model))  # which none mends
        if can_be and options.choices is None and options.choice_column is None:
            with placed(rows):
                _refuse_slips(rows, options.label)
        command = _command(words, objective, options, rows) if can_be else None
        if command is None:
            raise
        raise type(error)(f"{error} ({_what_rows_have(rows, options)})", hint=command) from error


def _refuse_slips(rows: Rows, wanted: str) -> None:
    """Refuse labels that would be offered as answers, and are slips."""
    column = _label_column(rows, wanted)
    if column is not None and len(label_names(rows, column)) <= _MOST_LABELS:
        refuse_slips(rows, column)


def _what_rows_have(rows: Rows, options: Common) -> str:
    column = _label_column(rows, options.label)
    labels = label_names(rows, column) if column else []
    shown = f"; {column!r} holds {listed(labels, _MOST_LABELS)}" if 0 < len(labels) <= _MOST_LABELS else ""
    return f"the columns are {listed(columns_of(rows))}{shown}"


def _command(words: Sequence[str], objective: Objective, options: Common, rows: Rows) -> str | None:
    """The command as it was typed, with the fewest options added or replaced that make it fit; None: there is none."""
    offered = _offered(rows, options, _kind(options, rows))
    missing = {name: value for name, value in offered.items() if getattr(options, name) is None}
    for replaced in ((), ("label",), ("choices",), ("label", "choices"), ("template",), tuple(_FLAGS)):
        instead = missing | {name: offered[name] for name in replaced if name in offered}
        instead = {name: value for name, value in instead.items() if value != getattr(options, name)}
        try:
            check_for_model(objective, replace(options, **instead), rows)
        except ZorewardError as error:
            if not error.hint.startswith("--"):
                continue
            added = [*shlex.split(error.hint)]  # the option that mends it, as an objective says
        else:
            added = []
        if not instead and not added:
            return None  # it is something else that does not fit
        kept = _without(words, [_FLAGS[name] for name in instead])
        for name, value in instead.items():
            kept += [word for one in (value if isinstance(value, list) else [value]) for word in (_FLAGS[name], one)]
        command = shlex.join(["zoreward", *(word.replace("\n", "\\n") for word in [*kept, *added])])
        return command if len(command) <= _LONGEST and printable(one_line(command)) == command else None
    return None


def _kind(options: Common, rows: Rows) -> str:
    try:
        head = head_for(options, rows)
    except ZorewardError:  # of the rows, which is to be mended; or of the model, which nothing here mends
        return getattr(options, "head", None) or "causal"
    return "causal" if head is None else head.kind


def _offered(rows: Rows, given: Prompting, kind: str) -> dict[str, Any]:
    """A template, a column of labels and answers that go with the rows, as far as they can be seen."""
    column = _label_column(rows, given.label)
    texts = [f"{{{name}}}" for name in _text_columns(rows, column)]
    offered: dict[str, Any] = {} if column is None else {"label": column}
    if given.template is not None:
        offered["template"] = _mended(given.template, rows, texts)
    elif texts and kind == "classifier":
        offered["template"] = " ".join(texts)
    elif texts and column is not None:
        offered["template"] = "\n".join([*texts, f"{column}:{f' {MASK}' if kind == 'masked' else ''}"])
    labels = label_names(rows, column) if column and kind != "classifier" and given.choice_column is None else []
    are_numbers = all(label.isdecimal() for label in labels)
    says_which = given.choices is not None and (are_numbers or any("=" in choice for choice in given.choices))
    typed = given.choices or []
    if are_numbers and len(typed) == len(labels) > 1 and not any("=" in choice for choice in typed):
        offered["choices"] = [f"{label}={choice}" for label, choice in zip(labels, typed, strict=True)]
    elif 1 < len(labels) <= _MOST_LABELS and given.answer is None and not says_which:
        offered["choices"] = [f"{label}= {label}" if are_numbers else f" {label}" for label in labels]
    return offered


def _mended(template: str, rows: Rows, texts: Sequence[str]) -> str:
    """The template with columns that there are in the place of others, where it can be seen which are meant."""
    try:
        wrong = {column_in(field) for field in fields_of(template, "--template")} - set(columns_of(rows))
    except ZorewardError:
        return template
    of_texts = [text[1:-1] for text in texts]
    for name in wrong:
        # A column that holds no texts is meant only where its name is almost the same: `ticket` is no `text`.
        near = difflib.get_close_matches(name, of_texts, n=1)
        near = near or difflib.get_close_matches(name, columns_of(rows), n=1, cutoff=0.75) or of_texts
        if len(near) != 1:
            return template
        template = template.replace(f"{{{name}", f"{{{near[0]}")
    return template


def _label_column(rows: Rows, wanted: str) -> str | None:
    """The column that was named, if there is one; else the only one that is called like labels."""
    columns = columns_of(rows)
    alike = [name for name in columns if name.strip().lower() in _LABELS]
    return wanted if wanted in columns else alike[0] if len(alike) == 1 else None


def _text_columns(rows: Rows, label: str | None) -> list[str]:
    """The columns that hold texts of several words, in most rows that are looked at; else those that hold any text."""
    some = rows[:100]
    texts = {
        name: [str(row.get(name) or "") for row in some if isinstance(row.get(name), str)]
        for name in columns_of(some)
        if name != label and not set(name) & set(_SYNTAX)
    }
    several = [name for name, own in texts.items() if 2 * sum(len(text.split()) > 2 for text in own) > len(some)]
    any_text = [
        name for name, own in texts.items() if 2 * sum(text.strip(" +-.,0123456789") != "" for text in own) > len(some)
    ]
    return several or any_text


def _without(words: Sequence[str], flags: Sequence[str]) -> list[str]:
    """The words without these flags and their values."""
    kept, is_value = [], False
    for word in words:
        if not is_value and word not in flags and not word.startswith(tuple(f"{flag}=" for flag in flags)):
            kept.append(word)
        is_value = not is_value and word in flags
    return kept
