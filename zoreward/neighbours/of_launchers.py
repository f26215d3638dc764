"""What we use of launchers without their promise: the environment in which torchrun, accelerate and others start us."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

# Where accelerate and transformers look for a launch. Unset, a process is one by itself to them.
_OF_A_LAUNCH = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"),
    "MV2_COMM_WORLD_SIZE",
)
# What `accelerate launch` sets where the model itself is to be divided.
_DIVIDED = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}


@dataclass(frozen=True, slots=True)
class Launch:
    """One process of several that were started together.

    Args:
        rank: its number, from 0.
        size: how many there are, two or more.
        local_rank: its number on its machine, and `local_size`, how many there are on it.
        restart: how often the launcher has begun them anew.
        address: where the processes meet: a host and a port.
        has_store: whether the launcher keeps a store there; otherwise rank 0 does.
        divides: what the launcher was told to divide the model with; "": nothing.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    restart: int
    address: tuple[str, int]
    has_store: bool
    divides: str = ""

    def command(self, words: str) -> str:
        """Return a command that starts `zoreward …` as this launch did, where it was on one machine.

        >>> Launch(1, 2, 1, 2, 0, ("localhost", 29500), True).command("zoreward tune f1 --resume")
        'torchrun --nproc-per-node 2 -m zoreward tune f1 --resume'
        """
        return f"torchrun --nproc-per-node {self.local_size} -m {words}"


def launch_of(environment: Mapping[str, str] | None = None) -> Launch | None:
    """Return what launch this process is of; None where it was started alone.

    Private: the names of the variables, all but RANK, WORLD_SIZE and the address.

    >>> launch_of({"WORLD_SIZE": "1", "RANK": "0"}) is None
    True
    >>> launch_of({"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}).local_rank
    1
    """
    given = os.environ if environment is None else environment
    if int(given.get("WORLD_SIZE") or 1) < 2 or not given.get("RANK"):
        return None
    return Launch(
        rank=int(given["RANK"]),
        size=int(given["WORLD_SIZE"]),
        local_rank=int(given.get("LOCAL_RANK") or 0),
        local_size=int(given.get("LOCAL_WORLD_SIZE") or given["WORLD_SIZE"]),
        restart=int(given.get("TORCHELASTIC_RESTART_COUNT") or 0),
        address=(given.get("MASTER_ADDR") or "localhost", int(given.get("MASTER_PORT") or 29500)),
        has_store=given.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        divides=next((name for variable, name in _DIVIDED.items() if given.get(variable) == "true"), ""),
    )


@contextmanager
def alone() -> Iterator[None]:
    """Let accelerate and transformers take this process for one by itself, as long as the context lasts.

    They would else begin a process group, NCCL's on a GPU, and give each rank rows of its own.
    """
    hidden = {name: os.environ.pop(name) for name in _OF_A_LAUNCH if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)
