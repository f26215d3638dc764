"""Demonstrations: other rows with their right answers, in front of a row's own prompt."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from zoreward.data.texts import Text
from zoreward.data.tokens import PAIRS, Tokens, encode, tokens_of
from zoreward.records import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BETWEEN = "\n\n"


def demonstrations(texts: Sequence[Text], pool: Sequence[Text], shots: int, seed: int) -> list[list[str]]:
    """For each of `texts` the `shots` demonstrations that go in front of it, in their order.

    All get the first `shots` of one seeded draw from `pool`. Who asks what a demonstration asks (the same prompt and
    the same candidates; for `likelihood` the same prompt) gets the next of the draw behind the others instead.

    Raises:
        InputError: `shots` is negative, or a text finds fewer in the pool.

    >>> pool = [Text(i, f"{i}?", (" no", " yes"), i % 2) for i in (1, 2, 3)]
    >>> demonstrations(pool, pool, shots=1, seed=0)
    [['3? yes'], ['3? yes'], ['2? no']]
    """
    if shots < 0:
        raise InputError(f"--shots {shots} is less than 0", hint="give 0 for no demonstrations")
    if not shots:
        return [[] for _ in texts]
    # Sorted by random(), which alone is promised to stay the same in every Python.
    uniform = random.Random(seed)
    drawn: dict[tuple[str, ...], str] = {}
    for _, text in sorted(((uniform.random(), text) for text in pool), key=lambda pair: pair[0]):
        if len(drawn) <= shots:
            drawn.setdefault(_question(text), text.prompt + text.candidates[text.reference])
    shown = []
    for text in texts:
        others = [demonstration for question, demonstration in drawn.items() if question != _question(text)]
        if len(others) < shots:
            raise InputError(
                f"row {text.number}: --shots {shots} needs {shots} rows that ask something else, "
                f"and there {'is' if len(others) == 1 else 'are'} {len(others)}",
                hint="lower --shots, or give more rows to demonstrate with",
            )
        shown.append(others[:shots])
    return shown


def tokenize_with(
    shown: Sequence[Sequence[str]],
    texts: Sequence[Text],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    kind: str = "causal",
    **how: Any,
) -> list[tuple[Text, Tokens, int]]:
    """Each text behind as many of its demonstrations as fit `max_length`, its tokens, and how many those were.

    The first are left out first. Only a text that is too long without any loses tokens.

    Args:
        shown: the demonstrations of each text.
        texts, tokenizer, max_length, kind, how: as for `tokens_of`.

    Raises:
        InputError: as `tokens_of`.
    """
    counts = _likely_counts(shown, texts, tokenizer, max_length, kind)
    done: dict[int, tuple[Text, Tokens, int]] = {}
    pending = list(range(len(texts)))
    while pending:
        tried = [_behind(texts[i], shown[i], counts[i]) for i in pending]
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


def _behind(text: Text, shown: Sequence[str], count: int) -> Text:
    return text._replace(prompt=_BETWEEN.join([*shown[len(shown) - count :], text.prompt]))


def _likely_counts(
    shown: Sequence[Sequence[str]],
    texts: Sequence[Text],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    kind: str,
) -> list[int]:
    """How many demonstrations may fit each text: rather one too many, so that none is left out without need."""
    if max_length is None or not any(shown):
        return [len(own) for own in shown]
    pieces = list(dict.fromkeys(piece for own in shown for piece in own))
    # In pieces a text can be longer than as a whole: a token less for each joint.
    lengths = {
        piece: len(tokens) - 1
        for piece, tokens in zip(pieces, encode(tokenizer, [_BETWEEN + piece for piece in pieces]), strict=True)
    }
    # An encoder does not read the candidates.
    read = [text.prompt + ("" if kind == PAIRS else candidate) for text in texts for candidate in text.candidates]
    wholes = iter(encode(tokenizer, read))
    counts = []
    for text, own in zip(texts, shown, strict=True):
        room = max_length - max(len(next(wholes)) for _ in text.candidates)
        count = 0
        while count < len(own) and (room := room - lengths[own[-1 - count]]) >= 0:
            count += 1
        counts.append(count)
    return counts
