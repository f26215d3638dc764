"""Contract under test: entries of directions that are gaussian or rademacher, beside the normal ones.

- `noise.entries`, `LowRank(…, distribution)`: float32, the numbers of
  `reference.py` bit for bit, wherever a call starts and ends. Gaussian is Box–Muller: elements 0 and 1 of a block of
  four are made of its words 0 and 1, elements 2 and 3 of its words 2 and 3. Rademacher is the sign of the highest bit.
- Gaussian entries are those of exact Box–Muller of the same words but for their last bits, and have the normal law;
  rademacher ones are ±1, fair. Neighbours are not correlated.
- `Term(…, distribution=…)` names one of `DISTRIBUTIONS`, "normal" unless said; `Term.direction` tells them apart.
- Every kernel takes the distribution from the terms: copies, updates and factors are those of the reference bit for
  bit, for float32, bfloat16 and float16, dense and low-rank, cut anywhere, terms of several distributions in one call;
  in float64 the kernels agree. What a kernel remembers is not mixed up between distributions.

Free is only the sign of a zero that stochastic rounding to float16 returns. Without a GPU the Triton kernels run in
Triton's interpreter. Limits of the statistics are those of test_noise.py: fixed seeds, SIGMAS standard errors.
"""

from __future__ import annotations

from functools import cache, partial
from itertools import pairwise
from math import log, sqrt
from typing import Any

import numpy as np
import pytest
import torch

import reference
from terms import low_rank, term_of
from test_rounding import (
    DTYPES,
    MOSTLY,
    ROUNDING_SEED,
    STREAM,
    assert_same,
    floats,
    from_patterns,
    make_weight,
    patterns,
)
from zoreward.kernels import cpu, portable
from zoreward.kernels.subspaces import Keeping
from zoreward.noise import DISTRIBUTIONS, Subspace, family_of, seeds
from zoreward.noise import definition as noise
from zoreward.noise.families import family_from_json
from zoreward.records import Term, Update

SIGMAS = 5
GPU = "cuda" if torch.cuda.is_available() else "cpu"
OTHERS = ["gaussian", "rademacher"]
GAUSSIAN, RADEMACHER = (partial(noise.entries, distribution=name) for name in ("gaussian", "rademacher"))
ALL = ["normal", *OTHERS]
PURPOSES = [reference.DIRECTIONS, reference.FACTOR_A, reference.FACTOR_B]
# (start, count): every alignment to a block and to a pair, within one, none; far away.
SPANS = [(0, 9), (1, 1), (2, 2), (3, 6), (5, 3), (6, 11), (7, 0), (4095, 3), (2**34 - 3, 7), (2**53 + 1, 6)]

# A stream of seed 1 whose block 0 has an extreme word, and which of its two pairs: found by a search. Of n, from 1 to
# 2^24: both ends, and what lies about √½ · 2^24 and √½ · 2^23, where the exponent changes.
EXTREME_N = {
    1: (270842, 0),
    0x5A8279: (8363092, 1),
    0x5A827A: (19721306, 0),
    0xB504F2: (16119866, 0),
    0xB504F3: (1945024, 0),
    2**24 - 1: (1165555, 0),
    2**24: (245165, 1),
}
# Of quadrant · 2^22 + (g + ½) · 2^22: g = −½ and 0 in each quadrant, ½ − 2^-22 in the first and last.
EXTREME_ANGLES = {
    0: (2244852, 0),
    2**21: (8199175, 0),
    2**22 - 1: (11986020, 0),
    2**22: (1866615, 1),
    2**22 + 2**21: (11606901, 0),
    2**23: (17502001, 1),
    2**23 + 2**21: (9373084, 0),
    3 * 2**22: (22261582, 1),
    3 * 2**22 + 2**21: (4655349, 1),
    2**24 - 1: (405665, 0),
}
EXTREMES = sorted({stream for stream, _ in (*EXTREME_N.values(), *EXTREME_ANGLES.values())})

Spec = tuple[str, tuple[Any, ...]]
"""A distribution, and a term as `reference.py` has it."""


