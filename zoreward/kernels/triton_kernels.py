"""The Triton kernels: perturbed copies, updates and factors of many tensors in one launch.

A table on the device says what the tensors are, a script what is to be done to them, so that other seeds, coefficients
or members compile nothing and fill no queue of launches. Programs work on BLOCK elements each; a unit is PARTS blocks
of one tensor, and the list of units says which.

| field | of a line of the table | of a line of the script |
|---|---|---|
| 0 | where it begins, in elements from `like` | seed, or that of the rounding |
| 1 | elements | float32 pattern of the coefficient, or decay; of 1/√r in the upper half |
| 2 | stream | rank |
| 3 | the tensor's first unit | where the term's factors begin |
| 4 | where its copies begin, in elements | |
| 5 | rows, where it is a matrix | |
| 6 | columns, where it is a matrix, else 0 | |
| 7 | where its factors begin, for rank 1 | |
| 8 | the kinds that move it | |

A script is, for each member or update, one line (rounding seed, decay, number of terms, kind) and one for each term.
The kind is the sum of 1 for dense terms, 2 for low-rank terms, 4 for a decay: what it moves.
"""

from __future__ import annotations

import triton
import triton.language as tl

from zoreward.kernels.triton_noise import (
    DIRECTION,
    FACTOR_A,
    as_float,
    exactly,
    lanes,
    low_rank,
    normal,
    rounded,
    to_nearest,
)

FIELDS = tl.constexpr(9)
LINE = tl.constexpr(4)


@triton.jit
def _lower_float(pair):
    return pair.to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def _upper_float(pair):
    return (pair >> 32).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def _block_of(table, units, BLOCK: tl.constexpr, PARTS: tl.constexpr):
    """The line of this program's tensor, and its first element."""
    program = tl.program_id(0)
    unit = program // PARTS
    row = table + tl.load(units + unit) * FIELDS
    return row, (((unit - tl.load(row + 3)) * PARTS + program % PARTS) * BLOCK).to(tl.int64)


@triton.jit
def _dense(seed, row, start, BLOCK: tl.constexpr, NATIVE: tl.constexpr):
    return normal(seed, tl.load(row + 2), start, tl.full((), DIRECTION, tl.uint32), BLOCK, NATIVE)


@triton.jit
def _from_factors(term, row, start, factors, mask, ALIGNED: tl.constexpr, BLOCK: tl.constexpr):
    rank, scale = tl.load(term + 2), _upper_float(tl.load(term + 1))
    a = factors + tl.load(term + 3) + tl.load(row + 7) * rank
    b = a + tl.load(row + 5) * rank
    return low_rank(a, b, rank.to(tl.int32), scale, start, tl.load(row + 6), mask, ALIGNED, BLOCK)


