"""Where objectives come from: entry points, modules, files, or the function itself; and the source code of one."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import importlib.util
import inspect
import math
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from zoreward.records import (
    InputError,
    MissingFileError,
    ObjectiveError,
    UnknownNameError,
    ZorewardError,
    named,
    one_line,
)
from zoreward.registry.decorator import describe
from zoreward.registry.objective import Objective, hint_of, neighbours, weighted_sum
from zoreward.registry.places import is_ctrl_c, place_of

_GROUP = "zoreward.objectives"
_SHIPPED_BY = "zoreward"


@dataclass(frozen=True, slots=True)
class Entry:
    """A registered objective that has not been loaded.

    Args:
        name: what the user calls it.
        distribution: the installed package that brings it.
    """

    name: str
    distribution: str


Source = str | Objective | Callable[..., Any]
"""Whatever names an objective: see `get_objective`."""


def get_objective(source: Source | Sequence[Source], /, **options: Any) -> Objective:
    """Return the objective that `source` names, with its options set.

    Args:
        source: a registered name, `package.module:name`, `path/file.py:name`, the function or class itself, or an
            objective that is ready: it is returned as it is. `sklearn:NAME` is the objective `sklearn` with its first
            option set, and so for others that make objectives. Several: their sum.
        options: values of its options; they are taken as they are, not converted.

    Raises:
        UnknownNameError: nobody has registered the name, or the module or file has no such function.
        MissingFileError: there is no such file.
        InputError: it has no such option, the value of one is NaN, or it is no objective.
        ObjectiveError: it cannot be loaded or made.

    >>> def length(completions, *, scale: float = 1.0):
    ...     return [scale * len(c) for c in completions]
    >>> get_objective(length, scale=0.5).score(2, completions=["ab", "abcd"])
    1.5
    """
    if isinstance(source, Objective) and not options:
        return source
    if isinstance(source, Sequence) and not isinstance(source, str):
        return weighted_sum([get_objective(part, **options) for part in source])
    described = describe_objective(source)
    known = [option.name for option in described.options]
    for name in options:
        if name not in known:
            hint = neighbours(name, known, "Options") if known else "it has none: an option is a keyword-only parameter"
            raise InputError(f"objective {described.name!r} has no option {name!r}", hint=hint)
        if isinstance(options[name], float) and math.isnan(options[name]):
            raise InputError(f"objective {described.name!r}: the option {name} is nan", hint="give a number")
    for option in described.options:
        if option.default is inspect.Parameter.empty and option.name not in options:
            hint = f"{option.name}: {option.help}"
            raise InputError(f"objective {described.name!r} needs its option {option.name!r}", hint=hint)
    if not described.stateful and described.needs != "any":
        return replace(described, values=dict(options))
    try:
        made = described.function(**options)
    except ZorewardError:
        raise
    except BaseException as error:
        if is_ctrl_c(error):
            raise
        # These two are raised with a sentence of their own; others say little without their name.
        reason = one_line(error) if type(error) in (ValueError, LookupError) else named(error)
        raise ObjectiveError(f"objective {described.name!r} cannot be made: {reason}", hint=hint_of(error)) from error
    if described.stateful:
        return replace(described, function=made, values=dict(options))
    if not isinstance(made, Objective):
        hint = "what is said to need 'any' returns an Objective, as get_objective does"
        raise ObjectiveError(
            f"objective {described.name!r} returned a value of type {type(made).__name__!r}", hint=hint
        )
    return made


def describe_objective(source: str | Objective | Callable[..., Any], /) -> Objective:
    """Return the objective that `source` names for its options and help only: a class is not made, so cannot score.

    Args and Raises are those of `get_objective`.

    >>> def length(completions, *, scale: float = 1.0):
    ...     return [scale * len(c) for c in completions]
    >>> describe_objective(length).options
    (Option(name='scale', type=<class 'float'>, default=1.0, help=''),)
    """
    if isinstance(source, Objective):
        return source
    if not isinstance(source, str):
        return describe(source)
    prefix, colon, rest = source.partition(":")
    if not colon:
        return _from_entry_point(source)
    if prefix in _entry_points() and (found := _from_entry_point(prefix)).needs == "any":
        first = found.options[0].name
        made = functools.partial(found.function, **{first: rest})
        return replace(found, name=source, function=made, options=found.options[1:])
    place, _, attribute = source.rpartition(":")
    module = _import_file(Path(place)) if place.endswith(".py") else _import_module(place)
    if not hasattr(module, attribute):
        names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise UnknownNameError(f"{place!r} has no {attribute!r}", hint=neighbours(attribute, names, "It has"))
    return describe(getattr(module, attribute))


def list_objectives() -> list[Entry]:
    """Return every registered objective, by name. Nothing is loaded, so a broken plugin is listed too.

    Example: `[entry.name for entry in list_objectives()]` → `["accuracy", "f1", "log-likelihood", …]`
    """
    _entry_points_on.cache_clear()
    points = _entry_points()
    return [Entry(name, _distribution(point)) for name in sorted(points) for point in points[name]]


def spelled_out(name: str) -> tuple[str, dict[str, str]] | None:
    """Return the registered objective, and its option, that a name puts into one word; None where it does not.

    `f1-macro`, `macro_f1` and `f1_macro_score` are the objective `f1` with the option `average` set to `macro`.

    >>> spelled_out("f1-macro"), spelled_out("accuracy_score"), spelled_out("f1"), spelled_out("f1-mikro")
    (('f1', {'average': 'macro'}), ('accuracy', {}), None, None)
    """
    registered = _entry_points()
    parts = [part for part in re.split("[-_]", name.lower()) if part != "score"]
    if name in registered or not parts:
        return None
    if (whole := "-".join(parts)) in registered:
        return whole, {}
    for number, value in enumerate(parts):
        if (rest := "-".join(parts[:number] + parts[number + 1 :])) in registered:
            for option in _from_entry_point(rest).options:
                if value in typing.get_args(option.type):
                    return rest, {option.name: value}
    return None


def _entry_points() -> dict[str, list[EntryPoint]]:
    return _entry_points_on(tuple(sys.path))


@functools.lru_cache(maxsize=1)
def _entry_points_on(path: tuple[str, ...]) -> dict[str, list[EntryPoint]]:
    """Of the packages on Python's path: a file of each is read, 30 ms for 110 of them, and a command asks often."""
    points: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=_GROUP):
        points.setdefault(point.name, []).append(point)
    return points


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist else "unknown"


