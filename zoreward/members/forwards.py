"""Forwards of single modules: what one runs, and how one gives float32, or the outputs of all members at once.

Where accelerate has wrapped a module's forward, as it does for several devices, inputs are moved to the module's
weights first: what the module itself runs is what was wrapped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from zoreward.members.tuned import Slot
from zoreward.neighbours.of_accelerate import place_of
from zoreward.neighbours.of_torch import weights_in

# Lines of the head that are turned into float32 at once where no product gives float32 by itself: 8,192 of 5,120
# weights take 168 MB.
LINES_AT_ONCE = 8192
# A matrix whose shorter side is at most this: its product takes less time than its launch, and its copies lie side by
# side at little cost. Adapters have ranks up to this.
THIN = 64

Product = Callable[[torch.Tensor], torch.Tensor]
"""x → y: rows of one member after the other, in the first dimension."""


def plain_forward_of(module: nn.Module) -> Callable[..., Any]:
    """Return what the module runs on inputs that lie where its weights do."""
    forward: Callable[..., Any] = getattr(module, place_of(module))
    return forward


def has_other_forward(module: nn.Module) -> bool:
    """Whether somebody else has given the module another forward than that of its class."""
    own = module.__dict__.get(place_of(module))
    known = own is None or gives_float32(module) or getattr(own, "__func__", None) is type(module).forward
    return not known


def gives_float32(module: nn.Module) -> bool:
    """Whether a half-precision layer gives float32 at the moment; see `float32_layer`."""
    return getattr(module.__dict__.get(place_of(module)), "gives_float32", False)


@dataclass(frozen=True, slots=True, eq=False)
class Float32Layer:
    """A linear layer of a half-precision model, and what it runs while its outputs are wanted in float32.

    Args:
        layer: the layer.
        forward: x → x·Wᵀ + bias of the weights that hang in the layer at the call. It stays the same function, so that
            what members leave in a model's modules can be used again.
    """

    layer: nn.Linear
    forward: Callable[[torch.Tensor], torch.Tensor]

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Let the layer give float32, for as long as the context lasts."""
        place = place_of(self.layer)
        before = self.layer.__dict__.get(place)
        self.layer.__dict__[place] = self.forward
        try:
            yield
        finally:
            if before is None:
                self.layer.__dict__.pop(place, None)
            else:
                self.layer.__dict__[place] = before


def float32_layer(layer: Any) -> Float32Layer | None:
    """Return how a layer gives float32; None where it does so anyway, or is not a plain `nn.Linear`.

    Rounded to bfloat16, a logit of 20 moves by 0.06.

    Args:
        layer: a module, or None.

    Example:
        >>> head = nn.Linear(2, 3, dtype=torch.bfloat16)
        >>> with torch.no_grad(), float32_layer(head).shown():
        ...     head(torch.ones(1, 2, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    if not isinstance(layer, nn.Linear) or type(layer).forward is not nn.Linear.forward or has_other_forward(layer):
        return None
    if layer.weight.dtype not in (torch.bfloat16, torch.float16):
        return None

    def forward(x: torch.Tensor) -> torch.Tensor:
        y = _product(x.reshape(-1, x.shape[-1]), layer.weight)
        if layer.bias is not None:
            y += layer.bias.float()
        return y.view(*x.shape[:-1], y.shape[-1])

    forward.gives_float32 = True  # type: ignore[attr-defined]
    return Float32Layer(layer, forward)


def _product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x·Wᵀ in float32; products of half-precision numbers are exact there."""
    if x.is_cuda and x.dtype == weight.dtype:
        y: torch.Tensor = torch.mm(x, weight.t(), out_dtype=torch.float32)
        return y
    wide = x.float()
    return torch.cat([wide @ lines.float().t() for lines in weight.split(LINES_AT_ONCE)], dim=1)


def thin_product(owner: nn.Module, slots: Sequence[Slot], kept: Mapping[int, list[torch.Tensor]]) -> Product | None:
    """Return the forward of a thin `nn.Linear` for the rows of all members; None for any other module.

    y_m = x_m·W_mᵀ + bias_m for the M members at once. The last bit of a sum may differ from that of a plain product.

    Args:
        owner: the module.
        slots: where its tuned weights hang.
        kept: the copies of their weights at each member, by the weight's id.
    """
    holds = {slot.key: slot.weight for slot in slots if slot.holder is owner}
    weight = weights_in(owner).get("weight")
    if type(owner).forward is not nn.Linear.forward or has_other_forward(owner) or len(holds) != len(slots):
        return None
    if weight is None or min(weight.shape) > THIN or holds.get("weight") is not weight or gives_float32(owner):
        return None
    bias = weights_in(owner).get("bias")
    weights_T = torch.stack(kept[id(weight)]).mT
    biases = None
    if bias is not None:
        own = kept[id(bias)] if "bias" in holds else [bias.detach()] * len(weights_T)
        biases = torch.stack(own).unsqueeze(1)

    def product(x: torch.Tensor) -> torch.Tensor:
        grouped = x.reshape(len(weights_T), -1, x.shape[-1])
        y = torch.bmm(grouped, weights_T) if biases is None else torch.baddbmm(biases, grouped, weights_T)
        return y.view(*x.shape[:-1], y.shape[-1])

    return product
