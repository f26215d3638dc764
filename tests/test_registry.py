"""How a function becomes an objective, where objectives are found, and how their results become one score."""

from __future__ import annotations

import functools
import importlib
import math
import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
import torch

from zoreward.records import InputError, MissingFileError, ObjectiveError, UnknownNameError, ZorewardError
from zoreward.registry import (
    Option,
    describe_objective,
    get_objective,
    list_objectives,
    mean_score,
    objective,
    weighted_sum,
)

if TYPE_CHECKING:
    from nowhere import OnlyForTheChecker

Plug = Callable[..., None]


@pytest.fixture
def plug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Plug]:
    """Install a distribution: its name, its entry points, the source of its module (named as it is, with `_`)."""
    before = set(sys.modules)

    def install(distribution: str, points: dict[str, str], source: str = "") -> None:
        folder = tmp_path / distribution
        info = folder / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        lines = [f"{name} = {target}" for name, target in points.items()]
        (info / "entry_points.txt").write_text("\n".join(["[zoreward.objectives]", *lines, ""]))
        (folder / f"{distribution.replace('-', '_')}.py").write_text(source)
        monkeypatch.syspath_prepend(str(folder))
        importlib.invalidate_caches()

    yield install
    for name in set(sys.modules) - before:
        if name.startswith(("acme", "other", "zoreward_file_")):
            del sys.modules[name]


@objective("brevity")
def brevity(completions: list[OnlyForTheChecker], *, target: int = 40, **columns: Any) -> list[float]:
    """Reward completions close to a target length.

    More about it.

    Args:
        completions: what was written.
        target (int): characters that are
            right: not more.

    Returns: a float for each.
    """
    return [-abs(len(c) - target) / target for c in completions]


@objective("counter")
class Counter:
    """Count what it is asked."""

    made: list[Counter] = []  # noqa: RUF012

    def __init__(self, *, start: int = 0, mode: Literal["up", "down"] = "up"):
        """Make it.

        Args:
            start: the first answer.
        """
        self.start, self.mode = start, mode
        Counter.made.append(self)

    def __call__(self, predictions: list[int], *, scale: float = 1.0) -> float:
        self.start += 1 if self.mode == "up" else -1
        return self.start * scale


def scoring(result: Any) -> Any:
    """Return an objective called `fixed` that returns `result` whatever it is given."""

    def fixed(predictions: list[int]) -> Any:
        return result

    return get_objective(fixed)


# --- needs --------------------------------------------------------------------------------------------------------


def by_completions(prompts, completions, **columns): ...
def by_completion_ids(completion_ids, **columns): ...
def by_predictions(predictions, references): ...
def by_logprobs(logprobs): ...


@pytest.mark.parametrize(
    ("function", "needs"),
    [
        (by_completions, "completions"),
        (by_completion_ids, "completions"),
        (by_predictions, "choices"),
        (by_logprobs, "choices"),
        (Counter, "choices"),
    ],
)
def test_needs_is_seen_from_the_parameters(function: Any, needs: str) -> None:
    assert describe_objective(function).needs == needs


def test_needs_that_is_said_wins_over_the_parameters() -> None:
    @objective("x", needs="likelihood")
    def f(logprobs: Any) -> Any: ...

    assert get_objective(f).needs == "likelihood"


def test_needs_that_cannot_be_seen_must_be_said() -> None:
    with pytest.raises(InputError, match=r"what objective 'x' needs .* cannot be seen") as caught:
        objective("x")(lambda prompts, **columns: 0.0)
    assert '@objective("x", needs=' in caught.value.hint


def test_unknown_needs() -> None:
    with pytest.raises(InputError, match="cannot need 'choice'") as caught:
        objective("x", needs="choice")(by_logprobs)  # type: ignore[arg-type]
    assert caught.value.hint == "did you mean choices? It can need: choices, completions, likelihood, any"


def test_decorator_without_a_name() -> None:
    with pytest.raises(InputError, match="without a name"):
        objective(by_logprobs)  # type: ignore[arg-type]


def test_class_without_call() -> None:
    class Mute:
        pass

    with pytest.raises(InputError, match="'mute' is a class without __call__"):
        objective("mute")(Mute)


