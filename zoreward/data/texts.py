"""Rows as texts: what is asked, what can be answered, what is right; and other rows in front, as demonstrations.

Free of torch.
"""

from __future__ import annotations

import random
import shlex
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from zoreward.config import Prompting, part_of
from zoreward.data.choices import Chosen, class_choices, fixed_choices, row_choices
from zoreward.data.columns import columns_hint, columns_of
from zoreward.data.conversations import Demonstration
from zoreward.data.templates import fill
from zoreward.data.tokens import MASK, PAIRS, Text, Tokens, encode, tokens_of
from zoreward.records import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BETWEEN = "\n\n"


def texts_of(rows: list[dict[str, Any]], needs: str, prompting: Prompting, classes: Sequence[str] = ()) -> list[Text]:
    """Every row as text; where the options name no answers, they are `classes`.

    Raises:
        InputError, UnknownNameError: an option is missing, or does not fit the rows.
    """
    if not rows:
        raise InputError("there are no rows", hint="give at least one row")
    if needs not in ("choices", "likelihood"):
        raise InputError(f"no prompts are known for {needs!r}", hint="it is choices or likelihood")
    if prompting.template is None:
        judged = "; or rows with prompt, chosen and rejected" if needs == "choices" else ""
        raise InputError("there is no prompt", hint=f"give --template '{{sentence}} It was', with your columns{judged}")
    prompts = fill(prompting.template, rows, "--template")
    answers = _right(rows, prompting) if needs == "likelihood" else _chosen(rows, prompting, classes)
    return [Text(i, text, *answer) for i, (text, answer) in enumerate(zip(prompts, answers, strict=True), 1)]


def _right(rows: list[dict[str, Any]], prompting: Prompting) -> list[Chosen]:
    """The right answer as the only candidate: `answer`, or else the right one of the choices."""
    if prompting.answer is not None:
        return [((right,), 0) for right in fill(prompting.answer, rows, "--answer")]
    if prompting.choices is None and prompting.choice_column is None:
        raise InputError("there is no right answer", hint="give --answer ' {answer}', with your columns")
    return [((candidates[reference],), 0) for candidates, reference in _chosen(rows, prompting)]


def _chosen(rows: list[dict[str, Any]], prompting: Prompting, classes: Sequence[str] = ()) -> list[Chosen]:
    if prompting.choices is not None and prompting.choice_column is not None:
        hint = "give --choice or --choice-column, not both"
        raise InputError("there are answers for all rows and a column of answers", hint=hint)
    if prompting.choice_column is not None:
        return row_choices(rows, prompting.choice_column, prompting.label)
    if prompting.choices is None and classes:
        return class_choices(rows, classes, prompting.label)
    if prompting.choices is None:
        hint = "give --choice once for each label, or --choice-column where every row has its own answers"
        raise InputError("there are no answers to choose from", hint=hint)
    return fixed_choices(rows, prompting.choices, prompting.label)


def warn_of_run_on(texts: Sequence[Text], prompting: Prompting, tokenizer: PreTrainedTokenizerBase) -> None:
    """Say, once, that answers go on with the last word of their prompts, where a space was surely meant.

    It was where most prompts end in a letter, a digit or a mark that ends words, some answer begins with a letter or a
    digit, and the tokens of both together are others with a space between.

    Args:
        texts: of a model that writes from left to right, without a chat template.
        prompting: what was typed.
        tokenizer: of the model.
    """
    run_on = [(text.prompt, answer) for text in texts if (answer := _run_on(text)) is not None]
    if 2 * len(run_on) < len(texts):
        return
    prompt, answer = run_on[0]
    joined, apart = encode(tokenizer, [prompt + answer, f"{prompt} {answer}"])
    if joined == apart:
        return
    from transformers.utils import logging

    choices = prompting.choices or ()
    if prompting.choice_column is not None:
        instead = f"--template {_typed(f'{prompting.template} ')}"
    elif prompting.answer is not None:
        instead = f"--answer {_typed(f' {prompting.answer}')}"
    elif texts[0].candidates == tuple(choices):
        instead = " ".join(f"--choice {_typed(f' {choice.lstrip()}')}" for choice in choices)
    else:  # label=answer
        pairs = [choice.partition("=") for choice in choices]
        instead = " ".join(f"--choice {_typed(f'{label}= {text.lstrip()}')}" for label, _, text in pairs)
    logging.get_logger(__name__).warning_once(
        f"Answers go on with the prompt's last word, without a space. If that is not meant: {instead}"
    )


def _run_on(text: Text) -> str | None:
    """The first answer that goes on with the last word of its prompt; None where none does."""
    last = text.prompt[-1:]
    if not all(answer.strip() for answer in text.candidates):  # which is refused soon
        return None
    begin = (answer for answer in text.candidates if answer[:1].isdigit() or answer[:1].lower() != answer[:1].upper())
    return next(begin, None) if last.isalnum() or (last and last in ".,:;?!)]}") else None


def _typed(text: str) -> str:
    return shlex.quote(text.replace("\n", "\\n"))


