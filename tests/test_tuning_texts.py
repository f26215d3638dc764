"""Contract under test: a run whose objective is what the model writes raises that objective, shows it and keeps it."""

from __future__ import annotations

import io
import json
import logging
import math
import sys
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pyarrow import parquet
from rich.console import Console
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback

from conftest import random_model
from zoreward.cli import main
from zoreward.cli.progress import ProgressCallback
from zoreward.records import Completion, Example, InputError, Scored, Writing
from zoreward.registry import get_objective
from zoreward.trainer import ZOConfig, ZOTrainer
from zoreward.trainer.window import Window, completion_rows, save_completions

pytestmark = pytest.mark.usefixtures("commands_are_kept", "trials_are_kept")

PROMPTS = ["the film was", "a plot", "it was very", "this film is not"]


def length(completions, **columns):
    return [float(len(text.split())) for text in completions]


def says_good(completions, **columns):
    return [float(text.split().count("good")) for text in completions]


def tuned(tmp_path, tokenizer, objective, rows=None, weights=None, **changes) -> ZOTrainer:
    settings = {"max_steps": 30, "max_completion_length": 5, "num_directions": 6, "per_device_train_batch_size": 4}
    settings |= {"eps": 0.03, "learning_rate": 0.03, "logging_steps": 1, "completions_every": 0}
    args = ZOConfig(str(tmp_path / "run"), use_cpu=True, disable_tqdm=True, **{**settings, **changes})
    rows = rows or [{"prompt": prompt, "answer": "good film good film"} for prompt in PROMPTS]
    model = random_model("llama")
    return ZOTrainer(
        model, objective=objective, args=args, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer
    )


def test_a_reward_of_single_texts_rises(tmp_path, tokenizer):
    run = tuned(tmp_path, tokenizer, says_good, max_steps=20)
    before = run.evaluate()
    run.train()
    after = run.evaluate()
    assert after["eval_score"] >= before["eval_score"] + 1  # of 5 words at most
    assert {"eval_length", "eval_distinct_2"} <= after.keys()


@pytest.mark.slow
def test_corpus_bleu_which_no_single_text_has_rises(tmp_path, tokenizer):
    run = tuned(tmp_path, tokenizer, get_objective("bleu"))
    before = run.evaluate()["eval_score"]
    run.train()
    after = run.evaluate()["eval_score"]
    assert after > before + 5, (before, after)


@pytest.mark.slow
def test_pass_at_k_which_no_single_text_has_rises(tmp_path, tokenizer):
    rows = [{"prompt": prompt, "answer": "good"} for prompt in PROMPTS for _ in range(4)]
    objective = get_objective("pass-at-k", k=2)
    changes = {"per_device_train_batch_size": 16, "temperature": 1.0, "max_completion_length": 1, "max_steps": 25}
    run = tuned(tmp_path, tokenizer, objective, rows=rows, **changes)
    before = run.evaluate()["eval_score"]
    run.train()
    after = run.evaluate()["eval_score"]
    assert after >= before + 0.3, (before, after)


@pytest.mark.parametrize("method", ["es", "fzoo"])
@pytest.mark.slow
def test_one_sided_populations_raise_it_too(tmp_path, tokenizer, method):
    run = tuned(tmp_path, tokenizer, says_good, method=method, num_directions=12, max_steps=15, learning_rate=0.05)
    before = run.evaluate()["eval_score"]
    run.train()
    assert run.evaluate()["eval_score"] >= before + 0.5
    assert len(run.last_scored) == 12 + (method == "fzoo")


def test_what_is_written_is_kept_and_logged(tmp_path, tokenizer):
    objectives = [says_good, length]
    run = tuned(tmp_path, tokenizer, objectives, max_steps=3, completions_every=2, reward_weights=[1.0, 0.5])
    run.train()
    files = sorted(path.name for path in (tmp_path / "run" / "completions").iterdir())
    assert files == ["step-000000.parquet", "step-000002.parquet"]
    table = parquet.read_table(tmp_path / "run" / "completions" / files[1]).to_pylist()
    assert table == completion_rows(run.last_rows, run.last_scored)
    assert len(table) == 12 * 4
    for line in table:
        assert (line["says_good"], line["length"]) == (
            says_good([line["completion"]])[0],
            len(line["completion"].split()),
        )
    assert [line["score"] for line in table] == sorted((line["score"] for line in table), reverse=True)
    [log, *_] = [log for log in run.state.log_history if "score" in log]
    assert {"best", "spread", "length", "distinct_2", "differing", "score/says_good", "score/length"} <= log.keys()
    assert log["score"] == pytest.approx(log["score/says_good"] + 0.5 * log["score/length"])
    assert log["best"] >= log["score"]


