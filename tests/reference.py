"""The yardstick: directions, seeds, rounding and the MeZO step, written from their formulas, one element at a time.

Slow and plain on purpose, and independent of the package: nothing here imports `zoreward`. Words are made of Python
integers, weights of numpy float32 scalars (each operation rounds once, to nearest even, and nothing is fused), and
where a sum must be exact of fractions.

Half-precision numbers travel as bit patterns: `theta` is always given as the float32 values of the weights, results
are uint32 patterns for "float32" and uint16 patterns for "bfloat16" and "float16".

Sources: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (2011), for Philox 4x32-10;
Malladi et al., "Fine-tuning language models with just forward passes" (2023), for the MeZO step.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

DIRECTIONS, ROUNDING = 0, 1  # the purposes: the last word of the counter
ROUNDING_K = 2**64 - 1  # the direction number that stands for the rounding seed of a step
WORD = 2**32

FACTOR_A, FACTOR_B = 2, 3  # the factors of low-rank directions
BASIS_U, BASIS_V, CORE = 5, 6, 7  # the bases of a subspace, and a direction in it

# ln(1+f) = f − f²/2 + f³ · (L0 + L1·f + …) for √½ ≤ 1+f ≤ √2; ln 2 in two parts, the first of few bits.
LOGARITHM = [
    np.float32(value)
    for value in (
        0.33333972096443176,
        -0.250009685754776,
        0.19960597157478333,
        -0.165879487991333,
        0.14950978755950928,
        -0.14197471737861633,
        0.08506953716278076,
    )
]
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
# Taylor's coefficients of sin(π/2 · g) / g and of cos(π/2 · g), in g².
SINE = [np.float32((-1) ** n * (math.pi / 2) ** (2 * n + 1) / math.factorial(2 * n + 1)) for n in range(5)]
COSINE = [np.float32((-1) ** n * (math.pi / 2) ** (2 * n) / math.factorial(2 * n)) for n in range(5)]

Terms = Sequence[
    tuple[int, float]
    | tuple[int, float, int]
    | tuple[int, float, int, int]
    | tuple[int, float, int, int | None, int | None]
]
"""(direction seed, coefficient), or with a rank behind them, or that and a seed for b, or that and the seed of a
subspace, in the order of their sum."""


# --- words -----------------------------------------------------------------------------------------------------------


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the four 32-bit words of Philox 4x32 with ten rounds.

    >>> [f"{word:08x}" for word in philox((0, 0, 0, 0), (0, 0))]
    ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product0, product1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = product1 // WORD ^ c1 ^ k0, product1 % WORD, product0 // WORD ^ c3 ^ k1, product0 % WORD
        k0, k1 = (k0 + 0x9E3779B9) % WORD, (k1 + 0xBB67AE85) % WORD
    return c0, c1, c2, c3


def words(seed: int, stream: int, indices: Iterable[int], purpose: int = DIRECTIONS) -> list[int]:
    """Return the word of each index: output `index % 4` of Philox at counter (index // 4, stream, purpose)."""
    key = seed % WORD, seed // WORD
    blocks: dict[int, tuple[int, int, int, int]] = {}
    found = []
    for index in map(int, indices):
        block = index // 4
        if block not in blocks:
            blocks[block] = philox((block % WORD, block // WORD, stream, purpose), key)
        found.append(blocks[block][index % 4])
    return found


def normal(seed: int, stream: int, indices: Iterable[int], purpose: int = DIRECTIONS) -> NDArray[np.float32]:
    """Return z at each index: (popcount(word) − 16) / √8, with one float32 product.

    >>> normal(0, 0, range(4))
    array([ 0.35355338,  0.        ,  0.35355338, -0.35355338], dtype=float32)
    """
    step = np.float32(1 / math.sqrt(8))
    drawn = words(seed, stream, indices, purpose)
    return np.array([np.float32(word.bit_count() - 16) * step for word in drawn], np.float32)


def rademacher(seed: int, stream: int, indices: Iterable[int], purpose: int = DIRECTIONS) -> NDArray[np.float32]:
    """Return z at each index: −1 where the word's highest bit is set, else +1.

    >>> rademacher(0, 0, range(4))
    array([ 1., -1., -1., -1.], dtype=float32)
    """
    return np.array([-1.0 if word >= 2**31 else 1.0 for word in words(seed, stream, indices, purpose)], np.float32)


def gaussian(seed: int, stream: int, indices: Iterable[int], purpose: int = DIRECTIONS) -> NDArray[np.float32]:
    """Return z at each index: the elements 0 and 1 of a block of four are `box_muller` of its words 0 and 1, the
    elements 2 and 3 of its words 2 and 3.

    >>> gaussian(0, 0, [1, 0, 2, 3]).round(4)
    array([-1.3547,  0.047 , -0.7776,  0.0958], dtype=float32)
    """
    found = []
    for index in map(int, indices):
        first = index - index % 2
        w, v = words(seed, stream, (first, first + 1), purpose)
        found.append(box_muller(w, v)[index % 2])
    return np.array(found, np.float32)


def box_muller(w: int, v: int) -> tuple[np.float32, np.float32]:
    """Return √(−2 ln u) · (cos α, sin α) of two words, one float32 operation at a time.

    u = ((w >> 8) + 1) / 2^24, α = π/2 · (quadrant + g): the quadrant is the upper two bits of v, g is the 22 bits
    below them as a number from −½ to ½.
    """
    pattern = bits_of(np.float32(w // 2**8 + 1))
    exponent = (pattern - 0x3F3504F3) // 2**23  # so that what is left lies in [√½, √2)
    logarithm = log_of_one_and(float_of(pattern - exponent * 2**23) - np.float32(1))
    k = np.float32(exponent - 24)
    radius = np.sqrt((logarithm + k * LN2_LOW + k * LN2_HIGH) * np.float32(-2))
    g = np.float32(v // 2**8 % 2**22 - 2**21) * np.float32(2**-22)
    sine, cosine = horner(SINE, g * g) * g, horner(COSINE, g * g)
    x, y = [(cosine, sine), (-sine, cosine), (-cosine, -sine), (sine, -cosine)][v // 2**30]
    return radius * x, radius * y


def log_of_one_and(f: np.float32) -> np.float32:
    """Return ln(1 + f) for √½ ≤ 1 + f ≤ √2: (f − f²/2) + f³ · p(f)."""
    square = f * f
    return (f - np.float32(0.5) * square) + (square * f) * horner(LOGARITHM, f)


def horner(coefficients: Sequence[np.float32], x: np.float32) -> np.float32:
    """Return c0 + x · (c1 + x · (c2 + …)), from the last coefficient on: each product is rounded, then each sum."""
    total = coefficients[-1]
    for coefficient in coefficients[-2::-1]:
        total = total * x + coefficient
    return total


def entries(
    seed: int, stream: int, indices: Iterable[int], purpose: int = DIRECTIONS, distribution: str = "normal"
) -> NDArray[np.float32]:
    """Return z at each index, of one of the three distributions."""
    return {"normal": normal, "gaussian": gaussian, "rademacher": rademacher}[distribution](
        seed, stream, indices, purpose
    )


def low_rank(
    seed: int,
    stream: int,
    shape: tuple[int, int],
    rank: int,
    b_seed: int | None = None,
    basis_seed: int | None = None,
    distribution: str = "normal",
) -> NDArray[np.float32]:
    """Return z = a·bᵀ/√r of a matrix, one float32 operation at a time: products, their sum from k = 0 on, the scale.

    a is (m, r) and b is (n, r), each `entries` with a purpose of its own, in row-major order; b by a seed of its own,
    if it has one. In a subspace, where entries are normal, they are those of `subspace_factors`.
    """
    rows, columns = shape
    a = entries(seed, stream, range(rows * rank), FACTOR_A, distribution)
    b = entries(seed if b_seed is None else b_seed, stream, range(columns * rank), FACTOR_B, distribution)
    if basis_seed is not None:
        assert distribution == "normal"
        a, b = (factor.reshape(-1) for factor in subspace_factors(seed, basis_seed, stream, shape, rank))
    scale = np.float32(1 / math.sqrt(rank))
    z = np.empty(shape, np.float32)
    for i in range(rows):
        for j in range(columns):
            total = a[i * rank] * b[j * rank]
            for k in range(1, rank):
                total = total + a[i * rank + k] * b[j * rank + k]
            z[i, j] = total * scale
    return z


def counts(seed: int, stream: int, count: int, purpose: int) -> list[int]:
    """Return popcount(word) − 16 of each index."""
    return [word.bit_count() - 16 for word in words(seed, stream, range(count), purpose)]


def subspace_factors(
    seed: int, basis_seed: int, stream: int, shape: tuple[int, int], rank: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return a = √(mr)/s · UZ and b = √n · V of a matrix, with s = min(m, n, r): sums are exact, in whole numbers."""
    used = min(*shape, rank)
    u = basis(basis_seed, stream, shape[0], rank, used, BASIS_U)
    v = basis(basis_seed, stream, shape[1], rank, used, BASIS_V)
    z = counts(seed, stream, rank * rank, CORE)
    a = np.zeros((shape[0], rank), np.float32)
    for i in range(shape[0]):
        for j in range(rank):
            total = sum(Fraction(float(u[i, k])) * z[k * rank + j] for k in range(rank))
            assert float(total) == total, "a sum that a float64 does not hold"
            a[i, j] = np.float32(float(total) * (math.sqrt(rank / 8) / used if used else 0.0))
    return a, v


def basis(seed: int, stream: int, size: int, rank: int, used: int, purpose: int) -> NDArray[np.float32]:
    """Return √size · Q in float32, Q the orthonormal columns that Gram–Schmidt makes of whole numbers C; then zeros.

    By elimination, in Python's floats, of the Gram matrix CᵀC. Products of whole numbers are exact.
    """
    found = np.zeros((size, rank), np.float32)
    drawn = counts(seed, stream, size * rank, purpose)
    c = [[drawn[i * rank + k] for k in range(used)] for i in range(size)]
    gram = [[sum(row[i] * row[j] for row in c) for j in range(used)] for i in range(used)]
    left = [[float(value) for value in line] for line in gram]
    turns = [[float(i == j) for j in range(used)] for i in range(used)]
    for k in range(used):
        if left[k][k] <= 2.0**-26 * gram[k][k]:
            continue
        for i in range(k + 1, used):
            share = left[i][k] / left[k][k]
            left[i] = [one - share * other for one, other in zip(left[i], left[k], strict=True)]
            turns[i] = [one - share * other for one, other in zip(turns[i], turns[k], strict=True)]
    for k in range(used):
        length = math.sqrt(size / left[k][k]) if left[k][k] > 2.0**-26 * gram[k][k] else 0.0
        turns[k] = [turn * length for turn in turns[k]]
    _, power = math.frexp(used * max((abs(turn) for line in turns for turn in line), default=0.0))
    for k, line in enumerate(turns):
        whole = [round(Fraction(turn) * Fraction(2) ** (48 - power)) for turn in line]
        for i in range(size):
            total = sum(count * turn for count, turn in zip(c[i], whole, strict=True))
            assert abs(total) <= 2**53, "a sum that a float64 does not hold"
            value = total * Fraction(2) ** (power - 48) if used < size else math.sqrt(size) * (i == k)
            found[i, k] = np.float32(round(Fraction(value) * 2**30) / 2**30)
    return found


# --- names and seeds -------------------------------------------------------------------------------------------------


def canonical_name(name: str) -> str:
    """Return the name without the parts that wrappers put in: `module`, `_orig_mod`, `base_model.model`.

    Whole parts between dots only, never the last one (that is the tensor itself): `submodule.weight` stays.

    >>> canonical_name("module.base_model.model.lm_head._orig_mod.weight")
    'lm_head.weight'
    """
    *parts, tensor = name.split(".")
    parts = [part for part in parts if part not in ("module", "_orig_mod")]
    kept: list[str] = []
    for part in parts:
        if part == "model" and kept[-1:] == ["base_model"]:
            kept.pop()
        else:
            kept.append(part)
    return ".".join([*kept, tensor])


def hash_name(text: str) -> int:
    """Return the first four bytes of BLAKE2b of the text, little endian."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=4).digest(), "little")


def streams(names: Iterable[str]) -> dict[str, int]:
    """Return the stream of each canonical name; of names that collide the later one in sorted order is hashed again."""
    taken: dict[str, int] = {}
    for name in sorted(names):
        stream, attempt = hash_name(name), 0
        while stream in taken.values():
            attempt += 1
            stream = hash_name(f"{name}\0{attempt}")
        taken[name] = stream
    return taken


def derive_seed(run_seed: int, step: int, k: int) -> int:
    """Return the seed of direction `k` of a step; k = 2^64 − 1 gives the step's rounding seed."""
    packed = b"".join(number.to_bytes(8, "little") for number in (run_seed, step, k))
    return struct.unpack("<Q", hashlib.blake2b(packed, digest_size=8).digest())[0]


# --- rounding --------------------------------------------------------------------------------------------------------


def bits_of(value: np.float32) -> int:
    """Return the 32-bit pattern of a float32."""
    return struct.unpack("<I", np.float32(value).tobytes())[0]


def float_of(pattern: int) -> np.float32:
    """Return the float32 of a 32-bit pattern."""
    return np.frombuffer(struct.pack("<I", pattern), "<f4")[0]


def nearest(value: np.float32, dtype: str) -> int:
    """Return the pattern of `value` in a dtype, rounded to nearest, ties to even; overflow gives infinity."""
    pattern = bits_of(value)
    if dtype == "float32":
        return pattern
    if dtype == "float16":
        with np.errstate(over="ignore"):
            return int(np.float16(value).view(np.uint16))
    if np.isnan(value):
        return 0x7FC0
    upper, lower = pattern // 2**16, pattern % 2**16
    return upper + (lower > 0x8000 or (lower == 0x8000 and upper % 2 == 1))


def rounding_bits(seed: int, stream: int, indices: Iterable[int]) -> list[int]:
    """Return 16 bits for the rounding of each element, 0 ≤ bits < 2^16.

    Each run of 1,024 elements has 512 words: its first 512 elements have their lower halves, the others the upper.
    """
    indices = list(indices)
    drawn = words(seed, stream, [i // 1024 * 512 + i % 512 for i in indices], ROUNDING)
    return [word // 2**16 if i % 1024 >= 512 else word % 2**16 for i, word in zip(indices, drawn, strict=True)]


def stochastic_bf16(acc: np.float32, bits: int) -> int:
    """Return the bfloat16 pattern of `acc` rounded with 16 random bits, 0 ≤ bits < 2^16.

    The pattern of `acc` plus the bits, cut to its upper half. What is not finite is rounded plainly, and what is
    finite stays finite.
    """
    if not np.isfinite(acc):
        return nearest(acc, "bfloat16")
    upper = (bits_of(acc) + bits) // 2**16
    return upper - 1 if upper % 2**15 == 0x7F80 else upper


def stochastic_fp16(acc: np.float32, bits: int) -> int:
    """Return the float16 pattern of `acc` rounded with 16 random bits, 0 ≤ bits < 2^16.

    From 2^-14 on, where float16 has 13 bits less than float32: the pattern plus the low 13 bits, cut. Below, where
    float16 is a grid of 2^-24: floor(acc · 2^24 + u) · 2^-24 with u = (bits + ½) · 2^-16, summed exactly.
    What is not finite is rounded plainly, and what is finite stays finite.
    """
    if not np.isfinite(acc):
        return nearest(acc, "float16")
    exact = Fraction(float(acc))
    if abs(exact) < Fraction(1, 2**14):
        cut = math.floor(exact * 2**24 + Fraction(2 * bits + 1, 2**17)) / 2**24
    else:
        cut = float(float_of((bits_of(acc) + bits % 2**13) // 2**13 * 2**13))
    return int(np.float16(min(max(cut, -65504.0), 65504.0)).view(np.uint16))


# --- weights ---------------------------------------------------------------------------------------------------------


def accumulate(
    theta: NDArray[np.float32],
    stream: int,
    terms: Terms,
    indices: Sequence[int] | None = None,
    distribution: str | Sequence[str] = "normal",
) -> NDArray[np.float32]:
    """Return θ + Σ coefficient · z in float32: each product is rounded, then each sum, in the order of the terms.

    Args:
        theta: the weights, any shape; flattened in row-major order. Terms with a rank move it where it is a matrix.
        indices: the flat indices that `theta` stands for, where it is a sample of a larger tensor; else all. Not with
            terms that have a rank.
        distribution: of the entries of all terms, or one for each term in their order.
    """
    shape = np.shape(theta)
    acc = np.array(theta, np.float32).reshape(-1)
    indices = range(acc.size) if indices is None else indices
    of_each = [distribution] * len(terms) if isinstance(distribution, str) else distribution
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        for (seed, coefficient, *rank), name in zip(terms, of_each, strict=True):
            if not any(rank):
                direction = entries(seed, stream, indices, distribution=name)
            elif len(shape) == 2:
                direction = low_rank(seed, stream, shape, *rank, distribution=name).reshape(-1)
            else:
                continue
            for place, z in enumerate(direction):
                acc[place] = acc[place] + np.float32(coefficient) * z
    return acc


def perturbed(
    theta: NDArray[np.float32],
    dtype: str,
    stream: int,
    terms: Terms,
    indices: Sequence[int] | None = None,
    distribution: str | Sequence[str] = "normal",
) -> NDArray[np.unsignedinteger]:
    """Return the patterns of the perturbed weights, flat: `accumulate`, then rounded to nearest even."""
    patterns = [nearest(value, dtype) for value in accumulate(theta, stream, terms, indices, distribution)]
    return np.array(patterns, np.uint32 if dtype == "float32" else np.uint16)


def updated(
    theta: NDArray[np.float32],
    dtype: str,
    ndim: int,
    stream: int,
    decay: float,
    terms: Terms,
    rounding_seed: int,
    indices: Sequence[int] | None = None,
    distribution: str | Sequence[str] = "normal",
) -> NDArray[np.unsignedinteger]:
    """Return the patterns of the updated weights, flat: `accumulate`, decay, one stochastic rounding.

    Args:
        ndim: dimensions of the whole tensor; there is no decay below two.
        decay: share of the old weight that is taken away.
    """
    acc = accumulate(theta, stream, terms, indices, distribution)
    if decay != 0 and ndim >= 2:
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            for place, old in enumerate(np.array(theta, np.float32).reshape(-1)):
                acc[place] = acc[place] - np.float32(decay) * old
    if dtype == "float32":
        return acc.view(np.uint32)
    random = rounding_bits(rounding_seed, stream, range(acc.size) if indices is None else indices)
    rounded = stochastic_bf16 if dtype == "bfloat16" else stochastic_fp16
    return np.array([rounded(value, bits) for value, bits in zip(acc, random, strict=True)], np.uint16)


# --- MeZO ------------------------------------------------------------------------------------------------------------

Weights = dict[str, NDArray[np.float64]]


def direction(theta: Weights, seed: int) -> Weights:
    """Return z for all tensors, in float64 (the values are those of float32)."""
    numbers = streams(theta)
    return {
        name: normal(seed, numbers[name], range(weight.size)).astype(np.float64).reshape(weight.shape)
        for name, weight in theta.items()
    }


def mezo_step(
    theta: Weights,
    loss: Callable[[Weights], float],
    *,
    seeds: Sequence[int],
    eps: float,
    lr: float,
    weight_decay: float = 0.0,
) -> tuple[Weights, list[float]]:
    """Return the weights after one MeZO step, and the projected gradients g_k, all in float64.

    g_k = (L(θ + εz_k) − L(θ − εz_k)) / 2ε and θ ← θ − lr · (mean_k g_k z_k + wd · θ).

    ε is rounded to float32 before anything else, as the coefficients of terms are. The step's own coefficient
    −lr · g_k / K is not: an engine that stores it as float32 may differ from this by 2^-24 of it (half a unit in the
    last of 24 bits), and by as much again for lr · wd. So, with exact scores, |θ' − ours| is at most
    2^-24 · (Σ_k |lr · g_k / K · z_k| + |lr · wd · θ|), plus one float32 rounding for each operation on a weight.

    Args:
        theta: canonical name → weights; not changed.
        loss: to be minimised: minus the score.
        seeds: of the K directions.
        weight_decay: wd, only for tensors with two or more dimensions.
    """
    eps = float(np.float32(eps))
    slopes = []
    step = {name: np.zeros_like(weight) for name, weight in theta.items()}
    for seed in seeds:
        z = direction(theta, seed)
        above = loss({name: weight + eps * z[name] for name, weight in theta.items()})
        below = loss({name: weight - eps * z[name] for name, weight in theta.items()})
        slopes.append((above - below) / (2 * eps))
        for name in theta:
            step[name] += slopes[-1] * z[name] / len(seeds)
    for name, weight in theta.items():
        if weight.ndim >= 2:
            step[name] += weight_decay * weight
    return {name: weight - lr * step[name] for name, weight in theta.items()}, slopes
