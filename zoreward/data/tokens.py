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

    Prompt and candidate together are the tokens of the joined text. They part where the first candidate's joined
    tokens, or the prompt's own, differ from the others': a token that spans the border, such as `(-` of "(" and "-1",
    is the candidates'.

    With `chat` the texts are a chat template's, which writes BOS itself. `end` is the token of an answer without text:
    who says nothing has ended.

    Raises:
        InputError: a candidate without tokens, two with the same, or one that leaves no room for the prompt.

    Source: where DPOTrainer of TRL 1.16 cuts, `common_prefix_length` of the prompt and of prompt and completion.
    """
    # the prompt without its trailing spaces, which are scored with the candidates
    stems = [text.prompt.rstrip(" ") for text in texts]
    stem_tokens = encode(tokenizer, stems)
    joined = list(dict.fromkeys(text.prompt + candidate for text in texts for candidate in text.candidates))
    whole = dict(zip(joined, encode(tokenizer, joined), strict=True))
    front = [] if chat else _front(tokenizer, stems, stem_tokens)
    result = []
    for text, stem in zip(texts, stem_tokens, strict=True):
        wholes = [whole[text.prompt + candidate] for candidate in text.candidates]
        border = min(shared_length(stem, own) for own in wholes)
        candidates = [
            _behind(border, stem, own, None if candidate.strip() else end)
            for own, candidate in zip(wholes, text.candidates, strict=True)
        ]
        check_candidates(text, candidates, tokenizer)
        tokens, head = stem[:border], front
        if tokens[: len(front)] == front:  # a template may write BOS itself; it is not doubled
            tokens = tokens[len(front) :]
        if not head and not tokens:
            head = _any_start(tokenizer, text.number, empty=not stem)
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


def _behind(border: int, stem: Sequence[int], whole: Sequence[int], end: int | None) -> tuple[int, ...]:
    """A candidate's tokens. One that adds none to the prompt has none, or the end's: those before it are the prompt's,
    though the border may stand further left, where another candidate is joined with the prompt's last word.

    >>> _behind(1, [7, 8], [7, 9], None), _behind(1, [7, 8], [7, 8], None), _behind(1, [7, 8], [7, 8], 0)
    ((9,), (), (8, 0))
    """
    if list(whole) != list(stem):
        return tuple(whole[border:])
    return () if end is None else (*whole[border:], end)


def shared_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two texts begin with alike.

    >>> shared_length([1, 2, 3], [1, 2, 4, 5])
    2
    """
    shortest = min(len(one), len(other))
    return next((i for i in range(shortest) if one[i] != other[i]), shortest)


def check_candidates(text: Text, candidates: Sequence[tuple[int, ...]], tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise where a text's candidates are not to be told apart by their tokens.

    Raises:
        InputError: one has no tokens, or two have the same.
    """
    spelled: dict[tuple[int, ...], str] = {}
    for candidate, tokens in zip(text.candidates, candidates, strict=True):
        if not tokens:
            why, hint = _why_no_tokens(text.prompt, candidate, tokenizer)
            raise InputError(f"row {text.number}: the answer {candidate!r:.80} has no tokens{why}", hint=hint)
        if tokens in spelled:
            names = " ".join(map(str, tokenizer.convert_ids_to_tokens(list(tokens))))
            raise InputError(
                f"row {text.number}: the answers {spelled[tokens]!r:.80} and {candidate!r:.80} are the same tokens to "
                f"this tokenizer ({names:.80}), so every model finds them equally likely",
                hint="mind the space in front of an answer; or take words that it tells apart, or drop such rows",
            )
        spelled[tokens] = candidate


def _why_no_tokens(prompt: str, candidate: str, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """Why an answer has no tokens behind its prompt, and what to do."""
    if not candidate.strip():
        return "", "it needs some text"
    alone, joined = encode(tokenizer, [candidate, prompt + candidate])
    if not alone:
        return ", as this tokenizer knows nothing of it", "take words that it knows, or a model whose tokenizer does"
    unit, end = " ".join(map(str, tokenizer.convert_ids_to_tokens(joined[-1:]))), (prompt.split() or [prompt])[-1]
    return (
        f" of its own: this tokenizer makes one, {unit:.40}, of it and of the prompt's end {end!r:.40}",
        "part them by a space in front of the answer; if they have one, take words that the tokenizer knows",
    )


def warn_of_unknown(texts: Sequence[Text], tokens: Sequence[Tokens], tokenizer: PreTrainedTokenizerBase) -> None:
    """Say, once, that candidates hold what the tokenizer has no token for, so that another text is scored."""
    name, unknown = tokenizer.unk_token, tokenizer.unk_token_id
    found = [
        candidate
        for text, own in zip(texts, tokens, strict=True)
        for candidate, ids in zip(text.candidates, own.candidates, strict=True)
        # Not where the token is written out; nor where it stands for the end, which some tokenizers give the same one.
        if unknown is not None and unknown in ids and candidate and str(name) not in candidate
    ]
    if found:
        from transformers.utils import logging

        others = f" (and {len(found) - 1:,} more)" if len(found) > 1 else ""
        is_known = unknown not in encode(tokenizer, [found[0]])[0]
        why = "with the end of its prompt makes a word that" if is_known else "holds what"
        logging.get_logger(__name__).warning_once(
            f"The answer {found[0]!r:.80}{others} {why} the tokenizer does not know: {name} is scored instead."
        )


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


def _any_start(tokenizer: PreTrainedTokenizerBase, number: int, *, empty: bool = True) -> list[int]:
    """One token for a model to begin with where the prompt has none; not `empty` are prompts that answers take in."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if isinstance(token, int):
            return [token]
    why = "the prompt has no tokens" if empty else "the prompt's first token is joined with the answer's"
    raise InputError(
        f"row {number}: {why}, and the tokenizer has neither BOS nor EOS to begin with",
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
