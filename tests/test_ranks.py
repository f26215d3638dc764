"""Contract under test: ranks of a launch that share a run do what one process does, bit for bit, and end together."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

import launches
from conftest import random_model
from zoreward import ZOConfig, ZOTrainer
from zoreward.cli import main
from zoreward.journal import load_run, replay
from zoreward.members import tuned_weights
from zoreward.records import InputError, ObjectiveError, RanksError, Request, Term
from zoreward.scoring import Generation, LocalEngine, Packer, engine_of, load_model
from zoreward.scoring.protocol import OwnPasses
from zoreward.trainer.replicas import digest_of_weights

WORDS = ["bad", "awful", "dull", "good", "great", "lovely"]
ROWS = [{"text": f"{a} {word} film", "label": int(n > 2)} for n, word in enumerate(WORDS) for a in ("a", "the")]
ANSWERS: dict[str, Any] = {"template": "{text} it was", "choices": [" bad", " good"]}
TEXTS: dict[str, Any] = {"prompt": "text", "max_completion_length": 3, "temperature": 1.0}


def brevity(completions, log_metric):
    """A reward that tells where it was called, and with what."""
    with Path(os.environ["CALLS"]).open("a") as calls:
        calls.writelines(f"{text}\n" for text in completions)
    log_metric("longest", max(map(len, completions)))
    return [0.1 * len(text) - len(text.split()) for text in completions]


CASES: dict[str, dict[str, Any]] = {
    "dense": {"objective": "neg-cross-entropy", "num_directions": 2, **ANSWERS},
    "bfloat16, rows": {"objective": "neg-cross-entropy", "dtype": "bfloat16", "ranks_split": "rows", **ANSWERS},
    "low-rank in bfloat16": {
        **{"objective": "neg-cross-entropy", "dtype": "bfloat16", "noise": "low-rank", "num_directions": 4},
        **ANSWERS,
    },
    "F1 of the set, rows": {"objective": "f1", "noise": "low-rank", "eps": 0.2, "ranks_split": "rows", **ANSWERS},
    "LoRA, a found rate": {"objective": "neg-cross-entropy", "tune": "lora", "learning_rate": None, **ANSWERS},
    "texts": {"objective": brevity, "num_directions": 4, **TEXTS},
    "texts, rows, with their KL": {
        **{"objective": brevity, "num_directions": 1, "ranks_split": "rows", "kl": 0.1, "drift": True},
        **TEXTS,
    },
    "texts, members, with their KL": {"objective": brevity, "num_directions": 4, "kl": 0.1, "tune": "lora", **TEXTS},
    "a run that goes back": {
        **{"objective": "neg-cross-entropy", "load_best_model_at_end": True, "learning_rate": 0.3, "max_rewinds": 2},
        **{"dev": ROWS, "eval_on_start": True, "eval_steps": 1},
        **ANSWERS,
    },
    "svrg": {"objective": "neg-cross-entropy", "method": "svrg", "full_every": 2, **ANSWERS},
}  # fmt: skip


class Digests(TrainerCallback):
    """The digest of the weights behind each step."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.found: list[str] = []
        self.sent: list[int] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.found.append(digest_of_weights(self.trainer.ready.tuned))
        self.sent.append(self.trainer.ranks.sent)


