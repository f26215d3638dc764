"""Contract under test: `zoreward.noise`, the definition of z (noise_version 2).

- `words(seed, stream, start, count, purpose=0)`: uint32 words of Philox 4x32-10. Key: the 64-bit seed. Counter: the
  64-bit index // 4, the stream, the purpose. An index takes word index % 4. So a value depends on its own seed, stream,
  index and purpose only, never on where a call starts or ends.
- `normal(seed, stream, start, count)`: (popcount(word) − 16) / √8 as float32; mean 0, variance 1, kurtosis 2.9375.
- `canonical_name`, `stream_of`, `streams`: from the name of a tensor to its stream; wrappers change nothing, and no
  two tensors of a model share a stream.
- `derive_seed(run_seed, step, k)`: the seed of a direction; k = 2^64 − 1 is the step's rounding seed.

All of it is compared bit by bit with `reference.py`, and with frozen values: whoever changes the definition fails here.

Limits of the statistics: every test is of fixed seeds, so it passes always or never. A limit is SIGMAS standard errors
of the statistic for independent draws; a false alarm had a chance below 6e-7 a statistic when the seeds were chosen.
"""

from __future__ import annotations

from itertools import pairwise
from math import comb, prod, sqrt

import numpy as np
import pytest

import reference
from zoreward.noise import FAMILIES, Dense, LowRank, Subspace, family_of, seeds
from zoreward.noise import definition as noise
from zoreward.noise.families import family_from_json, has_rank
from zoreward.noise.seeds import Purpose

SIGMAS = 5
SEEDS = [0, 1, 42, 2**32 - 1, 2**32, 2**63, 0x0123456789ABCDEF, 2**64 - 1]
STREAMS = [0, 1, 7, 2**31, 2**32 - 1]
# (start, count): every alignment, within one block, none; then where index // 4 needs a second word (2^34), where a
# float64 loses the last bit of an index (2^53).
SPANS = [(0, 9), (1, 1), (2, 2), (3, 6), (5, 3), (6, 11), (4, 4), (7, 0), (4095, 3)]
FAR_SPANS = [(2**32 - 2, 5), (2**34 - 3, 7), (2**34 + 1, 6), (2**35 + 5, 3), (2**40 + 3, 2), (2**53 + 1, 6)]


