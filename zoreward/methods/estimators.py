"""SPSA and one-sided populations, and the functions that turn scores into weights of directions: exact sums, no state.

Scores are higher-is-better. The scores of an antithetic query stand as s_0, s_1, s_2, …: s_2k at θ + εz_k, s_2k+1 at
θ − εz_k. Where the scores do not differ, every weight is 0: there is nothing to learn, and no step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from zoreward.methods.directions import along
from zoreward.methods.steps import MAX_STEPS, Method, SPSAState, antithetic_pairs, known
from zoreward.records import Member, Query, Term, to_float32

Normalize = Literal["none", "running", "rms", "zscore", "rank", "sign"]

# The ways to normalise that compare a direction with no other: their scores may be of other rows.
WITHOUT_COMPARING = ("none", "running", "sign")
# Of the running mean of squared slopes: it looks back on some ten steps. Measured with 0.9 alone.
RUNNING_DECAY = 0.9


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
    | `running` | g_k / √v, v the mean of mean_k g_k² over the steps up to this one, of which the newest weigh most |
    | `rms` | d_k / max(rms of the K d, least) |
    | `zscore` | d_k / 2 max(std of the 2K scores, least) |
    | `rank` | half the difference of the two ranks among the 2K scores, centred in [−½, ½] |
    | `sign` | the sign of d_k |

    with least = `floor`, or half a row where scores are counts (`least_spread`), and a step without differences is left
    out. Wherever scores of different directions are compared (all but `none`,
    `running` and `sign`), all members must be scored on the same rows.

    With `running`, v is the mean over steps that had scores, weighted by β^i, i steps ago, β = 0.9. Unlike `rms` it
    works with a single direction: a steep slope still makes a longer step than a gentle one, and the learning rate is
    how far a usual step moves the weights along its direction (MEAZO, 2026, arXiv 2605.03869).

    With `rows_per_direction` n the B rows of a step are divided among K ≤ B/n directions, and both members of a pair
    are scored on the n rows or more that are theirs: each row is read twice, however many directions there are.

        g_k = (s(rows_k; θ + ε z_k) − s(rows_k; θ − ε z_k)) / 2ε

    The mean of g_k z_k has the mean of SPSA's step along one direction, and for a score that is a mean over rows, whose
    gradients have the mean G and scatter by σ, a variance that is smaller by (B + σ²/G²) / (n + σ²/G²). A direction
    without rows, as in a short last batch, or without a score has no part in the mean (GRZO, 2026, arXiv 2606.02857).

    Other methods are settings of this one; docs/methods.md has the table.

    Args:
        normalize: what becomes of the differences of scores.
        rows_per_direction: n ≥ 1; 0: all directions are scored on all rows. The other arguments are those of `Method`.

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
    rows_per_direction: int = field(default=0, kw_only=True)

    def _check(self) -> None:
        if self.normalize not in get_args(Normalize):
            raise ValueError(f"normalize must be one of {', '.join(get_args(Normalize))}, not {self.normalize!r}")
        if not 0 <= self.rows_per_direction <= MAX_STEPS:
            raise ValueError(f"rows_per_direction must be at least 0, not {self.rows_per_direction}")
        if self.rows_per_direction and self.normalize not in WITHOUT_COMPARING:
            named = ", ".join(WITHOUT_COMPARING)
            raise ValueError(
                f"with rows of their own directions are not compared: normalize is one of {named}, not {self.normalize}"
            )

    def ask(self, state: SPSAState) -> Query:
        """Return the members whose scores this step needs; with `rows_per_direction` each pair on rows of its own."""
        members = self.members(self.directions.fresh(state.step))
        return Query(state.step, members, rows_per_direction=self.rows_per_direction)

    def is_scored(self, scores: Sequence[float]) -> bool:
        """Return whether all members have a score; with `rows_per_direction` whether both of any pair have one."""
        if not self.rows_per_direction:
            return super(SPSA, self).is_scored(scores)
        return bool(known(differences(scores)))

    def members(self, directions: Sequence[Term]) -> tuple[Member, ...]:
        """Return the 2K members θ + εz_0, θ − εz_0, θ + εz_1, …"""
        return antithetic_pairs(directions, self.eps)

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

    def scaled(self, weights: list[float], state: SPSAState) -> tuple[list[float], tuple[float, float]]:
        """Return w_K over the running rms of slopes, if that is asked for, and the decaying sums with this step."""
        if self.normalize != "running":
            return weights, state.squares
        total, count = state.squares
        # Products and sums alone, which every machine rounds alike: a run is resumed by making its states again.
        found = known(weights)
        total = RUNNING_DECAY * total + math.fsum(weight * weight for weight in found) / len(found)
        count = RUNNING_DECAY * count + 1
        rms = math.sqrt(total / count)
        return [weight / rms if rms else 0.0 for weight in weights], (total, count)


def slopes(scores: Sequence[float], eps: float) -> list[float]:
    """Return g_K of antithetic pairs: g_k = (s_2k − s_2k+1) / 2ε, the slope of the score along each direction.

    Args:
        scores: of the pairs, side by side.
        eps: ε; rounded to float32, as the members' coefficients are.

    >>> slopes([0.75, 0.25, 0.5, 0.5], eps=0.5)
    [0.5, 0.0]
    """
    return [difference / (2 * to_float32(eps)) for difference in differences(scores)]


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


def differences(scores: Sequence[float]) -> list[float]:
    """Return d_K of an antithetic query: d_k = s_2k − s_2k+1.

    >>> differences([3.0, 1.0, 0.5, 1.0])
    [2.0, -0.5]
    """
    return [scores[m] - scores[m + 1] for m in range(0, len(scores), 2)]


def halved(weights: Sequence[float]) -> list[float]:
    """Return w_K of the weights u_0, u_1, … of antithetic members: w_k = (u_2k − u_2k+1) / 2.

    The sum over members 1/2K Σ_m u_m · (± z) is then mean_k w_k z_k.

    >>> halved([0.5, -0.5, 0.25, -0.25])
    [0.5, 0.25]
    """
    return [difference / 2 for difference in differences(weights)]


def over_rms(values: Sequence[float], floor: float) -> list[float]:
    """Return values over their root mean square: w_k = d_k / max(√(mean d²), floor).

    For differences of antithetic scores, whose mean says nothing: they are not centred, so that few of them, or one,
    give a bounded step (|w_k| ≤ √K).

    Args:
        values: d_K.
        floor: a spread below which differences are noise, > 0: it keeps their step small.

    >>> over_rms([3.0, -4.0, 0.0, 0.0], floor=1e-4)
    [1.2, -1.6, 0.0, 0.0]
    """
    rms = math.sqrt(math.fsum(value * value for value in values) / len(values))
    return [value / max(rms, floor) for value in values]


def signs(values: Sequence[float]) -> list[float]:
    """Return the sign of each value: −1, 0 or 1; NaN of NaN. One outlier moves a step no further than another value.

    Source: Cai et al. 2025, "FeedSign", arXiv 2501.17610, whose step is lr · sign(d) · z.

    >>> signs([3.0, -0.5, 0.0])
    [1.0, -1.0, 0.0]
    """
    return [math.nan if math.isnan(value) else float((value > 0) - (value < 0)) for value in values]


def z_scores(scores: Sequence[float], floor: float) -> list[float]:
    """Return standardised scores: u_m = (s_m − mean s) / max(std s, floor), std² = mean (s − mean s)².

    Args:
        scores: of all members of a query, all on the same rows.
        floor: as in `over_rms`. Without it, a z-score makes a full step of pure noise.

    Source: Qiu et al. 2025, "Evolution strategies at scale", arXiv 2509.24372 (without the floor).

    >>> z_scores([1.0, 3.0], floor=1e-4)
    [-1.0, 1.0]
    """
    if min(scores) == max(scores):  # their mean may be off by a rounding
        return [0.0] * len(scores)
    mean = math.fsum(scores) / len(scores)
    std = math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / len(scores))
    return [(score - mean) / max(std, floor) for score in scores]


def centred_ranks(scores: Sequence[float]) -> list[float]:
    """Return ranks between −½ and ½: u_m = rank(s_m) / (M − 1) − ½, rank 0 the lowest; ties get their mean rank.

    Only the order of the scores counts, so an outlier moves a step no further than any other best score.

    Args:
        scores: of all M ≥ 2 members of a query, all on the same rows.

    Source: Salimans et al. 2017, "Evolution strategies as a scalable alternative to reinforcement learning", arXiv
    1703.03864 (ties there fall as the sort puts them).

    >>> centred_ranks([10.0, -3.0, 2.0, 2.0, 500.0])
    [0.25, -0.5, -0.125, -0.125, 0.5]
    """
    ordered = sorted(scores)
    first = {score: place for place, score in reversed(list(enumerate(ordered)))}
    last = {score: place for place, score in enumerate(ordered)}
    return [(first[score] + last[score]) / 2 / (len(scores) - 1) - 0.5 for score in scores]


def gains_over_std(base: float, scores: Sequence[float], floor: float) -> list[float]:
    """Return one-sided gains over the spread: w_k = (s_k − s) / max(std s_K, floor), std² = Σ (s_k − mean)² / (K − 1).

    Args:
        base: s, the score at θ.
        scores: s_K at θ + εz_k, K ≥ 2, on the same rows.
        floor: as in `over_rms`.

    Source: FZOO, Dang et al. 2025, arXiv 2506.09034, with losses l = −s and without its 1/ε, which the learning rate
    takes in.

    >>> [round(weight, 3) for weight in gains_over_std(1.0, [1.0, 2.0, 3.0], floor=1e-4)]
    [0.0, 1.0, 2.0]
    """
    if min(scores) == max(scores):
        return [0.0] * len(scores)
    mean = math.fsum(scores) / len(scores)
    std = math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / (len(scores) - 1))
    return [(score - base) / max(std, floor) for score in scores]
