"""The rows of a forward pass that several members share, cut to each member and joined again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from zoreward.members.copies import Factors, filled, perturbed_copies
from zoreward.members.forwards import gives_float32, has_other_forward, plain_forward_of, thin_product
from zoreward.members.tuned import Kernels, Slot, bytes_of, has_triton
from zoreward.records import InputError, Member


class Grouping:
    """The rows of the call in flight, and whose turn it is.

    Args:
        members: M members.
        kept: weight's id → its copies at each member, of the weights whose copies are kept.
        kernels: make the copies of the others, a module at a time.
        scratch_bytes: as many members' copies of a module are made in one pass as fit this many bytes, or one's.

    Attributes:
        members: M members.
        factors: weight's id → its factors at each member, of the weights whose modules' outputs are corrected.
        rows, tokens: of the call in flight.
        current: the member whose rows a surrounding owner is at work on, or None.
    """

    def __init__(
        self,
        members: Sequence[Member],
        kept: Mapping[int, list[torch.Tensor]],
        kernels: Kernels,
        scratch_bytes: int,
    ):
        self.members = members
        self.factors: dict[int, Factors] = {}
        self._kept = kept
        self._kernels = kernels
        self._scratch_bytes = scratch_bytes
        self.rows = self.tokens = 0
        self.current: int | None = None

    def take(self, members: Sequence[Member], kept: Mapping[int, list[torch.Tensor]]) -> None:
        """Take other members, as many, and the copies of the same weights at them."""
        self.members, self._kept = members, kept

    @property
    def lengths(self) -> tuple[int, int]:
        """Rows and tokens of the call in flight: a tensor with as many lines has one for each."""
        return self.rows, self.tokens

    def see_rows(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take the numbers of rows and tokens from the model's own call: a hook before its forward."""
        if self.current is not None:  # the call of an encoder inside a module that is at work on one member's rows
            return
        named = [kwargs[name] for name in ("input_ids", "inputs_embeds") if kwargs.get(name) is not None]
        tensors = (value for value in (*named, *args, *kwargs.values()) if isinstance(value, torch.Tensor))
        first = next(tensors, None)
        if first is None or first.ndim == 0 or first.shape[0] % len(self.members):
            rows = None if first is None or first.ndim == 0 else first.shape[0]
            raise InputError(
                f"a call with {rows} rows cannot be shared by {len(self.members)} members",
                hint="Give each member the same number of rows, one member after the other.",
            )
        self.rows = first.shape[0]
        self.tokens = first.shape[0] * first.shape[1] if first.ndim > 1 else first.shape[0]

    def forward_of(self, owner: nn.Module, slots: tuple[Slot, ...]) -> Callable[..., Any]:
        """Return a forward of `owner` that runs once a member, on its rows and with copies of the slots' weights."""
        plain_forward = plain_forward_of(owner)
        plain = not has_other_forward(owner) and all(slot.holder is owner for slot in slots)
        made = tuple(slot for slot in slots if id(slot.weight) not in self._kept)
        is_linear = plain and type(owner).forward is nn.Linear.forward and not gives_float32(owner)
        is_norm = plain and type(owner).forward is nn.LayerNorm.forward and not made and has_triton()
        product = thin_product(owner, slots, self._kept) if not made else None
        at_once = members_at_once(made, self._scratch_bytes)

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self.current is not None:
                copies = self._copies_of(slots, made, self.current, 1)
                with filled(slots, lambda slot: copies[id(slot.weight)][0]):
                    return plain_forward(*args, **kwargs)
            if product and len(args) == 1 and args[0].ndim > 1 and args[0].shape[0] in self.lengths:
                return product(args[0])
            if is_linear and self._can_write_into(args, kwargs):
                return self._linear(owner, slots, made, at_once, args[0])
            if is_norm and self._can_write_into(args, kwargs) and (y := self._norm(owner, slots, args[0])) is not None:
                return y
            outputs = []
            alone = len(args) + len(kwargs) == 1
            try:
                for first in range(0, len(self.members), at_once):
                    copies = self._copies_of(slots, made, first, at_once)
                    for member in range(first, min(first + at_once, len(self.members))):
                        self.current = member
                        with filled(slots, lambda slot: copies[id(slot.weight)][member - first]):  # noqa: B023 (at once)
                            outputs.append(plain_forward(*self._part(args, alone), **self._part(kwargs, alone)))
                    copies = {}  # given back before the next are made
            finally:
                self.current = None
            return self._joined(outputs)

        return forward

    def table_of(self, module: Any) -> Callable[..., torch.Tensor]:
        """Return a `compute_bias` of `module` that gives each row its member's; the plain one has one for all."""
        plain_table = module.compute_bias

        def compute_bias(*args: Any, **kwargs: Any) -> torch.Tensor:
            if self.current is not None:
                line: torch.Tensor = plain_table(*args, **kwargs)
                return line
            lines = []
            try:
                for member in range(len(self.members)):
                    self.current = member
                    lines.append(plain_table(*args, **kwargs))
            finally:
                self.current = None
            joined: torch.Tensor = self._joined(lines)
            return joined

        return compute_bias

    def _can_write_into(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a layer's outputs at all members can be written side by side at once, which spares joining them."""
        if len(args) != 1 or kwargs or len(self.members) == 1 or torch.is_grad_enabled():
            return False
        x = args[0]
        return x.is_cuda and x.ndim > 1 and x.shape[0] in self.lengths and not torch.is_autocast_enabled("cuda")

    def _linear(
        self, owner: Any, slots: tuple[Slot, ...], made: tuple[Slot, ...], at_once: int, x: torch.Tensor
    ) -> torch.Tensor:
        """What F.linear computes, member by member."""
        y = x.new_empty(*x.shape[:-1], owner.out_features)
        inputs = x.reshape(len(self.members), -1, x.shape[-1]).unbind()
        outputs = y.view(len(self.members), -1, y.shape[-1]).unbind()
        keys = {slot.key: id(slot.weight) for slot in slots}
        for first in range(0, len(self.members), at_once):
            copies = self._copies_of(slots, made, first, at_once)
            count = min(at_once, len(self.members) - first)
            weights = copies[keys["weight"]] if "weight" in keys else [owner.weight] * count
            biases = copies[keys["bias"]] if "bias" in keys else [owner.bias] * count
            for member, (weight, bias) in enumerate(zip(weights, biases, strict=True), first):
                if bias is None:
                    torch.mm(inputs[member], weight.t(), out=outputs[member])
                else:
                    torch.addmm(bias, inputs[member], weight.t(), out=outputs[member])
            del copies, weights, biases, weight, bias  # given back before the next are made
        return y

    def _norm(self, owner: Any, slots: tuple[Slot, ...], x: torch.Tensor) -> torch.Tensor | None:
        """What F.layer_norm computes over the last dimension; None where it is to be done member by member."""
        from zoreward.kernels.triton_layers import layer_norm

        keys = {slot.key: id(slot.weight) for slot in slots}
        weights, biases = (
            self._kept[keys[name]] if name in keys else one if one is None else [one] * len(self.members)
            for name, one in (("weight", owner.weight), ("bias", owner.bias))
        )
        if owner.normalized_shape != x.shape[-1:]:
            return None
        return layer_norm(x, weights, biases, owner.eps, len(self.members))

    def _copies_of(
        self, slots: tuple[Slot, ...], made: tuple[Slot, ...], first: int, count: int
    ) -> dict[int, list[torch.Tensor]]:
        """The slots' weights at some members, by the weight's id; those of `made` are made now."""
        whole = first == 0 and count >= len(self.members)
        members = self.members if whole else self.members[first : first + count]
        copies = perturbed_copies(made, members, self._kernels) if made else {}
        for slot in slots:
            key = id(slot.weight)
            if key not in copies:
                copies[key] = self._kept[key] if whole else self._kept[key][first : first + count]
        return copies

    def _part(self, value: Any, alone: bool) -> Any:
        """The current member's share of an argument: tensors with a row or a token in each line are cut, others shared.

        A length that merely happens to be divisible by M says nothing, so only the lengths of the model's own call
        count. Where a row has as many tokens as the call has rows, whole numbers in one dimension are the positions of
        a row's tokens, which all rows share: BART's decoder hands them to its table. Unless they stand `alone`: a
        module needs something of each row.
        """
        if isinstance(value, torch.Tensor):
            if value.ndim == 0 or value.shape[0] not in self.lengths:
                return value
            if value.ndim == 1 and not alone and self.tokens == self.rows**2 and not value.is_floating_point():
                return value
            assert self.current is not None
            share = value.shape[0] // len(self.members)
            return value[self.current * share : (self.current + 1) * share]
        if type(value) in (tuple, list):
            return type(value)(self._part(item, alone) for item in value)
        return {key: self._part(item, alone) for key, item in value.items()} if type(value) is dict else value

    def _joined(self, outputs: list[Any]) -> Any:
        first = outputs[0]
        if len(outputs) == 1:
            return first
        if isinstance(first, torch.Tensor):
            share = self.rows // len(self.members)
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


def members_at_once(slots: Iterable[Slot], scratch_bytes: int) -> int:
    """Return at how many members the slots' weights are copied in one pass."""
    return max(1, scratch_bytes // max(1, bytes_of(slot.weight for slot in slots)))
