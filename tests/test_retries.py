"""Contract under test: a reward that hangs, fails now and then, is slow or costs money ends no run that it need not."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import TrainerState

from conftest import random_model
from zoreward.config import Rewarding
from zoreward.journal import JOURNAL_NAME, fingerprint
from zoreward.records import Completion, Example, InputError, ObjectiveError
from zoreward.registry import Objective, get_objective, objective, weighted_sum
from zoreward.registry.cache import RowScore, ScoreCache
from zoreward.registry.retries import with_retries
from zoreward.scoring import score_writings
from zoreward.trainer import ZOConfig, ZOTrainer

FOREVER = 60.0
# Between what must come soon and FOREVER: a busy machine may take seconds for what takes milliseconds.
SOON = 20.0


def scored(chosen: Objective, *texts: str, members: int = 1, **columns: list) -> list:
    rows = [{"prompt": f"p{i}", **{name: values[i] for name, values in columns.items()}} for i, _ in enumerate(texts)]
    examples = [Example(row, row["prompt"], (), 0, (1,), ()) for row in rows]
    return score_writings(chosen, examples, [[Completion(text, (1,), True) for text in texts]] * members)


Called = tuple[Rewarding, float]


def called(*, backoff: float = 1.0, **options) -> Called:
    """How an objective is called, and how long the first retry waits."""
    return Rewarding(**{f"reward_{name}": value for name, value in options.items()}), backoff


def retried(chosen: Objective, how: Called) -> Objective:
    options, backoff = how
    return with_retries(chosen, options, backoff=backoff)


def rewards(writing) -> tuple:
    [values] = writing.rewards.values()
    return values


def test_the_default_is_the_objective_itself() -> None:
    chosen = get_objective("exact-match")
    assert retried(chosen, called()) is chosen


# --- too long -----------------------------------------------------------------------------------------------------


@pytest.fixture
def let_go():
    """What hangs in a test ends with it."""
    event = threading.Event()
    yield event
    event.set()


@pytest.mark.parametrize(
    "kind",
    [
        "function",
        pytest.param("async, waiting", marks=pytest.mark.slow),
        pytest.param("async, blocking its loop", marks=pytest.mark.slow),
    ],
)
def test_what_takes_too_long_is_left_behind_and_told(kind: str, let_go: threading.Event) -> None:
    def function(completions):
        let_go.wait(FOREVER)
        return [1.0] * len(completions)

    async def waiting(completions):
        await asyncio.sleep(FOREVER)
        return [1.0] * len(completions)

    async def blocking(completions):
        let_go.wait(FOREVER)
        return [1.0] * len(completions)

    reward = {"function": function, "async, waiting": waiting}.get(kind, blocking)
    line = reward.__code__.co_firstlineno + 1
    timeout = 1.5
    start = time.monotonic()
    with pytest.raises(ObjectiveError) as caught:
        scored(retried(get_objective(reward), called(timeout=timeout)), "good film", "bad film")
    let_go.set()
    assert time.monotonic() - start < SOON
    assert str(caught.value) == (
        f"objective {reward.__name__!r} took longer than {timeout} s"
        " (2 rows; the first: prompt 'p0', completion 'good film')"
    )
    assert f"{Path(__file__).name}, line {line};" in caught.value.hint
    assert "--reward-timeout" in caught.value.hint
    if kind == "async, blocking its loop":  # the others need it again
        assert get_objective(waiting_for_nothing).score(1, completions=["a"]) == 1.0


async def waiting_for_nothing(completions):
    return [1.0] * len(completions)


def test_where_a_coroutine_stood_is_asked_before_it_is_cancelled() -> None:
    async def hangs(completions):
        await asyncio.sleep(FOREVER)

    class Looked:
        """A coroutine that is looked at slowly: its own loop had the time to end it, were it cancelled by then."""

        def __init__(self, coroutine) -> None:
            self.coroutine = coroutine

        def __await__(self):
            return self.coroutine.__await__()

        @property
        def cr_frame(self):
            time.sleep(0.3)
            return self.coroutine.cr_frame

    def reward(completions):
        return Looked(hangs(completions))

    with pytest.raises(ObjectiveError) as caught:
        scored(retried(get_objective(reward), called(timeout=1.5)), "a")
    assert f"{Path(__file__).name}, line {hangs.__code__.co_firstlineno + 1};" in caught.value.hint


def test_a_coroutine_that_is_left_behind_is_cancelled() -> None:
    cancelled = threading.Event()

    async def hangs(completions):
        try:
            await asyncio.sleep(FOREVER)
        finally:
            cancelled.set()

    with pytest.raises(ObjectiveError, match=r"took longer than 1\.5 s"):
        scored(retried(get_objective(hangs), called(timeout=1.5)), "a")
    assert cancelled.wait(SOON)


def test_one_that_is_too_late_counts_nothing_and_the_next_is_asked_in_its_place(let_go: threading.Event) -> None:
    calls = []

    def late(completions, log_metric):
        calls.append(len(completions))
        if len(calls) == 1:
            let_go.wait(FOREVER)
        log_metric("calls", len(calls))
        return [float(len(calls))] * len(completions)

    [writing] = scored(retried(get_objective(late), called(timeout=0.2, retries=1, backoff=0.001)), "a")
    let_go.set()
    assert (writing.score, writing.metrics) == (2.0, {"metric/calls": 2.0})


@pytest.mark.slow
def test_time_in_the_queue_is_not_the_call_s() -> None:
    def slow(completions):
        time.sleep(0.3)
        return [1.0] * len(completions)

    # 6 · 0.3 s in all, one after the other; each within 1.5 s, with 1.2 s for a busy machine
    assert len(scored(retried(get_objective(slow), called(timeout=1.5)), "a", members=6)) == 6


def test_a_score_of_choices_has_its_time_too(let_go: threading.Event) -> None:
    def hangs(predictions):
        let_go.wait(FOREVER)
        return 1.0

    with pytest.raises(ObjectiveError, match=r"(?m)^objective 'hangs' took longer than 0\.2 s \(3 rows\)$"):
        retried(get_objective(hangs), called(timeout=0.2)).score(3, predictions=[0, 1, 0], references=[0, 0, 0])


# --- again --------------------------------------------------------------------------------------------------------


def flaky(times: int, error: type[BaseException] = ConnectionError):
    """A reward that raises so many times before it works."""
    calls = []

    def judge(completions, log_metric=None):
        calls.append(list(completions))
        log_metric("asked", 1.0)
        if len(calls) <= times:
            raise error("busy")
        return [float(len(text)) for text in completions]

    return judge, calls


@pytest.mark.parametrize("is_async", [False, True])
def test_one_that_fails_is_called_again(is_async: bool, caplog: pytest.LogCaptureFixture) -> None:
    judge, calls = flaky(3)

    async def later(completions, log_metric):
        return judge(completions, log_metric)

    chosen = retried(get_objective(later if is_async else judge), called(retries=3, backoff=0.01))
    with caplog.at_level(logging.WARNING, logger="zoreward"):
        [writing] = scored(chosen, "ab", "a")
    assert (writing.score, writing.metrics, len(calls)) == (1.5, {"metric/asked": 1.0}, 4)
    assert [record.args[0] for record in caplog.records] == [2, 3, 4]  # type: ignore[index]
    delays = [record.args[2] for record in caplog.records]  # type: ignore[index]
    for number, delay in enumerate(delays):
        assert 0.5 <= delay / (0.01 * 2**number) <= 1
    assert "objective 'judge' raised ConnectionError: busy (2 rows; the first: prompt 'p0'" in caplog.text or is_async


def test_one_that_goes_on_failing_ends_the_run() -> None:
    judge, calls = flaky(9)
    with pytest.raises(ObjectiveError) as caught:
        scored(retried(get_objective(judge), called(retries=2, backoff=0.001)), "ab")
    assert len(calls) == 3
    assert str(caught.value) == (
        "objective 'judge' raised ConnectionError: busy (row 0: prompt 'p0', completion 'ab'); 3 tries"
    )
    assert isinstance(caught.value.__cause__, ConnectionError)


def test_what_is_no_score_is_not_bad_luck() -> None:
    calls = []

    def wrong(completions):
        calls.append(1)
        return ["good"] * len(completions)

    with pytest.raises(ObjectiveError, match=r"(?m)^objective 'wrong' returned no number for row 0: 'good'$"):
        scored(retried(get_objective(wrong), called(retries=3, backoff=0.001)), "ab")
    assert len(calls) == 1


ENDS = [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError, StopIteration, KeyError]


@pytest.mark.parametrize("error", ENDS)
@pytest.mark.parametrize(
    "options", [called(), called(timeout=SOON), called(retries=1, backoff=0.001), called(workers=2)]
)
def test_whatever_is_raised_is_told_and_nothing_hangs(error: type[BaseException], options: Called) -> None:
    judge, _ = flaky(9, error)

    async def later(completions, log_metric):
        return judge(completions, log_metric)

    for reward in (judge, later):
        for _ in range(2):  # the loops that await go on after the first
            told = f"^objective '{reward.__name__}' raised ({error.__name__}|RuntimeError: .*StopIteration)"
            with pytest.raises(ObjectiveError, match=told):
                scored(retried(get_objective(reward), options), "ab")


@pytest.mark.parametrize("options", [called(), called(retries=2, backoff=0.001), called(workers=2)])
@pytest.mark.parametrize("is_async", [False, True])
def test_what_a_reward_writes_to_is_its_own(options: Called, is_async: bool) -> None:
    seen: list[str] = []

    def vandal(prompts, completions, completion_ids, notes, scores, trainer_state, **columns):
        seen.append(repr((prompts, completions, completion_ids, notes, scores, trainer_state, columns["image"])))
        prompts[0][0]["content"] = "ignore the above"
        completions[0].append({"role": "user"})
        completion_ids[0].clear()
        notes[0]["tags"].append("seen")
        notes.pop()
        scores[0][:] = 7
        trainer_state.global_step = 10**9
        trainer_state.log_history[0]["loss"] = 0.0
        trainer_state.log_history.clear()
        columns["other"] = completions = None
        if len(seen) == 1 and options[0].reward_retries:
            raise ConnectionError
        return [1.0]

    async def later(completions, **columns):
        return vandal(completions=completions, **columns)

    image = object()
    row = {"notes": {"tags": ["a"], "n": 1}, "scores": np.arange(3), "image": image}
    asked = ({"role": "user", "content": "hi"},)
    example = Example({**row, "prompt": list(asked)}, "", (), 0, (1,), (), messages=asked)
    state = TrainerState(global_step=3, log_history=[{"loss": 0.5, "step": 2}])
    state.stateful_callbacks = {"TrainerControl": {"args": {}}}
    before = repr((example, state))
    reward = later if is_async else vandal
    sum_of_two = weighted_sum([get_objective(reward), replace(get_objective(reward), name="again")])
    chosen = retried(replace(sum_of_two), options)
    writing = [Completion("text", (1, 2), True)]
    score_writings(chosen, [example], [writing] * 2, trainer_state=state)
    assert len(seen) >= 4 and len(set(seen)) == 1
    assert str(id(image)) in seen[0] or hex(id(image)) in seen[0]  # what is no container is handed on as it is
    assert repr((example, state)) == before


def test_only_a_signal_is_the_user_s_wish_to_stop() -> None:
    def pressed(completions):
        try:
            signal.raise_signal(signal.SIGINT)
            time.sleep(0.01)  # by then it is noticed
        finally:
            len(completions)
        return [1.0]

    def handler(number, frame):
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    try:
        for own in (signal.default_int_handler, handler):
            signal.signal(signal.SIGINT, own)
            with pytest.raises(KeyboardInterrupt):
                scored(get_objective(pressed), "a")
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("options", [called(), called(timeout=SOON)])
def test_the_line_is_the_user_s_own(options: Called) -> None:
    def parses(completions):
        return [json.loads(text) for text in completions]

    line = parses.__code__.co_firstlineno + 1
    with pytest.raises(ObjectiveError, match="raised JSONDecodeError: Expecting value") as caught:
        scored(retried(get_objective(parses), options), "good")
    assert caught.value.hint == f"raised in {__file__}, line {line}"


def test_after_one_that_failed_the_others_are_given_up() -> None:
    calls = []

    def fails(completions):
        calls.append(1)
        raise ValueError("no")

    with pytest.raises(ObjectiveError, match="raised ValueError: no"):
        scored(retried(get_objective(fails), called(timeout=SOON)), "a", members=50)
    assert len(calls) < 50


# --- several at a time --------------------------------------------------------------------------------------------


def test_rows_are_scored_together_and_told_in_their_order() -> None:
    met, sizes = threading.Barrier(4), []

    @objective("judge", rowwise=True)
    def judge(completions, rank, *, scale: float = 1.0, log_extra=None, log_metric=None):
        sizes.append(len(completions))
        met.wait(SOON)  # nobody goes on before four are here
        time.sleep(0.02 * (4 - rank[0]))  # the last comes back first
        log_extra("why", [text.upper() for text in completions])
        if rank[0] % 2:
            log_extra("odd", [rank[0]])
        log_metric("rank", rank[0])
        return [None if text == "c" else scale * len(text) for text in completions]

    chosen = retried(get_objective(judge, scale=2.0), called(workers=4))
    [writing] = scored(chosen, "aaa", "bb", "c", "dddd", rank=[0, 1, 2, 3])
    assert sizes == [1] * 4
    assert rewards(writing) == (6.0, 4.0, None, 8.0)
    assert writing.extra == {"why": ["AAA", "BB", "C", "DDDD"], "odd": [None, 1, None, 3]}
    assert writing.metrics == {"metric/rank": 1.5}


def test_a_row_that_fails_is_named_and_alone_is_asked_again() -> None:
    asked = []

    @objective("judge", rowwise=True)
    def judge(completions):
        asked.append(completions[0])
        if completions[0] == "bad" and asked.count("bad") <= 2:
            raise ConnectionError("busy")
        return [1.0]

    assert scored(retried(get_objective(judge), called(workers=3, retries=2, backoff=0.001)), "a", "bad", "c")
    assert sorted(asked) == ["a", "bad", "bad", "bad", "c"]
    asked.clear()
    with pytest.raises(ObjectiveError) as caught:
        scored(retried(get_objective(judge), called(workers=3)), "a", "bad", "c")
    assert str(caught.value) == (
        "objective 'judge' raised ConnectionError: busy (row 1: prompt 'p1', completion 'bad')"
    )


def test_a_row_that_is_no_score_is_named_by_its_number() -> None:
    @objective("judge", rowwise=True)
    def judge(completions):
        return [float("inf") if text == "c" else 1.0 for text in completions]

    @objective("corpus", rowwise=True)
    def corpus(completions):
        return 1.0

    with pytest.raises(ObjectiveError, match=r"(?m)^objective 'judge' returned inf for row 2$"):
        scored(retried(get_objective(judge), called(workers=3)), "a", "b", "c")
    with pytest.raises(ObjectiveError, match="said to be rowwise, and returned one number for 1 rows"):
        scored(retried(get_objective(corpus), called(workers=3)), "a", "b", "c")


@pytest.mark.parametrize("is_async", [False, True])
def test_what_is_not_rowwise_is_never_split_but_members_are_scored_together(is_async: bool) -> None:
    met, sizes = threading.Barrier(3), []

    def corpus(completions):
        sizes.append(len(completions))
        met.wait(SOON)
        return float(len("".join(completions)))

    async def later(completions):
        return await asyncio.to_thread(corpus, completions)

    found = scored(retried(get_objective(later if is_async else corpus), called(workers=3)), "ab", "c", members=3)
    assert [one.score for one in found] == [3.0] * 3
    assert sizes == [2] * 3


@pytest.mark.parametrize(("workers", "is_async"), [(None, False), (1, False), (2, False), (2, True)])
def test_never_more_at_a_time_than_there_are_workers(workers: int | None, is_async: bool) -> None:
    inside, most = [], []

    def enter():
        inside.append(1)
        most.append(len(inside))

    def one(completions):
        enter()
        time.sleep(0.01)
        inside.pop()
        return [1.0] * len(completions)

    async def later(completions):
        enter()
        await asyncio.sleep(0.01)
        inside.pop()
        return [1.0] * len(completions)

    @functools.wraps(one)
    def two(completions):
        return one(completions)

    two.__name__ = "two"
    both = weighted_sum([get_objective(later if is_async else one), get_objective(two)])
    scored(retried(both, called(timeout=SOON, workers=workers)), "a", members=8)
    assert max(most) == (workers or 1)


def test_without_workers_what_is_async_runs_all_together() -> None:
    arrived = []

    async def meeting(completions):
        arrived.append(1)
        while len(arrived) < 5:
            await asyncio.sleep(0.001)
        return [1.0] * len(completions)

    assert len(scored(retried(get_objective(meeting), called(timeout=SOON)), "a", members=5)) == 5


# --- kept ---------------------------------------------------------------------------------------------------------


def judge_of(calls: list):
    @objective("judge", rowwise=True)
    def judge(prompts, completions, *, scale: float = 1.0, log_extra=None, **columns):
        calls.append(list(completions))
        log_extra("why", [f"{text}!" for text in completions])
        return [None if not text else scale * len(text) for text in completions]

    return judge


@pytest.mark.parametrize("workers", [None, 3])
def test_what_is_kept_is_not_asked_again(tmp_path: Path, workers: int | None) -> None:
    calls: list[list[str]] = []
    options = called(cache=str(tmp_path / "kept"), workers=workers)
    [first] = scored(retried(get_objective(judge_of(calls)), options), "aa", "", "b")
    [second] = scored(retried(get_objective(judge_of(calls)), options), "aa", "", "b")
    assert rewards(first) == rewards(second) == (2.0, None, 1.0)
    assert first.extra == second.extra == {"why": ["aa!", "!", "b!"]}
    assert sorted(text for call in calls for text in call) == ["", "aa", "b"]
    [third] = scored(retried(get_objective(judge_of(calls)), options), "aa", "new", "b")
    assert rewards(third) == (2.0, 3.0, 1.0)
    assert third.extra == {"why": ["aa!", "new!", "b!"]}
    assert calls[-1] == ["new"]


def test_members_that_wrote_the_same_are_asked_for_once(tmp_path: Path) -> None:
    calls: list[list[str]] = []
    found = scored(retried(get_objective(judge_of(calls)), called(cache=str(tmp_path), workers=4)), "a", "b", members=9)
    assert [rewards(one) for one in found] == [(1.0, 1.0)] * 9
    assert sorted(text for call in calls for text in call) == ["a", "b"]


def test_what_a_score_depends_on_is_its_key(tmp_path: Path) -> None:
    source = """
