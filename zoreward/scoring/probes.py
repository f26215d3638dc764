"""What a model does with padding, with tokens to the right, and with its cache: tried out, not looked up."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from zoreward.data import WHOLE
from zoreward.neighbours.of_transformers import cache_of, is_plain_attention
from zoreward.records import InputError

# Shares of the logits' own spread. Rounding moves them by some 1e-6 (float32) and 1e-2 (half precision); a model that
# reads padding, or the future, by 0.015 to 2 (random BERT, RWKV and RecurrentGemma of two layers).
FULL_TOLERANCE, HALF_TOLERANCE = 1e-3, 5e-2
# Where activations are quantised too, the scale or the outliers of a batch are those of all its tokens: 0.06 to 0.11
# (12 M parameters, bitsandbytes in 8 bits, and torchao's Int8DynamicActivationInt8WeightConfig).
QUANTISED_TOLERANCE = 0.3


@torch.no_grad()
def check_causal(model: nn.Module) -> None:
    """Find out whether the model reads from left to right.

    Raises:
        InputError: a token's logits depend on the tokens behind it, as in BERT.
    """
    tokens = _tokens(model)
    before, after = _logits(model, tokens), _logits(model, (*tokens[:-1], 0))
    if not _equal(before[:, :-1], after[:, :-1], model):
        name = type(model).__name__
        raise InputError(f"{name} sees the tokens behind: it is no causal language model", hint="Take a causal one.")


@torch.no_grad()
def pads_exactly(model: nn.Module, kind: str, pad_token_id: int, start: tuple[int, ...] = ()) -> bool:
    """Whether padding, masked, leaves what the model gives as it is. Some recurrent models read it.

    A causal model is padded on its left; others on their right, and their own positions are counted by themselves:
    BERT's from 0 on, RoBERTa's from behind the padding token. Of an encoder–decoder what the encoder reads is padded.
    """
    tokens = [token for token in _tokens(model) if token != pad_token_id or kind not in WHOLE]
    # Also other tokens in its place: the embedding of padding may be zeros, which members move away from.
    padding = [pad_token_id] * 8 if kind in WHOLE else [*[pad_token_id] * 4, *reversed(tokens)]
    if kind == "causal":
        alone, beside = (_logits(model, tokens, left=some)[:, -1] for some in ((), padding))
    else:
        given = {"decoder_input_ids": torch.tensor([start], device=_device(model))} if start else {}
        alone, beside = (_logits(model, tokens, right=some, **given) for some in ((), padding))
    if kind == "masked":
        beside = beside[:, : len(tokens)]
    return _equal(alone, beside, model)


@torch.no_grad()
def shares_prefix(model: nn.Module) -> bool:
    """Whether the cache of a forward pass is plain attention in every layer, whose rows can be picked and repeated."""
    ids = torch.tensor([_tokens(model)], device=_device(model))
    return is_plain_attention(cache_of(model(input_ids=ids, use_cache=True)))


def vocabulary_size(model: nn.Module) -> int:
    """Return how many tokens the model has an embedding for."""
    embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
    return int(embedding.weight.shape[0])


def _tokens(model: nn.Module) -> tuple[int, ...]:
    """Four different tokens from the middle of the vocabulary, where none is special."""
    size = vocabulary_size(model)
    return tuple((size // 2 + i) % size for i in range(4))


def _logits(
    model: nn.Module, tokens: Sequence[int], left: Sequence[int] = (), right: Sequence[int] | None = None, **given: Any
) -> torch.Tensor:
    """The logits of a text between what is masked; positions are given but where padding stands on the right."""
    ids = torch.tensor([[*left, *tokens, *(right or ())]], device=_device(model))
    mask = torch.ones_like(ids)
    mask[:, : len(left)] = 0
    mask[:, len(left) + len(tokens) :] = 0
    given |= {"attention_mask": mask, "use_cache": False}
    accepts = set(inspect.signature(model.forward).parameters)
    if right is None:
        given["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        accepts.add("use_cache")
    known = {name: value for name, value in given.items() if name in accepts}
    logits: torch.Tensor = model(input_ids=ids, **known).logits
    return logits.float()


def _equal(logits: torch.Tensor, others: torch.Tensor, model: nn.Module) -> bool:
    full = next(model.parameters()).dtype in (torch.float32, torch.float64)
    share = FULL_TOLERANCE if full else HALF_TOLERANCE
    tolerance = (QUANTISED_TOLERANCE if getattr(model, "is_quantized", False) else share) * float(logits.std())
    # Not finite numbers are another error, told where they matter.
    return not logits.isfinite().all() or float((logits - others).abs().max()) <= tolerance


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
