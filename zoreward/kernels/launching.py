"""Where Triton's kernels are launched: on torch's current device, which may not be that of the tensors."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def launched_on(device: torch.device) -> AbstractContextManager[Any]:
    """Return the context in which a kernel is launched for tensors of a device.

    >>> with launched_on(torch.device("cpu")):  # in Triton's interpreter
    ...     pass
    """
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)
