"""Contract under test: a run in transformers' loop does SPSA's steps, writes them down, evaluates and saves."""

from __future__ import annotations

import gc
import itertools
import json
import logging
import math
import os

import pytest
import torch
from transformers import TrainerCallback

from conftest import random_model
from rendering import render
from terms import term_of
from zoreward.journal import load_run, replay
from zoreward.members import update_
from zoreward.methods import SPSA
from zoreward.records import InputError, ObjectiveError, Update
from zoreward.registry import get_objective
from zoreward.scoring import evaluate, member_scores
from zoreward.trainer import ZOConfig, ZOTrainer
from zoreward.trainer.inputs import warn_about_classes
from zoreward.trainer.resuming import move_to

GOOD, BAD = "good great lovely bright".split(), "bad awful dull terrible".split()
ROWS = [
    {"text": f"{a} film {b} {c}", "label": int(words is GOOD)}
    for words in (GOOD, BAD)
    for a in words
    for b in ("a", "the")
    for c in words[:2]
]
PROMPT = {"template": "{text} it was", "choices": [" not", " very"]}


def config(tmp_path, **changes) -> ZOConfig:
    settings = {
        "max_steps": 3,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "eps": 1e-2,
        "logging_steps": 1,
    }
    return ZOConfig(str(tmp_path / "run"), use_cpu=True, disable_tqdm=True, **{**settings, **PROMPT, **changes})


def trainer(tmp_path, tokenizer, objective="neg-cross-entropy", model=None, callbacks=None, **changes) -> ZOTrainer:
    return ZOTrainer(
        model or random_model("llama"),
        objective=objective,
        args=config(tmp_path, **changes),
        train_dataset=ROWS,
        eval_dataset=ROWS[::3],
        processing_class=tokenizer,
        callbacks=callbacks,
    )