def levels(seed: int, stream: int, start: int, count: int) -> np.ndarray:
    """Return z · √8 as whole numbers: popcount − 16."""
    return np.rint(noise.normal(seed, stream, start, count).astype(np.float64) * sqrt(8)).astype(np.int64)


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Return the mean product of two samples of z. For independent draws its standard error is 1/√n: Var(zz') = 1."""
    return float(np.mean(first.astype(np.float64) * second.astype(np.float64)))


# --- the yardstick itself --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_reference_gives_the_published_philox_vectors(counter, key, expected):
    # Known answers for philox4x32-10 as published with Random123.
    c0, c1, c2, c3 = (int(word, 16) for word in counter.split())
    k0, k1 = (int(word, 16) for word in key.split())
    assert reference.philox((c0, c1, c2, c3), (k0, k1)) == tuple(int(word, 16) for word in expected.split())


def test_reference_mezo_step_is_exact_on_a_quadratic():
    # L = ½ Σ a θ² + Σ b θ has no third derivative, so g = z · (aθ + b) exactly, whatever ε is.
    rng = np.random.default_rng(0)
    theta = {"w": rng.normal(size=(3, 2)), "b": rng.normal(size=3)}
    a = {name: rng.uniform(1, 2, weight.shape) for name, weight in theta.items()}
    b = {name: rng.normal(size=weight.shape) for name, weight in theta.items()}

    def loss(at):
        return float(sum(np.sum(0.5 * a[name] * at[name] ** 2 + b[name] * at[name]) for name in at))

    after, slopes = reference.mezo_step(theta, loss, seeds=[3, 4], eps=0.1, lr=0.01, weight_decay=0.5)
    z = [reference.direction(theta, seed) for seed in (3, 4)]
    expected = [float(sum(np.sum(zk[name] * (a[name] * theta[name] + b[name])) for name in theta)) for zk in z]
    # float64: about 30 operations on numbers below 100, differences divided by 2ε = 0.2.
    assert slopes == pytest.approx(expected, abs=30 * 100 * 2**-52 / 0.2)
    for name, decay in (("w", 0.5), ("b", 0.0)):  # no decay below two dimensions
        mean = (expected[0] * z[0][name] + expected[1] * z[1][name]) / 2
        np.testing.assert_allclose(after[name], theta[name] - 0.01 * (mean + decay * theta[name]), atol=1e-12)


# --- words and normals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_words_equal_the_reference(seed):
    for stream in STREAMS:
        for start, count in SPANS if stream else SPANS + FAR_SPANS:
            for purpose in (reference.DIRECTIONS, reference.ROUNDING):
                got = noise.words(seed, stream, start, count, purpose)
                expected = reference.words(seed, stream, range(start, start + count), purpose)
                assert got.dtype == np.uint32
                assert got.tolist() == expected, (seed, stream, start, count, purpose)


@pytest.mark.parametrize("seed", SEEDS)
def test_normals_equal_the_reference(seed):
    for stream in STREAMS:
        for start, count in SPANS if stream else SPANS + FAR_SPANS:
            got = noise.normal(seed, stream, start, count)
            expected = reference.normal(seed, stream, range(start, start + count))
            assert got.dtype == np.float32
            assert got.tobytes() == expected.tobytes(), (seed, stream, start, count)


def test_directions_are_the_default_purpose():
    assert noise.words(9, 3, 2, 50).tolist() == noise.words(9, 3, 2, 50, 0).tolist()
    assert noise.words(9, 3, 2, 50).tolist() != noise.words(9, 3, 2, 50, 1).tolist()


def test_a_long_call_is_its_short_calls_put_together():
    # A fault at the border of a chunk or of a thread's share shows here.
    start, cuts = 5, [0, 1, 6, 4_097, 65_537, 150_000, 262_143, 300_001]
    whole = noise.words(42, 7, start, cuts[-1])
    parts = [noise.words(42, 7, start + low, high - low) for low, high in pairwise(cuts)]
    assert whole.tobytes() == np.concatenate(parts).tobytes()
    sample = [*range(0, cuts[-1], 3_011), *range(cuts[-1] - 8, cuts[-1])]
    assert whole[sample].tolist() == reference.words(42, 7, [start + place for place in sample])


@pytest.mark.parametrize(
    ("seed", "stream", "start", "purpose", "expected"),
    [
        (0, 0, 0, 0, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8, 0xF8E4CCA4]),
        (42, 7, 0, 0, [0x67EE6F2C, 0xE55410CC, 0x6C7ECA35, 0x557398D3, 0xE5DDE940]),
        (42, 7, 1, 0, [0xE55410CC, 0x6C7ECA35, 0x557398D3, 0xE5DDE940, 0x600F6196]),
        (42, 7, 0, 1, [0x8821A2A1, 0xDEB27414, 0xE01ED51E, 0x44D5AC84, 0x73D30D99]),
        (2**64 - 1, 2**32 - 1, 2**34 - 2, 0, [0x5F2D431D, 0xF2FF6FCC, 0xE5A42690, 0x6DAF6F33, 0x7254E8E5]),
        (0x0123456789ABCDEF, 0xDEADBEEF, 2**40 + 3, 1, [0x57493CFE, 0xCE2F0346, 0xF7A193F9, 0x3DE8F9FF, 0xB5B14393]),
    ],
)
def test_frozen_words_of_noise_version_2(seed, stream, start, purpose, expected):
    assert noise.words(seed, stream, start, 5, purpose).tolist() == expected


def test_frozen_normals_of_noise_version_2():
    assert levels(42, 7, 0, 16).tolist() == [4, -3, 2, 1, 1, -3, 4, -1, 2, -3, -1, -1, 1, 1, 0, 6]
    assert noise.normal(42, 7, 0, 4).astype("<f4").tobytes().hex() == "f304b53fb6c387bff304353ff304b53e"


