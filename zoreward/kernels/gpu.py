"""Perturbed copies and updates of CUDA tensors, in Triton: the same bits as `cpu.py`, at the speed of memory.

One launch does all tensors of a dtype, and reads and writes each weight once, however many members, updates or terms
there are. float64 weights, which nobody tunes in earnest, are left to `portable.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import triton

from zoreward import noise
from zoreward.kernels import portable, triton_kernels
from zoreward.records import Member, Term, Update

# Elements of a program, a power of 2, and warps that work on them.
BLOCK, WARPS = 1024, 4
# Programs of a unit. More make the list of units shorter and leave more programs of small tensors without work.
PARTS = 16
# Elements between whose multiples the copies lie: 512 bytes in half precision, as torch's own allocator aligns.
ALIGN = 256
# Tables that are remembered: more than a model has modules.
MOST_TABLES = 4096

Weight = tuple[torch.Tensor, int]
"""A tensor and its stream."""

Factors = tuple[torch.Tensor, torch.Tensor]
"""a (m, r) and b (n, r) of a low-rank direction of a matrix (m, n): float32."""


@dataclass(frozen=True, slots=True)
class Table:
    """Tensors of one dtype as the kernels see them; see `triton_kernels`.

    Args:
        lines: int64 (tensors, fields), on the device.
        units: int32, the number of the tensor that each unit belongs to.
        places: where each tensor's copy begins.
        size: elements of a copy of all tensors.
        factors: elements of the factors of all matrices, for rank 1.
    """

    lines: torch.Tensor
    units: torch.Tensor
    places: tuple[int, ...]
    size: int
    factors: int


class Kernels:
    """The four functions of a kernel, for CUDA tensors. Remembers the tables of the tensors it has seen.

    Args:
        block: elements of a program.
        warps: that work on them.
    """

    def __init__(self, block: int = BLOCK, warps: int = WARPS) -> None:
        self._block, self._warps = block, warps
        self._tables: dict[Any, Table] = {}
        self._scripts: dict[Any, torch.Tensor] = {}
        interpreted = triton.knobs.runtime.interpret
        self._native = not interpreted and torch.version.cuda is not None

    @torch.no_grad()
    def perturb_all(self, weights: Sequence[Weight], members: Sequence[Member]) -> list[list[torch.Tensor]]:
        """Return the copies of each tensor at each member; see `zoreward.kernels.cpu.perturb`.

        The copies of one dtype lie in one allocation.
        """
        return _by_dtype(weights, lambda same: self._perturb(same, members), portable.perturb_all, members)

    def update_all_(self, weights: Sequence[Weight], update: Update) -> None:
        """Do one update to all tensors in place; see `zoreward.kernels.cpu.update_`."""
        self.replay_all_(weights, [update])

    @torch.no_grad()
    def replay_all_(self, weights: Sequence[Weight], updates: Sequence[Update]) -> None:
        """Do updates to all tensors in place, one after the other; see `zoreward.kernels.cpu.replay_all_`."""
        moved = [pair for pair in weights if any(update.moves(pair[0].ndim) for update in updates)]
        _by_dtype(moved, lambda same: self._replay(same, updates), portable.replay_all_, updates)

    @torch.no_grad()
    def factors_all(self, weights: Sequence[Weight], terms: Sequence[Term]) -> list[list[Factors]]:
        """Return the factors of each matrix and each low-rank term; see `zoreward.kernels.cpu.factors_all`."""
        if not weights or not terms:
            return [[] for _ in weights]
        drawn, begins, size = self._draw(weights, terms)
        found: list[list[Factors]] = [[] for _ in weights]
        for term, begin in zip(terms, begins, strict=True):
            part = drawn[begin : begin + size * term.rank]
            sizes = [side * term.rank for weight, _ in weights for side in weight.shape]
            sides = [side.view(-1, term.rank) for side in part.split(sizes)]
            for pairs, a, b in zip(found, sides[::2], sides[1::2], strict=True):
                pairs.append((a, b))
        return found

    def _perturb(self, weights: Sequence[Weight], members: Sequence[Member]) -> list[list[torch.Tensor]]:
        flats = [_flat(weight) for weight, _ in weights]
        table = self._table(flats, weights)
        first = flats[0]
        copies = torch.empty(len(members), table.size, dtype=first.dtype, device=first.device)
        terms = [term for member in members for term in member if term.rank]
        factors, begins = self._factors(weights, terms)
        script = self._script([_script_of(0, 0.0, member, begins) for member in members], first.device)
        with _on(first.device):
            triton_kernels.perturb[self._grid(table)](
                table.lines, table.units, script, len(members), _stored(copies), table.size, factors,
                BF16=first.dtype == torch.bfloat16, COUPLES=_are_couples(members), LOW_RANK=bool(terms),
                **self._options(),
            )  # fmt: skip
        outs = copies.unbind(0)
        return [
            [torch.as_strided(out, weight.shape, _strides(weight.shape), place + out.storage_offset()) for out in outs]
            for (weight, _), place in zip(weights, table.places, strict=True)
        ]

    def _replay(self, weights: Sequence[Weight], updates: Sequence[Update]) -> None:
        flats = [_flat(weight) for weight, _ in weights]
        table = self._table(flats, weights)
        first = flats[0]
        terms = [term for update in updates for term in update.terms if term.rank]
        factors, begins = self._factors(weights, terms)
        lines = [_script_of(update.rounding_seed, update.decay, update.terms, begins) for update in updates]
        script = self._script(lines, first.device)
        with _on(first.device):
            triton_kernels.update[self._grid(table)](
                table.lines, table.units, script, len(updates), _stored(first), factors,
                BF16=first.dtype == torch.bfloat16, LOW_RANK=bool(terms), **self._options(),
            )  # fmt: skip
        for (weight, _), flat in zip(weights, flats, strict=True):
            if flat.data_ptr() != weight.data_ptr():
                weight.copy_(flat.view(weight.shape))

    def _factors(self, weights: Sequence[Weight], terms: Sequence[Term]) -> tuple[torch.Tensor, dict[Any, int]]:
        """All factors of the matrices, and where those of a (seed, rank) begin."""
        matrices = [pair for pair in weights if pair[0].ndim == 2]
        distinct = list({(term.seed, term.rank): term for term in terms}.values())
        if not matrices or not distinct:
            return torch.empty(0, device=weights[0][0].device), dict.fromkeys(_keys(distinct), 0)
        drawn, begins, _ = self._draw(matrices, distinct)
        return drawn, dict(zip(_keys(distinct), begins, strict=True))

    def _draw(self, weights: Sequence[Weight], terms: Sequence[Term]) -> tuple[torch.Tensor, list[int], int]:
        """Draw a and b of each matrix for each term, one behind the other; where each term's begin; a rank's size."""
        device = weights[0][0].device
        size = sum(sum(weight.shape) for weight, _ in weights)
        begins = [size * sum(term.rank for term in terms[:t]) for t in range(len(terms))]
        drawn = torch.empty(size * sum(term.rank for term in terms), device=device)
        for rank in sorted({term.rank for term in terms}):
            table = self._table_of_factors(weights, rank, device)
            lines = [
                [term.seed, 0, rank, begin] for term, begin in zip(terms, begins, strict=True) if term.rank == rank
            ]
            script = self._script(lines, device)
            if table.units.numel():
                with _on(device):
                    triton_kernels.normals[(*self._grid(table), len(lines))](
                        table.lines, table.units, script, drawn, **self._options()
                    )
        return drawn, begins, size

    def _options(self) -> dict[str, Any]:
        return {
            "BLOCK": self._block,
            "PARTS": PARTS,
            "NATIVE": self._native,
            "num_warps": self._warps,
            "enable_fp_fusion": False,
        }

    def _grid(self, table: Table) -> tuple[int]:
        return (len(table.units) * PARTS,)

    def _table(self, flats: Sequence[torch.Tensor], weights: Sequence[Weight]) -> Table:
        """The table of the weights, whose elements lie in order in `flats`."""
        device = flats[0].device
        key = (
            device,
            *((flat.data_ptr(), weight.shape, stream) for flat, (weight, stream) in zip(flats, weights, strict=True)),
        )
        if (table := self._tables.get(key)) is None:
            lines, place, factors = [], 0, 0
            for flat, (weight, stream) in zip(flats, weights, strict=True):
                rows, columns = weight.shape if weight.ndim == 2 else (0, 0)
                kinds = 1 + 2 * (weight.ndim == 2) + 4 * (weight.ndim >= 2)
                lines.append([flat.data_ptr(), flat.numel(), stream, 0, place, rows, columns, factors, kinds])
                place += -(-flat.numel() // ALIGN) * ALIGN
                factors += rows + columns
            table = self._remember(key, lines, place, factors, device)
        return table

    def _table_of_factors(self, weights: Sequence[Weight], rank: int, device: torch.device) -> Table:
        key = device, rank, *((weight.shape, stream) for weight, stream in weights)
        if (table := self._tables.get(key)) is None:
            lines, place = [], 0
            for weight, stream in weights:
                for side, purpose in zip(weight.shape, (noise.FACTOR_A, noise.FACTOR_B), strict=True):
                    lines.append([0, side * rank, stream, 0, place, purpose, 0, 0, 0])
                    place += side * rank
            table = self._remember(key, lines, place, 0, device)
        return table

    def _remember(self, key: Any, lines: list[list[int]], size: int, factors: int, device: torch.device) -> Table:
        places = tuple(line[4] for line in lines)
        owners: list[int] = []
        for number, line in enumerate(lines):
            line[3] = len(owners)
            owners += [number] * -(-line[1] // (self._block * PARTS))
        columns = torch.tensor(lines, dtype=torch.int64).to(device, non_blocking=True)
        units = torch.tensor(owners, dtype=torch.int32).to(device, non_blocking=True)
        if len(self._tables) >= MOST_TABLES:  # weights that move, or other views each time
            self._tables.clear()
        self._tables[key] = Table(columns, units, places, size, factors)
        return self._tables[key]

    def _script(self, lines: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
        """The script on the device; the last one is remembered, because the modules of a model share theirs."""
        whole = [_signed(value) for line in lines for value in line]
        key = device, *whole
        if key not in self._scripts:
            self._scripts.clear()
            self._scripts[key] = torch.tensor(whole, dtype=torch.int64).to(device, non_blocking=True)
        return self._scripts[key]


def _by_dtype(
    weights: Sequence[Weight],
    ours: Callable[[list[Weight]], Any],
    theirs: Callable[[list[Weight], Any], Any],
    what: Any,
) -> list[Any]:
    """Work on the weights of each dtype together; the results in the order of the weights."""
    groups: dict[torch.dtype, list[int]] = {}
    for number, (weight, _) in enumerate(weights):
        groups.setdefault(weight.dtype, []).append(number)
    results: list[Any] = [None] * len(weights)
    for dtype, numbers in groups.items():
        same = [weights[number] for number in numbers]
        found = theirs(same, what) if dtype == torch.float64 else ours(same)
        for number, one in zip(numbers, found or (), strict=False):
            results[number] = one
    return results


def _script_of(seed: int, decay: float, terms: Iterable[Term], begins: dict[Any, int]) -> list[int]:
    terms = tuple(terms)
    kind = any(term.rank == 0 for term in terms) + 2 * any(term.rank for term in terms) + 4 * (decay != 0)
    lines = [seed, _pattern(decay), len(terms), kind]
    for term in terms:
        scale = float(noise.inv_sqrt_rank(term.rank)) if term.rank else 1.0
        lines += [term.seed, _pattern(term.coefficient) | _pattern(scale) << 32, term.rank]
        lines.append(begins[term.seed, term.rank] if term.rank else 0)
    return lines


def _are_couples(members: Sequence[Member]) -> bool:
    """Whether neighbours are one dense term each, along the same direction."""
    if len(members) % 2 or any(len(member) != 1 or member[0].rank for member in members):
        return False
    return all(a[0].seed == b[0].seed for a, b in zip(members[::2], members[1::2], strict=True))


def _keys(terms: Iterable[Term]) -> list[tuple[int, int]]:
    return [(term.seed, term.rank) for term in terms]


def _pattern(value: float) -> int:
    """The 32 bits of a float32."""
    [pattern] = struct.unpack("<I", struct.pack("<f", value))
    return int(pattern)


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _flat(weight: torch.Tensor) -> torch.Tensor:
    """The weight itself, or a copy of it where its elements do not lie in order on a boundary of 16 bytes."""
    flat = weight.detach().contiguous()
    return flat.clone() if flat.data_ptr() % 16 else flat


def _stored(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor


def _strides(shape: torch.Size) -> list[int]:
    strides = [1]
    for size in reversed(shape[1:]):
        strides.insert(0, strides[0] * max(size, 1))
    return strides[: len(shape)]


def _on(device: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
