"""SPSA as MeZO uses it: two antithetic members for each direction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from zoreward.methods.estimators import centred_ranks, differences, halved, over_rms, signs, z_scores
from zoreward.methods.steps import Method, couples
from zoreward.records import Member, Term, to_float32

Normalize = Literal["none", "rms", "zscore", "rank", "sign"]


@dataclass(frozen=True, slots=True)
class SPSA(Method):
    """Simultaneous perturbation stochastic approximation, maximising a score.

        g_k = (s(θ + ε z_k) − s(θ − ε z_k)) / 2ε
        θ ← θ + lr · (mean_k g_k z_k − weight_decay · θ)

    This is MeZO's step with L = −s. `ask` names the 2K members whose scores it needs, `tell` turns the scores into an
    update; neither sees a weight. Weight decay spares biases and norms (tensors with fewer than two dimensions).

    With `normalize` the scale of the scores does not matter: g_k gives way to a w_k of size 1 or so,

    | normalize | w_k, with d_k = s(θ + ε z_k) − s(θ − ε z_k) |
    |---|---|
    | `none` | g_k = d_k / 2ε |
    | `rms` | d_k / max(rms of the K d, least) |
    | `zscore` | d_k / 2 max(std of the 2K scores, least) |
    | `rank` | half the difference of the two ranks among the 2K scores, centred in [−½, ½] |
    | `sign` | the sign of d_k |

    with least = `floor`, or half a row where scores are counts (`least_spread`), and a step without differences is left
    out. Wherever scores of different directions are compared (all but `none`
    and `sign`), all members must be scored on the same rows.

    Other methods are settings of this one; docs/methods.md has the table.

    Args:
        normalize: what becomes of the differences of scores. The other arguments are those of `Method`.

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

    normalize: Normalize = field(default="none", kw_only=True)

    def _check(self) -> None:
        if self.normalize not in get_args(Normalize):
            raise ValueError(f"normalize must be one of {', '.join(get_args(Normalize))}, not {self.normalize!r}")

    def members(self, directions: Sequence[Term]) -> tuple[Member, ...]:
        """Return the 2K members θ + εz_0, θ − εz_0, θ + εz_1, …"""
        return couples(directions, self.eps)

    def weights(self, scores: Sequence[float]) -> list[float]:
        """Return w_K, by `normalize`."""
        if self.normalize == "rms":
            return over_rms(differences(scores), self.least_spread(scores))
        if self.normalize == "zscore":
            return halved(z_scores(scores, self.least_spread(scores)))
        if self.normalize == "rank":
            return halved(centred_ranks(scores))
        if self.normalize == "sign":
            return signs(differences(scores))
        return slopes(scores, self.eps)


def slopes(scores: Sequence[float], eps: float) -> list[float]:
    """Return g_K of antithetic couples: g_k = (s_2k − s_2k+1) / 2ε, the slope of the score along each direction.

    Args:
        scores: of the couples, side by side.
        eps: ε; rounded to float32, as the members' coefficients are.

    >>> slopes([0.75, 0.25, 0.5, 0.5], eps=0.5)
    [0.5, 0.0]
    """
    return [difference / (2 * to_float32(eps)) for difference in differences(scores)]
