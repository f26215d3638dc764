"""Contract under test: a run that was left at any step goes on as if it had not been: the same weights, scores, rows
and evaluations, bit for bit. What does not fit is refused; a full disk or a failing objective loses nothing."""

from __future__ import annotations

import functools
import json
import os
import resource
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import EarlyStoppingCallback, TrainerCallback

from conftest import random_model
from zoreward.journal import Journal, load_run, write_trajectory
from zoreward.journal.lines import encode
from zoreward.methods import METHODS
from zoreward.records import InputError, ObjectiveError, StorageError
from zoreward.registry import code_of, get_objective, weighted_sum
from zoreward.trainer import ZOConfig, ZOTrainer
from zoreward.trainer.header import refuse_other_run
from zoreward.trainer.keeper import Keeper

pytestmark = pytest.mark.usefixtures("trials_are_kept")

GOOD, BAD = "good great lovely bright".split(), "bad awful dull terrible".split()
ROWS = [
    {"text": f"{a} film {b} {c}", "label": int(words is GOOD)}
    for words in (GOOD, BAD)
    for a in words
    for b in ("a", "the")
    for c in words[:2]
]
PROMPT = {"template": "{text} it was", "choices": [" not", " very"]}
STEPS = 7


class Killed(BaseException):
    """Stands for a kill: nothing of ours may catch it."""


class KillAfter(TrainerCallback):
    """Ends a run after so many steps, before it evaluates there."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Killed


# To find a name, all installed packages are read: a quarter of a second.
named = functools.cache(get_objective)


def trainer(folder: Path, tokenizer, *, model=None, callbacks=(), objective="neg-cross-entropy", rows=ROWS, **changes):
    settings = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 8,  # four steps an epoch
        "learning_rate": 1e-2,
        "eps": 1e-2,
        "num_directions": 2,
        "weight_decay": 0.1,
        "eval_strategy": "steps",
        "eval_steps": 3,
    }
    changes = {**PROMPT, **settings, **changes}
    return ZOTrainer(
        model if model is not None else random_model("llama"),
        objective=named(objective) if isinstance(objective, str) else objective,
        args=ZOConfig(str(folder), use_cpu=True, disable_tqdm=True, **changes),
        train_dataset=rows,
        eval_dataset=ROWS[::3] if changes["eval_strategy"] != "no" else None,
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )


def weights(run: ZOTrainer) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in run.model.named_parameters()}


def same(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]


def killed(folder: Path, tokenizer, step: int, **changes) -> None:
    with pytest.raises(Killed):
        trainer(folder, tokenizer, callbacks=[KillAfter(step)], **changes).train()


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tokenizer) -> tuple[dict[str, torch.Tensor], bytes]:
    """The weights and the journal of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    run = trainer(folder, tokenizer)
    run.train()
    return weights(run), (folder / "journal.jsonl").read_bytes()


@pytest.mark.parametrize(
    "step",
    [step if step in (1, STEPS) else pytest.param(step, marks=pytest.mark.slow) for step in range(1, STEPS + 1)],
)
def test_a_run_that_was_left_after_any_step_goes_on_exactly(step, whole, tmp_path, tokenizer):
    killed(tmp_path, tokenizer, step)
    torch.manual_seed(step)  # what is drawn elsewhere must not matter
    run = trainer(tmp_path, tokenizer)
    torch.manual_seed(step)
    run.train(resume_from_checkpoint=True)
    assert same(weights(run), whole[0])
    assert (tmp_path / "journal.jsonl").read_bytes() == whole[1]  # steps, scores, evaluations, in their order
    assert run.state.global_step == STEPS and run.kept_step == STEPS
    assert (tmp_path / "trajectory.safetensors").exists()


def brevity(completions, **columns):
    return [-len(completion.split()) + 0.1 * len(completion) for completion in completions]


