"""What we use of accelerate without its promise: where it keeps the forward of a module that it has wrapped."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def place_of(module: nn.Module) -> str:
    """Return the attribute that holds what a call of the module runs in the end.

    Private: accelerate keeps a module's own forward as `_old_forward`, and hangs one in its place that moves the inputs
    to the weights and calls what stands there.
    """
    return "_old_forward" if "_old_forward" in module.__dict__ else "forward"
