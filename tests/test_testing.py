"""Contract under test: `check_objective` says what an objective does wrong, each fault by its own line, and no more."""

from __future__ import annotations

import random

import pytest

from zoreward import list_objectives, objective
from zoreward.records import UnknownNameError
from zoreward.testing import check_objective


class RunningMean:
    """The length of each text, less the mean of all so far."""

    needs = "completions"

    def __init__(self) -> None:
        self.count, self.total = 0, 0

    def __call__(self, completions) -> list[float]:
        self.count, self.total = self.count + len(completions), self.total + sum(map(len, completions))
        return [len(text) - self.total / self.count for text in completions]


def drawn(completions):
    return [random.random() for _ in completions]


def by_place(completions):
    return [float(n) for n, _ in enumerate(completions)]


def loss(predictions, references):
    return sum(p != r for p, r in zip(predictions, references, strict=True)) / len(references)


def of_two_rows(predictions, references):
    if len(references) < 2:
        raise ValueError("the variance of one row")
    return 1.0


def never(completions):
    return [None for _ in completions]


def slow(completions):
    import time

    time.sleep(0.5 if len(completions) > 100 else 0)
    return [1.0 for _ in completions]


@objective("wide", range=(0, 1))
def wide(predictions, references):
    return 3.0


@objective("share-of-all", rowwise=True)
def share_of_all(completions):
    return [len(text) / max(1, sum(map(len, completions))) for text in completions]


@pytest.mark.parametrize(
    ("made", "line"),
    [
        (RunningMean, "it keeps state"),
        (drawn, "the same rows are worth something else the second time"),
        (by_place, "rows in another order are worth something else"),
        (loss, "wrong answers are worth more than right ones (1 and 0)"),
        (of_two_rows, "one row, as the last of an epoch may be: objective 'of_two_rows' raised ValueError"),
        (never, "it has no score on any of 8 rows"),
        (slow, "1,000 rows take 0.5 s"),
        (wide, "the score 3 lies outside of its range, 0 to 1"),
        (share_of_all, "it says that it is rowwise, and a row alone has another score"),
    ],
)
def test_a_fault_is_told_by_its_own_line(made, line) -> None:
    with pytest.raises(AssertionError) as told:
        check_objective(made, seconds=0.4)
    _, *lines = str(told.value).splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"- {line}")


# These read a column, another model, or another library.
OTHERS = {"bleu", "callable", "evaluate", "exact-match", "pass-at-k", "reward-model", "rouge", "sklearn", "token-f1"}
OTHERS |= {"trl", "win-rate"}


@pytest.mark.parametrize("name", sorted({entry.name for entry in list_objectives()} - OTHERS))
def test_shipped_objectives_keep_to_it(name: str) -> None:
    check_objective(name)


@pytest.mark.parametrize("name", ["exact-match", "token-f1", "rouge", "bleu"])
@pytest.mark.parametrize("chat", [False, True])
def test_those_that_read_a_column_keep_to_it_too(name: str, chat: bool) -> None:
    check_objective(name, columns={"answer": ["Yes", "42", "no", "two lines"]}, chat=chat)


def test_a_column_that_is_missing_is_named() -> None:
    def topical(completions, topic):
        return [float(word in text) for text, word in zip(completions, topic, strict=True)]

    with pytest.raises(UnknownNameError, match="topic"):
        check_objective(topical)
    check_objective(topical, columns={"topic": ["short", "42", "x", "Yes"]})
