"""Scorers and metrics of scikit-learn."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from zoreward import get_objective, objective
from zoreward_objectives.arguments import hinted

if TYPE_CHECKING:
    import numpy as np

    from zoreward.registry import Objective

_LOSSES = ("_loss", "_error", "_deviance")
# Means over rows, though scikit-learn has one number for all.
_MEANS = ("accuracy", "top_k_accuracy", "log_loss", "brier", "brier_score_loss", "hamming_loss", "zero_one_loss")
# What a metric's second argument is called, and the methods of an estimator that give it, best first.
_RESPONSES: dict[str, str | tuple[str, ...]] = {
    "y_proba": "predict_proba",
    "y_prob": "predict_proba",
    "y_score": ("decision_function", "predict_proba"),
}


@objective("sklearn", needs="any")
def sklearn_(
    *,
    name: str,
    average: str | None = None,
    pos_label: int | None = None,
    beta: float | None = None,
    undefined: float | None = None,
) -> Objective:
    """A scorer or a metric of scikit-learn: f1_macro, roc_auc, cohen_kappa_score, neg_log_loss and the like.

    Classes are the choices, by index; probabilities are the softmax of the choices' mean log-probabilities per token.
    Metrics of probabilities that take labels, such as neg_log_loss, are given all choices, also those that no row of a
    batch has. Losses are negated and must be asked for as such: neg_log_loss, neg_hamming_loss.

    Args:
        name: of a scorer (sklearn.metrics.get_scorer_names) or of a function of sklearn.metrics.
        average: of the metric: binary, macro, micro or weighted, where it has that.
        pos_label: the index of the positive choice, where the metric has that.
        beta: of fbeta_score.
        undefined: the score of a batch on which the metric is not defined; without it such a batch has none, and a step
            on it moves nothing.

    Raises:
        LookupError: scikit-learn has nothing of that name, or nothing that scores given choices.
        ValueError: `undefined` is not finite.

    >>> found = get_objective("sklearn:matthews_corrcoef")
    >>> found.name, found.needs
    ('matthews_corrcoef', 'choices')
    """
    if undefined is not None and not math.isfinite(undefined):
        raise ValueError(f"undefined must be finite, not {undefined}")
    given = {"average": average, "pos_label": pos_label, "beta": beta}
    settings = {key: value for key, value in given.items() if value is not None}
    scorer = _scorer(name, settings)

    def score(predictions: Sequence[int], references: Sequence[int], logprobs: np.ndarray) -> float:
        n_choices = logprobs.shape[1]
        try:
            value = _value(scorer, predictions, references, logprobs)
        except ValueError:  # some refuse a batch in which a choice is missing; what else they refuse is an error
            if len(set(references)) == n_choices or not scores_all(n_choices):
                raise
            value = math.nan
        return undefined if undefined is not None and math.isnan(value) else value

    @functools.cache
    def scores_all(n_choices: int) -> bool:
        return _scores_all(scorer, n_choices)

    if name.removeprefix("neg_").removesuffix("_score") in _MEANS:
        # Who says that it returns a float is taken for a metric of a set, whose value on few rows is biased.
        del score.__annotations__["return"]
    score.__name__ = name
    score.__doc__ = f"scikit-learn's {name}."
    _try(name, score)
    return get_objective(score)


def _scorer(name: str, settings: dict[str, Any]) -> Callable[..., float]:
    """Return a scorer: it is called with an estimator, what to predict from, and the right answers."""
    from sklearn import metrics

    scorers = metrics.get_scorer_names()
    short = name.removeprefix("neg_")
    # Scorers have shorter names than the functions that they call: top_k_accuracy, neg_brier_score.
    negated = next((full for full in (short, f"{short}_score", f"{short}_loss") if hasattr(metrics, full)), short)
    function = getattr(metrics, negated, None)
    if name in scorers and not settings and not _wants_all_choices(function):
        return metrics.get_scorer(name)
    if not callable(function) or isinstance(function, type) or negated.startswith(("get_", "check_", "make_")):
        import difflib

        functions = [one for one in metrics.__all__ if one.endswith(("_score", *_LOSSES))]
        near = difflib.get_close_matches(name, [*scorers, *functions, *(f"neg_{one}" for one in functions)])
        raise hinted(LookupError(f"scikit-learn has no scorer or metric {name!r}"), _or(near))
    loss = negated.endswith(_LOSSES)
    if loss != name.startswith("neg_"):
        other = f"neg_{negated}" if loss else negated
        raise hinted(LookupError(f"higher is better for every objective, so there is no {name!r}"), f"ask for {other}")
    method = _response(function) or "predict"
    made = partial(metrics.make_scorer, function, response_method=method, greater_is_better=not loss, **settings)
    if not _wants_all_choices(function):
        return made()

    def score(given: Any, logprobs: np.ndarray, references: np.ndarray) -> float:
        if negated.startswith("d2_") and len(set(references)) == 1:  # it would divide by the rounding of 0
            raise ValueError(f"{name} compares with always the same answer, which all rows of this batch have")
        # Otherwise a batch in which a choice is missing would have fewer classes than probabilities.
        return float(made(labels=range(logprobs.shape[1]))(given, logprobs, references))

    return score


def _wants_all_choices(function: Callable[..., Any] | None) -> bool:
    """Whether a metric of probabilities takes the classes that these belong to.

    Others find the classes among the answers, and F1's `labels` would say of which ones the mean is taken.
    """
    import inspect

    return callable(function) and "labels" in inspect.signature(function).parameters and _response(function) is not None


def _response(function: Callable[..., Any]) -> str | tuple[str, ...] | None:
    """The methods of an estimator that give a metric what it wants; None for one that wants predictions."""
    import inspect

    if getattr(function, "__name__", "") in ("log_loss", "d2_log_loss_score"):  # scikit-learn 1.8 says y_pred there
        return "predict_proba"
    second = [*inspect.signature(function).parameters, "", ""][1]
    return _RESPONSES.get(second)


def _value(
    scorer: Callable[..., float], predictions: Sequence[int], references: Sequence[int], logprobs: np.ndarray
) -> float:
    import numpy as np

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of metrics that are not defined: told by what is returned
        return float(scorer(_given(predictions, logprobs), logprobs, np.asarray(references)))


def _given(predictions: Sequence[int], logprobs: np.ndarray) -> Any:
    """An estimator in scikit-learn's sense whose answers are already known."""
    import numpy as np
    from sklearn.base import BaseEstimator, ClassifierMixin

    class Given(ClassifierMixin, BaseEstimator):
        classes_ = np.arange(logprobs.shape[1])

        def predict(self, rows: Any) -> Any:
            return np.asarray(predictions)

        def predict_proba(self, rows: Any) -> Any:
            shares = np.exp(logprobs - logprobs.max(axis=1, keepdims=True))
            return shares / shares.sum(axis=1, keepdims=True)

        def decision_function(self, rows: Any) -> Any:
            # A sure model's log-probabilities are infinite; a margin of 1e300 ranks the same.
            finite = np.clip(logprobs, -1e300, 0)
            return finite[:, 1] - finite[:, 0] if finite.shape[1] == 2 else self.predict_proba(rows)

    return Given()


