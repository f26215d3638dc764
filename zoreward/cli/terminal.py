"""What a command prints as its result."""

from __future__ import annotations

import json
import math
from typing import Any

from zoreward.records import printable


def json_line(value: Any) -> str:
    r"""Return a value as JSON in one line, which no terminal obeys. A number that is not finite is null: JSON has none.

    >>> json_line({"score": float("nan"), "rows": 2, "name": "\x9b1m"})
    '{"score": null, "rows": 2, "name": "\\u009b1m"}'
    """
    text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, default=str)
    return "".join(one if printable(one) == one else f"\\u{ord(one):04x}" for one in text)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
