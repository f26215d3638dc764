"""Which weights of a model are tuned."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from zoreward.members.adapters import adapter_weights, has_adapter
from zoreward.members.new_weights import head_names
from zoreward.noise import canonical_name
from zoreward.records import InputError

KINDS = ("full", "lora", "prefix", "bias", "head", "last-N")
SHOWN_NAMES = 4


def check_tune(tune: str) -> None:
    """Find out, before a model is there, that `tune` says nothing.

    Raises:
        InputError: it is empty, no regular expression, or a number of layers below 1.
    """
    if not tune.strip():
        raise InputError(f"tune={tune!r} names no weight", hint=f"Choose one of {', '.join(KINDS)}.")
    if (layers := re.fullmatch(r"last-(\d+)", tune)) and int(layers[1]) < 1:
        raise InputError(f"tune={tune!r} names no layer", hint="last-1 is the last one.")
    try:
        re.compile(tune)
    except (re.error, OverflowError, RecursionError) as error:
        hint = f"Choose one of {', '.join(KINDS)}, or a regular expression for names of weights."
        raise InputError(f"tune={tune!r} is no regular expression: {error}", hint=hint) from None


def chosen_names(model: nn.Module, tune: str, named: Mapping[str, nn.Parameter]) -> set[str]:
    """Return the names of the weights that `tune` names.

    | tune | weights |
    |---|---|
    | `full` | all; of a model that has an adapter those of the adapter |
    | `lora`, `prefix` | those of the adapter that the model has |
    | `bias` | all biases, those of norms too |
    | `head` | those of the output layer, unless they are also the embedding's |
    | `last-N` | the last N transformer layers, the norm behind them, and the head unless it is also the embedding |
    | anything else | a regular expression, found anywhere in the canonical name |

    The head of a classifier or a masked model is all that stands behind its body, and BERT's pooler.

    Args:
        model: the model.
        tune: one of these.
        named: canonical name → weight, tied ones once.

    Raises:
        InputError: there are no such weights.
    """
    if has_adapter(model):
        if tune not in ("full", "lora", "prefix"):
            raise InputError(
                f"tune={tune!r} does not fit a model that has an adapter: the adapter is what is tuned and saved",
                hint="Leave it out, or merge the adapter first: model.merge_and_unload().",
            )
        own = adapter_weights(model)
        return {name for name, weight in named.items() if id(weight) in own}
    check_tune(tune)
    if tune == "full":
        return set(named)
    if tune == "bias":
        found = {name for name in named if name.rpartition(".")[2] == "bias"}
    elif tune == "head":
        found = _head(model, named)
        if not found:
            raise InputError("the model's output layer is its embedding, tied", hint="Take tune=last-1, or full.")
    elif layers := re.fullmatch(r"last-(\d+)", tune):
        found = _last_layers(model, int(layers[1]), named) | _head(model, named)
    else:
        found = {name for name in named if re.search(tune, name)}
    if not found:
        near = [] if tune in KINDS else difflib.get_close_matches(tune, KINDS, n=1)
        names = [*list(named)[: SHOWN_NAMES - 1], *list(named)[SHOWN_NAMES - 1 :][-1:]]
        meant = f"Did you mean {near[0]}? " if near else ""
        raise InputError(
            f"the model has no weight that tune={tune!r} names", hint=f"{meant}Names are {', '.join(names)}."
        )
    return found


def _head(model: nn.Module, named: Mapping[str, nn.Parameter]) -> set[str]:
    """The names of the output layer's own weights; of a classifier or masked model all that stands behind the body."""
    if type(model).__name__.endswith(("ForSequenceClassification", "ForMaskedLM")):
        return head_names(model) & set(named)
    found: Any = getattr(model, "get_output_embeddings", lambda: None)()
    embedding: Any = getattr(model, "get_input_embeddings", lambda: None)()
    tied = {id(weight) for weight in embedding.parameters()} if embedding is not None else set()
    own = {id(weight) for weight in found.parameters()} - tied if found is not None else set()
    return {name for name, weight in named.items() if id(weight) in own}


def _last_layers(model: nn.Module, count: int, named: Mapping[str, nn.Parameter]) -> set[str]:
    """The names in the last layers, and those of the norms that stand beside the list of layers."""
    place, layers = _layers(model)
    if count > len(layers):
        raise InputError(f"the model has {len(layers)} layers, not {count}", hint=f"Take last-1 to last-{len(layers)}.")
    prefixes = tuple(f"{place}.{number}." for number in range(len(layers) - count, len(layers)))
    parent = place.rpartition(".")[0]
    beside = f"{parent}." if parent else ""
    return {
        name
        for name, weight in named.items()
        if name.startswith(prefixes)
        or (weight.ndim == 1 and any(word in _module(name, beside) for word in ("norm", "ln_f")))
    }


def _module(name: str, beside: str) -> str:
    """The module next to the list of layers in which a weight hangs; empty for one that hangs elsewhere.

    >>> _module("model.norm.weight", "model."), _module("model.layers.0.norm.weight", "model.")
    ('norm', '')
    """
    inner = name.removeprefix(beside).split(".")
    return inner[0] if name.startswith(beside) and len(inner) == 2 and "embed" not in inner[0] else ""


def _layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The canonical name of the list of transformer layers, and the list; of an encoder–decoder the decoder's."""
    try:
        return layer_lists(model)[-1]
    except InputError as error:
        raise InputError(str(error), hint="Name its weights by a regular expression instead of last-N.") from None


def layer_lists(model: Any) -> list[tuple[str, nn.ModuleList]]:
    """Return the canonical name of the list of transformer layers, and the list; of an encoder–decoder, both lists.

    Raises:
        InputError: there is none.
    """
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return [_layers_in(model, model)]
    return [_layers_in(model, model.get_encoder()), _layers_in(model, model.get_decoder())]


def _layers_in(model: nn.Module, own: nn.Module) -> tuple[str, nn.ModuleList]:
    config: Any = getattr(own, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    counts = [getattr(config, name, None) for name in ("num_hidden_layers", "decoder_layers")]
    inside = {id(module) for module in own.modules()}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) in counts and id(module) in inside:
            return canonical_name(f"{name}.")[:-1], module
    raise InputError(
        f"{type(model).__name__} has no list of transformer layers", hint="Name its weights by a regular expression."
    )
