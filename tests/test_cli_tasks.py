"""`--task`: what it sets, what wins over it, and that test rows choose nothing."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import random_model
from test_cli import folder, last_object  # noqa: F401  (a fixture)
from tiny_tokenizers import bpe
from whole_models import masked_model, word_tokenizer
from zoreward.cli import main
from zoreward.data import rows as data_rows

pytestmark = pytest.mark.usefixtures("folder", "commands_are_kept", "trials_are_kept")

GOLDEN: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("golden").joinpath("tasks.json").read_text())

GOOD, BAD = ["good", "great", "lovely", "bright"], ["bad", "awful", "dull", "terrible"]
HUB = {
    split: [
        {"sentence": f"{start} {word} {kind} ", "label": int(word in GOOD)} for word in GOOD + BAD for kind in kinds
    ]
    for split, start, kinds in (("train", "a", ["film", "plot", "is", "was"]), ("validation", "the", ["film", "plot"]))
}
SMALL = ["--train-rows", "8", "--dev-rows", "6", "--test-rows", "5"]
RUN = ["--model", "model", "--steps", "3", "--eval-every", "1", "--lr", "1e-2", "--batch-size", "4", "--output"]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """A Hub that has SST-2; what was asked of it."""
    asked = []

    def rows(name: str, *, config: str, split: str, limit: int | None, revision: str | None) -> list[dict]:
        asked.append((name, config, split, revision))
        return HUB[split][:limit]

    monkeypatch.setattr(data_rows, "hub_rows", rows)
    return asked


def write(name: str, rows: list[dict]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def summary_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main([*words, "--json"]) == 0, capsys.readouterr().err
    return last_object(capsys.readouterr().out)


def shown(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main([*words, "--model", "model", "--show-prompts"]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def read(run: str) -> dict[str, Any]:
    return yaml.safe_load(Path(run, "config.yaml").read_text())


def scores_of(run: str) -> list[list[float]]:
    return [line["scores"] for line in steps_of(run)]


def steps_of(run: str) -> list[dict]:
    lines = map(json.loads, Path(run, "journal.jsonl").read_text().splitlines())
    return [{**line, "crc": ""} for line in lines if line["kind"] == "step"]


def test_a_task_scores_as_its_options_written_out(hub: list[tuple], capsys: pytest.CaptureFixture[str]) -> None:
    write("dev.jsonl", HUB["validation"])
    by_hand = ["--template", "{sentence|strip} It was", "--choice", " terrible", "--choice", " great"]
    model = ["--model", "model"]
    wanted = summary_of(["eval", "accuracy", *model, "--data", "dev.jsonl", *by_hand], capsys)
    from_file = summary_of(["eval", "accuracy", *model, "--task", "sst2", "--data", "dev.jsonl"], capsys)
    assert hub == []
    from_hub = summary_of(["eval", "--task", "sst2", *model], capsys)
    assert hub == [("nyu-mll/glue", "sst2", "validation", None)]
    for found in (wanted, from_file, from_hub):
        del found["seconds"]
    assert wanted == from_file == from_hub
    assert wanted["rows"] == 16


def test_tuning_on_a_task(hub: list[tuple], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["tune", "--task", "sst2", *SMALL, *RUN]
    assert main([*words, "run", "--json"]) == 0
    out, err = capsys.readouterr()
    summary = last_object(out)
    assert (summary["objective"], summary["test_objective"], summary["test_rows"]) == (
        "neg-cross-entropy",
        "accuracy",
        5,
    )
    assert summary["test"] * 5 in range(6)
    assert "rows: 8 to tune on, 6 dev, 5 test" in err
    assert hub == [("nyu-mll/glue", "sst2", split, None) for split in ("train", "validation")]
    written = yaml.safe_load(Path("run/config.yaml").read_text())
    assert (written["task"], written["data"], written["split"]) == ("sst2", "nyu-mll/glue", "train")
    assert (written["template"], written["train_rows"]) == ("{sentence|strip} It was", 8)

    again = summary_of(["tune", "--task", "sst2", "--config", "run/config.yaml", "--output", "again"], capsys)
    assert steps_of("again") == steps_of("run") and len(steps_of("run")) == 3
    for name in ("score", "best", "best_step", "test", "test_rows"):
        assert again[name] == summary[name]
    other = summary_of([*words, "other", "--split-seed", "13"], capsys)
    assert other["score"] != summary["score"]


def test_dev_labels_choose_and_test_labels_do_not(capsys: pytest.CaptureFixture[str]) -> None:
    write("rows.jsonl", HUB["train"])
    for name in ("dev", "test"):
        write(f"{name}.jsonl", HUB["validation"])
        write(f"{name}-other.jsonl", [{**row, "label": 1 - row["label"]} for row in HUB["validation"]])

    def run(output: str, dev: str, test: str) -> dict[str, Any]:
        words = ["tune", "--task", "sst2", "--data", "rows.jsonl", "--eval-data", dev, "--test-data", test]
        return summary_of([*words, "--keep", "best", *RUN, output], capsys)

    plain = run("plain", "dev.jsonl", "test.jsonl")
    dev_changed = run("dev-changed", "dev-other.jsonl", "test.jsonl")
    test_changed = run("test-changed", "dev.jsonl", "test-other.jsonl")
    choice = ("kept", "best_step", "best", "score")
    assert dev_changed["kept"] != plain["kept"]
    assert [test_changed[name] for name in choice] == [plain[name] for name in choice]
    assert test_changed["test"] == pytest.approx(1 - plain["test"], abs=1e-12)  # of two choices the other one
    assert test_changed["test"] != plain["test"]
    assert steps_of("plain") == steps_of("dev-changed") == steps_of("test-changed")


def test_all_three_parts_of_one_file(capsys: pytest.CaptureFixture[str]) -> None:
    write("rows.jsonl", HUB["train"])
    words = ["tune", "--task", "sst2", "--data", "rows.jsonl", "--k-shot", "3", "--test-rows", "7", *RUN, "run"]
    assert main([*words, "--json"]) == 0
    out, err = capsys.readouterr()
    assert "rows: 6 to tune on, 6 dev, 7 test" in err
    assert last_object(out)["test_rows"] == 7


def test_what_is_given_wins(hub: list[tuple], capsys: pytest.CaptureFixture[str]) -> None:
    eval_words = ["eval", "accuracy", "--task", "sst2"]
    assert "the good film It was" in shown(eval_words, capsys)
    bare = shown([*eval_words, "--bare"], capsys)
    assert "    the good film\n" in bare and "It was" not in bare and "→ ' great'" in bare
    assert "the good film  so" in shown([*eval_words, "--template", "{sentence} so"], capsys)
    assert "→ ' good'" in shown([*eval_words, "--choice", " bad", "--choice", " good"], capsys)
    assert "row 1 of 2" in shown([*eval_words, "--test-rows", "2"], capsys)
    assert "    a good film" in shown([*eval_words, "--split", "train"], capsys)
    Path("own.yaml").write_text("task: sst2\ntemplate: '{sentence|strip}!'\n")
    assert "the good film!" in shown(["eval", "accuracy", "--config", "own.yaml"], capsys)
    words = ["tune", "log-likelihood", "--task", "sst2", *SMALL, "--output", "run"]
    assert " It was\n" in shown(words, capsys)
    assert not Path("run").exists()


def test_demonstrations_are_rows_to_tune_on(
    hub: list[tuple], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(HUB, "train", HUB["train"] * 20)  # more than the 500 that would be dev rows
    text = shown(["eval", "accuracy", "--task", "sst2", "--shots", "2", "--test-rows", "1"], capsys)
    assert hub[-1] == ("nyu-mll/glue", "sst2", "train", None)
    prompt = text.partition("  answers:")[0]
    assert prompt.count("    a ") == 2 and prompt.count("    the ") == 1


def test_a_row_brings_its_own_answers(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"premise": "It was bad.", "choice1": "The film is not good.", "choice2": "I was bad.", "question": "cause"}
    write("copa.jsonl", [{**row, "label": 0}])
    words = ["--task", "copa", "--data", "copa.jsonl"]
    text = shown(["eval", *words], capsys)
    assert "It was bad because\n" in text and "→ 'the film is not good.'" in text and "'I was bad.'" in text
    right = shown(["tune", *words, "--output", "run"], capsys)  # on the right answer's likelihood
    assert "→ 'the film is not good.'" in right and "'I was bad.'" not in right


def test_a_users_own_task(capsys: pytest.CaptureFixture[str]) -> None:
    write("mine.jsonl", [{"t": "a good film", "mood": "glad"}, {"t": "a bad film", "mood": "sad"}])
    text = 'template: "{t|lower} it was"\nobjective: accuracy\nchoices: ["sad= bad", "glad= good"]\nlabel: mood\n'
    Path("mine.yaml").write_text(text + "data: mine.jsonl\n")
    assert summary_of(["eval", "--task", "mine.yaml", "--model", "model"], capsys)["rows"] == 2


REWARDS = """
def near(completions, *, target: int = 3, scale: float = 1.0, weights: dict = {}) -> list[float]:
    return [scale * target + weights.get("a", 0) for _ in completions]