def test_decorator_returns_the_function_itself() -> None:
    def f(logprobs: Any) -> Any: ...

    assert objective("x")(f) is f


# --- options and help ---------------------------------------------------------------------------------------------


def test_options_of_a_function() -> None:
    described = describe_objective(brevity)
    assert described.options == (Option("target", int, 40, "characters that are right: not more."),)
    assert described.help == "Reward completions close to a target length."


def test_options_of_a_class_come_from_its_init() -> None:
    described = describe_objective(Counter)
    assert described.options == (
        Option("start", int, 0, "the first answer."),
        Option("mode", Literal["up", "down"], "up", ""),
    )
    assert described.help == "Count what it is asked."


def test_a_class_without_docstring_has_no_help() -> None:
    class Bare:
        def __call__(self, logprobs: Any) -> float:
            return 0.0

    assert describe_objective(Bare).help == ""


def test_outputs_and_plain_columns_are_no_options() -> None:
    def f(completions: Any, *, references: list[int] = [], trainer_state: str = "", solution=None, n: int, k: int = 3):  # noqa: B006
        ...

    assert [option.name for option in describe_objective(f).options] == ["k"]


def test_option_with_a_type_that_is_not_there() -> None:
    def f(completions: Any, *, k: OnlyForTheChecker = None): ...  # type: ignore[assignment]

    with pytest.raises(InputError, match=r"the type of an option of objective 'f' .*OnlyForTheChecker"):
        get_objective(f)


def test_unknown_option_names_the_options() -> None:
    with pytest.raises(InputError, match="objective 'brevity' has no option 'taget'") as caught:
        get_objective(brevity, taget=3)
    assert caught.value.hint == "did you mean target? Options: target"


def test_unknown_option_of_an_objective_without_options() -> None:
    with pytest.raises(InputError, match="objective 'by_logprobs' has no option 'target'") as caught:
        get_objective(by_logprobs, target=3)
    assert "keyword-only" in caught.value.hint


def test_option_values_reach_a_function_unconverted() -> None:
    seen = []

    def f(completions: Any, *, target: int = 40) -> float:
        seen.append(target)
        return 0.0

    get_objective(f).score(1, completions=["a"])
    with_option = get_objective(f, target="7")
    with_option.score(1, completions=["a"])
    assert seen == [40, "7"]
    assert with_option.values == {"target": "7"}


def test_a_class_is_made_once_with_its_options_and_keeps_its_state() -> None:
    Counter.made.clear()
    assert describe_objective(Counter).function is Counter
    assert Counter.made == []
    counting = get_objective(Counter, start=10, mode="down")
    scores = [counting.score(1, predictions=[0]) for _ in range(2)]
    assert scores == [9.0, 8.0]
    assert len(Counter.made) == 1


def test_a_class_that_cannot_be_made() -> None:
    class Picky:
        def __init__(self, *, path: str = ""):
            raise KeyError("path")

        def __call__(self, logprobs: Any) -> float:
            return 0.0

    with pytest.raises(ObjectiveError, match="'Picky' cannot be made: KeyError: 'path'") as caught:
        get_objective(Picky)
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_class_that_refuses_its_options_speaks_for_itself() -> None:
    class Picky:
        def __init__(self, *, path: str = ""):
            raise InputError("a path is missing")

        def __call__(self, logprobs: Any) -> float:
            return 0.0

    with pytest.raises(InputError, match=r"(?m)^a path is missing$"):
        get_objective(Picky)


# --- where objectives come from -----------------------------------------------------------------------------------


def test_names_of_callables() -> None:
    assert get_objective(brevity).name == "brevity"
    assert get_objective(by_logprobs).name == "by_logprobs"
    assert get_objective(Counter(start=1)).name == "counter"
    assert get_objective(functools.partial(brevity, target=3)).name == "brevity"


def test_what_is_no_objective() -> None:
    with pytest.raises(InputError, match="a value of type 'int' is no objective"):
        get_objective(3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="'hypot' has no readable parameters"):
        get_objective("math:hypot")


