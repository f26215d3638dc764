"""The Triton kernels: perturbed copies, updates and factors of many tensors in one launch.

A table on the device says what the tensors are, a script what is to be done to them, so that other seeds, coefficients
or members compile nothing and fill no queue of launches. A program works through UNIT elements of one tensor, a block
of BLOCK at a time; the list of units says which tensor. What all its blocks share is loaded and computed once.

Where all tensors of a launch consist of whole blocks (WHOLE), no code is compiled for what is left behind them: an
update takes 40 registers then in place of 76, and 0.88 of the time on an H100.

| field | of a line of the table | of a line of the script |
|---|---|---|
| 0 | where it begins, in elements from `like` | seed, or that of the rounding |
| 1 | elements | float32 pattern of the coefficient, or decay; of 1/√r, or anchor, in the upper half |
| 2 | stream | rank |
| 3 | the tensor's first unit | where the term's factors begin |
| 4 | where its copies begin, in elements | |
| 5 | rows, rounded up to 4, where it is a matrix | |
| 6 | columns, where it is a matrix, else 0 | |
| 7 | where its factors begin, for rank 1: a multiple of 4 | |
| 8 | the kinds that move it | |

A script is, for each member or update, one line (rounding seed, decay and anchor, number of terms, kind) and one for
each term. The kind is the sum of 1 for dense terms, 2 for low-rank terms, 4 for a decay, 8 for an anchor: what it
moves.
"""

from __future__ import annotations

import triton
import triton.language as tl