# For models that read a text as a whole: those that fill a mask, and those that name a class


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
        columns = columns_of(rows)
        if prompting.prompt not in columns:
            near = columns_hint(prompting.prompt, columns)
            hint = f"give --template '{{sentence}}' or --prompt, with your column; {near}"
            raise InputError("there is no text to classify", hint=hint)
        prompting = part_of(Prompting, prompting, template=f"{{{prompting.prompt}}}")
    refuse_mask(prompting.template, name)
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
        masks = f"{count} masks" if count else "no mask"
        hint = f"write {MASK} once, where the answer stands: '{{sentence}} It was {MASK} .'"
        raise InputError(f"the template {prompting.template!r} has {masks}, and a masked model fills one", hint=hint)
    return texts_of(rows, needs, prompting)


# Demonstrations: other rows with their right answers, in front of a row's own prompt


def demonstrations(texts: Sequence[Text], pool: Sequence[Text], shots: int, seed: int) -> list[list[Demonstration]]:
    """For each of `texts` the `shots` demonstrations that go in front of it, in their order.

    All get the first `shots` of one seeded draw from `pool`. Who asks what a demonstration asks (the same prompt and
    the same candidates; for `likelihood` the same prompt) gets the next of the draw behind the others instead.

    Raises:
        InputError: `shots` is negative, or a text finds fewer in the pool.

    >>> pool = [Text(i, f"{i}?", (" no", " yes"), i % 2) for i in (1, 2, 3)]
    >>> demonstrations(pool, pool, shots=1, seed=0)
    [[('3?', ' yes')], [('3?', ' yes')], [('2?', ' no')]]
    """
    if shots < 0:
        raise InputError(f"--shots {shots} is less than 0", hint="give 0 for no demonstrations")
    if not shots:
        return [[] for _ in texts]
    # Sorted by random(), which alone is promised to stay the same in every Python.
    uniform = random.Random(seed)
    drawn: dict[tuple[str, ...], Demonstration] = {}
    for _, text in sorted(((uniform.random(), text) for text in pool), key=lambda pair: pair[0]):
        if len(drawn) <= shots:
            drawn.setdefault(_question(text), (text.prompt, text.candidates[text.reference]))
    chosen = []
    for text in texts:
        others = [demonstration for question, demonstration in drawn.items() if question != _question(text)]
        if len(others) < shots:
            raise InputError(
                f"row {text.number}: --shots {shots} needs {shots} rows that ask something else, "
                f"and there {'is' if len(others) == 1 else 'are'} {len(others)}",
                hint="lower --shots, or give more rows to demonstrate with",
            )
        chosen.append(others[:shots])
    return chosen


def tokenize_with(
    demonstrations_of: Sequence[Sequence[Demonstration]],
    texts: Sequence[Text],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    kind: str = "causal",
    *,
    put_behind: Callable[[Text, Sequence[Demonstration]], Text] | None = None,
    **how: Any,
) -> list[tuple[Text, Tokens, int]]:
    """Each text behind as many of its demonstrations as fit `max_length`, its tokens, and how many those were.

    The first are left out first. Only a text that is too long without any loses tokens.

    Args:
        demonstrations_of: the demonstrations of each text.
        texts, tokenizer, max_length, kind, how: as for `tokens_of`.
        put_behind: makes the text of a row and its demonstrations; by default a blank line stands between them.

    Raises:
        InputError: as `tokens_of`.
    """
    put_behind = put_behind or _behind
    counts = _likely_counts(demonstrations_of, texts, tokenizer, max_length, kind)
    done: dict[int, tuple[Text, Tokens, int]] = {}
    pending = list(range(len(texts)))
    while pending:
        tried = [put_behind(texts[i], demonstrations_of[i][len(demonstrations_of[i]) - counts[i] :]) for i in pending]
        all_tokens = tokens_of(tried, tokenizer, max_length, kind, **how)
        for i, text, tokens in zip(pending, tried, all_tokens, strict=True):
            done[i] = text, tokens, counts[i]
        pending = [i for i in pending if done[i][1].truncated and counts[i]]
        for i in pending:
            counts[i] -= 1
    return [done[i] for i in range(len(texts))]


def _question(text: Text) -> tuple[str, ...]:
    # The one candidate of `likelihood` is the answer, not part of what is asked.
    return (text.prompt, *text.candidates) if len(text.candidates) > 1 else (text.prompt,)


def _behind(text: Text, shots: Sequence[Demonstration]) -> Text:
    return text._replace(prompt=_BETWEEN.join([*map("".join, shots), text.prompt]))


def _likely_counts(
    demonstrations_of: Sequence[Sequence[Demonstration]],
    texts: Sequence[Text],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    kind: str,
) -> list[int]:
    """How many demonstrations may fit each text: rather one too many, so that none is left out without need."""
    if max_length is None or not any(demonstrations_of):
        return [len(shots) for shots in demonstrations_of]
    pieces = list(dict.fromkeys(piece for shots in demonstrations_of for piece in shots))
    # In pieces a text can be longer than as a whole: a token less for each joint.
    lengths = {
        piece: len(tokens) - 1
        for piece, tokens in zip(
            pieces, encode(tokenizer, [_BETWEEN + "".join(piece) for piece in pieces]), strict=True
        )
    }
    # An encoder does not read the candidates.
    read = [text.prompt + ("" if kind == PAIRS else candidate) for text in texts for candidate in text.candidates]
    wholes = iter(encode(tokenizer, read))
    counts = []
    for text, shots in zip(texts, demonstrations_of, strict=True):
        room = max_length - max(len(next(wholes)) for _ in text.candidates)
        count = 0
        while count < len(shots) and (room := room - lengths[shots[-1 - count]]) >= 0:
            count += 1
        counts.append(count)
    return counts