@triton.jit
def _add_terms(
    acc, script, row, start, factors, mask,
    LOW_RANK: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
    """`acc` + Σ coefficient · z of the terms of one member or update."""
    columns = tl.load(row + 6)
    for t in range(1, tl.load(script + 2).to(tl.int32) + 1):
        term = script + t * LINE
        scales, rank = tl.load(term + 1), tl.load(term + 2)
        if rank == 0:
            acc = acc + _dense(tl.load(term), row, start, BLOCK, NATIVE) * _lower_float(scales)
        if LOW_RANK:  # noqa: SIM102 (decided when it is compiled)
            if (rank > 0) & (columns > 0):
                acc = acc + _from_factors(term, row, start, factors, mask, ALIGNED, BLOCK) * _lower_float(scales)
    return acc


@triton.jit
def _perturb_block(
    row, start, script, members, like, out, apart, factors, BF16: tl.constexpr, TAIL: tl.constexpr,
    ALIKE: tl.constexpr, LOW_RANK: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
    lane = lanes(BLOCK)
    mask = lane < tl.load(row + 1) - start if TAIL else None
    base = as_float(tl.load(like + tl.multiple_of(tl.load(row), 4) + start + lane, mask=mask), BF16)
    target = tl.multiple_of(tl.load(row + 4), 16) + start
    dtype: tl.constexpr = out.dtype.element_ty
    if ALIKE > 0:
        for _ in range(members // ALIKE):
            z = _dense(tl.load(script + LINE), row, start, BLOCK, NATIVE)
            for n in tl.static_range(ALIKE):
                acc = base + z * _lower_float(tl.load(script + (2 * n + 1) * LINE + 1))
                tl.store(out + target + n * apart + lane, to_nearest(acc, dtype, BF16, NATIVE), mask=mask)
            target += ALIKE * apart
            script += ALIKE * 2 * LINE
    else:
        for _ in range(members):
            acc = _add_terms(base, script, row, start, factors, mask, LOW_RANK, ALIGNED, BLOCK, NATIVE)
            tl.store(out + target + lane, to_nearest(acc, dtype, BF16, NATIVE), mask=mask)
            target += apart
            script += (tl.load(script + 2) + 1) * LINE


@triton.jit(do_not_specialize=["members"])
def perturb(
    table, units, script, members, like, out, apart, factors, BF16: tl.constexpr, ALIKE: tl.constexpr,
    LOW_RANK: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
    """Write the copies of all tensors at each member: those of the first to `out`, the next `apart` elements on.

    `like`: the tensor from which the table counts. ALIKE: how many neighbours share a direction, where each member is
    one dense term, or 0.
    """
    row, start = _block_of(table, units, BLOCK, PARTS)
    count = tl.load(row + 1)
    if start + BLOCK <= count:
        _perturb_block(
            row, start, script, members, like, out, apart, factors,
            BF16, False, ALIKE, LOW_RANK, ALIGNED, BLOCK, NATIVE,
        )  # fmt: skip
    elif start < count:
        _perturb_block(
            row, start, script, members, like, out, apart, factors,
            BF16, True, ALIKE, LOW_RANK, ALIGNED, BLOCK, NATIVE,
        )  # fmt: skip


@triton.jit
def _update_block(
    row, start, script, updates, like, factors, BF16: tl.constexpr, TAIL: tl.constexpr, ONE: tl.constexpr,
    LOW_RANK: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
    lane = lanes(BLOCK)
    mask = lane < tl.load(row + 1) - start if TAIL else None
    places = like + tl.multiple_of(tl.load(row), 4) + start + lane
    dtype: tl.constexpr = like.dtype.element_ty
    stream = tl.load(row + 2)
    value = as_float(tl.load(places, mask=mask), BF16)
    if ONE:
        term = script + LINE
        if LOW_RANK:
            z = _from_factors(term, row, start, factors, mask, ALIGNED, BLOCK)
        else:
            z = _dense(tl.load(term), row, start, BLOCK, NATIVE)
        scales = tl.load(term + 1)
        value = rounded(value + z * _lower_float(scales), tl.load(script), stream, start, dtype, BF16, BLOCK)
    else:
        kinds = tl.load(row + 8)
        for _ in range(updates):
            kind = tl.load(script + 3) & kinds
            if kind != 0:
                acc = _add_terms(value, script, row, start, factors, mask, LOW_RANK, ALIGNED, BLOCK, NATIVE)
                if kind & 4 != 0:
                    acc = acc - value * _lower_float(tl.load(script + 1))
                value = rounded(acc, tl.load(script), stream, start, dtype, BF16, BLOCK)
            script += (tl.load(script + 2) + 1) * LINE
    tl.store(places, exactly(value, dtype, BF16), mask=mask)


@triton.jit(do_not_specialize=["updates", "kind"])
def update(
    table, units, script, updates, kind, like, factors, BF16: tl.constexpr, ONE: tl.constexpr,
    LOW_RANK: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
    """Do updates to all tensors in place, one after the other.

    `like`: the tensor from which the table counts. `kind`: all kinds of the updates; what none of them moves is not
    written. ONE: there is one update, of one term and no decay.
    """
    row, start = _block_of(table, units, BLOCK, PARTS)
    count = tl.load(row + 1)
    if (tl.load(row + 8) & kind) == 0:
        return
    if start + BLOCK <= count:
        _update_block(
            row, start, script, updates, like, factors, BF16, False, ONE, LOW_RANK, ALIGNED, BLOCK, NATIVE
        )  # fmt: skip
    elif start < count:
        _update_block(
            row, start, script, updates, like, factors, BF16, True, ONE, LOW_RANK, ALIGNED, BLOCK, NATIVE
        )  # fmt: skip


@triton.jit
def normals(table, units, script, out, BLOCK: tl.constexpr, PARTS: tl.constexpr, NATIVE: tl.constexpr):
    """Write `noise.normal` of all lines of a table, for each line of the script (a term; `out` + its field 3).

    Here field 4 of the table is where the numbers go, field 5 the purpose: FACTOR_A, which takes the seed in field 0 of
    the script, or FACTOR_B, which takes that in field 1.
    """
    row, start = _block_of(table, units, BLOCK, PARTS)
    term = script + tl.program_id(1) * LINE
    lane = lanes(BLOCK)
    purpose = tl.load(row + 5)
    z = normal(tl.load(term + purpose - FACTOR_A), tl.load(row + 2), start, purpose, BLOCK, NATIVE)
    places = out + tl.load(term + 3) + tl.load(row + 4) + start + lane
    tl.store(places, z, mask=lane < tl.load(row + 1) - start)
