"""The processes of one launch, as each of them sees the others: they exchange numbers and short texts over gloo.

Each holds the whole model. What is sent does not depend on its size.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zoreward.neighbours.of_launchers import Launch
from zoreward.neighbours.of_torch import GlooGroup
from zoreward.records import InputError, RanksError, one_line

# How long an answer is waited for. That a process has ended is known at once, since its connections close; this is for
# a machine that is gone without a word, and longer than a rank waits for another's reward to be retried.
SECONDS = 3600.0
# How long processes may take until all have come.
SECONDS_TO_MEET = 900.0


class Ranks:
    """The processes that a launcher started, or the only one.

    All of them must ask the same in the same order.

    Args:
        launch: which process this is; None: it is the only one.

    Attributes:
        rank: its number, and `size`, how many there are.
        sent: the bytes that this rank has given out so far.

    Raises:
        InputError: the launcher was told to divide the model.
        RanksError: the others do not come.
    """

    def __init__(self, launch: Launch | None = None):
        self.rank, self.size, self.sent = (launch.rank, launch.size, 0) if launch else (0, 1, 0)
        self._launch, self._group = launch, _group_of(launch) if launch else None

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes files and tells the user."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self._group is not None

    def within(self, size: int) -> Ranks:
        """Return the group of so many, next to each other, that this rank is of; `size` divides how many there are."""
        if size == self.size or self._launch is None:
            return self
        found = Ranks()
        found.rank, found.size, found._launch = self.rank % size, size, self._launch
        found._group = _group_of(self._launch, size)
        return found

    def floats(self, own: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the numbers of all ranks, (size, n); each gives n."""
        mine = torch.tensor(np.asarray(own, dtype=np.float64))
        if self._group is None:
            return mine[None].numpy()
        with self._told(mine):
            return torch.stack(self._group.gather(mine)).numpy()

    def tensors(self, own: torch.Tensor) -> list[torch.Tensor]:
        """Return the tensors of all ranks, which are of one shape and dtype, on the CPU."""
        mine = own.detach().cpu().contiguous()
        if self._group is None:
            return [mine]
        bits = mine.view(-1).view(torch.uint8)
        with self._told(bits):
            return [one.view(mine.dtype).view(mine.shape) for one in self._group.gather(bits)]

    def least(self, own: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return of each number the least that a rank has in its place."""
        mine = torch.tensor(own)
        if self._group is not None:
            with self._told(mine):
                self._group.least_(mine)
        return mine.numpy()

    def values(self, own: Any) -> list[Any]:
        """Return what all ranks give: whatever JSON can hold, NaN too."""
        if self._group is None:
            return [own]
        text = json.dumps(own).encode() if own is not None else b""
        lengths = self.floats([len(text)])[:, 0].astype(int)
        if not lengths.any():
            return [None] * self.size
        padded = torch.zeros(int(lengths.max()), dtype=torch.uint8)
        padded[: len(text)] = torch.tensor(list(text), dtype=torch.uint8)
        with self._told(padded):
            every = self._group.gather(padded)
        return [
            json.loads(one[:length].numpy().tobytes()) if length else None
            for one, length in zip(every, lengths, strict=True)
        ]

    def from_first(self, own: Any) -> Any:
        """Return what rank 0 gives; what others give does not count."""
        return self.values(own if self.first else None)[0]

    def any(self, *flags: bool) -> list[bool]:
        """Return of each flag whether a rank has it set."""
        if self._group is None:
            return list(flags)
        every = self.floats([float(flag) for flag in flags])
        return [bool(column.any()) for column in every.T]

    def word_of_first(self, what: str) -> None:
        """Wait until rank 0 has come here, and see that it has the same to say.

        Raises:
            RanksError: it has another text.
        """
        if self._group is None:
            return
        own = _short_digest(what)
        word = torch.tensor([own])
        with self._told(word):
            self._group.from_first_(word)
        if int(word) != own:
            raise RanksError(f"rank {self.rank} would go on otherwise than rank 0", hint=_UNLIKE)

    def refuse_unlike(self, what: Mapping[str, str]) -> None:
        """See that all ranks have the same to say of each thing.

        Args:
            what: name → a text.

        Raises:
            RanksError: some do not; on every rank, and the message names them.
        """
        if self._group is None:
            return
        digests = torch.tensor([_short_digest(text) for text in what.values()])
        with self._told(digests):
            every = torch.stack(self._group.gather(digests)).T.tolist()
        for name, found in zip(what, every, strict=True):
            counts = Counter(found)
            # What most ranks have, and of equals what rank 0 has.
            usual = max(counts, key=lambda one: (counts[one], one == found[0]))
            unlike = [rank for rank, one in enumerate(found) if one != usual]
            if unlike:
                who = f"rank{'s' if len(unlike) > 1 else ''} {', '.join(map(str, unlike))}"
                verb = "have" if len(unlike) > 1 else "has"
                raise RanksError(f"{who} {verb} {name} than the other ranks", hint=_UNLIKE)

    @contextmanager
    def _told(self, sent: torch.Tensor) -> Iterator[None]:
        self.sent += sent.nbytes
        try:
            yield
        except RuntimeError as error:
            why = one_line((str(error).splitlines() or [""])[0].rpartition("] ")[2], 120)
            raise RanksError(f"another rank has ended, or cannot be reached: {why}", hint=_ENDED) from error


_UNLIKE = "Give all ranks the same files, libraries and options, and GPUs of one kind."
_ENDED = "What it said stands above or below."


def _short_digest(text: str) -> int:
    """Seven bytes of a SHA-256, as a number that an int64 holds."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def _group_of(launch: Launch, size: int | None = None) -> GlooGroup:
    """All ranks of a launch, or the group of `size` that this one is of.

    By addresses of this start alone: those of the dead stay in the launcher's store.
    """
    from torch.distributed import PrefixStore

    if launch.divides:
        hint = "Start it with torchrun, or accelerate launch --multi_gpu: each rank holds the whole model."
        raise InputError(f"{launch.divides} would divide the model, and has no use here", hint=hint)
    try:
        store = store_of(launch)
        of_start, size = f"zoreward/{launch.restart}", size or launch.size
        of_start += f"/{launch.rank // size}-of-{size}" if size < launch.size else ""
        number = store.add(f"{of_start}/{launch.rank}", 1)  # the how manieth group of this process
        return GlooGroup(PrefixStore(f"{of_start}/group-{number}", store), launch.rank % size, size, SECONDS)
    except RuntimeError as error:
        message = f"rank {launch.rank} does not find the others at {':'.join(map(str, launch.address))}"
        raise RanksError(message, hint=f"Start them with torchrun. {one_line(error, 120)}") from error


@cache  # rank 0 may keep it for all: it must last as long as the process
def store_of(launch: Launch) -> Any:
    """Return the store in which the processes of a launch find each other."""
    from torch.distributed import TCPStore

    host, port = launch.address
    return TCPStore(
        host,
        port,
        launch.size,
        is_master=launch.rank == 0 and not launch.has_store,
        timeout=timedelta(seconds=SECONDS_TO_MEET),
        wait_for_workers=False,
        multi_tenant=True,
    )