@pytest.mark.parametrize("kind", [InputError, MissingFileError, ObjectiveError, UnknownNameError])
def test_a_traceback_shows_the_hint(kind: type[ZorewardError]) -> None:
    error = kind("there is none", hint="give one")
    assert traceback.format_exception_only(error)[-2:] == [
        f"zoreward.records.{kind.__name__}: there is none\n", "hint: give one\n"
    ]  # fmt: skip
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.hint, again.__notes__) == ("there is none", "give one", ["hint: give one"])
    assert not hasattr(kind("there is none"), "__notes__")


def test_what_is_no_objective_is_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "hunter2")
    for source in ("os:environ", os.environ, {"TOKEN": "hunter2"}):
        with pytest.raises(InputError, match=r"(?m)^a value of type '(_Environ|dict)' is no objective$") as caught:
            get_objective(source)  # type: ignore[arg-type]
        assert "hunter2" not in f"{caught.value} {caught.value.hint}"

    @objective("maker", needs="any")
    def maker() -> Any:
        return os.environ

    with pytest.raises(ObjectiveError, match=r"(?m)'maker' returned a value of type '_Environ'$"):
        get_objective(maker)


@pytest.mark.parametrize("ends", ["sys.exit()", "raise KeyboardInterrupt", "raise GeneratorExit('x')", "exit(3)"])
def test_code_that_ends_the_process_when_it_is_loaded_is_an_error(ends: str, tmp_path: Path, plug: Plug) -> None:
    path = tmp_path / "ends.py"
    path.write_text(f"import sys\n{ends}\n")
    with pytest.raises(
        ObjectiveError, match=r"cannot be imported: (SystemExit|KeyboardInterrupt|GeneratorExit)"
    ) as told:
        get_objective(f"{path}:f")
    assert told.value.hint == f"raised in {path}, line 2"
    plug("acme", {"gone": "acme:f"}, f"import sys\n{ends}\n")
    with pytest.raises(ObjectiveError, match=r"cannot be loaded: (SystemExit|KeyboardInterrupt|GeneratorExit)"):
        get_objective("gone")

    class Ends:
        """Ends when it is made."""

        def __init__(self, *, times: int = 1) -> None:
            exec(f"import sys\n{ends}")

        def __call__(self, completions: Any) -> list[float]:
            return []

    with pytest.raises(ObjectiveError, match=r"'Ends' cannot be made: (SystemExit|KeyboardInterrupt|GeneratorExit)"):
        get_objective(Ends)


@pytest.mark.parametrize("message", ["x" * 10_000_000, "red \x1b[31m\x07 \u202e", "\ud83d", "one\ntwo\r\nthree"])
def test_what_an_objective_says_is_one_short_line_that_a_terminal_only_shows(message: str) -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            return message

    def f(predictions: Any) -> float:
        raise Odd

    with pytest.raises(ObjectiveError) as caught:
        get_objective(f).score(1, predictions=[0])
    assert str(caught.value).startswith("objective 'f' raised Odd: ")
    assert len(str(caught.value)) < 500 and str(caught.value).isprintable()


def test_an_error_that_has_no_text_is_told_all_the_same() -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            raise ValueError

    def f(predictions: Any) -> float:
        raise Odd

    with pytest.raises(ObjectiveError, match=r"(?m)^objective 'f' raised Odd: <Odd>$"):
        get_objective(f).score(1, predictions=[0])


def test_a_package_that_is_installed_meanwhile_is_found(plug: Plug, tmp_path: Path) -> None:
    source = "def one(completions):\n    return 1.0\n"
    plug("acme-first", {"first-of-acme": "acme_first:one"}, source)
    assert "first-of-acme" in [entry.name for entry in list_objectives()]
    info = tmp_path / "acme-first" / "acme_second-1.0.dist-info"  # beside the first, as pip installs
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-second\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[zoreward.objectives]\nsecond-of-acme = acme_first:one\n")
    importlib.invalidate_caches()
    assert get_objective("second-of-acme").name == "second-of-acme"
    assert "second-of-acme" in [entry.name for entry in list_objectives()]


