"""Members of low-rank terms without perturbed weights: the plain module once for all rows, plus a correction.

With z = a·bᵀ/√r a member's linear layer is x(W + c·z)ᵀ = xWᵀ + c/√r · (x·b)aᵀ: two thin products beside the large one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from zoreward.members.blocks import slots_by_members
from zoreward.members.grouping import Grouping
from zoreward.members.hooked import has_other_forward, plain_forward_of
from zoreward.members.tuned import Kernels, Owner, Slot, Tuned, by_kernel, has_triton
from zoreward.neighbours.of_torch import copy_all_
from zoreward.noise.factors import inv_sqrt_rank
from zoreward.records import InputError, Member


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """Σ coefficient · z of one matrix W (m, n) at each member, as a·bᵀ; cast to the dtype of W once.

    Args:
        whole: (M, ·, R), R the ranks of a member's terms together: lines of the factors of all matrices of a dtype.
        lines: where those of a begin, m, where those of b begin, n.
    """

    whole: torch.Tensor
    lines: tuple[int, int, int, int]

    @property
    def a(self) -> torch.Tensor:
        """(M, m, R), times coefficient/√r; zeros where a member has fewer ranks. Each member's lies in one piece."""
        return self.whole.narrow(1, self.lines[0], self.lines[1])

    @property
    def b(self) -> torch.Tensor:
        """(M, n, R). Each member's lies in one piece."""
        return self.whole.narrow(1, self.lines[2], self.lines[3])


class HeldFactors:
    """Factors that stay where they are in memory from one context to the next, as a CUDA graph reads them.

    Attributes:
        moves: how often they went elsewhere, because their number or their shapes were others.
    """

    def __init__(self) -> None:
        self.moves = 0
        self._held: dict[int, Factors] = {}

    @torch.no_grad()
    def filled(self, fresh: dict[int, Factors]) -> dict[int, Factors]:
        """Return factors with the numbers of `fresh`, in the old place if they fit there."""
        new, old = _places(fresh), _places(self._held)
        if new == old:
            copy_all_(_wholes(self._held), _wholes(fresh))
        else:
            self.moves += 1
            self._held = fresh
        return self._held


def _wholes(factors: dict[int, Factors]) -> list[torch.Tensor]:
    return list({id(own.whole): own.whole for own in factors.values()}.values())


def _places(factors: dict[int, Factors]) -> list[Any]:
    return [(key, own.lines, own.whole.shape, own.whole.dtype) for key, own in factors.items()]


@torch.no_grad()
def member_factors(slots: Iterable[Slot], members: Sequence[Member], kernels: Kernels) -> dict[int, Factors]:
    """Return the factors of the slots' matrices at each member, by the weight's id."""
    slots = list(slots)
    found: dict[int, Factors] = {}
    for own, some in slots_by_members(slots, members):
        found |= _factors(some, own, kernels)
    return {id(slot.weight): found[id(slot.weight)] for slot in slots}


def _factors(slots: Iterable[Slot], members: Sequence[Member], kernels: Kernels) -> dict[int, Factors]:
    terms = list({term.direction: term for member in members for term in member}.values())
    ends = list(accumulate(term.family.rank for term in terms))
    columns_of = {term.direction: range(end - term.family.rank, end) for term, end in zip(terms, ends, strict=True)}
    # The columns of all factors side by side that a member uses, each with its scale; filled up with 0 · the first.
    used = [
        [
            (column, term.coefficient * inv_sqrt_rank(term.family.rank))
            for term in member
            for column in columns_of[term.direction]
        ]
        for member in members
    ]
    width = max(map(len, used))
    used = [[*some, *[(0, 0.0)] * (width - len(some))] for some in used]
    found: dict[int, Factors] = {}
    matrices = {id(slot.weight): (slot.weight, slot.stream) for slot in slots}
    for kernel, weights in by_kernel(matrices.values(), kernels):
        device = weights[0][0].device
        # Not made on the device: that would wait until it has done all it was asked to.
        columns = torch.tensor([[column for column, _ in some] for some in used]).to(device, non_blocking=True)
        scales = torch.tensor([[scale for _, scale in some] for some in used]).to(device, non_blocking=True)
        # All matrices at once: one by one, they would cost a GPU some ten launches each.
        lines = kernel.factor_lines(weights, terms)[:, columns]
        sides = [weight.shape for weight, _ in weights]
        b_place = sum(m for m, _ in sides)
        lines[:b_place] *= scales
        wholes = {
            dtype: lines.to(dtype).transpose(0, 1).contiguous() for dtype in {weight.dtype for weight, _ in weights}
        }
        a_place = 0
        for (weight, _), (m, n) in zip(weights, sides, strict=True):
            found[id(weight)] = Factors(wholes[weight.dtype], (a_place, m, b_place, n))
            a_place, b_place = a_place + m, b_place + n
    return found


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
