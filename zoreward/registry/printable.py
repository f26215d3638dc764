"""Text of strangers (rows, what models write, errors of others' code) as it may stand on a terminal."""

from __future__ import annotations

import unicodedata

LONGEST = 400
"""Characters of a message of somebody else's, at most."""

# They join letters, in emoji and in Persian, say; what else has no shape of its own could mislead.
_JOINERS = "\u200c\u200d"
_HARMLESS = ("Zs", "Cn", "Co")  # other spaces; characters that this Python does not know yet; private ones


def printable(text: object, limit: int | None = LONGEST) -> str:
    r"""Return a text as one line in which control characters are shown, not obeyed.

    Escape sequences, line ends that are none, marks that turn the direction of writing, halves of surrogate pairs: all
    that could move a cursor, hide or reorder what stands beside it is written as Python writes it.

    Args:
        text: of anything else its `str`; its type where it has none.
        limit: characters at most; where there are more, the last one is "…". None: all.

    >>> printable("first\n  second\tthird"), printable("\x1b[31mred\x07 größe 日本")
    ('first second third', '\\x1b[31mred\\x07 größe 日本')
    >>> printable("a" * 10_000_000, limit=5)
    'aaaa…'
    """
    try:
        whole = text if type(text) is str else str(text)
    except Exception:
        whole = f"<{type(text).__name__}>"
    part = whole if limit is None else whole[: 16 * limit]  # of a message of 10 MB only the beginning is looked at
    words = " ".join(part.split())
    if not words.isprintable():
        words = "".join(map(_shown, words))
    if limit is not None and (len(words) > limit or len(part) < len(whole)):
        return words[: limit - 1] + "…"
    return words


def _shown(character: str) -> str:
    harmless = character.isprintable() or character in _JOINERS or unicodedata.category(character) in _HARMLESS
    return character if harmless else character.encode("unicode_escape").decode("ascii")
