"""Objectives that hang, fail now and then, are slow or cost money: `with_retries` makes them fit for a long run.

What it returns is an objective like any other, so whoever scores with it does not know. Its functions run in threads of
their own and are waited for in another, so whatever hangs there keeps neither the run nor the process from ending.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import os
import random
import sys
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from zoreward.config import Rewarding
from zoreward.records import InputError, ObjectiveError, named
from zoreward.registry.cache import RowScore, ScoreCache, key_of, source_of
from zoreward.registry.decorator import FROM_TRL, OUTPUTS
from zoreward.registry.objective import (
    REWARD_THREAD,
    CallError,
    Objective,
    checked,
    hint_of,
    own_arguments,
    short,
    submit,
)
from zoreward.registry.places import place_in, place_of

_LONGEST_DELAY = 60.0  # seconds between two attempts


class _TooLong(Exception):
    """A call took longer than it may; the message is where it stood."""


class _Ended(Exception):
    """A call raised what would have ended the process or the thread: SystemExit, say, which is the cause."""


def with_retries(objective: Objective, options: Rewarding, *, backoff: float = 1.0) -> Objective:
    """Return the objective with the same scores, whose functions are called with a timeout, retries, workers, a cache.

    A call that fails for good raises an `ObjectiveError` that names the objective, the rows where they are known, and
    the line at which the function stood. Python that waits, computes or sleeps is noticed, also in async functions;
    C code that never lets go of the interpreter's lock stops everything, the clock too.

    Args:
        objective: any; of a weighted sum, each part.
        options: how; the default returns the objective itself. A function cannot be stopped, so one that takes longer
            than the timeout is left behind. A call is not made again where it returns what is no score.
        backoff: seconds; the k-th retry of a call waits between half and all of backoff · 2^(k−1), at most a minute.

    Raises:
        InputError: an option is out of its range; there is a cache, and no part is rowwise, or one that is depends on
            more than its rows.

    >>> from zoreward import get_objective
    >>> def length(completions):
    ...     return [len(text) for text in completions]
    >>> options = Rewarding(reward_timeout=5, reward_retries=2)
    >>> with_retries(get_objective(length), options).score(2, completions=["a", "abc"])
    2.0
    """
    _check(options)
    if options == Rewarding():
        return objective
    folder, parts = options.reward_cache, objective.parts or ((1.0, objective),)
    if folder is not None and not any(part.rowwise for _, part in parts):
        hint = "mark it where a row's score depends on that row alone: @objective(…, rowwise=True)"
        raise InputError(f"{objective.name!r} has no scores that can be cached", hint=hint)
    turns = asyncio.Semaphore(options.reward_workers or 1)
    cache = ScoreCache(Path(folder)) if folder is not None else None
    made = tuple((weight, _with_retries(_Calls(part, options, backoff, turns), cache)) for weight, part in parts)
    return replace(objective, parts=made) if objective.parts else made[0][1]


def _check(options: Rewarding) -> None:
    timeout, retries, workers = options.reward_timeout, options.reward_retries, options.reward_workers
    if timeout is not None and not 0 < timeout < math.inf:
        raise InputError(f"a reward's timeout is more than 0 seconds, not {timeout}", hint="such as 30")
    if retries < 0:
        raise InputError(f"retries of a reward are 0 or more, not {retries}", hint="such as 3")
    if workers is not None and workers < 1:
        raise InputError(f"workers for rewards are 1 or more, not {workers}", hint="such as 8")
    folder = options.reward_cache
    # Not Path.exists, which raises where a name is too long to be one.
    if folder is not None and os.path.exists(folder) and not os.path.isdir(folder):
        raise InputError(f"the rewards' cache {folder!r} is a file", hint="give a folder")


@dataclass(frozen=True, slots=True)
class _Calls:
    """How the function of one objective is called.

    Args:
        objective: whose function it is.
        options: its timeout, retries and workers.
        backoff: see `with_retries`.
        turns: lets calls in; an async function only to be called, where there are no workers.
    """

    objective: Objective
    options: Rewarding
    backoff: float
    turns: asyncio.Semaphore


def _with_retries(calls: _Calls, cache: ScoreCache | None) -> Objective:
    objective = calls.objective
    signature, added = _signature_with_texts(objective)
    rowwise = _rowwise(calls, cache) if objective.rowwise else None

    async def scores(given: Mapping[str, Any]) -> Any:
        arguments = {name: value for name, value in given.items() if name not in added}
        if rowwise is not None:
            return await rowwise.scores(arguments, given)
        n_rows = next((len(given[name]) for name in OUTPUTS if name in given), 0)
        returned, notes = await _attempted(calls, arguments, place_of_rows(range(n_rows), given))
        notes.log_with(arguments)
        return returned

    def call(**given: Any) -> Future[Any]:
        return submit(scores(given), "zoreward-retries")

    call.__signature__ = signature  # type: ignore[attr-defined]
    call.__wrapped__ = objective.function  # type: ignore[attr-defined]
    return replace(objective, function=call)


def _signature_with_texts(objective: Objective) -> tuple[inspect.Signature, set[str]]:
    """The function's signature, which also asks for the texts that errors show; and which of them were added."""
    signature = inspect.signature(objective.function)
    parameters = list(signature.parameters.values())
    if objective.needs != "completions" or any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return signature, set()
    added = {"prompts", "completions"} - signature.parameters.keys()
    texts = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in sorted(added)]
    return signature.replace(parameters=[*parameters, *texts]), added


