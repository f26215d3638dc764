"""SPSA as MeZO uses it: two antithetic members for each direction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from zoreward.noise import derive_seed
from zoreward.records import Query, Term, Update, to_float32

ROUNDING_INDEX = 2**64 - 1


@dataclass(frozen=True, slots=True)
class SPSAState:
    """Where a run stands: scalars only, ready for JSON.

    Args:
        step: updates done so far.
        silent: how many of them had the same score on both sides of every direction.
    """

    step: int = 0
    silent: int = 0


@dataclass(frozen=True, slots=True)
class SPSA:
    """Simultaneous perturbation stochastic approximation, maximising a score.

        g_k = (s(θ + ε z_k) − s(θ − ε z_k)) / 2ε
        θ ← θ + lr · (mean_k g_k z_k − weight_decay · θ)

    This is MeZO's step with L = −s. `ask` names the 2K members whose scores it needs, `tell` turns the scores into an
    update; neither sees a weight. Weight decay spares biases and norms (tensors with fewer than two dimensions).

    Args:
        eps: ε > 0; rounded to float32, as the members' coefficients are.
        lr: learning rate ≥ 0.
        num_directions: K ≥ 1 directions a step, averaged.
        weight_decay: ≥ 0.
        seed: of the run; each step's directions derive from it and the step's number.

    Raises:
        ValueError: a value is out of its range.

    Example:
        >>> spsa = SPSA(eps=0.5, lr=0.1, seed=0)
        >>> state = spsa.init()
        >>> query = spsa.ask(state)
        >>> update, state = spsa.tell(state, query, [0.3, 0.1])
        >>> round(update.terms[0].coefficient, 6), state.step
        (0.02, 1)

    Source: Spall 1992; Malladi, Gao, Nichani, Damian, Lee, Chen, Arora 2023, arXiv 2305.17333.
    """

    eps: float = 1e-3
    lr: float = 1e-6
    num_directions: int = 1
    weight_decay: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.eps > 0 and math.isfinite(self.eps)):
            raise ValueError(f"eps must be positive, not {self.eps}")
        if self.num_directions < 1:
            raise ValueError(f"num_directions must be at least 1, not {self.num_directions}")
        if not (self.lr >= 0 and self.weight_decay >= 0):
            raise ValueError("lr and weight_decay must not be negative")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must lie between 0 and 2^64 - 1, not {self.seed}")

    def init(self) -> SPSAState:
        """Return the state before the first step."""
        return SPSAState()

    def ask(self, state: SPSAState) -> Query:
        """Return the 2K members of this step: θ + εz_0, θ − εz_0, θ + εz_1, …"""
        seeds = [derive_seed(self.seed, state.step, k) for k in range(self.num_directions)]
        members = tuple((Term(seed, sign * self.eps),) for seed in seeds for sign in (1, -1))
        return Query(state.step, members)

    def tell(
        self, state: SPSAState, query: Query, scores: Sequence[float], *, lr: float | None = None
    ) -> tuple[Update, SPSAState]:
        """Return the update that the scores call for, and the next state.

        Args:
            state: the state that `query` was asked with.
            query: the answer of `ask`.
            scores: scores_M, higher is better.
            lr: this step's learning rate, where a schedule changes it.

        Raises:
            ValueError: wrong number of scores, a score that is not finite, or a query of another step.
        """
        if query.step != state.step:
            raise ValueError(f"the query belongs to step {query.step}, the state to step {state.step}")
        if len(scores) != len(query.members):
            raise ValueError(f"{len(query.members)} members need as many scores, not {len(scores)}")
        if not all(math.isfinite(score) for score in scores):
            raise ValueError(f"scores must be finite, got {list(scores)}")
        rate = self.lr if lr is None else lr
        gradients = projected_gradients(query, scores)
        terms = tuple(
            Term(query.members[2 * k][0].seed, rate * gradient / self.num_directions)
            for k, gradient in enumerate(gradients)
            if gradient != 0
        )
        rounding_seed = derive_seed(self.seed, state.step, ROUNDING_INDEX)
        silent = state.silent + (not terms)
        return Update(rate * self.weight_decay, terms, rounding_seed), SPSAState(state.step + 1, silent)


def projected_gradients(query: Query, scores: Sequence[float]) -> list[float]:
    """Return g_K: g_k = (s_2k − s_2k+1) / 2ε, the slope of the score along each direction of an antithetic query."""
    return [
        (scores[m] - scores[m + 1]) / (2 * to_float32(query.members[m][0].coefficient))
        for m in range(0, len(query.members), 2)
    ]
