"""The definition of noise and of stochastic rounding: plain, slow, and the last word.

A number is a function of (seed, stream, purpose, index) and of nothing else: not of the device, the dtype of the
weights, the order of the tensors, or what was drawn before. `zoreward.kernels` computes the same numbers quickly; the
tests hold it to this file, and to the families' own, bit for bit. Changing a number here changes what every stored run
means: raise `NOISE_VERSION` then.

Counter-based noise: Philox 4x32-10 (Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3").

| Philox | here |
|---|---|
| key (2 × 32 bits) | the 64-bit seed, low word first |
| counter words 0, 1 | index // 4, low word first |
| counter word 2 | the stream of the tensor |
| counter word 3 | the `Purpose`; see `zoreward.noise.seeds` |
| output word | number index % 4; a rounding takes half a word, see `rounding_bits` |

`index` is the flat (row-major) index in the whole tensor; in a factor of rank r, i·r + k is that of a[i, k].
The purpose keeps families, their parts and rounding apart; the streams keep the tensors apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoreward.noise.seeds import Distribution, Purpose

# Philox 4x32's multipliers and Weyl constants (Salmon et al. 2011, table 2).
MULTIPLIER_0, MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
WEYL_0, WEYL_1 = 0x9E3779B9, 0xBB67AE85
MASK_32 = 0xFFFFFFFF
# Elements next to each other that take lower halves of words to be rounded; as many behind them take the upper ones.
SHARING = 512

INV_SQRT_8 = np.float32(1 / 8**0.5)

# The pattern of the float32 nearest √½; and ln 2 in two parts, the first of few bits: whole numbers times it are exact.
SQRT_HALF = 0x3F3504F3
LN_2_HIGH, LN_2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
# (ln(1 + f) − f + f²/2) / f³ by powers of f, least squares on [√½ − 1, √2 − 1]: ln is right to 1.5e-7 of itself.
LN = tuple(
    map(
        np.float32,
        (0.33333972, -0.25000969, 0.19960597, -0.16587949, 0.14950979, -0.14197472, 0.08506954),
    )
)
# sin(π/2 · g)/g and cos(π/2 · g) by powers of g², the first five of Taylor's: right to 3e-8 for |g| ≤ ½.
SINE = tuple(np.float32((-1) ** n * (math.pi / 2) ** (2 * n + 1) / math.factorial(2 * n + 1)) for n in range(5))
COSINE = tuple(np.float32((-1) ** n * (math.pi / 2) ** (2 * n) / math.factorial(2 * n)) for n in range(5))


def words(seed: int, stream: int, start: int, count: int, purpose: int = Purpose.DIRECTION) -> NDArray[np.uint32]:
    """Return the random words of the elements `start` … `start + count − 1`: uint32, shape (count,)."""
    index = np.arange(start, start + count, dtype=np.uint64)
    block = index >> np.uint64(2)
    counter = block & MASK_32, block >> 32, np.full_like(block, stream), np.full_like(block, purpose)
    return np.choose((index & 3).astype(np.intp), philox(counter, seed & MASK_32, seed >> 32)).astype(np.uint32)


def philox(counter: Sequence[Any], k0: Any, k1: Any) -> tuple[Any, Any, Any, Any]:
    """Return the four words of Philox 4x32-10 of each counter.

    Args:
        counter: its words 0 to 3, 32 bits each: arrays of NumPy's uint64, or of torch's int64, where a product that
            overflows keeps the 64 bits that count.
        k0: the lower half of the key; a number or an array.
        k1: the upper half.
    """
    x0, x1, x2, x3 = counter
    for _ in range(10):
        p0, p1 = x0 * MULTIPLIER_0, x2 * MULTIPLIER_1
        x0, x1 = ((p1 >> 32) & MASK_32) ^ x1 ^ k0, p1 & MASK_32
        x2, x3 = ((p0 >> 32) & MASK_32) ^ x3 ^ k1, p0 & MASK_32
        k0, k1 = (k0 + WEYL_0) & MASK_32, (k1 + WEYL_1) & MASK_32
    return x0, x1, x2, x3


def entries(
    seed: int,
    stream: int,
    start: int,
    count: int,
    purpose: int = Purpose.DIRECTION,
    distribution: Distribution = "normal",
) -> NDArray[np.float32]:
    """Return random numbers of the elements `start` … `start + count − 1`: float32, shape (count,).

    | distribution | a number |
    |---|---|
    | `normal` | (popcount(word) − 16) · float32(1/√8), rounded once: mean 0, variance 1, kurtosis 2.94; 33 levels |
    | | from −5.66 to 5.66, 14 % of them zero |
    | `rademacher` | 1 or −1, by the highest bit of the word |
    | `gaussian` | of a normal distribution, up to ±5.77: the two of `box_muller` of words 0 and 1 of a block of |
    | | Philox, and of words 2 and 3 |

    Only integers, single products and polynomials instead of a library's functions: the same bits on every machine.

    >>> (entries(seed=0, stream=0, start=0, count=4) * 8**0.5).round().tolist()
    [1.0, 0.0, 1.0, -1.0]
    >>> [round(float(z), 4) for z in entries(seed=0, stream=0, start=0, count=4, distribution="gaussian")]
    [0.047, -1.3547, -0.7776, 0.0958]

    Source: Box, Muller 1958, "A note on the generation of random normal deviates".
    """
    first = start - start % 4
    whole = words(seed, stream, first, -(-(start + count - first) // 4) * 4, purpose)
    return entries_of_words(whole, distribution)[start - first :][:count]


def normal(seed: int, stream: int, start: int, count: int, purpose: int = Purpose.DIRECTION) -> NDArray[np.float32]:
    """Return `entries` that are `normal`."""
    return entries(seed, stream, start, count, purpose)


def entries_of_words(words: NDArray[np.uint32], distribution: Distribution) -> NDArray[np.float32]:
    """Return a number for each word; a gaussian one for each of two: `words` are then a whole number of pairs.

    >>> entries_of_words(np.uint32([0xFFFFFFFF]), "rademacher").tolist()
    [-1.0]
    """
    if distribution == "normal":
        return (np.bitwise_count(words).astype(np.float32) - np.float32(16)) * INV_SQRT_8
    if distribution == "rademacher":
        return np.float32(1) - (words >> np.uint32(31)).astype(np.float32) * np.float32(2)
    pairs = words.reshape(-1, 2)
    return np.stack(box_muller(pairs[:, 0], pairs[:, 1]), axis=1).reshape(-1)


def box_muller(word: NDArray[np.uint32], turn: NDArray[np.uint32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return two independent numbers of a normal distribution from each two words: float32.

        u = (⌊word / 2⁸⌋ + 1) · 2⁻²⁴,  θ = π/2 · (⌊turn / 2³⁰⌋ + g),  g = (⌊turn / 2⁸⌋ mod 2²²) · 2⁻²² − ½
        √(−2 ln u) · cos θ,  √(−2 ln u) · sin θ

    With n = 2²⁴u = m · 2^e, √½ ≤ m < √2, f = m − 1: ln u = ((f − f²/2) + f³ · LN(f)) + (e − 24) · ln 2. Each product
    and each sum is rounded to float32 by itself, polynomials from their last coefficient on; the root is the nearest.

    >>> [float(z[0]) for z in box_muller(np.uint32([2**32 - 1]), np.uint32([0]))]
    [-0.0, 0.0]
    """
    pattern = ((word >> np.uint32(8)) + np.uint32(1)).astype(np.float32).view(np.int32)
    e = (pattern - np.int32(SQRT_HALF)) >> np.int32(23)
    f = (pattern - (e << np.int32(23))).view(np.float32) - np.float32(1)
    square = f * f
    ln = (f - np.float32(0.5) * square) + (square * f) * polynomial(LN, f)
    power = (e - np.int32(24)).astype(np.float32)
    radius = np.sqrt(((ln + power * LN_2_LOW) + power * LN_2_HIGH) * np.float32(-2))
    g = ((turn >> np.uint32(8) & np.uint32(0x3FFFFF)).astype(np.float32) - np.float32(2**21)) * np.float32(2.0**-22)
    square = g * g
    sine, cosine = polynomial(SINE, square) * g, polynomial(COSINE, square)
    odd, back = (turn >> np.uint32(30) & np.uint32(1)) == 1, turn >> np.uint32(31) == 1
    x, y = np.where(odd, -sine, cosine), np.where(odd, cosine, sine)
    return radius * np.where(back, -x, x), radius * np.where(back, -y, y)


