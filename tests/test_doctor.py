"""Contract under test: what is developed with is pinned and stated; what is newer or older is told in a line."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import pins
from zoreward.cli import main
from zoreward.neighbours.releases import TESTED, Neighbour, neighbours, newer_than_tested

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def lines_of(path: Path) -> Iterator[Requirement]:
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            yield Requirement(line)


PINNED = {requirement.name: requirement for requirement in lines_of(ROOT / "constraints.txt")}


def needed() -> list[Requirement]:
    """What the project needs, and what it is developed with."""
    texts = [*PROJECT["project"]["dependencies"], *PROJECT["dependency-groups"]["dev"]]
    return [Requirement(text) for text in texts]


def test_all_that_is_needed_is_pinned_and_nothing_of_a_gpu_is() -> None:
    missing = {pins.normal(one.name) for one in needed()} - PINNED.keys()
    assert not missing, "make test-newest lock"
    assert not [name for name in PINNED if re.match("nvidia|cuda", name)]
    for build in ("2.13.0+cpu", "2.13.1+cu130"):
        assert PINNED["torch"].specifier.contains(build.replace("2.13", TESTED["torch"].rpartition(".")[0]))


@pytest.mark.parametrize("requirement", needed(), ids=lambda requirement: requirement.name)
def test_a_pin_is_at_or_above_its_floor(requirement: Requirement) -> None:
    [pin] = PINNED[pins.normal(requirement.name)].specifier
    assert requirement.specifier.contains(pin.version.removesuffix(".*")), "make test-newest lock"
    assert {one.operator for one in requirement.specifier} <= {">=", "~="}, "a cap"


def test_what_is_said_to_be_tested_is_what_is_pinned() -> None:
    assert TESTED.keys() == {pins.normal(Requirement(text).name) for text in PROJECT["project"]["dependencies"]}
    for name, version in TESTED.items():
        assert PINNED[name].specifier.contains(version), f"{name}: make lock writes both"


def test_every_dependency_has_a_floor() -> None:
    found = pins.floors(PROJECT["project"], {"torch": "torch==9"})
    assert len(found) == len(PROJECT["project"]["dependencies"]) and "torch==9" in found
    with pytest.raises(SystemExit, match="'rich' has no floor"):
        pins.floors({"dependencies": ["numpy>=2.0", "rich"]}, {})


def test_pins_are_written_into_the_table() -> None:
    text = (ROOT / "zoreward" / "neighbours" / "releases.py").read_text(encoding="utf-8")
    newer = {name: f"{version}.7+cpu" for name, version in TESTED.items()}
    lines = pins.table(text, newer).splitlines()
    assert [line for line in lines if line not in text.splitlines()] == [
        f'    "{name}": "{version}.7",' for name, version in TESTED.items()
    ]


@pytest.mark.parametrize(
    ("installed", "floor", "problem"),
    [
        ("5.24.0", "5.17", ""),
        ("5.17.0", "5.17", ""),
        ("5.24.0+local", "5.17", ""),
        ("5.24.1", "5.17", "newer than tested"),
        ("5.100", None, "newer than tested"),
        ("5.25.0rc1", "5.17", "newer than tested"),
        ("5.9.3", "5.17", "too old"),
        (None, "5.17", "missing"),
    ],
)
def test_what_is_wrong_with_a_release(installed: str | None, floor: str | None, problem: str) -> None:
    assert Neighbour("transformers", installed, floor, "5.24.0").problem == problem


def stand_in(monkeypatch: pytest.MonkeyPatch, **others: str | None) -> None:
    """Let some libraries be installed in other releases than the tested ones, which all others have."""

    def version(name: str) -> str:
        found = others.get(name, TESTED[name])
        if found is None:
            raise metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(metadata, "version", version)


def test_the_version_tells_what_is_newer_in_one_line(monkeypatch, capsys) -> None:
    stand_in(monkeypatch)
    assert main(["--version"]) == 0
    out, err = capsys.readouterr()
    assert (len(out.splitlines()), err) == (1, "")
    stand_in(monkeypatch, transformers="99.1", peft="77.0", numpy="1.0")
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == out
    expected = f"peft 77.0 (tested up to {TESTED['peft']}), transformers 99.1 (tested up to {TESTED['transformers']})"
    assert newer_than_tested() == f"newer than this zoreward was tested with: {expected}"


def test_the_doctor_says_what_is_here(monkeypatch, capsys) -> None:
    stand_in(monkeypatch)
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "memory: " in out and "GPU" in out and "newer" not in out
    for name, version in TESTED.items():
        assert re.search(rf"^  {name} +{re.escape(version)} ", out, re.MULTILINE)
    stand_in(monkeypatch, torch="99.0+cu130")
    assert main(["doctor"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("newer than this zoreward was tested with: torch 99.0+cu130 (tested up to 2.")


@pytest.mark.parametrize(
    ("others", "told"), [({"trl": None}, "trl is missing"), ({"numpy": "1.26"}, "numpy is too old")]
)
def test_the_doctor_says_what_does_not_do(others, told, monkeypatch, capsys) -> None:
    stand_in(monkeypatch, **others)
    assert main(["doctor"]) == 1
    assert f"{told}: pip install --upgrade zoreward" in capsys.readouterr().out


def test_a_torch_that_is_broken_is_told(monkeypatch, capsys) -> None:
    stand_in(monkeypatch)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["doctor"]) == 0
    assert "torch cannot be imported: ModuleNotFoundError" in capsys.readouterr().out


def test_every_library_is_looked_up() -> None:
    assert [one.name for one in neighbours()] == list(TESTED)
    assert all(Version(one.installed) for one in neighbours() if one.installed)
