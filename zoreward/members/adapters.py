"""Adapters of PEFT: made so that they can be made again, found in a model, merged."""

from __future__ import annotations

import copy
import sys
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from zoreward.members.new_weights import feed_prefix, prefix_weight
from zoreward.neighbours.of_peft import (
    adapter_kind,
    adapter_layers,
    has_lora_layers_for,
    is_lora_A,
    is_lora_embedding_B,
    layers_that_merging_changes,
    quiet_peft,
)
from zoreward.neighbours.of_torch import weights_in
from zoreward.noise import Purpose, SeedIndex, derive_seed, stream_of
from zoreward.noise import definition as noise
from zoreward.records import InputError

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel


# The options that a config may have: what they do follows from the config, the base and our seed alone. Others need
# data, change the base, or draw numbers of their own.
_OPTIONS = {
    "LORA": {
        *("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"),
        *("fan_in_fan_out", "init_lora_weights"),
    },
    "IA3": {"target_modules", "exclude_modules", "feedforward_modules", "modules_to_save", "fan_in_fan_out"},
}
_OF_ANY = {"peft_type", "task_type", "base_model_name_or_path", "revision", "inference_mode", "peft_version"}
TUNED_KINDS = "LoRA, DoRA, IA3 and prefixes can."
_BEGINNINGS = (True, "gaussian")


def has_adapter(model: nn.Module) -> bool:
    """Whether PEFT has put an adapter into the model."""
    return bool(getattr(model, "peft_config", None))


def check_no_adapter(model: nn.Module) -> None:
    """Refuse a model that has an adapter, where one is to be made.

    Raises:
        InputError: it has one.
    """
    if has_adapter(model):
        raise InputError(
            "the model has an adapter already", hint="It is what is tuned: leave tune and peft_config out."
        )


def called_model(model: nn.Module) -> nn.Module:
    """Return transformers' own model: that in a PeftModel, which has the adapter's layers in it and runs alone.

    A prefix is not in it: it is fed to it by a hook.
    """
    peft: Any = sys.modules.get("peft")
    if peft is None or not isinstance(model, peft.PeftModel):
        return model
    if adapter_kind(model.active_peft_config) == "PREFIX_TUNING":
        feed_prefix(model)
    inner: nn.Module = model.get_base_model()
    return inner


def lora_config(model: nn.Module, rank: int, alpha: int) -> PeftConfig:
    """Return LoRA's config: PEFT's own choice of layers for the architecture, or all linear ones where it has none.

    Raises:
        InputError: rank or alpha is below 1.
    """
    from peft import LoraConfig

    for name, value in (("lora_rank", rank), ("lora_alpha", alpha)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, not {value}", hint="The usual ones are 8 and 16.")
    known = has_lora_layers_for(getattr(getattr(model, "config", None), "model_type", None))
    return LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=None if known else "all-linear", task_type=task_type(model)
    )


def task_type(model: nn.Module) -> str | None:
    """Return what PEFT calls what a model does: `CAUSAL_LM`, `SEQ_2_SEQ_LM`, or nothing for what does not write."""
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return "SEQ_2_SEQ_LM"
    return "CAUSAL_LM" if hasattr(model, "prepare_inputs_for_generation") else None


def adapted(model: nn.Module, config: PeftConfig, seed: int) -> PeftModel:
    """Put an adapter into a model. Its first weights follow from the seed, on every device; nothing global is drawn.

    LoRA's A is even over ±1/√n for n inputs (or normal, with init_lora_weights="gaussian"), B is 0; DoRA's lengths
    are those of the base; IA3's factors are 1. float32 beside a base of half precision.

    Args:
        model: the base; changed in place.
        config: LoRA's, with or without DoRA, or IA3's; left as it is.
        seed: of the run.

    Raises:
        InputError: another kind of adapter, an option that cannot be made again, or layers that the model has not.
    """
    from peft import get_peft_model

    check_no_adapter(model)
    _check_config(config)
    devices = sorted({weight.device.index or 0 for weight in model.parameters() if weight.is_cuda})
    try:
        with torch.random.fork_rng(devices), quiet_peft():
            wrapped = get_peft_model(model, copy.deepcopy(config), revision=getattr(model, "hub_revision", None))
    except ValueError as error:
        message = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"PEFT cannot make this adapter: {message}", hint="Change target_modules.") from error
    # PEFT keeps names of modules in sets, whose order differs from one object to the next, and writes them so.
    for own in wrapped.peft_config.values():
        for name, value in vars(own).items():
            if isinstance(value, set):
                setattr(own, name, sorted(value))
    _draw(wrapped, derive_seed(seed, 0, SeedIndex.ADAPTER))
    return wrapped


