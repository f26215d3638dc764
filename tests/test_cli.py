"""The command line: what becomes a flag, what is printed where, what is written, what it costs to start."""

from __future__ import annotations

import io
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from screens import COLOURS, left_on_screen
from zoreward.cli import main
from zoreward.config import ZOArguments
from zoreward.records import Term, Update
from zoreward.registry import Entry, describe_objective, list_objectives
from zoreward.scoring.requests import metric_name

REWARDS = '''
import signal
from typing import Callable, Literal

CALLS = []

def share(predictions, references):
    return sum(references) / len(references)

def chosen(predictions, *, value: float = 0.5, sign: Literal["plus", "minus"] = "plus", twice: bool = False,
           extra: list[float] | None = None, how: Callable | None = None):
    """A number made of its options.

    Args:
        value: what [it] starts from
    """
    print("a stray line")
    return (value * (2 if twice else 1) + sum(extra or [])) * (1 if sign == "plus" else -1)

def right(logprobs, references):
    return [float(row[index]) for row, index in zip(logprobs, references)]

def weighed(predictions, *, weight: int = 1):
    return weight

def fails_late(predictions):
    CALLS.append(1)
    if len(CALLS) > 5:
        raise ValueError("out of luck")
    return float(len(CALLS) % 2)

def interrupted(predictions):
    CALLS.append(1)
    if len(CALLS) > 5:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    return float(len(CALLS) % 2)
'''