def journal(tmp_path, kind="step") -> list[dict]:
    lines = (tmp_path / "run" / "journal.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def test_a_run_raises_its_objective(tmp_path, tokenizer):
    run = trainer(tmp_path, tokenizer, max_steps=30, num_directions=2, learning_rate=2e-3)
    before = run.evaluate()["eval_score"]
    run.train()
    after = run.evaluate()["eval_score"]
    assert after > before + 0.1, (before, after)


def test_live_weights_are_base_plus_the_journal_and_scores_are_the_members(tmp_path, tokenizer):
    run = trainer(tmp_path, tokenizer, weight_decay=0.1, num_directions=2)
    run.train()
    [header], steps = journal(tmp_path, "header"), journal(tmp_path)
    assert header["noise_version"] == 2 and header["streams"] == run.scorer.reader.tuned.streams
    assert [step["step"] for step in steps] == [0, 1, 2]
    again = random_model("llama")
    for step in steps:
        assert len(step["scores"]) == 4 and step["decay"] > 0
        update_(again, Update(step["decay"], tuple(term_of(*term) for term in step["terms"]), step["rounding_seed"]))
    for (name, live), (_, replayed) in zip(run.model.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(live, replayed), name
    spsa = SPSA(1e-2, 1e-3, 2, 0.1, seed=0)
    state, query = spsa.init(), spsa.ask(spsa.init())
    assert spsa.tell(state, query, steps[0]["scores"])[0].terms == tuple(term_of(*term) for term in steps[0]["terms"])


class Seen(TrainerCallback):
    def __init__(self):
        self.logs, self.steps, self.evaluations = [], 0, []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(dict(logs))

    def on_step_end(self, args, state, control, **kwargs):
        self.steps += 1

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        self.evaluations.append((state.global_step, metrics["eval_score"]))


def test_callbacks_see_scores_slopes_rates_and_evaluations(tmp_path, tokenizer):
    seen = Seen()
    run = trainer(
        tmp_path, tokenizer, callbacks=[seen], max_steps=4, eval_strategy="steps", eval_steps=2,
        lr_scheduler_type="linear",
    )  # fmt: skip
    run.train()
    steps = journal(tmp_path)
    training = [logs for logs in seen.logs if "score" in logs]
    assert seen.steps == 4 and len(training) == 4
    for logs, step in zip(training, steps, strict=True):
        plus, minus = step["scores"]
        assert logs["score"] == pytest.approx((plus + minus) / 2) and logs["loss"] == pytest.approx(-logs["score"])
        # ε is 0.01 rounded to float32, a relative 2^-24.
        assert logs["grad_norm"] == pytest.approx(abs(plus - minus) / 0.02, rel=1e-6)
    assert [step["lr"] for step in steps] == pytest.approx([1e-3, 0.75e-3, 0.5e-3, 0.25e-3])
    assert [at for at, _ in seen.evaluations] == [2, 4]
    [expected] = member_scores(run.scorer.reader, run.objective, run.eval_dataset)
    assert seen.evaluations[-1][1] == expected
    assert [(line["step"], line["score"]) for line in journal(tmp_path, "evaluation")] == seen.evaluations
    assert run.state.best_metric == max(score for _, score in seen.evaluations)


def has_a_score(predictions, references) -> float:
    """Whether most of the rows are good; of a batch of one class no score."""
    return math.nan if len(set(references)) == 1 else sum(references) / len(references)


def of_good_rows(logprobs, references) -> list[float | None]:
    """What is given to the right answer of good rows; bad ones are another task's."""
    return [float(own[1]) if right else None for own, right in zip(logprobs, references, strict=True)]


def of_bad_rows(logprobs, references) -> list[float]:
    """The same of bad rows, with NaN for what is left out, as arrays have it."""
    return [math.nan if right else float(own[0]) for own, right in zip(logprobs, references, strict=True)]


@pytest.mark.parametrize("objective", [of_good_rows, of_bad_rows])
@pytest.mark.parametrize(
    "method",
    [
        {},
        pytest.param({"method": "fzoo", "num_directions": 3}, marks=pytest.mark.slow),
        pytest.param({"method": "svrg"}, marks=pytest.mark.slow),
    ],
)
def test_a_step_without_a_score_moves_nothing_and_the_run_goes_on(tmp_path, tokenizer, objective, method, caplog):
    def run(name: str, steps: int, **changes) -> ZOTrainer:
        settings = {"max_steps": steps, "per_device_train_batch_size": 1, "eval_strategy": "steps", "eval_steps": 3}
        made = trainer(tmp_path / name, tokenizer, objective, logging_steps=2, **{**settings, **method, **changes})
        made.train(resume_from_checkpoint=name == "left")
        return made

    whole = run("whole", 8)
    steps, scored = journal(tmp_path / "whole"), []
    for step in steps:
        scored.append(None not in step["scores"])
        assert scored[-1] or (set(step["scores"]) == {None} and step["terms"] == [])
    assert 0 < sum(scored) < 8
    assert (whole.method_state.unscored, whole.method_state.silent) == (scored.count(False), scored.count(False))
    told = [record.getMessage() for record in caplog.records]
    assert [line for line in told if "Step" in line] == [
        f"Step {scored.index(False) + 1} moves nothing: {objective.__name__!r} has no score on its rows. "
        "More of this kind are counted, not told."
    ]
    # the first rows are good ones
    assert any("has no score on the first 8 rows" in line for line in told) == (objective is of_bad_rows)
    logs = [one for one in whole.state.log_history if "silent" in one]
    assert logs[-1]["unscored"] == scored.count(False)
    for log, pair in zip(logs, (scored[:2], scored[2:4], scored[4:6], scored[6:]), strict=True):
        assert ("score" in log) == ("loss" in log) == any(pair)
        assert all(math.isfinite(value) for value in log.values())

    run("left", 4)
    left = run("left", 8)
    told = [load_run(tmp_path / name / "run") for name in ("left", "whole")]
    assert list(told[0].records()) == list(told[1].records())
    assert [one for one in told[0].evaluations if one[0] != 4] == list(told[1].evaluations)
    assert left.method_state == whole.method_state
    for name, weight in whole.model.named_parameters():
        assert torch.equal(weight, left.model.get_parameter(name)), name
    replayed = replay(load_run(tmp_path / "left" / "run"), random_model("llama"))
    assert all(torch.equal(weight, replayed.get_parameter(name)) for name, weight in whole.model.named_parameters())


def test_what_has_no_score_on_batches_of_one_class_says_so_before_the_first_step(tmp_path, tokenizer, caplog):
    trainer(tmp_path, tokenizer, "accuracy", per_device_train_batch_size=2)
    trainer(tmp_path, tokenizer, has_a_score, per_device_train_batch_size=12)
    assert "of one class" not in caplog.text
    trainer(tmp_path, tokenizer, has_a_score, per_device_train_batch_size=2)
    # two of 32 rows, 16 of each class: the second is of the first's class in 15 of 31 cases
    assert "'has_a_score' has no score on rows of one class, as in about 48 % of the batches of 2 rows" in caplog.text


def test_of_several_gpus_a_run_takes_the_first_and_says_how_to_take_all(tmp_path, tokenizer, monkeypatch, caplog):
    """transformers would put a copy of the model on each, and give each as many rows."""
    args = config(tmp_path, per_device_train_batch_size=2)
    monkeypatch.setattr(args, "_n_gpu", 3)  # as on a machine with three
    assert args.train_batch_size == 6
    made = ZOTrainer(
        random_model("llama"), "neg-cross-entropy", args=args, train_dataset=ROWS, processing_class=tokenizer
    )
    assert (made.args.n_gpu, made.args.train_batch_size) == (1, 2)
    told = "Of 3 GPUs this run takes the first. All of them: torchrun --nproc-per-node 3"
    assert [record for record in caplog.records if told in record.getMessage()]


def test_a_reward_that_changes_the_directory_does_not_move_the_run(tmp_path, tokenizer, monkeypatch):
    elsewhere, base = tmp_path / "elsewhere", tmp_path / "base"
    elsewhere.mkdir()
    random_model("llama").save_pretrained(base)
    tokenizer.save_pretrained(base)
    monkeypatch.chdir(tmp_path)

    def wanders(predictions, references):
        os.chdir(elsewhere)
        return [
            float(len(predictions) - i) * (p == r) for i, (p, r) in enumerate(zip(predictions, references, strict=True))
        ]

    settings = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 1, **PROMPT}
    args = ZOConfig("run", use_cpu=True, disable_tqdm=True, max_steps=3, noise="dense", **settings)
    made = ZOTrainer("base", wanders, args, train_dataset=ROWS, eval_dataset=ROWS[::3])
    made.train()
    assert len(journal(tmp_path)) == 3
    move_to(made.ready, load_run(tmp_path / "run"), 1, made.args, from_base=False)  # reads the base again
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("ends", [SystemExit(0), GeneratorExit(), KeyboardInterrupt()])
def test_a_model_that_ends_the_process_is_an_error(tmp_path, tokenizer, ends):
    class Ending(type(random_model("llama"))):
        def forward(self, *args, **kwargs):
            if self.ended:
                raise ends
            return super().forward(*args, **kwargs)

    model = random_model("llama")
    model.__class__ = Ending
    model.ended = True
    with pytest.raises(InputError, match=f"^Ending raised {type(ends).__name__}") as told:
        trainer(tmp_path, tokenizer, model=model)
    assert told.value.hint
    model.ended = False
    run = trainer(tmp_path, tokenizer, model=model)
    model.ended = True
    with pytest.raises(InputError, match=f"^Ending raised {type(ends).__name__}"):
        run.train()


def test_dev_rows_without_a_score_are_an_error_before_the_first_step(tmp_path, tokenizer):
    bad = [row for row in ROWS if not row["label"]]
    made = trainer(tmp_path, tokenizer, of_good_rows)
    with pytest.raises(ObjectiveError, match="'of_good_rows' has no score on these 16 rows"):
        made.evaluate(bad)
    with pytest.raises(ObjectiveError, match="has no score on these 16 rows"):
        evaluate(random_model("llama"), of_good_rows, bad, tokenizer=tokenizer, **PROMPT)


@pytest.mark.parametrize("schedule", [{}, {"lr_scheduler_type": "constant_with_warmup"}])
@pytest.mark.parametrize("warmup", [2, 0.5])
def test_the_rate_rises_over_the_steps_of_a_warmup(tmp_path, tokenizer, schedule, warmup):
    run = trainer(tmp_path, tokenizer, max_steps=4, warmup_steps=warmup, **schedule)
    run.train()
    assert [step["lr"] for step in journal(tmp_path)] == pytest.approx([0.0, 0.5e-3, 1e-3, 1e-3])
    [header] = journal(tmp_path, "header")
    assert header["config"]["lr_scheduler_type"] == "constant_with_warmup"


def test_a_schedule_that_knows_no_warmup_is_refused_with_one(tmp_path):
    for name in ("reduce_lr_on_plateau", "greedy"):
        with pytest.raises(InputError, match=f"warmup_steps has no use with lr_scheduler_type={name}") as refused:
            config(tmp_path, lr_scheduler_type=name, warmup_steps=3, eval_strategy="steps", eval_steps=1)
        assert "constant_with_warmup" in refused.value.hint


def test_accumulated_batches_are_scored_together(tmp_path, tokenizer):
    sizes = []

    def spy(predictions, references):
        sizes.append(len(predictions))
        return [float(a == b) for a, b in zip(predictions, references, strict=True)]

    run = trainer(tmp_path, tokenizer, spy, gradient_accumulation_steps=2, per_device_train_batch_size=4, max_steps=2)
    sizes.clear()
    run.train()
    assert sizes == [8, 8, 8, 8]  # two steps, two members each, never 4 rows


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tmp_path, tokenizer):
    journals = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        torch.manual_seed(len(journals))  # the run must not depend on what was drawn before
        trainer(tmp_path / name, tokenizer, seed=seed).train()
        journals.append(journal(tmp_path / name))
    assert journals[0] == journals[1] and journals[0] != journals[2]


