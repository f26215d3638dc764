"""The parts of a page: escaped texts, tables, the style sheet. All that comes from a run goes through `text`."""

from __future__ import annotations

import contextlib
import html
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from zoreward.journal.disk import open_file, write_whole
from zoreward.records import InputError, printable

_FIRST_LINE = "<!doctype html><!-- a page of zoreward's -->"
LONGEST = 2000
"""Characters of a value."""


def text(value: Any) -> str:
    r"""Return the text of anything as it may stand in a page: neither a tag nor a character that has no shape.

    >>> text("<script>alert(1)</script>\x1b[1m"), text("a\x00b" + chr(0xD800))
    ('&lt;script&gt;alert(1)&lt;/script&gt;\\x1b[1m', 'a\\x00b\\ud800')
    """
    try:
        told = value if isinstance(value, str) else str(value)
    except Exception:
        told = f"<{type(value).__name__}>"
    told = told if len(told) <= LONGEST else f"{told[: LONGEST - 1]}…"
    return html.escape(printable(told), quote=False)


def attribute(value: Any) -> str:
    """Return a text as it may stand between the quotes of an attribute."""
    return text(value).replace('"', "&quot;").replace("\n", " ")


def number(value: float | None) -> str:
    """Return a number as pages show it: six digits, a true minus; a dash where there is none.

    >>> number(0.123456789), number(-2.5), number(None), number(150000)
    ('0.123457', '−2.5', '–', '150,000')
    """
    if value is None or not math.isfinite(value):
        return "–"
    told = f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
    return told.replace("-", "−") if "e" not in told else told


def short(value: float | None) -> str:
    """Return a number in four digits, as the command line prints scores.

    >>> short(0.123456789), short(-2.5)
    ('0.1235', '−2.5')
    """
    return "–" if value is None else f"{value:.4g}".replace("-", "−")


def seconds(value: float | None) -> str:
    """Return a time in words.

    >>> seconds(12.34), seconds(754.0), seconds(7300)
    ('12.3 s', '12 min 34 s', '2 h 1 min')
    """
    if value is None:
        return "–"
    if value < 100:
        return f"{value:.3g} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, style: str = "") -> str:
    """Return a table of cells that are HTML already; it scrolls where a page is narrow."""
    head = "".join(f"<th>{cell}</th>" for cell in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    head = f"<thead><tr>{head}</tr></thead>" if any(heads) else ""
    return f'<div class="scroll"><table class="{attribute(style)}">{head}<tbody>{body}</tbody></table></div>'


def pairs(rows: Iterable[tuple[str, str]]) -> str:
    """Return a list of names and values that are HTML already; those without a value are left out."""
    shown = "".join(f"<div><dt>{text(name)}</dt><dd>{value}</dd></div>" for name, value in rows if value)
    return f"<dl>{shown}</dl>"


def code(value: Any) -> str:
    """Return a command or a name, as it is typed."""
    return f"<code>{text(value)}</code>"


def command(value: str) -> str:
    """Return a command that is to be copied."""
    return f"<pre>{text(value)}</pre>"


def card(name: str, value: str, more: str, style: str = "") -> str:
    """Return a number that stands out.

    Args:
        name: above it.
        value: as HTML.
        more: below it.
        style: `good` or `bad`.
    """
    return f'<div class="card"><span>{text(name)}</span><b class="{style}">{value}</b><span>{text(more)}</span></div>'


def section(title: str, *content: str) -> str:
    """Return a part of a page under its title; "" where there is nothing in it."""
    inside = "".join(content)
    return f"<section><h2>{text(title)}</h2>{inside}</section>" if inside else ""


def save_page(path: str | Path, title: str, body: str) -> None:
    """Write a page: as a whole, or not at all. One that was written so before is replaced.

    Raises:
        InputError: another file has its name.
        OSError: it cannot be written.
    """
    with contextlib.suppress(FileNotFoundError), open_file(path) as file:
        if file.read(len(_FIRST_LINE)).decode("utf-8", "replace") != _FIRST_LINE:
            hint = "move it away, or give --output another name"
            raise InputError(f"{path} is no page of zoreward's: it is not replaced", hint=hint)
    style = Path(__file__).with_name("page.css").read_text("utf-8")
    page = (
        f'{_FIRST_LINE}\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{text(title)}</title><style>{style}</style></head>\n<body><main>{body}</main></body></html>\n"
    )
    write_whole(path, lambda file: file.write(page.encode("utf-8")))
