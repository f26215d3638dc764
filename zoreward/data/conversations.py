"""Prompts that a model writes on from: plain texts and conversations, as tokens. Free of torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from zoreward.config import Prompting
from zoreward.data.columns import columns_hint, columns_of, is_conversation, values_of
from zoreward.data.rows import rows_of
from zoreward.data.templates import fill, warn_of_empty
from zoreward.data.tokens import prompt_tokens
from zoreward.records import Example, InputError, UnknownNameError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = tuple[dict[str, Any], ...]


class _Prompt(NamedTuple):
    text: str
    messages: Messages | None


def render_prompts(
    rows: Iterable[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    prompting: Prompting,
    *,
    kind: str = "causal",
) -> list[Example]:
    """Every row as an `Example` without candidates: a prompt to write on from.

    A prompt is a template filled with the row, or what the row's column `prompt` holds: a text, or a conversation, a
    list of messages `{"role": …, "content": …}`. A conversation goes through the tokenizer's chat template and ends
    where the assistant's turn begins; one whose last message is the assistant's goes on in that message. The columns
    `tools` and `chat_template_kwargs` of such a row, as objects or JSON, are the template's too. The tokens of a plain
    prompt begin with what the tokenizer puts in front of a text (BOS); a chat template writes its own.

    Args:
        rows: at least one; a list of dicts, a `datasets.Dataset` or a `pandas.DataFrame`.
        tokenizer: of the model that will write.
        prompting: the options, of which are read:
            template: the prompt; a `str.format` template over the columns: `Question: {question} Answer:`.
            prompt: the column of the prompt, where there is no template.
            max_length: most tokens of a prompt: the model's context without the tokens to be written. Longer prompts
                lose tokens on the left, plain ones never BOS; `Example.truncated` says how many. None: no limit.
            chat_template_kwargs: what the chat template is told, as a dict or JSON; a row's own win.
        kind: of the model; the encoder of an `encoder-decoder` also reads what the tokenizer puts behind a plain text.

    Raises:
        InputError: a prompt is no text and no conversation, some are one and some the other, the tokenizer has no
            chat template, or `max_length` leaves no room. Rows are counted from 1.
        UnknownNameError: no row has the column `prompt`.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import PreTrainedTokenizerFast
        >>> words = Tokenizer(models.WordLevel({"a": 0, "fine": 1, "film": 2}))
        >>> words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
        >>> [example] = render_prompts([{"prompt": "a fine film"}], tokenizer, Prompting(max_length=2))
        >>> example.prompt, example.prompt_tokens, example.truncated
        ('a fine film', (1, 2), 1)

    Source: rows and conversations as in TRL's "prompt-only" dataset formats; the last message as in its
    `apply_chat_template`.
    """
    rows, max_length = rows_of(rows), prompting.max_length
    if not rows:
        raise InputError("there are no rows", hint="give at least one row")
    if max_length is not None and max_length < 1:
        hint = "write fewer new tokens, or take a model with a longer context"
        raise InputError(f"the context leaves {max_length} tokens for the prompt", hint=hint)
    warn_of_empty(rows, prompting.template, prompting.prompt)
    prompts = _prompts(rows, tokenizer, prompting)
    chat = prompts[0].messages is not None
    read = prompt_tokens([one.text for one in prompts], tokenizer, max_length, kind, chat=chat)
    return [
        Example(row, one.text, (), 0, tokens, (), cut, messages=one.messages)
        for row, one, (tokens, cut) in zip(rows, prompts, read, strict=True)
    ]


def check_prompts(rows: Iterable[dict[str, Any]], prompting: Prompting) -> None:
    """Raise what `render_prompts` would raise about a template or a column, without a tokenizer.

    Raises:
        InputError, UnknownNameError: as `render_prompts`.

    >>> check_prompts([{"text": "fine"}], Prompting())
    Traceback (most recent call last):
    zoreward.records.UnknownNameError: no row has the prompt column 'prompt'
    hint: give --prompt or --template; the columns are text
    """
    rows = rows_of(rows)
    given = read_template_kwargs(prompting.chat_template_kwargs)
    if prompting.template is not None:
        fill(prompting.template, rows, "--template")
        refuse_template_kwargs(given)
    else:
        _check_column(rows, prompting.prompt)
        if isinstance(rows[0].get(prompting.prompt), str):
            refuse_template_kwargs(given)


def read_template_kwargs(given: Mapping[str, Any] | str | None) -> dict[str, Any]:
    """What a chat template is told beside the messages, from a dict or its JSON.

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
    """Refuse what a chat template is told where the prompts are texts, which go through none.

    Raises:
        InputError: something is given.
    """
    if given:
        hint = "leave --chat-template-kwargs out, or give rows whose prompts are messages"
        raise InputError("there are no conversations to which a chat template could be applied", hint=hint)


def template_arguments(row: Mapping[str, Any], given: Mapping[str, Any], number: int) -> dict[str, Any]:
    """What the chat template of a row is told: the columns `tools` and `chat_template_kwargs`, and what is `given`.

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


def _check_column(rows: list[dict[str, Any]], column: str) -> None:
    columns = columns_of(rows)
    if column not in columns:
        hint = f"give --prompt or --template; {columns_hint(column, columns)}"
        raise UnknownNameError(f"no row has the prompt column {column!r}", hint=hint)
    values_of(rows, column, "prompt", "--prompt")


def _prompts(rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, prompting: Prompting) -> list[_Prompt]:
    template, column = prompting.template, prompting.prompt
    template_kwargs = read_template_kwargs(prompting.chat_template_kwargs)
    if template is not None or isinstance(rows[0].get(column), str):
        refuse_template_kwargs(template_kwargs)
    if template is not None:
        return [_Prompt(text, None) for text in fill(template, rows, "--template")]
    _check_column(rows, column)
    chat = not isinstance(rows[0].get(column), str)
    prompts = []
    for number, row in enumerate(rows, 1):
        value: Any = row.get(column)
        if isinstance(value, str) == chat and (isinstance(value, str) or is_conversation(value)):
            hint = "score plain prompts and conversations one after the other"
            raise InputError(
                f"row {number} is of another kind than row 1: a text here, a conversation there", hint=hint
            )
        if chat and not is_conversation(value):
            hint = 'a prompt is a text, or a list of messages {"role": "user", "content": "…"}'
            raise InputError(f"row {number}: {value!r:.60} in the column {column!r} is no prompt", hint=hint)
        if not chat and not isinstance(value, str):
            raise InputError(f"row {number}: {value!r:.60} in the column {column!r} is no text", hint="drop such rows")
        prompts.append(
            _chat(tokenizer, value, number, template_arguments(row, template_kwargs, number))
            if chat
            else _Prompt(value, None)
        )
    return prompts


def _chat(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], number: int, arguments: dict[str, Any]
) -> _Prompt:
    if tokenizer.chat_template is None:
        hint = "take an instruction-tuned model, or write the prompts as text (--template)"
        raise InputError("the prompts are conversations, and this model's tokenizer has no chat template", hint=hint)
    goes_on = messages[-1]["role"] == "assistant"
    try:
        # The arguments last: they may say how the prompt is to end.
        how = {"add_generation_prompt": not goes_on, "continue_final_message": goes_on, **arguments}
        text = tokenizer.apply_chat_template(messages, tokenize=False, **how)
    except Exception as error:  # a template raises what its author chose
        why = " ".join(str(error).split())
        raise InputError(f"row {number} does not fit the chat template: {why:.200}") from error
    return _Prompt(str(text), tuple(messages))
