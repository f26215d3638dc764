"""Texts as tokens, for models of each kind: what is read, and what is asked. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from zoreward.data.columns import listed
from zoreward.records import InputError, Request

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# How templates write the mask, and the border between two texts, whatever the tokenizer writes.
MASK, BORDER = "[MASK]", "[SEP]"
# Kinds of models: those that read a text as a whole; and an encoder for the prompt with a decoder for the answer.
WHOLE, PAIRS = ("masked", "classifier"), "encoder-decoder"
# Why a preference is left out.
EMPTY, ALIKE = "with an empty answer", "with answers that are alike"
UNREAD = "with an answer that has no tokens of its own"


class Text(NamedTuple):
    """A row as text. Prompt and candidates of conversations are lists of messages until their chat template is filled.

    Args:
        number: of the row, counted from 1.
        prompt: the filled template, demonstrations in front.
        candidates: the answers.
        reference: index of the right one; −1 where the only answer is said to be bad.
        messages: the conversation that the prompt was rendered from; None for a plain prompt.
    """

    number: int
    prompt: Any
    candidates: tuple[Any, ...]
    reference: int
    messages: tuple[dict[str, Any], ...] | None = None


class Tokens(NamedTuple):
    """The tokens of a text.

    Args:
        prompt: at least one.
        candidates: for each at least one.
        truncated: how many the prompt lost: on its left; a classifier's on its right, a masked model's at its ends.
        place: see `zoreward.records.Request.position`.
        types: see `zoreward.records.Request`.
        asked: see `zoreward.records.Example`.
        fault: of a preference that is left out: why; it has no tokens.
        shortened: whether an answer of a preference is cut on its right.
    """

    prompt: tuple[int, ...]
    candidates: tuple[tuple[int, ...], ...]
    truncated: int
    place: int = -1
    types: tuple[int, ...] = ()
    asked: tuple[Request, ...] = ()
    fault: str = ""
    shortened: bool = False


class Ends(NamedTuple):
    """How the answers of preferences end, as those of a file are that nobody has looked through.

    Rows with answers that are alike or empty are left out, and answers that are too long are cut.

    Args:
        token: the end of a text; None: a chat template writes it, or there is none.
    """

    token: int | None = None

    def put_behind(self, answer: tuple[int, ...]) -> tuple[int, ...]:
        """The answer's tokens with the end, which is not doubled; an answer without tokens has none.

        >>> Ends(9).put_behind((7,)), Ends(9).put_behind((7, 9)), Ends().put_behind((7,)), Ends(9).put_behind(())
        ((7, 9), (7, 9), (7,), ())
        """
        return answer if not answer or self.token is None or answer[-1] == self.token else (*answer, self.token)


def tokens_of(
    texts: Sequence[Text],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    kind: str = "causal",
    *,
    classes: Sequence[str] = (),
    chat: bool = False,
    ends: Ends | None = None,
) -> list[Tokens]:
    """The tokens of each text for a model of this kind.

    For a causal model see `tokenize`. An encoder–decoder, a masked model and a classifier read all the tokens that the
    tokenizer puts around a text; what is asked of them are texts of their own, words at the mask, numbers of classes.
    A `ranker`, a head with one output, reads each candidate with its prompt.
    Of an encoder–decoder `max_length` bounds prompt and candidates each.

    Args:
        texts: with candidates.
        tokenizer: of the model.
        max_length: most tokens; None: no limit.
        kind: of the model.
        classes: names of a classifier's classes, in the order of its outputs.
        chat: whether the texts are a chat template's.
        ends: of preferences; None: all rows must be good.

    Raises:
        InputError: a prompt or a candidate without tokens, or no room for it; the tokenizer has no mask, a text has one
            of its own, an answer is not one token or no class.
    """
    if kind == "masked":
        return _around_masks(texts, tokenizer, max_length)
    if kind == "classifier":
        numbers = _class_numbers(texts[0].candidates, classes)
        read = [_read_whole(text, tokenizer, max_length) for text in texts]
        return [Tokens(own, numbers, cut, types=types) for own, types, cut in read]
    if kind == "ranker":
        return _ranked(texts, tokenizer, max_length, chat=chat, ends=ends)
    if kind == PAIRS:
        sources = source_tokens([text.prompt.rstrip(" ") for text in texts], tokenizer, max_length, specials=not chat)
        answers = _answer_tokens(texts, tokenizer, max_length, ends=ends)
        tokens = [
            own._replace(prompt=prompt, truncated=cut) for (prompt, cut), own in zip(sources, answers, strict=True)
        ]
    else:
        tokens = tokenize(texts, tokenizer, max_length, chat=chat, ends=ends)
    warn_of_unknown(texts, tokens, tokenizer)
    return tokens


def tokenize(
    texts: Sequence[Text],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    *,
    chat: bool = False,
    ends: Ends | None = None,
) -> list[Tokens]:
    """The tokens of each text, the prompt cut on its left where it is too long; see `zoreward.data.render`.

    Prompt and candidate together are the tokens of the joined text. They part where the first candidate's joined
    tokens, or the prompt's own, differ from the others': a token that spans the border, such as `(-` of "(" and "-1",
    is the candidates'.

    With `chat` the texts are a chat template's, which writes BOS itself. With `ends` a prompt keeps at least its last
    half of the room, and answers that are too long for the rest lose tokens on their right.

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
        # One that adds no token to the prompt has none, though the border may stand further left, where another
        # candidate is joined with the prompt's last word.
        candidates = [tuple(own[border:]) if own != stem else () for own in wholes]
        head, tokens = _begun(stem[:border], front, tokenizer, text.number, empty=not stem)
        room = None
        if ends is not None and max_length is not None:
            room = max_length - len(head)
            room = max(1, room - min(len(tokens), room // 2))
        good = checked_candidates(text, candidates, tokenizer, ends, room)
        longest = max(range(len(candidates)), key=lambda i: len(candidates[i]))
        cut = 0 if good.fault else _cut(len(head), len(tokens), max(map(len, good.candidates)), max_length)
        if cut is None:
            raise InputError(
                f"row {text.number}: the answer {text.candidates[longest]!r:.80} has {len(candidates[longest])} tokens "
                f"and leaves no room for the prompt in {max_length}",
                hint="raise --max-length, or shorten the answer",
            )
        result.append(good._replace(prompt=(*head, *tokens[cut:]), truncated=cut))
    return result


def shared_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two texts begin with alike.

    >>> shared_length([1, 2, 3], [1, 2, 4, 5])
    2
    """
    shortest = min(len(one), len(other))
    return next((i for i in range(shortest) if one[i] != other[i]), shortest)


def checked_candidates(
    text: Text,
    candidates: Sequence[tuple[int, ...]],
    tokenizer: PreTrainedTokenizerBase,
    ends: Ends | None = None,
    room: int | None = None,
) -> Tokens:
    """The candidates' tokens, without a prompt. Those of preferences end as `ends` says, and are cut to `room` tokens.

    Raises:
        InputError: one has no tokens, or two have the same. With `ends` that is a fault of the row.
    """
    if ends is not None:
        whole = [ends.put_behind(candidate) for candidate in candidates]
        candidates = [candidate[:room] for candidate in whole]
        fault = UNREAD if not all(candidates) else ALIKE if len(set(candidates)) < len(candidates) else ""
        return Tokens((), () if fault else tuple(candidates), 0, fault=fault, shortened=whole != candidates)
    check_candidates(text, candidates, tokenizer)
    return Tokens((), tuple(candidates), 0)


def check_candidates(text: Text, candidates: Sequence[tuple[int, ...]], tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise where a text's candidates cannot be told apart by their tokens.

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
    answers = [
        candidate
        for text, of_text in zip(texts, tokens, strict=True)
        for candidate, ids in zip(text.candidates, of_text.candidates, strict=not of_text.fault)
        # Not where the token is written out; nor where it stands for the end, which some tokenizers give the same one.
        if unknown is not None and unknown in ids and candidate and str(name) not in candidate
    ]
    if answers:
        from transformers.utils import logging

        others = f" (and {len(answers) - 1:,} more)" if len(answers) > 1 else ""
        is_known = unknown not in encode(tokenizer, [answers[0]])[0]
        why = "with the end of its prompt makes a word that" if is_known else "holds what"
        logging.get_logger(__name__).warning_once(
            f"The answer {answers[0]!r:.80}{others} {why} the tokenizer does not know: {name} is scored instead."
        )


def encode(tokenizer: PreTrainedTokenizerBase, texts: list[str], specials: bool = False) -> list[list[int]]:
    """The tokens of each text; with `specials` also those that the tokenizer puts around a text."""
    # verbose=False: texts longer than the model's context are our business
    encoded = tokenizer(texts, add_special_tokens=specials, return_attention_mask=False, verbose=False)
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def _place_in(full: Sequence[int], own: Sequence[int], *, from_right: bool = False) -> int:
    """Where a text's own tokens begin among all that the tokenizer makes of it; 0 where they do not stand there."""
    starts = range(len(full) - len(own) + 1)
    return next((i for i in (reversed(starts) if from_right else starts) if full[i : i + len(own)] == own), 0)


def _front(tokenizer: PreTrainedTokenizerBase, texts: list[str], tokens: list[list[int]]) -> list[int]:
    """What the tokenizer puts in front of every text: mostly BOS, or nothing."""
    for text, own in zip(texts, tokens, strict=True):
        if own:
            full = encode(tokenizer, [text], specials=True)[0]
            # from the right, should the text itself begin with the same token
            return full[: _place_in(full, own, from_right=True)]
    return []


def _begun(
    tokens: list[int], front: list[int], tokenizer: PreTrainedTokenizerBase, number: int, *, empty: bool = True
) -> tuple[list[int], list[int]]:
    """What stands in front of a prompt's own tokens, and those; one token where there would be none to begin with.

    Not `empty` are prompts that answers take in.
    """
    if tokens[: len(front)] == front:  # a template may write BOS itself; it is not doubled
        tokens = tokens[len(front) :]
    if front or tokens:
        return front, tokens
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if isinstance(token, int):
            return [token], tokens
    why = "the prompt has no tokens" if empty else "the prompt's first token is joined with the answer's"
    message = f"row {number}: {why}, and the tokenizer has neither BOS nor EOS to begin with"
    raise InputError(message, hint="drop such rows, or put some text into --template")


def _cut(head: int, tokens: int, candidate: int, max_length: int | None) -> int | None:
    """How many of the prompt's own tokens go, all counts; None where not even one could stay.

    >>> _cut(head=1, tokens=10, candidate=2, max_length=8), _cut(1, 10, 7, max_length=8)
    (5, None)
    """
    if max_length is None:
        return 0
    room = max_length - head - candidate
    return None if room < min(1, tokens) else max(0, tokens - room)


def prompt_tokens(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int | None, kind: str, *, chat: bool
) -> list[tuple[tuple[int, ...], int]]:
    """What a model reads of prompts that it writes on from, and how many tokens each prompt lost on its left to fit.

    Args:
        texts: the prompts.
        tokenizer: of the model.
        max_length: most tokens; None: no limit.
        kind: of the model.
        chat: whether the texts are a chat template's, which writes BOS itself.

    Raises:
        InputError: there is no room, or a text has no tokens.
    """
    if kind == PAIRS:
        return source_tokens(texts, tokenizer, max_length, specials=not chat)
    bare = encode(tokenizer, list(texts))
    front = [] if chat else _front(tokenizer, list(texts), bare)
    result = []
    for number, whole in enumerate(bare, 1):
        head, tokens = _begun(whole, front, tokenizer, number)
        cut = 0 if max_length is None else max(0, len(tokens) - max(max_length - len(head), 0))
        if tokens and cut == len(tokens):
            raise InputError(f"row {number}: there is no room for the prompt in {max_length} tokens")
        result.append(((*head, *tokens[cut:]), cut))
    return result


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
    result = []
    for number, (bare_tokens, tokens) in enumerate(zip(bare, whole, strict=True), 1):
        front = _place_in(tokens, bare_tokens)
        cut = 0 if max_length is None else max(0, len(tokens) - max_length)
        if cut and cut >= len(bare_tokens):
            raise InputError(f"row {number}: there is no room for the prompt in {max_length} tokens")
        if not tokens:
            raise InputError(f"row {number}: the prompt has no tokens", hint="drop such rows, or change --template")
        result.append(((*tokens[:front], *tokens[front + cut :]), cut))
    return result


def _answer_tokens(
    texts: Sequence[Text], tokenizer: PreTrainedTokenizerBase, max_length: int | None, *, ends: Ends | None = None
) -> list[Tokens]:
    """The tokens of each text's candidates, without EOS. They begin a text, so spaces in front of them are dropped.

    Args:
        texts: with candidates.
        tokenizer: of the model.
        max_length: most tokens of one; None: no limit.
        ends: of preferences.

    Raises:
        InputError: a candidate without tokens, with too many, or with those of another.
    """
    spelled = list(dict.fromkeys(candidate.lstrip(" ") for text in texts for candidate in text.candidates))
    tokens = dict(zip(spelled, encode(tokenizer, spelled), strict=True))
    result = []
    for text in texts:
        answers = [tuple(tokens[one.lstrip(" ")]) for one in text.candidates]
        good = checked_candidates(text, answers, tokenizer, ends, max_length)
        for candidate, answer in zip(text.candidates, good.candidates, strict=not good.fault):
            if max_length is not None and len(answer) > max_length:
                message = f"row {text.number}: the answer {candidate!r:.80} has {len(answer)} tokens, not {max_length}"
                raise InputError(message, hint="raise --max-length, or shorten the answer")
        result.append(good)
    return result


def _class_numbers(candidates: Sequence[str], classes: Sequence[str]) -> tuple[tuple[int], ...]:
    """Which output belongs to each candidate: that of its name; else, where there are as many, that of its place."""
    names = [name.strip().casefold() for name in classes]
    wanted = [candidate.strip().casefold() for candidate in candidates]
    if all(name in names for name in wanted):
        return tuple((names.index(name),) for name in wanted)
    if len(names) == len(wanted) and not set(names) & set(wanted):
        return tuple((number,) for number in range(len(names)))
    raise InputError(
        f"the choices {listed([repr(one) for one in candidates])} are not the model's classes",
        hint=f"its classes are {listed(list(classes))}; name them with --choice in label order, or leave --choice out",
    )


def _read_whole(
    text: Text, tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """The tokens of a text, their types where not all are 0, and how many were cut off on its right."""
    parts = [part.strip() for part in text.prompt.split(BORDER)] if BORDER in text.prompt else [text.prompt]
    if len(parts) > 2:
        raise InputError(f"row {text.number}: {BORDER} stands in its text twice", hint="there are two texts at most")
    if tokenizer.sep_token is None:  # a model that knows of one text
        parts = ["\n".join(parts)]
    encoded = tokenizer(*parts, verbose=False)
    full = len(encoded["input_ids"])
    if max_length is not None and full > max_length:
        encoded = tokenizer(*parts, truncation=True, max_length=max_length, verbose=False)
    tokens, types = tuple(encoded["input_ids"]), tuple(encoded.get("token_type_ids") or ())
    if not tokens:
        raise InputError(f"row {text.number}: the text has no tokens", hint="drop such rows, or change --template")
    return tokens, types if any(types) else (), full - len(tokens)


def _ranked(
    texts: Sequence[Text],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    *,
    chat: bool,
    ends: Ends | None = None,
) -> list[Tokens]:
    """What a head with one output reads: each candidate with its prompt, as two texts where the tokenizer parts them.

    It is asked for its only output, number 0. A prompt that is too long loses tokens on its left. Of preferences it
    keeps its last half of the room at least, and answers that are too long for the rest lose tokens on their right.
    """
    parted = tokenizer.sep_token is not None and not chat
    found = []
    for text, own in zip(texts, encode(tokenizer, [text.prompt for text in texts]), strict=True):
        asked: list[Request] = []
        borders, cuts, shortened = [], [], False  # of each candidate: where its prompt ends, how much that lost
        for candidate in text.candidates:
            parts = [text.prompt, candidate.lstrip(" ")] if parted else [text.prompt + candidate]
            how = {"add_special_tokens": not chat, "return_special_tokens_mask": True, "verbose": False}
            encoded = tokenizer(*parts, **how)
            tokens, types = encoded["input_ids"], encoded.get("token_type_ids") or []
            front, cut = _place_in(tokens, own[:1]), max(0, len(tokens) - (max_length or len(tokens)))
            if ends is not None and (over := cut - max(0, len(own) - (max_length or 0) // 2)) > 0:
                specials = encoded["special_tokens_mask"][::-1]
                end = len(tokens) - (specials.index(0) if 0 in specials else 0)
                del tokens[end - over : end], types[end - over : end]
                cut, shortened = cut - over, True
            if cut and cut >= len(own):
                message = f"row {text.number}: the answer {candidate!r:.80} leaves no room for the prompt"
                raise InputError(f"{message} in {max_length} tokens", hint="raise --max-length, or shorten the answer")
            del tokens[front : front + cut], types[front : front + cut]
            asked.append(Request(tuple(tokens), (0,), types=tuple(types) if any(types) else ()))
            borders.append(front + len(own) - cut)
            cuts.append(cut)
        border = min(*borders, *(shared_length(asked[0].prompt, other.prompt) for other in asked))
        candidates = tuple(request.prompt[border:] for request in asked)
        good = checked_candidates(text, candidates, tokenizer, ends)
        made = good._replace(prompt=asked[0].prompt[:border], truncated=max(cuts))
        found.append(made._replace(asked=tuple(asked), shortened=shortened))
    return found


def _around_masks(texts: Sequence[Text], tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> list[Tokens]:
    """The tokens of texts for a masked model, and the words that may stand at the mask."""
    mask = tokenizer.mask_token_id
    if mask is None:
        hint = "take the tokenizer of a model that was trained to fill masks"
        raise InputError("the tokenizer has no mask token", hint=hint)
    border = tokenizer.sep_token or "\n"
    prompts = [text.prompt.replace(MASK, str(tokenizer.mask_token)).replace(BORDER, border) for text in texts]
    words: dict[tuple[str, ...], tuple[tuple[int], ...]] = {}
    result = []
    for text, bare, full in zip(
        texts, encode(tokenizer, prompts), encode(tokenizer, prompts, specials=True), strict=True
    ):
        if bare.count(mask) != 1:
            message = f"row {text.number}: there are {bare.count(mask)} masks in its text"
            raise InputError(message, hint="drop rows that hold one")
        if text.candidates not in words:
            words[text.candidates] = _words(text, tokenizer)
        front, place = _place_in(full, bare), bare.index(mask)
        left, right = _cut_around(place, len(bare) - place - 1, len(full) - len(bare), max_length, text.number)
        tokens = (*full[:front], *bare[left : len(bare) - right], *full[front + len(bare) :])
        result.append(Tokens(tokens, words[text.candidates], left + right, place=front + place - left))
    return result


def _words(text: Text, tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[int], ...]:
    """The token of each candidate: that of the word behind a space, as it stands in a text."""
    words: list[tuple[int]] = []
    for candidate in text.candidates:
        word = candidate.strip()
        # Not before a comma or a point, which stand next to the word in front.
        tokens = encode(tokenizer, [f" {word}" if word[:1].isalnum() else word])[0]
        if len(tokens) != 1 or tokens[0] == tokenizer.unk_token_id:
            pieces = " + ".join(map(repr, tokenizer.convert_ids_to_tokens(tokens))) or "nothing"
            raise InputError(
                f"row {text.number}: the answer {candidate!r} is {pieces} to the tokenizer, and a mask holds one token",
                hint="take a word that is one token; --show-prompts prints them",
            )
        if (tokens[0],) in words:
            other = text.candidates[words.index((tokens[0],))]
            hint = "every answer needs a token of its own"
            raise InputError(f"the answers {other!r} and {candidate!r} are the same token", hint=hint)
        words.append((tokens[0],))
    return tuple(words)


def _cut_around(left: int, right: int, around: int, max_length: int | None, number: int) -> tuple[int, int]:
    """How many tokens go on the far left and on the far right of a mask, the longer side first.

    >>> _cut_around(left=6, right=2, around=2, max_length=8, number=1), _cut_around(3, 3, 2, 6, number=1)
    ((3, 0), (2, 1))
    """
    excess = 0 if max_length is None else max(0, left + 1 + right + around - max_length)
    if excess > left + right:
        raise InputError(f"row {number}: no room for the mask in {max_length} tokens", hint="raise --max-length")
    kept = left + right - excess
    # as even as the sides allow
    kept_right = min(right, max(kept // 2 + kept % 2, kept - left))
    return left - (kept - kept_right), right - kept_right