@pytest.fixture
def folder(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the commands run: a model, rows and objectives."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(tiny_model_dir, target_is_directory=True)
    (tmp_path / "rewards.py").write_text(REWARDS)
    good, bad = ["good", "great", "lovely"], ["bad", "awful", "dull"]
    rows = [{"sentence": f"a {word} film", "label": int(word in good)} for word in good + bad]
    for name, some in (("train", rows * 2), ("dev", rows[:5])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    return tmp_path


PROMPT = ["--template", "{sentence} it was", "--choice", " terrible", "--choice", " great"]
EVAL = ["--model", "model", "--data", "dev.jsonl", *PROMPT]
TUNE = ["--model", "model", "--data", "train.jsonl", *PROMPT, "--output", "run"]


def last_object(out: str) -> dict:
    return json.loads(out.splitlines()[-1])


def steps_in(journal: Path) -> int:
    """How many updates a journal holds."""
    return sum("terms" in json.loads(line) for line in journal.read_text().splitlines())


def test_help_imports_nothing_heavy() -> None:
    script = """
import sys
from zoreward.cli import main
lines = "--help", "--version", "tune --help", "tune f1 --help", "eval f1 -h", "bench --help", "win-rate -h"
lines += ("compare -h", "worker -h")
for words in (*lines, "objectives"):
    words = words.split()
    assert main(words) == 0, words
    heavy = {"torch", "numpy", "transformers", "sklearn", "datasets", "pandas", "yaml"} & set(sys.modules)
    assert not heavy, (words, heavy)
    unused = {"zoreward.methods", "zoreward.journal", "zoreward.bench"} & set(sys.modules)
    assert not unused or words[0] not in ("--help", "--version", "tune"), (words, unused)
"""
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    import zoreward

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"zoreward {zoreward.__version__}\n"


def help_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main([*words, "--help"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return " ".join(out.replace("│", " ").split())


def test_help_of_a_command_shows_the_objective_s_options(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("tune", "eval"):
        text = help_of([verb, "f1"], capsys)
        assert "--average" in text and "[default: binary]" in text
        assert "--pos-label" in text
        assert "--average" not in help_of([verb, "accuracy"], capsys)


@pytest.mark.parametrize(
    "entry",
    [pytest.param(entry, marks=() if n % 8 == 0 else pytest.mark.slow) for n, entry in enumerate(list_objectives())],
    ids=lambda entry: entry.name,
)
def test_every_objective_has_its_command(entry: Entry, capsys: pytest.CaptureFixture[str]) -> None:
    found = describe_objective(entry.name)
    text = help_of(["tune", entry.name], capsys)
    for option in found.options:
        assert f"--{option.name.replace('_', '-')}"[:12] in text  # a flag with its --no- is cut to its column


def test_the_short_help_has_what_people_need_and_says_how_much_more_there_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    short = {}
    for name, flag in (("f1", "-h"), ("f1", "--help"), ("reward-model", "-h")):
        assert main(["tune", name, flag]) == 0
        out = capsys.readouterr().out
        short[name, flag] = set(re.findall(r"^│ (?:\*  | {0,3})(--[a-z-]+) ", out, flags=re.MULTILINE)), out
    few, text = short["f1", "-h"]
    all_of_them, full = short["f1", "--help"]
    assert {"--model", "--data", "--choice", "--steps", "--output", "--average"} <= few < all_of_them
    assert "--anchor" in all_of_them and "more options" not in full
    more = re.search(r"--help lists (\d+) more options\.", text)
    assert more and abs(int(more[1]) - len(all_of_them) + len(few)) <= 5  # the longest flags are cut
    of_texts = short["reward-model", "-h"][0]
    assert "--max-new-tokens" in of_texts - few and "--choice" in few - of_texts


def test_help_of_tune_shows_own_options_aliases_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(["tune", "accuracy"], capsys)
    flags = {"choices": "--choice", "max_completion_length": "--max-new-tokens"}
    for name in ZOArguments.__dataclass_fields__:
        assert flags.get(name, "--" + name.replace("_", "-")) + " " in text
    for default in (
        "--normalize none 1e-6.",
        "Default: 1000; with --max-forwards",
        "[default: 16]",
        "[default: constant]",
    ):
        assert default in text
    for panel in ("Model and data", "Prompt", "Tuning", "Run"):
        assert f"─ {panel} ─" in text
    assert "Also --learning-rate." in text


def test_defaults_are_those_of_the_trainer(folder: Path) -> None:
    """What the help promises is written down by hand there; the trainer has the last word."""
    from zoreward.cli.tune import make_command
    from zoreward.registry import describe_objective
    from zoreward.trainer import ZOConfig

    theirs = ZOConfig("run")
    assert theirs.max_steps == 1000  # of which the help speaks; with --max-forwards it depends
    command = make_command("f1", describe_objective("f1"))
    for name, parameter in command.__signature__.parameters.items():
        if (
            hasattr(theirs, name)
            and parameter.default is not parameter.empty
            and name not in ("eval_steps", "device", "eval_batch_size", "max_steps")
        ):
            default = getattr(theirs, name)
            expected = [] if name == "report_to" and default in ([], ["none"]) else getattr(default, "value", default)
            assert ([] if parameter.default == "none" else parameter.default) == expected, name


def test_an_objective_s_options_reach_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(["eval", "./rewards.py:chosen"], capsys)
    assert "what [it] starts from" in text  # square brackets are no markup
    assert "--how" not in text

    chosen = ["eval", "./rewards.py:chosen", *EVAL, "--json"]
    for words, score in [
        ([], 0.5),
        (["--value", "3"], 3.0),
        (["--value", "3", "--twice"], 6.0),
        (["--no-twice", "--sign", "minus"], -0.5),
        (["--extra", "1", "--extra", "0.25"], 1.75),
    ]:
        assert main([*chosen, *words]) == 0
        assert last_object(capsys.readouterr().out)["score"] == score


def test_an_option_with_a_column_s_name_has_to_be_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"sentence": "a film", "label": 0, "weight": 9}]
    (folder / "dev.jsonl").write_text(json.dumps(rows[0]))
    assert main(["eval", "./rewards.py:weighed", *EVAL, "--json"]) == 2
    assert "'weight' is an option of objective 'weighed' and also a column" in capsys.readouterr().err
    # given as it is by default: still given
    assert main(["eval", "./rewards.py:weighed", *EVAL, "--json", "--weight", "1"]) == 0
    assert last_object(capsys.readouterr().out)["score"] == 1


def test_eval_prints_one_object_and_nothing_else(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "./rewards.py:share", *EVAL, "--json"]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 1
    result = json.loads(out)
    assert result.pop("seconds") > 0
    error = result.pop("standard_error")
    assert 0 < error < 0.5
    told = {"objective": "share", "score": 0.6, "rows": 5, "truncated": 0, "majority": 0.6, "model": "model"}
    assert result == told

    assert main(["eval", "./rewards.py:chosen", *EVAL]) == 0
    out, err = capsys.readouterr()
    assert "a stray line" in err and "a stray line" not in out
    assert "0.5000" in out


def test_eval_counts_truncated_prompts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # <end> a good film it was + great: 7 tokens
    assert main(["eval", "accuracy", *EVAL, "--json", "--max-length", "7"]) == 0
    assert last_object(capsys.readouterr().out)["truncated"] == 0
    assert main(["eval", "accuracy", *EVAL, "--json", "--max-length", "5"]) == 0
    assert last_object(capsys.readouterr().out)["truncated"] == 5


def test_tune_end_to_end(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate = ["eval", "./rewards.py:right", *EVAL, "--json"]
    assert main(evaluate) == 0
    untuned = last_object(capsys.readouterr().out)["score"]

    options = ["--steps", "5", "--eval-every", "2", "--lr", "3e-3", "--eps", "1e-2", "--batch-size", "4", "--seed", "3"]
    words = ["tune", "./rewards.py:right", *TUNE, "--eval-data", "dev.jsonl", "--keep", "last", *options, "--json"]
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1
    result = json.loads(out)
    names = ["objective", "score", "best", "best_step", "rewinds", "stopped", "peak_gb", "kept", "steps", "seconds"]
    names += ["output"]
    assert list(result) == names
    assert (result["objective"], result["steps"], result["output"]) == ("right", 5, "run")
    assert "memory: weights 0.0703 MB + scratch 0.141 MB + activations about " in err  # a couple's copies are kept
    dev = [float(line.split("dev score ")[1].split(" ")[0]) for line in err.splitlines() if "dev score " in line]
    assert len(dev) == 4  # before, after 2 and 4 steps, at the end
    assert dev[0] == pytest.approx(untuned, abs=5e-5)  # printed with four decimals
    assert dev[-1] == pytest.approx(result["score"], abs=5e-5)
    assert max(dev) == pytest.approx(result["best"], abs=5e-5)

    # The saved model is the tuned one: it scores what the run said, and not what the untuned one did.
    assert main([*evaluate, "--model", "run/model"]) == 0
    # Same weights, rows and code; 1e-6 is ten float32 roundings of a mean log-probability.
    assert last_object(capsys.readouterr().out)["score"] == pytest.approx(result["score"], rel=1e-6)
    assert result["score"] != pytest.approx(untuned, rel=1e-3)

    config = yaml.safe_load((folder / "run" / "config.yaml").read_text())
    assert config["objective"] == "./rewards.py:right"
    assert config["choices"] == [" terrible", " great"]
    assert (config["max_steps"], config["learning_rate"], config["eps"], config["seed"]) == (5, 3e-3, 1e-2, 3)
    assert config["weight_decay"] == 0.0 and config["max_length"] is None
    assert steps_in(folder / "run" / "journal.jsonl") == 5


def test_tune_takes_transformers_names_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = ["--steps", "2", "--lr", "1e-3", "--batch-size", "4", "--output", "short"]
    long = ["--max-steps", "2", "--learning-rate=1e-3", "--per-device-train-batch-size", "4", "--output-dir", "long"]
    data = ["--model", "model", "--data", "train.jsonl", *PROMPT]
    for words in (short, long):
        assert main(["tune", "f1", *data, *words, "--average", "macro", "--json"]) == 0
        result = last_object(capsys.readouterr().out)
        assert result["score"] is None and result["best"] is None  # no dev rows
    configs = [yaml.safe_load((folder / name / "config.yaml").read_text()) for name in ("short", "long")]
    assert [config.pop("output") for config in configs] == ["short", "long"]
    assert configs[0] == configs[1]
    assert (configs[0]["max_steps"], configs[0]["average"]) == (2, "macro")
    assert "pos_label" not in configs[0]  # it was not given: the run has the objective's own


def test_an_objective_s_options_reach_it_when_tuning(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--steps", "1", "--value", "3", "--eval-data", "dev.jsonl"]
    assert main(["tune", "./rewards.py:chosen", *TUNE, *options]) == 0
    assert "3.0000 → 3.0000, best 3.0000" in capsys.readouterr().out


def test_a_run_that_fails_later_keeps_its_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # one call tries the objective, each step takes two: the third step fails
    assert main(["tune", "./rewards.py:fails_late", *TUNE, "--steps", "9"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "error: objective 'fails_late' raised ValueError: out of luck\nhint: " in err
    assert "Traceback" not in err
    assert (folder / "run" / "config.yaml").exists()
    assert steps_in(folder / "run" / "journal.jsonl") == 2


def test_ctrl_c_is_130(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "./rewards.py:interrupted", *TUNE, "--steps", "9"]) == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert "interrupted after step 2" in err and "Traceback" not in err
    assert steps_in(folder / "run" / "journal.jsonl") == 2


def test_strangers_objectives_are_listed_and_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    info = tmp_path / "strange_pkg-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: strange-pkg\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[zoreward.objectives]\nstrange = strange_module:strange\n")
    (tmp_path / "strange_module.py").write_text("raise RuntimeError('was loaded')\n")
    monkeypatch.syspath_prepend(tmp_path)

    text = help_of(["tune"], capsys)
    assert "strange from strange-pkg" in text
    assert "accuracy Share of rows whose most likely choice is the right one." in text

    assert main(["objectives", "--json"]) == 0
    listed = {row["name"]: row for row in last_object(capsys.readouterr().out)["objectives"]}
    assert (listed["strange"]["distribution"], listed["strange"]["needs"]) == ("strange-pkg", None)
    assert (listed["f1"]["distribution"], listed["f1"]["needs"]) == ("zoreward", "choices")

    # The broken plugin breaks its own command, by name, and no other.
    assert main(["tune", "strange", "--help"]) == 2
    assert "'strange' of 'strange-pkg' cannot be loaded: RuntimeError: was loaded" in capsys.readouterr().err
    assert main(["tune", "f1", "--help"]) == 0


def progress(terminal: bool, width: int = 150, steps: int = 8) -> tuple:
    from rich.console import Console

    from zoreward.cli.progress import ProgressCallback

    trainer = SimpleNamespace(
        args=SimpleNamespace(max_steps=steps, completions_every=0),
        method_state=SimpleNamespace(silent=0, step=0, unscored=0),
        last_step=None,
        keeper=SimpleNamespace(seconds_left=math.inf),
    )
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=terminal, width=width, color_system=None)
    return trainer, ProgressCallback(trainer, console), screen


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_tells_score_best_silence_pace_and_time_left(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    trainer, callback, screen = progress(terminal)
    monkeypatch.setattr("zoreward.cli.progress.time.perf_counter", lambda: now[0])
    state = SimpleNamespace(global_step=0, max_steps=8)
    with callback:
        for metrics in ({"eval_score": 0.25}, {"eval_score": 0.75}, {"eval_score": 0.5}):
            callback.on_evaluate(None, state, None, metrics=metrics)
        for step, scores in enumerate([(0.1, 0.3), (0.6, 0.6)], 1):
            callback.on_step_begin(None, state, None)
            now[0] += 2.5
            state.global_step = step
            trainer.last_step = SimpleNamespace(scores=scores, update=Update(0.0, (Term(step, 0.5 * (step - 1)),), 0))
            trainer.method_state = SimpleNamespace(silent=step - 1, step=step, unscored=0)
            callback.on_step_end(None, state, None)
        callback.on_log(None, state, None, logs={"score": 0.4})
    text = screen.getvalue()
    # scores 0.2 and 0.6; one silent step of two; six steps of 2.5 s to go
    assert "score 0.4000 · best dev 0.7500 · no signal 50% · 2.50 s/step · 0:00:15 left" in text
    assert "no weight moved" not in callback.status(2, 8)
    trainer.keeper.seconds_left = 7.0  # where --max-seconds ends it before that
    assert callback.status(2, 8).endswith(" · 2.50 s/step · 0:00:07 left")
    assert ("2/8" in text) and (("step 2/8 ·" in text) is not terminal)
    assert text.count("dev score 0.5000 · best 0.7500") == 1


@pytest.mark.parametrize(
    ("width", "told", "left_out"),
    [
        (40, "score 0.", ["best dev"]),
        (60, "score 0.4000 · 0:41:40 left", ["best dev", "no signal", "s/step"]),
        (80, "score 0.4000 · best dev 0.7500 · 0:41:40 left", ["no signal", "s/step"]),
        (120, "score 0.4000 · best dev 0.7500 · no signal 0% · 5.00 s/step · 0:41:40 left", []),
    ],
)
def test_a_narrow_terminal_keeps_steps_and_bar_and_shortens_the_text(
    width: int, told: str, left_out: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter([0.0, 5.0, *[5.0] * 999])
    trainer, callback, screen = progress(True, width, steps=1000)
    monkeypatch.setattr("zoreward.cli.progress.time.perf_counter", lambda: next(now))
    state = SimpleNamespace(global_step=500, max_steps=1000)
    with callback:
        callback.on_evaluate(None, state, None, metrics={"eval_score": 0.75})
        callback.on_step_begin(None, state, None)
        trainer.last_step = SimpleNamespace(scores=(0.3, 0.5), update=Update(0.0, (Term(1, 0.5),), 0))
        trainer.method_state = SimpleNamespace(silent=0, step=2, unscored=0)
        callback.on_step_end(None, state, None)

    line = left_on_screen(screen.getvalue())[-1]
    assert len(line) <= width and re.match(r"step +500/1000 [━╸╺]+ ", COLOURS.sub("", line))
    assert told in line and not [part for part in left_out if part in line]


@pytest.mark.parametrize("name", ["dev score", "no_signal", "a\nstep 9 · dev score 1.0000 · best"])
def test_a_metric_of_a_reward_stays_in_its_line_and_has_a_name_of_its_own(name: str) -> None:
    _, callback, screen = progress(terminal=False)
    metrics = {"eval_score": 0.5, f"eval_{metric_name(name)}": 1.0}
    callback.on_evaluate(None, SimpleNamespace(global_step=2), None, metrics=metrics)
    told = " ".join(name.replace("_", "-").split())
    assert screen.getvalue() == f"step 2 · dev score 0.5000 · best 0.5000 · metric/{told} 1\n"


@pytest.mark.parametrize("update", [Update(0.0, (), 0), Update(0.0, (Term(1, 0.0), Term(2, 0.0)), 0)])
def test_a_score_that_rises_while_no_weight_moves_says_so(update: Update) -> None:
    trainer, callback, _ = progress(False)
    for step in (1, 2, 3):
        trainer.last_step = SimpleNamespace(scores=(0.1 * step,), update=update)
        callback.on_step_end(None, SimpleNamespace(global_step=step, max_steps=8), None)
    assert "score 0.2000 · no signal 0% · no weight moved in 3 steps" in callback.status(3, 8)
    trainer.last_step = SimpleNamespace(scores=(0.5,), update=Update(0.25, (), 0))  # weight decay moves them too
    callback.on_step_end(None, SimpleNamespace(global_step=4, max_steps=8), None)
    assert "no weight moved" not in callback.status(4, 8)


@pytest.mark.parametrize(("steps", "lines"), [(1, [1]), (3, [1, 3]), (10, [1, 10]), (12, [1, 10, 12])])
def test_the_first_and_the_last_step_have_a_line(
    steps: int, lines: list[int], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", "neg-cross-entropy", *TUNE, "--steps", str(steps), "--lr", "1e-3", "--eps", "1e-2"]) == 0

    printed = re.findall(rf"^step (\d+)/{steps} · score -\d", capsys.readouterr().err, re.MULTILINE)
    assert list(map(int, printed)) == lines


def test_a_run_that_moved_nothing_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["tune", "neg-cross-entropy", *TUNE, "--steps", "2", "--test-data", "dev.jsonl", "--test-rows", "2"]
    assert main([*words, "--lr", "0"]) == 0
    out, err = capsys.readouterr()
    assert "no step moved a weight: they are those of the base" in out
    # Its test rows are drawn: the first ones, which `eval --limit` takes, are others.
    assert "2 test, drawn as `eval --test-rows 2` draws them (--limit takes the first ones)" in err
    assert main(["eval", "neg-cross-entropy", *EVAL, "--test-rows", "2", "--json"]) == 0
    out, err = capsys.readouterr()
    assert "rows: 2 drawn of 5, as `tune --test-rows 2` draws them" in err
    drawn = last_object(out)["score"]
    assert main(["eval", "neg-cross-entropy", *EVAL, "--limit", "2", "--json"]) == 0
    out, err = capsys.readouterr()
    assert "rows: the first 2\n" in err and last_object(out)["score"] != drawn
