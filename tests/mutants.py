"""Break the code on purpose, one place at a time, and see that the tests notice: `make mutants`.

A mutant is one small change of the source: a comparison turned round, a plus made a minus, a number one larger, a
`not`, a statement or a `raise` left out, two arguments swapped, a result thrown away. Changes are found in the syntax
tree, so a refactoring needs no change here. A seed says which mutants are tried. Those that no test notices are printed
as diffs: for each a test is missing, or it changes nothing that anybody can see.

    make mutants                                   # 60 of all packages in TESTS
    make mutants ARGS="members/check.py"           # of the files whose path holds a word
    make mutants ARGS="journal/ --count 20 --seed 1"
    make mutants ARGS="noise/seeds.py --list"      # which there are; none is tried

First the mapped tests run once, unbroken, on a copy whose functions say that they are called. A mutant then runs only
the tests that call the function that it breaks, the quick ones first, in a process forked from one that has the
libraries loaded.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import copy
import difflib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
COPIED = ("zoreward", "objectives", "tests", "pyproject.toml")
# What is broken, by the beginning of its path, and the tests that must notice.
TESTS = {
    "zoreward/noise/": "noise rounding kronecker lowrank distributions golden",
    "zoreward/methods/": "methods estimators spsa golden",
    "zoreward/members/check.py": "self_check_measures self_check",
    "zoreward/members/": "self_check_measures self_check members blocks lowrank limits rounded memory cache_name "
    "families whole peft",
    "zoreward/journal/": "journal snapshot replay golden resume",
    "zoreward/registry/": "registry retries",
    "zoreward/scoring/logprobs.py": "scoring pairs border packing self_check",
}
# What tests load again and again; in a process that has it, a fork begins at once.
LIBRARIES = "torch transformers peft trl accelerate datasets sklearn numpy scipy typer rich hypothesis triton".split()
# How much longer than unbroken code broken code may take, and some seconds more.
PATIENCE, SECONDS = 4, 30

CALLED: dict[str, Any] = builtins.__dict__

SWAPPED: dict[type[ast.AST], type[ast.AST]] = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And},
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult},
    **{ast.FloorDiv: ast.Mult, ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.BitAnd: ast.BitOr},
    **{ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitOr},
}


@dataclass(frozen=True)
class Mutant:
    """One change of one file.

    Args:
        file: its path from the root of the repository.
        start, end: which bytes are replaced.
        new: what stands there instead.
        function: the line of the function around it; 0 outside of functions, and in kernels that are compiled.
        cached: whether that function keeps its results, so that only the first test that calls it is seen to.
    """

    file: str
    start: int
    end: int
    new: str
    function: int
    cached: bool

    def source(self, root: Path = ROOT) -> str:
        """Return the file's text, broken."""
        text = (root / self.file).read_bytes()
        return (text[: self.start] + self.new.encode() + text[self.end :]).decode()

    def diff(self) -> str:
        """Return what is broken, as a diff."""
        before = (ROOT / self.file).read_text(encoding="utf-8").splitlines()
        lines = difflib.unified_diff(before, self.source().splitlines(), self.file, self.file, n=2, lineterm="")
        return "\n".join(list(lines)[1:])


def mutants_of(file: str, text: str) -> list[Mutant]:
    """Return the mutants of a file in the order of their places."""
    starts = [0]
    for line in text.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    mutants = set()
    for node, new, function in changes(ast.parse(text)):
        start, end = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
        cached = function is not None and "cache" in decorators(function)
        mutants.add(Mutant(file, start, end, new, function.lineno if says_so(function) else 0, cached))
    return sorted(mutants, key=lambda mutant: (mutant.start, mutant.end, mutant.new))


def decorators(function: Any) -> str:
    return " ".join(map(ast.unparse, function.decorator_list))


def says_so(function: Any) -> bool:
    """Return whether a function can say that it is called: not one in a single line, nor one that Triton compiles."""
    return function is not None and "jit" not in decorators(function) and function.body[0].lineno > function.lineno


def talking(file: str, text: str) -> str:
    """Return a file's text where each function says that it is called, by its line: into a set among the builtins."""
    lines = text.splitlines()
    for node in sorted(ast.walk(ast.parse(text)), key=lambda node: getattr(node, "lineno", 0), reverse=True):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and says_so(node):
            first = node.body[0]
            place = f"{file}:{node.lineno}"
            call = f'__import__("builtins").__dict__.setdefault("_called", set()).add({place!r})'
            before = min([first.lineno, *(d.lineno for d in getattr(first, "decorator_list", []))]) - 1
            after_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            where = first.end_lineno if after_docstring else before
            lines.insert(where or before, " " * first.col_offset + call)
    return "\n".join(lines) + "\n"


