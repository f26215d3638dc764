"""Conversations: the arguments of chat templates, and the texts that these make of messages. Free of torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from zoreward.data.preferences import PAIR
from zoreward.data.tokens import Text
from zoreward.records import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")


def chat_prompt(
    messages: list[dict[str, Any]],
    row: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    given: Mapping[str, Any],
    number: int,
) -> str:
    """A conversation through the tokenizer's chat template, up to where the assistant's turn begins or goes on.

    Args:
        messages: of the conversation.
        row: with the columns `tools` and `chat_template_kwargs`, where it has some.
        tokenizer: of the model.
        given: further arguments of the chat template.
        number: of the row, counted from 1.

    Raises:
        InputError: there is no chat template, or the conversation does not fit it.
    """
    goes_on = messages[-1]["role"] == "assistant"
    # The arguments last: they may say how the prompt is to end.
    how = {"add_generation_prompt": not goes_on, "continue_final_message": goes_on}
    how |= template_arguments(row, given, number)
    return str(_filled(tokenizer, number, lambda: tokenizer.apply_chat_template(messages, tokenize=False, **how)))


def chat_texts(
    texts: Sequence[Text],
    rows: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    given: Mapping[str, Any],
) -> list[Text]:
    """Preferences that are conversations through the tokenizer's chat template; needs trl.

    Args and Raises are those of `chat_prompt`.
    """
    try:
        from trl import apply_chat_template
    except ImportError as error:
        raise InputError("conversations as preferences need trl", hint="pip install trl") from error
    filled = []
    for text, row in zip(texts, rows, strict=True):
        names = PAIR if len(text.candidates) == 2 else ("completion",)
        messages = {"prompt": text.prompt, **dict(zip(names, text.candidates, strict=True))}
        how = template_arguments(row, given, text.number)
        parts = _filled(tokenizer, text.number, partial(apply_chat_template, messages, tokenizer, **how))
        filled.append(text._replace(prompt=parts["prompt"], candidates=tuple(parts[name] for name in names)))
    return filled


def _filled(tokenizer: PreTrainedTokenizerBase, number: int, fill: Callable[[], T]) -> T:
    if tokenizer.chat_template is None:
        hint = "take an instruction-tuned model, or write prompts and answers as text"
        raise InputError("the rows are conversations, and this model's tokenizer has no chat template", hint=hint)
    try:
        return fill()
    except Exception as error:  # a template raises what its author chose
        why = " ".join(str(error).split())
        raise InputError(f"row {number} does not fit the chat template: {why:.200}") from error


def read_template_kwargs(given: Mapping[str, Any] | str | None) -> dict[str, Any]:
    """The arguments of a chat template beside the messages, from a dict or its JSON.

    Raises:
        InputError: it is neither.

    >>> read_template_kwargs('{"enable_thinking": false}'), read_template_kwargs(None)
    ({'enable_thinking': False}, {})
    """
    read = _from_json(given) if isinstance(given, str) else given
    if read is None:
        return {}
    if not isinstance(read, Mapping):
        hint = """it looks like --chat-template-kwargs '{"enable_thinking": false}'"""
        raise InputError(f"--chat-template-kwargs {given!r:.80} is no JSON object", hint=hint)
    return dict(read)


def refuse_template_kwargs(given: Mapping[str, Any]) -> None:
    """Refuse arguments of a chat template where the prompts are texts, which go through none.

    Raises:
        InputError: something is given.
    """
    if given:
        hint = "leave --chat-template-kwargs out, or give rows whose prompts are messages"
        raise InputError("there are no conversations to which a chat template could be applied", hint=hint)


def template_arguments(row: Mapping[str, Any], given: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The arguments of a row's chat template: those `given`, and its columns `tools` and `chat_template_kwargs`.

    Raises:
        InputError: a column holds something else.

    Source: `DPOTrainer` and `apply_chat_template` of TRL 1.16: tools may be JSON, and no tools are None.

    >>> template_arguments({"tools": '[{"type": "function"}]'}, {"enable_thinking": False}, 1)
    {'tools': [{'type': 'function'}], 'enable_thinking': False}
    """
    read = {}
    for column, kind in (("tools", list), ("chat_template_kwargs", dict)):
        value = row.get(column)
        read[column] = _from_json(value) if isinstance(value, str) and value else value or None
        if read[column] is not None and not isinstance(read[column], kind):
            hint = f"it is a {kind.__name__} of what the chat template takes, or its JSON"
            raise InputError(f"row {number}: the column {column!r} holds {value!r:.60}", hint=hint)
    return {"tools": read["tools"], **given, **(read["chat_template_kwargs"] or {})}


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
