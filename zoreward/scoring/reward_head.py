"""A reward that is fitted on preferences: a Bradley–Terry head on what the model before tuning holds of an answer."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zoreward.members import called_model
from zoreward.records import Example, InputError
from zoreward.scoring.drift import Base
from zoreward.scoring.forward import Reader, forward, not_finite
from zoreward.scoring.logprobs import read_rows
from zoreward.scoring.protocol import Tokens
from zoreward.scoring.requests import repeated_4

# Among these the strength of the regularisation is chosen, and in so many folds of the prompts.
STRENGTHS, FOLDS = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1), 5
LEAST_ROWS = 10


@dataclass(frozen=True, slots=True, eq=False)
class RewardHead:
    """How likely an answer is preferred over a middling one.

        r(x, y) = σ(w · h̄(x, y) + b),  h̄ the mean of the last layer's states of the model before tuning over y's tokens

    It is the function of an objective that needs completions. Logged is `repeated_4`.

    Args:
        weights: w, float64.
        bias: b: with it the answers that the head was fitted on have a mean logit of 0; of single answers it is the
            border between good and bad.
        about: how it was fitted, for people.

    >>> head = RewardHead(np.array([1.0, -1.0]), 0.0, {})
    >>> head(base_states=[np.array([0.5, 0.5]), np.array([2.0, 0.0])], completion_ids=[[1], [2]])
    [0.5, 0.8807970779778824]
    """

    weights: NDArray[np.float64]
    bias: float
    about: dict[str, Any]

    def __call__(
        self,
        base_states: Sequence[NDArray[np.float32]],
        completion_ids: Sequence[Sequence[int]],
        log_metric: Callable[[str, float], None] | None = None,
    ) -> list[float]:
        """Return the reward of each completion.

        Args:
            base_states: N vectors h̄.
            completion_ids: N lists of tokens.
            log_metric: takes a name and a number.
        """
        if log_metric is not None:
            log_metric("repeated_4", repeated_4(completion_ids))
        return (0.5 * (1 + np.tanh(self.logits(np.stack(base_states)) / 2))).tolist()

    def logits(self, states: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return w · h̄ + b of each row."""
        return states.astype(np.float64) @ self.weights + self.bias

    def right(self, states_NCH: NDArray[np.float32], references: Sequence[int]) -> float:
        """Return the share of preferences that the head orders rightly; ties count half.

        Args:
            states_NCH: of the answers, two or one a row.
            references: N indices, which answer is the chosen one; −1 where the only one is said to be bad.
        """
        ahead = _signed(np.stack([self.logits(own) for own in states_NCH])[..., None], references)
        return float(np.where(ahead == 0, 0.5, ahead > 0).mean())

    @property
    def digest(self) -> str:
        """What tells it from another head."""
        return hashlib.sha256(np.append(self.weights, self.bias).tobytes()).hexdigest()


@torch.no_grad()
def answer_states(
    reader: Reader, base: Base, texts: Sequence[tuple[Tokens, Tokens]], end_tokens: Sequence[int]
) -> list[NDArray[np.float32]]:
    """Return for each text the mean of the last layer's states over the tokens of its answer, by the base.

    The last layer's are those behind the final norm, which the language-model head reads. An answer ends in front of
    its first end token, as what is written does where its length does not end it; of one without tokens it is the state
    at the prompt's last token.

    Args:
        reader: the model, or one that is read as the base is.
        base: the model before tuning.
        texts: prompts and answers.
        end_tokens: what ends an answer.

    Returns:
        Vectors (H,), float32.

    Raises:
        ObjectiveError: the model's outputs are not finite.
    """
    answers = [_up_to(answer, end_tokens) for _, answer in texts]
    sequences = [prompt + answer for (prompt, _), answer in zip(texts, answers, strict=True)]
    with base.shown() as model:
        inner: Any = called_model(model).base_model  # without the layer that makes logits
        accepts = frozenset(inspect.signature(inner.forward).parameters) | {"use_cache"}
        reading = replace(reader, model=inner, accepts=accepts)

        def read(batch: list[int]) -> list[NDArray[np.float32]]:
            states = forward(reading, [sequences[n] for n in batch], 1).last_hidden_state
            # Sequences end on the right.
            means = [own[-max(1, len(answers[n])) :].float().mean(0) for n, own in zip(batch, states, strict=True)]
            return list(torch.stack(means).cpu().numpy())

        found = read_rows(reading, list(map(len, sequences)), reading.tokens, read)
    if not all(np.isfinite(own).all() for own in found):
        raise not_finite()
    return found


