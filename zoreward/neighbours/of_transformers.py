"""What we use of transformers without its promise: its cache, tables of architectures, counters of its callbacks."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# What transformers calls a model's keys and values: the first from release 5.24 on, the second before.
NEW_NAME, OLD_NAME = "cache", "past_key_values"
CACHE_NAMES = (NEW_NAME, OLD_NAME)


def cache_argument(accepts: Collection[str]) -> str:
    """Return the name under which a model takes its cache.

    Args:
        accepts: names of the arguments of its forward.

    >>> cache_argument({"input_ids", "cache"}), cache_argument({"input_ids", "past_key_values"})
    ('cache', 'past_key_values')
    """
    return next((name for name in CACHE_NAMES if name in accepts), library_name())


def cache_of(output: Any) -> Any:
    """Return the cache that a model's output holds, or None."""
    # Asked for the old name, newer releases answer with a warning.
    return getattr(output, library_name(), None)


@cache
def library_name() -> str:
    """Return the name that the installed transformers itself uses, also in outputs of models with code of their own."""
    from transformers.modeling_outputs import CausalLMOutputWithPast

    return NEW_NAME if NEW_NAME in {field.name for field in fields(CausalLMOutputWithPast)} else OLD_NAME


def keys_and_values(model_cache: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the keys and values of each layer, both (rows, heads, tokens, width); nothing where a layer has no such.

    Private: that a cache is a list `layers`, whose items have `keys` and `values`.
    """
    layers = getattr(model_cache, "layers", [])
    if not all(hasattr(layer, "keys") for layer in layers):
        return []
    return [(layer.keys, layer.values) for layer in layers]


def is_plain_attention(model_cache: Any) -> bool:
    """Return whether each layer of a cache keeps all tokens, so that rows can be picked and repeated.

    Private: that `DynamicLayer` is the layer of plain attention, and that others, as those of a sliding window, are
    subclasses of it.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    return isinstance(model_cache, DynamicCache) and all(type(layer) is DynamicLayer for layer in model_cache.layers)


@contextmanager
def attention_by(model: torch.nn.Module, attention: Callable[..., Any]) -> Iterator[None]:
    """Have the layers of a model that attend by "sdpa" attend by a function of ours, as long as the context lasts.

    Private: that layers look up the name of their attention in their config at each call, and its field there.

    Args:
        model: of transformers; layers that attend otherwise are left alone.
        attention: called as those that are registered with transformers' `AttentionInterface`; ours are all one entry.
    """
    from transformers import AttentionInterface

    ours, field = "zoreward", "_attn_implementation_internal"
    AttentionInterface.register(ours, attention)
    configs = {id(config): config for module in model.modules() if (config := getattr(module, "config", None))}
    changed = [config for config in configs.values() if getattr(config, field, None) == "sdpa"]
    try:
        for config in changed:
            setattr(config, field, ours)
        yield
    finally:
        for config in changed:
            setattr(config, field, "sdpa")


def plain_attention() -> Callable[..., Any]:
    """Return transformers' attention by "sdpa".

    Private: where it is.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return sdpa_attention_forward  # type: ignore[no-any-return]


def counts_from_last_key(model: Any) -> bool:
    """Return whether layers see the tokens next to the last key, whatever their mask says, as GPT-Neo's local ones do.

    Private: the field of its config that names the layers' kinds.
    """
    return "local" in str(getattr(model.config, "attention_layers", ""))


def attention_window(model: Any) -> int:
    """Return up to how many tokens all layers of a model see all of a text, so that one mask does for all of them.

    Private: the field of a config that says how far layers with a sliding window see; None or 0 is no window.
    """
    return getattr(model.config.get_text_config(), "sliding_window", None) or sys.maxsize


def masked_class_name(model_type: str) -> str:
    """Return the name of the class that fills masks in models of a type; "" where there is none.

    Private: the table from types to names of classes.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    return str(MODEL_FOR_MASKED_LM_MAPPING_NAMES.get(model_type, ""))


def adapter_config_path(name: str, revision: str | None = None) -> str | None:
    """Return where the `adapter_config.json` of a folder or Hub id lies; None where there is none.

    Private: the function that looks for it.
    """
    from transformers.utils.peft_utils import find_adapter_config_file

    path: str | None = find_adapter_config_file(name, revision=revision)
    return path


def missing_weights(report: Mapping[str, Any]) -> list[str]:
    """Return the names of the weights that a checkpoint lacks, or has in another shape; sorted.

    Private: what is in the report of `from_pretrained(output_loading_info=True)`.
    """
    return sorted(report["missing_keys"] | {entry[0] for entry in report.get("mismatched_keys", ())})


def makes_bias_table(module: torch.nn.Module) -> bool:
    """Return whether attention looks up its bias in a table once for all rows, as T5's does.

    Private: that it does so in a method `compute_bias` of its own.
    """
    return hasattr(type(module), "compute_bias")


def use_one_gpu_(args: Any) -> None:
    """Have a `Trainer` put no copies of the model on other GPUs.

    Private: that `TrainingArguments.n_gpu` reads `_n_gpu`.
    """
    args._n_gpu = 1


def checkpoint_of(model: Any) -> str:
    """Return the folder or Hub id that a model was loaded from; "" where it does not say.

    Private: the field of its config.
    """
    return str(getattr(getattr(model, "config", None), "_name_or_path", ""))


def start_logger(name: str) -> None:
    """Make what `report_to` names, as a trainer will; whatever this raises says that it is not known or not installed.

    Private: the function that has them all.
    """
    from transformers.integrations import get_reporting_integration_callbacks

    for kind in get_reporting_integration_callbacks([name]):
        kind()


def tensorboard_writers(callbacks: Iterable[Any]) -> list[Any]:
    """Return what writes for TensorBoard, where a run is logged there.

    Private: the field of the callback that holds it, None before the run.
    """
    from transformers.integrations import TensorBoardCallback

    writers = [callback.tb_writer for callback in callbacks if isinstance(callback, TensorBoardCallback)]
    return [writer for writer in writers if writer is not None]


def silence_(trainer: Any) -> None:
    """Take away what a `Trainer` prints of a run by itself.

    Private: which callbacks print.
    """
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)


