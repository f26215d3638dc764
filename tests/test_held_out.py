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

    def stop(objective: Any, rows: Any, options: Any) -> None:
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
