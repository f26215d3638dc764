"""Prompts from rows: the texts a model reads and the answers it is asked about, as tokens. Free of torch.

Also prompts without content, by which answers are calibrated, and prompts as they are shown.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from zoreward.config import Prompting
from zoreward.data.columns import columns_hint, columns_of, is_conversation, placed, values_of
from zoreward.data.conversations import (
    Demonstration,
    chat_prompt,
    chat_texts,
    check_chat,
    check_chat_template,
    in_turns,
    preference_in_turns,
    read_template_kwargs,
    user_turn,
    with_system,
)
from zoreward.data.preferences import are_preferences, preference_texts, refuse_none, tell_of_faults, with_prompts
from zoreward.data.rows import rows_of
from zoreward.data.templates import fields_of, fill, warn_of_empty
from zoreward.data.texts import demonstrations, refuse_mask, texts_of, tokenize_with, warn_of_run_on, whole_texts
from zoreward.data.tokens import WHOLE, Ends, Text, prompt_tokens, tokens_of
from zoreward.records import Example, InputError, UnknownNameError, ZorewardError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


NOTHING = "N/A"


def render(
    rows: Iterable[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    prompting: Prompting,
    *,
    needs: str,
    shot_rows: Iterable[dict[str, Any]] | None = None,
    seed: int = 0,
    kind: str = "causal",
    classes: Sequence[str] = (),
) -> list[Example]:
    """Every row as an `Example`: the prompt, the candidates, the index of the right one, and the tokens of all.

    The tokens of prompt and candidate, one after the other, are those of the joined text. They part where the prompt's
    own tokens end; where a token of some candidate's joined text spans that border, in front of this token, for all
    candidates of the row. So what is scored is always the text that is read. Spaces at the prompt's end are counted to
    the candidates, because most tokenizers join a space with the word behind it. What the tokenizer puts in front of a
    text (BOS) stands in front of the prompt; what it puts behind (EOS) is left out.

    Rows of preferences bring their own candidates: `chosen` and `rejected` (the right one is the first), or
    `completion` and a label, true or false (one candidate; −1 is the index of the right one where the label is
    false). They are read where no option says what the candidates are; their prompt is the template, or the column
    `prompt`, or what chosen and rejected begin with alike. All are texts, or all are conversations, which go through
    the chat template; it ends them. Behind an answer that is a text stands EOS. Rows with answers that are empty or
    alike are left out, and answers that are too long for `max_length` are cut on their right, where they take more than
    half of it; one line says how many. They take no demonstrations.

    A demonstration is another row's prompt and its right answer; a blank line stands behind it. All rows get the same
    ones in the same order, from one seeded draw. A row that asks what a demonstration asks (the same prompt, and the
    same candidates where there is a choice) gets the next of the draw instead.

    With `chat` on, plain prompts are what the user says in a conversation by the tokenizer's chat template, answers are
    what the assistant may say, from where its turn begins, and demonstrations are earlier turns of both. Where the
    template has white space there, or takes it away, an answer's own spaces in front are dropped.

    Args:
        rows: at least one; a list of dicts, a `datasets.Dataset` or a `pandas.DataFrame`.
        tokenizer: of the model that will read the prompts.
        prompting: the options, of which `render` makes this:
            template: the prompt; a `str.format` template over the columns: `{sentence} It was`, `{answers[0]}`,
                `{question|as_question}`.
            prompt: the column of the prompt, for rows of preferences without a template.
            choices: for `choices`: two or more different answers, the answer for label 0 first. Labels that are no
                numbers, or have names: `label=answer` each, or the labels themselves, in any order. Choices are read as
                `label=answer` where every one has an `=` and a label of the rows stands in front of one of them.
            choice_column: instead of `choices`: the column that holds each row's own answers, a list of two or more
                different strings, as many as the row likes; or a path to it, `choices[text]`. Of a column that holds
                `{"text": […], "label": […]}`, or a list of such pairs, the texts are the answers, and the labels their
                names.
            label: for `choices`: the column of the right choice, or a path to it: an integer, a bool, "0" or "1", or a
                name. With `choice_column` the name of the answer, where answers have names and every row's label is
                one; else its index, or its text: strings are texts where every one is an answer of its row, indices
                where every one is one; where both could be and disagree, that is an error. A list of texts: several
                right answers, of which the first is asked for and the others are left out.
            answer: for `likelihood`: the right answer, a template like `template`; by default the right choice.
            max_length: tokens that the prompt and its longest candidate may have together. Where they have more, the
                demonstrations go, the first one first; then prompts lose tokens on the left, but never BOS.
                None: no limit.
            shots: demonstrations in front of each prompt, ≥ 0.
            chat: `on`: plain rows become conversations; `off` and `auto`: they do not, which `auto` says where there
                is a chat template.
            system_prompt: the system's turn of conversations that begin with none.
            chat_template_kwargs: for conversations: arguments of the chat template, as a dict or JSON. A row's columns
                `tools` and `chat_template_kwargs` are arguments too, and win.
        needs: `choices` or `likelihood`.
        shot_rows: where the demonstrations come from; by default `rows`.
        seed: of the draw.
        kind: of the model. For a `masked` one the template has one `[MASK]`, where the answer stands: one token, as
            it stands behind a space; a text that is too long loses tokens at its ends, never the mask. A `classifier`
            reads the template, or the column `prompt`, cut on its right; a `[SEP]` parts two texts; without choices
            its classes are the candidates. The encoder of an `encoder-decoder` reads the prompt, with all that the
            tokenizer puts around it; the candidates are texts of their own, without spaces in front and without EOS.
        classes: names of a classifier's classes, in the order of its outputs.

    Raises:
        InputError: an option is missing; a template, a choice or a label does not fit the rows; a candidate without
            tokens; a candidate too long for `max_length`; too few rows for `shots`; `chat` is on without a chat
            template, or for a model that takes no turns. Rows are counted from 1.
        UnknownNameError: no row has the column `label` or `choice_column`.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import PreTrainedTokenizerFast
        >>> words = Tokenizer(models.WordLevel({"fine": 0, "It": 1, "was": 2, "bad": 3, "good": 4}))
        >>> words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
        >>> [example] = render([{"sentence": "fine", "label": 1}], tokenizer,
        ...                    Prompting(template="{sentence} It was", choices=[" bad", " good"]), needs="choices")
        >>> example.prompt, example.candidates, example.reference
        ('fine It was', (' bad', ' good'), 1)
        >>> example.prompt_tokens, example.candidate_tokens
        ((0, 1, 2), ((3,), (4,)))

    Source: the border is that of DPOTrainer of TRL 1.16 (`common_prefix_length`). Of spaces as in `_encode_pair` of
    EleutherAI's lm-evaluation-harness, except that only spaces change sides: newer tokenizers join a line break with
    the character before it ("?⏎"), not with the word behind it.
    """
    rows = rows_of(rows)
    warn_of_empty(rows, prompting.template, prompting.prompt)
    texts, shots, left_out = _texts_and_shots(rows, prompting, needs, shot_rows, seed, kind, classes)
    preferences, own_rows = left_out is not None, [rows[text.number - 1] for text in texts]
    plain = isinstance(texts[0].prompt, str)
    check_chat_template(prompting, tokenizer, kind, plain=plain)
    chat = not plain or prompting.chat == "on"
    how: dict[str, Any] = {"classes": classes, "chat": chat}
    if preferences:  # what a chat template ends is ended, and a ranker reads what others have written
        how["ends"] = Ends(None if chat or kind == "ranker" else tokenizer.eos_token_id)
    if preferences and chat:
        if plain:
            pairs = zip(texts, own_rows, strict=True)
            texts = [preference_in_turns(text, row, tokenizer, prompting) for text, row in pairs]
        else:
            texts = [text._replace(prompt=with_system(text.prompt, prompting.system_prompt)) for text in texts]
        texts = chat_texts(texts, own_rows, tokenizer, read_template_kwargs(prompting.chat_template_kwargs))
    elif chat:

        def turns(text: Text, shots: Sequence[Demonstration]) -> Text:
            return in_turns(text, shots, rows[text.number - 1], tokenizer, prompting)

        how["put_behind"] = turns
    elif kind == "causal" and not preferences:
        warn_of_run_on(texts, prompting, tokenizer)
    ready = tokenize_with(shots[: len(texts)], texts, tokenizer, prompting.max_length, kind, **how)
    if left_out is not None:
        left_out["with messages that the chat template does not take"] = len(own_rows) - len(texts)
        left_out.update(tokens.fault for _, tokens, _ in ready if tokens.fault)
        ready = [one for one in ready if not one[1].fault]
        refuse_none(len(ready), left_out)
        shortened = sum(tokens.shortened for _, tokens, _ in ready)
        tell_of_faults(len(rows), left_out, shortened, prompting.max_length)
    return [
        Example(
            *(rows[text.number - 1], text.prompt, text.candidates, text.reference),
            *tokens[:3],
            shots=count,
            messages=text.messages,
            place=tokens.place,
            types=tokens.types,
            asked=tokens.asked,
        )
        for text, tokens, count in ready
    ]


def check_columns(
    rows: Iterable[dict[str, Any]],
    prompting: Prompting,
    *,
    needs: str,
    shot_rows: Iterable[dict[str, Any]] | None = None,
    seed: int = 0,
    kind: str = "causal",
    classes: Sequence[str] = (),
) -> None:
    """Raise what `render` would raise about rows and options, without a tokenizer: before any model is loaded.

    Raises:
        InputError, UnknownNameError: as `render`.

    Example:
        >>> check_columns([{"text": "fine"}], Prompting(template="{txt}:", answer="{text}"), needs="likelihood")
        Traceback (most recent call last):
        zoreward.records.InputError: --template: no row has the column 'txt'
        hint: did you mean text? the columns are text
    """
    _texts_and_shots(rows_of(rows), prompting, needs, shot_rows, seed, kind, classes)


def _texts_and_shots(
    rows: list[dict[str, Any]],
    prompting: Prompting,
    needs: str,
    shot_rows: Iterable[dict[str, Any]] | None,
    seed: int,
    kind: str,
    classes: Sequence[str],
) -> tuple[list[Text], list[list[Demonstration]], Counter[str] | None]:
    """Every row as text or as messages, the demonstrations for each, and why preferences are left out."""
    left_out = None
    if kind in WHOLE:
        texts = whole_texts(rows, needs, prompting, kind, classes)
    else:
        refuse_mask(prompting.template, "a model that writes from left to right")
        if are_preferences(rows, needs, prompting):
            texts, left_out = preference_texts(rows, prompting)
        else:
            texts = texts_of(rows, needs, prompting)
    check_chat(prompting, kind, plain=isinstance(texts[0].prompt, str))
    pool = texts
    if prompting.shots > 0 and shot_rows is not None:
        try:
            rows_to_show = rows_of(shot_rows)
            with placed(rows_to_show):
                pool = texts_of(rows_to_show, needs, prompting)
        except ZorewardError as error:
            raise type(error)(f"rows for demonstrations: {error}", hint=error.hint) from error
    return texts, demonstrations(texts, pool, prompting.shots, seed), left_out


def render_prompts(
    rows: Iterable[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    prompting: Prompting,
    *,
    kind: str = "causal",
) -> list[Example]:
    """Every row as an `Example` without candidates: a prompt to write on from.

    A prompt is a template filled with the row, or what the row's column `prompt` holds; where no row has one, what its
    `chosen` and `rejected` begin with alike: a text, or a conversation, a list of messages `{"role": …, "content": …}`.
    A conversation goes through the tokenizer's chat template and ends where the assistant's turn begins; one whose last
    message is the assistant's goes on in that message. The columns `tools` and `chat_template_kwargs` of such a row, as
    objects or JSON, are the template's too. With `chat` on a plain prompt is a conversation of one message, the user's,
    also for reward functions. The tokens of another plain prompt begin with what the tokenizer puts in front of a text
    (BOS); a chat template writes its own.

    Args:
        rows: at least one; a list of dicts, a `datasets.Dataset` or a `pandas.DataFrame`.
        tokenizer: of the model that will write.
        prompting: the options, of which are read:
            template: the prompt; a `str.format` template over the columns: `Question: {question} Answer:`.
            prompt: the column of the prompt, where there is no template.
            max_length: most tokens of a prompt: the model's context without the tokens to be written. Longer prompts
                lose tokens on the left, plain ones never BOS; `Example.truncated` says how many. None: no limit.
            chat, system_prompt: as for `render`.
            chat_template_kwargs: arguments of the chat template, as a dict or JSON; a row's own win.
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
    rows, max_length = _with_prompts(rows_of(rows), prompting), prompting.max_length
    if max_length is not None and max_length < 1:
        hint = "write fewer new tokens, or take a model with a longer context"
        raise InputError(f"the context leaves {max_length} tokens for the prompt", hint=hint)
    with placed(rows):
        prompts = _prompts(rows, prompting, kind)
        warn_of_empty(rows, prompting.template, prompting.prompt)
        texts, chat = prompts, not isinstance(prompts[0], str)
        check_chat_template(prompting, tokenizer, kind, plain=not chat)
        if chat:
            given = read_template_kwargs(prompting.chat_template_kwargs)
            texts = [chat_prompt(prompts[i], row, tokenizer, given, i + 1) for i, row in enumerate(rows)]
        read = prompt_tokens(texts, tokenizer, max_length, kind, chat=chat)
    return [
        Example(row, text, (), 0, tokens, (), cut, messages=tuple(prompt) if chat else None)
        for row, prompt, text, (tokens, cut) in zip(rows, prompts, texts, read, strict=True)
    ]


