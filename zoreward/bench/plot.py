"""A plot of a table. matplotlib is imported where it is used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoreward.records import ZorewardError


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
        own = [line for line in lines if line["task"] == task and "test" in line]
        for place, line in enumerate(own):
            axes.barh(place, line["test"], color="tab:blue", alpha=0.6)
            axes.plot(line["tests"], [place] * len(line["tests"]), "k.", markersize=4)
        if own and own[0]["majority"] is not None:
            axes.axvline(own[0]["majority"], color="tab:red", linestyle="--", linewidth=1)
        axes.set_yticks(range(len(own)), [line["method"] for line in own])
        axes.invert_yaxis()
        axes.set(title=task, xlabel=f"{own[0]['metric']} on the test rows" if own else "")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
