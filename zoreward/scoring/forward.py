"""A language model, what must be known to read with it, and its forward pass; sequences are padded here alone.

What a model does with padding, with tokens to the right and with its cache is tried out, not looked up.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import nn

from zoreward.data import PAIRS, WHOLE
from zoreward.members import (
    KEEP_BYTES,
    Float32Layer,
    SelfCheck,
    Tuned,
    called_model,
    float32_layer,
    has_prefix,
    head_names,
    members_at,
    tuned_weights,
)
from zoreward.neighbours.of_transformers import cache_of, is_plain_attention
from zoreward.records import InputError, Member, ObjectiveError
from zoreward.scoring.checkpoints import Kind, kind_of
from zoreward.scoring.devices import without_cudnn_attention
from zoreward.scoring.protocol import Tokens

# Tokens of one forward pass. On two CPU cores 128 to 512 tokens were equally fast and 2,048 slower (padding);
# a GPU wants its units filled.
CPU_TOKENS, GPU_TOKENS = 1024, 32768
# A model with few words is small, and its forward passes are over before the next is launched: up to so many tokens,
# as long as their logits stay within 2^30. 512 pairs at 32 low-rank members of 12 M parameters, H100: 1.29 s, not 1.51.
MOST_GPU_TOKENS, MOST_LOGITS = 131072, 1 << 30
# Shares of the logits' own spread. Rounding moves them by some 1e-6 (float32) and 1e-2 (half precision); a model that
# reads padding, or the future, by 0.015 to 2 (random BERT, RWKV and RecurrentGemma of two layers).
FULL_TOLERANCE, HALF_TOLERANCE = 1e-3, 5e-2
# Where two shapes are compared in half precision, other kernels may do the work, and the largest of 49,152 differences
# says little. Their root mean square is 0.03 spreads for SmolLM2 in bfloat16, whose padding is masked.
SHAPES_TOLERANCE = 0.15
# Where activations are quantised too, the scale or the outliers of a batch are those of all its tokens: 0.06 to 0.11
# (12 M parameters, bitsandbytes in 8 bits, and torchao's Int8DynamicActivationInt8WeightConfig).
QUANTISED_TOLERANCE = 0.3


@dataclass(frozen=True, slots=True, eq=False)
class Reader:
    """A language model and what must be known to read with it.

    Args:
        model: any causal or masked language model, encoder–decoder, or classifier, of transformers.
        tuned: its tuned weights.
        pad_token_id: fills rows up: on the left for a causal model, on the right for others.
        accepts: names of the arguments of its forward.
        shares_prefix: whether a prompt's cache can be reused for each of its candidates.
        pads: whether padding leaves the scores as they are; otherwise only rows of one length share a forward pass.
        tokens: tokens of one forward pass, padding included, all members together.
        together: for how many members a forward pass is sized, so that its rows do not depend on how many are asked
            about; None: for those that are asked about.
        rows: prompts of one forward pass; None: as many as `tokens` allows.
        parts: into how many passes at least prompts are cut, so that so many ranks may read them.
        check: what became of the trial of members that share a forward pass; None before.
        problem: why members cannot share a forward pass; None if they can.
        kind: of the model; see `model_kind`.
        start: what an encoder–decoder's decoder reads in front of every answer.
        head: the last layer of a model in half precision, which gives float32 where answers are read.
        look: called with the logits from which answers are read, (M · rows, V), before they become log-probabilities.
    """

    model: nn.Module
    tuned: Tuned
    pad_token_id: int
    accepts: frozenset[str]
    shares_prefix: bool
    pads: bool
    tokens: int
    together: int | None = None
    rows: int | None = None
    parts: int = 1
    problem: str | None = None
    check: SelfCheck | None = None
    kind: Kind = "causal"
    start: tuple[int, ...] = ()
    head: Float32Layer | None = None
    look: Callable[[torch.Tensor], None] = lambda logits: None

    @property
    def grouped(self) -> bool:
        """Whether all members share a forward pass; otherwise they are read one at a time."""
        return self.problem is None

    @property
    def device(self) -> torch.device:
        """Where the model's first weights are, and its inputs go."""
        return next(self.model.parameters()).device

    def shown(self, members: Sequence[Member]) -> AbstractContextManager[None]:
        """Let the model be its members as long as the context lasts."""
        # A weight that is read without a call of its module is perturbed only in a whole copy of the weights.
        keep_bytes = KEEP_BYTES if self.grouped else sys.maxsize
        return members_at(self.model, members, tuned=self.tuned, keep_bytes=keep_bytes)

    def logits_in_float32(self) -> AbstractContextManager[None]:
        """Let the model's logits be float32 whatever its dtype, as long as the context lasts."""
        return self.head.shown() if self.head else nullcontext()


