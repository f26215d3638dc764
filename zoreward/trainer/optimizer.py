"""What transformers' loop is given in the place of an optimizer, of gradients and of tensors, and what it is spared."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from zoreward.records import Example


class UpdateOptimizer(torch.optim.Optimizer):
    """The optimizer that transformers' loop asks for: holds the learning rate, and a step is one call of `apply`."""

    def __init__(self, weights: list[nn.Parameter], lr: float, apply: Callable[[], None]):
        super().__init__(weights, {"lr": lr})
        self._apply = apply

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Apply the update that this step's scores called for."""
        self._apply()


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


@contextmanager
def no_gradients_to_clear(model: nn.Module) -> Iterator[None]:
    """Let `model.zero_grad()` do nothing: for a small model, looking for gradients costs as much as a forward pass."""
    model.__dict__["zero_grad"] = lambda set_to_none=True: None
    try:
        yield
    finally:
        del model.__dict__["zero_grad"]


@contextmanager
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
