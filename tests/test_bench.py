"""`zoreward bench`: what chooses, what is reported, what is done again, and the one baseline with gradients."""

from __future__ import annotations

import csv
import importlib
import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, TrainerCallback

from conftest import FAMILIES, random_model
from rendering import render
from test_cli import folder, last_object  # noqa: F401  (a fixture)
from tiny_tokenizers import bpe
from zoreward.bench import METHODS, Plan, Results, Run, Settings, driver, measuring
from zoreward.bench.measuring import do_run, forget_model
from zoreward.bench.pools import bench_rows
from zoreward.bench.tuning import Best, adamw_step, batches, loss_of, mean_logprobs
from zoreward.cli import main
from zoreward.data import Split, load_task
from zoreward.data.tasks import Counts
from zoreward.records import InputError
from zoreward.registry import get_objective
from zoreward.scoring import (
    candidate_logprobs,
    engine_of,
    evaluate,
    load_model,
    load_tokenizer,
    memory,
    probe_scores,
)
from zoreward.scoring.devices import gpus_seen
from zoreward.trainer import ZOConfig, ZOTrainer

pytestmark = pytest.mark.usefixtures("folder", "commands_are_kept", "trials_are_kept")

GOOD, BAD = ["good", "great", "lovely", "bright"], ["bad", "awful", "dull", "terrible"]
TRAIN = [
    {"sentence": f"a {word} {kind}", "label": int(word in GOOD)}
    for word in GOOD + BAD
    for kind in ("film", "plot", "is", "was")
]
OTHERS = [{"sentence": f"the {word} film", "label": int(word in GOOD)} for word in GOOD[:3] + BAD]
SETTINGS = {"template": "{sentence|strip} It was", "choices": [" terrible", " great"]}
ROWS = [{"text": f"a very {word} film"[: None if i % 2 else -5], "label": i % 2} for i, word in enumerate(GOOD + BAD)]


def write(path: str, rows: list[dict]) -> None:
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def turned(rows: list[dict]) -> list[dict]:
    """The rows with the other label each."""
    return [{**row, "label": 1 - row["label"]} for row in rows]


@pytest.fixture
def data(tmp_path: Path) -> None:
    """A folder with three files of SST-2's columns."""
    for name, rows in (("train", TRAIN), ("dev", OTHERS), ("test", OTHERS)):
        write(f"{tmp_path}/data/{name}.jsonl", rows)


# With the first rate nothing moves, with the last the model is another.
RATES = ["--lr", "mezo=1e-9,1e-1", "--lr", "adamw=1e-9,1e-1"]
SMALL = ["--model", "model", "--steps", "4", "--batch-size", "8", "--eval-every", "2", "--shots", "2"]


def words_of(output: str, methods: str, data: str = "data", seeds: str = "1") -> list[str]:
    own = [
        word
        for flag, word in zip(RATES[::2], RATES[1::2], strict=True)
        if word.partition("=")[0] in methods.split(",")
        for word in (flag, word)
    ]
    where = ["--data-dir", data, "--methods", methods, "--seeds", seeds, "--output", output]
    return ["bench", "sst2", *SMALL, *where, *own]


