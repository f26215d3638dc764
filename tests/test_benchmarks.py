"""What benchmarks share: runs that go on where they stopped."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

WORK = """
import os
import time
from pathlib import Path

def settle(text):
    os.environ["SETTLED"] = text

def work(folder, seed, fails):
    Path(folder, f"{seed}.begun").touch()
    if fails:
        for _ in range(6000):  # until another goes on beside it
            if Path(folder, f"{seed + 1}.begun").exists():
                raise ValueError(f"seed {seed} fails")
            time.sleep(0.01)
    time.sleep(0.5)
    return [{"seed": seed, "way": way, "settled": os.environ["SETTLED"]} for way in ("a", "b")]
"""


@pytest.fixture
def kept_runs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return importlib.import_module("runs")


def test_results_are_found_by_their_names_and_a_torn_one_is_not(kept_runs: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    assert kept_runs.results_in(path, "seed") == {}
    path.write_text(
        '{"seed": 1, "way": "a"}\n{"seed": 1, "way": "b"}\n{"seed": 1, "way": "a", "x": 2}\n{"seed": 2, "way'
    )
    assert kept_runs.results_in(path, "seed", "way") == {
        (1, "a"): {"seed": 1, "way": "a", "x": 2},
        (1, "b"): {"seed": 1, "way": "b"},
    }


@pytest.mark.slow
def test_runs_go_on_where_they_stopped(kept_runs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work_of_a_benchmark.py").write_text(WORK)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("work_of_a_benchmark")
    path = tmp_path / "out" / "results.jsonl"
    path.parent.mkdir()
    path.write_text('{"seed": 9, "way": "a"}\n{"seed": 9, "wa')
    settled = {"settle": module.settle, "settings": ("x",)}
    seen = []
    with pytest.raises(ValueError, match="seed 0 fails"):
        for one in kept_runs.do_runs(path, module.work, [(tmp_path, n, n == 0) for n in range(4)], 2, **settled):
            written = [json.loads(line) for line in path.read_text().splitlines()]
            assert one in written  # before anybody hears of it
            seen.append(one)
    assert [(one["seed"], one["way"], one["settled"]) for one in seen] == [(1, "a", "x"), (1, "b", "x")]
    assert not (tmp_path / "2.begun").exists()
    found = kept_runs.results_in(path, "seed", "way")
    assert list(found) == [(9, "a"), (1, "a"), (1, "b")]
    rest = [(tmp_path, n, False) for n in range(3) if (n, "b") not in found]
    assert {one["seed"] for one in kept_runs.do_runs(path, module.work, rest, 1, **settled)} == {0, 2}
    assert {seed for seed, _ in kept_runs.results_in(path, "seed", "way")} == {9, 1, 0, 2}


@pytest.fixture
def preferences(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return importlib.import_module("preference")


def test_pairs_become_conversations_whose_answers_hold_the_beginning(preferences: ModuleType) -> None:
    row = preferences.in_turns({"prompt": "I saw", "chosen": " it twice.", "rejected": " it."})
    assert row["prompt"][0]["role"] == "user" and row["prompt"][0]["content"].endswith("I saw")
    assert row["chosen"] == [{"role": "assistant", "content": "I saw it twice."}]
    assert row["rejected"] == [{"role": "assistant", "content": "I saw it."}]
    assert set(preferences.in_turns({"prompt": "I saw"})) == {"prompt"}


def test_the_table_tells_means_over_seeds_and_intervals(
    preferences: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    def one(seed: int, win: float) -> dict[str, object]:
        told = {"sampled": win, "sampled_interval": [win - 0.25, win + 0.25], "peak_gib": 3.0, "gained": [1.0, 1.0]}
        return {"run": "dpo-full-1e-4", "seed": seed, "device": "CPU", "share": 1.0, **told}

    lines = {"base": [one(1, 0.5) | {"peak_gib": 2.0}], "dpo-full-1e-4": [one(1, 0.5), one(2, 1.0)]}
    options = preferences.argparse.Namespace(jobs=1, dtype="float32")
    preferences.print_table(options, lines)
    names, _, _, row = (line.split(" | ") for line in capsys.readouterr().out.splitlines()[-4:])
    cells = dict(zip(names, row, strict=True))
    assert cells["| run"] == "| dpo-full-1e-4" and cells["seeds"] == "2"
    assert cells["sampled wins"] == "0.750 ± 0.250 (0.500 to 1.000)"
    assert cells["pairs gained"] == "1.000 ± 0.000 (1.000 to 1.000)"
    assert cells["× inference |"] == "1.50 ± 0.00 |"
    assert cells["greedy wins"] == "–"
