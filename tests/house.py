"""What the source looks like, read without running it: lines, circles of imports, long functions, private names.

`tests/test_house.py` holds the package to these; `make lines` prints the lines of code of each package.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[1]
Function = ast.FunctionDef | ast.AsyncFunctionDef
NOT_CODE = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
# Private to look at, but documented by Python.
DOCUMENTED = {*("_asdict", "_field_defaults", "_fields", "_make", "_replace"), "_exit", "_current_frames"}


@dataclass(frozen=True)
class Source:
    """A file of Python: its path from the root of the repository, and what it holds."""

    path: Path
    text: str

    @property
    def module(self) -> str:
        """The module's name, e.g. `zoreward.noise` for `zoreward/noise/__init__.py`."""
        parts = self.path.with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def package(self) -> str:
        """The package that the module stands in, e.g. `zoreward.noise`; the module itself in the top level."""
        return ".".join(self.module.split(".")[:2])

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(self.tree))

    @cached_property
    def code_lines(self) -> set[int]:
        """The numbers of the lines that hold code: not a blank, a comment, a docstring or an import."""
        dropped: set[int] = set()
        for node in self.nodes:
            if isinstance(node, ast.Import | ast.ImportFrom):
                dropped.update(lines_of(node))
            elif (docstring := docstring_of(node)) is not None:
                dropped.update(lines_of(docstring))
        held: set[int] = set()
        for token in tokenize.generate_tokens(io.StringIO(self.text).readline):
            if token.type not in NOT_CODE:
                held.update(range(token.start[0], token.end[0] + 1))
        return held - dropped


def sources(folder: str) -> list[Source]:
    """Return the files of Python under a folder of the repository, in the order of their paths."""
    paths = sorted((ROOT / folder).rglob("*.py"))
    return [Source(path.relative_to(ROOT), path.read_text(encoding="utf-8")) for path in paths]


def lines_of(node: ast.stmt) -> range:
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)


def docstring_of(node: ast.AST) -> ast.stmt | None:
    """Return the statement that is a module's, a class's or a function's docstring."""
    if isinstance(node, ast.Module | ast.ClassDef | Function) and node.body:
        first = node.body[0]
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            return first
    return None


def functions(source: Source) -> Iterator[tuple[str, Function]]:
    """Yield each function of a file with its name, e.g. `zoreward.noise.dense:Dense.entries`."""

    def under(node: ast.AST, prefix: str) -> Iterator[tuple[str, Function]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                continue
            inner = f"{prefix}{child.name}." if isinstance(child, ast.ClassDef | Function) else prefix
            if isinstance(child, Function):
                yield f"{source.module}:{inner[:-1]}", child
            yield from under(child, inner)

    return under(source.tree, "")


def length(source: Source, function: Function) -> int:
    """Return how many lines of code a function has, its signature and decorators included."""
    first = min([function.lineno, *(decorator.lineno for decorator in function.decorator_list)])
    last = function.end_lineno or first
    if last - first < 60:  # most are: reading the tokens of all files takes most of the time
        return last - first + 1
    return len(source.code_lines & set(range(first, last + 1)))


def is_kernel(function: Function) -> bool:
    """Return whether Triton compiles a function."""
    return any(ast.unparse(decorator).startswith("triton.jit") for decorator in function.decorator_list)


def parameters(function: Function) -> int:
    """Return how many parameters a function has, `self` and `cls` aside."""
    names = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def for_types_only(source: Source) -> set[ast.AST]:
    """Return the nodes that a type checker reads and Python does not."""
    return {
        inner
        for node in source.nodes
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }


def imported_modules(source: Source, modules: set[str]) -> set[str]:
    """Return which of these modules a file imports, in functions too; for types only does not count."""
    aside = for_types_only(source)
    found: set[str] = set()
    for node in source.nodes:
        if node in aside:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in modules else node.module)
    return found & modules


def circles(files: list[Source]) -> set[frozenset[str]]:
    """Return the groups of modules of one package that import one another in a circle."""
    packages: dict[str, list[Source]] = defaultdict(list)
    for source in files:
        packages[source.package].append(source)
    found = set()
    for members in packages.values():
        names = {source.module for source in members}
        reached = {source.module: imported_modules(source, names) for source in members}
        for middle in names:  # Warshall's closure
            for start in names:
                if middle in reached[start]:
                    reached[start] |= reached[middle]
        for name in names:
            if name in reached[name]:
                found.add(frozenset(other for other in reached[name] if name in reached[other]))
    return found


def is_private(name: str) -> bool:
    """Return whether a name is private; the underscore alone and `__init__` and its like are not."""
    return name.startswith("_") and not name.endswith("__") and name != "_" and name not in DOCUMENTED


def own_private_names(files: list[Source]) -> set[str]:
    """Return the private names that these files define: functions, classes, variables, attributes, parameters."""
    names: set[str] = set()
    for source in files:
        for node in source.nodes:
            if isinstance(node, ast.ClassDef | Function):
                names.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif isinstance(node, ast.arg):
                names.add(node.arg)
            elif (
                isinstance(node, ast.Attribute)
                and isinstance(node.ctx, ast.Store)
                and isinstance(node.value, ast.Name)
                and node.value.id in ("self", "cls")
            ):
                names.add(node.attr)
            elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "__setattr__":
                names.update(str(word.value) for word in node.args[1:2] if isinstance(word, ast.Constant))
    return {name for name in names if is_private(name)}


def foreign_private_names(source: Source, own: set[str]) -> list[str]:
    """Return the private names of other libraries that a file uses, once for each line.

    These are a private module or name that is imported, a private attribute of something imported, and any other
    private attribute (by dot, `getattr`, `hasattr` or `setattr`) that none of our files defines. Two uses are not seen:
    a name that both a library and we define, and a private method of a library that a class of ours overrides.
    """
    foreign: set[str] = set()  # what this file calls things of other libraries
    used: set[tuple[int, str]] = set()
    for node in source.nodes:
        if isinstance(node, ast.Import):
            wholes = {alias.name: alias.asname or alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            wholes = {f"{node.module}.{alias.name}": alias.asname or alias.name for alias in node.names}
        else:
            continue
        for whole, name in wholes.items():
            if whole.split(".")[0] not in ("zoreward", "zoreward_objectives", "__future__"):
                foreign.add(name)
                if any(map(is_private, whole.split("."))):
                    used.add((node.lineno, whole))
    for node in source.nodes:
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            if node.attr not in own or root_of(node) in foreign:
                used.add((node.lineno, node.attr))
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "hasattr", "setattr"):
            name = getattr(node.args[1], "value", None)
            if isinstance(name, str) and is_private(name) and name not in own:
                used.add((node.lineno, name))
    return [name for _, name in sorted(used)]


def root_of(node: ast.expr) -> str | None:
    """Return the name that a chain of attributes begins with: `torch` for `torch.nn._x`."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def main(folders: list[str]) -> None:
    """Print the lines of code of each package, and of each file of a package that is named."""
    files = sources("zoreward")
    packages: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for source in files:
        package = source.path.parts[1]
        packages[package] += len(source.code_lines)
        counts[package] += 1
        if package in folders:
            print(f"{len(source.code_lines):6}  {source.path}")
    for package, lines in packages.most_common():
        print(f"{lines:6}  {package}" + f" ({counts[package]} files)" * (counts[package] > 1))
    print(f"{packages.total():6}  lines of code in {len(files)} files; blanks, comments, docstrings and imports aside")


if __name__ == "__main__":
    main(sys.argv[1:])