def _from_entry_point(name: str) -> Objective:
    registered = _entry_points()
    if name not in registered:  # its package may have been installed since
        _entry_points_on.cache_clear()
        registered = _entry_points()
    if name not in registered:
        hint = neighbours(name, sorted(registered), "Objectives")
        parts = [part for part in re.split("[-_]", name.lower()) if part in registered]
        if parts and not hint.startswith("did you mean"):
            hint = f"did you mean {' or '.join(parts)}? {hint}"
        if meant := spelled_out(name):
            own = ", ".join(f"{option}={value!r}" for option, value in meant[1].items())
            hint = f"that is the objective {meant[0]!r}{f' with {own}' if own else ''}"
        raise UnknownNameError(f"unknown objective {name!r}", hint=hint if registered else "none is installed")
    points = registered[name]
    if len(points) > 1:
        owners = sorted(_distribution(point) for point in points)
        others = [owner for owner in owners if owner != _SHIPPED_BY]
        hint = f"uninstall {others[0]!r}, or give its objective another name"
        raise ObjectiveError(f"objective {name!r} is registered by {' and '.join(map(repr, owners))}", hint=hint)
    distribution = _distribution(points[0])
    try:
        described = describe(points[0].load(), name)
    except BaseException as error:
        if is_ctrl_c(error):
            raise
        message = f"objective {name!r} of {distribution!r} cannot be loaded: {named(error)}"
        raise ObjectiveError(message, hint=f"update or uninstall {distribution!r}") from error
    if described.name != name:
        message = f"objective {name!r} of {distribution!r} calls itself {described.name!r} in its decorator"
        raise ObjectiveError(message, hint="its entry point and its decorator must give the same name")
    return replace(described, distribution=distribution)