def test_defaults_depend_on_what_the_objective_needs(tmp_path, tokenizer):
    args = ZOConfig(str(tmp_path / "run"), use_cpu=True, max_completion_length=4)
    rows = [{"prompt": prompt} for prompt in PROMPTS]
    run = ZOTrainer(random_model("llama"), objective=length, args=args, train_dataset=rows, processing_class=tokenizer)
    assert (run.method.rank, run.method.num_directions, run.method.normalize) == (1, 16, "rms")
    assert (run.args.eps, run.args.learning_rate) == (1e-2, 3e-3)
    assert args.eps is None  # the user's own are left alone


@pytest.mark.slow
def test_a_metric_of_an_objective_s_own_never_takes_the_place_of_the_run_s(tmp_path, tokenizer):
    names = [
        "score",
        "rows",
        "length",
        "kl",
        "member_kl",
        "loss",
        "step",
        "dev score",
        "no_signal",
        "no signal",
        "best dev",
    ]
    names += ["eval_score", "train_loss", "score/judge", "share", "metric/share", ""]

    def judge(completions, log_metric, **columns):
        for name in names:
            log_metric(name, 1000.0)
        return length(completions)

    settings = {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "kl": 0.1}
    runs = [
        tuned(tmp_path / name, tokenizer, [objective, says_good], **settings)
        for name, objective in (("plain", length), ("judged", judge))
    ]
    for run in runs:
        run.train()
    plain, judged = ([{**log} for log in run.state.log_history] for run in runs)
    for expected, found in zip(plain, judged, strict=True):
        for name, value in expected.items():
            if not any(part in name for part in ("runtime", "per_second", "flos", "/length")):
                assert found[name] == value, name
            assert "metric/" not in name
        more = {name.removeprefix("eval_") for name in found.keys() - expected.keys()} - {"score/judge"}
        assert more in (set(), {f"metric/{name}" for name in names})
    assert runs[0].state.best_metric == runs[1].state.best_metric < 1000


class Grumpy:
    """Has neither a text nor a value."""

    def __str__(self) -> str:
        raise ValueError

    __repr__ = __float__ = __index__ = __array__ = __str__


LOOP: list = []
LOOP.append(LOOP)
EXTRAS = {
    "mixed": [1, "a", None, 2.5],
    "objects": [object, Grumpy(), {1, 2}, 3],
    "itself": [LOOP, LOOP, 1, 2],
    "keys": [{(1, 2): 3}, {}, {}, {}],
    "empty": [{}, {}, {}, {}],
    "halves": ["\ud83d", "a", "b", "c"],
    "large": [10**40, 1, 2, 3],
    "acc[/red]": [1.0, 2.0, 3.0, 4.0],
    "\x1b[31m": [1, 2, 3, 4],
    "score": [7, 8, 9, 10],
    "lists": [[1, 2], [3], [], [4]],
}


@pytest.mark.parametrize("stored", ["parquet", "jsonl"])
def test_whatever_a_reward_logs_beside_its_scores_is_stored_and_shown(tmp_path, monkeypatch, capsys, stored):
    if stored == "jsonl":
        monkeypatch.setitem(sys.modules, "pyarrow", None)
    rows = [Example({}, f"p{n}", (), 0, (1,), ()) for n in range(4)]
    texts = tuple(Completion(f"text {n}", (1,), True) for n in range(4))
    members = [
        Writing(score, {"score": score}, completions=texts, rewards={"score": (0.0, None, 1.0, 2.0)}, extra=EXTRAS)
        for score in (math.nan, 1.0, 2.0)
    ]
    path = save_completions(str(tmp_path), 3, rows, members)
    assert path.suffix == f".{stored}"
    if stored == "jsonl":
        table = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    else:
        table = parquet.read_table(path).to_pylist()
    assert [line["member"] for line in table] == [2] * 4 + [1] * 4 + [0] * 4
    assert [line["score"] for line in table] == [2.0] * 4 + [1.0] * 4 + [None] * 4
    assert [line["reward/score"] for line in table[:4]] == [0.0, None, 1.0, 2.0]
    assert [line["extra/score"] for line in table[:4]] == [7, 8, 9, 10]
    assert [line["acc[/red]"] for line in table[:4]] == [1.0, 2.0, 3.0, 4.0]
    assert [line["lists"] for line in table[:4]] == [[1, 2], [3], [], [4]]
    assert [str(line["mixed"]) for line in table[:4]] == ["1", "a", "None", "2.5"]
    assert "<Grumpy>" in str(table[1]["objects"])

    trainer = SimpleNamespace(last_rows=rows, last_scored=members, args=SimpleNamespace(max_steps=4))
    shown = io.StringIO()
    ProgressCallback(trainer, Console(file=shown, width=400))._show_completions(3)
    assert "acc[/red]" in shown.getvalue() and "\x1b" not in shown.getvalue()