def reader_of(model: nn.Module, pad_token_id: int, *, tuned: Tuned | None = None, tokens: int | None = None) -> Reader:
    """Look at a model once and return how to read with it.

    Args:
        model: the model; of a PeftModel the one inside is read with.
        pad_token_id: fills rows up. A classifier that knows its own gets that one: it reads the last token before.
        tuned: its tuned weights; by default `tuned_weights(model)`.
        tokens: tokens of one forward pass.

    Raises:
        InputError: it is no language model of a known kind.
    """
    tuned = tuned or tuned_weights(model)
    model = called_model(model)
    kind = kind_of(model)
    accepts = frozenset(inspect.signature(model.forward).parameters)
    device = next(model.parameters()).device
    tokens = tokens or forward_tokens(device, vocabulary_size(model))
    # A padding token that was added to the tokenizer alone has no embedding. Padding is masked, so any token does.
    pad_token_id = pad_token_id if 0 <= pad_token_id < vocabulary_size(model) else 0
    start: Tokens = ()
    if kind == "classifier":
        pad_token_id = _own_padding(model, pad_token_id)
    elif kind == PAIRS:
        if has_prefix(model):
            raise InputError(f"{type(model).__name__} takes no prefix", hint="Take tune=lora.")
        start = start_tokens(model)
    elif kind == "causal":
        check_causal(model)
        accepts |= {"use_cache"}
    pads = pads_exactly(model, kind, pad_token_id, start)
    shares = kind == "causal" and pads and shares_prefix(model)
    head = _head_of(model, kind)
    return Reader(model, tuned, pad_token_id, accepts, shares, pads, tokens, kind=kind, start=start, head=head)


def start_tokens(model: Any) -> Tokens:
    """Return what the decoder reads in front of an answer: its start token, and BOS where the checkpoint forces one.

    Raises:
        InputError: the checkpoint does not say what the decoder begins with.
    """
    settings = (getattr(model, "generation_config", None), model.config)

    def named(name: str) -> Any:
        return next((found for one in settings if (found := getattr(one, name, None)) is not None), None)

    start, forced = named("decoder_start_token_id"), named("forced_bos_token_id")
    start = named("bos_token_id") if start is None else start
    if not isinstance(start, int):
        hint = "Set decoder_start_token_id in its config.json."
        raise InputError(f"{type(model).__name__} does not say what its decoder begins with", hint=hint)
    return (start,) if forced in (None, start) else (start, int(forced))


