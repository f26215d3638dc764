"""Which runs a table needs, and which settings the dev rows choose. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zoreward.bench.plan import METHODS, Run

Result = dict[str, Any]


def tries(task: str, rates: Mapping[str, Sequence[float]], seed: int) -> list[Run]:
    """Return the runs that choose: every learning rate of every method that has one, with one seed.

    >>> [str(run) for run in tries("sst2", {"mezo": (1e-6, 1e-5)}, 0)]
    ['sst2 mezo lr 1e-06 seed 0 (chooses)', 'sst2 mezo lr 1e-05 seed 0 (chooses)']
    """
    return [Run(task, name, rate, seed, True) for name, some in rates.items() for rate in some]


def chosen_rate(found: Mapping[Run, Result], tried: Sequence[Run]) -> float | None:
    """Return the learning rate with the best dev score, of equals the smallest; None where there is none to choose.

    Args:
        found: results by run.
        tried: the runs of one method that choose. One that did not fit the memory loses to every other.
    """
    if not tried:
        return None
    return max(sorted(tried, key=lambda run: run.rate or 0.0), key=lambda run: _dev(found[run])).rate


def finals(
    task: str, methods: Sequence[str], tried: Sequence[Run], found: Mapping[Run, Result], seeds: Sequence[int]
) -> list[Run]:
    """Return the runs that are reported: every method with its rate, once for each seed that changes something.

    A method of which no run fitted the memory has none.
    """
    runs = []
    for name in methods:
        own = [run for run in tried if run.method == name]
        if not own or any("dev" in found[run] for run in own):
            rate = chosen_rate(found, own)
            runs += [Run(task, name, rate, seed, False) for seed in (seeds if METHODS[name].seeded else seeds[:1])]
    return runs


def _dev(result: Result) -> float:
    return float(result.get("dev", float("-inf")))