# --- names and seeds -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.q_proj.weight"),
        ("module.lm_head.weight", "lm_head.weight"),
        ("_orig_mod.lm_head.weight", "lm_head.weight"),
        ("base_model.model.model.layers.0.mlp.lora_A.weight", "model.layers.0.mlp.lora_A.weight"),
        ("model.layers.3._orig_mod.mlp.bias", "model.layers.3.mlp.bias"),
        ("module._orig_mod.base_model.model.model.norm.weight", "model.norm.weight"),
        ("_orig_mod.module.model.module.norm.weight", "model.norm.weight"),
        ("base_model._orig_mod.model.x.weight", "x.weight"),  # one wrapper inside another's name
        ("base_model.module.model.x.weight", "x.weight"),
        # only whole parts of a name are wrappers
        ("submodule.weight", "submodule.weight"),
        ("encoder.my_module.weight", "encoder.my_module.weight"),
        ("text_base_model.model.weight", "text_base_model.model.weight"),
        ("base_model.weight", "base_model.weight"),
        ("base_model.models.weight", "base_model.models.weight"),
        ("adapter.module", "adapter.module"),
    ],
)
def test_canonical_name_drops_wrappers_and_nothing_else(name, expected):
    assert reference.canonical_name(name) == expected
    assert seeds.canonical_name(name) == expected
    assert seeds.canonical_name(expected) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("weight", 0x2027169E),
        ("model.layers.0.self_attn.q_proj.weight", 0xA373CDAF),
        ("model.decoder.embed_tokens.weight", 0x10194F80),
        ("größe.weight", 0xDB7E6568),
    ],
)
def test_frozen_streams_of_noise_version_2(name, expected):
    assert reference.hash_name(name) == expected
    assert seeds.stream_of(name) == expected
    assert seeds.streams([name]) == {name: expected}


def test_a_wrapper_does_not_change_the_stream():
    plain = "model.layers.0.mlp.down_proj.weight"
    wrapped = [f"{wrapper}.{plain}" for wrapper in ("module", "_orig_mod", "base_model.model", "module._orig_mod")]
    for name in wrapped:
        assert seeds.stream_of(name) == reference.hash_name(plain)
        assert list(seeds.streams([name]).values()) == [reference.hash_name(plain)]


def test_streams_of_a_model_do_not_depend_on_the_order_of_its_tensors():
    names = [f"model.layers.{layer}.{part}" for layer in range(20) for part in ("q.weight", "q.bias", "norm.weight")]
    expected = reference.streams(names)
    assert seeds.streams(names) == expected
    assert seeds.streams(reversed(names)) == expected
    assert seeds.streams(set(names)) == expected


# Found by a search over 5,000,000 names. In the last two the new number of the second name is taken as well.
COLLISIONS = [
    ["layers.196493.weight", "layers.3004.weight"],
    ["layers.63806.weight", "layers.84354.weight"],
    ["layers.4659596.weight", "layers.4975073.weight", "layers.3607643.weight"],
    ["layers.1704485.weight", "layers.2642692.weight", "layers.2931059.weight"],
]


@pytest.mark.parametrize("names", COLLISIONS)
def test_names_that_collide_get_streams_of_their_own(names):
    assert reference.hash_name(names[0]) == reference.hash_name(names[1])  # else this tests nothing
    if len(names) == 3:
        assert reference.hash_name(names[1] + "\0" + "1") == reference.hash_name(names[2])
    expected = reference.streams(names)
    assert len(set(expected.values())) == len(names)
    assert seeds.streams(names) == expected
    assert seeds.streams(names[::-1]) == expected


def test_frozen_collision_of_noise_version_2():
    assert seeds.streams(COLLISIONS[0]) == {"layers.196493.weight": 0x5CA5A53C, "layers.3004.weight": 0x23C2E625}


@pytest.mark.parametrize(
    ("run_seed", "step", "k", "expected"),
    [
        (0, 0, 0, 0x282047AD06AEB62B),
        (42, 0, 0, 0x20B78D7032721BEA),
        (42, 1, 0, 0x3E8779BEB6F38497),
        (42, 0, 1, 0x3F82E2297C159B7C),
        (2**64 - 1, 20_000, 15, 0x1B128E9A77DAC291),
        (42, 0, 2**64 - 1, 0x0C0D3955B6BFC7F1),  # the rounding seed of step 0
    ],
)
def test_frozen_seeds_of_noise_version_2(run_seed, step, k, expected):
    assert reference.derive_seed(run_seed, step, k) == expected
    assert seeds.derive_seed(run_seed, step, k) == expected


