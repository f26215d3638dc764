"""One call of an objective's function: in a thread, within its time, and again where it failed."""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
import sys
import threading
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from zoreward.records import named
from zoreward.registry.objective import CallError, hint_of, own_arguments, submit
from zoreward.registry.patience import THREAD
from zoreward.registry.places import place_in, place_of

if TYPE_CHECKING:
    from zoreward.registry.objective import Objective
    from zoreward.registry.patience import Patience

_LONGEST = 60.0  # seconds between two attempts


class _TooLong(Exception):
    """It took longer than it may; the message is where it stood."""


class _Ended(Exception):
    """It raised what would have ended the process or the thread: SystemExit, say, which is the cause."""


@dataclass(slots=True)
class Notes:
    """What a call logged: of each column its values, and numbers, in order."""

    extra: dict[str, list[Any]] = field(default_factory=dict)
    metrics: list[tuple[str, float]] = field(default_factory=list)


def replay(notes: Notes, arguments: Mapping[str, Any]) -> None:
    """Log what a call logged with the loggers that are among the arguments."""
    for column, values in notes.extra.items():
        arguments["log_extra"](column, values)
    for name, value in notes.metrics:
        arguments["log_metric"](name, value)


async def attempt(
    objective: Objective, patience: Patience, turns: asyncio.Semaphore, arguments: Mapping[str, Any], where: str
) -> tuple[Any, Notes]:
    """Return what the function returned, and what it logged in the attempt that it did so in.

    Args:
        objective: whose function is called.
        patience: how long, and how often.
        turns: lets calls in; what is async only to be called, where there are no workers.
        arguments: of the function.
        where: which rows these are, for errors.

    Raises:
        CallError: the last attempt failed.
    """
    tries = patience.retries + 1
    for number in range(1, tries + 1):
        notes = Notes()
        try:
            own = own_arguments({**arguments, **_loggers(notes, arguments)})
            return await _once(objective.function, own, patience, turns), notes
        except Exception as error:
            raised = error.__cause__ if isinstance(error, _Ended) and error.__cause__ else error
            failed = _told(objective.name, raised, patience, where)
            if number == tries:
                if tries > 1:
                    failed = CallError(f"{failed}; {tries} tries", hint=failed.hint)
                raise failed from (None if isinstance(error, _TooLong) else raised)
        # Seeded, so that a run can be repeated; by rows, so that calls that fail together do not come back together.
        share = random.Random(f"{failed} {number}").uniform(0.5, 1)
        delay = share * min(_LONGEST, patience.backoff * 2 ** (number - 1))
        log = logging.getLogger(__name__)
        log.warning("Try %d of %d comes in %.1f s: %s.", number + 1, tries, delay, failed)
        await asyncio.sleep(delay)
    raise AssertionError("the last attempt returns or raises")


def _loggers(notes: Notes, arguments: Mapping[str, Any]) -> dict[str, Callable[..., None]]:
    """Loggers of an attempt of its own: what one logs that is given up does not count."""

    def log_extra(column: str, values: list[Any]) -> None:
        notes.extra.setdefault(column, []).extend(values)

    def log_metric(name: str, value: float) -> None:
        notes.metrics.append((name, float(value)))

    return {one.__name__: one for one in (log_extra, log_metric) if one.__name__ in arguments}


async def _once(
    function: Callable[..., Any], arguments: dict[str, Any], patience: Patience, turns: asyncio.Semaphore
) -> Any:
    async with turns:
        future, thread = _started(function, arguments)
        returned = await _within(
            patience.timeout, future, lambda: place_in(sys._current_frames().get(thread.ident or 0))
        )
        if patience.workers is not None and inspect.isawaitable(returned):
            return await _awaited(returned, patience.timeout)
    return await _awaited(returned, patience.timeout) if inspect.isawaitable(returned) else returned


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

    thread = threading.Thread(target=run, name=THREAD, daemon=True)
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


def _told(name: str, error: BaseException, patience: Patience, where: str) -> CallError:
    if isinstance(error, _TooLong):
        advice = "give it longer (--reward-timeout), or more tries (--reward-retries)"
        stood = f"it was at {error}; " if str(error) else ""
        return CallError(f"objective {name!r} took longer than {patience.timeout:g} s{where}", hint=stood + advice)
    return CallError(f"objective {name!r} raised {named(error)}{where}", hint=hint_of(error) or place_of(error))
