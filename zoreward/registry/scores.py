"""An objective that is ready to be called: what goes in, and how what comes out becomes one score."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from zoreward.records import InputError
from zoreward.registry.calls import Returned, call_all, mean_score, no_score

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
        rowwise: it has said that the score of a row depends on what it is given of that row alone.
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

    @property
    def compares_with_base(self) -> bool:
        """Whether it names what only the model before tuning can tell: `base_logprobs`, `base_logprob_sums`.

        >>> from zoreward import get_objective
        >>> def gained(logprobs, base_logprobs):
        ...     return (logprobs > base_logprobs).mean()
        >>> get_objective(gained).compares_with_base
        True
        """
        parts = [part for _, part in self.parts] or [self]
        names = {name for part in parts for name in inspect.signature(part.function).parameters}
        return not names.isdisjoint(("base_logprobs", "base_logprob_sums"))

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

    def part_scores(self, n_rows: int, /, **outputs: Any) -> dict[str, float]:
        """Return the value of each objective of a weighted sum, by name; of another objective its own alone.

        NaN where there is none. Raises what `returned_for` raises.
        """
        [returned] = self.returned_for([(n_rows, outputs)])
        return {name: mean_score(found) for name, found in returned.items()}

    def returned_for(self, batches: Sequence[tuple[int, Mapping[str, Any]]]) -> list[dict[str, Returned]]:
        """Return what the objective's parts return for each batch, checked; by the name of the part.

        Async functions run together: all parts, all batches.

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
        results = iter(call_all([(part, n_rows, outputs) for n_rows, outputs in batches for part in parts]))
        return [{part.name: next(results) for part in parts} for _ in batches]

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
        if len(of_rows) == 1 and None not in of_rows[0][1]:  # as nearly always
            weight, found = of_rows[0]
            return math.fsum(weight * score for score in found) / len(found) + math.fsum(of_batch)  # type: ignore[operator]
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


def _no_function(**outputs: Any) -> float:
    raise AssertionError("a weighted sum is scored by its parts")


def _range(parts: tuple[tuple[float, Objective], ...]) -> tuple[float, float] | None:
    if any(part.range is None for _, part in parts):
        return None
    ends = [sorted(weight * end for end in part.range or () if weight) or [0.0, 0.0] for weight, part in parts]
    return math.fsum(low for low, _ in ends), math.fsum(high for _, high in ends)