def _up_to(answer: Tokens, end_tokens: Sequence[int]) -> Tokens:
    """An answer in front of its first end token.

    >>> _up_to((5, 6, 2, 7), [2, 3]), _up_to((5,), [2])
    ((5, 6), (5,))
    """
    return answer[: next((n for n, token in enumerate(answer) if token in end_tokens), len(answer))]


def preference_states(
    reader: Reader, base: Base, examples: Sequence[Example], end_tokens: Sequence[int]
) -> NDArray[np.float32]:
    """Return the states of the answers of preferences, (N, C, H); see `answer_states`.

    Args:
        reader: the model.
        base: the model before tuning.
        examples: N preferences, all with two answers or all with one.
        end_tokens: what ends an answer.
    """
    texts = [(request.prompt, request.target) for example in examples for request in example.requests]
    states = answer_states(reader, base, texts, end_tokens)
    return np.stack(states).reshape(len(examples), -1, len(states[0]))


def fit_head(states_NCH: NDArray[np.float32], examples: Sequence[Example]) -> RewardHead:
    """Return the head that orders preferences best, by a logistic regression.

    For pairs it is that of differences, each in both directions, without an intercept (Bradley–Terry); for single
    answers that of the answers, which are good or bad. Features are standardised. How much it is regularised is chosen
    by cross-validation, in which answers to one prompt stay together.

    Args:
        states_NCH: of N rows of C answers.
        examples: the rows.

    Raises:
        InputError: too few rows, or only of one prompt or one label.

    Source: Bradley and Terry 1952; scikit-learn's `LogisticRegression`.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    pairs, references = states_NCH.shape[1] == 2, np.array([example.reference for example in examples])
    features = states_NCH.astype(np.float64)
    prompts = {example.prompt_tokens: n for n, example in enumerate(examples)}
    groups = np.array([prompts[example.prompt_tokens] for example in examples])
    if pairs:
        ahead = _signed(features, references)
        rows, labels, groups = np.concatenate([ahead, -ahead]), np.repeat([1, 0], len(ahead)), np.tile(groups, 2)
    else:
        rows, labels = features[:, 0], (references == 0).astype(int)
    kinds = min(len(prompts), *np.bincount(labels, minlength=2))
    if len(examples) < LEAST_ROWS or kinds < 2:
        hint = "give more rows, of two prompts and of both labels at least; or a reward model: --reward-model"
        raise InputError(f"{len(examples)} preferences are too few to fit a reward on", hint=hint)
    model = make_pipeline(
        StandardScaler(with_mean=not pairs), LogisticRegression(fit_intercept=not pairs, max_iter=5000)
    )
    grid = {"logisticregression__C": STRENGTHS}
    folds = StratifiedGroupKFold(min(FOLDS, kinds))
    search = GridSearchCV(model, grid, cv=folds, error_score="raise").fit(rows, labels, groups=groups)
    scaler, regression = (step for _, step in search.best_estimator_.steps)
    weights = regression.coef_[0] / scaler.scale_
    bias = -features.mean((0, 1)) @ weights if pairs else regression.intercept_[0] - scaler.mean_ @ weights
    about = {"rows": len(examples), "C": search.best_params_["logisticregression__C"], "cv": float(search.best_score_)}
    return RewardHead(weights, float(bias), about)


def _signed(values_NCF: NDArray[np.float64], references: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float64]:
    """How far the chosen answers are ahead of the rejected ones; of single answers, minus what bad ones have.

    >>> _signed(np.array([[[3.0], [1.0]], [[0.0], [5.0]]]), [0, 1]).tolist()
    [[2.0], [5.0]]
    """
    differences = values_NCF[:, 0] - values_NCF[:, 1] if values_NCF.shape[1] == 2 else values_NCF[:, 0]
    return differences * np.where(np.asarray(references) == 0, 1, -1)[:, None]
