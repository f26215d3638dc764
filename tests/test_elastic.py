"""Contract under test: workers that come, go, die and are slow change no byte of a run; who does not know the token, or
is of another run, changes nothing at all."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import launches
from conftest import random_model
from zoreward.cli import main
from zoreward.journal import load_run, replay
from zoreward.members import tuned_weights
from zoreward.records import InputError, RanksError, Scored
from zoreward.scoring import load_model
from zoreward.scoring.channel import Channel, accepted, connected, given_token, place_of_address
from zoreward.scoring.elastic import Coordinator, Opened, ask, told_scores
from zoreward.trainer.replicas import digest_of_weights

TOKEN = "0123456789abcdef-of-the-tests"
WORDS = ["bad", "awful", "dull", "good", "great", "lovely"]
ROWS = [{"text": f"{a} {word} film", "label": int(n > 2)} for n, word in enumerate(WORDS) for a in ("a", "the")]
OBJECTIVES = """
import time

def right(logprobs, references):
    return [float(row[index]) for row, index in zip(logprobs, references)]

def brevity(completions, **columns):
    return [0.1 * len(text) - len(text.split()) for text in completions]
"""
ANSWERS = ["--template", "{text} it was", "--choice", " bad", "--choice", " good", "--lr", "1e-2"]
WRITE = ["--prompt", "text", "--temperature", "1", "--max-new-tokens", "3", "--lr", "1e-2"]
BACK = "a run that goes back"
CASES: dict[str, list[str]] = {
    "dense": ["neg-cross-entropy", *ANSWERS, "--num-directions", "4"],
    "bfloat16, low-rank": ["neg-cross-entropy", *ANSWERS, "--num-directions", "8", "--noise", "low-rank"]
    + ["--dtype", "bfloat16"],
    "F1 of the set, a found rate": ["f1", *ANSWERS[:-2], "--num-directions", "4", "--noise", "low-rank"],
    "LoRA": ["./objectives.py:right", *ANSWERS, "--num-directions", "3", "--tune", "lora", "--lora-rank", "2"],
    "texts": ["./objectives.py:brevity", *WRITE, "--num-directions", "6"],
    BACK: ["neg-cross-entropy", *ANSWERS[:-1], "0.3", "--num-directions", "2", "--eval-every", "2"],
    "svrg": ["neg-cross-entropy", *ANSWERS, "--method", "svrg", "--full-every", "3"],
    "a prefix": ["neg-cross-entropy", *ANSWERS[:-1], "0.3", "--eval-every", "2", "--tune", "prefix"]
    + ["--num-directions", "2"],
    "momentum, blocks": ["neg-cross-entropy", *ANSWERS, "--method", "bcd", "--momentum", "0.5", "--num-directions", "2"],
}
CODE = ["--code", "./objectives.py:right", "--code", "./objectives.py:brevity"]


@pytest.fixture
def place(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "model").symlink_to(tiny_model_dir, target_is_directory=True)
    (tmp_path / "objectives.py").write_text(OBJECTIVES)
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZOREWARD_TOKEN", TOKEN)
    return tmp_path


def command(case: str, output: str, *more: str, steps: int = 12) -> list[str]:
    objective, *options = CASES[case]
    data = ["--model", "model", "--data", "train.jsonl", "--eval-data", "train.jsonl", "--device", "cpu"]
    run = ["--steps", str(steps), "--batch-size", "4", "--output", output, "--set", "save_steps=0"]
    others = [] if "--eval-every" in options else ["--eval-every", "6"]
    return ["tune", objective, *data, *run, *options, *others, *more]


def started(log: Path, words: list[str], before: Callable[[], None] = lambda: None) -> int:
    """Run a command in a process of its own; returns its id. `before` is called in it."""

    def work(rank: int) -> int:
        before()
        return main(words)

    [child] = launches.start(1, log, work)
    return child


def slow(seconds: float) -> Callable[[], None]:
    """Each score takes longer."""

    def before() -> None:
        from zoreward.scoring.scorer import Scorer

        real = Scorer.score

        def patched(self: Any, examples: Any, *args: Any, **more: Any) -> Any:
            time.sleep(seconds)
            return real(self, examples, *args, **more)

        Scorer.score = patched  # type: ignore[method-assign]

    return before


def bytes_of(output: Path) -> dict[str, bytes]:
    """The files of a run, but for those that say where it is, how long it took, or what this process saw of texts."""
    files = {path.relative_to(output).as_posix(): path for path in output.rglob("*") if path.is_file()}
    assert "journal.jsonl" in files
    others = ("config.yaml", "model/README.md", "notes.jsonl", "report.html")
    return {n: path.read_bytes() for n, path in files.items() if n not in others and not n.startswith("completions/")}


@pytest.mark.parametrize("case", CASES)
def test_workers_change_no_byte(case: str, place: Path) -> None:
    log, address = place / "log", f"tcp://127.0.0.1:{launches.free_port()}"
    assert launches.ended([started(log, command(case, "alone", "--elastic", "tcp://127.0.0.1:0"))]) == [0]
    run = started(log, command(case, "run", "--elastic", address), slow(0.01))
    workers = [started(log, ["worker", address, "--device", "cpu", *CODE]) for _ in range(2)]
    codes = launches.ended([run, *workers])
    print(log.read_text())
    assert codes == [0, 0, 0]
    assert bytes_of(place / "run") == bytes_of(place / "alone")
