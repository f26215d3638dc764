"""Conversations: the arguments of chat templates, and the texts that these make of messages. Free of torch."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from zoreward.config import Prompting
from zoreward.data.columns import is_missing
from zoreward.data.tokens import PAIRS, Text
from zoreward.records import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")

Messages = list[dict[str, Any]]
Demonstration = tuple[str, str]
"""Another row's prompt, and its right answer."""

# What `--chat on` calls a model that takes no turns.
_WITHOUT_TURNS = {
    "masked": "a masked model",
    "classifier": "a classifier",
    "ranker": "a model with one output",
    PAIRS: "an encoder–decoder",
}


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
    return _spelled(messages, tokenizer, number, how)


def chat_texts(
    texts: Sequence[Text],
    rows: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    given: Mapping[str, Any],
) -> list[Text]:
    """Preferences that are conversations through the tokenizer's chat template.

    An answer is what the whole conversation has behind what it, all others and the prompt begin with alike. Those that
    do not fit the template, as calls of tools that it does not know, are left out where others do.

    Args and Raises are those of `chat_prompt`.

    Source: `tokenize_fn` of DPOTrainer and of KTOTrainer in TRL 1.16.
    """
    filled: list[Text] = []
    first: InputError | None = None
    for text, row in zip(texts, rows, strict=True):
        how = template_arguments(row, given, text.number)
        try:
            wholes = [
                _spelled([*text.prompt, *answer], tokenizer, text.number, {**how, "add_generation_prompt": False})
                for answer in text.candidates
            ]
            asked = _spelled(text.prompt, tokenizer, text.number, {"add_generation_prompt": True, **how})
        except InputError as error:
            first = first or error
            continue
        prompt = os.path.commonprefix([asked, *wholes])  # noqa: RUF071 (of characters, as it is)
        answers = tuple(whole[len(prompt) :] for whole in wholes)
        filled.append(text._replace(prompt=prompt, candidates=answers, messages=tuple(text.prompt)))
    if first is not None and not filled:
        raise first
    return filled


def user_turn(content: str) -> dict[str, Any]:
    """A message of the user's."""
    return {"role": "user", "content": content}


def with_system(messages: Sequence[dict[str, Any]], system_prompt: str | None) -> Messages:
    """A conversation with the system's turn in front, where there is a prompt for it and none is there.

    >>> with_system([user_turn("hi")], "Be brief.")
    [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': 'hi'}]
    """
    if system_prompt is None or messages[0]["role"] in ("system", "developer"):
        return list(messages)
    return [{"role": "system", "content": system_prompt}, *messages]


def in_turns(
    text: Text,
    demonstrations: Sequence[Demonstration],
    row: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    prompting: Prompting,
) -> Text:
    """A plain row as a conversation: its prompt is what the user says, its candidates what the assistant may say.

    Args:
        text: the row.
        demonstrations: earlier turns of both.
        row: as for `chat_prompt`.
        tokenizer: of the model.
        prompting: its system's turn, and its arguments of the chat template.

    Raises:
        InputError: as `chat_prompt`.
    """
    given, asked = read_template_kwargs(prompting.chat_template_kwargs), user_turn(text.prompt)
    opening = turn_opening(with_system([asked], prompting.system_prompt), row, tokenizer, given, text.number)
    turns: Messages = []
    for prompt, answer in demonstrations:
        turns += [user_turn(prompt), {"role": "assistant", "content": opening.said(answer)}]
    messages = with_system([*turns, asked], prompting.system_prompt)
    prompt = chat_prompt(messages, row, tokenizer, given, text.number)
    candidates = tuple(opening.white_space + opening.said(candidate) for candidate in text.candidates)
    return text._replace(prompt=prompt, candidates=candidates, messages=tuple(messages))


def preference_in_turns(
    text: Text, row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, prompting: Prompting
) -> Text:
    """A plain preference as messages, for `chat_texts`."""
    given, messages = read_template_kwargs(prompting.chat_template_kwargs), [user_turn(text.prompt)]
    messages = with_system(messages, prompting.system_prompt)
    opening = turn_opening(messages, row, tokenizer, given, text.number)
    answers = ([{"role": "assistant", "content": opening.said(answer)}] for answer in text.candidates)
    return text._replace(prompt=messages, candidates=tuple(answers))


