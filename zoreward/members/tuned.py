"""The tuned weights of a model, and the modules that use them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from zoreward.kernels import cpu, portable
from zoreward.kernels.parts import Part, PartKernels
from zoreward.kernels.subspaces import Keeping
from zoreward.members.chosen import chosen_names
from zoreward.neighbours.of_torch import is_made_of_tensors, weights_in
from zoreward.neighbours.of_transformers import makes_bias_table
from zoreward.noise import canonical_name, streams
from zoreward.records import InputError, Member, Term


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """One place where a tuned weight hangs: `holder._parameters[key]` is `weight`.

    With a `limit` only what is at most as large of it is tuned. It belongs to a `block` where the weights are cut into
    some. See `zoreward.members.restrictions`.
    """

    holder: nn.Module
    key: str
    weight: nn.Parameter
    stream: int
    limit: float | None = None
    block: int | None = None


Owner = tuple[nn.Module, tuple[Slot, ...]]
"""A module whose forward uses tuned weights, and where they hang."""

Kernels = dict[torch.device, Any]
"""Device → kernel. It keeps subspaces, and a GPU's remembers where weights lie: it lives as long as they are known."""


@dataclass(frozen=True, slots=True, eq=False)
class Tuned:
    """The tuned weights of a model, found once.

    Args:
        weights: canonical name → weight, each once, in the model's order. Tied weights go by their first name.
        streams: canonical name → stream.
        owners: the modules whose forward uses tuned weights, with the slots to fill while it runs.
        limits: canonical name → the size beyond which a weight rests; empty where all are tuned.
        blocks: canonical name → the block of layers to which a weight belongs; empty where all are tuned at once.
        around: where there are blocks: owner → the owners that it lies in.
        base: weight → a copy of it before any update; empty where no update has an anchor.
        parts: canonical name → where a weight lies in the whole one, of those of which this process holds a part.
        tables: the modules whose `compute_bias` looks up in a table of relative positions once for all rows.
        kernels: what works on the weights of each device; filled as it is needed.
        shared: what a context or an update leaves to the next one; see `zoreward.members.context`.
    """

    weights: dict[str, nn.Parameter]
    streams: dict[str, int]
    owners: tuple[Owner, ...]
    limits: dict[str, float] = field(default_factory=dict)
    blocks: dict[str, int] = field(default_factory=dict)
    around: dict[nn.Module, list[nn.Module]] = field(default_factory=dict, repr=False)
    base: dict[torch.Tensor, torch.Tensor] = field(default_factory=dict, repr=False)
    parts: dict[str, Part] = field(default_factory=dict, repr=False)
    tables: tuple[nn.Module, ...] = ()
    kernels: Kernels = field(default_factory=dict, repr=False)
    shared: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False)

    @property
    def slots(self) -> Iterator[Slot]:
        """Every slot of every owner."""
        return (slot for _, slots in self.owners for slot in slots)

    def shown_by(self, members: Sequence[Member]) -> list[Owner]:
        """The owners whose weights differ between members: all that their terms move somewhere.

        Also all for members without any term: where weights lie in memory can move the last bit of a product, so the
        model itself is shown from a copy as dense members are, and a saved model scores as it did before.
        """
        terms = [term for member in members for term in member]
        shown = self._moved_somewhere(terms)
        blocks = {term.block for term in terms}
        if not blocks or None in blocks:
            return shown
        own = {owner: tuple(slot for slot in slots if slot.block in blocks) for owner, slots in shown}
        # What runs a member at a time in a trial of all weights does so here: what lies inside was never tried alone.
        outer = {other for owner, slots in own.items() if slots for other in self.around[owner]}
        return [
            (owner, slots if owner in outer else own[owner]) for owner, slots in shown if owner in outer or own[owner]
        ]

    def _moved_somewhere(self, terms: Sequence[Term]) -> list[Owner]:
        """The owners of the weights that terms would move in their own block."""
        ndims = {slot.weight.ndim for slot in self.slots}
        moved = {ndim for ndim in ndims if any(term.moves(ndim) for term in terms)}
        if not terms or moved == ndims:
            return list(self.owners)
        own = [(owner, tuple(slot for slot in slots if slot.weight.ndim in moved)) for owner, slots in self.owners]
        return [(owner, slots) for owner, slots in own if slots]


def bytes_of(weights: Iterable[torch.Tensor]) -> int:
    """Return the bytes that tensors take, each counted once.

    >>> tied = torch.zeros(2, 3, dtype=torch.bfloat16)
    >>> bytes_of([tied, torch.zeros(4), tied])
    28
    """
    distinct = {id(weight): weight for weight in weights}.values()
    return sum(weight.numel() * weight.element_size() for weight in distinct)


