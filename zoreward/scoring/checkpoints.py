"""What the name of a model stands for, before its weights are read: whole or an adapter, of which kind, its classes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from zoreward.data import PAIRS, at_revision, check_hub, classes_of, holds_model, parted
from zoreward.neighbours.of_transformers import adapter_config_path, masked_class_name
from zoreward.records import InputError, MissingFileError, NoRoomError, named

if TYPE_CHECKING:
    from torch import nn

# What a model gives for a row: the next tokens, the token at a mask, a class, how good an answer is, or a second text.
Kind = Literal["causal", "masked", "classifier", "ranker", "encoder-decoder"]

# RoBERTa and its kin: their first token has the position behind that of the padding token, so 514 positions are 512.
COUNTED_FROM_PADDING = (
    *("camembert", "data2vec-text", "ibert", "longformer", "luke", "mpnet", "roberta", "roberta-prelayernorm"),
    *("xlm-roberta", "xlm-roberta-xl", "xmod"),
)


@dataclass(frozen=True, slots=True)
class Head:
    """What a model gives for a row.

    Args:
        kind: of the model.
        classes: a classifier's, in the order of its outputs.
        is_new: whether a classifier's head is made for this run, and not part of the checkpoint.
    """

    kind: Kind = "causal"
    classes: tuple[str, ...] = ()
    is_new: bool = False

    @property
    def reads_whole(self) -> bool:
        """Whether it reads a text as a whole, instead of going on with it."""
        return self.kind not in ("causal", PAIRS)


def head_of(
    model: nn.Module | str,
    rows: Sequence[dict[str, Any]] = (),
    *,
    head: str | None = None,
    choices: Sequence[str] | None = None,
    label: str = "label",
    trust_remote_code: bool = False,
) -> Head:
    """Return what kind of model this is, and its classes.

    Args:
        model: a folder or Hub id, or a loaded model.
        rows: those to tune on, from which the classes of a new head follow.
        head: `classifier` for a new head; None for what the checkpoint has.
        choices: the classes, if they are given.
        label: the column of labels.
        trust_remote_code: run the code that comes with the model.

    Raises:
        ZorewardError: there is no such model, its head gives no classes, or a new head makes no sense.
    """
    config = config_of_model(model, trust_remote_code=trust_remote_code)
    kind = kind_of(model) if not isinstance(model, str) else model_kind(config)
    if head is not None:
        if not isinstance(model, str):
            raise InputError(
                "a loaded model has its head already", hint="Give its folder or Hub id, or leave head out."
            )
        if adapter_base(model) is not None:
            raise InputError("an adapter keeps no new head", hint="Give its base, or merge it first.")
        rows = list(rows)
        return Head("classifier", classes_of(rows, choices, label), is_new=True)
    if kind != "classifier":
        return Head(kind)
    names = getattr(config, "id2label", None) or {}
    classes = tuple(str(names[number]) for number in sorted(names, key=int))
    if len(classes) < 2:  # a cross-encoder, or a reward model
        return Head("ranker")
    if getattr(config, "problem_type", None) == "multi_label_classification":
        raise InputError("the model's classes do not exclude each other", hint="Take one with one class for a row.")
    return Head(kind, classes)


def check_needs(needs: str, head: Head) -> None:
    """Refuse an objective of texts for a model that writes none.

    Raises:
        InputError: it is one.
    """
    if head.reads_whole and needs == "completions":
        name = "a masked model" if head.kind == "masked" else f"a {head.kind}"
        hint = "take an objective of choices, such as accuracy, or a causal model"
        raise InputError(f"{name} writes no text, which the objective needs", hint=hint)
    if head.kind == "ranker" and needs == "likelihood":
        hint = "take an objective of choices, such as accuracy or preference"
        raise InputError("a head with one output compares answers; how likely one is, it does not say", hint=hint)


def kind_of(model: nn.Module) -> Kind:
    """Return what kind of model a loaded one is: by its class, since a config may name that of its checkpoint."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    return model_kind(getattr(inner, "config", None), type(inner).__name__)


