"""Objectives whose scores depend on one row each: rows are scored apart, and what is known is not asked for again."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zoreward.records import ObjectiveError
from zoreward.registry.attempts import Notes, attempt, replay
from zoreward.registry.decorator import FROM_TRL
from zoreward.registry.kept import Kept, Row, key_of
from zoreward.registry.objective import CallError, checked, short

if TYPE_CHECKING:
    from zoreward.registry.objective import Objective
    from zoreward.registry.patience import Patience

# What calls logged, by the first row of each: so it is told in the order of the rows, whoever was quicker.
Metrics = dict[int, list[tuple[str, float]]]


@dataclass(frozen=True, slots=True)
class Rowwise:
    """Calls a rowwise objective.

    Args:
        objective: that has said so.
        patience: how its function is called.
        turns: lets calls in.
        apart: call it for each row alone; else for all that are not known.
        kept: what is known; None: nothing is kept.
        source: a fingerprint of what computes the scores.
        asked: what is being asked for at the moment, by key: another member may have written the same text.
    """

    objective: Objective
    patience: Patience
    turns: asyncio.Semaphore
    apart: bool
    kept: Kept | None
    source: str
    asked: dict[str, asyncio.Future[Row]]

    async def scores(self, arguments: Mapping[str, Any], given: Mapping[str, Any]) -> list[float | None]:
        """Return one score for each row, and log what was logged for it.

        Args:
            arguments: of the function, for all rows.
            given: the same, and what else errors may show of the rows.

        Raises:
            CallError: a call failed, or returned what is no score for each row.
        """
        if self.kept is not None:
            arguments = {name: value for name, value in arguments.items() if name != "trainer_state"}
        columns = {name: values for name, values in arguments.items() if name not in self._shared}
        n_rows, metrics = len(next(iter(columns.values()))), Metrics()
        if self.kept is None:
            rows = await self._called(range(n_rows), arguments, given, metrics)
        else:
            keys = [self._key(columns, i) for i in range(n_rows)]
            rows = await self._known_or_called(self.kept, keys, arguments, given, metrics)
        names = dict.fromkeys(column for row in rows for column in row.extra)
        extra = {name: [row.extra.get(name) for row in rows] for name in names}
        replay(Notes(extra, [metric for i in sorted(metrics) for metric in metrics[i]]), arguments)
        return [row.score for row in rows]

    @property
    def _shared(self) -> set[str]:
        """Arguments that are not a list with one value for each row."""
        return {*FROM_TRL, *self.objective.values, *(option.name for option in self.objective.options)}

    def _key(self, columns: Mapping[str, Sequence[Any]], row: int) -> str:
        own = {name: values[row] for name, values in columns.items()}
        try:
            return key_of(self.objective.name, dict(self.objective.values), self.source, own)
        except (TypeError, ValueError) as error:
            message = f"objective {self.objective.name!r} has no score that can be kept for row {row}: {error}"
            hint = "let the function name the columns that it reads, in the place of **columns"
            raise CallError(message, hint=hint) from None

    async def _known_or_called(
        self,
        kept: Kept,
        keys: Sequence[str],
        arguments: Mapping[str, Any],
        given: Mapping[str, Any],
        metrics: Metrics,
    ) -> list[Row]:
        rows = kept.find(keys)
        asked = {key: self.asked[key] for key in keys if key in self.asked and key not in rows}
        mine = [i for i, key in enumerate(keys) if key not in rows and key not in asked and key not in keys[:i]]
        loop = asyncio.get_running_loop()
        self.asked.update((keys[i], loop.create_future()) for i in mine)
        try:
            for i, row in zip(mine, await self._called(mine, arguments, given, metrics, keys), strict=True):
                rows[keys[i]] = row
        except BaseException as error:
            for i in mine:
                if not self.asked[keys[i]].done():
                    self.asked[keys[i]].set_exception(_failure_of(error))
                    self.asked[keys[i]].exception()  # else asyncio warns where nobody waits for it
            raise
        finally:
            for i in mine:
                del self.asked[keys[i]]
        for key, future in asked.items():
            rows[key] = await asyncio.shield(future)
        return [rows[key] for key in keys]

    async def _called(
        self,
        numbers: Sequence[int],
        arguments: Mapping[str, Any],
        given: Mapping[str, Any],
        metrics: Metrics,
        keys: Sequence[str] = (),
    ) -> list[Row]:
        """The rows of these numbers, each alone or all in one call."""
        groups = [[i] for i in numbers] if self.apart else [list(numbers)] if numbers else []
        try:
            async with asyncio.TaskGroup() as tasks:
                calls = [tasks.create_task(self._group(one, arguments, given, metrics, keys)) for one in groups]
        except ExceptionGroup as failed:  # the first that failed; the others were given up
            error = failed.exceptions[0]
            raise error from error.__cause__
        return [row for call in calls for row in call.result()]

    async def _group(
        self,
        numbers: list[int],
        arguments: Mapping[str, Any],
        given: Mapping[str, Any],
        metrics: Metrics,
        keys: Sequence[str],
    ) -> list[Row]:
        name, shared = self.objective.name, self._shared
        own = {key: value if key in shared else [value[i] for i in numbers] for key, value in arguments.items()}
        where = place_of_rows(numbers, given)
        returned, notes = await attempt(self.objective, self.patience, self.turns, own, where)
        try:
            scores = checked(name, returned, len(numbers), numbers)
        except ObjectiveError as error:
            raise CallError(str(error), hint=error.hint) from None
        if not isinstance(scores, list):
            message = f"objective {name!r} is said to be rowwise, and returned one number for {len(numbers)} rows"
            raise CallError(message, hint="return a list with one for each row, or leave rowwise out")
        extra = {column: values for column, values in notes.extra.items() if len(values) == len(numbers)}
        rows = [Row(score, {name: extra[name][n] for name in extra}) for n, score in enumerate(scores)]
        metrics[numbers[0]] = notes.metrics
        if self.kept is not None:
            self.kept.store({keys[i]: row for i, row in zip(numbers, rows, strict=True)})
            for i, row in zip(numbers, rows, strict=True):
                if not self.asked[keys[i]].done():
                    self.asked[keys[i]].set_result(row)
        return rows


def place_of_rows(numbers: Sequence[int], given: Mapping[str, Any]) -> str:
    """Return which rows a call is about, to stand in an error.

    >>> place_of_rows([1], {"completions": ["a", "b"], "prompts": ["c", "d"]})
    " (row 1: prompt 'd', completion 'b')"
    >>> place_of_rows([0, 1], {"completions": ["a", "b"]})
    " (2 rows; the first: completion 'a')"
    """
    if not numbers:
        return ""
    texts = [f"{name[:-1]} {short(given[name][numbers[0]])}" for name in ("prompts", "completions") if given.get(name)]
    if len(numbers) == 1:
        return f" ({': '.join([f'row {numbers[0]}', *([', '.join(texts)] if texts else [])])})"
    return f" ({'; the first: '.join([f'{len(numbers)} rows', *([', '.join(texts)] if texts else [])])})"


def _failure_of(error: BaseException) -> Exception:
    return error if isinstance(error, Exception) else CallError("the call was given up")