# One call: in a thread, within its time, and again where it failed


@dataclass(slots=True)
class _Notes:
    """What a call logged: of each column its values, and numbers, in order."""

    extra: dict[str, list[Any]] = field(default_factory=dict)
    metrics: list[tuple[str, float]] = field(default_factory=list)

    def loggers(self, arguments: Mapping[str, Any]) -> dict[str, Callable[..., None]]:
        """Loggers that write here, in the place of those that are among the arguments."""

        def log_extra(column: str, values: list[Any]) -> None:
            self.extra.setdefault(column, []).extend(values)

        def log_metric(name: str, value: float) -> None:
            self.metrics.append((name, float(value)))

        return {logger.__name__: logger for logger in (log_extra, log_metric) if logger.__name__ in arguments}

    def log_with(self, arguments: Mapping[str, Any]) -> None:
        """Log it all with the loggers that are among the arguments."""
        for column, values in self.extra.items():
            arguments["log_extra"](column, values)
        for name, value in self.metrics:
            arguments["log_metric"](name, value)


async def _attempted(calls: _Calls, arguments: Mapping[str, Any], where: str) -> tuple[Any, _Notes]:
    """Return what the function returned, and what it logged in the attempt that it did so in.

    Args:
        calls: how it is called.
        arguments: of the function.
        where: which rows these are, for errors.

    Raises:
        CallError: the last attempt failed.
    """
    tries = calls.options.reward_retries + 1
    for number in range(1, tries + 1):
        notes = _Notes()  # what an attempt logs that fails does not count
        try:
            return await _called(calls, own_arguments({**arguments, **notes.loggers(arguments)})), notes
        except Exception as error:
            raised = error.__cause__ if isinstance(error, _Ended) and error.__cause__ else error
            failure = _failure(calls, raised, where)
            if number == tries:
                if tries > 1:
                    failure = CallError(f"{failure}; {tries} tries", hint=failure.hint)
                raise failure from (None if isinstance(error, _TooLong) else raised)
        # Seeded, so that a run can be repeated; by rows, so that calls that fail together do not come back together.
        share = random.Random(f"{failure} {number}").uniform(0.5, 1)
        delay = share * min(_LONGEST_DELAY, calls.backoff * 2 ** (number - 1))
        log = logging.getLogger(__name__)
        log.warning("Try %d of %d comes in %.1f s: %s.", number + 1, tries, delay, failure)
        await asyncio.sleep(delay)
    raise AssertionError("the last attempt returns or raises")


def _failure(calls: _Calls, error: BaseException, where: str) -> CallError:
    name = calls.objective.name
    if isinstance(error, _TooLong):
        advice = "give it longer (--reward-timeout), or more tries (--reward-retries)"
        stood = f"it was at {error}; " if str(error) else ""
        message = f"objective {name!r} took longer than {calls.options.reward_timeout:g} s{where}"
        return CallError(message, hint=stood + advice)
    return CallError(f"objective {name!r} raised {named(error)}{where}", hint=hint_of(error) or place_of(error))