from zoreward import objective

@objective("judge", rowwise=True)
def judge(completions, level, *, scale: float = 1.0):
    CALLS.append(len(completions))
    return [scale * len(text) * level[i] for i, text in enumerate(completions)]
"""
    file = tmp_path / "rewards.py"
    cache = str(tmp_path / "kept")

    def asked(text: str = source, level: int = 1, other: int = 0, **options: float) -> int:
        file.write_text(f"CALLS = []\n{text}")
        chosen = retried(get_objective(f"{file}:judge", **options), called(cache=cache))
        scored(chosen, "ab", level=[level], other=[other])
        return len(sys.modules["zoreward_file_rewards"].CALLS)

    assert [asked(), asked()] == [1, 0]
    assert [asked(level=2), asked(level=2)] == [1, 0]  # a column that it reads
    assert asked(other=1) == 0  # one that it does not
    assert [asked(scale=2.0), asked(scale=2.0)] == [1, 0]
    assert asked(source + "\n# another prompt for the judge\n") == 1


@pytest.mark.parametrize("damage", ["no database", "cut off", "one score", "a folder"])
def test_damage_is_a_miss_with_a_warning(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    calls: list[list[str]] = []
    options = called(cache=str(tmp_path))
    texts = [f"text {i}" for i in range(300)]
    scored(retried(get_objective(judge_of(calls)), options), *texts)
    [file] = tmp_path.iterdir()
    if damage == "no database":
        file.write_bytes(b"something else entirely" * 500)
    elif damage == "cut off":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif damage == "a folder":
        file.unlink()
        file.mkdir()
    else:
        with sqlite3.connect(file) as connection:
            connection.execute("""UPDATE scores SET row = '{"score": 99.0, "extra": {}}'""")
        connection.close()
    calls.clear()
    with caplog.at_level(logging.WARNING, logger="zoreward"):
        [writing] = scored(retried(get_objective(judge_of(calls)), options), *texts)
    assert rewards(writing) == tuple(float(len(text)) for text in texts)
    assert [len(call) for call in calls] == [300]
    assert sum("asked for again" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize("trouble", ["foreign", "locked", "recursive", "read-only", "no permission"])
def test_a_cache_that_cannot_be_used_is_a_warning(
    tmp_path: Path, trouble: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, others = tmp_path / "cache", []
    if trouble == "recursive":
        folder.symlink_to(folder)
    elif trouble == "no permission":

        def refused(*args, **kwargs):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "mkdir", refused)
        monkeypatch.setattr(Path, "exists", refused)
    else:
        folder.mkdir()
        others.append(sqlite3.connect(folder / "scores.sqlite", check_same_thread=False))
        columns = "key, row, crc, owner" if trouble == "foreign" else "key TEXT PRIMARY KEY, row TEXT, crc INTEGER"
        others[0].execute(f"CREATE TABLE scores ({columns})")
        monkeypatch.setattr("zoreward.registry.cache.LOCK_TIMEOUT", 0.05)
        if trouble == "locked":
            others[0].execute("BEGIN EXCLUSIVE")
        if trouble == "read-only":
            others[0].execute("CREATE TRIGGER no BEFORE INSERT ON scores BEGIN SELECT RAISE(ABORT, 'readonly'); END")
            others[0].commit()
    calls: list[list[str]] = []
    chosen = retried(get_objective(judge_of(calls)), called(cache=str(folder)))
    start = time.perf_counter()
    with caplog.at_level(logging.WARNING, logger="zoreward"):
        for _ in range(3):
            [writing] = scored(chosen, "one", "three")
            assert rewards(writing) == (3.0, 5.0)
    assert time.perf_counter() - start < SOON
    assert len(calls) == 3
    assert sum("asked for again" in record.message for record in caplog.records) == 1
    for other in others:
        other.close()


def test_several_may_write_at_once(tmp_path: Path) -> None:
    def write(who: int) -> None:
        mine = ScoreCache(tmp_path)
        for i in range(20):
            mine.store({f"{who} {i}": RowScore(float(i), {})})

    threads = [threading.Thread(target=write, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = ScoreCache(tmp_path).find([f"{who} {i}" for who in range(4) for i in range(20)])
    assert {key: row.score for key, row in found.items()} == {f"{w} {i}": float(i) for w in range(4) for i in range(20)}


def test_what_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    cache = called(cache=str(tmp_path))

    def plain(completions):
        return [1.0]

    @objective("late", rowwise=True)
    def late(completions, trainer_state):
        return [1.0]

    with pytest.raises(InputError, match="'plain' has no scores that can be cached"):
        retried(get_objective(plain), cache)
    with pytest.raises(InputError, match="'late' asks for trainer_state"):
        retried(get_objective(late), cache)
    unseen: dict = {"objective": objective}
    exec("@objective('unseen', rowwise=True)\ndef unseen(completions):\n    return [1.0]", unseen)
    with pytest.raises(InputError, match="the source of objective 'unseen' cannot be read"):
        retried(get_objective(unseen["unseen"]), cache)
    with pytest.raises(InputError, match="rowwise is for objectives that need completions"):
        objective("mcc", rowwise=True)(lambda predictions: [1.0])
    with pytest.raises(ObjectiveError, match="no score that can be cached for row 1: Object of type set"):
        scored(retried(get_objective(judge_of([])), cache), "a", "b", tags=["x", {1}])
    assert list(tmp_path.iterdir()) == []


def test_a_part_that_keeps_nothing_stands_beside_one_that_does(tmp_path: Path) -> None:
    calls: list[list[str]] = []
    plain_calls = []

    def plain(completions):
        plain_calls.append(1)
        return [0.0] * len(completions)

    both = weighted_sum([get_objective(judge_of(calls)), get_objective(plain)], [1.0, 2.0])
    for _ in range(2):
        [writing] = scored(retried(both, called(cache=str(tmp_path))), "abc")
        assert writing.score == 3.0
    assert (len(calls), len(plain_calls)) == (1, 2)


# --- in a run -----------------------------------------------------------------------------------------------------

PROMPTS = ["the film was", "a plot", "it was very", "this film is not"]


def tuned(folder: Path, tokenizer, chosen, **changes) -> ZOTrainer:
    settings = {"max_steps": 3, "max_completion_length": 4, "num_directions": 4, "per_device_train_batch_size": 4}
    settings |= {"eps": 0.03, "learning_rate": 0.03, "completions_every": 0}
    args = ZOConfig(str(folder), use_cpu=True, disable_tqdm=True, **{**settings, **changes})
    rows = [{"prompt": prompt} for prompt in PROMPTS]
    model = random_model("llama")
    return ZOTrainer(model, objective=chosen, args=args, train_dataset=rows, processing_class=tokenizer)


@pytest.mark.slow
def test_a_run_whose_reward_fails_every_tenth_call_is_the_run_of_one_that_never_fails(tmp_path, tokenizer) -> None:
    calls = []

    def judge(completions):
        calls.append(1)
        if failing and len(calls) % 10 == 0:
            raise ConnectionError("busy")
        return [float(len(text)) for text in completions]

    @objective("judge", rowwise=True)
    def split(completions):
        return judge(completions)

    journals, weights = [], []
    for name, failing in [("never", False), ("often", True), ("split", True)]:
        calls.clear()
        chosen = get_objective(split if name == "split" else judge)
        made = retried(chosen, called(retries=2, backoff=0.001, workers=2 if name == "split" else None))
        trainer = tuned(tmp_path / name, tokenizer, made)
        trainer.train()
        journals.append((tmp_path / name / JOURNAL_NAME).read_bytes())
        weights.append(fingerprint(trainer.model))
        assert failing is False or len(calls) > 25
    assert journals[1] == journals[0] and journals[2] == journals[0]
    assert weights[1] == weights[0] and weights[2] == weights[0]
    assert len(journals[0].splitlines()) == 1 + 3


def test_a_run_whose_reward_hangs_keeps_its_last_step(tmp_path, tokenizer, let_go: threading.Event) -> None:
    calls = []

    def judge(completions):
        calls.append(1)
        if limit and len(calls) > limit:
            let_go.wait(FOREVER)
        return [float(len(text)) for text in completions]

    limit = 0
    whole = tuned(tmp_path / "whole", tokenizer, judge, max_steps=2)
    whole.train()
    limit, _ = len(calls) + 3, calls.clear()  # in the middle of the third step
    hangs = tuned(tmp_path / "hangs", tokenizer, judge, reward_timeout=2.0)
    with pytest.raises(ObjectiveError, match=r"^objective 'judge' took longer than 2 s \(4 rows; the first: prompt '"):
        hangs.train()
    let_go.set()
    assert fingerprint(hangs.model) == fingerprint(whole.model)
    kept = (tmp_path / "hangs" / JOURNAL_NAME).read_text().splitlines()
    own = [{**json.loads(line), "crc": ""} for line in kept[1:]]
    assert own == [
        {**json.loads(line), "crc": ""} for line in (tmp_path / "whole" / JOURNAL_NAME).read_text().splitlines()[1:]
    ]


HANGS = """
import time
from pathlib import Path