TEXTS = {
    "objective": brevity, "template": None, "prompt": "text", "choices": None, "temperature": 1.0,
    "max_completion_length": 4, "num_directions": 4, "learning_rate": None, "eps": None, "weight_decay": 0.0,
}  # fmt: skip
KINDS = {
    "epochs, accumulated": {
        "max_steps": -1, "num_train_epochs": 2, "gradient_accumulation_steps": 3, "eval_strategy": "epoch",
        "per_device_train_batch_size": 2, "lr_scheduler_type": "linear", "warmup_steps": 2,
    },
    "a rate that follows the scores": {
        "lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"patience": 0}, "eval_steps": 1,
    },
    "bfloat16": {"dtype": torch.bfloat16},
    "low-rank, writing": TEXTS,
    "fzoo, low-rank, from the first evaluation on": {"method": "fzoo", "noise": "low-rank", "eval_on_start": True},
    "svrg": {"method": "svrg", "full_every": 3, "anneal_every": 2, "weight_decay": 0.0},
    "gaussian directions, in bfloat16": {"distribution": "gaussian", "dtype": torch.bfloat16},
    "towards its base, in bfloat16": {"anchor": 10.0, "dtype": torch.bfloat16},
    "momentum, with a factor that lasts": {"method": "lozo-m", "refresh": 3, "window": 3, "more_every": 2},
    "a subspace that lasts, in bfloat16": {"method": "subzero", "rank": 5, "refresh": 3, "dtype": torch.bfloat16},
    "the small weights, in bfloat16": {"method": "sparse", "dtype": torch.bfloat16},
    "blocks in turn, with momentum": {"method": "bcd", "block_every": 2, "momentum": 0.5, "window": 3},
    "rows in their order, one batch short": {"train_sampling_strategy": "sequential", "per_device_train_batch_size": 5},
}  # fmt: skip
KINDS |= {name: {"method": name} for name in METHODS if name not in {kind.get("method") for kind in KINDS.values()}}


# The others take as long again; `make test-faults` runs them too.
QUICK = ("bfloat16",)
EACH = [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]


@pytest.mark.parametrize("kind", EACH)
def test_so_does_every_kind_of_run_however_often_it_was_left(kind, tmp_path, tokenizer):
    changes = dict(KINDS[kind])
    dtype = changes.pop("dtype", torch.float32)

    def made(name: str, *callbacks) -> ZOTrainer:
        return trainer(
            tmp_path / name, tokenizer, model=random_model("llama").to(dtype), callbacks=callbacks, **changes
        )

    expected = made("whole")
    expected.train()
    for kill in (2, 5, 6):
        with pytest.raises(Killed):
            made("left", KillAfter(kill)).train(resume_from_checkpoint=True)
    run = made("left")
    run.train(resume_from_checkpoint=True)
    assert same(weights(run), weights(expected))
    assert lines(tmp_path / "left") == lines(tmp_path / "whole")
    assert run.method_state == expected.method_state and run.state.best_metric == expected.state.best_metric
    evaluations = [
        [log["eval_score"] for log in one.state.log_history if "eval_score" in log] for one in (run, expected)
    ]
    assert evaluations[0] == evaluations[1]


# Journals that end somewhere else than behind a step.


@pytest.mark.parametrize("left", ["nothing", "a torn header", "a header", "a torn step", "another header"])
def test_a_run_that_was_killed_while_it_wrote_goes_on_or_begins(left, whole, tmp_path, tokenizer):
    stored = whole[1].splitlines(keepends=True)
    kept = {
        "nothing": b"",
        "a torn header": stored[0][:50],
        "a header": stored[0],
        "a torn step": b"".join(stored[:4])[:-7],
    }
    if left == "another header":
        killed(tmp_path, tokenizer, 1, eps=0.5)
        kept[left] = (tmp_path / "journal.jsonl").read_bytes().splitlines(keepends=True)[0]
    (tmp_path / "journal.jsonl").write_bytes(kept[left])
    run = trainer(tmp_path, tokenizer)
    run.train(resume_from_checkpoint=True)
    assert same(weights(run), whole[0])
    assert (tmp_path / "journal.jsonl").read_bytes() == whole[1]


@pytest.mark.parametrize("left", ["nothing", "half"])
def test_a_prefix_that_was_not_written_down_before_a_kill_is_written_then(left, tmp_path, tokenizer):
    few = {"tune": "prefix", "max_steps": 1, "eval_strategy": "no", "weight_decay": 0.0}
    run = trainer(tmp_path / "whole", tokenizer, **few)
    run.train()
    first = (tmp_path / "whole" / "journal.jsonl").read_bytes().splitlines(keepends=True)[0]
    folder = tmp_path / "left"
    (folder / "start").mkdir(parents=True)
    (folder / "journal.jsonl").write_bytes(first)
    if left == "half":
        (folder / "start" / "adapter_model.safetensors").write_bytes(b"half")
    again = trainer(folder, tokenizer, **few)
    again.train(resume_from_checkpoint=True)
    assert same(weights(again), weights(run))
    files = [
        {path.name: path.read_bytes() for path in (tmp_path / name / "start").iterdir()} for name in ("whole", "left")
    ]
    assert files[0] == files[1] and files[0].keys() == {"adapter_config.json", "adapter_model.safetensors"}


