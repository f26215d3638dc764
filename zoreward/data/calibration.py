"""Prompts without content: what a model makes of the answers before it has read the row. Free of torch."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import TYPE_CHECKING

from zoreward.data.templates import fields_of, fill
from zoreward.data.texts import Text
from zoreward.data.tokens import tokens_of
from zoreward.records import Example, InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NOTHING = "N/A"


def check_calibration(name: str, chooses: bool, template: str | None) -> None:
    """Raise where choices cannot be scored against a prompt without content.

    Args:
        name: of the objective.
        chooses: whether it compares the answers of a row by the model alone.
        template: the prompt.

    Raises:
        InputError: it does not, or there is no template.
    """
    if not chooses:
        hint = "calibrate accuracy, f1, mcc and others that need choices"
        raise InputError(f"{name!r} does not choose between answers, so there is nothing to calibrate", hint=hint)
    if template is None:
        raise InputError("there is no template to take the content out of", hint="give --template, or --task")


def without_content(template: str) -> str:
    """The template with "N/A" in the place of every column.

    >>> without_content("{sentence|strip} It was")
    'N/A It was'

    Source: one of the content-free inputs of contextual calibration, Zhao et al. 2021, arXiv 2102.09690.
    """
    pieces = string.Formatter().parse(template)
    return "".join(literal + (NOTHING if field is not None else "") for literal, field, _, _ in pieces)


def content_free_examples(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    template: str,
    content_free: str,
    max_length: int | None = None,
    kind: str = "causal",
) -> list[Example]:
    """The same rows and answers behind prompts without content; demonstrations stay in front.

    Args:
        examples: rows made ready with `template`.
        tokenizer: of the model.
        template: their prompt.
        content_free: the prompt to put in its place: a text, or a template with columns that are no content.
        max_length: as for `zoreward.data.render`.
        kind: of the model.

    Raises:
        InputError: the content-free prompt does not fit the rows.
    """
    rows = [example.row for example in examples]
    asked = fill(template, rows, "--template")
    named = bool(fields_of(content_free, "content_free"))
    instead = fill(content_free, rows, "content_free") if named else [content_free.format()] * len(rows)
    texts = [
        Text(number, example.prompt.removesuffix(own) + free, example.candidates, example.reference)
        for number, (example, own, free) in enumerate(zip(examples, asked, instead, strict=True), 1)
    ]
    return [
        Example(example.row, text.prompt, text.candidates, text.reference, *tokens[:3], shots=example.shots)
        for example, text, tokens in zip(examples, texts, tokens_of(texts, tokenizer, max_length, kind), strict=True)
    ]
