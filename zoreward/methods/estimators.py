"""From scores to weights of directions: small functions on lists of floats, exact sums, no state.

Scores are higher-is-better. The scores of an antithetic query stand as s_0, s_1, s_2, …: s_2k at θ + εz_k, s_2k+1 at
θ − εz_k. Where the scores do not differ, every weight is 0: there is nothing to learn, and no step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


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


def are_counts(scores: Sequence[float], rows: int) -> bool:
    """Whether scores are means over so many rows of whole numbers, as accuracy is: nothing lies between two of them.

    >>> are_counts([0.25, 0.5], rows=4), are_counts([0.25, 0.3], rows=4)
    (True, False)
    """
    return all(abs(score * rows - round(score * rows)) < 1e-6 for score in scores)


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
    """Return the sign of each value: −1, 0 or 1. One outlier moves a step no further than anything else does.

    Source: Cai et al. 2025, "FeedSign", arXiv 2501.17610, whose step is lr · sign(d) · z.

    >>> signs([3.0, -0.5, 0.0])
    [1.0, -1.0, 0.0]
    """
    return [float((value > 0) - (value < 0)) for value in values]


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