def check_prompts(rows: Iterable[dict[str, Any]], prompting: Prompting) -> None:
    """Raise what `render_prompts` would raise about rows and options, without a tokenizer.

    Raises:
        InputError, UnknownNameError: as `render_prompts`.

    >>> check_prompts([{"text": "fine"}], Prompting())
    Traceback (most recent call last):
    zoreward.records.UnknownNameError: no row has the prompt column 'prompt'
    hint: give --prompt or --template, in Python prompt=… or template=… of ZOConfig; the columns are text
    """
    rows = _with_prompts(rows_of(rows), prompting)
    with placed(rows):
        _prompts(rows, prompting)


def _with_prompts(rows: list[dict[str, Any]], prompting: Prompting) -> list[dict[str, Any]]:
    """The rows; of preferences that have no column of prompts, with what both answers begin with."""
    return rows if prompting.prompt in columns_of(rows) else with_prompts(rows, prompting)


def _prompts(rows: list[dict[str, Any]], prompting: Prompting, kind: str = "causal") -> list[Any]:
    """Each row's prompt: all are texts, or all are lists of messages."""
    if not rows:
        raise InputError("there are no rows", hint="give at least one row")
    prompts: list[Any] = (
        _prompt_column(rows, prompting.prompt)
        if prompting.template is None
        else fill(prompting.template, rows, "--template")
    )
    plain = isinstance(prompts[0], str)
    check_chat(prompting, kind, plain=plain)
    if plain and prompting.chat != "on":
        return prompts
    return [with_system([user_turn(one)] if plain else one, prompting.system_prompt) for one in prompts]


