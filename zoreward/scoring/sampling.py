"""Sampling with the same random numbers for every member.

Two members that are nearly alike should write nearly the same: a difference between their scores then comes from the
weights and not from luck. So what is drawn depends on the row, the position and the token, never on the member, on
the batch or on what was drawn before.

A token is drawn by the Gumbel-max trick: argmax_v (logit_v + g_v) with g = −log(−log u) and u uniform is a draw from
softmax(logits). The u come from the Philox counter of `zoreward.noise`:

| Philox | here |
|---|---|
| key | `derive_seed(seed, position, 0)` |
| counter words 0, 1 | token // 4 |
| counter word 2 | the row |
| counter word 3 | the purpose, `SAMPLING` |
| output word | number token % 4 |

Source: common random numbers: Glasserman and Yao 1992. The Gumbel-max trick: Maddison, Tarlow, Minka 2014.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import LogitsProcessor

from zoreward.noise import derive_seed
from zoreward.noise.definition import MASK_32, philox

# The fifth purpose of the Philox counter: no direction, factor or rounding shares its numbers.
SAMPLING = 4


def gumbel(seed: int, rows: Sequence[int], position: int, size: int, device: torch.device | str) -> torch.Tensor:
    """Return the g of each row and token: float64 (rows, size), from −3.2 to 22.9.

    Args:
        seed: of the whole draw, from 0 to 2^64 − 1.
        rows: their numbers, from 0 to 2^32 − 1.
        position: how many tokens were written before.
        size: of the vocabulary.
        device: where the numbers are wanted.
    """
    words = _words(derive_seed(seed, position, 0), torch.tensor(rows, device=device), -(-size // 4))
    u = (words[:, :size].double() + 0.5) * 2.0**-32
    return -torch.log(-torch.log(u))


def _words(key: int, stream_R: torch.Tensor, blocks: int) -> torch.Tensor:
    """`zoreward.noise.words` of several streams, on any device: 32-bit words in int64, (R, 4 · blocks)."""
    x0 = torch.arange(blocks, device=stream_R.device).expand(len(stream_R), blocks)
    x1 = torch.zeros_like(x0)
    x2, x3 = stream_R[:, None].expand_as(x0), torch.full_like(x0, SAMPLING)
    words = philox((x0, x1, x2, x3), key & MASK_32, key >> 32)
    return torch.stack(words, dim=2).view(len(stream_R), -1)


class CommonNumbers(LogitsProcessor):
    """Adds the Gumbel numbers of rows and positions to the logits, so that their argmax is a draw.

    Args:
        seed: of the whole draw.
        rows: the numbers of one member's rows; the logits' rows are these, once for each member.
        start: length of the prompts.
    """

    def __init__(self, seed: int, rows: Sequence[int], start: int):
        self._seed, self._rows, self._start = seed, rows, start

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        position = input_ids.shape[1] - self._start
        drawn = gumbel(self._seed, self._rows, position, scores.shape[1], scores.device)
        return scores + drawn.to(scores.dtype).repeat(len(scores) // len(self._rows), 1)
