"""What stands behind a model's body: its head; and heads that are new, made so that they can be made again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from zoreward.noise import Purpose, canonical_name, derive_seed, stream_of
from zoreward.noise import definition as noise

# Keeps the seed of a head's first weights apart from those of an adapter, and of a step.
HEAD_INDEX = 2**64 - 4


def head_names(model: nn.Module) -> set[str]:
    """Return the canonical names of the weights behind the body, BERT's pooler among them.

    Weights that belong to the embedding too are left out.
    """
    body = f"{getattr(model, 'base_model_prefix', '')}."
    embedding: Any = getattr(model, "get_input_embeddings", lambda: None)()
    tied = {id(weight) for weight in embedding.parameters()} if embedding is not None else set()
    named = {canonical_name(name): weight for name, weight in model.named_parameters()}
    return {
        name
        for name, weight in named.items()
        if id(weight) not in tied and (not name.startswith(body) or "pooler." in name)
    }


def new_names(model: nn.Module, missing: Iterable[str], classes: int) -> list[str]:
    """Return the canonical names of the weights that are new in a new head, sorted.

    They are what the checkpoint lacks, and the last layer even of a checkpoint that has one: it was for other classes.
    What else a checkpoint has in front of that layer, as ModernBERT's, was pretrained.

    Args:
        model: with the head.
        missing: canonical names of what the checkpoint lacks.
        classes: how many outputs the head has.
    """
    own = head_names(model)
    named = [(canonical_name(name), weight) for name, weight in model.named_parameters()]
    outputs = [name.rpartition(".")[0] for name, weight in named if name in own and weight.shape[:1] == (classes,)]
    return sorted(name for name in own if name in missing or name.rpartition(".")[0] in outputs[-1:])


def first_spread(model: nn.Module) -> float:
    """Return the standard deviation with which the model's config wants new matrices."""
    config: Any = model.config
    found = getattr(config, "initializer_range", None) or getattr(config, "init_std", None)
    return float(found or 0.02)


@torch.no_grad()
def draw_head_(model: nn.Module, names: Iterable[str], seed: int, spread: float) -> None:
    """Give new matrices the values that follow from the seed: spread · z; new biases 0.

    Other vectors, those of norms, keep theirs.

    Args:
        model: the model; changed in place.
        names: canonical names of the new weights.
        seed: of the run.
        spread: their standard deviation.

    Raises:
        KeyError: the model has no such weight.
    """
    named = {canonical_name(name): weight for name, weight in model.named_parameters()}
    own = derive_seed(seed, 0, HEAD_INDEX)
    for name in names:
        weight = named[name]
        if weight.ndim < 2:
            if name.endswith("bias"):  # the checkpoint's own head may have others
                weight.zero_()
            continue
        stream = stream_of(name)
        first = noise.normal(own, stream, 0, weight.numel(), Purpose.FIRST_WEIGHTS) * np.float32(spread)
        weight.copy_(torch.from_numpy(first).view(weight.shape))
