"""Text and YAML from files that a stranger may have written: nothing in them hangs, grows or is followed."""

from __future__ import annotations

import contextlib
import itertools
import math
import stat
import types
import typing
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoreward.records import InputError, MissingFileError

if TYPE_CHECKING:
    from yaml import Node

# Values of a YAML text with its aliases written out, and levels of one in another: far beyond any file of options.
_MOST_VALUES = 10_000
_MOST_LEVELS = 100
# Characters of a YAML text.
_LONGEST = 1 << 17


def check_regular(path: Path, hint: str = "give a file") -> None:
    """Refuse what is no file of its own: a folder; a pipe or a device, which may never end.

    Raises:
        MissingFileError: there is nothing of that name.
        InputError: it is something else, or cannot be looked at.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise MissingFileError(f"there is no file {path}", hint=hint) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", hint=hint) from None
    except ValueError:  # a NUL in its name
        raise InputError(f"{str(path)!r} is no name of a file", hint=hint) from None
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise InputError(f"{path} is {kind}, not a file", hint=hint)


def read_yaml(path: Path, hint: str) -> Any:
    """Return what a YAML file says.

    Args:
        path: the file.
        hint: what to do where there is no such file.

    Raises:
        MissingFileError: there is no such file.
        InputError: it cannot be read, or is no YAML; see `parse_yaml`.
    """
    check_regular(path, hint)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", hint=hint) from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not YAML: {error.reason} at byte {error.start}", hint="save it as UTF-8") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str) -> Any:
    """Return what a YAML text says, in plain types.

    Args:
        text: one document.
        where: it stands, for errors.

    Raises:
        InputError: it is no YAML, says a key twice, goes too deep, or holds itself or too many values by its aliases.

    >>> parse_yaml("eps: 1e-3", "here"), parse_yaml("[1, true]", "here")
    ({'eps': '1e-3'}, [1, True])
    """
    import yaml

    if len(text) > _LONGEST:
        raise InputError(f"{where} holds more than {_LONGEST:,} characters", hint="write name: value")
    levels = itertools.accumulate((one in "[{") - (one in "]}") for one in text)
    if max(levels, default=0) > _MOST_LEVELS:  # PyYAML would take minutes to find out
        raise InputError(f"{where} goes too deep", hint="write name: value")
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node, where)
        return loader.construct_document(node)
    except RecursionError:
        raise InputError(f"{where} goes too deep", hint="write name: value") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a number too long to be one, a day that is none
        if isinstance(error, InputError):
            raise
        mark = getattr(error, "problem_mark", None)
        place = f"{where}, line {mark.line + 1}" if mark else where
        reason = getattr(error, "problem", None) or " ".join(str(error).split())
        raise InputError(f"{place} is not YAML: {reason}", hint="write name: value") from None


def _check_size(root: Node, where: str) -> None:
    """Count a document's values with all aliases written out, before anyone writes them out."""
    import yaml

    sizes: dict[int, int] = {}

    def size(node: Node, above: tuple[int, ...]) -> int:
        line = f"{where}, line {node.start_mark.line + 1}"
        if id(node) in above or len(above) > _MOST_LEVELS:
            raise InputError(f"{line}: one value holds another, too often or without end", hint="write name: value")
        if id(node) not in sizes:
            parts: list[Node] = []
            if isinstance(node, yaml.MappingNode):
                keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
                twice = [key for key, count in keys.items() if count > 1]
                if twice:
                    raise InputError(f"{line}: {twice[0]!r} stands there twice", hint="keep one of them")
                parts = [part for pair in node.value for part in pair]
            elif isinstance(node, yaml.SequenceNode):
                parts = list(node.value)
            sizes[id(node)] = 1 + sum(size(part, (*above, id(node))) for part in parts)
        if sizes[id(node)] > _MOST_VALUES:
            raise InputError(f"{line}: more than {_MOST_VALUES:,} values", hint="write them out, and fewer")
        return sizes[id(node)]

    size(root, ())


def fitting(value: Any, text: str, kind: Any, what: str) -> Any:
    """Return the value of a type that a value from YAML stands for.

    Args:
        value: as `parse_yaml` reads it.
        text: as it was written.
        kind: the type; those that are not plain take a text.
        what: asks, for errors.

    Raises:
        InputError: it stands for another type.

    >>> fitting("1e-3", "1e-3", float | None, "eps"), fitting([1, 2], "[1, 2]", list[float], "weights")
    (0.001, [1.0, 2.0])
    >>> fitting(False, "no", str, "strategy"), fitting(False, "no", bool, "merge"), fitting(None, "", int | None, "r")
    ('no', False, None)
    """
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        for one in typing.get_args(kind):
            with contextlib.suppress(InputError):
                return fitting(value, text, one, what)
    elif value is None:
        if kind in (types.NoneType, Any):
            return None
    elif (found := typing.get_origin(kind) or kind) in (bool, dict):
        if isinstance(value, found):
            return value
    elif found is list:
        if isinstance(value, list):
            return [fitting(item, str(item), (*typing.get_args(kind), str)[0], what) for item in value]
    elif kind is Any:
        return value
    elif isinstance(value, list | dict):
        pass
    elif found is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif found is float:
        with contextlib.suppress(ValueError, OverflowError):  # YAML takes 1e-3 for a text
            if not isinstance(value, bool) and math.isfinite(number := float(value)):
                return number
    elif kind is not types.NoneType:
        return value if isinstance(value, str) else text
    name = getattr(kind, "__name__", str(kind)) if isinstance(kind, type) else str(kind)
    raise InputError(f"{what} is {value!r:.80}", hint=f"change the option: its type is {name}")
