"""What ranks would be worth, from 1 to 64, by what one rank takes for the parts of a step; and where the rest goes.

    python benchmarks/scaling.py --parts --shape opt-1.3b    # first, on the GPU in question; opt-13b too
    python benchmarks/scaling_model.py                       # anywhere

What was not measured so is taken from whole steps of scaling.py, less their update and exchange.

    members split: T_W = s(⌈2K/W⌉, 16 rows) + u(K) + x(W),  T_1 = s(2K, 16 rows) + u(K)
    rows split:    T_W = s(2K, 16 rows) + u(K) + x(W),      T_1 = s(2K, 16·W rows) + u(K),  16 rows for each rank

with the seconds s of scoring some members on some rows, u of an update along K directions and x of all that W ranks
tell each other in a step. s and u are measured at a few sizes and interpolated; beyond the largest they grow in
proportion. x is measured for some numbers of ranks, and grows with W − 1, as gloo's ring does; with no figure of a GPU
machine, those of any other count. T_1 is that of the faster way to cut the work, as in scaling.py: 16·W
rows take one rank at most what W times 16 rows do, or W times as many members, or what was measured.

    efficiency = T_1 / (W · T_W) = 1 − update − exchange − idle − passes

| lost to | | what helps |
|---|---|---|
| update | (W − 1) · u: every rank draws the noise of all directions and writes all weights | low rank; more rows |
| exchange | W · x: what is waited for while ranks tell each other their scores | more rows or members a step |
| idle | ranks that have fewer members than others, or none | K a multiple of W/2; rows split |
| passes | members that share a pass read fewer rows at a time: fewer ranks take longer, or less long, for each | |

It prints tables, and writes all figures into results/scaling_model.csv, and a picture of them beside it.
What dividing the update would save is told with them: each rank would move 1/W of the weights and fetch the others',
2 bytes each, at `--link` GB/s.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from runs import Result, results_in
from scaling import KEY, NOISES, ROWS
from scaling import RESULTS as MEASURED

RANKS = DIRECTIONS = tuple(2**n for n in range(7))
# What is drawn, and in which colour.
LINES = {("rows", 1): "#1b7837", ("members", 8): "#c51b7d", ("members", 32): "#2166ac", ("members", 64): "#b35806"}
OUTPUT = Path(__file__).parent / "results" / "scaling_model.csv"
WEIGHTS = {"opt-1.3b": 1.32e9, "opt-13b": 12.85e9}


@dataclass(frozen=True)
class Costs:
    """What the parts of a step take on one rank, in seconds: of one shape, one kind of directions, rows of one length.

    Args:
        scores: members → to score them on 16 rows.
        updates: directions → to move the weights.
        exchanges: ranks → to tell each other all that is told in a step.
        least: members that share a pass at least: two of low rank.
        rows: rows → to score two members on them as one process does; where it was measured.
    """

    scores: Mapping[int, float]
    updates: Mapping[int, float]
    exchanges: Mapping[int, float]
    least: int = 1
    rows: Mapping[int, float] = field(default_factory=dict)

    def score(self, members: int) -> float:
        """Seconds for so many members that share a pass."""
        return between(self.scores, members)

    def alone(self, directions: int, ranks: int) -> float:
        """Seconds of one rank for the rows of all: by as many passes, or by fuller ones, which take no longer."""
        members = 2 * directions
        found = [ranks * self.score(members), self.score(members * ranks)]
        if directions == 1 and ROWS * ranks >= min(self.rows, default=math.inf):
            found.append(between(self.rows, ROWS * ranks))
        return min(found)

    def update(self, directions: int) -> float:
        """Seconds of an update."""
        return between(self.updates, directions)

    def exchange(self, ranks: int) -> float:
        """Seconds of what ranks tell each other."""
        if ranks == 1 or not self.exchanges:
            return 0.0
        return between({known - 1: seconds for known, seconds in self.exchanges.items()}, ranks - 1)


@dataclass(frozen=True)
class Step:
    """A step of W ranks: what it is worth, and the shares of their time that it loses, which sum up to the rest."""

    split: str
    directions: int
    ranks: int
    seconds: float
    efficiency: float
    update: float
    exchange: float
    idle: float
    passes: float


def between(known: Mapping[int, float], wanted: int) -> float:
    """Return what lies between what is known: on straight lines; beyond the largest in proportion.

    >>> between({1: 2.0, 3: 4.0}, 2), between({1: 2.0, 3: 3.0}, 6), between({2: 3.0}, 1)
    (3.0, 6.0, 3.0)
    """
    sizes = sorted(known)
    if wanted <= sizes[0]:
        return known[sizes[0]]
    if wanted >= sizes[-1]:
        return known[sizes[-1]] * wanted / sizes[-1]
    above = next(size for size in sizes if size >= wanted)
    below = max(size for size in sizes if size < above)
    part = (wanted - below) / (above - below)
    return known[below] + part * (known[above] - known[below])


def simulated(costs: Costs, split: str, directions: int, ranks: int) -> Step | None:
    """Return what a step of so many ranks takes; None where a rank has fewer members than were ever measured.

    >>> costs = Costs({1: 1.0, 2: 2.0, 4: 4.0}, {1: 0.5, 4: 2.0}, {2: 0.25})
    >>> step = simulated(costs, "members", 2, 4)
    >>> step.seconds, round(step.efficiency, 3), step.idle
    (2.75, 0.455, 0.0)
    >>> rows = simulated(costs, "rows", 1, 2)
    >>> rows.seconds, rows.update, round(sum([rows.efficiency, rows.update, rows.exchange, rows.passes]), 6)
    (2.75, 0.09090909090909091, 1.0)
    """
    members, update, exchange = 2 * directions, costs.update(directions), costs.exchange(ranks)
    whole, size = costs.score(members), members if split == "rows" else max(costs.least, -(-members // ranks))
    if size < min(costs.scores):
        return None
    if split == "rows":
        own, passes, alone = whole, ranks, costs.alone(directions, ranks)
    else:
        own, passes = costs.score(size), -(-members // size)
        alone = min(whole, passes * own)
    seconds = own + update + exchange
    spent = ranks * seconds
    return Step(
        split=split,
        directions=directions,
        ranks=ranks,
        seconds=seconds,
        efficiency=(alone + update) / spent,
        update=(ranks - 1) * update / spent,
        exchange=ranks * exchange / spent,
        idle=(ranks - passes) * own / spent,
        passes=(passes * own - alone) / spent,
    )


def costs_in(results: Sequence[Result]) -> Iterator[tuple[str, str, int, Costs]]:
    """Yield shape, noise and tokens of all that was measured, with what it costs."""
    exchanges: dict[bool, dict[int, float]] = {True: {}, False: {}}
    results = [one for one in results if one["split"] != "texts"]  # which cost what writing does
    for one in results:
        if one["what"] == "step" and one["ranks"] > 1 and one["split"] == "members":
            known = exchanges["threads" in one["device"]]
            known[one["ranks"]] = min(one["exchange"], known.get(one["ranks"], one["exchange"]))
    whole = [one for one in results if one["what"] == "step" and one["cut"] == one["ranks"]]
    named = {(one["shape"], one["noise"], one["tokens"]) for one in results if one["what"] == "score"}
    for shape, noise, tokens in sorted(named | {(one["shape"], one["noise"], one["tokens"]) for one in whole}):
        own = [one for one in results if (one["shape"], one["noise"]) == (shape, noise)]
        steps = [one for one in whole if (one["shape"], one["noise"], one["tokens"]) == (shape, noise, tokens)]
        scores = parts_of_steps(steps)[0]
        updates = parts_of_steps([one for one in own if one["what"] == "step"])[1] | {
            one["directions"]: one["seconds"] for one in own if one["what"] == "update"
        }
        scores |= {one["members"]: one["seconds"] for one in own if one["what"] == "score" and one["tokens"] == tokens}
        if updates:
            costs = Costs(scores, updates, exchanges[False] or exchanges[True], 2 if NOISES[noise] else 1)
            alone = [one for one in steps if one["split"] == "rows" and one["ranks"] == 1]
            rows = {one["rows"]: one["seconds"] - one["update"] for one in alone}
            yield shape, noise, tokens, replace(costs, rows=rows)


def parts_of_steps(steps: Sequence[Result]) -> tuple[dict[int, float], dict[int, float]]:
    """Return members → seconds of scoring and directions → seconds of an update, by steps of one pass for each rank.

    What a step takes beside its update and exchange is its scores, and what of them the device does while Python begins
    the next step costs nothing.

    >>> step = {"split": "members", "directions": 4, "ranks": 2, "seconds": 1.0, "update": 0.25, "exchange": 0.25}
    >>> parts_of_steps([step])
    ({4: 0.5}, {4: 0.25})
    """
    scores: dict[int, float] = {}
    updates: dict[int, float] = {}
    for one in steps:
        members = 2 * one["directions"] // (one["ranks"] if one["split"] == "members" else 1)
        took = one["seconds"] - one["update"] - one["exchange"]
        if one["split"] == "members" or one["ranks"] > 1:  # else one rank reads the rows of all
            scores[members] = min(took, scores.get(members, took))
        updates[one["directions"]] = min(one["update"], updates.get(one["directions"], one["update"]))
    return scores, updates


def table(costs: Costs, split: str) -> list[str]:
    """Efficiencies as lines of Markdown: K down, ranks across; behind each below 0.9 what most of the loss is."""
    lines = ["| K | " + " | ".join(f"{ranks} ranks" for ranks in RANKS[1:]) + " |", "|" + "---|" * len(RANKS)]
    for directions in DIRECTIONS:
        cells = [cell(simulated(costs, split, directions, ranks)) for ranks in RANKS[1:]]
        lines.append(f"| {directions} | " + " | ".join(cells) + " |")
    return lines


def cell(step: Step | None) -> str:
    """The efficiency, and what most of a loss is."""
    if step is None:
        return "–"
    reasons = {name: getattr(step, name) for name in ("update", "exchange", "idle", "passes")}
    return f"{step.efficiency:.2f}" + (f" {max(reasons, key=lambda name: reasons[name])}" * (step.efficiency < 0.9))


def divided_update(costs: Costs, weights: float, ranks: int, link: float) -> str:
    """Say what an update along one direction would take if each rank moved its part and fetched the others'."""
    replicated = costs.update(1)
    moved = replicated / ranks + 2 * weights * (ranks - 1) / ranks / (1e9 * link)
    return f"update of one direction: {1e3 * replicated:.3g} ms; divided among {ranks} ranks {1e3 * moved:.3g} ms"


