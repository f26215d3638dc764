"""What memory a device has left, and how much of it copies of weights may take."""

from __future__ import annotations

import torch

from zoreward.members import KEEP_BYTES


def free_bytes(device: torch.device) -> int | None:
    """Return the bytes that can be allocated on a device now; None where nobody knows."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    if device.type == "cpu":
        from psutil import virtual_memory

        return int(virtual_memory().available)
    return None


def peak_bytes(device: torch.device) -> int | None:
    """Return the most bytes that tensors took on a GPU in this process; None elsewhere."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def bytes_to_keep(device: torch.device, free: int, members: int) -> int:
    """Return how many bytes of perturbed copies may be kept where texts are written, as each token reads them again.

    Copies at one member may take most of what is free; several leave half to what they write.

    >>> [bytes_to_keep(torch.device("cuda"), 50 << 30, members) >> 30 for members in (1, 2)]
    [45, 25]
    """
    if members == 1:
        return max(KEEP_BYTES, free * 9 // 10)
    return KEEP_BYTES if device.type == "cpu" else max(KEEP_BYTES, free // 2)
