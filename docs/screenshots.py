"""Takes the pictures of `report.html` that the docs show: a run on the shipped model, on a screen and on a phone.

    python docs/screenshots.py

It needs Chromium (apt-get install chromium), and takes a minute or two on two cores.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).resolve().parent
SHIPPED = DOCS.parent / "zoreward" / "quickstart"
sys.path.insert(0, str(DOCS.parent / "tests"))

RUN = """tune accuracy --model tiny-reviews --data train.jsonl --eval-data heldout.jsonl --label label --steps 80
--batch-size 32 --device cpu --seed 1 --output runs/reviews --template""".split()
PROMPT = ["{text} It was", "--choice", " bad", "--choice", " good"]


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


if __name__ == "__main__":
    main()