def test_where_there_is_no_run_it_begins(whole, tmp_path, tokenizer):
    run = trainer(tmp_path / "new", tokenizer)
    run.train(resume_from_checkpoint=str(tmp_path / "new"))
    assert (tmp_path / "new" / "journal.jsonl").read_bytes() == whole[1]


def test_a_finished_run_is_left_alone(whole, tmp_path, tokenizer):
    (tmp_path / "journal.jsonl").write_bytes(whole[1])
    run = trainer(tmp_path, tokenizer, callbacks=[KillAfter(STEPS)])
    run.train(resume_from_checkpoint=True)
    assert same(weights(run), whole[0]) and run.state.global_step == STEPS
    assert (tmp_path / "journal.jsonl").read_bytes() == whole[1]


def test_more_steps_can_be_asked_for_where_the_rate_is_constant(whole, tmp_path, tokenizer):
    trainer(tmp_path, tokenizer, max_steps=5, eval_strategy="no").train()
    run = trainer(tmp_path, tokenizer, eval_strategy="no")
    run.train(resume_from_checkpoint=True)
    assert same(weights(run), whole[0])


# What does not fit.


def other_rows() -> list[dict]:
    return [{**ROWS[0], "text": "a dull film"}, *ROWS[1:]]


REFUSED = {
    "eps": ({"eps": 2e-2}, "eps=0.01, not 0.02"),
    "rate": ({"learning_rate": 1e-3}, "lr=0.01, not 0.001"),
    "directions": ({"num_directions": 3}, "num_directions=2, not 3"),
    "noise": ({"noise": "low-rank"}, "rank=0, not 1"),
    "method": ({"method": "es"}, "method='spsa', not 'es'"),
    "seed": ({"seed": 1}, "seed=0, not 1"),
    "batch": ({"per_device_train_batch_size": 4}, "per_device_train_batch_size=8, not 4"),
    "schedule": ({"lr_scheduler_type": "linear"}, "lr_scheduler_type=its default, not 'linear'"),
    "template": ({"template": "{text} is"}, "template='{text} it was', not '{text} is'"),
    "objective": ({"objective": "accuracy"}, "objective='neg-cross-entropy', not 'accuracy'"),
    "rows": ({"rows": other_rows()}, "other rows to tune on"),
    "order": ({"rows": ROWS[::-1]}, "other rows to tune on"),
    "base": ({"model": random_model("llama", seed=1)}, "began with other weights"),
    "dtype": ({"model": random_model("llama").half()}, "dtype='float32', not 'float16'"),
    "family": ({"model": random_model("opt")}, "tunes other weights"),
    "fewer steps": ({"max_steps": 2}, "has done 3 steps, more than 2"),
}


SCALE = 2.0


def scaled(score):
    return SCALE * score


class Scaled:
    """A class, whose instances score."""

    def __call__(self, completions):
        return [scaled(len(text)) for text in completions]


def length(completions, *, power: float = 1.0):
    return [scaled(len(text)) ** power for text in completions]


def test_code_is_that_of_a_function_and_of_all_that_it_uses(tmp_path, monkeypatch):
    text = (
        "import math\nA = 1\nB = 2\n\ndef helper(x):\n    return A * x\n\n"
        "def reward(completions):\n    return [helper(len(c)) for c in completions]\n\n"
        "def other(completions):\n    return B\n"
    )
    file = tmp_path / "own.py"

    def code(source: str, name: str = "reward") -> str:
        file.write_text(source)
        [found] = code_of(get_objective(f"{file}:{name}")).values()
        return found

    first = code(text)
    assert len(first) == 64 == len(code(text, "other")) and code(text) == first != code(text, "other")
    for unrelated in (text.replace("B = 2", "B = 3"), text + "\nC = 5\n", "# a comment\n" + text):
        assert code(unrelated) == first
    for edited in ("A = 1|A = 2", "A * x|A + x", "len(c)|len(c) + 1", "in completions]|in completions[::2]]"):
        assert code(text.replace(*edited.split("|"), 1)) != first, edited


