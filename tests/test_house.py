"""The rules of the house that can be read off the source: no circles, no long functions, file names occur once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import house

FILES = house.sources("zoreward")
LINES, PARAMETERS = 60, 8

# What does not hold yet, with what it is today: lower a number here when it has become smaller, and drop what is gone.
# Nothing is added, and no number grows, without a reason beside it.
CIRCLES: list[set[str]] = []
LONG: dict[str, int] = {}
MANY_PARAMETERS = {
    # The two that users call with everything there is. Kernels are not counted: Triton knows no other way.
    "zoreward.scoring.evaluation:evaluate": 27,
    "zoreward.trainer.loop:ZOTrainer.__init__": 11,
}
# Private names of other libraries outside of zoreward/neighbours: on how many lines.
NEIGHBOURS_PRIVATE_NAMES = {
    "_memory_tracker": 2,
}


def test_no_modules_of_a_package_import_one_another_in_a_circle() -> None:
    assert sorted(map(sorted, house.circles(FILES))) == sorted(map(sorted, CIRCLES))


def test_no_function_is_long() -> None:
    lengths = {name: house.length(source, function) for source in FILES for name, function in house.functions(source)}
    assert {name: lines for name, lines in lengths.items() if lines > LINES} == LONG


def test_no_function_has_many_parameters() -> None:
    counts = {
        name: house.parameters(function)
        for source in FILES
        for name, function in house.functions(source)
        if not house.is_kernel(function)
    }
    assert {name: count for name, count in counts.items() if count > PARAMETERS} == MANY_PARAMETERS


def test_a_file_name_occurs_once() -> None:
    counts = Counter(source.path.name for source in FILES if source.path.name != "__init__.py")
    assert {name: count for name, count in counts.items() if count > 1} == {}


def test_private_names_of_other_libraries_stand_in_the_package_for_them() -> None:
    own = house.own_private_names(FILES)
    outside = [source for source in FILES if source.package != "zoreward.neighbours"]
    assert Counter(name for source in outside for name in house.foreign_private_names(source, own)) == (
        NEIGHBOURS_PRIVATE_NAMES
    )


def test_the_rules_see_what_they_forbid() -> None:
    def module(name: str, *lines: str) -> house.Source:
        return house.Source(Path(f"zoreward/noise/{name}.py"), "\n".join(lines))

    first = module("first", "def f():", "    from zoreward.noise.second import g")
    second = module("second", "from zoreward.noise import first")
    assert house.circles([first, second]) == {frozenset({"zoreward.noise.first", "zoreward.noise.second"})}
    typed = module("second", "if TYPE_CHECKING:", "    from zoreward.noise import first")
    assert house.circles([first, typed]) == set()

    long = module(
        "long", "class A:", "    def f(self, a, *, b):", '        """Do."""', *["        a += 1", "", "# c"] * 61
    )
    [(name, function)] = house.functions(long)
    assert (name, house.length(long, function), house.parameters(function)) == ("zoreward.noise.long:A.f", 62, 2)
    assert not house.is_kernel(function)
    [(_, kernel)] = house.functions(module("kernel", "@triton.jit(do_not_specialize=[])", "def f(a):", "    pass"))
    assert house.is_kernel(kernel)

    user = module(
        "user",
        *("import torch, os", "from peft import _a", "from peft._b import c", "from zoreward.noise.first import _ours"),
        *("self._mine = self._mine", "torch._mine()", "model.layer._d = row._replace(a=os._exit(1))"),
        *("getattr(x, '_e', None)", "getattr(x, '_mine')", "self._mine.__init__()"),
    )
    own = house.own_private_names([user])
    assert house.foreign_private_names(user, own) == ["peft._a", "peft._b.c", "_mine", "_d", "_e"]
