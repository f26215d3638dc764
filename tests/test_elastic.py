"""Contract under test: workers that come, go, die and are slow change no byte of a run; who does not know the token, or
is of another run, changes nothing at all."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import re
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import launches
import zoreward
from conftest import random_model
from zoreward.cli import main
from zoreward.journal import load_run, replay
from zoreward.members import tuned_weights
from zoreward.records import InputError, RanksError, Scored
from zoreward.scoring import load_model
from zoreward.scoring.channel import Channel, accepted, connected, given_token, place_of_address
from zoreward.scoring.elastic import Coordinator, Opened, ask, told_scores
from zoreward.trainer.replicas import digest_of_weights

TOKEN = "0123456789abcdef-of-the-tests"
WORDS = ["bad", "awful", "dull", "good", "great", "lovely"]
ROWS = [{"text": f"{a} {word} film", "label": int(n > 2)} for n, word in enumerate(WORDS) for a in ("a", "the")]
OBJECTIVES = """
import time

def right(logprobs, references):
    return [float(row[index]) for row, index in zip(logprobs, references)]

def brevity(completions, **columns):
    return [0.1 * len(text) - len(text.split()) for text in completions]
"""
ANSWERS = ["--template", "{text} it was", "--choice", " bad", "--choice", " good", "--lr", "1e-2"]
WRITE = ["--prompt", "text", "--temperature", "1", "--max-new-tokens", "3", "--lr", "1e-2"]
BACK = "a run that goes back"
LOSS = ["neg-cross-entropy", *ANSWERS]
FAST = ["neg-cross-entropy", *ANSWERS[:-1], "0.3", "--eval-every", "2"]
CASES: dict[str, list[str]] = {
    "dense": [*LOSS, "--num-directions", "4"],
    "bfloat16, low-rank": [*LOSS, "--num-directions", "8", "--noise", "low-rank", "--dtype", "bfloat16"],
    "F1 of the set, a found rate": ["f1", *ANSWERS[:-2], "--num-directions", "4", "--noise", "low-rank"],
    "LoRA": ["./objectives.py:right", *ANSWERS, "--num-directions", "3", "--tune", "lora", "--lora-rank", "2"],
    "texts": ["./objectives.py:brevity", *WRITE, "--num-directions", "6"],
    BACK: [*FAST, "--num-directions", "2"],
    "svrg": [*LOSS, "--method", "svrg", "--full-every", "3"],
    "a prefix": [*FAST, "--num-directions", "2", "--tune", "prefix"],
    "rows held out": [*LOSS, "--num-directions", "2", "--eval-data", "", "--dev-rows", "4", "--test-rows", "2"],
    "a sum, dev rows drawn": [
        *("f1", *ANSWERS, "--average", "macro", "--also", "neg-cross-entropy=0.5", "--num-directions", "2"),
        *("--dev-rows", "5", "--train-rows", "8", "--test-data", "train.jsonl", "--metric", "accuracy"),
    ],
    "a new head": ["accuracy", "--template", "{text}", "--head", "classifier", "--num-directions", "4"],
    "pairs, a base, a budget": [
        *("preference", "--data", "pairs.jsonl", "--eval-data", "pairs.jsonl", "--num-directions", "4"),
        *("--max-forwards", "200", "--drift", "--max-kl", "9"),
    ],
    "a task": [
        "accuracy",
        "--task",
        "task.yaml",
        "--data",
        "",
        "--eval-data",
        "",
        "--lr",
        "1e-2",
        "--num-directions",
        "2",
    ],
    "momentum, blocks": [*LOSS, "--method", "bcd", "--momentum", "0.5", "--num-directions", "2"],
}
CODE = ["--code", "./objectives.py:right", "--code", "./objectives.py:brevity"]


@pytest.fixture
def place(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "model").symlink_to(tiny_model_dir, target_is_directory=True)
    (tmp_path / "objectives.py").write_text(OBJECTIVES)
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    pairs = [{"prompt": f"{row['text']} it was", "chosen": " good", "rejected": " bad film"} for row in ROWS]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    (tmp_path / "task.yaml").write_text(
        'data: train.jsonl\nobjective: accuracy\nrows: {train: 6, dev: 4}\ntemplate: "{text} it was"\n'
        'choices: [" bad", " good"]\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZOREWARD_TOKEN", TOKEN)
    return tmp_path


def command(case: str, output: str, *more: str, steps: int = 12) -> list[str]:
    objective, *options = CASES[case]
    data = ["--model", "model", "--device", "cpu"]
    for flag in ("--data", "--eval-data"):  # a case may have another, or none
        if flag not in options:
            data += [flag, "train.jsonl"]
        elif not options[options.index(flag) + 1]:
            del options[options.index(flag) : options.index(flag) + 2]
    run = ["--steps", str(steps), "--batch-size", "4", "--output", output, "--set", "save_steps=0"]
    others = [] if "--eval-every" in options else ["--eval-every", "6"]
    return ["tune", objective, *data, *run, *options, *others, *more]


def started(log: Path, words: list[str], before: Callable[[], None] = lambda: None) -> int:
    """Run a command in a process of its own; returns its id. `before` is called in it."""

    def work(rank: int) -> int:
        before()
        return main(words)

    [child] = launches.start(1, log, work)
    return child


def slow(seconds: float) -> Callable[[], None]:
    """Each score takes longer."""

    def before() -> None:
        from zoreward.scoring.scorer import Scorer

        real = Scorer.score

        def patched(self: Any, examples: Any, *args: Any, **more: Any) -> Any:
            time.sleep(seconds)
            return real(self, examples, *args, **more)

        Scorer.score = patched  # type: ignore[method-assign]

    return before


def bytes_of(output: Path) -> dict[str, bytes]:
    """The files of a run, but for those that say where it is, how long it took, or what this process saw of texts."""
    files = {path.relative_to(output).as_posix(): path for path in output.rglob("*") if path.is_file()}
    assert "journal.jsonl" in files
    others = ("config.yaml", "model/README.md", "notes.jsonl", "report.html")
    return {n: path.read_bytes() for n, path in files.items() if n not in others and not n.startswith("completions/")}


def compared(workers: int = 0) -> Callable[[], None]:
    """Weights are compared after each step; a run waits for so many workers before its first one."""

    def before() -> None:
        from zoreward.trainer import follower

        follower.COMPARE_EVERY = 1
        real = Coordinator.open

        def patched(self: Coordinator, opened: Opened) -> None:
            real(self, opened)
            wait_until(lambda: len(self.workers) >= workers)

        Coordinator.open = patched  # type: ignore[method-assign]

    return before


def wait_until(happens: Callable[[], bool], seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < until
        time.sleep(0.005)


def members_scored(log: Path) -> list[int]:
    """How many members each worker says that it has scored."""
    return [int(found) for found in re.findall(r"; (\d+) members were scored here", log.read_text())]


QUICK = ["bfloat16, low-rank", BACK]


@pytest.mark.parametrize("case", [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in CASES])
def test_workers_change_no_byte(case: str, place: Path) -> None:
    log, address = place / "log", f"tcp://127.0.0.1:{launches.free_port()}"
    alone = started(log, command(case, "alone", "--elastic", "tcp://127.0.0.1:0"))
    run = started(log, command(case, "run", "--elastic", address), compared(2))
    own = [] if not torch.cuda.is_available() else ["--device", "cpu"]  # a forked process cannot use the GPU
    workers = [started(log, ["worker", address, *more, *CODE], compared()) for more in (own, ["--device", "cpu"])]
    assert launches.ended([alone, run, *workers]) == [0] * 4, log.read_text()[-5000:]
    assert bytes_of(place / "run") == bytes_of(place / "alone")
    assert len(members_scored(log)) == 2 and all(members_scored(log)), log.read_text()
    assert case != BACK or load_run(place / "run").rewinds
    assert TOKEN not in log.read_text() + (place / "run" / "config.yaml").read_text()
    model = replay(load_run(place / "run"), load_model("model", device="cpu")) if case == "dense" else None
    if model is not None:
        last = replay(load_run(place / "alone"), load_model("model", device="cpu"))
        assert digest_of_weights(tuned_weights(model)) == digest_of_weights(tuned_weights(last))


def test_an_elastic_run_goes_on_as_a_plain_one_and_back(place: Path) -> None:
    log, address = place / "log", f"tcp://127.0.0.1:{launches.free_port()}"
    case = "dense"
    elastic = ["--elastic", address]
    # Begun with a worker and killed; then plain, and killed; then elastic again.
    run = started(log, command(case, "run", *elastic), chain(compared(1), at_step(4)))
    worker = started(log, ["worker", address, "--device", "cpu"], compared())
    assert launches.ended([run, worker]) == [-signal.SIGKILL, 1], log.read_text()[-3000:]
    assert f"error: the run at {address} has ended before its last step" in log.read_text()
    assert launches.ended([started(log, command(case, "run", "--resume"), at_step(6))]) == [-signal.SIGKILL]
    assert load_run(place / "run").n_steps == 6
    run = started(log, command(case, "run", "--resume", *elastic), chain(compared(1), at_step(8, signal.SIGTERM)))
    worker = started(log, ["worker", address, "--device", "cpu"], compared())
    assert launches.ended([run, worker]) == [130, 1], log.read_text()[-3000:]
    assert load_run(place / "run").n_steps == 9
    run = started(log, command(case, "run", "--resume", *elastic), compared(1))
    worker = started(log, ["worker", address, "--device", "cpu"], compared())
    assert launches.ended([run, worker]) == [0, 0], log.read_text()[-3000:]
    assert members_scored(log)[0] > 0
    assert launches.ended([started(log, command(case, "alone", "--elastic", "tcp://127.0.0.1:0"))]) == [0]
    assert bytes_of(place / "run") == bytes_of(place / "alone")


def test_pairs_that_several_ranks_began_go_on_with_a_worker_that_has_work(place: Path) -> None:
    log, address = place / "log", f"tcp://127.0.0.1:{launches.free_port()}"
    words = command("pairs, a base, a budget", "run", "--lr", "1e-2", "--eps", "1e-2", steps=6)

    def rank(number: int) -> int:
        if output == "run":
            at_step(2)()
        return main([*words, "--output", output])

    for output in ("whole", "run"):  # noqa: B007 (`rank` reads it)
        launches.ended(launches.start(2, log, rank))
    assert load_run(place / "whole").n_steps == 6 > load_run(place / "run").n_steps
    run = started(log, [*words, "--resume", "--elastic", address], compared(1))
    worker = started(log, ["worker", address, "--device", "cpu"], compared())
    assert launches.ended([run, worker]) == [0, 0], log.read_text()[-3000:]
    assert members_scored(log)[0] > 0, log.read_text()[-3000:]
    assert bytes_of(place / "run") == bytes_of(place / "whole")


def at_step(step: int, number: signal.Signals = signal.SIGKILL) -> Callable[[], None]:
    """Die when a step has its scores, before it is written down."""

    def before() -> None:
        from zoreward.trainer.run import Run

        real = Run.journal_and_apply

        def patched(self: Run, done: Any) -> None:
            if done.record.step == step:
                os.kill(os.getpid(), number)
            real(self, done)

        Run.journal_and_apply = patched  # type: ignore[method-assign]

    return before


def chain(*every: Callable[[], None]) -> Callable[[], None]:
    return lambda: [one() for one in every] and None


def dies_at(call: int) -> Callable[[], None]:
    """Die with members in hand."""

    def before() -> None:
        from zoreward.scoring.scorer import Scorer

        real, calls = Scorer.score, []

        def patched(*args: Any, **more: Any) -> Any:
            calls.append(1)
            if len(calls) > call:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **more)

        Scorer.score = patched  # type: ignore[method-assign]

    return before


def says_that_it_has_joined() -> None:
    from zoreward.trainer import follower

    real = follower.ask

    def patched(channel: Channel, kind: str, **message: Any) -> Any:
        reply = real(channel, kind, **message)
        if kind == "join":
            Path("late").touch()
        return reply

    follower.ask = patched


def waits_for_the_late_one() -> None:
    from zoreward.trainer.run import Run

    real = Run.ask_score_tell

    def patched(self: Run, rows: Any) -> Any:
        if self.state.step == 20:
            wait_until(Path("late").exists)
        return real(self, rows)

    Run.ask_score_tell = patched  # type: ignore[method-assign]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_a_killed_a_slow_and_a_late_worker_change_no_byte(seed: int, place: Path) -> None:
    """`make test-faults`. A score takes 10 ms, and of the slow one 100; the first one dies with members in hand, or is
    killed at any instant."""
    chance, case = random.Random(seed), list(CASES)[seed % len(CASES)]
    log, address = place / "log", f"tcp://127.0.0.1:{launches.free_port()}"
    alone = started(log, command(case, "alone", "--elastic", "tcp://127.0.0.1:0", steps=30))
    assert launches.ended([alone]) == [0], log.read_text()[-3000:]
    words = ["worker", address, "--device", "cpu", *CODE]
    run = started(
        log,
        command(case, "run", "--elastic", address, steps=30),
        chain(compared(2), slow(0.01), waits_for_the_late_one),
    )
    # The first calls try the objective, and score the model itself.
    dies = started(
        log, words, chain(compared(), slow(0.01), dies_at(chance.randrange(4, 9)) if seed % 2 else compared())
    )
    lags = started(log, words, chain(compared(), slow(0.1)))
    journal = place / "run" / "journal.jsonl"
    wait_until(lambda: journal.exists() and journal.read_bytes().count(b'"kind": "step"') >= chance.randrange(2, 5))
    if seed % 2 == 0:
        time.sleep(chance.random() * 0.1)
        os.kill(dies, signal.SIGKILL)
    late = started(log, words, chain(compared(), says_that_it_has_joined))
    codes = launches.ended([run, dies, lags, late])
    assert codes == [0, -signal.SIGKILL, 0, 0], log.read_text()[-5000:]
    assert "has left; what it had in hand is scored again" in log.read_text()
    assert len(members_scored(log)) == 2 and all(members_scored(log)), log.read_text()
    assert bytes_of(place / "run") == bytes_of(place / "alone")


# --- workers of another run ------------------------------------------------------------------------------------------


def other_version() -> None:
    import zoreward

    zoreward.__version__ = "9.9.9"


def other_weights() -> None:
    """A bit turns when a worker does an update."""
    from zoreward.trainer import follower

    compared()()
    real = follower.advance

    def patched(run: Any, model: Any, *more: Any) -> None:
        real(run, model, *more)
        with torch.no_grad():
            next(model.parameters()).view(torch.int32)[0, 0] ^= 1

    follower.advance = patched


def test_a_worker_of_another_run_is_refused_and_one_line_says_what_differs(place: Path, tokenizer: Any) -> None:
    random_model("llama", seed=1).save_pretrained(place / "other")
    tokenizer.save_pretrained(place / "other")
    (place / "fewer.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[1:]))
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    for name in ("model", "train.jsonl"):
        (elsewhere / name).symlink_to(place / name)
    (elsewhere / "objectives.py").write_text(OBJECTIVES.replace("row[index]", "2 * row[index]"))
    address = f"tcp://127.0.0.1:{launches.free_port()}"
    log, own, code = place / "log", ["worker", address, "--device", "cpu"], ["--code", "./objectives.py:right"]
    tries: dict[str, tuple[list[str], Callable[[], None], str]] = {
        "base": ([*own, *code, "--model", "other"], compared(), "began with other weights"),
        "rows": ([*own, *code, "--data", "fewer.jsonl"], compared(), "was made with other rows to tune on"),
        "version": ([*own, *code], other_version, "it has zoreward 9.9.9, and the run"),
        "code": ([*own, *code], lambda: os.chdir(elsewhere), "was made with other code of the objective 'right'"),
        "unknown code": (own, compared(), "the run calls './objectives.py:right', and a worker takes no code"),
        "dtype": ([*own, *code], other_dtype, "was made with dtype="),
        "weights": ([*own, *code], other_weights, "it has other weights after step"),
    }
    words = ["tune", "./objectives.py:right", *command("dense", "run", "--elastic", address, steps=10_000)[2:]]
    run = started(log, words, chain(compared(), slow(0.002)))
    children = {n: started(place / f"log {n}", words, before) for n, (words, before, _) in tries.items()}
    codes = dict(zip(children, launches.ended(list(children.values())), strict=True))
    said = {name: (place / f"log {name}").read_text() for name in tries}
    os.kill(run, signal.SIGKILL)
    launches.ended([run])
    for name, (_, _, expected) in tries.items():
        errors = [line for line in said[name].splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and expected in errors[0], said[name]
        assert codes[name] == 2
    assert "members were scored here" not in "".join(said.values())


def other_dtype() -> None:
    """What a worker is told of options is changed on the way to its trainer."""
    from zoreward.cli import worker

    real = worker.trainer_for
    worker.trainer_for = lambda objective, options, rows: real(objective, replace(options, dtype="bfloat16"), rows)


# --- who does not know the token, without a model --------------------------------------------------------------------


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Coordinator]:
    """One whose run is open, and accepts workers whose header is {"run": 1}."""

    def check(header: Any) -> None:
        if header["run"] != 1:
            raise InputError("it is of another run")

    (tmp_path / "journal.jsonl").write_bytes(b"one\ntwo\nthr")
    with Coordinator("tcp://127.0.0.1:0", TOKEN) as made:
        made.open(Opened({"model": "m"}, tmp_path / "journal.jsonl", check, "1.0"))
        yield made


def joined(coordinator: Coordinator, name: str = "w") -> Channel:
    channel = connected(coordinator.address, TOKEN, 5)
    assert ask(channel, "begin", name=name, version="1.0") == {"config": {"model": "m"}}
    assert ask(channel, "join", header={"run": 1}) == {"joined": True}
    return channel


def unit_of(channel: Channel, done: Any = None) -> Any:
    """What a worker that has all lines is given to do."""
    return ask(channel, "work", have=8, digest=None, done=done)["unit"]


UNITS = [{"members": [[[7, 0.5, None, "normal"]]], "rows": [n]} for n in range(3)]


def scored(value: float) -> list[Scored]:
    return [Scored(value, {"f1": value})]


def in_thread(coordinator: Coordinator, work: Callable[[int], list[Scored]]) -> Callable[[], list[float]]:
    """Share the units out; returns what waits for the scores."""
    found: list[list[Scored]] = []
    thread = threading.Thread(target=lambda: found.extend(coordinator.shared(UNITS, work)))
    thread.start()

    def wait() -> list[float]:
        thread.join(20)
        return [one.score for [one] in found]

    return wait


def raw(coordinator: Coordinator) -> socket.socket:
    connection = socket.socket()
    connection.settimeout(20)
    connection.connect(place_of_address(coordinator.address))
    return connection


class Recorded:
    """A socket that keeps what is sent behind the first message, of one who knows the token, instead of sending it."""

    def __init__(self, real: socket.socket):
        self.real, self.sent, self.kept = real, False, b""

    def sendall(self, data: bytes) -> None:
        if self.sent:
            self.kept += data
        else:
            self.real.sendall(data)
        self.sent = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Recorded]:
    """The sockets of those who connect, which keep what is sent."""
    found: list[Recorded] = []
    real = socket.create_connection

    def create(*args: Any, **more: Any) -> Any:
        found.append(Recorded(real(*args, **more)))
        return found[-1]

    monkeypatch.setattr("zoreward.scoring.channel.socket.create_connection", create)
    return found


def hostile(number: int, coordinator: Coordinator, recorded: list[Recorded], chance: random.Random) -> None:
    """One of eight things that somebody may send."""
    kind = number % 8
    if kind < 3:
        connection = raw(coordinator)
        noise = [chance.randbytes(chance.randrange(200)), chance.randbytes(64), b"GET / HTTP/1.1\r\n\r\n" * 9][kind]
        with contextlib.suppress(OSError):
            connection.sendall(noise)
            connection.shutdown(socket.SHUT_WR)
            assert len(connection.recv(1 << 16)) == 19 + 32 and connection.recv(1) == b""  # the greeting, and the end
        return connection.close()
    if kind == 3:
        with pytest.raises(InputError, match="no coordinator with this token"):
            connected(coordinator.address, TOKEN[:-1] + chance.choice("abc"), 5)
        return None
    channel = connected(coordinator.address, TOKEN, 5)
    own = recorded[-1]
    score = {"kind": "work", "have": 8, "digest": None, "done": [1, number % 3, told_scores(scored(99.0))]}
    if kind == 4:  # signed, and changed on the way
        channel.send(score)
        frame = bytearray(own.kept)
        frame[chance.randrange(4, len(frame))] ^= 1 << chance.randrange(8)
    elif kind == 5:  # far too long
        frame = bytearray(struct.pack("!I32s", chance.randrange(1 << 25, 1 << 32), bytes(32)) + bytes(4096))
    elif kind == 6:  # signed, and no sense in it
        odd: list[Any] = [None, -1, 1.5, "x", [], {}, [[]], float("inf"), 10**400, "\x1b[31m", [1, 0, [[1.0, {}, {}]]]]
        names = ["kind", "have", "digest", "done", "header", "name", "version"]
        message = {name: chance.choice(odd) for name in chance.sample(names, chance.randrange(7))}
        channel.send({**message, **chance.choice([{}, {"kind": "work"}, {"kind": "join"}, {"kind": "__init__"}])})
        frame = bytearray(own.kept)
    else:  # that of another connection; or the same once more
        channel.send({"kind": "join", "header": {"run": 2}})
        frame = bytearray(own.kept * 2)
    with contextlib.suppress(OSError):
        own.real.sendall(frame)
        if kind != 5:  # of which nobody waits for the rest
            own.real.shutdown(socket.SHUT_WR)
        while own.real.recv(1 << 16):
            pass
    return own.real.close()


def test_five_hundred_hostile_messages_do_nothing(
    coordinator: Coordinator,
    recorded: list[Recorded],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    go, chance = threading.Event(), random.Random(5)

    def work(number: int) -> list[Scored]:
        assert go.wait(60)
        return scored(float(number))

    wait = in_thread(coordinator, work)
    for number in range(500):
        hostile(number, coordinator, recorded, chance)
    assert coordinator.workers == []
    go.set()
    assert wait() == [0.0, 1.0, 2.0]
    assert "\x1b" not in caplog.text
    monkeypatch.undo()
    with joined(coordinator) as worker:  # and whoever knows the token is as welcome as before
        assert coordinator.workers == ["worker w"]
        assert ask(worker, "work", have=0, digest=None, done=None) == {"lines": "one\ntwo\n"}


def test_what_comes_before_it_has_joined_counts_for_nothing(coordinator: Coordinator) -> None:
    for before in ([], [{"kind": "begin", "name": "w", "version": "1.0"}]):
        channel = connected(coordinator.address, TOKEN, 5)
        for message in before:
            ask(channel, **message)
        with pytest.raises(OSError):
            ask(channel, "work", have=8, digest=None, done=[1, 0, told_scores(scored(1.0))])


def test_another_header_version_or_digest_is_refused_with_a_reason(coordinator: Coordinator) -> None:
    with (
        connected(coordinator.address, TOKEN, 5) as channel,
        pytest.raises(InputError, match=r"zoreward 1\.1, and the"),
    ):
        ask(channel, "begin", name="w", version="1.1")
    with connected(coordinator.address, TOKEN, 5) as channel, pytest.raises(InputError, match="of another run"):
        ask(channel, "join", header={"run": 2})
    coordinator.digests[50] = "right"
    with joined(coordinator) as channel:
        assert "lines" in ask(channel, "work", have=0, digest=[50, "right"], done=None)
        assert "lines" in ask(channel, "work", have=0, digest=[100, "not known yet"], done=None)
        with pytest.raises(InputError, match="other weights after step 50"):
            ask(channel, "work", have=0, digest=[50, "wrong"], done=None)


@pytest.mark.parametrize(
    "told",
    [[], [[1, {}, {}]], [[float("inf"), {}, {}]], [[0.5, {"f1": "x"}, {}]], [[0.5, {}]], {}, None, [[0.5, [], []]]],
)
def test_scores_that_are_none_are_not_taken(told: Any, coordinator: Coordinator) -> None:
    go = threading.Event()
    wait = in_thread(coordinator, lambda number: (go.wait(20), scored(float(number)))[1])
    with joined(coordinator) as channel:
        of_round, number, _ = unit_of(channel)
        with pytest.raises(OSError):
            ask(channel, "work", have=8, digest=None, done=[of_round, number, told])
    go.set()
    assert wait() == [0.0, 1.0, 2.0]


def test_strangers_who_say_nothing_are_few_and_are_let_go(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = [raw(coordinator) for _ in range(80)]
    assert sum(one.recv(100) == b"" for one in silent) == 80 - 64
    for one in silent:
        one.close()
    monkeypatch.setattr("zoreward.scoring.channel.SECONDS_TO_GREET", 0.2)
    one = raw(coordinator)
    begun = time.monotonic()
    for byte in range(30):  # a byte now and then buys no time
        with contextlib.suppress(OSError):
            one.sendall(bytes([byte]))
            time.sleep(0.02)
    with contextlib.suppress(ConnectionResetError):
        while one.recv(100):
            pass
    assert time.monotonic() - begun < 5
    one.close()


def test_a_worker_is_told_nothing_by_who_does_not_know_the_token() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"

        def impostor() -> None:
            connection, _ = server.accept()
            connection.sendall(b"zoreward elastic 1\n" + bytes(32))
            connection.recv(64)
            connection.sendall(bytes(32))

        threading.Thread(target=impostor).start()
        with pytest.raises(InputError, match="no coordinator with this token"):
            connected(address, TOKEN, 5)


class Ends:
    """Both ends of a connection."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
            found: list[Channel] = []
            thread = threading.Thread(target=lambda: found.append(accepted(server.accept()[0], TOKEN)))
            thread.start()
            self.worker = connected(address, TOKEN, 5)
            thread.join(5)
        [self.coordinator] = found

    def received(self) -> Any:
        return self.coordinator.receive(5)


