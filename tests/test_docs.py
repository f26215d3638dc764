"""What the pages say that a machine can check: commands that parse, flags that exist, links that lead somewhere."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import zoreward
from zoreward.cli import command_for, with_objective
from zoreward.data import load_rows

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Their tables have another program's names on the left.
COMING_FROM = ["coming-from-mezo.md", "coming-from-lm-eval.md"]
OWN_FLAGS = ["which-objective.md", "which-method.md", "planning.md", "troubleshooting.md"]
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
# What stands where an objective is to be named.
OBJECTIVES = ("OBJECTIVE", "NAME", "brevity", "…")
ELSEWHERE = "def {}(predictions, *, price: float = 5.0):\n    return [0.0 for _ in predictions]\n"


def commands_in(text: str) -> Iterator[tuple[str, bool]]:
    """The commands of a page, and whether each is whole: one in a line of text may leave out what it is not about."""
    text = re.sub(r"\\\n\s*", "", text)
    for line in re.findall(r"^(?: {4}|\$ +|)(zoreward .*)$", _blocks(text), re.MULTILINE):
        yield line, "…" not in line
    for span in re.findall(r"`(zoreward [^`\n]+)`", text):
        yield span, False


def _blocks(text: str) -> str:
    """The lines of a page that are code: between fences, or indented by four."""
    parts = text.split("\n```")
    indented = re.findall(r"^ {4}zoreward .*$", "\n".join(parts[::2]), re.MULTILINE)
    return "\n".join([*parts[1::2], *indented])


def words_of(command: str) -> list[str]:
    words = shlex.split(command, comments=True)[1:]
    if words[0] in ("tune", "eval"):
        if words[1:2] and words[1] in OBJECTIVES:
            words[1] = "accuracy"
        elif not words[1:] or (words[1].startswith("-") and "--task" not in words[:-1]):
            words.insert(1, "accuracy")
    return ["1" if word == "N" else word for word in words if word != "…"]


def leaves(command: Any) -> Iterator[Any]:
    below = getattr(command, "commands", {})
    return (leaf for one in below.values() for leaf in leaves(one)) if below else iter([command])


def problem_of(command: str, is_whole: bool, command_of: Callable[[list[str]], Any]) -> str:
    """Why a command would be refused for its words; "" if it would not. It is parsed, not run."""
    words = words_of(command)
    try:
        words = with_objective(words)
        parser = command_of(words)
        for option in parser.params:  # of which one installs something
            option.callback = lambda context, option, value: context.exit() if value else None
        for leaf in leaves(parser):
            leaf.callback = lambda **options: 0
            for option in leaf.params:
                option.required = option.required and is_whole
        parser.main(args=words, prog_name="zoreward", standalone_mode=False, obj=tuple(words))
    except Exception as error:
        problem = error.format_message() if hasattr(error, "format_message") else str(error)
        is_cut = not is_whole and problem.endswith("requires an argument.")
        return "" if is_cut else f"{command}: {problem}"
    return ""


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """In a folder of its own, makes the files of objectives that a page speaks of."""
    monkeypatch.chdir(tmp_path)
    for folder in ("benchmarks", "examples"):
        Path(folder).symlink_to(ROOT / folder)
    Path("…").mkdir()
    Path("…", "config.yaml").write_text("{}\n")

    def make(text: str) -> None:
        for path, name in re.findall(r"(?<=[ /])(\w+\.py):(\w+)", text):
            with contextlib.suppress(FileExistsError), Path(path).open("x", encoding="utf-8") as file:
                file.write(ELSEWHERE.format(name))

    return make


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_parse(page: Path, commands: Any, elsewhere: Callable[[str], None]) -> None:
    text = page.read_text(encoding="utf-8")
    elsewhere(text)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        problems = [problem_of(*one, commands) for one in dict.fromkeys(commands_in(text))]
    assert [problem for problem in problems if problem] == []


def test_a_command_that_does_not_parse_is_noticed() -> None:
    page = "Take `zoreward eval f1 --modle M`:\n\n```console\n$ zoreward replay runs/a \\\n    --steps 3\n```\n"
    found = dict(commands_in(page))
    assert found == {"zoreward replay runs/a --steps 3": True, "zoreward eval f1 --modle M": False}
    assert all("No such option" in problem_of(*one, command_for) for one in found.items())
    assert problem_of("zoreward tune accuracy --lr 1e-3", False, command_for) == ""
    assert "--model" in problem_of("zoreward tune accuracy --lr 1e-3", True, command_for)


@pytest.fixture(scope="module")
def flags() -> set[str]:
    """What the commands take."""
    commands = [["tune", "accuracy"], ["tune", "f1"], ["tune", "reward-model"], ["tune", "preference"]]
    commands += [["eval", "accuracy"], ["bench"], ["replay"], ["win-rate"], ["compare"]]
    parsers = [leaf for words in commands for leaf in leaves(command_for(words))]
    return {name for parser in parsers for option in parser.params for name in option.opts} | {"--version"}


@pytest.mark.parametrize("name", COMING_FROM + OWN_FLAGS)
def test_flags_that_a_page_names_exist(name: str, flags: set[str]) -> None:
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    if name in COMING_FROM:
        text = "\n".join(line.split(" | ")[1] for line in text.splitlines() if line.startswith("| `"))
    named = {flag for span in re.findall(r"`[^`]+`", text) for flag in FLAG.findall(span)}
    assert named and named - flags == set()


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_links_lead_to_what_is_there(page: Path) -> None:
    """Also where the site does not look: in README. `make docs` checks those of docs/ with their anchors."""
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_every_page_is_in_the_navigation_and_every_public_name_in_the_reference() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    assert [page.name for page in PAGES[1:] if f": {page.name}\n" not in navigation] == []
    reference = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert [name for name in zoreward.__all__ if not re.search(rf"^::: zoreward\S*\.{name}$", reference, re.M)] == []


def test_the_citation_is_of_this_version() -> None:
    assert f"\nversion: {zoreward.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_the_rows_of_the_tour_suit_its_reward_with_and_without_a_chat_template(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tour = (ROOT / "docs" / "tour.md").read_text()
    made, as_texts = (block for block in re.findall(r"```python\n(.*?)```", tour, re.DOTALL) if "json." in block)
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", sys.path[:])
    names: dict[str, Any] = {}
    text = "A lemon is yellow. It is sour."
    for code, written in ((made, [{"role": "assistant", "content": text}]), (as_texts, text)):
        exec(code, names)
        rows = load_rows("dev.jsonl")
        assert len(rows) == 100 and len(load_rows("train.jsonl")) == 300
        assert {type(row["prompt"]) for row in rows} == {list if written != text else str}
        reward = importlib.import_module("short_answers").short_answer
        assert reward([written], topic=["lemon"]) == [0.8]  # it is too short


def test_the_code_for_a_tuned_model_answers(capsys: pytest.CaptureFixture[str]) -> None:
    code = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    model = ROOT / "zoreward" / "quickstart" / "model"
    exec(code.replace("runs/first/model", str(model)), {})
    assert capsys.readouterr().out in (" bad\n", " good\n")