def _try(name: str, score: Callable[..., float]) -> None:
    """Find out on some rows of two choices whether the metric scores choices at all."""
    try:
        score(*_trial(2))
    except Exception as error:
        text = " ".join(str(error).split())
        hint = "it may want an option (--average, --beta), or be for something else than classes"
        raise hinted(LookupError(f"scikit-learn's {name} cannot score choices so: {text:.100}"), hint) from error


def _trial(n_choices: int) -> tuple[list[int], list[int], np.ndarray]:
    """Predictions, references and log-probabilities of rows among which every choice is right, and one is mistaken."""
    import numpy as np

    references = [*range(n_choices), *range(n_choices)]
    predictions = [*references[:-1], 0]
    shares = np.full((len(references), n_choices), 0.3 / max(1, n_choices - 1))
    shares[np.arange(len(references)), predictions] = 0.7
    return predictions, references, np.log(shares)


def _scores_all(scorer: Callable[..., float], n_choices: int) -> bool:
    """Whether the metric is defined where all of so many choices occur."""
    try:
        value = _value(scorer, *_trial(n_choices))
    except ValueError:
        return False
    return not math.isnan(value)


def _or(names: Sequence[str]) -> str:
    return f"did you mean {' or '.join(names)}?" if names else "sklearn.metrics.get_scorer_names() lists the scorers"
