"""Contract under test: whatever instant `zoreward tune` is killed at, `--resume` ends with the bytes of a run that
nothing happened to: of the model, and of the journal. `make test-faults`; some minutes.

What is killed, and how: each run is a process of its own, forked from this one so that it need not import torch again,
that calls the command line's `main` as the console script does, and dies by SIGKILL, which no process can catch. The
random instants are chosen by the length of the journal, six to a run, and a random part of a step later: so they fall
into the training, and hardly ever into the loading of the model; and, where a finished run is taken up whose model is
missing or damaged, by the folder in which the model is being written. The named instants are places where two files, or
a file and the weights, do not fit together for a moment: there the process kills itself with SIGKILL from inside a
patched function. Of runs of several ranks a random rank is killed, and others go on. A power cut is not tested: what
was handed to the operating system counts as kept. All in all some 230 kills; the last test counts them.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import launches
from zoreward.cli import main

pytestmark = pytest.mark.slow

STEPS = 16
KILLS = 7  # of a run, and some more while it is saved again
SAVING_KILLS = 2
DIED: list[int] = []
"""The processes that were killed."""
OBJECTIVES = """
import random, time

def _late(scores):
    time.sleep(0.01)  # steps of the model alone would be too short to be hit
    return scores

def right(logprobs, references):
    return _late([float(row[index]) for row, index in zip(logprobs, references)])

def moody(logprobs, references):
    if random.SystemRandom().random() < 0.04:
        raise TimeoutError("judge is down")
    return right(logprobs, references)

def brevity(completions, **columns):
    return _late([0.1 * len(text) - len(text.split()) for text in completions])
