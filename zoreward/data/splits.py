"""Which rows are tuned on, which choose, and which are scored at the end. Seeded; needs NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from zoreward.data.columns import values_of
from zoreward.records import InputError

Row = dict[str, Any]
T = TypeVar("T")

PUBLISHED_SEEDS = (13, 21, 42, 87, 100)
"""Of the k-shot draws of LM-BFF and MeZO."""


@dataclass(frozen=True, slots=True)
class Split:
    """Rows, each in one of three lists.

    Args:
        train: rows to tune on.
        dev: rows that choose: a learning rate, a step. Never tuned on.
        test: rows that are scored at the end. They choose nothing.
    """

    train: list[Row]
    dev: list[Row]
    test: list[Row]


def split_rows(rows: Sequence[Row], *, train: int | None = None, dev: int = 0, test: int = 0, seed: int = 0) -> Split:
    """Rows of one list, none of them in two parts.

    The test rows are drawn first and with a seed of their own, so that they are the same for every `seed`. Of the
    others, `train + dev` are drawn, and the last `dev` of these are the dev rows. Where there are fewer, the rows to
    tune on are fewer. A list that is not divided keeps its order.

    Args:
        rows: at least one.
        train: rows to tune on; None: all that are left.
        dev: rows that choose.
        test: rows that are scored at the end.
        seed: of the draw, 0 ≤ seed < 2^32.

    Raises:
        InputError: no row would be left to tune on.

    Source: the draw of MeZO's `large_models` (Malladi et al. 2023): NumPy's legacy generator, whose numbers are
    promised never to change.

    >>> parts = split_rows([{"i": i} for i in range(10)], train=4, dev=3, test=2, seed=1)
    >>> [[row["i"] for row in part] for part in (parts.train, parts.dev, parts.test)]
    [[9, 3, 1, 7], [0, 5, 4], [2, 8]]
    """
    scored = set(_order(len(rows), 0)[:test])
    left = [row for i, row in enumerate(rows) if i not in scored]
    if not (dev or test) and (train is None or train >= len(left)):
        return Split(left, [], [])
    wanted = len(left) if train is None else train + dev
    drawn = [left[i] for i in _order(len(left), seed)[:wanted]]
    if len(drawn) <= dev:
        held = " and ".join(f"{count:,} {name}" for count, name in ((dev, "dev"), (test, "test")) if count)
        raise InputError(
            f"{len(rows):,} rows leave none to tune on beside {held} rows",
            hint="lower --dev-rows or --test-rows, or give --eval-data or --test-data",
        )
    cut = len(drawn) - dev
    return Split(drawn[:cut], drawn[cut:], sample_rows(rows, test))


def k_shot_rows(rows: Sequence[Row], label: str, k: int, *, seed: int) -> Split:
    """`k` rows of each class to tune on, and the next `k` of it that choose.

    A class with fewer than 2·k rows gives what it has, first to tune on.

    Args:
        rows: at least one.
        label: the column of the class.
        k: rows of each class, ≥ 1.
        seed: of the draw, 0 ≤ seed < 2^32; published are `PUBLISHED_SEEDS`.

    Raises:
        UnknownNameError: no row has the column.
        InputError: a row has no class, or no rows are left that could choose.

    Source: the draw of LM-BFF (Gao et al. 2021), also MeZO's for masked models.

    >>> parts = k_shot_rows([{"i": i, "label": i % 2} for i in range(8)], "label", 1, seed=13)
    >>> [row["i"] for row in parts.train], [row["i"] for row in parts.dev]
    ([1, 4], [3, 6])
    """
    classes: dict[str, list[Row]] = {}
    values = values_of(list(rows), label, "label", "--label")
    for i in _order(len(rows), seed):
        classes.setdefault(str(values[i]), []).append(rows[i])
    train = [row for own in classes.values() for row in own[:k]]
    dev = [row for own in classes.values() for row in own[k : 2 * k]]
    if not dev:
        raise InputError(f"no class has more than {k} rows, so none are left that choose", hint="lower --k-shot")
    return Split(train, dev, [])


def sample_rows(rows: Sequence[T], count: int | None, *, seed: int = 0) -> list[T]:
    """`count` of the rows, drawn; all in their order where there are no more, or `count` is None.

    >>> sample_rows("abcdef", 3), sample_rows("abc", 3)
    (['f', 'c', 'b'], ['a', 'b', 'c'])
    """
    if count is None or count >= len(rows):
        return list(rows)
    return [rows[i] for i in _order(len(rows), seed)[:count]]


def _order(count: int, seed: int) -> list[int]:
    """A seeded order of 0 … count − 1, the same with every NumPy."""
    import numpy as np

    if not 0 <= seed < 2**32:
        raise InputError(f"--split-seed {seed} is out of range", hint="it lies between 0 and 2^32 - 1")
    order: list[int] = np.random.RandomState(seed).permutation(count).tolist()
    return order
