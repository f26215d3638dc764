"""Influence of rows from one forward pass, by the last layer alone: its gradients are residuals times hidden states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zoreward.records import Example, InputError, Request
from zoreward.scoring.forward import Reader, forward, not_finite, vocabulary_size
from zoreward.scoring.logprobs import read_rows

# Logits of one forward pass: 64 MB in float32.
_LOGITS = 1 << 24


@torch.no_grad()
def readout_influence(
    reader: Reader, examples: Sequence[Example], others: Sequence[Example]
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Return how much each row's gradient of the last layer points the way of other rows' mean gradient.

        s_n = 1/T Σ_t log p(y_t | prompt, y_<t),    G_n = ∂s_n/∂W = 1/T Σ_t (e_{y_t} − p_t) h_tᵀ
        ⟨G_n, Ḡ⟩ = 1/T Σ_t (e_{y_t} − p_t)ᵀ Ḡ h_t

    with y the right answer, of T tokens, p_t the distribution of the next token, h_t what the last layer reads, and Ḡ
    the mean of the others' G. Each row is read once; kept is one matrix as large as the layer. A layer that shares its
    weights with the embedding counts as the last layer alone.

    Args:
        reader: a causal language model.
        examples: N rows, with the answers to be compared.
        others: rows to be compared with.

    Returns:
        ⟨G_n, Ḡ⟩ · ‖G_n‖, both (N,) · ‖Ḡ‖.

    Raises:
        InputError: the model is none that gives a distribution behind each token, or makes it of other numbers than its
            last layer's, or rows have no answers.
        ObjectiveError: its outputs are not finite.

    Source: the lexical channel of RISE, Ran, Xie, Wang, Zheng, Zhang, Li, Xu 2026, arXiv 2604.16197. As the other rows
    are at hand, their mean is kept whole, and nothing is sketched.
    """
    if reader.kind != "causal":
        raise InputError(f"a readout is one of causal models, and this one is {reader.kind}", hint="Leave it out.")
    mean_VH: Any = 0.0
    for residuals_TV, states_TH in _read(reader, others):
        mean_VH = mean_VH + residuals_TV.T @ states_TH / (len(states_TH) * len(others))
    found = []
    for residuals_TV, states_TH in _read(reader, examples):
        dot = ((residuals_TV @ mean_VH) * states_TH).sum() / len(states_TH)
        square = ((residuals_TV @ residuals_TV.T) * (states_TH @ states_TH.T)).sum()
        found.append((float(dot), float(square.clamp(min=0).sqrt()) / len(states_TH)))
    dots_N, norms_N = np.array(found, dtype=np.float64).T
    if not (np.isfinite(dots_N).all() and np.isfinite(norms_N).all()):
        raise not_finite()
    return dots_N, norms_N, float(torch.linalg.vector_norm(mean_VH))


def _read(reader: Reader, examples: Sequence[Example]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the residuals and states of each row's answer, in float32, a pass of rows at a time."""
    requests = [_answer_of(example) for example in examples]
    most = max(len(request.target) for request in requests)
    at_once = max(1, min(reader.rows or 64, _LOGITS // (most * vocabulary_size(reader.model))))
    for first in range(0, len(requests), at_once):
        some = requests[first : first + at_once]

        def read(batch: list[int], some: list[Request] = some) -> list[tuple[torch.Tensor, torch.Tensor]]:
            return _pass(reader, [some[n] for n in batch])

        lengths = [len(request.prompt) + len(request.target) - 1 for request in some]
        yield from read_rows(reader, lengths, reader.tokens, read)


def _pass(reader: Reader, requests: Sequence[Request]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    keep = max(len(request.target) for request in requests)
    with reader.logits_in_float32(), _last_layer(reader.model) as seen:
        sequences = [(*request.prompt, *request.target[:-1]) for request in requests]
        logits = forward(reader, sequences, 1, keep=keep).logits
    states, said = seen[-1]
    if not torch.equal(logits[:, -1].to(said.dtype), said[:, -1]):
        name = type(reader.model).__name__
        hint = "Take slopes along directions: they ask nothing of the last layer."
        raise InputError(f"{name} scales or caps what its last layer gives, and a readout does not know how", hint=hint)
    found = []
    for request, logits_TV, states_TH in zip(requests, logits, states, strict=True):
        count = len(request.target)  # sequences end on the right
        residuals_TV = -logits_TV[-count:].float().softmax(-1)
        residuals_TV[torch.arange(count), list(request.target)] += 1
        found.append((residuals_TV, states_TH[-count:].float()))
    return found


@contextmanager
def _last_layer(model: Any) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Give a list to which each call of the last layer adds what it reads, and what it makes of that."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    layer = model.get_output_embeddings()
    # A copy: some models cap and scale their logits in place.
    handle = layer.register_forward_hook(lambda layer, given, made: seen.append((given[0], made.clone())))
    try:
        yield seen
    finally:
        handle.remove()


def _answer_of(example: Example) -> Request:
    if example.reference < 0 or not example.requests:
        raise InputError("a row has no right answer to read out", hint="Give --answer, or --choice and --label.")
    return example.requests[example.reference]
