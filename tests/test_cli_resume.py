"""Contract under test: `--resume` goes on where a command was left; Ctrl-C, SIGTERM and failures say how; `--keep best`
and `--patience` choose the step."""

from __future__ import annotations

import json
import os
import shlex
import signal
from pathlib import Path

import pytest

from zoreward.cli import main
from zoreward.journal import load_run

OBJECTIVES = """
import json, os, signal
from pathlib import Path

CALLS = []

def plain(logprobs, references):
    return [float(row[index]) for row, index in zip(logprobs, references)]

def at_call(number, action):
    CALLS.append(1)
    if len(CALLS) == number and not Path("done").exists():
        Path("done").touch()
        action()

def _sent(name):
    os.kill(os.getpid(), getattr(signal, name))

def sigint(logprobs, references):
    at_call(6, lambda: _sent("SIGINT"))
    return plain(logprobs, references)

def sigterm(logprobs, references):
    at_call(6, lambda: _sent("SIGTERM"))
    return plain(logprobs, references)

def twice(logprobs, references):
    at_call(6, lambda: (_sent("SIGINT"), _sent("SIGINT")))
    return plain(logprobs, references)

def _raise():
    raise TimeoutError("judge is down")

def fails(logprobs, references):
    at_call(6, _raise)
    return plain(logprobs, references)

def wave(logprobs, references, trainer_state=None):
    # dev rows are five, others six or more
    if len(references) != 5:
        return plain(logprobs, references)
    scores = json.loads(Path("scores.json").read_text())
    score = scores.pop(0)
    Path("scores.json").write_text(json.dumps(scores))
    return [score] * 5
"""
PROMPT = ["--template", "{sentence} it was", "--choice", " terrible", "--choice", " great"]
TUNE = ["--model", "model", "--data", "train.jsonl", *PROMPT, "--steps", "5", "--lr", "1e-2", "--device", "cpu"]


