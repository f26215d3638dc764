"""What `--json` prints: valid JSON, whatever a score turned out to be."""

from __future__ import annotations

import json
import math
from typing import Any


def json_line(summary: Any) -> str:
    """Return a summary as one line of JSON; null for a number that is not finite, which JSON has no word for.

    >>> json_line({"score": 0.5, "parts": {"rare": float("nan")}, "scores": [float("inf"), 1]})
    '{"score": 0.5, "parts": {"rare": null}, "scores": [null, 1]}'
    """
    return json.dumps(_finite(summary), ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
