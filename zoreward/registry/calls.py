"""The call of an objective's function: what it is given, how it is awaited, and whether what comes back is a score."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Awaitable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, Future, wait
from typing import TYPE_CHECKING, Any

from zoreward.records import InputError, ObjectiveError, UnknownNameError, named, one_line
from zoreward.registry.copies import own_copy, own_state
from zoreward.registry.names import neighbours
from zoreward.registry.places import is_ctrl_c, place_of

if TYPE_CHECKING:
    import asyncio

    from zoreward.registry.scores import Objective

Returned = float | list[float | None]
"""One number for a batch, NaN where it has no score; or one for each row, None where a row is left out."""


class CallError(ObjectiveError):
    """A call of an objective's function that came to nothing, told in full: with the objective and its rows."""


def call_all(calls: Sequence[tuple[Objective, int, Mapping[str, Any]]]) -> list[Returned]:
    """Call objectives' functions, each with its number of rows and outputs; those that are async run together.

    Functions that are not async run one after the other, in this thread. A rowwise objective's function is called once
    for the rows of all its calls. A function may return a future; it is waited for as an async function is. Where one
    fails, the others are given up.

    Raises what `Objective.score` raises.
    """
    joined, places = _joined(calls)
    found = _call_each(joined)
    return [found[place] if rows is None else found[place][rows] for place, rows in places]  # type: ignore[index]


Call = tuple["Objective", int, Mapping[str, Any]]


def _joined(calls: Sequence[Call]) -> tuple[list[Call], list[tuple[int, slice | None]]]:
    """Calls with those of one rowwise objective in one; and where each call's result stands."""
    groups: dict[int, list[int]] = {}
    for i, (objective, _, _) in enumerate(calls):
        groups.setdefault(id(objective) if objective.rowwise and not _logs(objective) else -1 - i, []).append(i)
    joined: list[Call] = []
    places: list[tuple[int, slice | None]] = [(0, None)] * len(calls)
    for group in groups.values():
        objective, n_rows, outputs = calls[group[0]]
        if len(group) > 1:
            sizes = [calls[i][1] for i in group]
            ends = [sum(sizes[: k + 1]) for k in range(len(sizes))]
            for i, size, end in zip(group, sizes, ends, strict=True):
                places[i] = (len(joined), slice(end - size, end))
            lists = [name for name, value in outputs.items() if isinstance(value, list)]
            outputs = {**outputs, **{name: [one for i in group for one in calls[i][2][name]] for name in lists}}
            n_rows = ends[-1]
        else:
            places[group[0]] = (len(joined), None)
        joined.append((objective, n_rows, outputs))
    return joined, places


def _logs(objective: Objective) -> bool:
    """Whether its function logs something, which must not be mixed up between calls."""
    return not {"log_extra", "log_metric"}.isdisjoint(inspect.signature(objective.function).parameters)


def _call_each(calls: Sequence[Call]) -> list[Returned]:
    given = [_arguments(objective, outputs) for objective, _, outputs in calls]
    results: list[Any] = []
    try:
        for (objective, _, _), arguments in zip(calls, given, strict=True):
            try:
                results.append(objective.function(**own_arguments(arguments)))
            except BaseException as error:  # sys.exit() in an objective would end the run as if it had succeeded
                if is_ctrl_c(error):
                    raise
                raise _raised(objective, error) from error
        waiting = [i for i, result in enumerate(results) if _is_waited_for(result)]
        for i in waiting:
            if not isinstance(results[i], Future):
                results[i] = submit(results[i], "zoreward-async")
        wait([results[i] for i in waiting], return_when=FIRST_EXCEPTION)
        for i in waiting:
            if (failure := _failure(results[i])) is not None:
                cause = failure.__cause__ if isinstance(failure, CallError) else failure
                raise _raised(calls[i][0], failure) from cause
        for i in waiting:
            results[i] = results[i].result()
    except BaseException:
        for result in results:
            if inspect.iscoroutine(result):
                result.close()
            elif isinstance(result, Future):
                result.cancel()
        raise
    return [
        checked(objective.name, result, n_rows) for (objective, n_rows, _), result in zip(calls, results, strict=True)
    ]


def submit(awaitable: Awaitable[Any], thread: str) -> Future[Any]:
    """Have something awaited on the event loop of a thread of this name, and return its future.

    There is one loop for each name in the whole process, from its first use on. Clients that a reward function keeps
    (of an HTTP service, say) belong to the loop that they were first used in: a loop for each batch would break them.
    A notebook has a loop of its own, which must not be blocked.
    """
    import asyncio

    async def awaited() -> Any:
        return await awaitable

    coroutine = awaitable if inspect.iscoroutine(awaitable) else awaited()
    return asyncio.run_coroutine_threadsafe(coroutine, _event_loop(thread))


@functools.cache
def _event_loop(thread: str) -> asyncio.AbstractEventLoop:
    import asyncio
    import threading

    loop = asyncio.new_event_loop()

    def run() -> None:
        ended = False
        while not ended:
            try:
                loop.run_forever()
                ended = True
            except (SystemExit, KeyboardInterrupt):  # of a task, whose result it is; asyncio raises it here as well
                pass

    threading.Thread(target=run, name=thread, daemon=True).start()
    return loop