def test_a_saved_model_scores_the_same(tmp_path, tokenizer):
    run = trainer(tmp_path, tokenizer)
    run.train()
    run.save_model(str(tmp_path / "model"))
    score = evaluate(str(tmp_path / "model"), "neg-cross-entropy", ROWS[::3], **PROMPT).score
    assert score == run.evaluate()["eval_score"]


def test_an_objective_that_fails_later_leaves_the_weights_of_the_last_step(tmp_path, tokenizer):
    calls = []

    def fragile(predictions):
        calls.append(1)
        if len(calls) > 1 + 2 * 2:  # the trial, then two members a step
            raise TimeoutError("judge is down")
        return float(len(calls))

    run = trainer(tmp_path, tokenizer, fragile)
    with pytest.raises(ObjectiveError, match="judge is down"):
        run.train()
    again = random_model("llama")
    steps = journal(tmp_path)
    assert len(steps) == 2
    for step in steps:
        update_(again, Update(step["decay"], tuple(term_of(*term) for term in step["terms"]), step["rounding_seed"]))
    assert all(torch.equal(a, b) for a, b in zip(run.model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_move_by_less_than_half_an_ulp(tmp_path, tokenizer, dtype):
    model = random_model("llama").to(dtype)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    run = trainer(tmp_path, tokenizer, model=model, learning_rate=1e-5, max_steps=1)
    run.train()
    coefficient = abs(journal(tmp_path)[0]["terms"][0][1])
    moved = torch.cat([(weight != before[name]).flatten() for name, weight in model.named_parameters()])
    # Steps of |coefficient·z| are far below half an ulp of weights of size 0.3 (2^-10 in bfloat16, 2^-13 in float16):
    # to nearest nothing would move there; stochastically a share of about E|c·z|/ulp does.
    assert coefficient * 5.7 < 2.0**-11
    assert 0 < moved.float().mean() < 0.5


# transformers 5.24 gives it another name.
SAVING = next(name for name in ("activation_checkpointing", "gradient_checkpointing") if hasattr(ZOConfig, name))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fp16": True}, "fp16"),
        ({"max_grad_norm": 1.0}, "max_grad_norm"),
        ({SAVING: True}, SAVING),
    ],
)
def test_options_that_need_gradients_are_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        config(tmp_path, **changes)