@pytest.fixture
def folder(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the commands run: a model, rows and objectives."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(tiny_model_dir, target_is_directory=True)
    (tmp_path / "rewards.py").write_text(OBJECTIVES)
    rows = [
        {"sentence": f"a {word} film", "label": int(n > 2)}
        for n, word in enumerate(["bad", "awful", "dull", "good", "great", "lovely"])
    ]
    for name, some in (("train", rows * 2), ("dev", rows[:5])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    return tmp_path


def steps(run: Path) -> list[str]:
    """The journal behind its header, which names the objective."""
    return [json.loads(line) | {"crc": ""} for line in (run / "journal.jsonl").read_text().splitlines()[1:]]


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


@pytest.fixture
def whole(folder: Path) -> Path:
    """The run folder of a command that nothing happened to."""
    assert main(["tune", "./rewards.py:plain", *TUNE, "--output", "whole"]) == 0
    return folder / "whole"


@pytest.mark.parametrize(
    ("objective", "code", "said", "done"),
    [
        ("sigint", 130, "interrupted after step 3", 3),
        ("sigterm", 130, "interrupted after step 3", 3),
        ("twice", 130, "interrupted after step 2", 2),
        ("fails", 1, "error: objective 'fails' raised TimeoutError: judge is down\nhint: ", 2),
    ],
)
def test_the_command_that_is_printed_goes_on(
    objective: str, code: int, said: str, done: int, whole: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    # one call tries the objective, each step takes two: call 6 is in the third step
    assert main(["tune", f"./rewards.py:{objective}", *TUNE, "--output", "left"]) == code
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before
    out, err = capsys.readouterr()
    assert said in err and "Traceback" not in err and out == ""
    assert load_run("left").n_steps == done
    assert not (folder / "left" / "model").exists()
    [printed] = [line for line in err.splitlines() if line.startswith("resume: ")]
    words = shlex.split(printed.removeprefix("resume: "))
    assert words[0] == "zoreward" and words[-1] == "--resume"

    assert main(words[1:]) == 0

    out, err = capsys.readouterr()
    assert f"resuming after step {done}" in err and "5 steps in" in out
    assert steps(folder / "left") == steps(whole)
    assert weights(folder / "left") == weights(whole)
    assert sorted(path.name for path in (folder / "left").iterdir()) == [
        "config.yaml", "journal.jsonl", "model", "trajectory.safetensors",
    ]  # fmt: skip


def test_a_finished_run_says_so_and_a_model_that_is_missing_is_made(
    whole: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = ["tune", "./rewards.py:plain", *TUNE, "--output", "whole", "--resume", "--json"]
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    capsys.readouterr()
    assert main(again) == 0
    out, err = capsys.readouterr()
    assert "is finished" in err
    assert json.loads(out.splitlines()[-1])["steps"] == 5
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before

    expected = weights(whole)
    (whole / "model").rename(whole / "model.part")  # as a kill while it is written leaves it
    assert main(again) == 0
    assert weights(whole) == expected and not (whole / "model.part").exists()


@pytest.mark.slow
def test_more_steps_go_on_and_other_options_are_refused(
    whole: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    for words, error in (
        (["--eps", "0.5"], "eps=0.001, not 0.5"),
        (["--template", "{sentence} is"], "template="),
        (["--steps", "2"], "has done 5 steps, more than 2"),
    ):
        capsys.readouterr()
        assert main(["tune", "./rewards.py:plain", *TUNE, *words, "--output", "whole", "--resume"]) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("error:", "hint:"))]
        assert len(lines) == 2 and error in lines[0]
        assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before
    assert main(["tune", "./rewards.py:plain", *TUNE, "--steps", "8", "--output", "whole", "--resume"]) == 0
    assert main(["tune", "./rewards.py:plain", *TUNE, "--steps", "8", "--output", "long"]) == 0
    assert weights(whole) == weights(folder / "long")


def test_a_run_that_was_killed_before_its_first_step_begins(whole: Path, folder: Path) -> None:
    (folder / "left").mkdir()
    (folder / "left" / "config.yaml").write_text("objective: ./rewards.py:plain\n")
    assert main(["tune", "./rewards.py:plain", *TUNE, "--output", "left", "--resume"]) == 0
    assert (folder / "left" / "journal.jsonl").read_bytes() == (whole / "journal.jsonl").read_bytes()


def test_the_best_step_is_kept_and_patience_ends_the_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dev = ["--eval-data", "dev.jsonl", "--eval-every", "1", "--patience", "2", "--keep", "best"]
    # the trial has more rows; then before step 1, and after each step
    (folder / "scores.json").write_text(json.dumps([0.1, 0.2, 0.4, 0.3, 0.4, 0.9]))
    tune = ["tune", "./rewards.py:wave", *TUNE, *dev, "--steps", "9", "--output"]
    assert main([*tune, "run", "--json"]) == 0
    out, _ = capsys.readouterr()
    told = json.loads(out.splitlines()[-1])
    assert (told["steps"], told["kept"], told["best"], told["score"]) == (4, 2, 0.4, 0.4)
    assert main(["replay", "run", "--model", "model", "--step", "2", "--output", "two", "--device", "cpu"]) == 0
    assert weights(folder / "run") == (folder / "two" / "model.safetensors").read_bytes()

    # Left between two evaluations it counts on, and does not score anew what it has scored.
    lines = (folder / "run" / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "left").mkdir()
    (folder / "left" / "journal.jsonl").write_bytes(b"".join(lines[:8]))  # up to the evaluation after step 3
    (folder / "scores.json").write_text(json.dumps([0.4, 0.9]))
    assert main([*tune, "left", "--resume"]) == 0
    assert "the model of step 2 is in left/model" in capsys.readouterr().out
    assert b"".join(lines) == (folder / "left" / "journal.jsonl").read_bytes()
    assert weights(folder / "left") == weights(folder / "run")


def test_a_model_that_cannot_be_written_can_be_made_later(
    whole: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from zoreward.trainer import ZOTrainer

    def full(self: ZOTrainer, output: str) -> None:
        Path(output).mkdir()
        Path(output, "model.safetensors").write_bytes(b"half")
        raise RuntimeError("No space left on device (os error 28)")

    run = ["tune", "./rewards.py:plain", *TUNE, "--output", "left"]
    with monkeypatch.context() as patched:
        patched.setattr(ZOTrainer, "save_model", full)
        assert main(run) == 1
    _, err = capsys.readouterr()
    assert "left/model cannot be written: No space left on device" in err and "resume: zoreward tune" in err
    assert sorted(path.name for path in (folder / "left").iterdir()) == [
        "config.yaml", "journal.jsonl", "trajectory.safetensors",
    ]  # fmt: skip
    assert main([*run, "--resume"]) == 0
    assert weights(folder / "left") == weights(whole)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--patience", "2"], "--patience goes by dev scores"),
        (["--keep", "best", "--eval-data", "dev.jsonl"], "--keep best goes by dev scores"),
        (["--keep", "first"], "'first' is not one of"),
        (["--resume", "--output", "train.jsonl"], "is a file"),
    ],
)
def test_options_that_do_not_go_together(
    words: list[str], error: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", "./rewards.py:plain", *TUNE, "--output", "run", *words]) == 2
    assert error in capsys.readouterr().err
    assert not os.path.exists("run")
