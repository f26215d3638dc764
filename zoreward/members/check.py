"""Whether members can share the forward pass of a model: tried out on real rows, by what the model gives for them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from zoreward.members.context import called_parts
from zoreward.members.copies import filled
from zoreward.members.tuned import Owner, Slot, Tuned, tuned_weights
from zoreward.neighbours.of_torch import weights_in
from zoreward.records import InputError, Member

LogitsOf = Callable[[Sequence[Member]], torch.Tensor]
"""Members → the logits that the model gives under them on the same real rows, (M, rows, V)."""

# A member's logits move by so many times the noise floor at most when it shares a pass. The floor is one draw of the
# same rounding, a root mean square over a whole vocabulary, so the ratio of two draws stays near 1: 0.7 to 1.1 on
# SmolLM2 in float32, bfloat16 and float16 on an H200.
MOST_FLOORS = 4.0
# What goes wrong must be small beside what the perturbation does: the share of the perturbation that got lost.
MOST_OF_EFFECT = 1 / 4
# The floor is never less than a rounding of the largest logit: a row is often computed alike in every batch. In float32
# it is so many, as sums of other order move by some: 2e-6 of a logit.
FULL_ROUNDINGS = 32
# A floor above this share of the logits' spread is no rounding: the model mixes rows, or keeps something between calls.
# Rounding moves logits by some 1e-6 of their spread in float32. In half precision another batch moves them by 1e-2, and
# a low-rank member, whose weights are rounded when it is alone and not when it shares a pass, by 8e-2 (SmolLM2,
# bfloat16). Activations that are quantised share a scale with the other tokens of a batch.
MOST_FLOOR, MOST_HALF_FLOOR = 1e-3, 0.3
# Directions are tried larger, so often at most, until what they do stands out of the noise.
TRIES = 4
# Some models give a token that must not be written a logit near the smallest number of its dtype.
LARGEST_LOGIT = 1e4


@dataclass(frozen=True, slots=True)
class SelfCheck:
    """What became of the trial of members that share a pass.

    Args:
        problem: why they cannot; None if they can.
        noise: by how much logits of one and the same member move when its rows are batched in another way, as a root
            mean square over the vocabulary; at least a few roundings. Faster ways of reading are held to it.
        members: those that were tried last; their directions may be larger than those that were given.
        error: by how much logits move where members share a pass.
        effect: by how much logits of the two members differ.
        spread: the standard deviation of all logits.
    """

    problem: str | None
    noise: float
    members: tuple[Member, ...]
    error: float = 0.0
    effect: float = 0.0
    spread: float = 0.0

    def agree(self, logits: torch.Tensor, others: torch.Tensor) -> str | None:
        """Say how far two ways of reading the same members on the same rows are apart; None if that is only noise.

        Args:
            logits: (M, rows, V).
            others: the same, read in another way.
        """
        error = distance(logits, others)
        if error <= MOST_FLOORS * self.noise:
            return None
        return f"logits differ by {error:.1e}, where rounding moves them by {self.noise:.1e}"


def self_check(
    model: nn.Module, members: Sequence[Member], logits_of: LogitsOf, *, tuned: Tuned | None = None
) -> SelfCheck:
    """Find out whether members can share a forward pass of this model.

    Some models mix rows, read a child's weight without calling the child, or keep state between calls; several of
    them would be perturbed silently wrong. So the real thing is tried, in the model's own dtype. With ‖·‖ the largest
    root mean square over the vocabulary of a member's row,

        error  = ‖logits of m₀, m₁ together − logits of each alone‖
        noise  = ‖logits of m₀, m₀ and of m₁, m₁ together − logits of each alone‖
        effect = ‖logits of m₀ − logits of m₁‖

    error ≤ 4 · noise says that sharing does no more than another batch does; error and noise ≤ effect / 4 say that what
    is seen is the members. Where the given directions are too small for that, larger multiples of them are tried.

    Args:
        model: the model.
        members: at least two, different from each other.
        logits_of: runs the model under members, with `members_at`.
        tuned: `tuned_weights(model)`, if it is at hand.

    Raises:
        InputError: the members give the same logits, so that no score could tell them apart.
    """
    tuned = tuned or tuned_weights(model)
    members = tuple(members[:2])
    try:
        with _counted_calls(tuned.shown_by(members)) as calls:
            alone = _alone(members, logits_of)
        unread = _read_without_a_call(model, tuned, members, calls, logits_of)
        differ = _differ(alone) or not alone.isfinite().all()
        larger = alone if differ else _alone(_times(members, 1 / torch.finfo(alone.dtype).eps), logits_of)
    except Exception as error:
        return _failed(members, error)
    if unread:
        return SelfCheck(f"{unread} is used without being called", 0.0, members)
    if not differ:
        _refuse_members_that_are_alike(next(model.parameters()).dtype, _differ(larger))
    try:
        return _compared(model, members, alone, logits_of)
    except Exception as error:
        return _failed(members, error)


def _compared(model: nn.Module, members: tuple[Member, ...], alone: torch.Tensor, logits_of: LogitsOf) -> SelfCheck:
    dtype = next(model.parameters()).dtype
    for _ in range(TRIES):
        together = logits_of(members)
        twice = torch.stack([logits_of((member, member)) for member in members])
        error, effect = distance(together, alone), distance(*alone.unbind())
        spread = float(_bounded(alone).std())
        least = _rounding(alone, dtype)
        check = SelfCheck(
            None, max(distance(twice, alone[:, None].expand_as(twice)), least), members, error, effect, spread
        )
        if check.noise > max(_most_floor(model) * spread, least):
            return replace(
                check, problem=f"the same rows give logits that differ by {check.noise:.1e} in another batch"
            )
        if not error <= MOST_FLOORS * check.noise:
            return replace(check, problem=f"{check.agree(together, alone)} and the members by {effect:.1e}")
        if max(error, check.noise) <= MOST_OF_EFFECT * effect:
            return check
        # Twice what would do, if the effect grows as the direction does.
        wanted = 2 * max(error, check.noise) / MOST_OF_EFFECT
        scale = 2.0 ** math.ceil(math.log2(wanted / max(effect, check.noise / 16)))
        members = _times(members, scale)
        alone = _alone(members, logits_of)
    problem = (
        f"logits differ by {error:.1e} where rounding moves them by {check.noise:.1e}, the members by {effect:.1e}"
    )
    return replace(check, problem=problem)


def distance(logits: torch.Tensor, others: torch.Tensor) -> float:
    """Return how far logits are apart: the root mean square over the vocabulary, of the row where it is largest.

    Infinite where one of them is not finite and the other one is not the same.

    >>> distance(torch.tensor([[3.0, 1.0], [2.0, 2.0]]), torch.tensor([[3.0, 2.0], [4.0, 4.0]]))
    2.0
    """
    same = logits == others  # infinities too
    differences = (_bounded(logits) - _bounded(others)).masked_fill(same, 0.0)
    found = float(differences.square().mean(-1).sqrt().max())
    return math.inf if math.isnan(found) else found


def _bounded(logits: torch.Tensor) -> torch.Tensor:
    return logits.double().clamp(-LARGEST_LOGIT, LARGEST_LOGIT)


def _rounding(logits: torch.Tensor, dtype: torch.dtype) -> float:
    """The least noise: in half precision one rounding of the largest logit, else those of a long sum."""
    roundings = FULL_ROUNDINGS if dtype in (torch.float32, torch.float64) else 1
    return roundings * float(_bounded(logits).nan_to_num().abs().max()) * torch.finfo(dtype).eps / 2


def _most_floor(model: nn.Module) -> float:
    full = next(model.parameters()).dtype in (torch.float32, torch.float64)
    return MOST_FLOOR if full and not getattr(model, "is_quantized", False) else MOST_HALF_FLOOR


def _alone(members: Sequence[Member], logits_of: LogitsOf) -> torch.Tensor:
    return torch.cat([logits_of((member,)) for member in members])


def _differ(alone: torch.Tensor) -> bool:
    return distance(*alone.unbind()) > 0


def _times(members: Sequence[Member], scale: float) -> tuple[Member, ...]:
    return tuple(tuple(replace(term, coefficient=term.coefficient * scale) for term in member) for member in members)


def _failed(members: tuple[Member, ...], error: Exception) -> SelfCheck:
    return SelfCheck(f"{type(error).__name__}: {error}", 0.0, members)


def _refuse_members_that_are_alike(dtype: torch.dtype, larger_ones_differ: bool) -> None:
    if larger_ones_differ:
        raise InputError(
            f"members do not differ: eps is below what {str(dtype).removeprefix('torch.')} can show",
            hint="Raise --eps, or take --dtype float32.",
        )
    raise InputError(
        "the tuned weights change nothing of what the model gives for these rows",
        hint="Tune other weights (--tune), or take rows that make use of them.",
    )


class _counted_calls(ExitStack):
    """Counts the calls of owners, by their id, as long as the context lasts."""

    def __init__(self, owners: Iterable[Owner]):
        super().__init__()
        self._calls: Counter[int] = Counter()
        for owner, _ in owners:
            hook = owner.register_forward_pre_hook(lambda module, args: self._calls.update([id(module)]))
            self.callback(hook.remove)

    def __enter__(self) -> Counter[int]:  # type: ignore[override]
        super().__enter__()
        return self._calls


def _read_without_a_call(
    model: nn.Module, tuned: Tuned, members: Sequence[Member], calls: Counter[int], logits_of: LogitsOf
) -> str | None:
    """Return the name of a module whose weight is read although nobody calls it; None if there is none.

    What is neither called nor read is of no use for these rows, such as the vision tower of a model that reads text.
    Whether it is read shows when it is made of NaN.
    """
    owners = tuned.shown_by(members)
    # A tied weight may hang in a module that only holds it, as T5's shared embedding does.
    called = {id(slot.weight) for owner, slots in owners if calls[id(owner)] for slot in slots}
    silent = [(owner, [s for s in slots if id(s.weight) not in called]) for owner, slots in owners]
    silent = [(owner, slots) for owner, slots in silent if slots]
    if not silent or not _is_read(model, [slot for _, slots in silent for slot in slots], logits_of):
        return None
    names = {id(module): name for name, module in model.named_modules()}
    for owner, slots in silent:
        if _is_read(model, slots, logits_of):
            return names[id(owner)]
    return names[id(silent[0][0])]


def _is_read(model: nn.Module, slots: Sequence[Slot], logits_of: LogitsOf) -> bool:
    """Whether logits become NaN when these weights are; `members_at` hangs its copies in first, so a call begins it."""

    def make_nan(*args: Any) -> None:
        for slot in slots:
            weights_in(slot.holder)[slot.key] = torch.full_like(slot.weight, math.nan)

    with ExitStack() as stack:
        stack.enter_context(filled(slots, lambda slot: slot.weight))  # back in their place at the end
        for part in called_parts(model):
            stack.callback(part.register_forward_pre_hook(make_nan).remove)
        return bool(logits_of(((),)).isnan().any())
