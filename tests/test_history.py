"""Contract under test: a past step's gradient, the mean of the last states and sums of runs are those of the live
weights, bit for bit where the arithmetic is exact; what has no base in common is refused."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from conftest import random_model
from zoreward import replay
from zoreward.cli import main
from zoreward.journal import StoredRun, load_run, replay_mean, replay_sum
from zoreward.members import tuned_weights, update_
from zoreward.records import InputError, Rewind, Term, Update
from zoreward.scoring import load_model
from zoreward.trainer import ZOConfig, ZOTrainer

pytestmark = pytest.mark.usefixtures("commands_are_kept", "trials_are_kept")

ROWS = [{"text": f"a {word} film", "label": i % 2} for i, word in enumerate("bad good dull great awful lovely".split())]
State = dict[str, torch.Tensor]


def state_of(model: Any) -> State:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


class States(TrainerCallback):
    """The weights after each step."""

    def __init__(self, model: Any):
        self.after = [state_of(model)]

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.after.append(state_of(model))


def ran(folder: Path, tokenizer: Any, model: Any, **options: Any) -> list[State]:
    """Do a run, and return the live weights after each of its steps."""
    live = States(model)
    defaults: dict[str, Any] = {"max_steps": 4, "learning_rate": 2.0**-9, "eps": 1e-2, "normalize": "none"}
    args = ZOConfig(
        str(folder), **{**defaults, **options}, per_device_train_batch_size=4, use_cpu=True, disable_tqdm=True,
        template="{text} it was", choices=[" not", " very"],
    )  # fmt: skip
    ZOTrainer(
        model, "neg-cross-entropy", args=args, train_dataset=ROWS, processing_class=tokenizer, callbacks=[live]
    ).train()
    return live.after


def same(model: Any, wanted: State) -> bool:
    return all(torch.equal(weight, wanted[name]) for name, weight in model.named_parameters())


@pytest.mark.parametrize("file", ["journal.jsonl", "trajectory.safetensors"])
def test_a_step_is_its_gradient_times_its_rate_bit_for_bit(file: str, tmp_path: Path, tokenizer: Any) -> None:
    after = ran(tmp_path / "run", tokenizer, random_model("llama"))  # a rate by a power of two rounds nothing
    run = load_run(tmp_path / "run" / file)

    for step in (3, 0):
        gradient = run.gradient(step, random_model("llama", seed=5))
        assert set(gradient) == set(after[0])
        for name, was in after[step].items():
            moved = was + 2.0**-9 * gradient[name]
            assert torch.equal(moved, after[step + 1][name]), (step, name)
        assert any(gradient[name].any() for name in gradient)


@pytest.mark.parametrize(
    "options",
    [
        {"num_directions": 3, "momentum": 0.5, "noise": "low-rank"},
        {"num_directions": 2, "blocks": 2, "normalize": "rms"},
    ],
)
def test_a_gradient_is_of_the_slopes_alone(options: dict[str, Any], tmp_path: Path, tokenizer: Any) -> None:
    """Not of what momentum and a norm made of them; and a step by blocks saw its own block's."""
    ran(tmp_path / "run", tokenizer, random_model("llama"), **options)
    run, model = load_run(tmp_path / "run"), random_model("llama").double()
    slopes = run.projected_grads(2)
    assert slopes is not None

    gradient = run.gradient(2, model)

    terms, seen = run.record(2).update.terms[: len(slopes)], 0
    for name in gradient:
        parts = [
            slope / len(slopes) * direction_of(run, model, z, name) for slope, z in zip(slopes, terms, strict=True)
        ]
        assert torch.allclose(gradient[name], torch.stack(parts).sum(0), rtol=1e-5, atol=1e-6)
        seen += any(bool(part.any()) for part in parts)
    assert seen > 0 and (seen < len(gradient) or "blocks" not in options)


def direction_of(run: StoredRun, model: Any, term: Any, name: str) -> torch.Tensor:
    """z of a term for a tensor, by the definition."""
    weight = dict(model.named_parameters())[name]
    block = (run.header.get("blocks") or {}).get(name)
    if not term.moves(weight.ndim) or term.block != block:
        return torch.zeros_like(weight)
    moved = copy.deepcopy(model)
    update_(moved, Update(0.0, (Term(term.seed, 1.0, term.family),), 0), tuned=tuned_weights(moved))
    return dict(moved.named_parameters())[name].detach() - weight.detach()