def padded(
    sequences: Sequence[Sequence[int]], filling: int, members: int, device: torch.device, *, left: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return sequences of one length, once for each member, and 0 where they are padded: int64 (M·N, longest) each.

    They are not made on the device, and it is not waited for: that would wait until it has done all that it was asked
    to, as the update of the step before.

    >>> padded([(5, 6), (7,)], 0, 1, torch.device("cpu"), left=True)[0].tolist()
    [[5, 6], [0, 7]]
    """
    lengths_N = np.fromiter(map(len, sequences), np.int64, len(sequences))
    width = int(lengths_N.max())
    place_T = np.arange(width)
    there_NT = place_T >= width - lengths_N[:, None] if left else place_T < lengths_N[:, None]
    ids_NT = np.full(there_NT.shape, filling, np.int64)
    ids_NT[there_NT] = np.fromiter(chain.from_iterable(sequences), np.int64, int(lengths_N.sum()))
    ids, mask = (
        torch.from_numpy(one).to(device, non_blocking=True).repeat(members, 1)
        for one in (ids_NT, there_NT.astype(np.int64))
    )
    return ids, mask


def forward(
    reader: Reader,
    sequences: Sequence[Tokens],
    members: int,
    *,
    keep: int = 1,
    use_cache: bool = False,
    types: Sequence[Tokens] | None = None,
    seen: torch.Tensor | None = None,
    **more: Any,
) -> Any:
    """Run sequences once for each member and return what the model gives.

    Args:
        reader: the model, showing its members.
        sequences: N sequences; of one length where padding changes what the model gives.
        members: M.
        keep: how many of the last positions a causal model needs logits of.
        use_cache: whether the cache is wanted.
        types: of the sequences' tokens.
        seen: the mask of what a causal model's cache holds, behind which the sequences go on, padded on their right.
        more: arguments that the model is given as they are.
    """
    causal = reader.kind == "causal"
    ids, mask = padded(sequences, reader.pad_token_id, members, reader.device, left=causal and seen is None)
    mask = mask if seen is None else torch.cat([seen, mask], dim=1)
    given: dict[str, Any] = {"attention_mask": mask, "use_cache": use_cache}
    if causal:
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        given |= {"position_ids": positions[:, -ids.shape[1] :], "logits_to_keep": keep}
    if types is not None:
        given["token_type_ids"] = padded(types, 0, members, reader.device)[0]
    known = {name: value for name, value in given.items() if name in reader.accepts}
    return reader.model(input_ids=ids, **known, **more)


def not_finite() -> ObjectiveError:
    """The error of a model whose outputs are NaN, of which an argmax would make an answer like any other."""
    hint = "Take bfloat16 or float32 instead of float16, or a smaller learning rate or eps."
    return ObjectiveError("the model's outputs are not finite", hint=hint)


def _head_of(model: Any, kind: Kind) -> Float32Layer | None:
    """The last layer, where it can give float32; a classifier's is the last one with an output for each class."""
    if kind != "classifier":
        return float32_layer(model.get_output_embeddings())
    own, classes = {name.rpartition(".")[0] for name in head_names(model)}, model.config.num_labels
    layers = [layer for name, layer in model.named_modules() if name in own]
    return float32_layer(next((one for one in reversed(layers) if getattr(one, "out_features", None) == classes), None))


def _own_padding(model: nn.Module, pad_token_id: int) -> int:
    """The padding token in a classifier's config, by which it finds the end of a row; set where there is none."""
    config: Any = model.config
    text = config.get_text_config()
    if text.pad_token_id is None:
        config.pad_token_id = text.pad_token_id = pad_token_id
    return int(text.pad_token_id)


def forward_tokens(device: torch.device, vocabulary: int) -> int:
    """Return how many tokens a forward pass reads on a device.

    >>> [forward_tokens(torch.device("cuda"), size) for size in (6144, 50257)]
    [131072, 32768]
    """
    if device.type == "cpu":
        return CPU_TOKENS
    return max(GPU_TOKENS, min(MOST_GPU_TOKENS, MOST_LOGITS // vocabulary))


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
    given = {"decoder_input_ids": torch.tensor([start], device=_device(model))} if start else {}

    def read_with(padding: Sequence[int]) -> torch.Tensor:
        if kind == "causal":
            return _logits(model, tokens, left=padding)[:, -1]
        logits = _logits(model, tokens, right=padding, **given)
        return logits[:, : len(tokens)] if kind == "masked" else logits

    beside = read_with(padding)
    # What is masked is multiplied by 0: the same shape with other tokens there gives the same bits.
    unread = kind in WHOLE or _equal(beside, read_with(padding[::-1]), model)
    return unread and _equal(read_with(()), beside, model, other_shape=True)


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
    with without_cudnn_attention():
        logits: torch.Tensor = model(input_ids=ids, **known).logits
    return logits.float()


def _equal(logits: torch.Tensor, others: torch.Tensor, model: nn.Module, *, other_shape: bool = False) -> bool:
    full = next(model.parameters()).dtype in (torch.float32, torch.float64)
    spread = float(logits.std() if logits.numel() > 1 else logits.abs())  # of a head with one output
    differences = (logits - others).abs()
    if getattr(model, "is_quantized", False):
        share, difference = QUANTISED_TOLERANCE, differences.max()
    elif other_shape and not full:
        share, difference = SHAPES_TOLERANCE, differences.square().mean(-1).sqrt().max()
    else:
        share, difference = FULL_TOLERANCE if full else HALF_TOLERANCE, differences.max()
    # Not finite numbers are another error, told where they matter.
    return not logits.isfinite().all() or float(difference) <= share * spread


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
