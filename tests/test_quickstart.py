"""`zoreward quickstart`: what is shipped with it, what it prints and keeps, and that its check can fail."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from zoreward.cli import main, quickstart
from zoreward.cli.quickstart import Comparison, above_median, majority
from zoreward.data import load_rows

CHECK = Path(__file__).parents[1] / "benchmarks" / "quickstart" / "check.py"


@pytest.fixture(scope="module")
def check() -> ModuleType:
    """The check, which lies outside the packages."""
    spec = importlib.util.spec_from_file_location("quickstart_check", CHECK)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def few_heldout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The first 40 held-out rows, in the place of all."""
    path = tmp_path / "few.jsonl"
    path.write_text("".join(Path(quickstart.HELDOUT).read_text().splitlines(keepends=True)[:40]))
    monkeypatch.setattr(quickstart, "HELDOUT", str(path))
    return str(path)


def texts(path: str) -> list[str]:
    return [row["text"] for row in load_rows(path)]


def test_help_imports_nothing_heavy() -> None:
    script = """
import sys
from zoreward.cli import main
assert main(["quickstart", "--help"]) == 0
heavy = {"torch", "numpy", "transformers", "sklearn", "datasets", "pandas", "yaml"} & set(sys.modules)
assert not heavy, heavy
"""
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "--steps" in done.stdout and f"[default: {quickstart.STEPS}]" in done.stdout


def test_what_is_shipped_is_small() -> None:
    files = [path for path in quickstart.SHIPPED.rglob("*") if path.is_file()]
    assert {"model.safetensors", "tokenizer.json", "train.jsonl", "heldout.jsonl"} <= {path.name for path in files}
    assert sum(path.stat().st_size for path in files) <= 4_000_000


def test_no_heldout_sentence_was_seen_before(check: ModuleType) -> None:
    heldout, train = texts(quickstart.HELDOUT), texts(quickstart.TRAIN)
    text = check.TEXT.read_text(encoding="utf-8")
    assert len(set(heldout)) == len(heldout) >= 300
    assert check.seen_before(heldout, train, text) == []
    # and it would be noticed
    assert check.seen_before(heldout, [*train, heldout[7]], text) == [heldout[7]]
    assert check.seen_before(heldout, train, f"{text}{heldout[9]} One star.\n") == [heldout[9]]


def test_majority_is_the_more_frequent_label() -> None:
    assert majority([0, 0, 0, 1]) == 0.75
    assert majority([1, 1, 1, 0, 1]) == 0.8


def test_one_threshold_takes_a_preference_away_and_nothing_else() -> None:
    labels = [0, 1, 0, 1]
    differences = np.array([-9.0, -7.0, -8.0, -6.0])  # knows the labels, and always prefers 0
    logprobs = np.stack([np.zeros(4) - 1, differences - 1], axis=1)
    assert (logprobs.argmax(axis=1) == labels).mean() == 0.5
    assert above_median(logprobs, labels) == 1.0
    assert above_median(logprobs, [1, 0, 1, 0]) == 0.0  # it never turns the answers round
    assert above_median(logprobs, [0, 0, 1, 1]) == 0.5


