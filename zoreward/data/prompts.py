"""Prompts from rows: the texts a model reads and the answers it is asked about, as tokens. Free of torch."""

from __future__ import annotations

import difflib
import re
import string
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from zoreward.records import Example, InputError, UnknownNameError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class _Text(NamedTuple):
    prompt: str
    candidates: tuple[str, ...]
    reference: int


class _Tokens(NamedTuple):
    prompt: tuple[int, ...]
    candidates: tuple[tuple[int, ...], ...]
    truncated: int


def render(
    rows: Iterable[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    needs: str,
    template: str | None,
    choices: Sequence[str] | None = None,
    label: str = "label",
    answer: str | None = None,
    max_length: int | None = None,
) -> list[Example]:
    """Every row as an `Example`: the prompt, the candidates, the index of the right one, and the tokens of all.

    The tokens of prompt and candidate, one after the other, are those of the joined text, split where the prompt's
    own tokens end. Spaces at the prompt's end are counted to the candidates, because most tokenizers join a space
    with the word behind it. What the tokenizer puts in front of a text (BOS) stands in front of the prompt; what it
    puts behind (EOS) is left out.

    Args:
        rows: at least one; a list of dicts or a `datasets.Dataset`.
        tokenizer: of the model that will read the prompts.
        needs: `choices` or `likelihood`.
        template: the prompt; a `str.format` template over the columns: `{sentence} It was`, `{answers[0]}`.
        choices: for `choices`: two or more different answers, the answer for label 0 first. Labels that are no
            numbers: `label=answer` each, in any order. Choices are read as `label=answer` where every one has an `=`
            and a label of the rows stands in front of one of them.
        label: for `choices`: the column of the right choice: an integer, a bool, "0" or "1", or a name.
        answer: for `likelihood`: the right answer, a template like `template`.
        max_length: tokens that the prompt and its longest candidate may have together. Longer prompts lose tokens on
            the left, but never BOS. None: no limit.

    Raises:
        InputError: an option is missing; a template, a choice or a label does not fit the rows; a candidate without
            tokens; a candidate too long for `max_length`. Rows are counted from 1.
        UnknownNameError: no row has the column `label`.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import PreTrainedTokenizerFast
        >>> words = Tokenizer(models.WordLevel({"fine": 0, "It": 1, "was": 2, "bad": 3, "good": 4}))
        >>> words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
        >>> [example] = render([{"sentence": "fine", "label": 1}], tokenizer, needs="choices",
        ...                    template="{sentence} It was", choices=[" bad", " good"])
        >>> example.prompt, example.candidates, example.reference
        ('fine It was', (' bad', ' good'), 1)
        >>> example.prompt_tokens, example.candidate_tokens
        ((0, 1, 2), ((3,), (4,)))

    Source: the split follows `_encode_pair` of EleutherAI's lm-evaluation-harness, except that only spaces change
    sides: newer tokenizers join a line break with the character before it ("?⏎"), not with the word behind it.
    """
    rows = list(rows)
    texts = _texts(rows, needs, template, choices, label, answer)
    return [
        Example(row, text.prompt, text.candidates, text.reference, tokens.prompt, tokens.candidates, tokens.truncated)
        for row, text, tokens in zip(rows, texts, _tokens(texts, tokenizer, max_length), strict=True)
    ]


def check_columns(
    rows: Iterable[dict[str, Any]],
    *,
    needs: str,
    template: str | None,
    choices: Sequence[str] | None = None,
    label: str = "label",
    answer: str | None = None,
) -> None:
    """Raise what `render` would raise about rows and options, without a tokenizer: before any model is loaded.

    Raises:
        InputError, UnknownNameError: as `render`.

    Example:
        >>> check_columns([{"text": "fine"}], needs="likelihood", template="{txt}:", answer="{text}")
        Traceback (most recent call last):
        zoreward.records.InputError: --template: no row has the column 'txt'
    """
    _texts(list(rows), needs, template, choices, label, answer)


def _texts(
    rows: list[dict[str, Any]],
    needs: str,
    template: str | None,
    choices: Sequence[str] | None,
    label: str,
    answer: str | None,
) -> list[_Text]:
    if not rows:
        raise InputError("there are no rows", hint="give at least one row")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise InputError(f"row {number} is a {type(row).__name__}, not a dict", hint="a row is {column: value}")
    if needs not in ("choices", "likelihood"):
        raise InputError(f"no prompts are known for {needs!r}", hint="it is choices or likelihood")
    if template is None:
        raise InputError("there is no prompt", hint="give --template '{sentence} It was', with your columns")
    prompts = _fill(template, rows, "--template")
    if needs == "likelihood":
        if answer is None:
            raise InputError("there is no right answer", hint="give --answer ' {answer}', with your columns")
        return [
            _Text(prompt, (right,), 0) for prompt, right in zip(prompts, _fill(answer, rows, "--answer"), strict=True)
        ]
    if choices is None:
        raise InputError("there are no answers to choose from", hint="give --choice once for each label")
    candidates, references = _choose(rows, choices, label)
    return [_Text(prompt, candidates, reference) for prompt, reference in zip(prompts, references, strict=True)]


# Templates


def _fill(template: str, rows: list[dict[str, Any]], option: str) -> list[str]:
    """The template filled with each row."""
    fields = _fields(template, option)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    if not fields:
        column = template.strip()
        hint = f"did you mean {{{column}}}?" if column in columns else f"name a column in braces: {_listed(columns)}"
        raise InputError(f"{option} {template!r} names no column, so all rows would get the same text", hint=hint)
    for field in fields:
        if (column := _column(field)) not in columns:
            raise InputError(f"{option}: no row has the column {column!r}", hint=_hint(column, columns))
    return [_fill_row(template, fields, row, f"row {number}", option) for number, row in enumerate(rows, 1)]


def _fields(template: str, option: str) -> list[str]:
    """The fields of a template, as they are written in it: `answers[0]`.

    >>> _fields("{answers[0]} is {score:{width}} {{so}}", "--template")
    ['answers[0]', 'score', 'width']
    """
    fields = []
    try:
        for _, field, spec, _ in string.Formatter().parse(template):
            if field is not None:
                fields.append(field)
                fields += _fields(spec or "", option)
    except ValueError as error:
        raise InputError(f"{option} {template!r}: {error}", hint="write {{ or }} for a brace that is meant") from None
    for field in fields:
        if not _column(field) or _column(field).isdigit():
            raise InputError(f"{option} {template!r}: {{{field}}} names no column", hint="write the column: {sentence}")
    return fields


def _column(field: str) -> str:
    """The column that a field begins with: `a` of `a[b]`."""
    return re.split(r"[.\[]", field, maxsplit=1)[0]


def _fill_row(template: str, fields: list[str], row: dict[str, Any], where: str, option: str) -> str:
    for field in fields:
        if _column(field) not in row:
            raise InputError(
                f"{where} has no column {_column(field)!r}, which {option} names", hint=f"it has {_listed(list(row))}"
            )
        try:
            value, _ = string.Formatter().get_field(field, (), row)
        except (LookupError, AttributeError, TypeError, ValueError) as error:
            raise InputError(
                f"{where}: {{{field}}} of {option} finds nothing ({type(error).__name__}: {error})",
                hint=f"the column {_column(field)!r} holds {row[_column(field)]!r:.80}",
            ) from None
        if value is None:
            raise InputError(f"{where}: {{{field}}} of {option} is empty (None)", hint="drop such rows, or fill them")
    try:
        return template.format_map(row)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where} does not fit {option} {template!r}: {error}", hint="mind what follows ':'") from None


