"""Attention of one query a row, as when a token is written: keys and values are read once, whatever shares them.

torch's kernels are made for many queries. With SmolLM2's 9 heads on 3 of keys and values, 512 rows and 112 places in
bfloat16 they took 132 ms of a step of 48 tokens on an H200, and the copies of keys and values for each head 190 more.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from zoreward.kernels.tables import launched_on

# Heads of queries that a program holds, at least: what a product on tensor cores takes. Places that it reads at a time.
LEAST_HEADS, PLACES = 16, 64


@triton.jit
def _attend(
    out, queries, keys, values, bias, scale, places, row_heads, HEADS: tl.constexpr, WIDTH: tl.constexpr,
    HEADS_HELD: tl.constexpr, WIDTH_HELD: tl.constexpr, PLACES_HELD: tl.constexpr,
):  # fmt: skip
    """HEADS queries on a head of keys and values. out, queries: (·, HEADS, WIDTH); keys, values: (·, places, WIDTH)."""
    pair = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, HEADS_HELD)[:, None]
    column = tl.arange(0, WIDTH_HELD)
    mine = pair * HEADS * WIDTH + head * WIDTH + column[None, :]
    held = (head < HEADS) & (column[None, :] < WIDTH)
    query = tl.load(queries + mine, mask=held, other=0.0)
    most = tl.full((HEADS_HELD, 1), float("-inf"), tl.float32)
    total = tl.zeros((HEADS_HELD, 1), tl.float32)
    mean = tl.zeros((HEADS_HELD, WIDTH_HELD), tl.float32)
    for start in range(0, places, PLACES_HELD):
        place = start + tl.arange(0, PLACES_HELD)
        there = (place[:, None] < places) & (column[None, :] < WIDTH)
        lines = (pair * places + place[:, None]) * WIDTH + column[None, :]
        key = tl.load(keys + lines, mask=there, other=0.0)
        value = tl.load(values + lines, mask=there, other=0.0)
        seen = tl.load(bias + pair // row_heads * places + place, mask=place < places, other=float("-inf"))
        scores = tl.dot(query, tl.trans(key)) * scale + seen.to(tl.float32)[None, :]
        now = tl.maximum(most, tl.max(scores, axis=1)[:, None])
        weights = tl.exp(scores - now)
        before = tl.exp(most - now)
        total = total * before + tl.sum(weights, axis=1)[:, None]
        mean = mean * before + tl.dot(weights.to(value.dtype), value)
        most = now
    tl.store(out + mine, (mean / total).to(out.dtype.element_ty), mask=held)


def attend(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor, scale: float
) -> torch.Tensor:
    """Return softmax(scale · q kᵀ + bias) v of one query a row and head; sums in float32, weights in the values' dtype.

    Args:
        queries: (R, H, G, D), G heads of queries on each of the H heads of keys and values; contiguous, as all.
        keys: (R, H, L, D), in half precision.
        values: likewise.
        bias: (R, L), finite somewhere in each row.
        scale: of the products.

    Returns:
        (R, H, G, D)

    Source: FlashAttention, Dao et al. 2022, arXiv 2205.14135: the softmax of what was read so far.
    """
    rows, heads, group, width = queries.shape
    out = torch.empty_like(queries)
    with launched_on(queries.device):
        _attend[(rows * heads,)](
            out, queries, keys, values, bias, scale, keys.shape[2], heads, group, width,
            HEADS_HELD=max(LEAST_HEADS, triton.next_power_of_2(group)),
            WIDTH_HELD=max(16, triton.next_power_of_2(width)), PLACES_HELD=PLACES, num_warps=4,
        )  # fmt: skip
    return out
