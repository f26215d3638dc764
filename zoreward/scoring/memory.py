"""What memory a run needs on its device, told from the model's shapes before its weights are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from zoreward.members import KEEP_BYTES, Tuned, bytes_of, in_each_block, lasting_bytes, scratch_bytes
from zoreward.records import Example, Member, NoRoomError
from zoreward.scoring.decoding import CPU_TOKENS, GPU_TOKENS
from zoreward.scoring.devices import bytes_to_keep, free_bytes
from zoreward.scoring.forward import forward_tokens, vocabulary_size
from zoreward.scoring.logprobs import LOGITS_AT_ONCE
from zoreward.scoring.stepping import aligned, padded_width


@dataclass(frozen=True, slots=True)
class Memory:
    """The bytes that a run needs on its device.

    Args:
        weights: of the model, with its adapter.
        scratch: what members take beside them: copies of weights, or factors; and the bases of a subspace.
        base: a second copy of the model, to compare with, and one of the tuned weights, to decay towards.
        activations: of a forward pass, logits included; a guess. A pass that does not fit is cut in two.
        cache: keys and values of what is written at a time. This is cut too.
        free: what the device has left for all this.
        place: the device's name.
    """

    weights: int
    scratch: int = 0
    base: int = 0
    activations: int = 0
    cache: int = 0
    free: int = 0
    place: str = "cpu"

    @property
    def certain(self) -> int:
        """What nothing makes smaller, in bytes.

        >>> Memory(weights=8, scratch=1, activations=4, free=20).certain
        9
        """
        return self.weights + self.scratch + self.base

    def __str__(self) -> str:
        """
        >>> str(Memory(25_706_000_000, 515_000_000, 0, 231_000_000, 0, 78_400_000_000, "cuda:0"))
        'weights 25.7 GB + scratch 515 MB + activations about 231 MB; cuda:0 has 78.4 GB free'
        """
        parts = {"weights": self.weights, "scratch": self.scratch, "base": self.base}
        told = [f"{name} {size(value)}" for name, value in parts.items() if value]
        guessed = {"activations": self.activations, "cache": self.cache}
        told += [f"{name} about {size(value)}" for name, value in guessed.items() if value]
        return f"{' + '.join(told)}; {self.place} has {size(self.free)} free"


def size(count: int) -> str:
    """Return bytes as they are read.

    >>> size(131_439_403_008), size(47_628_288)
    ('131 GB', '47.6 MB')
    """
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"


def needed_memory(
    model: nn.Module,
    tuned: Tuned | None,
    members: Sequence[Member],
    examples: Sequence[Example],
    *,
    rows: int,
    new_tokens: int,
    copied: int,
    device: torch.device,
) -> Memory | None:
    """Return what tuning a model needs on a device; None where the device does not say what it has.

    Args:
        model: the model, on torch's meta device or loaded.
        tuned: what is tuned of it; None where that is next to nothing.
        members: M members that are scored together; of any block, where the weights are cut into some.
        examples: the rows to tune on.
        rows: rows of a step.
        new_tokens: tokens that are written behind a prompt; 0 where answers are given.
        copied: bytes of the copies of weights that are kept on this device, to compare with or to decay towards.
        device: where the model will stand. What of it stands there already counts as free.
    """
    free = free_bytes(device)
    if free is None:
        return None
    free += bytes_of(weight for weight in model.parameters() if weight.device == device)
    weights = bytes_of(model.parameters())
    left = free - weights - copied
    scratch = 0
    if tuned is not None:
        scratch = lasting_bytes(tuned, members) + max(
            scratch_bytes(tuned, some, bytes_to_keep(device, left, len(some)) if new_tokens else KEEP_BYTES)
            for some in (*in_each_block(tuned, members), ((),))
        )
    lengths = sorted((len(one.prompt_tokens) for one in examples), reverse=True)[:rows]
    answers = [tokens for one in examples for tokens in one.candidate_tokens] or [()]
    behind = new_tokens or max(map(len, answers))
    together = len(members) * len(lengths)
    most = lengths[0] + behind
    cpu = device.type == "cpu"
    limit = (CPU_TOKENS if cpu else GPU_TOKENS) if new_tokens else forward_tokens(device, vocabulary_size(model))
    sequences = max(1, min(together, limit // most))
    if new_tokens and not cpu:  # as a `Stepper` makes it
        most = aligned(padded_width(sequences, lengths[0]) + new_tokens)
    return Memory(
        weights=weights,
        scratch=scratch,
        base=copied,
        activations=_activations(model, sequences, lengths[0] if new_tokens else most, 1 if new_tokens else behind),
        cache=cache_bytes(model, sequences * most) if new_tokens else 0,
        free=free,
        place=str(device) if not cpu else "this machine",
    )


def check_memory(memory: Memory, name: str, dtype: torch.dtype) -> None:
    """Refuse a run that cannot fit.

    Args:
        memory: what it needs.
        name: of the model.
        dtype: of its weights.

    Raises:
        NoRoomError: what nothing makes smaller is more than what is free.

    >>> check_memory(Memory(131_439_403_008, free=78_000_000_000, place="cuda:0"), "opt-66b", torch.bfloat16)
    Traceback (most recent call last):
    zoreward.records.NoRoomError: opt-66b in bfloat16 needs 131 GB for its weights; cuda:0 has 78 GB free
    hint: take a smaller model, or a device with more memory: --device
    """
    if memory.certain <= memory.free:
        return
    needs = [f"{size(memory.weights)} for its weights"]
    if memory.weights <= memory.free:
        needs += [f"{size(memory.base)} for a copy of its base"] if memory.base else []
        needs += [f"{size(memory.scratch)} for members"] if memory.scratch else []
    if memory.certain - memory.base <= memory.free:
        hint = "leave --anchor out, or keep the base on another device: --base-device; or take an adapter: --tune lora"
    elif memory.weights + memory.base <= memory.free:
        hint = "take an adapter, whose members are small: --tune lora"
    elif dtype == torch.float32:
        hint = "weights of half the size: --dtype bfloat16; or take a smaller model"
    else:
        hint = "take a smaller model, or a device with more memory: --device"
    described = f"{name} in {str(dtype).removeprefix('torch.')}"
    raise NoRoomError(f"{described} needs {' + '.join(needs)}; {memory.place} has {size(memory.free)} free", hint=hint)


def cache_bytes(model: nn.Module, tokens: int) -> int:
    """Return the bytes of keys and values of so many tokens, in all layers; 0 of a model without attention."""
    config: Any = model.config
    config = config.get_text_config()
    heads = getattr(config, "num_attention_heads", None)
    if not isinstance(heads, int):  # as Mamba, whose state does not grow with its text
        return 0
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    kept = getattr(config, "num_key_value_heads", None) or heads
    return 2 * tokens * int(config.num_hidden_layers * kept * width) * _element_size(model)


def _activations(model: nn.Module, sequences: int, tokens: int, keep: int) -> int:
    """A guess: a layer's input beside its two widest outputs for all tokens, or logits of the last `keep` tokens.

    Measured: OPT-13B in bfloat16 took 0.14 GB for 2,048 tokens and 1.24 GB for 12,800; it says 0.12 and 1.44.
    """
    vocabulary, each = vocabulary_size(model), _element_size(model)
    sides = {side for weight in model.parameters() if weight.ndim == 2 for side in weight.shape}
    widest = max((side for side in sides if side != vocabulary), default=0)
    embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
    layer = sequences * tokens * (3 * int(embedding.weight.shape[1]) + 2 * widest) * each
    logits = sequences * keep * vocabulary
    return max(layer, logits * each + 2 * 4 * min(logits, max(LOGITS_AT_ONCE, vocabulary)))


def _element_size(model: nn.Module) -> int:
    return next(model.parameters()).element_size()