from zoreward.kernels.triton_noise import (
    DIRECTION,
    FACTOR_A,
    as_float,
    entries,
    exactly,
    held,
    lanes,
    low_rank,
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
def _unit_of(table, units, UNIT: tl.constexpr):
    """The line of this program's tensor, and its first element."""
    unit = tl.program_id(0)
    row = table + tl.load(units + unit) * FIELDS
    return row, (unit - tl.load(row + 3)).to(tl.int64) * UNIT


@triton.jit
def _spots(row, start, LOW_RANK: tl.constexpr, QUADS: tl.constexpr, BLOCK: tl.constexpr):
    """Where a block's elements lie in their matrix: lines, places there, and columns; see `low_rank` for QUADS."""
    lines, places, columns = tl.full((1, 1), 0, tl.int32), tl.full((1, 1), 0, tl.int32), 1
    if LOW_RANK > 0:
        width: tl.constexpr = 4 if QUADS else 1
        columns = tl.maximum(tl.load(row + 6) // width, 1).to(tl.int32)
        line = (start // width) // columns
        spots = tl.arange(0, BLOCK // 4)[:, None] if QUADS else lanes(BLOCK)
        spots = (start // width - line * columns).to(tl.int32) + spots
        lines = spots // columns
        places = spots - lines * columns
        lines += line.to(tl.int32)
    return lines, places, columns


@triton.jit
def _next_spots(lines, places, columns, LOW_RANK: tl.constexpr, QUADS: tl.constexpr, BLOCK: tl.constexpr):
    """The lines and places of the next block, without a division for each."""
    if LOW_RANK > 0:
        step: tl.constexpr = BLOCK // 4 if QUADS else BLOCK
        whole = step // columns
        places += step - whole * columns
        over = (places >= columns).to(tl.int32)
        places -= over * columns
        lines += whole + over
    return lines, places


@triton.jit
def _dense(seed, stream, start, DISTRIBUTION: tl.constexpr, BLOCK: tl.constexpr, NATIVE: tl.constexpr):
    return entries(seed, stream, start, tl.full((), DIRECTION, tl.uint32), DISTRIBUTION, BLOCK, NATIVE)


@triton.jit
def _factors_of(term, row, factors):
    """Where a and b of a term begin, rank, 1/√r and coefficient."""
    rank, scales = tl.load(term + 2), tl.load(term + 1)
    a = factors + tl.multiple_of(tl.load(term + 3), 4) + tl.multiple_of(tl.load(row + 7), 4) * rank
    b = a + tl.multiple_of(tl.load(row + 5), 4) * rank
    return a, b, rank.to(tl.int32), _upper_float(scales), _lower_float(scales)


@triton.jit
def _add_terms(
    acc, script, row, start, left, factors, lines, places,
    LOW_RANK: tl.constexpr, QUADS: tl.constexpr, TAIL: tl.constexpr, DISTRIBUTION: tl.constexpr,
    BLOCK: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
    """`acc` + Σ coefficient · z of the terms of one member or update."""
    columns = tl.load(row + 6)
    for t in range(1, tl.load(script + 2).to(tl.int32) + 1):
        term = script + t * LINE
        rank = tl.load(term + 2)
        if rank == 0:
            z = _dense(tl.load(term), tl.load(row + 2), start, DISTRIBUTION, BLOCK, NATIVE)
            acc = acc + z * _lower_float(tl.load(term + 1))
        if LOW_RANK > 0:  # noqa: SIM102 (decided when it is compiled)
            if (rank > 0) & (columns > 0):
                a, b, r, scale, coefficient = _factors_of(term, row, factors)
                z = low_rank(a, b, r, scale, lines, places, left, LOW_RANK, QUADS, TAIL, BLOCK)
                acc = acc + z * coefficient
    return acc


@triton.jit
def _perturb_block(
    row, start, left, script, members, source, target, apart, factors, lines, places, seed, stream, first, last,
    BF16: tl.constexpr, TAIL: tl.constexpr, ALIKE: tl.constexpr, ONE: tl.constexpr, LOW_RANK: tl.constexpr,
    QUADS: tl.constexpr, DISTRIBUTION: tl.constexpr, BLOCK: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
    lane = lanes(BLOCK)
    mask = lane < left if TAIL else None
    base = as_float(tl.load(source + lane, mask=mask), BF16, NATIVE)
    dtype: tl.constexpr = target.dtype.element_ty
    if ONE:
        z = _dense(seed, stream, start, DISTRIBUTION, BLOCK, NATIVE)
        tl.store(target + lane, to_nearest(base + z * first, dtype, BF16, NATIVE), mask=mask)
        if ALIKE == 2:
            tl.store(target + apart + lane, to_nearest(base + z * last, dtype, BF16, NATIVE), mask=mask)
    elif ALIKE > 0:
        for _ in range(members // ALIKE):
            z = _dense(tl.load(script + LINE), stream, start, DISTRIBUTION, BLOCK, NATIVE)
            for n in tl.static_range(ALIKE):
                acc = base + z * _lower_float(tl.load(script + (2 * n + 1) * LINE + 1))
                tl.store(target + n * apart + lane, to_nearest(acc, dtype, BF16, NATIVE), mask=mask)
            target += ALIKE * apart
            script += ALIKE * 2 * LINE
    else:
        for _ in range(members):
            acc = _add_terms(
                base, script, row, start, left, factors, lines, places, LOW_RANK, QUADS, TAIL, DISTRIBUTION, BLOCK,
                NATIVE,
            )  # fmt: skip
            tl.store(target + lane, to_nearest(acc, dtype, BF16, NATIVE), mask=mask)
            target += apart
            script += (tl.load(script + 2) + 1) * LINE


@triton.jit(do_not_specialize=["members"])
def perturb(
    table, units, script, members, like, out, apart, factors, BF16: tl.constexpr, WHOLE: tl.constexpr,
    ALIKE: tl.constexpr, ONE: tl.constexpr, LOW_RANK: tl.constexpr, QUADS: tl.constexpr, DISTRIBUTION: tl.constexpr,
    BLOCK: tl.constexpr, UNIT: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
    """Write the copies of all tensors at each member: those of the first to `out`, the next `apart` elements on.

    `like`: the tensor from which the table counts. ALIKE: how many neighbours share a direction, where each member is
    one dense term, or 0. ONE: there is one direction. DISTRIBUTION: that of all dense terms.
    """
    row, start = _unit_of(table, units, UNIT)
    left = tl.minimum(tl.load(row + 1) - start, UNIT).to(tl.int32)
    stream = tl.load(row + 2)
    source = like + tl.multiple_of(tl.load(row), 4) + start
    target = out + tl.multiple_of(tl.load(row + 4), 16) + start
    # Loaded before anything is written: behind that, each block would load them again.
    seed = tl.load(script + LINE) if ONE else stream
    first = _lower_float(tl.load(script + LINE + 1)) if ONE else 0.0
    last = _lower_float(tl.load(script + 3 * LINE + 1)) if ONE and ALIKE == 2 else 0.0
    lines, places, columns = _spots(row, start, LOW_RANK, QUADS, BLOCK)
    whole = left // BLOCK
    for n in range(whole):
        _perturb_block(
            row, start + n * BLOCK, left, script, members, source + n * BLOCK, target + n * BLOCK, apart, factors,
            lines, places, seed, stream, first, last, BF16, False, ALIKE, ONE, LOW_RANK, QUADS, DISTRIBUTION, BLOCK,
            NATIVE,
        )  # fmt: skip
        lines, places = _next_spots(lines, places, columns, LOW_RANK, QUADS, BLOCK)
    if not WHOLE:  # noqa: SIM102 (decided when it is compiled)
        if left % BLOCK != 0:
            n = whole
            _perturb_block(
                row, start + n * BLOCK, left - n * BLOCK, script, members, source + n * BLOCK, target + n * BLOCK,
                apart, factors, lines, places, seed, stream, first, last, BF16, True, ALIKE, ONE, LOW_RANK, QUADS,
                DISTRIBUTION, BLOCK, NATIVE,
            )  # fmt: skip


@triton.jit
def _update_block(
    stored, row, start, left, script, updates, weights, bases, factors, lines, places, seed, stream, rounding,
    coefficient, a, b, rank, scale, BF16: tl.constexpr, TAIL: tl.constexpr, ONE: tl.constexpr,
    LOW_RANK: tl.constexpr, QUADS: tl.constexpr, DISTRIBUTION: tl.constexpr, BLOCK: tl.constexpr,
    NATIVE: tl.constexpr,
):  # fmt: skip
    lane = lanes(BLOCK)
    mask = lane < left if TAIL else None
    dtype: tl.constexpr = weights.dtype.element_ty
    value = as_float(tl.load(weights + lane, mask=mask) if TAIL else stored, BF16, NATIVE)
    if ONE:
        if LOW_RANK > 0:
            z = low_rank(a, b, rank, scale, lines, places, left, LOW_RANK, QUADS, TAIL, BLOCK)
        else:
            z = _dense(seed, stream, start, DISTRIBUTION, BLOCK, NATIVE)
        value = rounded(value + z * coefficient, rounding, stream, start, dtype, BF16, BLOCK)
    else:
        kinds = tl.load(row + 8)
        for _ in range(updates):
            kind = tl.load(script + 3) & kinds
            if kind != 0:
                acc = _add_terms(
                    value, script, row, start, left, factors, lines, places, LOW_RANK, QUADS, TAIL, DISTRIBUTION,
                    BLOCK, NATIVE,
                )  # fmt: skip
                if kind & 4 != 0:
                    acc = acc - value * _lower_float(tl.load(script + 1))
                if kind & 8 != 0:
                    base = as_float(tl.load(bases + lane, mask=mask), BF16, NATIVE)
                    acc = acc - (value - base) * _upper_float(tl.load(script + 1))
                value = held(rounded(acc, tl.load(script), stream, start, dtype, BF16, BLOCK), BF16)
            script += (tl.load(script + 2) + 1) * LINE
    result = exactly(value, dtype, BF16)
    if ONE and LOW_RANK > 0 and not TAIL and (BF16 or dtype == tl.float16):
        # Rounding leaves most weights what they were. Where it moves 3 % of them, to write only the fours of which one
        # moved takes 0.84 of the time on an H100. A dense update has more to compute, and gains nothing.
        moved = result.to(tl.uint16, bitcast=True) != stored.to(tl.uint16, bitcast=True)
        tl.store(weights + lane, result, mask=tl.max(moved.to(tl.int32), 1, keep_dims=True) != 0)
    else:
        tl.store(weights + lane, result, mask=mask)


@triton.jit(do_not_specialize=["updates", "kind"])
def update(
    table, units, script, updates, kind, like, base, factors, BF16: tl.constexpr, WHOLE: tl.constexpr,
    ONE: tl.constexpr, LOW_RANK: tl.constexpr, QUADS: tl.constexpr, DISTRIBUTION: tl.constexpr, BLOCK: tl.constexpr,
    UNIT: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
    """Do updates to all tensors in place, one after the other.

    `like`: the tensor from which the table counts. `kind`: all kinds of the updates; what none of them moves is not
    written. `base`: copies of the tensors, towards which an anchor pulls; lie as those of `perturb` do. ONE: there is
    one update, of one term alone.
    """
    row, start = _unit_of(table, units, UNIT)
    if (tl.load(row + 8) & kind) == 0:
        return
    left = tl.minimum(tl.load(row + 1) - start, UNIT).to(tl.int32)
    stream = tl.load(row + 2)
    weights = like + tl.multiple_of(tl.load(row), 4) + start
    bases = base + tl.multiple_of(tl.load(row + 4), 16) + start
    seed, rounding, coefficient = stream, stream, 0.0
    a, b, rank, scale = factors, factors, 1, 1.0
    if ONE:  # loaded before anything is written: behind that, each block would load them again
        rounding = tl.load(script)
        if LOW_RANK > 0:
            a, b, rank, scale, coefficient = _factors_of(script + LINE, row, factors)
        else:
            seed, coefficient = tl.load(script + LINE), _lower_float(tl.load(script + LINE + 1))
    lines, places, columns = _spots(row, start, LOW_RANK, QUADS, BLOCK)
    whole = left // BLOCK
    stored = tl.load(weights + lanes(BLOCK), mask=lanes(BLOCK) < whole * BLOCK)
    for n in range(whole):
        # Read a block ahead, while this one is at work: 0.779 of a copy's speed on an H100, 0.765 without.
        ahead = tl.load(weights + (n + 1) * BLOCK + lanes(BLOCK), mask=lanes(BLOCK) < (whole - n - 1) * BLOCK)
        _update_block(
            stored, row, start + n * BLOCK, left, script, updates, weights + n * BLOCK, bases + n * BLOCK, factors,
            lines, places, seed, stream, rounding, coefficient, a, b, rank, scale, BF16, False, ONE, LOW_RANK, QUADS,
            DISTRIBUTION, BLOCK, NATIVE,
        )  # fmt: skip
        stored = ahead
        lines, places = _next_spots(lines, places, columns, LOW_RANK, QUADS, BLOCK)
    if not WHOLE:  # noqa: SIM102 (decided when it is compiled)
        if left % BLOCK != 0:
            n = whole
            _update_block(
                stored, row, start + n * BLOCK, left - n * BLOCK, script, updates, weights + n * BLOCK,
                bases + n * BLOCK, factors, lines, places, seed, stream, rounding, coefficient, a, b, rank, scale,
                BF16, True, ONE, LOW_RANK, QUADS, DISTRIBUTION, BLOCK, NATIVE,
            )  # fmt: skip


@triton.jit
def factor_entries(
    table, units, script, out, DISTRIBUTION: tl.constexpr, BLOCK: tl.constexpr, UNIT: tl.constexpr, NATIVE: tl.constexpr
):  # fmt: skip
    """Write `noise.entries` of all lines of a table, for each line of the script (a term; `out` + its field 3).

    Here field 4 of the table is where the numbers go, field 5 the purpose: FACTOR_A, which takes the seed in field 0 of
    the script, or FACTOR_B, which takes that in field 1.
    """
    row, start = _unit_of(table, units, UNIT)
    term = script + tl.program_id(1) * LINE
    purpose, stream, count = tl.load(row + 5), tl.load(row + 2), tl.load(row + 1)
    seed = tl.load(term + purpose - FACTOR_A)
    places = out + tl.load(term + 3) + tl.load(row + 4)
    for n in range(tl.minimum(tl.cdiv(count - start, BLOCK), UNIT // BLOCK).to(tl.int32)):
        begin = start + n * BLOCK
        z = entries(seed, stream, begin, purpose, DISTRIBUTION, BLOCK, NATIVE)
        tl.store(places + begin + lanes(BLOCK), z, mask=lanes(BLOCK) < count - begin)