def test_the_command_end_to_end(tmp_path: Path, few_heldout: str, capsys: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "kept"
    assert main(["quickstart", "--max-steps", "3", "--output", str(kept), "--json"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)  # one object, nothing else
    assert list(result) == ["before", "majority", "threshold", "after", "steps", "seconds"]
    assert result["steps"] == 3 and result["seconds"] > 0
    labels = [row["label"] for row in load_rows(few_heldout)]
    assert result["majority"] == max(sum(labels), len(labels) - sum(labels)) / len(labels)
    assert f"{result['after']:.1%}" in err and f"{result['threshold']:.1%}" in err
    assert quickstart.YOURS in err

    # what is kept is a run of three steps, and the model that was evaluated
    journal = [json.loads(line) for line in (kept / "journal.jsonl").read_text().splitlines()]
    assert sum("terms" in line for line in journal) == 3
    assert "learning_rate" in (kept / "config.yaml").read_text()
    prompt = [word for choice in quickstart.PROMPT["choices"] for word in ("--choice", choice)]
    words = ["--data", few_heldout, "--template", quickstart.PROMPT["template"], *prompt, "--json"]
    for model, score in ((kept / "model", result["after"]), (quickstart.MODEL, result["before"])):
        assert main(["eval", "accuracy", "--model", str(model), *words]) == 0
        assert json.loads(capsys.readouterr().out)["score"] == score

    assert main(["quickstart", "--output", str(kept)]) == 2
    assert "holds a run already" in capsys.readouterr().err


def test_without_output_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = []

    def compare(trainer: object) -> Comparison:
        made.append(Path(trainer.args.output_dir))  # type: ignore[attr-defined]
        return Comparison(0.5, 0.54, 0.51, 0.9, 3, 1.0)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(quickstart, "compare", compare)
    assert main(["quickstart"]) == 0
    out, err = capsys.readouterr()
    assert "90.0%" in out and quickstart.YOURS in out and "no gradient" in err
    assert not made[0].exists() and not list(tmp_path.iterdir())


def test_the_command_line_that_it_shows_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("train", "dev"):
        Path(f"{name}.jsonl").write_text('{"text": "A fine soup.", "label": 1}\n{"text": "Cold.", "label": 0}\n')
    words = shlex.split(quickstart.YOURS.replace("\\\n", ""))  # as a shell joins the lines
    assert words[0] == "zoreward"
    words[words.index("--model") + 1] = quickstart.MODEL
    words[words.index("--steps") + 1] = "1"
    assert main(words[1:]) == 0
    assert "runs/mine" in capsys.readouterr().out


def test_failures_names_every_broken_bar(check: ModuleType) -> None:
    def broken(**changes: float) -> list[str]:
        good = {"before": 0.5, "majority": 0.54, "threshold": 0.5, "after": 0.7, "steps": 1, "seconds": 90.0}
        return check.failures(Comparison(**{**good, **changes}))

    assert broken() == []  # exactly at the bar
    assert len(broken(before=0.51)) == len(broken(majority=0.61)) == len(broken(threshold=0.61)) == 1
    assert broken(seconds=91.0) == ["91 s, not 90"]
    assert len(broken(after=0.5)) == 3


def test_the_check_fails_where_the_weights_stay(
    check: ModuleType, few_heldout: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check.main(["--update", "zero", "--seeds", "3", "--steps", "2"]) == 1
    assert "seed 3: +0.0% over zero-shot, not +20%" in capsys.readouterr().out


def test_a_random_update_is_as_large_and_has_no_say(check: ModuleType) -> None:
    spsa = check.SPSA(eps=0.5, lr=1.0, num_directions=64)
    query = spsa.ask(spsa.init())
    scores = [0.75, 0.25] * 64  # every direction is good, by as much
    with check.broken_update("random", seed=0):
        terms = spsa.tell(spsa.init(), query, scores)[0].terms
    honest = spsa.tell(spsa.init(), query, scores)[0].terms
    assert [term.seed for term in terms] == [term.seed for term in honest]
    assert [abs(term.coefficient) for term in terms] == [term.coefficient for term in honest]
    # 64 fair coins: fewer than 12 or more than 52 of one side has a probability below 1e-6
    assert 12 <= sum(term.coefficient > 0 for term in terms) <= 52


@pytest.mark.slow
@pytest.mark.parametrize("update", ["zero", "random"])
def test_the_check_fails_for_a_worthless_update(check: ModuleType, update: str) -> None:
    assert check.main(["--update", update, "--seeds", "0", "1"]) == 1


@pytest.mark.slow
def test_the_check_holds(check: ModuleType) -> None:
    assert check.main([]) == 0
