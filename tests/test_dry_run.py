"""`tune --dry-run`: what a run would be, before weights are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from zoreward.cli import main


@pytest.fixture
def line(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, commands_are_kept: None) -> list[str]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("zoreward.trainer.ready.load_model", None)  # whoever loads the weights fails
    rows = [{"text": ["good film", "bad plot"][i % 2], "label": i % 2} for i in range(20)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ["--data", "rows.jsonl", "--template", "{text} it was", "--choice", " bad", "--choice", " good"]
    return ["tune", "accuracy", "--model", str(tiny_model_dir), *data, "--dry-run", "--device", "cpu"]


def test_it_shows_what_would_be_and_writes_nothing(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*line, "--steps", "30", "--dev-rows", "4", "--num-directions", "3", "--batch-size", "5"]) == 0

    out, err = capsys.readouterr()
    assert out.count("it was") == 4 and "row 2 of 16" in out and "row 3" not in out  # in prompts, and in their tokens
    assert out.count("→") == 2
    for said in ("16 to tune on, 4 that", "6 a step (spsa), each on 5 rows", "30, in which members read 900 rows"):
        assert said in out
    assert "ε is found before step 1, learning rate is found before step 1" in out
    assert "memory     weights 0.0" in out
    assert "held out" not in err
    assert [path.name for path in Path().iterdir()] == ["rows.jsonl"]


def test_with_show_prompts_it_shows_both(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*line, "--show-prompts"]) == 0

    out = capsys.readouterr().out
    assert "row 2 of 20" in out and "1,000, in which members read" in out and "This was a dry run" in out


def test_as_json_it_has_what_was_given(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*line, "--lr", "1e-3", "--eps", "2e-3", "--max-seconds", "9", "--json"]) == 0

    told = json.loads(capsys.readouterr().out)
    assert (told["found"], told["learning_rate"], told["eps"]) == ([], 1e-3, 2e-3)
    assert (told["steps"], told["max_seconds"], told["dev_rows"]) == (1000, 9.0, 0)
    assert told["memory"]["weights"] > 0


def test_the_options_of_a_run_that_is_there_are_shown(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("run").mkdir()
    config = (
        f"model: {line[3]}\ndata: rows.jsonl\ntemplate: '{{text}} it was'\nchoices: [' bad', ' good']\noutput: run\n"
    )
    Path("run/config.yaml").write_text(config + "max_steps: 7\n")
    command = ["tune", "accuracy", "--config", "run/config.yaml", "--device", "cpu"]
    assert main([*command, "--dry-run"]) == 0
    assert "7, in which members read" in capsys.readouterr().out
    assert [path.name for path in Path("run").iterdir()] == ["config.yaml"]
    assert main(command) == 2 and "run holds a run already" in capsys.readouterr().err


def test_what_is_wrong_is_refused_as_in_a_run(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*line, "--lr", "-1"]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_reward_that_is_yet_to_be_made_is_refused(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": f"the film {i}", "chosen": " good", "rejected": " bad"} for i in range(8)]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = line[line.index("--model") + 1]

    assert main(["tune", "preference", "--via", "reward", "--model", model, "--data", "pairs.jsonl", "--dry-run"]) == 2
    assert "--show-prompts" in capsys.readouterr().err
