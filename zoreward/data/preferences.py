"""Preferences as rows: a chosen and a rejected answer, or one answer that is said to be good or bad."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from zoreward.config import Prompting
from zoreward.data.columns import close_hint, columns_of, is_conversation, is_missing, listed, placed, values_of
from zoreward.data.templates import fill
from zoreward.data.tokens import ALIKE, EMPTY, Text
from zoreward.records import InputError, UnknownNameError

PAIR = ("chosen", "rejected")
_FORMAT = "rows hold prompt, chosen and rejected; or prompt, completion and label"
_PLAIN_OR_CHAT = "texts, or lists of messages"
# Columns beside `completions`, and whether more is better there, or less.
_RATES = {"scores": 1, "ratings": 1, "ranks": -1}
# Labels as they are written, in a CSV too.
_TRUTHS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def are_preferences(rows: Sequence[dict[str, Any]], needs: str, prompting: Prompting) -> bool:
    """Whether rows bring their own answers as preferences, and no option says what the answers are.

    >>> are_preferences([{"chosen": "a b", "rejected": "a c"}], "choices", Prompting())
    True
    """
    if needs != "choices" or prompting.choices is not None or prompting.choice_column is not None:
        return False
    columns = set(columns_of(rows))
    return not columns.isdisjoint({*PAIR, "completion"}) or _rates_in(columns) is not None


def preference_texts(rows: list[dict[str, Any]], prompting: Prompting) -> tuple[list[Text], Counter[str]]:
    """Every row's prompt and answers: all are texts, or all are lists of messages. Also why rows are left out.

    Pairs have the columns `chosen` and `rejected`, single answers `completion` and a label, true or false. Of lists of
    answers, `completions` with `scores`, `ratings` or `ranks`, the best and the worst are a pair. The prompt
    is the template's; else the column's; else, for pairs, what chosen and rejected begin with alike. Rows with answers
    that are empty or alike are left out.

    Args:
        rows: at least one.
        prompting: the options about prompts; `label` names the column of true and false.

    Raises:
        InputError: a column is missing or has a value of another kind, no row is left, or there are to be
            demonstrations.

    Source: the preference and unpaired preference formats of TRL, standard and conversational; `extract_prompt`.

    >>> preference_texts([{"chosen": "The sky is blue.", "rejected": "The sky is green."}], Prompting())[0]
    [Text(number=1, prompt='The sky is', candidates=(' blue.', ' green.'), reference=0, messages=None)]
    """
    if prompting.shots:
        raise InputError("preferences take no demonstrations", hint="leave --shots out")
    rows = _best_and_worst(rows)
    column, columns = prompting.prompt, columns_of(rows)
    paired = any(name in columns for name in PAIR)
    names = PAIR if paired else ("completion",)
    for name in names:
        if name not in columns:
            hint = f"{close_hint(name, columns)}{_FORMAT}; the columns are {listed(columns)}"
            raise UnknownNameError(f"no row has the column {name!r}", hint=hint)
    answers = list(zip(*(values_of(rows, name, "answer", name) for name in names), strict=True))
    labels = ["true"] * len(rows) if paired else values_of(rows, prompting.label, "label", "--label")
    filled = fill(prompting.template, rows, "--template") if prompting.template is not None else None
    if filled is None and column not in columns and (not paired or column != "prompt"):
        hint = "give --prompt or --template, in Python prompt=… or template=… of ZOConfig; "
        hint += f"{close_hint(column, columns)}the columns are {listed(columns)}"
        raise UnknownNameError(f"no row has the prompt column {column!r}", hint=hint)
    if filled is None and not paired:
        values_of(rows, column, "prompt", "--prompt")
    chat = not isinstance(next((answer for pair in answers for answer in pair if answer), ""), str)
    texts, left_out = [], Counter[str]()
    for number, (row, pair, label) in enumerate(zip(rows, answers, labels, strict=True), 1):
        _check_answers(number, names, pair, chat)
        label = _TRUTHS.get(str(label).lower(), label)
        if not isinstance(label, bool):
            hint = "write true for a good answer and false for a bad one"
            raise InputError(f"row {number}: the label {label!r:.60} is neither true nor false", hint=hint)
        prompt = filled[number - 1] if filled is not None else None if is_missing(row.get(column)) else row[column]
        if fault := _fault(pair):
            left_out[fault] += 1
            continue
        prompt, own = _parted(prompt, pair, chat, of_column=filled is None)
        if not (prompt == [] or is_conversation(prompt) if chat else isinstance(prompt, str)):
            there = "is no conversation, and the answers are" if chat else "is no text, and the answers are"
            hint = f"prompt and answers are all {_PLAIN_OR_CHAT}"
            raise InputError(f"row {number}: the prompt {prompt!r:.60} {there}", hint=hint)
        if fault := _fault(own) or ("with answers to different messages" if prompt == [] else ""):
            left_out[fault] += 1
            continue
        texts.append(Text(number, prompt, tuple(own), 0 if label else -1))
    refuse_none(len(texts), left_out)
    return texts, left_out


def with_prompts(rows: list[dict[str, Any]], prompting: Prompting) -> list[dict[str, Any]]:
    """Rows of preferences with the prompt of `preference_texts` in the prompt's column, to be written on from.

    Rows whose prompt stands there by itself, and all others, are as they are; so where there is a template.

    Args:
        rows: at least one.
        prompting: the options about prompts.

    Raises:
        InputError: as `preference_texts`.

    >>> with_prompts([{"chosen": "The sky is blue.", "rejected": "The sky is green."}], Prompting())[0]["prompt"]
    'The sky is'
    """
    columns, column = columns_of(rows), prompting.prompt
    if prompting.template is not None or not set(PAIR) <= set(columns):
        return rows
    # A text beside conversations stands for a part of them.
    beside = [row for row in rows if isinstance(row.get(column), str) and isinstance(row["chosen"], list)]
    if column in columns and not beside and not any(is_missing(row.get(column)) for row in rows):
        return rows
    with placed(rows):
        texts, left_out = preference_texts(rows, prompting)
    tell_of_faults(len(rows), left_out, 0, None)
    made = [copy.copy(rows[text.number - 1]) for text in texts]
    for row, text in zip(made, texts, strict=True):
        row[column] = text.prompt
    return made


def prompts_of_preferences(rows: list[dict[str, Any]], prompting: Prompting) -> list[dict[str, Any]]:
    """Return the rows for a model that writes answers of its own: their prompts, without those of no use.

    Raises what `preference_texts` raises.

    >>> prompts_of_preferences([{"chosen": "The sky is blue.", "rejected": "The sky is green."}], Prompting())
    [{'prompt': 'The sky is'}]
    """
    answers = {*PAIR, "completion", "completions", *_RATES}
    found = []
    for text in preference_texts(rows, prompting)[0]:
        own = {} if prompting.template is not None else {prompting.prompt: text.prompt}
        row = {name: value for name, value in rows[text.number - 1].items() if name not in answers}
        found.append(row | own)
    return found


def _rates_in(columns: Collection[str]) -> str | None:
    """The column that rates the answers in `completions`, where there are such."""
    return next((name for name in _RATES if name in columns), None) if "completions" in columns else None


def _best_and_worst(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with rated answers as pairs: the best and the worst, of equal ones the first. Other rows as they are.

    >>> [row] = _best_and_worst([{"prompt": "?", "completions": ["a", "b", "c"], "scores": [2, None, 7.5]}])
    >>> row["chosen"], row["rejected"]
    ('c', 'a')
    """
    columns = columns_of(rows)
    rates = _rates_in(columns)
    if rates is None or not set(columns).isdisjoint({*PAIR, "completion"}):
        return rows
    pairs = []
    lists = zip(rows, *(values_of(rows, name, "list", name) for name in ("completions", rates)), strict=True)
    for number, (row, answers, of_row) in enumerate(lists, 1):
        if not (isinstance(answers, list) and isinstance(of_row, list) and len(answers) == len(of_row)):
            message = f"row {number}: 'completions' and {rates!r} are no lists of the same length"
            raise InputError(message, hint="each answer has its number")
        rated = [pair for pair in zip(of_row, answers, strict=True) if isinstance(pair[0], int | float)]
        rated.sort(key=lambda pair: pair[0] * -_RATES[rates])
        best, worst = (rated[0], next(pair for pair in rated if pair[0] == rated[-1][0])) if rated else ((0, ""),) * 2
        pairs.append({**row, "chosen": best[1], "rejected": worst[1]})
    return pairs