def test_derived_seeds_equal_the_reference():
    for run_seed in SEEDS:
        for step in (0, 1, 255, 256, 19_999, 2**40):
            for k in (0, 1, 31, reference.ROUNDING_K):
                assert seeds.derive_seed(run_seed, step, k) == reference.derive_seed(run_seed, step, k)


def test_derived_seeds_do_not_repeat():
    # By chance two of n = 50,000 seeds of 64 bits are equal with a probability of n²/2^65 = 7e-11.
    drawn = {seeds.derive_seed(run, step, k) for run in range(5) for step in range(500) for k in range(20)}
    assert len(drawn) == 50_000


# --- statistics ------------------------------------------------------------------------------------------------------

# The law of level m = popcount − 16 is binomial: C(32, m + 16) / 2^32. Its moments, as moments of z = m / √8:
LAW = {m: comb(32, m + 16) / 2**32 for m in range(-16, 17)}


def moment(power: int) -> float:
    return sum(share * (m / sqrt(8)) ** power for m, share in LAW.items())


def test_the_law_has_the_moments_that_are_promised():
    # Kurtosis of a sum of 32 fair bits: 3 + (1 − 6·¼) / (32·¼) = 3 − 2/32. A float32 step of 1/√8 is off by a
    # relative 2^-25 at most, which no test below can see.
    assert moment(2) == pytest.approx(1, abs=1e-12)
    assert moment(4) == pytest.approx(3 - 2 / 32, abs=1e-12)
    assert LAW[0] == pytest.approx(0.1399, abs=1e-4)


@pytest.mark.parametrize(("seed", "stream"), [(42, 7), (2**64 - 1, 2**32 - 1)])
def test_moments(seed, stream):
    n = 400_000
    z = noise.normal(seed, stream, 3, n).astype(np.float64)
    powers = np.ones(n)
    for power in (1, 2, 3, 4):
        # The standard error of the mean of z^p is √(Var(z^p) / n), Var(z^p) = E z^2p − (E z^p)².
        error = sqrt((moment(2 * power) - moment(power) ** 2) / n)
        powers *= z
        assert abs(powers.mean() - moment(power)) < SIGMAS * error, power


@pytest.mark.parametrize(("seed", "stream"), [(43, 8)])
def test_every_level_has_its_share(seed, stream):
    n = 400_000
    counts = np.bincount(levels(seed, stream, 0, n) + 16, minlength=33)
    share = np.array(list(LAW.values()))
    zeros_error = sqrt(LAW[0] * (1 - LAW[0]) / n)
    assert abs(counts[16] / n - LAW[0]) < SIGMAS * zeros_error
    # χ² over the levels that are expected ten times or more, the rest put together. The limit is the Wilson-Hilferty
    # one: χ²/df is near a cubed normal of mean 1 − 2/(9 df) and variance 2/(9 df).
    often = share * n >= 10
    observed = np.append(counts[often], counts[~often].sum())
    expected = np.append(share[often], share[~often].sum()) * n
    df = len(observed) - 1
    limit = df * (1 - 2 / (9 * df) + SIGMAS * sqrt(2 / (9 * df))) ** 3
    assert np.sum((observed - expected) ** 2 / expected) < limit


def test_every_bit_is_fair_and_no_two_bits_agree_too_often():
    n = 50_000
    words = noise.words(5, 11, 1, n)
    bits = np.stack([words >> np.uint32(bit) & 1 for bit in range(32)]).astype(np.float32) * 2 - 1  # ±1
    assert np.all(np.abs(bits.mean(axis=1)) < SIGMAS / sqrt(n))
    agreement = bits @ bits.T / n - np.eye(32)  # sums of ±1 up to n < 2^24: exact in float32
    assert np.all(np.abs(agreement) < SIGMAS / sqrt(n))


def test_streams_are_not_correlated():
    n = 100_000
    z = {stream: noise.normal(42, stream, 0, n) for stream in (0, 1, 2, 3, 2**16, 2**31, 2**32 - 1)}
    for first, second in pairwise(z):
        assert abs(correlation(z[first], z[second])) < SIGMAS / sqrt(n), (first, second)