def sampled(mutants: list[Mutant], count: int, seed: int) -> list[Mutant]:
    """Return some of the mutants, drawn; each can be compiled, and is not the same program as before."""
    drawn: list[Mutant] = []
    for mutant in random.Random(seed).sample(mutants, len(mutants)):
        if len(drawn) == count:
            break
        with suppress(SyntaxError):
            before = ast.parse((ROOT / mutant.file).read_text(encoding="utf-8"))
            if ast.dump(ast.parse(mutant.source())) != ast.dump(before):
                drawn.append(mutant)
    return drawn


def changes(tree: ast.Module) -> Iterator[tuple[Any, str, Any]]:
    """Yield what could be broken: a node, the text to stand in its place, the function around it."""

    def under(node: ast.AST, function: Any) -> Iterator[tuple[Any, str, Any]]:
        if isinstance(node, ast.JoinedStr) or is_left_alone(node):
            return  # what stands in an f-string has no place of its own before Python 3.12
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "decorator_list", "type_comment"):
                continue
            if isinstance(node, ast.Raise) and field == "exc":
                continue  # what an error says is not what a program does
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    inner = child if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) else function
                    yield from ((place, new, function) for place, new in changes_of(child))
                    yield from under(child, inner)

    return under(tree, None)


def is_left_alone(node: ast.AST) -> bool:
    """Return whether a node says nothing about what the program does: a text, or what is read for types."""
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return True
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True
    return isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).startswith("__")


def changes_of(node: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """Yield what could be replaced of a node (itself, or a part of it), and the text that stands there instead."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        yield node, changed(node, ops=[SWAPPED[type(node.ops[0])]()])
    elif isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(node.op) in SWAPPED:
        yield node, changed(node, op=SWAPPED[type(node.op)]())
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield node, f"({ast.unparse(node.operand)})"
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield node, str(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield node, repr(node.value + 1)
    elif isinstance(node, ast.Call):
        either_way = any(isinstance(argument, ast.Starred) for argument in node.args) or is_symmetric(node)
        if len(node.args) > 1 and not either_way:
            yield node, changed(node, args=[node.args[1], node.args[0], *node.args[2:]])
        for place in range(len(node.keywords)):
            yield node, changed(node, keywords=node.keywords[:place] + node.keywords[place + 1 :])
    elif isinstance(node, ast.If | ast.IfExp):
        yield node.test, "True"
        yield node.test, "False"
    elif isinstance(node, ast.Return) and node.value is not None and ast.unparse(node.value) != "None":
        yield node, "return None"
    elif is_left_out(node):
        yield node, "pass"


def is_symmetric(call: ast.Call) -> bool:
    """Return whether the first two arguments of a call can change places, and nothing comes of it."""
    return ast.unparse(call.func).rpartition(".")[2] in ("max", "min", "gcd", "hypot", "logaddexp", "is_close", "equal")


def is_left_out(node: ast.AST) -> bool:
    """Return whether a statement can be left out, and names that are used later are still there."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Call | ast.Await)
    if isinstance(node, ast.Assign):
        return isinstance(node.targets[0], ast.Attribute | ast.Subscript)
    return isinstance(node, ast.Raise | ast.Break | ast.Continue | ast.Delete)


def changed(node: Any, **fields: Any) -> str:
    """Return the text of a node with other fields."""
    other = copy.copy(node)
    for name, value in fields.items():
        setattr(other, name, value)
    return ast.unparse(ast.fix_missing_locations(other))


def mapped_tests(file: str) -> list[str]:
    """Return the files of tests that must notice when a file is broken; its doctests too."""
    [names] = [names for start, names in TESTS.items() if file.startswith(start)][:1] or [""]
    return [*(f"tests/test_{name}.py" for name in names.split()), file]


class Recorder:
    """A plugin of pytest that writes down how long each test takes, and which functions of zoreward it calls.

    What a fixture of a module or a session calls counts for each test that asks for the fixture.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.failed: list[str] = []
        self._calls: dict[str, set[str]] = {}
        self._of_fixtures: dict[str, set[str]] = defaultdict(set)
        self._fixtures: dict[str, list[str]] = {}

    def pytest_runtest_protocol(self, item: Any) -> Iterator[None]:
        before, CALLED["_called"] = time.monotonic(), set()
        yield
        self.seconds[item.nodeid] = time.monotonic() - before
        self._calls[item.nodeid] = CALLED["_called"]
        self._fixtures[item.nodeid] = getattr(item, "fixturenames", [])

    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        outer, CALLED["_called"] = CALLED["_called"], set()
        yield
        if fixturedef.scope != "function":
            self._of_fixtures[fixturedef.argname] |= CALLED["_called"]
        CALLED["_called"] |= outer

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failed.append(report.nodeid)

    def calls(self) -> dict[str, list[str]]:
        """Return the functions that each test calls, as `file:line`."""
        return {
            test: sorted(called.union(*(self._of_fixtures[name] for name in self._fixtures[test])))
            for test, called in self._calls.items()
        }


class Chooser:
    """A plugin of pytest that runs only some tests, in the order in which they are named."""

    def __init__(self, tests: list[str]):
        self._order = {test: place for place, test in enumerate(tests)}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = sorted((i for i in items if i.nodeid in self._order), key=lambda item: self._order[item.nodeid])


def copied(folder: Path) -> Path:
    """Copy what tests need into a new folder."""
    folder.mkdir(exist_ok=True)
    for name in COPIED:
        ignored = shutil.ignore_patterns("__pycache__")
        source, target = ROOT / name, folder / name
        shutil.copytree(source, target, ignore=ignored) if source.is_dir() else shutil.copy(source, target)
    return folder


def forked(root: Path, work: Any) -> int:
    """Call a function in a process of its own, in the copy of the project at `root`; return the process's id."""
    sys.stdout.flush()
    if process := os.fork():
        return process
    try:
        os.setsid()
        os.chdir(root)
        sys.path[:] = [str(root), str(root / "objectives"), *(p for p in sys.path if Path(p or ".").resolve() != ROOT)]
        os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:2])
        sys.dont_write_bytecode = True
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        silence = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(silence, stream)
        code = int(work())
    except BaseException:
        code = 3
    os._exit(code)


