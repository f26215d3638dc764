"""Answers as columns: what objectives are given of the log-probabilities of candidates, and what they make of it.

And two baselines that change no weight: calibrated answers, and a logistic regression on what a model makes of prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zoreward.records import Example, InputError, Member, Scored
from zoreward.registry import Objective, mean_score
from zoreward.scoring.logprobs import candidate_logprobs, sorted_batches
from zoreward.scoring.reader import Reader, forward
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
    outputs: dict[str, Any] = {"logprobs": logprobs_NC, "logprob_sums": logprobs_NC * counts_NC}
    known = [example.base_logprobs for example in examples if example.base_logprobs is not None]
    if len(known) == len(examples):
        base_NC = _filled(known, -np.inf)
        outputs |= {"base_logprobs": base_NC, "base_logprob_sums": base_NC * counts_NC}
    if needs == "likelihood":
        of_answers = {name: values_NC[:, 0] for name, values_NC in outputs.items()}
        return {**of_answers, "references": [example.candidates[0] for example in examples]}
    references = [example.reference for example in examples]
    return {"predictions": logprobs_NC.argmax(axis=1).tolist(), "references": references, **outputs}


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
    there = np.isfinite(own_NC)
    return np.where(there, own_NC - np.where(there, free_NC, 0.0), -np.inf)


@torch.no_grad()
def last_hidden_states(reader: Reader, examples: Sequence[Example]) -> NDArray[np.float32]:
    """Return the last layer's hidden state at the last token of each prompt: what the language-model head reads.

    Args:
        reader: the model.
        examples: N rows.

    Returns:
        (N, H), float32.
    """
    prompts = [example.prompt_tokens for example in examples]
    lengths = list(map(len, prompts))
    found: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(examples)
    for batch in sorted_batches(lengths, reader.tokens, reader.rows, None if reader.pads else lengths):
        output = forward(reader, [prompts[n] for n in batch], 1, output_hidden_states=True)
        for n, state in zip(batch, output.hidden_states[-1][:, -1].float().cpu().numpy(), strict=True):
            found[n] = state
    return np.stack(found)


def linear_probe(
    train: NDArray[np.float32], references: Sequence[int], test: NDArray[np.float32], classes: int
) -> NDArray[np.float64]:
    """Return the log-probabilities of the classes for test rows, by a logistic regression fitted on other rows.

    How much it is regularised is chosen by cross-validation on the rows that it is fitted on, in five folds, or as many
    as the smallest class has rows.

    Args:
        train: (N, H), features of the rows to fit on.
        references: N class indices.
        test: (M, H), features of the rows to score.
        classes: C, how many classes there are.

    Returns:
        (M, C); −inf for a class that no row to fit on has.

    Raises:
        InputError: fewer than two classes to fit on, or one with a single row.

    Source: scikit-learn's `LogisticRegressionCV`; the linear probing of MeZO, Malladi et al. 2023, arXiv 2305.17333.
    """
    from sklearn.linear_model import LogisticRegressionCV

    counts = np.bincount(list(references), minlength=classes)
    present = np.flatnonzero(counts)
    folds = min(5, int(counts[present].min()))
    if len(present) < 2 or folds < 2:
        hint = "give it more rows to fit on"
        raise InputError("a linear probe needs two classes or more, and two rows of each", hint=hint)
    newer = {"l1_ratios": (0.0,), "use_legacy_attributes": False}  # what the defaults will be; it fits the same
    model = LogisticRegressionCV(max_iter=5000, cv=folds, scoring="accuracy", random_state=0, **newer)
    fitted = model.fit(train, list(references))
    found = np.full((len(test), classes), -np.inf)
    found[:, present] = fitted.predict_log_proba(test)
    return found


def probe_scores(
    reader: Reader, objective: Objective, train: Sequence[Example], tests: Sequence[Sequence[Example]]
) -> list[Scored]:
    """Return what a linear probe of the model is worth, by an objective that needs choices.

    Args:
        reader: the model.
        objective: what counts.
        train: rows to fit the probe on.
        tests: lists of rows to score.

    Returns:
        A score for each list.

    Raises:
        InputError: rows have answers of their own, so that their indices are no classes; or `linear_probe`'s.
        ObjectiveError: the objective raised, or returned no score.
    """
    if reader.kind != "causal":
        raise InputError("a linear probe reads a causal language model", hint="tune the head instead: --tune head")
    rows = [example for examples in tests for example in examples]
    choices = {example.candidates for example in (*train, *rows)}
    if objective.needs != "choices" or len(choices) > 1:
        hint = "probe tasks whose rows all have the same choices"
        raise InputError("a linear probe needs classes, the same for all rows", hint=hint)
    references, classes = [example.reference for example in train], len(choices.pop())
    table = linear_probe(last_hidden_states(reader, train), references, last_hidden_states(reader, rows), classes)
    ends = np.cumsum([len(examples) for examples in tests])[:-1]
    parts = zip(tests, np.split(table, ends), strict=True)
    return [scores_of(objective, examples, [part])[0] for examples, part in parts]
