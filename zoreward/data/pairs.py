"""Texts as tokens for encoder–decoders: the encoder reads the prompt, the decoder the answer. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from zoreward.data.tokens import Tokens, check_candidates, encode, tokenize, warn_of_unknown
from zoreward.records import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from zoreward.data.texts import Text

# The kind of model that reads them.
PAIRS = "encoder-decoder"


def tokens_of(
    texts: Sequence[Text],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    kind: str = "causal",
    *,
    chat: bool = False,
    end: int | None = None,
) -> list[Tokens]:
    """The tokens of each text for a model of this kind; see `tokenize`, and for encoder–decoders what follows.

    The prompt has all the tokens that the tokenizer puts around a text; `max_length` bounds prompt and candidates each.

    Raises:
        InputError: a prompt or a candidate without tokens, or no room for it.
    """
    if kind != PAIRS:
        found = tokenize(texts, tokenizer, max_length, chat=chat, end=end)
    else:
        sources = source_tokens([text.prompt.rstrip(" ") for text in texts], tokenizer, max_length, specials=not chat)
        answers = answer_tokens(texts, tokenizer, max_length, end=end)
        found = [Tokens(prompt, own, cut) for (prompt, cut), own in zip(sources, answers, strict=True)]
    warn_of_unknown(texts, found, tokenizer)
    return found


def source_tokens(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int | None, *, specials: bool = True
) -> list[tuple[tuple[int, ...], int]]:
    """What the encoder reads of each text, and how many tokens the text lost on its left to fit.

    Args:
        texts: the prompts.
        tokenizer: of the model.
        max_length: most tokens; None: no limit.
        specials: put around each text what the tokenizer puts there, as EOS behind it; it is never cut off.

    Raises:
        InputError: there is no room, or a text has no tokens.
    """
    bare = encode(tokenizer, list(texts))
    whole = encode(tokenizer, list(texts), specials=True) if specials else bare
    found = []
    for number, (own, full) in enumerate(zip(bare, whole, strict=True), 1):
        starts = range(len(full) - len(own) + 1)
        front = next((i for i in starts if full[i : i + len(own)] == own), 0)
        cut = 0 if max_length is None else max(0, len(full) - max_length)
        if cut and cut >= len(own):
            raise InputError(f"row {number}: there is no room for the prompt in {max_length} tokens")
        if not full:
            raise InputError(f"row {number}: the prompt has no tokens", hint="drop such rows, or change --template")
        found.append(((*full[:front], *full[front + cut :]), cut))
    return found


def answer_tokens(
    texts: Sequence[Text], tokenizer: PreTrainedTokenizerBase, max_length: int | None, *, end: int | None = None
) -> list[tuple[tuple[int, ...], ...]]:
    """The tokens of each text's candidates, without EOS. They begin a text, so spaces in front of them are dropped.

    Args:
        texts: with candidates.
        tokenizer: of the model.
        max_length: most tokens of one; None: no limit.
        end: the token of an answer without text.

    Raises:
        InputError: a candidate without tokens, with too many, or with those of another.
    """
    spelled = list(dict.fromkeys(candidate.lstrip(" ") for text in texts for candidate in text.candidates))
    tokens = dict(zip(spelled, encode(tokenizer, spelled), strict=True))
    found = []
    for text in texts:
        own = [
            tuple(tokens[one.lstrip(" ")]) or (() if end is None or one.strip() else (end,)) for one in text.candidates
        ]
        check_candidates(text, own, tokenizer)
        for candidate, answer in zip(text.candidates, own, strict=True):
            if max_length is not None and len(answer) > max_length:
                message = f"row {text.number}: the answer {candidate!r:.80} has {len(answer)} tokens, not {max_length}"
                raise InputError(message, hint="raise --max-length, or shorten the answer")
        found.append(tuple(own))
    return found