# Choices and labels


def _choose(rows: list[dict[str, Any]], choices: Sequence[str], label: str) -> tuple[tuple[str, ...], list[int]]:
    """The candidates, and for each row the index of the right one."""
    if isinstance(choices, str) or len(choices) < 2:
        raise InputError("one choice is no choice", hint="give --choice once for each label, at least two")
    for choice in choices:
        if not isinstance(choice, str):
            raise InputError(f"the choice {choice!r} is no text", hint=f"put it in quotes: '{choice}'")
    labels = _labels(rows, label)
    spelled = {spelling for value in labels for spelling in _spellings(value)}
    keys, answers = [str(index) for index in range(len(choices))], list(choices)
    pairs = [choice.partition("=") for choice in choices]
    named = all(equals for _, equals, _ in pairs) and any(key in spelled for key, _, _ in pairs)
    if named:
        keys, answers = [key for key, _, _ in pairs], [text for _, _, text in pairs]
    for what, texts in (("label", keys), ("answer", answers)):
        for text in texts:
            if texts.count(text) > 1:
                raise InputError(f"two choices have the {what} {text!r}", hint="every choice needs its own")
    index = {key: i for i, key in enumerate(keys)}
    references = [next((index[s] for s in _spellings(value) if s in index), -1) for value in labels]
    if -1 in references:
        wrong = references.index(-1)
        known = _listed(list(dict.fromkeys(map(repr, labels))))
        hint = (
            f"labels in the rows: {known}; choices are for {_listed(keys)}{'' if named else '; or give label=answer'}"
        )
        raise InputError(
            f"row {wrong + 1}: the label {labels[wrong]!r} belongs to none of the {len(choices)} choices", hint=hint
        )
    return tuple(answers), references


