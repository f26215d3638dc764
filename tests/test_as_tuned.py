"""A tuned model is asked as it was tuned, wherever its folder comes to lie; where it is not, that is said."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from zoreward.cli import main

pytestmark = pytest.mark.usefixtures("commands_are_kept", "trials_are_kept")

CHOICES = "--choice ' bad' --choice ' good'"
ASKED = f"--template '{{text}} it was' {CHOICES}"
Typed = Callable[[str], tuple[dict[str, Any], str]]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """A folder with a base, rows, a model that was tuned on them, and that model again, away from its run."""
    folder = tmp_path_factory.mktemp("tuned")
    shutil.copytree(tiny_model_dir, folder / "base")
    rows = [{"text": f"a {word} film", "label": n % 2} for n, word in enumerate(["bad", "good", "dull", "bright"] * 3)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    others = [{"review": row["text"], "label": row["label"]} for row in rows]
    (folder / "others.jsonl").write_text("".join(json.dumps(row) + "\n" for row in others))
    tune = f"tune neg-cross-entropy --model {folder}/base --data {folder}/rows.jsonl {ASKED} --output {folder}/run"
    assert main(shlex.split(f"{tune} --steps 2 --batch-size 4 --eps 0.1 --lr 0.01 --device cpu")) == 0
    shutil.copytree(folder / "run" / "model", folder / "moved")
    return folder


@pytest.fixture
def typed(tuned: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Typed:
    """Types a line in that folder: what it prints with --json, and on stderr."""
    monkeypatch.chdir(tuned)

    def run(line: str) -> tuple[dict[str, Any], str]:
        assert main([*shlex.split(line), "--json", "--device", "cpu"]) == 0
        out, err = capsys.readouterr()
        return json.loads(out.splitlines()[-1]), err

    return run


@pytest.mark.parametrize("model", ["run/model", "moved"])
@pytest.mark.parametrize("objective", ["accuracy", "neg-cross-entropy", "log-likelihood"])
def test_without_a_prompt_it_is_asked_as_it_was_tuned(model: str, objective: str, typed: Typed) -> None:
    as_typed, nothing = typed(f"eval {objective} --model {model} --data rows.jsonl {ASKED}")
    found, err = typed(f"eval {objective} --model {model} --data rows.jsonl")

    assert found["score"] == as_typed["score"]
    assert err.count(f"asked as the model was tuned: {ASKED}") == 1 and "tuned" not in nothing


def test_what_is_typed_is_kept_and_told_where_it_is_another_prompt(typed: Typed) -> None:
    others = f"--template 'a {{text}} film' {CHOICES}"
    shown, err = typed(f"eval accuracy --model run/model --data rows.jsonl {others} --show-prompts")

    assert "a a bad film film" in shown["prompts"]
    assert "asked otherwise than the model was tuned, which was with --template '{text} it was'\n" in err


def test_answers_in_another_order_are_told(typed: Typed) -> None:
    """They stand for the labels 0 and 1 by their places, so the score is upside down."""
    found, err = typed("eval accuracy --model run/model --data rows.jsonl --choice ' good' --choice ' bad'")
    as_tuned, silent = typed(f"eval accuracy --model run/model --data rows.jsonl {ASKED}")

    assert found["score"] == 1 - as_tuned["score"] and "tuned" not in silent
    assert f"asked otherwise than the model was tuned, which was with {CHOICES}\n" in err


@pytest.mark.parametrize(
    "asked",
    ["--template '{review} it was'", f"--template '{{review}} it was' {CHOICES.replace(' bad', '0= bad')}"],
)
def test_other_columns_are_no_other_prompt(asked: str, typed: Typed) -> None:
    asked = asked.replace("' good'", "'1= good'")
    _, err = typed(f"eval accuracy --model run/model --data others.jsonl {asked} --show-prompts")

    assert "otherwise" not in err


def test_further_tuning_begins_with_the_prompt_before(typed: Typed) -> None:
    plan, err = typed("tune accuracy --model run/model --data rows.jsonl --dry-run")

    assert "a bad film it was" in plan["prompts"] and "asked as the model was tuned" in err


def test_texts_are_asked_for_as_the_model_was_tuned(typed: Typed, tuned: Path) -> None:
    (tuned / "judge.py").write_text("def longer(completions, **columns): return [float(len(c)) for c in completions]")

    shown, err = typed("eval ./judge.py:longer --model moved --data rows.jsonl --max-new-tokens 2 --show-prompts")
    _, of_two = typed("win-rate moved --against base --judge ./judge.py:longer --data rows.jsonl --max-new-tokens 2")

    assert "a bad film it was" in shown["prompts"]
    assert all("asked as the model was tuned: --template '{text} it was'\n" in one for one in (err, of_two))


def test_a_replayed_model_and_one_from_the_hub_know_it_too(
    typed: Typed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = tmp_path / "again"
    assert main(shlex.split(f"replay run --model base --output {again} --device cpu")) == 0
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda name, file: str(again / file))

    _, replayed = typed(f"eval accuracy --model {again} --data rows.jsonl --show-prompts")
    assert (
        main(shlex.split("eval accuracy --model me/mine --data rows.jsonl --show-prompts")) == 2
    )  # the weights are not there
    hub = capsys.readouterr().err

    assert all(f"asked as the model was tuned: {ASKED}" in err for err in (replayed, hub))


@pytest.mark.parametrize("content", ["", "[]", "{", '{"templat": "x"}', '{"template": [1]}', "[" * 9999])
def test_a_record_that_says_nothing_is_none(content: str, tuned: Path, typed: Typed) -> None:
    record = tuned / "moved" / "prompting.json"
    before = record.read_bytes()
    record.write_text(content)

    _, err = typed(f"eval accuracy --model moved --data rows.jsonl {ASKED} --show-prompts")
    record.write_bytes(before)

    assert "tuned" not in err