def test_no_gradient_is_told_where_the_file_tells_no_slopes(tmp_path: Path, tokenizer: Any) -> None:
    ran(tmp_path / "es", tokenizer, random_model("llama"), method="es", num_directions=2, normalize=None)
    ran(tmp_path / "sparse", tokenizer, random_model("llama"), method="sparse", normalize=None)
    for run, told in (("es", "no slopes"), ("sparse", "small weights alone")):
        with pytest.raises(InputError, match=told):
            load_run(tmp_path / run).gradient(1, random_model("llama"))
    with pytest.raises(InputError, match="there is no step 9"):
        load_run(tmp_path / "es").gradient(9, random_model("llama"))
    with pytest.raises(InputError, match="only one of the model and the run has"):
        ran(tmp_path / "run", tokenizer, random_model("llama"))
        load_run(tmp_path / "run").gradient(1, random_model("gpt2"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_mean_is_that_of_the_live_states(dtype: torch.dtype, tmp_path: Path, tokenizer: Any) -> None:
    after = ran(tmp_path / "run", tokenizer, random_model("llama").to(dtype), weight_decay=0.1)

    for last, step in ((3, None), (2, 3), (1, None)):
        states = after[: (step or 4) + 1][-last:]
        wanted = {name: (sum(one[name].double() for one in states) / last).to(dtype) for name in after[0]}
        assert same(replay_mean(tmp_path / "run", random_model("llama").to(dtype), last, step=step), wanted)
    assert same(replay_mean(tmp_path / "run", random_model("llama").to(dtype), 1), after[-1])
    for last in (0, 5):
        with pytest.raises(InputError, match=f"no mean of {last} states"):
            replay_mean(tmp_path / "run", random_model("llama").to(dtype), last)


def test_the_mean_is_of_the_steps_that_led_there(tmp_path: Path, tokenizer: Any) -> None:
    """Not of what a run took back."""
    after = ran(tmp_path / "run", tokenizer, random_model("llama"))
    run = replace(load_run(tmp_path / "run"), rewinds=(Rewind(3, 1, 0.5),))  # steps 0 and 3
    last = replay(run, random_model("llama"))
    wanted = {name: ((after[1][name].double() + own.double()) / 2).float() for name, own in state_of(last).items()}
    assert not same(last, after[4])
    assert same(replay_mean(run, random_model("llama"), 2), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_sum_is_what_the_live_runs_moved(dtype: torch.dtype, tmp_path: Path, tokenizer: Any) -> None:
    one = ran(tmp_path / "one", tokenizer, random_model("llama").to(dtype), seed=1)[-1]
    two = ran(tmp_path / "two", tokenizer, random_model("llama").to(dtype), seed=2, tune="last-1")[-1]
    base = {name: weight.double() for name, weight in state_of(random_model("llama").to(dtype)).items()}

    for scale in (1.0, -0.5):
        both = replay_sum([tmp_path / "one", tmp_path / "two"], random_model("llama").to(dtype), scale=scale)
        wanted = {n: (w + scale * ((one[n].double() - w) + (two[n].double() - w))).to(dtype) for n, w in base.items()}
        assert same(both, wanted)
    assert same(replay_sum([tmp_path / "one"], random_model("llama").to(dtype)), one)
    half = replay_sum([tmp_path / "one"], random_model("llama").to(dtype), scale=0.5, step=2)
    assert not same(half, one)


def test_runs_without_a_base_in_common_are_not_added(tmp_path: Path, tokenizer: Any) -> None:
    ran(tmp_path / "one", tokenizer, random_model("llama"))
    ran(tmp_path / "other", tokenizer, random_model("llama", seed=1))
    ran(tmp_path / "lora", tokenizer, random_model("llama"), tune="lora")
    model = random_model("llama")
    with pytest.raises(InputError, match="began with other weights than each other"):
        replay_sum([tmp_path / "one", tmp_path / "other"], model)
    with pytest.raises(InputError, match="an adapter or a head have no base in common"):
        replay_sum([tmp_path / "one", tmp_path / "lora"], model)
    assert same(model, state_of(random_model("llama")))
    scaled = replay_sum([tmp_path / "lora"], random_model("llama"), scale=2.0)
    whole, base = (
        replay(tmp_path / "lora", random_model("llama")),
        replay(tmp_path / "lora", random_model("llama"), step=0),
    )
    for (name, own), (_, end), (_, start) in zip(
        scaled.named_parameters(), whole.named_parameters(), base.named_parameters(), strict=True
    ):
        assert torch.equal(own, (start.double() + 2 * (end.double() - start.double())).float()), name


# The command.


@pytest.fixture(scope="module")
def runs(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("runs")
    for seed in (1, 2):
        model = load_model(str(tiny_model_dir), dtype="float32")
        ran(folder / str(seed), tokenizer, model, seed=seed)
    return {"base": str(tiny_model_dir), "1": str(folder / "1"), "2": str(folder / "2")}


@pytest.mark.parametrize(
    "more", [("--average", "3"), ("--scale", "-0.5", "--step", "2"), ("--merge", "2", "--scale", "0.5")]
)
def test_the_command_writes_them_and_its_card_says_how(
    more: tuple[str, ...], runs: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [runs[word] if word == "2" and more[0] == "--merge" else word for word in more]
    line = ["replay", runs["1"], "--model", runs["base"], "--output", str(tmp_path / "out"), *words, "--json"]
    assert main(line) == 0

    base = load_model(runs["base"], dtype="float32")
    if more[0] == "--average":
        wanted = replay_mean(runs["1"], base, 3)
    elif more[0] == "--scale":
        wanted = replay_sum([runs["1"]], base, scale=-0.5, step=2)
    else:
        wanted = replay_sum([runs["1"], runs["2"]], base, scale=0.5)
    assert same(load_model(str(tmp_path / "out"), dtype="float32"), state_of(wanted))
    told = json.loads(capsys.readouterr().out)
    assert told[more[0][2:]] is not None
    card = (tmp_path / "out" / "README.md").read_text()
    assert more[0] in card and more[1].replace("2", runs["2"] if more[0] == "--merge" else "2") in card


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--average", "9"), "no mean of 9 states"),
        (("--average", "2", "--scale", "2"), "--average is of one run"),
        (("--merge", "nowhere"), "nowhere"),
        (("--merge", "SAME", "--step", "1"), "--merge takes all steps"),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_line(
    more: tuple[str, ...], told: str, runs: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [runs["1"] if word == "SAME" else word for word in more]
    assert main(["replay", runs["1"], "--model", runs["base"], "--output", str(tmp_path / "out"), *words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert told in lines[0] and len(lines) <= 2 and not (tmp_path / "out").exists()


def test_a_factor_that_no_weight_can_hold_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    ran(tmp_path / "run", tokenizer, random_model("llama").half())
    with pytest.raises(InputError, match=r"would be beyond torch\.float16"):
        replay_sum([tmp_path / "run"], random_model("llama").half(), scale=1e30)
