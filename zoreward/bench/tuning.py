"""What tuning runs of a table are made of: batches, AdamW in a plain torch loop, the best weights, and a meter."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional
from transformers import TrainerCallback

from zoreward.records import Example
from zoreward.scoring import Reader
from zoreward.scoring.forward import forward


def batches(count: int, size: int, steps: int, seed: int) -> Iterator[list[int]]:
    """Yield the rows of each step: those that `ZOTrainer` shows its members with this seed.

    Args:
        count: how many rows there are.
        size: rows of a batch; the last one of an epoch may have fewer.
        steps: how many batches.
        seed: of the order, which is another in each epoch.

    >>> list(batches(3, 2, 3, seed=0))
    [[2, 0], [1], [1, 2]]
    """
    epoch = 0
    while True:
        order: list[int] = torch.randperm(count, generator=torch.Generator().manual_seed(seed + epoch)).tolist()
        for first in range(0, count, size):
            if steps == 0:
                return
            steps -= 1
            yield order[first : first + size]
        epoch += 1


def mean_logprobs(reader: Reader, examples: Sequence[Example]) -> torch.Tensor:
    """Return the mean log-probability per token of each candidate: `candidate_logprobs`, with a gradient.

    Args:
        reader: the model.
        examples: N rows.

    Returns:
        (N, C), float32; −inf where a row has fewer than C candidates.
    """
    places = [(n, c) for n, example in enumerate(examples) for c in range(len(example.candidate_tokens))]
    answers = [examples[n].candidate_tokens[c] for n, c in places]
    keep = max(map(len, answers))
    if keep == 1:  # the logits behind the prompt are all there is to know
        logits = _logits(reader, [example.prompt_tokens for example in examples], 1)[[n for n, _ in places]]
    else:
        sequences = [(*examples[n].prompt_tokens, *answer[:-1]) for (n, _), answer in zip(places, answers, strict=True)]
        logits = _logits(reader, sequences, keep)
    logprobs = logits.float().log_softmax(-1)
    # Sequences end on the right, so answers are filled up on the left.
    targets = torch.tensor([(0,) * (keep - len(answer)) + answer for answer in answers], device=logprobs.device)
    counted = torch.tensor([[0] * (keep - len(answer)) + [1] * len(answer) for answer in answers]).to(logprobs)
    means = (logprobs.gather(-1, targets[..., None])[..., 0] * counted).sum(1) / counted.sum(1)
    table = logprobs.new_full((len(examples), max(c for _, c in places) + 1), float("-inf"))
    index = torch.tensor(places, device=table.device)
    return table.index_put((index[:, 0], index[:, 1]), means)


def _logits(reader: Reader, sequences: Sequence[tuple[int, ...]], keep: int) -> torch.Tensor:
    """The last `keep` logits; zeros in front of shorter sequences where padding changes what the model gives."""
    if reader.pads:
        logits: torch.Tensor = forward(reader, sequences, 1, keep=keep).logits[:, -keep:]
        return logits
    alone = [forward(reader, [sequence], 1, keep=keep).logits[0, -keep:] for sequence in sequences]
    return torch.stack([functional.pad(logits, (0, 0, keep - len(logits), 0)) for logits in alone])


def loss_of(reader: Reader, examples: Sequence[Example], needs: str) -> torch.Tensor:
    """Return what AdamW makes smaller, the mean over rows.

        choices:     −(ℓ[r] − log Σ_c exp(ℓ[c])),  ℓ the mean log-probabilities of a row's candidates, r the right one
        likelihood:  −ℓ[r],  the right answer alone

    Args:
        reader: the model.
        examples: rows made ready for `needs`.
        needs: what the objective needs that the task tunes on.
    """
    logprobs = mean_logprobs(reader, examples)
    if needs == "likelihood":
        return -logprobs[:, 0].mean()
    references = torch.tensor([example.reference for example in examples], device=logprobs.device)
    return functional.cross_entropy(logprobs, references)


def adamw_step(optimizer: torch.optim.Optimizer, reader: Reader, examples: Sequence[Example], needs: str) -> None:
    """Do one step of an optimizer on one batch."""
    loss_of(reader, examples, needs).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    optimizer.zero_grad()


class Meter:
    """Seconds and peak memory of what is between `start` and `stop`, all of it together; and rows.

    Attributes:
        seconds: so far.
        peak: bytes of GPU memory that were allocated at once; None without a GPU.
        shown: rows that went forwards, and `backward`, those that went backwards too, as whoever shows them counts.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._begun = 0.0
        self.seconds = 0.0
        self.peak: int | None = None
        self.shown = self.backward = 0

    @property
    def measured(self) -> dict[str, Any]:
        """All of it, by name."""
        return {name: getattr(self, name) for name in ("seconds", "peak", "shown", "backward")}

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
        above: weights that score no better are not copied, as others do; None: there are no others.

    Attributes:
        curve: (step, dev score) of each look.
        step: after which step the best was seen, the first of equals; `dev` is its score.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor], score: Callable[[], float], above: float | None = None):
        self._weights, self._score, self._above = weights, score, above
        self._copies: dict[str, torch.Tensor] = {}
        self.curve: list[tuple[int, float]] = []
        self.step, self.dev = 0, float("-inf")

    def look(self, step: int) -> None:
        """Score the model after `step` steps, and keep it if it is the best so far."""
        score = self._score()
        self.curve.append((step, score))
        if score > self.dev:
            self.step, self.dev = step, score
            if self._above is None or score > self._above:
                self._copies = {name: weight.detach().to("cpu", copy=True) for name, weight in self._weights.items()}

    def look_if_due(self, step: int, every: int | None, steps: int, meter: Meter) -> None:
        """Look after every so many steps, by default four times, and after the last; the clock stands still meanwhile.

        Args:
            step: how many are done.
            every: so many.
            steps: of the run.
            meter: with the clock.
        """
        if step % (every or -(-steps // 4)) == 0 or step == steps:
            meter.stop()
            self.look(step)
            meter.start()

    @torch.no_grad()
    def put_back(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Give these weights the values of the best look."""
        for name, weight in weights.items():
            weight.copy_(self._copies[name])


class Looking(TrainerCallback):
    """Counts the rows that the members of a trainer read, and looks between its steps."""

    def __init__(self, best: Best, meter: Meter, every: int | None, trainer: Any):
        self._best, self._meter, self._every, self._trainer = best, meter, every, trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count, and look where a look is due."""
        self._meter.shown += len(self._trainer.last_rows) * len(self._trainer.last_scored)
        self._best.look_if_due(state.global_step, self._every, state.max_steps, self._meter)
