"""How far a model has moved from its base: in what it would write, and in its weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from zoreward.members import bytes_of
from zoreward.records import InputError, Member
from zoreward.scoring.forward import Reader, forward, not_finite
from zoreward.scoring.logprobs import LOGITS_AT_ONCE, read_rows
from zoreward.scoring.protocol import Tokens

# Logits of one forward pass over whole completions, of the model and of its base each: half a GB in float32. Four times
# as many made them the most that a run with a small model takes.
_LOGITS = 1 << 27


@dataclass(frozen=True, slots=True, eq=False)
class Base:
    """The model as it was before tuning.

    Args:
        model: a copy of it; or, for a model with an adapter, the model itself: without its adapter it is the base.
        adapter: which of the two.
    """

    model: nn.Module
    adapter: bool

    @contextmanager
    def shown(self) -> Iterator[nn.Module]:
        """Yield the base, for as long as the context lasts."""
        if not self.adapter:
            yield self.model
            return
        switched_off: Any = self.model.disable_adapter()  # type: ignore[operator]
        with switched_off:
            yield self.model

    @property
    def bytes(self) -> int:
        """The memory that the base takes beside the model."""
        return 0 if self.adapter else bytes_of(self.model.parameters())


def base_of(model: nn.Module, device: str | torch.device | None = None) -> Base:
    """Return the base of a model that has not been tuned yet: a copy of its weights; with an adapter, nothing.

    Args:
        model: the model, before step 1.
        device: where the copy stands; by default where the model does.

    Raises:
        InputError: the copy does not fit there.
    """
    if hasattr(model, "disable_adapter") and hasattr(model, "peft_config"):
        return Base(model, adapter=True)
    try:
        own = copy.deepcopy(model) if device is None else _copied_to(model, torch.device(device))
    except torch.OutOfMemoryError as error:
        hint = "keep it in the computer's memory: --base-device cpu"
        raise InputError(
            f"a copy of the base does not fit: {bytes_of(model.parameters()) / 1e9:.2f} GB", hint=hint
        ) from error
    return Base(own.eval().requires_grad_(False), adapter=False)


def _copied_to(model: nn.Module, device: torch.device) -> nn.Module:
    """A copy that never needs room for two models on the model's own device."""
    memo = {id(tensor): tensor.detach().to(device, copy=True) for tensor in model.buffers()}
    for weight in model.parameters():
        memo[id(weight)] = nn.Parameter(weight.detach().to(device, copy=True), requires_grad=False)
    return copy.deepcopy(model, memo).to(device)


@torch.no_grad()
def kl_to_base(
    reader: Reader,
    base: Base,
    prompts: Sequence[Tokens],
    texts_MN: Sequence[Sequence[Tokens]],
    members: Sequence[Member] = ((),),
) -> list[float]:
    """Return for each member how far its next token's distribution is from the base's, behind what was written.

        KL_m = 1/T Σ_t Σ_v π_m(v | prefix_t) · log( π_m(v | prefix_t) / π_base(v | prefix_t) )

    with t over all T tokens of the member's texts and v over the vocabulary: in nats per token, ≥ 0. Both
    distributions are whole, from the logits at temperature 1; it is no ratio of the written tokens' probabilities.

    Args:
        reader: the model.
        base: what it is compared with.
        prompts: N prompts.
        texts_MN: for each member what stands behind each prompt. A text without tokens does not count.
        members: M members; by default the model itself.

    Returns:
        KL_M; 0 for a member that wrote nothing. float32 for each token, sums in float64 in the order of the tokens.

    Raises:
        ObjectiveError: the model's outputs are not finite.
    """
    size = min(reader.together or len(members), len(members)) if reader.grouped and reader.pads else 1
    sums_MN = np.zeros((len(members), len(prompts)))
    for first in range(0, len(members), size):
        together = slice(first, first + size)
        texts_N = list(zip(*texts_MN[together], strict=True))  # those of the members that share a pass
        rows = [n for n, texts in enumerate(texts_N) if any(texts)]
        lengths = [len(prompts[n]) + max(map(len, texts_N[n])) for n in rows]
        tokens = min(reader.tokens, _LOGITS // _vocabulary(reader)) // size
        written = [(prompts[n], texts_N[n]) for n in rows]

        def read(batch: list[int], written: Sequence[tuple[Tokens, Sequence[Tokens]]] = written) -> list[list[float]]:
            own_prompts, own_texts = zip(*(written[i] for i in batch), strict=True)
            return np.transpose(_kl_sums(reader, base, own_prompts, list(zip(*own_texts, strict=True)))).tolist()

        with reader.shown(members[together]):
            sums_MN[together, rows] = np.transpose(read_rows(reader, lengths, tokens, read))
    if not np.isfinite(sums_MN).all():
        raise not_finite()
    return [math.fsum(sums) / max(1, sum(map(len, texts))) for sums, texts in zip(sums_MN, texts_MN, strict=True)]


def _kl_sums(
    reader: Reader, base: Base, prompts: Sequence[Tokens], texts_MB: Sequence[Sequence[Tokens]]
) -> list[list[float]]:
    """The sum of KL over the tokens of each text, of the members that the model shows."""
    texts = [text for own in texts_MB for text in own]
    # The last token predicts nothing that was written.
    sequences = [(*prompt, *text[:-1]) for own in texts_MB for prompt, text in zip(prompts, own, strict=True)]
    keep = max(map(len, texts))
    logits_RTV = forward(reader, sequences, 1, keep=keep).logits[:, -keep:]
    with base.shown() as model:
        base_RTV = forward(replace(reader, model=model), sequences, 1, keep=keep).logits[:, -keep:]
    sums: list[float] = []
    at_once = max(1, LOGITS_AT_ONCE // max(1, logits_RTV[0].numel()))
    for start in range(0, len(texts), at_once):
        part = slice(start, start + at_once)
        table = _token_kl(logits_RTV[part], base_RTV[part].to(logits_RTV.device)).cpu().double()
        # Sequences end on the right.
        sums += [float(row[keep - len(text) :].sum()) for row, text in zip(table, texts[part], strict=True)]
    return [sums[m * len(prompts) : (m + 1) * len(prompts)] for m in range(len(texts_MB))]


def _token_kl(logits: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """Σ_v p_v (log p_v − log q_v) of the last dimension, in float32. What has no probability counts nothing."""
    p, q = logits.float().log_softmax(-1), base.float().log_softmax(-1)
    terms = p.exp() * (p - q)
    return torch.where(p == -torch.inf, 0.0, terms).sum(-1).clamp_(min=0)


def _vocabulary(reader: Reader) -> int:
    size: int = reader.model.config.get_text_config().vocab_size  # type: ignore[union-attr, operator]
    return size


@torch.no_grad()
def weights_moved(reader: Reader, base: Base) -> float | None:
    """Return ‖θ − θ_base‖ / ‖θ_base‖ over all tuned weights; None where the base keeps no weights of its own.

    Sums of squares are float64, tensor by tensor.
    """
    if base.adapter:
        return None
    squares, all_squares = [], []
    own = dict(base.model.named_parameters())
    for name, weight in reader.model.named_parameters():
        if weight.is_floating_point():
            before = own[name].to(weight.device)
            squares.append(_square(weight.float() - before.float()))
            all_squares.append(_square(before.float()))
    return math.sqrt(math.fsum(squares) / max(math.fsum(all_squares), 1e-300))


def _square(values: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(values, dtype=torch.float64)) ** 2
