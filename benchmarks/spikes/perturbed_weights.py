"""A spike: can a model be perturbed where a weight is read, instead of where a module is called?

    python benchmarks/spikes/perturbed_weights.py [--device cpu|cuda] [--json OUT] [--only NAME ...]

Three ways are tried beside today's `members_at`:

- *subclass*: a tensor that stands where the parameter stood, and answers every torch function that reads it;
- *mode*: nothing is replaced; a TorchFunctionMode knows the weights by their identity;
- *vmap*: torch.func.functional_call over stacked copies (dense members only).

Eight questions, each with a check that can fail and a number: equality, speed, graphs, rules, devices, quantised,
dtensor, compile. `docs/decisions/0024-perturbed-weights.md` says what followed. On a GPU each question runs in a
process of its own, because a capture that fails can spoil what comes after it.
"""

from __future__ import annotations

import argparse
import copy
import gc
import itertools
import json
import logging
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

if "cuda" not in " ".join(sys.argv):
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported, and transformers may do that
HERE = Path(__file__).resolve()
for folder in (HERE.parents[2] / "objectives", HERE.parents[2] / "tests", HERE.parents[1], HERE.parents[2]):
    sys.path.insert(0, str(folder))

import torch  # noqa: E402
from measure import machine, timed  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.overrides import TorchFunctionMode  # noqa: E402

from families import BUILDERS, random_model  # noqa: E402
from zoreward.members import HeldCopies, HeldFactors, members_at, tuned_weights, update_  # noqa: E402
from zoreward.members.context import called_parts  # noqa: E402
from zoreward.members.copies import Factors, member_factors, perturbed_copies  # noqa: E402
from zoreward.members.tuned import Slot, Tuned  # noqa: E402
from zoreward.neighbours.of_accelerate import place_of  # noqa: E402
from zoreward.records import InputError, Member, Term, Update  # noqa: E402

PLAIN = torch._C.DisableTorchFunctionSubclass
QUESTION_SECONDS, ALL_SECONDS = 90, 345


# What stands where a weight stood, whoever asks for it.


class Seen:
    """A weight, or what was computed from weights alone, as each member sees it.

    Args:
        reads: the call in flight.
        base: θ, from which shape, dtype and device are read, and what low-rank members are corrections of.
        make: makes the copies, one a member, if something asks for them.
        copies: those that are there.
        factors: of low-rank members.
        for_all_rows: a table that is looked up once for all rows: what reads it is never cut.
    """

    def __init__(
        self,
        reads: Reads,
        base: torch.Tensor,
        make: Callable[[], list[torch.Tensor]] | None = None,
        copies: list[torch.Tensor] | None = None,
        factors: Factors | None = None,
        for_all_rows: bool = False,
    ):
        self.reads, self.base, self._make, self.factors = reads, base, make, factors
        self.for_all_rows, self.of_dora = for_all_rows, False
        self._copies, self._stacked = copies, None

    @property
    def copies(self) -> list[torch.Tensor]:
        if self._copies is None:
            assert self._make is not None
            copies = self._make()
            if not self.reads.keeps:
                return copies
            self._copies = copies
        return self._copies

    def take(self, copies: list[torch.Tensor] | None, factors: Factors | None) -> None:
        """Take the copies and factors of other members."""
        self._copies, self.factors, self._stacked = copies, factors, None

    def at(self, member: int) -> torch.Tensor:
        return self.copies[member]

    @property
    def stacked(self) -> torch.Tensor:
        """(M, …): a view where the copies lie evenly, as they do on a GPU."""
        if self._stacked is None:
            copies = self.copies
            first, size = copies[0], copies[0].element_size()
            in_one = not torch.compiler.is_compiling() and _share_storage(copies)
            apart = [b.data_ptr() - a.data_ptr() for a, b in itertools.pairwise(copies)] if in_one else []
            if in_one and len(set(apart)) <= 1:
                step = apart[0] // size if apart else 0
                self._stacked = first.as_strided((len(copies), *first.shape), (step, *first.stride()))
            else:
                self._stacked = torch.stack(copies)
        return self._stacked


def _share_storage(tensors: Sequence[torch.Tensor]) -> bool:
    plain = all(type(tensor) is torch.Tensor for tensor in tensors)
    return plain and len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 1


