"""Charts as HTML that needs no script and keeps its letters readable at every width.

The curves are an SVG that is stretched to its box, with strokes that are not; what is written stands around it as HTML.
A dot is a stroke of length 0 with a round cap, since a circle would be stretched.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from zoreward.report.pieces import attribute, number, text

Point = tuple[float, float]

WIDTH, HEIGHT = 1000, 400
"""Of the coordinates inside; on the page the box has other sizes."""
MOST_POINTS = 400
"""Of a curve: more are put together, several neighbours as their mean."""


@dataclass(frozen=True, slots=True)
class Curve:
    """What is drawn in one colour.

    Args:
        name: for the legend; "" keeps it out.
        pieces: lists of points, each of which is joined by a line.
        style: the class in the style sheet: `batch`, `c0`, `c1 d1`, ….
        kind: `line`; `dots`, small and many; or `marks`, which say their numbers where a mouse rests on them.
        errors: of marks: the standard errors of the points, None where one has none.
        counts: whether the axis goes by it; see `_axes`.
    """

    name: str
    pieces: Sequence[Sequence[Point]]
    style: str
    kind: Literal["line", "dots", "marks"] = "line"
    errors: Sequence[Sequence[float | None]] = ()
    counts: bool = True


@dataclass(frozen=True, slots=True)
class Mark:
    """A vertical line with a word at its top.

    Args:
        x: where.
        label: the word.
        style: `rewind` or `kept`.
    """

    x: float
    label: str
    style: Literal["rewind", "kept"]


@dataclass(frozen=True, slots=True)
class Axes:
    """The span of a chart. What lies outside is cut off.

    Args:
        left, right, low, high: of the two axes.
    """

    left: float
    right: float
    low: float
    high: float

    def at(self, point: Point) -> str:
        """Return a point in the coordinates inside."""
        x = (point[0] - self.left) / (self.right - self.left) * WIDTH
        y = (self.high - point[1]) / (self.high - self.low) * HEIGHT
        return f"{x:.1f} {min(max(y, -HEIGHT), 2 * HEIGHT):.1f}"


def chart(
    curves: Sequence[Curve], *, title: str, marks: Sequence[Mark] = (), ring: Point | None = None, height: int = 300
) -> str:
    """Return a chart over the steps; "" where there is nothing to draw.

    Args:
        curves: what is drawn, the last on top.
        title: stands above it, and is read out in the place of the picture.
        marks: vertical lines.
        ring: a point around which a ring is drawn.
        height: of the box, in pixels.
    """
    axes = _axes(curves)
    if axes is None:
        return ""
    ticks_y, ticks_x = ticks(axes.low, axes.high, 5), [x for x in ticks(axes.left, axes.right, 6) if x == int(x)]
    lines = [f'<path class="grid" d="M{axes.at((axes.left, y))}L{axes.at((axes.right, y))}"/>' for y in ticks_y]
    for mark in marks:
        lines.append(f'<path class="{mark.style}" d="M{axes.at((mark.x, axes.low))}L{axes.at((mark.x, axes.high))}"/>')
    lines += [part for curve in curves for part in _drawn(curve, axes)]
    if ring is not None:
        lines += [f'<path class="ring" d="M{axes.at(ring)}h0"/>', f'<path class="hole" d="M{axes.at(ring)}h0"/>']
    legend = [
        f'<span class="key {curve.kind} {attribute(curve.style)}"><i></i>{text(curve.name)}</span>'
        for curve in curves
        if curve.name
    ]
    legend += ['<span class="key ring"><i></i>kept</span>'] if ring is not None else []
    written = [
        f'<b class="y" style="top:{_share(axes.high - y, axes.high - axes.low)}">{text(tick_name(y, ticks_y))}</b>'
        for y in ticks_y
    ]
    written += [
        f'<b class="x" style="left:{_share(x - axes.left, axes.right - axes.left)}">{int(x):,}</b>' for x in ticks_x
    ]
    written += [_label(mark, axes) for mark in marks if mark.label]
    picture = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" aria-label="{attribute(title)}">'
        f"{''.join(lines)}</svg>"
    )
    return (
        f'<figure><figcaption>{text(title)}<span class="legend">{"".join(legend)}</span></figcaption>'
        f'<div class="plot" style="height:{height}px">{picture}{"".join(written)}</div></figure>'
    )


def thinned(points: Sequence[Point]) -> list[Point]:
    """Return at most `MOST_POINTS` points: the means of neighbours.

    >>> len(thinned([(x, 1.0) for x in range(1000)])), thinned([(0, 1.0), (1, 2.0)])
    (334, [(0, 1.0), (1, 2.0)])
    """
    size = math.ceil(len(points) / MOST_POINTS)
    if size <= 1:
        return list(points)
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [(fmean(x for x, _ in part), fmean(y for _, y in part)) for part in parts]


def smoothed(points: Sequence[Point], width: int) -> list[Point]:
    """Return the running mean of `width` points, the last of them at its place; thinned.

    >>> smoothed([(1, 0.0), (2, 1.0), (3, 2.0)], 2)
    [(1, 0.0), (2, 0.5), (3, 1.5)]
    """
    total, found = 0.0, []
    for place, (x, y) in enumerate(points):
        total += y - (points[place - width][1] if place >= width else 0.0)
        found.append((x, total / min(place + 1, width)))
    return thinned(found)


def ticks(low: float, high: float, about: int) -> list[float]:
    """Return round numbers between two others.

    >>> ticks(0.13, 0.92, 5), ticks(0, 150, 4)
    ([0.2, 0.4, 0.6, 0.8], [0.0, 50.0, 100.0, 150.0])
    """
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((one * power for one in (1, 2, 2.5, 5) if one * power >= rough), 10 * power)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(place * step, 12) for place in range(first, last + 1)]


def tick_name(value: float, among: Sequence[float]) -> str:
    """Return how a tick is written, with as many decimals as its neighbours need.

    >>> tick_name(0.5, [0.5, 0.55]), tick_name(2000, [0, 2000])
    ('0.50', '2,000')
    """
    largest = max(map(abs, among))
    if largest >= 1e6 or 0 < largest < 1e-3:
        return f"{value:.2g}"
    decimals = max((len(f"{one:.6f}".rstrip("0").partition(".")[2]) for one in among), default=0)
    return f"{value:,.{decimals}f}".replace("-", "−")


def _axes(curves: Sequence[Curve]) -> Axes | None:
    """The span of a chart: all of the curves that count, and of the others what lies within as much again on each side.

    Those are single batches, and steps that were taken back: they may lie so far off that all else would be flat.
    """
    counting: list[float] = []
    others: list[float] = []
    right = 1.0  # from step 0 on, so that the charts of a run have one axis
    for curve in curves:
        values = counting if curve.counts else others
        for piece in curve.pieces:
            right = max([right, *(x for x, _ in piece)])
            values += [y for _, y in piece]
        for piece, errors in zip(curve.pieces, curve.errors, strict=False):
            values += [y + s * (e or 0.0) for (_, y), e in zip(piece, errors, strict=True) for s in (-1, 1)]
    if not counting and not others:
        return None
    counting = counting if counting and max(counting) > min(counting) else counting + others
    low, high = min(counting), max(counting)
    room = high - low
    low, high = max(low - room, min([low, *others])), min(high + room, max([high, *others]))
    room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return Axes(-0.02 * right, 1.02 * right, low - room, high + room)


def _drawn(curve: Curve, axes: Axes) -> list[str]:
    style = attribute(curve.style)
    if curve.kind == "line":
        pieces = [piece for piece in curve.pieces if len(piece) > 1]
        return [f'<path class="line {style}" d="M{"L".join(map(axes.at, piece))}"/>' for piece in pieces]
    if curve.kind == "dots":
        dots = "".join(f"M{axes.at(one)}h0" for piece in curve.pieces for one in piece)
        return [f'<path class="dots {style}" d="{dots}"/>']
    bars, marks = [], []
    for piece, errors in zip(curve.pieces, curve.errors, strict=True):
        for (x, y), error in zip(piece, errors, strict=True):
            if error:
                bars.append(f'<path class="error {style}" d="M{axes.at((x, y - error))}L{axes.at((x, y + error))}"/>')
            told = f"step {x:g}: {number(y)}" + (f" ± {number(error)}" if error else "")
            marks.append(f'<path class="dot {style}" d="M{axes.at((x, y))}h0"><title>{text(told)}</title></path>')
    return bars + marks


def _label(mark: Mark, axes: Axes) -> str:
    share = (mark.x - axes.left) / (axes.right - axes.left)
    side = "right" if share > 0.75 else "left"
    place = _share(axes.right - mark.x if side == "right" else mark.x - axes.left, axes.right - axes.left)
    return f'<b class="mark {mark.style}" style="{side}:{place}">{text(mark.label)}</b>'


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.2f}%"