def refuse_none(left: int, left_out: Mapping[str, int]) -> None:
    """Raise where no preference is left.

    Args:
        left: how many are.
        left_out: how many are not, by the reason.

    Raises:
        InputError: none is.
    """
    if not left:
        hint = "an answer needs words that the tokenizer knows, and a pair two different answers behind one prompt"
        message = f"none of the {sum(left_out.values()):,} preferences is of use: {_by_reason(left_out)}"
        raise InputError(message, hint=hint)


def tell_of_faults(rows: int, left_out: Mapping[str, int], shortened: int, max_length: int | None) -> None:
    """Say, in one line, how many preferences are left out and why, and how many answers are cut.

    Args:
        rows: how many there were.
        left_out: how many are not used, by the reason.
        shortened: how many have lost the end of an answer.
        max_length: most tokens of prompt and answer.
    """
    told = []
    if count := sum(left_out.values()):
        told.append(f"leaves out {count:,}: {_by_reason(left_out)}")
    if shortened:
        told.append(f"cuts answers of {shortened:,} on the right, to fit {max_length:,} tokens")
    if told:
        from transformers.utils import logging

        line = f"Of {rows:,} preferences zoreward {'. It '.join(told)}."
        logging.get_logger(__name__).warning_once(line)


def _by_reason(left_out: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {why}" for why, count in sorted(left_out.items()) if count)


def _check_answers(number: int, names: Sequence[str], answers: Sequence[Any], chat: bool) -> None:
    for name, answer in zip(names, answers, strict=True):
        if answer not in ("", []) and not (is_conversation(answer) if chat else isinstance(answer, str)):
            what = "conversation" if chat else "text"
            hint = f"{' and '.join(names)} are {_PLAIN_OR_CHAT}, in all rows alike"
            raise InputError(f"row {number}: {answer!r:.60} in the column {name!r} is no {what}", hint=hint)


def _fault(answers: Sequence[Any]) -> str:
    """Why a preference is of no use; nothing where it is."""
    if any(map(_is_empty, answers)):
        return EMPTY
    return ALIKE if len(answers) == 2 and answers[0] == answers[1] else ""


def _is_empty(answer: Any) -> bool:
    """Whether nobody has answered: also in a transcript of Anthropic's, and where the user has the last word.

    >>> _is_empty(" "), _is_empty("\\n\\nHuman: Why?\\n\\nAssistant:"), _is_empty([{"role": "user", "content": "Hi"}])
    (True, True, True)
    """
    if isinstance(answer, str):
        return not answer.strip() or answer.rstrip().endswith("\n\nAssistant:")
    last = answer[-1] if answer else {"role": "user"}
    content = last.get("content")
    said = content.strip() if isinstance(content, str) else content
    return last["role"] == "user" or not (said or last.get("tool_calls"))


def _parted(prompt: Any, answers: Sequence[Any], chat: bool, *, of_column: bool) -> tuple[Any, Sequence[Any]]:
    """A prompt and answers without it, where the answers are whole conversations, or texts without a prompt."""
    if chat and isinstance(prompt, list) and prompt and all(one[: len(prompt)] == prompt for one in answers):
        return prompt, [one[len(prompt) :] for one in answers]
    # A text beside whole conversations is a copy of their beginning, or stands for the user's only turn.
    if len(answers) == 2 and of_column and (prompt is None or (chat and isinstance(prompt, str))):
        begun, answers = _split(answers)
        alone = chat and prompt and begun == [] and all(one[0]["role"] == "assistant" for one in answers)
        return ([{"role": "user", "content": prompt}] if alone else begun), answers
    return prompt, answers


def _split(answers: Sequence[Any]) -> tuple[Any, tuple[Any, ...]]:
    """What two texts, or two lists of messages, begin with alike, and the rest of each.

    Words stay whole: a text is cut behind its last white space, where there is any. A space there goes to the answers.

    >>> _split(["The sky is blue.", "The sky is black."])
    ('The sky is', (' blue.', ' black.'))
    """
    chosen, rejected = answers
    equal = [left == right for left, right in zip(chosen, rejected, strict=False)]
    # Where one text only goes on from the other, the shorter one keeps its last character.
    end = equal.index(False) if False in equal else len(equal) - 1
    if isinstance(chosen, str):
        spaces = [i for i in range(end) if chosen[i].isspace()]
        end = spaces[-1] + 1 if spaces else end
        if end and chosen[end - 1] == " ":
            end -= 1
    return chosen[:end], (chosen[end:], rejected[end:])
