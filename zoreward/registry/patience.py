"""Objectives that hang, fail now and then, are slow or cost money: `patient` makes them fit for a long run.

What is patient is an objective like any other, so whoever scores with it does not know. Its functions run in threads of
their own and are waited for in another, so whatever hangs there keeps neither the run nor the process from ending.
"""

from __future__ import annotations

import inspect
import math
import os
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoreward.config import Rewarding
from zoreward.records import InputError
from zoreward.registry.decorator import OUTPUTS
from zoreward.registry.objective import Objective, submit

if TYPE_CHECKING:  # and otherwise where it is used: asyncio takes longer to import than the rest of the registry
    import asyncio

    from zoreward.registry.kept import Kept
    from zoreward.registry.rowwise import Rowwise

THREAD = "zoreward-reward"  # the name of each that calls a function


@dataclass(frozen=True, slots=True)
class Patience:
    """How an objective's function is called; by default as ever.

    Args:
        timeout: seconds that one call may take; a function cannot be stopped, so it is left behind.
        retries: how often a call that raises, or takes too long, is made again. Not one that returns what is no score.
        workers: calls at a time; None: one, but all together of what is async. From 2 on, a rowwise objective is
            called for each row alone.
        cache: the folder where the scores of rowwise objectives are kept.
        backoff: seconds; the k-th retry of a call waits between half and all of backoff · 2^(k−1), at most a minute.

    Raises:
        InputError: a value is out of its range.

    >>> Patience(timeout=30, retries=3).workers is None
    True
    """

    timeout: float | None = None
    retries: int = 0
    workers: int | None = None
    cache: str | None = None
    backoff: float = 1.0

    def __post_init__(self) -> None:
        if self.timeout is not None and not 0 < self.timeout < math.inf:
            raise InputError(f"a reward's timeout is more than 0 seconds, not {self.timeout}", hint="such as 30")
        if self.retries < 0:
            raise InputError(f"retries of a reward are 0 or more, not {self.retries}", hint="such as 3")
        if self.workers is not None and self.workers < 1:
            raise InputError(f"workers for rewards are 1 or more, not {self.workers}", hint="such as 8")
        # Not Path.exists, which raises where a name is too long to be one.
        if self.cache is not None and os.path.exists(self.cache) and not os.path.isdir(self.cache):
            raise InputError(f"the rewards' cache {self.cache!r} is a file", hint="give a folder")


def patience_of(about: Rewarding) -> Patience:
    """Return how an objective is called, by the options about it.

    Raises:
        InputError: a value is out of its range.
    """
    return Patience(about.reward_timeout, about.reward_retries, about.reward_workers, about.reward_cache)


def patient(objective: Objective, patience: Patience) -> Objective:
    """Return the objective with the same scores, whose functions are called with patience.

    A call that fails for good raises an `ObjectiveError` that names the objective, the rows where they are known, and
    the line at which the function stood. Python that waits, computes or sleeps is noticed, also in async functions;
    C code that never lets go of the interpreter's lock stops everything, the clock too.

    Args:
        objective: any; of a weighted sum, each part.
        patience: how; the default returns the objective itself.

    Raises:
        InputError: there is a cache, and no part is rowwise, or one that is depends on more than its rows.

    >>> from zoreward import get_objective
    >>> def length(completions):
    ...     return [len(text) for text in completions]
    >>> patient(get_objective(length), Patience(timeout=5, retries=2)).score(2, completions=["a", "abc"])
    2.0
    """
    if patience == Patience(backoff=patience.backoff):
        return objective
    import asyncio

    from zoreward.registry.kept import Kept

    parts = objective.parts or ((1.0, objective),)
    if patience.cache is not None and not any(part.rowwise for _, part in parts):
        hint = "mark it where a row's score depends on that row alone: @objective(…, rowwise=True)"
        raise InputError(f"{objective.name!r} has no scores that can be kept", hint=hint)
    turns = asyncio.Semaphore(patience.workers or 1)
    kept = Kept(Path(patience.cache)) if patience.cache is not None else None
    made = tuple((weight, _patient(part, patience, turns, kept)) for weight, part in parts)
    return replace(objective, parts=made) if objective.parts else made[0][1]


def left_behind() -> bool:
    """Whether a call is still at work, though nobody waits for it any more or the run is over."""
    return any(thread.name == THREAD for thread in threading.enumerate())


def _patient(objective: Objective, patience: Patience, turns: asyncio.Semaphore, kept: Kept | None) -> Objective:
    from zoreward.registry.attempts import attempt, replay
    from zoreward.registry.rowwise import place_of_rows

    signature, shown = _with_texts(objective)
    rowwise = _rowwise(objective, patience, turns, kept) if objective.rowwise else None

    async def scores(given: Mapping[str, Any]) -> Any:
        arguments = {name: value for name, value in given.items() if name not in shown}
        if rowwise is not None:
            return await rowwise.scores(arguments, given)
        n_rows = next((len(given[name]) for name in OUTPUTS if name in given), 0)
        where = place_of_rows(range(n_rows), given)
        returned, notes = await attempt(objective, patience, turns, arguments, where)
        replay(notes, arguments)
        return returned

    def call(**given: Any) -> Future[Any]:
        return submit(scores(given), "zoreward-patience")

    call.__signature__ = signature  # type: ignore[attr-defined]
    call.__wrapped__ = objective.function  # type: ignore[attr-defined]
    return replace(objective, function=call)


def _rowwise(objective: Objective, patience: Patience, turns: asyncio.Semaphore, kept: Kept | None) -> Rowwise | None:
    from zoreward.registry.kept import source_of
    from zoreward.registry.rowwise import Rowwise

    apart = (patience.workers or 1) > 1
    if kept is not None and "trainer_state" in inspect.signature(objective.function).parameters:
        message = f"objective {objective.name!r} asks for trainer_state, so its scores depend on more than its rows"
        raise InputError(message, hint="leave trainer_state out, or the cache")
    if kept is None and not apart:
        return None
    return Rowwise(objective, patience, turns, apart, kept, source_of(objective) if kept else "", {})


def _with_texts(objective: Objective) -> tuple[inspect.Signature, set[str]]:
    """The function's signature, which also asks for the texts that errors show; and which these are."""
    signature = inspect.signature(objective.function)
    parameters = list(signature.parameters.values())
    if objective.needs != "completions" or any(one.kind is one.VAR_KEYWORD for one in parameters):
        return signature, set()
    shown = {"prompts", "completions"} - signature.parameters.keys()
    texts = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in sorted(shown)]
    return signature.replace(parameters=[*parameters, *texts]), shown
