"""What a header may ask for. It may come from a stranger: a few bytes of it must not cost hours, or all memory."""

from __future__ import annotations

import re
from typing import Any

from zoreward.journal.lines import number, shown, whole
from zoreward.methods.directions import MAX_BLOCKS, MAX_STEPS, MAX_WINDOW, Directions
from zoreward.methods.steps import BOUNDS
from zoreward.noise import Family, family_of
from zoreward.noise.factors import MAX_RANK
from zoreward.records import InputError

FREE_DIRECTIONS = 64
"""Directions that a journal's step may have without as many scores: more must show in the file."""
MAX_TERMS = 1 << 16
"""Terms of a step: its directions, and with momentum those of the steps before it."""
MAX_RANKS = 1 << 18
"""Ranks of all terms of a step together."""
MAX_CLASSES = 1 << 14
MAX_PATTERN = 1000
"""Characters of a pattern of names of modules."""
MAX_REPEATS = 4
"""Repetitions in such a pattern, and none of a group: else it may take longer than the age of the universe."""

# The least and the most that a method's whole numbers may be. Where one is missing it is the least.
_NUMBERS = BOUNDS | {"seed": (0, 2**64 - 1), "full_every": (0, MAX_STEPS), "window": (1, MAX_WINDOW)}
_HINT = "Ask whoever wrote it for another copy."


def check_method(header: dict[str, Any]) -> None:
    """Check what the directions of a run derive from, where its header tells.

    Raises:
        InputError: a number is none, or larger than that of any run; the message names it.

    >>> check_method({"method": {"num_directions": 10**8}})
    Traceback (most recent call last):
    ...
    zoreward.records.InputError: its method has num_directions=100000000, and there are 1 to 65536
    hint: Ask whoever wrote it for another copy.
    """
    method = header.get("method")
    if not isinstance(method, dict):
        return
    for name, (least, most) in _NUMBERS.items():
        value = method.get(name, least)
        if value is not None and not (whole(value, most + 1) and value >= least):
            raise InputError(f"its method has {name}={shown(value)}, and there are {least} to {most}", hint=_HINT)
    momentum = method.get("momentum", 0.0)
    if not (number(momentum) and 0 <= momentum < 1):
        raise InputError(f"its method has momentum={shown(momentum)}, and it lies in [0, 1)", hint=_HINT)
    try:
        _family(method)
    except (ValueError, TypeError):
        hint = "Take the zoreward that wrote it."
        raise InputError("its method tells of no directions that there are", hint=hint) from None
    terms = (method.get("num_directions") or 1) * ((method.get("window") or 1) if momentum else 1)
    if terms > MAX_TERMS or terms * (method.get("rank") or 1) > MAX_RANKS:
        raise InputError("its method has more directions a step, or of a higher rank, than any run", hint=_HINT)


def directions(header: dict[str, Any]) -> Directions | None:
    """Return what a run's directions derive from; None where its header, which was checked, does not tell."""
    method = header.get("method")
    if not isinstance(method, dict) or any(method.get(name) is None for name in ("seed", "num_directions")):
        return None
    told = {name: least if method.get(name) is None else method[name] for name, (least, _) in _NUMBERS.items()}
    momentum = float(method.get("momentum", 0.0))
    names = ("refresh", "more_every", "full_every", "blocks", "block_every")
    numbers = {name: told[name] for name in names} | {"window": told["window"] if momentum else 1}
    return Directions(told["seed"], told["num_directions"], _family(method), momentum=momentum, **numbers)


def _family(method: dict[str, Any]) -> Family:
    """The family of a run's directions; raises a ValueError or a TypeError where there is none."""
    told = {name: method[name] for name in ("noise", "distribution", "subspace") if name in method}
    if type(told.get("subspace", False)) is not bool:
        raise ValueError("whether there is a subspace is yes or no")
    return family_of(rank=method.get("rank") or 0, refresh=method.get("refresh") or 1, **told)


def check_made(header: dict[str, Any]) -> None:
    """Check what a replay would put into the model: an adapter, or a head.

    Raises:
        InputError: it is none, or larger than any.
    """
    adapter = header.get("adapter")
    if adapter is not None and not (isinstance(adapter, dict) and all(map(_is_option, adapter, adapter.values()))):
        raise InputError("its header does not say what the run's adapter was", hint=_HINT)
    if "head" in header and not _is_head(header["head"]):
        raise InputError("its header does not say what the run's head was", hint=_HINT)


def _is_head(value: Any) -> bool:
    if not isinstance(value, dict) or not number(value.get("spread")):
        return False
    names = [value.get("classes"), value.get("weights")]
    if not all(isinstance(some, list) and all(isinstance(one, str) for one in some) for some in names):
        return False
    return len(value["classes"]) <= MAX_CLASSES


def _is_option(name: str, value: Any) -> bool:
    """Whether an option of an adapter has a value that PEFT can be given; it refuses unknown ones itself."""
    if name == "r":
        return whole(value, MAX_RANK + 1)
    if name in ("rank_pattern", "alpha_pattern"):
        sound = isinstance(value, dict) and all(map(_is_pattern, value))
        return sound and all(number(one, MAX_RANK) for one in value.values())
    if isinstance(value, list):
        return all(whole(one, MAX_BLOCKS) or (isinstance(one, str) and len(one) <= MAX_PATTERN) for one in value)
    if name in ("target_modules", "exclude_modules", "layers_pattern"):
        return value is None or _is_pattern(value)
    return isinstance(value, bool | str) or number(value)


def _is_pattern(value: Any) -> bool:
    """Whether a pattern can be matched in no time: of few repetitions, and none of a group.

    >>> _is_pattern(r".*layers\\.\\d+\\..*(q|v)_proj"), _is_pattern("(a+)+b")
    (True, False)
    """
    if not (isinstance(value, str) and len(value) <= MAX_PATTERN):
        return False
    try:
        re.compile(value)
    except (re.error, RecursionError, OverflowError):
        return False
    return len(re.findall(r"[*+{]", value)) <= MAX_REPEATS and not re.search(r"\)[*+{]", value)