"""
ANSWERS = ["--template", "{text} it was", "--choice", " terrible", "--choice", " great", "--lr", "3e-3"]
WRITE = ["--prompt", "text", "--temperature", "1", "--max-new-tokens", "4"]
BACK = "a run that goes back"
KINDS = {
    "float32": ["./objectives.py:right", *ANSWERS],
    "bfloat16": ["./objectives.py:right", *ANSWERS, "--dtype", "bfloat16", "--num-directions", "2"],
    "low-rank, writing": ["./objectives.py:brevity", *WRITE, "--num-directions", "4"],
    "an adapter": ["./objectives.py:right", *ANSWERS, "--tune", "lora", "--lora-rank", "2"],
    "an objective that raises now and then": ["./objectives.py:moody", *ANSWERS],
    "an adapter, merged": ["./objectives.py:right", *ANSWERS, "--tune", "lora", "--lora-rank", "2", "--merge"],
    "a prefix": ["./objectives.py:right", *ANSWERS, "--tune", "prefix"],
    **{
        f"method {name}": ["./objectives.py:right", *ANSWERS, "--method", name]
        for name in ("svrg", "momentum", "sign", "lozo", "subzero", "sparse", "bcd", "es", "fzoo")
    },
    "the best step": ["./objectives.py:right", *ANSWERS, "--keep", "best", "--set", "save_strategy=best"],
    BACK: ["./objectives.py:right", *ANSWERS[:-1], "0.3", "--eval-every", "2", "--eval-limit", "12"],
    "test rows": ["./objectives.py:right", *ANSWERS, "--test-data", "train.jsonl", "--test-rows", "5"],
    "a sum": ["./objectives.py:right", *ANSWERS, "--also", "neg-cross-entropy=0.5"],
    "an encoder–decoder": ["./objectives.py:right", *ANSWERS, "--model", "t5"],
    "accumulated": ["./objectives.py:right", *ANSWERS, "--gradient-accumulation-steps", "2", "--warmup-steps", "3"],
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path, tiny_t5_dir: Path) -> Path:
    """The folder in which the commands run: a model, rows and objectives."""
    found = tmp_path_factory.mktemp("faults")
    (found / "model").symlink_to(tiny_model_dir, target_is_directory=True)
    (found / "t5").symlink_to(tiny_t5_dir, target_is_directory=True)
    (found / "objectives.py").write_text(OBJECTIVES)
    words = ["bad", "awful", "dull", "good", "great", "lovely"]
    rows = [{"text": f"{a} {word} film", "label": int(n > 2)} for n, word in enumerate(words) for a in ("a", "the")]
    (found / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    torch.set_num_threads(1)  # a forked child has none of the other threads
    for name in ("zoreward.trainer", "zoreward.cli.progress", "peft", "datasets", "sklearn.metrics", "rich.progress"):
        importlib.import_module(name)  # once, and not in each child
    return found


def command(kind: str, output: str, *more: str, schedule: str = "linear") -> list[str]:
    """A run with evaluations, a schedule, and a snapshot every third step."""
    data = ["--model", "model", "--data", "train.jsonl", "--eval-data", "train.jsonl", "--eval-limit", "4"]
    run = ["--steps", str(STEPS), "--eval-every", "4", "--batch-size", "4", "--device", "cpu", "--output", output]
    others = ["--lr-scheduler-type", schedule, "--set", "save_steps=3"]
    objective, *options = KINDS[kind]
    return ["tune", objective, *data, *run, *others, *options, *more]


def start(folder: Path, words: list[str], prepare: Callable[[], None] = lambda: None) -> int:
    """Run a command in a process of its own; returns its id. `prepare` is called in it."""
    [child] = start_ranks(1, folder, words, prepare)
    return child


def start_ranks(size: int, folder: Path, words: list[str], prepare: Callable[[], None] = lambda: None) -> list[int]:
    """Run a command as several ranks; returns their ids. `prepare` is called in each."""

    def work(rank: int) -> int:
        os.chdir(folder)
        print("\n$", *words, flush=True)
        prepare()
        return main(words)

    return launches.start(size, folder / "log.txt", work)


def ended(child: int) -> int:
    """Wait for a process; returns its exit code, or minus the signal that ended it."""
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == -signal.SIGKILL:
        DIED.append(child)
    return code


def until_done(folder: Path, kind: str, words: list[str]) -> None:
    """Resume until the run is done: an objective that raises may take several turns."""
    for _ in range(60):
        code = ended(start(folder, words))
        if code == 0:
            return
        expected = (1, 2) if kind.startswith("an objective that raises") else ()
        assert code in expected, f"exit code {code}: {(folder / 'log.txt').read_text()[-3000:]}"
    raise AssertionError("it never ended")


@pytest.fixture(scope="module")
def whole(folder: Path) -> Callable[..., dict[str, bytes]]:
    """Kind → the bytes of all files of a run that nothing happened to."""
    made: dict[tuple[str, ...], dict[str, bytes]] = {}

    def run(kind: str, *more: str, schedule: str = "linear") -> dict[str, bytes]:
        if (kind, *more, schedule) not in made:
            output = f"whole-{len(made)}"
            for words in ((), more) if more else ((),):  # a run that is done, and is taken up with more words
                until_done(folder, kind, command(kind, output, "--resume", *words, schedule=schedule))
            made[kind, *more, schedule] = kept(folder / output)
        return made[kind, *more, schedule]

    return run


def kept(output: Path) -> dict[str, bytes]:
    """Name → bytes of the files of a run, but for those that say where it is, or how long it took."""
    files = {path.relative_to(output).as_posix(): path for path in output.rglob("*") if path.is_file()}
    assert {"config.yaml", "model/README.md"} <= files.keys()
    others = ("config.yaml", "model/README.md", "notes.jsonl", "report.html")
    return {name: path.read_bytes() for name, path in files.items() if name not in others}


def kill_at(child: int, journal: Path, size: int, delay: float) -> int:
    """Kill a process when its journal has reached a size, and a bit later; returns how it ended."""
    for _ in range(600_000):
        if journal.exists() and journal.stat().st_size >= size:
            break
        found, status = os.waitpid(child, os.WNOHANG)
        if found:  # it was done, or its objective raised, before
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.0005)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    return ended(child)


def taken_up(folder: Path, kind: str, words: list[str], output: Path) -> None:
    """Take up a run that is done: nothing may be written."""
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    until_done(folder, kind, words)
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before


@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_random_instants(kind: str, folder: Path, whole: Callable) -> None:
    expected = whole(kind)
    assert kind != BACK or expected["journal.jsonl"].count(b'"kind": "rewind"') > 1
    output = folder / str(list(KINDS).index(kind))
    words = command(kind, output.name, "--resume")
    instants, killed = random.Random(kind), 0
    journal = output / "journal.jsonl"
    attempts = 0
    while killed < KILLS and attempts < 40:
        attempts += 1
        begun = journal.stat().st_size if journal.exists() else 0
        # The first quarter of what is left, so that several kills fit into one run.
        size = begun + instants.random() * (len(expected["journal.jsonl"]) - begun) / (KILLS - killed)
        code = kill_at(start(folder, words), journal, int(size), instants.random() * 0.03)
        assert code in (-signal.SIGKILL, 0, 1, 2), (folder / "log.txt").read_text()[-3000:]
        killed += code == -signal.SIGKILL
        if code == 0:
            break
    assert killed >= 2
    until_done(folder, kind, words)
    assert kept(output) == expected


# How many ranks such a run is begun by. It goes on by others.
BEGUN_BY = {"float32": 2, "bfloat16": 3, "low-rank, writing": 2, "an adapter": 1, BACK: 2}


@pytest.mark.parametrize("kind", BEGUN_BY)
def test_a_random_rank_is_killed_at_random_instants(kind: str, folder: Path) -> None:
    size, instants, number = BEGUN_BY[kind], random.Random(kind), list(BEGUN_BY).index(kind)
    assert launches.ended(start_ranks(size, folder, command(kind, f"ranks-whole-{number}"))) == [0] * size
    expected = kept(folder / f"ranks-whole-{number}")
    output, killed = folder / f"ranks-{number}", 0
    words, journal = command(kind, output.name, "--resume"), output / "journal.jsonl"
    for _ in range(40):
        begun = journal.stat().st_size if journal.exists() else 0
        # The unit of work is that of those who begin it; from its first step on, others may go on.
        now = instants.choice((1, 2, size)) if begun > 3000 else size
        children = start_ranks(now, folder, words)
        victim = children.pop(instants.randrange(now))
        aim = begun + instants.random() * (len(expected["journal.jsonl"]) - begun) / (KILLS - killed)
        code, dead = kill_at(victim, journal, int(aim), instants.random() * 0.03), time.monotonic()
        others = launches.ended(children)
        killed += code == -signal.SIGKILL
        assert {code, *others} <= ({-signal.SIGKILL, 0, 1, 2}), (folder / "log.txt").read_text()[-3000:]
        assert time.monotonic() - dead < 30  # seconds after one, the others
        if killed == KILLS or code == 0:
            break
    assert killed >= 2
    last = 3 - min(size, 2)  # another number than began it
    assert launches.ended(start_ranks(last, folder, words)) == [0] * last, (folder / "log.txt").read_text()[-3000:]
    # What is shown of texts is that of rank 0's own members.
    found, whole = (
        {name: held for name, held in files.items() if not name.startswith("completions/")}
        for files in (kept(output), expected)
    )
    assert found == whole


def damaged_model(output: Path, how: int) -> None:
    """Do to the model of a finished run what a user, a full disk or a kill of another program may do."""
    weights = next((output / "model").glob("*.safetensors"))
    if how == 0:
        shutil.rmtree(output / "model")
    elif how == 1:
        weights.write_bytes(weights.read_bytes()[:-50])
    elif how == 2:
        weights.unlink()
        os.mkfifo(weights)
    else:
        (output / "trajectory.safetensors").write_bytes(b"")
        (output / "model" / "tokenizer_config.json").unlink()


@pytest.mark.parametrize("kind", KINDS)
def test_killed_while_the_model_of_a_finished_run_is_made_again(kind: str, folder: Path, whole: Callable) -> None:
    expected, number = whole(kind), list(KINDS).index(kind)
    output = folder / str(number)
    words = command(kind, output.name, "--resume")
    until_done(folder, kind, words)
    damaged_model(output, number % 4)
    instants = random.Random(kind)
    for _ in range(SAVING_KILLS):
        child, part = start(folder, words), output / "model.part"
        kill_at(child, part, 0, instants.random() * 0.02)
    until_done(folder, kind, words)
    assert kept(output) == expected
    taken_up(folder, kind, words, output)


def die(*anything: object, **more: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(number: int, target: object, name: str, *, after: bool = False) -> None:
    """Die when a function is called for the n-th time, before it does anything, or when it has."""
    real, calls = getattr(target, name), []

    def patched(*arguments: object, **options: object) -> object:
        calls.append(1)
        if len(calls) == number and not after:
            die()
        found = real(*arguments, **options)
        if len(calls) == number:
            die()
        return found

    setattr(target, name, patched)


def in_the_middle_of_a_line() -> None:
    from zoreward.journal.writer import Journal

    real = Journal._write

    def half(self: Journal, fields: dict) -> None:
        if fields.get("step") == 10:
            os.write(self._file.fileno(), b'{"kind": "step", "step": 10, "sco')
            die()
        real(self, fields)

    Journal._write = half  # type: ignore[method-assign]


def in_the_middle_of_a_snapshot() -> None:
    from zoreward.journal import snapshot

    real, pieces = snapshot._bytes, []

    def few(weight: torch.Tensor) -> object:
        pieces.append(1)
        if len(pieces) == 30:  # in the second snapshot
            die()
        return real(weight)

    snapshot._bytes = few  # type: ignore[assignment]


def patch(module: str, name: str, number: int, after: bool = False) -> Callable[[], None]:
    def do() -> None:
        place, _, attribute = name.rpartition(".")
        target = importlib.import_module(module)
        at_call(number, getattr(target, place) if place else target, attribute, after=after)

    return do


INSTANTS = {
    "before config.yaml": patch("zoreward.cli.tune", "write_config", 1),
    "before the journal": patch("zoreward.trainer.loop", "Journal", 1),
    "behind the header": patch("zoreward.trainer.loop", "Journal", 1, after=True),
    "in the middle of a line": in_the_middle_of_a_line,
    "between the line and the weights": patch("zoreward.scoring.local", "update_", 9),
    "behind the weights": patch("zoreward.scoring.local", "update_", 9, after=True),
    "before an evaluation": patch("zoreward.trainer.loop", "ZOTrainer.evaluate", 3),
    "behind an evaluation": patch("zoreward.trainer.loop", "ZOTrainer.evaluate", 3, after=True),
    "in the middle of a snapshot": in_the_middle_of_a_snapshot,
    "before a snapshot has its name": patch("zoreward.journal.disk", "os.replace", 3),
    "when a snapshot has its name": patch("zoreward.journal.disk", "os.replace", 3, after=True),
    "before the trajectory": patch("zoreward.trainer.resuming", "write_trajectory", 1),
    "before the model": patch("zoreward.trainer.loop", "ZOTrainer.save_model", 1),
    "when the model is written": patch("zoreward.trainer.loop", "ZOTrainer.save_model", 1, after=True),
    "before the snapshot is removed": patch("zoreward.journal", "remove_snapshot", 1),
}


@pytest.mark.parametrize("instant", INSTANTS)
def test_killed_at_the_worst_instants(instant: str, folder: Path, whole: Callable) -> None:
    expected = whole("float32")
    output = folder / f"at-{list(INSTANTS).index(instant)}"
    words = command("float32", output.name, "--resume")
    assert ended(start(folder, words, INSTANTS[instant])) == -signal.SIGKILL, (folder / "log.txt").read_text()[-3000:]
    until_done(folder, "float32", words)
    assert kept(output) == expected


def at_name(name: str, *, after: bool = False) -> Callable[[], None]:
    """Die when a file or folder gets a name, or when it has it."""

    def do() -> None:
        for function in ("rename", "replace"):
            real = getattr(os, function)

            def patched(source: object, target: object, real: Callable = real) -> None:
                hit = Path(str(target)).name == name
                if hit and not after:
                    die()
                real(source, target)
                if hit:
                    die()

            setattr(os, function, patched)

    return do


SAVING = {
    "before the trajectory has its name": at_name("trajectory.safetensors"),
    "when the trajectory has its name": at_name("trajectory.safetensors", after=True),
    "before the model": patch("zoreward.trainer.loop", "ZOTrainer.save_model", 1),
    "before the card": patch("zoreward.trainer.loop", "write_card", 1),
    "before the record": patch("zoreward.cli.saving", "write_record", 1),
    "when all is on the disk": patch("zoreward.journal.disk", "sync_all", 1, after=True),
    "before the old model is aside": at_name("model.old"),
    "when the old model is aside": at_name("model.old", after=True),
    "before the model has its name": at_name("model"),
    "when the model has its name": at_name("model", after=True),
    "before the snapshot is removed": patch("zoreward.journal", "remove_snapshot", 1),
    "before what was found is written": patch("zoreward.cli.tune", "with_findings", 1),
    "when what was found is written": patch("zoreward.cli.tune", "with_findings", 1, after=True),
}
# What is asked of a run that is done: more of it, or another of its steps.
TAKEN_UP = {"more steps": ("--steps", str(STEPS + 4)), "the last step": ("--keep", "last")}


@pytest.mark.parametrize("asked", TAKEN_UP)
@pytest.mark.parametrize("instant", SAVING)
def test_killed_while_a_finished_run_is_taken_up(instant: str, asked: str, folder: Path, whole: Callable) -> None:
    kind, more = "float32", TAKEN_UP[asked]
    expected = whole(kind, *more, schedule="constant")
    output = folder / f"up-{list(SAVING).index(instant)}-{list(TAKEN_UP).index(asked)}"
    if not (folder / "up").exists():
        until_done(folder, kind, command(kind, "up", schedule="constant"))
    shutil.copytree(folder / "up", output)
    words = command(kind, output.name, "--resume", *more, schedule="constant")
    code = ended(start(folder, words, SAVING[instant]))
    assert code == -signal.SIGKILL, (folder / "log.txt").read_text()[-3000:]
    until_done(folder, kind, words)
    assert kept(output) == expected


def test_there_were_two_hundred_kills(request: pytest.FixtureRequest) -> None:
    ran = [item for item in request.session.items if item.path == Path(__file__)]
    if len(ran) < 2 * len(KINDS):
        pytest.skip("only some of the kills were asked for")
    print(f"{len(DIED)} kills, {len(KINDS)} kinds of run")
    assert len(DIED) >= 200 and len(KINDS) >= 20