def test_unknown_name_lists_neighbours_and_all_names(plug: Plug) -> None:
    plug("acme-one", {"rudeness": "acme_one:f", "rudenesses": "acme_one:g"})
    with pytest.raises(UnknownNameError, match=r"(?m)^unknown objective 'rudenes'$") as caught:
        get_objective("rudenes")
    assert caught.value.hint.startswith("did you mean rudeness or rudenesses? Objectives: ")
    assert all(entry.name in caught.value.hint for entry in list_objectives())


def test_unknown_prefix() -> None:
    with pytest.raises(UnknownNameError):
        get_objective("nonsense:f1")


PLUGIN = """
from zoreward.registry import objective
@objective("kindness")
def kindness(completions, *, weight: float = 2.0):
    "Reward kind words."
    return [weight * ("please" in c) for c in completions]
"""


def test_plugin_by_its_registered_name(plug: Plug) -> None:
    plug("acme-kind", {"kindness": "acme_kind:kindness"}, PLUGIN)
    found = get_objective("kindness", weight=4.0)
    assert (found.distribution, found.help) == ("acme-kind", "Reward kind words.")
    assert found.score(2, completions=["please", "now"]) == 2.0


def test_plugin_without_decorator_is_called_as_it_is_registered(plug: Plug) -> None:
    plug("acme-plain", {"kind": "acme_plain:f"}, "def f(completions): return 1.0")
    assert get_objective("kind").name == "kind"


def test_listing_loads_nothing(plug: Plug) -> None:
    plug("acme-broken", {"zz": "acme_broken:f"}, "raise SystemError")
    entries = [(entry.name, entry.distribution) for entry in list_objectives()]
    assert ("zz", "acme-broken") in entries
    assert entries == sorted(entries)
    assert "acme_broken" not in sys.modules


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import a_module_that_is_not_there", "ModuleNotFoundError"),
        ("1 / 0", "ZeroDivisionError"),
        ("", "AttributeError"),
        ("f = 3", "InputError"),
        ("def f(x): return 1.0", "InputError"),
    ],
)
def test_broken_plugin_names_itself_and_its_distribution(plug: Plug, source: str, said: str) -> None:
    plug("acme-broken", {"zz": "acme_broken:f"}, source)
    with pytest.raises(ObjectiveError, match=f"objective 'zz' of 'acme-broken' cannot be loaded: {said}") as caught:
        get_objective("zz")
    assert caught.value.__cause__ is not None


def test_broken_plugin_breaks_only_its_own_objective(plug: Plug) -> None:
    plug("acme-broken", {"zz": "acme_broken:f"}, "1 / 0")
    plug("acme-kind", {"kindness": "acme_kind:kindness"}, PLUGIN)
    assert get_objective("kindness").score(1, completions=["please"]) == 2.0


def test_decorator_and_entry_point_must_agree(plug: Plug) -> None:
    plug("acme-kind", {"niceness": "acme_kind:kindness"}, PLUGIN)
    with pytest.raises(ObjectiveError, match="'niceness' of 'acme-kind' calls itself 'kindness'"):
        get_objective("niceness")


def test_nobody_shadows_a_shipped_name(plug: Plug) -> None:
    shipped = [entry for entry in list_objectives() if entry.distribution == "zoreward"]
    assert shipped, "zoreward is not installed"
    plug("acme-thief", {"accuracy": "acme_thief:accuracy"}, "def accuracy(predictions): return 1.0")
    with pytest.raises(ObjectiveError, match="'accuracy' is registered by 'acme-thief' and 'zoreward'") as caught:
        get_objective("accuracy")
    assert caught.value.hint.startswith("uninstall 'acme-thief'")
    assert "acme_thief" not in sys.modules
    assert get_objective("f1").distribution == "zoreward"


def test_two_strangers_with_one_name(plug: Plug) -> None:
    plug("other-kind", {"kindness": "other_kind:f"}, "1 / 0")
    plug("acme-kind", {"kindness": "acme_kind:kindness"}, PLUGIN)
    with pytest.raises(ObjectiveError, match="'kindness' is registered by 'acme-kind' and 'other-kind'"):
        get_objective("kindness")
    assert get_objective("accuracy").name == "accuracy"
    owners = [entry.distribution for entry in list_objectives() if entry.name == "kindness"]
    assert sorted(owners) == ["acme-kind", "other-kind"]