def test_neighbouring_indices_are_not_correlated():
    # Lags within a block, across blocks, and the width of a common matrix.
    z = noise.normal(42, 7, 0, 400_000)
    for lag in (1, 2, 3, 4, 5, 8, 64, 4096):
        assert abs(correlation(z[lag:], z[:-lag])) < SIGMAS / sqrt(len(z) - lag), lag


def test_the_two_halves_of_an_index_do_not_repeat():
    # With the upper word of index // 4 forgotten, index and index + 2^34 would share z.
    n = 100_000
    assert abs(correlation(noise.normal(42, 7, 0, n), noise.normal(42, 7, 2**34, n))) < SIGMAS / sqrt(n)


def test_seeds_that_differ_in_one_bit_are_not_correlated():
    n = 20_000
    z = noise.normal(0x5DEECE66D, 7, 0, n)
    for bit in range(64):
        other = noise.normal(0x5DEECE66D ^ 1 << bit, 7, 0, n)
        assert abs(correlation(z, other)) < SIGMAS / sqrt(n), bit


def test_steps_directions_and_runs_are_not_correlated():
    n = 50_000
    numbers = [(0, step, 0) for step in range(10)] + [(0, 9, k) for k in (1, 2, 3, 2**64 - 1)] + [(1, 9, 0), (2, 9, 0)]
    z = [noise.normal(seeds.derive_seed(*number), 7, 0, n) for number in numbers]
    for place, first in enumerate(z):
        for second in z[:place]:
            assert abs(correlation(first, second)) < SIGMAS / sqrt(n), numbers[place]


def test_rounding_bits_do_not_know_the_direction():
    # The same seed and stream: 32 · n bits of the two purposes agree in one half, standard error 1 / (2 √(32 n)).
    n = 100_000
    differing = np.bitwise_count(noise.words(42, 7, 0, n) ^ noise.words(42, 7, 0, n, 1))
    assert abs(differing.mean() / 32 - 0.5) < SIGMAS / (2 * sqrt(32 * n))


# --- families --------------------------------------------------------------------------------------------------------


def test_a_family_is_what_a_journal_tells_of_it():
    families = [Dense("gaussian"), LowRank(3), LowRank(3, 8, "rademacher"), Subspace(2, 9)]
    for family in families:
        assert family_from_json(5, family.to_json(5), family.distribution) == family
    assert family_from_json(5, [0], "normal") == Dense()
    assert family_from_json(5, [3, 5], "normal") == LowRank(3)
    for wrong in (
        [0, 2],
        [True],
        [1.0],
        [2, 7, 9],
        [2, 5, 9, 1],
        [2**13],
        [2, -1],
        [2, 2**64],
        ["dense", 1],
        ["x"],
        [[]],
    ):
        with pytest.raises(ValueError, match=r"rank|seed|told|family"):
            family_from_json(5, wrong, "normal")


def some_family(name):
    return family_of(name, rank=2 if has_rank(name) else 0).at_step(7, 5, 1, 3)


def test_no_two_families_draw_for_one_purpose():
    drawn = [{draw.purpose for draw in some_family(name).draws(3, (6, 4))} for name in FAMILIES]
    assert len(set.union({Purpose.ROUNDING, Purpose.FIRST_WEIGHTS}, *drawn)) == 2 + sum(map(len, drawn))


@pytest.mark.parametrize("name", FAMILIES)
def test_elements_of_a_direction_depend_on_their_place_alone(name):
    family = some_family(name)
    assert family_from_json(3, family.to_json(3), "normal") == family
    for shape in [(6, 4), (7, 5), (1, 3), (9,), (2, 3, 4), ()]:
        count = prod(shape)
        if family.moves(len(shape)):
            whole = family.entries(3, 4, shape, 0, count)
            assert whole.dtype == np.float32 and whole.shape == (count,)
            parts = [family.entries(3, 4, shape, start, min(3, count - start)) for start in range(0, count, 3)]
            assert np.concatenate(parts).tobytes() == whole.tobytes()
