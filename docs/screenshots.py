"""Takes the pictures that the docs show, all of the shipped model: `report.html` on a screen and on a phone; terminals
of 80 and 120 columns in which `tune`, `bench` and `quickstart` were typed.

    python docs/screenshots.py

It needs Chromium (apt-get install chromium), and takes some minutes on two cores.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).resolve().parent
SHIPPED = DOCS.parent / "zoreward" / "quickstart"
sys.path.insert(0, str(DOCS.parent / "tests"))

RUN = """tune accuracy --model tiny-reviews --data train.jsonl --eval-data heldout.jsonl --label label --steps 80
--batch-size 32 --device cpu --seed 1 --output runs/reviews --template""".split()
PROMPT = ["{text} It was", "--choice", " bad", "--choice", " good"]

# What is typed in a terminal, and what the picture is called.
TYPED = {
    "tune": """zoreward tune accuracy --model tiny-reviews --data train.jsonl
    --eval-data heldout.jsonl --template "{text} It was" --choice " bad"
    --choice " good" --steps 60 --batch-size 32 --device cpu --output runs/typed""",
    "bench": """zoreward bench reviews.yaml --model tiny-reviews --data-dir .
    --methods zero-shot,mezo --seeds 2 --steps 30 --dev-rows 32 --test-rows 64
    --device cpu --output runs/table""",
    "quickstart": "zoreward quickstart --steps 60",
}
# The shipped reviews as a task, for bench.
TASK = """about: Is a review of a restaurant good or bad?
template: "{text} It was"
choices: [" bad", " good"]
label: label
objective: accuracy
needs: choices
train_on: neg-cross-entropy
"""


def terminal(line: str, columns: int, image: Path, folder: Path) -> None:
    """Take a picture of what a terminal shows behind a line that was typed: an SVG, whose letters are text."""
    from rich.console import Console
    from rich.text import Text

    from screens import shown

    typed = f"$ {line}".replace("\n", " \\\n").splitlines()
    lines = [*typed, *shown(shlex.split(line)[1:], columns, folder)]
    console = Console(record=True, width=columns, file=open(os.devnull, "w"))  # noqa: SIM115
    for one in map(Text.from_ansi, lines):
        for start in range(0, max(1, len(one)), columns):  # as a terminal cuts a line that is too long
            console.print(one[start : start + columns], no_wrap=True)
    picture = console.export_svg(title="zoreward")
    # Nothing is loaded from the network: without the font that rich names there, it is the reader's own.
    image.write_text(re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL), encoding="utf-8")


def main() -> None:
    from browser import screenshot
    from zoreward.cli import main as zoreward

    with tempfile.TemporaryDirectory() as made, contextlib.chdir(made):
        for name, there in (("tiny-reviews", "model"), ("train.jsonl",) * 2, ("heldout.jsonl",) * 2):
            os.symlink(SHIPPED / there, name)
        if code := zoreward([*RUN, *PROMPT]):
            sys.exit(code)
        page = Path("runs/reviews/report.html").absolute()
        for name, width, height in (("wide", 1100, 1180), ("narrow", 390, 1500)):
            image = DOCS / "images" / f"report-{name}.png"
            screenshot(page, image, width, height, Path(made))
            print(f"{image}: {image.stat().st_size / 1000:.0f} kB")
        Path("reviews.yaml").write_text(TASK)
        for name, line in TYPED.items():
            for columns in (80, 120):
                for run in ("typed", "table"):
                    shutil.rmtree(Path("runs", run), ignore_errors=True)
                image = DOCS / "images" / f"terminal-{name}-{columns}.svg"
                terminal(line, columns, image, Path(made))
                print(f"{image}: {image.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
