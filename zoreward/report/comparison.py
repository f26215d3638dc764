"""The page of several runs: their dev scores in one chart, what they differ in, and what came of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoreward.records import InputError
from zoreward.report.charts import Curve, chart, smoothed
from zoreward.report.facts import Facts
from zoreward.report.page import dev_curves, masked
from zoreward.report.pieces import code, save_page, seconds, section, short, table, text

COMPARISON_NAME = "comparison.html"
# Colours, and after these the same ones dashed, and dotted.
_COLOURS, _DASHES = 6, ("", " d1", " d2")
# What differs in every two runs, or follows from something else.
_LEFT_OUT = ("output_dir", "run_name", "disable_tqdm", "logging_dir")


def write_comparison(path: str | Path, runs: Sequence[Facts]) -> None:
    """Write the page that compares runs.

    Args:
        path: of the page.
        runs: two or more.

    Raises:
        InputError: two runs are one; or another file has its name.
        OSError: it cannot be written.
    """
    places = [Path(one.path).resolve() for one in runs]
    for one, place in zip(runs, places, strict=True):
        if places.count(place) > 1:
            raise InputError(f"the run {one.path} is given twice", hint="give each run once")
    save_page(path, "Comparison of runs", comparison_of(runs))


def comparison_of(runs: Sequence[Facts]) -> str:
    """Return what stands on the page of several runs, as HTML."""
    names = _names(runs)
    lead = f'<p class="lead">{", ".join(code(name) for name in names)}</p>'
    objectives = list(dict.fromkeys(one.objective for one in runs))
    charts = [_chart(objective, runs, names) for objective in objectives]
    several = len(objectives) > 1 and '<p class="soft">Scores of different objectives are not to be compared.</p>'
    return "".join(
        [
            f"<header><h1>{len(runs)} runs beside each other</h1>{lead}</header>",
            section("Scores", several or "", *charts, _results(runs, names)),
            section("Options that differ", _differences(runs, names)),
            "<footer>Written by zoreward from the files of the runs. Nothing is loaded, and no script runs.</footer>",
        ]
    )


def differing(runs: Sequence[Facts]) -> dict[str, list[Any]]:
    """Return the options in which runs differ: name → the value in each, None where a run has its default.

    Args:
        runs: two or more.
    """
    told = [_options(one) for one in runs]
    names = dict.fromkeys(name for options in told for name in options)
    values = {name: [options.get(name) for options in told] for name in names}
    return {name: found for name, found in values.items() if any(value != found[0] for value in found)}


def _options(facts: Facts) -> dict[str, Any]:
    header = facts.header
    found: dict[str, Any] = {"model": facts.model, "objective": facts.objective}
    for part in ("options", "method", "config"):
        if isinstance(options := header.get(part), Mapping):
            prefix = "objective: " if part == "options" else "method: " if part == "method" else ""
            found |= {f"{prefix}{name}": masked(name, value) for name, value in options.items()}
    same = {
        "lr": "learning_rate",
        "name": "method",
        **{name: name for name in ("seed", "eps", "num_directions", "rank")},
    }
    for name, other in same.items():  # said by both
        if other in found:
            found.pop(f"method: {name}", None)
    if isinstance(versions := header.get("versions"), Mapping):
        found |= {f"version of {name}": value for name, value in versions.items()}
    rows = facts.session.get("rows")
    found |= dict(rows) if isinstance(rows, Mapping) else {}
    return {name: value for name, value in found.items() if name not in _LEFT_OUT}


def _names(runs: Sequence[Facts]) -> list[str]:
    """Their last parts, where these tell them apart; else their paths."""
    short_names = [one.name for one in runs]
    return short_names if len(set(short_names)) == len(runs) else [one.path for one in runs]


def _style(place: int) -> str:
    return f"c{place % _COLOURS}{_DASHES[place // _COLOURS % len(_DASHES)]}"


def _chart(objective: str, runs: Sequence[Facts], names: Sequence[str]) -> str:
    curves: list[Curve] = []
    for place, (one, name) in enumerate(zip(runs, names, strict=True)):
        if one.objective != objective:
            continue
        if one.dev:
            curves += dev_curves(one, name, _style(place))
        else:
            points = [(float(step), own.score) for step, own in enumerate(one.steps, 1) if own.score is not None]
            width = max(5, len(points) // 10)
            curves.append(Curve(f"{name}: batches, mean of {width}", [smoothed(points, width)], _style(place)))
    return chart(curves, title=f"{objective} over steps", height=340)


def _results(runs: Sequence[Facts], names: Sequence[str]) -> str:
    heads = [
        "run",
        "steps",
        "before",
        "kept or best",
        "± standard error",
        "after step",
        "silent",
        "rewinds",
        "time",
        "passes",
    ]
    rows = []
    for name, one in zip(names, runs, strict=True):
        first, shown, n = one.first, one.shown, len(one.steps)
        cells = [text(name), f"{n:,}", short(first.score if first else None), short(shown.score if shown else None)]
        cells += [
            short(shown.error if shown else None),
            f"{shown.step:,}" if shown else "–",
            f"{one.n_silent / n:.0%}" if n else "–",
        ]
        rows.append([*cells, str(len(one.rewinds)), seconds(one.seconds), f"{one.passes:,}"])
    return table(heads, rows, style="numbers")


def _differences(runs: Sequence[Facts], names: Sequence[str]) -> str:
    found = differing(runs)
    if not found:
        return "<p>none: these runs were made alike.</p>"
    rows = [
        [text(name), *(code("–" if value is None else value) for value in values)] for name, values in found.items()
    ]
    return table(["", *map(text, names)], rows)
