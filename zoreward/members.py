"""Members of a model in its forward pass, and the one place that writes weights.

`members_at` shows the model as if its weights were θ + Σ coefficient · z(seed), without touching θ. `update_` moves θ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from zoreward import noise
from zoreward.kernels import cpu, portable
from zoreward.records import InputError, Member, Update

KEEP_BYTES = 2 << 30
"""Perturbed copies are kept for the whole context up to this size; beyond it they are made a module at a time."""


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """One place where a tuned weight hangs: `holder._parameters[key]` is `weight`."""

    holder: nn.Module
    key: str
    weight: nn.Parameter
    stream: int


@dataclass(frozen=True, slots=True, eq=False)
class Tuned:
    """The tuned weights of a model, found once.

    Args:
        weights: canonical name → weight, each once, in the model's order. Tied weights go by their first name.
        streams: canonical name → stream.
        owners: the modules whose forward uses tuned weights, with the slots to fill while it runs.
    """

    weights: dict[str, nn.Parameter]
    streams: dict[str, int]
    owners: tuple[tuple[nn.Module, tuple[Slot, ...]], ...]

    @property
    def slots(self) -> Iterator[Slot]:
        """Every slot of every owner."""
        return (slot for _, slots in self.owners for slot in slots)


def tuned_weights(model: nn.Module) -> Tuned:
    """Return all floating-point weights of `model` as tuned weights.

    Raises:
        InputError: the model has none.
    """
    named = {noise.canonical_name(name): weight for name, weight in model.named_parameters()}
    weights = {name: weight for name, weight in named.items() if weight.is_floating_point()}
    if not weights:
        raise InputError("the model has no floating-point weights", hint="Quantised weights cannot be tuned.")
    streams = noise.streams(weights)
    stream_by_id = {id(weight): streams[name] for name, weight in weights.items()}
    owners: dict[nn.Module, list[Slot]] = {}
    for owner, holder in _holders(model):
        for key, weight in holder._parameters.items():
            if weight is not None and id(weight) in stream_by_id:
                owners.setdefault(owner, []).append(Slot(holder, key, weight, stream_by_id[id(weight)]))
    return Tuned(weights, streams, tuple((owner, tuple(slots)) for owner, slots in owners.items()))


def _holders(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Yield (owner, holder) for each module: a holder without a forward (a ParameterList) is its parent's business."""
    nearest: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        has_forward = type(module).forward is not nn.Module.forward
        nearest[name] = module if has_forward else nearest.get(name.rpartition(".")[0], module)
        yield nearest[name], module


@contextmanager
def members_at(
    model: nn.Module, members: Sequence[Member], *, tuned: Tuned | None = None, keep_bytes: int = KEEP_BYTES
) -> Iterator[None]:
    """Show `model` as M members at once, for as long as the context lasts.

    The rows of each call are grouped by member: the first R / M rows see member 0, the next R / M rows member 1, and
    so on; with one member every row sees it. θ is not touched: whatever happens inside, it is bit for bit the same
    afterwards.

    Args:
        model: any module. Its outputs must have rows in their first dimension.
        members: M members.
        tuned: `tuned_weights(model)`, if it is at hand.
        keep_bytes: perturbed copies are all kept while the context lasts if they fit this many bytes, otherwise made
            again for each call of a module: then a weight that is read without a call of its module (as Mamba's are)
            is seen unperturbed.

    Raises:
        InputError: a call inside has rows that M does not divide.

    Example:
        >>> from zoreward.records import Term
        >>> net = torch.nn.Linear(2, 1)
        >>> with torch.no_grad(), members_at(net, ((Term(1, 0.1),), (Term(1, -0.1),))):
        ...     plus, minus = net(torch.ones(1, 2).repeat(2, 1))
    """
    tuned = tuned or tuned_weights(model)
    size = sum(weight.numel() * weight.element_size() for weight in tuned.weights.values())
    kept = _all_copies(tuned, members) if size * len(members) <= keep_bytes else None
    if kept is not None and len(members) == 1:
        with _filled(tuned.slots, lambda slot: kept[id(slot.weight)][0]):
            yield
        return
    grouping = _Grouping(members, kept)
    with ExitStack() as stack:
        handle = model.register_forward_pre_hook(grouping.see_rows, prepend=True, with_kwargs=True)
        stack.callback(handle.remove)
        for owner, slots in tuned.owners:
            stack.enter_context(_patched_forward(owner, grouping.forward_of(owner, slots)))
        yield


