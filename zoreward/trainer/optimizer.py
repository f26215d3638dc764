"""What stands in the place of an optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class UpdateOptimizer(torch.optim.Optimizer):
    """The optimizer that transformers' loop asks for: holds the learning rate, and a step is one call of `apply`."""

    def __init__(self, weights: list[nn.Parameter], lr: float, apply: Callable[[], None]):
        super().__init__(weights, {"lr": lr})
        self._apply = apply

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Apply the update that this step's scores called for."""
        self._apply()