def drawing(found: Mapping[tuple[str, str, int], Costs]) -> str:
    """Efficiency by ranks as SVG: a panel for each shape, noise and length of rows, a line for each K and split."""
    wide, high, gap, across = 190, 140, 50, 4
    lines: list[str] = []
    for number, ((shape, noise, tokens), costs) in enumerate(found.items()):
        left, top = gap + number % across * (wide + gap), 40 + number // across * (high + 60)
        lines.append(f'<g transform="translate({left},{top})"><text y="-8">{shape}, {noise}, {ROWS} × {tokens}</text>')
        lines += [
            f'<path stroke="#ddd" d="M0 {y}H{wide}"/><text x="-24" y="{y + 4}">{level}</text>'
            for level in (0, 0.5, 1)
            for y in [high * (1 - level)]
        ]
        xs = [round(wide * place / (len(RANKS) - 1), 1) for place in range(len(RANKS))]
        lines += [f'<text x="{x - 4}" y="{high + 14}">{ranks}</text>' for x, ranks in zip(xs, RANKS, strict=True)]
        for (split, directions), colour in LINES.items():
            steps = [simulated(costs, split, directions, ranks) for ranks in RANKS]
            points = " ".join(f"{x},{high * (1 - one.efficiency):.1f}" for x, one in zip(xs, steps, strict=True) if one)
            lines.append(f'<polyline stroke="{colour}" stroke-width="1.8" points="{points}"/>')
        lines.append("</g>")
    bottom = 40 + -(-len(found) // across) * (high + 60)
    for place, ((split, directions), colour) in enumerate(LINES.items()):
        lines.append(
            f'<text x="{gap + 170 * place}" y="{bottom}" style="fill: {colour}">{split} split, K = {directions}</text>'
        )
    size = f'width="{gap + across * (wide + gap)}" height="{bottom + 20}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">'
    style = "<style>text {fill: #333} polyline {fill: none}</style>"
    return "\n".join([head, style, '<rect width="100%" height="100%" fill="white"/>', *lines, "</svg>"])


def main() -> None:
    """Simulate, print, write and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measured", type=Path, default=MEASURED, help="what scaling.py wrote")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--link", type=float, default=450.0, help="GB/s from one GPU to another; NVLink 4: 450")
    options = parser.parse_args()
    found = {(shape, *rest): costs for shape, *rest, costs in costs_in([*results_in(options.measured, *KEY).values()])}
    if not found:
        raise SystemExit(f"{options.measured} has no parts: run scaling.py --parts first")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with options.output.open("w", newline="", encoding="utf-8") as opened:
        rows = csv.writer(opened)
        rows.writerow(["shape", "noise", "tokens", *Step.__dataclass_fields__])
        for key, costs in found.items():
            for split, directions, ranks in itertools.product(("members", "rows"), DIRECTIONS, RANKS):
                step = simulated(costs, split, directions, ranks)
                values = asdict(step).values() if step else ()
                if values:
                    rows.writerow([*key, *(f"{value:.4g}" if isinstance(value, float) else value for value in values)])
    for (shape, noise, tokens), costs in found.items():
        for split in ("members", "rows"):
            rows_told = f"{ROWS} rows" if split == "members" else f"{ROWS} rows for each rank"
            print(f"\n{shape}, {noise}, {rows_told} of {tokens} tokens, {split} split\n")
            print("\n".join(table(costs, split)))
        if shape in WEIGHTS:
            print("\n" + divided_update(costs, WEIGHTS[shape], 8, options.link))
    options.output.with_suffix(".svg").write_text(drawing(found), encoding="utf-8")  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