def test_messages_in_both_directions_keep_all_bits_and_their_order() -> None:
    ends, numbers = Ends(), [0.1, -1 / 3, 5e-324, 1.7976931348623157e308, 2**63]
    for number in numbers:
        ends.worker.send({"number": number})
        ends.coordinator.send({"number": [number, float("nan")]})
    assert [ends.coordinator.receive(5)["number"] for _ in numbers] == numbers
    assert str([ends.worker.receive(5)["number"] for _ in numbers]) == str([[number, math.nan] for number in numbers])
    with pytest.raises(OSError):
        ends.coordinator.receive(0.05)


def frames_of(ends: Ends, recorded: list[Recorded]) -> list[bytes]:
    """Two messages of a worker, as they would go over the line."""
    frames = []
    for number in (11, 22):
        recorded[-1].kept = b""
        ends.worker.send({"number": number})
        frames.append(recorded[-1].kept)
    return frames


def test_a_message_that_is_changed_repeated_left_out_or_from_elsewhere_is_not_read(recorded: list[Recorded]) -> None:
    ends = Ends()
    first, second = frames_of(ends, recorded)
    recorded[-1].real.sendall(first + second)
    assert [ends.received(), ends.received()] == [{"number": 11}, {"number": 22}]
    elsewhere, _ = frames_of(Ends(), recorded)
    for number in range(40):
        ends = Ends()
        first, second = frames_of(ends, recorded)
        changed = bytearray(first)
        changed[-2 if number % 2 else 4 + number % 32] ^= 1  # the last digit, which stays one, or the signature
        sent, good = [(bytes(changed), 0), (first * 2, 1), (second, 0), (elsewhere, 0)][number % 4]
        recorded[-1].real.sendall(sent)
        assert [ends.received() for _ in range(good)] == [{"number": 11}] * good
        with pytest.raises(ConnectionError, match="not signed"):
            ends.received()
    ends = Ends()  # turned round: what the coordinator has said comes back to it
    ends.coordinator.send({"number": 11})
    recorded[-1].real.sendall(recorded[-1].real.recv(1000))
    with pytest.raises(ConnectionError, match="not signed"):
        ends.received()


