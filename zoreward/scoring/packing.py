"""Answers of one token, read without padding: several rows in a line, members side by side, replayed as a CUDA graph.

Rows of a batch have many lengths, and a small model's pass is bound by launches and by padding. Here rows stand one
behind the other in lines of one width; a mask keeps them apart. So nearly all batches have one of few shapes, and each
shape is captured once: its graph runs the members on streams of their own, on copies of the weights that stay in place.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.utils import logging

from zoreward.members import KEEP_BYTES, HeldCopies, bytes_of
from zoreward.neighbours.of_transformers import attention_window
from zoreward.records import Member, Request
from zoreward.scoring.devices import is_spread
from zoreward.scoring.stepping import Replays, additive_mask, addresses, is_lost, side_stream

if TYPE_CHECKING:
    from zoreward.scoring.forward import Reader

# Tokens of a line: a few rows of a usual length fit, and attention costs little beside the rest.
LINE = 128
# Tokens of a pass, padding included; in larger ones launches and padding do not dominate.
MOST_TOKENS = 8192
# Shapes that are kept.
SHAPES = 16


class Packer:
    """Reads answers of one token under dense members.

    Args:
        reader: the model.
        replays: whether passes are captured and replayed; False where there is no GPU, for tests.

    Attributes:
        problem: why it cannot read with this model; None while it can.
    """

    def __init__(self, reader: Reader, *, replays: bool = True):
        self._reader, self._replays = reader, replays
        self._copies = _no_copies(reader)
        self._passes: OrderedDict[tuple[int, ...], _Pass] = OrderedDict()
        self._read: tuple[int, ...] = ()
        self._bytes = bytes_of(reader.model.parameters())
        self.problem: str | None = None
        if reader.kind != "causal":
            self.problem = "it is no causal language model"
        elif not {"attention_mask", "position_ids"} <= reader.accepts or not reader.pads:
            self.problem = "it takes no mask and positions"
        elif is_spread(reader.model):
            self.problem = "its weights lie on several devices"
        elif reader.model.get_output_embeddings() is None:  # type: ignore[operator]
            self.problem = "its head cannot be found"

    def suits(self, groups: Sequence[Sequence[Request]], members: Sequence[Member], rows: int | None) -> bool:
        """Whether it can read: several dense members, targets of one token, few tokens, a model small enough to copy.

        One model alone, as in an evaluation, is read the plain way: its graphs would take the place of the members'.
        """
        dense = len(members) > 1 and not any(term.family.rank for member in members for term in member)
        if self.problem is not None or rows is not None or not dense:
            return False
        if any(len(request.target) > 1 for group in groups for request in group):
            return False
        copies = bytes_of(self._reader.tuned.weights.values()) * len(members)
        lengths = [len(group[0].prompt) for group in groups]
        # The mask that keeps rows apart is that of all layers, also of those with a sliding window.
        few = sum(lengths) <= MOST_TOKENS // 2 and max(lengths, default=0) <= attention_window(self._reader.model)
        return few and max(copies, self._bytes) <= KEEP_BYTES

    @torch.no_grad()
    def logprobs(self, groups: Sequence[Sequence[Request]], members: Sequence[Member]) -> NDArray[np.float64] | None:
        """Return log-probabilities (M, R) of the groups' requests; None where it cannot: `problem` says why.

        Args:
            groups: requests behind one prompt each.
            members: M members.
        """
        lengths = [len(group[0].prompt) for group in groups]
        width = _width(max(lengths))
        lines = packed(lengths, width)
        shape = (len(members), len(groups), max(map(len, groups)), -(-len(lines) // 2) * 2, width)
        try:
            self._copies.fill(members)
            # A graph goes on reading these addresses.
            now = addresses(self._reader, self._copies.moves)
            if now != self._read:
                self._passes.clear()
                self._read = now
            one = self._passes.pop(shape, None) or _Pass(self._reader, self._copies, shape, self._replays)
            found = one.read(groups, lines)
        except torch.OutOfMemoryError:
            self.give_up("out of memory")
            return None
        except Exception as error:  # what is wrong with the model itself, the plain way will tell
            self.give_up(f"{type(error).__name__}: {error}")
            return None
        self._passes[shape] = one
        if len(self._passes) > SHAPES:
            self._passes.popitem(last=False)
        return found

    def give_up(self, problem: str) -> None:
        """Leave this model to the plain way from now on, and say so."""
        self.problem = problem
        self._passes.clear()
        self._copies = _no_copies(self._reader)
        told = "Answers are read without CUDA graphs (a small model's step takes some times as long): %s."
        logging.get_logger(__name__).warning(told, problem.splitlines()[0])


def _no_copies(reader: Reader) -> HeldCopies:
    return HeldCopies(list(reader.tuned.slots), reader.tuned.kernels)


def packed(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Return which rows stand in which line: the longest first, each in the first line that has room.

    >>> packed([3, 9, 4, 2, 6], width=10)
    [[1], [4, 2], [0, 3]]
    """
    lines: list[list[int]] = []
    room: list[int] = []
    for n in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        line = next((line for line, left in enumerate(room) if left >= lengths[n]), len(lines))
        if line == len(lines):
            lines.append([])
            room.append(width)
        lines[line].append(n)
        room[line] -= lengths[n]
    return lines


