"""How runs are done: one after the other, or side by side. Free of torch itself."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from zoreward.bench.plan import Plan, Run
from zoreward.bench.results import Result, Results
from zoreward.records import ZorewardError, named, one_line
from zoreward.registry import place_of

T = TypeVar("T")
# Characters of what a run fails with.
_LONGEST = 300


def run_all(
    runs: Sequence[Run],
    plans: Mapping[str, Plan],
    results: Results,
    *,
    jobs: int = 1,
    gpus: Sequence[str] = (),
    tell: Callable[[str], None] = print,
) -> None:
    """Do the runs that are not done yet, and write each down as it ends. One that fails is told, and others go on.

    Args:
        runs: which.
        plans: by the names of their tasks.
        results: what is done, and where to write.
        jobs: how many run side by side, each in a process of its own.
        gpus: those of the machine, as CUDA_VISIBLE_DEVICES names them: each process sees one, in turn.
        tell: is given a line for each run.
    """
    missing = [run for run in runs if run not in results.runs]
    start = time.perf_counter()
    for count, (run, result) in enumerate(_done(missing, plans, results.path.parent, jobs, gpus, tell), start=1):
        results.add(run, result)
        spent = time.perf_counter() - start
        left = spent / count * (len(missing) - count)
        tell(f"{count}/{len(missing)} {run}: {_told(result)} · {spent:.0f} s, about {left:.0f} s left")


def _done(
    runs: Sequence[Run],
    plans: Mapping[str, Plan],
    folder: Path,
    jobs: int,
    gpus: Sequence[str],
    tell: Callable[[str], None],
) -> Iterator[tuple[Run, Result]]:
    given = [(run, plans[run.task], folder / "runs" / _name(run), jobs) for run in runs]
    try:
        if jobs == 1 or len(runs) < 2:
            yield from ((arguments[0], _do(*arguments)) for arguments in given)
        else:
            how: dict[str, Any] = {"settle": see_one_of, "settings": (turns(), tuple(gpus))} if len(gpus) > 1 else {}
            yield from ((runs[number], result) for number, result in side_by_side(_do, given, jobs, tell=tell, **how))
    finally:
        with contextlib.suppress(OSError):
            (folder / "runs").rmdir()


def _do(run: Run, plan: Plan, folder: Path, jobs: int) -> Result:
    from transformers.utils import logging

    from zoreward.bench.measuring import do_run, threads_for

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        return do_run(run, plan, folder, threads_for(jobs))
    except (Exception, SystemExit) as error:  # the latter from a model's own code
        told, hint = named(error), place_of(error)
        if isinstance(error, ZorewardError):
            told, hint = str(error), error.hint
        return {"error": one_line(told, _LONGEST), "hint": one_line(hint or "", _LONGEST), "failed": True}


def _name(run: Run) -> str:
    # A task's name may be anything, and two runs side by side must not share a folder.
    task = re.sub(r"[^\w-]", lambda match: f"%{ord(match[0]):x}", run.task)
    return "-".join(map(str, [task, run.method, *run.rates, run.seed]))


def _told(result: Result) -> str:
    if "error" in result:
        return f"failed: {result['error']} ({result['hint']})" if result.get("hint") else result["error"]
    rate = f"lr {result['rate']:g}{' found' if result.get('found') else ''} " if "rate" in result else ""
    return rate + " ".join(f"{name} {result[name]:.4f}" for name in ("dev", "test"))


def turns() -> Any:
    """A number that processes started by this one share, 0 at first."""
    import multiprocessing

    return multiprocessing.get_context("spawn").Value("i", 0)


def see_one_of(turn: Any, gpus: Sequence[str]) -> None:
    """Let this process see one of several GPUs, and each process another, as long as there are more.

    Args:
        turn: of `turns`: how many processes have theirs.
        gpus: as CUDA_VISIBLE_DEVICES names them.
    """
    with turn.get_lock():
        number, turn.value = turn.value, turn.value + 1
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]  # CUDA has not been asked for anything yet


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
                # Not without end, so that whoever ends the command in another thread is heard.
                for future in wait(running, timeout=1.0, return_when=FIRST_COMPLETED).done:
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
            for process in multiprocessing.active_children():  # else this one would wait for their end
                process.terminate()
            raise
    if failed is not None:
        raise failed
