"""Models and tokenizers by path or Hub id, with errors that say what to do."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from zoreward.data import WHOLE, parted
from zoreward.members import draw_head_, first_spread, head_names, new_names
from zoreward.neighbours.of_peft import quiet_peft
from zoreward.neighbours.of_transformers import divided_by, missing_weights
from zoreward.records import InputError
from zoreward.scoring.checkpoints import (
    Kind,
    adapter_base,
    check_model_name,
    first_line,
    load_config,
    model_kind,
    names_the_model,
)
from zoreward.scoring.devices import check_device_map, check_loaded, checked_device, first_device

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


DTYPES = ("auto", "float32", "bfloat16", "float16")


def load_tokenizer(name: str, *, trust_remote_code: bool = False, kind: Kind = "causal") -> PreTrainedTokenizerBase:
    """Load a tokenizer and make it ready; see `prepare_tokenizer`.

    Args:
        name: a folder or a Hub id.
        kind: of its model.
        trust_remote_code: run the code that comes with it.

    Raises:
        MissingFileError: a path that does not exist.
        InputError: a folder without a tokenizer, or a Hub id that cannot be reached.
    """
    from transformers import AutoTokenizer

    check_model_name(name)
    base = adapter_base(name)
    if base is not None and not Path(name, "tokenizer_config.json").is_file():
        return load_tokenizer(base, trust_remote_code=trust_remote_code, kind=kind)
    try:
        source, place = parted(name)
        found = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code, **place)
        return prepare_tokenizer(found, kind)
    except Exception as error:
        raise InputError(f"no tokenizer could be loaded from '{name}'", hint=first_line(error)) from error


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase, kind: Kind = "causal") -> PreTrainedTokenizerBase:
    """Give a tokenizer left padding and, where it has none, its end-of-sequence token as padding.

    That of a masked model or a classifier keeps its side: most of those read positions from the left.
    """
    if kind not in WHOLE:
        tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def load_model(
    name: str,
    *,
    dtype: str | None = None,
    device: Any = None,
    device_map: str | None = None,
    trust_remote_code: bool = False,
    divided: tuple[Mapping[str, str], int] | None = None,
) -> PreTrainedModel:
    """Load a model for scoring, in eval mode; with an adapter where `name` is that of an adapter.

    Its architecture says whether it comes as a causal language model, a masked one, an encoder–decoder, or a
    classifier; see `model_kind`.

    Args:
        name: a folder or a Hub id. With an adapter's the base is loaded that its config names, and the adapter put in.
        dtype: `float32`, `bfloat16`, `float16` or `auto`, the checkpoint's own; by default `float32` on a CPU and
            `auto` elsewhere.
        device: where to; by default the GPU if there is one.
        device_map: instead of a device: how to spread its layers over the GPUs that are seen, one of `DEVICE_MAPS`;
            weights go straight to their place.
        trust_remote_code: run the code that comes with it.
        divided: by which plan, and among how many ranks; see `zoreward.scoring.divided`.

    Raises:
        MissingFileError: a path that does not exist.
        InputError: something that is no language model, a checkpoint that lacks some of its weights, an adapter whose
            base is not there, an unknown dtype, no such device, or GPUs that do not hold it all.
        NoRoomError: the device ran out of memory.
    """
    check_device_map(device_map, device)
    base = _checked_base(name)
    kind = model_kind(load_config(base or name, trust_remote_code=trust_remote_code))
    with names_the_model(name):
        settings = divided_by(*divided) if divided is not None else {}
        model, missing = _loaded(base or name, kind, dtype, device, device_map, trust_remote_code, **settings)
    if missing:
        hint = "Take a checkpoint with its head; or give the base with --head classifier for a new one."
        raise InputError(f"'{name}' lacks weights of {type(model).__name__}: {missing[0]}", hint=hint)
    with names_the_model(name):
        if base is not None:
            model = _with_adapter(model, name)
        return _placed(model, device, device_map).eval()


def load_with_head(
    name: str,
    classes: Sequence[str],
    seed: int,
    *,
    dtype: str | None = None,
    device: Any = None,
    device_map: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, list[str]]:
    """Load a model with a new classification head, whose first weights follow from the seed, on every device.

    Args:
        name: a folder or a Hub id, of a model with or without a head; see `load_model`.
        classes: at least two names.
        seed: of the run.
        dtype, device, device_map, trust_remote_code: see `load_model`.

    Returns:
        The model, and the canonical names of the new weights: those that the checkpoint lacks, and the last layer.

    Raises:
        MissingFileError, InputError: as `load_model`; or the architecture has no classifier.
    """
    check_device_map(device_map, device)
    _checked_base(name)
    with names_the_model(name):
        numbered = dict(enumerate(classes))
        settings = {"id2label": numbered, "label2id": {text: number for number, text in numbered.items()}}
        settings |= {"num_labels": len(classes), "ignore_mismatched_sizes": True}
        model, missing = _loaded(name, "classifier", dtype, device, device_map, trust_remote_code, **settings)
    own = head_names(model)
    if strangers := [one for one in missing if one not in own]:
        raise InputError(f"'{name}' lacks weights of {type(model).__name__}: {strangers[0]}", hint="Take another copy.")
    new = new_names(model, missing, len(classes))
    draw_head_(model, new, seed, first_spread(model))
    return _placed(model, device, device_map).eval(), new


def _checked_base(name: str) -> str | None:
    check_model_name(name)
    base = adapter_base(name)
    # Before the base is loaded; and PEFT would look for them on the Hub.
    if base is not None and os.path.isdir(name) and not any(Path(name).glob("adapter_model*")):
        raise InputError(
            f"the adapter '{name}' has no weights: there is no adapter_model.safetensors in it",
            hint="Give a folder that save_pretrained wrote.",
        )
    return base


def _loaded(
    name: str,
    kind: Kind,
    dtype: str | None,
    device: Any,
    device_map: str | None,
    trust_remote_code: bool,
    **settings: Any,
) -> tuple[PreTrainedModel, list[str]]:
    """A model on the CPU, or where its map puts it, and the weights that its checkpoint lacks."""
    import torch
    from transformers.utils import logging

    dtype = checked_dtype(dtype, checked_device(first_device() if device is None else device))
    source, place = parted(name)
    if device_map is not None:
        settings["device_map"] = device_map
    # transformers draws the weights that are missing: not from the global state. What they are, we look at ourselves.
    with torch.random.fork_rng(devices=[]), _without_warnings():
        model, told = _auto(kind).from_pretrained(
            source, dtype=dtype, trust_remote_code=trust_remote_code, output_loading_info=True, **place, **settings
        )
    model.hub_revision = place.get("revision")
    missing = missing_weights(told)
    superfluous = sorted(told.get("unexpected_keys", ()))
    if superfluous and kind not in WHOLE:  # those have other heads than their checkpoints as a matter of course
        logging.get_logger(__name__).warning("'%s' holds weights that have no place: %s, …", name, superfluous[0])
    return model, missing


def _auto(kind: Kind) -> Any:
    """The class of transformers that loads models of a kind."""
    import transformers

    ending = {"causal": "CausalLM", "masked": "MaskedLM", "encoder-decoder": "Seq2SeqLM"}.get(kind)
    return getattr(transformers, f"AutoModelFor{ending or 'SequenceClassification'}")


def _placed(model: PreTrainedModel, device: Any, device_map: str | None) -> PreTrainedModel:
    if device_map is None:
        return model.to(checked_device(first_device() if device is None else device))
    check_loaded(model)
    return model


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Keep transformers' report of missing and superfluous weights back."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def checked_dtype(dtype: str | None, device: torch.device) -> str:
    """Return the dtype of the weights on a device: what is asked for, or the default.

    Raises:
        InputError: there is no such dtype.
    """
    # Half precision on a CPU: bfloat16 products are emulated on most, and float16 attention is not implemented on some.
    dtype = ("float32" if device.type == "cpu" else "auto") if dtype is None else dtype
    if dtype not in DTYPES:
        raise InputError(f"there is no dtype '{dtype}'", hint=f"Choose one of {', '.join(DTYPES)}.")
    return dtype


def blank_model(
    name: str, *, dtype: str | None, device: torch.device, trust_remote_code: bool = False, classes: int = 0
) -> Any:
    """Return what `load_model` would load, without its weights: on torch's meta device, where nothing has values.

    Args:
        name: a folder or a Hub id.
        dtype: as for `load_model`. With `auto`, a checkpoint whose config names none counts as float32.
        device: where the model would be loaded to.
        trust_remote_code: run the code that comes with it.
        classes: with a new head of so many; 0: as `load_model` loads it.

    Returns:
        The model; None where its weights are quantised, or where it cannot be made without them.

    Raises:
        ZorewardError: there is no such dtype, or the adapter is none.
    """
    import torch
    from transformers import AutoConfig

    wanted, base = checked_dtype(dtype, device), adapter_base(name)
    trust = {"trust_remote_code": trust_remote_code}
    try:
        source, place = parted(base or name)
        config = AutoConfig.from_pretrained(source, **trust, **place)
        if getattr(config, "quantization_config", None) is not None:
            return None
        own = getattr(config.get_text_config(), "dtype", None) or torch.float32
        if classes:
            config.num_labels = classes
        kind = "classifier" if classes else model_kind(config)
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            model: Any = _auto(kind).from_config(
                config, dtype=own if wanted == "auto" else getattr(torch, wanted), **trust
            )
            if base is not None:
                from peft import PeftConfig, get_peft_model

                source, place = parted(name)
                with quiet_peft():
                    model = get_peft_model(model, PeftConfig.from_pretrained(source, **place))
    except Exception:  # loading it will tell what is wrong; code that came with it may want weights at once
        return None
    return model


def _with_adapter(model: PreTrainedModel, name: str) -> PreTrainedModel:
    """Put a stored adapter into its base. PEFT draws its weights before it reads them: not from the global state."""
    import torch
    from peft import PeftModel

    source, place = parted(name)
    with torch.random.fork_rng(devices=[]), quiet_peft():
        found: Any = PeftModel.from_pretrained(model, source, **place)
    return cast("PreTrainedModel", found)
