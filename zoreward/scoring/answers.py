"""Answers as columns: what objectives are given of the log-probabilities of a row's candidates, and what they score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoreward.records import Example, Member, Scored
from zoreward.registry import Objective, mean_score
from zoreward.scoring.logprobs import candidate_logprobs
from zoreward.scoring.reader import Reader
from zoreward.scoring.rewards import Notes, columns_of


def member_scores(
    reader: Reader, objective: Objective, examples: Sequence[Example], members: Sequence[Member] = ((),)
) -> list[float]:
    """Return scores_M: the objective's value for each member, all on the same rows.

    Raises:
        ObjectiveError: the objective raised, or returned what is no score.
    """
    return [one.score for one in scores_of(objective, examples, list(candidate_logprobs(reader, examples, members)))]


def scores_of(
    objective: Objective, examples: Sequence[Example], logprobs_MNC: Sequence[NDArray[np.float64]]
) -> list[Scored]:
    """Return what each member is worth by what it gives to the candidates; raises what `member_scores` raises."""
    columns = columns_of(examples)
    notes = [Notes() for _ in logprobs_MNC]
    batches = [
        (len(examples), columns | outputs_of(objective.needs, examples, own_NC) | {"log_metric": note.log_metric})
        for own_NC, note in zip(logprobs_MNC, notes, strict=True)
    ]
    return [
        Scored(
            objective.combined(returned),
            {name: mean_score(found) for name, found in returned.items()},
            metrics=note.means(),
        )
        for returned, note in zip(objective.returned_for(batches), notes, strict=True)
    ]


def outputs_of(needs: str, examples: Sequence[Example], logprobs_NC: NDArray[np.float64]) -> dict[str, Any]:
    """Return the outputs of one member for an objective of answers that are given.

        logprob_sums[n, c] = T · logprobs[n, c],  T tokens of candidate c of row n

    Args:
        needs: `choices`, or `likelihood`, whose rows have one candidate each, the right answer.
        examples: N rows.
        logprobs_NC: mean log-probability per token of each candidate; −inf where a row has fewer.

    Returns:
        `logprobs` and `logprob_sums`; `base_logprobs` and `base_logprob_sums`, the same of the model before tuning,
        where the examples know them. All are (N, C), −inf where a row has fewer candidates; (N,) for `likelihood`.
        `references`: the index of each row's right candidate; for `likelihood` the answers' texts. For `choices`
        `predictions`: the index of each row's likeliest candidate, the first of equals.
    """
    counts_NC = token_counts(examples)
    found: dict[str, Any] = {"logprobs": logprobs_NC, "logprob_sums": logprobs_NC * counts_NC}
    known = [example.base_logprobs for example in examples if example.base_logprobs is not None]
    if len(known) == len(examples):
        base_NC = _filled(known, -np.inf)
        found |= {"base_logprobs": base_NC, "base_logprob_sums": base_NC * counts_NC}
    if needs == "likelihood":
        of_answers = {name: values_NC[:, 0] for name, values_NC in found.items()}
        return {**of_answers, "references": [example.candidates[0] for example in examples]}
    references = [example.reference for example in examples]
    return {"predictions": logprobs_NC.argmax(axis=1).tolist(), "references": references, **found}


def token_counts(examples: Sequence[Example]) -> NDArray[np.float64]:
    """Return how many tokens each candidate has: (N, C); 1 where a row has fewer candidates."""
    return _filled([list(map(len, example.candidate_tokens)) for example in examples], 1.0)


def _filled(lists: Sequence[Sequence[float]], filling: float) -> NDArray[np.float64]:
    table = np.full((len(lists), max(map(len, lists))), filling)
    for own, row in zip(lists, table, strict=True):
        row[: len(own)] = own
    return table


def with_base(reader: Reader, examples: Sequence[Example]) -> list[Example]:
    """Return the rows with the log-probabilities that the model as it is now gives to their candidates.

    Called before step 1, it makes the model the base that objectives compare with.
    """
    [logprobs_NC] = candidate_logprobs(reader, examples)
    return [
        replace(example, base_logprobs=tuple(own[: len(example.candidate_tokens)].tolist()))
        for example, own in zip(examples, logprobs_NC, strict=True)
    ]


def calibrated_logprobs(
    reader: Reader, examples: Sequence[Example], content_free: Sequence[Example]
) -> NDArray[np.float64]:
    """Return how much likelier each candidate becomes by what its row says.

        calibrated[n, c] = Σ_t log p(candidate_t | prompt, …) − Σ_t log p(candidate_t | content-free prompt, …)

    Sums over a candidate's tokens, not means: a long candidate pays for its length on both sides.

    Args:
        reader: the model.
        examples: N rows.
        content_free: the same rows and candidates behind prompts without content.

    Returns:
        calibrated_NC, float64; −inf where a row has fewer than C candidates.

    Source: surface form competition, Holtzman et al. 2021, arXiv 2104.08315, as in MeZO's released code.
    """
    own_NC, free_NC = (candidate_logprobs(reader, some)[0] * token_counts(some) for some in (examples, content_free))
    found_NC = np.full(own_NC.shape, -np.inf)
    there = np.isfinite(own_NC)
    found_NC[there] = own_NC[there] - free_NC[there]
    return found_NC
