"""Members of low-rank terms without perturbed weights: the plain module once for all rows, plus a correction.

With z = a·bᵀ/√r a member's linear layer is x(W + c·z)ᵀ = xWᵀ + c/√r · (x·b)aᵀ: two thin products beside the large one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from zoreward.members.forwards import has_other_forward, plain_forward_of
from zoreward.members.grouping import Grouping
from zoreward.members.tuned import Owner, Slot, Tuned, has_triton
from zoreward.records import InputError, Member

# Multiplications of one member's product that take as long as its launches, some 50 µs: below, copies make each member
# wait for the Python of all others. 32 members of a model of 12 M weights took 6 s a step that way on an H200.
HIDES_LAUNCHES = 2 * 10**10

Plain = Callable[[torch.Tensor], torch.Tensor]
"""x → y of the plain module."""

Correction = Callable[[nn.Module, Plain, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(owner, plain, x, a, b) → y of the owner at the members for its input x, rows of one member after the other."""


def correction_of(owner: nn.Module, slots: Sequence[Slot]) -> Correction | None:
    """Return how the plain output of a module becomes that of its members; None where it takes perturbed copies.

    Known are `nn.Linear`, `nn.Embedding` and transformers' `Conv1D`, with a forward of their own that nobody replaced,
    and embeddings that do something before or after they look up, as OPT's table of positions.
    """
    if [(slot.holder, slot.key) for slot in slots] != [(owner, "weight")] or has_other_forward(owner):
        return None
    if slots[0].limit is not None:  # what is left of a·bᵀ has no low rank
        return None
    forward = type(owner).forward
    if forward is nn.Linear.forward:
        return _linear
    if isinstance(owner, nn.Embedding) and owner.max_norm is None:  # else it rescales its weights
        return _embedding
    conv1d = getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", None)
    return _conv1d if conv1d is not None and forward is conv1d.forward else None


def split(owners: Iterable[Owner]) -> tuple[list[tuple[nn.Module, Slot, Correction]], list[Owner]]:
    """Return the owners whose outputs can be corrected, with their only slot, and those that take perturbed copies."""
    corrected: list[tuple[nn.Module, Slot, Correction]] = []
    copied: list[Owner] = []
    for owner, slots in owners:
        correct = correction_of(owner, slots)
        if correct is None:
            copied.append((owner, slots))
        else:
            corrected.append((owner, slots[0], correct))
    return corrected, copied


def are_factored(members: Sequence[Member]) -> bool:
    """Whether members differ from the model, and all their directions have factors."""
    return any(members) and all(term.family.rank for member in members for term in member)


def needs_copies(tuned: Tuned, members: Sequence[Member]) -> bool:
    """Whether low-rank members of a model need perturbed copies of some of its weights."""
    return bool(split(tuned.shown_by(members))[1])


def corrected_forward(
    grouping: Grouping, owner: nn.Module, slot: Slot, correct: Correction, *, may_copy: bool = True
) -> Callable[..., Any]:
    """Return a forward of `owner` for the rows of all members at once.

    On a GPU, a large linear layer that sees many tokens takes perturbed copies after all: a correction reads and writes
    outputs, copies read and write weights, and for many tokens the weights are less. Unless `may_copy` is False: a
    graph would go on reading the copies of the members that it was captured with.

    Raises (when called):
        InputError: the input has neither a row nor a token of the model's call in each line.
    """
    plain_forward = plain_forward_of(owner)
    by_copies = grouping.forward_of(owner, (slot,))
    key = id(slot.weight)
    m, n = slot.weight.shape
    enough_tokens = (
        (1 + len(grouping.members)) * m * n // (2 * m + n) if correct is _linear and may_copy else sys.maxsize
    )

    def corrected(plain: Plain, x: torch.Tensor) -> torch.Tensor:
        factors = grouping.factors[key]
        a, b = factors.a, factors.b
        if x.is_cuda:
            large = x.numel() > enough_tokens * n and x.numel() // len(a) * m > HIDES_LAUNCHES
            if large and grouping.current is None and x.shape[0] in grouping.lengths:
                result: torch.Tensor = by_copies(x)
                return result
            x = x.contiguous()  # the last token of each row would be multiplied row by row
        if grouping.current is not None:  # inside a module that is at work on one member's rows
            a, b = a[grouping.current, None], b[grouping.current, None]
        elif x.ndim > 1 and x.shape[0] == 1:  # a position table, called with one line for all rows
            x = x.expand(grouping.rows, *x.shape[1:])
        elif x.ndim == 0 or x.shape[0] not in grouping.lengths:
            name = type(owner).__name__
            raise InputError(f"{name} was called with {tuple(x.shape)}: no row or token of the model's call in a line")
        return correct(owner, plain, x, a, b)

    if isinstance(owner, nn.Embedding) and type(owner).forward is not nn.Embedding.forward:
        return _looking_up(owner, corrected)

    def forward(*args: Any, **kwargs: Any) -> torch.Tensor:
        (x,) = (*args, *kwargs.values())
        return corrected(plain_forward, x)

    return forward