"""


def test_a_task_holds_its_objective_s_options(capsys: pytest.CaptureFixture[str]) -> None:
    Path("rewards.py").write_text(REWARDS)
    write("mine.jsonl", [{"prompt": "a film"}] * 4)
    told = "template: '{prompt}'\nobjective: rewards.py:near\ndata: mine.jsonl\nmax_new_tokens: 2\n"
    task = Path("mine.yaml")
    task.write_text(told + "options: {target: 5, scale: 1e-1, weights: {a: 2}}\n")
    words = ["--task", "mine.yaml", "--model", "model"]
    assert summary_of(["eval", *words], capsys)["score"] == pytest.approx(0.1 * 5 + 2)  # YAML reads 1e-1 as a text
    assert summary_of(["eval", *words, "--target", "7"], capsys)["score"] == pytest.approx(0.1 * 7 + 2)
    words += ["--steps", "1", "--batch-size", "2", "--num-directions", "1", "--output"]
    summary_of(["tune", *words, "run"], capsys)
    assert read("run")["scale"] == 0.1 and "weights" not in read("run"), "the latter has no flag"
    summary_of(["tune", "--task", "mine.yaml", "--config", "run/config.yaml", "--output", "again"], capsys)
    assert read("again") == {**read("run"), "output": "again"}
    assert scores_of("run") == scores_of("again") == [[0.1 * 5 + 2] * 2]
    task.write_text(told + "options: {target: 5, scale: 1e-1, weights: {a: 3}}\n")
    assert main(["tune", *words, "run", "--resume"]) == 2, "a finished run of other options is not this one"
    assert "was made with weights={'a': 2}, not {'a': 3}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("{target: many}", "target of the task 'mine' is 'many'"),
        ("{targt: 5}", "objective 'near' has no option 'targt'"),
        ("[5]", "mine.yaml: options is [5]"),
        ("{weights: [5]}", "weights of the task 'mine' is [5]"),
    ],
)
def test_options_of_a_task_that_do_not_fit(options: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("rewards.py").write_text(REWARDS)
    write("mine.jsonl", [{"prompt": "a film"}] * 4)
    write("train.jsonl", [{"prompt": "a film"}] * 4)
    Path("mine.yaml").write_text(
        f"template: '{{prompt}}'\nobjective: rewards.py:near\ndata: mine.jsonl\noptions: {options}\n"
    )
    asked = ["--task", "mine.yaml", "--model", "model"]
    bench = ["bench", "mine.yaml", "--model", "model", "--data-dir", ".", "--dev-rows", "1", "--test-rows", "1"]
    for words in (["eval", *asked], ["tune", *asked, "--output", "run"], [*bench, "--output", "table"]):
        assert main(words) == 2
        assert said in capsys.readouterr().err
        assert not Path("run").exists() and not Path("table").exists()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if n % 4 == 0 else pytest.mark.slow) for n, name in enumerate(GOLDEN)]
)
def test_every_task_takes_a_file_with_the_hub_s_columns_and_asks_nobody(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    row, golden = GOLDEN[name]["row"], GOLDEN[name]
    write("row.jsonl", [row])
    if name.endswith("-masked"):
        Path("masked").mkdir()
        masked_model("bert").config.save_pretrained("masked")
        words = word_tokenizer()
        words.add_tokens([word for word in golden["options"] if word not in words.get_vocab()])
        words.save_pretrained("masked")
    else:
        bpe(bos_token="<s>").save_pretrained("bytes")
        config = random_model("llama").config
        config.max_position_embeddings = 4096
        config.save_pretrained("bytes")
    monkeypatch.setattr(socket.socket, "connect", lambda *args: pytest.fail("somebody is asked"))
    model = "masked" if name.endswith("-masked") else "bytes"
    verbs = [["eval"], ["tune", "--output", "run"]]
    for verb, *more in verbs:
        words = [verb, "--task", name.removesuffix("-masked"), "--data", "row.jsonl", "--model", model]
        assert main([*words, *more, "--show-prompts"]) == 0, capsys.readouterr().err
        text = capsys.readouterr().out
        prompt = text.partition("  prompt:\n")[2].partition("  answers:")[0].partition("  tokens:")[0]
        # COPA's ends with the space that its answers have in front, and lines are shown without.
        lines = [line.removeprefix("    ") for line in prompt.splitlines()]
        assert lines == [line.rstrip() for line in golden["prompt"].split("\n")]
        if "right" in golden:
            assert f"→ {golden['right']!r}" in text
    assert not Path("run").exists()


# Other kinds of models


def stored(name: str, model: Any) -> None:
    model.save_pretrained(name)
    word_tokenizer().save_pretrained(name)


def test_a_masked_model_gets_the_task_for_masked_models(hub: list[tuple], capsys: pytest.CaptureFixture[str]) -> None:
    stored("masked", masked_model("bert"))
    words = ["tune", "--task", "sst2", "--model", "masked", "--steps", "2", "--batch-size", "4", "--k-shot", "2"]
    found = summary_of([*words, "--eval-every", "1", "--test-rows", "5", "--lr", "1e-3", "--output", "run"], capsys)
    assert (found["objective"], found["test_objective"], found["test_rows"]) == ("neg-cross-entropy", "accuracy", 5)
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    assert config["template"] == "{sentence|strip} It was [MASK] ."
    assert main(["replay", "run", "--model", "masked", "--output", "again"]) == 0
    assert bytes_of("again") == bytes_of("run/model")


@pytest.mark.slow
def test_a_new_head_on_a_task_goes_on_and_is_replayed(hub: list[tuple], capsys: pytest.CaptureFixture[str]) -> None:
    stored("masked", masked_model("bert"))
    words = ["tune", "--task", "sst2", "--model", "masked", "--head", "classifier", "--batch-size", "4", "--lr", "1e-2"]
    words += ["--train-rows", "8", "--dev-rows", "6", "--test-rows", "5", "--seed", "7", "--output", "run"]
    assert main([*words, "--steps", "2"]) == 0
    assert "a classifier of LABEL_0, LABEL_1: a new head" in capsys.readouterr().err
    summary_of([*words, "--steps", "4", "--resume"], capsys)
    summary_of([word.replace("run", "whole") for word in words] + ["--steps", "4"], capsys)
    assert steps_of("run") == steps_of("whole")
    for run in ("run", "run/trajectory.safetensors"):
        assert main(["replay", run, "--model", "masked", "--output", f"{run}-again"]) == 0
        assert bytes_of(f"{run}-again") == bytes_of("run/model") == bytes_of("whole/model")
    settings = ["--data", "dev.jsonl", "--prompt", "sentence", "--model"]
    write("dev.jsonl", HUB["validation"])
    scores = [summary_of(["eval", "accuracy", *settings, name], capsys)["score"] for name in ("run/model", "run-again")]
    assert scores[0] == scores[1]


def bytes_of(name: str) -> bytes:
    return Path(name, "model.safetensors").read_bytes()
