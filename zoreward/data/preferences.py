"""Preferences as rows: a chosen and a rejected answer, or one answer that is said to be good or bad."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from zoreward.config import Prompting
from zoreward.data.columns import close_hint, columns_of, is_conversation, is_missing, listed, values_of
from zoreward.data.conversations import template_arguments
from zoreward.data.templates import fill
from zoreward.data.texts import Text
from zoreward.records import InputError, UnknownNameError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PAIR = ("chosen", "rejected")
_FORMAT = "rows hold prompt, chosen and rejected; or prompt, completion and label"
_PLAIN_OR_CHAT = "texts, or lists of messages"


class Judged(NamedTuple):
    """A row of preferences, its prompt apart from its answers.

    Args:
        number: of the row, counted from 1.
        prompt: a text, or a list of messages.
        answers: one or two, as the prompt is: chosen and rejected, or the completion.
        reference: 0; −1 where the only answer is said to be bad.
    """

    number: int
    prompt: Any
    answers: tuple[Any, ...]
    reference: int


def are_preferences(rows: Sequence[dict[str, Any]], needs: str, prompting: Prompting) -> bool:
    """Whether rows bring their own answers as preferences, and no option says what the answers are.

    >>> are_preferences([{"chosen": "a b", "rejected": "a c"}], "choices", Prompting())
    True
    """
    if needs != "choices" or prompting.choices is not None or prompting.choice_column is not None:
        return False
    columns = set(columns_of(row for row in rows if isinstance(row, dict)))
    return bool(columns & {*PAIR, "completion"})


def judged_rows(rows: list[dict[str, Any]], prompting: Prompting) -> list[Judged]:
    """Every row's prompt and answers.

    Pairs have the columns `chosen` and `rejected`, single answers `completion` and a label, true or false. The prompt
    is the template's; else the column's; else, for pairs, what chosen and rejected begin with alike.

    Args:
        rows: at least one.
        prompting: the options about prompts; `label` names the column of true and false.

    Raises:
        InputError: a column is missing or has a value of another kind, or the answers of a pair are alike.

    Source: the preference and unpaired preference formats of TRL, standard and conversational; `extract_prompt`.

    >>> judged_rows([{"chosen": "The sky is blue.", "rejected": "The sky is green."}], Prompting())
    [Judged(number=1, prompt='The sky is', answers=(' blue.', ' green.'), reference=0)]
    """
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
    found = []
    for number, (row, own, label) in enumerate(zip(rows, answers, labels, strict=True), 1):
        _check_answers(number, names, own, chat)
        if not isinstance(label, bool) and label not in (0, 1):
            hint = "write true for a good answer and false for a bad one"
            raise InputError(f"row {number}: the label {label!r:.60} is neither true nor false", hint=hint)
        asked = filled[number - 1] if filled is not None else None if is_missing(row.get(column)) else row[column]
        # A prompt column beside whole conversations is a copy of their beginning.
        if paired and filled is None and (asked is None or (chat and isinstance(asked, str))):
            asked, own = _split(own)
        if not (is_conversation(asked) if chat else isinstance(asked, str)):
            there = "is no conversation, and the answers are" if chat else "is no text, and the answers are"
            hint = f"prompt and answers are all {_PLAIN_OR_CHAT}"
            raise InputError(f"row {number}: the prompt {asked!r:.60} {there}", hint=hint)
        found.append(Judged(number, asked, tuple(own), 0 if label else -1))
    return found


def preference_texts(
    judged: Sequence[Judged],
    rows: Sequence[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    template_kwargs: Mapping[str, Any],
) -> list[Text]:
    """Rows of preferences as texts; conversations through the tokenizer's chat template.

    Args:
        judged: of the rows.
        rows: with the columns `tools` and `chat_template_kwargs`, where they have some.
        tokenizer: of the model.
        template_kwargs: what the chat template is told besides.

    Raises:
        InputError: there are conversations and no chat template, or one does not fit it.
    """
    return [
        Text(one.number, *_rendered(one, row, tokenizer, template_kwargs), one.reference)
        for one, row in zip(judged, rows, strict=True)
    ]


def _rendered(
    one: Judged, row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, template_kwargs: Mapping[str, Any]
) -> tuple[str, tuple[str, ...]]:
    if isinstance(one.prompt, str):
        return one.prompt, one.answers
    if tokenizer.chat_template is None:
        hint = "take an instruction-tuned model, or write prompts and answers as text"
        raise InputError("the rows are conversations, and this model's tokenizer has no chat template", hint=hint)
    names = PAIR if len(one.answers) == 2 else ("completion",)
    try:
        from trl import apply_chat_template
    except ImportError as error:
        raise InputError("conversations as preferences need trl", hint="pip install trl") from error
    messages = {"prompt": one.prompt, **dict(zip(names, one.answers, strict=True))}
    arguments = template_arguments(row, template_kwargs, one.number)
    try:
        texts = apply_chat_template(messages, tokenizer, **arguments)
    except Exception as error:  # a template raises what its author chose
        why = " ".join(str(error).split())
        raise InputError(f"row {one.number} does not fit the chat template: {why:.200}") from error
    return texts["prompt"], tuple(texts[name] for name in names)


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
    alike = [one == other for one, other in zip(chosen, rejected, strict=False)]
    # Where one text only goes on from the other, the shorter one keeps its last character.
    end = alike.index(False) if False in alike else len(alike) - 1
    if isinstance(chosen, str):
        spaces = [i for i in range(end) if chosen[i].isspace()]
        end = spaces[-1] + 1 if spaces else end
        if end and chosen[end - 1] == " ":
            end -= 1
    return chosen[:end], (chosen[end:], rejected[end:])
