"""A half-precision model's last layer with outputs in float32: rounded to bfloat16, a logit of 20 moves by 0.06."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from zoreward.members.hooked import has_other_forward, place_of

# Lines of the head that are turned into float32 at once where no product gives float32 by itself: 8,192 of 5,120
# weights take 168 MB.
LINES_AT_ONCE = 8192


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
