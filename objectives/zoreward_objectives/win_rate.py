"""How often a model writes better than it did before tuning, by a judge."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from zoreward import get_objective, list_objectives, objective
from zoreward_objectives.arguments import hinted

if TYPE_CHECKING:
    from zoreward.registry import Objective

_PAIR = ("completions_a", "completions_b")


@objective("win-rate", needs="any")
def win_rate(*, judge: str) -> Objective:
    """How often what is written beats what the model wrote before tuning, by a judge.

    A row has 1 where its completion wins, 0 where it loses, ½ for a tie; a completion that the base has written too is
    a tie, and the judge is not asked. The base writes once for each row, always the likeliest token.

    A judge is a reward model or a reward function, f(completions, …) with a number for each: the higher one wins. Or it
    compares, f(prompts, completions_a, completions_b, …): for each row the probability that a is better, or 1, 0 or −1
    where a is better, none is, or b is. It is asked in both orders, and what it gives to a place cancels:

        win = ½ + (f(a, b) − f(b, a))/2, at least 0 and at most 1

    Logs `agreed` for a judge that compares: the share of the rows it was asked about for which it says the same in both
    orders. (A call without a −1 is read as one of probabilities.) What the judge knows nothing of, None, is left out.

    Args:
        judge: the folder or Hub id of a reward model; path/file.py:name or package.module:name; or an objective that
            needs completions.

    Raises:
        ValueError: there is no such judge, or it reads no completions.

    Source: win rates in both orders, Zheng et al. 2023, arXiv 2306.05685.

    >>> from zoreward import get_objective
    >>> def longer(prompts, completions_a, completions_b):
    ...     return [(len(a) > len(b)) - (len(a) < len(b)) for a, b in zip(completions_a, completions_b)]
    >>> told = {}
    >>> get_objective("win-rate", judge=longer).score(
    ...     4, prompts=["?"] * 4, completions=["ab", "a", "a", "b"], base_completions=["a", "ab", "a", "c"],
    ...     log_metric=told.__setitem__)
    0.5
    >>> told
    {'agreed': 1.0}
    """
    found = _judge(judge)
    if found.needs != "completions":
        raise hinted(
            ValueError(f"the judge {found.name!r} needs {found.needs}, and a judge reads completions"),
            "take a reward of completions, or a function of completions_a and completions_b",
        )
    alone = replace(found, rowwise=False)  # both sides in one call would be two rows where one is asked for
    own = inspect.signature(found.function).parameters
    compares = all(name in own for name in _PAIR)

    def call(**given: Any) -> list[float | None]:
        return _wins(alone, compares, given)

    # Its parameters are the judge's, so that it is given, and its scores are kept by, what the judge looks at.
    options = set() if found.stateful else {option.name for option in found.options}
    named = {n: p for n, p in own.items() if n not in (*options, *_PAIR) and p.kind is not p.VAR_POSITIONAL}
    added: dict[str, Any] = dict.fromkeys(("completions", "base_completions"), inspect.Parameter.empty)
    added |= {"base_completion_ids": inspect.Parameter.empty} if "completion_ids" in named else {}
    added |= {"log_metric": None} if compares else {}
    by_name = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter(name, by_name, default=value) for name, value in added.items() if name not in named]
    parameters += [p if p.kind is p.VAR_KEYWORD else p.replace(kind=by_name) for p in named.values()]
    signature = inspect.Signature(sorted(parameters, key=lambda p: p.kind))
    call.__signature__ = signature  # type: ignore[attr-defined]
    call.__wrapped__ = found.function  # type: ignore[attr-defined]
    return replace(
        found,
        name="win-rate",
        function=call,
        options=(),
        values={"judge": judge if isinstance(judge, str) else found.name},
        range=(0.0, 1.0),
        stateful=True,
    )


def _judge(source: Any) -> Objective:
    """The judge as an objective."""
    if not isinstance(source, str) or ":" in source or source in {entry.name for entry in list_objectives()}:
        return get_objective(source)
    if os.path.isdir(source) or (source.count("/") == 1 and not source.endswith(".py") and source[0] not in "./~"):
        return get_objective("reward-model", reward_model=source)
    raise hinted(
        ValueError(f"there is no judge {source!r}"),
        "give the folder or Hub id of a reward model, FILE.py:function, or an objective that needs completions",
    )


def _wins(judge: Objective, compares: bool, given: dict[str, Any]) -> list[float | None]:
    """What each row has: 1, 0 or between; None where the judge knows nothing."""
    written, of_base = given["completions"], given.pop("base_completions")
    differing = [n for n, (one, other) in enumerate(zip(written, of_base, strict=True)) if one != other]
    wins: list[float | None] = [0.5] * len(written)
    if not differing:
        return wins
    sides = {"completions": of_base, "completion_ids": given.pop("base_completion_ids", None)}
    log_metric: Callable[[str, float], None] = given.get("log_metric") or (lambda *_: None)
    # It is called twice, and for some rows: what it would add to columns has no place there.
    given |= {"log_extra": lambda *_: None} if "log_extra" in given else {}
    new = {name: _some(value, differing) for name, value in given.items()}
    old = new | {name: _some(value, differing) for name, value in sides.items() if value is not None}
    if compares:
        texts = new.pop("completions"), old.pop("completions")
        rest, (a, b) = {n: v for n, v in new.items() if n != "completion_ids"}, texts
        calls: list[Mapping[str, Any]] = [
            {**rest, "completions_a": a, "completions_b": b},
            {**rest, "completions_a": b, "completions_b": a},
        ]
    else:
        calls = [new, old]
    first, second = (
        _listed(judge, returned[judge.name]) for returned in judge.returned_for([(len(differing), c) for c in calls])
    )
    judged = {n: (x, y) for n, x, y in zip(differing, first, second, strict=True) if x is not None and y is not None}
    if compares and judged:
        _check(judge, judged)
        log_metric("agreed", _agreed(list(judged.values())))
    for n in differing:
        wins[n] = None
    for n, (x, y) in judged.items():
        wins[n] = min(1.0, max(0.0, 0.5 + (x - y) / 2)) if compares else 0.5 * ((x > y) - (x < y) + 1)
    return wins


def _some(value: Any, places: list[int]) -> Any:
    """What stands there, of a list with something for each row."""
    return [value[n] for n in places] if isinstance(value, list) else value


def _listed(judge: Objective, returned: Any) -> list[float | None]:
    if not isinstance(returned, list):
        raise hinted(ValueError(f"the judge {judge.name!r} returned one number for all"), "return one for each row")
    return returned


def _check(judge: Objective, judged: Mapping[int, tuple[float, float]]) -> None:
    """Refuse what is neither a probability nor 1, 0 or −1."""
    signs = any(value < 0 for pair in judged.values() for value in pair)
    for n, pair in judged.items():
        for value in pair:
            if not (value in (-1, 0, 1) if signs else 0 <= value <= 1):
                raise hinted(
                    ValueError(f"the judge {judge.name!r} returned {value:g} for row {n}"),
                    "return how likely a is better, 0 to 1; or 1, 0 and -1 where a is better, none is, b is",
                )


def _agreed(judged: list[tuple[float, float]]) -> float:
    """The share of pairs of which both orders prefer the same answer, or none."""
    middle = 0.0 if any(value < 0 for pair in judged for value in pair) else 0.5
    verdicts = [((x > middle) - (x < middle), (y < middle) - (y > middle)) for x, y in judged]
    return sum(first == second for first, second in verdicts) / len(verdicts)