class Weight(torch.Tensor):
    """A tensor without elements of its own: a read that slips past `__torch_function__` fails instead of reading θ."""

    seen: Seen

    @staticmethod
    def of(seen: Seen) -> Weight:
        base = seen.base
        options = {"dtype": base.dtype, "device": base.device, "requires_grad": False}
        self = torch.Tensor._make_wrapper_subclass(Weight, base.shape, base.stride(), **options)
        self.seen = seen
        return self

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with PLAIN():
            return answered(_seen_of_weight, Weight.of, function, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise TypeError(f"{function} read a perturbed weight past __torch_function__")


def _seen_of_weight(value: Any) -> Seen | None:
    return value.seen if type(value) is Weight else None


class Reading(TorchFunctionMode):
    """The same without a subclass: θ hangs where it hung, and is known by its identity."""

    def __init__(self, known: dict[int, Seen]):
        super().__init__()
        self.known = known
        self.derived: dict[int, tuple[torch.Tensor, Seen]] = {}

    def find(self, value: Any) -> Seen | None:
        key = id(value)
        seen = self.known.get(key)
        if seen is None and self.derived and (pair := self.derived.get(key)) is not None:
            return pair[1]
        return seen

    def keep(self, seen: Seen) -> torch.Tensor:
        self.derived[id(seen.base)] = (seen.base, seen)
        return seen.base

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in args:
            if self.find(value) is not None:
                break
            if type(value) in (list, tuple) and any(self.find(item) is not None for item in value):
                break
        else:
            if not kwargs or all(self.find(value) is None for value in kwargs.values()):
                return function(*args, **(kwargs or {}))
        return answered(self.find, self.keep, function, args, kwargs or {})


Find = Callable[[Any], Seen | None]
Keep = Callable[[Seen], Any]

NAMES_OF_METADATA = (
    "size dim stride numel nelement is_floating_point is_complex element_size data_ptr storage_offset is_contiguous "
    "__len__ ndimension get_device is_inference untyped_storage __hash__ __repr__ type"
).split()
# Sets of functions, not of names: Dynamo follows a look-up, and gives up at a string's methods.
METADATA = {getattr(torch.Tensor, name) for name in NAMES_OF_METADATA} | {
    getattr(torch.Tensor, name).__get__
    for name in "shape dtype device layout ndim is_cuda is_cpu is_meta is_sparse is_quantized requires_grad is_leaf "
    "grad_fn grad is_nested itemsize nbytes".split()
}
WRITERS = {
    getattr(torch.Tensor, name)
    for name in dir(torch.Tensor)
    if (name.endswith("_") and not name.endswith("__"))
    or name in ("__setitem__", *(f"__i{op}__" for op in "add sub mul truediv floordiv mod and or xor pow".split()))
    if callable(getattr(torch.Tensor, name, None))
}


def answered(find: Find, keep: Keep, function: Any, args: Any, kwargs: Any) -> Any:
    """What a function gives that reads a weight: by a rule where there is one, else once a member."""
    if function is F.linear and find(args[0]) is None and _is_ambiguous(args[0], find(args[1])):
        raise InputError("a square input has as many lines as the call: rows, or a unit matrix?", hint="Add a row.")
    rule = RULES.get(function)
    if rule is not None and (y := rule(find, *args, **kwargs)) is not None:
        return y
    if function in METADATA:
        return function(*_with(args, lambda seen: seen.base, find), **_with(kwargs, lambda seen: seen.base, find))
    return once_a_member(find, keep, function, args, kwargs)


def _is_ambiguous(x: torch.Tensor, weight: Seen | None) -> bool:
    """Whether nothing tells a unit matrix, by which DoRA asks for the product of its two, from rows."""
    if weight is None or not weight.of_dora or weight.reads.current is not None:
        return False
    return x.ndim == 2 and x.shape[0] == x.shape[1] and x.shape[0] in weight.reads.lengths


def once_a_member(find: Find, keep: Keep, function: Any, args: Any, kwargs: Any) -> Any:
    """The function with each member's weights and its share of the rows."""
    involved = list(_seen_in((args, kwargs), find))
    reads = involved[0].reads
    if reads.current is not None:  # inside a module that runs one member at a time
        member = reads.current
        return function(*_with(args, lambda s: s.at(member), find), **_with(kwargs, lambda s: s.at(member), find))
    plain = (value for value in _flat((args, kwargs)) if find(value) is None)  # a weight's length means nothing
    cuts = not any(seen.for_all_rows for seen in involved) and any(map(reads.has_rows, plain))
    if "out" in kwargs or function in WRITERS:
        first = args[0] if args else None
        if find(first) is not None or not reads.has_rows(first):
            raise InputError(f"{function.__name__} writes what differs between members into a tensor that they share")
    count = len(reads.members)
    names = list(kwargs)
    lines = _by_member([*args, *kwargs.values()], find, reads, cuts, count)
    outputs = [function(*line[: len(args)], **dict(zip(names, line[len(args) :], strict=True))) for line in lines]
    return _joined(outputs, reads, cuts, keep)


def _by_member(values: list[Any], find: Find, reads: Reads, cuts: bool, count: int) -> list[tuple[Any, ...]]:
    """Some arguments, as each member is to get them."""
    columns: list[Sequence[Any]] = []
    for value in values:
        if (seen := find(value)) is not None:
            columns.append(seen.copies)
        elif cuts and reads.has_rows(value):
            columns.append(value.chunk(count))
        elif type(value) is tuple and value:
            columns.append(_by_member(list(value), find, reads, cuts, count))
        elif type(value) is list and value:
            columns.append([list(line) for line in _by_member(value, find, reads, cuts, count)])
        else:
            columns.append([value] * count)
    return list(zip(*columns, strict=True))


def _joined(outputs: list[Any], reads: Reads, cuts: bool, keep: Keep) -> Any:
    first = outputs[0]
    if isinstance(first, tuple | list):
        return type(first)(_joined(list(some), reads, cuts, keep) for some in zip(*outputs, strict=True))
    if not isinstance(first, torch.Tensor):
        return first
    if not cuts:
        return keep(Seen(reads, first, copies=outputs))
    lengths = [length // len(outputs) for length in reads.lengths]
    if first.ndim == 0 or first.shape[0] not in lengths:
        raise InputError(f"an output {tuple(first.shape)} has no row or token of the call in a line")
    return torch.cat(outputs)


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _flat(item)
    elif isinstance(value, dict):
        yield from _flat(list(value.values()))
    else:
        yield value


def _seen_in(value: Any, find: Find) -> Iterator[Seen]:
    return (seen for item in _flat(value) if (seen := find(item)) is not None)


def _with(value: Any, show: Callable[[Seen], Any], find: Find) -> Any:
    """The arguments with something else in place of each weight."""
    if (seen := find(value)) is not None:
        return show(seen)
    if type(value) in (list, tuple):
        return type(value)(_with(item, show, find) for item in value)
    if type(value) is dict:
        return {key: _with(item, show, find) for key, item in value.items()}
    return value


# Rules: what is faster than once a member. Each gives None where it does not apply.


@dataclass
class Ruled:
    """Which rules are on, and how often they ran."""

    thin: bool = True
    triton: bool = False
    corrected: int = 0
    norms: int = 0
    thins: int = 0


RULED = Ruled()
THIN = 64


def _rows_rule(seen: Seen | None, x: Any) -> bool:
    reads = None if seen is None else seen.reads
    return reads is not None and reads.current is None and not seen.for_all_rows and reads.has_rows(x)


def linear_rule(find: Find, x: Any, weight: Any, bias: Any = None) -> torch.Tensor | None:
    seen = find(weight)
    if not _rows_rule(seen, x) or find(x) is not None or x.ndim < 2:
        return None
    own_bias = find(bias)
    count = len(seen.reads.members)
    if seen.factors is not None and own_bias is None:
        return product(x, seen.base.mT, bias, seen.factors.a, seen.factors.b, lambda: F.linear(x, seen.base, bias))
    if seen.factors is not None:
        return None
    if RULED.thin and seen.reads.keeps and min(seen.base.shape) <= THIN:
        RULED.thins += 1
        grouped = x.reshape(count, -1, x.shape[-1])
        if bias is None:
            y = torch.bmm(grouped, seen.stacked.mT)
        else:
            biases = bias.expand(count, -1) if own_bias is None else own_bias.stacked
            y = torch.baddbmm(biases.unsqueeze(1), grouped, seen.stacked.mT)
        return y.view(*x.shape[:-1], y.shape[-1])
    if not x.is_cuda or torch.is_grad_enabled() or torch.is_autocast_enabled("cuda"):
        copies = seen.copies
        biases = [bias] * count if own_bias is None else own_bias.copies
        return torch.cat([F.linear(part, *pair) for part, *pair in zip(x.chunk(count), copies, biases, strict=True)])
    y = x.new_empty(*x.shape[:-1], seen.base.shape[0])
    inputs, outputs = x.reshape(count, -1, x.shape[-1]).unbind(), y.view(count, -1, y.shape[-1]).unbind()
    for member, copy_ in enumerate(seen.copies):
        if bias is None:
            torch.mm(inputs[member], copy_.t(), out=outputs[member])
        else:
            one = bias if own_bias is None else own_bias.at(member)
            torch.addmm(one, inputs[member], copy_.t(), out=outputs[member])
    return y


def addmm_rule(find: Find, bias: Any, x: Any, weight: Any) -> torch.Tensor | None:
    """transformers' Conv1D: bias + x·W."""
    seen = find(weight)
    if not _rows_rule(seen, x) or seen.factors is None or find(bias) is not None or find(x) is not None:
        return None
    return product(x, seen.base, bias, seen.factors.b, seen.factors.a, lambda: torch.addmm(bias, x, seen.base))


def product(
    x: torch.Tensor, weight: torch.Tensor, bias: Any, a: torch.Tensor, b: torch.Tensor, plain: Callable[[], Any]
) -> torch.Tensor:
    """x·weight + bias + (x·b)aᵀ, member by member."""
    if a.shape[-1] == 1 and RULED.triton and x.dtype == weight.dtype and not torch.is_grad_enabled():
        from zoreward.kernels.triton_layers import corrected

        RULED.corrected += 1
        flat = x.contiguous().view(-1, x.shape[-1])
        return corrected(flat, weight, bias, a.squeeze(-1), b.squeeze(-1)).view(*x.shape[:-1], -1)
    y = plain()
    grouped = y.reshape(len(a), -1, y.shape[-1])
    inner = torch.bmm(x.reshape(len(b), -1, x.shape[-1]), b)
    return grouped.baddbmm_(inner.to(y.dtype), a.mT.to(y.dtype)).view(y.shape)


def embedding_rule(find: Find, ids: Any, weight: Any, *args: Any, **kwargs: Any) -> Any:
    seen = find(weight)
    if not _rows_rule(seen, ids) or seen.factors is None:
        return None
    y = F.embedding(ids, seen.base, *args, **kwargs)
    a, b = seen.factors.a, seen.factors.b
    grouped = y.reshape(len(a), -1, y.shape[-1])
    member = torch.arange(len(a), device=a.device).unsqueeze(1)
    return grouped.baddbmm_(a[member, ids.reshape(len(a), -1)], b.mT).view(y.shape)


def norm_rule(find: Find, x: Any, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    seen, own_bias = find(weight), find(bias)
    if find(x) is not None or not _rows_rule(seen, x):
        return None
    count = len(seen.reads.members)
    usable = seen.reads.keeps and tuple(shape) == x.shape[-1:] and not torch.is_grad_enabled()
    if RULED.triton and usable:
        from zoreward.kernels.triton_layers import layer_norm

        biases = bias if bias is None else [bias] * count if own_bias is None else own_bias.stacked.unbind()
        y = layer_norm(x, seen.stacked.unbind(), biases, eps, count)
        if y is not None:
            RULED.norms += 1
            return y
    own = [bias] * count if own_bias is None else own_bias.copies
    parts = zip(x.chunk(count), seen.copies, own, strict=True)
    return torch.cat([F.layer_norm(part, shape, one, other, eps) for part, one, other in parts])


def mul_rule(find: Find, left: Any, right: Any) -> torch.Tensor | None:
    """A vector times rows, as an RMSNorm ends: one product for all members, of the same numbers."""
    weight, x = (left, right) if find(left) is not None else (right, left)
    seen = find(weight)
    if find(x) is not None or not _rows_rule(seen, x) or not seen.reads.keeps or type(seen.base) is not torch.Tensor:
        return None
    if seen.base.ndim != 1 or x.ndim < 2 or x.shape[-1] != seen.base.shape[0]:
        return None
    y = x.reshape(len(seen.reads.members), -1, x.shape[-1]) * seen.stacked.unsqueeze(1)
    return y.view(x.shape)


RULES: dict[Any, Callable[..., Any]] = {
    torch.mul: mul_rule,
    torch.Tensor.mul: mul_rule,
    torch.Tensor.__mul__: mul_rule,
    torch.Tensor.__rmul__: mul_rule,
    F.linear: linear_rule,
    F.embedding: embedding_rule,
    F.layer_norm: norm_rule,
    torch.addmm: addmm_rule,
}


# The context that shows a model as its members.


def _unseen(method: Callable[..., Any]) -> Callable[..., Any]:
    """Read θ itself, also where a mode is in force: it would answer our own kernels, too."""

    def plain(*args: Any, **kwargs: Any) -> Any:
        with torch._C.DisableTorchFunction():
            return method(*args, **kwargs)

    return plain


class Reads:
    """The call in flight, whose rows are grouped by member, and the weights that differ between members.

    Args:
        model: the model.
        members: M members.
        tuned: its tuned weights.
        keeps: whether copies are kept for the whole context, or made again for each read.
    """

    def __init__(self, model: nn.Module, members: Sequence[Member], tuned: Tuned, *, keeps: bool = True):
        self.members, self.keeps, self._tuned = members, keeps, tuned
        self.rows = self.tokens = 0
        self.current: int | None = None
        tables = {part for table in tuned.tables for part in table.modules() if isinstance(part, nn.Embedding)}
        with_lengths = [module for module in model.modules() if getattr(module, "lora_magnitude_vector", None)]
        dora = {part for module in with_lengths for part in (*module.lora_A.modules(), *module.lora_B.modules())}
        low = all(term.rank for member in members for term in member) and any(members)
        self.slots = [s for s in tuned.slots if not low or any(t.moves(s.weight.ndim) for m in members for t in m)]
        for slot in self.slots:
            check_can_be_tuned(slot.weight)
        self._matrices = [s for s in self.slots if low and s.weight.ndim == 2 and s.limit is None]
        self._held, self._copies = HeldFactors(), HeldCopies([] if low or not keeps else self.slots, tuned.kernels)
        self.seen: dict[int, Seen] = {}
        for slot in self.slots:
            key = id(slot.weight)
            if key not in self.seen:
                self.seen[key] = Seen(self, slot.weight.detach(), make=lambda s=slot: self._copies_of(s))
            self.seen[key].for_all_rows |= slot.holder in tables
            self.seen[key].of_dora |= slot.holder in dora
        self.move_to(members)

    @torch.no_grad()
    @_unseen
    def move_to(self, members: Sequence[Member]) -> None:
        """Take other members, as many: into the same copies and factors, which a graph goes on reading."""
        self.members = members
        self._copies.fill(members)
        factors = (
            self._held.filled(member_factors(self._matrices, members, self._tuned.kernels)) if self._matrices else {}
        )
        for slot in self.slots:
            key = id(slot.weight)
            seen = self.seen[key]
            copies = self._copies.copies.get(key)
            if copies is None and seen._copies is not None:  # something asked for them once
                copies = perturbed_copies([slot], members, self._tuned.kernels, {key: seen._copies})[key]
            seen.take(copies, factors.get(key))

    @_unseen
    def _copies_of(self, slot: Slot) -> list[torch.Tensor]:
        return perturbed_copies([slot], self.members, self._tuned.kernels)[id(slot.weight)]

    @property
    def lengths(self) -> tuple[int, int]:
        return self.rows, self.tokens

    def has_rows(self, value: Any) -> bool:
        """Whether a tensor has a row or a token of the call in each line; a weight that rests never has."""
        plain = isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter)
        return plain and value.ndim > 0 and value.shape[0] in self.lengths

    def part(self, member: int) -> Callable[[Any], Any]:
        def share(value: Any) -> Any:
            if not self.has_rows(value):
                return value
            size = value.shape[0] // len(self.members)
            return value[member * size : (member + 1) * size]

        return share

    def see(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self.current is not None:
            return
        named = [kwargs[name] for name in ("input_ids", "inputs_embeds") if kwargs.get(name) is not None]
        first = next(v for v in (*named, *args, *kwargs.values()) if isinstance(v, torch.Tensor))
        if first.ndim == 0 or first.shape[0] % len(self.members):
            raise InputError(f"a call with {tuple(first.shape)} cannot be shared by {len(self.members)} members")
        self.rows = first.shape[0]
        self.tokens = first.shape[0] * first.shape[1] if first.ndim > 1 else first.shape[0]

    def alone(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """A forward for modules that put tokens into another order: once a member, on its rows."""

        def one_by_one(*args: Any, **kwargs: Any) -> Any:
            if self.current is not None:
                return forward(*args, **kwargs)
            outputs = []
            try:
                for member in range(len(self.members)):
                    self.current = member
                    share = self.part(member)
                    outputs.append(forward(*map(share, args), **{k: share(v) for k, v in kwargs.items()}))
            finally:
                self.current = None
            return torch.cat(outputs)

        return one_by_one

    @property
    def reordering(self) -> list[nn.Module]:
        conv = nn.modules.conv._ConvNd
        return list({s.holder: 0 for s in self.slots if s.weight.ndim == 3 and not isinstance(s.holder, conv)})


def check_can_be_tuned(weight: torch.Tensor) -> None:
    """Refuse what no update could write: integers, and tensors made of integers and scales."""
    from torch.distributed.tensor import DTensor

    made_of_others = hasattr(weight, "__tensor_flatten__") and not isinstance(weight, DTensor)
    if not weight.is_floating_point() or made_of_others:
        raise InputError("a quantised weight cannot be tuned", hint="Tune an adapter instead.")


@contextmanager
def shown(model: nn.Module, reads: Reads, way: str = "subclass") -> Iterator[Reading | None]:
    """Show `model` as the members, as long as the context lasts."""
    mode = Reading(reads.seen) if way == "mode" else None
    with ExitStack() as stack:
        for part in called_parts(model):
            if mode is not None:
                stack.callback(part.register_forward_pre_hook(lambda *_: mode.derived.clear()).remove)
            handle = part.register_forward_pre_hook(reads.see, prepend=True, with_kwargs=True)
            stack.callback(handle.remove)
        for module in reads.reordering:
            place = place_of(module)
            before = module.__dict__.get(place)
            module.__dict__[place] = reads.alone(getattr(module, place))
            undo = (
                (lambda m=module, p=place: m.__dict__.pop(p))
                if before is None
                else (lambda m=module, p=place, b=before: m.__dict__.__setitem__(p, b))
            )
            stack.callback(undo)
        if mode is None:
            weights = {key: Weight.of(seen) for key, seen in reads.seen.items()}
            for slot in reads.slots:
                slot.holder._parameters[slot.key] = weights[id(slot.weight)]
                stack.callback(slot.holder._parameters.__setitem__, slot.key, slot.weight)
            yield None
        else:
            with mode:
                yield mode


@contextmanager
def members_by(way: str, model: nn.Module, members: Sequence[Member], tuned: Tuned, **options: Any) -> Iterator[Any]:
    """Today's `members_at`, or one of the new ways."""
    if way == "today":
        with members_at(model, members, tuned=tuned, **({"keep_bytes": 0} if options.get("keeps") is False else {})):
            yield
        return
    with shown(model, Reads(model, members, tuned, **options), way) as mode:
        yield mode


# Answers.


@dataclass(frozen=True)
class Answer:
    """One line of the spike."""

    question: str
    name: str
    ok: bool
    number: float
    unit: str
    sentence: str

    def __str__(self) -> str:
        number = f"{self.number:.3g} {self.unit}".strip()
        verdict = "ok" if self.ok else "FAILED"
        return f"{self.question:<10} {self.name:<44} {verdict:<7} {number:<22} {self.sentence}"


Answers = Iterator[Answer]
DENSE: tuple[Member, ...] = ((Term(11, 0.05),), (Term(11, -0.05),), (Term(12, 0.05), Term(13, 0.02)), (Term(14, 0.05),))
LOW_RANK: tuple[Member, ...] = (
    *((Term(21, 0.1, 1),), (Term(22, 0.1, 2),), (Term(23, 0.07, 1), Term(24, 0.07, 3))),
    (Term(25, 0.1, 1, b_seed=21),),
)
KINDS = {"dense": DENSE, "low-rank": LOW_RANK}
# Rows and tokens of a call. In the second the numbers agree, in the third rows are as many as the models are wide:
# lengths that happen to be those of the call must not be taken for it.
SHAPES = {"4 × 4 rows of 7": (4, 7), "4 × 4 rows of 16": (4, 16), "4 × 8 rows of 5": (8, 5)}
# As in tests/test_families.py: sums of 48 terms of size ≤ 4 in float32, some 1e-5 a layer.
TOLERANCE = 1e-4
ADAPTERS = ("lora", "dora", "ia3")


@cache
def a_model(family: str) -> nn.Module:
    if family not in ADAPTERS:
        return random_model(family).requires_grad_(False)
    from peft import IA3Config, LoraConfig, get_peft_model

    configs = {
        "lora": LoraConfig(r=4, init_lora_weights=False),
        "ia3": IA3Config(init_ia3_weights=False),
        "dora": LoraConfig(r=4, use_dora=True, init_lora_weights=False),
    }
    torch.manual_seed(0)
    return get_peft_model(random_model("llama"), configs[family]).eval()


def tuned_of(model: nn.Module, family: str) -> Tuned:
    if family not in ADAPTERS:
        return tuned_weights(model)
    everything = tuned_weights(model)
    marks = ("lora_", "ia3_")
    return tuned_weights(model, [name for name in everything.weights if any(mark in name for mark in marks)])


def inputs_of(model: Any, rows: int, length: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows * length)
    ids = torch.randint(3, 30, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    given = {"input_ids": ids, "attention_mask": mask}
    if model.config.is_encoder_decoder:
        given["decoder_input_ids"] = torch.randint(3, 30, (rows, length), generator=generator)
    else:
        mask[0, :2] = 0
    return {name: tensor.to(next(model.parameters()).device) for name, tensor in given.items()}


def valid_of(model: Any, given: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return (
        torch.ones_like(given["input_ids"]).bool()
        if model.config.is_encoder_decoder
        else given["attention_mask"].bool()
    )


def one_by_one(family: str, members: Sequence[Member], shape: tuple[int, int]) -> torch.Tensor:
    """A whole copy of the model at each member: the meaning of all of this."""
    model = a_model(family)
    given = inputs_of(model, *shape)
    found = []
    for member in members:
        moved = copy.deepcopy(model)
        update_(moved, Update(0.0, member, 0), tuned=tuned_of(moved, family))
        found.append(moved(**given).logits[valid_of(model, given)])
    return torch.stack(found)


def together(family: str, members: Sequence[Member], shape: tuple[int, int], way: str, **options: Any) -> torch.Tensor:
    model = a_model(family)
    given = inputs_of(model, *shape)
    many = {name: tensor.repeat(len(members), 1) for name, tensor in given.items()}
    if way == "vmap":
        logits = by_vmap(model, members, tuned_of(model, family), given)
        return logits[:, valid_of(model, given)]
    with members_by(way, model, members, tuned_of(model, family), **options):
        logits = model(**many).logits
    return logits[valid_of(model, given).repeat(len(members), 1)].view(len(members), -1, logits.shape[-1])


def by_vmap(model: Any, members: Sequence[Member], tuned: Tuned, given: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """functional_call over stacked copies; `given` are one member's rows, which all see."""
    copies = perturbed_copies(tuned.slots, members, tuned.kernels)
    names = {id(weight): name for name, weight in model.named_parameters()}
    stacked = {names[key]: torch.stack(some) for key, some in copies.items()}

    def one(weights: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.func.functional_call(model, weights, (), dict(given)).logits

    return torch.func.vmap(one, randomness="different")(stacked)


# 1. Equality.


@torch.no_grad()
def equality(device: str) -> Answers:
    """Bits and roundings against whole copies. Always on the CPU: tests/test_families.py defines them there."""
    torch.set_num_threads(1)
    families = [*BUILDERS, *ADAPTERS]
    ways = ["today", "subclass", "mode", "vmap"]
    wrong: dict[tuple[str, str], dict[str, str]] = {}
    worst: dict[tuple[str, str], float] = {}
    RULED.thin = False  # a batched product may differ in the last bit
    for kind, members in KINDS.items():
        for family in families:
            for label, shape in SHAPES.items():
                expected = one_by_one(family, members, shape)
                for way in ways if kind == "dense" else ways[:-1]:
                    why, error = compared(family, members, shape, way, expected, exact=kind == "dense")
                    worst[kind, way] = max(worst.get((kind, way), 0.0), error)
                    if why:
                        wrong.setdefault((kind, way), {}).setdefault(family, f"{label}: {why}")
    RULED.thin = True
    for kind in KINDS:
        for way in ways if kind == "dense" else ways[:-1]:
            bad = wrong.get((kind, way), {})
            asked = "equal bits" if kind == "dense" and way in ("subclass", "mode") else f"within {TOLERANCE:g}"
            told = (
                "; ".join(f"{name} ({why})" for name, why in bad.items()) or f"worst difference {worst[kind, way]:.2g}"
            )
            yield Answer(
                "equality",
                f"{kind}, {way}",
                not bad,
                len(families) - len(bad),
                f"of {len(families)}",
                f"{asked}, at three shapes; {told}",
            )
    unkept = [
        f
        for f in ("llama-tied", "gpt2", "t5", "mamba")
        if not torch.equal(together(f, DENSE, (4, 7), "subclass", keeps=False), one_by_one(f, DENSE, (4, 7)))
    ]
    yield Answer(
        "equality",
        "dense, subclass, copies made at each read",
        not unkept,
        4 - len(unkept),
        "of 4",
        f"no copy outlives its read; wrong: {unkept or 'none'}",
    )
    broken = [
        f for f in families for way in ("subclass", "mode") for m in KINDS.values() if not leaves_alone(f, m, way)
    ]
    yield Answer(
        "equality",
        "θ and modules afterwards",
        not broken,
        len(families) - len(set(broken)),
        f"of {len(families)}",
        f"bits and what hangs where; wrong: {broken or 'none'}",
    )


def compared(
    family: str, members: Sequence[Member], shape: tuple[int, int], way: str, expected: torch.Tensor, exact: bool
) -> tuple[str, float]:
    """Why the logits are not what they should be, or nothing; and the largest difference."""
    try:
        got = together(family, members, shape, way)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:90]}", 0.0
    if torch.equal(got, expected):
        return "", 0.0
    difference = float((got - expected).abs().max())
    if exact and way in ("subclass", "mode"):
        return f"differs by {difference:.2g}", difference
    relative = difference / max(1.0, float(expected.abs().max()))
    return ("" if relative <= TOLERANCE else f"differs by {difference:.2g}"), difference


def leaves_alone(family: str, members: Sequence[Member], way: str) -> bool:
    model = a_model(family)
    state = lambda: [(k, dict(m._parameters), set(m.__dict__)) for k, m in model.named_modules()]  # noqa: E731
    bits, before = [w.clone() for w in model.parameters()], state()
    together(family, members, (1, 5), way)
    same = all(torch.equal(a, b) for a, b in zip(model.parameters(), bits, strict=True))
    return same and all(
        n == k and p.keys() == q.keys() and all(p[x] is q[x] for x in p) and d == e
        for (n, p, d), (k, q, e) in zip(state(), before, strict=True)
    )


# 2. Speed.


def medians(works: Mapping[str, Callable[[], Any]], rounds: int, device: str) -> dict[str, float]:
    """Median seconds of each, in turn, after two rounds that do not count: on a CPU those of this process alone."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 2):
        for name, work in works.items():
            start = time.process_time()
            took = timed(work, torch.device(device))
            if number > 1:
                seconds[name].append(took if device == "cuda" else time.process_time() - start)
    return {name: statistics.median(some) for name, some in seconds.items()}


def llama(hidden: int, layers: int, vocabulary: int, device: str, dtype: torch.dtype) -> Any:
    import transformers as hf

    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 32,
        max_position_embeddings=512,
    )
    with torch.device(device):
        return hf.LlamaForCausalLM._from_config(config, dtype=dtype).eval().requires_grad_(False)


def opt(shape: str, device: str, dtype: torch.dtype) -> Any:
    import transformers as hf
    from measure import opt_config

    torch.manual_seed(0)
    with torch.device(device):
        return hf.OPTForCausalLM._from_config(opt_config(shape), dtype=dtype).eval().requires_grad_(False)


def speed_cases(device: str) -> Iterator[tuple[str, Any, int, tuple[int, int], int]]:
    """Name, model, members, rows of each and tokens, rounds."""
    single, half = torch.float32, torch.bfloat16
    yield "tiny OPT", opt("tiny", device, single), 8, (2, 16), 15 if device == "cpu" else 40
    if device == "cpu":
        yield "Llama 12M", llama(256, 8, 8000, device, single), 4, (2, 24), 7
    else:
        yield "Llama 12M", llama(256, 8, 8000, device, single), 8, (8, 64), 25
        yield "OPT-125M bf16", opt("opt-125m", device, half), 8, (8, 64), 25
        yield "OPT-125M bf16, 1 row", opt("opt-125m", device, half), 8, (1, 64), 25


@torch.no_grad()
def speed(device: str) -> Answers:
    RULED.triton = device == "cuda"
    for label, model, count, shape, rounds in speed_cases(device):
        for kind in KINDS:
            ways = ["today", "subclass", "mode", *(["vmap"] if kind == "dense" else [])]
            seconds = forward_seconds(model, kind, count, shape, rounds, device, ways)
            whole = whole_seconds(model, kind, count, shape, max(5, rounds // 2), device, ways[:3])
            for way in ways[1:]:
                if way not in seconds:
                    yield Answer("speed", f"{label}, {kind}, {way}", False, float("nan"), "×", "the forward fails")
                    continue
                ratio = seconds[way] / seconds["today"]
                again = f"; with its context {whole[way] / whole['today']:.3f}×" if way in whole else ""
                told = f"{1e3 * seconds[way]:.2f} ms a forward, today {1e3 * seconds['today']:.2f}{again}"
                yield Answer("speed", f"{label}, {kind}, {way}", ratio < 1.05, ratio, "× today", told)
        del model
        gc.collect()


def some_members(kind: str, count: int, first: int = 0) -> tuple[Member, ...]:
    rank = 0 if kind == "dense" else 1
    return tuple((Term(first + k // 2, sign * 1e-3, rank),) for k in range(count) for sign in [1 - 2 * (k % 2)])


def forward_seconds(
    model: Any, kind: str, count: int, shape: tuple[int, int], rounds: int, device: str, ways: Sequence[str]
) -> dict[str, float]:
    """Medians of a forward inside a context that is open already, each way on a copy of the model."""
    members = some_members(kind, count)
    ids = torch.randint(3, model.config.vocab_size, (shape[0], shape[1]), device=device).repeat(count, 1)
    works: dict[str, Callable[[], Any]] = {}
    with ExitStack() as stack:
        for way in ways:
            other = copy.deepcopy(model)
            tuned = tuned_weights(other)
            if way == "vmap":
                names = {id(weight): name for name, weight in other.named_parameters()}
                copies = perturbed_copies(tuned.slots, members, tuned.kernels)
                stacked = {names[key]: torch.stack(some) for key, some in copies.items()}
                works[way] = lambda m=other, s=stacked: torch.func.vmap(
                    lambda weights, rows: torch.func.functional_call(m, weights, (), {"input_ids": rows}).logits
                )(s, ids.view(count, -1, ids.shape[1]))
                try:
                    works[way]()
                except Exception:
                    del works[way]
                continue
            if way == "mode":  # a mode is in force for all that runs: enter it for its own forward alone
                reads = Reads(other, members, tuned)
                works[way] = lambda m=other, r=reads: _in_mode(m, r, ids)
                continue
            stack.enter_context(members_by(way, other, members, tuned))
            works[way] = lambda m=other: m(input_ids=ids).logits
        return medians(works, rounds, device)


def _in_mode(model: Any, reads: Reads, ids: torch.Tensor) -> Any:
    with shown(model, reads, "mode"):
        return model(input_ids=ids).logits


def whole_seconds(
    model: Any, kind: str, count: int, shape: tuple[int, int], rounds: int, device: str, ways: Sequence[str]
) -> dict[str, float]:
    """Medians of a step's scoring: other members each time, the context, one forward."""
    ids = torch.randint(3, model.config.vocab_size, shape, device=device).repeat(count, 1)
    drawn = iter(range(1, 1 << 20))
    works: dict[str, Callable[[], Any]] = {}
    for way in ways:
        other = copy.deepcopy(model)
        tuned = tuned_weights(other)
        held: list[Reads] = []  # as Shared does: what is made once is moved from then on

        def work(way: str = way, other: Any = other, tuned: Tuned = tuned, held: list[Reads] = held) -> Any:
            members = some_members(kind, count, 1000 * next(drawn))
            if way == "today":
                with members_at(other, members, tuned=tuned):
                    return other(input_ids=ids).logits
            if held:
                held[0].move_to(members)
            else:
                held.append(Reads(other, members, tuned))
            with shown(other, held[0], way):
                return other(input_ids=ids).logits

        works[way] = work
    return medians(works, rounds, device)


# 3. CUDA graphs.


@torch.no_grad()
def graphs(device: str) -> Answers:
    """On a CPU nothing is captured, but the rest is tried: the same copies, cache and buffers at other members."""
    for name, work in {"forward": forward_graph, "decoding step": decode_graph}.items():
        for kind in KINDS:
            for way in ("subclass", "mode"):
                yield from guarded("graphs", f"{name}, {kind}, {way}", work, kind, way, device)


def guarded(question: str, name: str, work: Callable[..., Answer], *args: Any) -> Answers:
    """One answer, also where it fails."""
    try:
        yield work(*args)
    except TimeoutError:
        raise
    except Exception as error:
        yield failed(question, name, error)


def captured(work: Callable[[], Any]) -> Callable[[], None]:
    from zoreward.scoring.stepping import captured as capture
    from zoreward.scoring.stepping import on_side_stream

    on_side_stream(work)
    return capture(work).replay


def near(got: torch.Tensor, expected: torch.Tensor) -> tuple[bool, float]:
    """Whether two are the same up to rounding, and the largest difference over the largest size."""
    wide = expected.float()
    error = float((got.float() - wide).abs().max() / wide.abs().max().clamp(min=1e-30))
    return error <= (2e-2 if expected.dtype != torch.float32 else 1e-3 if expected.is_cuda else 1e-5), error


def forward_graph(kind: str, way: str, device: str) -> Answer:
    RULED.triton = device == "cuda"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = llama(128, 4, 512, device, dtype)
    ids = torch.randint(3, 500, (8, 16), device=device)
    given = {"input_ids": ids, "attention_mask": torch.zeros(8, 1, 16, 16, device=device, dtype=dtype)}
    first, second = (scaled(some_members(kind, 4, seed)) for seed in (10, 20))
    reads = Reads(model, first, tuned_weights(model))
    logits = torch.empty(8, 16, 512, device=device, dtype=dtype)

    def work(m: Any = model, g: Any = given, to: Any = logits) -> None:
        to.copy_(m(**g, use_cache=False).logits)

    with shown(model, reads, way):
        replay = captured(work) if device == "cuda" else work
        replay()
        before = logits.clone()
        reads.move_to(second)
        logits.zero_()
        replay()
        again, eager = timed(replay, ids.device), timed(work, ids.device)
    ok, error = near(*both(model, second, given, logits))
    moved = float((logits - before).float().abs().max()) > 0
    told = (
        f"replayed after other members were written into its copies; eager {1e3 * eager:.2f} ms"
        if (device == "cuda")
        else "no GPU: not captured, the same buffers moved to other members"
    )
    return Answer(
        "graphs",
        f"forward, {kind}, {way}",
        ok and moved,
        1e3 * again,
        "ms",
        f"{told}; error {error:.1e} of today's, members {'moved' if moved else 'DID NOT MOVE'}",
    )


def scaled(members: Sequence[Member], by: float = 20.0) -> tuple[Member, ...]:
    return tuple(tuple(Term(t.seed, t.coefficient * by, t.rank) for t in member) for member in members)


def both(model: Any, members: Sequence[Member], given: Any, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    with members_at(model, members):
        return logits, model(**given, use_cache=False).logits


class Decoder:
    """A step of decoding for R rows in tensors that stay where they are."""

    def __init__(self, model: Any, ids: torch.Tensor, length: int):
        from zoreward.neighbours.transformers_cache_layer import FixedLayer

        self.model, device = model, ids.device
        rows, self.width = ids.shape
        like = model(input_ids=ids, use_cache=True).past_key_values.layers
        self.place = torch.zeros(1, dtype=torch.long, device=device)
        self.position = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self.token = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self.layers = [FixedLayer(layer.keys, layer.values, length, self.place) for layer in like]
        self.bias = self.layers[0].keys.new_zeros(rows, 1, 1, length)
        self.logits = torch.zeros(rows, model.config.vocab_size, device=device, dtype=self.bias.dtype)

    def begin(self, ids: torch.Tensor) -> None:
        read = self.model(input_ids=ids, use_cache=True)
        for layer, new in zip(self.layers, read.past_key_values.layers, strict=True):
            layer.keys[:, :, : self.width], layer.values[:, :, : self.width] = new.keys, new.values
        self.bias.fill_(torch.finfo(self.bias.dtype).min)
        self.bias[..., : self.width] = 0
        self.place.fill_(self.width)
        self.position.fill_(self.width)
        self.token.copy_(read.logits[:, -1:].argmax(-1))

    def step(self) -> None:
        from transformers.cache_utils import Cache

        self.bias.index_fill_(3, self.place, 0.0)
        read = self.model(
            input_ids=self.token,
            attention_mask=self.bias,
            position_ids=self.position,
            use_cache=True,
            past_key_values=Cache(layers=self.layers),
        )
        self.logits.copy_(read.logits[:, -1])
        self.token.copy_(self.logits.argmax(-1, keepdim=True))
        self.place += 1
        self.position += 1


def decode_graph(kind: str, way: str, device: str) -> Answer:
    RULED.triton = device == "cuda"
    model = llama(128, 4, 512, device, torch.float32)
    ids = torch.randint(3, 500, (8, 6), device=device)
    first, second = (scaled(some_members(kind, 4, seed)) for seed in (10, 20))
    reads = Reads(model, first, tuned_weights(model))
    with shown(model, reads, way):
        decoder = Decoder(model, ids, 16)
        decoder.begin(ids)
        step = captured(decoder.step) if device == "cuda" else decoder.step
        reads.move_to(second)
        decoder.begin(ids)  # other members read the prompts otherwise
        written = [decoder.token.clone()]
        for _ in range(4):
            step()
            written.append(decoder.token.clone())
        got = decoder.logits.clone()
        again = timed(step, ids.device)
    with members_at(model, second):
        expected = model(input_ids=torch.cat([ids, *written[:-1]], 1), use_cache=False).logits[:, -1]
    ok, error = near(got, expected)
    told = "captured at other members, replayed" if device == "cuda" else "no GPU: not captured, run as it is"
    return Answer(
        "graphs",
        f"decoding step, {kind}, {way}",
        ok,
        1e3 * again,
        "ms",
        f"{told}; 4 steps from a static cache, error {error:.1e} of a pass without one",
    )


# 4. The Triton rules.


@torch.no_grad()
def rules(device: str) -> Answers:
    """Whether what is launched by hand can be launched from inside the dispatch; on a CPU by Triton's interpreter."""
    for kind in KINDS:
        for way in ("subclass", "mode"):
            yield from guarded("rules", f"{kind}, {way}", rule_at, kind, way, device)
    RULED.triton = device == "cuda"


def rule_at(kind: str, way: str, device: str) -> Answer:
    model = opt("tiny", device, torch.float32) if device == "cuda" else a_model("opt")
    ids = torch.randint(3, 30, (8, 6), device=device)
    mask, places = torch.zeros(8, 1, 6, 6, device=device), torch.arange(6, device=device).repeat(8, 1)
    given = {"input_ids": ids, "attention_mask": mask, "position_ids": places, "use_cache": False}
    members = scaled(some_members(kind, 4))
    tuned = tuned_weights(model)
    RULED.triton = False
    with members_by("subclass", model, members, tuned):
        expected = model(**given).logits
    RULED.triton, RULED.corrected, RULED.norms = True, 0, 0
    reads = Reads(model, members, tuned)
    if device != "cuda" and kind == "dense":  # on a GPU the copies of a dtype lie in one allocation
        for seen in reads.seen.values():
            seen._copies = list(torch.stack(seen.copies).unbind())
    logits = torch.empty_like(expected)

    def work() -> None:
        logits.copy_(model(**given).logits)

    with shown(model, reads, way):
        eager = timed(work, ids.device)
        calls = RULED.corrected if kind == "low-rank" else RULED.norms
        told = f"{'correction' if kind == 'low-rank' else 'norm'} launched {calls} times in {1e3 * eager:.1f} ms"
        if device == "cuda":
            logits.zero_()
            captured(work)()
            told += ", and replayed from a graph"
    ok, error = near(logits, expected)
    told += f"; error {error:.1e} of the plain operations"
    return Answer("rules", f"{kind}, {way}", ok and calls > 0, calls, "launches", told)


# 5. accelerate and a device map.


@torch.no_grad()
def devices(device: str) -> Answers:
    from accelerate import cpu_offload

    places = ("cuda:0", "cpu") if device == "cuda" else ("cpu", "cpu")
    RULED.triton = RULED.thin = False
    for family in ("llama-tied", "opt", "gpt2", "t5", "qwen3-moe"):
        for kind in KINDS:
            for way in ("subclass", "mode"):
                yield from guarded("devices", f"{family}, {kind}, {way}", spread_at, family, kind, way, places)
    for way in ("today", "subclass", "mode"):
        away = copy.deepcopy(a_model("llama"))
        cpu_offload(away, execution_device=torch.device(device))
        try:
            given = inputs_of(a_model("llama"), 4, 7)
            many = {k: v.repeat(4, 1).to(device) for k, v in given.items()}
            with members_by(way, away, DENSE, tuned_weights(away)):
                logits = away(**many).logits.view(4, -1)
            differ = float((logits[0] - logits[1]).abs().max())
            yield Answer(
                "devices",
                f"offloaded weights, {way}",
                False,
                differ,
                "difference",
                "hooks hang θ over the members in each call: to be refused, as the loader does",
            )
        except Exception as error:
            yield Answer(
                "devices",
                f"offloaded weights, {way}",
                True,
                1,
                "refusal",
                f"{type(error).__name__}: {str(error).splitlines()[0][:100]}",
            )
    RULED.thin = True


def spread_at(family: str, kind: str, way: str, places: tuple[str, str]) -> Answer:
    from accelerate import dispatch_model

    spread, members = copy.deepcopy(a_model(family)), KINDS[kind]
    options = {"skip_keys": spread._skip_keys_device_placement, "force_hooks": True, "main_device": "cpu"}
    dispatch_model(spread, map_of(spread, *places), **options)
    given = inputs_of(a_model(family), 4, 7)
    many = {name: tensor.repeat(len(members), 1).to(places[0]) for name, tensor in given.items()}
    with members_by(way, spread, members, tuned_weights(spread)):
        logits = spread(**many).logits.cpu()
    got = logits[valid_of(spread, given).repeat(len(members), 1)].view(len(members), -1, logits.shape[-1])
    expected = together(family, members, (4, 7), way)
    error = near(got, expected)[1]
    ok = torch.equal(got, expected) if places[0] == "cpu" else error <= 1e-3
    hooks = sum("_old_forward" in module.__dict__ for module in spread.modules())
    told = f"{hooks} hooked modules in {' and '.join(places)}, beside the model in one place"
    return Answer("devices", f"{family}, {kind}, {way}", ok, error, "error", told)


def map_of(model: nn.Module, first: str, last: str) -> dict[str, str]:
    """Every layer by itself: the first half in one place, the others in another; what is tied stays together."""
    whole: list[str] = []
    for name, module in model.named_modules():
        alone = type(module).__name__ in (model._no_split_modules or ()) or not list(module.children())
        if alone and not any(name.startswith(f"{other}.") for other in whole):
            whole.append(name)
    shared = model.get_input_embeddings().weight
    tied = {name for name, module in model.named_modules() if any(w is shared for w in module._parameters.values())}
    return {name: first if n < len(whole) // 2 or name in tied else last for n, name in enumerate(whole)}


# 6. Quantised bases.


class Int8Linear(nn.Module):
    """A weight of integers, and a scale for each line."""

    def __init__(self, plain: nn.Linear):
        super().__init__()
        scale = plain.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.weight = nn.Parameter((plain.weight.detach() / scale).round().to(torch.int8), requires_grad=False)
        self.bias = plain.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


class WithLoRA(nn.Module):
    """A quantised layer and its adapter; counts the calls of the base."""

    def __init__(self, base: nn.Module, inputs: int, outputs: int, like: torch.Tensor):
        super().__init__()
        self.base, self.calls = base, 0
        self.lora_A, self.lora_B = (nn.Linear(*s, bias=False, device=like.device) for s in ((inputs, 4), (4, outputs)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.base(x) + self.lora_B(self.lora_A(x))


def quantised(device: str) -> Answers:
    from importlib.util import find_spec

    backends: dict[str, Callable[[nn.Linear], nn.Module]] = {"own int8": Int8Linear}
    if find_spec("torchao"):
        backends["torchao int8"] = _by_torchao
    if find_spec("bitsandbytes"):
        backends["bitsandbytes 8 bits"] = _by_bitsandbytes
    for name, quantise in backends.items():
        try:
            yield from over_quantised(name, quantise, device)
        except Exception as error:
            yield failed("quantised", name, error)
    missing = [package for package in ("torchao", "bitsandbytes") if not find_spec(package)]
    yield Answer(
        "quantised",
        "backends",
        not missing,
        len(backends),
        "backends",
        f"not installed, so not tried: {', '.join(missing) or 'none'}",
    )


def _by_torchao(plain: nn.Linear) -> nn.Module:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    holder = nn.Sequential(plain)
    quantize_(holder, Int8WeightOnlyConfig())
    return holder[0]


def _by_bitsandbytes(plain: nn.Linear) -> nn.Module:
    import bitsandbytes as bnb

    layer = bnb.nn.Linear8bitLt(plain.in_features, plain.out_features, plain.bias is not None, has_fp16_weights=False)
    layer.load_state_dict(plain.state_dict())
    return layer.to(plain.weight.device)


@torch.no_grad()
def over_quantised(name: str, quantise: Callable[[nn.Linear], nn.Module], device: str) -> Answers:
    model = copy.deepcopy(a_model("llama")).to(device)
    for layer in model.model.layers:
        for place in ("q_proj", "v_proj"):
            plain = getattr(layer.self_attn, place)
            made = WithLoRA(quantise(copy.deepcopy(plain)), plain.in_features, plain.out_features, plain.weight)
            setattr(layer.self_attn, place, made)
    adapters = [n for n in tuned_weights(model).weights if "lora_" in n]
    tuned = tuned_weights(model, adapters)
    layers = [module for module in model.modules() if isinstance(module, WithLoRA)]
    for kind, members in KINDS.items():
        ids = inputs_of(model, 4, 7)["input_ids"]
        expected = []
        for member in members:
            moved = copy.deepcopy(model)
            update_(moved, Update(0.0, member, 0), tuned=tuned_weights(moved, adapters))
            expected.append(moved(input_ids=ids).logits)
        for way in ("today", "subclass", "mode"):
            for layer in layers:
                layer.calls = 0
            with members_by(way, model, members, tuned):
                got = model(input_ids=ids.repeat(len(members), 1)).logits
            ok, error = near(got, torch.cat(expected))
            calls = {layer.calls for layer in layers}
            yield Answer(
                "quantised",
                f"{name}, LoRA {kind}, {way}",
                ok and calls == {1},
                error,
                "error",
                f"the base of each layer ran {sorted(calls)} times for {len(members)} members",
            )
    weight = next(iter(layers[0].base.parameters()))
    try:
        check_can_be_tuned(weight)
        yield Answer("quantised", f"{name}, tuned itself", False, 0, "refusals", f"{type(weight).__name__} was taken")
    except InputError as error:
        yield Answer("quantised", f"{name}, tuned itself", True, 1, "refusal", str(error))


# 7. DTensor.


@torch.no_grad()
def dtensor(device: str) -> Answers:
    """A mesh of one process over gloo, on the CPU whatever the device is."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            mesh = init_device_mesh("cpu", (1,))
            for way in ("subclass", "mode"):
                for kind in KINDS:
                    try:
                        yield over_dtensors(way, kind, mesh)
                    except Exception as error:
                        yield failed("dtensor", f"{kind}, {way}", error)
            yield from storage_of_dtensors(mesh)
        finally:
            dist.destroy_process_group()


def over_dtensors(way: str, kind: str, mesh: Any) -> Answer:
    """Two linear layers cut as tensor parallelism cuts them; what is made of z is cut as the weight is."""
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8)).requires_grad_(False)
    cut = copy.deepcopy(plain)
    parallelize_module(cut, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    kinds = {type(weight).__name__ for weight in cut.parameters()}
    members = KINDS[kind]
    x = torch.randn(8, 16)
    with members_at(plain, members):
        expected = plain(x)
    whole = Reads(plain, members, tuned_weights(plain))
    tuned = tuned_weights(plain)
    by_name = {name: whole.seen.get(id(weight)) for name, weight in tuned.weights.items()}
    reads = Reads(plain, members, tuned)
    reads.slots, reads.seen = [], {}
    for name, weight in cut.named_parameters():
        holder = cut.get_submodule(name.rpartition(".")[0])
        old = by_name[name]
        if old is None:
            continue
        placements = weight.placements
        seen = Seen(reads, weight)
        if old.factors is None:
            seen.take([distribute_tensor(one, mesh, placements) for one in old.copies], None)
        else:  # a is cut where W's lines are, b where its columns are
            row = [Shard(1) if p == Shard(0) else Replicate() for p in placements]
            column = [Shard(1) if p == Shard(1) else Replicate() for p in placements]
            pair = distribute_tensor(old.factors.a, mesh, row), distribute_tensor(old.factors.b, mesh, column)
            seen.factors = Pair(*pair)
        reads.seen[id(weight)] = seen
        reads.slots.append(Slot(holder, name.rpartition(".")[2], weight, 0))
    with shown(cut, reads, way):
        y = cut(x)
    y = y.full_tensor() if isinstance(y, DTensor) else y
    ok, error = near(y, expected)
    return Answer(
        "dtensor", f"{kind}, {way}", ok, error, "error", f"weights {kinds}; copies and factors cut as they are"
    )


@dataclass
class Pair:
    """Factors that were cut."""

    a: torch.Tensor
    b: torch.Tensor


def storage_of_dtensors(mesh: Any) -> Answers:
    """What the rest of the code makes of such a model: which weights it finds, and what its kernels make of them."""
    from torch.distributed.tensor import Shard, distribute_tensor

    layer = nn.Linear(16, 32, bias=False).requires_grad_(False)
    layer.weight = nn.Parameter(distribute_tensor(layer.weight.detach(), mesh, [Shard(0)]), requires_grad=False)
    try:
        found = len(tuned_weights(layer).weights)
        yield Answer("dtensor", "tuned_weights finds them", found == 1, found, "of 1", "")
    except InputError as error:
        yield Answer("dtensor", "tuned_weights finds them", False, 0, "of 1", f"it takes them for quantised: {error}")
    try:
        torch.Tensor._make_subclass(Weight, layer.weight)
        yield Answer("dtensor", "a subclass made by _make_subclass", True, 1, "", "")
    except RuntimeError as error:
        told = f"a subclass has to hold the DTensor, as Weight.of does: {str(error)[:110]}"
        yield Answer("dtensor", "a subclass made by _make_subclass", False, 0, "", told)


# 8. torch.compile and torch.export.


@torch.no_grad()
def compiled(device: str) -> Answers:
    RULED.triton = False
    for kind in KINDS:
        yield from guarded("compile", f"{kind}, export, weights made inside", exported_at, kind, device)
        yield from guarded("compile", f"{kind}, export of a shown model", exported_as_shown, kind, device)
    for kind in KINDS:
        for way in ("subclass", "mode", "today"):
            backend = "inductor" if device == "cuda" and way == "subclass" else "eager"
            for full in (True, False)[: 1 if device == "cuda" else 2]:
                name = f"{kind}, {way}, {backend}{', fullgraph' if full else ''}"
                yield from guarded("compile", name, compiled_at, name, kind, way, full, backend, device)
                torch._dynamo.reset()


def exported_as_shown(kind: str, device: str) -> Answer:
    model, given = small(device), inputs_for_export(device)
    with members_at(model, KINDS[kind]):
        expected = model(**given).logits
    with members_by("subclass", model, KINDS[kind], tuned_weights(model)):
        got = torch.export.export(model, (), given, strict=False).module()(**given).logits
    ok, error = near(got, expected)
    return Answer("compile", f"{kind}, export of a shown model", ok, error, "error", "not strict")


def small(device: str) -> Any:
    return llama(64, 2, 64, device, torch.float32)


def inputs_for_export(device: str) -> dict[str, Any]:
    ids = torch.arange(8 * 6, device=device).view(8, 6) % 60
    return {"input_ids": ids, "attention_mask": torch.zeros(8, 1, 6, 6, device=device), "use_cache": False}


def compiled_at(name: str, kind: str, way: str, full: bool, backend: str, device: str) -> Answer:
    model = small(device)
    given = inputs_for_export(device)
    members = KINDS[kind]
    with members_at(model, members):
        expected = model(**given).logits
    program = torch.compile(model, fullgraph=full, backend=backend)
    start = time.perf_counter()
    with members_by(way, model, members, tuned_weights(model)):
        got = program(**given).logits
        seconds = time.perf_counter() - start
    ok, error = near(got, expected)
    return Answer("compile", name, ok, seconds, "s to compile", f"error {error:.1e}")


class AtMembers(nn.Module):
    """A model and its members as plain tensors; the weights that know them are made inside the call that is traced."""

    def __init__(self, model: Any, members: Sequence[Member]):
        super().__init__()
        self.model, self.reads = model, Reads(model, members, tuned_weights(model))
        for number, seen in enumerate(self.reads.seen.values()):
            if seen.factors is None:
                for member, one in enumerate(seen.copies):
                    self.register_buffer(f"copy_{number}_{member}", one)
            else:
                self.register_buffer(f"a_{number}", seen.factors.a.clone())
                self.register_buffer(f"b_{number}", seen.factors.b.clone())

    def forward(self, **given: Any) -> torch.Tensor:
        for number, seen in enumerate(self.reads.seen.values()):
            slot = next(s for s in self.reads.slots if self.reads.seen[id(s.weight)] is seen)
            seen.base = slot.holder._parameters[slot.key]
            if seen.factors is None:
                count = len(self.reads.members)
                seen._copies = [getattr(self, f"copy_{number}_{member}") for member in range(count)]
                seen._stacked = None
            else:
                seen.factors = Pair(getattr(self, f"a_{number}"), getattr(self, f"b_{number}"))
        with shown(self.model, self.reads):
            return self.model(**given).logits


def exported_at(kind: str, device: str) -> Answer:
    model = small(device)
    given = inputs_for_export(device)
    with members_at(model, KINDS[kind]):
        expected = model(**given).logits
    RULED.thin = False
    inside = AtMembers(model, KINDS[kind])
    start = time.perf_counter()
    program = torch.export.export(inside, (), given, strict=False)
    seconds = time.perf_counter() - start
    RULED.thin = True
    ok, error = near(program.module()(**given), expected)
    return Answer("compile", f"{kind}, export, weights made inside", ok, seconds, "s to export", f"error {error:.1e}")


# Running.


QUESTIONS: dict[str, Callable[[str], Answers]] = {
    "equality": equality,
    "speed": speed,
    "graphs": graphs,
    "rules": rules,
    "devices": devices,
    "quantised": quantised,
    "dtensor": dtensor,
    "compile": compiled,
}


def failed(question: str, name: str, error: BaseException) -> Answer:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
    where = traceback.extract_tb(error.__traceback__)[-1]
    told = f"{type(error).__name__}: {lines[0][:160]} ({Path(where.filename).name}:{where.lineno})"
    return Answer(question, name, False, float("nan"), "", told)


def asked(question: str, device: str, seconds: float) -> list[Answer]:
    """The answers to one question, and what stopped it."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"{seconds:.0f} s were not enough")

    answers: list[Answer] = []
    signal.signal(signal.SIGALRM, late)
    signal.alarm(max(1, int(seconds)))
    start = time.perf_counter()
    try:
        for answer in QUESTIONS[question](device):
            print(answer, flush=True)
            answers.append(answer)
    except Exception as error:
        answers.append(failed(question, "stopped", error))
        print(answers[-1], flush=True)
    finally:
        signal.alarm(0)
    print(f"{question:<10} took {time.perf_counter() - start:.1f} s", flush=True)
    return answers


def asked_apart(question: str, device: str, seconds: float) -> list[Answer]:
    """The same in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "answers.json")
        command = [
            sys.executable,
            str(HERE),
            "--device",
            device,
            "--only",
            question,
            "--json",
            str(file),
            "--here",
            "--seconds",
            str(int(seconds)),
        ]
        try:
            code = subprocess.run(command, timeout=seconds + 15).returncode
        except subprocess.TimeoutExpired:
            code = -1
        if file.exists():
            return [Answer(**answer) for answer in json.loads(file.read_text())["answers"]]
        stopped = Answer(question, "stopped", False, float("nan"), "", f"its process ended with {code}")
        print(stopped, flush=True)
        return [stopped]


def main() -> None:
    """Ask all questions and print the answers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", help="a file for the answers")
    parser.add_argument("--only", nargs="+", choices=QUESTIONS, default=list(QUESTIONS))
    parser.add_argument("--seconds", type=int, default=0, help="most of a question; 0: 90 on a GPU, 900 on a CPU")
    parser.add_argument("--here", action="store_true", help="in this process, also on a GPU")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    import transformers

    transformers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    device = torch.device(options.device)
    if options.device == "cpu":
        torch.set_num_threads(1)
    if not options.here:
        print(f"{machine(device)}, torch {torch.__version__}, transformers {transformers.__version__}", flush=True)
    apart = options.device == "cuda" and not options.here
    end = time.perf_counter() + (ALL_SECONDS if options.device == "cuda" else 3600)
    answers: list[Answer] = []
    for question in options.only:
        most = min(options.seconds or (QUESTION_SECONDS if apart else 900), end - time.perf_counter())
        if most < 5:
            answers.append(Answer(question, "stopped", False, float("nan"), "", "no time was left"))
            print(answers[-1], flush=True)
            continue
        answers += asked_apart(question, options.device, most) if apart else asked(question, options.device, most)
    if not options.here:
        print(f"{sum(answer.ok for answer in answers)} of {len(answers)} ok", flush=True)
    if options.json:
        about = {"device": machine(device), "torch": torch.__version__, "transformers": transformers.__version__}
        Path(options.json).write_text(json.dumps({**about, "answers": [asdict(a) for a in answers]}, indent=1))


if __name__ == "__main__":
    main()