def box_muller(words: np.ndarray) -> np.ndarray:
    """Return the normals of pairs of words by their formula, in float64."""
    w, v = words.reshape(-1, 2).T.astype(np.int64)
    radius = np.sqrt(-2 * np.log(((w >> 8) + 1) / 2**24))
    angle = np.pi / 2 * ((v >> 30) + ((v >> 8 & 0x3FFFFF) - 2**21) / 2**22)
    return (radius * np.stack([np.cos(angle), np.sin(angle)])).T.reshape(-1)


def assert_close_to_exact(got: np.ndarray, words: np.ndarray) -> None:
    """Check gaussian entries against Box–Muller in float64.

    In units of 2^-24 of the value: ln u is off by 4.3 (its fit 0.6; f² and f³·p, small beside f, 1.7; the sums 2), its
    root by half of that and 1 of its own; a sine or cosine by 3.2 (series 0.8, what is small beside the first
    coefficient 1.4, last operation 1); the product by 1. That is 7.4. Float64's own cosine of π/2 is 1e-16.
    """
    np.testing.assert_allclose(got.astype(np.float64), box_muller(words), rtol=8 * 2**-24, atol=6 * 2e-16)


# --- the definition --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distribution", OTHERS)
@pytest.mark.parametrize("seed", [0, 2**32, 2**64 - 1])
def test_entries_equal_the_reference(seed, distribution):
    for stream in (0, 7, 2**32 - 1):
        for start, count in SPANS:
            for purpose in PURPOSES:
                given = seed, stream, start, count, purpose
                expected = getattr(reference, distribution)(seed, stream, range(start, start + count), purpose)
                got = noise.entries(*given, distribution)
                assert (got.dtype, got.shape) == (np.float32, (count,))
                assert got.tobytes() == expected.tobytes(), given


@pytest.mark.parametrize("distribution", OTHERS)
def test_directions_are_the_default_purpose_and_normal_the_default_entries(distribution):
    some = noise.entries(9, 3, 2, 50, distribution=distribution)
    assert some.tobytes() == noise.entries(9, 3, 2, 50, seeds.Purpose.DIRECTION, distribution).tobytes()
    assert some.tobytes() != noise.entries(9, 3, 2, 50, seeds.Purpose.ROUNDING, distribution).tobytes()
    for normal in (noise.entries(9, 3, 2, 50), noise.entries(9, 3, 2, 50, distribution="normal")):
        assert normal.tobytes() == noise.normal(9, 3, 2, 50).tobytes()


@pytest.mark.parametrize("distribution", OTHERS)
def test_a_long_call_is_its_short_calls_put_together(distribution):
    start, cuts = 5, [0, 1, 6, 4_098, 65_537, 100_001]
    draw = partial(noise.entries, distribution=distribution)
    whole = draw(42, 7, start, cuts[-1])
    parts = [draw(42, 7, start + low, high - low) for low, high in pairwise(cuts)]
    assert whole.tobytes() == np.concatenate(parts).tobytes()
    sample = [*range(0, cuts[-1], 1_009), *range(cuts[-1] - 8, cuts[-1])]
    expected = getattr(reference, distribution)(42, 7, [start + place for place in sample])
    assert whole[sample].tobytes() == expected.tobytes()


@pytest.mark.parametrize("distribution", OTHERS)
@pytest.mark.parametrize("rank", [1, 3])
def test_low_rank_directions_equal_the_reference(rank, distribution):
    for b_seed in (None, 2**64 - 1):
        got = low_rank(5, STREAM, (5, 7), rank, b_seed, distribution=distribution)
        expected = reference.low_rank(5, STREAM, (5, 7), rank, b_seed, distribution=distribution)
        np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize(
    ("seed", "stream", "start", "purpose", "gaussian", "rademacher"),
    [
        (42, 7, 0, 0, "d24c333e7d66aabfc5c1ab3ea421a23fe75d33ba9899ed3eebfd823f22d0a63e", [1, -1, 1, 1, -1, 1, -1, 1]),
        (
            *(2**64 - 1, 2**32 - 1, 2**34 - 3, 3),
            "14b81ac02d53afbe3d9809c03714063e52f3123fedbf72bc60400e400a776abf",
            [-1, 1, -1, -1, 1, 1, 1, -1],
        ),
    ],
)
def test_frozen_entries_of_noise_version_2(seed, stream, start, purpose, gaussian, rademacher):
    assert GAUSSIAN(seed, stream, start, 8, purpose).astype("<f4").tobytes().hex() == gaussian
    assert RADEMACHER(seed, stream, start, 8, purpose).tolist() == rademacher


