"""2 for what is found before step 1, with nothing written; 1 for a run that fails later; 130 after Ctrl-C."""

from __future__ import annotations

import contextlib
import errno
import io
import resource
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from test_cli import EVAL, TUNE, folder, steps_in  # noqa: F401  (a fixture)
from zoreward.cli import main

pytestmark = pytest.mark.usefixtures("commands_are_kept", "trials_are_kept")

CALLS = '''
import sys

class Countdown:
    """Fails at one of its calls: the first tries it, each step takes two."""

    def __init__(self, *, call: int = 1, how: str = "raise"):
        self.left, self.how = call, how

    def __call__(self, predictions):
        self.left -= 1
        if self.left == 0:
            if self.how == "exit":
                sys.exit(0)
            raise MemoryError("no more") if self.how == "memory" else ValueError("out of luck")
        return float(self.left % 2)
'''


def files_in(path: Path) -> set[str]:
    return {str(file.relative_to(path)) for file in path.rglob("*") if "__pycache__" not in file.parts}


@pytest.fixture
def calls(folder: Path) -> Path:  # noqa: F811
    (folder / "calls.py").write_text(CALLS)
    return folder


@contextlib.contextmanager
def disk_of(size: int) -> Iterator[None]:
    """A disk that takes no file larger than this."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("how", ["raise", "exit", "memory"])
def test_a_reward_that_fails_in_its_trial(how: str, calls: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files_in(calls)
    assert main(["tune", "./calls.py:Countdown", *TUNE, "--call", "1", "--how", how]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err
    assert [line.partition(":")[0] for line in err.splitlines()] == ["error", "hint"]
    assert files_in(calls) == before


@pytest.mark.parametrize("how", ["raise", "exit"])
def test_a_reward_that_fails_in_step_3(how: str, calls: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["tune", "./calls.py:Countdown", *TUNE, "--call", "6", "--how", how, "--steps", "9"]
    assert main(words) == 1
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err
    assert [line.partition(":")[0] for line in err.splitlines()[-3:]] == ["error", "hint", "resume"]
    assert steps_in(calls / "run" / "journal.jsonl") == 2
    assert not (calls / "run" / "model").exists()


def test_a_model_that_is_broken(calls: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its config says four layers, and its weights are of two: transformers would draw the others."""
    shutil.copytree(calls / "model", calls / "broken")
    text = (calls / "broken" / "config.json").read_text()
    assert '"num_hidden_layers": 2' in text
    (calls / "broken" / "config.json").write_text(text.replace('"num_hidden_layers": 2', '"num_hidden_layers": 4'))
    before = files_in(calls)
    for words in (["tune", "accuracy", *TUNE], ["eval", "accuracy", *EVAL]):
        assert main([*words, "--model", "broken"]) == 2
        out, err = capsys.readouterr()
        assert (out, len(err.splitlines())) == ("", 2), err
        assert "'broken' lacks weights of LlamaForCausalLM: model.layers.2." in err
    assert files_in(calls) == before


def test_weights_that_have_no_place_are_told(calls: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(calls / "model", calls / "shorter")
    text = (calls / "shorter" / "config.json").read_text()
    (calls / "shorter" / "config.json").write_text(text.replace('"num_hidden_layers": 2', '"num_hidden_layers": 1'))
    assert main(["eval", "accuracy", *EVAL, "--model", "shorter"]) == 0
    assert "'shorter' holds weights that have no place: model.layers.1." in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["tune", "eval"])
def test_ctrl_c_before_step_1(
    verb: str, calls: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("zoreward.scoring.evaluation.load_tokenizer", interrupted)
    monkeypatch.setattr("zoreward.trainer.inputs.load_tokenizer", interrupted)
    before = files_in(calls)
    assert main([verb, "accuracy", *(TUNE if verb == "tune" else EVAL)]) == 130
    assert capsys.readouterr() == ("", "interrupted\n")
    assert files_in(calls) == before


def test_what_nobody_has_foreseen_is_one_line(
    calls: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("of\ntwo lines")

    monkeypatch.setattr("zoreward.cli.eval.scored_rows", fails)
    assert main(["eval", "accuracy", *EVAL]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    first, second = err.splitlines()
    assert first == "error: ZeroDivisionError: of two lines"
    assert second.startswith("hint: nobody has foreseen this; raised in ") and "test_exit_codes.py" in second


def test_a_disk_that_is_full_before_step_1(calls: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files_in(calls)
    with disk_of(100):
        assert main(["tune", "accuracy", *TUNE, "--steps", "2", "--output", "runs/new"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-2].startswith("error: ") and "runs/new' cannot be written: File too large" in lines[-2]
    assert lines[-1].startswith("hint: ")
    assert files_in(calls) == before


@pytest.mark.parametrize(
    ("size", "steps"), [pytest.param(3000, 0, marks=pytest.mark.slow), (20_000, 2)], ids=["journal", "model"]
)
def test_a_disk_that_is_full_later(size: int, steps: int, calls: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["tune", "accuracy", *TUNE, "--steps", "2", "--set", "save_strategy=no"]
    with disk_of(size):
        assert main(words) == 1
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err
    assert [line.partition(":")[0] for line in err.splitlines()[-3:]] == ["error", "hint", "resume"]
    assert not [name for name in files_in(calls / "run") if "model" in name]
    assert main([*words, "--resume"]) == 0
    assert steps_in(calls / "run" / "journal.jsonl") == 2
    assert (calls / "run" / "model" / "model.safetensors").is_file()


def test_a_disk_that_is_full_when_a_run_is_replayed(calls: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "accuracy", *TUNE, "--steps", "1"]) == 0
    before = files_in(calls)
    capsys.readouterr()
    words = ["replay", "run", "--model", "model", "--output", "new/tuned", "--device", "cpu"]
    with disk_of(20_000):
        assert main(words) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line]  # a bar may have ended with an empty one
    assert [line.partition(":")[0] for line in lines] == ["error", "hint"]
    assert "--output new/tuned cannot be written" in lines[0]
    assert files_in(calls) == before
    assert main(words) == 0


@pytest.mark.slow
def test_a_disk_that_is_full_in_quickstart(calls: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with disk_of(100_000):
        assert main(["quickstart", "--steps", "1", "--output", "quick"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err
    assert "error: quick/model cannot be written" in err
    assert not [name for name in files_in(calls / "quick") if "model" in name]


@pytest.mark.parametrize("words", [["doctor"], ["--version"], ["objectives"]])
def test_who_has_read_enough_is_told_nothing(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(sys, "stdout", Closed())
    code = main(words)
    monkeypatch.undo()
    assert code == 1 and capsys.readouterr().err == ""
