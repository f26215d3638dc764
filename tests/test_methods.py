"""Contract under test: every named method takes its paper's step, from the terms of its journal alone.

- Steps equal slow versions in float64 that were written from the papers' formulas, and keep what the papers keep: whole
  copies of the weights for an anchor, whole matrices for momentum.
- SVRG's anchor is the weights of its last pass over all rows, and both its mini-batch estimates are along the same z.
- A run goes on from its journal as if it had not been interrupted, and its trajectory says the same in 4 bytes a
  direction and step.
- What a method does not take is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

import reference
from terms import low_rank as z_low_rank
from terms import numbers_of, term_of
from zoreward.config import METHOD_DEFAULTS, defaults_of
from zoreward.journal import Journal, read_journal
from zoreward.journal.trajectory import run_of, trajectory_bytes
from zoreward.kernels import cpu
from zoreward.methods import METHODS, SPSA, SVRG, Method, SPSAState, SVRGState, make_method, state_after
from zoreward.noise import DISTRIBUTIONS, streams
from zoreward.noise import definition as noise
from zoreward.records import Direction, InputError, Member, Rewind, StepRecord, Term, Update
from zoreward.trainer.options import ZOConfig

Weights = reference.Weights
Loss = Callable[[Weights, Sequence[int]], float]

GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(12, 4))
ALL = range(12)
EPS = float(np.float32(1e-3))  # as members have it


def start() -> Weights:
    generator = np.random.default_rng(1)
    return {"matrix": generator.normal(size=(3, 4)), "vector": generator.normal(size=4)}


def loss(weights: Weights, rows: Sequence[int]) -> float:
    x = X[list(rows)]
    return float(np.mean(np.tanh(x @ weights["matrix"].T).sum(1) + (x * weights["vector"] ** 2).sum(1)))


def batch(step: int) -> list[int]:
    return [(5 * step + j) % 12 for j in range(3)]


BLOCKS = {"matrix": 0, "vector": 1}


def z_of(weights: Weights, term: Term) -> Weights:
    """The direction of a term, by the reference."""
    of_rank = term.family.rank > 0
    z = low_rank(weights, term.seed, *numbers_of(term)) if of_rank else reference.direction(weights, term.seed)
    return z if term.block is None else {name: z[name] * (BLOCKS[name] == term.block) for name in z}


def low_rank(weights: Weights, seed: int, rank: int, *seeds: int | None) -> Weights:
    numbers = reference.streams(weights)
    return {
        name: reference.low_rank(seed, numbers[name], weight.shape, rank, *seeds).astype(np.float64)
        if weight.ndim == 2
        else np.zeros_like(weight)
        for name, weight in weights.items()
    }


def moved(weights: Weights, *steps: tuple[float, Weights]) -> Weights:
    return {name: weight + sum(c * z[name] for c, z in steps) for name, weight in weights.items()}


def at(weights: Weights, member: Member) -> Weights:
    return moved(weights, *((term.coefficient, z_of(weights, term)) for term in member))


def run(method: Method, steps: int, loss: Loss = loss) -> list[Weights]:
    """The weights before and after each step of ours, in float64."""
    weights, state, found = start(), method.init(), [start()]
    for step in range(steps):
        query = method.ask(state)
        rows = ALL if query.rows == "all" else batch(step)
        scores = [-loss(at(weights, member), rows) for member in query.members]
        update, state = method.tell(state, query, scores)
        decay = update.decay if update.block in (None, BLOCKS["matrix"]) else 0.0
        weights = at(moved(weights, (-decay, {"matrix": weights["matrix"], "vector": 0.0})), update.terms)
        found.append(weights)
    return found


def slope(weights: Weights, z: Weights, rows: Sequence[int]) -> float:
    """The projected gradient of the papers: (L(θ + εz) − L(θ − εz)) / 2ε."""
    return (loss(moved(weights, (EPS, z)), rows) - loss(moved(weights, (-EPS, z)), rows)) / (2 * EPS)


def seed_of(step: int, k: int = 0) -> int:
    return reference.derive_seed(7, step, k)


def gap(one: Sequence[Weights], other: Sequence[Weights]) -> float:
    return max(float(np.abs(a[name] - b[name]).max()) for a, b in zip(one, other, strict=True) for name in a)


# Coefficients are float32: each step is off by 2^-24 of its own length, at most 1 here, and by what the steps before it
# were off, which slopes of curvature ~1 and rates ≤ 0.3 do not amplify tenfold in 12 steps: 12 · 10 · 2^-24 = 7e-6.
CLOSE = 7e-6


# --- MeZO-SVRG -------------------------------------------------------------------------------------------------------


def mezo_svrg(
    steps: int, q: int, eta_1: float, eta_2: float, *, anchor_follows: bool = False, two_z: bool = False
) -> list[Weights]:
    """Algorithm 2 of arXiv 2404.08080, with the anchor and the full gradient kept as whole copies.

    The two ways to get it wrong are those of the released code.
    """
    weights, found = start(), [start()]
    anchor, full = {}, {}
    for step in range(steps):
        z = reference.direction(weights, seed_of(step))
        if step % q == 0:
            g = slope(weights, z, ALL)
            anchor = {name: weight.copy() for name, weight in weights.items()}
            full = {name: g * z[name] for name in weights}
            weights = moved(weights, (-eta_1, full))
        else:
            rows, other = batch(step), reference.direction(weights, seed_of(1000 + step)) if two_z else z
            there = slope(weights if anchor_follows else anchor, other, rows)
            here = slope(weights, z, rows)
            weights = moved(weights, (-eta_2 * here, z), (eta_2 * there, other), (-eta_2, full))
        found.append(weights)
    return found


@pytest.mark.parametrize("q", [2, 3, 5])
def test_svrg_is_the_published_method(q):
    ours = run(SVRG(eps=1e-3, lr=0.03, seed=7, full_every=q, full_rate=5.0), 11)
    assert gap(ours, mezo_svrg(11, q, 0.15, 0.03)) < CLOSE
    assert gap(ours, mezo_svrg(11, q, 0.15, 0.03, anchor_follows=True)) > 100 * CLOSE
    assert gap(ours, mezo_svrg(11, q, 0.15, 0.03, two_z=True)) > 100 * CLOSE


def test_svrg_asks_for_the_anchor_and_one_z():
    svrg, weights, state = SVRG(eps=1e-3, lr=0.03, seed=7, full_every=4, num_directions=2), start(), SVRGState()
    anchor = weights
    for step in range(8):
        query = svrg.ask(state)
        assert (query.rows, len(query.members)) == (("all", 4) if step % 4 == 0 else ("batch", 8))
        if step % 4 == 0:
            anchor = weights
        else:
            assert [len(part) for part in query.parts] == [4, 4]  # no more members at once than MeZO has
            for here, there in zip(*query.parts, strict=True):
                assert here == there[-1:]
                expected = at(anchor, here)
                # the terms that lead back are rounded to float32, at most 4 · 2 of them, each below 1
                assert gap([at(weights, there)], [expected]) < 8 * 2.0**-24
                assert gap([at(weights, there)], [at(weights, here)]) > 1e-3
        scores = [-loss(at(weights, member), ALL if step % 4 == 0 else batch(step)) for member in query.members]
        update, state = svrg.tell(state, query, scores)
        weights = at(weights, update.terms)


def told(method: Method, scores_of: Callable[[int], float], steps: int) -> list[float]:
    """The rates of steps whose couples differ by 2ε around a score: the coefficient of a slope of 1."""
    state, found = method.init(), []
    for step in range(steps):
        query = method.ask(state)
        half = [scores_of(step) + EPS, scores_of(step) - EPS]
        update, state = method.tell(state, query, half + [0.0] * (len(query.members) - 2))
        found.append(update.terms[0].coefficient)
    return found


@pytest.mark.parametrize(
    ("before", "after", "lower"), [(-1.0, -1.06, True), (-1.0, -1.04, False), (1.0, 0.94, True), (0.5, 0.9, False)]
)
def test_svrg_anneals_where_the_mean_of_a_window_fell(before, after, lower):
    svrg = SVRG(eps=1e-3, lr=0.25, anneal_every=4)
    rates = told(svrg, lambda step: before if step < 4 else after, 10)
    expected = [2.5, 0.25] * 4 + ([0.5, 0.05] if lower else [2.5, 0.25])
    assert rates == pytest.approx(expected, rel=1e-6)


# --- momentum, sign --------------------------------------------------------------------------------------------------


def test_momentum_is_the_running_mean_of_estimates():
    beta, weights, found = 0.8, start(), [start()]
    mean = {name: np.zeros_like(weight) for name, weight in weights.items()}
    for step in range(10):
        z = reference.direction(weights, seed_of(step))
        g = slope(weights, z, batch(step))
        mean = {name: beta * mean[name] + (1 - beta) * g * z[name] for name in weights}
        weights = moved(weights, (-0.1, mean))
        found.append(weights)
    # a window that holds all of 0.8^i to 2e-10
    assert gap(run(SPSA(eps=1e-3, lr=0.1, seed=7, momentum=beta, window=100), 10), found) < CLOSE


def test_a_short_window_is_the_weighted_mean_of_its_steps():
    weights, found, past = start(), [start()], []
    for step in range(8):
        z = [reference.direction(weights, seed_of(step, k)) for k in (0, 1)]
        g = [slope(weights, one, batch(step)) for one in z]
        past.insert(0, {name: (g[0] * z[0][name] + g[1] * z[1][name]) / 2 for name in weights})
        steps = [(-0.1 * 0.5**i / (1 + 0.5 + 0.25), estimate) for i, estimate in enumerate(past[:3])]
        weights = moved(weights, *steps)
        found.append(weights)
    spsa = SPSA(eps=1e-3, lr=0.1, seed=7, num_directions=2, momentum=0.5, window=3)
    assert gap(run(spsa, 8), found) < CLOSE


def test_sign_steps_are_as_long_as_each_other():
    weights, found = start(), [start()]
    for step in range(8):
        z = reference.direction(weights, seed_of(step))
        weights = moved(weights, (-0.02 * math.copysign(1, slope(weights, z, batch(step))), z))
        found.append(weights)
    assert gap(run(make_method("sign", eps=1e-3, lr=0.02, seed=7), 8), found) < CLOSE


def test_more_directions_as_the_run_goes_on():
    weights, found = start(), [start()]
    for step in range(7):
        seeds = [seed_of(step, k) for k in range(2 + step // 3)]
        weights, _ = reference.mezo_step(weights, lambda w, s=step: loss(w, batch(s)), seeds=seeds, eps=1e-3, lr=0.1)
        found.append(weights)
    assert gap(run(SPSA(eps=1e-3, lr=0.1, seed=7, num_directions=2, more_every=3), 7), found) < CLOSE


# --- LOZO ------------------------------------------------------------------------------------------------------------


def lozo(steps: int, rank: int, nu: int, lr: float, beta: float = 0.0) -> list[Weights]:
    """Algorithms 1 and 2 of arXiv 2410.07698 for matrices: U fresh each step, V every ν, momentum N in U's place.

    Z = U·Vᵀ, c = (F(X + εZ) − F(X − εZ)) / 2ε, N ← βN + (1 − β)·c·U/r, X ← X − lr·N·Vᵀ. ε is ours over √r.
    """
    weights, found = start(), [start()]
    eps, numbers = EPS / math.sqrt(rank), reference.streams(weights)
    momentum = np.zeros((3, rank))
    for step in range(steps):
        u = reference.normal(seed_of(step), numbers["matrix"], range(3 * rank), reference.FACTOR_A).reshape(3, rank)
        if step % nu == 0:
            v_seed = seed_of(step)
        v = reference.normal(v_seed, numbers["matrix"], range(4 * rank), reference.FACTOR_B).reshape(4, rank)
        z = {"matrix": u.astype(float) @ v.T.astype(float), "vector": np.zeros(4)}
        above, below = (loss(moved(weights, (sign * eps, z)), batch(step)) for sign in (1, -1))
        momentum = beta * momentum + (1 - beta) * (above - below) / (2 * eps) * u / rank
        weights = moved(weights, (-lr, {"matrix": momentum @ v.T, "vector": np.zeros(4)}))
        found.append(weights)
    return found


@pytest.mark.parametrize(("rank", "nu"), [(1, 1), (2, 3), (3, 5)])
def test_lozo_is_the_published_method(rank, nu):
    ours = run(make_method("lozo", eps=1e-3, lr=0.1, seed=7, rank=rank, refresh=nu), 11)
    # 2^-24 of ε·z for ε rounded by itself and z with its own 1/√r: in the slope, 1e-4 · 2^-24 / 2ε at most each
    assert gap(ours, lozo(11, rank, nu, 0.1)) < 10 * CLOSE
    if nu > 1:
        assert gap(ours, lozo(11, rank, nu + 1, 0.1)) > 100 * CLOSE


@pytest.mark.parametrize(("rank", "rate"), [(2, 0.05), (4, 0.02)])
def test_lozo_at_its_rank_times_the_rate_takes_the_steps_of_the_released_code(rank, rate):
    """optsuite/LOZO moves by lr·g·U·Vᵀ, where the paper has 1/r: here in float64, for the matrix alone."""
    weights, found = start(), [start()]
    numbers, eps = reference.streams(weights)["matrix"], EPS
    for step in range(6):
        seeds = (seed_of(step), seed_of(step - step % 3))
        u, v = (
            reference.normal(seed, numbers, range(size * rank), purpose).reshape(size, rank).astype(float)
            for seed, size, purpose in zip(seeds, (3, 4), (reference.FACTOR_A, reference.FACTOR_B), strict=True)
        )
        z = {"matrix": u @ v.T, "vector": np.zeros(4)}
        above, below = (loss(moved(weights, (sign * eps, z)), batch(step)) for sign in (1, -1))
        weights = moved(weights, (-rate * (above - below) / (2 * eps), z))
        found.append(weights)
    ours = make_method("lozo", eps=1e-3 * math.sqrt(rank), lr=rank * rate, seed=7, rank=rank, refresh=3)
    assert gap(run(ours, 6), found) < 20 * CLOSE


def test_lozo_m_is_the_published_method_while_v_lasts():
    ours = run(make_method("lozo-m", eps=1e-3, lr=0.1, seed=7, rank=2, refresh=20, momentum=0.8, window=100), 11)
    assert gap(ours, lozo(11, 2, 20, 0.1, beta=0.8)) < 10 * CLOSE


def directions_stepped_along(name: str) -> list[list[Direction]]:
    """The two directions of each of seven steps, three of which share V or a subspace; they are those measured."""
    method, state, found = make_method(name, lr=0.1, rank=2, refresh=3, num_directions=2), SPSAState(), []
    for step in range(7):
        query = method.ask(state)
        update, state = method.tell(state, query, [0.1, 0.7, 0.2, 0.3])
        found.append([member[0].direction for member in query.members[::2]])
        assert [term.direction for term in update.terms] == found[-1], step
    return found


def test_lozo_steps_along_the_directions_that_it_measured():
    seen = [measured[0] for measured in directions_stepped_along("lozo")]
    b_seeds = [family.seeds(seed)[1] for seed, family in seen]
    assert b_seeds == [seed for seed in (seen[0][0], seen[3][0], seen[6][0]) for _ in range(3)][:7]
    assert len({seed for seed, _ in seen}) == 7


# --- SubZero ---------------------------------------------------------------------------------------------------------


def gram_schmidt(columns: np.ndarray) -> np.ndarray:
    """Orthonormal columns of the same spans."""
    found: list[np.ndarray] = []
    for column in columns.T:
        for q in [*found, *found]:
            column = column - (q @ column) * q
        found.append(column / np.sqrt(column @ column))
    return np.stack(found, axis=1)


def subzero(steps: int, rank: int, t_0: int, lr: float, *, late: bool = False) -> list[Weights]:
    """Algorithms 1 to 3 of arXiv 2410.08989 for matrices: Z fresh each step, U and V every T_0, from Gaussian columns.

    Z̃ = √(mn/r²)·U·Z·Vᵀ, ρ = (L(W + εZ̃) − L(W − εZ̃)) / 2ε, W ← W − lr·ρ·Z̃; r is at most min(m, n). `late`: the step
    is along the next step's subspace.
    """
    weights, found = start(), [start()]
    stream, (m, n) = reference.streams(weights)["matrix"], weights["matrix"].shape
    used = min(m, n, rank)

    def drawn(seed: int, size: int, purpose: int) -> np.ndarray:
        return reference.normal(seed, stream, range(size * rank), purpose).reshape(size, rank)[:, :used].astype(float)

    def direction(z_seed: int, step: int) -> Weights:
        basis_seed = seed_of(step - step % t_0)
        u, v = (
            gram_schmidt(drawn(basis_seed, size, purpose)) if used < size else np.eye(size)
            for size, purpose in ((m, reference.BASIS_U), (n, reference.BASIS_V))
        )
        core = drawn(z_seed, rank, reference.CORE)[:used]
        return {"matrix": math.sqrt(m * n) / used * u @ core @ v.T, "vector": np.zeros(4)}

    for step in range(steps):
        z = direction(seed_of(step), step)
        rho = slope(weights, z, batch(step))
        weights = moved(weights, (-lr * rho, direction(seed_of(step), step + 1) if late else z))
        found.append(weights)
    return found


@pytest.mark.parametrize(("rank", "t_0"), [(1, 1), (2, 3), (2, 5), (3, 4), (6, 3)])
def test_subzero_is_the_published_method(rank, t_0):
    ours = run(make_method("subzero", eps=1e-3, lr=0.05, seed=7, rank=rank, refresh=t_0), 11)
    # z is off by float32 factors, products and sums, some 10 · 2^-24 of it, in the step and, over 2ε, in no slope: both
    # sides of a couple have the same z. Steps are at most 2 long.
    assert gap(ours, subzero(11, rank, t_0, 0.05)) < 10 * CLOSE
    if t_0 > 1 and rank < 3:  # else the whole of the shorter side is the subspace
        assert gap(ours, subzero(11, rank, t_0 + 1, 0.05)) > 100 * CLOSE
        assert gap(ours, subzero(11, rank, t_0, 0.05, late=True)) > 100 * CLOSE


def test_subzero_steps_along_the_directions_that_it_measured_in_one_subspace():
    seen = []
    for measured in directions_stepped_along("subzero"):
        assert measured[0][1] == measured[1][1]
        seen += measured
    assert len({seed for seed, _ in seen}) == 14
    assert [family.basis_seed for _, family in seen] == [
        seed_of_run for t in (0, 3, 6) for seed_of_run in [reference.derive_seed(0, t, 0)] * 6
    ][:14]


# --- MeZO-BCD --------------------------------------------------------------------------------------------------------


def mezo_bcd(
    steps: int, every: int, lr: float, *, beta: float = 0.0, decay: float = 0.0, rank: int = 0
) -> list[Weights]:
    """MeZO on the coordinates of one block, the others held (arXiv 2501.19099); a permutation of the blocks each round.

    Momentum is a running mean of whole gradient estimates, which are 0 outside of their step's block.
    """
    weights, found, turns = start(), [start()], []
    mean = {name: np.zeros_like(weight) for name, weight in weights.items()}
    for number in range(steps):
        turns += [name for _, name in sorted((seed_of(number, 2**63 + k), name) for name, k in BLOCKS.items())]
    for step in range(steps):
        active = turns[step // every]
        z = low_rank(weights, seed_of(step), rank) if rank else reference.direction(weights, seed_of(step))
        for name in weights:
            if name != active:
                z[name] = np.zeros_like(weights[name])
        g = slope(weights, z, batch(step))
        mean = {name: beta * mean[name] + (1 - beta) * g * z[name] for name in weights}
        shrunk = {"matrix": weights["matrix"] * (active == "matrix"), "vector": np.zeros(4)}
        weights = moved(weights, (-lr, mean), (-lr * decay, shrunk))
        found.append(weights)
    return found


@pytest.mark.parametrize("every", [1, 2, 3])
def test_bcd_is_the_published_method(every):
    ours = run(make_method("bcd", eps=1e-3, lr=0.1, seed=7, blocks=2, block_every=every), 11)
    assert gap(ours, mezo_bcd(11, every, 0.1)) < CLOSE
    assert gap(ours, mezo_bcd(11, every + 1, 0.1)) > 100 * CLOSE
    assert gap(ours, run(SPSA(eps=1e-3, lr=0.1, seed=7), 11)) > 100 * CLOSE


def test_bcd_decays_the_active_block_and_momentum_moves_each_estimate_in_its_own():
    ours = run(make_method("bcd", eps=1e-3, lr=0.1, seed=7, blocks=2, block_every=2, weight_decay=0.5), 11)
    assert gap(ours, mezo_bcd(11, 2, 0.1, decay=0.5)) < CLOSE
    ours = run(make_method("bcd", eps=1e-3, lr=0.1, seed=7, blocks=2, momentum=0.8, window=100), 11)
    assert gap(ours, mezo_bcd(11, 1, 0.1, beta=0.8)) < CLOSE
    ours = run(make_method("bcd", eps=1e-3, lr=0.1, seed=7, blocks=2, rank=2), 11)
    assert gap(ours, mezo_bcd(11, 1, 0.1, rank=2)) < 10 * CLOSE  # as for LOZO


def test_every_block_has_its_turn_in_every_round_and_rounds_differ():
    drawn = make_method("bcd", seed=7, blocks=5, block_every=3).directions
    blocks = [drawn.block(step) for step in range(10 * 15)]
    assert blocks == [turn for turn in blocks[::3] for _ in range(3)], "a block has three steps in a row"
    rounds = [tuple(blocks[first : first + 15 : 3]) for first in range(0, 150, 15)]
    assert all(sorted(one) == [0, 1, 2, 3, 4] for one in rounds)
    assert len(set(rounds)) > 5  # ten of 120 orders: 5 or fewer by luck has a chance below 1e-5
    assert {one[0] for one in rounds} > {0, 1}


# --- populations -----------------------------------------------------------------------------------------------------


def test_es_and_fzoo_take_their_papers_steps():
    for name in ("es", "fzoo"):
        weights, found = start(), [start()]
        for step in range(4):
            z = [reference.direction(weights, seed_of(step, k)) for k in range(5)]
            losses = np.array([loss(moved(weights, (EPS, one)), batch(step)) for one in z])
            if name == "es":  # θ ← θ + α·mean (zscore of the rewards · z)
                w = (losses - losses.mean()) / losses.std()
            else:  # θ ← θ − lr·Σ (l_i − l_0)·u_i / (N·std)
                w = (losses - loss(weights, batch(step))) / losses.std(ddof=1)
            weights = moved(weights, *((-0.01 * one / 5, direction) for one, direction in zip(w, z, strict=True)))
            found.append(weights)
        ours = run(make_method(name, eps=1e-3, lr=0.01, seed=7, num_directions=5, floor=1e-12), 4)
        assert gap(ours, found) < CLOSE, name


@pytest.mark.parametrize("rows", [8, 20])
def test_one_row_that_turned_makes_no_full_step(rows):
    """Of scores that are counts of rows a spread below half a row counts as half a row; of others as it is."""
    base = 5 / rows
    one_turned = [base + 1 / rows, base, *[base] * 14]  # of 8 couples, one row of one member
    all_turned = [base + sign * count / rows for count in (1, 2, 1, 3, 1, 2, 2, 1) for sign in (1, -1)]
    half = 0.5 / rows
    for scores in (one_turned, all_turned, [score + 0.01 / rows for score in one_turned]):
        values, counted = np.array(scores), abs(scores[1] - base) < 1e-12 or scores is all_turned
        d = values[::2] - values[1::2]
        least = half if counted else 1e-4
        w = d / max(np.sqrt((d**2).mean()), least)
        z = (values - values.mean()) / max(values.std(), least)
        others = np.array([scores[0], *scores[2:]])
        gains = (others - scores[1]) / max(others.std(ddof=1), least)
        options = {"num_directions": 8, "rows": rows}
        assert SPSA(normalize="rms", **options).weights(scores) == pytest.approx(w)
        assert SPSA(normalize="zscore", **options).weights(scores) == pytest.approx((z[::2] - z[1::2]) / 2)
        assert make_method("es", num_directions=16, rows=rows).weights(scores) == pytest.approx(z)
        fzoo = make_method("fzoo", num_directions=15, rows=rows)
        assert fzoo.weights([scores[1], *others.tolist()]) == pytest.approx(gains)
    assert SPSA(normalize="rms", **options).weights(one_turned) == pytest.approx([2.0, *[0.0] * 7])
    assert SPSA(normalize="rms", num_directions=8).weights(one_turned) == pytest.approx([8**0.5, *[0.0] * 7])


def test_eggroll_weighs_antithetic_low_rank_members_by_their_z_scores():
    weights, found = start(), [start()]
    for step in range(4):
        z = [low_rank(weights, seed_of(step, k), 1) for k in range(3)]
        members = [(sign, one) for one in z for sign in (1, -1)]
        fitness = np.array([-loss(moved(weights, (sign * EPS, one)), batch(step)) for sign, one in members])
        fitness = (fitness - fitness.mean()) / fitness.std()
        steps = [(0.01 * f * sign / 6, one) for f, (sign, one) in zip(fitness, members, strict=True)]
        weights = moved(weights, *steps)
        found.append(weights)
    ours = make_method("eggroll", eps=1e-3, lr=0.01, seed=7, num_directions=3, rank=1, normalize="zscore", floor=1e-12)
    assert gap(run(ours, 4), found) < CLOSE


@pytest.mark.parametrize(("rank", "count"), [(1, 3), (2, 4)])
def test_eggroll_at_another_rate_takes_the_step_of_the_released_code(rank, count):
    """HyperscaleES: fitness over √(var + 1e-5), factors times σ, their mean times √(members) to SGD; in float64."""
    weights, size, sigma, rate = start(), 2 * count, EPS, 0.7
    z = [low_rank(weights, seed_of(0, k), rank) for k in range(count)]
    members = [(sign * sigma, one) for one in z for sign in (1, -1)]
    scores = np.array([-40 * loss(moved(weights, member), batch(0)) for member in members])
    fitness = (scores - scores.mean()) / np.sqrt(scores.var() + 1e-5)
    steps = [(rate * math.sqrt(size) * f * c / size, one) for f, (c, one) in zip(fitness, members, strict=True)]
    theirs = moved(weights, *steps)
    ours = make_method("eggroll", eps=1e-3, seed=7, num_directions=count, rank=rank, normalize="zscore", floor=1e-12)
    shrunk = scores.std() / math.sqrt(scores.var() + 1e-5)
    update, _ = ours.tell(
        ours.init(), ours.ask(ours.init()), scores.tolist(), lr=rate * sigma * math.sqrt(size) * shrunk
    )
    assert gap([at(weights, update.terms)], [theirs]) < 1e-9
    assert 0.1 < shrunk < 0.999, "the 1e-5 makes a difference"


def test_members_and_update_move_along_entries_of_the_methods_distribution():
    assert METHOD_DEFAULTS["fzoo"]["distribution"] == "rademacher"
    for distribution in DISTRIBUTIONS:
        for rank in (0, 2):
            spsa = make_method("spsa", eps=1e-3, lr=0.01, seed=7, rank=rank, distribution=distribution)
            query = spsa.ask(spsa.init())
            update, _ = spsa.tell(spsa.init(), query, [0.3, 0.1])
            (term,) = update.terms
            assert {one.direction for member in query.members for one in member} == {term.direction}
            weight = torch.zeros(6, 5)
            cpu.replay_all_([(weight, 3)], [update])
            if rank:
                z = z_low_rank(seed_of(0), 3, (6, 5), rank, distribution=distribution)
            else:
                z = noise.entries(seed_of(0), 3, 0, 30, distribution=distribution).reshape(6, 5)
            assert (weight.numpy() == np.float32(term.coefficient) * z).all(), (distribution, rank)


# --- journal, trajectory, resuming -----------------------------------------------------------------------------------

RUNS = {
    **{name: {} for name in METHODS},
    "bcd": {"blocks": 4},
    "bcd with momentum, two steps a block": {"blocks": 3, "block_every": 2, "momentum": 0.5, "window": 4},
    "subzero by blocks": {"blocks": 3, "block_every": 2, "refresh": 4, "momentum": 0.6, "window": 3},
    "lozo by blocks": {"blocks": 3, "refresh": 4, "weight_decay": 0.1},
    "svrg with windows": {"full_every": 3, "num_directions": 2, "anneal_every": 2},
    "momentum, more directions": {"num_directions": 2, "more_every": 2, "momentum": 0.5, "window": 4},
    "lozo-m, growing": {"more_every": 3, "window": 5, "refresh": 4},
    "svrg, growing": {"more_every": 2, "full_every": 3},
    "subzero, growing": {"more_every": 3, "momentum": 0.6, "window": 5, "refresh": 4},
    "fzoo with momentum": {"momentum": 0.7, "window": 3},
    "lozo-m, gaussian": {"distribution": "gaussian", "window": 3, "refresh": 4},
    "svrg, gaussian": {"distribution": "gaussian", "full_every": 3},
    "spsa of no distribution of its own": {"distribution": "normal"},
}


def method_named(name: str) -> Method:
    key = next(method for method in sorted(METHODS, key=len, reverse=True) if name.startswith(method))
    options = {
        option: value
        for option, value in METHOD_DEFAULTS[key].items()
        if option in ("eps", "num_directions", "normalize", "refresh", "momentum", "distribution")
    }
    rank = METHOD_DEFAULTS[key].get("rank", 0)
    return make_method(key, seed=7, **{"rank": rank, "lr": 0.1, **options, **RUNS[name]})


def records(method: Method, steps: int, state: SPSAState | None = None) -> tuple[list[StepRecord], SPSAState]:
    """Steps of scores that are drawn; in every fourth no scores differ, in some a member, or all, have no score."""
    state, found = state or method.init(), []
    for step in range(state.step, steps):
        draw = np.random.default_rng(step)
        query, rate = method.ask(state), 0.1 / (1 + step)
        scores = tuple(draw.normal(size=len(query.members)).tolist()) if step % 4 != 3 else (0.5,) * len(query.members)
        if step in (2, 5, 6):
            scores = (*scores[:-1], math.nan) if step == 5 else (math.nan,) * len(scores)
        update, state = method.tell(state, query, scores, lr=rate)
        found.append(StepRecord(step, scores, update, rate))
    return found, state


def header_of(method: Method) -> dict:
    blocks = {f"weight {block}": block for block in range(method.blocks)}
    header = {"fingerprint": "ab" * 32, "dtype": "float32", "streams": streams(blocks or ["weight"])}
    return {**header, "method": asdict(method), **({"blocks": blocks} if blocks else {})}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_goes_on_from_its_journal_and_fits_its_trajectory(name, tmp_path):
    method = method_named(name)
    expected, end = records(method, 12)
    with Journal(tmp_path, header_of(method)) as journal:
        for record in expected:
            journal.append(record)
    stored = read_journal(tmp_path / "journal.jsonl")
    assert list(stored.records()) == expected
    for step in (0, 5, 7, 12):
        state = state_after(method, list(stored.records())[:step])
        again = type(state)(**json.loads(json.dumps(asdict(state))))
        assert again == state
        assert records(method, 12, again) == (expected[step:], end), step

    data = trajectory_bytes(stored)
    small = run_of(data)
    assert list(small.updates(12)) == [record.update for record in expected]
    assert [small.record(step).update for step in (11, 3)] == [expected[11].update, expected[3].update]
    entries = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    first, last = entries["coefficients"]["data_offsets"]
    assert last - first == 4 * sum(method.directions.size(step) for step in range(12))


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_went_back_does_so_too(name, tmp_path):
    method, rewinds = method_named(name), (Rewind(5, 2, 0.5), Rewind(9, 7, 0.25))
    first, now = records(method, 5)
    _, then = records(method, 2)
    state = method.gone_back(now, then)
    assert (state.step, state.squares) == (5, then.squares) and state.silent == now.silent
    assert not any(any(coefficients) for coefficients in state.past)
    second, now = records(method, 9, state)
    _, then = records(method, 7, state)
    third, end = records(method, 12, method.gone_back(now, then))
    expected = first + second + third
    with Journal(tmp_path, header_of(method)) as journal:
        for record in expected:
            for rewind in rewinds:
                if rewind.step == record.step:
                    journal.append_rewind(rewind)
            journal.append(record)
    stored = read_journal(tmp_path / "journal.jsonl")
    assert stored.rewinds == rewinds
    assert state_after(method, stored.records(), stored.rewinds) == end
    data = trajectory_bytes(stored)
    assert b"zoreward-trajectory-2" in data[:2000] and run_of(data).rewinds == rewinds
    for of_file in (stored, run_of(data)):
        assert [of_file.record(step).update for step in range(12)] == [record.update for record in expected]
        assert of_file.path(12) == [0, 1, 5, 6, 9, 10, 11]
        assert list(of_file.updates(12, 7)) == [expected[step].update for step in (9, 10, 11)]


@pytest.mark.parametrize("name", [name for name in RUNS if not name.startswith("svrg")])
@pytest.mark.parametrize("unscored", ["all", "first", "last"])
def test_a_step_without_a_score_is_what_a_tie_is(name, unscored):
    method = method_named(name)
    _, state = records(method, 9)
    query = method.ask(state)
    tie = [0.5] * len(query.members)
    scores = {"all": [math.nan] * len(tie), "first": [math.nan, *tie[1:]], "last": [0.7, *tie[1:-1], math.nan]}[
        unscored
    ]
    update, after = method.tell(state, query, scores)
    expected, after_tie = method.tell(state, query, tie)
    assert update == expected
    assert not [term for term in update.terms if term.direction in {z.direction for z in method.directions.fresh(9)}]
    assert (after.silent, after.unscored) == (state.silent + 1, state.unscored + 1)
    assert after_tie == replace(after, unscored=state.unscored)


def test_a_step_of_svrg_without_a_score_moves_nothing_and_does_not_count_for_its_rates():
    svrg = SVRG(eps=1e-3, lr=0.25, anneal_every=4, full_every=2)
    state = svrg.init()
    nan = math.nan
    for score in (-1.0, nan, -1.0, -1.0, -1.04, nan, nan, -1.04, nan, nan, nan, nan, -2.0, -1.1):
        query = svrg.ask(state)
        count = len(query.members)
        update, state = svrg.tell(state, query, [score + EPS, score - EPS] + [0.0] * (count - 2))
        if math.isnan(score):
            assert not update.terms
    # windows of -1, of -1.04, which is no fall of 5 %, and of no score at all
    assert (state.before, state.annealed, state.unscored, state.silent) == (pytest.approx(-1.04), 0, 7, 7)
    assert (state.counted, state.total) == (2, pytest.approx(-3.1))
    query = svrg.ask(state)
    assert len(query.members) == 2  # the next is of all rows: its anchor is where the weights are
    update, state = svrg.tell(state, query, [math.nan] * 2)
    assert (update.terms, state.slopes, len(state.past)) == ((), (0.0,), 1)


def test_a_trajectory_is_refused_where_a_step_has_anothers_block(tmp_path):
    method = method_named("bcd")
    expected, _ = records(method, 6)
    for number, change in enumerate(("turn", "term")):
        update, block = expected[4].update, expected[5].update.block
        terms = tuple(replace(term, block=block) for term in update.terms) if change == "term" else update.terms
        wrong = replace(update, terms=terms) if change == "term" else replace(update, block=block)
        with Journal(tmp_path / change, header_of(method)) as journal:
            for record in expected[:4]:
                journal.append(record)
            journal.append(replace(expected[4], update=wrong))
        stored = read_journal(tmp_path / change / "journal.jsonl")
        assert stored.record(4).update == wrong
        with pytest.raises(InputError, match=["another block", "terms that do not follow"][number]):
            trajectory_bytes(stored)


def test_scores_of_another_method_are_no_basis_to_go_on():
    found, _ = records(SPSA(seed=7, lr=0.1), 3)
    for other in (SPSA(seed=7, lr=0.1, eps=1e-2), SPSA(seed=8, lr=0.1), SPSA(seed=7, num_directions=2)):
        with pytest.raises(InputError, match="step 0"):
            state_after(other, found)


@pytest.mark.parametrize("name", ["momentum", "lozo", "subzero", "svrg"])
def test_a_trajectory_is_refused_where_a_term_does_not_follow(name, tmp_path):
    method = method_named(name)
    expected, _ = records(method, 6)
    update = expected[4].update
    wrong = Update(0.0, (*update.terms[:-1], term_of(1, 0.5, method.rank)), update.rounding_seed)
    expected[4] = StepRecord(4, expected[4].scores, wrong, 0.1)
    with Journal(tmp_path, header_of(method)) as journal:
        for record in expected:
            journal.append(record)
    with pytest.raises(InputError, match="step 4 has terms that do not follow"):
        trajectory_bytes(read_journal(tmp_path / "journal.jsonl"))


# --- what is refused -------------------------------------------------------------------------------------------------


BEYOND = (0.0, 1e-60, 1e-13, -1e-3, 1e7, 1e60, float("inf"))


@pytest.mark.parametrize(
    ("name", "options", "error", "hint"),
    [
        ("mezzo", {}, "no method 'mezzo'", "one of spsa, svrg"),
        ("lozzo", {}, "no method 'lozzo'", "mean lozo?"),
        ("es", {"normalize": "rms"}, "normalize has no use with method es", "spsa"),
        ("sign", {"normalize": "rms"}, "normalize has no use with method sign", "spsa"),
        ("spsa", {"full_every": 2}, "full_every has no use with method spsa", "svrg"),
        ("svrg", {"momentum": 0.9}, "svrg takes no momentum", ""),
        ("svrg", {"weight_decay": 0.1}, "svrg takes no weight_decay", ""),
        ("svrg", {"blocks": 4}, "svrg moves all blocks at once", "method=bcd"),
        ("bcd", {}, "one block in turn of how many", "blocks"),
        ("bcd", {"blocks": 1}, "blocks must be at least 2", ""),
        ("bcd", {"blocks": 4, "block_every": 0}, "block_every must be at least 1", ""),
        ("spsa", {"block_every": 2}, "blocks must be at least 2", ""),
        ("svrg", {"full_every": 1}, "full_every must be at least 2", ""),
        ("lozo", {"refresh": 5}, "refresh is about the factors of low-rank", ""),
        ("subzero", {"refresh": 5}, "a subspace is one of low-rank directions", ""),
        ("subzero", {"rank": 2, "subspace": False}, "subspace has no use with method subzero", "lozo"),
        ("momentum", {"momentum": 1.0}, "momentum must be", ""),
        ("momentum", {"window": 1}, "window must be at least 2", ""),
        ("spsa", {"more_every": -1}, "more_every must be at least 0", ""),
        *(("spsa", {"eps": eps}, "eps must lie between 1e-12 and 1e.06", "leave it out") for eps in BEYOND),
        ("spsa", {"eps": float("nan")}, "eps must lie", ""),
        ("fzoo", {"num_directions": 10**8}, "num_directions must be at most 65,536, not 100000000", "default"),
        ("svrg", {"num_directions": 2**20 + 1}, "num_directions must be at most", ""),
        ("lozo", {"rank": 10**5}, "rank must be at most 4,096", ""),
        ("lozo", {"rank": 2, "refresh": 10**26}, "refresh must be at most", ""),
        ("momentum", {"window": 10**6}, "window must be at most 1,024", ""),
        ("svrg", {"full_every": 10**26}, "full_every must be at most", ""),
        ("svrg", {"full_rate": 1e60}, "full_rate must lie between 0 and", ""),
        ("es", {"lr": 1e60}, "lr must lie between 0 and", ""),
        ("spsa", {"weight_decay": -0.5}, "weight_decay must lie between 0 and", ""),
        ("spsa", {"anchor": float("inf")}, "anchor must lie between 0 and", ""),
    ],
)
def test_what_a_method_does_not_take_is_refused(name, options, error, hint):
    with pytest.raises(InputError, match=error) as caught:
        make_method(name, **options)
    assert caught.value.hint and hint in caught.value.hint


@pytest.mark.parametrize("changes", [{"max_steps": 10**26}, {"num_train_epochs": 1e30}, {"num_train_epochs": math.nan}])
def test_a_run_without_an_end_is_refused(changes):
    with pytest.raises(InputError, match="is more than any run does") as refused:
        ZOConfig("run", use_cpu=True, **changes)
    assert "1,099,511,627,776" in refused.value.hint


# ε and rate by hand: the paper's, or MeZO's for OPT, times 10 and 100 for LoRA and 100 and 10,000 for a prefix where a
# step is a slope long; else times what ours for text are, 5e-2 / 1e-2 and 2e-2 / 3e-3, 1e-1 / 1e-2 and 1e-2 / 3e-3.
ROOT = 2**0.5
BY_WHAT = {
    ("spsa", "answers"): [(1e-3, 1e-6), (1e-2, 1e-4), (1e-1, 1e-2)],
    ("spsa", "text"): [(1e-2, 3e-3), (5e-2, 2e-2), (1e-1, 1e-2)],
    ("momentum", "text"): [(1e-2, 3e-3), (5e-2, 2e-2), (1e-1, 1e-2)],
    ("svrg", "answers"): [(1e-3, 1e-6), (1e-2, 1e-4), (1e-1, 1e-2)],
    ("svrg", "text"): [(1e-3, 1e-6), (1e-2, 1e-4), (1e-1, 1e-2)],
    ("sparse", "answers"): [(1e-3, 1e-6), (1e-2, 1e-4), (1e-1, 1e-2)],
    ("bcd", "text"): [(1e-3, 1e-6), (1e-2, 1e-4), (1e-1, 1e-2)],
    ("subzero", "answers"): [(1e-3, 1e-6), (1e-2, 1e-4), (1e-1, 1e-2)],
    ("lozo", "answers"): [(1e-3 * ROOT, 1e-6), (1e-2 * ROOT, 1e-4), (1e-1 * ROOT, 1e-2)],
    ("lozo-m", "text"): [(1e-3 * ROOT, 1e-6), (1e-2 * ROOT, 1e-4), (1e-1 * ROOT, 1e-2)],
    ("sign", "answers"): [(1e-3, 2e-5), (5e-3, 2e-5 * 20 / 3), (1e-2, 2e-5 * 10 / 3)],
    ("es", "text"): [(1e-3, 5e-4), (5e-3, 5e-4 * 20 / 3), (1e-2, 5e-4 * 10 / 3)],
    ("fzoo", "answers"): [(1e-4, 5e-5), (5e-4, 5e-5 * 20 / 3), (1e-3, 5e-5 * 10 / 3)],
    ("eggroll", "text"): [(1e-2, 3e-3), (5e-2, 2e-2), (1e-1, 1e-2)],
}


def test_every_method_stands_in_the_table_of_defaults():
    assert list(METHOD_DEFAULTS) == list(METHODS)


@pytest.mark.parametrize(("method", "needs"), BY_WHAT)
def test_defaults_are_relative_to_what_is_tuned(method, needs):
    for what, expected in zip(("full", "lora", "prefix"), BY_WHAT[method, needs], strict=True):
        defaults = defaults_of(method, needs, what)
        assert (defaults["eps"], defaults["learning_rate"]) == pytest.approx(expected, rel=1e-11), what
    own = METHOD_DEFAULTS[method]
    assert own.items() <= defaults_of(method, needs, "full").items(), "of all weights they are the paper's"
    rest = own.keys() - {"eps", "learning_rate"}
    assert {name: defaults[name] for name in rest} == {name: own[name] for name in rest}