def _prompt_column(rows: list[dict[str, Any]], column: str) -> list[Any]:
    """What the column of the prompt holds: texts, or lists of messages."""
    if column not in (columns := columns_of(rows)):
        hint = "give --prompt or --template, in Python prompt=… or template=… of ZOConfig; "
        hint += columns_hint(column, columns)
        raise UnknownNameError(f"no row has the prompt column {column!r}", hint=hint)
    prompts = values_of(rows, column, "prompt", "--prompt")
    chat = not isinstance(prompts[0], str)
    for number, value in enumerate(prompts, 1):
        if (is_conversation(value), isinstance(value, str)) == (not chat, chat):
            hint = "score plain prompts and conversations one after the other"
            what = "a text here, a conversation there"
            raise InputError(f"row {number} is of another kind than the first: {what}", hint=hint)
        if not (is_conversation(value) if chat else isinstance(value, str)):
            hint = 'a prompt is a text, or a list of messages {"role": "user", "content": "…"}'
            raise InputError(f"row {number}: {value!r:.60} in the column {column!r} is no prompt", hint=hint)
    return prompts


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
    chat_template_kwargs: dict[str, Any] | str | None = None,
) -> list[Example]:
    """The same rows and answers behind prompts without content; demonstrations stay in front.

    Args:
        examples: rows made ready with `template`.
        tokenizer: of the model.
        template: their prompt.
        content_free: the prompt to put in its place: a text, or a template with columns that are no content.
        max_length: as for `zoreward.data.render`.
        kind: of the model.
        chat_template_kwargs: those that the examples were made with.

    Raises:
        InputError: the content-free prompt does not fit the rows.
    """
    rows = [example.row for example in examples]
    asked = fill(template, rows, "--template")
    named = bool(fields_of(content_free, "content_free"))
    instead = fill(content_free, rows, "content_free") if named else [content_free.format()] * len(rows)
    given, texts = read_template_kwargs(chat_template_kwargs), []
    for number, (example, own, free) in enumerate(zip(examples, asked, instead, strict=True), 1):
        prompt = example.prompt.removesuffix(own) + free
        if example.messages is not None:
            messages = [*example.messages[:-1], user_turn(free)]
            prompt = chat_prompt(messages, example.row, tokenizer, given, number)
        texts.append(Text(number, prompt, example.candidates, example.reference))
    chat = examples[0].messages is not None
    ready = tokens_of(texts, tokenizer, max_length, kind, chat=chat)
    return [
        Example(example.row, text.prompt, text.candidates, text.reference, *tokens[:3], shots=example.shots)
        for example, text, tokens in zip(examples, texts, ready, strict=True)
    ]


