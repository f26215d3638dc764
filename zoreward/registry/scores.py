"""An objective that is ready to be called: what goes in, and how what comes out becomes one score."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from zoreward.records import InputError, ObjectiveError, UnknownNameError
from zoreward.registry.names import neighbours

Needs = Literal["choices", "completions", "likelihood", "any"]
"""What an objective needs from the model: the best of some candidates, generated text, or how likely the answer is.

`any` is said of what makes objectives: it depends on which.
"""


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

    def part_scores(self, n_rows: int, /, **outputs: Any) -> dict[str, float]:
        """Return the value of each objective of a weighted sum, by name; of another objective its own alone.

        Raises what `score` raises.
        """
        if self.parts:
            return {part.name: part.score(n_rows, **outputs) for _, part in self.parts}
        return {self.name: self.score(n_rows, **outputs)}

    def total(self, part_scores: Mapping[str, float]) -> float:
        """Return the score that `part_scores` add up to."""
        if not self.parts:
            return part_scores[self.name]
        return math.fsum(weight * part_scores[part.name] for weight, part in self.parts)

    def score(self, n_rows: int, /, **outputs: Any) -> float:
        """Return the value of the objective on `n_rows` rows; higher is better, always finite.

        The function gets those `outputs` that it names, all of them if it takes `**columns`. It returns one number for
        the set, or a list (tuple, array, tensor) of `n_rows` numbers: then the score is their mean in float64, without
        the rows whose score is None.

        Raises:
            ObjectiveError: the function raised, or did not return finite numbers, one or `n_rows`.
            UnknownNameError: it asks for a column that is not among `outputs`.
            InputError: a column has the name of an option that was not set.

        >>> from zoreward import get_objective
        >>> def exact(predictions, references):
        ...     return [p == r for p, r in zip(predictions, references)]
        >>> get_objective(exact).score(4, predictions=[0, 1, 1, 0], references=[0, 1, 1, 1])
        0.75
        """
        if self.parts:
            return self.total(self.part_scores(n_rows, **outputs))
        arguments = _arguments(self, outputs)
        try:
            result = self.function(**arguments)
        except Exception as error:
            message = f"objective {self.name!r} raised {type(error).__name__}: {error}"
            raise ObjectiveError(message, hint=hint_of(error)) from error
        return _mean(self.name, result, n_rows)


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
        raise InputError(
            f"objectives that need different things make no sum: {each}", hint="take such as need the same"
        )
    parts = tuple(zip(weights, objectives, strict=True))
    if weights == [1.0]:
        return objectives[0]
    name = " + ".join(one.name if weight == 1 else f"{weight:g}*{one.name}" for weight, one in parts)
    helps = f"Weighted sum: {name}."
    return Objective(name, objectives[0].needs, _no_function, (), {}, helps, "", _range(parts), parts=parts)


def _no_function(**outputs: Any) -> float:
    raise AssertionError("a weighted sum is scored by its parts")


def _range(parts: tuple[tuple[float, Objective], ...]) -> tuple[float, float] | None:
    if any(part.range is None for _, part in parts):
        return None
    ends = [sorted(weight * end for end in part.range or () if weight) or [0.0, 0.0] for weight, part in parts]
    return math.fsum(low for low, _ in ends), math.fsum(high for _, high in ends)


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


def _mean(name: str, result: Any, n_rows: int) -> float:
    if hasattr(result, "tolist"):  # arrays, tensors and their scalars
        result = result.tolist()
    if not isinstance(result, (list, tuple)):
        return _number(name, result, "")
    if len(result) != n_rows:
        raise ObjectiveError(
            f"objective {name!r} returned the wrong number of scores: got {len(result)} for {n_rows} rows",
            hint="return one number, or a list with one for each row",
        )
    scores = [_number(name, score, f" for row {row}") for row, score in enumerate(result) if score is not None]
    if not scores:
        raise ObjectiveError(f"objective {name!r} left out all {n_rows} rows: every score is None")
    return math.fsum(scores) / len(scores)


def _number(name: str, value: Any, where: str) -> float:
    try:
        plain = value.item() if hasattr(value, "item") else value
        number = float(plain) if isinstance(plain, (int, float)) else None
    except (TypeError, ValueError, RuntimeError, OverflowError):
        number = None
    if number is None:
        hint = "return one number, or a list with one for each row"
        raise ObjectiveError(f"objective {name!r} returned no number{where}: {_short(value)}", hint=hint)
    if not math.isfinite(number):
        raise ObjectiveError(f"objective {name!r} returned {number}{where}", hint="a score must be finite")
    return number


def hint_of(error: BaseException) -> str:
    """Return what an exception says to do: its `hint`, or the notes that were added to it."""
    return str(getattr(error, "hint", "") or " ".join(getattr(error, "__notes__", ())))


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return f"{text[:60]}…" if len(text) > 60 else text
