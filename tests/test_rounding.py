"""Contract under test: how weights are perturbed, updated and rounded (`zoreward.kernels.cpu`, `zoreward.noise`).

- `perturb(weight, stream, members)`: one new tensor a member, θ + Σ coefficient · z. In float32 each product is
  rounded, then each sum, in the order of the terms; at the end one rounding to nearest even. The weight stays as it is.
- `update_(weight, stream, update)`, in place: the same sum, then minus round(decay · θ_old) where the tensor has two
  dimensions or more, then one rounding: none for float32, stochastic for bfloat16 and float16, from bits of the
  rounding seed at the weight's own stream and index.
- `rounding_bits(seed, stream, start, count)`: 16 for each element, half a word; no two elements have the same half.
- `round_bf16(acc, bits)`, `round_fp16(acc, bits)`: the stochastic roundings. Unbiased, to 2^-17 of a step where float16
  is a fixed grid; what is finite stays finite, what is not stays what it is.
- The index of a weight is its flat index in row-major order, whatever its strides are. No random state is read or set.

Everything is compared bit by bit with `reference.py`. Free are only the pattern of a NaN, and the sign of a zero that
stochastic rounding to float16 returns.
"""

from __future__ import annotations

from fractions import Fraction
from math import ceil, sqrt

import numpy as np
import pytest
import torch

import reference
from zoreward.kernels import cpu
from zoreward.kernels.philox import Workspace
from zoreward.noise import definition as noise
from zoreward.noise import seeds
from zoreward.records import Term, Update

SIGMAS = 5
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
HALF = ["bfloat16", "float16"]
# Where what is moved is about the directions: that float16 is rounded rightly, tests of the rounding itself show.
MOSTLY = ["float32", "bfloat16", pytest.param("float16", marks=pytest.mark.slow)]
STREAM, ROUNDING_SEED = 0xA373CDAF, 2**63 + 5
EPS = 1e-3

# Couples, a member without terms, members that share seeds, a term twice, a coefficient of zero.
MEMBERS = [
    (),
    ((1, EPS),),
    ((1, -EPS),),
    ((1, EPS), (2**64 - 1, -0.3), (1, EPS)),
    ((3, 0.0), (2, -2.5e-4), (1, 7.0)),
]
SHAPES = [(), (0,), (0, 4), (1,), (3,), (13,), (4, 4), (5, 7), (2, 3, 5)]