def test_a_score_that_rises_while_texts_repeat_is_warned_about(caplog):
    def step(score: float, texts: list[list[int]]) -> list[Writing]:
        written = tuple(Completion("", tuple(tokens), True) for tokens in texts)
        return [Writing(score, {"x": score}, written, {}, {})]

    window = Window()
    varied, same = [[1, 2, 3, 4], [5, 6, 7, 8]], [[1, 1, 1, 1], [1, 1, 1, 1]]
    with caplog.at_level(logging.WARNING, logger="zoreward"):
        for score, texts in [(0.2, varied), (0.9, varied), (0.1, same)]:
            window.add(step(score, texts))
            window.means()
        assert "repeat" not in caplog.text
        window.add(step(0.9, same))
        window.means()
    assert "repeat themselves" in caplog.text


def test_what_members_answered_is_not_kept_until_it_is_logged():
    window, logprobs_NC = Window(), np.zeros((4, 2))
    kept = weakref.ref(logprobs_NC)
    window.add([Scored(0.5, {"x": 0.5}, returned={"x": [0.5] * 4}, logprobs_NC=logprobs_NC)])
    del logprobs_NC
    assert kept() is None and window.means()["score"] == 0.5


def test_sampled_texts_differ_from_step_to_step_and_are_the_same_again(tmp_path, tokenizer):
    runs = []
    for name in ("a", "b"):
        run = tuned(tmp_path / name, tokenizer, says_good, max_steps=2, temperature=1.0, learning_rate=0.0)
        texts = []

        class Texts(TrainerCallback):
            def on_step_end(self, *_, run=run, texts=texts, **__):
                texts.append([[one.text for one in member.completions] for member in run.last_scored])

        run.add_callback(Texts())
        run.train()
        runs.append(texts)
    assert runs[0] == runs[1]
    assert runs[0][0] != runs[0][1]


# --- on the command line ------------------------------------------------------------------------------------------

REWARDS = """
def good(completions, **columns):
    return [float(text.split().count("good")) for text in completions]

def too_few(completions, **columns):
    return [1.0]

def is_infinite(completions, **columns):
    return [float("inf")] * len(completions)

def says(completions, **columns):
    return ["good"] * len(completions)
"""


