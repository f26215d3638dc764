"""Texts as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from zoreward.records import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from zoreward.data.texts import Text


class Tokens(NamedTuple):
    """The tokens of a text.

    Args:
        prompt: at least one.
        candidates: for each at least one.
        truncated: how many the prompt lost on its left.
    """

    prompt: tuple[int, ...]
    candidates: tuple[tuple[int, ...], ...]
    truncated: int


def tokenize(
    texts: Sequence[Text],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    *,
    chat: bool = False,
    end: int | None = None,
) -> list[Tokens]:
    """The tokens of each text, the prompt cut on its left where it is too long; see `zoreward.data.render`.

    With `chat` the texts are a chat template's, which writes BOS itself. `end` is the token of an answer without text:
    who says nothing has ended.

    Raises:
        InputError: a candidate without tokens, or one that leaves no room for the prompt.
    """
    # the prompt without its trailing spaces, which are scored with the candidates
    stems = [text.prompt.rstrip(" ") for text in texts]
    stem_tokens = encode(tokenizer, stems)
    joined = list(dict.fromkeys(text.prompt + candidate for text in texts for candidate in text.candidates))
    whole = dict(zip(joined, encode(tokenizer, joined), strict=True))
    front = [] if chat else _front(tokenizer, stems, stem_tokens)
    result = []
    for text, stem, tokens in zip(texts, stems, stem_tokens, strict=True):
        candidates = []
        for candidate in text.candidates:
            # empty where the tokenizer joins the candidate with the prompt's last token
            own = whole[text.prompt + candidate][len(tokens) :]
            candidates.append(tuple(own or encode(tokenizer, [text.prompt[len(stem) :] + candidate])[0]))
            if not candidates[-1] and end is not None:
                candidates[-1] = (end,)
            if not candidates[-1]:
                raise InputError(
                    f"row {text.number}: the answer {candidate!r} has no tokens", hint="it needs some text"
                )
        head = front
        if tokens[: len(front)] == front:  # a template may write BOS itself; it is not doubled
            tokens = tokens[len(front) :]
        if not head and not tokens:
            head = _any_start(tokenizer, text.number)
        longest = max(range(len(candidates)), key=lambda i: len(candidates[i]))
        cut = _cut(len(head), len(tokens), len(candidates[longest]), max_length)
        if cut is None:
            raise InputError(
                f"row {text.number}: the answer {text.candidates[longest]!r:.80} has {len(candidates[longest])} tokens "
                f"and leaves no room for the prompt in {max_length}",
                hint="raise --max-length, or shorten the answer",
            )
        result.append(Tokens((*head, *tokens[cut:]), tuple(candidates), cut))
    return result


def encode(tokenizer: PreTrainedTokenizerBase, texts: list[str], specials: bool = False) -> list[list[int]]:
    """The tokens of each text; with `specials` also those that the tokenizer puts around a text."""
    # verbose=False: texts longer than the model's context are our business
    encoded = tokenizer(texts, add_special_tokens=specials, return_attention_mask=False, verbose=False)
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def _front(tokenizer: PreTrainedTokenizerBase, texts: list[str], tokens: list[list[int]]) -> list[int]:
    """What the tokenizer puts in front of every text: mostly BOS, or nothing."""
    for text, own in zip(texts, tokens, strict=True):
        if own:
            full = encode(tokenizer, [text], specials=True)[0]
            # from the right, should the text itself begin with the same token
            starts = range(len(full) - len(own), -1, -1)
            return next((full[:i] for i in starts if full[i : i + len(own)] == own), [])
    return []


def _any_start(tokenizer: PreTrainedTokenizerBase, number: int) -> list[int]:
    """One token for a model to begin with where the prompt has none."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if isinstance(token, int):
            return [token]
    raise InputError(
        f"row {number}: the prompt has no tokens, and the tokenizer has neither BOS nor EOS to begin with",
        hint="drop such rows, or put some text into --template",
    )


def _cut(head: int, tokens: int, candidate: int, max_length: int | None) -> int | None:
    """How many of the prompt's own tokens go, all counts; None where not even one could stay.

    >>> _cut(head=1, tokens=10, candidate=2, max_length=8), _cut(1, 10, 7, max_length=8)
    (5, None)
    """
    if max_length is None:
        return 0
    room = max_length - head - candidate
    return None if room < min(1, tokens) else max(0, tokens - room)