def test_box_muller_of_chosen_words_is_that_of_the_reference():
    # n at all powers of 2 and all √½ · 2^k, and next to them; g at its ends and about 0, in every quadrant; the bits
    # that do not count are 0 or 1.
    near = {round(2 ** (half / 2)) + by for half in range(49) for by in (-1, 0, 1)}
    w = [(n - 1) << 8 | spare for n in sorted(near) if 1 <= n <= 2**24 for spare in (0, 255)]
    places = (0, 1, 2**20, 2**21 - 1, 2**21, 2**21 + 1, 2**22 - 1)
    v = [quadrant << 30 | place << 8 | spare for quadrant in range(4) for place in places for spare in (0, 255)]
    w, v = w + w[:1] * len(v) + w[-1:] * len(v), [*(v * len(w))[: len(w)], *v, *v]
    got = np.stack(noise.box_muller(np.array(w, np.uint32), np.array(v, np.uint32)), axis=1)
    expected = np.array([reference.box_muller(*pair) for pair in zip(w, v, strict=True)])
    wrong = np.flatnonzero((got.view(np.uint32) != expected.view(np.uint32)).any(1))
    assert not len(wrong), [(hex(w[i]), hex(v[i]), got[i], expected[i]) for i in wrong[:3]]
    assert_close_to_exact(got.reshape(-1), np.stack([w, v], axis=1).astype(np.uint32).reshape(-1))


def test_extreme_words_are_extreme_and_their_entries_are_those_of_the_reference():
    # Zeros have signs: ln u is 0 at n = 2^24, so the root of −0 is −0; at g = 0 the sine is 0, and taken with a minus
    # in quadrants 1 and 2.
    for values, which, share in ((EXTREME_N, 0, lambda w: (w >> 8) + 1), (EXTREME_ANGLES, 1, lambda v: v >> 8)):
        for value, (stream, pair) in values.items():
            assert share(reference.words(1, stream, [2 * pair + which])[0]) == value, "else this tests nothing"
    for stream in EXTREMES:
        got = GAUSSIAN(1, stream, 0, 4)
        assert got.tobytes() == reference.gaussian(1, stream, range(4)).tobytes(), stream
        assert_close_to_exact(got, noise.words(1, stream, 0, 4))
    stream, pair = EXTREME_N[1]
    assert np.hypot(*GAUSSIAN(1, stream, 2 * pair, 2)) == pytest.approx(sqrt(48 * log(2)), rel=8 * 2**-24)
    stream, pair = EXTREME_N[2**24]
    assert not GAUSSIAN(1, stream, 2 * pair, 2).any()


@pytest.mark.parametrize(("seed", "stream"), [(42, 7), (2**64 - 1, 2**32 - 1)])
def test_gaussian_entries_are_accurate(seed, stream):
    assert_close_to_exact(GAUSSIAN(seed, stream, 0, 200_000), noise.words(seed, stream, 0, 200_000))


# --- statistics ------------------------------------------------------------------------------------------------------