def describe_prompts(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, n: int = 3, *, classes: bool = False
) -> str:
    """The first `n` examples as plain text: what the model reads, what it is asked about, and the tokens of both.

    `→` marks the right answer. Tokens stand as the tokenizer names them (`Ġ`, `▁`: a space), in quotes where they hold
    white space themselves. With `classes` the answers are a classifier's, and have no tokens; rows that a model answers
    freely have none.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import PreTrainedTokenizerFast
        >>> words = Tokenizer(models.WordLevel({"fine": 0, "It": 1, "was": 2, "bad": 3, "good": 4}))
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
        >>> example = Example({}, "fine It was", (" bad", " good"), 1, (0, 1, 2), ((3,), (4,)))
        >>> print(describe_prompts([example], tokenizer))
        row 1 of 1: 3 tokens of prompt, 1 of the longest answer
          prompt:
            fine It was
          answers:
              ' bad'
            → ' good'
          tokens:
            prompt (3): fine It was
            ' bad' (1): bad
            ' good' (1): good
    """
    return "\n\n".join(
        _described(example, tokenizer, f"row {number} of {len(examples)}", classes)
        for number, example in enumerate(examples[:n], 1)
    )


def _described(example: Example, tokenizer: PreTrainedTokenizerBase, name: str, classes: bool) -> str:
    facts = [f"{len(example.prompt_tokens)} tokens of prompt"]
    if example.candidates and not classes:
        facts.append(f"{max(map(len, example.candidate_tokens))} of the longest answer")
    if example.shots:
        facts.append(f"{example.shots} demonstrations" if example.shots > 1 else "1 demonstration")
    if example.truncated:
        side = "right" if classes else "left" if example.place < 0 else "ends"
        facts.append(f"{example.truncated} tokens cut off on the {side} to fit")
    answers = [
        f"{'→' if index == example.reference else ' '} {candidate!r}"
        for index, candidate in enumerate(example.candidates)
    ]
    named = [
        ("prompt", example.prompt_tokens),
        *([] if classes else zip(map(repr, example.candidates), example.candidate_tokens, strict=True)),
    ]
    tokens = [f"{what} ({len(own)}): {_spelled(own, tokenizer)}" for what, own in named]
    lines = [f"{name}: {', '.join(facts)}"]
    blocks = {"prompt": example.prompt.split("\n"), "answers": answers, "tokens": tokens}
    for what, block in blocks.items():
        if not block:
            continue
        lines += [f"  {what}:", *(f"    {line}".rstrip() if what == "prompt" else f"    {line}" for line in block)]
    return "\n".join(lines)


def _spelled(tokens: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    names = tokenizer.convert_ids_to_tokens(list(tokens))
    return " ".join(repr(name) if not name or name.split() != [name] else name for name in names)
