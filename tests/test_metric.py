"""Objectives that are reported beside the score, and are no part of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from zoreward.cli import main

pytestmark = pytest.mark.usefixtures("commands_are_kept", "trials_are_kept")


@pytest.fixture
def line(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    words = ["bad", "good", "dull", "bright", "slow", "fine"]
    rows = [{"text": f"a {word} film", "label": i % 2} for i, word in enumerate(words)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("rewards.py").write_text(
        "def count(completions):\n    return [float(len(text)) for text in completions]\n\n\n"
        "def letters(completions):\n    return float(sum(map(len, completions)))\n"
    )
    return ["--model", str(tiny_model_dir), "--data", "rows.jsonl", "--template", "{text} it was", "--device", "cpu"]


CHOICES = ["--choice", " bad", "--choice", " good"]


def told(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, float]:
    assert main([*words, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_metric_says_what_its_own_eval_says(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    metrics = ["--metric", "f1-macro", "--metric", "auc"]
    alone = {name: told(capsys, "eval", name, *line, *CHOICES)["score"] for name in ("accuracy", "f1-macro", "auc")}

    found = told(capsys, "eval", "accuracy", *line, *CHOICES, *metrics)

    assert found["score"] == alone["accuracy"]
    assert (found["metric/f1"], found["metric/auc"]) == (alone["f1-macro"], alone["auc"])


def test_a_metric_of_texts(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["./rewards.py:count", *line, "--max-new-tokens", "3", "--metric", "./rewards.py:letters"]

    found = told(capsys, "eval", *words)

    assert found["metric/letters"] == pytest.approx(6 * found["score"]) and found["score"] > 0


def test_tuning_is_the_same_and_dev_scores_have_it_beside(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["tune", "neg-cross-entropy", *line, *CHOICES, "--eval-data", "rows.jsonl", "--steps", "2"]
    words += ["--eval-every", "1", "--lr", "1e-3", "--eps", "1e-2"]
    assert main([*words, "--output", "plain"]) == 0
    assert main([*words, "--output", "run", "--metric", "accuracy"]) == 0, capsys.readouterr().err
    assert "metric/accuracy 0." in capsys.readouterr().err

    plain, run = (
        [json.loads(one) for one in Path(folder, "journal.jsonl").read_text().splitlines()]
        for folder in ("plain", "run")
    )
    assert [one["terms"] for one in plain if "terms" in one] == [one["terms"] for one in run if "terms" in one]
    beside = [json.dumps(one) for one in run if "metric/accuracy" in json.dumps(one)]
    assert len(beside) == 3  # before step 1 and after each
    told_at_end = told(capsys, "eval", "accuracy", *line[2:], *CHOICES, "--model", "run/model")["score"]
    assert any(f'"metric/accuracy": {told_at_end}' in one for one in beside)
    assert main([*words, "--output", "run", "--metric", "accuracy", "--resume"]) == 0
    assert "is finished" in "".join(capsys.readouterr())


def test_f1_of_one_choice_is_refused_for_three(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["eval", "accuracy", *line, *CHOICES, "--choice", " dull"]

    assert main([*words, "--metric", "f1"]) == 2
    error, hint = capsys.readouterr().err.splitlines()[-2:]
    assert "objective 'f1'" in error and "as f1-macro" in hint
    assert 0 <= told(capsys, *words, "--metric", "f1-macro")["metric/f1"] <= 1
