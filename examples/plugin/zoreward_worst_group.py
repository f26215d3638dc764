"""A metric as a package: install it with `pip install examples/plugin`, then see `zoreward tune worst-group --help`."""

from __future__ import annotations

from typing import Any

import pandas as pd

from zoreward import objective


@objective("worst-group", range=(0, 1))
def worst_group(
    predictions: list[int], references: list[int], *, group: str = "group", least: int = 1, **columns: Any
) -> float:
    """Accuracy of the group of rows that fares worst.

    Args:
        group: the column that says which group a row belongs to.
        least: groups with fewer rows than this in a batch are left out; with none left, all rows make one group.
    """
    if group not in columns:
        raise KeyError(f"no column {group!r}; the rows have {', '.join(columns)}")
    rows = pd.DataFrame({"group": columns[group], "right": pd.Series(predictions) == pd.Series(references)})
    groups = rows.groupby("group")["right"].agg(["mean", "size"])
    large = groups[groups["size"] >= least]
    return float(large["mean"].min()) if len(large) else float(rows["right"].mean())
