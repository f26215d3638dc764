"""The correction of a linear layer's output for rank-1 members, in one Triton launch: y ← y + (x·b)aᵀ.

As two products it costs two launches, and the inner product is rounded on its way; beside a product of few rows the
launches are what counts.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from zoreward.kernels.gpu import _on


@triton.jit(do_not_specialize=["rows"])
def _correct(
    y, x, a, b, rows, a_apart, b_apart, M: tl.constexpr, N: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """ROWS rows of one member. y: (·, M), x: (·, N), a: (members, M), b: (members, N), `rows` of y for each."""
    first = tl.program_id(0).to(tl.int64) * ROWS
    member = first // rows
    lines = first + tl.arange(0, ROWS)
    sums = tl.zeros((ROWS, BLOCK_N), tl.float32)
    for start in range(0, N, BLOCK_N):
        places = start + tl.arange(0, BLOCK_N)
        factor = tl.load(b + member * b_apart + places, mask=places < N, other=0.0).to(tl.float32)
        part = tl.load(x + lines[:, None] * N + places[None, :], mask=places[None, :] < N, other=0.0)
        sums += part.to(tl.float32) * factor[None, :]
    inner = tl.sum(sums, axis=1)
    for start in range(0, M, BLOCK_M):
        places = start + tl.arange(0, BLOCK_M)
        factor = tl.load(a + member * a_apart + places, mask=places < M, other=0.0).to(tl.float32)
        out = y + lines[:, None] * M + places[None, :]
        old = tl.load(out, mask=places[None, :] < M, other=0.0)
        new = old.to(tl.float32) + inner[:, None] * factor[None, :]
        tl.store(out, new.to(old.dtype), mask=places[None, :] < M)


def correct_(y: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Add (x·b)aᵀ to y, member by member; sums in float32.

    Args:
        y: (members · rows, m), contiguous; changed in place.
        x: (members · rows, n), contiguous, of y's dtype.
        a: (members, m), with the coefficient; each line in one piece.
        b: (members, n), likewise.

    Returns:
        y.
    """
    rows = len(y) // len(a)
    lines = next(n for n in (4, 2, 1) if rows % n == 0)
    with _on(y.device):
        _correct[(len(y) // lines,)](
            y, x, a, b, rows, a.stride(0), b.stride(0), y.shape[1], x.shape[1],
            ROWS=lines, BLOCK_M=_block(y.shape[1]), BLOCK_N=_block(x.shape[1]), num_warps=4,
        )  # fmt: skip
    return y


def _block(size: int) -> int:
    return min(1024, triton.next_power_of_2(size))
