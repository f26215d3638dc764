"""Preferences as rows: a chosen and a rejected answer, or one answer that is said to be good or bad."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zoreward.config import Prompting
from zoreward.data.columns import close_hint, columns_of, is_conversation, is_missing, listed, values_of
from zoreward.data.templates import fill
from zoreward.data.tokens import Text
from zoreward.records import InputError, UnknownNameError

PAIR = ("chosen", "rejected")
_FORMAT = "rows hold prompt, chosen and rejected; or prompt, completion and label"
_PLAIN_OR_CHAT = "texts, or lists of messages"


def are_preferences(rows: Sequence[dict[str, Any]], needs: str, prompting: Prompting) -> bool:
    """Whether rows bring their own answers as preferences, and no option says what the answers are.

    >>> are_preferences([{"chosen": "a b", "rejected": "a c"}], "choices", Prompting())
    True
    """
    if needs != "choices" or prompting.choices is not None or prompting.choice_column is not None:
        return False
    return not {*PAIR, "completion"}.isdisjoint(columns_of(rows))


def preference_texts(rows: list[dict[str, Any]], prompting: Prompting) -> list[Text]:
    """Every row's prompt and answers: all are texts, or all are lists of messages.

    Pairs have the columns `chosen` and `rejected`, single answers `completion` and a label, true or false. The prompt
    is the template's; else the column's; else, for pairs, what chosen and rejected begin with alike.

    Args:
        rows: at least one.
        prompting: the options about prompts; `label` names the column of true and false.

    Raises:
        InputError: a column is missing or has a value of another kind, the answers of a pair are alike, or there are to
            be demonstrations.

    Source: the preference and unpaired preference formats of TRL, standard and conversational; `extract_prompt`.

    >>> preference_texts([{"chosen": "The sky is blue.", "rejected": "The sky is green."}], Prompting())
    [Text(number=1, prompt='The sky is', candidates=(' blue.', ' green.'), reference=0, messages=None)]
    """
    if prompting.shots:
        raise InputError("preferences take no demonstrations", hint="leave --shots out")
    column, columns = prompting.prompt, columns_of(rows)
    paired = any(name in columns for name in PAIR)
    names = PAIR if paired else ("completion",)
    for name in names:
        if name not in columns:
            hint = f"{close_hint(name, columns)}{_FORMAT}; the columns are {listed(columns)}"
            raise UnknownNameError(f"no row has the column {name!r}", hint=hint)
    answers = list(zip(*(values_of(rows, name, "answer", name) for name in names), strict=True))
    labels = [True] * len(rows) if paired else values_of(rows, prompting.label, "label", "--label")
    filled = fill(prompting.template, rows, "--template") if prompting.template is not None else None
    if filled is None and column not in columns and (not paired or column != "prompt"):
        hint = f"give --prompt or --template; {close_hint(column, columns)}the columns are {listed(columns)}"
        raise UnknownNameError(f"no row has the prompt column {column!r}", hint=hint)
    if filled is None and not paired:
        values_of(rows, column, "prompt", "--prompt")
    chat = not isinstance(answers[0][0], str)
    texts = []
    for number, (row, pair, label) in enumerate(zip(rows, answers, labels, strict=True), 1):
        _check_answers(number, names, pair, chat)
        if not isinstance(label, bool) and label not in (0, 1):
            hint = "write true for a good answer and false for a bad one"
            raise InputError(f"row {number}: the label {label!r:.60} is neither true nor false", hint=hint)
        prompt = filled[number - 1] if filled is not None else None if is_missing(row.get(column)) else row[column]
        # A prompt column beside whole conversations is a copy of their beginning.
        if paired and filled is None and (prompt is None or (chat and isinstance(prompt, str))):
            prompt, pair = _split(pair)
        if not (is_conversation(prompt) if chat else isinstance(prompt, str)):
            there = "is no conversation, and the answers are" if chat else "is no text, and the answers are"
            hint = f"prompt and answers are all {_PLAIN_OR_CHAT}"
            raise InputError(f"row {number}: the prompt {prompt!r:.60} {there}", hint=hint)
        texts.append(Text(number, prompt, tuple(pair), 0 if label else -1))
    return texts


def _check_answers(number: int, names: Sequence[str], answers: Sequence[Any], chat: bool) -> None:
    for name, answer in zip(names, answers, strict=True):
        if not (is_conversation(answer) if chat else isinstance(answer, str)):
            what = "conversation" if chat else "text"
            hint = f"{' and '.join(names)} are {_PLAIN_OR_CHAT}, in all rows alike"
            raise InputError(f"row {number}: {answer!r:.60} in the column {name!r} is no {what}", hint=hint)
    if len(answers) == 2 and answers[0] == answers[1]:
        raise InputError(f"row {number}: chosen and rejected are the same", hint="drop such rows")


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