def mean_score(returned: Returned) -> float:
    """Return the mean of what an objective returned, without the rows that it left out; NaN where it left out all.

    >>> mean_score([1.0, None, 0.5]), mean_score(0.25), mean_score([None])
    (0.75, 0.25, nan)
    """
    if not isinstance(returned, list):
        return returned
    scores = [score for score in returned if score is not None]
    return math.fsum(scores) / len(scores) if scores else math.nan


def no_score(name: str, n_rows: int) -> ObjectiveError:
    """Return the error that says that an objective has no score on rows that need one."""
    return ObjectiveError(
        f"objective {name!r} has no score on these {n_rows} rows: it returned None or NaN for all of them",
        hint="Give rows that it scores.",
    )


def _failure(future: Future[Any]) -> BaseException | None:
    if not future.done():
        return None
    return CancelledError("it was cancelled") if future.cancelled() else future.exception()


def _raised(objective: Objective, error: BaseException) -> ObjectiveError:
    if isinstance(error, CallError):
        return error
    return ObjectiveError(f"objective {objective.name!r} raised {named(error)}", hint=hint_of(error) or place_of(error))


def _is_waited_for(result: Any) -> bool:
    return isinstance(result, Future) or inspect.isawaitable(result)


def _arguments(objective: Objective, outputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the objective's function is called with: its share of `outputs`, and the values of its options."""
    parameters = inspect.signature(objective.function).parameters.values()
    options = set() if objective.stateful else {option.name for option in objective.options}
    values = {} if objective.stateful else objective.values
    for name in sorted(options & outputs.keys() - values.keys()):
        # TRL would pass the column, the command line would take the default: neither is plainly what was meant.
        hint = f"set the option ({name}=…), or rename the column"
        raise InputError(f"{name!r} is an option of objective {objective.name!r} and also a column", hint=hint)
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    passed = {k: v for k, v in outputs.items() if takes_all or k in named} | dict(values)
    for parameter in parameters:
        required = parameter.name in named and parameter.default is parameter.empty
        if required and parameter.name not in passed:
            hint = neighbours(parameter.name, outputs, "There are")
            message = f"objective {objective.name!r} asks for {parameter.name!r}, which is no column of the rows"
            raise UnknownNameError(message, hint=hint)
    return passed


def own_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of one call: copies, so that the next call has what this one had."""
    own = {
        name: own_copy(value) for name, value in arguments.items() if name not in ("trainer_state", "completion_ids")
    }
    if "trainer_state" in arguments:
        own["trainer_state"] = own_state(arguments["trainer_state"])
    if "completion_ids" in arguments:  # many, and all of them numbers
        own["completion_ids"] = [ids[:] for ids in arguments["completion_ids"]]
    return own


def checked(name: str, result: Any, n_rows: int, rows: Sequence[int] | None = None) -> Returned:
    """Return what an objective returned in plain Python, once it is known to be scores.

    Args:
        name: the objective's.
        result: what its function returned.
        n_rows: how many rows it was given.
        rows: the numbers that these rows go by; by default from 0 on.

    Raises:
        ObjectiveError: it is neither a number nor one for each row; or one of them is infinite.
    """
    as_always = type(result) is list and len(result) == n_rows
    if as_always and all(type(score) is float and math.isfinite(score) for score in result):
        return list(result)
    if hasattr(result, "tolist"):  # arrays, tensors and their scalars
        result = result.tolist()
    if not isinstance(result, (list, tuple)):
        return _number(name, result, "")
    if len(result) != n_rows:
        raise ObjectiveError(
            f"objective {name!r} returned the wrong number of scores: got {len(result)} for {n_rows} rows",
            hint="return one number, or a list with one for each row",
        )
    return [
        None if score is None else _number_or_none(name, score, f" for row {row}")
        for row, score in zip(rows or range(n_rows), result, strict=True)
    ]


def _number_or_none(name: str, value: Any, where: str) -> float | None:
    """The number; None for NaN, which is what a row that has no score has in TRL."""
    number = _number(name, value, where)
    return None if math.isnan(number) else number


def _number(name: str, value: Any, where: str) -> float:
    try:
        plain = value.item() if hasattr(value, "item") else value
        number = float(plain) if isinstance(plain, (int, float)) else None
    except (TypeError, ValueError, RuntimeError, OverflowError):
        number = None
    if number is None:
        hint = "return one number, or a list with one for each row"
        raise ObjectiveError(f"objective {name!r} returned no number{where}: {short(value)}", hint=hint)
    if math.isinf(number):
        raise ObjectiveError(f"objective {name!r} returned {number}{where}", hint="a score must be finite")
    return number


def hint_of(error: BaseException) -> str:
    """Return what an exception says to do: its `hint`, or the notes that were added to it."""
    return one_line(getattr(error, "hint", "") or " ".join(map(str, getattr(error, "__notes__", ()))))


def short(value: Any) -> str:
    """Return a value as it may stand in a sentence."""
    try:
        return one_line(repr(value), 61)
    except Exception:
        return f"<{type(value).__name__}>"
