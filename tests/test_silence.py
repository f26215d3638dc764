"""Contract under test: a run that learns nothing says why, ends itself, and can go on; what is expected comes true."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase, TrainerCallback

from conftest import random_model
from test_cli import TUNE, folder  # noqa: F401  (a fixture)
from zoreward.cli import main
from zoreward.journal import load_run
from zoreward.records import InputError, SilentRunError
from zoreward.trainer import ZOConfig, ZOTrainer

pytestmark = pytest.mark.usefixtures("commands_are_kept", "trials_are_kept")

WORDS = "good bad great awful lovely dull fine poor rich flat warm cold".split()
ROWS = [{"text": f"{word} film", "label": n % 2} for n, word in enumerate(WORDS)]
ANSWERS: dict[str, Any] = {"template": "{text} it was", "choices": [" not", " very"]}
TEXTS: dict[str, Any] = {"template": "{text} it was", "max_completion_length": 3, "num_directions": 2}
FAR, NEAR = 0.5, 1e-6


def seven(predictions: list[int]) -> float:
    return 7.0


def nothing(predictions: list[int]) -> list[None]:
    return [None for _ in predictions]


def seven_for_a_text(completions: list[str], **columns: Any) -> list[float]:
    return [7.0 for _ in completions]


def one_in_the_batch(predictions: list[int], references: list[int]) -> float:
    """A number of its own for each batch, whatever members answer."""
    return float(sum(predictions) >= 0) + sum(n * reference for n, reference in enumerate(references))


def made(
    output: Path,
    tokenizer: Any,
    objective: Any,
    rows: Any = ROWS,
    callbacks: Any = None,
    eval_dataset: Any = None,
    **changes: Any,
) -> Any:
    settings = {"max_steps": 22, "per_device_train_batch_size": 4, "learning_rate": 1e-3, **changes}
    args = ZOConfig(str(output), use_cpu=True, disable_tqdm=True, logging_steps=10, **settings)
    return ZOTrainer(
        random_model("llama", 1),
        objective=objective,
        args=args,
        train_dataset=rows,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        callbacks=callbacks,
    )


def told_of(trainer: Any, caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged of silent steps."""
    caplog.clear()
    caplog.set_level(logging.WARNING)
    logging.getLogger("transformers").addHandler(caplog.handler)
    logging.getLogger("zoreward").addHandler(caplog.handler)
    try:
        trainer.train()
    finally:
        for name in ("transformers", "zoreward"):
            logging.getLogger(name).removeHandler(caplog.handler)
    return list(dict.fromkeys(m for m in (r.getMessage() for r in caplog.records) if "moved anything" in m))


