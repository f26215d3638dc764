"""Several ranks of one launch, forked from this process, so that none of them need import torch again."""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return int(found.getsockname()[1])


def start(size: int, log: Path, work: Callable[[int], int | None]) -> list[int]:
    """Start ranks that do a piece of work each; returns their ids. What they print is in the log.

    Args:
        size: how many; 1 is a process that no launcher has started.
        log: a file, to whose end they write.
        work: is given the rank, and returns the exit code.
    """
    torch.set_num_threads(1)  # a forked child has none of the other threads
    port = free_port()
    children = []
    for rank in range(size):
        child = os.fork()
        if not child:
            _be(rank, size, port, log, work)
        children.append(child)
    return children


def _be(rank: int, size: int, port: int, log: Path, work: Callable[[int], int | None]) -> None:  # pragma: no cover
    code = 99
    try:
        for name in ("SIGINT", "SIGTERM"):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout, sys.stderr = (os.fdopen(one, "w", buffering=1, closefd=False) for one in (1, 2))
        faulthandler.enable()
        if size > 1:
            numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
            os.environ |= {name: str(number) for name, number in numbers.items()}
            os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        # transformers converts weights in threads of its own; torch refuses new ones in a fork.
        os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"
        code = work(rank) or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(children: list[int], seconds: float = 300.0) -> list[int]:
    """Wait for ranks; returns their exit codes, or minus the signals that ended them: SIGALRM of what took too long."""
    late, codes = time.monotonic() + seconds, dict[int, int]()
    while len(codes) < len(children):
        for child in children:
            found, status = (0, 0) if child in codes else os.waitpid(child, os.WNOHANG)
            if found:
                codes[child] = os.waitstatus_to_exitcode(status)
            elif child not in codes and time.monotonic() > late:
                os.kill(child, signal.SIGALRM)
        time.sleep(0.01)
    return [codes[child] for child in children]