def test_code_of_classes_partials_sums_and_of_what_has_none():
    own, other = code_of(get_objective(length))["length"], code_of(get_objective(Scaled))["Scaled"]
    assert own and other and own != other
    assert code_of(get_objective(functools.partial(length, power=2.0)))["length"] == own
    both = weighted_sum([get_objective(length), get_objective(Scaled)], [1.0, 0.5])
    assert code_of(both) == {"length": own, "Scaled": other}
    made = {}
    exec("def written(completions):\n    return 0.5", made)
    assert code_of(get_objective(made["written"])) == {"written": None}


def test_a_run_that_knows_nothing_of_its_code_and_its_model_s_config_goes_on(left, tmp_path, tokenizer, whole):
    first, *others = (left / "journal.jsonl").read_bytes().splitlines(keepends=True)
    header = {name: value for name, value in json.loads(first).items() if name not in ("code", "model_config", "crc")}
    data, crc = encode(header, 0)
    for line in others:
        fields = {name: value for name, value in json.loads(line).items() if name != "crc"}
        more, crc = encode(fields, crc)
        data += more
    (tmp_path / "journal.jsonl").write_bytes(data)
    run = trainer(tmp_path, tokenizer)
    run.train(resume_from_checkpoint=True)
    assert same(weights(run), whole[0])


@pytest.mark.parametrize(
    ("then", "now", "release", "told"),
    [
        ({"rope_theta": 1.0}, {"rope_theta": 2.0}, "5.24.0", "rope_theta=1.0, not 2.0"),
        ({"layers": [1]}, {"layers": [1], "window": 4}, "5.24.0", "window=its default, not 4"),
        ({"layers": [1]}, {"layers": [1], "window": 4}, "5.25.0", None),  # a newer transformers knows more fields
        ({"layers": [1]}, {"layers": [2], "window": 4}, "5.25.0", r"layers=\[1\], not \[2\]"),
    ],
)
def test_configs_of_models_are_compared(then, now, release, told):
    header = {"rows": {}, "streams": {}, "fingerprint": "", "versions": {"transformers": "5.24.0"}}
    headers = {**header, "model_config": then}, {**header, "model_config": now, "versions": {"transformers": release}}
    if told is None:
        refuse_other_run("run", *headers)
        return
    with pytest.raises(InputError, match=f"another config of the model: {told}"):
        refuse_other_run("run", *headers)


@pytest.fixture(scope="module")
def left(tmp_path_factory, tokenizer) -> Path:
    """A run that was killed after three steps."""
    folder = tmp_path_factory.mktemp("left")
    killed(folder, tokenizer, 3)
    return folder


def test_a_run_whose_limits_were_other_ones_is_refused(tmp_path, tokenizer):
    """A tensor of zeros had the limit 0 before it had none."""
    killed(tmp_path, tokenizer, 1, share=0.5)
    header, *_ = lines(tmp_path)
    now = {**header, "limits": {name: limit / 2 for name, limit in header["limits"].items()}}
    refuse_other_run("run", header, header)
    with pytest.raises(InputError, match="lets other weights rest"):
        refuse_other_run("run", header, now)


def test_a_run_from_before_half_a_row_was_the_least_spread_goes_on_as_it_began(tmp_path, tokenizer):
    options = {"objective": "accuracy", "normalize": "zscore", "num_directions": 8, "max_steps": 4, "eps": 2e-3}
    finished = trainer(tmp_path / "old", tokenizer, **options)
    assert finished.method.rows == 8
    finished.run.method = replace(finished.method, rows=0)
    finished.train()
    run = load_run(tmp_path / "old")
    method = {name: value for name, value in run.header["method"].items() if name != "rows"}
    with Journal(tmp_path / "new", {**run.header, "method": method}) as journal:
        for record in list(run.records())[:2]:
            journal.append(record)
    resumed = trainer(tmp_path / "new", tokenizer, **options)
    resumed.train(resume_from_checkpoint=True)
    assert same(weights(resumed), weights(finished))
    newer = trainer(tmp_path / "newer", tokenizer, **options)
    newer.train()
    assert not same(weights(newer), weights(finished)), "here half a row makes a difference"


@pytest.mark.parametrize("case", REFUSED)
def test_a_run_of_something_else_is_refused_and_left_alone(case, left, tokenizer):
    changes, message = REFUSED[case]
    before = {path.name: path.read_bytes() for path in left.iterdir()}
    run = trainer(left, tokenizer, **changes)
    untouched = weights(run)
    with pytest.raises(InputError, match=message) as refused:
        run.train(resume_from_checkpoint=True)
    assert refused.value.hint
    assert {path.name: path.read_bytes() for path in left.iterdir()} == before
    assert same(weights(run), untouched)