def _labels(rows: list[dict[str, Any]], column: str) -> list[Any]:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if column not in columns:
        hint = f"give --label; {_hint(column, columns)}"
        raise UnknownNameError(f"no row has the label column {column!r}", hint=hint)
    for number, row in enumerate(rows, 1):
        if row.get(column) is None:
            raise InputError(f"row {number} has no label in column {column!r}", hint="drop such rows, or fill them")
    # numpy's scalars (datasets, pandas) become Python's
    return [row[column].item() if hasattr(row[column], "item") else row[column] for row in rows]


def _spellings(label: Any) -> tuple[str, ...]:
    """How a label may be written in `label=answer`; for a number also its index.

    >>> _spellings(True), _spellings(2.0), _spellings("positive")
    (('1', 'true', 'True'), ('2',), ('positive',))
    """
    if isinstance(label, bool):
        return str(int(label)), str(label).lower(), str(label)
    if isinstance(label, float) and label.is_integer():
        return (str(int(label)),)
    return (str(label),)


def _hint(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, [str(known) for known in names])
    return (f"did you mean {' or '.join(close)}? " if close else "") + f"the columns are {_listed(names)}"


def _listed(names: list[str], most: int = 50) -> str:
    return ", ".join([str(name) for name in names[:most]] + ["…"] * (len(names) > most)) or "none"


# Tokens


def _tokens(texts: list[_Text], tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> list[_Tokens]:
    # the prompt without its trailing spaces, which are scored with the candidates
    stems = [text.prompt.rstrip(" ") for text in texts]
    stem_tokens = _encode(tokenizer, stems)
    joined = list(dict.fromkeys(text.prompt + candidate for text in texts for candidate in text.candidates))
    whole = dict(zip(joined, _encode(tokenizer, joined), strict=True))
    front = _front(tokenizer, stems, stem_tokens)
    result = []
    for number, (text, stem, tokens) in enumerate(zip(texts, stems, stem_tokens, strict=True), 1):
        candidates = []
        for candidate in text.candidates:
            # empty where the tokenizer joins the candidate with the prompt's last token
            own = whole[text.prompt + candidate][len(tokens) :]
            candidates.append(tuple(own or _encode(tokenizer, [text.prompt[len(stem) :] + candidate])[0]))
            if not candidates[-1]:
                raise InputError(f"row {number}: the answer {candidate!r} has no tokens", hint="it needs some text")
        head = front
        if tokens[: len(front)] == front:  # a template may write BOS itself; it is not doubled
            tokens = tokens[len(front) :]
        if not head and not tokens:
            head = _any_start(tokenizer, number)
        longest = max(range(len(candidates)), key=lambda i: len(candidates[i]))
        cut = _cut(len(head), len(tokens), len(candidates[longest]), max_length)
        if cut is None:
            raise InputError(
                f"row {number}: the answer {text.candidates[longest]!r:.80} has {len(candidates[longest])} tokens and "
                f"leaves no room for the prompt in {max_length}",
                hint="raise --max-length, or shorten the answer",
            )
        result.append(_Tokens((*head, *tokens[cut:]), tuple(candidates), cut))
    return result


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str], specials: bool = False) -> list[list[int]]:
    # verbose=False: texts longer than the model's context are our business
    encoded = tokenizer(texts, add_special_tokens=specials, return_attention_mask=False, verbose=False)
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def _front(tokenizer: PreTrainedTokenizerBase, texts: list[str], tokens: list[list[int]]) -> list[int]:
    """What the tokenizer puts in front of every text: mostly BOS, or nothing."""
    for text, own in zip(texts, tokens, strict=True):
        if own:
            full = _encode(tokenizer, [text], specials=True)[0]
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
