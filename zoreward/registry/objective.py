"""An objective that is ready to be called: what goes in, how its function is called, and how what comes out is a score.

What a function is handed is its own: whatever it writes there, the run does not see.
"""

from __future__ import annotations

import copy
import difflib
import functools
import inspect
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, Future, wait
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

from zoreward.records import InputError, ObjectiveError, UnknownNameError, named, one_line
from zoreward.registry.places import is_ctrl_c, place_of

if TYPE_CHECKING:
    import asyncio

Needs = Literal["choices", "completions", "likelihood", "any"]
"""What an objective needs from the model: the best of some candidates, generated text, or how likely the answer is.

`any` is said of what makes objectives: it depends on which.
"""

Returned = float | list[float | None]
"""One number for a batch, NaN where it has no score; or one for each row, None where a row is left out."""

# From so many on, looking at the types of a list's items together is faster than one by one.
_FEW = 8
REWARD_THREAD = "zoreward-reward"
"""The name of each thread that calls a function with a timeout or with retries."""

# They cannot be written to.
_PLAIN = frozenset({str, int, float, bool, bytes, complex, type(None)})


class CallError(ObjectiveError):
    """A call of an objective's function that failed for good. The message names the objective and its rows."""


@dataclass(frozen=True, slots=True)
class Option:
    """An option of an objective; on the command line it is a flag.

    Args:
        name: of the keyword-only parameter.
        type: its annotation, resolved: `int`, `Literal["macro", "micro"]`.
        default: the parameter's own; `inspect.Parameter.empty` where it must be given.
        help: its line under `Args:` in the docstring; "" where there is none.
    """

    name: str
    type: Any
    default: Any
    help: str


