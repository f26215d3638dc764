"""Which rows are tuned on, which choose, which are scored at the end."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoreward.data import k_shot_rows, sample_rows, seen_before, split_rows
from zoreward.data.rows import PUBLISHED_SEEDS
from zoreward.records import InputError, UnknownNameError

ROWS = [{"i": i, "label": "abc"[i % 3]} for i in range(30)]


def numbers(rows: list[dict]) -> list[int]:
    return [row["i"] for row in rows]


def test_the_draw_is_that_of_the_released_code() -> None:
    """`numpy.random.seed(0); numpy.random.permutation(10)` is 2 8 4 9 1 6 7 3 0 5, in every NumPy since 2006."""
    rows = [{"i": i} for i in range(10)]
    parts = split_rows(rows, train=3, dev=2, seed=0)
    assert (numbers(parts.train), numbers(parts.dev), parts.test) == ([2, 8, 4], [9, 1], [])
    assert numbers(sample_rows(rows, 4)) == [2, 8, 4, 9]


def test_fewer_rows_than_asked_for_are_taken_from_those_to_tune_on() -> None:
    rows = [{"i": i} for i in range(10)]
    parts = split_rows(rows, train=1000, dev=4, seed=0)
    assert (numbers(parts.train), numbers(parts.dev)) == ([2, 8, 4, 9, 1, 6], [7, 3, 0, 5])


def test_rows_that_are_not_divided_keep_their_order() -> None:
    for train in (None, 30, 31):
        assert split_rows(ROWS, train=train, seed=3).train == ROWS
    assert sample_rows(ROWS, None) == sample_rows(ROWS, 30) == ROWS


@given(
    st.integers(1, 40),
    st.one_of(st.none(), st.integers(1, 40)),
    st.integers(0, 12),
    st.integers(0, 12),
    st.integers(0, 2**32 - 1),
)
def test_no_row_is_in_two_parts(count: int, train: int | None, dev: int, test: int, seed: int) -> None:
    rows = [{"i": i} for i in range(count)]
    if count <= dev + test:
        with pytest.raises(InputError, match="leave none to tune on"):
            split_rows(rows, train=train, dev=dev, test=test, seed=seed)
        return
    parts = split_rows(rows, train=train, dev=dev, test=test, seed=seed)
    drawn = numbers(parts.train) + numbers(parts.dev) + numbers(parts.test)
    assert len(set(drawn)) == len(drawn)
    assert (len(parts.dev), len(parts.test)) == (dev, test)
    left = count - dev - test
    assert len(parts.train) == (left if train is None else min(train, left))


def test_test_rows_are_the_same_for_every_seed_and_dev_rows_are_not() -> None:
    parts = [split_rows(ROWS, train=10, dev=5, test=6, seed=seed) for seed in PUBLISHED_SEEDS]
    assert all(part.test == parts[0].test for part in parts)
    assert len({tuple(numbers(part.dev)) for part in parts}) == len(parts)


@pytest.mark.parametrize("k", [1, 4, 5])
@pytest.mark.parametrize("seed", PUBLISHED_SEEDS)
def test_k_rows_of_each_class_and_the_next_k(k: int, seed: int) -> None:
    parts = k_shot_rows(ROWS, "label", k, seed=seed)
    assert Counter(row["label"] for row in parts.train) == dict.fromkeys("abc", k)
    assert Counter(row["label"] for row in parts.dev) == dict.fromkeys("abc", k)
    assert not set(numbers(parts.train)) & set(numbers(parts.dev))
    order = np.random.RandomState(seed).permutation(len(ROWS)).tolist()
    for label in range(3):  # row i has class i % 3
        own = [i for i in order if i % 3 == label]
        assert [i for i in numbers(parts.train) if i % 3 == label] == own[:k]
        assert [i for i in numbers(parts.dev) if i % 3 == label] == own[k : 2 * k]


def test_small_classes_give_what_they_have() -> None:
    rows = [{"label": "a"}] * 3 + [{"label": "b"}] * 8
    parts = k_shot_rows(rows, "label", 4, seed=13)
    assert Counter(row["label"] for row in parts.train) == {"a": 3, "b": 4}
    assert Counter(row["label"] for row in parts.dev) == {"b": 4}
    with pytest.raises(InputError, match="no class has more than 8 rows"):
        k_shot_rows(rows, "label", 8, seed=13)
    with pytest.raises(UnknownNameError, match="'lable'"):
        k_shot_rows(rows, "lable", 1, seed=13)


def test_the_draw_reads_and_sets_no_global_state() -> None:
    np.random.seed(5)
    state = np.random.get_state()[1].tolist()
    first = split_rows(ROWS, train=10, dev=5, test=6, seed=1)
    assert np.random.get_state()[1].tolist() == state
    np.random.seed(6)
    assert split_rows(ROWS, train=10, dev=5, test=6, seed=1) == first


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_out_of_range(seed: int) -> None:
    with pytest.raises(InputError, match=f"--split-seed {seed} is out of range"):
        split_rows(ROWS, train=3, seed=seed)


ONE, TWO, THREE = ({"text": text, "label": 0} for text in ("one", "two", "three"))


@pytest.mark.parametrize(
    ("train", "dev", "test", "told"),
    [
        ([ONE, TWO], [THREE], None, []),
        ([ONE, TWO], [{**ONE, "label": 1}], [{**ONE, "id": 3}], []),  # another label, another column
        ([ONE, TWO], [dict(reversed(ONE.items())), ONE, THREE], None, ["2 of 3 dev rows are rows to tune on too"]),
        ([ONE], [TWO], [TWO, THREE], ["1 of 2 test rows is a row to tune on or to choose by too"]),
        ([ONE], None, [ONE, ONE], ["2 of 2 test rows are rows to tune on too"]),
        ([ONE], [ONE], [ONE], ["1 of 1 dev rows is", "1 of 1 test rows is"]),
        ([{"prompt": [{"role": "user"}]}], [{"prompt": [{"role": "user"}]}], None, ["1 of 1 dev rows is"]),
    ],
)
def test_rows_that_were_seen_before_are_told(train: Any, dev: Any, test: Any, told: list[str]) -> None:
    found = seen_before(train, dev, test)

    assert [line.startswith(start) for line, start in zip(found, told, strict=True)] == [True] * len(told)