def pytest(tests: list[str], plugin: object, *options: str) -> int:
    """Run tests in this process."""
    import pytest

    return pytest.main([*"-q --tb=no -p no:cacheprovider -p no:xdist".split(), *options, *tests], plugins=[plugin])


def recorded(files: list[str], root: Path) -> dict[str, Any]:
    """Run tests unbroken: return what each calls and how long it takes, and which modules of libraries were loaded."""
    target = root / "recorded.json"

    def work() -> int:
        import pytest as library

        for name in ("pytest_runtest_protocol", "pytest_fixture_setup"):
            setattr(Recorder, name, library.hookimpl(hookwrapper=True)(getattr(Recorder, name)))
        recorder = Recorder()
        code = pytest(files, recorder)
        libraries = [name for name in list(sys.modules) if name.split(".")[0] in LIBRARIES]
        facts = {"seconds": recorder.seconds, "calls": recorder.calls(), "libraries": libraries}
        target.write_text(json.dumps({**facts, "failed": recorder.failed, "code": code}))
        return code

    for path in (root / "zoreward").rglob("*.py"):
        file = path.relative_to(root).as_posix()
        if any(file.startswith(start) for start in TESTS):
            path.write_text(talking(file, path.read_text(encoding="utf-8")), encoding="utf-8")
    os.waitpid(forked(root, work), 0)
    if not target.is_file():
        sys.exit("the tests could not be run unbroken")
    facts = json.loads(target.read_text())
    if facts["code"] != 0:
        sys.exit(f"these tests fail unbroken: {' '.join(facts['failed']) or files}")
    return facts


def chosen_tests(mutant: Mutant, facts: dict[str, Any]) -> list[str]:
    """Return the tests that call what a mutant breaks: the quick files first, and in a file the quick tests."""
    mapped = set(mapped_tests(mutant.file))
    place = f"{mutant.file}:{mutant.function}" if mutant.function else f"{mutant.file}:"
    tests = {
        test
        for test, calls in facts["calls"].items()
        if test.split("::")[0] in mapped
        and any(call == place if mutant.function else call.startswith(place) for call in calls)
    }
    if mutant.cached:
        files = {test.split("::")[0] for test in tests}
        tests = {test for test in facts["calls"] if test.split("::")[0] in files}
    seconds: dict[str, float] = defaultdict(float)
    for test in tests:
        seconds[test.split("::")[0]] += facts["seconds"][test]
    return sorted(tests, key=lambda test: (seconds[test.split("::")[0]], test.split("::")[0], facts["seconds"][test]))


