"""Which runs a table needs, what the dev rows choose, and how runs are done: one after the other, or side by side.

Free of torch itself.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from zoreward.bench.plan import METHODS, Plan, Run
from zoreward.bench.results import Results

Result = dict[str, Any]
T = TypeVar("T")


def tries(task: str, rates: Mapping[str, Sequence[float]], seed: int) -> list[Run]:
    """Return the runs that choose: every learning rate of every method that has one, with one seed.

    >>> [str(run) for run in tries("sst2", {"mezo": (1e-6, 1e-5)}, 0)]
    ['sst2 mezo lr 1e-06 seed 0 (chooses)', 'sst2 mezo lr 1e-05 seed 0 (chooses)']
    """
    return [Run(task, name, rate, seed, True) for name, of_method in rates.items() for rate in of_method]


def chosen_rate(results: Mapping[Run, Result], tried: Sequence[Run]) -> float | None:
    """Return the learning rate with the best dev score, of equals the smallest; None where there is none to choose.

    Args:
        results: results by run.
        tried: the runs of one method that choose. One that did not fit the memory loses to every other.
    """
    if not tried:
        return None
    return max(sorted(tried, key=lambda run: run.rate or 0.0), key=lambda run: _dev(results[run])).rate


def finals(
    task: str, methods: Sequence[str], tried: Sequence[Run], results: Mapping[Run, Result], seeds: Sequence[int]
) -> list[Run]:
    """Return the runs that are reported: every method with its rate, once for each seed that changes something.

    A method of which no run fitted the memory has none.
    """
    runs = []
    for name in methods:
        tries_of_method = [run for run in tried if run.method == name]
        if not tries_of_method or any("dev" in results[run] for run in tries_of_method):
            rate = chosen_rate(results, tries_of_method)
            runs += [Run(task, name, rate, seed, False) for seed in (seeds if METHODS[name].seeded else seeds[:1])]
    return runs


def _dev(result: Result) -> float:
    return float(result.get("dev", float("-inf")))


def run_all(
    runs: Sequence[Run],
    plans: Mapping[str, Plan],
    results: Results,
    *,
    jobs: int = 1,
    tell: Callable[[str], None] = print,
) -> None:
    """Do the runs that are not done yet, and write each down as it ends.

    Args:
        runs: which.
        plans: by the names of their tasks. A run that chooses is given its plan without the test rows.
        results: what is done, and where to write.
        jobs: how many run side by side, each in a process of its own.
        tell: is given a line for each run.

    Raises:
        ZorewardError: a run failed. Those that ended before it are kept, and those that went on beside it.
    """
    missing = [run for run in runs if run not in results.runs]
    start = time.perf_counter()
    for count, (run, result) in enumerate(_done(missing, plans, results.path.parent, jobs, tell), start=1):
        results.add(run, result)
        spent = time.perf_counter() - start
        left = spent / count * (len(missing) - count)
        tell(f"{count}/{len(missing)} {run}: {_told(result)} · {spent:.0f} s, {left:.0f} s left")


def _done(
    runs: Sequence[Run], plans: Mapping[str, Plan], folder: Path, jobs: int, tell: Callable[[str], None]
) -> Iterator[tuple[Run, Result]]:
    given = [(run, _plan_for(run, plans[run.task]), folder / "runs" / _name(run), jobs) for run in runs]
    if jobs == 1 or len(runs) < 2:
        yield from ((arguments[0], _do(*arguments)) for arguments in given)
    else:
        yield from ((runs[number], result) for number, result in side_by_side(_do, given, jobs, tell=tell))
    with contextlib.suppress(OSError):
        (folder / "runs").rmdir()


def _plan_for(run: Run, plan: Plan) -> Plan:
    return replace(plan, rows=replace(plan.rows, test=[])) if run.chooses else plan


def _do(run: Run, plan: Plan, folder: Path, jobs: int) -> Result:
    from transformers.utils import logging

    from zoreward.bench.measuring import do_run, threads_for

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return do_run(run, plan, folder, threads_for(jobs))


def _name(run: Run) -> str:
    # A task's name may be anything, and two runs side by side must not share a folder.
    task = re.sub(r"[^\w-]", lambda match: f"%{ord(match[0]):x}", run.task)
    parts = [task, run.method, run.rate, run.seed, "chooses" if run.chooses else "reported"]
    return "-".join(str(part) for part in parts if part is not None)


def _told(result: Result) -> str:
    if "error" in result:
        return str(result["error"])
    names = [name for name in ("dev", "test") if name in result]
    return " ".join(itertools.chain.from_iterable((name, f"{result[name]:.4f}") for name in names))


def side_by_side(
    work: Callable[..., T],
    given: Sequence[tuple[Any, ...]],
    jobs: int,
    *,
    tell: Callable[[str], None] = print,
    settle: Callable[..., None] | None = None,
    settings: tuple[Any, ...] = (),
) -> Iterator[tuple[int, T]]:
    """Call a function with each of some arguments, in other processes; yield which call ended, and its result.

    Where one fails no more are begun; what is under way goes on to its end and is yielded, then the error is raised.

    Args:
        work: a function that another process can import.
        given: the arguments of each call.
        jobs: how many calls at a time; a process is used again.
        tell: is given a line if a call fails while others are under way.
        settle: is called first of all in each process, with `settings`.

    Raises:
        Exception: the first that a call raised.
    """
    import multiprocessing  # slow to import, and the help needs none of it
    from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait

    waiting = list(enumerate(given))[::-1]
    running: dict[Future[T], int] = {}
    failed: Exception | None = None
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), settle, settings) as pool:
        try:
            while running or (waiting and failed is None):
                # No more than can begin: what a pool has taken in cannot be taken back.
                while waiting and failed is None and len(running) < jobs:
                    number, arguments = waiting.pop()
                    running[pool.submit(work, *arguments)] = number
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    number = running.pop(future)
                    error = future.exception()
                    if error is None:
                        yield number, future.result()
                    elif not isinstance(error, Exception):
                        raise error
                    elif failed is None:
                        failed = error
                        if running:
                            tell(f"one failed; {len(running)} beside it to wait for")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if failed is not None:
        raise failed
