"""Contract under test: base weights + a stored run = the weights the run had, bit for bit, after any of its steps; any
other base is refused before anything is changed or written."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, TrainerCallback

from conftest import random_model
from terms import term_of
from test_resume import trainer
from zoreward import replay
from zoreward.cli import main
from zoreward.journal import Journal, StoredRun, fingerprint, load_run, replaying, weights_dtype
from zoreward.journal.lines import encode
from zoreward.journal.trajectory import trajectory_bytes, write_trajectory
from zoreward.kernels import cpu, portable
from zoreward.members import tuned_weights, update_, updates_
from zoreward.methods import SPSA, state_after
from zoreward.records import InputError, StepRecord, Term, Update
from zoreward.trainer import ZOConfig, ZOTrainer

pytestmark = pytest.mark.usefixtures("commands_are_kept", "trials_are_kept")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
RANKED = ((1, torch.float32), (3, torch.bfloat16))
ROWS = [{"text": f"a {word} film", "label": i % 2} for i, word in enumerate("bad good dull great awful lovely".split())]


def bits(model: torch.nn.Module) -> list[bytes]:
    return [weight.detach().view(-1).view(torch.uint8).numpy().tobytes() for weight in model.parameters()]


class Snapshots(TrainerCallback):
    """The weights after each step."""

    def __init__(self, model: PreTrainedModel):
        self.after = [bits(model)]

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.after.append(bits(model))


@pytest.mark.parametrize(
    "dtype", [one if one == torch.bfloat16 else pytest.param(one, marks=pytest.mark.slow) for one in DTYPES], ids=str
)
def test_a_run_of_the_trainer_is_replayed_at_every_step(dtype, tmp_path, tokenizer, monkeypatch):
    model = random_model("llama").to(dtype)
    live = Snapshots(model)
    args = ZOConfig(
        str(tmp_path / "run"), max_steps=5, per_device_train_batch_size=4, learning_rate=3e-3, weight_decay=0.1,
        lr_scheduler_type="linear", eps=1e-2, num_directions=2, use_cpu=True, disable_tqdm=True,
        template="{text} it was", choices=[" not", " very"],
    )  # fmt: skip
    trainer = ZOTrainer(
        model, objective="neg-cross-entropy", args=args, train_dataset=ROWS, processing_class=tokenizer,
        callbacks=[live],
    )  # fmt: skip
    trainer.train()
    assert len({b"".join(weights) for weights in live.after}) == 6

    monkeypatch.setattr(replaying, "PASS_TERMS", 4)  # so that a replay takes several passes of several steps
    for path in (tmp_path / "run", tmp_path / "run" / "trajectory.safetensors"):
        for step, expected in enumerate(live.after):
            assert bits(replay(path, random_model("llama").to(dtype), step=step)) == expected, (path, step)
        assert bits(replay(load_run(path), random_model("llama").to(dtype))) == live.after[-1]


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("spsa", {"anchor": 20.0, "distribution": "gaussian"}),
        pytest.param("svrg", {"full_every": 3}, marks=pytest.mark.slow),  # tests/test_golden.py has all methods
        pytest.param("lozo-m", {"refresh": 3, "window": 3}, marks=pytest.mark.slow),
        pytest.param("subzero", {"refresh": 3, "rank": 5, "momentum": 0.5, "window": 3}, marks=pytest.mark.slow),
        pytest.param(
            "subzero",
            {"refresh": 4, "rank": 40, "momentum": 0.5, "window": 3, "blocks": 2},
            marks=pytest.mark.slow,
        ),
        pytest.param("sparse", {}, marks=pytest.mark.slow),
        pytest.param("bcd", {"weight_decay": 5.0}, marks=pytest.mark.slow),
        ("momentum", {"blocks": 2, "block_every": 2, "window": 3, "share": 0.5}),
        pytest.param("lozo", {"blocks": 3, "refresh": 2, "anchor": 20.0}, marks=pytest.mark.slow),
        pytest.param(
            "subzero",
            {"blocks": 2, "rank": 2, "refresh": 2, "momentum": 0.6, "window": 3},
            marks=pytest.mark.slow,
        ),
        pytest.param("sign", {"more_every": 2}, marks=pytest.mark.slow),
    ],
)
def test_a_run_of_every_kind_of_method_is_replayed(method, options, tmp_path, tokenizer):
    sizes = []

    def spy(predictions, logprobs):
        sizes.append(len(predictions))
        return [row[1] - row[0] for row in logprobs]

    model = random_model("llama").to(torch.bfloat16)
    live = Snapshots(model)
    args = ZOConfig(
        str(tmp_path / "run"), max_steps=5, per_device_train_batch_size=4, learning_rate=3e-3, method=method,
        use_cpu=True, disable_tqdm=True, template="{text} it was", choices=[" not", " very"], **options,
    )  # fmt: skip
    trainer = ZOTrainer(
        model, objective=spy, args=args, train_dataset=ROWS, processing_class=tokenizer, callbacks=[live]
    )
    sizes.clear()
    trainer.train()
    if method == "svrg":  # couples on all six rows, then couples here and at the anchor on the batch's four or two
        assert sizes == [6] * 2 + [2] * 4 + [4] * 4 + [6] * 2 + [4] * 4
        assert trainer.method.anneal_every == 2
    assert len({b"".join(weights) for weights in live.after}) == 6
    for path in (tmp_path / "run", tmp_path / "run" / "trajectory.safetensors"):
        for step, expected in enumerate(live.after):
            assert bits(replay(path, random_model("llama").to(torch.bfloat16), step=step)) == expected, (path, step)
    run = load_run(tmp_path / "run")
    assert state_after(trainer.method, run.records()) == trainer.method_state


def record_run(folder: Path, model: PreTrainedModel, rank: int, steps: int = 5) -> list[list[bytes]]:
    """A run by hand: `update_` and a journal. Returns the weights after each step."""
    spsa = SPSA(eps=1e-2, lr=1e-2, num_directions=3, weight_decay=0.01, seed=11, rank=rank)
    header = {
        "fingerprint": fingerprint(model),
        "dtype": weights_dtype(model),
        "streams": tuned_weights(model).streams,
        "method": {"name": "spsa", **asdict(spsa)},
    }
    state, after = spsa.init(), [bits(model)]
    with Journal(folder, header) as journal:
        for step in range(steps):
            scores = [0.1 * step, 0.2, 0.3, 0.3, 0.4, 0.2 * step]  # the second direction never moves anything
            update, state = spsa.tell(state, spsa.ask(state), scores)
            journal.append(StepRecord(step, tuple(scores), update, spsa.lr))
            update_(model, update)
            after.append(bits(model))
    write_trajectory(load_run(folder), folder / "trajectory.safetensors")
    return after


@pytest.mark.parametrize("family", ["gpt2", pytest.param("llama-tied", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("rank", "dtype"),
    [
        pytest.param(rank, one, marks=() if (rank, one) in RANKED else pytest.mark.slow)
        for rank in (1, 3)
        for one in DTYPES
    ],
    ids=str,
)
def test_low_rank_runs_are_replayed(rank, dtype, family, tmp_path, monkeypatch):
    expected = record_run(tmp_path, random_model(family).to(dtype), rank)
    monkeypatch.setattr(replaying, "PASS_TERMS", 5)
    for name in ("journal.jsonl", "trajectory.safetensors"):
        for step in (1, 4, 5):
            got = replay(tmp_path / name, random_model(family).to(dtype), step=step)
            assert bits(got) == expected[step], (name, step)


@pytest.mark.parametrize("kernel", [cpu, portable], ids=["cpu", "portable"])
@pytest.mark.parametrize("dtype", [torch.float64, *DTYPES], ids=str)
def test_many_updates_in_one_pass_are_the_updates_one_by_one(dtype, kernel, monkeypatch):
    monkeypatch.setattr(cpu, "CHUNK", 64)
    monkeypatch.setattr(portable, "GROUP", 64)
    updates = [
        Update(0.1, (Term(1, 0.01), term_of(2, -0.3, rank=2)), 1),
        Update(0.0, (), 2),
        Update(0.25, (), 3),
        Update(0.0, (term_of(3, 0.5, rank=1),), 4),
        Update(0.0, (Term(1, 0.02),), 5),
    ]

    def weights() -> list[tuple[torch.Tensor, int]]:
        torch.manual_seed(0)
        tensors = [torch.randn(9, 23), torch.randn(31), torch.randn(7, 5).T, torch.tensor(1.5), torch.empty(0)]
        return [(tensor.to(dtype), stream) for stream, tensor in enumerate(tensors)]

    expected, got = weights(), weights()
    for update in updates:
        cpu.replay_all_(expected, [update])
    kernel.replay_all_(got, updates)
    assert all(torch.equal(mine, theirs) for (mine, _), (theirs, _) in zip(got, expected, strict=True))
    backwards = weights()
    kernel.replay_all_(backwards, updates[::-1])
    assert not torch.equal(backwards[0][0], expected[0][0])


def test_the_journal_s_streams_count_not_those_of_today(tmp_path):
    """A later version may hash names otherwise: old runs must not notice."""
    model = random_model("gpt2")
    tuned = tuned_weights(model)
    other = {name: n for n, name in enumerate(tuned.streams)}
    update = Update(0.0, (Term(3, 0.1),), 4)
    header = {"fingerprint": fingerprint(model), "dtype": "float32", "streams": other}
    with Journal(tmp_path, header) as journal:
        journal.append(StepRecord(0, (), update, 0.1))
    expected = random_model("gpt2")
    updates_(expected, [update], tuned=type(tuned)(dict(expected.named_parameters()), other, ()))
    assert bits(replay(tmp_path, model)) == bits(expected)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: random_model("gpt2", seed=1), "another fingerprint"),
        (lambda: random_model("gpt2").half(), "float32 weights, the model has float16"),
        (lambda: random_model("opt"), "only one of them has"),
    ],
    ids=["weights", "dtype", "family"],
)
def test_another_base_is_refused_and_left_alone(wrong, message, tmp_path):
    record_run(tmp_path, random_model("gpt2"), 0)
    model = wrong()
    before = bits(model)
    for name in ("journal.jsonl", "trajectory.safetensors"):
        with pytest.raises(InputError, match=message) as refused:
            replay(tmp_path / name, model)
        assert refused.value.hint
    assert bits(model) == before


@pytest.mark.parametrize(("name", "value"), [("rms_norm_eps", 0.1), ("num_attention_heads", 2)])
def test_a_base_with_an_edited_config_is_refused(name, value, tmp_path, tokenizer):
    run = trainer(tmp_path / "run", tokenizer, max_steps=2)
    run.train()
    edited = random_model("llama")
    setattr(edited.config, name, value)
    for file in ("journal.jsonl", "trajectory.safetensors"):
        with pytest.raises(InputError, match=f"config is another one, {name}=") as refused:
            replay(tmp_path / "run" / file, edited)
        assert refused.value.hint
    assert bits(replay(tmp_path / "run", random_model("llama"))) == bits(run.model)


@pytest.mark.parametrize("step", [-1, 6])
def test_steps_that_there_are_not_are_refused(step, tmp_path):
    record_run(tmp_path, random_model("gpt2"), 0)
    with pytest.raises(InputError, match=f"no step {step}: the run has 5"):
        replay(tmp_path, random_model("gpt2"), step=step)


# The command.


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """A folder with a base and a run of `zoreward tune` on it, in bfloat16."""
    folder = tmp_path_factory.mktemp("tuned")
    (folder / "base").symlink_to(tiny_model_dir, target_is_directory=True)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    words = [
        "--template",
        "{text} it was",
        "--choice",
        " not",
        "--choice",
        " very",
        "--dtype",
        "bfloat16",
        "--lr",
        "0.01",
    ]
    paths = ["--model", str(folder / "base"), "--data", str(folder / "train.jsonl"), "--output", str(folder / "run")]
    assert main(["tune", "neg-cross-entropy", *paths, *words, "--steps", "4", "--device", "cpu"]) == 0
    return folder


@pytest.fixture(autouse=True)
def _there(request, monkeypatch):
    if "tuned" in request.fixturenames:
        monkeypatch.chdir(request.getfixturevalue("tuned"))


@pytest.mark.parametrize("run", ["run", "run/journal.jsonl", "run/trajectory.safetensors"])
def test_the_command_writes_the_model_that_the_run_wrote(run, tuned, tmp_path, capsys):
    assert main(["replay", run, "--model", "base", "--output-dir", str(tmp_path / "again"), "--device", "cpu"]) == 0
    assert "4 steps in" in capsys.readouterr().out
    files = {path.name for path in (tuned / "run" / "model").iterdir()} - {"zoreward.json"}
    assert files == {path.name for path in (tmp_path / "again").iterdir()}
    # transformers writes use_cache=false into the one, and older releases a list into the other.
    for name in files - {"config.json", "generation_config.json", "README.md"}:
        assert (tmp_path / "again" / name).read_bytes() == (tuned / "run" / "model" / name).read_bytes(), name


def test_the_command_stops_at_a_step_and_tells_the_history(tuned, tmp_path, capsys):
    output = str(tmp_path / "again")
    assert (
        main(["replay", "run", "--model", "base", "--output", output, "--step", "2", "--json", "--device", "cpu"]) == 0
    )
    out, _ = capsys.readouterr()
    told = json.loads(out.splitlines()[-1])
    assert (told["steps"], told["output"], [one["step"] for one in told["history"]]) == (2, output, [0, 1])
    lines = [json.loads(line) for line in (tuned / "run" / "journal.jsonl").read_text().splitlines()]
    first = lines[1]
    assert told["history"][0]["scores"] == first["scores"] and told["history"][0]["lr"] == 0.01
    plus, minus = first["scores"]
    # ε is 0.001 rounded to float32, a relative 2^-24
    assert told["history"][0]["projected_grads"] == [pytest.approx((plus - minus) / 0.002, rel=2**-23)]
    from transformers import AutoModelForCausalLM

    expected = replay("run", AutoModelForCausalLM.from_pretrained("base", dtype=torch.bfloat16), step=2)
    assert bits(AutoModelForCausalLM.from_pretrained(output, dtype="auto")) == bits(expected)


def test_the_history_alone_needs_no_model(tuned, capsys):
    assert main(["replay", "run/trajectory.safetensors", "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    run = load_run("run")
    assert [one["scores"] for one in told["history"]] == [None] * 4
    # coefficients are float32, a relative 2^-24
    slopes = [pytest.approx(run.projected_grads(step), rel=2**-23) for step in range(4)]
    assert [one["projected_grads"] for one in told["history"]] == slopes


REFUSED = {
    "wrong base": (["run", "--model", "other", "--output", "new"], "another fingerprint", "began with"),
    "no such step": (["run", "--model", "base", "--output", "new", "--step", "9"], "no step 9", "0 to 4"),
    "negative step": (["run", "--model", "base", "--output", "new", "--step", "-1"], "less than 0", "--help"),
    "no run": (["nowhere", "--model", "base", "--output", "new"], "no journal nowhere", "run folder"),
    "folder without a run": (["base", "--model", "base", "--output", "new"], "holds no run", "journal.jsonl"),
    "no output": (["run", "--model", "base"], "--model needs --output", "zoreward replay RUN"),
    "no model": (["run", "--output", "new"], "--output needs --model", "zoreward replay RUN"),
    "nothing asked for": (["run"], "nothing to do", "--json"),
    "output that is not empty": (["run", "--model", "base", "--output", "run"], "not empty", "does not exist yet"),
    "output that is a file": (["run", "--model", "base", "--output", "train.jsonl"], "is a file", "does not exist"),
    "model that is none": (["run", "--model", "run", "--output", "new"], "is no model", "save_pretrained"),
    "damaged": (["damaged.jsonl", "--model", "base", "--output", "new"], "line 3: its checksum", "head -n 2"),
    "no words": ([], "RUN", "--help"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line_with_nothing_written(case, tuned, capsys):
    if not (tuned / "other").exists():
        random_model("llama", seed=1).save_pretrained(tuned / "other")
        for path in (tuned / "base").glob("tokenizer*"):
            (tuned / "other" / path.name).write_bytes(path.read_bytes())
        lines = (tuned / "run" / "journal.jsonl").read_bytes().splitlines(keepends=True)
        (tuned / "damaged.jsonl").write_bytes(b"".join([*lines[:2], lines[2].replace(b'"lr": 0.01', b'"lr": 0.02')]))
    capsys.readouterr()
    words, error, hint = REFUSED[case]
    before = sorted(tuned.rglob("*"))

    assert main(["replay", *words, *(["--device", "cpu"] if words else [])]) == 2

    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith(("error:", "hint:"))]
    assert [line.partition(":")[0] for line in lines] == ["error", "hint"], err
    assert error in lines[0] and hint in lines[1] and "Traceback" not in err
    assert out == ""
    assert sorted(tuned.rglob("*")) == before


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, "says nothing of one"),
        ({"method": "spsa"}, "says nothing of one"),
        ({"limits": True, "method": {"anchor": 1.0}}, "limits, with which there is none"),
    ],
)
def test_an_anchor_that_the_header_does_not_go_with_is_refused(changes, told, tmp_path):
    model = random_model("llama")
    before, tuned = bits(model), tuned_weights(model)
    header = {"fingerprint": fingerprint(model), "dtype": "float32", "streams": tuned.streams, **changes}
    if changes.get("limits"):
        header["limits"] = dict.fromkeys(tuned.streams, 0.5)
    with Journal(tmp_path, header) as journal:
        journal.append(StepRecord(0, (0.5, 0.25), Update(0.0, (), 1, anchor=0.5), 0.1))
    with pytest.raises(InputError, match=told):
        replay(tmp_path, model)
    assert bits(model) == before


def hostile(folder: Path, header: dict, kind: str) -> Path:
    """A journal or a trajectory of one header, with its right checksums."""
    header = {"noise_version": 2, "fingerprint": "ab" * 32, "dtype": "float32", "streams": {"a": 1}, **header}
    if kind == "journal":
        path = folder / "journal.jsonl"
        path.write_bytes(encode({"kind": "header", **header}, 0)[0])
        return path
    sound = {**header, "method": {"seed": 1, "num_directions": 1}}
    sound.pop("adapter", None)
    data = trajectory_bytes(StoredRun(sound, 0, lambda step: None))
    length = int.from_bytes(data[:8], "little")
    entries, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    about = json.loads(entries["__metadata__"]["run"])
    text = json.dumps({**about, "header": {name: value for name, value in header.items() if name != "streams"}})
    digest = hashlib.sha256(text.encode() + body).hexdigest()
    entries["__metadata__"] |= {"run": text, "sha256": digest}
    head = json.dumps(entries).encode()
    path = folder / "trajectory.safetensors"
    path.write_bytes(len(head).to_bytes(8, "little") + head + body)
    return path


HOSTILE = {
    "directions": {"method": {"seed": 1, "num_directions": 10**8}},
    "window": {"method": {"seed": 1, "num_directions": 1, "momentum": 0.9, "window": 10**9}},
    "rank": {"method": {"seed": 1, "num_directions": 1 << 14, "rank": 4096}},
    "blocks": {"method": {"seed": 1, "num_directions": 1, "blocks": 10**9}},
    "digits": {"method": {"seed": 10**4000, "num_directions": 1}},
    "an adapter": {"method": {"seed": 1, "num_directions": 1}, "adapter": {"peft_type": "LORA", "r": 10**9}},
}


@pytest.mark.parametrize("kind", ["journal", "trajectory"])
@pytest.mark.parametrize("case", HOSTILE)
def test_a_header_that_asks_for_hours_is_refused_in_one_line(case, kind, tmp_path, capsys):
    path = hostile(tmp_path, HOSTILE[case], kind)
    start = time.process_time()
    assert main(["replay", str(path), "--json"]) == 2
    assert time.process_time() - start < 0.9
    out, err = capsys.readouterr()
    assert out == "" and [line.partition(":")[0] for line in err.splitlines()] == ["error", "hint"]
    assert len(err) < 600
    assert load_run(hostile(tmp_path, {"method": {"seed": 1, "num_directions": 1}}, kind)).n_steps == 0


def test_streams_of_tensors_that_are_not_there_are_refused_in_short(tuned, tmp_path, capsys):
    header = json.loads((tuned / "run" / "journal.jsonl").read_bytes().splitlines()[0])
    streams = {**header["streams"], "\x1b[31m" + "x" * 10**6: 1}
    header = {name: value for name, value in header.items() if name not in ("kind", "crc")}
    path = hostile(tmp_path, {**header, "streams": streams, "model": "m" * 10**6}, "journal")
    assert main(["replay", str(path), "--model", "base", "--output", str(tmp_path / "new"), "--device", "cpu"]) == 2
    err = capsys.readouterr().err
    assert "only one of them has '\\x1b[31mxxx" in err and "\x1b" not in err and len(err) < 1500
    assert not (tmp_path / "new").exists()
