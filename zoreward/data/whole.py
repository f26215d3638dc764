"""Rows for models that read a text as a whole: those that fill a mask, and those that name a class. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from zoreward.config import Prompting, part_of
from zoreward.data.columns import columns_hint, columns_of, listed
from zoreward.data.texts import Text, texts_of
from zoreward.data.tokens import encode
from zoreward.records import Example, InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# How templates write the mask, and the border between two texts, whatever the tokenizer writes.
MASK, BORDER = "[MASK]", "[SEP]"
WHOLE = ("masked", "classifier")


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
        columns = columns_of(row for row in rows if isinstance(row, dict))
        if prompting.prompt not in columns:
            near = columns_hint(prompting.prompt, columns)
            hint = f"give --template '{{sentence}}' or --prompt, with your column; {near}"
            raise InputError("there is no text to classify", hint=hint)
        prompting = part_of(Prompting, prompting, template=f"{{{prompting.prompt}}}")
    if MASK in (prompting.template or ""):
        raise InputError(
            f"the template {prompting.template!r} has a mask, and a classifier fills none", hint="leave it out"
        )
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
        found = f"{count} masks" if count else "no mask"
        hint = f"write {MASK} once, where the answer stands: '{{sentence}} It was {MASK} .'"
        raise InputError(f"the template {prompting.template!r} has {found}, and a masked model fills one", hint=hint)
    return texts_of(rows, needs, prompting)


def whole_examples(
    rows: list[dict[str, Any]],
    texts: Sequence[Text],
    tokenizer: PreTrainedTokenizerBase,
    kind: str,
    classes: Sequence[str],
    max_length: int | None,
) -> list[Example]:
    """Every row's text as tokens, with those that the tokenizer puts around it.

    `Example.place` is the place of the mask. The candidates' tokens are the words that may stand there, or the numbers
    of the classes.

    Raises:
        InputError: the tokenizer has no mask, a text has one of its own, an answer is not one token or no class, or
            nothing fits `max_length`.
    """
    if kind == "masked":
        return _masked_examples(rows, texts, tokenizer, max_length)
    numbers = _class_numbers(texts[0].candidates, classes)
    read = [_read_whole(text, tokenizer, max_length) for text in texts]
    return [
        Example(row, text.prompt, text.candidates, text.reference, own, numbers, cut, types=types)
        for row, text, (own, types, cut) in zip(rows, texts, read, strict=True)
    ]


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


def _masked_examples(
    rows: list[dict[str, Any]], texts: Sequence[Text], tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> list[Example]:
    mask = tokenizer.mask_token_id
    if mask is None:
        hint = "take the tokenizer of a model that was trained to fill masks"
        raise InputError("the tokenizer has no mask token", hint=hint)
    border = tokenizer.sep_token or "\n"
    prompts = [text.prompt.replace(MASK, str(tokenizer.mask_token)).replace(BORDER, border) for text in texts]
    bare, full = encode(tokenizer, prompts), encode(tokenizer, prompts, specials=True)
    words: dict[tuple[str, ...], tuple[tuple[int], ...]] = {}
    examples = []
    for row, text, own, whole in zip(rows, texts, bare, full, strict=True):
        if own.count(mask) != 1:
            raise InputError(
                f"row {text.number}: there are {own.count(mask)} masks in its text", hint="drop rows that hold one"
            )
        if text.candidates not in words:
            words[text.candidates] = _words(text, tokenizer)
        starts = range(len(whole) - len(own) + 1)
        front = next((i for i in starts if whole[i : i + len(own)] == own), 0)
        place = own.index(mask)
        left, right = _cut_around(place, len(own) - place - 1, len(whole) - len(own), max_length, text.number)
        tokens = (*whole[:front], *own[left : len(own) - right], *whole[front + len(own) :])
        made = (text.prompt, text.candidates, text.reference, tokens, words[text.candidates], left + right)
        examples.append(Example(row, *made, place=front + place - left))
    return examples


def _words(text: Text, tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[int], ...]:
    """The token of each candidate: that of the word behind a space, as it stands in a text."""
    found: list[tuple[int]] = []
    for candidate in text.candidates:
        word = candidate.strip()
        # Not before a comma or a point, which stand next to the word in front.
        own = encode(tokenizer, [f" {word}" if word[:1].isalnum() else word])[0]
        if len(own) != 1 or own[0] == tokenizer.unk_token_id:
            pieces = " + ".join(map(repr, tokenizer.convert_ids_to_tokens(own))) or "nothing"
            raise InputError(
                f"row {text.number}: the answer {candidate!r} is {pieces} to the tokenizer, and a mask holds one token",
                hint="take a word that is one token; --show-prompts prints them",
            )
        if (own[0],) in found:
            other = text.candidates[found.index((own[0],))]
            hint = "every answer needs a token of its own"
            raise InputError(f"the answers {other!r} and {candidate!r} are the same token", hint=hint)
        found.append((own[0],))
    return tuple(found)


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
