"""`zoreward doctor`: what zoreward finds on this machine, and what of it was never tested."""

from __future__ import annotations

import platform

from zoreward import __version__
from zoreward.neighbours.releases import Neighbour, neighbours, newer_than_tested


def show_health() -> int:
    """Say which libraries, which GPUs and how much memory zoreward finds here, and what does not fit."""
    found = list(neighbours())
    print(f"zoreward {__version__} · Python {platform.python_version()} · {platform.system()} {platform.machine()}")
    width = max(len(one.name) for one in found)
    for one in found:
        print(f"  {one.name:<{width}}  {one.installed or '-':<14} {_range(one):<20} {one.problem}".rstrip())
    for line in _devices():
        print(line)
    wrong = [f"{one.name} is {one.problem}" for one in found if one.problem in ("missing", "too old")]
    if wrong:
        print(f"{', '.join(wrong)}: pip install --upgrade zoreward")
    if line := newer_than_tested():
        print(f"{line}; if something fails, try those first")
    return 1 if wrong else 0


def _range(one: Neighbour) -> str:
    return f"{one.floor} to {one.tested}" if one.floor else f"up to {one.tested}"


def _devices() -> list[str]:
    """What there is to compute with; a torch that cannot be imported is a line too."""
    try:
        import torch
        from psutil import virtual_memory
    except Exception as error:  # whatever a broken installation raises
        return [f"torch cannot be imported: {type(error).__name__}: {error}"]
    memory = virtual_memory()
    lines = [f"memory: {memory.available / 1e9:.3g} of {memory.total / 1e9:.3g} GB free"]
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        lines.append(f"GPU {index}: {name}, {free / 1e9:.3g} of {total / 1e9:.3g} GB free")
    if len(lines) == 1:
        built = torch.version.cuda or torch.version.hip
        lines.append("GPU: none" + ("" if built else ", and this torch is built without CUDA"))
    return lines
