"""What the name of a model stands for: a whole model or an adapter, in a folder or on the Hub; or nothing."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from zoreward.data import check_hub
from zoreward.neighbours.of_transformers import adapter_config_path
from zoreward.records import InputError, MissingFileError, named


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
    return base


def prefix_length(source: Any) -> int:
    """Return how many tokens of a prefix stand in front of every row: 0 for most.

    Args:
        source: a folder or Hub id, or a model.
    """
    if isinstance(source, str):
        return int((_adapter_settings(source) or {}).get("num_virtual_tokens") or 0)
    configs = getattr(source, "peft_config", None) or {}
    return sum(int(getattr(config, "num_virtual_tokens", None) or 0) for config in configs.values())


def _adapter_settings(name: str) -> dict[str, Any] | None:
    """The `adapter_config.json` of an adapter; None for a model that is whole."""
    found = adapter_config_path(name)
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
    path = Path(name)
    # Not Path.is_dir, which raises where a name is too long to be one.
    if os.path.isdir(path):
        if not ((path / "config.json").is_file() or (path / "adapter_config.json").is_file()):
            raise InputError(
                f"the folder '{name}' is no model: it has no config.json",
                hint="Give a folder that save_pretrained wrote, or a Hub id such as facebook/opt-125m.",
            )
    elif os.path.exists(path):
        raise InputError(f"'{name}' is a file, not a model", hint="Give the folder that holds config.json.")
    elif not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
        raise MissingFileError(f"there is no model folder '{name}'", hint="Give a folder, or a Hub id such as gpt2.")
    else:
        from huggingface_hub import try_to_load_from_cache

        names = ("config.json", "adapter_config.json")
        try:
            cached = any(isinstance(try_to_load_from_cache(name, one), str) for one in names)
        except ValueError as error:  # no possible name of the Hub's
            hint = "Give a folder, or a Hub id such as gpt2."
            raise MissingFileError(f"there is no model folder '{name}'", hint=hint) from error
        if not cached:
            check_hub(f"the model '{name}'")


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