def config_of_model(source: Any, *, trust_remote_code: bool = False) -> Any:
    """Return a model's config: that of the base for an adapter, or the source itself where it is one.

    Args:
        source: a folder or Hub id, a loaded model, or a config.
        trust_remote_code: run the code that comes with it.

    Raises:
        ZorewardError: there is no such model, or its config cannot be read.
    """
    if not isinstance(source, str):
        return getattr(source, "config", source)
    check_model_name(source)
    return load_config(adapter_base(source) or source, trust_remote_code=trust_remote_code)


def model_kind(config: Any, architecture: str | None = None) -> Kind:
    """Return which kind of model a checkpoint is: by the architecture that it names, else by its type.

    A checkpoint that names several, or a body without a head, counts as what its type was pretrained for; one that
    names none of the four, such as a picture model that writes, as causal.

    Args:
        config: a `PretrainedConfig`, of a checkpoint or of a loaded model.
        architecture: that of a loaded model, whose config may name its checkpoint's; by default what the config names.

    >>> from transformers import BertConfig, GPT2Config, T5Config
    >>> model_kind(GPT2Config()), model_kind(BertConfig()), model_kind(T5Config())
    ('causal', 'masked', 'encoder-decoder')
    >>> model_kind(GPT2Config(architectures=["GPT2ForSequenceClassification"]))
    'classifier'
    """
    architecture = architecture or str(next(iter(getattr(config, "architectures", None) or ()), ""))
    if architecture.endswith("ForSequenceClassification"):
        return "classifier"
    if getattr(config, "is_encoder_decoder", False):
        return "encoder-decoder"
    # BERT's family has heads for both: its plain checkpoints are masked models, unless they say that they decode.
    decodes = architecture.endswith(("ForCausalLM", "LMHeadModel")) or getattr(config, "is_decoder", False)
    masked = masked_class_name(getattr(config, "model_type", ""))
    return "masked" if masked and (architecture == masked or not decodes) else "causal"


def load_config(name: str, *, trust_remote_code: bool = False) -> Any:
    """Load the config of a model that is whole.

    Raises:
        InputError: there is none.
    """
    from transformers import AutoConfig

    with names_the_model(name):
        source, place = parted(name)
        return AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code, **place)


def adapter_base(name: str) -> str | None:
    """Return the base that an adapter of PEFT belongs to; None for a model that is whole.

    Args:
        name: a folder or a Hub id.

    Raises:
        InputError: the adapter's config names no base, or one that is not there.
    """
    settings = _adapter_settings(name)
    if settings is None:
        return None
    base = settings.get("base_model_name_or_path")
    hint = "Write the base's folder or Hub id into its adapter_config.json, as base_model_name_or_path."
    if not base or not isinstance(base, str):
        raise InputError(f"the adapter '{name}' does not say what its base is", hint=hint)
    try:
        check_model_name(base)
    except (InputError, MissingFileError) as error:
        raise InputError(f"the base of the adapter '{name}' is not there: {error}", hint=hint) from error
    return base if os.path.exists(base) else at_revision(base, settings.get("revision"))


def prefix_length(source: Any) -> int:
    """Return how many tokens of a prefix stand in front of every row: 0 for most.

    Args:
        source: a folder or Hub id, or a model.
    """
    if isinstance(source, str):
        return int((_adapter_settings(source) or {}).get("num_virtual_tokens") or 0)
    configs = getattr(source, "peft_config", None) or {}
    return sum(int(getattr(config, "num_virtual_tokens", None) or 0) for config in configs.values())


def length_limit(
    max_length: int | None, source: Any, *, prefix: int | None = None, trust_remote_code: bool = False
) -> int | None:
    """Return how many tokens of prompt and answer a model is given: what is asked for, within its context.

    Args:
        max_length: what is asked for; None: all that the model can read.
        source: its config, or a folder or Hub id to load it from, or the model.
        prefix: tokens that stand in front of every row; by default those of the adapter that the source has.
        trust_remote_code: run the code that comes with it.

    Raises:
        InputError: less than one token is asked for.

    >>> from transformers import GPT2Config, RobertaConfig
    >>> [length_limit(wanted, GPT2Config(n_positions=64)) for wanted in (None, 32, 100)]
    [64, 32, 64]
    >>> length_limit(None, RobertaConfig(max_position_embeddings=514))
    512
    """
    from transformers import PretrainedConfig

    if max_length is not None and max_length < 1:
        raise InputError(f"max_length={max_length} leaves no room for a prompt", hint="It is 1 or more.")
    config = config_of_model(source, trust_remote_code=trust_remote_code).get_text_config()
    context = getattr(config, "max_position_embeddings", None)
    if context and config.model_type in COUNTED_FROM_PADDING:
        context -= 1 + (config.pad_token_id or 0)
    if context and not isinstance(source, PretrainedConfig):
        context -= prefix_length(source) if prefix is None else prefix
    return min((limit for limit in (max_length, context) if limit), default=None)