def adapter_options(model: PeftModel) -> dict[str, Any]:
    """Return what makes an adapter of `adapted` again, for JSON: its kind, and the options that are not empty."""
    config = model.peft_config[_active(model)]
    kind = adapter_kind(config)
    plain = {name: value for name, value in config.to_dict().items() if name in _OPTIONS[kind] and value}
    if kind == "IA3" and isinstance(plain["target_modules"], list):  # PEFT fills it up with layers it does not find
        known = [name for name in plain.get("feedforward_modules", ()) if name in plain["target_modules"]]
        plain["feedforward_modules"] = known
    return {"peft_type": kind, **plain}


def config_of(options: Mapping[str, Any], task: str | None = "CAUSAL_LM") -> PeftConfig:
    """Return the config that `adapter_options` told of; the options may come from a stranger's file.

    Args:
        options: what the run's header says.
        task: see `task_type`.

    Raises:
        InputError: they are none of ours.
    """
    from peft import IA3Config, LoraConfig

    kinds: dict[Any, Any] = {"LORA": LoraConfig, "IA3": IA3Config}
    kind, given = options.get("peft_type"), {name: options[name] for name in options if name != "peft_type"}
    if not isinstance(kind, str) or kind not in kinds or not given.keys() <= _OPTIONS[kind]:
        raise InputError("the run's adapter is of no known kind", hint="Take the zoreward that wrote it.")
    try:
        config = kinds[kind](task_type=task, **given)
    except (TypeError, ValueError) as error:
        raise InputError(f"the run's adapter cannot be made: {error}", hint="Ask for another copy.") from None
    _check_config(config)
    return config


def adapter_weights(model: nn.Module) -> set[int]:
    """Return the ids of the weights that an adapter's file holds: those of the active adapter.

    Raises:
        InputError: the adapter cannot be tuned as it is.
    """
    peft_config: Any = model.peft_config
    if [adapter_kind(config) for config in peft_config.values()] == ["PREFIX_TUNING"]:
        return {id(prefix_weight(model))}
    return {id(weight) for weight in adapter_state(model)[0].values()}


def adapter_state(model: nn.Module) -> tuple[dict[str, torch.Tensor], PeftConfig]:
    """Return the weights of the active adapter by the names that its file has for them, and its config.

    Raises:
        InputError: the adapter cannot be tuned as it is.
    """
    from peft import get_peft_model_state_dict

    peft_config: Any = model.peft_config
    name = _active(model)
    if (kind := adapter_kind(peft_config[name])) not in _OPTIONS:
        raise InputError(f"{kind} adapters cannot be tuned yet", hint=TUNED_KINDS)
    state = model.state_dict(keep_vars=True)
    held = get_peft_model_state_dict(model, state_dict=state, adapter_name=name, save_embedding_layers=False)
    return dict(held), peft_config[name]


def merged_copy(model: PeftModel) -> nn.Module:
    """Return a copy of the whole model on the CPU, with its adapter merged into the weights.

    Weights that are tied, as those of an embedding and an output layer may be, are two where one of them has an
    adapter's part of its own; the copy's config then says so.

    Raises:
        InputError: the adapter is a prefix.
    """
    check_merge(model)
    tensors = [*model.parameters(), *model.buffers()]
    copies = {id(tensor): tensor.detach().to("cpu", copy=True) for tensor in tensors}
    for weight in model.parameters():
        copies[id(weight)] = nn.Parameter(copies[id(weight)], requires_grad=False)
    whole = copy.deepcopy(model, memo=copies)
    _untie_(whole)
    with warnings.catch_warnings():  # they are untied by now, and the config says so below
        warnings.filterwarnings("ignore", "Model with `tie_word_embeddings=True`")
        warnings.filterwarnings("ignore", "Input and output embeddings are no longer tied")
        merged: Any = whole.merge_and_unload()
    ends = [end for end in _ends(merged) if end is not None]
    if len({id(end.weight) for end in ends}) == 2:
        merged.config.tie_word_embeddings = False
        merged.config.get_text_config().tie_word_embeddings = False
    whole_model: nn.Module = merged
    return whole_model


def _untie_(model: nn.Module) -> None:
    """Give each layer that changes a weight of its own, where another layer has the same: it is to change alone."""
    holders = _holders(model)
    for layer in layers_that_merging_changes(model):
        for key, weight in weights_in(layer).items():
            if weight is not None and holders[id(weight)] > 1:
                weights_in(layer)[key] = nn.Parameter(weight.detach().clone(), requires_grad=False)


def check_merge(model: nn.Module) -> None:
    """Find out whether a model's adapter can be merged.

    Raises:
        InputError: it is a prefix; or of a weight that is tied in a way that a saved model cannot take apart.
    """
    peft_config: Any = model.peft_config
    if any(adapter_kind(config) == "PREFIX_TUNING" for config in peft_config.values()):
        raise InputError("a prefix cannot be merged into the weights", hint="Leave merge out.")
    holders = _holders(model)
    tied = {key for key, count in holders.items() if count > 1}
    changed = {id(weight) for layer in layers_that_merging_changes(model) for weight in weights_in(layer).values()}
    ends = _ends(called_model(model))
    embedding = {id(weight) for end in ends if end is not None for weight in end.parameters()}
    if tied & changed and not (len(tied) == 1 and holders[min(tied)] == 2 and tied <= embedding):
        raise InputError(
            "the adapter changes a weight that is tied to others, and they cannot be saved apart",
            hint="Leave merge out, or leave embeddings and the output layer out of target_modules and modules_to_save.",
        )