@torch.no_grad()
def digest_of_weights(tuned: Tuned) -> str:
    """Return a digest of the tuned weights that costs one reading of them where they are: sums of their bits.

        sha256(name, Σ_i bits_i mod 2^64 of each weight),  bits_i of entry i as an integer

    It notices an entry that differs, and not entries that have changed places.
    """
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = {
        name: weight.detach().contiguous().view(kinds[weight.element_size()]).sum(dtype=torch.int64)
        for name, weight in tuned.weights.items()
    }
    told = [(name, int(total)) for name, total in sums.items()]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def tuned_weights(model: nn.Module, tune: str | Collection[str] = "full") -> Tuned:
    """Return the weights of `model` that are tuned: floating-point ones.

    Args:
        model: the model.
        tune: which; see `chosen_names`. Or their canonical names.

    Raises:
        InputError: there are none.
    """
    named = {canonical_name(name): weight for name, weight in model.named_parameters()}
    # torchao's say that they are floating-point, and are made of integers and scales.
    quantised = {name for name, weight in named.items() if is_made_of_tensors(weight)}
    floats = {name: weight for name, weight in named.items() if weight.is_floating_point() and name not in quantised}
    if not floats:
        raise InputError("the model has no floating-point weights", hint="Quantised weights cannot be tuned.")
    names = chosen_names(model, tune, floats) if isinstance(tune, str) else set(tune)
    weights = {name: weight for name, weight in floats.items() if name in names}
    stream_of_name = streams(weights)
    stream_by_id = {id(weight): stream_of_name[name] for name, weight in weights.items()}
    owners: dict[nn.Module, list[Slot]] = {}
    for owner, holder in _holders(model):
        for key, weight in weights_in(holder).items():
            if weight is not None and id(weight) in stream_by_id:
                owners.setdefault(owner, []).append(Slot(holder, key, weight, stream_by_id[id(weight)]))
    tables = tuple(module for module in model.modules() if makes_bias_table(module))
    return Tuned(
        weights, stream_of_name, tuple((owner, tuple(slots)) for owner, slots in owners.items()), tables=tables
    )


def divided(tuned: Tuned, parts: Mapping[str, Part]) -> Tuned:
    """Return tuned weights some of which are parts of whole ones: they move as these would, bit for bit.

    Args:
        tuned: the weights.
        parts: canonical name → where a weight lies in the whole one.

    Example:
        >>> layer = nn.Linear(2, 4, bias=False)  # the lower half of a matrix of 8 lines
        >>> divided(tuned_weights(layer), {"weight": Part((8, 2), 0, 4)}).parts["weight"].shape
        (8, 2)
    """
    own = {name: part for name, part in parts.items() if name in tuned.weights}
    by_stream = {tuned.streams[name]: part for name, part in own.items()}
    pairs = [(weight, tuned.streams[name]) for name, weight in tuned.weights.items()]
    kernels = {same[0][0].device: PartKernels(kernel, by_stream) for kernel, same in by_kernel(pairs, {})}
    return replace(tuned, parts=own, kernels=kernels)


def _holders(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Yield (owner, holder) for each module: a holder without a forward (a ParameterList) is its parent's business."""
    nearest: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        has_forward = type(module).forward is not nn.Module.forward
        nearest[name] = module if has_forward else nearest.get(name.rpartition(".")[0], module)
        yield nearest[name], module


def by_kernel(
    weights: Iterable[tuple[torch.Tensor, int]], kernels: Kernels
) -> Iterator[tuple[Any, list[tuple[torch.Tensor, int]]]]:
    """Yield the weights of each device, and their streams, with the kernel that works on them there."""
    devices: dict[torch.device, list[tuple[torch.Tensor, int]]] = {}
    for weight, stream in weights:
        devices.setdefault(weight.device, []).append((weight, stream))
    for device, same in devices.items():
        if device not in kernels:
            kernels[device] = _kernel(device)
        yield kernels[device], same


@cache
def has_triton() -> bool:
    """Whether Triton is there: on Linux it comes with torch."""
    return find_spec("triton") is not None


def _kernel(device: torch.device) -> Any:
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"weights on a {device.type} device cannot be tuned", hint="Take the CPU or a CUDA device.")
    if device.type == "cpu":
        return Keeping(cpu)
    if not has_triton():
        return Keeping(portable)
    from zoreward.kernels.gpu import Kernels as GPUKernels

    return GPUKernels()
