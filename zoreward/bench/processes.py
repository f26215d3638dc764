"""Calls side by side, each in a process of its own. Free of torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


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
