"""Two models on the same rows: how far they differ, and what is refused."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zoreward import objective
from zoreward.cli import main
from zoreward.cli.compare import paired_difference
from zoreward.data import write_rows


def binary(count: int, share: float, seed: int) -> list[float]:
    return [float(one) for one in np.random.default_rng(seed).random(count) < share]


def test_the_error_and_the_interval_are_those_of_the_differences() -> None:
    hard_N = np.random.default_rng(0).normal(size=400)
    a_N = hard_N + np.random.default_rng(1).normal(size=400) / 10
    b_N = hard_N + np.random.default_rng(2).normal(size=400) / 10

    found = paired_difference(list(a_N), list(b_N))

    error = np.std(b_N - a_N, ddof=1) / 20
    assert found["difference"] == pytest.approx(np.mean(b_N) - np.mean(a_N))
    assert found["standard_error"] == pytest.approx(error) and error < np.std(a_N) / 20 / 5
    for end, sign in (("difference_low", -1), ("difference_high", 1)):
        assert found[end] == pytest.approx(found["difference"] + sign * 1.96 * error, abs=0.15 * error)
    assert found == paired_difference(list(a_N), list(b_N))
    assert found["difference_low"] != paired_difference(list(a_N), list(b_N), seed=1)["difference_low"]
    # By the central limit theorem the sum of flipped differences is normal.
    z = found["difference"] / (np.sqrt(np.mean((b_N - a_N) ** 2)) / 20)
    assert found["p_value"] == pytest.approx(math.erfc(abs(z) / math.sqrt(2)), rel=0.2)


def test_of_few_differences_all_signs_are_tried() -> None:
    a, b = [0.1, 0.5, 0.3, 0.7, 0.2], [0.4, 0.4, 0.6, 0.9, 0.2]
    moved = [y - x for x, y in zip(a, b, strict=True) if x != y]
    sums = [sum(s * d for s, d in zip(signs, moved, strict=True)) for signs in itertools.product((-1, 1), repeat=4)]

    p = paired_difference(a, b)["p_value"]

    assert p == sum(abs(one) >= abs(sum(moved)) - 1e-12 for one in sums) / 16


def test_of_right_and_wrong_the_test_is_mcnemar_s() -> None:
    """Of which the exact p-value is known: twice the tail of a fair coin."""
    a, b = binary(300, 0.6, 0), binary(300, 0.7, 1)

    found = paired_difference(a, b)

    wins, losses = found["better_in_b"], found["better_in_a"]
    tosses = wins + losses
    tail = sum(math.comb(tosses, k) for k in range(max(wins, losses), tosses + 1)) / 2**tosses
    assert found["p_value"] == pytest.approx(2 * tail, rel=0.25, abs=2e-3)
    assert wins + losses + found["same"] == 300 and wins - losses == round(300 * found["difference"])


def test_two_that_are_equal_differ_by_nothing() -> None:
    found = paired_difference([0.5, 1.0, 0.0], [0.5, 1.0, 0.0])

    assert (found["difference"], found["standard_error"], found["p_value"], found["same"]) == (0.0, 0.0, 1.0, 3)


def test_two_thousand_rows_take_little() -> None:
    start = time.process_time()
    paired_difference(binary(2_000, 0.5, 0), binary(2_000, 0.5, 1))
    assert time.process_time() - start < 2


def rows(scores: list[float | None], **others: Any) -> list[dict[str, Any]]:
    return [
        {"objective": "accuracy", "prompt": f"text {n} it was", "score": score, "columns": {"text": f"text {n}"}}
        | others
        for n, score in enumerate(scores)
    ]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_rows(Path("a.jsonl"), rows([0.0, 1.0, 0.0, None, 1.0]))
    return tmp_path


def told(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["compare", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", ["b.jsonl", "b.parquet"])
def test_two_files_are_compared(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = rows([1.0, 1.0, 0.0, 1.0, 0.0])
    other[0]["columns"]["extra"] = None  # as Parquet has it where other rows have one
    write_rows(Path(name), other)

    found = told(capsys, "a.jsonl", name)

    assert (found["rows"], found["left_out"], found["other_prompts"]) == (4, 1, 0)
    assert (found["score_a"], found["score_b"], found["difference"]) == (0.5, 0.5, 0.0)
    assert (found["better_in_a"], found["better_in_b"], found["same"]) == (1, 1, 2)
    assert main(["compare", "a.jsonl", name]) == 0
    out = capsys.readouterr().out
    assert "0.0000 ± 0.4082" in out and "rows without a score, left out" in out and "another prompt" not in out


def test_another_template_is_the_same_row(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(Path("b.jsonl"), rows([1.0] * 5, prompt="other"))

    assert main(["compare", "a.jsonl", "b.jsonl", "--json"]) == 0

    out, err = capsys.readouterr()
    assert json.loads(out)["other_prompts"] == 5
    assert "5 of 5 rows were read behind another prompt in b.jsonl" in err


@pytest.mark.parametrize(
    ("other", "error", "hint"),
    [
        (rows([1.0] * 4), "a.jsonl has 5 rows, b.jsonl 4", "the same --data"),
        (rows([1.0] * 5, columns={"text": "x"}), "row 1 of a.jsonl is another than that of b.jsonl", "the same --data"),
        (rows([1.0] * 5, objective="choice-prob"), "row 1 is scored by 'accuracy' and 'choice-prob'", "same objective"),
        (rows([None] * 5), "b.jsonl: no row has a score of its own", "row by row, as accuracy"),
        (rows([None, None, None, 1.0, 1.0]), "1 of 5 rows have a score in both files", "more rows"),
        (rows([1.0, math.nan, 1.0, 1.0, 1.0]), "b.jsonl: row 2 has the score nan", "zoreward eval"),
        (rows([1.0] * 5, score=[1.0]), "b.jsonl: row 1 has the score [1.0]", "zoreward eval"),
        (rows([1.0] * 5, score="good"), "b.jsonl: row 1 has the score 'good'", "zoreward eval"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    other: list[dict[str, Any]], error: str, hint: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(Path("b.jsonl"), other)

    assert main(["compare", "a.jsonl", "b.jsonl"]) == 2

    first, second = capsys.readouterr().err.splitlines()
    assert error in first and hint in second


def test_what_eval_writes_is_compared(
    folder: Path,
    tiny_model_dir: Path,
    capsys: pytest.CaptureFixture[str],
    commands_are_kept: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("zoreward.scoring.certainty.PAIRED_DRAWS", 10)
    write_rows(Path("data.jsonl"), [{"text": word, "label": n % 2} for n, word in enumerate(["bad", "good", "dull"])])
    words = ["--model", str(tiny_model_dir), "--data", "data.jsonl", "--choice", " bad", "--choice", " good", "--json"]
    for name, template in (("one.jsonl", "{text} it was"), ("two.parquet", "a {text} film")):
        assert main(["eval", "accuracy", *words, "--template", template, "--output", name]) == 0
    assert main(["eval", "f1", *words, "--template", "{text} it was", "--output", "f1.jsonl"]) == 0
    capsys.readouterr()

    found = told(capsys, "one.jsonl", "two.parquet")

    assert found["other_prompts"] == found["rows"] == 3
    assert told(capsys, "f1.jsonl", "f1.jsonl")["difference"] == 0


def of_choices(count: int, share: float, seed: int) -> tuple[list[int], Any]:
    """The same right answers for each seed, and log-probabilities that find this share of them."""
    right = np.random.default_rng(99).integers(2, size=count)
    is_right = np.random.default_rng(seed).random(count) < share
    found = np.where(is_right, right, 1 - right)
    return right.tolist(), np.where(np.arange(2) == found[:, None], -0.1, -2.0)


def test_of_a_mean_the_difference_of_sets_is_that_of_its_rows() -> None:
    """The one score for all that has rows with scores to compare with is their mean."""
    from zoreward import get_objective
    from zoreward.records import Example
    from zoreward.scoring import set_difference

    @objective("share-right")
    def share_right(predictions, references) -> float:
        return sum(p == r for p, r in zip(predictions, references, strict=True)) / len(references)

    (right, a_NC), (_, b_NC) = of_choices(200, 0.7, 0), of_choices(200, 0.78, 1)
    examples = [Example({}, "", (" no", " yes"), one, (0,), ((0,), (0,))) for one in right]

    found = set_difference(get_objective(share_right), examples, [a_NC, b_NC])

    rows_of = [[float(p == r) for p, r in zip(one_NC.argmax(axis=1), right, strict=True)] for one_NC in (a_NC, b_NC)]
    paired = paired_difference(*rows_of)
    for name in ("score_a", "score_b", "difference"):
        assert found[name] == pytest.approx(paired[name])
    assert found["standard_error"] == pytest.approx(paired["standard_error"], rel=0.1)
    assert found["difference_low"] == pytest.approx(paired["difference_low"], abs=0.4 * paired["standard_error"])
    assert found["p_value"] == pytest.approx(paired["p_value"], abs=0.03)
    assert found["other_answers"] == paired["better_in_a"] + paired["better_in_b"]


def scored_by_f1(count: int, share: float, seed: int, **options: Any) -> list[dict[str, Any]]:
    from zoreward import get_objective

    right, logprobs_NC = of_choices(count, share, seed)
    found = logprobs_NC.argmax(axis=1).tolist()
    score = get_objective("f1", **options).score(count, predictions=found, references=right, logprobs=logprobs_NC)
    names = [" no", " yes"]
    return [
        {
            **{"objective": "f1", "prompt": f"text {n}", "answer": names[right[n]], "prediction": names[found[n]]},
            **{"choices": names, "logprobs": logprobs_NC[n].tolist(), "score": None, "columns": {"text": str(n)}},
            **{"score_of_all": score, "options": json.dumps(options)},
        }
        for n in range(count)
    ]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_two_f1_are_compared(
    ending: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zoreward.scoring.certainty.PAIRED_DRAWS", 200)
    write_rows(Path(f"one.{ending}"), scored_by_f1(60, 0.6, 0, average="macro"))
    write_rows(Path(f"two.{ending}"), scored_by_f1(60, 0.95, 1, average="macro"))

    found = told(capsys, f"one.{ending}", f"two.{ending}")

    assert found["difference"] == pytest.approx(found["score_b"] - found["score_a"]) and found["difference"] > 0.2
    assert found["difference_low"] > 0 and found["p_value"] < 0.01 and found["rows"] == 60
    assert told(capsys, f"one.{ending}", f"one.{ending}")["p_value"] == 1


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"options": "{}"}, "not scored alike"),
        ({"score_of_all": 0.5}, "two.jsonl says 0.5, and 'f1' makes 0."),
        ({"choices": None}, "lacks choices, answers or logprobs"),
    ],
)
def test_what_is_not_the_score_of_these_rows_is_refused(
    changed: dict[str, Any],
    error: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("zoreward.scoring.certainty.PAIRED_DRAWS", 10)
    write_rows(Path("one.jsonl"), scored_by_f1(20, 0.6, 0, average="macro"))
    write_rows(Path("two.jsonl"), [row | changed for row in scored_by_f1(20, 0.9, 1, average="macro")])
    assert main(["compare", "one.jsonl", "two.jsonl"]) == 2
    assert error in capsys.readouterr().err


def test_comparing_waits_for_no_torch(folder: Path) -> None:
    script = """
import sys
from zoreward.cli import main
assert main(["compare", "a.jsonl", "a.jsonl"]) == 0
assert not {"torch", "transformers", "sklearn", "datasets"} & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
