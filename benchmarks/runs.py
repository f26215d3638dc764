"""Runs that go on where they stopped: results in a file, one JSON object a line. Free of torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from zoreward.bench.driver import side_by_side

Result = dict[str, Any]


def results_in(path: Path, *names: str) -> dict[tuple[Any, ...], Result]:
    """Return the results in a file, by their values of these names; of equals the last. No file: none.

    A last line that a kill tore is left out.
    """
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    lines = text.rpartition("\n")[0].splitlines()
    return {tuple(one[name] for name in names): one for one in map(json.loads, lines)}


def do_runs(
    path: Path,
    work: Callable[..., list[Result]],
    given: Sequence[tuple[Any, ...]],
    jobs: int,
    *,
    settle: Callable[..., None] | None = None,
    settings: tuple[Any, ...] = (),
) -> Iterator[Result]:
    """Do runs side by side, each in another process; append what each results in to a file, and yield it.

    Where a run fails, those beside it go on to their end and are written down; then its error is raised.

    Args:
        path: the file. A last line that a kill tore is cut off.
        work: does a run; a function at the top of a module.
        given: its arguments for each run: those that are missing, as `results_in` tells.
        jobs: runs at a time.
        settle: is called first in each process, with `settings`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        torn = (text := path.read_bytes()).rpartition(b"\n")[2]
        with path.open("rb+") as whole:
            whole.truncate(len(text) - len(torn))
    for _, results in side_by_side(work, given, jobs, settle=settle, settings=settings):
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(one) + "\n" for one in results))
        yield from results