# --- who takes which unit --------------------------------------------------------------------------------------------


def test_the_unit_of_a_worker_that_dies_is_done_by_another(
    coordinator: Coordinator, caplog: pytest.LogCaptureFixture
) -> None:
    go = threading.Event()
    wait = in_thread(coordinator, lambda number: (go.wait(60), scored(float(number)))[1])
    dies, lives = joined(coordinator), joined(coordinator)
    taken = unit_of(dies)[1]
    dies.close()
    until = time.monotonic() + 30  # before it is heard of, what the coordinator itself is late with would be handed out
    while "has left" not in caplog.text and time.monotonic() < until:
        time.sleep(0.01)
    of_round, one, _ = unit_of(lives)
    _, other, _ = unit_of(lives, [of_round, one, told_scores(scored(float(one)))])
    assert taken in {one, other} == {1, 2}
    lives.close()
    go.set()
    assert wait() == [0.0, 1.0, 2.0]


def test_a_unit_that_is_late_is_done_once_more_and_the_first_score_counts(coordinator: Coordinator) -> None:
    wait = in_thread(coordinator, lambda number: (time.sleep(0.05), scored(float(number)))[1])
    slow = joined(coordinator)
    of_round, number, _ = unit_of(slow)
    assert wait() == [0.0, 1.0, 2.0]
    # Its own comes too late: neither this step nor the next one takes it.
    wait = in_thread(coordinator, lambda number: (time.sleep(0.05), scored(float(number)))[1])
    again = unit_of(slow, [of_round, number, told_scores(scored(99.0))])
    assert again[0] == of_round + 1
    assert wait() == [0.0, 1.0, 2.0]
    slow.close()


