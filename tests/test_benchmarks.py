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
