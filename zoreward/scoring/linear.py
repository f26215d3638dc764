"""A linear probe: logistic regression on what a model makes of a prompt. A baseline that changes no weight."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from zoreward.records import Example, InputError, Scored
from zoreward.registry import Objective
from zoreward.scoring.answers import scores_of
from zoreward.scoring.logprobs import sorted_batches
from zoreward.scoring.reader import Reader, forward


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


def probe_score(reader: Reader, objective: Objective, train: Sequence[Example], examples: Sequence[Example]) -> Scored:
    """Return what a linear probe of the model is worth, by an objective that needs choices.

    Args:
        reader: the model.
        objective: what counts.
        train: rows to fit the probe on.
        examples: rows to score.

    Raises:
        InputError: rows have answers of their own, so that their indices are no classes; or `linear_probe`'s.
        ObjectiveError: the objective raised, or returned no score.
    """
    if reader.kind != "causal":
        raise InputError("a linear probe reads a causal language model", hint="tune the head instead: --tune head")
    choices = {example.candidates for example in (*train, *examples)}
    if objective.needs != "choices" or len(choices) > 1:
        hint = "probe tasks whose rows all have the same choices"
        raise InputError("a linear probe needs classes, the same for all rows", hint=hint)
    references = [example.reference for example in train]
    features = [last_hidden_states(reader, some) for some in (train, examples)]
    return scores_of(objective, examples, [linear_probe(features[0], references, features[1], len(choices.pop()))])[0]