def test_function_of_a_module(plug: Plug) -> None:
    plug("acme-kind", {}, PLUGIN)
    found = get_objective("acme_kind:kindness")
    assert (found.name, found.distribution) == ("kindness", "")
    with pytest.raises(UnknownNameError, match="'acme_kind' has no 'kindnes'") as caught:
        get_objective("acme_kind:kindnes")
    assert "did you mean kindness" in caught.value.hint


def test_module_that_cannot_be_imported(plug: Plug) -> None:
    with pytest.raises(UnknownNameError, match=r"there is no module 'acme_none\.deep'"):
        get_objective("acme_none.deep:f")
    plug("acme-broken", {}, "import acme_missing_too")
    with pytest.raises(ObjectiveError, match=r"'acme_broken' cannot be imported: .*acme_missing_too"):
        get_objective("acme_broken:f")


FILE = """
from __future__ import annotations
from dataclasses import dataclass
from typing import Literal
@dataclass
class Part:
    size: int = 2
def sized(completions, *, mode: Literal["a", "b"] = "a"):
    return Part().size
not_callable = 3
"""


def test_function_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "my rewards.py"
    path.write_text(FILE)
    found = get_objective(f"{path}:sized")
    assert (found.name, found.score(1, completions=["a"])) == ("sized", 2.0)
    assert found.options == (Option("mode", Literal["a", "b"], "a", ""),)
    with pytest.raises(UnknownNameError, match="has no 'size'"):
        get_objective(f"{path}:size")
    with pytest.raises(InputError, match="a value of type 'int' is no objective"):
        get_objective(f"{path}:not_callable")


def test_file_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"there is no file .*none\.py"):
        get_objective(f"{tmp_path}/none.py:f")
    (tmp_path / "bad.py").write_text("def f(:")
    with pytest.raises(ObjectiveError, match=r"bad\.py' cannot be imported: SyntaxError") as caught:
        get_objective(f"{tmp_path}/bad.py:f")
    assert isinstance(caught.value.__cause__, SyntaxError)