CAUSES: dict[str, tuple[Any, dict[str, Any], str, str]] = {
    "a constant": (seven, {**ANSWERS, "eps": FAR}, "every score is 7, whatever members answer", "objective"),
    "no score": (nothing, {**ANSWERS, "eps": FAR}, "'nothing' has no score on the rows of any step", "returns"),
    "no differing answers": (
        "accuracy",
        {**ANSWERS, "eps": NEAR},
        "answers to a batch of 4 rows are the same",
        "--batch-size",
    ),
    "coarse": (one_in_the_batch, {**ANSWERS, "eps": FAR}, "coarse steps on the 4 rows", "neg-cross-entropy"),
    "texts alike": (seven_for_a_text, {**TEXTS, "eps": NEAR}, "all members write the same texts", "--eps"),
    "rewards alike": (seven_for_a_text, {**TEXTS, "eps": FAR}, "every score is 7", "a reward that tells"),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_after_twenty_steps_a_silent_run_says_why_once(cause: str, tmp_path: Path, tokenizer: Any, caplog: Any) -> None:
    objective, changes, why, hint = CAUSES[cause]
    trainer = made(tmp_path, tokenizer, objective, **changes)
    trainer.add_callback(Resuming(trainer))
    [line] = told_of(trainer, caplog)
    assert line.startswith("None of the first 20 steps moved anything: ") and why in line
    assert hint in line.partition(why)[2]
    assert trainer.method_state.step == 22


OF_SCORES = ("a constant", "no score", "rewards alike")


@pytest.mark.parametrize("steps", [1, 8])
@pytest.mark.parametrize("cause", CAUSES)
def test_a_short_run_that_its_objective_kept_silent_has_failed_and_others_are_told_of(
    cause: str, steps: int, tmp_path: Path, tokenizer: Any, caplog: Any
) -> None:
    objective, changes, why, hint = CAUSES[cause]
    trainer = made(tmp_path, tokenizer, objective, eval_dataset=ROWS, max_steps=steps, **changes)
    if cause == "no score" or (cause in OF_SCORES and steps == 8):  # few scores may be alike by chance
        with pytest.raises(SilentRunError) as it:
            trainer.train()
        assert str(it.value).startswith(f"none of the {steps} steps has moved anything: ") and why in str(it.value)
        assert hint in it.value.hint
    else:
        [line] = told_of(trainer, caplog)
        assert line.startswith(f"None of the first {steps} steps moved anything: ")
        assert why in line or (cause, steps) == ("coarse", 1)
    stored = load_run(tmp_path)
    assert stored.n_steps == steps and not stored.has_moved_by(steps)


def test_a_reward_without_scores_ends_a_short_command_with_1_and_resuming_it_saves_the_base(
    folder: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    (folder / "none.py").write_text("def none(predictions):\n    return [None] * len(predictions)\n")
    words = ["tune", "./none.py:none", *TUNE, "--steps", "3", "--lr", "1e-3", "--eps", "0.5"]
    assert main(words) == 1
    error, hint, resume = capsys.readouterr().err.splitlines()[-3:]
    assert error == "error: none of the 3 steps has moved anything: 'none' has no score on the rows of any step"
    assert hint.startswith("hint: See what it returns")
    assert not Path("run/model").exists() and load_run("run").n_steps == 3

    assert main([*shlex.split(resume.removeprefix("to save the untuned model all the same: zoreward "))]) == 0
    assert "no step moved a weight" in capsys.readouterr().out and Path("run/model").exists()


@pytest.mark.parametrize("objective", ["accuracy", "f1", "neg-cross-entropy", "sklearn:accuracy"])
def test_rows_of_one_answer_are_refused_before_step_1(objective: str, tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(InputError, match="all 6 rows to tune on have the same right answer, ' not'") as refused:
        made(tmp_path / "run", tokenizer, objective, rows=ROWS[::2], **ANSWERS)
    assert "rows of every answer" in refused.value.hint and not (tmp_path / "run").exists()
    made(tmp_path / "seven", tokenizer, seven, rows=ROWS[::2], **ANSWERS)  # it does not look at right answers
    made(tmp_path / "two", tokenizer, objective, rows=ROWS[:2], **ANSWERS)


@pytest.fixture
def ends_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A silent run ends itself after 25 steps in place of 100."""
    monkeypatch.setattr("zoreward.trainer.loop.steps_before_end", lambda steps: 25)


@pytest.mark.usefixtures("ends_soon")
def test_nothing_is_said_where_a_step_moved_something_or_none_should(
    tmp_path: Path, tokenizer: Any, caplog: Any
) -> None:
    moving = made(tmp_path / "moves", tokenizer, "accuracy", **ANSWERS, eps=FAR)
    assert told_of(moving, caplog) == [] and 0 < moving.method_state.silent < 22
    resting = made(tmp_path / "rests", tokenizer, seven, **ANSWERS, eps=FAR, learning_rate=0.0, max_steps=28)
    assert told_of(resting, caplog) == [] and resting.method_state.step == 28


class Resuming(TrainerCallback):
    """Has a run take its last steps for those of one that was resumed, which fails for no silence."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.keeper.judges_silence = state.global_step < state.max_steps


class Told(TrainerCallback):
    def __init__(self) -> None:
        self.told: list[str] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.told.append(f"step {state.global_step}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.told.append("end")


@pytest.mark.usefixtures("ends_soon")
def test_a_silent_run_ends_itself_and_goes_on_when_it_is_resumed(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    callback, settings = Told(), {**ANSWERS, "eps": FAR, "max_steps": 55, "weight_decay": 0.1}
    silent = made(tmp_path / "run", tokenizer, seven, callbacks=[callback], **settings)
    with pytest.raises(SilentRunError, match=r"none of the 25 steps so far has moved anything: every score is 7") as it:
        silent.train()
    assert it.value.hint == "See what the objective returns, or take other rows."
    assert callback.told[-2:] == ["step 25", "end"]
    assert load_run(tmp_path / "run").n_steps == 25

    again = made(tmp_path / "run", tokenizer, seven, **settings)
    with pytest.raises(SilentRunError, match="none of the 50 steps"):
        again.train(resume_from_checkpoint=True)
    last = made(tmp_path / "run", tokenizer, seven, **settings)
    last.train(resume_from_checkpoint=True)
    whole = made(tmp_path / "whole", tokenizer, seven, **settings)
    whole.keeper.judges_silence = False
    whole.train()
    assert (tmp_path / "run/journal.jsonl").read_bytes() == (tmp_path / "whole/journal.jsonl").read_bytes()
    for mine, theirs in zip(last.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_silent_run_of_the_command_line_ends_with_1_a_hint_and_the_way_on(
    folder: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    (folder / "sevens.py").write_text("def seven(predictions):\n    return 7.0\n")
    words = ["tune", "./sevens.py:seven", *TUNE, "--eval-data", "dev.jsonl", "--steps", "120", "--lr", "1e-3"]
    assert main([*words, "--eps", "0.5"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err
    assert err.count("None of the first 20 steps moved anything: every score is 7") == 1
    assert "\nerror: none of the 100 steps so far has moved anything: every score is 7" in err
    hint, resume = err.splitlines()[-2:]
    assert hint.startswith("hint: ") and resume.startswith("resume: zoreward tune ./sevens.py:seven")
    assert not Path("run/model").exists()
    assert main([*words, "--eps", "0.5", "--resume"]) == 0
    assert load_run("run").n_steps == 120 and Path("run/model").exists()


class EndsAtOnce(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = True


def test_the_share_of_silent_steps_that_is_expected_comes_true(tmp_path: Path, tokenizer: Any, caplog: Any) -> None:
    def run(objective: Any, **changes: Any) -> Any:
        trainer = made(tmp_path / str(len(list(tmp_path.iterdir()))), tokenizer, objective, **ANSWERS, **changes)
        told_of(trainer, caplog)
        return trainer

    def said(objective: Any, **changes: Any) -> tuple[list[str], Any]:
        """What is said before step 1 of a run long enough to be told."""
        trainer = run(objective, learning_rate=None, max_steps=200, callbacks=[EndsAtOnce()], **changes)
        lines = [r.getMessage() for r in caplog.records if "first steps will move nothing" in r.getMessage()]
        return list(dict.fromkeys(lines)), trainer

    def silent_share(eps: float, **changes: Any) -> float:
        return run("accuracy", learning_rate=0.0, eps=eps, max_steps=60, **changes).method_state.silent / 60

    [line], trainer = said("accuracy")
    # Twelve steps, three of a direction: a standard error of 0.15 or so; that of sixty is a third.
    assert abs(int(line.split()[1]) / 100 - silent_share(trainer.args.eps)) < 0.3, line
    assert "on batches of 4 rows 'accuracy'" in line and "--batch-size" in line
    lines, trainer = said("accuracy", eps=FAR, num_directions=4)
    assert lines == [] and silent_share(FAR, num_directions=4) < 0.25
    assert said("neg-cross-entropy")[0] == []