def recount_patience_(callbacks: Iterable[Any], args: Any, scores: Sequence[float]) -> None:
    """Have early stopping, where it is among the callbacks, count these scores alone; the first is the best so far.

    Private: how `check_metric_value` is called, and the counter in which it counts.
    """
    for callback in _early_stopping(callbacks):
        callback.early_stopping_patience_counter, best = 0, None
        for score in scores:
            callback.check_metric_value(args, SimpleNamespace(best_metric=best), None, score)
            best = score if best is None else max(best, score)


def is_out_of_patience(callbacks: Iterable[Any]) -> bool:
    """Return whether early stopping, where it is among the callbacks, has counted enough to stop.

    Private: its counter.
    """
    return any(
        callback.early_stopping_patience_counter >= callback.early_stopping_patience
        for callback in _early_stopping(callbacks)
    )


def _early_stopping(callbacks: Iterable[Any]) -> list[Any]:
    from transformers import EarlyStoppingCallback

    return [callback for callback in callbacks if isinstance(callback, EarlyStoppingCallback)]


# How layers are divided among ranks, of the ways that transformers has: those that we take.
UNDIVIDED = "replicated_with_grad_allreduce"  # which without gradients is to leave a layer as it is
DIVIDED_BY = frozenset({"colwise", "rowwise", UNDIVIDED})
# By type of model: plans that transformers has none of.
_PLANS = {
    "opt": {
        **{f"model.decoder.layers.*.self_attn.{name}_proj": "colwise" for name in "qkv"},
        "model.decoder.layers.*.self_attn.out_proj": "rowwise",
        "model.decoder.layers.*.fc1": "colwise",
        "model.decoder.layers.*.fc2": "rowwise",
    }
}


def tensor_plan(model: Any) -> dict[str, str] | None:
    """Return how the layers of a model are divided among ranks, by their names with * for numbers; None: not known.

    Its embeddings and its head are not: their outputs are read as those of a whole model.

    Private: the plan that a model of transformers has, and its style that divides nothing.

    Args:
        model: it may lie on torch's meta device.
    """
    own = _PLANS.get(model.config.model_type) or getattr(model, "_tp_plan", None)
    if not own:
        return None
    whole = [model.get_input_embeddings(), model.get_output_embeddings()]
    names = [name for name, module in model.named_modules() if any(module is one for one in whole)]
    return {**own, **dict.fromkeys(names, UNDIVIDED)}


def divided_weights(model: Any, plan: Mapping[str, str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the names and weights of a whole model that are cut where it is divided by a plan.

    Private: that biases of what is cut by columns are cut, and others are not.
    """
    for name, weight in model.named_parameters():
        module, _, key = name.rpartition(".")
        style = plan.get(re.sub(r"\.\d+(?=\.|$)", ".*", module))
        if style == "colwise" or (style == "rowwise" and key == "weight"):
            yield name, weight


def divided_by(plan: Mapping[str, str], size: int) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` by which a model's layers are divided among so many ranks.

    Private: the config of what is divided, of which releases have more fields.
    """
    from transformers.distributed import DistributedConfig

    return {"distributed_config": DistributedConfig(tp_size=size, tp_plan=dict(plan))}


def take_parts_(model: Any, plan: Mapping[str, str], size: int) -> dict[str, tuple[tuple[int, ...], int, int]]:
    """Hang plain tensors into a divided model in the place of distributed ones, and let it forget that it is divided.

    Its layers go on to gather what they have to: without gradients they ask for nothing but plain tensors.

    Private: the forwards that were hung into modules, the fields by which a model knows that it is divided, and that
    OPT's attention cuts its heads by a number that it keeps.

    Args:
        model: as `from_pretrained` returned it.
        plan: by which it is divided.
        size: among how many ranks.

    Returns:
        Name → the shape of the whole weight, the dimension that is cut, and where this rank's part begins.

    Raises:
        ValueError: a weight is cut in another way.
    """
    import torch
    from torch.distributed.tensor import DTensor, Replicate, Shard

    parts: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for name, module in model.named_modules():
        if plan.get(name) == UNDIVIDED:
            module.__dict__.pop("forward", None)  # it only calls the module's own
        if model.config.model_type in _PLANS and hasattr(module, "q_proj"):
            module.num_heads //= size
        for key, weight in list(module._parameters.items()):
            if not isinstance(weight, DTensor):
                continue
            [placement], own = weight.placements, weight.to_local().detach().contiguous()
            if type(placement) is Shard:
                dim = placement.dim % weight.ndim
                first = own.shape[dim] * weight.device_mesh.get_local_rank()
                if own.shape[dim] * size != weight.shape[dim]:
                    raise ValueError(f"{name}.{key} is not cut into {size} parts of one size")
                parts[f"{name}.{key}"] = (tuple(weight.shape), dim, first)
            elif type(placement) is not Replicate:
                raise ValueError(f"{name}.{key} is cut by {placement}")
            module._parameters[key] = torch.nn.Parameter(own, requires_grad=False)
    model.config.__dict__.pop("distributed_config", None)
    model._tp_size = model._device_mesh = model._mesh_manager = None
    model._is_distributed_loading_by_transformers = False
    return parts
