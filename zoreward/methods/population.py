"""One-sided populations: members on one side of θ only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from zoreward.methods.directions import along
from zoreward.methods.estimators import gains_over_std, z_scores
from zoreward.methods.steps import Method
from zoreward.records import Member, Term

Estimator = Literal["zscore", "base"]


@dataclass(frozen=True, slots=True)
class Population(Method):
    """An evolution strategy whose members θ + ε z_k are weighed against each other, or against θ; maximises a score.

        θ ← θ + lr · (mean_k w_k z_k − weight_decay · θ)

    | estimator | members | w_k, of scores s_k at θ + ε z_k |
    |---|---|---|
    | `zscore` | K | (s_k − mean s) / max(std s, least): "ES at scale" |
    | `base` | 1 + K | (s_k − s(θ)) / max(std s, least), std² = Σ (s_k − mean s)² / (K − 1): FZOO's step |

    with least = `floor`, or half a row where scores are counts (`least_spread`).

    For the same number of forward passes it tries twice the directions of SPSA and knows less about each. All members
    must be scored on the same rows.

    Args:
        lr: "ES at scale" takes ε / 2.
        num_directions: K ≥ 2 directions a step.
        estimator: what the scores are compared with. The other arguments are those of `Method`.

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

    lr: float = 5e-4
    num_directions: int = 30
    estimator: Estimator = field(default="zscore", kw_only=True)

    def _check(self) -> None:
        if self.num_directions < 2:
            raise ValueError("num_directions must be at least 2: one member alone has no spread")
        if self.estimator not in get_args(Estimator):
            raise ValueError(f"estimator must be one of {', '.join(get_args(Estimator))}, not {self.estimator!r}")

    def members(self, directions: Sequence[Term]) -> tuple[Member, ...]:
        """Return the members θ + εz_0, θ + εz_1, …; for `base` behind θ itself."""
        members = tuple((along(z, self.eps),) for z in directions)
        return members if self.estimator == "zscore" else ((), *members)

    def weights(self, scores: Sequence[float]) -> list[float]:
        """Return w_K, by `estimator`."""
        if self.estimator == "zscore":
            return z_scores(scores, self.least_spread(scores))
        return gains_over_std(scores[0], scores[1:], self.least_spread(scores))
