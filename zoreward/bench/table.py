"""A table of what was found: a line for each method, as Markdown, as CSV and as a plot. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoreward.bench.plan import METHODS, Plan, Run
from zoreward.records import ZorewardError

Result = dict[str, Any]
Line = dict[str, Any]

# Characters that the settings of a method should have beside one another in a terminal.
_LINE = 20
COLUMNS = (
    "method",
    "setting",
    "test",
    "±",
    "dev",
    "majority",
    "train/dev/test",
    "rows shown",
    "seconds",
    "peak memory",
)


def lines_of(plan: Plan, runs: Mapping[str, Sequence[Run]], seeds: int, results: Mapping[Run, Result]) -> list[Line]:
    """Return a line for each method of a task, in their order.

    Args:
        plan: the task and its rows.
        runs: of each method, as far as they are known.
        seeds: how many there are to be.
        results: results by run, of those that are done or failed.

    Returns:
        `test` and `dev` are means over seeds; `deviation` is the standard deviation of the test scores over seeds (of a
        sample, n − 1), None with one run; `shown` are rows that went through the model forwards to tune it, `backward`
        those that went backwards too; `seconds` of tuning, the mean, and `peak` in bytes, the greatest. Of a method
        without a run that ended well, only `setting`, which says why.
    """
    majority = [results[run].get("test") for run in runs.get("majority", ()) if run in results] or [None]
    counts = {f"{part}_rows": len(getattr(plan.rows, part)) for part in ("train", "dev", "test")}
    lines = []
    for name, of_method in runs.items():
        if name == "majority":
            continue
        line: Line = {"task": plan.task.name, "metric": plan.task.objective, "method": name}
        line["about"] = METHODS[name].about
        done = {run: results[run] for run in of_method if "test" in results.get(run, {})}
        notes = list(dict.fromkeys(results[run]["error"] for run in of_method if "error" in results.get(run, {})))
        wanted = seeds if METHODS[name].seeded else 1
        if len(done) < wanted:
            notes.insert(0, f"{len(done)} of {wanted} seeds" if done else "failed" if notes else "not run")
        if done:
            line |= _numbers(name, done, plan)
            notes.insert(0, line["setting"])
        line["setting"] = "; ".join(filter(None, notes))
        lines.append({**line, "majority": majority[0], **counts})
    return lines


def _numbers(name: str, done: Mapping[Run, Result], plan: Plan) -> Line:
    import statistics

    results = list(done.values())
    test = [result["test"] for result in results]
    peaks = [result["peak"] for result in results if result["peak"] is not None]
    return {
        "setting": _setting(name, results, plan),
        "rate": results[0].get("rate"),
        "found": results[0].get("found", False),
        "seeds": [run.seed for run in done] if METHODS[name].seeded else [],
        "test": statistics.mean(test),
        "tests": test,
        "deviation": statistics.stdev(test) if len(test) > 1 else None,
        "dev": statistics.mean(result["dev"] for result in results),
        "shown": max(result["shown"] for result in results),
        "backward": max(result.get("backward", 0) for result in results),
        "seconds": statistics.mean(result["seconds"] for result in results),
        "peak": max(peaks, default=None),
    }


def _setting(name: str, done: Sequence[Result], plan: Plan) -> str:
    if name == "shots":
        fit = sum(result["shots"] for result in done) / len(done)
        wanted = plan.settings.shots
        return f"{wanted} shots" + ("" if fit == wanted else f", {fit:.1f} fit")
    if not METHODS[name].tunes:
        return ""
    how = f" (best of {len(done[0]['tried'])})" if len(done[0]["tried"]) > 1 else ""
    how = " (found)" if done[0].get("found") else how
    how = " (a guess)" if any(result.get("guess") for result in done) else how
    parts = [f"lr {_span(done, 'rate')}{how}"]
    parts += [f"eps {_span(done, 'eps')}"] if "eps" in done[0] else []
    return ", ".join([*parts, f"step {_span(done, 'step', ',')} of {_span(done, 'steps', ',')}"])


def _span(results: Sequence[Result], name: str, how: str = ".3g") -> str:
    """One value, or the least and the greatest.

    >>> _span([{"step": 250}, {"step": 1000}], "step", ",")
    '250 to 1,000'
    """
    values = sorted({result[name] for result in results})
    return " to ".join(f"{value:{how}}" for value in dict.fromkeys((values[0], values[-1])))


def as_markdown(lines: Sequence[Line]) -> str:
    """Return the lines as a table in Markdown, one for each task."""
    tables = []
    for task in dict.fromkeys(line["task"] for line in lines):
        of_task = [line for line in lines if line["task"] == task]
        rows = [COLUMNS, ["---"] * len(COLUMNS), *(_cells(line) for line in of_task)]
        table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        tables.append(f"**{task}**, {of_task[0]['metric']}\n\n{table}\n")
    return "\n".join(tables)


def fitting(lines: Sequence[Line], width: int) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows of a table of one task for a terminal: without columns that are empty, and of a narrow one
    without those that matter least. The files of the table have them all.

    Args:
        lines: of the task.
        width: of the terminal.
    """
    rows = [_cells(line) for line in lines]
    kept = [n for n in range(len(COLUMNS)) if any(row[n] != "–" for row in rows)]
    # What a table takes at least: the words of a cell may stand below one another.
    least = {n: 3 + max(len(word) for row in [COLUMNS, *rows] for word in row[n].split()) for n in kept}
    for name in ("train/dev/test", "peak memory", "rows shown", "majority", "seconds", "±"):
        if 1 + _LINE + sum(least[n] for n in kept) > width:
            kept = [n for n in kept if COLUMNS[n] != name]
    return [COLUMNS[n] for n in kept], [[row[n] for n in kept] for row in rows]