class Opening(NamedTuple):
    """How the assistant's turn begins.

    Args:
        white_space: that the template puts behind the prompt, in front of what is said.
        drops: whether an answer's own spaces in front are dropped.
    """

    white_space: str
    drops: bool

    def said(self, answer: str) -> str:
        """An answer as the assistant says it.

        >>> Opening("", drops=True).said(" great")
        'great'
        """
        return answer.lstrip(" ") if self.drops else answer


def turn_opening(
    messages: Messages,
    row: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    given: Mapping[str, Any],
    number: int,
) -> Opening:
    """How the assistant's turn begins behind a conversation.

    Where the template puts white space in front of what the assistant says, that stands in the place of an answer's own
    spaces: the model was trained on no other spelling. They go, too, where the template takes them away.

    Args:
        messages: up to the user's turn.
        row, tokenizer, given, number: as for `chat_prompt`.
    """
    prompt = chat_prompt(messages, row, tokenizer, given, number)
    if prompt[-1:].isspace():
        return Opening("", drops=True)

    def in_front_of(content: str) -> str | None:
        """What a whole conversation has between prompt and answer; None where it says it in another way."""
        how = template_arguments(row, given, number) | {"add_generation_prompt": False, "tokenize": False}
        said = [*messages, {"role": "assistant", "content": content}]
        try:
            whole = str(_filled(tokenizer, number, lambda: tokenizer.apply_chat_template(said, **how)))
        except InputError:
            return None
        rest = whole.removeprefix(prompt) if whole.startswith(prompt) else ""
        word = rest.lstrip()
        return rest[: len(rest) - len(word)] if word.startswith(content.strip()) else None

    white_space = in_front_of("x") or ""
    return Opening(white_space, drops=bool(white_space) or in_front_of(" x") == "")


def check_chat(prompting: Prompting, kind: str, *, plain: bool) -> None:
    """Refuse options of conversations where there are none.

    Args:
        prompting: the options.
        kind: of the model.
        plain: whether the rows are texts, not messages.

    Raises:
        InputError: `chat` is none of its values; it is on, and the model takes no turns; something is said for a chat
            template that is not used.
    """
    if prompting.chat not in ("auto", "on", "off"):
        raise InputError(f"--chat is {prompting.chat!r}", hint="it is auto, on or off")
    if prompting.chat == "on" and kind in _WITHOUT_TURNS:
        hint = "leave --chat out; it is for models that write from left to right"
        raise InputError(f"--chat on: {_WITHOUT_TURNS[kind]} takes no turns in a conversation", hint=hint)
    given = read_template_kwargs(prompting.chat_template_kwargs)
    if not plain or prompting.chat == "on":
        return
    for flag, value in (("--chat-template-kwargs", given), ("--system-prompt", prompting.system_prompt)):
        if value:
            hint = f"give --chat on, or rows whose prompts are messages; or leave {flag} out"
            raise InputError("there are no conversations to which a chat template could be applied", hint=hint)


def check_chat_template(prompting: Prompting, tokenizer: PreTrainedTokenizerBase, kind: str, *, plain: bool) -> None:
    """Refuse `--chat on` without a chat template, and say where one is not used though nobody said so.

    Raises:
        InputError: there is none.
    """
    if prompting.chat == "on" and tokenizer.chat_template is None:
        hint = "take an instruction-tuned model, or leave --chat out"
        raise InputError("--chat on: this model's tokenizer has no chat template", hint=hint)
    if prompting.chat == "auto" and plain and kind == "causal" and tokenizer.chat_template is not None:
        from transformers.utils import logging

        told = "This model has a chat template, and prompts are raw: --chat on uses it (--chat off says nothing)."
        logging.get_logger(__name__).warning_once(told)


def _spelled(messages: Messages, tokenizer: PreTrainedTokenizerBase, number: int, how: Mapping[str, Any]) -> str:
    return str(_filled(tokenizer, number, lambda: tokenizer.apply_chat_template(messages, tokenize=False, **how)))


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
        value = None if is_missing(row.get(column)) else row[column]
        read[column] = (_from_json(value) if isinstance(value, str) and value else value) or None
        if read[column] is not None and not isinstance(read[column], kind):
            hint = f"it is a {kind.__name__} of what the chat template takes, or its JSON"
            raise InputError(f"row {number}: the column {column!r} holds {value!r:.60}", hint=hint)
    return {"tools": read["tools"], **given, **(read["chat_template_kwargs"] or {})}


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