def update_(model: nn.Module, update: Update, *, tuned: Tuned | None = None) -> None:
    """Move the weights: θ ← round(θ + Σ coefficient · z(seed) − decay · θ).

    The only writer of weights. float32 sums in the order of the terms; one rounding at the end, stochastic for half
    precision.

    Args:
        model: the model; changed in place.
        update: what to add and to take away.
        tuned: `tuned_weights(model)`, if it is at hand.

    Example:
        >>> from zoreward.records import Term
        >>> net = torch.nn.Linear(2, 1)
        >>> update_(net, Update(decay=0.0, terms=(Term(1, 0.5),), rounding_seed=0))
    """
    tuned = tuned or tuned_weights(model)
    for kernel, weights in _by_kernel(tuned):
        kernel.update_all_(weights, update)


def grouping_problem(
    model: nn.Module,
    members: Sequence[Member],
    score: Callable[[Sequence[Member]], torch.Tensor],
    *,
    tuned: Tuned | None = None,
    tolerance: float = 1e-3,
) -> str | None:
    """Say why members cannot share a forward pass of this model, or None if they can.

    Some models mix rows, read a child's weight without calling the child, or keep state between calls; several of
    them would be perturbed silently wrong. So the real thing is tried.

    Args:
        model: the model.
        members: M ≥ 2 members, different from each other.
        score: runs the model under the given members, with `members_at`, on real rows; a tensor whose first dimension
            is the member.
        tuned: `tuned_weights(model)`, if it is at hand.
        tolerance: largest difference that counts as rounding. float32 forwards of the same rows in other batches
            differ by some 1e-5; bfloat16 by some 1e-2.
    """
    tuned = tuned or tuned_weights(model)
    calls: Counter[int] = Counter()
    try:
        with ExitStack() as stack:
            for owner, _ in tuned.owners:
                hook = owner.register_forward_pre_hook(lambda module, args: calls.update([id(module)]))
                stack.callback(hook.remove)
            alone = torch.cat([score((member,)) for member in members])
        together = score(members)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    owner_names = {id(module): name for name, module in model.named_modules()}
    silent = [owner_names[id(owner)] for owner, _ in tuned.owners if not calls[id(owner)]]
    if silent:
        return f"{silent[0]} is used without being called"
    difference = float((alone.double() - together.double()).abs().max())
    return None if difference <= tolerance else f"scores differ by {difference:.1e}"


