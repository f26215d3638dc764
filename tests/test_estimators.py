"""Contract under test: from scores to coefficients.

- `over_rms`, `z_scores`, `centred_ranks`, `gains_over_std`: hand-computed values, ties, no spread, the floor, and what
  must not matter (the scale of the scores, a shift, any monotone change).
- SPSA and Population make of them lr · mean_k w_k z_k, carry their rank, and leave out a step without spread.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import reference
from terms import term_of
from zoreward.members import members_at, update_
from zoreward.methods import SPSA, Population, SPSAState
from zoreward.methods.estimators import centred_ranks, gains_over_std, over_rms, z_scores
from zoreward.records import to_float32

SCORES = [0.5, 0.25, -1.0, 2.0, 0.25, 0.75]
TINY = 1e-12


def test_rms_by_hand():
    assert over_rms([3.0, -1.0, 1.0, 5.0], TINY) == pytest.approx([3 / 3, -1 / 3, 1 / 3, 5 / 3])  # rms √(36/4) = 3
    assert over_rms([-0.02], TINY) == [-1.0]  # one difference gives its sign, where a z-score would give 0/0


def test_z_scores_by_hand():
    # mean 5, squares 9 1 1 1 0 0 4 16 sum to 32, std √(32/8) = 2
    expected = [-1.5, -0.5, -0.5, -0.5, 0.0, 0.0, 1.0, 2.0]
    assert z_scores([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0], TINY) == pytest.approx(expected)


def test_ranks_by_hand_and_ties_share_their_mean_rank():
    assert centred_ranks([0.3, -5.0, 100.0]) == [0.0, -0.5, 0.5]
    assert centred_ranks([7.0, 7.0, 1.0, 9.0, 7.0]) == [0.0, 0.0, -0.5, 0.5, 0.0]  # ranks 1, 2, 3 → 2 of 4
    assert centred_ranks([1.0, 1.0, 2.0, 2.0]) == pytest.approx([-1 / 3, -1 / 3, 1 / 3, 1 / 3])
    assert centred_ranks([0.0, -0.0]) == [0.0, 0.0]


def test_gains_by_hand():
    # 2 4 9: mean 5, squares 9 + 1 + 16 over K − 1 = 2 → std √13
    expected = [x / math.sqrt(13) for x in (-1.0, 1.0, 6.0)]
    assert gains_over_std(3.0, [2.0, 4.0, 9.0], TINY) == pytest.approx(expected)


@pytest.mark.parametrize("value", [0.0, 0.1, -3.7, 1e300])
@pytest.mark.parametrize("count", [2, 3, 7])
def test_no_spread_gives_zeros(value, count):
    zeros = [0.0] * count
    assert over_rms(zeros, TINY) == zeros
    assert z_scores([value] * count, TINY) == zeros
    assert centred_ranks([value] * count) == zeros
    assert gains_over_std(value + 1, [value] * count, TINY) == zeros


def test_a_spread_below_the_floor_makes_a_small_step():
    assert over_rms([1e-6, -1e-6], 1e-4) == pytest.approx([0.01, -0.01])
    assert z_scores([1e-6, -1e-6], 1e-4) == pytest.approx([0.01, -0.01])
    assert gains_over_std(0.0, [1e-6, -1e-6], 1e-4) == pytest.approx([0.01, -0.01])


def test_what_does_not_matter():
    scaled, shifted = [1000 * s for s in SCORES], [s + 40 for s in SCORES]
    curved = [math.exp(3 * s) for s in SCORES]
    assert over_rms(scaled, TINY) == pytest.approx(over_rms(SCORES, TINY))
    assert over_rms(shifted, TINY) != pytest.approx(over_rms(SCORES, TINY)), "differences are not centred"
    assert z_scores(scaled, TINY) == pytest.approx(z_scores(SCORES, TINY))
    assert z_scores(shifted, TINY) == pytest.approx(z_scores(SCORES, TINY))
    assert centred_ranks(curved) == centred_ranks(SCORES) != centred_ranks(SCORES[::-1])
    assert gains_over_std(1040.0, [1000 * s + 40 for s in SCORES], TINY) == pytest.approx(
        gains_over_std(1.0, SCORES, TINY)
    )


@pytest.mark.parametrize(
    ("normalize", "expected"),
    [
        ("none", [0.25 / 1.0, -3.0 / 1.0, -0.5 / 1.0]),  # 2ε = 1
        ("rms", [d / math.sqrt((0.25**2 + 3.0**2 + 0.5**2) / 3) for d in (0.25, -3.0, -0.5)]),
        (
            "zscore",
            [d / 2 / math.sqrt(5.9375 / 6 - (2.75 / 6) ** 2) for d in (0.25, -3.0, -0.5)],
        ),  # mean s² − (mean s)²
        ("rank", [(0.6 - 0.3) / 2, (0.0 - 1.0) / 2, (0.3 - 0.8) / 2]),  # ranks 3, 1½, 0, 5, 1½, 4 of 5
    ],
)
def test_spsa_steps_by_the_mean_of_weighted_directions(normalize, expected):
    spsa = SPSA(eps=0.5, lr=0.3, num_directions=3, seed=8, rank=2, normalize=normalize, floor=TINY)
    state = SPSAState(step=4, silent=1)
    query = spsa.ask(state)
    seeds = [reference.derive_seed(8, 4, k) for k in range(3)]
    assert query.members == tuple((term_of(seed, sign * 0.5, 2),) for seed in seeds for sign in (1, -1))
    update, after = spsa.tell(state, query, SCORES)
    assert [(term.seed, term.family.rank) for term in update.terms] == [(seed, 2) for seed in seeds]
    # coefficients are rounded to float32
    assert [term.coefficient for term in update.terms] == pytest.approx([0.3 * w / 3 for w in expected], rel=1e-6)
    assert after == SPSAState(step=5, silent=1)


@pytest.mark.parametrize("normalize", ["none", "rms", "zscore", "rank"])
def test_a_step_without_differences_is_empty_and_counted(normalize):
    spsa = SPSA(num_directions=2, normalize=normalize)
    update, state = spsa.tell(spsa.init(), spsa.ask(spsa.init()), [0.1, 0.1, 0.3, 0.3])
    assert update.terms == () and state == SPSAState(1, 1)


def test_dense_spsa_is_what_it_was():
    spsa = SPSA(eps=1e-3, lr=0.05, num_directions=2, seed=3)
    update, _ = spsa.tell(spsa.init(), spsa.ask(spsa.init()), [0.7, 0.4, 0.1, 0.3])
    slopes = [(0.7 - 0.4) / (2 * to_float32(1e-3)), (0.1 - 0.3) / (2 * to_float32(1e-3))]
    assert [term.coefficient for term in update.terms] == [to_float32(0.05 * slope / 2) for slope in slopes]
    assert {term.family.rank for term in update.terms} == {0}


@pytest.mark.parametrize(
    ("estimator", "scores", "expected"),
    [
        ("zscore", [2.0, 4.0, 9.0], [x / math.sqrt(26 / 3) for x in (-3.0, -1.0, 4.0)]),
        ("base", [3.0, 2.0, 4.0, 9.0], [x / math.sqrt(13) for x in (-1.0, 1.0, 6.0)]),
    ],
)
def test_a_population_steps_by_the_mean_of_weighted_directions(estimator, scores, expected):
    population = Population(eps=0.25, lr=0.3, num_directions=3, seed=8, rank=1, estimator=estimator, floor=TINY)
    state = SPSAState(step=2)
    query = population.ask(state)
    seeds = [reference.derive_seed(8, 2, k) for k in range(3)]
    members = tuple((term_of(seed, 0.25, 1),) for seed in seeds)
    assert query.members == (members if estimator == "zscore" else ((), *members))
    update, after = population.tell(state, query, scores, lr=0.6)
    assert [(term.seed, term.family.rank) for term in update.terms] == [(seed, 1) for seed in seeds]
    assert [term.coefficient for term in update.terms] == pytest.approx([0.6 * w / 3 for w in expected], rel=1e-6)
    assert after == SPSAState(step=3)
    update, after = population.tell(state, query, [0.1] * len(scores))
    assert update.terms == () and after == SPSAState(3, 1)
    with pytest.raises(ValueError, match="members need as many scores"):
        population.tell(state, query, scores[1:])


@pytest.mark.parametrize(
    "method",
    [
        *(SPSA(eps=0.05, lr=0.1, num_directions=4, rank=1, normalize=n, seed=1) for n in ("rms", "zscore", "rank")),
        *(Population(eps=0.05, lr=0.1, num_directions=8, estimator=e, seed=1) for e in ("zscore", "base")),
    ],
    ids=lambda method: getattr(method, "normalize", None) or method.estimator,
)
def test_every_method_climbs(method):
    torch.manual_seed(0)
    net, target = nn.Linear(4, 3, bias=False), torch.randn(3, 4)

    def score() -> float:
        return -float(((net.weight.detach() - target) ** 2).sum())

    before, state = score(), method.init()
    for _ in range(40):
        query = method.ask(state)
        scores = []
        for member in query.members:
            with torch.no_grad(), members_at(net, (member,)):
                scores.append(score())
        update, state = method.tell(state, query, scores)
        update_(net, update)
    assert (
        score() > 0.3 * before
    )  # scores are negative; a wrong sign or other directions than the members' only get worse


@pytest.mark.parametrize("wrong", [{"rank": -1}, {"floor": 0.0}, {"normalize": "std"}])
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError):
        SPSA(**wrong)


@pytest.mark.parametrize("wrong", [{"num_directions": 1}, {"estimator": "rms"}, {"eps": 0.0}])
def test_population_values_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError):
        Population(**wrong)
