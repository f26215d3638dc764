"""What is new in a model before it is tuned, with first values that a seed gives: a head, or a prefix of PEFT.

A prefix is keys and values of a few tokens that stand in front of every row, in each layer.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from zoreward.neighbours.of_peft import prefix_encoder, prefix_shape, quiet_peft, reshapes_prefixes_of
from zoreward.neighbours.of_torch import hooks_before_forward
from zoreward.neighbours.of_transformers import CACHE_NAMES, cache_argument, cache_of, keys_and_values
from zoreward.noise import Purpose, SeedIndex, canonical_name, derive_seed, stream_of
from zoreward.noise import definition as noise
from zoreward.records import InputError

if TYPE_CHECKING:
    from peft import PeftModel

# As in MeZO's experiments (Malladi et al. 2023, appendix D).
PREFIX_TOKENS = 5


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
    own = derive_seed(seed, 0, SeedIndex.HEAD)
    for name in names:
        weight = named[name]
        if weight.ndim < 2:
            if name.endswith("bias"):  # the checkpoint's own head may have others
                weight.zero_()
            continue
        stream = stream_of(name)
        first = noise.normal(own, stream, 0, weight.numel(), Purpose.FIRST_WEIGHTS) * np.float32(spread)
        weight.copy_(torch.from_numpy(first).view(weight.shape))


@torch.no_grad()
def with_prefix(model: nn.Module, seed: int) -> PeftModel:
    """Put a prefix in front of a model: first the keys and values of 5 tokens that the seed draws from the vocabulary.

    Random numbers instead of real activations would leave a prefix far from anything that the model knows. The values
    are those of this device, rounding included, so a run stores them.

    Args:
        model: the base, in eval mode; left as it is but for a hook that feeds the prefix.
        seed: of the run.

    Raises:
        InputError: a model whose keys and values are not plain attention's in every layer.
    """
    from peft import PrefixTuningConfig, get_peft_model

    config: Any = model.config
    name, size = type(model).__name__, model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    device = next(model.parameters()).device
    words = noise.words(seed, stream_of("prefix"), 0, PREFIX_TOKENS, Purpose.FIRST_WEIGHTS)
    tokens = torch.tensor([[int(word) % size for word in words]], device=device)
    layers = keys_and_values(cache_of(model(input_ids=tokens, use_cache=True)))
    problem = InputError(f"{name} takes no prefix: its cache is not plain attention's", hint="Take tune=lora.")
    if not layers or reshapes_prefixes_of(config.model_type):
        raise problem
    pairs = [torch.stack([keys[0], values[0]]) for keys, values in layers]  # each (2, heads, P, width)
    if len({pair.shape for pair in pairs}) != 1:
        raise problem
    flat = torch.stack(pairs).permute(3, 0, 1, 2, 4).reshape(PREFIX_TOKENS, -1)
    wanted = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=PREFIX_TOKENS)
    with torch.random.fork_rng([device.index or 0] if device.type == "cuda" else []), quiet_peft():
        wrapped: Any = get_peft_model(model, wanted, revision=getattr(model, "hub_revision", None))
    weight = prefix_encoder(wrapped).embedding.weight
    if weight.shape != flat.shape:
        raise problem
    weight.copy_(flat)
    weight.data = weight.data.to(device)
    feed_prefix(wrapped)
    return wrapped


def prefix_weight(model: Any) -> nn.Parameter:
    """Return the weight of a PeftModel's active prefix: (tokens, layers × 2 × heads × width).

    Raises:
        InputError: it is made by a network, which its file does not hold.
    """
    encoder = prefix_encoder(model)
    if encoder.prefix_projection:
        raise InputError("a prefix with prefix_projection cannot be tuned", hint="Make it without.")
    weight: nn.Parameter = encoder.embedding.weight
    return weight


def has_prefix(inner: nn.Module) -> bool:
    """Whether a prefix is fed to transformers' own model."""
    return any(isinstance(hook, _Prefix) for hook in hooks_before_forward(inner))


def feed_prefix(model: Any) -> None:
    """Have transformers' own model, inside a PeftModel, read the prefix in front of every row, also in `generate`."""
    inner = model.get_base_model()
    if not has_prefix(inner):
        inner.register_forward_pre_hook(_Prefix(model), with_kwargs=True)


class _Prefix:
    """A hook before a model's forward: a cache that holds nothing yet gets the prefix, and masks and positions room."""

    def __init__(self, model: Any):
        self._embedding = prefix_encoder(model).embedding
        self._tokens, self._layers, self._heads = prefix_shape(model)

    def __call__(
        self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        from transformers import DynamicCache

        kwargs = dict(kwargs)
        if args:  # only ids are given by position
            kwargs["input_ids"], args = args[0], args[1:]
        ids = kwargs["input_ids"] if kwargs.get("input_ids") is not None else kwargs["inputs_embeds"]
        given = [name for name in CACHE_NAMES if kwargs.get(name) is not None]
        name = given[0] if given else cache_argument(inspect.signature(module.forward).parameters)
        cache, mask = kwargs.get(name), kwargs.get("attention_mask")
        if cache is None or cache.get_seq_length() == 0:
            cache = cache if cache is not None else DynamicCache(config=module.config)
            self._fill(cache, ids.shape[0], module.dtype)
            cache.zoreward_prefix = True
        elif not hasattr(cache, "zoreward_prefix"):
            return args, kwargs  # PEFT's own forward has seen to it all
        kwargs[name] = cache
        if mask is not None:
            seen = 1 if mask.ndim == 2 or mask.dtype == torch.bool else 0  # else it is added to the logits
            room = mask.new_full((*mask.shape[:-1], self._tokens), seen)
            kwargs["attention_mask"] = torch.cat([room, mask], dim=-1)
        if kwargs.get("position_ids") is not None:
            kwargs["position_ids"] = kwargs["position_ids"] + self._tokens
        return args, kwargs

    def _fill(self, cache: Any, rows: int, dtype: torch.dtype) -> None:
        numbers = torch.arange(self._tokens, device=self._embedding.weight.device)
        found = self._embedding(numbers.expand(rows, -1)).to(dtype)
        pairs = found.view(rows, self._tokens, self._layers, 2, self._heads, -1).permute(2, 3, 0, 4, 1, 5)
        for number, (keys, values) in enumerate(pairs):
            cache.update(keys, values, number)
