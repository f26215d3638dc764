"""What we use of torch without its promise: a module's weights and hooks, a copy of many tensors, a group of gloo's."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
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


class GlooGroup:
    """A process group of gloo's that is nobody else's: torch's default group, NCCL's or none, is left as it is.

    Private: the class behind `init_process_group("gloo")`, and how it is called.

    Args:
        store: where the processes find each other.
        rank: of this process.
        size: how many there are.
        seconds: how long an answer is waited for.
    """

    def __init__(self, store: Any, rank: int, size: int, seconds: float):
        from torch.distributed import ProcessGroupGloo

        self._group, self._size = ProcessGroupGloo(store, rank, size, timedelta(seconds=seconds)), size

    def gather(self, own: torch.Tensor) -> list[torch.Tensor]:
        """Return the tensors of all ranks, which are of one shape."""
        every = [own.new_empty(own.shape) for _ in range(self._size)]
        self._group.allgather([every], [own]).wait()
        return every

    def least_(self, own: torch.Tensor) -> None:
        """Put in the place of each number the least that a rank has there."""
        from torch.distributed import AllreduceOptions, ReduceOp

        options = AllreduceOptions()
        options.reduceOp = ReduceOp.MIN
        self._group.allreduce([own], options).wait()

    def from_first_(self, own: torch.Tensor) -> None:
        """Put in the place of all numbers those of rank 0."""
        from torch.distributed import BroadcastOptions

        options = BroadcastOptions()
        options.rootRank = 0
        self._group.broadcast([own], options).wait()
