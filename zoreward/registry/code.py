"""The source code that an objective consists of, so that a run that goes on can tell that it was edited."""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
from typing import Any

from zoreward.registry.scores import Objective

_SHIPPED_BY = "zoreward"


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
    wanted = [one for one in statements if _first(one) <= start + 1 <= (one.end_lineno or 0)]
    if not wanted:
        return None
    texts = [_text(lines, one) for one in _with_what_they_use(wanted, statements)]
    return hashlib.sha256("\n".join(texts).encode("utf-8", "surrogatepass")).hexdigest()


def _with_what_they_use(wanted: list[ast.stmt], statements: list[ast.stmt]) -> list[ast.stmt]:
    """The statements, and those that define a name that they use, and so on; in the order of the file."""
    defined: dict[str, list[ast.stmt]] = {}
    for statement in statements:
        for name in _defined(statement):
            defined.setdefault(name, []).append(statement)
    found, left = {id(one) for one in wanted}, list(wanted)
    while left:
        for name in sorted({node.id for node in ast.walk(left.pop()) if isinstance(node, ast.Name)}):
            for statement in defined.get(name, ()):
                if id(statement) not in found:
                    found.add(id(statement))
                    left.append(statement)
    return [one for one in statements if id(one) in found]


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
