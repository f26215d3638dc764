"""What an objective of one's own must keep to, as a test.

from zoreward.testing import check_objective

def test_it_keeps_to_the_contract():
    check_objective(brevity, target=20)
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from zoreward.records import ObjectiveError, UnknownNameError
from zoreward.registry import Objective, get_objective
from zoreward.registry.objective import Returned
from zoreward.registry.sources import Source

# Scores of the same rows in another order may be summed in another order.
TOLERANCE = 1e-9
# Rows that are timed.
MANY = 1000
_TEXTS = ("A short answer.", "", "Yes", "two\nlines", "Ein längerer Satz, der kein Ende nimmt", "42", "no no no", "🙂")


def check_objective(
    source: Source,
    /,
    *,
    columns: Mapping[str, Sequence[Any]] | None = None,
    choices: int = 2,
    chat: bool = False,
    seconds: float = 5.0,
    **options: Any,
) -> None:
    """Try an objective on rows that are made up, and say all that does not keep to the contract.

    What is asked: a score on some rows, and none of a batch of no rows that ends the process · the same score for the
    same rows · rows in another order change nothing but the order of their scores · the score of a batch does not
    depend on the batches before, since members are scored in any order · scores lie in the range that is stated · of
    choices, right answers are worth no less than wrong ones · an objective that says it is rowwise gives a row the same
    score alone · 1,000 rows take no more than some seconds, for which each member of a step would wait.

    Args:
        source: the objective: a function or class, a registered name, or `path/file.py:name`.
        columns: of the rows, if it reads some: values for each name, as many for each.
        choices: answers that a row has, for an objective of choices.
        chat: whether completions are messages, and prompts conversations.
        seconds: that 1,000 rows may take.
        options: of the objective.

    Raises:
        AssertionError: it does not keep to the contract; each line says how.
        ZorewardError: it cannot be loaded, has no such option, or asks for a column that is not given.

    >>> def brevity(completions, *, target: int = 20):
    ...     return [-abs(len(text) - target) / target for text in completions]
    >>> check_objective(brevity, target=10)
    >>> def unlike(predictions, references):
    ...     return [float(p != r) for p, r in zip(predictions, references)]
    >>> check_objective(unlike)
    Traceback (most recent call last):
    AssertionError: objective 'unlike' does not keep to the contract:
    - wrong answers are worth more than right ones (1 and 0): higher is better, so return minus a loss
    """
    objective = get_objective(source, **options)
    rows = _rows(objective, dict(columns or {}), choices, chat)
    problems = list(_problems(source, options, objective, rows, seconds))
    if problems:
        lines = "".join(f"\n- {problem}" for problem in problems)
        raise AssertionError(f"objective {objective.name!r} does not keep to the contract:{lines}")


Rows = dict[str, Any]


def _rows(objective: Objective, columns: dict[str, Any], choices: int, chat: bool) -> Rows:
    """Outputs of a member on rows that are made up: lists and arrays of N."""
    count = len(next(iter(columns.values()))) if columns else 4 * max(2, choices)
    rng = np.random.default_rng(0)
    if objective.needs == "completions":
        texts = [_TEXTS[n % len(_TEXTS)] for n in range(count)]
        prompts: list[Any] = [f"Question {n}?" for n in range(count)]
        told: Rows = {"completion_ids": [list(text.encode()) for text in texts], "base_completions": texts[::-1]}
        told |= {"base_completion_ids": told["completion_ids"][::-1], "base_states": list(rng.normal(size=(count, 4)))}
        if chat:
            texts = [[{"role": "assistant", "content": text}] for text in texts]  # type: ignore[misc]
            prompts = [[{"role": "user", "content": prompt}] for prompt in prompts]
        return {**columns, **told, "prompts": prompts, "completions": texts}
    logprobs_NC = np.log(rng.dirichlet(np.ones(choices), count))
    # Each choice is the right one as often, and most answers are right.
    references = [n % choices for n in range(count)]
    for n, reference in enumerate(references):
        best = reference if n % 4 else (reference + 1) % choices
        own = logprobs_NC[n]
        own[[best, own.argmax()]] = own[[own.argmax(), best]]
    values = {"logprobs": logprobs_NC, "base_logprobs": np.log(rng.dirichlet(np.ones(choices), count))}
    values |= {f"{name[:-1]}_sums": 3 * values[name] for name in tuple(values)}
    if objective.needs == "likelihood":
        own_values = {name: one[:, 0] for name, one in values.items()}
        return {**columns, **own_values, "references": [f"answer {n}" for n in range(count)]}
    values["mismatched_ratios"] = rng.normal(size=(count, choices))
    return {**columns, **values, "references": references, "predictions": logprobs_NC.argmax(axis=1).tolist()}


def _size(rows: Rows) -> int:
    return len(rows["references"] if "references" in rows else rows["completions"])


def _picked(rows: Rows, order: Sequence[int]) -> Rows:
    return {
        name: value[list(order)] if isinstance(value, np.ndarray) else [value[n] for n in order]
        for name, value in rows.items()
    }


def _scored(objective: Objective, *batches: Rows) -> list[dict[str, Returned]]:
    """What the objective returns for batches, one after the other."""
    quiet = {"log_extra": lambda *given: None, "log_metric": lambda *given: None, "trainer_state": None}
    return [objective.returned_for([(_size(rows), {**rows, **quiet})])[0] for rows in batches]


def _problems(
    source: Source, options: Mapping[str, Any], objective: Objective, rows: Rows, seconds: float
) -> Iterable[str]:
    count = _size(rows)
    try:
        [first] = _scored(objective, rows)
    except UnknownNameError:
        raise  # it says which column is missing
    except ObjectiveError as error:
        yield f"{count} rows: {error}"
        return
    score = objective.combined(first)
    if math.isnan(score):
        yield f"it has no score on any of {count} rows"
    there, back = (get_objective(source, **options) for _ in range(2))
    half = _picked(rows, range(count // 2))
    forth = _scored(there, rows, half, rows)
    order = random.Random(0).sample(range(count), count)
    mixed = _scored(get_objective(source, **options), _picked(rows, order))[0]
    if not _alike(forth[0], first):
        yield "the same rows are worth something else the second time: draw no random numbers, or seed them"
    elif not all(map(_alike, _scored(back, half, rows), forth[1::-1])) or not _alike(forth[2], first):
        yield "it keeps state: a batch is worth something else behind another one, and members come in any order"
    elif not _alike(mixed, {name: _in_order(value, order) for name, value in first.items()}):
        yield "rows in another order are worth something else"
    if objective.range is not None and not objective.range[0] <= score <= objective.range[1]:
        yield f"the score {score:g} lies outside of its range, {objective.range[0]:g} to {objective.range[1]:g}"
    if objective.rowwise:
        yield from _differs_alone(objective, rows, first)
    if "predictions" in rows:
        yield from _wrong_way_round(objective, rows)
    yield from _breaks_on_nothing(objective, rows)
    start = time.perf_counter()
    _scored(objective, _picked(rows, [n % count for n in range(MANY)]))
    if (took := time.perf_counter() - start) > seconds:
        yield f"{MANY:,} rows take {took:.1f} s, for which each member of a step waits"


def _differs_alone(objective: Objective, rows: Rows, first: Mapping[str, Returned]) -> Iterable[str]:
    try:
        alone = _scored(objective, *(_picked(rows, [n]) for n in range(_size(rows))))
    except ObjectiveError as error:
        yield f"it says that it is rowwise, and a row alone: {error}"
        return
    for name, value in first.items():
        values = [own[name] for own in alone]
        if isinstance(value, list) and not _alike({name: value}, {name: [one[0] for one in values]}):  # type: ignore[index]
            yield "it says that it is rowwise, and a row alone has another score"


def _wrong_way_round(objective: Objective, rows: Rows) -> Iterable[str]:
    references = np.array(rows["references"])
    choices = rows["logprobs"].shape[1]
    scores = []
    for answers in (references, (references + 1) % choices):
        logprobs_NC = np.full_like(rows["logprobs"], math.log(0.1 / max(1, choices - 1)))
        logprobs_NC[np.arange(len(answers)), answers] = math.log(0.9)
        outputs = {"predictions": answers.tolist(), "logprobs": logprobs_NC, "logprob_sums": 3 * logprobs_NC}
        try:
            scores.append(objective.combined(_scored(objective, {**rows, **outputs})[0]))
        except ObjectiveError as error:
            yield f"rows that are all right, or all wrong: {error}"
            return
    right, wrong = scores
    if wrong > right:
        told = f"({wrong:g} and {right:g})"
        yield f"wrong answers are worth more than right ones {told}: higher is better, so return minus a loss"


def _breaks_on_nothing(objective: Objective, rows: Rows) -> Iterable[str]:
    for count in (1, 0):
        try:
            _scored(objective, _picked(rows, range(count)))
        except ObjectiveError as error:
            if count:
                yield f"one row, as the last of an epoch may be: {error}"


def _in_order(value: Returned, order: Sequence[int]) -> Returned:
    return [value[n] for n in order] if isinstance(value, list) else value


def _alike(one: Mapping[str, Returned], other: Mapping[str, Returned]) -> bool:
    def flat(told: Mapping[str, Returned]) -> list[float]:
        lists = [value if isinstance(value, list) else [value] for value in told.values()]
        return [math.nan if value is None else value for values in lists for value in values]

    return bool(np.allclose(flat(one), flat(other), rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True))