def _import_module(name: str) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            hint = "install it, or give a file: path/file.py:name"
            raise UnknownNameError(f"there is no module {name!r} to take an objective from", hint=hint) from error
        raise ObjectiveError(f"module {name!r} cannot be imported: {one_line(error)}", hint=_place(error)) from error
    except BaseException as error:
        if is_ctrl_c(error):
            raise
        hint = _place(error) or "give a module as import takes it, package.module:name; or a file, path/file.py:name"
        raise ObjectiveError(f"module {name!r} cannot be imported: {named(error)}", hint=hint) from error


def _import_file(path: Path) -> types.ModuleType:
    if not os.path.isfile(path):  # not Path.is_file, which raises where a name is too long to be one
        raise MissingFileError(f"there is no file {str(path)!r} to take an objective from")
    name = f"zoreward_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up here
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if is_ctrl_c(error):
            raise
        hint = _place(error) or f"see {path}"
        raise ObjectiveError(f"{str(path)!r} cannot be imported: {named(error)}", hint=hint) from error
    return module


def _place(error: BaseException) -> str:
    """The line of the user's that an import ends at; "" where Python names none."""
    assert error.__traceback__
    return place_of(error.with_traceback(error.__traceback__.tb_next))  # without ours, which is at no fault


def code_of(objective: Objective) -> dict[str, str | None]:
    """Return for each part of an objective what tells its code from an edited one; None where that cannot be known.

    It is a SHA-256 of the statement that defines the function or class, and of those in the same file that it refers
    to, directly or through others: so an edit elsewhere in the file changes nothing. For one that an installed package
    brings, the package's version stands in front. What is imported from other modules is not looked into.

    >>> from zoreward import get_objective
    >>> code_of(get_objective("f1"))  # doctest: +SKIP
    {'f1': '5d0f…'}
    """
    parts = [part for _, part in objective.parts] or [objective]
    return {part.name: _code(part) for part in parts}


def _code(objective: Objective) -> str | None:
    digest = _digest(objective.function)
    if objective.distribution in ("", _SHIPPED_BY):
        return digest
    from importlib.metadata import PackageNotFoundError, version

    try:
        package = f"{objective.distribution} {version(objective.distribution)}"
    except PackageNotFoundError:
        return digest
    return f"{package} {digest}" if digest else package


def _digest(function: Any) -> str | None:
    plain: Any = inspect.unwrap(function)
    while isinstance(plain, functools.partial):
        plain = inspect.unwrap(plain.func)
    if not (inspect.isroutine(plain) or inspect.isclass(plain)):
        plain = type(plain)
    try:
        lines, start = inspect.findsource(plain)
        statements = ast.parse("".join(lines)).body
    except (OSError, TypeError, SyntaxError, ValueError, IndexError, RecursionError):
        return None
    wanted = [statement for statement in statements if _first(statement) <= start + 1 <= (statement.end_lineno or 0)]
    if not wanted:
        return None
    texts = [_text(lines, statement) for statement in _with_what_they_use(wanted, statements)]
    return hashlib.sha256("\n".join(texts).encode("utf-8", "surrogatepass")).hexdigest()


def _with_what_they_use(wanted: list[ast.stmt], statements: list[ast.stmt]) -> list[ast.stmt]:
    """The statements, and those that define a name that they use, and so on; in the order of the file."""
    defined: dict[str, list[ast.stmt]] = {}
    for statement in statements:
        for name in _defined(statement):
            defined.setdefault(name, []).append(statement)
    used, pending = {id(one) for one in wanted}, list(wanted)
    while pending:
        for name in sorted({node.id for node in ast.walk(pending.pop()) if isinstance(node, ast.Name)}):
            for statement in defined.get(name, ()):
                if id(statement) not in used:
                    used.add(id(statement))
                    pending.append(statement)
    return [one for one in statements if id(one) in used]


def _defined(statement: ast.stmt) -> set[str]:
    """The names that a statement of a file gives a meaning to: functions, classes, imports, and what is assigned."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {(one.asname or one.name).partition(".")[0] for one in statement.names}
    return {node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def _first(statement: ast.stmt) -> int:
    decorators = getattr(statement, "decorator_list", [])
    return min([statement.lineno, *(one.lineno for one in decorators)])


def _text(lines: list[str], statement: ast.stmt) -> str:
    own = lines[_first(statement) - 1 : statement.end_lineno]
    return "\n".join(line.rstrip() for line in own)
