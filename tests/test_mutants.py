"""The tool that breaks the code: which changes it makes, and that what it tries is there to be tried."""

from __future__ import annotations

import ast
import builtins
from types import SimpleNamespace
from typing import Any

import pytest

from mutants import ROOT, TESTS, all_mutants, mapped_tests, mutants_of, sampled, talking


def changes_of(text: str) -> set[str]:
    """Every text that can come of a text by one change."""
    encoded = text.encode()
    mutants = mutants_of("file.py", text)
    return {(encoded[: m.start] + m.new.encode() + encoded[m.end :]).decode() for m in mutants}


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("a < b", {"a <= b"}),
        ("a is not b", {"a is b"}),
        ("x = (θ +\n     ε)", {"x = (θ - ε)"}),
        ("x = not a == b", {"x = (a == b)", "x = not a != b"}),
        ("x = -a", {"x = (a)"}),
        ("x = a and b", {"x = a or b"}),
        ("x += y", {"x -= y"}),
        ("x = 3, True, 0.5", {"x = 4, True, 0.5", "x = 3, False, 0.5", "x = 3, True, 1.5"}),
        ("x = f(a, b, c=d)", {"x = f(b, a, c=d)", "x = f(a, b)"}),
        ("x = max(a, b)", set()),
        ("f(*a, b)", {"pass"}),
        ("a.b = c", {"pass"}),
        ("x = a if b else c", {"x = a if True else c", "x = a if False else c"}),
        (
            "if a:  # why\n    raise E(f(1, 2))",
            {"if True:  # why\n    raise E(f(1, 2))", "if a:  # why\n    pass"}
            | {"if False:  # why\n    raise E(f(1, 2))"},
        ),
        ('@d(1)\ndef f(a: g(1)) -> h(2):\n    """i"""\n    return a', {None}),
        ('x = f"{a < b}"\n__all__ = [1]\n"text"', set()),
    ],
)
def test_each_change_is_one_and_leaves_the_rest_as_it_is(text: str, broken: set[str | None]) -> None:
    if broken == {None}:
        broken = {text.replace("return a", "return None")}
    assert changes_of(text) == broken


TEXT = """
A = 1

@cache
def f():
    def g():
        return 2
    return 3

@triton.jit(x=1)
def h():
    return 4

class C:
    @property
    def k(self):
        \"\"\"Text.

        More.
        \"\"\"
        @d
        def m(): return 5
        return m
"""


def test_a_mutant_knows_the_function_around_it() -> None:
    found = {(mutant.new, mutant.function, mutant.cached) for mutant in mutants_of("file.py", TEXT)}
    assert found == {
        *(("2", 0, False), ("return None", 6, False), ("3", 6, False), ("return None", 5, True), ("4", 5, True)),
        *(("return None", 0, False), ("5", 0, False), ("6", 0, False)),
        ("return None", 16, False),
    }


def test_functions_say_that_they_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    def same(function: object = None, **_: object) -> object:
        return function or same

    called: set[str] = set()
    monkeypatch.setattr(builtins, "_called", called, raising=False)
    names: dict[str, Any] = {"cache": same, "d": same, "triton": SimpleNamespace(jit=same)}
    exec(talking("file.py", TEXT), names)
    assert called == set()
    assert names["f"]() == 3 and called == {"file.py:5"}
    assert names["h"]() == 4 and names["C"]().k() == 5 and called == {"file.py:5", "file.py:16"}
    assert names["C"].k.__doc__.startswith("Text.")


def test_what_is_broken_is_there_and_so_are_its_tests() -> None:
    for start in TESTS:
        assert (ROOT / start).exists()
        for name in mapped_tests(start):
            assert (ROOT / name).exists(), name


def test_mutants_are_chosen_by_their_files_and_drawn_by_a_seed() -> None:
    mutants = all_mutants(["noise/seeds.py"])
    assert mutants and {mutant.file for mutant in mutants} == {"zoreward/noise/seeds.py"}
    drawn = sampled(mutants, 5, 0)
    assert len(drawn) == 5 and drawn == sampled(mutants, 5, 0) != sampled(mutants, 5, 1)
    before = ast.dump(ast.parse((ROOT / "zoreward/noise/seeds.py").read_text(encoding="utf-8")))
    assert all(ast.dump(ast.parse(mutant.source())) != before for mutant in drawn)
    assert all("\n-" in mutant.diff() and "\n+" in mutant.diff() for mutant in drawn)
    with pytest.raises(SystemExit, match="no file that is broken holds 'jounral' in its path"):
        all_mutants(["journal", "jounral"])