@dataclass(frozen=True)
class Objective:
    """An objective, ready to score.

    Args:
        name: what the user calls it.
        needs: what it needs from the model.
        function: called by keyword; an instance where the objective is a class.
        options: what can be set.
        values: what has been set, as given; the other options keep their defaults.
        help: the first line of the docstring.
        distribution: the installed package that brings it; "" for a function or a file of the user's own.
        range: the lowest and the highest score possible, where known.
        stateful: it is made from a class, so `values` went to its `__init__`.
        parts: for a weighted sum: the weights and the objectives that are summed.
        rowwise: it has said that the score of a row depends on what it is given of that row alone.
        beside: others that are reported where a model is evaluated, and are no part of the score.
    """

    name: str
    needs: Needs
    function: Callable[..., Any]
    options: tuple[Option, ...]
    values: Mapping[str, Any]
    help: str
    distribution: str
    range: tuple[float, float] | None = None
    stateful: bool = False
    parts: tuple[tuple[float, Objective], ...] = ()
    rowwise: bool = False
    beside: tuple[Objective, ...] = ()

    @property
    def compares_with_base(self) -> bool:
        """Whether it names what only the model before tuning can tell: `base_logprobs`, `base_completions` and so on.

        >>> from zoreward import get_objective
        >>> def gained(logprobs, base_logprobs):
        ...     return (logprobs > base_logprobs).mean()
        >>> get_objective(gained).compares_with_base
        True
        """
        outputs = ("base_logprobs", "base_logprob_sums", "base_completions", "base_completion_ids")
        return self._names(*outputs) or self.reads_mismatched

    @property
    def reads_mismatched(self) -> bool:
        """Whether it names `mismatched_ratios`: how far answers to other prompts have moved."""
        return self._names("mismatched_ratios")

    @property
    def reads_base(self) -> bool:
        """Whether it names `base_states`: what the model before tuning holds of what was written.

        >>> from zoreward import get_objective
        >>> def first(base_states):
        ...     return [states[0] for states in base_states]
        >>> get_objective(first).reads_base
        True
        """
        return self._names("base_states")

    @property
    def goes_via_reward(self) -> bool:
        """Whether its option `via` says that a reward is made of its rows first, on which the run is."""
        parts = [part for _, part in self.parts] or [self]
        return any(getattr(part.function, "via", "") == "reward" for part in parts)

    @property
    def asks_people(self) -> bool:
        """Whether its function says so: a person makes its rows, by answers that are kept in its file `answers`."""
        return bool(getattr(self.function, "asks_people", False))

    def check_choices(self, count: int) -> None:
        """Raise what a part's own method `check_choices` says of rows with so many choices, before a model is loaded.

        Raises:
            ObjectiveError: it raised a ValueError. The hint is its note: where that is an option, it mends it.

        >>> from zoreward import get_objective
        >>> get_objective("f1").check_choices(3)
        Traceback (most recent call last):
        zoreward.records.ObjectiveError: objective 'f1': the F1 of one choice is for two choices, not 3
        hint: --average macro
        """
        for part in [part for _, part in self.parts] or [self]:
            try:
                getattr(part.function, "check_choices", _any_number)(count)
            except ValueError as error:
                raise ObjectiveError(f"objective {part.name!r}: {one_line(error)}", hint=hint_of(error)) from error
        for other in self.beside:
            try:
                other.check_choices(count)
            except ObjectiveError as error:
                error.hint = "leave it out of --metric, or name it with its option in one word, as f1-macro"
                raise

    def _names(self, *outputs: str) -> bool:
        parts = [part for _, part in self.parts] or [self]
        names = {name for part in parts for name in inspect.signature(part.function).parameters}
        return not names.isdisjoint(outputs)

    def score(self, n_rows: int, /, **outputs: Any) -> float:
        """Return the value of the objective on `n_rows` rows; higher is better, always finite.

        The function gets those `outputs` that it names, all of them if it takes `**columns`. It returns one number for
        the set, or a list (tuple, array, tensor) of `n_rows` numbers: then the score is their mean in float64, without
        the rows whose score is None or NaN. An async function is awaited.

        Raises:
            ObjectiveError: the function raised, or did not return finite numbers, one or `n_rows`; or has no score.
            UnknownNameError: it asks for a column that is not among `outputs`.
            InputError: a column has the name of an option that was not set.

        >>> from zoreward import get_objective
        >>> def exact(predictions, references):
        ...     return [p == r for p, r in zip(predictions, references)]
        >>> get_objective(exact).score(4, predictions=[0, 1, 1, 0], references=[0, 1, 1, 1])
        0.75
        """
        [returned] = self.returned_for([(n_rows, outputs)])
        score = self.combined(returned)
        if math.isnan(score):
            raise no_score(self.name, n_rows)
        return score

    def returned_for(self, batches: Sequence[tuple[int, Mapping[str, Any]]]) -> list[dict[str, Returned]]:
        """Return what the objective's parts return for each batch, checked; by the name of the part.

        Async functions run together: all parts, all batches. Others run one after the other, in this thread. A function
        may return a future; it is waited for as an async function is. A rowwise objective's function is called once for
        the rows of all batches. Where one fails, the others are given up.

        Args:
            batches: the number of rows and the outputs of each.

        Raises:
            ObjectiveError: a function raised, or returned what is no score.
            UnknownNameError: it asks for a column that is not among the outputs.
            InputError: a column has the name of an option that was not set.

        >>> from zoreward import get_objective
        >>> async def length(completions):
        ...     return [len(text) if text else None for text in completions]
        >>> get_objective(length).returned_for([(2, {"completions": ["ab", ""]}), (1, {"completions": ["c"]})])
        [{'length': [2.0, None]}, {'length': [1.0]}]
        """
        parts = [part for _, part in self.parts] or [self]
        joined, places = _joined([(part, n_rows, outputs) for n_rows, outputs in batches for part in parts])
        scores = _call_each(joined)
        of_calls = iter(scores[i] if rows is None else scores[i][rows] for i, rows in places)  # type: ignore[index]
        return [{part.name: next(of_calls) for part in parts} for _ in batches]

    def combined(self, returned: Mapping[str, Returned]) -> float:
        """Return the score that comes of what the parts returned for one batch.

            score = 1/n · Σ_rows Σ_parts weight · returned[part][row]  +  Σ_parts weight · returned[part]

        The first sum is over parts that score rows, without what is None; n counts the rows that at least one of them
        scored. The second is over parts that score the batch, without what is NaN. A sum of nothing at all is NaN.

        Source: the rewards of TRL's GRPOTrainer, `sum_then_normalize` (nansum over functions, nanmean over rows).

        >>> from zoreward import get_objective
        >>> def rare(completions):
        ...     return [None for text in completions]
        >>> get_objective(rare).combined({"rare": [None, None]}), get_objective(rare).combined({"rare": [None, 0.5]})
        (nan, 0.5)
        """
        weighed = [(weight, returned[part.name]) for weight, part in self.parts] or [(1.0, returned[self.name])]
        of_batch = [weight * found for weight, found in weighed if not isinstance(found, list) and found == found]
        of_rows = [(weight, found) for weight, found in weighed if isinstance(found, list)]
        terms = [
            [weight * score for (weight, _), score in zip(of_rows, row, strict=True) if score is not None]
            for row in zip(*(found for _, found in of_rows), strict=True)
        ]
        if not any(terms):
            return math.fsum(of_batch) if of_batch else math.nan
        return math.fsum(term for row in terms for term in row) / sum(map(bool, terms)) + math.fsum(of_batch)