@dataclass
class Trial:
    """A mutant whose tests run."""

    mutant: Mutant
    root: Path
    process: int
    deadline: float

    def result(self) -> str | None:
        """Return what became of the mutant; None while its tests run."""
        process, status = os.waitpid(self.process, os.WNOHANG)
        if process:
            code = os.waitstatus_to_exitcode(status)
            return "SURVIVED" if code == 0 else "killed"
        if time.monotonic() > self.deadline:
            os.killpg(self.process, signal.SIGKILL)
            os.waitpid(self.process, 0)
            return "killed, by the time limit"
        return None


def begun(mutant: Mutant, tests: list[str], facts: dict[str, Any], root: Path) -> Trial:
    """Break a copy of the project, and begin to run tests there."""
    target = root / mutant.file
    target.write_text(mutant.source(), encoding="utf-8")
    files = list(dict.fromkeys(test.split("::")[0] for test in tests))
    process = forked(root, lambda: pytest(files, Chooser(tests), "-x"))
    seconds = sum(facts["seconds"][test] for test in tests)
    return Trial(mutant, root, process, time.monotonic() + PATIENCE * seconds + SECONDS)


def tried(mutants: list[Mutant], jobs: int) -> dict[Mutant, str]:
    """Try mutants, some at a time, and print what becomes of each."""
    results: dict[Mutant, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        files = list(dict.fromkeys(test for mutant in mutants for test in mapped_tests(mutant.file)))
        facts = recorded(files, copied(Path(folder, "recorded")))
        roots = [copied(Path(folder, str(job))) for job in range(jobs)]
        print(f"{len(facts['calls'])} tests, unbroken: {sum(facts['seconds'].values()):.0f} s", flush=True)
        for name in facts["libraries"]:
            with suppress(Exception):
                importlib.import_module(name)
        waiting, running = list(mutants), []

        def say(mutant: Mutant, result: str) -> None:
            results[mutant] = result
            line = (ROOT / mutant.file).read_bytes()[: mutant.start].count(b"\n") + 1
            print(f"{len(results):3} {result:10} {mutant.file}:{line}", flush=True)
            if result.startswith("SURVIVED"):
                print(mutant.diff(), flush=True)

        while waiting or running:
            while waiting and roots:
                mutant = waiting.pop(0)
                if tests := chosen_tests(mutant, facts):
                    running.append(begun(mutant, tests, facts, roots.pop()))
                else:
                    say(mutant, "SURVIVED, no test calls it")
            time.sleep(0.05)
            for trial in list(running):
                if result := trial.result():
                    shutil.copy(ROOT / trial.mutant.file, trial.root / trial.mutant.file)
                    running.remove(trial)
                    roots.append(trial.root)
                    say(trial.mutant, result)
    return results


def all_mutants(words: list[str]) -> list[Mutant]:
    """Return the mutants of the files in TESTS whose path holds one of the words; without words of all."""
    paths = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "zoreward").rglob("*.py"))]
    paths = [path for path in paths if any(path.startswith(start) for start in TESTS)]
    for word in words:
        if not any(word in path for path in paths):
            sys.exit(f"no file that is broken holds {word!r} in its path; --list shows them")
    chosen = [path for path in paths if not words or any(word in path for word in words)]
    return [m for path in chosen for m in mutants_of(path, (ROOT / path).read_text(encoding="utf-8"))]


def main() -> None:
    """Try mutants; exit 1 if fewer are killed than were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="WORD", help="only files whose path holds a word")
    parser.add_argument("--count", type=int, default=60, help="how many mutants are tried")
    parser.add_argument("--seed", type=int, default=0, help="which")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many at a time")
    parser.add_argument("--least", type=float, default=0.8, help="the share that must be killed")
    parser.add_argument("--list", action="store_true", help="print the mutants, and try none")
    asked = parser.parse_args()
    mutants = all_mutants(asked.words)
    if asked.list:
        print("\n".join(mutant.diff() for mutant in mutants))
        print(f"{len(mutants)} mutants")
        return
    os.environ.setdefault("TRITON_INTERPRET", "1")
    results = tried(sampled(mutants, asked.count, asked.seed), asked.jobs)
    killed = sum(result.startswith("killed") for result in results.values())
    print(f"{killed} of {len(results)} mutants killed, {killed / len(results):.0%}; seed {asked.seed}")
    sys.exit(killed < asked.least * len(results))


if __name__ == "__main__":
    main()
