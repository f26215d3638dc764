"""What is taken down of a tuning run: dev scores between its steps, the weights of the best, seconds and memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import TrainerCallback


class Meter:
    """Seconds and peak memory of what is between `start` and `stop`, all of it together.

    Attributes:
        seconds: so far.
        peak: bytes of GPU memory that were allocated at once; None without a GPU.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._begun = 0.0
        self.seconds = 0.0
        self.peak: int | None = None

    def start(self) -> None:
        """Start the clock."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
        self._begun = time.perf_counter()

    def stop(self) -> None:
        """Stop the clock."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            self.peak = max(self.peak or 0, torch.cuda.max_memory_allocated(self._device))
        self.seconds += time.perf_counter() - self._begun


class Best:
    """The best of the weights that were looked at. A copy of them lies in the computer's memory.

    Args:
        weights: those that are tuned, by name.
        score: of the model as it is, on the dev rows.

    Attributes:
        curve: (step, dev score) of each look.
        step: after which step the best was seen, the first of equals; `dev` is its score.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor], score: Callable[[], float]):
        self._weights, self._score = weights, score
        self._copies: dict[str, torch.Tensor] = {}
        self.curve: list[tuple[int, float]] = []
        self.step, self.dev = 0, float("-inf")

    def look(self, step: int) -> None:
        """Score the model after `step` steps, and keep it if it is the best so far."""
        found = self._score()
        self.curve.append((step, found))
        if found > self.dev:
            self.step, self.dev = step, found
            self._copies = {name: weight.detach().cpu().clone() for name, weight in self._weights.items()}

    @torch.no_grad()
    def put_back(self) -> None:
        """Give the model the weights of the best look."""
        for name, weight in self._weights.items():
            weight.copy_(self._copies[name])


class Looking(TrainerCallback):
    """Looks between the steps of a trainer, every so many and after the last; the clock stands still meanwhile."""

    def __init__(self, best: Best, meter: Meter, every: int):
        self._best, self._meter, self._every = best, meter, every

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._meter.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look, where a look is due."""
        if is_due(state.global_step, self._every, state.max_steps):
            self._meter.stop()
            self._best.look(state.global_step)
            self._meter.start()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the clock."""
        self._meter.stop()


def is_due(step: int, every: int, steps: int) -> bool:
    """Return whether the dev rows are scored after this step.

    >>> [step for step in range(1, 8) if is_due(step, 3, 7)]
    [3, 6, 7]
    """
    return step % every == 0 or step == steps