def test_nothing_is_written_before_the_objective_has_worked(tmp_path, tokenizer):
    def broken(predictions):
        raise KeyError("sentiment")

    with pytest.raises(ObjectiveError, match="sentiment"):
        trainer(tmp_path, tokenizer, broken)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_holds_a_run_is_refused(tmp_path, tokenizer):
    trainer(tmp_path, tokenizer).train()
    before = (tmp_path / "run" / "journal.jsonl").read_bytes()
    with pytest.raises(InputError, match="holds a run already") as refused:
        trainer(tmp_path, tokenizer).train()
    assert "resume_from_checkpoint=True" in refused.value.hint
    assert (tmp_path / "run" / "journal.jsonl").read_bytes() == before


def test_a_model_whose_rows_mix_is_tuned_one_member_at_a_time(tmp_path, tokenizer, caplog):
    model = random_model("llama")

    def mix(module, args, output):
        return output + 0.5 * output.mean(0, keepdim=True)

    model.model.layers[0].mlp.register_forward_hook(mix)
    run = trainer(tmp_path, tokenizer, model=model)
    assert not run.scorer.reader.grouped and "differ" in run.scorer.reader.problem
    query = run.method.ask(run.method_state)
    together = member_scores(run.scorer.reader, run.objective, run.train_dataset[:8], query.members)
    assert together == [
        member_scores(run.scorer.reader, run.objective, run.train_dataset[:8], (member,))[0] for member in query.members
    ]
    run.train()
    assert len(journal(tmp_path)) == 3


