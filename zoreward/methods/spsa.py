"""SPSA as MeZO uses it: two antithetic members for each direction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from zoreward.methods.estimators import centred_ranks, differences, halved, over_rms, z_scores
from zoreward.methods.steps import SPSAState, check_scores, check_settings, step_along
from zoreward.noise import derive_seed
from zoreward.records import Query, Term, Update, to_float32

Normalize = Literal["none", "rms", "zscore", "rank"]


@dataclass(frozen=True, slots=True)
class SPSA:
    """Simultaneous perturbation stochastic approximation, maximising a score.

        g_k = (s(θ + ε z_k) − s(θ − ε z_k)) / 2ε
        θ ← θ + lr · (mean_k g_k z_k − weight_decay · θ)

    This is MeZO's step with L = −s. `ask` names the 2K members whose scores it needs, `tell` turns the scores into an
    update; neither sees a weight. Weight decay spares biases and norms (tensors with fewer than two dimensions).

    With `normalize` the scale of the scores does not matter: g_k gives way to a w_k of size 1 or so,

    | normalize | w_k, with d_k = s(θ + ε z_k) − s(θ − ε z_k) |
    |---|---|
    | `none` | g_k = d_k / 2ε |
    | `rms` | d_k / max(rms of the K d, floor) |
    | `zscore` | d_k / 2 max(std of the 2K scores, floor) |
    | `rank` | half the difference of the two ranks among the 2K scores, centred in [−½, ½] |

    and a step without differences is left out. Wherever scores of different directions are compared (all but `none`),
    all members must be scored on the same rows.

    Args:
        eps: ε > 0; rounded to float32, as the members' coefficients are.
        lr: learning rate ≥ 0.
        num_directions: K ≥ 1 directions a step, averaged.
        weight_decay: ≥ 0.
        seed: of the run; each step's directions derive from it and the step's number.
        rank: 0 for dense directions; r > 0 for a·bᵀ/√r, which move matrices only.
        normalize: what becomes of the differences of scores.
        floor: a spread of scores below which `rms` and `zscore` take it for noise, and make the step smaller. The
            default is ten times what float32 log-probabilities of the same rows differ by in other batches.

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
    rank: int = 0
    normalize: Normalize = "none"
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
        if self.normalize not in get_args(Normalize):
            raise ValueError(f"normalize must be one of {', '.join(get_args(Normalize))}, not {self.normalize!r}")

    def init(self) -> SPSAState:
        """Return the state before the first step."""
        return SPSAState()

    def ask(self, state: SPSAState) -> Query:
        """Return the 2K members of this step: θ + εz_0, θ − εz_0, θ + εz_1, …"""
        seeds = [derive_seed(self.seed, state.step, k) for k in range(self.num_directions)]
        members = tuple((Term(seed, sign * self.eps, self.rank),) for seed in seeds for sign in (1, -1))
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
        check_scores(state, query, scores)
        rate = self.lr if lr is None else lr
        directions = [member[0] for member in query.members[::2]]
        weights = self._weights(query, scores)
        return step_along(directions, weights, state, seed=self.seed, rate=rate, decay=self.weight_decay)

    def _weights(self, query: Query, scores: Sequence[float]) -> list[float]:
        if self.normalize == "rms":
            return over_rms(differences(scores), self.floor)
        if self.normalize == "zscore":
            return halved(z_scores(scores, self.floor))
        if self.normalize == "rank":
            return halved(centred_ranks(scores))
        return projected_gradients(query, scores)


def projected_gradients(query: Query, scores: Sequence[float]) -> list[float]:
    """Return g_K: g_k = (s_2k − s_2k+1) / 2ε, the slope of the score along each direction of an antithetic query."""
    return [
        (scores[m] - scores[m + 1]) / (2 * to_float32(query.members[m][0].coefficient))
        for m in range(0, len(query.members), 2)
    ]