def weighted_sum(objectives: Sequence[Objective], weights: Sequence[float] | None = None) -> Objective:
    """Return the objective Σ weight · score of several, which all need the same from the model.

    Args:
        objectives: at least one.
        weights: one for each; by default 1.

    Raises:
        InputError: none, weights that do not fit, two of one name, or different needs.

    >>> from zoreward import get_objective
    >>> def right(predictions, references):
    ...     return [p == r for p, r in zip(predictions, references)]
    >>> def ones(predictions):
    ...     return predictions
    >>> both = weighted_sum([get_objective(right), get_objective(ones)], [1, 0.1])
    >>> both.name, both.score(2, predictions=[0, 1], references=[0, 0])
    ('right + 0.1*ones', 0.55)
    """
    weights = [1.0] * len(objectives) if weights is None else list(weights)
    if not objectives or len(weights) != len(objectives):
        message = f"{len(objectives)} objectives and {len(weights)} weights do not fit together"
        raise InputError(message, hint="give one weight for each objective, and at least one objective")
    if not all(math.isfinite(weight) for weight in weights):
        raise InputError(f"the weights {weights} are not all finite", hint="a weight is a number, such as 0.1")
    names = [one.name for one in objectives]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two objectives are called {name!r}", hint="sum each only once, with its whole weight")
    needs = {one.name: one.needs for one in objectives}
    if len(set(needs.values())) > 1:
        each = ", ".join(f"{name} needs {what}" for name, what in needs.items())
        message = f"objectives that need different things make no sum: {each}"
        raise InputError(message, hint="take such as need the same")
    parts = tuple(zip(weights, objectives, strict=True))
    if weights == [1.0]:
        return objectives[0]
    name = " + ".join(one.name if weight == 1 else f"{weight:g}*{one.name}" for weight, one in parts)
    helps = f"Weighted sum: {name}."
    return Objective(name, objectives[0].needs, _no_function, (), {}, helps, "", _range(parts), parts=parts)


def _any_number(count: int) -> None:
    """What is said of a number of choices by objectives that take any."""


def _no_function(**outputs: Any) -> float:
    raise AssertionError("a weighted sum is scored by its parts")


def _range(parts: tuple[tuple[float, Objective], ...]) -> tuple[float, float] | None:
    if any(part.range is None for _, part in parts):
        return None
    ends = [sorted(weight * end for end in part.range or () if weight) or [0.0, 0.0] for weight, part in parts]
    return math.fsum(low for low, _ in ends), math.fsum(high for _, high in ends)


Call = tuple[Objective, int, Mapping[str, Any]]


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
            end = 0
            for i in group:
                end += calls[i][1]
                places[i] = (len(joined), slice(end - calls[i][1], end))
            lists = [name for name, value in outputs.items() if isinstance(value, list)]
            outputs = {**outputs, **{name: [value for i in group for value in calls[i][2][name]] for name in lists}}
            n_rows = end
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
        waiting = [i for i, result in enumerate(results) if isinstance(result, Future) or inspect.isawaitable(result)]
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


def left_behind() -> bool:
    """Whether a call is still at work, though nobody waits for it any more or the run is over."""
    import threading

    return any(thread.name == REWARD_THREAD for thread in threading.enumerate())


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
        hint="None for a row leaves it out. Return a number for some at least, or give rows that it scores.",
    )


def _failure(future: Future[Any]) -> BaseException | None:
    if not future.done():
        return None
    return CancelledError("it was cancelled") if future.cancelled() else future.exception()


