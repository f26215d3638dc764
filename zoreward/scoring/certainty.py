"""How far a score can be trusted: its standard error, what one gets without reading, and the score of each row."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import stdev
from typing import Any

import numpy as np

from zoreward.records import Evaluation, Example, Scored, Writing, ZorewardError
from zoreward.registry import Objective
from zoreward.scoring.requests import have_same_answers, scores_of

# 1,000 would say it to 2 %, and take ten seconds and more of a slow core for the F1 of scikit-learn.
DRAWS = 200
# Of a difference, two kinds of them: a p-value of 0.05 is known to 0.01 then, in half a minute of a slow core.
PAIRED_DRAWS = 500
# Objectives of one's own may be slow: where the draws would take longer than this, in seconds, nothing is said.
PATIENCE = 30.0
# Some may have no score, as an AUC of rows of one class; with fewer than this nothing is said.
_LEAST_DRAWS = DRAWS // 2


def standard_error(objective: Objective, evaluation: Evaluation, *, seed: int = 0) -> float | None:
    """Return the standard error of a score: how far it would differ on other rows of this kind.

        of a mean over rows      s / √n, with the standard deviation s of the n rows' scores
        of one number for all    the standard deviation of the scores of 200 draws of N of the N rows, with
                                 replacement (the bootstrap; Efron 1979), which is known to 1/√400 = 5 % then

    Args:
        objective: what the rows were scored by.
        evaluation: of `evaluate`.
        seed: of the draws.

    Returns:
        None where it is not known: of texts that are scored all together, such as BLEU, of fewer than two rows, and
        where the draws would take longer than half a minute.

    >>> from zoreward import get_objective
    >>> scored = Scored(0.5, {}, returned={"accuracy": [1.0, 0.0, 1.0, 0.0]})
    >>> round(standard_error(get_objective("accuracy"), Evaluation("accuracy", 0.5, 4, 0, scored=scored)), 4)
    0.2887
    """
    scored, examples = evaluation.scored, evaluation.examples
    if scored is None:
        return None
    if (of_rows := row_scores(objective, scored)) is not None:
        return error_of_mean(of_rows)
    if scored.logprobs_NC is None or len(examples) < 2:
        return None
    draws = np.random.default_rng(seed).integers(len(examples), size=(DRAWS, len(examples)))
    start, finite = time.perf_counter(), []
    for count, draw in enumerate(draws):
        if count >= 5 and (time.perf_counter() - start) / count * DRAWS > PATIENCE:
            return None
        score = _score_of(objective, [examples[n] for n in draw], scored.logprobs_NC[draw])
        finite += [score] if math.isfinite(score) else []
    return stdev(finite) if len(finite) >= _LEAST_DRAWS else None


def error_of_mean(of_rows: Sequence[float | None]) -> float | None:
    """Return s / √n of the rows that have a score, s their standard deviation; None of fewer than two.

    >>> round(error_of_mean([1.0, None, 0.0]), 4)
    0.5
    """
    scores = [score for score in of_rows if score is not None]
    return stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else None


def row_scores(objective: Objective, scored: Scored) -> list[float | None] | None:
    """Return what each row is worth: the weighted sum of what the parts gave it, None where all left it out.

    None in place of the list where some part gives one number for all rows.
    """
    weighed = [(weight, scored.returned.get(part.name)) for weight, part in objective.parts]
    weighed = weighed or [(1.0, scored.returned.get(objective.name))]
    if not all(isinstance(returned, list) for _, returned in weighed):
        return None
    rows = zip(*(returned for _, returned in weighed), strict=True)
    weights = [weight for weight, _ in weighed]
    terms = [[w * score for w, score in zip(weights, row, strict=True) if score is not None] for row in rows]
    return [math.fsum(own) if own else None for own in terms]


def majority_score(objective: Objective, examples: Sequence[Example]) -> float | None:
    """Return the score of who knows how frequent each answer is in these rows, and reads none of them.

    The most frequent answer is always the likeliest; log-probabilities are the logarithms of the shares.

    Returns:
        None where rows have answers of their own, or the objective compares with a base, or has no such score.

    >>> from zoreward import get_objective
    >>> rows = [Example({}, "", (" no", " yes"), right, (1,), ((2,), (3,))) for right in (0, 1, 1)]
    >>> round(majority_score(get_objective("accuracy"), rows), 4)
    0.6667
    """
    if objective.needs != "choices" or objective.compares_with_base or not have_same_answers(examples):
        return None
    counts = Counter(example.reference for example in examples)
    shares_C = [counts[place] / len(examples) for place in range(len(examples[0].candidates))]
    logprobs_C = np.log(np.maximum(shares_C, 1e-9))
    score = _score_of(objective, examples, np.tile(logprobs_C, (len(examples), 1)))
    return score if math.isfinite(score) else None


def examples_of_evaluation(rows: Sequence[Mapping[str, Any]]) -> tuple[list[Example], Any]:
    """Return what `rows_of_evaluation` wrote of choices as examples, without their tokens, and their log-probabilities.

    Raises:
        KeyError, TypeError, ValueError: it did not write these rows.
    """
    examples = []
    for row in rows:
        choices = tuple(row["choices"])
        tokens = ((0,),) * len(choices)
        examples.append(
            Example(row["columns"], str(row["prompt"]), choices, choices.index(row["answer"]), (0,), tokens)
        )
    most = max(len(example.candidates) for example in examples)
    logprobs_NC = np.full((len(rows), most), -np.inf)
    for n, row in enumerate(rows):
        logprobs_NC[n, : len(examples[n].candidates)] = row["logprobs"]
    return examples, logprobs_NC


def set_difference(
    objective: Objective, examples: Sequence[Example], logprobs_2NC: Sequence[Any], *, seed: int = 0
) -> dict[str, Any]:
    """Return how far two models differ on the same rows, by a score of all rows together such as F1.

        difference                         f(b) − f(a), f being the objective
        standard_error                     the standard deviation of f(b*) − f(a*) over 500 draws of N of the N rows,
                                           with replacement, the same for both (the paired bootstrap; Efron 1979)
        difference_low, difference_high    95 % of these lie between
        p_value                            (1 + how often |f(b') − f(a')| ≥ |f(b) − f(a)|) / 501 of 500 draws in
                                           which a coin says for each row whose answer is whose (approximate
                                           randomisation; Noreen 1989)

    Args:
        objective: of choices, without parts.
        examples: N rows.
        logprobs_2NC: what each model gives to the candidates of each.
        seed: of the draws.

    Returns:
        These, `score_a`, `score_b`, and `other_answers`, the rows where the two find different answers the likeliest.
        NaN where too few draws have a score.
    """
    first_NC, second_NC = (np.asarray(one, np.float64) for one in logprobs_2NC)
    draw, count = np.random.default_rng(seed), len(examples)

    def difference(rows: Any, a_NC: Any, b_NC: Any) -> float:
        own = [examples[n] for n in rows]
        return _score_of(objective, own, b_NC[rows]) - _score_of(objective, own, a_NC[rows])

    every = np.arange(count)
    scores = [_score_of(objective, examples, one_NC) for one_NC in (first_NC, second_NC)]
    found, again, swapped = scores[1] - scores[0], list[float](), list[float]()
    for _ in range(PAIRED_DRAWS):
        again.append(difference(draw.integers(count, size=count), first_NC, second_NC))
        is_swapped = draw.integers(2, size=count).astype(bool)[:, None]
        pair = np.where(is_swapped, second_NC, first_NC), np.where(is_swapped, first_NC, second_NC)
        swapped.append(difference(every, *pair))
    finite = [one for one in again if math.isfinite(one)]
    enough = len(finite) >= PAIRED_DRAWS // 2
    low, high = np.quantile(finite, (0.025, 0.975)) if enough else (math.nan, math.nan)
    reached = sum(not abs(one) < abs(found) - 1e-9 for one in swapped)  # one without a score counts against it
    return {
        **{"score_a": scores[0], "score_b": scores[1], "difference": found},
        "standard_error": stdev(finite) if enough else math.nan,
        **{"difference_low": float(low), "difference_high": float(high)},
        "p_value": (1 + reached) / (1 + PAIRED_DRAWS),
        "other_answers": int((first_NC.argmax(axis=1) != second_NC.argmax(axis=1)).sum()),
    }


def _score_of(objective: Objective, examples: Sequence[Example], logprobs_NC: Any) -> float:
    """The score of rows by what their candidates are given; NaN where the objective has none."""
    try:
        return scores_of(objective, examples, [logprobs_NC])[0].score
    except ZorewardError:
        return math.nan


def rows_of_evaluation(objective: Objective, evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return what became of each row, in the order of the rows.

    Each has `objective`, its name; `prompt`, what the model read, or the messages; `answer`, the right one, where there
    is one; of choices `prediction`, `choices` and `logprobs`, the mean log-probability per token of each; of texts
    `completion`; `score`, where rows have scores of their own; and `columns`, the row as it was given. Where choices
    have one score for all rows, `score_of_all` is that, and `options` are the objective's, as JSON.
    """
    scored, examples = evaluation.scored, evaluation.examples
    assert scored is not None
    of_rows = row_scores(objective, scored)
    scores, of_all = of_rows or [None] * len(examples), dict[str, Any]()
    if of_rows is None and objective.needs == "choices" and not objective.parts:
        of_all = {"score_of_all": evaluation.score, "options": json.dumps(dict(objective.values), default=str)}
    written = scored.completions if isinstance(scored, Writing) else [None] * len(examples)
    rows = []
    for n, (example, score, completion) in enumerate(zip(examples, scores, written, strict=True)):
        prompt = example.prompt if example.messages is None else list(example.messages)
        made: dict[str, Any] = {"objective": objective.name, "prompt": prompt}
        if example.candidates:
            made["answer"] = example.candidates[example.reference] if example.reference >= 0 else None
            logprobs = [float(one) for one in scored.logprobs_NC[n][: len(example.candidates)]]
            if len(logprobs) > 1:
                made |= {"prediction": example.candidates[int(np.argmax(logprobs))]}
                made |= {"choices": list(example.candidates)}
            made["logprobs"] = logprobs
        if completion is not None:
            made["completion"] = completion.text
        rows.append({**made, "score": score, **of_all, "columns": example.row})
    return rows