def test_a_second_run_of_one_trainer_is_refused(tmp_path, tokenizer):
    run = trainer(tmp_path, tokenizer)
    run.train()
    run.args.output_dir = str(tmp_path / "other")
    with pytest.raises(InputError, match="has done its run"):
        run.train()
    assert not (tmp_path / "other").exists()


def test_options_of_any_type_fit_the_journal(tmp_path, tokenizer):
    def pen(predictions, *, table: object = None):
        return float(len(predictions))

    run = trainer(tmp_path, tokenizer, get_objective(pen, table=tmp_path))
    run.train()
    assert journal(tmp_path, "header")[0]["options"] == {"table": str(tmp_path)}


@pytest.mark.parametrize(
    ("changes", "steps"),
    [({}, 1000), ({"num_train_epochs": 2}, 2 * len(ROWS) // 8), ({"num_train_epochs": 2, "max_steps": 5}, 5)],
)
def test_epochs_count_where_steps_are_not_given(tmp_path, tokenizer, changes, steps):
    settings = {"per_device_train_batch_size": 8, "learning_rate": 0.0}

    class Stop(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            self.steps = state.max_steps
            control.should_training_stop = True

    stop = Stop()
    args = ZOConfig(str(tmp_path / "run"), use_cpu=True, disable_tqdm=True, **settings, **PROMPT, **changes)
    run = ZOTrainer(
        random_model("llama"),
        objective="accuracy",
        args=args,
        train_dataset=ROWS,
        processing_class=tokenizer,
        callbacks=[stop],
    )
    run.train()
    assert stop.steps == steps


def test_prompts_stay_within_the_context_whatever_is_asked_for(tmp_path, tokenizer):
    rows = [{"text": "good " * 200, "label": 0}, {"text": "bad " * 200, "label": 1}]
    args = config(tmp_path, max_length=1000)
    run = ZOTrainer(
        random_model("opt"), objective="accuracy", args=args, train_dataset=rows, processing_class=tokenizer
    )
    # OPT has an embedding for each of its 64 positions, and none beyond
    assert {len(example.prompt_tokens) + 1 for example in run.train_dataset} == {64}


@pytest.mark.slow
def test_while_a_run_lasts_pythons_collector_leaves_alone_what_was_there(tmp_path, tokenizer, monkeypatch):
    seen = []
    monkeypatch.undo()  # that of conftest.py

    class Look(TrainerCallback):
        def on_step_end(self, *_, **__):
            seen.append(gc.get_freeze_count())

    set_aside = gc.get_freeze_count() > 0  # by conftest.py
    gc.unfreeze()
    try:
        trainer(tmp_path / "one", tokenizer, callbacks=[Look()]).train()
        assert min(seen) > 10_000 and gc.get_freeze_count() == 0
        gc.freeze()  # as a server does
        trainer(tmp_path / "two", tokenizer).train()
        assert gc.get_freeze_count() > 0, "it was not ours to undo"
    finally:
        if not set_aside:
            gc.unfreeze()


class Batches(TrainerCallback):
    """The texts of each step's rows."""

    def __init__(self) -> None:
        self.texts: list[list[str]] = []

    def on_step_end(self, args, state, control, **kwargs):
        self.texts.append([example.row["text"] for example in self.run.last_rows])


@pytest.mark.parametrize(("changes", "sizes"), [({}, [12, 12, 8] * 2), ({"dataloader_drop_last": True}, [12] * 4)])
def test_batches_are_drawn_without_replacement_and_the_short_last_one_may_be_dropped(
    changes, sizes, tmp_path, tokenizer
):
    seen = Batches()
    changes = {"max_steps": len(sizes), "per_device_train_batch_size": 12, **changes}
    seen.run = trainer(tmp_path, tokenizer, callbacks=[seen], **changes)
    seen.run.train()
    assert [len(texts) for texts in seen.texts] == sizes
    per_epoch = len(sizes) // 2
    for epoch in (seen.texts[:per_epoch], seen.texts[per_epoch:]):
        texts = [text for texts in epoch for text in texts]
        assert len(set(texts)) == len(texts) == sum(sizes) // 2
    assert seen.texts[:per_epoch] != seen.texts[per_epoch:], "each epoch has an order of its own"


def test_rows_that_make_no_full_batch_are_refused_where_the_short_one_is_dropped(tmp_path, tokenizer):
    with pytest.raises(InputError, match="32 rows make no full batch of 40") as refused:
        trainer(tmp_path, tokenizer, per_device_train_batch_size=40, dataloader_drop_last=True)
    assert "dataloader_drop_last" in refused.value.hint


def test_a_run_takes_a_data_frame_and_refuses_splits(tmp_path, tokenizer):
    pd, datasets = pytest.importorskip("pandas"), pytest.importorskip("datasets")
    frame, settings = pd.DataFrame(ROWS), {"args": config(tmp_path), "processing_class": tokenizer}
    run = ZOTrainer(
        random_model("llama"), objective="accuracy", train_dataset=frame, eval_dataset=frame[::3], **settings
    )
    assert [example.row for example in run.train_dataset] == ROWS
    assert run.evaluate()["eval_rows"] == len(ROWS[::3]) and run.evaluate(frame[:2])["eval_rows"] == 2
    rows = datasets.Dataset.from_list(ROWS)
    splits = datasets.DatasetDict({"train": rows, "test": rows})
    for given in ({"train_dataset": splits}, {"train_dataset": ROWS, "eval_dataset": splits}):
        with pytest.raises(InputError, match="these are 2 splits") as caught:
            ZOTrainer(random_model("llama"), objective="accuracy", **given, **settings)
        assert "train, test" in caught.value.hint


def test_a_datasets_names_of_classes_name_choices_in_a_run(tmp_path, tokenizer):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = datasets.Dataset.from_list(ROWS, features=features)
    choices = ["yes= very", "no= not"]
    result = evaluate(
        random_model("llama"), "accuracy", rows, tokenizer=tokenizer, template="{text} it was", choices=choices
    )
    wanted = evaluate(random_model("llama"), "accuracy", ROWS, tokenizer=tokenizer, **PROMPT)
    assert result.score == wanted.score and 0 < result.score < 1
    run = ZOTrainer(
        random_model("llama"),
        objective="accuracy",
        args=config(tmp_path, choices=choices),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    assert [example.candidates[example.reference] for example in run.train_dataset[:9:8]] == [" very", " very"]


def set_level(predictions, references) -> float:
    return 0.0


@pytest.mark.parametrize(
    ("objective", "rows", "batch", "said"),
    [
        ("f1", [0] * 9 + [1], 16, None),  # all rows in each batch
        ("f1", [0] * 18 + [1] * 2, 10, "A batch of 10 rows holds 1 of the rarest answer, ' very', on average"),
        ("mcc", [1] * 30 + [0] * 10, 4, "rarest answer, ' not', on average; the mean of mcc over such batches"),
        ("mcc", [1] * 30 + [0] * 10, 8, None),
        ("auc", [0] * 30 + [1] * 10, 7, "Take --batch-size 8 or more"),
        ("sklearn:f1_macro", [0] * 30 + [1] * 10, 7, "of f1_macro over"),
        (set_level, [0] * 30 + [1] * 10, 7, "of set_level over"),
        ("sklearn:balanced_accuracy", [0] * 30 + [1] * 10, 7, "of balanced_accuracy over"),
        ("sklearn:neg_log_loss", [0] * 30 + [1] * 10, 7, None),  # a mean over rows
        ("sklearn:neg_brier_score", [0] * 30 + [1] * 10, 7, None),
        ("sklearn:accuracy", [0] * 30 + [1] * 10, 7, None),
        ("sklearn:accuracy_score", [0] * 30 + [1] * 10, 7, None),
        ("accuracy", [0] * 18 + [1] * 2, 4, None),
        ("neg-cross-entropy", [0] * 18 + [1] * 2, 4, None),
    ],
)
def test_a_metric_of_batches_with_few_rows_of_an_answer_is_doubted(tokenizer, caplog, objective, rows, batch, said):
    examples = render([{"text": "a film", "label": label} for label in rows], tokenizer, needs="choices", **PROMPT)
    warn_about_classes(get_objective(objective), examples, batch)
    assert said in caplog.text if said else not caplog.records


# Rows that are predicted.


def test_choices_are_predicted_with_their_log_probabilities(tmp_path, tokenizer):
    run = trainer(tmp_path, tokenizer, objective="accuracy", max_steps=1)
    rows = [*ROWS[3:8], *ROWS[-4:]]
    found = run.predict(rows)
    assert found.predictions.shape == (9, 2) and (found.predictions < 0).all()
    assert found.label_ids.tolist() == [row["label"] for row in rows]
    right = (found.predictions.argmax(1) == found.label_ids).mean()
    assert (
        found.metrics["test_score"]
        == pytest.approx(right)
        == evaluate(run.model, "accuracy", rows, tokenizer=tokenizer, **PROMPT).score
    )
    assert found.metrics["test_rows"] == 9 and found.metrics["test_runtime"] > 0
    assert not (tmp_path / "run" / "journal.jsonl").exists() and run.state.log_history == []
    # A row on its own is predicted as among others: 1e-5 are a hundred float32 roundings of a log-probability.
    assert run.predict(rows[2:3], metric_key_prefix="own").predictions[0] == pytest.approx(
        found.predictions[2], abs=1e-5
    )


def test_texts_are_predicted_as_they_are_written(tmp_path, tokenizer):
    def brevity(completions):
        return [-float(len(text)) for text in completions]

    changes = {"template": None, "prompt": "text", "choices": None, "max_completion_length": 3, "num_directions": 2}
    run = trainer(tmp_path, tokenizer, objective=brevity, max_steps=1, **changes)
    found = run.predict(ROWS[:5], metric_key_prefix="own")
    assert found.predictions.shape == (5,) and all(isinstance(text, str) for text in found.predictions)
    assert found.label_ids is None
    assert found.metrics["own_score"] == -sum(map(len, found.predictions)) / 5
    assert found.metrics["own_length"] > 0


def test_what_cannot_be_predicted_is_refused(tmp_path, tokenizer):
    run = trainer(tmp_path, tokenizer)
    with pytest.raises(InputError, match="no rows"):
        run.predict([])
    with pytest.raises(InputError, match="text"):
        run.predict([{"label": 1}])


def test_a_card_can_be_asked_for_and_no_training_arguments_are_pickled(tmp_path, tokenizer):
    run = trainer(tmp_path, tokenizer, max_steps=2)
    run.train()
    run.save_model()  # into the run folder itself
    assert "tuned by zoreward" in (tmp_path / "run" / "README.md").read_text()
    run.create_model_card(license="apache-2.0", tags="reviews", model_name="Mine | yours", finetuned_from="else")
    card = (tmp_path / "run" / "README.md").read_text()
    assert card.startswith("---\n") and 'license: "apache-2.0"' in card and '"reviews"' in card
    assert "# Mine \\| yours" in card and "| rows to tune on | 32 |" in card and "| steps | 2 |" in card
    assert "AdamW" not in card and "finetuned_from" not in card
    assert not list(tmp_path.rglob("*.bin"))


@pytest.mark.parametrize("why", ["a rate of 0", "all tie", "the base is the best"])
def test_the_card_of_a_model_that_no_step_moved_does_not_say_that_it_is_tuned(why, tmp_path, tokenizer):
    scores = itertools.count(0, -1)
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 1}
    changes, reason = {
        "a rate of 0": ({"learning_rate": 0.0}, "none of the 2 steps moved one"),
        "all tie": ({"objective": lambda predictions: 0.5}, "none of the 2 steps moved one"),
        "the base is the best": (
            {"objective": lambda predictions: float(next(scores)), **best},
            "none of the 2 steps is in them",
        ),
    }[why]
    random_model("llama").save_pretrained(tmp_path / "base")
    run = trainer(tmp_path, tokenizer, **{"max_steps": 2, "model": str(tmp_path / "base"), **changes})
    run.evaluate()
    run.train()
    run.save_model(str(tmp_path / "model"))
    card = (tmp_path / "model" / "README.md").read_text()
    assert "# A model that was not moved" in card and f"{reason}. It is not tuned." in card
    assert "tuned by zoreward" not in card and "weights were moved" not in card


def test_a_trajectory_that_cannot_be_written_is_a_warning(tmp_path, tokenizer, monkeypatch, caplog):
    def refuse(run, path):
        raise InputError("step 0 has terms that do not follow from the seed", hint="Keep the journal.")

    monkeypatch.setattr("zoreward.trainer.resuming.write_trajectory", refuse)
    monkeypatch.setattr("zoreward.trainer.resuming.logging.get_logger", lambda name: logging.getLogger("resuming"))
    trainer(tmp_path, tokenizer, max_steps=1).train()
    assert "trajectory.safetensors could not be written: step 0 has terms" in caplog.text
