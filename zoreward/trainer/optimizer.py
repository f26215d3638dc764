"""What stands in the place of gradients, of an optimizer and of tensors, where transformers asks for these."""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Iterator
from typing import Any

import torch

from zoreward.records import Example, StepRecord


def slope(record: StepRecord, directions: int) -> float:
    """Return the norm of what a step made of the scores along its directions, in the place of a gradient's.

    With raw differences it is the norm of the projected gradients.
    """
    norm = math.sqrt(math.fsum(term.coefficient**2 for term in record.update.terms))
    return norm * directions / record.lr if record.lr else 0.0


class RateHolder(torch.optim.Optimizer):
    """What schedules take for an optimizer: it holds the learning rate. Weights are written by the run."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Do nothing."""


class Batch:
    """The rows of a batch: no list, in which accelerate would look for tensors.

    Args:
        examples: the rows.
    """

    __slots__ = ("examples",)

    def __init__(self, examples: list[Example]):
        self.examples = examples

    def __contains__(self, name: str) -> bool:
        return False


@contextlib.contextmanager
def old_objects_left_alone() -> Iterator[None]:
    """Let Python's collector look for garbage once, now, and until the context ends only among what is new.

    torch and transformers leave some hundred thousand objects behind when they are imported. A step makes enough new
    ones that all of them are searched every few steps, for as long as a forward pass of a small model takes several
    times. Nothing changes where somebody has set objects aside already.

    >>> with old_objects_left_alone():
    ...     gc.get_freeze_count() > 0
    True
    """
    ours = gc.get_freeze_count() == 0
    if ours:
        gc.collect()
        gc.freeze()
    try:
        yield
    finally:
        if ours:
            gc.unfreeze()