def _width(longest: int) -> int:
    """
    >>> _width(60), _width(128), _width(300)
    (128, 128, 512)
    """
    return max(LINE, 1 << (longest - 1).bit_length())


class _Pass:
    """A pass of one shape: what it reads and writes, and the pass itself."""

    def __init__(self, reader: Reader, copies: HeldCopies, shape: tuple[int, ...], replays: bool):
        self._reader, self._copies, self._graph = reader, copies, Replays(replays)
        members, rows, candidates, lines, width = shape
        device = next(reader.model.parameters()).device
        sizes = [lines * width] * 3 + [rows, rows * candidates]
        self._input = torch.zeros(sum(sizes), dtype=torch.long, device=device)
        ids, place, row, self._last, targets = self._input.split(sizes)
        self._ids, self._place, self._row = (flat.view(lines, width) for flat in (ids, place, row))
        self._targets = targets.view(rows, candidates)
        self._table = torch.zeros(members, rows, candidates, device=device)
        self._staged = torch.zeros(sum(sizes), dtype=torch.long, pin_memory=device.type == "cuda")
        self._sizes, self._shape = sizes, shape

    def read(self, groups: Sequence[Sequence[Request]], lines: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        """Return the log-probabilities (M, R) of the groups' targets, of one token each."""
        self._stage(groups, lines)
        self._input.copy_(self._staged, non_blocking=True)
        self._graph.do(self._run)
        table: NDArray[np.float64] = self._table.cpu().double().numpy()
        places = [(n, c) for n, group in enumerate(groups) for c in range(len(group))]
        return table[:, [n for n, _ in places], [c for _, c in places]]

    def _stage(self, groups: Sequence[Sequence[Request]], lines: Sequence[Sequence[int]]) -> None:
        _, rows, candidates, _, width = self._shape
        staged = self._staged.numpy()
        staged.fill(0)
        ids, place, row, last, targets = np.split(staged, np.cumsum(self._sizes)[:-1])
        for line, inside in enumerate(lines):
            start = line * width
            for n in inside:
                tokens = groups[n][0].prompt
                end = start + len(tokens)
                ids[start:end], place[start:end], row[start:end] = tokens, np.arange(len(tokens)), n + 1
                last[n] = end - 1
                start = end
        targets = targets.reshape(rows, candidates)
        for n, group in enumerate(groups):
            targets[n, : len(group)] = [request.target[0] for request in group]

    def _run(self) -> None:
        same_row = self._row.unsqueeze(2) == self._row.unsqueeze(1)
        dtype = next(self._reader.model.parameters()).dtype
        bias = additive_mask(same_row.tril_(), dtype).unsqueeze(1)
        if self._table.device.type != "cuda":
            for member in range(len(self._table)):
                self._run_member(member, bias)
            return
        here = torch.cuda.current_stream()
        streams = [side_stream(torch.cuda.current_device(), 1 + member) for member in range(len(self._table))]
        for member, stream in enumerate(streams):
            stream.wait_stream(here)
            with torch.cuda.stream(stream):
                self._run_member(member, bias)
        for stream in streams:
            here.wait_stream(stream)

    def _run_member(self, member: int, bias: torch.Tensor) -> None:
        model: Any = self._reader.model
        head = model.get_output_embeddings()

        def last_tokens(module: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            return (args[0].flatten(0, 1).index_select(0, self._last).unsqueeze(0), *args[1:])

        with self._copies.shown(member), self._reader.logits_in_float32():
            handle = head.register_forward_pre_hook(last_tokens)
            try:
                logits = model(
                    input_ids=self._ids, attention_mask=bias, position_ids=self._place, use_cache=False
                ).logits.float()
            finally:
                handle.remove()
        if logits.shape[:2] != (1, len(self._last)):
            raise RuntimeError("its head does not read the last hidden states")
        self._table[member].copy_(log_softmax_at(logits[0], self._targets))


def log_softmax_at(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return log softmax(logits)[…, targets] of float32 logits; NaN where a logit of the row is NaN or +inf.

    An only output is returned as it is: a log-probability but for a number that all answers of its row have in common.
    """
    if logits.shape[-1] == 1:
        return logits.gather(-1, targets).masked_fill(is_lost(logits), torch.nan)
    total = logits.logsumexp(-1, keepdim=True)  # its subtraction alone would make −inf of all that is beside +inf
    return logits.gather(-1, targets) - total.masked_fill(is_lost(total), torch.nan)
