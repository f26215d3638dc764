"""Draw the dev scores of a run as a small SVG: the learning curve of the docs' first page.

    zoreward tune accuracy --model zoreward/quickstart/model --data zoreward/quickstart/train.jsonl \
        --eval-data zoreward/quickstart/heldout.jsonl --template "{text} It was" --choice " bad" --choice " good" \
        --steps 150 --batch-size 32 --eps 2e-2 --lr 5e-4 --eval-every 15 --output runs/first
    python benchmarks/quickstart/curve.py runs/first docs/images/quickstart.svg
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from zoreward.journal import load_run

WIDTH, HEIGHT = 640, 260
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 16, 42


def curve(scores: Sequence[tuple[int, float]], name: str) -> str:
    """Return an SVG of (steps done, score from 0 to 1), readable on a light and on a dark page."""
    steps = max(1, scores[-1][0])

    def point(step: float, score: float) -> tuple[float, float]:
        across = LEFT + (WIDTH - LEFT - RIGHT) * step / steps
        return round(across, 1), round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - score), 1)

    lines = []
    for score in (0, 0.25, 0.5, 0.75, 1):
        (x, y), (end, _) = point(0, score), point(steps, score)
        lines.append(f'<path d="M{x} {y}H{end}" stroke="#888" stroke-opacity=".3"/>')
        lines.append(f'<text x="{x - 8}" y="{y + 4}" text-anchor="end">{score:.0%}</text>')
    for step, _ in scores:
        lines.append(f'<text x="{point(step, 0)[0]}" y="{HEIGHT - 24}" text-anchor="middle">{step}</text>')
    lines.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">steps</text>')
    path = "L".join("{} {}".format(*point(*one)) for one in scores)
    lines.append(f'<path d="M{path}" fill="none" stroke="#009688" stroke-width="2.5"/>')
    lines += ['<circle cx="{}" cy="{}" r="4" fill="#009688"/>'.format(*point(*one)) for one in scores]
    label = f"{name}: {scores[0][1]:.1%} before step 1, {scores[-1][1]:.1%} after step {scores[-1][0]}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}"'
            ' font-family="sans-serif" font-size="12" fill="#888">',
            *lines,
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", help="a run folder whose dev rows were scored between the steps")
    parser.add_argument("output", help="the SVG")
    options = parser.parse_args()
    stored = load_run(options.run)
    text = curve(stored.evaluations, f"{stored.header['objective']} on the dev rows")
    Path(options.output).write_text(text, encoding="utf-8")
