"""Command lines that are wrong in some way: each ends with 2, one line that says why, a hint, and nothing written."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import bad_lines
from whole_models import classifier, masked_model, word_tokenizer
from zoreward.cli import main

QUICK, SLOW = bad_lines.lines_of()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """A folder of files and models that are wrong, and some that are not."""
    models = {"model": tiny_model_dir}
    made = {"masked": masked_model("bert"), "rewards": classifier("bert", names=("reward",))}
    for name, model in made.items():
        models[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(models[name])
        word_tokenizer().save_pretrained(models[name])
    folder = tmp_path_factory.mktemp("home")
    bad_lines.write_files(folder, models)
    return folder


@pytest.fixture(autouse=True)
def place(home: Path, commands_are_kept: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # a Hub that nobody answers for
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    for name in ("HF_HUB_OFFLINE", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def files_before(home: Path) -> set[str]:
    return files_in(home)


@pytest.fixture
def written(home: Path, files_before: set[str]) -> Iterator[Callable[[], set[str]]]:
    """Returns what a line has written. It is taken away when the test is over: else the next lines find a run there."""
    look = functools.cache(lambda: files_in(home) - files_before)
    yield look
    for name in sorted(look(), reverse=True):
        Path(name).rmdir() if os.path.isdir(name) and not os.path.islink(name) else os.unlink(name)


def files_in(folder: Path) -> set[str]:
    names = set()
    for where, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name != "__pycache__"]
        names.update(os.path.join(where, name) for name in (*folders, *files))
    return names


@pytest.mark.parametrize(("line", "error"), [*QUICK, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in SLOW)])
def test_two_lines_and_nothing_written(
    line: str, error: str, written: Callable[[], set[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(bad_lines.words_of(line))

    out, err = capsys.readouterr()
    *first, said, hint = err.splitlines()
    error, _, advice = error.partition(" ## ")
    assert said.startswith("error: ") and error in said, err
    assert hint.startswith("hint: ") and len(hint) > len("hint: ") and advice in hint, err
    assert "nobody has foreseen" not in hint or error == "SystemExit", err
    assert max(len(said), len(hint)) < 1200
    assert not first, err
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", said + hint)
    assert (code, out) == (2, "")
    assert not written()


def test_the_table_is_large_and_of_all_commands() -> None:
    lines = [line for line, _ in (*QUICK, *SLOW)]
    assert len(set(lines)) == len(lines) > 600
    verbs = {line.partition(" ")[0] for line, _ in QUICK}
    assert {"tune", "eval", "bench", "replay", "quickstart", "objectives", "tasks"} <= verbs