def _cells(line: Line) -> list[str]:
    forward, back = line.get("shown"), line.get("backward")
    peak, seconds = line.get("peak"), line.get("seconds")
    return [
        line["method"],
        line["setting"].replace("|", "\\|") or "–",
        _score(line.get("test")),
        _score(line.get("deviation")),
        _score(line.get("dev")),
        _score(line["majority"]),
        "/".join(f"{line[f'{part}_rows']:,}" for part in ("train", "dev", "test")),
        f"{forward:,}{', and back' if back else ''}" if forward else "–",
        "–" if seconds is None else f"{seconds:.1f}",
        "–" if peak is None else f"{peak / 2**20:,.0f} MiB",
    ]


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def as_csv(lines: Sequence[Line]) -> str:
    """Return the lines as CSV, every number in full; several in one cell have spaces between."""
    import csv
    import io

    names = list(dict.fromkeys(name for line in lines for name in line if name != "about"))
    file = io.StringIO()
    writer = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({name: " ".join(map(str, v)) if isinstance(v, list) else v for name, v in line.items()})
    return file.getvalue()


def draw(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw test scores, a panel for each task: means, each seed, and the most frequent answer as a line.

    Raises:
        ZorewardError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise ZorewardError("there is no plot: matplotlib is not installed", hint="pip install matplotlib") from None
    matplotlib.use("agg")
    from matplotlib import pyplot

    tasks = list(dict.fromkeys(line["task"] for line in lines))
    figure, panels = pyplot.subplots(1, len(tasks), figsize=(1 + 4.5 * len(tasks), 3.5), squeeze=False)
    for task, axes in zip(tasks, panels[0], strict=True):
        of_task = [line for line in lines if line["task"] == task and "test" in line]
        for place, line in enumerate(of_task):
            axes.barh(place, line["test"], color="tab:blue", alpha=0.6)
            axes.plot(line["tests"], [place] * len(line["tests"]), "k.", markersize=4)
        if of_task and of_task[0]["majority"] is not None:
            axes.axvline(of_task[0]["majority"], color="tab:red", linestyle="--", linewidth=1)
        axes.set_yticks(range(len(of_task)), [line["method"] for line in of_task])
        axes.invert_yaxis()
        axes.set(title=task, xlabel=f"{of_task[0]['metric']} on the test rows" if of_task else "")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
