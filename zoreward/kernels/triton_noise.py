"""The numbers of `zoreward.noise` inside Triton kernels: words, entries, low-rank directions, roundings.

Every product and every sum is an operation of its own: the kernels are compiled with `enable_fp_fusion=False`, and
bfloat16 is taken apart and put together as bits, which mean the same everywhere. `NATIVE` is whether the hardware's own
population count and conversion may be used: they give the same bits, but Triton's interpreter does not know the one and
rounds the other differently.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import libdevice

from zoreward.noise import DISTRIBUTIONS, Purpose
from zoreward.noise import definition as noise

DIRECTION = tl.constexpr(int(Purpose.DIRECTION))
FACTOR_A = tl.constexpr(int(Purpose.FACTOR_A))
ROUNDING = tl.constexpr(int(Purpose.ROUNDING))
_SHARING = tl.constexpr(noise.SHARING)
_MULTIPLIER_0 = tl.constexpr(noise.MULTIPLIER_0)
_MULTIPLIER_1 = tl.constexpr(noise.MULTIPLIER_1)
_WEYL_0 = tl.constexpr(noise.WEYL_0)
_WEYL_1 = tl.constexpr(noise.WEYL_1)
_INV_SQRT_8 = tl.constexpr(float(noise.INV_SQRT_8))
_SQRT_HALF = tl.constexpr(noise.SQRT_HALF)
_LN_2_HIGH = tl.constexpr(float(noise.LN_2_HIGH))
_LN_2_LOW = tl.constexpr(float(noise.LN_2_LOW))
_LN_0, _LN_1, _LN_2, _LN_3, _LN_4, _LN_5, _LN_6 = (tl.constexpr(float(one)) for one in noise.LN)
_SINE_0, _SINE_1, _SINE_2, _SINE_3, _SINE_4 = (tl.constexpr(float(one)) for one in noise.SINE)
_COSINE_0, _COSINE_1, _COSINE_2, _COSINE_3, _COSINE_4 = (tl.constexpr(float(one)) for one in noise.COSINE)
_GAUSSIAN = tl.constexpr(DISTRIBUTIONS.index("gaussian"))
_RADEMACHER = tl.constexpr(DISTRIBUTIONS.index("rademacher"))
_LARGEST = tl.constexpr((2 - 2.0**-23) * 2.0**127)  # finite float32: 0x7F7FFFFF


@triton.jit
def _philox(seed, stream, start, purpose, BLOCK: tl.constexpr):
    """Philox 4x32-10 of the blocks that hold the elements `start` … `start + BLOCK − 1`: four words each, uint32.

    `start` is a multiple of BLOCK, a power of 2 up to 2^32: counter word 1 is the same for all.
    """
    first = start // 4
    x0 = first.to(tl.uint32) + tl.arange(0, BLOCK // 4).to(tl.uint32)
    x1 = (first >> 32).to(tl.uint32)
    x2 = stream.to(tl.uint32)
    x3 = purpose.to(tl.uint32)
    k0, k1 = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        p0 = x0.to(tl.uint64) * _MULTIPLIER_0
        p1 = x2.to(tl.uint64) * _MULTIPLIER_1
        x0 = (p1 >> 32).to(tl.uint32) ^ x1 ^ k0
        x2 = (p0 >> 32).to(tl.uint32) ^ x3 ^ k1
        x1, x3 = p1.to(tl.uint32), p0.to(tl.uint32)
        k0 += _WEYL_0
        k1 += _WEYL_1
    return x0, x1, x2, x3


@triton.jit
def _in_turn(x0, x1, x2, x3, BLOCK: tl.constexpr):
    """A block's four words side by side: (BLOCK / 4, 4)."""
    return tl.reshape(tl.join(tl.join(x0, x2), tl.join(x1, x3)), (BLOCK // 4, 4))


@triton.jit
def lanes(BLOCK: tl.constexpr):
    """0 … BLOCK − 1 in the shape in which all is computed, (BLOCK / 4, 4): a thread holds whole blocks of Philox."""
    return tl.arange(0, BLOCK // 4)[:, None] * 4 + tl.arange(0, 4)[None, :]


@triton.jit
def _ones(word, NATIVE: tl.constexpr):
    """How many bits are set: int32."""
    if NATIVE:
        ones = libdevice.popc(word.to(tl.int32, bitcast=True))
    else:
        word = word - ((word >> 1) & 0x55555555)
        word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
        word = (word + (word >> 4)) & 0x0F0F0F0F
        ones = ((word * 0x01010101) >> 24).to(tl.int32)
    return ones


@triton.jit
def _box_muller(word, turn):
    """`noise.box_muller`."""
    pattern = ((word >> 8) + 1).to(tl.float32).to(tl.int32, bitcast=True)
    e = (pattern - _SQRT_HALF) >> 23
    f = (pattern - (e << 23)).to(tl.float32, bitcast=True) - 1.0
    square = f * f
    p = ((((((_LN_6 * f + _LN_5) * f + _LN_4) * f + _LN_3) * f + _LN_2) * f + _LN_1) * f) + _LN_0
    power = (e - 24).to(tl.float32)
    ln = (f - square * 0.5) + (square * f) * p
    radius = tl.sqrt_rn(((ln + power * _LN_2_LOW) + power * _LN_2_HIGH) * -2.0)
    g = ((turn >> 8 & 0x3FFFFF).to(tl.float32) - 2097152.0) * 2.384185791015625e-07  # 2^21, 2^-22
    square = g * g
    sine = ((((_SINE_4 * square + _SINE_3) * square + _SINE_2) * square + _SINE_1) * square + _SINE_0) * g
    cosine = (((_COSINE_4 * square + _COSINE_3) * square + _COSINE_2) * square + _COSINE_1) * square + _COSINE_0
    odd, sign = (turn >> 30 & 1) == 1, tl.where(turn >> 31 == 1, -1.0, 1.0)
    # Products with −1, because 0 − x, which some compilers make of −x, has another zero.
    return radius * (tl.where(odd, sine * -1.0, cosine) * sign), radius * (tl.where(odd, cosine, sine) * sign)


@triton.jit
def entries(
    seed, stream, start, purpose, DISTRIBUTION: tl.constexpr, BLOCK: tl.constexpr, NATIVE: tl.constexpr
):  # fmt: skip
    """`noise.entries` of BLOCK elements from `start` on, float32. DISTRIBUTION: its place in `DISTRIBUTIONS`."""
    x0, x1, x2, x3 = _philox(seed, stream, start, purpose, BLOCK)
    if DISTRIBUTION == _GAUSSIAN:
        z0, z1 = _box_muller(x0, x1)
        z2, z3 = _box_muller(x2, x3)
        z = _in_turn(z0, z1, z2, z3, BLOCK)
    elif DISTRIBUTION == _RADEMACHER:
        # The highest bit is the sign of a float32 whose other bits are those of 1.
        signs = (_in_turn(x0, x1, x2, x3, BLOCK) & 0x80000000) | 0x3F800000
        z = signs.to(tl.float32, bitcast=True)
    else:
        ones = _ones(_in_turn(x0, x1, x2, x3, BLOCK), NATIVE)
        # As bits a count n is n · 2^-149: scaled by powers of 2 all is exact, and no integer is converted.
        z = tl.fma(ones.to(tl.float32, bitcast=True), 2.0**126, -16 * 2.0**-23) * (_INV_SQRT_8 * 2.0**23)
    return z


@triton.jit
def rounding_bits(seed, stream, start, BLOCK: tl.constexpr):
    """`noise.rounding_bits` of BLOCK elements, a multiple of 2 · SHARING, from `start` on: uint32.

    With 4 warps a thread holds both elements of a word: nothing goes from one thread to another.
    """
    x0, x1, x2, x3 = _philox(seed, stream, start // 2, tl.full((), ROUNDING, tl.uint32), BLOCK // 2)
    words = tl.reshape(_in_turn(x0, x1, x2, x3, BLOCK // 2), (BLOCK // (2 * _SHARING), _SHARING // 4, 4))
    return tl.reshape(tl.permute(tl.join(words & 0xFFFF, words >> 16), (0, 3, 1, 2)), (BLOCK // 4, 4))


@triton.jit
def low_rank(
    a, b, rank, scale, lines, places, left,
    LOW_RANK: tl.constexpr, QUADS: tl.constexpr, TAIL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`noise.LowRank` of BLOCK elements, `left` of which are there, from the factors; `scale` is 1/√r.

    `lines` and `places`: of each element in its matrix, or with QUADS of each four, the places in fours too.
    LOW_RANK: 1 where the rank is 1.
    """
    if QUADS:
        places = places * 4 + tl.arange(0, 4)[None, :]
        beside = tl.arange(0, BLOCK // 4)[:, None] * 4
    else:
        beside = lanes(BLOCK)
    a_mask = beside < left if TAIL else None
    b_mask = lanes(BLOCK) < left if TAIL else None
    if LOW_RANK == 1:  # 1/√1 changes nothing
        z = tl.load(a + lines, mask=a_mask) * tl.load(b + places, mask=b_mask)
    else:
        z = tl.load(a + lines * rank, mask=a_mask) * tl.load(b + places * rank, mask=b_mask)
        for k in range(1, rank):
            z += tl.load(a + (lines * rank + k), mask=a_mask) * tl.load(b + (places * rank + k), mask=b_mask)
        z = z * scale
    return z


@triton.jit
def as_float(stored, BF16: tl.constexpr, NATIVE: tl.constexpr):
    """Weights as the float32 in which sums are taken. bfloat16 is stored as its bits."""
    if not BF16:
        value = stored.to(tl.float32)
    elif NATIVE:
        value = stored.to(tl.bfloat16, bitcast=True).to(tl.float32)
    else:
        value = (stored.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return value


@triton.jit
def to_nearest(acc, dtype: tl.constexpr, BF16: tl.constexpr, NATIVE: tl.constexpr):
    """Float32 as weights are stored, rounded to nearest even."""
    if not BF16:
        stored = acc.to(dtype)
    elif NATIVE:
        stored = acc.to(tl.bfloat16).to(tl.uint16, bitcast=True)
    else:
        pattern = acc.to(tl.uint32, bitcast=True)
        even = (pattern + 0x7FFF + ((pattern >> 16) & 1)) >> 16
        stored = tl.where(acc == acc, even, (pattern >> 16) | 0x0040).to(tl.uint16)
    return stored


@triton.jit
def round_bf16(acc, bits):
    """`noise.round_bf16`; returns float32 whose upper half is what bfloat16 holds. The lower half is to be dropped.

    On the magnitude: what is finite ends at the largest, what is not stays, because size · 0 is NaN then, the largest
    of all patterns. A NaN has one payload here, that of arithmetic, or one whose lower half is empty, a weight's.
    """
    size = tl.abs(acc)
    limit = tl.fma(size, 0.0, _LARGEST).to(tl.uint32, bitcast=True)
    pattern = size.to(tl.uint32, bitcast=True)
    moved = tl.minimum(pattern + bits, limit)
    return (acc.to(tl.uint32, bitcast=True) + (moved - pattern)).to(tl.float32, bitcast=True)


@triton.jit
def round_fp16(acc, bits):
    """`noise.round_fp16`; returns float32 that float16 holds exactly."""
    moved = ((acc.to(tl.uint32, bitcast=True) + (bits & 0x1FFF)) & 0xFFFFE000).to(tl.float32, bitcast=True)
    u = (bits.to(tl.float64) + 0.5) * 1.52587890625e-05  # 2^-16
    small = tl.floor(acc.to(tl.float64) * 16777216.0 + u) * 5.9604644775390625e-08
    value = tl.where(tl.abs(acc) < 6.103515625e-05, small.to(tl.float32), moved)  # 2^-14
    clamped = tl.minimum(tl.maximum(value, -65504.0), 65504.0)
    return tl.where(tl.abs(acc) < float("inf"), clamped, acc)


@triton.jit
def exactly(value, dtype: tl.constexpr, BF16: tl.constexpr):
    """What `rounded` returns, as it is stored."""
    stored = (value.to(tl.uint32, bitcast=True) >> 16).to(tl.uint16) if BF16 else value.to(dtype)
    return stored


@triton.jit
def held(value, BF16: tl.constexpr):
    """What `rounded` returns, as float32."""
    return (value.to(tl.uint32, bitcast=True) & 0xFFFF0000).to(tl.float32, bitcast=True) if BF16 else value


@triton.jit
def rounded(acc, seed, stream, start, dtype: tl.constexpr, BF16: tl.constexpr, BLOCK: tl.constexpr):
    """An update's sum as the weights' type holds it, rounded stochastically in half precision; see `held`."""
    if BF16:
        acc = round_bf16(acc, rounding_bits(seed, stream, start, BLOCK))
    elif dtype == tl.float16:
        acc = round_fp16(acc, rounding_bits(seed, stream, start, BLOCK))
    return acc