def make_weight(shape: tuple[int, ...], dtype: str, seed: int = 0) -> torch.Tensor:
    """Return weights of magnitudes from 2^-30 to 2^3 and both zeros: for float16 about half of them subnormal."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator) * 2.0 ** -torch.randint(-3, 30, shape, generator=generator)
    weight[torch.rand(shape, generator=generator) < 0.1] = 0.0
    weight[torch.rand(shape, generator=generator) < 0.1] *= -0.0
    return weight.to(DTYPES[dtype])


def patterns(weight: torch.Tensor) -> np.ndarray:
    """Return the bit patterns of a tensor, flat in row-major order."""
    size, unsigned = (torch.int32, np.uint32) if weight.dtype == torch.float32 else (torch.int16, np.uint16)
    return weight.detach().contiguous().view(size).numpy().reshape(-1).view(unsigned).copy()


def from_patterns(values: np.ndarray | list[int], dtype: str) -> torch.Tensor:
    """Return the flat tensor of these bit patterns."""
    unsigned, signed = (np.uint32, np.int32) if dtype == "float32" else (np.uint16, np.int16)
    return torch.from_numpy(np.array(values, unsigned).view(signed)).view(DTYPES[dtype])


def floats(weight: torch.Tensor) -> np.ndarray:
    """Return the values in a new array of float32, which holds all three dtypes exactly."""
    return weight.detach().float().clone().numpy()


def plain(values: np.ndarray, dtype: str, any_zero: bool) -> np.ndarray:
    """Return patterns with one NaN for all, and one zero for both where the sign is free."""
    infinity = {"float32": 0x7F800000, "bfloat16": 0x7F80, "float16": 0x7C00}[dtype]
    sign = 0x80000000 if dtype == "float32" else 0x8000
    magnitude = values & values.dtype.type(sign - 1)
    values = np.where(magnitude > infinity, values.dtype.type(sign - 1), values)
    return np.where(magnitude == 0, values.dtype.type(0), values) if any_zero else values


def assert_same(got: np.ndarray, expected: np.ndarray, dtype: str, any_zero: bool = False) -> None:
    """Check two arrays of patterns byte by byte."""
    assert got.dtype == expected.dtype
    got, expected = plain(got, dtype, any_zero), plain(expected, dtype, any_zero)
    assert got.shape == expected.shape
    wrong = np.flatnonzero(got != expected)
    assert not len(wrong), [(int(i), hex(got[i]), hex(expected[i])) for i in wrong[:5]]


def members_of(members: list) -> list[tuple[Term, ...]]:
    return [tuple(Term(seed, coefficient) for seed, coefficient in member) for member in members]


def check_perturb(weight: torch.Tensor, dtype: str, members: list = MEMBERS) -> None:
    before, theta = patterns(weight), floats(weight)
    copies = cpu.perturb_all([(weight, STREAM)], members_of(members))[0]
    assert patterns(weight).tobytes() == before.tobytes()
    assert len(copies) == len(members)
    for copy, member in zip(copies, members, strict=True):
        assert (copy.shape, copy.dtype) == (weight.shape, weight.dtype)
        assert_same(patterns(copy), reference.perturbed(theta, dtype, STREAM, member), dtype)


def check_update(weight: torch.Tensor, dtype: str, terms: tuple, decay: float, seed: int = ROUNDING_SEED) -> None:
    expected = reference.updated(floats(weight), dtype, weight.dim(), STREAM, decay, terms, seed)
    cpu.replay_all_([(weight, STREAM)], [Update(decay, members_of([terms])[0], seed)])
    assert_same(patterns(weight), expected, dtype, any_zero=dtype == "float16")


# --- the sum ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_perturb_equals_the_reference(dtype, shape):
    check_perturb(make_weight(shape, dtype), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_update_equals_the_reference(dtype, shape, decay):
    for terms in (MEMBERS[1], MEMBERS[3], ((5, 3e-8), (6, -1e-6))):
        check_update(make_weight(shape, dtype), dtype, terms, decay)


@pytest.mark.parametrize("dtype", DTYPES)
def test_products_and_sums_that_are_subnormal_are_kept(dtype):
    # Coefficients near the smallest float32: whoever flushes subnormals to zero fails.
    small = torch.tensor([0.0, 2.0**-149, -(2.0**-140), 2.0**-126, -(2.0**-127), 2.0**-133]).repeat(6)
    terms = ((1, 2.0**-127), (2, 2.0**-149), (3, -(2.0**-133)))
    check_perturb(small.to(DTYPES[dtype]), dtype, [terms])
    check_update(small.to(DTYPES[dtype]), dtype, terms, 0.0)
    check_update(small.to(DTYPES[dtype]).reshape(6, 6), dtype, terms, 0.25)


@pytest.mark.parametrize("dtype", DTYPES)
def test_terms_are_added_in_their_order(dtype):
    weight = make_weight((64,), dtype)
    terms = ((1, 1e3), (2, -3e2), (3, 1e-3))
    forth, back = (reference.perturbed(floats(weight), "float32", STREAM, order) for order in (terms, terms[::-1]))
    assert np.any(forth != back)  # else this tests nothing
    check_perturb(weight, dtype, [terms, terms[::-1]])
    check_update(weight.clone(), dtype, terms, 0.0)
    check_update(weight.clone(), dtype, terms[::-1], 0.0)


def test_products_are_rounded_before_they_are_added():
    # A fused multiply-add rounds once. In float64 the product of two float32 is exact and the sum nearly so.
    weight = make_weight((512,), "float32")
    z = reference.normal(1, STREAM, range(512)).astype(np.float64)
    fused = (floats(weight).astype(np.float64) + float(np.float32(EPS)) * z).astype(np.float32)
    expected = reference.perturbed(floats(weight), "float32", STREAM, ((1, EPS),))
    assert np.any(fused.view(np.uint32) != expected)  # else this tests nothing
    check_perturb(weight, "float32", [((1, EPS),)])
    check_update(weight.reshape(16, 32), "float32", ((1, EPS),), 0.1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_decay_takes_from_matrices_and_not_from_vectors(dtype):
    update = Update(0.25, (), ROUNDING_SEED)
    for shape, left in (((4, 6), 0.75), ((2, 2, 2), 0.75), ((6,), 1.0), ((), 1.0)):
        weight = torch.ones(shape, dtype=DTYPES[dtype])
        cpu.replay_all_([(weight, STREAM)], [update])
        assert torch.equal(weight, torch.full(shape, left, dtype=DTYPES[dtype]))  # exact in every dtype


def test_decay_takes_from_the_old_weight():
    # Taken from θ + Σ terms instead, the result would be 0.5 · (1 + c · z) and not 0.5 + c · z.
    weight = torch.ones(8, 8)
    cpu.replay_all_([(weight, STREAM)], [Update(0.5, (Term(1, 1.0),), ROUNDING_SEED)])
    z = torch.from_numpy(reference.normal(1, STREAM, range(64))).reshape(8, 8)
    assert torch.equal(weight, (1 + z) - 0.5)


# --- shapes and strides ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("view", ["transposed", "strided", "offset"])
def test_views_count_their_own_elements(dtype, view):
    cut = {
        "transposed": lambda whole: whole.t(),
        "strided": lambda whole: whole[1:, ::3],
        "offset": lambda whole: whole[3:7],
    }[view]
    whole = make_weight((9, 14), dtype)
    check_perturb(cut(whole), dtype)

    inside = torch.zeros(9, 14, dtype=torch.bool)
    cut(inside).fill_(True)
    before = whole.clone()
    check_update(cut(whole), dtype, MEMBERS[3], 0.1)
    outside = patterns(whole[~inside])
    assert outside.tobytes() == patterns(before[~inside]).tobytes()  # only the view is written
    assert patterns(whole).tobytes() != patterns(before).tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_perturbed_copies_share_no_memory(dtype):
    weight = make_weight((5, 7), dtype)
    copies = cpu.perturb_all([(weight, STREAM)], members_of([(), (), MEMBERS[1], MEMBERS[1]]))[0]
    kept = [patterns(tensor) for tensor in (weight, *copies)]
    for place, copy in enumerate(copies):
        copy.fill_(3.0)
        for tensor, pattern in list(zip((weight, *copies), kept, strict=True))[place + 2 :]:
            assert patterns(tensor).tobytes() == pattern.tobytes()
        assert patterns(weight).tobytes() == kept[0].tobytes()


LARGE = 300_001  # more than a chunk, no multiple of 4


@pytest.fixture(scope="module")
def large_noise() -> tuple[list[tuple[np.float32, np.ndarray]], np.ndarray]:
    """(coefficient, z) of each term of MEMBERS[3], and the bits of the rounding."""
    z = {seed: noise.normal(seed, STREAM, 0, LARGE) for seed, _ in MEMBERS[3]}
    bits = noise.rounding_bits(ROUNDING_SEED, STREAM, 0, LARGE)
    return [(np.float32(coefficient), z[seed]) for seed, coefficient in MEMBERS[3]], bits


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_tensors_equal_the_reference(dtype, large_noise):
    # A sample is compared with the slow reference: some at random, the ends, the middle, and both sides of every
    # multiple of 2^14. Then all of it with numpy, which does not fuse either.
    weight = make_weight((LARGE,), dtype)
    theta = floats(weight)
    edges = (0, LARGE // 2, LARGE - 2, *range(2**14, LARGE, 2**14))
    near = [place + step for place in edges for step in (-2, -1, 0, 1)]
    spread = np.random.default_rng(0).integers(LARGE, size=200).tolist()
    sample = sorted({place for place in near + spread if 0 <= place < LARGE})
    numbers, bits = large_noise
    acc = theta.copy()
    for coefficient, z in numbers:
        acc = acc + coefficient * z

    terms = MEMBERS[3]
    member = members_of([terms])[0]
    (copy,) = cpu.perturb_all([(weight, STREAM)], (member,))[0]
    expected = reference.perturbed(theta[sample], dtype, STREAM, terms, sample)
    assert_same(patterns(copy)[sample], expected, dtype)
    assert_same(patterns(copy), patterns(torch.from_numpy(acc).to(DTYPES[dtype])), dtype)

    cpu.replay_all_([(weight, STREAM)], [Update(0.0, member, ROUNDING_SEED)])
    expected = reference.updated(theta[sample], dtype, 1, STREAM, 0.0, terms, ROUNDING_SEED, sample)
    assert_same(patterns(weight)[sample], expected, dtype, any_zero=dtype == "float16")
    rounded = {
        "float32": lambda: acc.view(np.uint32),
        "bfloat16": lambda: noise.round_bf16(acc, bits),
        "float16": lambda: noise.round_fp16(acc, bits).view(np.uint16),
    }[dtype]()
    assert_same(patterns(weight), rounded, dtype, any_zero=dtype == "float16")


@pytest.mark.parametrize("start", [0, 4, 508, 512, 1020, 1024, 2**34 - 512])
def test_bits_of_any_part_are_those_of_the_whole_and_no_two_elements_share_a_half(start):
    bits = noise.rounding_bits(ROUNDING_SEED, STREAM, start, 3_000)
    assert bits.tolist() == reference.rounding_bits(ROUNDING_SEED, STREAM, range(start, start + 3_000))
    for count in (1, 500, 3_000):
        assert Workspace(count).rounding_bits(ROUNDING_SEED, STREAM, start, count).tolist() == bits[:count].tolist()
    # 3,000 halves of 1,500 words that are alike: of 2^16 values as many differ as of 3,000 draws, 2,932 ± 8
    assert abs(len(set(bits.tolist())) - 2_932) < SIGMAS * 8


def test_frozen_bits_of_noise_version_2():
    word = noise.words(42, 7, 0, 4, seeds.Purpose.ROUNDING).tolist()
    bits = noise.rounding_bits(42, 7, 0, 516).tolist()
    assert bits[:4] == [0xA2A1, 0x7414, 0xD51E, 0xAC84] == [each % 2**16 for each in word]
    assert bits[512:] == [0x8821, 0xDEB2, 0xE01E, 0x44D5] == [each // 2**16 for each in word]


def test_large_matrices_decay_everywhere():
    weight = torch.ones(601, 500)
    cpu.replay_all_([(weight, STREAM)], [Update(0.25, (), ROUNDING_SEED)])
    assert torch.equal(weight, torch.full((601, 500), 0.75))


# --- values at the edge ----------------------------------------------------------------------------------------------

SPECIAL = {
    # ±0, smallest subnormal, largest subnormal, smallest normal, 1, largest finite, infinity, NaN (quiet, signalling)
    "float32": [0, 1, 0x007FFFFF, 0x00800000, 0x3F800000, 0x7F7FFFFF, 0x7F800000, 0x7FC00000, 0x7F800001],
    "bfloat16": [0, 1, 0x007F, 0x0080, 0x3F80, 0x7F7F, 0x7F80, 0x7FC0, 0x7F81],
    "float16": [0, 1, 0x03FF, 0x0400, 0x3C00, 0x7BFF, 0x7C00, 0x7E00, 0x7C01],
}


def special_weight(dtype: str) -> torch.Tensor:
    sign = 2**31 if dtype == "float32" else 2**15
    return from_patterns([pattern + s for pattern in SPECIAL[dtype] for s in (0, sign)] * 4, dtype)


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("coefficient", [0.0, 1e-7, 1e3, 1e30, -3e38])
def test_values_at_the_edge_equal_the_reference(dtype, coefficient):
    # 3e38 · |z| overflows float32 from |z| > 1 on: an infinite sum stays infinite, where a finite one is kept finite.
    for terms in (((1, coefficient),), ((1, coefficient), (2, coefficient))):
        check_perturb(special_weight(dtype), dtype, [(), terms])
        check_update(special_weight(dtype), dtype, terms, 0.0)
        check_update(special_weight(dtype).reshape(8, 9), dtype, terms, 0.1)


@pytest.mark.parametrize("dtype", HALF)
def test_update_never_overflows_what_is_finite(dtype):
    # The largest finite weight and steps that stay finite in float32: 64 chances to carry into infinity.
    largest = from_patterns([SPECIAL[dtype][5]] * 64, dtype)
    for weight in (largest, -largest):
        for coefficient in (1e-3 * float(largest[0]), -1e-3 * float(largest[0])):
            after = weight.clone()
            check_update(after, dtype, ((1, coefficient),), 0.0)
            assert torch.isfinite(after).all()


@pytest.mark.parametrize("dtype", HALF)
def test_an_update_of_nothing_changes_nothing(dtype):
    # All 2^16 patterns: what the dtype can hold is not moved by rounding.
    weight = from_patterns(np.arange(2**16), dtype)
    before = patterns(weight)
    cpu.replay_all_([(weight, STREAM)], [Update(0.0, (), ROUNDING_SEED)])
    assert_same(patterns(weight), before, dtype, any_zero=dtype == "float16")


# --- stochastic rounding ---------------------------------------------------------------------------------------------


def float32_of(pattern: int) -> np.float32:
    return np.array([pattern], np.uint32).view(np.float32)[0]


def mean_of(rounded: np.ndarray) -> Fraction:
    """Return the exact mean of an array of floats."""
    values, counts = np.unique(rounded.astype(np.float64), return_counts=True)
    total = sum(Fraction(float(value)) * int(count) for value, count in zip(values, counts, strict=True))
    return Fraction(total, int(counts.sum()))


def bf16_values(rounded: np.ndarray) -> np.ndarray:
    assert rounded.dtype == np.uint16
    return (rounded.astype(np.uint32) << np.uint32(16)).view(np.float32)


@pytest.mark.parametrize(
    "pattern",
    [
        0x3F800001,  # just above 1
        0x3F80FFFF,  # just below the next bfloat16
        0x3FFFC000,  # below 2: the upper neighbour is in the next binade
        0xBFC09A3D,  # −1.5…
        0x3DCCCCCD,  # 0.1
        0x00000001,  # the smallest float32
        0x807F8000,  # between the largest subnormal and the smallest normal bfloat16
        0x7F7E1234,  # near the largest
        0x00000000,
        0x41200000,  # 10, which bfloat16 holds
    ],
)
def test_bf16_rounding_is_unbiased(pattern):
    # Over all 2^16 offsets the mean is the number itself, exactly.
    acc = np.full(2**16, float32_of(pattern))
    rounded = noise.round_bf16(acc, np.arange(2**16, dtype=np.uint32))
    assert mean_of(bf16_values(rounded)) == Fraction(float(acc[0]))
    expected = [reference.stochastic_bf16(acc[0], bits) for bits in range(0, 2**16, 257)]
    assert rounded[::257].tolist() == expected


def test_bf16_rounding_keeps_what_is_finite_finite():
    for sign in (0, 2**31):
        patterns32 = np.array([0x7F7F0000, 0x7F7F0001, 0x7F7F8000, 0x7F7FFFFF], np.uint32) + np.uint32(sign)
        for bits in (0, 1, 0x7FFF, 0x8000, 0xFFFF):
            rounded = noise.round_bf16(patterns32.view(np.float32), np.full(4, bits, np.uint32))
            assert rounded.tolist() == [0x7F7F + sign // 2**16] * 4


def test_bf16_rounding_leaves_infinities_and_nans():
    # Some of these NaNs would become infinite or zero when bits are added or the lower half is cut.
    nans = np.array([0x7F800001, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF, 0x7FC00000], np.uint32).view(np.float32)
    infinities = np.array([np.inf, -np.inf], np.float32)
    for bits in (0, 1, 0x8000, 0xFFFF):
        assert np.isnan(bf16_values(noise.round_bf16(nans, np.full(5, bits, np.uint32)))).all()
        assert noise.round_bf16(infinities, np.full(2, bits, np.uint32)).tolist() == [0x7F80, 0xFF80]


@pytest.mark.parametrize(
    "value",
    [
        2.0**-14,  # the smallest normal
        2.0**-14 * (1 + 2.0**-23),
        -(2.0**-13) * (1 - 2.0**-24),  # the outer neighbour is in the next binade
        0.1,
        -1.2345678,
        3.0,
        65503.99,  # the outer neighbour is the largest
    ],
)
def test_fp16_rounding_is_unbiased_in_the_normal_range(value):
    # Over all 2^13 offsets the mean is the number itself, exactly. The three bits above must not matter.
    acc = np.full(2**13, value, np.float32)
    for upper in (0, 0xA000):
        bits = np.arange(2**13, dtype=np.uint32) | np.uint32(upper)
        rounded = noise.round_fp16(acc, bits)
        assert rounded.dtype == np.float16
        assert mean_of(rounded) == Fraction(float(acc[0]))
    expected = [reference.stochastic_fp16(acc[0], int(each)) for each in bits[::127]]
    assert rounded.view(np.uint16)[::127].tolist() == expected


SUBNORMAL = [
    0.3,
    -0.3,
    0.9999999,
    -1e-6,
    1.5,
    100.2,
    -100.2,
    511.7,
    1000.0001,
    -1000.0001,
    1023.99994,
    -1023.99994,
    7.0,
]


@pytest.mark.parametrize("steps", SUBNORMAL)
def test_fp16_rounding_is_unbiased_in_the_subnormal_range(steps):
    # u takes the 2^16 values (i + ½) · 2^-16, evenly around ½. floor(x + u) is one more than floor(x) for the share
    # frac(x) of them, to half of one: the mean over all is off by at most 2^-17 steps. (A step is 2^-24.)
    acc = np.float32(steps * 2.0**-24)
    x = Fraction(float(acc)) * 2**24
    low = x.numerator // x.denominator
    bits = np.arange(2**16, dtype=np.uint32)
    rounded = noise.round_fp16(np.full(2**16, acc), bits)
    assert rounded.dtype == np.float16
    # low and low + 1 are whole numbers of steps up to 1024: float16 holds them.
    first_up = ceil(((1 - (x - low)) * 2**17 - 1) / 2)  # frac(x) + (i + ½) · 2^-16 ≥ 1
    assert (rounded.astype(np.float64) * 2**24).tolist() == [low] * first_up + [low + 1] * (2**16 - first_up)
    patterns16 = np.array([reference.stochastic_fp16(acc, int(each)) for each in bits[::101]], np.uint16)
    assert_same(rounded.view(np.uint16)[::101].copy(), patterns16, "float16", any_zero=True)
    assert abs(mean_of(rounded) * 2**24 - x) <= Fraction(1, 2**17)


def test_fp16_rounding_leaves_what_float16_holds():
    # And what is nearer to it than 2^-17 steps, as its neighbours in float32 are while it is small.
    for whole in (0, 1, 2, 60, -1, -60):
        exact = np.float32(whole * 2.0**-24)
        trio = np.array([np.nextafter(exact, np.float32(-1)), exact, np.nextafter(exact, np.float32(1))], np.float32)
        for bits in (0, 2**15, 2**16 - 1):
            rounded = noise.round_fp16(trio, np.full(3, bits, np.uint32))
            assert (rounded.astype(np.float64) * 2**24).tolist() == [whole] * 3


def test_fp16_rounding_keeps_what_is_finite_finite():
    large = np.array([65504.0, 65505.0, 65519.9, 65520.0, 65536.0, 1e5, 3e38, 3.4028235e38], np.float32)
    for each in (0, 1, 0x1000, 0x1FFF, 0xFFFF):
        bits = np.full(len(large), each, np.uint32)
        assert noise.round_fp16(large, bits).tolist() == [65504.0] * len(large)
        assert noise.round_fp16(-large, bits).tolist() == [-65504.0] * len(large)


def test_fp16_rounding_leaves_infinities_and_nans():
    nans = np.array([0x7F800001, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF, 0x7FC00000], np.uint32).view(np.float32)
    infinities = np.array([np.inf, -np.inf], np.float32)
    for bits in (0, 1, 0x1FFF, 0xFFFF):
        assert np.isnan(noise.round_fp16(nans, np.full(5, bits, np.uint32))).all()
        assert noise.round_fp16(infinities, np.full(2, bits, np.uint32)).tolist() == [np.inf, -np.inf]


@pytest.mark.parametrize("dtype", HALF)
def test_the_rounding_seed_decides_the_rounding(dtype):
    n = 20_000
    weight = torch.full((n,), 1.5, dtype=DTYPES[dtype])
    ulp = 2.0 ** {"bfloat16": -7, "float16": -10}[dtype]
    terms = (Term(1, ulp / 40),)
    after = {}
    for name, seed in (("first", 7), ("again", 7), ("other", 8)):
        copy = weight.clone()
        cpu.replay_all_([(copy, STREAM)], [Update(0.0, terms, seed)])
        after[name] = patterns(copy)
    assert after["first"].tobytes() == after["again"].tobytes()
    # A weight moves by one ulp with p = |z| / 40, so two independent roundings differ with 2p(1 − p).
    p = np.abs(reference.normal(1, STREAM, range(200))).astype(np.float64)  # only to see that p is what is said
    assert 0.5 < p.mean() < 1.1
    z = noise.normal(1, STREAM, 0, n).astype(np.float64)
    chance = 2 * np.abs(z) / 40 * (1 - np.abs(z) / 40)
    differing = np.count_nonzero(after["first"] != after["other"])
    # The sum of acc rounds c · z by at most 2^-24, a 2^-24 / ulp share of an ulp: at most 2^-14 · 2 in a chance.
    slack = n * 2 * 2.0**-24 / ulp
    assert abs(differing - chance.sum()) < SIGMAS * sqrt(np.sum(chance * (1 - chance))) + slack


@pytest.mark.parametrize(
    ("dtype", "start", "ulp"),
    [("bfloat16", 1.5, 2.0**-7), ("float16", 1.5, 2.0**-10), ("float16", 1.5 * 2.0**-16, 2.0**-24)],
)
def test_steps_below_half_an_ulp_make_the_expected_progress(dtype, start, ulp):
    # 60 times the same step c · z of at most 16 / √8 / 40 = 0.14 ulp: rounded to nearest nothing would ever move.
    # Progress is the share of the way 60 · c · z that is done, projected on z: Σ z (θ' − θ) / (60 c Σ z²). It is 1 on
    # average. A step of d = |c z| rounds with variance d (ulp − d) ≤ c |z| ulp, so the standard error of the progress
    # is at most √(ulp / (60 c) · Σ|z|³) / Σz². Two errors are no chance: the sum of acc is rounded to float32, half a
    # unit of the binade of `start` a step, and fp16's u has 24 bits, at most 2^-24 ulp a step.
    n, steps, c = 20_000, 60, ulp / 40
    weight = torch.full((n,), start, dtype=DTYPES[dtype])
    assert torch.equal((weight.float() + c * 16 / sqrt(8)).to(DTYPES[dtype]), weight)  # else this tests nothing
    for step in range(steps):
        cpu.replay_all_(
            [(weight, STREAM)], [Update(0.0, (Term(1, c),), reference.derive_seed(0, step, reference.ROUNDING_K))]
        )
    z = noise.normal(1, STREAM, 0, n).astype(np.float64)
    progress = np.sum(z * (floats(weight).astype(np.float64) - start)) / (steps * c * np.sum(z**2))
    error = sqrt(ulp / (steps * c) * np.sum(np.abs(z) ** 3)) / np.sum(z**2)
    fixed = (np.spacing(np.float32(start)) / 2 + 2.0**-24 * ulp) * np.sum(np.abs(z)) / (c * np.sum(z**2))
    assert error < 0.01  # else this tests little
    assert abs(progress - 1) < SIGMAS * error + fixed


def test_no_random_state_is_read_or_set():
    weight = make_weight((50, 3), "bfloat16")
    after = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        states = torch.get_rng_state().clone(), np.random.get_state()[1].copy()
        copies = cpu.perturb_all([(weight, STREAM)], members_of(MEMBERS))[0]
        clone = weight.clone()
        cpu.replay_all_([(clone, STREAM)], [Update(0.1, members_of(MEMBERS)[3], ROUNDING_SEED)])
        after.append(b"".join(patterns(tensor).tobytes() for tensor in (*copies, clone)))
        assert torch.equal(torch.get_rng_state(), states[0])
        assert np.array_equal(np.random.get_state()[1], states[1])
    assert after[0] == after[1]
