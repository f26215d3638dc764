"""The runs of a table, one after the other or side by side. Free of torch itself."""

from __future__ import annotations

import contextlib
import itertools
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from zoreward.bench.plan import Plan, Run
from zoreward.bench.processes import side_by_side
from zoreward.bench.results import Results

Result = dict[str, Any]


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
        yield from ((one[0], _do(*one)) for one in given)
    else:
        yield from ((runs[number], result) for number, result in side_by_side(_do, given, jobs, tell=tell))
    with contextlib.suppress(OSError):
        (folder / "runs").rmdir()


def _plan_for(run: Run, plan: Plan) -> Plan:
    return replace(plan, rows=replace(plan.rows, test=[])) if run.chooses else plan


def _do(run: Run, plan: Plan, folder: Path, jobs: int) -> Result:
    from transformers.utils import logging

    from zoreward.bench.running import do_run, threads_for

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return do_run(run, plan, folder, threads_for(jobs))


def _name(run: Run) -> str:
    # A task's name may be anything, and two runs side by side must not share a folder.
    task = re.sub(r"[^\w-]", lambda found: f"%{ord(found[0]):x}", run.task)
    parts = [task, run.method, run.rate, run.seed, "chooses" if run.chooses else "reported"]
    return "-".join(str(part) for part in parts if part is not None)


def _told(result: Result) -> str:
    if "error" in result:
        return str(result["error"])
    names = [name for name in ("dev", "test") if name in result]
    return " ".join(itertools.chain.from_iterable((name, f"{result[name]:.4f}") for name in names))
