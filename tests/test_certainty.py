"""How far a score can be trusted: its standard error, who reads nothing, and the score of each row."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zoreward import get_objective
from zoreward.cli import main
from zoreward.data import load_rows
from zoreward.records import Evaluation, Example, Scored
from zoreward.scoring import majority_score, rows_of_evaluation, scores_of, standard_error

ANSWERS = (" bad", " good", " dull")


def evaluation(name: str, places: list[int], seed: int = 0, **options: Any) -> tuple[Any, Evaluation]:
    """Rows whose right answers are these, and candidates that were given anything."""
    objective = get_objective(name, **options)
    examples = tuple(Example({"i": i}, "p", ANSWERS, place, (1,), ((2,), (3,), (4,))) for i, place in enumerate(places))
    logprobs_NC = np.random.default_rng(seed).normal(size=(len(places), 3))
    [scored] = scores_of(objective, examples, [logprobs_NC])
    return objective, Evaluation(name, scored.score, len(places), 0, examples=examples, scored=scored)


def test_the_error_of_a_mean_is_that_of_its_rows() -> None:
    objective, found = evaluation("accuracy", [0, 1, 2, 1] * 5)
    p = found.score

    assert standard_error(objective, found) == pytest.approx(math.sqrt(p * (1 - p) / 19))  # s² = n/(n−1) · p(1−p)


def test_a_row_that_was_left_out_does_not_count() -> None:
    returned: dict[str, Any] = {"accuracy": [1.0, None, 0.0, 1.0]}
    found = Evaluation("accuracy", 2 / 3, 4, 0, scored=Scored(2 / 3, {}, returned=returned))

    assert standard_error(get_objective("accuracy"), found) == pytest.approx(math.sqrt(1 / 3) / math.sqrt(3))


def test_the_error_of_a_number_for_all_rows_is_how_it_differs_between_draws() -> None:
    """Told of one whose error is known otherwise: the accuracy, as if it were no mean over rows."""
    mean, found = evaluation("accuracy", [0, 1, 2] * 100)

    def accuracy(predictions: list[int], references: list[int]) -> float:
        return float(np.mean(np.equal(predictions, references)))

    objective = get_objective(accuracy)
    [scored] = scores_of(objective, found.examples, [found.scored and found.scored.logprobs_NC])
    whole = replace(found, scored=scored)

    error = standard_error(objective, whole)

    assert whole.score == found.score
    assert error == pytest.approx(standard_error(mean, found), rel=0.2)  # known to 1/√400 = 5 %: four errors
    assert error == standard_error(objective, whole)
    assert error != standard_error(objective, whole, seed=1)


def test_a_slow_objective_is_not_called_for_minutes() -> None:
    calls = []

    def slow(predictions: list[int], references: list[int]) -> float:
        calls.append(1)
        time.sleep(0.2 if len(calls) > 1 else 0)  # 200 times: 40 s
        return float(np.mean(np.equal(predictions, references)))

    _, found = evaluation("accuracy", [0, 1, 2])
    objective = get_objective(slow)
    [scored] = scores_of(objective, found.examples, [found.scored and found.scored.logprobs_NC])

    assert standard_error(objective, replace(found, scored=scored)) is None
    assert len(calls) < 10


def test_nothing_is_said_where_nothing_is_known() -> None:
    objective, found = evaluation("f1", [0], average="macro")
    whole = Evaluation("bleu", 3.0, 2, 0, scored=Scored(3.0, {}, returned={"bleu": 3.0}))

    assert standard_error(objective, found) is None
    assert standard_error(get_objective("bleu"), whole) is None


@pytest.mark.parametrize(
    ("name", "options", "score"),
    [
        ("accuracy", {}, 3 / 6),
        ("f1", {"average": "macro"}, (2 * 3 / (2 * 3 + 3)) / 3),
        ("balanced-accuracy", {}, 1 / 3),
        ("neg-cross-entropy", {}, sum(share * math.log(share) for share in (1 / 6, 2 / 6, 3 / 6))),
    ],
)
def test_who_reads_nothing_knows_how_frequent_answers_are(name: str, options: dict[str, Any], score: float) -> None:
    objective, found = evaluation(name, [0, 1, 1, 2, 2, 2], **options)

    assert majority_score(objective, found.examples) == pytest.approx(score)


def test_rows_with_answers_of_their_own_have_no_most_frequent_one() -> None:
    objective, found = evaluation("accuracy", [0, 1])
    other = Example({}, "p", (" a", " b"), 0, (1,), ((2,), (3,)))

    assert majority_score(objective, (*found.examples, other)) is None
    assert majority_score(get_objective("preference"), found.examples) is None


def test_a_row_has_its_prediction_and_its_share_of_the_score() -> None:
    objective, found = evaluation("accuracy", [0, 1, 2, 0])
    rows = rows_of_evaluation(objective, found)

    assert [row["columns"] for row in rows] == [{"i": i} for i in range(4)]
    assert [row["answer"] for row in rows] == [" bad", " good", " dull", " bad"]
    assert [row["score"] for row in rows] == [float(row["prediction"] == row["answer"]) for row in rows]
    assert all(row["prediction"] == row["choices"][int(np.argmax(row["logprobs"]))] for row in rows)
    assert sum(row["score"] for row in rows) / 4 == found.score


@pytest.fixture
def line(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commands_are_kept: None) -> list[str]:
    monkeypatch.chdir(tmp_path)
    rows = [{"text": f"a {word} film", "label": i % 2} for i, word in enumerate(["bad", "good", "dull", "bright"])]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--model", str(tiny_model_dir), "--data", "rows.jsonl", "--template", "{text} it was", "--json"]


@pytest.mark.parametrize("name", ["rows.parquet", "new/out.jsonl"])
def test_eval_writes_what_became_of_each_row(name: str, line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pyarrow")

    assert main(["eval", "accuracy", *line, "--choice", " bad", "--choice", " good", "--output", name]) == 0

    told, rows = json.loads(capsys.readouterr().out), load_rows(name)
    assert told["majority"] == 0.5
    scores = [row["score"] for row in rows]
    assert told["score"] == np.mean(scores)
    assert told["standard_error"] == pytest.approx(np.std(scores, ddof=1) / 2)
    assert [row["prompt"] for row in rows][:2] == ["a bad film it was", "a good film it was"]
    assert [row["columns"]["label"] for row in rows] == [0, 1, 0, 1]


def test_eval_writes_completions_too(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("rewards.py").write_text("def count(completions):\n    return [float(len(text)) for text in completions]\n")

    assert main(["eval", "./rewards.py:count", *line, "--max-new-tokens", "3", "--output", "out.jsonl"]) == 0

    rows = load_rows("out.jsonl")
    assert [row["score"] for row in rows] == [len(row["completion"]) for row in rows]
    assert "logprobs" not in rows[0] and "answer" not in rows[0]


def test_the_screen_has_the_error_behind_the_score(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "accuracy", *line[:-1], "--choice", " bad", "--choice", " good"]) == 0

    out = capsys.readouterr().out
    assert "majority" in out and "standard_error" not in out
    assert "0.5000 ± 0.2887" in out


@pytest.mark.parametrize(
    ("name", "error"),
    [("rows.jsonl", "is there already"), ("out.txt", "no file of rows"), ("rows.jsonl/out.jsonl", "is a file")],
)
def test_a_file_that_cannot_be_written_is_refused_first(
    name: str, error: str, line: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    line[1] = "no-model"

    assert main(["eval", "accuracy", *line, "--choice", " bad", "--choice", " good", "--output", name]) == 2

    assert error in capsys.readouterr().err.splitlines()[0]
