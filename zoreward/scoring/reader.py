"""A language model and what must be known to read with it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from zoreward.data import PAIRS, WHOLE
from zoreward.members import (
    Float32Layer,
    SelfCheck,
    Tuned,
    called_model,
    float32_layer,
    has_prefix,
    head_names,
    tuned_weights,
)
from zoreward.records import InputError
from zoreward.scoring.heads import kind_of
from zoreward.scoring.loading import Kind
from zoreward.scoring.pairs import start_tokens
from zoreward.scoring.probes import (
    check_causal,
    pads_exactly,
    pads_on_right,
    pads_source,
    shares_prefix,
    vocabulary_size,
)

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
        model: any causal or masked language model, encoder–decoder, or classifier, of transformers.
        tuned: its tuned weights.
        pad_token_id: fills rows up: on the left for a causal model, on the right for others.
        accepts: names of the arguments of its forward.
        shares_prefix: whether a prompt's cache can be reused for each of its candidates.
        pads: whether padding leaves the scores as they are; otherwise only rows of one length share a forward pass.
        tokens: tokens of one forward pass, padding included, all members together.
        rows: rows of one forward pass; None: as many as `tokens` allows.
        check: what became of the trial of members that share a forward pass; None before.
        problem: why members cannot share a forward pass; None if they can.
        packer: what reads answers of one token in a way of its own, where it can.
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
    rows: int | None = None
    problem: str | None = None
    check: SelfCheck | None = None
    packer: Packer | None = None
    kind: Kind = "causal"
    start: tuple[int, ...] = ()
    head: Float32Layer | None = None
    look: Callable[[torch.Tensor], None] = lambda logits: None

    @property
    def grouped(self) -> bool:
        """Whether all members share a forward pass; otherwise they are read one at a time."""
        return self.problem is None

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
    if kind in WHOLE:
        pad_token_id = _own_padding(model, pad_token_id) if kind == "classifier" else pad_token_id
        pads = pads_on_right(model, pad_token_id)
        return Reader(model, tuned, pad_token_id, accepts, False, pads, tokens, kind=kind, head=_head_of(model, kind))
    if kind == PAIRS:
        if has_prefix(model):
            raise InputError(f"{type(model).__name__} takes no prefix", hint="Take tune=lora.")
        start = start_tokens(model)
        pads = pads_source(model, pad_token_id, start)
        head = _head_of(model, kind)
        return Reader(model, tuned, pad_token_id, accepts, False, pads, tokens, kind=kind, start=start, head=head)
    check_causal(model)
    pads = pads_exactly(model, pad_token_id)
    head = _head_of(model, kind)
    return Reader(model, tuned, pad_token_id, accepts, pads and shares_prefix(model), pads, tokens, head=head)


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
