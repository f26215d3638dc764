"""Where a model stands: on one device, or spread over several; and what memory is left there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from zoreward.members import KEEP_BYTES
from zoreward.neighbours.of_launchers import alone, launch_of
from zoreward.records import InputError

if TYPE_CHECKING:
    import torch
    from torch import nn

# transformers' names for ways to spread layers over the GPUs that are seen.
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


def checked_device(name: Any) -> torch.device:
    """Return the device of this name.

    Raises:
        InputError: it is no device, or not one of this machine's.

    >>> checked_device("cpu")
    device(type='cpu')
    """
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    # Of torch's others none is tried, and `meta` holds no numbers.
    if device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index):
        raise InputError(f"there is no device '{name}'", hint="Choose cpu, cuda, or cuda:1 for the second GPU.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"there is no device '{name}': torch sees {torch.cuda.device_count()} GPUs",
            hint="Choose cpu, or install a torch that knows your GPU.",
        )
    return device


def first_device() -> str:
    """Return the name of the GPU if there is one, else of the CPU."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def gpus_seen() -> list[str]:
    """Return by which names CUDA_VISIBLE_DEVICES would choose each GPU that this process sees."""
    import torch

    named, count = os.environ.get("CUDA_VISIBLE_DEVICES"), torch.cuda.device_count()
    return (named.split(",") if named else [str(number) for number in range(count)])[:count]


def check_device_map(device_map: str | None, device: Any = None) -> None:
    """Find out that a way to spread a model makes no sense.

    Raises:
        InputError: there is no such way, or a device is given too.

    >>> check_device_map("auto")
    """
    if device_map is None:
        return
    if device_map not in DEVICE_MAPS:
        hint = f"Choose one of {', '.join(DEVICE_MAPS)}; for another map load the model yourself and give it."
        raise InputError(f"there is no device_map {device_map!r}", hint=hint)
    if device is not None:
        raise InputError("device and device_map say two things", hint="Leave one of them out.")


def check_loaded(model: nn.Module) -> None:
    """Find out that not all weights of a model have found a place.

    Raises:
        InputError: some were left on the disk or in the computer's memory, from where accelerate would fetch them.
    """
    away = [name for name, weight in model.named_parameters() if weight.device.type == "meta"]
    if away:
        hint = "Take more or larger GPUs, a smaller dtype, or a smaller model."
        raise InputError(f"{type(model).__name__} does not fit: {away[0]} has no place on a GPU", hint=hint)


def is_spread(model: nn.Module) -> bool:
    """Whether a model's weights lie on several devices.

    >>> import torch
    >>> is_spread(torch.nn.Linear(1, 1))
    False
    """
    return len({weight.device for weight in model.parameters()}) > 1


def free_bytes(device: torch.device) -> int | None:
    """Return the bytes that can be allocated on a device now, of the CPU's this rank's share; None: nobody knows."""
    if device.type == "cuda":
        import torch

        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    if device.type == "cpu":
        from psutil import virtual_memory

        launch = launch_of()  # whose ranks share the machine
        return int(virtual_memory().available) // (launch.local_size if launch is not None else 1)
    return None


def peak_bytes(device: torch.device) -> int | None:
    """Return the most bytes that tensors took on a GPU in this process; None elsewhere."""
    import torch

    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def bytes_to_keep(device: torch.device, free: int, members: int) -> int:
    """Return how many bytes of perturbed copies may be kept where texts are written, as each token reads them again.

    Copies at one member may take most of what is free; several leave half to what they write.

    >>> import torch
    >>> [bytes_to_keep(torch.device("cuda"), 50 << 30, members) >> 30 for members in (1, 2)]
    [45, 25]
    """
    if members == 1:
        return max(KEEP_BYTES, free * 9 // 10)
    return KEEP_BYTES if device.type == "cpu" else max(KEEP_BYTES, free // 2)


@contextmanager
def one_of_its_own(use_cpu: bool) -> Iterator[None]:
    """Let transformers take a process of a launch for one by itself; of several GPUs it sees its own from now on.

    Args:
        use_cpu: whether it needs none.

    Raises:
        InputError: a GPU was used before, so that none can be chosen any more.
    """
    launch = launch_of()
    if launch is None:
        yield
        return
    import torch

    if not use_cpu and torch.cuda.device_count() > 1:
        if torch.cuda.is_initialized():
            hint = "Make ZOConfig before anything touches a GPU: it chooses this rank's."
            raise InputError(f"rank {launch.rank} has used a GPU already, and sees several", hint=hint)
        devices = gpus_seen()
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[launch.local_rank % len(devices)]
    with alone():
        yield


@contextmanager
def without_cudnn_attention() -> Iterator[None]:
    """Have torch attend by its own kernels as long as the context lasts.

    cuDNN plans anew for every number of keys, and where texts are written each token has another one: 36 ms a token of
    the self-check, SmolLM2 on an H200, which is a quarter of all that comes before step 1.
    """
    import torch

    enabled = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(enabled)