BROKEN = {
    "syntax": ("x = 1\ndef f(:\n", "SyntaxError: invalid syntax", "see {}, line 2: def f(:"),
    "indented": ("def f():\n  x = 1\n y = 2\n", "IndentationError: unindent", "see {}, line 3: y = 2"),
    "open": ("x = (1,\n", r"SyntaxError: '\(' was never closed", "see {}, line 1: x = (1,"),
    "latin": ("x = 1\ny = '\xff'\n", "SyntaxError: .unicode error", "see {}, line 2"),
    "name": ("import os\nx = nothing_such\n", "NameError: name 'nothing_such'", "raised in {}, line 2"),
    "package": ("import os\n\nimport no_such_package\n", "No module named 'no_such_package'", "raised in {}, line 3"),
    "member": ("from os import nothing_such\n", "ImportError: cannot import name", "raised in {}, line 1"),
    "nul": ("x = 1\n\0\n", "null bytes", "see {}"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_is_broken_is_told_by_its_own_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, said, hint = BROKEN[name]
    path = tmp_path / f"broken_{name}.py"
    path.write_bytes(code.encode("latin-1"))
    (tmp_path / f"via_{name}.py").write_text(f"x = 1\nimport broken_{name}\n")
    monkeypatch.syspath_prepend(tmp_path)
    for source in (f"{path}:f", f"broken_{name}:f", f"{tmp_path}/via_{name}.py:f"):
        with pytest.raises(ObjectiveError, match=rf"cannot be imported: .*{said}") as caught:
            get_objective(source)
        assert "importlib" not in caught.value.hint and "sources.py" not in caught.value.hint
        if name != "nul":  # Python does not say which line it is
            assert caught.value.hint.startswith(hint.format(path))


@pytest.mark.parametrize("source", ["..a:f", ":f"])
def test_what_no_module_can_be_called_is_told_how_to_name_one(source: str) -> None:
    with pytest.raises(ObjectiveError, match="cannot be imported") as caught:
        get_objective(source)
    assert caught.value.hint.startswith("give a module as import takes it")


def test_importing_the_registry_is_light() -> None:
    code = (
        "import sys, zoreward.registry as r; r.list_objectives(); "
        "print(sorted({'torch', 'numpy', 'sklearn', 'transformers', 'trl'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- what goes in -------------------------------------------------------------------------------------------------


def test_a_function_gets_what_it_names() -> None:
    def f(references: Any, logprobs: Any, extra: str = "none") -> float:
        return float((references, logprobs, extra) == ([1], [2], "none"))

    assert get_objective(f).score(1, predictions=[0], references=[1], logprobs=[2], self="a", n_rows=["b"]) == 1.0


def test_a_function_with_columns_gets_everything() -> None:
    seen = {}

    def f(completions: Any, *, k: int = 3, **columns: Any) -> float:
        seen.update(columns, k=k)
        return 0.0

    get_objective(f, k=4).score(1, completions=["a"], prompts=["p"], n_rows=["column"])
    assert seen == {"prompts": ["p"], "n_rows": ["column"], "k": 4}


def test_a_missing_column_is_named() -> None:
    def f(completions: Any, solution: Any) -> float:
        return 0.0

    with pytest.raises(UnknownNameError, match="objective 'f' asks for 'solution'") as caught:
        get_objective(f).score(1, completions=["a"], solutions=["b"], text=["c"])
    assert caught.value.hint.startswith("did you mean solutions")
    assert caught.value.hint.endswith("There are: completions, solutions, text")


def test_a_column_with_the_name_of_an_option() -> None:
    def f(completions: Any, *, weight: float = 1.0, **columns: Any) -> float:
        return weight

    with pytest.raises(InputError, match="'weight' is an option of objective 'f' and also a column"):
        get_objective(f).score(1, completions=["a"], weight=[9.0])
    assert get_objective(f, weight=2.0).score(1, completions=["a"], weight=[9.0]) == 2.0


def test_a_column_with_the_name_of_an_init_option_goes_to_call() -> None:
    class Both:
        def __init__(self, *, weight: float = 1.0):
            self.weight = weight

        def __call__(self, completions: Any, weight: Any) -> float:
            return self.weight + weight[0]

    assert get_objective(Both, weight=2.0).score(1, completions=["a"], weight=[9.0]) == 11.0


# --- what comes out -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "score"),
    [
        (0.25, 0.25),
        (3, 3.0),
        (np.float32(0.5), 0.5),
        (np.array(0.5), 0.5),
        (torch.tensor(0.5, dtype=torch.bfloat16), 0.5),
        ([1, 0, 1, 0], 0.5),
        ((True, False, False, False), 0.25),
        ([1.0, None, 0.5, None], 0.75),
        ([1.0, math.nan, 0.5, None], 0.75),
        (torch.tensor([1.0, math.nan, 0.5, 0.0]), 0.5),
        (np.array([1.0, 2.0, 3.0, 4.0], dtype=np.float32), 2.5),
        (torch.tensor([1.0, 2.0, 3.0, 4.0]), 2.5),
        ([np.float64(1), torch.tensor(2.0), 3, None], 2.0),
        # exact only when summed in float64 without rounding on the way
        ([1e16, 1.0, 1.0, -1e16], 0.5),
    ],
)
def test_scores_that_count(result: Any, score: float) -> None:
    found = scoring(result).score(4, predictions=[0] * 4)
    assert type(found) is float
    assert found == score


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (math.nan, "has no score on these 3 rows"),
        (-math.inf, "returned -inf$"),
        ([0.0, 0.0, math.inf], "returned inf for row 2$"),
        ([None, None, None], "has no score on these 3 rows"),
        ([None, math.nan, None], "has no score on these 3 rows"),
        ([1.0] * 5, "wrong number of scores: got 5 for 3 rows"),
        ([], "wrong number of scores: got 0 for 3 rows"),
        ("0.5", "returned no number: '0.5'"),
        (None, "returned None, where a score or a list of scores is meant: has it no return?"),
        ({"f1": 0.5}, r"returned no number: \{'f1': 0.5\}"),
        (1j, "returned no number"),
        (10**400, "returned no number"),
        (Fraction(1, 2), "returned no number"),
        ((x for x in [1.0, 1.0, 1.0]), "returned no number: <generator"),
        ([0.0, "a", 0.0], "returned no number for row 1: 'a'"),
        (np.ones((3, 1)), r"returned no number for row 0: \[1.0\]"),
        ([torch.ones(2), 0.0, 0.0], "returned no number for row 0: tensor"),
    ],
)
def test_results_that_are_no_scores(result: Any, message: str) -> None:
    with pytest.raises(
        ObjectiveError, match=f"(?m)objective 'fixed' {message}|objective 'fixed' returned the {message}"
    ):
        scoring(result).score(3, predictions=[0] * 3)


