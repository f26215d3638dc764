"""The gradient that a past step saw, a tensor at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from zoreward.journal.bounds import directions
from zoreward.members import Tuned, tuned_weights, updates_
from zoreward.methods.steps import known
from zoreward.records import InputError, Term, Update


class Gradient(Mapping[str, torch.Tensor]):
    """The estimate of a score's gradient, a tensor for each tuned weight, made when it is asked for and not kept.

    Args:
        terms: of which it is the sum.
        tuned: the weights, of which shape, device and stream count.
    """

    def __init__(self, terms: Sequence[Term], tuned: Tuned):
        self._terms, self._tuned = tuple(terms), tuned

    def __getitem__(self, name: str) -> torch.Tensor:
        weight = self._tuned.weights[name]
        wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
        zeros = torch.zeros(weight.shape, dtype=wide, device=weight.device)
        alone = replace(self._tuned, weights={name: zeros}, base={})
        updates_(nn.Identity(), [Update(0.0, self._terms, rounding_seed=0)], tuned=alone)
        return zeros

    def __iter__(self) -> Iterator[str]:
        return iter(self._tuned.weights)

    def __len__(self) -> int:
        return len(self._tuned.weights)


def gradient_of(header: Mapping[str, Any], step: int, slopes: Sequence[float] | None, model: nn.Module) -> Gradient:
    """Return the gradient that a step saw; see `StoredRun.gradient`.

    Args:
        header: of the run.
        step: counts from 0.
        slopes: g_K of the step; None where its file does not tell.
        model: with the run's tuned weights.
    """
    drawn = directions(dict(header))
    if drawn is None or slopes is None:
        hint = "Keep the journal, which has scores; of es, fzoo, eggroll and svrg a run's file tells no slopes."
        raise InputError(f"step {step} has no slopes that its file tells of", hint=hint)
    if "limits" in header:
        raise InputError(
            "small weights alone were tuned, and which are small depends on the step", hint="Leave it out."
        )
    tuned = tuned_weights(model, header["streams"])
    if strangers := sorted(tuned.weights.keys() ^ header["streams"].keys()):
        hint = "Give the run's base, with the run's adapter where it made one: replay returns that."
        raise InputError(f"only one of the model and the run has {strangers[0]:.200}", hint=hint)
    count = len(known(slopes))
    pairs = zip(drawn.fresh(step), slopes, strict=True)
    terms = [replace(z, coefficient=slope / count) for z, slope in pairs if slope and not math.isnan(slope)]
    return Gradient(terms, replace(tuned, streams=header["streams"], blocks=header.get("blocks") or {}))