def test_gaussian_entries_have_the_normal_law():
    n = 400_000
    z = GAUSSIAN(42, 7, 3, n).astype(np.float64)
    # E z^2p = 1, 3, 15, 105 for p = 1, 2, 3, 4; the standard error of the mean of z^p is √((E z^2p − (E z^p)²) / n).
    # What lies beyond 5.77 adds less than 1e-5 to a moment.
    for power, moment, square in ((1, 0, 1), (2, 1, 3), (3, 0, 15), (4, 3, 105)):
        assert abs((z**power).mean() - moment) < SIGMAS * sqrt((square - moment**2) / n), power
    # Kolmogorov and Smirnov's D: P(√n · D > x) ≤ 2 exp(−2x²), 6e-7 at this x.
    below, share = torch.special.ndtr(torch.from_numpy(np.sort(z))).numpy(), np.arange(n + 1) / n
    assert max(np.max(below - share[:-1]), np.max(share[1:] - below)) < sqrt(log(2 / 6e-7) / 2 / n)


def test_rademacher_entries_are_fair_signs():
    n = 400_000
    z = RADEMACHER(42, 7, 3, n)
    assert set(z.tolist()) == {-1.0, 1.0}
    assert abs(z.astype(np.float64).mean()) < 4 / sqrt(n)


@pytest.mark.parametrize("distribution", OTHERS)
def test_neighbours_are_not_correlated(distribution):
    z = partial(noise.entries, distribution=distribution)(42, 7, 0, 400_000).astype(np.float64)
    for lag in (1, 2, 3, 4, 5, 8, 64, 4096):
        n = len(z) - lag
        assert abs(np.mean(z[lag:] * z[:-lag])) < SIGMAS / sqrt(n), lag
        # The two of a pair share their radius: still their squares are independent. Var(z² − 1) = 2.
        squares = z * z - 1
        assert abs(np.mean(squares[lag:] * squares[:-lag])) <= 2 * SIGMAS / sqrt(n), lag


def test_seeds_and_streams_are_not_correlated():
    n = 100_000
    for distribution in OTHERS:
        z = [
            partial(noise.entries, distribution=distribution)(*names, 0, n).astype(np.float64)
            for names in ((4, 7), (5, 7), (4, 8))
        ]
        for one, other in ((0, 1), (0, 2), (1, 2)):
            assert abs(np.mean(z[one] * z[other])) < SIGMAS / sqrt(n), (distribution, one, other)


# --- terms -----------------------------------------------------------------------------------------------------------


def test_a_term_carries_its_distribution():
    assert DISTRIBUTIONS == ("normal", "gaussian", "rademacher")
    assert Term(1, 0.5) == term_of(1, 0.5, distribution="normal") != term_of(1, 0.5, distribution="gaussian")
    for unknown in ("uniform", "Gaussian", ""):
        with pytest.raises(ValueError, match="distribution"):
            term_of(1, 0.5, distribution=unknown)
    with pytest.raises(TypeError):
        term_of(1, 0.5, 1, None, None, "gaussian")  # by its name only


@pytest.mark.parametrize("distribution", OTHERS)
def test_only_normal_directions_lie_in_a_subspace(distribution):
    assert family_from_json(1, [2, 1, 3], "normal") == Subspace(2, 3)
    assert family_of(rank=2, subspace=True) == Subspace(2)
    with pytest.raises(ValueError, match="subspace"):
        family_from_json(1, [2, 1, 3], distribution)
    with pytest.raises(ValueError, match="subspace"):
        family_of(rank=2, subspace=True, distribution=distribution)


def test_a_direction_tells_distributions_apart():
    for rank in (0, 2):
        directions = [term_of(1, 0.5, rank, distribution=name).direction for name in ALL]
        assert [family.distribution for _, family in directions] == ALL and len(set(directions)) == 3
        assert directions == [term_of(1, -0.25, rank, distribution=name).direction for name in ALL]


# --- kernels ---------------------------------------------------------------------------------------------------------

KERNELS = [("cpu", "cpu"), ("portable", "cpu"), *([("portable", "cuda")] if GPU == "cuda" else []), ("triton", GPU)]