class _Grouping:
    """The rows of the call in flight, and whose turn it is."""

    def __init__(self, members: Sequence[Member], kept: Mapping[int, list[torch.Tensor]] | None):
        self._members = members
        self._kept = kept
        self._rows = self._tokens = 0
        self._current: int | None = None  # the member whose rows a surrounding owner is at work on

    def see_rows(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        named = [kwargs[name] for name in ("input_ids", "inputs_embeds") if kwargs.get(name) is not None]
        tensors = (value for value in (*named, *args, *kwargs.values()) if isinstance(value, torch.Tensor))
        first = next(tensors, None)
        if first is None or first.ndim == 0 or first.shape[0] % len(self._members):
            rows = None if first is None or first.ndim == 0 else first.shape[0]
            raise InputError(
                f"a call with {rows} rows cannot be shared by {len(self._members)} members",
                hint="Give each member the same number of rows, one member after the other.",
            )
        self._rows = first.shape[0]
        self._tokens = first.shape[0] * first.shape[1] if first.ndim > 1 else first.shape[0]

    def forward_of(self, owner: nn.Module, slots: tuple[Slot, ...]) -> Callable[..., Any]:
        plain_forward = owner.forward
        distinct = {id(slot.weight): slot for slot in slots}

        def copies_of(member: int) -> Mapping[int, torch.Tensor]:
            if self._kept is not None:
                return {key: self._kept[key][member] for key in distinct}
            weights = [(slot.weight, slot.stream) for slot in distinct.values()]
            kernel = _kernel(weights[0][0].device)
            copies = kernel.perturb_all(weights, self._members[member : member + 1])
            return {key: own[0] for key, own in zip(distinct, copies, strict=True)}

        def as_member(member: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            copies = copies_of(member)
            with _filled(slots, lambda slot: copies[id(slot.weight)]):
                return plain_forward(*args, **kwargs)

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._current is not None:
                return as_member(self._current, args, kwargs)
            outputs = []
            try:
                for member in range(len(self._members)):
                    self._current = member
                    outputs.append(as_member(member, self._part(args), self._part(kwargs)))
            finally:
                self._current = None
            return self._joined(outputs)

        return forward

    def _part(self, value: Any) -> Any:
        """The current member's share of an argument: tensors with a row or a token in each line are cut, others shared.

        A length that merely happens to be divisible by M says nothing, so only the lengths of the model's own call
        count.
        """
        if isinstance(value, torch.Tensor):
            if value.ndim == 0 or value.shape[0] not in (self._rows, self._tokens):
                return value
            assert self._current is not None
            share = value.shape[0] // len(self._members)
            return value[self._current * share : (self._current + 1) * share]
        if type(value) in (tuple, list):
            return type(value)(self._part(item) for item in value)
        return {key: self._part(item) for key, item in value.items()} if type(value) is dict else value

    def _joined(self, outputs: list[Any]) -> Any:
        first = outputs[0]
        if len(outputs) == 1:
            return first
        if isinstance(first, torch.Tensor):
            share = self._rows // len(self._members)
            if first.shape[0] == 1 != share:  # from a position table that was called with one line for all rows
                outputs = [output.expand(share, *output.shape[1:]) for output in outputs]
            return torch.cat(outputs)
        if isinstance(first, tuple | list):
            joined = [self._joined(list(items)) for items in zip(*outputs, strict=True)]
            return type(first)(*joined) if hasattr(first, "_fields") else type(first)(joined)
        if isinstance(first, Mapping):
            return type(first)(**{key: self._joined([output[key] for output in outputs]) for key in first})
        if all(output is first for output in outputs):
            return first
        raise TypeError(f"a {type(first).__name__} cannot be joined over members")


def _by_kernel(tuned: Tuned) -> Iterator[tuple[Any, list[tuple[torch.Tensor, int]]]]:
    """Yield the weights of each device with what works on them there."""
    devices: dict[torch.device, list[tuple[torch.Tensor, int]]] = {}
    for name, weight in tuned.weights.items():
        devices.setdefault(weight.device, []).append((weight, tuned.streams[name]))
    for device, weights in devices.items():
        yield _kernel(device), weights


def _kernel(device: torch.device) -> Any:
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"weights on a {device.type} device cannot be tuned", hint="Take the CPU or a CUDA device.")
    return cpu if device.type == "cpu" else portable


def _all_copies(tuned: Tuned, members: Sequence[Member]) -> dict[int, list[torch.Tensor]]:
    return {
        id(weight): copies
        for kernel, weights in _by_kernel(tuned)
        for (weight, _), copies in zip(weights, kernel.perturb_all(weights, members), strict=True)
    }


@contextmanager
def _filled(slots: Any, copy_of: Callable[[Slot], torch.Tensor]) -> Iterator[None]:
    """Hang other tensors into the slots, and the weights back when the context ends, however it ends."""
    filled: list[Slot] = []
    try:
        for slot in slots:
            slot.holder._parameters[slot.key] = copy_of(slot)  # type: ignore[assignment]
            filled.append(slot)
        yield
    finally:
        for slot in filled:
            slot.holder._parameters[slot.key] = slot.weight


@contextmanager
def _patched_forward(owner: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    before = owner.__dict__.get("forward")  # accelerate hangs its own here
    owner.__dict__["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del owner.__dict__["forward"]
        else:
            owner.__dict__["forward"] = before