def _raised(objective: Objective, error: BaseException) -> ObjectiveError:
    if isinstance(error, CallError):
        return error
    return ObjectiveError(f"objective {objective.name!r} raised {named(error)}", hint=hint_of(error) or place_of(error))


def _arguments(objective: Objective, outputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the objective's function is called with: its share of `outputs`, and the values of its options."""
    parameters = inspect.signature(objective.function).parameters.values()
    options = set() if objective.stateful else {option.name for option in objective.options}
    values = {} if objective.stateful else objective.values
    for name in sorted(options & outputs.keys() - values.keys()):
        # TRL would pass the column, the command line would take the default: it is not clear which was meant.
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
    if hasattr(result, "tolist"):  # arrays, tensors and their scalars
        result = result.tolist()
    if not isinstance(result, (list, tuple)):
        return _number(name, result, "")
    if len(result) != n_rows:
        message = f"objective {name!r} returned the wrong number of scores: got {len(result)} for {n_rows} rows"
        raise ObjectiveError(message, hint="return one number, or a list with one for each row")
    if all(type(score) is float and math.isfinite(score) for score in result):  # as nearly always
        return list(result)
    numbers = [
        None if score is None else _number(name, score, f" for row {row}")
        for row, score in zip(rows or range(n_rows), result, strict=True)
    ]
    # NaN is what a row that has no score has in TRL
    return [None if number is None or math.isnan(number) else number for number in numbers]


def _number(name: str, value: Any, where: str) -> float:
    try:
        plain = value.item() if hasattr(value, "item") else value
        number = float(plain) if isinstance(plain, (int, float)) else None
    except (TypeError, ValueError, RuntimeError, OverflowError):
        number = None
    if value is None and not where:
        message = f"objective {name!r} returned None, where a score or a list of scores is meant: has it no return?"
        raise ObjectiveError(message, hint="return one number for each row; None in that list leaves its row out")
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


def own_copy(value: Any) -> Any:
    """Return a copy of lists, dicts, sets and arrays, and of those in them; all else is the same object.

    Texts and numbers are not copied. A copy of 512 conversations takes about half a millisecond.

    >>> messages = [{"role": "user", "content": "hi"}]
    >>> own = own_copy([messages, messages])
    >>> own[0][0]["content"] = "ho"
    >>> messages, own[1][0]["content"]
    ([{'role': 'user', 'content': 'hi'}], 'hi')
    """
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is dict:
        own = value.copy()
        for key, one in value.items():
            if type(one) not in _PLAIN:
                own[key] = own_copy(one)
        return own
    if kind is list:
        copied = _copied_together(value) if len(value) >= _FEW else None
        if copied is None:
            copied = value[:]
            for i, item in enumerate(value):
                if type(item) not in _PLAIN:
                    copied[i] = own_copy(item)
        return copied
    if kind is tuple:
        return value if _PLAIN.issuperset(map(type, value)) else tuple(map(own_copy, value))
    if kind is set or (kind.__module__ == "numpy" and hasattr(value, "copy")):
        return value.copy()
    return value


def _copied_together(values: list[Any]) -> list[Any] | None:
    """A copy of texts, dicts or conversations, whose types are looked at together; None where others are among them."""
    if _PLAIN.issuperset(map(type, values)):
        return values[:]
    if _are_plain_dicts(values):
        return [*map(dict.copy, values)]
    if {list}.issuperset(map(type, values)):
        items = [*chain.from_iterable(values)]
        if _PLAIN.issuperset(map(type, items)):
            return [row[:] for row in values]
        if _are_plain_dicts(items):  # conversations
            return [[*map(dict.copy, row)] for row in values]
    return None


def _are_plain_dicts(values: list[Any]) -> bool:
    dicts = {dict}.issuperset(map(type, values))
    return dicts and _PLAIN.issuperset(map(type, chain.from_iterable(map(dict.values, values))))


def own_state(state: Any) -> Any:
    """Return a copy of a trainer's state, with copies of what is in it."""
    own = copy.copy(state)
    for name, value in getattr(own, "__dict__", {}).items():
        setattr(own, name, own_copy(value))
    return own


def neighbours(name: str, names: Iterable[str], title: str) -> str:
    names = list(names)
    near = difflib.get_close_matches(name, names, n=3)
    return (f"did you mean {' or '.join(near)}? " if near else "") + f"{title}: {', '.join(names) or 'nothing'}"