@pytest.fixture(params=KERNELS, ids="-".join)
def kernel(request, monkeypatch):
    """The functions of a kernel, and its device. Chunks, groups and blocks end in the middle of a line."""
    name, device = request.param
    monkeypatch.setattr(cpu, "CHUNK", 36)
    monkeypatch.setattr(portable, "GROUP", 60)
    if name != "triton":
        return {"cpu": cpu, "portable": portable}[name], device
    pytest.importorskip("triton", reason="Triton is not there: it is made for Linux")
    request.getfixturevalue("quick_interpreter")
    from zoreward.kernels import gpu

    return gpu.Kernels(block=1024, unit=1024), device


SHAPES = [(3, 37), (13,)]


def weights(dtype: torch.dtype, device: str = "cpu") -> list[tuple[torch.Tensor, int]]:
    """A matrix whose elements lie column by column, and a vector; their sizes are no multiples of four."""
    tensors = [make_weight(shape, "float32", seed).to(dtype).to(device) for seed, shape in enumerate(SHAPES)]
    tensors[0] = tensors[0].T.contiguous().T
    return list(zip(tensors, (2**32 - 1, *range(1, len(SHAPES))), strict=True))


def couples(*distributions: str) -> tuple[tuple[Spec, ...], ...]:
    """Members of one dense term each, of couples of seed 3, 4, …, a distribution for each member."""
    signed = [(3 + number // 2, 0.01 * (-1) ** number) for number in range(len(distributions))]
    return tuple(((name, term),) for name, term in zip(distributions, signed, strict=True))


MEMBERS: dict[str, tuple[tuple[Spec, ...], ...]] = {
    "gaussian couple": couples("gaussian", "gaussian"),
    "rademacher couples": couples("rademacher", "rademacher", "rademacher", "rademacher"),
    "couples of several": couples("gaussian", "gaussian", "rademacher", "rademacher", "normal", "normal"),
    "no couples": couples("gaussian", "rademacher", "normal", "gaussian"),  # though their seeds are those of couples
    # Dense terms of one distribution, low-rank ones of several.
    "low rank and gaussian": (
        (("gaussian", (2, 0.3, 3)), ("gaussian", (2, -0.1)), ("rademacher", (2, 0.2, 3))),
        (("gaussian", (2, -0.3, 3)),),
    ),
    "low rank and rademacher": (
        (("rademacher", (2, 0.3, 1)), ("rademacher", (2, 0.1)), ("gaussian", (2, 0.2, 1, 9))),
        (("rademacher", (2**64 - 1, -0.1)), ("rademacher", (2, -0.3, 1))),
    ),
    "dense ones of several": (
        (("gaussian", (2, 0.3, 3)), ("rademacher", (2**64 - 1, -0.1)), ("normal", (2, 0.3))),
        (),
        (("normal", (2, 0.2, 3, None, 4)), ("gaussian", (2, -0.2, 3)), ("normal", (2, 0.01, 3))),
        (("rademacher", (6, 1e-3)), ("gaussian", (6, 1e-3)), ("normal", (6, 1e-3)), ("rademacher", (6, 0.5))),
    ),
}
UPDATES: dict[str, list[tuple[float, tuple[Spec, ...]]]] = {
    "one gaussian": [(0.0, (("gaussian", (3, 0.01)),))],
    "gaussian": [
        (0.1, (("gaussian", (2, -0.1)), ("gaussian", (2, 0.3, 3)))),
        (0.0, (("rademacher", (5, 0.1, 1)),)),  # low rank alone: moves matrices only
    ],
    "rademacher": [
        (0.0, (("gaussian", (5, 0.2, 1)), ("rademacher", (2, 0.1)), ("rademacher", (2, 0.3, 3)))),
        (0.1, (("rademacher", (3, -1e-3)),)),
    ],
    "several": [
        (0.0, (("gaussian", (3, 0.01)),)),
        (0.1, (("rademacher", (3, -0.01)),)),
        (0.1, MEMBERS["dense ones of several"][0]),
        (0.0, MEMBERS["dense ones of several"][3]),
    ],
}


def terms_of(member: tuple[Spec, ...]) -> tuple[Term, ...]:
    return tuple(term_of(*term, distribution=distribution) for distribution, term in member)


def updates_of(name: str) -> list[Update]:
    return [Update(decay, terms_of(terms), ROUNDING_SEED + n) for n, (decay, terms) in enumerate(UPDATES[name])]


def split(member: tuple[Spec, ...]) -> dict[str, Any]:
    """The arguments of the reference that say what a member is."""
    return {"terms": [term for _, term in member], "distribution": [distribution for distribution, _ in member]}


@cache  # one calculation for all kernels
def expected_copies(dtype: str, name: str) -> list[list[np.ndarray]]:
    return [
        [reference.perturbed(floats(weight), dtype, stream, **split(member)) for member in MEMBERS[name]]
        for weight, stream in weights(DTYPES[dtype])
    ]


@cache
def expected_updates(dtype: str, name: str) -> list[np.ndarray]:
    found = []
    for weight, stream in weights(DTYPES[dtype]):
        now = patterns(weight)
        for number, (decay, terms) in enumerate(UPDATES[name]):
            theta, seed = floats(from_patterns(now, dtype).view(weight.shape)), ROUNDING_SEED + number
            now = reference.updated(theta, dtype, weight.ndim, stream, decay, rounding_seed=seed, **split(terms))
        found.append(now)
    return found


@pytest.mark.parametrize("dtype", MOSTLY)
@pytest.mark.parametrize("name", MEMBERS)
def test_copies_equal_the_reference(kernel, name, dtype):
    functions, device = kernel
    got = functions.perturb_all(weights(DTYPES[dtype], device), tuple(terms_of(member) for member in MEMBERS[name]))
    for copies, expected in zip(got, expected_copies(dtype, name), strict=True):
        for copy, pattern in zip(copies, expected, strict=True):
            assert_same(patterns(copy.cpu()), pattern, dtype)


@pytest.mark.parametrize("dtype", MOSTLY)
@pytest.mark.parametrize("name", UPDATES)
def test_updates_equal_the_reference(kernel, name, dtype):
    functions, device = kernel
    moved = weights(DTYPES[dtype], device)
    functions.replay_all_(moved, updates_of(name))
    for (weight, _), expected in zip(moved, expected_updates(dtype, name), strict=True):
        assert_same(patterns(weight.cpu()), expected, dtype, any_zero=dtype == "float16")


def test_float64_weights_move_as_on_the_cpu(kernel):
    functions, device = kernel
    members = tuple(terms_of(member) for name in ("dense ones of several", "no couples") for member in MEMBERS[name])
    updates = [update for name in UPDATES for update in updates_of(name)]
    mine, theirs = weights(torch.float64, device), weights(torch.float64)
    got, expected = functions.perturb_all(mine, members), cpu.perturb_all(theirs, members)
    functions.replay_all_(mine, updates)
    cpu.replay_all_(theirs, updates)
    got, expected = ([*copies, [weight for weight, _ in own]] for copies, own in ((got, mine), (expected, theirs)))
    for some, others in zip(got, expected, strict=True):
        for one, other in zip(some, others, strict=True):
            assert torch.equal(one.cpu().view(torch.int64), other.view(torch.int64))
    # cpu's sums are float64's of the float32 z: exact but for three roundings of numbers below 2.
    [[copy]] = cpu.perturb_all([(torch.ones(13, dtype=torch.float64), 7)], [terms_of(MEMBERS["gaussian couple"][0])])
    exact = 1 + float(np.float32(0.01)) * reference.gaussian(3, 7, range(13)).astype(np.float64)
    np.testing.assert_allclose(copy.numpy(), exact, rtol=0, atol=2**-51)


def test_factors_equal_the_reference(kernel):
    functions, device = kernel
    matrices = [(torch.empty(5, 3, device=device), 7), (torch.empty(2, 41, device=device), 2**32 - 1)]
    terms = [term_of(1, 1.0, 1, distribution=name) for name in ALL]
    terms += [term_of(1, 1.0, 3, b_seed=8, distribution=name) for name in OTHERS]
    lines = (Keeping(functions) if functions in (cpu, portable) else functions).factor_lines(matrices, terms)
    sides = [(weight.shape[side], stream, side) for side in (0, 1) for weight, stream in matrices]
    by_side = lines.cpu().split([size for size, _, _ in sides])
    for (size, stream, side), own in zip(sides, by_side, strict=True):
        for term, factor in zip(terms, own.split([term.family.rank for term in terms], dim=1), strict=True):
            family, purpose = term.family, PURPOSES[1 + side]
            seed = family.seeds(term.seed)[side]
            expected = reference.entries(seed, stream, range(size * family.rank), purpose, family.distribution)
            assert_same(patterns(factor.contiguous()), expected.view(np.uint32), "float32")


@pytest.mark.parametrize("rank", [0, 2])
def test_what_a_kernel_remembers_is_of_one_distribution(kernel, rank):
    functions, device = kernel
    weight = torch.full((3, 5), 0.5, device=device)
    for name in ALL:  # all else stays as it is
        term = term_of(4, 0.25, rank, distribution=name)
        [[first, second]] = functions.perturb_all(
            [(weight, 6)], ((term,), (term_of(4, -0.25, rank, distribution=name),))
        )
        moved = weight.clone()
        functions.replay_all_([(moved, 6)], [Update(0.0, (term,), 1)])
        for got, coefficient in ((first, 0.25), (second, -0.25), (moved, 0.25)):
            own = [(4, coefficient, rank) if rank else (4, coefficient)]
            expected = reference.perturbed(np.full((3, 5), 0.5), "float32", 6, own, distribution=name)
            assert_same(patterns(got.cpu()), expected, "float32")


def test_extreme_words_are_those_of_the_reference_in_kernels(kernel):
    # What a weight of −0 becomes shows the sign of a z of 0.
    functions, device = kernel
    given = [(torch.full((4,), -0.0, device=device), stream) for stream in EXTREMES]
    copies = functions.perturb_all(given, ((term_of(1, 1.0, distribution="gaussian"),),))
    for stream, [copy] in zip(EXTREMES, copies, strict=True):
        theta = np.full(4, -0.0, np.float32)
        expected = reference.perturbed(theta, "float32", stream, [(1, 1.0)], distribution="gaussian")
        assert_same(patterns(copy.cpu()), expected, "float32")


@pytest.mark.parametrize("distribution", OTHERS)
def test_large_tensors_are_those_of_the_definition(distribution):
    # Of more than one chunk of the CPU's kernel, with all lanes of its vectors busy.
    count = 2 * (1 << 16) + 3
    [[copy]] = cpu.perturb_all([(torch.zeros(count), 7)], ((term_of(3, 1.0, distribution=distribution),),))
    z = noise.entries(3, 7, 0, count, distribution=distribution)
    assert_same(patterns(copy), (np.float32(0) + z).view(np.uint32), "float32")


@pytest.mark.skipif(GPU == "cpu", reason="needs a GPU")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("distribution", OTHERS)
def test_large_tensors_on_a_gpu(distribution, dtype):
    from zoreward.kernels import gpu

    whole = (torch.randn(1003, 1021, generator=torch.Generator().manual_seed(0)) * 0.02).to(DTYPES[dtype])
    terms = [term_of(seed, 0.1, rank, distribution=distribution) for seed, rank in ((1, 0), (2, 2), (3, 24))]
    members = ((terms[0],), (term_of(1, -0.1, distribution=distribution),))
    kernels = gpu.Kernels()
    [copies], [expected] = (
        some.perturb_all([(whole.to(device), 7)], members) for some, device in ((kernels, "cuda"), (cpu, "cpu"))
    )
    for copy, other in zip(copies, expected, strict=True):
        assert_same(patterns(copy.cpu()), patterns(other), dtype)
    mine, theirs = whole.cuda(), whole.clone()
    for some, weight in ((kernels, mine), (cpu, theirs)):
        some.replay_all_([(weight, 7)], [Update(1e-4, tuple(terms), 3), Update(0.0, (terms[1],), 5)])
    assert_same(patterns(mine.cpu()), patterns(theirs), dtype)
