"""Rows that are held out of --data to choose the best step, where nobody says which do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from zoreward.cli import main
from zoreward.records import InputError


@pytest.fixture
def many(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, commands_are_kept: None) -> list[str]:
    monkeypatch.chdir(tmp_path)
    rows = [{"i": i, "text": ["good film", "bad plot"][i % 2], "label": i % 2} for i in range(250)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = "tune accuracy --data rows.jsonl --template {text} --output run --steps 2 --lr 1e-3 --eps 1e-2".split()
    return [*line, "--model", str(tiny_model_dir), "--choice", " bad", "--choice", " good"]


@pytest.mark.parametrize(
    ("more", "counts"),
    [
        ([], (200, 50)),
        (["--limit", "200"], (160, 40)),
        (["--limit", "199"], (199, 0)),
        (["--keep", "last"], (250, 0)),
        (["--train-rows", "240"], (240, 0)),
        (["--dev-rows", "10"], (240, 10)),
        (["--eval-data", "rows.jsonl"], (250, 250)),
        (["--test-rows", "30"], (176, 44)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_where_nobody_says_which_rows_choose_one_in_five_of_many_does(
    more: list[str], counts: tuple[int, int], many: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def stop(objective: Any, rows: Any, options: Any, *others: Any) -> None:
        seen.append((rows, options))
        raise InputError("far enough", hint="stop")

    monkeypatch.setattr("zoreward.cli.tune._prepared", stop)
    assert main([*many, *more]) == 2

    [(rows, options)] = seen
    assert (len(rows.train), len(rows.dev or [])) == counts
    assert options.keep == ("best" if counts[1] else "last")
    if not more:
        assert {row["i"] for row in rows.train}.isdisjoint(row["i"] for row in rows.dev)


def test_rows_that_are_held_out_are_told_of_and_a_resume_has_the_same(
    many: list[str], capsys: pytest.CaptureFixture[str], trials_are_kept: None
) -> None:
    assert main(many) == 0
    assert "rows: 200 to tune on, 50 dev (held out of --data" in capsys.readouterr().err
    config = Path("run/config.yaml").read_text()
    assert "dev_rows: 50" in config and "keep: best" in config

    assert main([*many, "--resume", "--steps", "3"]) == 0


def test_a_run_that_held_none_out_goes_on_with_all_rows(
    many: list[str], capsys: pytest.CaptureFixture[str], trials_are_kept: None
) -> None:
    assert main([*many, "--keep", "last"]) == 0

    assert main([*many, "--resume", "--steps", "3"]) == 0
    assert "held out" not in capsys.readouterr().err


def test_rows_that_are_tuned_on_and_chosen_by_are_told(many: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*many, "--eval-data", "rows.jsonl", "--eval-limit", "7", "--dry-run"]) == 0

    assert capsys.readouterr().err.count("7 of 7 dev rows are rows to tune on too: ") == 1


def test_rows_of_a_table_that_are_in_two_parts_are_told(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"sentence": f"a {word} film", "label": n % 2} for n, word in enumerate("good bad dull bright".split())]
    for name, part in (("train", rows), ("dev", rows[:1]), ("test", [*rows[2:], {"sentence": "new", "label": 1}])):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))

    assert main(["bench", "sst2", "--model", str(tiny_model_dir), "--data-dir", ".", "--methods", "majority,zero-shot",
                 "--seeds", "1", "--output", "table"]) == 0  # fmt: skip

    out = "".join(capsys.readouterr())
    assert "sst2: 1 of 1 dev rows is a row to tune on too" in out
    assert "sst2: 2 of 3 test rows are rows to tune on or to choose by too" in out
