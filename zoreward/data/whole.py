"""Rows for models that read a text as a whole: those that fill a mask, and those that name a class. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zoreward.config import Prompting, part_of
from zoreward.data.columns import columns_hint, columns_of
from zoreward.data.texts import Text, texts_of
from zoreward.data.tokens import MASK
from zoreward.records import InputError


def whole_texts(
    rows: list[dict[str, Any]], needs: str, prompting: Prompting, kind: str, classes: Sequence[str]
) -> list[Text]:
    """Every row as text for a model of this kind.

    A masked model reads a template with one `[MASK]`. A classifier reads a template, or the column `prompt`; its
    candidates are the choices, or without any its classes.

    Args:
        rows: at least one.
        needs: what the objective needs; it must be `choices`.
        prompting: how a row becomes a text; without demonstrations. A classifier reads the column `prompt` where there
            is no template.
        kind: `masked` or `classifier`.
        classes: names of the classifier's classes, in the order of its outputs.

    Raises:
        InputError, UnknownNameError: an option is missing, makes no sense for such a model, or does not fit the rows.
    """
    name = f"a {kind} model" if kind == "masked" else "a classifier"
    if needs != "choices":
        hint = "take one of choices, such as accuracy or neg-cross-entropy"
        raise InputError(f"{name} gives no {needs}, which the objective needs", hint=hint)
    if prompting.shots:
        raise InputError(f"{name} takes no demonstrations", hint="leave --shots out")
    if kind == "masked":
        return _texts_with_mask(rows, needs, prompting)
    if prompting.choice_column is not None:
        raise InputError("a classifier has the same classes for all rows", hint="give --choice, or only --label")
    if prompting.template is None:
        columns = columns_of(row for row in rows if isinstance(row, dict))
        if prompting.prompt not in columns:
            near = columns_hint(prompting.prompt, columns)
            hint = f"give --template '{{sentence}}' or --prompt, with your column; {near}"
            raise InputError("there is no text to classify", hint=hint)
        prompting = part_of(Prompting, prompting, template=f"{{{prompting.prompt}}}")
    if MASK in (prompting.template or ""):
        raise InputError(
            f"the template {prompting.template!r} has a mask, and a classifier fills none", hint="leave it out"
        )
    return texts_of(rows, needs, prompting, classes)


def refuse_mask(template: str | None, name: str) -> None:
    """Refuse a template with a mask for a model that fills none.

    Raises:
        InputError: it has one.
    """
    if MASK in (template or ""):
        raise InputError(f"the template {template!r} has a mask, and {name} fills none", hint=f"leave {MASK} out")


def _texts_with_mask(rows: list[dict[str, Any]], needs: str, prompting: Prompting) -> list[Text]:
    if prompting.template is not None and (count := prompting.template.count(MASK)) != 1:
        found = f"{count} masks" if count else "no mask"
        hint = f"write {MASK} once, where the answer stands: '{{sentence}} It was {MASK} .'"
        raise InputError(f"the template {prompting.template!r} has {found}, and a masked model fills one", hint=hint)
    return texts_of(rows, needs, prompting)
