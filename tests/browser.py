"""Pages in a real browser: Chromium without a window, from the distribution's packages."""

from __future__ import annotations

import html
import json
import os
import shutil
import subprocess
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

# A page stands in a frame of the width that is asked for: Chromium's own window has a least width. Its policy forbids
# scripts inside; what stands around it may look in. A part that scrolls by itself may be wider than the page.
_AROUND = """
const frames = [...document.querySelectorAll("iframe")];
onload = () => {
  const found = frames.map(frame => {
    const page = frame.contentDocument, width = frame.clientWidth;
    const wide = [...page.body.querySelectorAll("*")].filter(one =>
      Math.max(one.getBoundingClientRect().right, one.scrollWidth) > width + 0.5 && !one.closest(".scroll, svg"));
    const texts = [...page.querySelectorAll("p, td, dd, b, h1, pre, figcaption")].filter(one => one.innerText);
    return {
      width, scrolls: page.documentElement.scrollWidth, height: page.documentElement.scrollHeight,
      wide: wide.map(one => one.outerHTML.slice(0, 120)),
      letters: Math.min(...texts.map(one => parseFloat(frame.contentWindow.getComputedStyle(one).fontSize))),
    };
  });
  document.body.innerHTML = "";
  document.body.append(JSON.stringify(found));
};
"""


def chromium() -> str:
    """Return the browser's path. Where there is none the test is skipped with a warning; where
    LOOK_AT_PAGES is set, it fails."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    if os.environ.get("LOOK_AT_PAGES"):
        pytest.fail("there is no browser to look at the pages of runs: apt-get install chromium")
    warnings.warn("there is no browser: NOBODY LOOKED at the pages of runs. apt-get install chromium", stacklevel=2)
    pytest.skip("there is no browser")


def measured(pages: Sequence[tuple[Path, int]], folder: Path) -> list[dict[str, Any]]:
    """Return what a browser makes of pages, each at a width in pixels.

    Args:
        pages: path and width of each.
        folder: for the page around them, and the browser's own files.
    """
    frames = "".join(_frame(page, width, 4000) for page, width in pages)
    around = folder / "around.html"
    around.write_text(f"<!doctype html><meta charset=utf-8><body>{frames}<script>{_AROUND}</script></body>", "utf-8")
    done = subprocess.run([*_words(folder), "--dump-dom", around.as_uri()], capture_output=True, text=True, timeout=120)
    body = done.stdout.rpartition("<body>")[2].partition("</body>")[0]
    found: list[dict[str, Any]] = json.loads(html.unescape(body).partition("</script>")[0])
    return found


def screenshot(page: Path, image: Path, width: int, height: int, folder: Path) -> None:
    """Take a picture of a page at a width, as far down as `height`: a narrow one stands on a wider ground."""
    around = folder / "around.html"
    frame, style = _frame(page, width, height), "margin:0;background:#c9ccd3;text-align:center"
    around.write_text(f'<!doctype html><meta charset=utf-8><body style="{style}">{frame}</body>', "utf-8")
    words = [*_words(folder), "--hide-scrollbars", f"--window-size={max(width, 500)},{height}"]
    subprocess.run([*words, f"--screenshot={image}", around.as_uri()], check=True, capture_output=True, timeout=120)


def _frame(page: Path, width: int, height: int) -> str:
    inside = html.escape(page.read_text("utf-8"))
    return f'<iframe style="border:0;width:{width}px;height:{height}px" srcdoc="{inside}"></iframe>'


def _words(folder: Path) -> list[str]:
    own = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--virtual-time-budget=3000")
    return [chromium(), *own, f"--user-data-dir={folder / 'browser'}"]
