"""The one baseline that differentiates: AdamW, in a plain torch loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.nn import functional

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
    return torch.stack([functional.pad(own, (0, 0, keep - len(own), 0)) for own in alone])


def loss_of(reader: Reader, examples: Sequence[Example], needs: str) -> torch.Tensor:
    """Return what AdamW makes smaller, the mean over rows.

        choices:     −(ℓ[r] − log Σ_c exp(ℓ[c])),  ℓ the mean log-probabilities of a row's candidates, r the right one
        likelihood:  −ℓ[r],  the right answer alone

    Args:
        reader: the model.
        examples: rows made ready for `needs`.
        needs: what the objective needs that the task tunes on.
    """
    found = mean_logprobs(reader, examples)
    if needs == "likelihood":
        return -found[:, 0].mean()
    references = torch.tensor([example.reference for example in examples], device=found.device)
    return functional.cross_entropy(found, references)


def adamw_step(optimizer: torch.optim.Optimizer, reader: Reader, examples: Sequence[Example], needs: str) -> None:
    """Do one step of an optimizer on one batch."""
    loss_of(reader, examples, needs).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    optimizer.zero_grad()