def trained(model: Path, output: Path, unit: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    """Tune by a case, and return what can be told of it; `unit` is that of a run of several ranks."""
    objective, steps, dev = options.pop("objective"), options.pop("max_steps", 4), options.pop("dev", ROWS[::3])
    options = {"learning_rate": 1e-2, "save_strategy": "no", "eval_steps": 2, "completions_every": 1, **options}
    os.environ["CALLS"] = str(output.with_suffix(".calls"))
    args = ZOConfig(
        str(output), max_steps=steps, per_device_train_batch_size=8, use_cpu=True, disable_tqdm=True,
        eval_strategy="steps", **options,
    )  # fmt: skip
    digests = Digests()
    trainer = ZOTrainer(
        str(model), objective=objective, train_dataset=ROWS, eval_dataset=dev, args=args, callbacks=[digests]
    )
    digests.trainer = trainer
    if unit is not None:
        trainer.run.scorer = trainer.scorer.cut_as(unit)
    trainer.train()
    return {
        "digests": [*digests.found, digest_of_weights(trainer.ready.tuned)],
        "unit": trainer.scorer.engine.unit,
        "sent": [*np.diff(digests.sent).tolist()],
        "scores": [log["eval_score"] for log in trainer.state.log_history if "eval_score" in log],
        "zero": trainer.state.is_world_process_zero,
    }


def in_turn(model: Path, folder: Path, size: int) -> list[dict[str, dict[str, Any]]]:
    """All cases, by as many ranks: for each of them what it tells of each case."""

    def work(rank: int) -> None:
        found = {name: trained(model, folder / f"{size}-{n}", **case) for n, (name, case) in enumerate(CASES.items())}
        (folder / f"told-{size}-{rank}.json").write_text(json.dumps(found))

    codes = launches.ended(launches.start(size, folder / f"log-{size}", work))
    assert codes == [0] * size, (folder / f"log-{size}").read_text()[-5000:]
    return [json.loads((folder / f"told-{size}-{rank}.json").read_text()) for rank in range(size)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def told(request: pytest.FixtureRequest, folder: Path, tiny_model_dir: Path) -> list[dict[str, dict[str, Any]]]:
    return in_turn(tiny_model_dir, folder, request.param)


@pytest.mark.parametrize("name", CASES)
def test_ranks_do_what_one_process_does(name, told, folder, tiny_model_dir, tmp_path, trials_are_kept):
    size, n = len(told), list(CASES).index(name)
    first = told[0][name]
    assert all(of_rank[name]["digests"] == first["digests"] for of_rank in told)
    assert all(of_rank[name]["scores"] == first["scores"] for of_rank in told) and len(first["scores"]) >= 2
    assert [of_rank[name]["zero"] for of_rank in told] == [True] + [False] * (size - 1)
    assert first["unit"]["ranks"] == size
    assert len(set(first["digests"])) > 1  # it moved

    alone = trained(tiny_model_dir, tmp_path / "alone", unit=first["unit"], **CASES[name])
    assert alone["digests"] == first["digests"]
    journal = (folder / f"{size}-{n}" / "journal.jsonl").read_bytes()
    assert journal == (tmp_path / "alone" / "journal.jsonl").read_bytes()


def test_a_reward_is_called_once_for_each_completion(told, folder):
    size = len(told)
    for name in ("texts", "texts, rows, with their KL"):
        calls = (folder / f"{size}-{list(CASES).index(name)}.calls").read_text().splitlines()
        members = 2 * CASES[name]["num_directions"]
        # Before step 1 on eight rows; in four steps on eight rows, four and so on; twice on four dev rows.
        assert len(calls) == 8 + members * (8 + 4 + 8 + 4) + 2 * 4
        assert {path.name for path in (folder / f"{size}-{list(CASES).index(name)}" / "completions").iterdir()}


def test_all_ranks_go_back_together(told, folder):
    number = list(CASES).index("a run that goes back")
    assert load_run(folder / f"{len(told)}-{number}").rewinds


def test_a_journal_of_several_ranks_is_replayed_by_one_process(told, folder, tiny_model_dir):
    run = load_run(folder / f"{len(told)}-0")
    model = replay(run, load_model(str(tiny_model_dir), dtype="float32", device="cpu"))
    assert digest_of_weights(tuned_weights(model)) == told[0]["dense"]["digests"][-1]


def test_what_a_rank_sends_does_not_depend_on_the_model_and_is_little(tiny_model_dir, tmp_path):
    def work(rank: int) -> None:
        case = {**CASES["dense"], "num_directions": 16, "max_steps": 3, "eval_steps": 3}
        found = trained(tiny_model_dir, tmp_path / "run", **case)
        assert found["unit"] == {**found["unit"], "members": 16, "split": "members"}
        # A flag and 16 scores; rank 0's word; whether to end, and the clock.
        assert found["sent"] == [8 * (1 + 16) + 8 + 8 * 2] * 2

    codes = launches.ended(launches.start(2, tmp_path / "log", work))
    assert codes == [0, 0], (tmp_path / "log").read_text()[-3000:]


# --- passes, without processes ---------------------------------------------------------------------------------------

MEMBERS = tuple((Term(seed, sign * 0.05),) for seed in (1, 2, 3) for sign in (1, -1))
REQUESTS = [Request(tuple(range(3, 5 + n)), (target,)) for n in range(6) for target in (3, 7)]


@pytest.mark.parametrize("unit", [{"members": 2}, {"members": 6, "ranks": 3, "split": "rows"}, {"members": 6}])
@pytest.mark.parametrize("packs", [False, True])
def test_what_ranks_read_is_together_what_one_process_reads(unit, packs):
    model = random_model("llama")
    engine = engine_of(model, 0, tokens=48).cut_as(unit)
    if packs:
        engine = type(engine)(
            **{name: getattr(engine, name) for name in engine.__dataclass_fields__ if name != "packer"},
            packer=Packer(engine, replays=False),
        )
    work = [(member, REQUESTS) for member in MEMBERS]
    whole = np.stack(engine.logprobs(work))
    parts = [np.stack(engine.logprobs(work, passes=OwnPasses(rank, 3))) for rank in range(3)]
    read = np.stack([np.isfinite(part) for part in parts])
    assert (read.sum(axis=0) == 1).all()
    assert np.minimum.reduce(parts).tobytes() == whole.tobytes()
    if unit != {"members": 6} or not packs:  # the packer reads all rows of members that share a pass
        assert read.any(axis=(1, 2)).all()


@pytest.mark.parametrize("unit", [{"members": 2}, {"members": 6, "ranks": 3, "split": "rows"}])
def test_what_ranks_write_is_together_what_one_process_writes(unit, tokenizer):
    engine = engine_of(random_model("llama"), 0, tokenizer).cut_as(unit)
    prompts = REQUESTS[::2]
    work = [(member, prompts) for member in MEMBERS]
    how = Generation(max_new_tokens=4, temperature=1.0, seed=3)
    whole = [texts for chunk in engine.generate(work, how) for texts in chunk]
    parts = [
        [texts for chunk in engine.generate(work, how, passes=OwnPasses(rank, 3)) for texts in chunk]
        for rank in range(3)
    ]
    for m, own in enumerate(whole):
        for n, text in enumerate(own):
            found = [part[m][n] for part in parts if part[m][n] is not None]
            assert found == [text]
    assert all(any(text is not None for own in part for text in own) for part in parts)


# --- ranks that are not alike, and ranks that end --------------------------------------------------------------------


def said_by(size: int, folder: Path, tries: dict[str, Any]) -> list[dict[str, str]]:
    """What errors each rank meets with; `tries` are called with the rank, one after the other."""

    def work(rank: int) -> None:
        said = {}
        for name, one in tries.items():
            try:
                one(rank)
                said[name] = ""
            except (RanksError, InputError) as error:
                said[name] = f"{type(error).__name__}: {error}"
        (folder / f"said-{rank}.json").write_text(json.dumps(said))

    codes = launches.ended(launches.start(size, folder / "log", work))
    assert codes == [0] * size, (folder / "log").read_text()[-3000:]
    return [json.loads((folder / f"said-{rank}.json").read_text()) for rank in range(size)]


class Corrupts(TrainerCallback):
    """A bit of the weights turns."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        with torch.no_grad():
            weight = next(kwargs["model"].parameters())
            weight.view(torch.int32)[0, 0] ^= 1


def trainer(model: Path, output: Path, rows: list[dict[str, Any]] = ROWS, **options: Any) -> ZOTrainer:
    steps, callbacks = options.pop("max_steps", 1), options.pop("callbacks", None)
    options = {"learning_rate": 1e-2, "save_strategy": "no", **ANSWERS, **options}
    args = ZOConfig(str(output), max_steps=steps, use_cpu=True, disable_tqdm=True, **options)
    objective = "neg-cross-entropy"
    return ZOTrainer(str(model), objective=objective, train_dataset=rows, args=args, callbacks=callbacks)


def test_a_rank_that_is_not_like_the_others_is_named_before_step_1(tiny_model_dir, tmp_path, tokenizer):
    other = tmp_path / "other"
    random_model("llama", seed=1).save_pretrained(other)
    tokenizer.save_pretrained(other)
    folders = [tmp_path / f"run-{n}" for n in range(6)]
    tries = {
        "rows": lambda rank: trainer(tiny_model_dir, folders[0], ROWS[: 12 - (rank == 1)]),
        "options": lambda rank: trainer(tiny_model_dir, folders[1], eps=1e-3 * (1 + (rank == 2))),
        "folder": lambda rank: trainer(tiny_model_dir, folders[2 + (rank == 0)]),
        "base": lambda rank: trainer((tiny_model_dir, other)[rank == 1], folders[4]).train(),
        "weights": lambda rank: trainer(tiny_model_dir, folders[5], callbacks=[Corrupts()] * (rank == 1)).train(),
        "device_map": lambda rank: trainer(tiny_model_dir, tmp_path / "map", device_map="auto"),
    }
    said = said_by(3, tmp_path, tries)
    expected = {
        "rows": "RanksError: rank 1 has other rows to tune on than the other ranks",
        "options": "RanksError: rank 2 has other options than the other ranks",
        "folder": "RanksError: rank 0 has another run folder than the other ranks",
        "base": "RanksError: rank 1 has other base weights than the other ranks",
        "weights": "RanksError: rank 1 has other weights after step 1 than the other ranks",
        "device_map": "InputError: device_map spreads a model that each of several ranks is to hold",
    }
    assert said == [expected] * 3
    assert [(folder / "journal.jsonl").exists() for folder in folders] == [False] * 5 + [True]


def test_outputs_of_one_rank_that_are_not_finite_count_for_all_in_the_search_for_a_rate(tiny_model_dir, tmp_path):
    def work(rank: int) -> None:
        found = trainer(tiny_model_dir, tmp_path / f"run-{size}", learning_rate=None)
        real, first = LocalEngine.logprobs, list[float]()

        def patched(self: Any, work: Any, **how: Any) -> Any:
            """The first look of rank 0 overflows."""
            first.extend([abs(member[0].coefficient) for member, _ in work if member][: not first])
            if rank == 0 and first and any(abs(term.coefficient) == first[0] for member, _ in work for term in member):
                raise ObjectiveError("the model's outputs are not finite")
            return real(self, work, **how)

        LocalEngine.logprobs = patched  # type: ignore[method-assign]
        found.train()
        (tmp_path / f"{size}-{rank}").write_text(f"{found.found!r} {found.found}")

    for size in (1, 2):
        codes = launches.ended(launches.start(size, tmp_path / "log", work), 60)
        assert codes == [0] * size, (tmp_path / "log").read_text()[-3000:]
    told = [(tmp_path / name).read_text() for name in ("1-0", "2-0", "2-1")]
    assert ", inf)" in told[0] and "converged=True" in told[0]
    assert told[1] == told[2]
    assert told[1].partition(" found: ")[2] == told[0].partition(" found: ")[2] != ""  # a look differs in its last bits


COMMAND = [
    *("tune", "neg-cross-entropy", "--model", "model", "--data", "train.jsonl", "--eval-data", "train.jsonl"),
    *("--template", "{text} it was", "--choice", " bad", "--choice", " good", "--lr", "1e-2", "--eval-every", "4"),
    *("--steps", "12", "--num-directions", "2", "--batch-size", "4", "--device", "cpu", "--set", "save_steps=3"),
    *("--test-data", "train.jsonl", "--metric", "accuracy"),
]


@pytest.fixture
def place(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "model").symlink_to(tiny_model_dir, target_is_directory=True)
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(output: str, *more: str, before: Any = lambda rank: None, rank: int = 0) -> int:
    before(rank)
    return main([*COMMAND, "--output", output, *more])


def kept(output: Path) -> dict[str, bytes]:
    """The files of a run, but for those that say where it is, or how long it took."""
    files = {path.relative_to(output).as_posix(): path for path in output.rglob("*") if path.is_file()}
    assert {"config.yaml", "model/README.md", "model/model.safetensors"} <= files.keys()
    others = ("config.yaml", "model/README.md", "notes.jsonl", "report.html")
    return {name: path.read_bytes() for name, path in files.items() if name not in others}


def at_step(step: int, signalled: int, number: signal.Signals) -> Any:
    """Have one rank get a signal at a step."""

    def before(rank: int) -> None:
        from zoreward.trainer.run import Run

        real = Run.ask_score_tell

        def patched(self: Run, rows: Any) -> Any:
            if self.state.step == step and rank == signalled:
                os.kill(os.getpid(), number)
            return real(self, rows)

        Run.ask_score_tell = patched  # type: ignore[method-assign]

    return before


def launched(size: int, place: Path, output: str, *more: str, before: Any = lambda rank: None) -> list[int]:
    (place / "log").unlink(missing_ok=True)
    work = lambda rank: command(output, *more, before=before, rank=rank)  # noqa: E731
    return launches.ended(launches.start(size, place / "log", work))


def test_a_rank_that_dies_ends_the_others_and_any_number_of_ranks_goes_on(place):
    assert launched(2, place, "whole") == [0, 0]
    log = (place / "log").read_text()
    told = ("12 steps in", "weights are tuned", "rows: 12 to tune on")
    assert [log.count(line) for line in told] == [1, 1, 1]  # rank 0 alone tells
    whole = kept(place / "whole")

    for died, size in ((1, 1), (0, 2)):
        output, begun = f"killed-{died}", time.monotonic()
        codes = launched(2, place, output, before=at_step(6, died, signal.SIGKILL))
        assert sorted(codes) == [-signal.SIGKILL, 1] and time.monotonic() - begun < 60
        log = (place / "log").read_text()
        assert "another rank has ended" in log
        assert ("resume: torchrun --nproc-per-node 2 -m zoreward tune" in log) == (died == 1)
        if size == 1:
            assert command(output, "--resume") == 0
        else:
            assert launched(2, place, output, "--resume") == [0, 0]
        assert kept(place / output) == whole


@pytest.mark.parametrize("split", ["members", "rows"])
def test_an_objective_that_fails_on_rows_of_one_class_is_warned_of_and_no_rank_waits(split, place):
    """Rank 0 calls it, and takes what it raises for a warning: the others must too."""
    (place / "own.py").write_text(
        "def of_two_classes(predictions, references):\n"
        "    assert len(set(references)) > 1\n"
        "    return sum(map(int.__eq__, map(int, predictions), map(int, references))) / len(references)\n"
    )
    words = ["tune", "own.py:of_two_classes", *COMMAND[2:], "--batch-size", "3", "--steps", "1", "--ranks-split", split]
    words[words.index("--metric") : words.index("--metric") + 2] = []
    work = lambda rank: main([*words, "--output", "run"])  # noqa: E731
    assert launches.ended(launches.start(2, place / "log", work), 60) in ([0, 0], [1, 1])  # a batch may be of one class
    log = (place / "log").read_text()
    assert log.count("About 18 % of the batches are of one class") == 1
    assert "dev score" in log and "Traceback" not in log


def test_a_run_that_compares_with_its_base_goes_on_with_another_number_of_ranks_to_the_same_bytes(place):
    pairs = [{"prompt": row["text"], "chosen": " it was good", "rejected": " bad film"} for row in ROWS]
    (place / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    words = ["tune", "preference", "--model", "model", "--data", "pairs.jsonl", "--eval-data", "pairs.jsonl"]
    words += ["--lr", "1e-2", "--steps", "6", "--num-directions", "2", "--batch-size", "4", "--device", "cpu"]

    def run(rank: int) -> int:
        if output == "killed":
            at_step(3, 1, signal.SIGKILL)(rank)
        return main([*words, "--set", "save_steps=0", "--output", output])

    for output in ("whole", "killed"):  # noqa: B007 (`run` reads it)
        launches.ended(launches.start(2, place / "log", run))
    assert main([*words, "--set", "save_steps=0", "--output", "killed", "--resume"]) == 0
    assert load_run(place / "killed").n_steps == 6
    assert kept(place / "killed") == kept(place / "whole")


def test_all_ranks_end_after_the_step_in_which_one_was_told_to(place):
    assert launched(2, place, "run", before=at_step(5, 1, signal.SIGTERM)) == [130, 130]
    assert load_run(place / "run").n_steps == 6
    assert (place / "log").read_text().count("interrupted after step 6") == 1


def test_a_command_that_is_one_process_is_refused(place):
    words = ["bench", "accuracy", "--model", "model", "--data", "train.jsonl"]
    assert launches.ended(launches.start(2, place / "log", lambda rank: main(words))) == [2, 2]
    assert "error: zoreward bench is one process, and 2 were started" in (place / "log").read_text()


@pytest.mark.parametrize(
    "more",
    [
        *(["--calibrate", "--metric", "neg-cross-entropy"], ["--eval-batch-size", "2"]),
        ["--objective-of-texts", "--max-new-tokens", "3", "--temperature", "1", "--seed", "3"],
    ],
    ids=["calibrated", "many passes", "texts"],
)
def test_ranks_that_evaluate_find_what_one_process_finds(place, more, monkeypatch, capfd):
    monkeypatch.chdir(place)
    (place / "own.py").write_text(
        "def length(completions):\n"
        "    with open('calls', 'a') as calls: calls.write('x' * len(completions))\n"
        "    return [float(len(text)) for text in completions]\n"
    )
    words = ["eval", "accuracy", "--template", ANSWERS["template"], "--choice", " bad", "--choice", " good"]
    if more[0] == "--objective-of-texts":
        words, more = ["eval", "callable", "--function", "own.py:length", "--prompt", "text"], more[1:]
    words += ["--model", "model", "--data", "train.jsonl", "--device", "cpu", *more]
    found = []
    for size in (1, 2, 3):
        output = [*words, "--output", f"rows-{size}.jsonl", "--json"]
        children = launches.start(size, place / f"log-{size}", lambda rank, line=output: main(line))
        assert launches.ended(children) == [0] * size
        told = (place / f"log-{size}").read_text()
        summary = json.loads(next(line for line in told.splitlines() if line.startswith("{")))
        assert told.count('"score"') == 1  # rank 0 alone tells
        found.append(({**summary, "seconds": 0}, (place / f"rows-{size}.jsonl").read_bytes()))
    assert found[0] == found[1] == found[2]
    if Path("calls").exists():
        assert Path("calls").read_text() == "x" * 3 * len(ROWS)  # once for each completion


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_a_launcher_begins_anew_by_itself(place, launcher):
    """The real launchers, and a rank that dies once."""
    (place / "dies.py").write_text(
        "import os, sys, runpy, signal\n"
        "from zoreward.trainer.run import Run\n"
        "real = Run.ask_score_tell\n"
        "def patched(self, rows):\n"
        "    first = os.environ['TORCHELASTIC_RESTART_COUNT'] == '0'\n"
        "    if self.state.step == 6 and os.environ['RANK'] == '1' and first:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(self, rows)\n"
        "Run.ask_score_tell = patched\n"
        "from zoreward.cli import main\n"
        "sys.exit(main())\n"
    )
    start = {
        "torchrun": ["torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"],
        "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--max_restarts", "1"],
    }[launcher]
    words = [sys.executable, "-m", *start, "dies.py", *COMMAND, "--output", "run", "--resume"]
    found = subprocess.run(words, capture_output=True, text=True, timeout=500, check=False)
    assert found.returncode == 0, found.stderr[-3000:]
    assert launched(2, place, "whole") == [0, 0]
    assert kept(place / "run") == kept(place / "whole")
    shutil.rmtree(place / "run")