def test_other_steps_are_refused_where_the_rate_depends_on_them(tmp_path, tokenizer):
    killed(tmp_path, tokenizer, 2, lr_scheduler_type="linear")
    with pytest.raises(InputError, match="max_steps=7, not 9"):
        trainer(tmp_path, tokenizer, lr_scheduler_type="linear", max_steps=9).train(resume_from_checkpoint=True)


def test_what_is_logged_evaluated_and_saved_may_change(left, tmp_path, tokenizer, whole):
    (tmp_path / "journal.jsonl").write_bytes((left / "journal.jsonl").read_bytes())
    run = trainer(tmp_path, tokenizer, eval_steps=2, logging_steps=1, save_strategy="no", completions_every=3)
    run.train(resume_from_checkpoint=True)
    assert same(weights(run), whole[0])


def test_a_folder_that_is_not_the_run_s_is_refused(left, tmp_path, tokenizer):
    with pytest.raises(InputError, match="is not the output folder") as refused:
        trainer(tmp_path / "new", tokenizer).train(resume_from_checkpoint=str(left))
    assert str(left) in refused.value.hint


def test_a_damaged_journal_is_refused(left, tmp_path, tokenizer):
    stored = (left / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "journal.jsonl").write_bytes(b"".join([stored[0], stored[2]]))
    with pytest.raises(InputError, match="line 2: it has step 1 where 0 belongs"):
        trainer(tmp_path, tokenizer).train(resume_from_checkpoint=True)


def test_a_trajectory_alone_is_refused(left, tmp_path, tokenizer):
    write_trajectory(load_run(left), tmp_path / "trajectory.safetensors")
    with pytest.raises(InputError, match=r"trajectory.safetensors but no journal.jsonl"):
        trainer(tmp_path, tokenizer).train(resume_from_checkpoint=True)


# Snapshots.


def snapshot(folder: Path) -> Path:
    return folder / "snapshot.safetensors"


def damaged(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def of_another_run(path: Path) -> None:
    """The same step of a run with other scores."""
    other = path.parent.parent / "other"
    if not other.exists():
        raise AssertionError("make it first")
    path.write_bytes(snapshot(other).read_bytes())


SPOILT = {
    "sound": (lambda path: None, 4),
    "missing": (Path.unlink, 0),
    "damaged": (damaged, 0),
    "empty": (lambda path: path.write_bytes(b""), 0),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:-100]), 0),
    "without end": (lambda path: path.write_bytes(b"\xff" * 64), 0),
    "of another run": (of_another_run, 0),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), 0),
}


@pytest.mark.parametrize(
    "case",
    [
        one if one in ("sound", "damaged", "of another run") else pytest.param(one, marks=pytest.mark.slow)
        for one in SPOILT
    ],
)
def test_a_resume_begins_at_a_sound_snapshot_and_else_at_the_base(case, whole, tmp_path, tokenizer, monkeypatch):
    spoil, start = SPOILT[case]
    if case == "of another run":
        killed(tmp_path / "other", tokenizer, 5, save_steps=2, seed=1)
    killed(tmp_path / "run", tokenizer, 5, save_steps=2)
    assert not list((tmp_path / "run").glob("*.part"))
    spoil(snapshot(tmp_path / "run"))
    starts = []
    from zoreward.trainer import resuming

    real = resuming.advance
    monkeypatch.setattr(resuming, "advance", lambda *args: (starts.append(args[3:]), real(*args)))
    run = trainer(tmp_path / "run", tokenizer, save_steps=100)
    run.train(resume_from_checkpoint=True)
    assert starts == [(start, 5)]
    assert same(weights(run), whole[0])
    assert load_run(tmp_path / "run").n_steps == STEPS


def test_a_snapshot_that_is_ahead_of_the_journal_is_not_used(whole, tmp_path, tokenizer):
    killed(tmp_path, tokenizer, 5, save_steps=4)
    stored = (tmp_path / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "journal.jsonl").write_bytes(b"".join(stored[:3]))  # a power cut took the rest
    run = trainer(tmp_path, tokenizer)
    run.train(resume_from_checkpoint=True)
    assert same(weights(run), whole[0])


@pytest.mark.parametrize(
    ("changes", "found"), [({"save_strategy": "no"}, False), ({"save_steps": 3}, True), ({}, False)]
)
def test_snapshots_are_written_when_asked_for(changes, found, tmp_path, tokenizer):
    trainer(tmp_path, tokenizer, **changes).train()
    assert snapshot(tmp_path).exists() is found


