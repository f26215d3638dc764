"""The tool that breaks the code: which changes it makes, and that what it tries is there to be tried."""

from __future__ import annotations

import ast

import pytest

from mutants import ROOT, TESTS, all_mutants, mapped_tests, mutants_of, sampled


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


def test_a_mutant_knows_the_function_around_it() -> None:
    text = "A = 1\n\n\n@cache\ndef f():\n    def g():\n        return 2\n    return 3\n"
    found = {(mutant.new, mutant.function, mutant.cached) for mutant in mutants_of("file.py", text)}
    assert found == {("2", 0, False), ("return None", 4, True), ("4", 4, True), ("return None", 6, False)} | {
        ("3", 6, False)
    }


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