def test_a_worker_that_is_faster_than_the_coordinator_counts(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zoreward.scoring.elastic.POLL", 0.1)
    go = threading.Event()
    wait = in_thread(coordinator, lambda number: (go.wait(20), scored(99.0))[1])  # it has unit 0, and is late
    with joined(coordinator) as fast:
        done = None
        for _ in range(3):  # two that are free, and then what the coordinator is late with
            of_round, number, _ = unit_of(fast, done)
            done = [of_round, number, told_scores(scored(float(number)))]
        assert number == 0
        fast.send({"kind": "work", "have": 8, "digest": None, "done": done})
        assert fast.receive(5) == {"wait": True}
        go.set()
        assert wait() == [0.0, 1.0, 2.0]


def test_an_error_of_the_objective_ends_the_step_for_all(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zoreward.scoring.elastic.POLL", 0.1)

    def work(number: int) -> list[Scored]:
        raise RanksError("judge is down")

    with joined(coordinator) as channel:
        with pytest.raises(RanksError):
            coordinator.shared(UNITS, work)
        channel.send({"kind": "work", "have": 8, "digest": None, "done": None})
        assert channel.receive(5) == {"wait": True}
        wait = in_thread(coordinator, lambda number: (time.sleep(0.05), scored(float(number)))[1])
        assert unit_of(channel)[0] == 2  # of the step that came then
        assert wait() == [0.0, 1.0, 2.0]


def test_the_end_is_told(coordinator: Coordinator) -> None:
    with joined(coordinator) as channel:
        channel.send({"kind": "work", "have": 8, "digest": None, "done": None})
        begun = time.monotonic()
        coordinator.close()
        assert channel.receive(5) == {"end": False} and time.monotonic() - begun < 2
    with pytest.raises((RanksError, InputError)):
        connected(coordinator.address, TOKEN, 0.1)


# --- addresses, tokens, and what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["localhost:1", "tcp://host", "http://host:1", "tcp://h:99999", "tcp://a@h:1", ""])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(InputError, match="is no address"):
        place_of_address(address)


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("tcp://127.0.0.1:0", "nobody listens at tcp://127.0.0.1:0"),
        ("tcp://a..b:29500", "nobody listens at tcp://a..b"),
    ],
)
def test_where_nobody_can_listen_a_worker_does_not_wait(
    address: str, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ZOREWARD_TOKEN", TOKEN)
    assert main(["worker", address]) in (1, 2)
    assert f"error: {told}" in capsys.readouterr().err


def test_an_address_in_use_is_refused_and_without_a_host_it_is_this_machine_alone(coordinator: Coordinator) -> None:
    with pytest.raises(InputError, match="nothing can listen at"):
        Coordinator(coordinator.address, TOKEN)
    with Coordinator("tcp://:0", TOKEN) as one:
        assert one.is_local and one.address.startswith("tcp://127.0.0.1:")
    with Coordinator("tcp://0.0.0.0:0", TOKEN) as one:
        assert not one.is_local


def test_a_token_comes_from_the_environment_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZOREWARD_TOKEN", raising=False)
    assert given_token() is None
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    monkeypatch.setenv("ZOREWARD_TOKEN_FILE", str(tmp_path / "token"))
    assert given_token() == TOKEN
    monkeypatch.setenv("ZOREWARD_TOKEN_FILE", str(tmp_path / "none"))
    with pytest.raises(InputError, match="cannot be read"):
        given_token()
    monkeypatch.setenv("ZOREWARD_TOKEN", "too short")
    with pytest.raises(InputError, match="can be guessed"):
        given_token()


CODE_OF = {
    "./own.py:f": {"objective": "./own.py:f"},
    "own:f": {"objective": "own:f"},
    "sklearn:accuracy_score": {"objective": "sklearn:accuracy_score"},
    "callable": {"objective": "callable"},
    "./own.py:f, added": {"objective": "accuracy", "also": ["./own.py:f=0.5"]},
    "./own.py:f, without a weight": {"objective": "accuracy", "also": ["./own.py:f"]},
    "./own.py:f, of an option": {"objective": "pass-at-k", "check": "./own.py:f"},
    "win-rate' and './own.py:f": {"objective": "win-rate", "judge": "./own.py:f"},
    "own.py": {"objective": "pass-at-k", "check": ["own.py"]},
}


@pytest.mark.parametrize("what", CODE_OF)
def test_a_worker_runs_no_code_that_only_the_coordinator_names(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.py").write_text(
        "open('has-run', 'w').close()\ndef f(completions): return [0.0 for _ in completions]"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("ZOREWARD_TOKEN", TOKEN)
    config = {"model": "gone", "data": "gone.jsonl", "trust_remote_code": False, **CODE_OF[what]}
    own, version = what.partition(",")[0], zoreward.__version__
    with Coordinator("tcp://127.0.0.1:0", TOKEN) as coordinator:
        coordinator.open(Opened(config, tmp_path / "journal.jsonl", lambda header: None, version))
        assert main(["worker", coordinator.address]) == 2
        said = capsys.readouterr().err
        assert f"error: the run calls '{own}', and a worker takes no code on another's word" in said
        code = [word for text in own.split("' and '") for word in ("--code", text)]
        assert " ".join(code) in said
        assert main(["worker", coordinator.address, "--code", "./other.py:f"]) == 2
        assert "takes no code" in capsys.readouterr().err and not Path("has-run").exists()
        for words in (code, [word.removeprefix("./") for word in code]):  # the same file by another name
            assert main(["worker", coordinator.address, *words]) == 2  # since something else is wrong
            assert "takes no code" not in capsys.readouterr().err


def test_a_worker_loads_no_model_s_code_that_only_the_coordinator_trusts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ZOREWARD_TOKEN", TOKEN)
    config = {"objective": "accuracy", "model": "gone", "data": "gone.jsonl", "trust_remote_code": True}
    with Coordinator("tcp://127.0.0.1:0", TOKEN) as coordinator:
        coordinator.open(Opened(config, tmp_path / "journal.jsonl", lambda header: None, zoreward.__version__))
        assert main(["worker", coordinator.address]) == 2
        assert (
            "error: the run's model brings code, and a worker takes none on another's word" in capsys.readouterr().err
        )
        assert main(["worker", coordinator.address, "--trust-remote-code"]) == 2
        assert "gone.jsonl" in capsys.readouterr().err


REFUSED = {
    "--ranks-split rows": ["--ranks-split", "rows"],
    "--rows-per-direction": ["--rows-per-direction", "2"],
    "--kl": ["--kl", "0.1"],
    "--device-map": ["--device-map", "auto"],
    "--set dataloader_num_workers": ["--set", "dataloader_num_workers=2"],
}


def test_a_launch_and_a_reward_that_is_yet_to_be_fitted_are_refused_by_name(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command("pairs, a base, a budget", "run", "--elastic", "tcp://:0")
    assert main([*words, "--via", "reward"]) == 2
    assert "error: --elastic does not go with --via reward\n" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(words) == 2
    assert "error: --elastic does not go with a launch of several ranks\n" in capsys.readouterr().err


@pytest.mark.parametrize("what", REFUSED)
def test_what_workers_cannot_help_with_is_refused_by_name(
    what: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command("dense", "run", "--elastic", "tcp://:0", *REFUSED[what])
    assert main(words) == 2
    assert f"error: --elastic does not go with {what}\n" in capsys.readouterr().err
    assert not (place / "run").exists()


def test_a_worker_without_a_token_is_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("ZOREWARD_TOKEN")
    assert main(["worker", "tcp://127.0.0.1:1"]) == 2
    assert "error: a worker has to know the token of the run" in capsys.readouterr().err