@pytest.fixture
def folder(tmp_path, tiny_model_dir, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(tiny_model_dir, target_is_directory=True)
    (tmp_path / "rewards.py").write_text(REWARDS)
    rows = {
        "train": [{"prompt": prompt} for prompt in PROMPTS],
        "chat": [{"prompt": [{"role": "user", "content": "the film"}]}],
        "long": [{"prompt": "good " * 100}],
        "number": [{"prompt": 3}],
    }
    for name, some in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    return tmp_path


def test_the_command_tunes_and_tells(folder, capsys):
    words = ["tune", "rewards.py:good", "--model", "model", "--data", "train.jsonl", "--eval-data", "train.jsonl"]
    words += ["--max-new-tokens", "4", "--steps", "3", "--num-directions", "2", "--completions-every", "2"]
    assert main([*words, "--logging-steps", "1", "--output", "run", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out.splitlines()[-1])["steps"] == 3
    assert "distinct-2" in err and "differing" in err
    assert "prompt" in err and "completion" in err and "best" in err and "worst" in err
    assert (folder / "run" / "completions" / "step-000002.parquet").exists()
    assert (
        main(["eval", "rewards.py:good", "--model", "run/model", "--data", "train.jsonl", "--json", *words[8:10]]) == 0
    )
    assert {"length", "distinct_2"} <= json.loads(capsys.readouterr().out).keys()


@pytest.mark.parametrize(
    ("changes", "error", "hint"),
    [
        ({"objective": "rewards.py:too_few"}, "got 1 for 4 rows", "one for each row"),
        ({"objective": "rewards.py:is_infinite"}, "returned inf for row 0", "finite"),
        ({"objective": "rewards.py:says"}, "returned no number for row 0: 'good'", "one number"),
        ({"--data": "chat.jsonl"}, "has no chat template", "instruction-tuned"),
        ({"--data": "number.jsonl"}, "number.jsonl, line 1", "a prompt is a text"),
        ({"--prompt": "promt"}, "no row has the prompt column 'promt'", "did you mean prompt?"),
        ({"--template": "{promt}"}, "no row has the column 'promt'", "did you mean prompt?"),
        ({"--max-new-tokens": "0"}, "max_new_tokens=0 is out of range", "at least 1"),
        ({"--max-new-tokens": "64"}, "the context leaves 0 tokens for the prompt", "fewer new tokens"),
        ({"--temperature": "-1"}, "temperature=-1.0 is out of range", "0 or more"),
        ({"--noise": "low-rank", "--rank": "0"}, "rank=0", "at least 1"),
        ({"objective": "reward-model", "--reward-model": "two"}, "has 2 logits", "num_labels=1"),
        ({"objective": "reward-model", "--reward-model": "./none"}, "no reward model folder", "folder"),
        ({"objective": "evaluate:rouge"}, "cannot be reached", "load it once where there is a network"),
        ({"objective": "trl:think_formt_reward"}, "think_formt_reward", "think_format_reward"),
    ],
)
def test_what_can_be_wrong_with_texts_is_one_line_and_a_hint(
    folder, tokenizer, capsys, monkeypatch, changes, error, hint
):
    from transformers import LlamaConfig, LlamaForSequenceClassification

    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    if changes.get("--reward-model") == "two":
        torch.manual_seed(0)
        small = LlamaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_labels=2)
        LlamaForSequenceClassification(small).save_pretrained(folder / "two")
        tokenizer.save_pretrained(folder / "two")
    options = {"--model": "model", "--data": "train.jsonl", "--output": "run", "--max-new-tokens": "4"} | changes
    words = ["tune", options.pop("objective", "rewards.py:good")]
    for flag, value in options.items():
        words += [flag, value]
    capsys.readouterr()
    assert main(words) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith(("error: ", "hint: "))]
    assert len(lines) == 2 and "Traceback" not in err and out == ""
    assert error in lines[0] and hint in lines[1]
    assert not (folder / "run").exists()


def test_prompts_longer_than_the_context_are_cut_and_counted(folder, capsys):
    words = ["eval", "rewards.py:good", "--model", "model", "--data", "long.jsonl", "--max-new-tokens", "4", "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["truncated"] == 1


def test_an_unknown_method_is_refused(tmp_path):
    from zoreward.trainer.options import completed, method_of

    with pytest.raises(InputError, match="no method 'adam'"):
        method_of(completed(ZOConfig(str(tmp_path), use_cpu=True, method="adam"), "choices"))


@pytest.mark.parametrize("run", [object(), None])
def test_loggers_that_show_tables_get_what_was_written(run, tmp_path, tokenizer, monkeypatch):
    """As TRL's `log_completions`: a table of W&B and of Trackio, where something is logged to."""
    logged = []
    fake = SimpleNamespace(run=run, log=logged.append, Table=lambda dataframe: dataframe)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    tuning = tuned(tmp_path, tokenizer, length, max_steps=3, completions_every=2)
    tuning.args.report_to = ["wandb"]  # without transformers' callback, which would want the real one
    tuning.train()
    assert len(logged) == (2 if run else 0)  # in steps 1 and 3
    for step, log in zip((0, 2), logged, strict=False):
        kept = parquet.read_table(tmp_path / "run" / "completions" / f"step-{step:06}.parquet")
        assert log["completions"]["completion"].tolist() == kept["completion"].to_pylist()
        assert log["completions"]["score"].tolist() == kept["score"].to_pylist()


class Texts(TensorBoardCallback):
    """Keeps the texts of TensorBoard, which need not be installed."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, int]] = []
        self.tb_writer = SimpleNamespace(add_text=lambda *words: self.told.append(words))

    def on_train_begin(self, *args, **kwargs) -> None:
        pass

    on_log = on_train_end = on_train_begin


def test_tensorboard_gets_what_the_best_member_wrote_as_text(tmp_path, tokenizer):
    tuning = tuned(tmp_path, tokenizer, length, max_steps=3, completions_every=2)
    tuning.add_callback(texts := Texts())
    tuning.train()

    assert [(name, step) for name, _, step in texts.told] == [("completions", 1), ("completions", 3)]
    kept = parquet.read_table(tmp_path / "run" / "completions" / "step-000002.parquet").to_pylist()
    heads, _, *lines = texts.told[1][1].splitlines()
    best = [line for line in kept if line["member"] == kept[0]["member"]]
    assert heads == f"| {' | '.join(kept[0])} |"
    assert len(lines) == len(best) and all(line["completion"] in shown for line, shown in zip(best, lines, strict=True))
