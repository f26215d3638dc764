"""Modules whose forward accelerate has wrapped: on several devices, their inputs are moved to their weights first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from zoreward.neighbours.of_accelerate import place_of


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
    """Whether a half-precision layer gives float32 at the moment; see `zoreward.members.float32`."""
    return getattr(module.__dict__.get(place_of(module)), "gives_float32", False)