async def _called(calls: _Calls, arguments: dict[str, Any]) -> Any:
    timeout = calls.options.reward_timeout
    async with calls.turns:
        future, thread = _started(calls.objective.function, arguments)
        returned = await _within(timeout, future, lambda: place_in(sys._current_frames().get(thread.ident or 0)))
        if calls.options.reward_workers is not None and inspect.isawaitable(returned):
            return await _awaited(returned, timeout)
    return await _awaited(returned, timeout) if inspect.isawaitable(returned) else returned


def _started(function: Callable[..., Any], arguments: dict[str, Any]) -> tuple[Future[Any], threading.Thread]:
    """Call a function in a new thread that does not keep the process alive; the future is what it returned or raised.

    Not an executor's: those are waited for when the process ends.
    """
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result((function(**arguments), None))
        except BaseException as error:
            future.set_result((None, error))

    thread = threading.Thread(target=run, name=REWARD_THREAD, daemon=True)
    thread.start()
    return future, thread


async def _awaited(awaitable: Awaitable[Any], timeout: float | None) -> Any:
    """What comes of an async function, on the loop where async functions always run: that one may be blocked."""

    async def outcome() -> tuple[Any, BaseException | None]:
        try:
            return await awaitable, None
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():  # it is given up
                raise
            return None, error
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            return None, error

    future = submit(outcome(), "zoreward-async")
    return await _within(timeout, future, lambda: place_in(getattr(awaitable, "cr_frame", None)))


async def _within(timeout: float | None, future: Future[Any], place: Callable[[], str]) -> Any:
    wrapped = asyncio.wrap_future(future)
    try:
        await asyncio.wait([wrapped], timeout=timeout)
        if not wrapped.done():
            raise _TooLong(place())  # asked before it is cancelled: a coroutine that has ended stands nowhere
        returned, error = wrapped.result()
    finally:
        wrapped.cancel()
    if isinstance(error, Exception):
        raise error
    if error is not None:  # SystemExit would end the thread that waits, and nobody would know
        raise _Ended from error
    return returned


# Objectives whose scores depend on one row each: rows are scored apart, and none is scored twice


def _rowwise(calls: _Calls, cache: ScoreCache | None) -> _Rowwise | None:
    objective = calls.objective
    if cache is not None and "trainer_state" in inspect.signature(objective.function).parameters:
        message = f"objective {objective.name!r} asks for trainer_state, so its scores depend on more than its rows"
        raise InputError(message, hint="leave trainer_state out, or the cache")
    if cache is None and (calls.options.reward_workers or 1) == 1:
        return None
    return _Rowwise(calls, cache, source_of(objective) if cache else "", {})