@torch.no_grad()
def check_merged(model: nn.Module, merged: nn.Module, tokens: Sequence[int]) -> None:
    """Find out whether a merged model gives what the model with its adapter gives, up to rounding.

    Of n modules each rounds its output once, in both, to 2^-p of its size, and so does each merged weight: as
    independent errors they add to √n · 2^-p of the logits' spread. Twice that may differ, and 1e-4 at least.

    Args:
        model: with its adapter.
        merged: the copy.
        tokens: of a row.

    Raises:
        InputError: they differ by more.
    """
    whole: Any = called_model(model)
    inputs = {"input_ids": torch.tensor([list(tokens)])}
    if getattr(whole.config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = torch.tensor([[whole.config.decoder_start_token_id or 0]])
    logits = []
    for one in (whole, merged):
        device = next(one.parameters()).device
        logits.append(one(**{name: ids.to(device) for name, ids in inputs.items()}).logits.double().cpu())
    spread = float(logits[0].std(correction=0)) or 1.0
    difference = float((logits[1] - logits[0]).square().mean().sqrt()) / spread
    dtype = max(merged.parameters(), key=torch.Tensor.numel).dtype
    least = max(1e-4, len(list(merged.modules())) ** 0.5 * torch.finfo(dtype).eps)
    if not difference <= least:  # NaN neither
        raise InputError(
            f"the merged model's logits are off by {difference:.2%} of their spread; rounding explains {least:.2%}",
            hint="Leave merge out. The run is whole: zoreward replay RUN --model BASE --output FOLDER has the adapter.",
        )


def _ends(model: Any) -> list[Any]:
    """A model's embedding and its output layer; None for one that it does not have."""
    return [getattr(model, f"get_{end}_embeddings", lambda: None)() for end in ("input", "output")]


def _holders(model: nn.Module) -> Counter[int]:
    """In how many modules each weight hangs, by its id."""
    weights = (weight for module in model.modules() for weight in weights_in(module).values())
    return Counter(id(weight) for weight in weights if weight is not None)


def _active(model: nn.Module) -> str:
    """The name of the one adapter that is at work."""
    layers = adapter_layers(model)
    if not layers:
        peft_config: Any = model.peft_config
        kinds = sorted({adapter_kind(config) for config in peft_config.values()})
        raise InputError(f"{', '.join(kinds)} adapters cannot be tuned yet", hint=TUNED_KINDS)
    if any(layer.merged or layer.disable_adapters for layer in layers):
        raise InputError("the model's adapter is merged or disabled", hint="Load it again, or merge it for good.")
    names = sorted({name for layer in layers for name in layer.active_adapters})
    if len(names) != 1:
        raise InputError(
            f"the model has {len(names)} active adapters", hint='Choose one: model.set_adapter("default").'
        )
    return str(names[0])


def _check_config(config: PeftConfig) -> None:
    """Refuse what could not be made again from the base and a seed."""
    kind = adapter_kind(config)
    if kind not in _OPTIONS:
        raise InputError(f"{kind} adapters cannot be tuned yet", hint=TUNED_KINDS)
    defaults = type(config)().to_dict()
    for name, value in config.to_dict().items():
        if name not in _OPTIONS[kind] | _OF_ANY and value != defaults[name]:
            raise InputError(
                f"an adapter with {name}={value!r} cannot be made again from the base and a seed",
                hint="Make it with get_peft_model, save it, and tune that model.",
            )
    if kind == "LORA" and config.init_lora_weights not in _BEGINNINGS:
        raise InputError(
            f"init_lora_weights={config.init_lora_weights!r} cannot be made again from the base and a seed",
            hint="Take True or 'gaussian'; or make it with get_peft_model, save it, and tune that model.",
        )


@torch.no_grad()
def _draw(model: PeftModel, seed: int) -> None:
    """Give LoRA's random matrices the values that follow from the seed."""
    config: Any = model.peft_config["default"]
    gaussian = getattr(config, "init_lora_weights", None) == "gaussian"
    for name, weight in model.named_parameters():
        stream, size = stream_of(name), weight.numel()
        if is_lora_embedding_B(name):
            first = noise.normal(seed, stream, 0, size, Purpose.FIRST_WEIGHTS)
        elif not is_lora_A(name):
            continue
        elif gaussian:
            first = noise.normal(seed, stream, 0, size, Purpose.FIRST_WEIGHTS) * np.float32(1 / weight.shape[0])
        else:
            bound = np.float32(weight[0].numel() ** -0.5)
            first = noise.uniform(seed, stream, 0, size, Purpose.FIRST_WEIGHTS) * bound
        weight.copy_(torch.from_numpy(first).view(weight.shape))
