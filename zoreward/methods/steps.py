"""What the methods share: where a run stands, what they are given, and the update they return."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from zoreward.noise import derive_seed
from zoreward.records import Query, Term, Update

ROUNDING_INDEX = 2**64 - 1


@dataclass(frozen=True, slots=True)
class SPSAState:
    """Where a run stands: scalars only, ready for JSON.

    Args:
        step: updates done so far.
        silent: how many of them moved nothing, because the scores did not differ: with SPSA, because every direction
            had the same score on both sides.
    """

    step: int = 0
    silent: int = 0


def check_settings(
    *, eps: float, lr: float, num_directions: int, weight_decay: float, seed: int, rank: int, floor: float
) -> None:
    """Check what every method is made with.

    Raises:
        ValueError: a value is out of its range.
    """
    if not (eps > 0 and math.isfinite(eps)):
        raise ValueError(f"eps must be positive, not {eps}")
    if num_directions < 1:
        raise ValueError(f"num_directions must be at least 1, not {num_directions}")
    if not (lr >= 0 and weight_decay >= 0):
        raise ValueError("lr and weight_decay must not be negative")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must lie between 0 and 2^64 - 1, not {seed}")
    if rank < 0:
        raise ValueError(f"rank must be 0 (dense) or positive, not {rank}")
    if not (floor > 0 and math.isfinite(floor)):
        raise ValueError(f"floor must be positive, not {floor}")


def check_scores(state: SPSAState, query: Query, scores: Sequence[float]) -> None:
    """Check what a method is told.

    Raises:
        ValueError: wrong number of scores, a score that is not finite, or a query of another step.
    """
    if query.step != state.step:
        raise ValueError(f"the query belongs to step {query.step}, the state to step {state.step}")
    if len(scores) != len(query.members):
        raise ValueError(f"{len(query.members)} members need as many scores, not {len(scores)}")
    if not all(math.isfinite(score) for score in scores):
        raise ValueError(f"scores must be finite, got {list(scores)}")


def step_along(
    directions: Sequence[Term], weights: Sequence[float], state: SPSAState, *, seed: int, rate: float, decay: float
) -> tuple[Update, SPSAState]:
    """Return the update rate · (mean_k w_k z_k − decay · θ), and the next state.

    Args:
        directions: for each direction a term with its seed and rank.
        weights: w_K.
        state: the state before.
        seed: of the run.
        rate: the step's learning rate.
        decay: weight decay.
    """
    terms = tuple(
        Term(term.seed, rate * weight / len(weights), term.rank)
        for term, weight in zip(directions, weights, strict=True)
        if weight != 0
    )
    rounding_seed = derive_seed(seed, state.step, ROUNDING_INDEX)
    return Update(rate * decay, terms, rounding_seed), SPSAState(state.step + 1, state.silent + (not terms))