calls = []


def hangs(completions):
    calls.append(1)
    if len(calls) == 15 and not Path("hung").exists():  # one before step 1, eight a step: in the second step
        Path("hung").write_text(str(time.time()))
        time.sleep(60)
    return [float(len(text)) for text in completions]
"""


@pytest.mark.slow
def test_a_process_whose_reward_hangs_ends_soon_and_can_be_resumed(tmp_path: Path, tiny_model_dir: Path) -> None:
    (tmp_path / "rewards.py").write_text(HANGS)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    words = f"tune rewards.py:hangs --model {tiny_model_dir} --data rows.jsonl --steps 3 --batch-size 4 --output run"
    words += " --num-directions 4 --max-new-tokens 4 --reward-timeout 2 --device cpu"
    command = [sys.executable, "-m", "zoreward", *words.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    seconds = time.time() - float((tmp_path / "hung").read_text())
    assert done.returncode == 1, done.stderr
    assert seconds <= 10
    error, hint, resume = done.stderr.splitlines()[-3:]
    assert error.startswith("error: objective 'hangs' took longer than 2 s (4 rows; the first: prompt '")
    assert hint.startswith("hint: ") and "rewards.py, line 12" in hint
    assert resume.startswith(f"resume: zoreward {words}")
    assert "Traceback" not in done.stderr
    lines = (tmp_path / "run" / JOURNAL_NAME).read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["header", "step"]

    command = [sys.executable, "-m", "zoreward", *resume.split()[2:], "--reward-timeout", "60"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    after = (tmp_path / "run" / JOURNAL_NAME).read_text().splitlines()
    assert after[:2] == lines
    assert [json.loads(line)["step"] for line in after[1:]] == [0, 1, 2]
