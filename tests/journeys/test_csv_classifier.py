"""Somebody has messages in a CSV, each with a label in words, and wants a model that gives them the label.

They type what they know from scikit-learn and Hugging Face. What they type right works; what they type wrong is one
line with their own columns and labels, and the command to copy, which works.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import people
from zoreward.cli import main

CHOICES = "--choice billing --choice bug --choice praise"
READS = rf"--data messages.csv --template '{{message}}\nlabel:' {CHOICES}"
Typed = Callable[[str], tuple[int, str, list[str]]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    people.save_model(folder / "M")
    people.write_csv(folder / "messages.csv", people.messages(300, seed=0))
    return folder


@pytest.fixture
def typed(home: Path, commands_are_kept: None, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Typed:
    """Types a line in that folder: its exit code, and what it prints on stdout and on stderr."""
    monkeypatch.chdir(home)

    def run(line: str) -> tuple[int, str, list[str]]:
        code = main(shlex.split(line.removeprefix("zoreward ")))
        out, err = capsys.readouterr()
        return code, out, err.splitlines()

    return run


def test_three_commands_from_a_csv_to_a_better_macro_f1(typed: Typed, home: Path) -> None:
    lines = [
        f"zoreward eval f1-macro --model M {READS} --json",
        f"zoreward tune f1-macro --model M {READS} --steps 100 --json",
        f"zoreward eval f1-macro --model runs/f1/model {READS} --output predictions.jsonl --json",
    ]

    codes, outs, errs = zip(*map(typed, lines), strict=True)

    assert codes == (0, 0, 0)
    before, tuned, after = map(json.loads, outs)
    assert any("240 to tune on, 60 dev (held out" in line for line in errs[1])
    assert before["majority"] == after["majority"] < 0.2  # one class of three, and the others 0
    assert tuned["best"] > before["score"]
    gain = after["score"] - before["score"]
    assert gain > 0.2 and gain > 4 * max(before["standard_error"], after["standard_error"])
    rows = [json.loads(line) for line in (home / "predictions.jsonl").read_text().splitlines()]
    assert {row["columns"]["label"] == row["answer"].strip() for row in rows} == {True}
    right = sum(row["prediction"] == row["answer"] for row in rows)
    assert right / len(rows) > after["majority"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("tune f1 --model M --data messages.csv", "there is no prompt"),
        ("eval f1-macro --model M --data messages.csv", "there is no prompt"),
        ("tune accuracy --model M --data messages.csv --output runs/mine", "there is no prompt"),
        (r"tune accuracy --model M --data messages.csv --template '{message}\nlabel:'", "no answers to choose from"),
        (f"tune f1 --model M {READS}", "for two choices, not 3"),
        (f"tune f1-macro --model M {READS.replace('message}', 'text}')}", "no row has the column 'text'"),
        (f"tune f1-macro --model M {READS.replace('message}', 'Message}')}", "no row has the column 'Message'"),
        (f"eval accuracy --model M {READS} --label category", "no row has the label column 'category'"),
        (f"eval accuracy --model M {READS.replace('--choice praise', '')}", "belongs to none of the 2 choices"),
        (f"eval accuracy --model M {READS.replace('praise', 'prase')}", "belongs to none of the 3 choices"),
        (f"eval accuracy --model M {READS.replace(CHOICES, '--choice billing,bug,praise')}", "one choice is no choice"),
    ],
)
def test_a_likely_mistake_is_one_line_and_a_command_that_works(line: str, said: str, typed: Typed) -> None:
    code, out, err = typed(f"zoreward {line}")

    *told, error, hint = err
    assert (code, out) == (2, "")
    assert not told or "is f1 --average macro" in told[0]
    assert error.startswith("error: ") and said in error
    assert "the columns are id, message, label" in error and "'label' holds billing, bug, praise" in error
    command = hint.removeprefix("hint: ")
    assert command.startswith("zoreward ")
    assert typed(f"{command} {'--dry-run' if line.startswith('tune') else '--limit 9'}")[0] == 0


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        (f"tune f1-macro --model M {READS.replace('messages', 'mesages')}", "did you mean messages.csv?"),
        (f"tune f1-makro --model M {READS}", "did you mean f1?"),
        (f"tune f1-macro --model M {READS} --eval-every 10", "--dev-rows 64"),
        (f"tune f1-macro --model M {READS} --epochs 3", "--help"),
    ],
)
def test_other_mistakes_are_one_line_with_what_to_write(line: str, advice: str, typed: Typed) -> None:
    code, out, err = typed(f"zoreward {line}")

    assert (code, out) == (2, "")
    assert advice in err[-1]


def test_the_labels_capitals_and_spaces_do_not_matter(typed: Typed) -> None:
    scores = []
    for choices in ("--choice ' praise' --choice ' bug' --choice ' billing'", CHOICES):
        code, out, _ = typed(f"zoreward eval accuracy --model M {READS.replace(CHOICES, choices)} --json")
        assert code == 0
        scores.append(json.loads(out)["score"])

    assert scores[0] == scores[1]