def bench(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The lines of a table, by method."""
    assert main([*words, "--json"]) == 0, capsys.readouterr().err
    return {line["method"]: line for line in last_object(capsys.readouterr().out)["lines"]}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """What was run, in the place of real runs: they choose their largest rate, and score what their seed says."""
    asked: list[Run] = []

    def do(run: Run, plan: Plan, where: Path, threads: int | None) -> dict[str, Any]:
        asked.append(run)
        found = {"dev": 0.5, "test": run.seed / 8, "shown": 1, "seconds": 0.0, "peak": None, "shots": 2}
        tuned = {
            "rate": max(run.rates, default=0.0),
            "step": 2,
            "steps": 4,
            "tried": [(rate, 0.5) for rate in run.rates],
        }
        return found | (tuned if METHODS[run.method].tunes else {})

    monkeypatch.setattr(measuring, "do_run", do)
    return asked


@pytest.mark.usefixtures("data")
def test_dev_labels_choose_and_test_labels_do_not(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[list[dict]] = []
    score = measuring.evaluate
    monkeypatch.setattr(measuring, "evaluate", lambda *args, **how: (scored.append(args[2]), score(*args, **how))[1])
    found, tests = {}, OTHERS[:5]
    for name, dev, test in (("plain", OTHERS, tests), ("dev", turned(OTHERS), tests), ("test", OTHERS, turned(tests))):
        for part, rows in (("train", TRAIN), ("dev", dev), ("test", test)):
            write(f"{name}/{part}.jsonl", rows)
        scored.clear()
        found[name] = bench(words_of(f"out-{name}", "mezo", name), capsys)["mezo"]
        assert scored == [dev] * 4 + [test], "twice for each of two rates; then what these chose"
    rates = {name: line["rate"] for name, line in found.items()}
    assert {rates["plain"], rates["dev"]} == {1e-9, 1e-1} and rates["test"] == rates["plain"]
    assert found["test"]["test"] == 1 - found["plain"]["test"]
    assert "best of 2" in found["plain"]["setting"]


@pytest.mark.usefixtures("data")
def test_the_seed_that_chooses_is_reported_and_not_run_again(
    asked: list[Run], capsys: pytest.CaptureFixture[str]
) -> None:
    found = bench(words_of("out", "zero-shot,mezo,adamw", seeds="13,7"), capsys)
    rates = (1e-9, 1e-1)
    assert [run for run in asked if run.method == "mezo"] == [
        Run("sst2", "mezo", rates, 13),
        Run("sst2", "mezo", rates[1:], 7),
    ]
    assert [run.seed for run in asked if run.method == "zero-shot"] == [13]
    assert (found["mezo"]["seeds"], found["mezo"]["tests"]) == ([13, 7], [13 / 8, 7 / 8])


@pytest.mark.usefixtures("data")
def test_what_is_done_is_not_done_again(asked: list[Run], capsys: pytest.CaptureFixture[str]) -> None:
    words = words_of("out", "zero-shot,mezo", seeds="2")
    whole = bench(words, capsys)
    results = Path("out/results.jsonl")
    lines = results.read_text().splitlines(keepends=True)
    assert len(lines) == 1 + 1 + 1 + 2 == len(asked) + 1  # the task; majority, zero-shot, two seeds
    for kept, torn in ((3, ""), (3, lines[3][:20]), (4, lines[4][:-1])):
        results.write_text("".join(lines[:kept]) + torn)
        asked.clear()
        assert bench(words, capsys) == whole
        assert len(asked) == len(lines) - kept
        assert results.read_text().splitlines(keepends=True) == lines
    asked.clear()
    bench(words_of("out", "zero-shot,mezo,shots", seeds="2"), capsys)
    assert [run.method for run in asked] == ["shots", "shots"]  # more may be asked for


@pytest.mark.usefixtures("data", "asked")
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (["--steps", "5"], "steps was 4, and is 5"),
        (["--split-seed", "3", "--train-rows", "8"], "rows was"),
        ("labels", "test rows have changed"),
    ],
)
def test_something_else_is_refused(change: Any, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    bench(words_of("out", "zero-shot"), capsys)
    before = Path("out/results.jsonl").read_bytes()
    if change == "labels":
        write("data/test.jsonl", turned(OTHERS))
        change = []
    assert main([*words_of("out", "zero-shot"), *change]) == 2
    error, hint = capsys.readouterr().err.splitlines()[-2:]
    assert told in error and "--output" in hint
    assert Path("out/results.jsonl").read_bytes() == before


@pytest.mark.usefixtures("data")
def test_a_table_end_to_end(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # not installed
    words = words_of("out", "zero-shot,shots,calibrated,linear-probe,mezo,adamw", seeds="2")
    assert main([*words, "--json"]) == 0
    out, err = capsys.readouterr()
    lines = {line["method"]: line for line in last_object(out)["lines"]}
    assert "matplotlib is not installed" in err and not Path("out/plot.png").exists()
    task = load_task("sst2")
    for name, more in (
        ("zero-shot", {}),
        ("calibrated", {"content_free": task.content_free}),
        ("shots", {"shots": 2, "shot_rows": TRAIN}),
    ):
        wanted = evaluate("model", "accuracy", OTHERS, **SETTINGS, **more)
        assert lines[name]["tests"][0] == wanted.score
    settings: dict[str, Any] = {"needs": "choices", **SETTINGS}
    own = render(TRAIN, load_tokenizer("model"), **settings), render(OTHERS, load_tokenizer("model"), **settings)
    [probe] = probe_scores(engine_of(load_model("model"), 0), get_objective("accuracy"), own[0], own[1:])
    assert lines["linear-probe"]["tests"] == [probe.score] == [lines["linear-probe"]["dev"]]
    assert lines["zero-shot"]["majority"] == 4 / 7 and lines["zero-shot"]["deviation"] is None
    assert (lines["mezo"]["shown"], lines["mezo"]["backward"]) == (2 * 4 * 8, 0)
    assert (lines["adamw"]["shown"], lines["adamw"]["backward"]) == (4 * 8, 4 * 8)
    assert lines["mezo"]["seeds"] == [0, 1] and len(lines["mezo"]["tests"]) == 2
    assert lines["mezo"]["deviation"] == pytest.approx(float(np.std(lines["mezo"]["tests"], ddof=1)), abs=1e-12)
    table = Path("out/table.md").read_text()
    assert [row.split("|")[1].strip() for row in table.splitlines()[4:]] == list(lines)
    with Path("out/table.csv").open(newline="") as file:
        assert [row["test"] for row in csv.DictReader(file)] == [str(line["test"]) for line in lines.values()]
    assert not Path("out/runs").exists()
    results = [json.loads(line) for line in Path("out/results.jsonl").read_text().splitlines()]
    assert all([step for step, _ in one["curve"]] == [2, 4] for one in results if one.get("rate"))


@pytest.mark.usefixtures("data")
def test_a_run_that_is_refused_for_its_memory_is_a_line_of_the_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10_000)  # the weights alone take more
    assert main([*words_of("out", "zero-shot,mezo"), "--json"]) == 0
    out, err = capsys.readouterr()
    lines = {line["method"]: line for line in last_object(out)["lines"]}
    assert lines["mezo"]["setting"].startswith("failed; out of memory: ") and "test" not in lines["mezo"]
    assert 0 <= lines["zero-shot"]["test"] <= 1
    results = [json.loads(line) for line in Path("out/results.jsonl").read_text().splitlines()]
    told = [one["error"] for one in results if "error" in one]
    assert len(told) == 1 and len(results) == 1 + 1 + 1 + 1  # the task, majority, zero-shot, mezo
    assert all(text in err and text.startswith("out of memory: model in float32 needs ") for text in told)
    assert all(" for its weights" in text and text.endswith(" MB free") for text in told)


@pytest.mark.usefixtures("data")
def test_a_table_is_shown_however_it_ends(
    asked: list[Run], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    do, words = measuring.do_run, words_of("out", "zero-shot,shots,mezo", seeds="2")

    def ends(run: Run, *others: Any) -> dict[str, Any]:
        if run.method != "shots" or run.seed == 0:
            return do(run, *others)
        if isinstance(errors[-1], int):
            signal.raise_signal(errors[-1])
        raise errors[-1]

    monkeypatch.setattr(measuring, "do_run", ends)
    errors: list[Any] = []
    for error, code, told in (
        (signal.SIGTERM, 130, "interrupted; what is done is kept: zoreward bench sst2"),
        (KeyboardInterrupt(), 130, "interrupted; what is done is kept: zoreward bench sst2"),
        (ValueError("no luck"), 1, "sst2 shots seed 1 failed; the same command tries again: zoreward bench sst2"),
    ):
        errors.append(error)
        assert main(words) == code
        out, err = capsys.readouterr()
        rows = {row.split("|")[1].strip(): row for row in out.splitlines() if row.startswith("| ")}
        assert told in err and {"zero-shot", "shots", "mezo"} <= set(rows)
        assert "1 of 2 seeds" in rows["shots"] and "0.0000" in rows["shots"]
        assert Path("out/table.md").read_text().strip() == out.strip()
        if code == 130:
            assert "| not run |" in rows["mezo"]
        else:  # the others went on
            assert "1 of 2 seeds; ValueError: no luck" in rows["shots"] and "not run" not in rows["mezo"]
    asked.clear()
    monkeypatch.setattr(measuring, "do_run", do)
    assert main(words) == 0 and asked == [Run("sst2", "shots", (), 1)]


@pytest.mark.usefixtures("data", "asked")
def test_max_seconds_end_a_table_with_what_it_has(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    do = measuring.do_run

    def slow(run: Run, *others: Any) -> dict[str, Any]:
        for _ in range(6000 if run.method == "shots" else 0):
            time.sleep(0.01)
        return do(run, *others)

    monkeypatch.setattr(measuring, "do_run", slow)
    assert main([*words_of("out", "zero-shot,shots", seeds="2"), "--max-seconds", "1", "--json"]) == 0
    out, err = capsys.readouterr()
    assert "1 seconds had passed (--max-seconds); what is done is kept: zoreward bench" in err
    assert [(line["method"], line["setting"]) for line in last_object(out)["lines"]] == [
        ("zero-shot", ""),
        ("shots", "not run"),
    ]


LOSS = "template: '{sentence} It was'\nchoices: [' terrible', ' great']\nobjective: neg-cross-entropy\n"


def test_runs_that_share_a_model_are_those_that_load_it_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("loss.yaml").write_text(LOSS)  # which tells one bit from another
    plan = Plan(load_task("loss.yaml"), "model", Split(TRAIN, OTHERS, OTHERS), Settings(steps=4, batch_size=8))
    runs = [Run("loss", name, (), 1) for name in ("mezo-metric-lora", "mezo-metric", "zero-shot")]
    loads: list[str] = []
    load = measuring.load_model
    monkeypatch.setattr(measuring, "load_model", lambda name, **how: (loads.append(name), load(name, **how))[1])

    def without_clock(run: Run) -> dict[str, Any]:
        return {name: value for name, value in do_run(run, plan, Path("runs")).items() if name != "seconds"}

    shared = [without_clock(run) for run in [*runs, *runs[:2]]]
    assert len(loads) == 1
    alone = []
    for run in runs:
        forget_model()
        alone.append(without_clock(run))
    assert len(loads) == 1 + len(runs)
    forget_model()
    assert shared == alone + alone[:2]
    assert len({result["dev"] for result in alone}) == len(runs), "each has moved the weights, but for zero-shot"


@pytest.mark.usefixtures("data")
def test_adamw_leaves_nothing_behind_and_a_rate_that_breaks_the_model_loses() -> None:
    plan = Plan(load_task("sst2"), "model", Split(TRAIN, OTHERS, OTHERS), Settings(steps=4, batch_size=8))
    adamw, mezo = Run("sst2", "adamw", (1e-3, 1e30), 0), Run("sst2", "mezo", (1e-2,), 0)
    first, found, second = (do_run(run, plan, Path("runs")) for run in (mezo, adamw, mezo))  # of one model, on a CPU
    forget_model()
    again = do_run(Run("sst2", "adamw", (1e-3,), 0), plan, Path("runs"))
    forget_model()
    assert found["tried"] == [(1e-3, again["dev"]), (1e30, None)] and found["rate"] == 1e-3
    assert (found["test"], found["curve"]) == (again["test"], again["curve"])
    assert {**first, "seconds": 0} == {**second, "seconds": 0}


@pytest.mark.usefixtures("data")
def test_without_rates_a_method_finds_its_own_as_a_run_of_tune_does(capsys: pytest.CaptureFixture[str]) -> None:
    words = words_of("out", "mezo", seeds="3,4")
    words = [word for word in words if word not in RATES]
    found = bench([*words, "--method", "lozo-metric", "--eps", "lozo-metric=2e-2"], capsys)
    assert list(found) == ["mezo", "lozo-metric"]
    args = ZOConfig("tune", **SETTINGS, max_steps=4, per_device_train_batch_size=8, seed=3, use_cpu=True)
    trainer = ZOTrainer("model", objective="neg-cross-entropy", args=args, train_dataset=TRAIN)
    trainer.train()
    line = found["mezo"]
    assert trainer.found is not None and (line["rate"], line["found"]) == (trainer.found.learning_rate, True)
    assert "(found), eps " in line["setting"] and line["setting"].endswith("of 4")
    assert line["shown"] == 4 * 8 * 2 + trainer.found.rows
    assert "eps 0.02, " in found["lozo-metric"]["setting"]


@pytest.mark.usefixtures("data")
def test_max_forwards_are_those_of_each_run(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "sst2", "--model", "model", "--batch-size", "8", "--data-dir", "data", "--seeds", "1"]
    words += ["--lr", "mezo=1e-3", "--lr", "adamw=1e-3", "--methods", "mezo,adamw", "--device", "cpu"]
    found = bench([*words, "--max-forwards", "60", "--method", "fzoo", "--output", "out"], capsys)
    left = 60 - 4  # dev scores of one batch each
    assert found["mezo"]["setting"].endswith(f" of {left // 2}")
    assert found["adamw"]["setting"].endswith(f" of {left // 3}"), "forwards, and backwards for twice as much"
    assert left * 8 - 9 * 8 < found["fzoo"]["shown"] <= left * 8, "the search, and steps of nine members"
    assert main([*words, "--max-forwards", "40", "--method", "fzoo", "--output", "none"]) == 1
    assert "max_forwards=36 does not pay for one step; of --max-forwards 40 the others are" in capsys.readouterr().err
    assert main([*words, "--max-forwards", "4", "--output", "few", "--json"]) == 1
    out, err = capsys.readouterr()
    assert all("--max-forwards 4 does not pay for one step" in line["setting"] for line in last_object(out)["lines"])
    assert "4 dev scores alone take 4" in err


@pytest.mark.slow
def test_a_task_that_writes(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"q": f"the {word} film was", "a": word} for word in GOOD + BAD]
    write("own/train.jsonl", rows)
    Path("own.yaml").write_text(
        "template: '{q}'\nanswer: ' {a}'\nobjective: token-f1\ntrain_on: log-likelihood\nmax_new_tokens: 3\n"
        "columns: {answer: '{a}'}\n"
    )
    methods = ["shots", "calibrated", "linear-probe", "mezo-metric", "mezo-lora", "adamw"]
    words = ["bench", "own.yaml", *SMALL, "--data-dir", "own", "--output", "out", "--seeds", "1", "--json"]
    words += ["--methods", ",".join(methods), *(word for name in methods[3:] for word in ("--lr", f"{name}=1e-2"))]
    assert main([*words, "--train-rows", "4", "--dev-rows", "2", "--test-rows", "2"]) == 0
    out, err = capsys.readouterr()
    for name in ("shots", "calibrated", "linear-probe"):
        assert f"own has no {name}: " in err
    lines = {line["method"]: line for line in last_object(out)["lines"]}
    assert list(lines) == methods[3:]
    assert all(line["majority"] is None and line["test_rows"] == 2 for line in lines.values())
    # Three words of which one may be right.
    assert all(line["tests"][0] in (0.0, 0.25, 0.5) for line in lines.values())


@pytest.mark.slow
def test_a_task_whose_rows_bring_their_answers(capsys: pytest.CaptureFixture[str]) -> None:
    for name, count in (("train", 8), ("dev", 4)):
        rows = [
            {"premise": f"the {word} film.", "choice1": "It was good.", "choice2": "It was bad."} for word in GOOD * 2
        ]
        rows = [{**row, "question": "cause", "label": i % 3 // 2} for i, row in enumerate(rows[:count])]
        write(f"copa/{name}.jsonl", rows)
    words = [
        "bench",
        "copa",
        *SMALL,
        *RATES,
        "--data-dir",
        "copa",
        "--dev-rows",
        "2",
        "--output",
        "out",
        "--seeds",
        "1",
    ]
    found = bench([*words, "--methods", "zero-shot,calibrated,linear-probe,mezo,adamw"], capsys)
    assert list(found) == ["zero-shot", "calibrated", "mezo", "adamw"]
    assert found["mezo"]["metric"] == "accuracy" and found["mezo"]["majority"] == 0.75
    assert all(line["test"] * 4 in range(5) for line in found.values())


OWN_ANSWERS = {
    # The texts of train say nothing about those of test; of its places the last was right most often, then the second.
    "places": (
        [([f"{n}a", f"{n}b", f"{n}c"], label) for n, label in enumerate([2, 2, 2, 1, 1, 0])],
        [(["x", "y"], 1), (["z", "w"], 0), (["u", "v", "t"], 2)],
        [True, False, True],
    ),
    # "yes" was right most often, in any place; a row that does not offer it has one that was right once.
    "texts": (
        [(["no", "yes"], 1), (["yes", "no"], 0), (["no", "yes"], 1), (["no", "maybe"], 1), (["yes", "no"], 1)],
        [(["yes", "no"], 0), (["no", "yes"], 1), (["no", "yes"], 0), (["other", "maybe"], 1)],
        [True, True, False, True],
    ),
    "equally often": (
        [(["a", "b"], 1), (["a", "b"], 0)],
        [(["a", "b"], 0), (["b", "a"], 0), (["a", "b"], 1)],
        [True, True, False],  # the first
    ),
}


@pytest.mark.parametrize("case", OWN_ANSWERS)
def test_the_majority_is_an_answer_of_the_row(case: str) -> None:
    Path("own.yaml").write_text("template: 'q: {q} '\nobjective: accuracy\nchoice_column: ends\n")
    bpe(bos_token="<s>").save_pretrained("bytes")  # tells all those answers apart
    random_model("llama").config.save_pretrained("bytes")
    train, test, right = OWN_ANSWERS[case]
    parts = [[{"q": "film", "ends": ends, "label": label} for ends, label in rows] for rows in (train, test)]
    plan = Plan(load_task("own.yaml"), "bytes", Split(parts[0], parts[1][:1], parts[1]), Settings())
    found = do_run(Run("own", "majority", (), 0), plan, Path("nowhere"))
    assert found["test"] == sum(right) / len(right)
    assert found["dev"] == right[0]
    for row, wanted in zip(parts[1], right, strict=True):
        alone = replace(plan, rows=replace(plan.rows, test=[row]))
        assert do_run(Run("own", "majority", (), 0), alone, Path("nowhere"))["test"] == wanted


# Rows


def test_two_files_hold_dev_rows_out_of_train() -> None:
    write("two/train.jsonl", TRAIN)
    write("two/dev.jsonl", OTHERS)
    found = bench_rows(load_task("sst2"), Path("two"), Counts(train=20, dev=8))
    assert found.test == OTHERS
    assert (len(found.train), len(found.dev)) == (20, 8)
    texts = [row["sentence"] for row in found.train + found.dev]
    assert len(set(texts)) == 28 and set(texts) <= {row["sentence"] for row in TRAIN}
    other = bench_rows(load_task("sst2"), Path("two"), Counts(train=20, dev=8), seed=1)
    assert other.test == OTHERS and other.dev != found.dev


def test_one_file_is_divided_into_three() -> None:
    write("one/dev.jsonl", TRAIN)
    found = bench_rows(load_task("sst2"), Path("one"), Counts(train=16, dev=7, test=9), seed=2)
    parts = [[row["sentence"] for row in rows] for rows in (found.train, found.dev, found.test)]
    assert list(map(len, parts)) == [16, 7, 9]
    assert sorted(parts[0] + parts[1] + parts[2]) == sorted(row["sentence"] for row in TRAIN)


# AdamW


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("choices", [[" bad", " great"], [" very bad plot", " great", " not dull"]])
def test_mean_logprobs_are_those_that_scoring_takes(
    family: str, choices: list[str], tokenizer: PreTrainedTokenizerFast
) -> None:
    reader = engine_of(random_model(family), tokenizer.pad_token_id)
    examples = render(ROWS, tokenizer, needs="choices", template="{text} it was", choices=choices)
    found = mean_logprobs(reader, examples)
    wanted = candidate_logprobs(reader, examples)[0]
    assert found.requires_grad
    # float32 log-probabilities of size ~10 in another batch: some 1e-5 apart.
    np.testing.assert_allclose(found.detach().numpy(), wanted, atol=1e-4)


def test_answers_of_their_own_leave_gaps(tokenizer: PreTrainedTokenizerFast) -> None:
    reader = engine_of(random_model("llama"), tokenizer.pad_token_id)
    rows = [{**row, "ends": [" great", " very bad plot"] + [" dull"] * (i % 2)} for i, row in enumerate(ROWS)]
    examples = render(rows, tokenizer, needs="choices", template="{text} it was", choice_column="ends")
    found = mean_logprobs(reader, examples)
    assert torch.isneginf(found[::2, 2]).all() and torch.isfinite(found[1::2]).all()
    loss_of(reader, examples, "choices").backward()
    assert all(torch.isfinite(weight.grad).all() for weight in reader.model.parameters() if weight.grad is not None)


@pytest.mark.parametrize("needs", ["choices", "likelihood"])
def test_a_step_is_that_of_torch_on_a_plain_loss(needs: str, tokenizer: PreTrainedTokenizerFast) -> None:
    ours, plain, theirs = (random_model("llama") for _ in range(3))
    examples = render(ROWS[:3], tokenizer, needs=needs, template="{text} it was", choices=[" bad", " great"])
    readers = [engine_of(model, tokenizer.pad_token_id) for model in (ours, theirs)]
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0) for model in (ours, theirs)]

    rows = []  # one at a time, without padding
    for example in examples:
        logprobs = plain(torch.tensor([example.prompt_tokens])).logits[0, -1].log_softmax(-1)
        rows.append(logprobs[[tokens[0] for tokens in example.candidate_tokens]])
    references = torch.tensor([example.reference for example in examples])
    of_choices = functional.cross_entropy(torch.stack(rows), references) if needs == "choices" else None
    loss = -torch.stack(rows).mean() if of_choices is None else of_choices
    loss.backward()
    loss_of(readers[1], examples, needs).backward()
    for own, wanted in zip(theirs.parameters(), plain.parameters(), strict=True):
        # float32 sums of some hundred products of size ~1, in another order.
        torch.testing.assert_close(own.grad, wanted.grad, atol=1e-4, rtol=1e-4)
    optimizers[1].zero_grad()

    for _ in range(2):  # the second time, what is left of the first would show
        adamw_step(optimizers[0], readers[0], examples, needs)
        loss_of(readers[1], examples, needs).backward()
        optimizers[1].step()
        optimizers[1].zero_grad()
    for own, wanted, start in zip(ours.parameters(), theirs.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own, wanted, atol=0, rtol=0)
        assert not torch.equal(own, start)


def test_adamw_sees_the_batches_that_mezo_sees(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model = random_model("llama")
    model.config._name_or_path = "x"
    args = ZOConfig(
        str(tmp_path / "run"),
        max_steps=7,
        per_device_train_batch_size=3,
        seed=5,
        use_cpu=True,
        disable_tqdm=True,
        template="{text} it was",
        choices=[" bad", " great"],
        save_strategy="no",
    )
    trainer = ZOTrainer(model, objective="accuracy", args=args, train_dataset=ROWS, processing_class=tokenizer)
    seen: list[list[str]] = []

    class Rows(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen.append([example.row["text"] for example in trainer.last_rows])

    trainer.add_callback(Rows())
    trainer.train()
    wanted = [[ROWS[n]["text"] for n in rows] for rows in batches(len(ROWS), 3, 7, seed=5)]
    assert seen == wanted
    assert [len(rows) for rows in wanted] == [3, 3, 2, 3, 3, 2, 3]


def test_the_best_look_is_kept_and_put_back() -> None:
    weights = {"w": torch.zeros(2), "b": torch.zeros(1)}
    scores = iter([0.5, 0.7, 0.7, 0.6])
    best = Best(weights, lambda: next(scores))
    for step in (2, 4, 6, 7):
        weights["w"].fill_(step)
        weights["b"].fill_(-step)
        best.look(step)
    assert (best.step, best.dev, best.curve) == (4, 0.7, [(2, 0.5), (4, 0.7), (6, 0.7), (7, 0.6)])
    best.put_back(weights)
    assert (weights["w"].tolist(), weights["b"].tolist()) == ([4.0, 4.0], [-4.0])


# Results


def test_results_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text('{"kind": "run"}\n')
    with pytest.raises(InputError, match=r"results\.jsonl cannot be read"):
        Results(tmp_path)


def test_two_commands_in_one_folder_keep_each_other_s_results(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text('{"kind": "task", "task": "a"}\n{"kind": "ru')  # torn by a kill
    one, other = Results(tmp_path), Results(tmp_path)
    runs = [Run(task, "mezo", (1e-6,), seed) for seed in (0, 1) for task in ("a", "b")]
    for results, run in zip((one, other, one, other), runs, strict=True):
        results.add(run, {"dev": 0.5})
    assert Results(tmp_path).runs == {run: {"dev": 0.5} for run in runs}


WORK = """
import time
from pathlib import Path

def do(run, plan, where, jobs):
    Path(f"{run.seed}.begun").touch()
    if run.seed == 0:
        for _ in range(6000):
            if Path("1.begun").exists():
                break
            time.sleep(0.01)
        raise ValueError("seed 0 fails")
    time.sleep(1.0)  # until the failure of seed 0 is known
    return {"dev": 0.0, "test": run.seed / 8}
"""


def test_what_goes_on_beside_a_run_that_fails_is_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other_process_work.py").write_text(WORK)
    monkeypatch.syspath_prepend(tmp_path)  # other processes are given it too
    monkeypatch.setattr(driver, "_do", importlib.import_module("other_process_work").do)
    plan = Plan(load_task("sst2"), "model", Split(TRAIN, OTHERS, OTHERS), Settings())
    runs = [Run("sst2", "shots", (), seed) for seed in range(4)]
    told: list[str] = []
    with pytest.raises(ValueError, match="seed 0 fails"):
        driver.run_all(runs, {"sst2": plan}, Results(Path("out")), jobs=2, tell=told.append)
    assert Results(Path("out")).runs == {runs[1]: {"dev": 0.0, "test": 1 / 8}}
    assert any("one failed; 1 beside it to wait for" in line for line in told)
    assert not Path("2.begun").exists() and not Path("3.begun").exists()  # nothing is begun behind a failure


def test_processes_side_by_side_see_the_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of three processes sees one of two GPUs, and both are seen, whatever the first process sees."""
    work = (
        "import os, time\ndef seen(seconds):\n    time.sleep(seconds)\n    return os.environ['CUDA_VISIBLE_DEVICES']\n"
    )
    Path("what_is_seen.py").write_text(work)
    monkeypatch.syspath_prepend(Path.cwd())
    seen = importlib.import_module("what_is_seen").seen
    how = {"settle": driver.see_one_of, "settings": (driver.turns(), ("3", "GPU-5"))}
    found = [name for _, name in driver.side_by_side(seen, [(1.0,)] * 3, 3, **how)]
    assert sorted(found) in (["3", "3", "GPU-5"], ["3", "GPU-5", "GPU-5"])
    assert os.environ.get("CUDA_VISIBLE_DEVICES") is None


@pytest.mark.parametrize(
    ("named", "count", "expected"), [(None, 2, ["0", "1"]), ("4,GPU-7", 2, ["4", "GPU-7"]), ("", 0, [])]
)
def test_gpus_are_named_as_cuda_would(named, count, expected, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert gpus_seen() == expected


def test_runs_side_by_side_have_folders_of_their_own() -> None:
    names = ("sst2.short", "sst2.long", "sst2", "a/sst2", "a_sst2")
    found = [driver._name(Run(name, "mezo", (1e-6,), 0)) for name in names]
    assert len(set(found)) == len(names)
    assert not any(set("/\\.") & set(name.split("-mezo-")[0]) for name in found)


def test_a_plan_s_configuration_knows_every_row() -> None:
    task = load_task("sst2")
    plans = [Plan(task, "model", Split(TRAIN, OTHERS, test), Settings()) for test in (OTHERS, turned(OTHERS))]
    one, other = (plan.configuration() for plan in plans)
    assert {name for name in one if one[name] != other[name]} == {"test rows"}
    assert all(METHODS[name].about for name in METHODS)