def test_other_readers_can_read_a_snapshot(tmp_path, tokenizer):
    from safetensors.torch import load_file

    run = trainer(tmp_path, tokenizer, save_steps=7, model=random_model("gpt2").to(torch.bfloat16))
    run.train()
    assert same(load_file(snapshot(tmp_path)), weights(run))


def test_snapshots_by_cost_come_after_a_minute_or_when_they_are_cheap(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("zoreward.trainer.keeper.time.perf_counter", lambda: now[0])
    keeper = Keeper()
    keeper.on_train_begin(None, None, None)
    for at, due in ((59.0, False), (61.0, True)):
        now[0] = at
        assert keeper.due is due
    keeper.wrote(2.0)  # 1 % of the time: not before 200 s have passed
    for at, due in ((61.0 + 199.0, False), (61.0 + 201.0, True)):
        now[0] = at
        assert keeper.due is due


def test_a_snapshot_that_cannot_be_written_is_a_warning(whole, tmp_path, tokenizer, monkeypatch):
    def full(folder, *args):
        (Path(folder) / "snapshot.safetensors.part").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("zoreward.trainer.loop.write_snapshot", full)
    run = trainer(tmp_path, tokenizer, save_steps=2)
    run.train()
    assert same(weights(run), whole[0])
    killed(tmp_path / "other", tokenizer, 5, save_steps=2)
    run = trainer(tmp_path / "other", tokenizer)
    run.train(resume_from_checkpoint=True)
    assert same(weights(run), whole[0])


# Disks, folders, other processes.


class Limit(TrainerCallback):
    """Lets files grow no further than the journal is after a step, and 50 bytes."""

    def __init__(self, folder: Path, step: int):
        self.folder, self.step, self.limits = folder, step, resource.getrlimit(resource.RLIMIT_FSIZE)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            size = (self.folder / "journal.jsonl").stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, self.limits[1]))


def test_a_full_disk_ends_the_run_before_the_weights_move(whole, tmp_path, tokenizer):
    limit = Limit(tmp_path, 2)
    run = trainer(tmp_path, tokenizer, callbacks=[limit])
    try:
        with pytest.raises(StorageError, match="cannot be written: File too large") as failed:
            run.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit.limits)
    assert "resume" in failed.value.hint
    assert load_run(tmp_path).n_steps == 2
    again = trainer(tmp_path, tokenizer)
    assert again.resume() == 2
    assert same(weights(run), weights(again))
    again.train()
    assert same(weights(again), whole[0])
    assert (tmp_path / "journal.jsonl").read_bytes() == whole[1]


class Do(TrainerCallback):
    """Does something after a step."""

    def __init__(self, step: int, action):
        self.step, self.action = step, action

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.action()


@pytest.mark.parametrize(
    "how", ["removed", *(pytest.param(how, marks=pytest.mark.slow) for how in ("moved", "replaced"))]
)
def test_a_run_folder_that_vanished_is_noticed(how, whole, tmp_path, tokenizer):
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"

    def vanish() -> None:
        folder.rename(elsewhere)
        if how == "replaced":
            folder.mkdir()
            (folder / "journal.jsonl").write_bytes(b"mine")

    run = trainer(folder, tokenizer, callbacks=[Do(2, vanish)])
    with pytest.raises(StorageError, match="cannot be written" if how == "replaced" else "is gone") as failed:
        run.train()
    assert failed.value.hint
    assert load_run(elsewhere).n_steps == 2
    if how == "replaced":
        assert [path.read_bytes() for path in folder.iterdir()] == [b"mine"]
        return
    assert not folder.exists()
    again = trainer(elsewhere, tokenizer)
    again.train(resume_from_checkpoint=True)
    assert same(weights(again), whole[0])


def test_one_process_a_run(tmp_path, tokenizer):
    first, second = trainer(tmp_path, tokenizer), trainer(tmp_path, tokenizer)
    killed(tmp_path, tokenizer, 3)
    first.resume()
    before = (tmp_path / "journal.jsonl").read_bytes()
    with pytest.raises(InputError, match="another process is at work on the run"):
        second.train(resume_from_checkpoint=True)
    assert (tmp_path / "journal.jsonl").read_bytes() == before
    first.train()
    assert trainer(tmp_path, tokenizer).resume() == STEPS