def polynomial(coefficients: Sequence[np.float32], x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return c_0 + x·(c_1 + x·(c_2 + …)), each product and each sum rounded by itself.

    >>> polynomial((np.float32(1), np.float32(2)), np.float32([3.0])).tolist()
    [7.0]
    """
    value = np.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value = value * x + coefficient
    return value


def uniform(seed: int, stream: int, start: int, count: int, purpose: int) -> NDArray[np.float32]:
    """Return numbers spread evenly over [−1, 1), multiples of 2^−23: float32, exact.

    >>> uniform(seed=0, stream=0, start=0, count=2, purpose=4).tolist()
    [-0.7766942977905273, 0.8932474851608276]
    """
    word = words(seed, stream, start, count, purpose)
    return (word >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1)


def rounding_bits(seed: int, stream: int, start: int, count: int) -> NDArray[np.uint32]:
    """Return 16 bits for the rounding of each of the elements `start` … `start + count − 1`: uint32 below 2^16.

    Elements j and j + 512 of each 1,024 share word number ⌊index / 1024⌋ · 512 + j: the lower and the upper half. So
    a GPU's thread, which works on both, draws half as many words: words are most of what an update computes.

    >>> bits = rounding_bits(seed=0, stream=0, start=0, count=513)
    >>> bool(words(0, 0, 0, 1, Purpose.ROUNDING)[0] == bits[512] << 16 | bits[0])
    True
    """
    index = np.arange(start, start + count)
    first = start // (2 * SHARING) * SHARING
    number = index // (2 * SHARING) * SHARING + index % SHARING - first
    word = words(seed, stream, first, int(number.max(initial=-1)) + 1, Purpose.ROUNDING)[number]
    return np.where(index % (2 * SHARING) < SHARING, word & np.uint32(0xFFFF), word >> np.uint32(16))


def round_bf16(acc: NDArray[np.float32], bits: NDArray[np.uint32]) -> NDArray[np.uint16]:
    """Round float32 to bfloat16 stochastically; returns the bfloat16 bit patterns.

    `bits`, below 2^16, are added to the float32 pattern, the lower half is dropped: `acc` between two neighbours goes
    to the upper one with the probability of its distance to the lower one. Infinity and NaN stay what they are; a
    finite value never becomes infinite.
    """
    pattern = np.ascontiguousarray(acc).view(np.uint32)
    special = (pattern & np.uint32(0x7F800000)) == np.uint32(0x7F800000)
    upper = ((pattern + bits) >> np.uint32(16)).astype(np.uint16)
    overflow = (upper & np.uint16(0x7FFF)) == np.uint16(0x7F80)
    upper = np.where(overflow, (upper & np.uint16(0x8000)) | np.uint16(0x7F7F), upper)
    quiet = np.where(np.isnan(acc), np.uint16(0x0040), np.uint16(0))  # a NaN whose payload sat in the lower half
    return np.where(special, (pattern >> np.uint32(16)).astype(np.uint16) | quiet, upper)


def round_fp16(acc: NDArray[np.float32], bits: NDArray[np.uint32]) -> NDArray[np.float16]:
    """Round float32 to float16 stochastically, with bits below 2^16.

    From 2^−14 on: the low 13 of `bits` are added to the float32 pattern and 13 bits dropped. Below, where float16 is a
    fixed grid: floor(acc·2^24 + u)·2^−24 with u = (bits + ½)·2^−16, so the mean is off by at most 2^−17 of the grid
    (13 bits would be biased there by up to 19 %). Infinity and NaN stay; finite values beyond ±65504 become ±65504.
    """
    pattern = np.ascontiguousarray(acc).view(np.uint32)
    moved = ((pattern + (bits & np.uint32(0x1FFF))) & np.uint32(0xFFFFE000)).view(np.float32)
    u = (bits.astype(np.float64) + 0.5) * 2.0**-16
    with np.errstate(invalid="ignore", over="ignore"):
        small = np.floor(acc.astype(np.float64) * 2.0**24 + u) * 2.0**-24
        value = np.where(np.abs(acc) < np.float32(2.0**-14), small, moved.astype(np.float64))
        value = np.where(np.isfinite(acc), np.clip(value, -65504.0, 65504.0), acc)
        return value.astype(np.float16)
