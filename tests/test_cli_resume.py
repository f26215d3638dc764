"""Contract under test: `--resume` goes on where a command was left; Ctrl-C, SIGTERM and failures say how; `--keep best`
and `--patience` choose the step."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from transformers import TrainerControl

from zoreward.cli import main
from zoreward.journal import Journal, load_run, reopen
from zoreward.records import InputError
from zoreward.trainer import ZOConfig, ZOTrainer
from zoreward.trainer.keeper import Keeper

pytestmark = pytest.mark.usefixtures("commands_are_kept", "trials_are_kept")

OBJECTIVES = """
import json, os, signal
from pathlib import Path

CALLS = []

def plain(logprobs, references):
    return [float(row[index]) for row, index in zip(logprobs, references)]

def at_call(number, action):
    CALLS.append(1)
    if len(CALLS) == number and not Path("done").exists():
        Path("done").touch()
        action()

def _sent(name):
    os.kill(os.getpid(), getattr(signal, name))

def sigint(logprobs, references):
    at_call(6, lambda: _sent("SIGINT"))
    return plain(logprobs, references)

def sigterm(logprobs, references):
    at_call(6, lambda: _sent("SIGTERM"))
    return plain(logprobs, references)

def twice(logprobs, references):
    at_call(6, lambda: (_sent("SIGINT"), _sent("SIGINT")))
    return plain(logprobs, references)

def _raise():
    raise TimeoutError("judge is down")

def fails(logprobs, references):
    at_call(6, _raise)
    return plain(logprobs, references)

def brief(completions, log_metric=None):
    log_metric("size", sum(map(len, completions)))
    return [-float(len(text)) for text in completions]

def wave(logprobs, references, trainer_state=None):
    # dev rows are five, others six or more
    if len(references) != 5:
        return plain(logprobs, references)
    scores = json.loads(Path("scores.json").read_text())
    score = scores.pop(0)
    Path("scores.json").write_text(json.dumps(scores))
    return [score] * 5
"""
PROMPT = ["--template", "{sentence} it was", "--choice", " terrible", "--choice", " great"]
TUNE = ["--model", "model", "--data", "train.jsonl", *PROMPT, "--steps", "5", "--lr", "1e-2", "--device", "cpu"]


def filled(folder: Path, model: Path) -> None:
    """Put what the commands work with into a folder: a model, rows and objectives."""
    (folder / "model").symlink_to(model, target_is_directory=True)
    (folder / "rewards.py").write_text(OBJECTIVES)
    rows = [
        {"sentence": f"a {word} film", "label": int(n > 2)}
        for n, word in enumerate(["bad", "awful", "dull", "good", "great", "lovely"])
    ]
    for name, some in (("train", rows * 2), ("dev", rows[:5])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))


@pytest.fixture
def folder(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the commands run."""
    monkeypatch.chdir(tmp_path)
    filled(tmp_path, tiny_model_dir)
    return tmp_path