def _adapter_settings(name: str) -> dict[str, Any] | None:
    """The `adapter_config.json` of an adapter; None for a model that is whole."""
    source, place = parted(name)
    found = adapter_config_path(source, **place)
    if found is None:
        return None
    try:
        settings = json.loads(Path(found).read_text(encoding="utf-8"))
        if not isinstance(settings, dict):
            raise TypeError("its adapter_config.json holds no pairs of names and values")
        return settings
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"the adapter '{name}' cannot be read", hint=first_line(error)) from error


def check_model_name(name: str) -> None:
    """Find out, before anything is imported or downloaded, that `name` is no model.

    Raises:
        MissingFileError: it looks like a path and does not exist.
        InputError: a file, a folder without the `config.json` of a model or the `adapter_config.json` of an adapter, no
            possible Hub id, or no way to the Hub.
    """
    path, (source, place) = Path(name), parted(name)
    # Not Path.is_dir, which raises where a name is too long to be one.
    if os.path.isdir(path):
        if not holds_model(path):
            hint = "Give a folder that save_pretrained wrote, or a Hub id such as facebook/opt-125m."
            if holds_model(path / "model"):
                hint = f"A run's model is in its folder: '{path / 'model'}'. Else give one that save_pretrained wrote."
            raise InputError(f"the folder '{name}' is no model: it has no config.json", hint=hint)
    elif os.path.exists(path):
        raise InputError(f"'{name}' is a file, not a model", hint="Give the folder that holds config.json.")
    elif not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) or name.startswith("."):
        raise MissingFileError(f"there is no model folder '{name}'", hint="Give a folder, or a Hub id such as gpt2.")
    else:
        from huggingface_hub import try_to_load_from_cache

        names = ("config.json", "adapter_config.json")
        try:
            cached = any(isinstance(try_to_load_from_cache(source, one, **place), str) for one in names)
        except ValueError as error:  # no possible name of the Hub's
            hint = "Give a folder, or a Hub id such as gpt2."
            raise MissingFileError(f"there is no model folder '{name}'", hint=hint) from error
        if not cached:
            check_hub(f"the model '{name}'")


@contextmanager
def names_the_model(name: str) -> Iterator[None]:
    """Say which model cannot be loaded."""
    import torch

    try:
        yield
    except (InputError, MissingFileError):
        raise
    except torch.OutOfMemoryError as error:
        raise NoRoomError(f"'{name}' does not fit the memory of its device", hint=first_line(error)) from error
    except Exception as error:  # safetensors, sentencepiece and others raise their own
        # transformers points to a report, which is kept back, and to an argument that nobody here can give
        other_shapes = "ignore_mismatched_sizes" in str(error)
        hint = "its weights have other shapes than its config.json says: take another copy of it"
        message = f"no language model could be loaded from '{name}'"
        raise InputError(message, hint=hint if other_shapes else first_line(error)) from error


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, and the next where it ends with a colon; or its name.

    >>> first_line(ValueError("no such dtype\\nand so on")), first_line(ValueError("wrong size:\\n  many\\nand so on"))
    ('no such dtype', 'wrong size: many')
    >>> first_line(KeyError("MAGIC"))
    "KeyError: 'MAGIC'"
    """
    lines = str(error).strip().splitlines()
    if not lines or isinstance(error, KeyError):  # which says the key alone
        return named(error)
    return " ".join(line.strip() for line in lines[: 2 if lines[0].rstrip().endswith(":") else 1])