def test_a_forked_child_does_not_keep_the_lock(tmp_path, tokenizer):
    hold, let_go = os.pipe()
    children = []

    def fork() -> None:
        if (child := os.fork()) == 0:  # pragma: no cover
            os.close(let_go)
            os.read(hold, 1)  # until the test is over
            os._exit(0)
        children.append(child)

    with pytest.raises(Killed):
        trainer(tmp_path, tokenizer, callbacks=[Do(2, fork), KillAfter(3)]).train()
    try:
        assert trainer(tmp_path, tokenizer).resume() == 3
    finally:
        os.close(let_go)
        os.waitpid(children[0], 0)


# Runs that end before their time.


def test_a_run_that_is_asked_to_stop_finishes_its_step_and_evaluates_when_it_goes_on(whole, tmp_path, tokenizer):
    run = trainer(tmp_path, tokenizer, callbacks=[Do(3, lambda: setattr(run.keeper, "stopping", True))])
    run.train()
    assert load_run(tmp_path).n_steps == 3 == run.state.global_step
    assert load_run(tmp_path).evaluations == ()  # one is due after step 3
    assert snapshot(tmp_path).exists()
    again = trainer(tmp_path, tokenizer)
    again.train(resume_from_checkpoint=True)
    assert same(weights(again), whole[0])
    assert (tmp_path / "journal.jsonl").read_bytes() == whole[1]


@pytest.mark.slow
def test_an_objective_that_raises_now_and_then_costs_nothing(tmp_path, tokenizer):
    def judged(predictions, logprobs, trainer_state=None):
        return float(logprobs[0][0])

    calls = []

    def fragile(predictions, logprobs):
        calls.append(1)
        if len(calls) % 8 == 0:
            raise TimeoutError("judge is down")
        return float(logprobs[0][0])

    fragile.__name__ = "judged"
    expected = trainer(tmp_path / "whole", tokenizer, objective=judged)
    expected.train()
    failures = 0
    while failures < 20:
        try:
            run = trainer(tmp_path / "left", tokenizer, objective=fragile)
            run.train(resume_from_checkpoint=True)
            break
        except ObjectiveError:
            failures += 1
    assert failures > 1
    assert same(weights(run), weights(expected))
    assert lines(tmp_path / "left")[1:] == lines(tmp_path / "whole")[1:]


# The best step, and early stopping.


@pytest.fixture
def base(tmp_path, tokenizer) -> str:
    folder = tmp_path / "base"
    random_model("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def with_scores(monkeypatch, scores: dict[int, float]) -> None:
    """Give the dev rows these scores after these steps, whatever the model is."""
    from dataclasses import replace

    from zoreward.scoring import Scorer

    real = Scorer.score

    def score(self, examples, members=((),), **options):
        found = real(self, examples, members, **options)
        if members == ((),) and options.get("trainer_state") is not None:
            return [replace(found[0], score=scores[options["trainer_state"].global_step])]
        return found

    monkeypatch.setattr(Scorer, "score", score)


SCORES = {1: 0.2, 2: 0.6, 3: 0.5, 4: 0.7, 5: 0.7, 6: 0.1, 7: 0.65}
BEST = {"eval_steps": 1, "load_best_model_at_end": True}


def weights_at(folder: Path, step: int) -> dict[str, torch.Tensor]:
    from zoreward.journal import replay

    model = replay(folder, random_model("llama"), step=step)
    return dict(model.named_parameters())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"save_strategy": "best"},
        *(pytest.param(changes, marks=pytest.mark.slow) for changes in ({"save_steps": 3}, {"save_strategy": "no"})),
    ],
)
def test_the_best_step_s_weights_are_made_at_the_end(changes, base, tmp_path, tokenizer, monkeypatch):
    with_scores(monkeypatch, SCORES)
    run = trainer(tmp_path / "run", tokenizer, model=base, **BEST, **changes)
    run.train()
    assert run.kept_step == 4 and run.state.global_step == STEPS  # the first of two
    assert same(weights(run), weights_at(tmp_path / "run", 4))


def test_a_model_without_a_name_needs_its_best_weights_written_down(tmp_path, tokenizer, monkeypatch):
    with_scores(monkeypatch, SCORES)
    with pytest.raises(InputError, match="this model has no name") as refused:
        trainer(tmp_path / "run", tokenizer, **BEST)
    assert "save_strategy" in refused.value.hint
    run = trainer(tmp_path / "run", tokenizer, **BEST, save_strategy="best")
    run.train()
    assert run.kept_step == 4 and same(weights(run), weights_at(tmp_path / "run", 4))


