"""Reward functions, called as TRL's GRPOTrainer calls them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from zoreward.records import Completion, Example, Writing
from zoreward.registry import Objective, mean_score

# What TRL keeps from a reward function because it says it in another way.
_KEPT_BACK = ("prompt", "completion", "completion_ids")


def score_writings(
    objective: Objective,
    examples: Sequence[Example],
    texts: Sequence[Sequence[Completion]],
    trainer_state: Any = None,
) -> list[Writing]:
    """Score what members wrote; async rewards of all of them run together.

    Args:
        objective: one that needs `completions`.
        examples: N rows.
        texts: for each member what it wrote for each row.
        trainer_state: handed to reward functions that ask for it; by default a fresh `transformers.TrainerState`.

    Raises:
        ObjectiveError: the objective raised, or returned what is no score.
    """
    if trainer_state is None:
        from transformers import TrainerState

        trainer_state = TrainerState()
    notes = [Notes() for _ in texts]
    batches = [
        (len(examples), {**completion_outputs(examples, written), "trainer_state": trainer_state, **note.loggers()})
        for written, note in zip(texts, notes, strict=True)
    ]
    return [
        Writing(
            completions=tuple(written),
            score=objective.combined(returned),
            part_scores={name: mean_score(found) for name, found in returned.items()},
            rewards={name: tuple(found) for name, found in returned.items() if isinstance(found, list)},
            extra=note.extra,
            metrics=note.means(),
        )
        for written, returned, note in zip(texts, objective.returned_for(batches), notes, strict=True)
    ]


def columns_of(examples: Sequence[Example]) -> dict[str, list[Any]]:
    """Return the rows' columns as lists; a row without a column has None there."""
    names = dict.fromkeys(name for example in examples for name in example.row)
    return {name: [example.row.get(name) for example in examples] for name in names}


def completion_outputs(examples: Sequence[Example], written: Sequence[Completion]) -> dict[str, Any]:
    """Return the outputs of one member for an objective that needs `completions`.

    Args:
        examples: N rows, all of them plain or all of them conversations.
        written: what the member wrote for each.

    Returns:
        `prompts`: texts, or lists of messages · `completions`: texts, or lists of one message of the assistant's ·
        `completion_ids`: lists of tokens, up to and with EOS · every column, but `prompt`, `completion` and
        `completion_ids`.
    """
    chat = examples[0].messages is not None
    columns = {name: values for name, values in columns_of(examples).items() if name not in _KEPT_BACK}
    return {
        **columns,
        "prompts": [list(one.messages) if one.messages else one.prompt for one in examples],
        "completions": [[{"role": "assistant", "content": one.text}] if chat else one.text for one in written],
        "completion_ids": [list(one.tokens) for one in written],
    }


class Notes:
    """What objectives log beside their scores."""

    def __init__(self) -> None:
        self.extra: dict[str, list[Any]] = {}
        self.metrics: dict[str, list[float]] = {}

    def means(self) -> dict[str, float]:
        """Return the mean of each metric over the times it was logged."""
        return {name: math.fsum(values) / len(values) for name, values in self.metrics.items()}

    def loggers(self) -> dict[str, Any]:
        """Return what reward functions log with."""
        return {"log_extra": self.log_extra, "log_metric": self.log_metric}

    def log_extra(self, column: str, values: list[Any]) -> None:
        """Add values to a column."""
        self.extra.setdefault(str(column), []).extend(values)

    def log_metric(self, name: str, value: float) -> None:
        """Add a value of a metric."""
        self.metrics.setdefault(metric_name(name), []).append(float(value))


def metric_name(name: object) -> str:
    """Return the name under which a metric of an objective's own is told: none that zoreward gives begins so.

    A reward that logs "score" would else take the place of the score by which the best step is chosen; and one that
    logs "dev score" would look like it on the screen.

    >>> metric_name("share"), metric_name("dev score")
    ('metric/share', 'metric/dev score')
    """
    return f"metric/{name}"
