"""The fingerprint of weights: whether a model is the base that a run began with."""

from __future__ import annotations

import hashlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import nn

from zoreward.noise import canonical_name

# Bytes that are fetched from a device at once.
CHUNK = 64 << 20


@torch.no_grad()
def fingerprint(model: nn.Module) -> str:
    """Return the SHA-256 of a model's weights, in hexadecimal: the same on every device, in every wrapper.

        sha256("name dtype shape sha256(bytes)\\n" of each weight, sorted by name)

    with canonical names, a dtype like `bfloat16`, a shape like `32x48`, and the bytes as they lie in memory, row by
    row and little-endian; of a quantised weight those of the tensors that it is made of. All parameters count, each
    once, whether they are tuned or not. Each of torch's threads hashes some tensors: 4 s a GiB on two slow cores,
    270 MB/s each (benchmarks/journal.py).

    >>> fingerprint(nn.Linear(2, 1)) == fingerprint(nn.Linear(2, 1))
    False
    """
    _undo_packing(model)
    named = sorted((canonical_name(name), weight) for name, weight in model.named_parameters())
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        digests = list(pool.map(_digest, [weight.detach() for _, weight in named]))
    lines = [
        f"{name} {str(weight.dtype).removeprefix('torch.')} {'x'.join(map(str, weight.shape))} {digest}\n"
        for (name, weight), digest in zip(named, digests, strict=True)
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def weights_dtype(model: nn.Module) -> str:
    """Return the dtype that most of a model's floating-point weights have.

    >>> weights_dtype(nn.Linear(2, 1, dtype=torch.bfloat16))
    'bfloat16'
    """
    sizes: Counter[str] = Counter()
    for weight in model.parameters():
        if weight.is_floating_point():
            sizes[str(weight.dtype).removeprefix("torch.")] += weight.numel()
    return max(sizes, key=sizes.__getitem__, default="float32")


@torch.no_grad()
def _digest(weight: torch.Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in _tensors(weight):
        flat = tensor.contiguous().view(-1).view(torch.uint8)
        for start in range(0, flat.numel(), CHUNK):
            digest.update(flat[start : start + CHUNK].cpu().numpy())
    return digest.hexdigest()


def _tensors(weight: Any) -> list[torch.Tensor]:
    """The plain tensors that a weight is made of: itself, or the integers and scales of torchao's."""
    if not hasattr(weight, "__tensor_flatten__"):
        return [weight]
    names, _ = weight.__tensor_flatten__()
    return [tensor for name in sorted(names) for tensor in _tensors(getattr(weight, name))]


def _undo_packing(model: nn.Module) -> None:
    """Bring 4-bit weights of bitsandbytes back into their order: the first forward pass packs them for some CPUs."""
    states = (getattr(weight, "quant_state", None) for weight in model.parameters())
    if any(getattr(state, "packing_format_for_cpu", False) for state in states):
        model.state_dict()  # whose hooks undo it
