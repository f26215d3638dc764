"""What transformers calls a model's keys and values: `cache` from release 5.24 on, `past_key_values` before."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields
from functools import cache
from typing import Any

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