def test_a_base_that_has_changed_meanwhile_is_said(base, tmp_path, tokenizer, monkeypatch):
    with_scores(monkeypatch, SCORES)
    run = trainer(tmp_path / "run", tokenizer, model=base, **BEST)
    random_model("llama", seed=1).save_pretrained(base)
    with pytest.raises(InputError, match="another fingerprint") as failed:
        run.train()
    assert "--step 4" in failed.value.hint
    assert same(weights(run), weights_at(tmp_path / "run", STEPS))


@pytest.mark.parametrize("kill", [3, *(pytest.param(kill, marks=pytest.mark.slow) for kill in (0, 5))])
def test_early_stopping_counts_on_over_a_resume(kill, base, tmp_path, tokenizer, monkeypatch):
    with_scores(monkeypatch, SCORES)

    def made(name: str, *callbacks) -> ZOTrainer:
        stop = EarlyStoppingCallback(2)
        return trainer(tmp_path / name, tokenizer, model=base, callbacks=[stop, *callbacks], **BEST)

    run = made("run")
    if kill:
        with pytest.raises(Killed):
            made("run", KillAfter(kill)).train()
    run.train(resume_from_checkpoint=True)
    assert run.state.global_step == 6  # after step 4 nothing was better, twice
    assert run.kept_step == 4 and same(weights(run), weights_at(tmp_path / "run", 4))
    before = (tmp_path / "run" / "journal.jsonl").read_bytes()
    again = made("run")
    again.train(resume_from_checkpoint=True)  # finished
    assert again.kept_step == 4 and same(weights(again), weights(run))
    assert (tmp_path / "run" / "journal.jsonl").read_bytes() == before


BEFORE = [0.5, 0.4, 0.3, 0.6, 0.7]  # steps 1 and 2 are no better than the base
TIES = [0.5, 0.5, 0.6, 0.5, 0.6]  # a tie is no better; step 2 is, 3 and 4 are not


@pytest.mark.parametrize(
    ("scores", "steps", "scored", "kill"),
    [
        (BEFORE, 2, "before", None),
        pytest.param(BEFORE, 2, "by the loop", 1, marks=pytest.mark.slow),
        pytest.param(TIES, 4, "by the loop", None, marks=pytest.mark.slow),
        (TIES, 4, "before", 1),
        ([0.1, 0.2, 0.1, 0.1, 0.9], 3, "before", None),
    ],
)
def test_patience_counts_from_the_score_before_step_1(
    scores, steps, scored, kill, base, tmp_path, tokenizer, monkeypatch
):
    with_scores(monkeypatch, dict(enumerate(scores)))
    options = {**BEST, "max_steps": 4, "eval_on_start": scored == "by the loop"}

    def made(*callbacks) -> ZOTrainer:
        stop = EarlyStoppingCallback(2)
        run = trainer(tmp_path / "run", tokenizer, model=base, callbacks=[stop, *callbacks], **options)
        if scored == "before" and not (tmp_path / "run" / "journal.jsonl").exists():
            run.evaluate()
        return run

    if kill:
        with pytest.raises(Killed):
            made(KillAfter(kill)).train()
    run = made()
    run.train(resume_from_checkpoint=True)
    assert run.state.global_step == steps
    assert run.kept_step == scores.index(max(scores[: steps + 1]))
    assert [score for _, score in load_run(tmp_path / "run").evaluations] == scores[: steps + 1]


@pytest.mark.parametrize(
    ("metric", "first"), [("score", 0.5), ("eval_score", 0.5), ("eval_rows", 11.0), ("length", None)]
)
def test_the_first_best_is_that_of_what_the_best_step_goes_by(metric, first, tmp_path, tokenizer, monkeypatch):
    with_scores(monkeypatch, {0: 0.5})
    run = trainer(tmp_path / "run", tokenizer, metric_for_best_model=metric)
    run.evaluate()
    assert run.state.best_metric == run.keeper.first_score == first
    run.evaluate(ROWS[:2])
    assert run.keeper.first_score == first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval_strategy": "no"}, "no scores to choose by"),
        ({"metric_for_best_model": "eval_length"}, "goes by the score"),
        ({"ignore_data_skip": True}, "ignore_data_skip"),
    ],
)
def test_options_that_cannot_be_kept_are_refused(changes, message, tmp_path, tokenizer, base):
    with pytest.raises(InputError, match=message):
        trainer(tmp_path / "run", tokenizer, model=base, **{**BEST, **changes})