@pytest.fixture(scope="module")
def finished(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a command that nothing happened to: made once, for `whole` to copy."""
    folder = tmp_path_factory.mktemp("finished")
    filled(folder, tiny_model_dir)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["tune", "./rewards.py:plain", *TUNE, "--output", "whole"]) == 0
    return folder / "whole"


def steps(run: Path) -> list[str]:
    """The journal behind its header, which names the objective."""
    return [json.loads(line) | {"crc": ""} for line in (run / "journal.jsonl").read_text().splitlines()[1:]]


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


@pytest.fixture
def whole(folder: Path, finished: Path) -> Path:
    """A copy of the run folder of a command that nothing happened to, and that nothing has happened to since."""
    return shutil.copytree(finished, folder / "whole")


@pytest.mark.parametrize(
    ("objective", "code", "said", "done"),
    [
        ("sigint", 130, "interrupted after step 3", 3),
        pytest.param("sigterm", 130, "interrupted after step 3", 3, marks=pytest.mark.slow),
        pytest.param("twice", 130, "interrupted after step 2", 2, marks=pytest.mark.slow),
        ("fails", 1, "error: objective 'fails' raised TimeoutError: judge is down\nhint: ", 2),
    ],
)
def test_the_command_that_is_printed_goes_on(
    objective: str, code: int, said: str, done: int, whole: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    # one call tries the objective, each step takes two: call 6 is in the third step
    assert main(["tune", f"./rewards.py:{objective}", *TUNE, "--output", "left"]) == code
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before
    out, err = capsys.readouterr()
    assert said in err and "Traceback" not in err and out == ""
    assert load_run("left").n_steps == done
    assert not (folder / "left" / "model").exists()
    [printed] = [line for line in err.splitlines() if line.startswith("resume: ")]
    words = shlex.split(printed.removeprefix("resume: "))
    assert words[0] == "zoreward" and words[-1] == "--resume"

    assert main(words[1:]) == 0

    out, err = capsys.readouterr()
    assert f"resuming after step {done}" in err and "5 steps in" in out
    assert steps(folder / "left") == steps(whole)
    assert weights(folder / "left") == weights(whole)
    assert sorted(path.name for path in (folder / "left").iterdir()) == [
        "config.yaml", "journal.jsonl", "model", "notes.jsonl", "report.html", "trajectory.safetensors",
    ]  # fmt: skip


def test_a_finished_run_says_so_and_a_model_that_is_missing_is_made(
    whole: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = ["tune", "./rewards.py:plain", *TUNE, "--output", "whole", "--resume", "--json"]
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    capsys.readouterr()
    assert main(again) == 0
    out, err = capsys.readouterr()
    assert "is finished" in err
    assert json.loads(out.splitlines()[-1])["steps"] == 5
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before

    expected = weights(whole)
    (whole / "model").rename(whole / "model.part")  # as a kill while it is written leaves it
    assert main(again) == 0
    assert weights(whole) == expected and not (whole / "model.part").exists()


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGE = {
    "emptied": lambda run: [path.unlink() for path in (run / "model").iterdir()],
    "half-deleted": lambda run: (run / "model" / "tokenizer.json").unlink(),
    "cut off": lambda run: os.truncate(run / "model" / "model.safetensors", 1000),
    "a pipe": lambda run: _pipe(run / "model" / "model.safetensors"),
    "a stranger's file": lambda run: (run / "model" / "adapter_config.json").write_text("{}"),
    "no card": lambda run: (run / "model" / "README.md").unlink(),
    "a record of nothing": lambda run: (run / "model" / "zoreward.json").write_text("[" * 10_000),
    "a record that is a pipe": lambda run: _pipe(run / "model" / "zoreward.json"),
    "a file in its place": lambda run: (shutil.rmtree(run / "model"), (run / "model").write_text("mine")),
    "moved aside": lambda run: (run / "model").rename(run / "model.old"),
    "a part beside it": lambda run: shutil.copytree(run / "model", run / "model.part"),
    "no trajectory": lambda run: (run / "trajectory.safetensors").unlink(),
    "half a trajectory": lambda run: os.truncate(run / "trajectory.safetensors", 100),
    "a trajectory that is a pipe": lambda run: _pipe(run / "trajectory.safetensors"),
    "options that are a pipe": lambda run: _pipe(run / "config.yaml"),
    "options that were cut off": lambda run: os.truncate(run / "config.yaml", 40),
    "a pipe in the place of a part": lambda run: (_pipe(run / "config.yaml"), os.mkfifo(run / "config.yaml.part")),
}
_QUICK = (
    "half-deleted",
    "a stranger's file",
    "a pipe",
    "moved aside",
    "half a trajectory",
    "a pipe in the place of a part",
)


@pytest.mark.parametrize("how", [how if how in _QUICK else pytest.param(how, marks=pytest.mark.slow) for how in DAMAGE])
def test_what_is_wrong_with_a_finished_run_is_made_good(
    how: str, whole: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def files() -> dict[str, bytes]:
        return {str(path.relative_to(whole)): path.read_bytes() for path in whole.rglob("*") if path.is_file()}

    again = ["tune", "./rewards.py:plain", *TUNE, "--output", "whole", "--resume"]
    before = files()
    DAMAGE[how](whole)
    assert main(again) == 0
    assert files() == before
    capsys.readouterr()
    assert main(again) == 0
    assert "is finished" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("first", "then"),
    [
        pytest.param(["--steps", "3", "--keep", "last"], ["--steps", "5", "--keep", "last"], marks=pytest.mark.slow),
        pytest.param(["--keep", "last"], ["--keep", "best"], marks=pytest.mark.slow),
    ],
)
def test_a_model_of_an_earlier_end_is_not_taken_for_the_last(
    first: list[str], then: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["tune", "./rewards.py:plain", *TUNE, "--eval-data", "dev.jsonl", "--eval-every", "1", "--lr", "2e-2"]
    assert main([*run, *first, "--output", "run"]) == 0
    stale = weights(folder / "run")
    with monkeypatch.context() as patched:
        patched.setattr(ZOTrainer, "save_model", _killed)
        with pytest.raises(Killed):
            main([*run, *then, "--output", "run", "--resume"])
    capsys.readouterr()
    assert main([*run, *then, "--output", "run", "--resume"]) == 0
    assert "is finished\n" not in capsys.readouterr().err
    assert main([*run, *then, "--output", "other"]) == 0
    assert weights(folder / "run") == weights(folder / "other") != stale


class Killed(BaseException):
    """What nobody catches, as a kill is what nobody catches."""


def _killed(self: ZOTrainer, output: str) -> None:
    raise Killed


def test_the_same_is_told_of_a_run_that_was_resumed_and_of_one_that_is_finished(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--prompt", "sentence", "--max-new-tokens", "2", "--num-directions", "2", "--eval-data", "dev.jsonl"]
    few = ["--model", "model", "--data", "train.jsonl", "--steps", "2", "--device", "cpu", "--test-data", "dev.jsonl"]
    tune = ["tune", "./rewards.py:brief", *few, *words, "--json", "--output"]

    def told(*more: str) -> dict:
        capsys.readouterr()
        assert main([*tune, *more]) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1]) | {"seconds": 0, "output": ""}

    whole = told("whole")
    assert {"length", "distinct_2", "metric/size", "stopped", "peak_gb", "kept", "test", "test_rows"} <= whole.keys()
    with monkeypatch.context() as patched:
        patched.setattr(ZOTrainer, "save_model", _killed)
        with pytest.raises(Killed):
            main([*tune, "left"])
    resumed, finished = told("left", "--resume"), told("left", "--resume")
    assert list(whole) == list(resumed) == list(finished)
    assert whole == resumed == finished


def test_of_two_commands_that_begin_in_one_folder_the_second_changes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = {}

    def overtaken(self: ZOTrainer) -> None:  # the other one begins while this one gets ready
        if not made:
            made["journal"] = Journal("run", {"fingerprint": "ab" * 32})
            Path("run/config.yaml").write_text("seed: 7\n")
        begin(self)

    begin = ZOTrainer._open_run
    monkeypatch.setattr(ZOTrainer, "_open_run", overtaken)
    for more in ([], ["--resume"]):
        made.clear()
        shutil.rmtree("run", ignore_errors=True)
        assert main(["tune", "./rewards.py:plain", *TUNE, "--output", "run", *more]) == 2
        assert "run' holds a run already" in capsys.readouterr().err
        assert sorted(path.name for path in Path("run").iterdir()) == ["config.yaml", "journal.jsonl"]
        assert Path("run/config.yaml").read_text() == "seed: 7\n"
        made["journal"].close()


def test_a_finished_run_that_another_process_is_at_work_on_is_left_alone(
    whole: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (whole / "model.part").mkdir()  # the other one is saving
    journal, _ = reopen(whole)
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    assert main(["tune", "./rewards.py:plain", *TUNE, "--output", "whole", "--resume"]) == 2
    assert "another process is at work" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before
    journal.close()


def test_edited_rewards_and_an_edited_model_are_other_runs(
    whole: Path, folder: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["tune", "./rewards.py:plain", *TUNE, "--steps", "6", "--output", "whole", "--resume"]
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    rewards, kept = folder / "rewards.py", (folder / "rewards.py").read_text()
    rewards.write_text(kept.replace("float(row[index])", "float(row[index]) * 2", 1))
    for words in (more, [*more, "--steps", "5"]):  # the second would be finished
        assert main(words) == 2
        err = capsys.readouterr().err
        assert "whole' was made with other code of the objective 'plain'" in err
        assert "hint: Put the code back as it was to go on." in err
    rewards.write_text(kept)
    (folder / "model").unlink()
    shutil.copytree(tiny_model_dir, folder / "model")
    config = json.loads((folder / "model" / "config.json").read_text())
    (folder / "model" / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.1, "architectures": None}))
    for words in (more, [*more, "--steps", "5"]):
        assert main(words) == 2
        assert "with another config of the model: rms_norm_eps=1e-06, not 0.1" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()} == before
    # What says nothing of the scores may change.
    (folder / "model" / "config.json").write_text(json.dumps({**config, "transformers_version": "5.17.0"}))
    rewards.write_text(kept + "\ndef another(completions):\n    return 1.0\n")
    assert main(more) == 0


def test_a_model_comes_without_a_pickle_and_with_a_true_card(whole: Path, folder: Path) -> None:
    for tune in ([], ["--tune", "lora"], ["--tune", "lora", "--merge"]):
        output = "-".join(["card", *tune])
        more = ["--eval-data", "dev.jsonl", "--keep", "last", "--seed", "3", "--also", "accuracy=0.5", "--steps", "2"]
        assert main(["tune", "./rewards.py:plain", *TUNE, *more, *tune, "--output", output]) == 0
        for path in (folder / output / "model").iterdir():
            assert path.suffix in (".json", ".md", ".safetensors", ".jinja"), path
            assert path.read_bytes()[:2] not in (b"PK", b"\x80\x04"), path
        card = (folder / output / "model" / "README.md").read_text()
        run = load_run(folder / output)
        assert "| objective | `plain + 0.5*accuracy` plain.weight=1.0, accuracy.weight=0.5 |" in card
        assert "| seed | 3 |" in card and "| steps | 2 |" in card and "`spsa`" in card
        assert "| rows to tune on | 12, train.jsonl |" in card and "| dev rows | 5, dev.jsonl |" in card
        assert f"{run.evaluations[0][1]:.6g} before step 1, {run.evaluations[-1][1]:.6g} after step 2" in card
        assert "    zoreward tune ./rewards.py:plain --model model" in card and f"--output {output}" in card
        for false in ("Adam", "from scratch", "More Information Needed", "[optional]", "Trainer"):
            assert false not in card
        kinds = {0: "a whole model", 2: "an adapter", 3: "a model with its adapter merged in"}
        assert f"This is {kinds[len(tune)]}, tuned" in card
        assert ('library_name: "peft"' in card) == (len(tune) == 2)


@pytest.mark.slow
def test_more_steps_go_on_and_other_options_are_refused(
    whole: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    for words, error in (
        (["--eps", "0.5"], "eps=0.001, not 0.5"),
        (["--template", "{sentence} is"], "template="),
        (["--steps", "2"], "has done 5 steps, more than 2"),
    ):
        capsys.readouterr()
        assert main(["tune", "./rewards.py:plain", *TUNE, *words, "--output", "whole", "--resume"]) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("error:", "hint:"))]
        assert len(lines) == 2 and error in lines[0]
        assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before
    assert main(["tune", "./rewards.py:plain", *TUNE, "--steps", "8", "--output", "whole", "--resume"]) == 0
    assert main(["tune", "./rewards.py:plain", *TUNE, "--steps", "8", "--output", "long"]) == 0
    assert weights(whole) == weights(folder / "long")


def test_a_run_that_was_killed_before_its_first_step_begins(whole: Path, folder: Path) -> None:
    (folder / "left").mkdir()
    (folder / "left" / "config.yaml").write_text("objective: ./rewards.py:plain\n")
    assert main(["tune", "./rewards.py:plain", *TUNE, "--output", "left", "--resume"]) == 0
    assert (folder / "left" / "journal.jsonl").read_bytes() == (whole / "journal.jsonl").read_bytes()


def test_the_best_step_is_kept_and_patience_ends_the_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dev = ["--eval-data", "dev.jsonl", "--eval-every", "1", "--patience", "2", "--keep", "best"]
    # the trial has more rows; then before step 1, and after each step
    (folder / "scores.json").write_text(json.dumps([0.1, 0.2, 0.4, 0.3, 0.4, 0.9]))
    tune = ["tune", "./rewards.py:wave", *TUNE, *dev, "--steps", "9", "--output"]
    assert main([*tune, "run", "--json"]) == 0
    out, _ = capsys.readouterr()
    told = json.loads(out.splitlines()[-1])
    assert (told["steps"], told["kept"], told["best"], told["score"]) == (4, 2, 0.4, 0.4)
    assert told["stopped"] == "patience"
    assert main(["replay", "run", "--model", "model", "--step", "2", "--output", "two", "--device", "cpu"]) == 0
    assert weights(folder / "run") == (folder / "two" / "model.safetensors").read_bytes()

    # Left between two evaluations it counts on, and does not score anew what it has scored.
    lines = (folder / "run" / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "left").mkdir()
    (folder / "left" / "journal.jsonl").write_bytes(b"".join(lines[:8]))  # up to the evaluation after step 3
    (folder / "scores.json").write_text(json.dumps([0.4, 0.9]))
    assert main([*tune, "left", "--resume"]) == 0
    assert "the model of step 2 is in left/model" in capsys.readouterr().out
    assert b"".join(lines) == (folder / "left" / "journal.jsonl").read_bytes()
    assert weights(folder / "left") == weights(folder / "run")


def test_with_dev_rows_the_best_step_is_kept_and_step_0_counts(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tune = ["tune", "./rewards.py:wave", *TUNE, "--eval-data", "dev.jsonl", "--steps", "25", "--set", "save_steps=7"]
    tune += ["--max-rewinds", "0", "--output"]
    # Before step 1, after every second step of 25, and after the last.
    risen_and_fallen = [0.1, 0.2, 0.5, *[0.3] * 11]
    (folder / "scores.json").write_text(json.dumps(risen_and_fallen))
    assert main([*tune, "run"]) == 0
    run = load_run("run")
    assert [step for step, _ in run.evaluations] == [*range(0, 25, 2), 25]
    out, err = capsys.readouterr()
    assert "snapshot" not in err  # there is one of a later step
    assert out.splitlines()[-1] == (
        "kept: step 4, dev score 0.5000, the best; another: zoreward replay run --step N --model model --output FOLDER"
    )
    assert main(["replay", "run", "--model", "model", "--step", "4", "--output", "four", "--device", "cpu"]) == 0
    assert weights(folder / "run") == (folder / "four" / "model.safetensors").read_bytes()
    assert yaml.safe_load(Path("run/config.yaml").read_text())["keep"] == "best"

    # The same command ends with the same bytes where it was left, and leaves a finished run alone.
    lines = (folder / "run" / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "left").mkdir()
    (folder / "left" / "journal.jsonl").write_bytes(b"".join(lines[:6]))  # before the evaluation after step 4
    (folder / "scores.json").write_text(json.dumps(risen_and_fallen[2:]))
    assert main([*tune, "left", "--resume"]) == 0
    assert b"".join(lines) == (folder / "left" / "journal.jsonl").read_bytes()
    assert weights(folder / "left") == weights(folder / "run")
    capsys.readouterr()
    assert main([*tune, "left", "--resume"]) == 0
    assert "the run in left is finished" in capsys.readouterr().err

    (folder / "scores.json").write_text(json.dumps([0.5, *[0.4] * 13]))
    assert main([*tune, "worse", "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["kept"], told["best"], told["score"], told["steps"]) == (0, 0.5, 0.4, 25)
    assert weights(folder / "worse") == (folder / "model" / "model.safetensors").read_bytes()
    assert main([*tune, "worse", "--resume"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("kept: step 0, dev score 0.5000, the base: no step scores better; another: zoreward replay")


def test_the_last_step_is_kept_where_that_is_asked_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "scores.json").write_text(json.dumps([0.5, 0.4]))
    words = ["tune", "./rewards.py:wave", *TUNE, "--eval-data", "dev.jsonl", "--steps", "20", "--output", "run"]
    assert main([*words, "--keep", "last"]) == 0
    assert [step for step, _ in load_run("run").evaluations] == [0, 20]
    assert capsys.readouterr().out.splitlines()[-1].startswith("kept: step 20, dev score 0.4000, the last; another: ")
    assert main(["replay", "run", "--model", "model", "--output", "all", "--device", "cpu"]) == 0
    assert weights(folder / "run") == (folder / "all" / "model.safetensors").read_bytes()


def test_patience_needs_no_word_on_how_often_dev_rows_are_scored(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["tune", "./rewards.py:wave", *TUNE, "--eval-data", "dev.jsonl", "--steps", "20", "--patience", "2"]
    for keep in ("best", "last"):
        (folder / "scores.json").write_text(json.dumps([0.1, 0.5, 0.4, 0.3]))
        assert main([*words, "--keep", keep, "--output", keep, "--json"]) == 0
        told = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert (told["steps"], told["stopped"], told["kept"]) == (6, "patience", 2 if keep == "best" else 6)


def test_max_seconds_ends_a_run_that_then_goes_on_as_if_nothing_had_happened(
    whole: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tune = ["tune", "./rewards.py:plain", *TUNE, "--output", "left"]
    assert main([*tune, "--max-seconds", "1e-9", "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["steps"], told["kept"], told["stopped"]) == (1, 1, "max_seconds")
    assert main(["replay", "whole", "--model", "model", "--step", "1", "--output", "one", "--device", "cpu"]) == 0
    assert weights(folder / "left") == (folder / "one" / "model.safetensors").read_bytes()
    assert main([*tune, "--max-seconds", "2e-9", "--resume"]) == 0
    assert "stopped after 2 steps: so many seconds had passed (--max-seconds)\n" in capsys.readouterr().out
    assert main([*tune, "--max-seconds", "600", "--resume", "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["steps"], told["stopped"]) == (5, None)
    assert (folder / "left" / "journal.jsonl").read_bytes() == (whole / "journal.jsonl").read_bytes()
    assert weights(folder / "left") == weights(whole)


def test_dev_rows_that_are_scored_at_the_end_are_scored_where_the_seconds_end(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for between, scored in (([], [0, 1]), (["--eval-every", "2"], [0])):  # the latter as in a run that goes on
        words = [*TUNE, "--eval-data", "dev.jsonl", *between, "--max-seconds", "1e-9", "--output", "run"]
        assert main(["tune", "./rewards.py:plain", *words]) == 0
        assert [step for step, _ in load_run("run").evaluations] == scored
        shutil.rmtree("run")


def test_seconds_count_from_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([100.0, 110.0, 112.0, 113.0, 114.5, 115.0])  # as the run begins; then as each step begins and ends
    monkeypatch.setattr("zoreward.trainer.keeper.time", SimpleNamespace(perf_counter=lambda: next(now)))
    keeper, args = Keeper(), SimpleNamespace(max_seconds=5, save_strategy="no", save_steps=0, eval_strategy="no")
    ended = []
    keeper.on_train_begin(args, SimpleNamespace(best_metric=None), None)
    for step in (1, 2):
        control, state = TrainerControl(), SimpleNamespace(global_step=step, max_steps=9)
        keeper.on_step_begin(args, state, control)
        keeper.on_step_end(args, state, control)
        ended.append(control.should_training_stop)
    assert ended == [False, False] and keeper.stopped_by is None, "4.5 seconds"
    assert keeper.seconds_left == 0.5
    keeper.on_step_end(args, state, control)
    assert control.should_training_stop and keeper.stopped_by == "max_seconds"


def test_max_forwards_end_a_run_that_goes_on_where_there_are_more(
    whole: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tune = ["tune", "./rewards.py:plain", *TUNE, "--output", "left"]
    assert main([*tune, "--max-forwards", "7"]) == 0
    out, err = capsys.readouterr()
    assert "of 7 forward passes 6 are for 3 steps\n" in err
    assert "stopped after 3 steps: another step would have taken more forward passes than there may be" in out
    assert main([*tune, "--max-forwards", "7", "--resume", "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["steps"], told["stopped"]) == (3, "max_forwards")
    assert main([*tune, "--max-forwards", "100", "--resume", "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["steps"], told["stopped"]) == (5, None)
    assert list(load_run("left").records()) == list(load_run("whole").records())
    assert weights(folder / "left") == weights(whole)


def test_without_steps_there_are_as_many_as_the_forward_passes_pay(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tune = ["tune", "./rewards.py:plain", *TUNE, "--eval-data", "dev.jsonl", "--output", "run", "--json"]
    words = [word for word in tune if word not in ("--steps", "5")]
    assert main([*words, "--max-forwards", "50"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    evaluations, steps = [step for step, _ in load_run("run").evaluations], told["steps"]
    assert evaluations == sorted({0, *range(-(-steps // 10), steps + 1, -(-steps // 10)), steps})
    per_score = -(-len(Path("dev.jsonl").read_text().splitlines()) // 16)
    assert 2 * steps + per_score * len(evaluations) <= 50 < 2 * (steps + 2) + per_score * (len(evaluations) + 1)
    assert yaml.safe_load(Path("run/config.yaml").read_text())["max_steps"] == steps


@pytest.mark.parametrize("seconds", ["0", "-3", "nan", "inf"])
def test_seconds_that_are_none(seconds: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "./rewards.py:plain", *TUNE, "--output", "run", "--max-seconds", seconds]) == 2
    said = "is no number that" if seconds in ("nan", "inf") else f"max_seconds={float(seconds)} is out of range"
    assert said in capsys.readouterr().err and not Path("run").exists()
    if seconds != "inf":
        with pytest.raises(InputError, match=r"max_seconds=.* is out of range"):
            ZOConfig("run", max_seconds=float(seconds))


def test_a_model_that_cannot_be_written_can_be_made_later(
    whole: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: ZOTrainer, output: str) -> None:
        Path(output).mkdir()
        Path(output, "model.safetensors").write_bytes(b"half")
        raise RuntimeError("No space left on device (os error 28)")

    run = ["tune", "./rewards.py:plain", *TUNE, "--output", "left"]
    with monkeypatch.context() as patched:
        patched.setattr(ZOTrainer, "save_model", full)
        assert main(run) == 1
    _, err = capsys.readouterr()
    assert "left/model cannot be written: No space left on device" in err and "resume: zoreward tune" in err
    assert sorted(path.name for path in (folder / "left").iterdir()) == [
        "config.yaml", "journal.jsonl", "notes.jsonl", "report.html", "trajectory.safetensors",
    ]  # fmt: skip
    assert main([*run, "--resume"]) == 0
    assert weights(folder / "left") == weights(whole)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--patience", "2"], "--patience goes by dev scores"),
        (["--keep", "best"], "--keep best goes by dev scores"),
        (["--keep", "first"], "'first' is not one of"),
        (["--resume", "--output", "train.jsonl"], "is a file"),
    ],
)
def test_options_that_do_not_go_together(
    words: list[str], error: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", "./rewards.py:plain", *TUNE, "--output", "run", *words]) == 2
    assert error in capsys.readouterr().err
    assert not os.path.exists("run")
