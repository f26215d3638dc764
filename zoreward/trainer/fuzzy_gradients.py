"""How much each row's gradient points the way of other rows' gradients, from scores of members: no gradient is made.

Source: the proposal of Malladi et al. 2023 (arXiv 2305.17333) to select data by "fuzzy" gradients; along a run's own
steps Z0-Inf, Kokhlikyan, Chaudhuri, Mahloujifar 2025 (arXiv 2510.11832), which compares losses between checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers.utils import logging

from zoreward.journal import StoredRun, advance, checked_base
from zoreward.journal.stored import directions
from zoreward.members import Tuned, least_eps
from zoreward.methods import Method
from zoreward.methods.steps import antithetic_pairs
from zoreward.records import Example, InputError, Term, to_float32
from zoreward.registry import Objective
from zoreward.scoring import Generation, Scorer, checked_scorer, row_scores
from zoreward.trainer.options import FIRST_EPS
from zoreward.trainer.radius import found_rate

# Antithetic pairs that are scored together: as many members as a step has where texts are tuned on.
PAIRS_AT_ONCE = 16
# Rows on which members are tried before all are scored.
TRIAL_ROWS = 8


@dataclass(frozen=True, slots=True, eq=False)
class Influence:
    """What N rows say about the mean of other rows; NaN of a row that has no score under some member.

    Args:
        dot_N: ⟨∇s_n, ∇s̄⟩, the inner product of a row's gradient with that of the other rows' mean score.
        error_N: the standard error of each, as directions are drawn; 0 where it is exact.
        norm_N: ‖∇s_n‖.
        cosine_N: of the two gradients.
    """

    dot_N: NDArray[np.float64]
    error_N: NDArray[np.float64]
    norm_N: NDArray[np.float64]
    cosine_N: NDArray[np.float64]


def influence(slopes_NK: NDArray[np.float64], of_mean_K: NDArray[np.float64]) -> Influence:
    """Return the influence of rows, from slopes along directions whose entries have mean 0 and variance 1.

        ⟨∇s_n, ∇s̄⟩ ≈ 1/K Σ_k d_nk d̄_k,    its standard error std_k(d_nk d̄_k) / √K ≈ ‖∇s_n‖ ‖∇s̄‖ / √K

    Args:
        slopes_NK: d_nk of each row along each direction; see `row_slopes`.
        of_mean_K: d̄_k, the mean of the other rows' slopes.

    >>> found = influence(np.array([[1.0, -1.0], [-2.0, 0.0]]), np.array([1.0, -1.0]))
    >>> found.dot_N.tolist(), found.cosine_N.round(3).tolist()
    ([1.0, -1.0], [1.0, -0.707])
    """
    products_NK = slopes_NK * of_mean_K
    count = products_NK.shape[1]
    dot_N = products_NK.mean(1)
    norm_N = np.sqrt(np.square(slopes_NK).mean(1))
    lengths_N = norm_N * math.sqrt(float(np.square(of_mean_K).mean()))
    error_N = products_NK.std(1, ddof=1) / math.sqrt(count) if count > 1 else np.full(len(dot_N), np.nan)
    cosine_N = np.divide(dot_N, lengths_N, out=np.zeros_like(dot_N), where=lengths_N != 0)
    return Influence(dot_N, error_N, norm_N, cosine_N)


def row_slopes(
    scorer: Scorer,
    examples: Sequence[Example],
    ways: Sequence[Term],
    eps: float,
    *,
    seed: int = 0,
    progress: Callable[[int], object] | None = None,
) -> NDArray[np.float64]:
    """Return how steep each row's score is along each direction, from antithetic pairs that share passes.

        d_nk = (s_n(θ + ε z_k) − s_n(θ − ε z_k)) / 2ε

    Args:
        scorer: scores members of a model on an objective that scores rows.
        examples: N rows.
        ways: K directions.
        eps: ε.
        seed: of what is drawn where members write.
        progress: called now and then with how many more directions are done.

    Returns:
        (N, K); NaN where a row has no score.

    Raises:
        InputError: the objective gives one number for all rows.
    """
    found = []
    for first in range(0, len(ways), PAIRS_AT_ONCE):
        some = ways[first : first + PAIRS_AT_ONCE]
        scores = [
            _of_rows(scorer.objective, one) for one in scorer.score(examples, antithetic_pairs(some, eps), seed=seed)
        ]
        scores_NM = np.array(scores, dtype=np.float64).T
        found.append((scores_NM[:, ::2] - scores_NM[:, 1::2]) / (2 * to_float32(eps)))
        if progress is not None:
            progress(len(some))
    return np.concatenate(found, axis=1)


def _of_rows(objective: Objective, scored: Any) -> list[float | None]:
    own = row_scores(objective, scored)
    if own is None:
        hint = "Take one that scores row by row: neg-cross-entropy, log-likelihood, token-f1, a reward, …"
        raise InputError(f"{objective.name!r} gives one number for all rows, and none for each", hint=hint)
    return own


def tried_scorer(
    model: Any,
    tokenizer: Any,
    objective: Objective,
    generation: Generation,
    examples: Sequence[Example],
    ways: Sequence[Term],
    *,
    tuned: Tuned,
) -> Scorer:
    """Return what scores members of the model for `row_slopes`, once two members were tried on a few rows.

    Raises:
        InputError: the model fails on these rows by itself, or the objective gives one number for all rows.
    """
    few, pairs = examples[:TRIAL_ROWS], antithetic_pairs(ways[:PAIRS_AT_ONCE], 1e-3)
    scorer = checked_scorer(model, tokenizer, objective, generation, few, pairs, tuned=tuned, step=(examples, pairs))
    if objective.compares_with_base:
        few = scorer.with_base(few)
    _of_rows(objective, scorer.score(few)[0])
    return scorer


def found_eps(scorer: Scorer, method: Method, examples: Sequence[Example]) -> float:
    """Return the ε at which members change the answers to these rows visibly and still little, as for a run.

    Args:
        scorer: of `tried_scorer`.
        method: with the directions that are gone along.
        examples: the rows.
    """
    how: Any = {"steps_after": lambda rows: 1, "first": FIRST_EPS["full"], "generation": scorer.generation}
    found = found_rate(scorer.engine, method, scorer.objective, examples, **how)
    if not found.converged:
        logging.get_logger(__name__).warning("eps %g is a guess: better give --eps.", found.eps)
    eps = found.eps
    is_rounded = scorer.problem is not None or not method.family.rank
    return least_eps(scorer.engine.weights(), eps, method.family) if is_rounded else eps


def slopes_along(
    run: StoredRun,
    model: Any,
    made: Callable[[Any, Tuned, Sequence[Term]], Scorer],
    examples: Sequence[Example],
    count: int,
    *,
    progress: Callable[[int], object] | None = None,
) -> tuple[NDArray[np.float64], int]:
    """Return slopes along a run's own directions at the weights that it had: where it was tuned, rows are compared.

    Of the steps that led to its last weights as many are taken, evenly spread, as have so many directions. A run's
    directions do not depend on its rows, so the mean of d_nk d̄_k over them estimates that of ⟨∇s_n(θ_t), ∇s̄(θ_t)⟩ over
    these steps (TracIn, Pruthi et al. 2020, with steps of equal weight).

    Args:
        run: a stored run.
        model: its base; it is moved along.
        made: makes a scorer of the model with the run's adapter, the weights that it tuned, and some of its directions.
        examples: N rows.
        count: how many directions at least; where the run has fewer, all.
        progress: called now and then with how many more directions are done.

    Returns:
        (N, K) · how many steps were looked at.

    Raises:
        InputError: the run is of another base, or has no steps, or does not say what its directions derive from.
    """
    drawn, path = directions(run.header), run.path(run.n_steps)
    method = run.header.get("method") or {}
    if drawn is None or not path or not isinstance(method.get("eps"), int | float):
        raise InputError(
            "the run has no directions to go along", hint="Give one with a step at least, or leave it out."
        )
    size = _steps_for(count, drawn.count, len(path))
    steps = [path[len(path) * n // size] for n in range(size)]
    model, tuned = checked_base(run, model)
    scorer = made(model, tuned, drawn.fresh(path[0]))
    if scorer.objective.compares_with_base:
        examples = scorer.with_base(examples)
    found, done = [], 0
    for step in steps:
        advance(run, model, tuned, done, step)
        done = step
        found.append(row_slopes(scorer, examples, drawn.fresh(step), method["eps"], progress=progress))
    return np.concatenate(found, axis=1), len(steps)


def _steps_for(count: int, each: int, most: int) -> int:
    """How many steps have so many directions.

    >>> _steps_for(256, 3, 1000), _steps_for(256, 1, 20)
    (86, 20)
    """
    return min(most, -(-count // each))
