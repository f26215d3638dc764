"""Options that several commands share: files of options, other rows, sums, prompts to look at."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest
import torch
import yaml

from test_cli import EVAL, PROMPT, TUNE, folder, last_object  # noqa: F401  (a fixture)
from zoreward import config
from zoreward.cli import main
from zoreward.cli.prepare import select_device
from zoreward.records import ObjectiveError
from zoreward.trainer import ZOConfig

pytestmark = pytest.mark.usefixtures("folder", "commands_are_kept", "trials_are_kept")


def score_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict:
    assert main([*words, "--json"]) == 0, capsys.readouterr().err
    return last_object(capsys.readouterr().out)


def test_a_config_file_gives_defaults_and_the_command_line_wins(capsys: pytest.CaptureFixture[str]) -> None:
    names = {
        "model": "model",
        "data": "train.jsonl",
        "template": "{sentence} it was",
        "choice": [" terrible", " great"],
    }
    Path("own.yaml").write_text(yaml.safe_dump({**names, "steps": 3, "lr": 2e-3, "batch_size": 4, "eps": 0.1}))
    assert main(["tune", "accuracy", "--config", "own.yaml", "--steps", "2", "--output", "run"]) == 0
    written = yaml.safe_load(Path("run/config.yaml").read_text())
    assert (written["max_steps"], written["learning_rate"], written["eps"]) == (2, 2e-3, 0.1)
    assert written["per_device_train_batch_size"] == 4
    assert written["choices"] == [" terrible", " great"]


WRITE = ["--prompt", "sentence", "--temperature", "1", "--max-new-tokens", "2", "--num-directions", "2"]
WRITE += ["--min-p", "0.1", "--repetition-penalty", "1.1"]
KINDS = {
    "options of an objective": ["f1", "--average", "macro", "--lr", "1e-3", "--seed", "5"],
    "a sum": ["f1", "--also", "neg-cross-entropy=0.1", "--eval-data", "dev.jsonl", "--eval-every", "1"],
    "rows that are drawn": [
        "accuracy",
        "--train-rows",
        "5",
        "--dev-rows",
        "3",
        "--test-rows",
        "2",
        "--split-seed",
        "9",
    ],
    "texts": ["./rewards.py:long", *WRITE],
    "a prefix": ["accuracy", "--tune", "prefix"],
    "a method of blocks": ["neg-cross-entropy", "--method", "bcd", "--set", "data_seed=4", "--set", "adam_beta1=0.8"],
    "the best step": [
        *("neg-cross-entropy", "--eval-data", "dev.jsonl", "--eval-every", "1", "--keep", "best", "--patience", "2"),
        *("--lr-scheduler-type", "cosine", "--warmup-steps", "1", "--dtype", "bfloat16", "--noise", "low-rank"),
    ],
}
_QUICK = ("a sum", "texts")


@pytest.mark.parametrize("kind", [k if k in _QUICK else pytest.param(k, marks=pytest.mark.slow) for k in KINDS])
def test_a_runs_own_config_runs_it_again(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    with Path("rewards.py").open("a") as file:
        file.write("\ndef long(completions):\n    return [float(len(text)) for text in completions]\n")
    objective, *options = KINDS[kind]
    words = ["--steps", "2", "--device", "cpu"]
    prompt = TUNE[:4] + TUNE[-2:] if kind == "texts" else TUNE
    assert main(["tune", objective, *prompt, *words, *options]) == 0
    assert main(["tune", objective, "--config", "run/config.yaml", "--output", "again"]) == 0
    first, second = (yaml.safe_load(Path(run, "config.yaml").read_text()) for run in ("run", "again"))
    assert {**first, "output": 0} == {**second, "output": 0}
    first, second = (Path(run, "journal.jsonl").read_bytes() for run in ("run", "again"))
    assert first == second and first.count(b'"kind": "step"') == 2


def test_an_objectives_option_in_a_config_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("own.yaml").write_text("value: 0.25\nobjective: ./rewards.py:chosen\n")
    assert score_of(["eval", "./rewards.py:chosen", *EVAL, "--config", "own.yaml"], capsys)["score"] == 0.25
    words = ["eval", "./rewards.py:chosen", *EVAL, "--config", "own.yaml", "--value", "2"]
    assert score_of(words, capsys)["score"] == 2.0


def test_a_sum_is_told_with_its_parts(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["eval", "./rewards.py:share", *EVAL, "--also", "./rewards.py:weighed=0.5", "--also", "accuracy"]
    summary = score_of(words, capsys)
    parts = summary["parts"]
    assert set(parts) == {"share", "weighed", "accuracy"}
    assert (parts["share"], parts["weighed"]) == (0.6, 1.0)
    assert summary["score"] == pytest.approx(0.6 + 0.5 + parts["accuracy"], rel=1e-15)
    assert summary["objective"] == "share + 0.5*weighed + accuracy"


def test_tuning_logs_the_parts_of_a_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    from zoreward.trainer import ZOTrainer

    logs: list[dict] = []
    log = ZOTrainer.log
    monkeypatch.setattr(ZOTrainer, "log", lambda self, values, *rest: (log(self, values, *rest), logs.append(values)))
    words = ["--also", "neg-cross-entropy=0.1", "--steps", "2", "--logging-steps", "1"]
    assert main(["tune", "accuracy", *TUNE, *words, "--eval-data", "dev.jsonl", "--eval-every", "1"]) == 0
    for prefix in ("score", "eval_score"):
        told = [values for values in logs if prefix in values]
        assert len(told) >= 2
        for values in told:
            parts = values[f"{prefix}/accuracy"] + 0.1 * values[f"{prefix}/neg-cross-entropy"]
            assert values[prefix] == pytest.approx(parts, rel=1e-12)
    header = json.loads(Path("run/journal.jsonl").read_text().splitlines()[0])
    assert header["objective"] == "accuracy + 0.1*neg-cross-entropy"


def test_prompts_are_shown_and_nothing_is_loaded_or_written(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zoreward.scoring.load_model", lambda *args, **kwargs: pytest.fail("loaded a model"))
    for words in (["eval", "accuracy", *EVAL], ["tune", "accuracy", *TUNE]):
        assert main([*words, "--show-prompts"]) == 0
        out = capsys.readouterr().out
        assert "a good film it was" in out and "→ ' great'" in out
        assert out.count("row ") == 3
    assert not Path("run").exists()


def test_demonstrations_come_from_the_rows_that_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"sentence": f"the {word} plot", "label": i % 2} for i, word in enumerate(["awful", "lovely", "dull"])]
    Path("shots.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["eval", "accuracy", *EVAL, "--shots", "2", "--shots-data", "shots.jsonl"]
    assert main([*words, "--show-prompts"]) == 0
    out = capsys.readouterr().out
    assert "plot it was" in out and "2 demonstrations" in out
    assert score_of(words, capsys)["fewer_shots"] == 0
    assert score_of([*words, "--max-length", "11"], capsys)["fewer_shots"] == 5


def test_choices_that_differ_by_row(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"q": "the film was", "options": [" good", " bad", " dull"], "label": 2},
        {"q": "it was", "options": [" great", " awful"], "label": " awful"},
    ]
    Path("quiz.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:1]))
    words = ["eval", "neg-cross-entropy", "--model", "model", "--data", "quiz.jsonl", "--template", "{q}"]
    one = score_of([*words, "--choice-column", "options"], capsys)["score"]
    Path("quiz.jsonl").write_text(json.dumps({**rows[0], "options": rows[0]["options"][1:], "label": 1}) + "\n")
    fewer = score_of([*words, "--choice-column", "options"], capsys)["score"]
    assert one < fewer < 0  # with one wrong answer less, the right one has a larger share


def test_rows_at_once_and_how_many_do_not_change_the_score(capsys: pytest.CaptureFixture[str]) -> None:
    whole = score_of(["eval", "neg-cross-entropy", *EVAL], capsys)
    single = score_of(["eval", "neg-cross-entropy", *EVAL, "--eval-batch-size", "1"], capsys)
    # float32 sums of 32 products in another order, then a mean
    assert single["score"] == pytest.approx(whole["score"], abs=1e-5)
    assert score_of(["eval", "accuracy", *EVAL, "--limit", "2"], capsys)["rows"] == 2


def test_other_fields_of_training_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    from zoreward.trainer import ZOTrainer

    seen = {}

    def train(self, **kwargs):
        seen.update(args=self.args)
        raise ObjectiveError("enough was seen")

    monkeypatch.setattr(ZOTrainer, "train", train)
    words = ["--steps", "2", "--set", "data_seed=7", "--set", "dataloader_drop_last=true", "--device", "cpu"]
    words += ["--batch-size", "4"]  # there are 12 rows
    assert main(["tune", "accuracy", *TUNE, *words]) == 1
    assert (seen["args"].data_seed, seen["args"].dataloader_drop_last, seen["args"].use_cpu) == (7, True, True)


# What differs between the command and ZOConfig where nobody says anything, and why.
GIVEN = {"output_dir", "use_cpu", "template", "choices", "label"}
BAR = {"disable_tqdm"}  # the command has one of its own
WITH_DEV_ROWS = {"eval_strategy", "do_eval", "eval_steps", "load_best_model_at_end"}  # in transformers "no" is meant


@pytest.mark.parametrize(("words", "differ"), [([], set()), (["--eval-data", "dev.jsonl"], WITH_DEV_ROWS)])
def test_the_command_line_has_the_defaults_of_the_library(
    words: list[str], differ: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from zoreward.trainer import ZOTrainer

    seen: dict[str, ZOConfig] = {}

    def init(self, **given):
        seen.update(given)
        raise ObjectiveError("enough was seen")

    monkeypatch.setattr(ZOTrainer, "__init__", init)
    assert main(["tune", "accuracy", *TUNE, "--device", "cpu", *words]) == 2
    ours, commands = (one.to_dict() for one in (ZOConfig(), seen["args"]))
    assert {name for name in ours if ours[name] != commands[name]} - GIVEN - BAR == differ


def test_one_of_several_gpus_is_shown_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert select_device("cuda:2") == "cuda"
    import os

    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2"
    assert select_device("cpu") == "cpu" and select_device(None) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "accuracy", *EVAL, "--device", "cuda"]) == 2
    assert "torch sees 0 GPUs" in capsys.readouterr().err


def test_a_hub_name_without_network_is_said_at_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    # An address that swallows what is sent to it (RFC 5737): a connection neither succeeds nor is refused.
    monkeypatch.setenv("HF_ENDPOINT", "http://192.0.2.1")
    for name in ("HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    start = time.perf_counter()
    assert main(["eval", "accuracy", "--model", "model", "--data", "nobody/nothing", *PROMPT]) == 2
    assert "cannot be reached" in capsys.readouterr().err
    assert time.perf_counter() - start < 5


def test_what_the_command_line_lets_through_a_journal_holds() -> None:
    from zoreward import config
    from zoreward.journal import lines
    from zoreward.methods import directions
    from zoreward.noise.factors import MAX_RANK

    assert config.MOST_RANK == MAX_RANK
    assert directions.MAX_WINDOW - 1 == config.MOST_WINDOW
    assert directions.MAX_BLOCKS - 1 == config.MOST_BLOCKS
    seed = 2**64 - 1
    term = [seed, -1.2345678901234567e-38, config.MOST_RANK, seed, seed]
    scores = [-1.2345678901234567e-300] * (2 * config.MOST_DIRECTIONS)
    line, _ = lines.encode({"kind": "step", "scores": scores, "terms": [term] * config.MOST_DIRECTIONS}, 0)
    assert len(line) + 1000 < lines.MAX_LINE


@pytest.mark.parametrize(
    ("given", "written"),
    [("save_strategy=no", "no"), ("adam_epsilon=1e-9", 1e-9), ("logging_first_step=yes", True), ("run_name=7", "7")],
)
def test_set_reads_a_value_as_its_field_wants_it(given: str, written: object) -> None:
    from zoreward.cli.tune import _others
    from zoreward.trainer import ZOConfig

    name = given.partition("=")[0]
    assert _others([given], {}, ZOConfig) == {name: written}
    assert ZOConfig("run", use_cpu=True, **{name: written})


def test_rows_that_a_task_names_may_be_fewer_and_those_that_are_asked_for_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("own.yaml").write_text(
        "template: '{sentence} it was'\nobjective: accuracy\nchoices: [' terrible', ' great']\ndata: train.jsonl\n"
        "rows: {train: 1000}\n"
    )
    words = ["tune", "--task", "own.yaml", "--model", "model", "--steps", "1"]
    assert main([*words, "--output", "run"]) == 0
    assert "(of 1,000) to tune on" in capsys.readouterr().err
    assert main(["tune", "accuracy", "--config", "run/config.yaml", "--output", "again"]) == 0
    assert main([*words, "--output", "other", "--train-rows", "999"]) == 2
    assert "--train-rows 999: there are 12" in capsys.readouterr().err


def test_an_option_stands_once() -> None:
    groups = (config.Prompting, config.Loading, config.Writing, config.Tuning, config.Rewarding, config.Seeding)
    groups += (config.Running, config.Data, config.DevRows, config.Splits, config.Held, config.Steps, config.Command)
    names = [one.name for group in groups for one in fields(group)]
    assert len(names) == len(set(names))
    own = {"set", "keep", "patience", "output", "resume", "dry_run", "elastic", "hub"}
    assert {one.name for one in fields(config.TuneOptions)} == {*names, *own}
    assert {one.name for one in fields(config.ZOArguments)} < {one.name for one in fields(ZOConfig)}
    with pytest.raises(FrozenInstanceError):
        config.Prompting().label = "other"
    ZOConfig("run").label = "other"  # as transformers' are
    lent = config.part_of(config.Prompting, ZOConfig("run", shots=3), max_length=7)
    assert (type(lent), lent.shots, lent.max_length) == (config.Prompting, 3, 7)
