"""What we use of datasets without its promise: how it writes down the features of a dataset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def names_of_classes(feature: Any) -> tuple[str, ...] | None:
    """Return the names of a column's classes, in the order of their numbers; None for a column of something else.

    Private: that a feature in a file is a dict with `_type` and `names`.

    Args:
        feature: an object of the library, or what a file says of one.

    >>> names_of_classes({"names": ["neg", "pos"], "_type": "ClassLabel"}), names_of_classes({"_type": "Value"})
    (('neg', 'pos'), None)
    """
    described = isinstance(feature, Mapping)
    kind = feature.get("_type") if described else type(feature).__name__
    names = feature.get("names") if described else getattr(feature, "names", None)
    return tuple(map(str, names)) if kind == "ClassLabel" and names else None
