"""What a model does with padding, with tokens to the right, and with its cache: tried out, not looked up."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from zoreward.members import cache_of
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
    before, after = _logits(model, [_tokens(model)]), _logits(model, [(*_tokens(model)[:-1], 0)])
    if not _equal(before[:, :-1], after[:, :-1], model):
        name = type(model).__name__
        raise InputError(f"{name} sees the tokens behind: it is no causal language model", hint="Take a causal one.")


@torch.no_grad()
def pads_exactly(model: nn.Module, pad_token_id: int) -> bool:
    """Whether padding on the left, masked, leaves the last logits as they are. Some recurrent models read it."""
    tokens = _tokens(model)
    # Also other tokens in its place: the embedding of padding may be zeros, which members move away from.
    padded = [(*[pad_token_id] * 4, *reversed(tokens), *tokens)]
    return _equal(_logits(model, [tokens])[:, -1], _logits(model, padded, masked=8)[:, -1], model)


@torch.no_grad()
def pads_on_right(model: nn.Module, pad_token_id: int) -> bool:
    """Whether padding on the right, masked, leaves a masked model's or a classifier's outputs as they are.

    Such models count their own positions: BERT from 0 on, RoBERTa from behind its padding token.
    """
    tokens = [token for token in _tokens(model) if token != pad_token_id]
    found = []
    for padding in (0, 8):
        ids = torch.tensor([[*tokens, *[pad_token_id] * padding]], device=_device(model))
        mask = torch.ones_like(ids)
        mask[:, len(tokens) :] = 0
        known = {"attention_mask": mask} if "attention_mask" in inspect.signature(model.forward).parameters else {}
        logits = model(input_ids=ids, **known).logits.float()
        found.append(logits[:, : len(tokens)] if logits.ndim == 3 else logits)
    return _equal(found[0], found[1], model)


@torch.no_grad()
def pads_source(model: nn.Module, pad_token_id: int, start: tuple[int, ...]) -> bool:
    """Whether padding on the right of what an encoder reads, masked, leaves the decoder's logits as they are."""
    tokens, device = _tokens(model), _device(model)
    found = []
    for padding in ((), (*[pad_token_id] * 4, *reversed(tokens))):
        ids = torch.tensor([[*tokens, *padding]], device=device)
        mask = torch.ones_like(ids)
        mask[:, len(tokens) :] = 0
        read = torch.tensor([start], device=device)
        logits = model(input_ids=ids, attention_mask=mask, decoder_input_ids=read, use_cache=False).logits
        found.append(logits.float())
    return _equal(found[0], found[1], model)


@torch.no_grad()
def shares_prefix(model: nn.Module) -> bool:
    """Whether the cache of a forward pass is plain attention in every layer, whose rows can be picked and repeated."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    ids = torch.tensor([_tokens(model)], device=_device(model))
    cache = cache_of(model(input_ids=ids, use_cache=True))
    return isinstance(cache, DynamicCache) and all(type(layer) is DynamicLayer for layer in cache.layers)


def vocabulary_size(model: nn.Module) -> int:
    """Return how many tokens the model has an embedding for."""
    embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
    return int(embedding.weight.shape[0])


def _tokens(model: nn.Module) -> tuple[int, ...]:
    """Four different tokens from the middle of the vocabulary, where none is special."""
    size = vocabulary_size(model)
    return tuple((size // 2 + i) % size for i in range(4))


def _logits(model: nn.Module, sequences: list[tuple[int, ...]], masked: int = 0) -> torch.Tensor:
    ids = torch.tensor(sequences, device=_device(model))
    mask = torch.ones_like(ids)
    mask[:, :masked] = 0
    wanted = {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    accepts = inspect.signature(model.forward).parameters
    known = {name: value for name, value in wanted.items() if name in accepts}
    logits: torch.Tensor = model(input_ids=ids, use_cache=False, **known).logits
    return logits.float()


def _equal(logits: torch.Tensor, others: torch.Tensor, model: nn.Module) -> bool:
    full = next(model.parameters()).dtype in (torch.float32, torch.float64)
    share = FULL_TOLERANCE if full else HALF_TOLERANCE
    tolerance = (QUANTISED_TOLERANCE if getattr(model, "is_quantized", False) else share) * float(logits.std())
    # Not finite numbers are another error, told where they matter.
    return not logits.isfinite().all() or float((logits - others).abs().max()) <= tolerance


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
