"""One line of a journal: a JSON object in ASCII whose last field is a checksum of all lines so far.

    {"kind": "step", "step": 0, …, "crc": "0f3a5c71"}

The checksum is the CRC-32 of zlib, PNG and Ethernet, in 8 hexadecimal digits, continued from line to line: the CRC-32
of what precedes the last 20 bytes (`, "crc": "0f3a5c71"}`) of each line so far, all put together. So a line that is
changed, missing, doubled or out of its place is noticed, there or in the next line.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from typing import Any, TypeGuard

MAX_LINE = 4 << 20
"""Bytes of a line, at most. A header takes some 60 a tensor, a step some 90 a direction."""
LARGEST = 3.4028234663852886e38
"""The largest float32."""
LARGEST_SCORE = 1e300
"""Of which differences and quotients are still finite."""

_CRC = re.compile(rb', "crc": "([0-9a-f]{8})"\}')
_CRC_BYTES = 20


def encode(fields: dict[str, Any], crc: int) -> tuple[bytes, int]:
    r"""Return a line, with its newline, and its checksum.

    Args:
        fields: what JSON can hold; of other values their `str`.
        crc: the checksum of the line before; 0 for the first.

    Raises:
        ValueError: a number that is not finite.

    >>> encode({"kind": "evaluation", "step": 2, "score": 0.5}, 0)[0]
    b'{"kind": "evaluation", "step": 2, "score": 0.5, "crc": "dcc011aa"}\n'
    """
    body = json.dumps(fields, allow_nan=False, default=str).encode("ascii")[:-1]
    crc = zlib.crc32(body, crc)
    return body + b', "crc": "%08x"}\n' % crc, crc


def checksum(line: bytes, crc: int) -> int | None:
    """Return the checksum of a line (without its newline) if it is the one that the line carries, else None.

    Args:
        line: as it stands in the file.
        crc: the checksum of the line before; 0 for the first.
    """
    carried = _CRC.fullmatch(line, max(0, len(line) - _CRC_BYTES))
    found = zlib.crc32(line[:-_CRC_BYTES], crc)
    return found if carried and int(carried[1], 16) == found else None


def parse(text: bytes | str) -> dict[str, Any]:
    """Return the object that a JSON text holds.

    Raises:
        ValueError: no JSON, not an object, a name twice in one object, or a number that is not finite.

    >>> parse('{"step": 2}')
    {'step': 2}
    """
    try:
        text = text if isinstance(text, str) else text.decode("ascii")
        found = json.loads(text, object_pairs_hook=_object, parse_float=_finite, parse_constant=_finite)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError("not an object")
    return found


def number(value: Any, largest: float = LARGEST) -> TypeGuard[float]:
    """Whether a value is a number, of a size up to `largest`; by default, that float32 has room for.

    >>> number(0.5), number(True), number(1e39)
    (True, False, False)
    """
    return type(value) in (int, float) and abs(value) <= largest


def whole(value: Any, below: int) -> TypeGuard[int]:
    """Whether a value is a whole number from 0 to `below` − 1.

    >>> whole(3, 4), whole(4, 4), whole(3.0, 4)
    (True, False, False)
    """
    return type(value) is int and 0 <= value < below


def shown(value: Any, longest: int = 20) -> str:
    """Return a value from a file as it may stand in an error: short, whatever it is, and in ASCII.

    >>> shown("a" * 99), shown([1]), shown(None)
    ("'aaaaaaaaaaaaaaaaaaa", 'a list', 'None')
    """
    plain = value is None or isinstance(value, str | int | float)
    return ascii(value)[:longest] if plain else f"a {type(value).__name__}"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return found


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits} is not finite")
    return value