def _looking_up(owner: nn.Embedding, corrected: Callable[[Plain, torch.Tensor], torch.Tensor]) -> Callable[..., Any]:
    """A forward in which what the owner looks up is corrected, whatever it does before and after."""
    plain_forward, weight = plain_forward_of(owner), owner.weight

    class LookUp(TorchFunctionMode):
        def __init__(self) -> None:
            super().__init__()
            self.seen = False

        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is not nn.functional.embedding or args[1] is not weight:
                return function(*args, **(kwargs or {}))
            self.seen = True
            return corrected(lambda ids: function(ids, *args[1:], **(kwargs or {})), args[0])

    def forward(*args: Any, **kwargs: Any) -> Any:
        with LookUp() as look_up:
            y = plain_forward(*args, **kwargs)
        if not look_up.seen:
            raise InputError(f"{type(owner).__name__} reads its weight without looking up in it")
        return y

    return forward


def _linear(owner: nn.Module, plain: Plain, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """xWᵀ + bias + (x·b)aᵀ, member by member."""
    return _product(owner, plain, x, a, b, transposed=True)


def _conv1d(owner: nn.Module, plain: Plain, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The same for a weight that is stored transposed: xW + bias + (x·a)bᵀ."""
    return _product(owner, plain, x, b, a, transposed=False)


def _product(
    owner: Any, plain: Plain, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, transposed: bool
) -> torch.Tensor:
    weight: torch.Tensor = owner.weight.mT if transposed else owner.weight
    if a.shape[-1] == 1 and _fused(x, weight) and not getattr(plain, "gives_float32", False):
        from zoreward.kernels.triton_layers import corrected

        y = corrected(x.view(-1, x.shape[-1]), weight, owner.bias, a.squeeze(-1), b.squeeze(-1))
        return y.view(*x.shape[:-1], -1)
    y = plain(x)
    grouped = y.reshape(len(a), -1, y.shape[-1])
    inner = torch.bmm(x.reshape(len(b), -1, x.shape[-1]), b)
    return grouped.baddbmm_(inner.to(y.dtype), a.mT.to(y.dtype)).view(y.shape)


def _fused(x: torch.Tensor, weight: torch.Tensor) -> bool:
    same = x.is_contiguous() and x.dtype == weight.dtype and not torch.is_autocast_enabled(x.device.type)
    return x.is_cuda and same and not torch.is_grad_enabled() and has_triton()


def _embedding(owner: nn.Module, plain: Plain, ids: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The owner's lines + a[ids]·bᵀ, member by member."""
    y = plain(ids)
    member = torch.arange(len(a), device=a.device).unsqueeze(1)
    grouped = y.reshape(len(a), -1, y.shape[-1])
    return grouped.baddbmm_(a[member, ids.reshape(len(a), -1)], b.mT).view(y.shape)
