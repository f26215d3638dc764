"""Two baselines that change no weight: calibrated answers, and a logistic regression on hidden states."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from zoreward.records import Example, InputError, Scored
from zoreward.registry import Objective
from zoreward.scoring.forward import Reader, forward
from zoreward.scoring.logprobs import read_rows
from zoreward.scoring.protocol import Engine
from zoreward.scoring.requests import candidate_logprobs, scores_of, token_counts


def calibrated_logprobs(
    engine: Engine, examples: Sequence[Example], content_free: Sequence[Example], *, rows: int | None = None
) -> NDArray[np.float64]:
    """Return how much likelier each candidate becomes by what its row says.

        calibrated[n, c] = Σ_t log p(candidate_t | prompt, …) − Σ_t log p(candidate_t | content-free prompt, …)

    Sums over a candidate's tokens, not means: a long candidate pays for its length on both sides.

    Args:
        engine: the model.
        examples: N rows.
        content_free: the same rows and candidates behind prompts without content.
        rows: most rows of one forward pass; see `Engine.logprobs`.

    Returns:
        calibrated_NC, float64; −inf where a row has fewer than C candidates.

    Source: surface form competition, Holtzman et al. 2021, arXiv 2104.08315, as in MeZO's released code.
    """
    own_NC, free_NC = (
        candidate_logprobs(engine, some, rows=rows)[0] * token_counts(some) for some in (examples, content_free)
    )
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

    def read(batch: list[int]) -> list[NDArray[np.float32]]:
        output = forward(reader, [prompts[n] for n in batch], 1, output_hidden_states=True)
        return list(output.hidden_states[-1][:, -1].float().cpu().numpy())

    return np.stack(read_rows(reader, list(map(len, prompts)), reader.tokens, read))


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