@dataclass(frozen=True, slots=True)
class _Rowwise:
    """Calls a rowwise objective: for each row alone where there are workers, else for all rows that are not known.

    Args:
        calls: how its function is called.
        cache: the scores that are known; None: there is no cache.
        source: a fingerprint of what computes the scores.
        asked: what is being asked for at the moment, by key: another member may have written the same text.
    """

    calls: _Calls
    cache: ScoreCache | None
    source: str
    asked: dict[str, asyncio.Future[RowScore]]

    async def scores(self, arguments: Mapping[str, Any], given: Mapping[str, Any]) -> list[float | None]:
        """Return one score for each row, and log what was logged for it, in the order of the rows.

        Args:
            arguments: of the function, for all rows.
            given: the same, and what else errors may show of the rows.

        Raises:
            CallError: a call failed, or returned what is no score for each row.
        """
        if self.cache is not None:
            arguments = {name: value for name, value in arguments.items() if name != "trainer_state"}
        columns = {name: values for name, values in arguments.items() if name not in self._shared}
        n_rows = len(next(iter(columns.values())))
        keys = [self._key(columns, i) if self.cache else str(i) for i in range(n_rows)]
        known = self.cache.find(keys) if self.cache else {}
        asked = self.asked if self.cache else {}
        mine = []
        for i, key in enumerate(keys):
            if key not in known and key not in asked:
                asked[key] = asyncio.get_running_loop().create_future()
                mine.append(i)
        metrics: dict[int, list[tuple[str, float]]] = {}  # by the first row of each call

        async def ask(rows: list[int]) -> None:
            scored, metrics[rows[0]] = await self._called(rows, arguments, given)
            if self.cache is not None:
                self.cache.store({keys[i]: score for i, score in zip(rows, scored, strict=True)})
            for i, score in zip(rows, scored, strict=True):
                asked[keys[i]].set_result(score)

        waited_for = {key: asked[key] for key in keys if key not in known}
        try:
            apart = (self.calls.options.reward_workers or 1) > 1
            async with asyncio.TaskGroup() as tasks:
                for rows in [[i] for i in mine] if apart else [mine] if mine else []:
                    tasks.create_task(ask(rows))
        except BaseException as error:
            failure = error.exceptions[0] if isinstance(error, ExceptionGroup) else error  # the others were given up
            for i in mine:
                if not asked[keys[i]].done():
                    known_failure = failure if isinstance(failure, Exception) else CallError("the call was given up")
                    asked[keys[i]].set_exception(known_failure)
                    asked[keys[i]].exception()  # else asyncio warns where nobody waits for it
            raise failure from failure.__cause__
        finally:
            for i in mine:
                del asked[keys[i]]
        known |= {key: await asyncio.shield(future) for key, future in waited_for.items()}
        return self._logged([known[key] for key in keys], metrics, arguments)

    @property
    def _shared(self) -> set[str]:
        """Arguments that are not a list with one value for each row."""
        objective = self.calls.objective
        return {*FROM_TRL, *objective.values, *(option.name for option in objective.options)}

    def _key(self, columns: Mapping[str, Sequence[Any]], row: int) -> str:
        objective = self.calls.objective
        values = {name: column[row] for name, column in columns.items()}
        try:
            return key_of(objective.name, dict(objective.values), self.source, values)
        except (TypeError, ValueError) as error:
            message = f"objective {objective.name!r} has no score that can be cached for row {row}: {error}"
            hint = "let the function name the columns that it reads, in the place of **columns"
            raise CallError(message, hint=hint) from None

    async def _called(
        self, rows: list[int], arguments: Mapping[str, Any], given: Mapping[str, Any]
    ) -> tuple[list[RowScore], list[tuple[str, float]]]:
        """The scores of these rows, from one call, and the metrics that it logged."""
        name, shared = self.calls.objective.name, self._shared
        chosen = {key: value if key in shared else [value[i] for i in rows] for key, value in arguments.items()}
        returned, notes = await _attempted(self.calls, chosen, place_of_rows(rows, given))
        try:
            scores = checked(name, returned, len(rows), rows)
        except ObjectiveError as error:
            raise CallError(str(error), hint=error.hint) from None
        if not isinstance(scores, list):
            message = f"objective {name!r} is said to be rowwise, and returned one number for {len(rows)} rows"
            raise CallError(message, hint="return a list with one for each row, or leave rowwise out")
        extra = {column: values for column, values in notes.extra.items() if len(values) == len(rows)}
        of_rows = [{column: values[n] for column, values in extra.items()} for n in range(len(rows))]
        return [RowScore(*pair) for pair in zip(scores, of_rows, strict=True)], notes.metrics

    def _logged(
        self, rows: list[RowScore], metrics: dict[int, list[tuple[str, float]]], arguments: Mapping[str, Any]
    ) -> list[float | None]:
        names = dict.fromkeys(column for row in rows for column in row.extra)
        extra = {name: [row.extra.get(name) for row in rows] for name in names}
        _Notes(extra, [metric for i in sorted(metrics) for metric in metrics[i]]).log_with(arguments)
        return [row.score for row in rows]


def place_of_rows(numbers: Sequence[int], given: Mapping[str, Any]) -> str:
    """Return which rows a call is about, to stand in an error.

    >>> place_of_rows([1], {"completions": ["a", "b"], "prompts": ["c", "d"]})
    " (row 1: prompt 'd', completion 'b')"
    >>> place_of_rows([0, 1], {"completions": ["a", "b"]})
    " (2 rows; the first: completion 'a')"
    """
    if not numbers:
        return ""
    first = numbers[0]
    texts = [f"{name[:-1]} {short(given[name][first])}" for name in ("prompts", "completions") if given.get(name)]
    rows, joint = (f"row {first}", ": ") if len(numbers) == 1 else (f"{len(numbers)} rows", "; the first: ")
    return f" ({rows}{joint if texts else ''}{', '.join(texts)})"
