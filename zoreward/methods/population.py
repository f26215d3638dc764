"""One-sided populations: members on one side of θ only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from zoreward.methods.estimators import gains_over_std, z_scores
from zoreward.methods.steps import SPSAState, check_scores, check_settings, step_along
from zoreward.noise import derive_seed
from zoreward.records import Query, Term, Update

Estimator = Literal["zscore", "base"]


@dataclass(frozen=True, slots=True)
class Population:
    """An evolution strategy whose members θ + ε z_k are weighed against each other, or against θ; maximises a score.

        θ ← θ + lr · (mean_k w_k z_k − weight_decay · θ)

    | estimator | members | w_k, of scores s_k at θ + ε z_k |
    |---|---|---|
    | `zscore` | K | (s_k − mean s) / max(std s, floor): "ES at scale" |
    | `base` | 1 + K | (s_k − s(θ)) / max(std s, floor), std² = Σ (s_k − mean s)² / (K − 1): FZOO's step |

    For the same number of forward passes it tries twice the directions of SPSA and knows less about each. All members
    must be scored on the same rows. FZOO draws its directions from ±1; here their entries are `normal`.

    Args:
        eps: ε > 0; rounded to float32, as the members' coefficients are.
        lr: learning rate ≥ 0; "ES at scale" takes ε / 2.
        num_directions: K ≥ 2 directions a step.
        weight_decay: ≥ 0; spares tensors with fewer than two dimensions.
        seed: of the run; each step's directions derive from it and the step's number.
        rank: 0 for dense directions; r > 0 for a·bᵀ/√r, which move matrices only.
        estimator: what the scores are compared with.
        floor: as in `SPSA`.

    Raises:
        ValueError: a value is out of its range.

    Example:
        >>> population = Population(eps=0.5, lr=0.1, num_directions=2)
        >>> state = population.init()
        >>> query = population.ask(state)
        >>> update, state = population.tell(state, query, [0.3, 0.1])
        >>> [round(term.coefficient, 6) for term in update.terms]
        [0.05, -0.05]

    Source: Qiu et al. 2025, arXiv 2509.24372; Dang et al. 2025, arXiv 2506.09034.
    """

    eps: float = 1e-3
    lr: float = 5e-4
    num_directions: int = 30
    weight_decay: float = 0.0
    seed: int = 0
    rank: int = 0
    estimator: Estimator = "zscore"
    floor: float = 1e-4

    def __post_init__(self) -> None:
        check_settings(
            eps=self.eps,
            lr=self.lr,
            num_directions=self.num_directions,
            weight_decay=self.weight_decay,
            seed=self.seed,
            rank=self.rank,
            floor=self.floor,
        )
        if self.num_directions < 2:
            raise ValueError("num_directions must be at least 2: one member alone has no spread")
        if self.estimator not in get_args(Estimator):
            raise ValueError(f"estimator must be one of {', '.join(get_args(Estimator))}, not {self.estimator!r}")

    def init(self) -> SPSAState:
        """Return the state before the first step."""
        return SPSAState()

    def ask(self, state: SPSAState) -> Query:
        """Return the members of this step: θ itself for `base`, then θ + εz_0, θ + εz_1, …"""
        seeds = [derive_seed(self.seed, state.step, k) for k in range(self.num_directions)]
        members = tuple((Term(seed, self.eps, self.rank),) for seed in seeds)
        return Query(state.step, members if self.estimator == "zscore" else ((), *members))

    def tell(
        self, state: SPSAState, query: Query, scores: Sequence[float], *, lr: float | None = None
    ) -> tuple[Update, SPSAState]:
        """Return the update that the scores call for, and the next state; see `SPSA.tell`.

        Raises:
            ValueError: wrong number of scores, a score that is not finite, or a query of another step.
        """
        check_scores(state, query, scores)
        rate = self.lr if lr is None else lr
        directions = [member[0] for member in query.members if member]
        if self.estimator == "zscore":
            weights = z_scores(scores, self.floor)
        else:
            weights = gains_over_std(scores[0], scores[1:], self.floor)
        return step_along(directions, weights, state, seed=self.seed, rate=rate, decay=self.weight_decay)
