"""A language model and what must be known to read with it."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from zoreward.members import Tuned, called_model, tuned_weights
from zoreward.scoring.probes import check_causal, pads_exactly, shares_prefix, vocabulary_size

if TYPE_CHECKING:
    from zoreward.scoring.packing import Packer

# Tokens of one forward pass. On two CPU cores 128 to 512 tokens were equally fast and 2,048 slower (padding);
# a GPU wants its units filled.
CPU_TOKENS, GPU_TOKENS = 1024, 32768
# A model with few words is small, and its forward passes are over before the next is launched: up to so many tokens,
# as long as their logits stay within 2^30. 512 pairs at 32 low-rank members of 12 M parameters, H100: 1.29 s, not 1.51.
MOST_GPU_TOKENS, MOST_LOGITS = 131072, 1 << 30


@dataclass(frozen=True, slots=True, eq=False)
class Reader:
    """A language model and what must be known to read with it.

    Args:
        model: any causal language model of transformers.
        tuned: its tuned weights.
        pad_token_id: fills rows up on the left.
        accepts: names of the arguments of its forward.
        shares_prefix: whether a prompt's cache can be reused for each of its candidates.
        pads: whether padding leaves the scores as they are; otherwise only rows of one length share a forward pass.
        tokens: tokens of one forward pass, padding included, all members together.
        rows: rows of one forward pass; None: as many as `tokens` allows.
        problem: why members cannot share a forward pass; None if they can.
        packer: what reads answers of one token in a way of its own, where it can.
    """

    model: nn.Module
    tuned: Tuned
    pad_token_id: int
    accepts: frozenset[str]
    shares_prefix: bool
    pads: bool
    tokens: int
    rows: int | None = None
    problem: str | None = None
    packer: Packer | None = None

    @property
    def grouped(self) -> bool:
        """Whether all members share a forward pass; otherwise they are read one at a time."""
        return self.problem is None


def reader_of(model: nn.Module, pad_token_id: int, *, tuned: Tuned | None = None, tokens: int | None = None) -> Reader:
    """Look at a model once and return how to read with it.

    Args:
        model: the model; of a PeftModel the one inside is read with.
        pad_token_id: fills rows up on the left.
        tuned: its tuned weights; by default `tuned_weights(model)`.
        tokens: tokens of one forward pass.

    Raises:
        InputError: it is no causal language model.
    """
    tuned = tuned or tuned_weights(model)
    model = called_model(model)
    check_causal(model)
    accepts = frozenset(inspect.signature(model.forward).parameters)
    device = next(model.parameters()).device
    tokens = tokens or forward_tokens(device, vocabulary_size(model))
    # A padding token that was added to the tokenizer alone has no embedding. Padding is masked, so any token does.
    pad_token_id = pad_token_id if 0 <= pad_token_id < vocabulary_size(model) else 0
    pads = pads_exactly(model, pad_token_id)
    return Reader(model, tuned, pad_token_id, accepts, pads and shares_prefix(model), pads, tokens)


def forward_tokens(device: torch.device, vocabulary: int) -> int:
    """Return how many tokens a forward pass reads on a device.

    >>> [forward_tokens(torch.device("cuda"), size) for size in (6144, 50257)]
    [131072, 32768]
    """
    if device.type == "cpu":
        return CPU_TOKENS
    return max(GPU_TOKENS, min(MOST_GPU_TOKENS, MOST_LOGITS // vocabulary))