def test_what_none_means_is_told() -> None:
    for result, told in (([None] * 3, "None for a row leaves it out"), (None, "None in that list leaves its row out")):
        with pytest.raises(ObjectiveError) as caught:
            scoring(result).score(3, predictions=[0] * 3)
        assert told in caught.value.hint


def test_an_objective_that_raises() -> None:
    def f(predictions: Any) -> float:
        raise ValueError("too cold")

    with pytest.raises(ObjectiveError, match=r"(?m)^objective 'f' raised ValueError: too cold$") as caught:
        get_objective(f).score(1, predictions=[0])
    assert isinstance(caught.value.__cause__, ValueError)


def test_the_hint_of_an_objective_that_raises_is_kept() -> None:
    def f(predictions: Any) -> float:
        raise InputError("too cold", hint="warm it")

    with pytest.raises(ObjectiveError) as caught:
        get_objective(f).score(1, predictions=[0])
    assert caught.value.hint == "warm it"


# --- sums, and what makes objectives ------------------------------------------------------------------------------


def right(predictions, references):
    return [p == r for p, r in zip(predictions, references, strict=True)]


def caution(predictions, *, price: float = 1.0):
    return [-price * p for p in predictions]


def test_a_weighted_sum_adds_up_and_tells_its_parts() -> None:
    both = weighted_sum([get_objective(right), get_objective(caution, price=2.0)], [1.0, 0.25])
    outputs = {"predictions": [0, 1, 1, 0], "references": [0, 1, 0, 0]}
    [returned] = both.returned_for([(4, outputs)])
    assert {name: mean_score(scores) for name, scores in returned.items()} == {"right": 0.75, "caution": -1.0}
    assert both.score(4, **outputs) == 0.5
    assert both.name == "right + 0.25*caution"
    assert get_objective([right, caution]).score(4, **outputs) == 0.25


@pytest.mark.parametrize(
    ("objectives", "weights", "message"),
    [
        ([right], [1, 2], "do not fit together"),
        ([], None, "do not fit together"),
        ([right, right], None, "two objectives are called 'right'"),
        ([right, caution], [1, float("nan")], "not all finite"),
        ([right, brevity], None, "need different things"),
    ],
)
def test_sums_that_make_no_sense(objectives, weights, message) -> None:
    with pytest.raises(InputError, match=message):
        weighted_sum([get_objective(one) for one in objectives], weights)


def test_the_range_of_a_sum_turns_with_a_negative_weight() -> None:
    sum_ = weighted_sum([get_objective("accuracy"), get_objective("mcc")], [1.0, -0.5])
    assert sum_.range == (-0.5, 1.5)


def test_one_objective_makes_another() -> None:
    @objective("made", needs="any")
    def made(*, factor: float, offset: float = 0.0):
        """Make one."""

        def scaled(predictions):
            return factor * sum(predictions) + offset

        return get_objective(scaled)

    found = get_objective(made, factor=2.0)
    assert (found.name, found.needs, found.score(2, predictions=[1, 1])) == ("scaled", "choices", 4.0)
    with pytest.raises(InputError, match="needs its option 'factor'"):
        get_objective(made)


def test_a_maker_must_return_an_objective() -> None:
    @objective("made", needs="any")
    def made():
        """Forget to."""

    with pytest.raises(ObjectiveError, match="returned a value of type 'NoneType'"):
        get_objective(made)


def test_the_words_behind_the_colon_are_the_first_option_of_a_maker() -> None:
    assert get_objective("sklearn:fbeta_score", beta=2.0).name == "fbeta_score"
    options = [option.name for option in describe_objective("sklearn:fbeta_score").options]
    assert "beta" in options and "name" not in options
