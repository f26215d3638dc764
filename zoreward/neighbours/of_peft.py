"""What we use of PEFT without its promise: its classes of layers, names of weights, tables of architectures."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Keep back warnings of PEFT that are no business of the user's: what it sets right, and what it calls.

    Private: the first words of these warnings.

    >>> with quiet_peft():
    ...     warnings.warn("fan_in_fan_out is set to False but the target module is `Conv1D`.")
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "fan_in_fan_out")  # PEFT sets it itself
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # PEFT asks for it
        yield


def adapter_kind(config: Any) -> str:
    """Return what kind of adapter a config is of: "LORA", "IA3", "PREFIX_TUNING", …

    Private: that `peft_type` is an enum in a config that was made, and a text in one that was read.
    """
    return str(getattr(config.peft_type, "value", config.peft_type))


def adapter_layers(model: nn.Module) -> list[Any]:
    """Return the layers that PEFT has put into a model. Each has `merged`, `disable_adapters` and `active_adapters`.

    Private: the class of them all.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def layers_that_merging_changes(model: nn.Module) -> list[nn.Module]:
    """Return the layers of the base that are others once an adapter is merged.

    Private: `get_base_layer`, and that a layer which is saved whole is kept as `original_module`.
    """
    layers: list[Any] = [layer.get_base_layer() for layer in adapter_layers(model)]
    return layers + [module.original_module for module in model.modules() if hasattr(module, "original_module")]


def has_lora_layers_for(model_type: str | None) -> bool:
    """Return whether PEFT knows by itself which layers of an architecture get LoRA.

    Private: its table.
    """
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    return model_type in TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING


def reshapes_prefixes_of(model_type: str) -> bool:
    """Return whether PEFT hands a prefix to an architecture in another shape than that of plain attention.

    Private: its table.
    """
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_PREFIX_TUNING_POSTPROCESS_MAPPING

    return model_type in TRANSFORMERS_MODELS_TO_PREFIX_TUNING_POSTPROCESS_MAPPING


def prefix_encoder(model: Any) -> Any:
    """Return what makes the active prefix of a PeftModel: an `embedding`, behind a network if `prefix_projection`.

    Private: where it hangs, and its attributes.
    """
    return model.prompt_encoder[model.active_adapter]


def prefix_shape(model: Any) -> tuple[int, int, int]:
    """Return tokens, layers and heads of the active prefix; its weight is (tokens, layers × 2 × heads × width).

    Private: the order of that weight's columns.
    """
    config = model.active_peft_config
    return config.num_virtual_tokens, config.num_layers, config.num_attention_heads


def is_lora_A(name: str) -> bool:
    """Return whether a weight of this name is LoRA's matrix A of a linear layer, (rank, inputs).

    Private: names of weights.
    """
    return ".lora_A." in name


def is_lora_embedding_B(name: str) -> bool:
    """Return whether a weight of this name is LoRA's matrix B of an embedding: there, B is the random one of the two.

    Private: names of weights.
    """
    return ".lora_embedding_B." in name
