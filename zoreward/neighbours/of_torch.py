"""What we use of torch without its promise: where a module keeps its weights and hooks, and a copy of many tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def weights_in(module: torch.nn.Module) -> dict[str, Any]:
    """Return the weights that hang in a module itself, by attribute; None for one that it has not.

    Private: that it is the module's own dict, in which another tensor may be hung for a while that is no `Parameter`.
    """
    return module._parameters


def hooks_before_forward(module: torch.nn.Module) -> list[Any]:
    """Return the hooks that are called before a module's forward.

    Private: the dict that has them.
    """
    return list(module._forward_pre_hooks.values())


def copy_all_(places: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
    """Copy tensors into others that stay where they are, on a GPU in few launches.

    Private: the function of torch.
    """
    import torch

    torch._foreach_copy_(places, values)


def is_made_of_tensors(weight: torch.Tensor) -> bool:
    """Return whether a tensor consists of others, as a quantised weight of torchao's does, whatever dtype it states.

    Private: the method by which such classes are known.
    """
    return hasattr(weight, "__tensor_flatten__")
