"""The fingerprint of weights, and the config they are used by: whether a model is the base that a run began with."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from zoreward.noise import canonical_name
from zoreward.records import one_line

if TYPE_CHECKING:
    import torch
    from torch import nn

# Bytes that are fetched from a device at once.
CHUNK = 64 << 20
# Fields of a model's config that change nothing of what it computes: names, records, and what is asked of its outputs.
_NO_FORWARD = frozenset(
    {
        *(
            "architectures",
            "auto_map",
            "transformers_version",
            "dtype",
            "torch_dtype",
            "name_or_path",
            "tokenizer_class",
        ),
        *("id2label", "label2id", "use_cache", "output_attentions", "output_hidden_states", "return_dict"),
        *(
            "task_specific_params",
            "finetuning_task",
            "torchscript",
            "gradient_checkpointing",
            "chunk_size_feed_forward",
        ),
    }
)
# Those of an adapter's config by which it computes, beside its weights.
_OF_ADAPTER = ("r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "fan_in_fan_out")


def fingerprint(model: nn.Module) -> str:
    """Return the SHA-256 of a model's weights, in hexadecimal: the same on every device, in every wrapper.

        sha256("name dtype shape sha256(bytes)\\n" of each weight, sorted by name)

    with canonical names, a dtype like `bfloat16`, a shape like `32x48`, and the bytes as they lie in memory, row by
    row and little-endian; of a quantised weight those of the tensors that it is made of. All parameters count, each
    once, whether they are tuned or not. Each of torch's threads hashes some tensors: 4 s a GiB on two slow cores,
    270 MB/s each (benchmarks/journal.py).

    >>> from torch import nn
    >>> fingerprint(nn.Linear(2, 1)) == fingerprint(nn.Linear(2, 1))
    False
    """
    import torch  # not above: who reads a journal needs none

    _undo_packing(model)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return _of_lines(pool.map(_line, model.named_parameters()))


def fingerprint_of(weights: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Return the `fingerprint` of a model of which only one weight is at hand at a time, with its name.

    >>> from torch import nn
    >>> layer = nn.Linear(2, 1)
    >>> fingerprint_of(reversed(list(layer.named_parameters()))) == fingerprint(layer)
    True
    """
    return _of_lines(map(_line, weights))


def _line(named: tuple[str, torch.Tensor]) -> tuple[str, str]:
    name, weight = canonical_name(named[0]), named[1].detach()
    shape = "x".join(map(str, weight.shape))
    return name, f"{name} {str(weight.dtype).removeprefix('torch.')} {shape} {_digest(weight)}\n"


def _of_lines(lines: Iterable[tuple[str, str]]) -> str:
    return hashlib.sha256("".join(line for _, line in sorted(lines)).encode()).hexdigest()


def weights_dtype(model: nn.Module) -> str:
    """Return the dtype that most of a model's floating-point weights have.

    >>> import torch
    >>> from torch import nn
    >>> weights_dtype(nn.Linear(2, 1, dtype=torch.bfloat16))
    'bfloat16'
    """
    sizes: Counter[str] = Counter()
    for weight in model.parameters():
        if weight.is_floating_point():
            sizes[str(weight.dtype).removeprefix("torch.")] += weight.numel()
    return max(sizes, key=sizes.__getitem__, default="float32")


def _digest(weight: torch.Tensor) -> str:
    import torch

    digest = hashlib.sha256()
    with torch.no_grad():
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


def forward_config(model: Any) -> dict[str, Any]:
    """Return the fields of a model's config that may change what it computes, and those of an adapter that it had.

    >>> from types import SimpleNamespace
    >>> from transformers import GPT2Config
    >>> found = forward_config(SimpleNamespace(config=GPT2Config(n_layer=2)))
    >>> found["n_layer"], "architectures" in found
    (2, False)
    """
    config: Any = getattr(model, "config", None)
    fields = config.to_dict() if hasattr(config, "to_dict") else {}
    found = {name: value for name, value in fields.items() if not name.startswith("_") and name not in _NO_FORWARD}
    for name, own in (getattr(model, "peft_config", None) or {}).items():
        found[f"peft_config.{name}"] = {field: getattr(own, field, None) for field in _OF_ADAPTER}
    made: dict[str, Any] = json.loads(json.dumps(found, default=without_address, sort_keys=True), parse_constant=str)
    return made


def other_config(then: dict[str, Any], now: dict[str, Any], *, common: bool) -> str | None:
    """Say in which field two configs of `forward_config` differ, as `name=then, not now`; None if they do not.

    Args:
        then: the config that a run had.
        now: the one at hand.
        common: whether fields that only one of them has are left out: another transformers knows other ones.
    """
    names = then.keys() & now.keys() if common or not then else then.keys() | now.keys()
    for name in sorted(names):
        if then.get(name) != now.get(name):
            return f"{one_line(name, 80)}={short_value(then.get(name))}, not {short_value(now.get(name))}"
    return None


def without_address(value: Any) -> str:
    """Return the text of a value that JSON does not know, without where it lies in memory."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))


def short_value(value: Any) -> str:
    """Return the value of an option as it may stand in a sentence.

    >>> short_value(None), short_value([1, 2])
    ('its default', '[1, 2]')
    """
    return "its default" if value is None else one_line(repr(value), 60)
