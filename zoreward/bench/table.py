"""A table of what was found: a line for each method, as Markdown, as CSV and as a plot. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoreward.bench.plan import METHODS, Plan, Run
from zoreward.records import ZorewardError

Result = dict[str, Any]
Line = dict[str, Any]

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


def lines_of(plan: Plan, methods: Sequence[str], runs: Sequence[Run], results: Mapping[Run, Result]) -> list[Line]:
    """Return a line for each method of a task, in their order.

    Args:
        plan: the task and its rows.
        methods: of the table.
        runs: those that are reported; a method without any did not fit the memory.
        results: results by run.

    Returns:
        `test` and `dev` are means over seeds; `deviation` is the standard deviation of the test scores over seeds (of a
        sample, n − 1), None with one run; `shown` are rows that went through the model forwards to tune it, `backward`
        those that went backwards too; `seconds` of tuning, the mean, and `peak` in bytes, the greatest.
    """
    task = plan.task.name
    [majority] = [results[run]["test"] for run in runs if run.method == "majority"] or [None]
    counts = {f"{part}_rows": len(getattr(plan.rows, part)) for part in ("train", "dev", "test")}
    lines = []
    for name in methods:
        if name == "majority":
            continue
        runs_of_method = [run for run in runs if run.method == name]
        line: Line = {"task": task, "metric": plan.task.objective, "method": name, "about": METHODS[name].about}
        done = [results[run] for run in runs_of_method if "test" in results[run]]
        if not done or len(done) < len(runs_of_method):
            lines.append({**line, "setting": "out of memory", "majority": majority, **counts})
            continue
        lines.append({**line, **_numbers(name, runs_of_method, done, plan), "majority": majority, **counts})
    return lines


def _numbers(name: str, runs: Sequence[Run], done: Sequence[Result], plan: Plan) -> Line:
    import statistics

    test = [result["test"] for result in done]
    peaks = [result["peak"] for result in done if result["peak"] is not None]
    return {
        "setting": _setting(name, runs[0], done, plan),
        "rate": runs[0].rate,
        "seeds": [run.seed for run in runs] if METHODS[name].seeded else [],
        "test": statistics.mean(test),
        "tests": test,
        "deviation": statistics.stdev(test) if len(test) > 1 else None,
        "dev": statistics.mean(result["dev"] for result in done),
        "shown": max(result["shown"] for result in done),
        "backward": max(result.get("backward", 0) for result in done),
        "seconds": statistics.mean(result["seconds"] for result in done),
        "peak": max(peaks, default=None),
    }


def _setting(name: str, run: Run, done: Sequence[Result], plan: Plan) -> str:
    if name == "shots":
        fit = sum(result["shots"] for result in done) / len(done)
        wanted = plan.settings.shots
        return f"{wanted} shots" + ("" if fit == wanted else f", {fit:.1f} fit")
    if run.rate is None:
        return ""
    steps = sorted({result["step"] for result in done})
    kept_step = f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,}"
    return f"lr {run.rate:g}, step {kept_step}"


def as_markdown(lines: Sequence[Line]) -> str:
    """Return the lines as a table in Markdown, one for each task."""
    tables = []
    for task in dict.fromkeys(line["task"] for line in lines):
        of_task = [line for line in lines if line["task"] == task]
        rows = [COLUMNS, ["---"] * len(COLUMNS), *(_cells(line) for line in of_task)]
        table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        tables.append(f"**{task}**, {of_task[0]['metric']}\n\n{table}\n")
    return "\n".join(tables)


def _cells(line: Line) -> list[str]:
    forward, back = line.get("shown"), line.get("backward")
    peak, seconds = line.get("peak"), line.get("seconds")
    return [
        line["method"],
        line["setting"] or "–",
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
