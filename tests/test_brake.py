# ruff: noqa: F811  (fixtures of other files)
"""Contract under test: a run whose dev score falls by more than noise goes back to its best step, and on more slowly,
so often and no oftener; what it wrote replays and resumes bit for bit, wherever it was left."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase, TrainerCallback

from conftest import random_model
from test_cli_resume import TUNE, folder  # noqa: F401  (a fixture)
from test_resume import BEST, KillAfter, Killed, base, lines, same, trainer, weights, weights_at  # noqa: F401
from zoreward.cli import main
from zoreward.journal import Journal, load_run, read_trajectory, replay
from zoreward.records import InputError
from zoreward.registry import get_objective
from zoreward.scoring import Scorer, load_model
from zoreward.trainer import ZOConfig, ZOTrainer
from zoreward.trainer import loop as loop_module
from zoreward.trainer.brake import Brake, values_of_groups

DEV = 11  # rows
NOISE = np.linspace(-0.3, 0.3, DEV)  # of their scores, much the same in every evaluation
# Up, up, down by far, back there up again, down by far, and up.
SCORES = {0: 0.0, 1: 0.4, 2: 0.6, 3: 0.1, 4: 0.7, 5: 0.2, 6: 0.75, 7: 0.8}


def with_rows(monkeypatch: pytest.MonkeyPatch, rows_at: Callable[[int], np.ndarray]) -> None:
    """Give the dev rows these scores after so many steps, whatever the model is."""
    from dataclasses import replace

    real = Scorer.score

    def score(self: Scorer, examples: Any, members: Any = ((),), **options: Any) -> Any:
        found = real(self, examples, members, **options)
        if members == ((),) and options.get("trainer_state") is not None:
            rows = rows_at(options["trainer_state"].global_step).tolist()
            return [replace(found[0], score=fmean(rows), returned={"neg-cross-entropy": rows})]
        return found

    monkeypatch.setattr(Scorer, "score", score)


@pytest.fixture
def falls(monkeypatch: pytest.MonkeyPatch) -> None:
    with_rows(monkeypatch, lambda step: SCORES[step] + NOISE + 0.01 * np.cos(np.arange(DEV)) * (step % 2))


class Weights(TrainerCallback):
    """Keeps the weights that each step begins with."""

    def __init__(self) -> None:
        self.before: list[dict[str, torch.Tensor]] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.before.append({name: weight.clone() for name, weight in model.named_parameters()})


def rewinds(folder: Path) -> list[tuple[int, int]]:
    return [(line["step"], line["to"]) for line in lines(folder) if line["kind"] == "rewind"]


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "running, momentum": {"normalize": "running", "momentum": 0.5, "window": 3, "num_directions": 1},
    "svrg": {"method": "svrg", "full_every": 3, "weight_decay": 0.0, "num_directions": 1},
    "bfloat16, low rank, a schedule": {
        **{"dtype": "bfloat16", "noise": "low-rank", "refresh": 2, "learning_rate": 0.1},
        **{"lr_scheduler_type": "linear", "save_steps": 2},
    },
    "blocks": {"block_every": 1, "momentum": 0.9, "window": 4},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_went_back_is_its_replay_at_every_step(
    kind: str,
    falls: None,
    base: str,
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    seen, run_folder = Weights(), tmp_path / "run"
    run = trainer(run_folder, tokenizer, model=base, callbacks=[seen], **BEST, **KINDS[kind])
    run.train()
    assert rewinds(run_folder) == [(3, 2), (5, 4)]
    assert same(seen.before[3], seen.before[2]) and same(seen.before[5], seen.before[4])
    after = -1 if kind == "svrg" else 6  # which moves nothing up to its next anchor
    assert not same([*seen.before, weights(run)][after], seen.before[5])
    stored, small = load_run(run_folder), read_trajectory(run_folder / "trajectory.safetensors")
    assert stored.path(7) == [0, 1, 3, 5, 6]
    dtype = KINDS[kind].get("dtype", "float32")
    for of_file in (stored, small):
        for step, expected in enumerate([*seen.before, weights(run)]):
            model = replay(of_file, random_model("llama").to(getattr(torch, dtype)), step=step)
            assert same(dict(model.named_parameters()), expected), step
    assert run.kept_step == 7


def test_directions_are_new_and_the_rate_is_a_third(
    falls: None,
    base: str,
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    trainer(tmp_path / "run", tokenizer, model=base, **BEST).train()
    records = list(load_run(tmp_path / "run").records())
    seeds = [term.seed for record in records for term in record.update.terms]
    assert len(set(seeds)) == len(seeds) == 14
    assert [record.lr for record in records] == pytest.approx([0.01] * 3 + [0.01 / 3] * 2 + [0.01 / 9] * 2)
    assert records[3].update.decay == pytest.approx(0.001 / 3)


def kill_in(monkeypatch: pytest.MonkeyPatch, target: Any, name: str, *, after: bool) -> None:
    """Kill the run where a function is called for the first time, before or after it has done its work."""
    real = getattr(target, name)

    def killing(*args: Any, **options: Any) -> None:
        if after:
            real(*args, **options)
        raise Killed

    monkeypatch.setattr(target, name, killing)


INSTANTS: dict[str, Any] = {
    "before the rewind is written": (Journal, "append_rewind", False),
    "after it is written": (Journal, "append_rewind", True),
    "before the weights have moved": (loop_module, "move_to", False),
    "after they have": (loop_module, "move_to", True),
    "before the evaluation": KillAfter(3),
    "a step later": KillAfter(4),
}


@pytest.mark.parametrize("kind", ["plain", *(pytest.param(k, marks=pytest.mark.slow) for k in list(KINDS)[1:])])
@pytest.mark.parametrize("instant", INSTANTS)
def test_it_goes_on_exactly_wherever_it_was_left(
    instant: str,
    kind: str,
    falls: None,
    base: str,
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = trainer(tmp_path / "whole", tokenizer, model=base, **BEST, **KINDS[kind])
    whole.train()
    how = INSTANTS[instant]
    with monkeypatch.context() as patch:
        if isinstance(how, tuple):
            kill_in(patch, *how[:2], after=how[2])
        with pytest.raises(Killed):
            callbacks = [how] if isinstance(how, TrainerCallback) else []
            trainer(tmp_path / "run", tokenizer, model=base, callbacks=callbacks, **BEST, **KINDS[kind]).train()
    run = trainer(tmp_path / "run", tokenizer, model=base, **BEST, **KINDS[kind])
    run.train(resume_from_checkpoint=True)
    for name in ("journal.jsonl", "trajectory.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert same(weights(run), weights(whole)) and run.method_state == whole.method_state


@pytest.mark.parametrize(("noise", "back"), [(2.0, [(2, 0), (5, 4)]), (0.0, [(2, 1), (3, 1), (4, 1), (5, 1)])])
def test_a_gain_within_the_noise_that_is_lost_again_is_none(
    noise: float,
    back: list[tuple[int, int]],
    base: str,
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A score below that of step 0 then leads to step 0, and later ones are not held against what was taken back."""
    scores = {0: 0.0, 1: 0.5, 2: -0.5, 3: 0.2, 4: 0.4, 5: 0.1, 6: 0.45, 7: 0.48}
    other = (
        np.cos(np.arange(DEV)) - np.cos(np.arange(DEV)).mean()
    )  # scores of rows after steps 1 and 2, which are broken
    rows = {step: noise * other if step in (1, 2) else 0.01 * other * (step % 2) for step in scores}
    with_rows(monkeypatch, lambda step: scores[step] + NOISE + rows[step])
    seen = Weights()
    run = trainer(tmp_path / "run", tokenizer, model=base, callbacks=[seen], **BEST)
    run.evaluate()
    run.train()
    assert rewinds(tmp_path / "run") == back
    if not noise:
        return
    assert same(seen.before[2], seen.before[0]) and same(seen.before[5], seen.before[4])
    assert load_run(tmp_path / "run").path(7) == [2, 3, 5, 6]
    assert run.kept_step == 1 and same(weights(run), weights_at(tmp_path / "run", 1))


def test_a_snapshot_of_steps_that_were_taken_back_is_not_used(
    falls: None,
    base: str,
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    changes = {**BEST, "save_steps": 3}
    whole = trainer(tmp_path / "whole", tokenizer, model=base, **BEST)
    whole.train()
    with pytest.raises(Killed):
        trainer(tmp_path / "run", tokenizer, model=base, callbacks=[KillAfter(6)], **changes).train()
    path = tmp_path / "run" / "snapshot.safetensors"
    of_step_3 = path.read_bytes()  # written behind the rewind there, which leads to step 2
    with pytest.raises(Killed):
        trainer(tmp_path / "other", tokenizer, model=base, callbacks=[KillAfter(5)], **BEST, save_steps=5).train()
    for data in (of_step_3, of_step_3[:-1]):
        path.write_bytes(data)
        run = trainer(tmp_path / "run", tokenizer, model=base, **changes)
        assert run.resume() == 6
        run.run.journal.close()
        assert same(weights(run), weights_at(tmp_path / "whole", 6))


@pytest.mark.parametrize(("noise", "back"), [(0.01, True), (2.0, False)])
def test_a_fall_within_the_noise_is_none(
    noise: float,
    back: bool,
    base: str,
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draw = np.random.default_rng(1)
    with_rows(monkeypatch, lambda step: SCORES[step] + noise * (drawn := draw.normal(size=DEV)) - noise * drawn.mean())
    run = trainer(tmp_path / "run", tokenizer, model=base, **BEST)
    run.evaluate()
    run.train()
    assert rewinds(tmp_path / "run") == ([(3, 2), (5, 4)] if back else [])


def test_the_noise_is_that_of_the_same_rows() -> None:
    """The textbook's paired t statistic, where groups are rows."""
    draw = np.random.default_rng(0)
    before, now = draw.normal(size=(2, 12))
    found = []
    for shift in np.linspace(0, 3, 61):
        brake = Brake(4)
        for step, rows in enumerate((before + shift, now)):
            brake.take(step, rows.mean(), rows.tolist())
        gaps = before + shift - now
        assert (brake.fall([]) is not None) == (gaps.mean() > 2 * gaps.std(ddof=1) / 12**0.5), shift
        found.append(brake.fall([]) is not None)
    assert not all(found) and any(found)


def test_groups_of_a_mean_are_means_of_their_rows_and_of_other_scores_what_they_add(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = [{"text": f"{word} film", "label": n % 2} for n, word in enumerate(2 * "good bad great dull".split())]
    for name in ("accuracy", "neg-cross-entropy", "auc"):
        run = trainer(tmp_path / name, tokenizer, objective=name, rows=5 * rows, eval_strategy="no")
        examples = run.train_dataset
        [scored] = run.scorer.score(examples)
        groups = values_of_groups(run.objective, examples, scored)
        assert len(groups) == 17
        if name != "auc":
            of_rows = np.array(scored.returned[name])
            sizes = [len(of_rows[group::17]) for group in range(17)]
            assert sorted(set(sizes)) == [2, 3]
            for group, value in enumerate(groups):
                left = of_rows[[n for n in range(40) if n % 17 != group]].mean()
                assert value == pytest.approx(17 * of_rows.mean() - 16 * left)
        else:
            kept = [example for n, example in enumerate(examples) if n % 17]
            [without] = run.scorer.score(kept)
            assert groups[0] == pytest.approx(17 * scored.score - 16 * without.score)


def test_after_so_many_rewinds_it_ends_at_its_best_step(
    base: str,
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
    caplog: Any,
) -> None:
    with_rows(monkeypatch, lambda step: NOISE - step)
    logging.getLogger("transformers").addHandler(caplog.handler)
    settings = {**BEST, "max_rewinds": 2}
    try:
        run = trainer(tmp_path / "run", tokenizer, model=base, **settings)
        run.evaluate()
        run.train()
    finally:
        logging.getLogger("transformers").removeHandler(caplog.handler)
    assert rewinds(tmp_path / "run") == [(1, 0), (2, 0)]
    assert (run.state.global_step, run.kept_step, run.keeper.stopped_by) == (3, 0, "max_rewinds")
    assert same(weights(run), weights_at(tmp_path / "run", 0))
    told = [record.getMessage() for record in caplog.records if "dev score fell" in record.getMessage()]
    assert len(told) == 3 and all("\n" not in line for line in told)
    assert "step 1: the dev score fell from 0.0000 after step 0 to -1.0000" in told[0] and "back to step 0" in told[0]
    assert "on with 0.333 times" in told[0] and "on with 0.0333 times" in told[1]  # nothing was gained in between
    assert told[2].endswith("the run ends, after 2 rewinds.")

    before = (tmp_path / "run" / "journal.jsonl").read_bytes()
    again = trainer(tmp_path / "run", tokenizer, model=base, **settings)
    again.train(resume_from_checkpoint=True)
    assert (tmp_path / "run" / "journal.jsonl").read_bytes() == before
    assert (again.kept_step, again.keeper.stopped_by) == (0, "max_rewinds")
    more = trainer(tmp_path / "run", tokenizer, model=base, **{**settings, "max_rewinds": 3})
    more.train(resume_from_checkpoint=True)
    assert rewinds(tmp_path / "run") == [(1, 0), (2, 0), (3, 0)] and more.state.global_step == 4


@pytest.mark.parametrize("changes", [{"max_rewinds": 0}, {"load_best_model_at_end": False}])
def test_nothing_goes_back_where_nobody_wants_it(
    changes: dict[str, Any],
    falls: None,
    base: str,
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    run = trainer(tmp_path / "run", tokenizer, model=base, **{**BEST, **changes})
    run.train()
    assert rewinds(tmp_path / "run") == [] and run.state.global_step == 7


def test_a_model_without_a_name_does_not_go_back(
    falls: None, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    run = trainer(tmp_path / "run", tokenizer, **BEST, save_strategy="best")
    run.train()
    assert rewinds(tmp_path / "run") == [] and run.kept_step == 7
    with pytest.raises(InputError, match="goes back"):
        ZOConfig(str(tmp_path), max_rewinds=2, use_cpu=True)


WORDS = "good bad great awful lovely dull fine poor rich flat warm cold bright dim sweet sour".split()
MANY = [{"text": f"{word} film {n}", "label": n % 2} for n in range(4) for n, word in enumerate(WORDS)]


def gain(folder: Path, model: Any, tokenizer: Any, **changes: Any) -> tuple[float, int]:
    """What a run of 80 steps with dev rows gains, and how often it went back."""
    settings = {"template": "{text} it was", "choices": [" not", " very"], "max_steps": 80, "eval_steps": 8}
    run = ZOTrainer(
        model,
        objective=get_objective("neg-cross-entropy"),
        args=ZOConfig(
            str(folder), use_cpu=True, disable_tqdm=True, per_device_train_batch_size=32, num_directions=2,
            eval_strategy="steps", load_best_model_at_end=True, **{**settings, **changes},
        ),
        train_dataset=MANY,
        eval_dataset=MANY,
        processing_class=tokenizer,
    )  # fmt: skip
    run.evaluate()
    run.train()
    stored = load_run(folder)
    return max(score for _, score in stored.evaluations) - stored.evaluations[0][1], len(stored.rewinds)


def test_a_rate_a_hundred_times_too_large_reaches_four_fifths_of_the_gain(
    base: str,
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    good, _ = gain(tmp_path / "good", base, tokenizer)
    config = load_run(tmp_path / "good").header["config"]
    same_but = {name: config[name] for name in ("eps", "normalize")} | {"learning_rate": 100 * config["learning_rate"]}
    braked, times = gain(tmp_path / "braked", base, tokenizer, **same_but)
    free, _ = gain(tmp_path / "free", base, tokenizer, **same_but, max_rewinds=0)
    assert good > 0.01 and braked >= 0.8 * good and free < 0.5 * good and times


def test_a_base_that_cannot_be_loaded_again_leaves_the_run_as_it_is(
    base: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    model = load_model(base)
    next(model.parameters()).data.mul_(1.5)  # no longer what its folder holds
    settings = {"eps": 1e-2, "normalize": "running", "learning_rate": 1.0, "max_steps": 24}
    with pytest.raises(InputError, match="base weights for the best step cannot be loaded again"):  # at the end
        gain(tmp_path / "run", model, tokenizer, **settings)
    [told] = [line for line in caplog.messages if "the dev score fell" in line]
    stored = load_run(tmp_path / "run")
    assert (stored.n_steps, stored.rewinds) == (
        24,
        (),
    ) and "goes on as it is, since the base weights for the best step cannot be loaded again" in told


def test_the_command_goes_back_says_so_and_replays(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["tune", "./rewards.py:wave", *TUNE, "--eval-data", "dev.jsonl", "--eval-every", "2", "--steps", "8"]
    (folder / "scores.json").write_text(json.dumps([0.1, 0.5, 0.2, 0.6, 0.3]))
    assert main([*words, "--output", "few"]) == 0
    assert "the dev score fell" not in capsys.readouterr().err, "five rows say little of their noise"
    monkeypatch.setattr("zoreward.trainer.brake.LEAST_GROUPS", 5)
    (folder / "scores.json").write_text(json.dumps([0.1, 0.5, 0.2, 0.6, 0.3]))
    assert main([*words, "--output", "run", "--json"]) == 0
    out, err = capsys.readouterr()
    told = json.loads(out.splitlines()[-1])
    assert (told["rewinds"], told["stopped"], told["kept"], told["steps"]) == (1, None, 6, 8)
    [line] = [line for line in err.splitlines() if "the dev score fell" in line]
    assert line.startswith("step 4: ") and "0.5000 after step 2 to 0.2000" in line and "back to step 2" in line
    command = ["replay", "run", "--model", "model", "--step", "6", "--output", "again", "--device", "cpu"]
    assert main([*command, "--json"]) == 0
    [rewind] = json.loads(capsys.readouterr().out.splitlines()[-1])["rewinds"]
    assert (rewind["step"], rewind["to"]) == (4, 2)
    mine, theirs = (Path(name, "model.safetensors").read_bytes() for name in ("run/model", "again"))
    assert mine == theirs

    (folder / "scores.json").write_text(json.dumps([0.1, 0.5, 0.2, 0.6, 0.3]))
    assert main([*words, "--output", "free", "--max-rewinds", "0"]) == 0
    out, err = capsys.readouterr()
    assert "fell" not in err and "went back" not in out and not load_run("free").rewinds
    assert main([*words, "--output", "last", "--keep", "last", "--max-rewinds", "2"]) == 2
    assert "goes back to its best step" in capsys.readouterr().err
