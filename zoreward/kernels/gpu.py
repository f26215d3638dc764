"""Perturbed copies and updates of CUDA tensors, in Triton: the same bits as `cpu.py`, at the speed of memory.

One launch does all tensors of a dtype, and reads and writes each weight once, however many members, updates or terms
there are. float64 weights, which nobody tunes in earnest, are left to `portable.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton

from zoreward.kernels import portable, tables, triton_kernels
from zoreward.kernels.subspaces import Subspaces, Weight, matrices_of
from zoreward.kernels.tables import Group, Known, Table, launched_on, table_of
from zoreward.neighbours.of_torch import copy_all_
from zoreward.noise import DISTRIBUTIONS, Purpose
from zoreward.records import Member, Term, Update

# Elements that a program has in hand at a time, and its warps: 4, see `rounding_bits`.
BLOCK, WARPS = 2048, 4
# Elements of a program. Copies of a 5120 x 5120 matrix at two members come to 0.99 of a copy's speed on an H100 with
# 4096, 0.95 with 8192: fewer programs leave the last ones alone. 2048 add 0.01, and their lists take a device twice the
# memory. Updates have more to load before they begin: 0.92 with 16384, 0.89 with 8192, 0.87 with 4096.
COPY_UNIT, UPDATE_UNIT = 4096, 16384
# Elements between whose multiples the copies lie: 512 bytes in half precision, as torch's own allocator aligns.
ALIGN = 256
# Sets of tensors that are remembered: more than a model has modules.
MOST_KNOWN = 4096


class Kernels:
    """The functions of a kernel, for CUDA tensors.

    Remembers where the tensors lie that it has seen, and the subspaces that it was asked for last.

    Args:
        block: elements of a block, a power of 2 from 1,024 on.
        unit: elements of a program, a power of 2 and a multiple of `block`; by default one size for copies, and one
            for updates.
    """

    def __init__(self, block: int = BLOCK, unit: int | None = None) -> None:
        self._copy_unit, self._update_unit = unit or COPY_UNIT, unit or UPDATE_UNIT
        self.aligned = max(self._copy_unit, self._update_unit)  # see `zoreward.kernels.cpu.perturb_all`
        native = not triton.knobs.runtime.interpret and torch.version.cuda is not None
        options = {"BLOCK": block, "NATIVE": native, "num_warps": WARPS, "enable_fp_fusion": False}
        self._options: dict[str, Any] = options
        self._known: dict[Any, Known] = {}
        self._factor_tables: dict[Any, tuple[Table, int]] = {}
        self._scripts: dict[Any, torch.Tensor] = {}
        self._subspaces = Subspaces(portable.normals)
        self._couple: tuple[Sequence[Member], torch.device, torch.Tensor, int, int | None] | None = None

    @torch.no_grad()
    def perturb_all(
        self,
        weights: Sequence[Weight],
        members: Sequence[Member],
        into: list[list[torch.Tensor]] | None = None,
        firsts: Sequence[int] = (),
    ) -> list[list[torch.Tensor]]:
        """Return the copies of each tensor at each member; see `zoreward.kernels.cpu.perturb_all`.

        The copies of one dtype lie in one allocation. Into copies that are there already, it takes a third of the
        time where tensors are many and small: what takes the rest is to make a tensor of each copy.
        """
        found: list[list[torch.Tensor]] = into or [[] for _ in weights]
        for group in self._groups(weights, firsts):
            there = [into[number] for number in group.numbers] if into else None
            if group.like.dtype == torch.float64:
                made = portable.perturb_all(group.weights, members, there, self._subspaces)
            else:
                made = self._perturb(group, members, there)
            for number, copies in zip(group.numbers, made, strict=True):
                found[number] = copies
        return found

    @torch.no_grad()
    def replay_all_(
        self,
        weights: Sequence[Weight],
        updates: Sequence[Update],
        bases: Sequence[torch.Tensor] | None = None,
        firsts: Sequence[int] = (),
    ) -> None:
        """Do updates to all tensors in place, one after the other; see `zoreward.kernels.cpu.replay_all_`.

        Args:
            weights: the tensors and their streams.
            updates: in their order.
            bases: what `perturb_all(weights, ((),))` gave, where updates have an anchor: the copies in their place.
            firsts: see `zoreward.kernels.cpu.perturb_all`.
        """
        drawn = tables.drawn_of(term for update in updates for term in update.terms)
        for group in self._groups(weights, firsts):
            some = [bases[number] for number in group.numbers] if bases else None
            if group.like.dtype == torch.float64 or drawn is None:
                portable.replay_all_(group.weights, updates, some, self._subspaces)
            elif group.lines is not None:
                # The one allocation, from its beginning: the first copy may be of a tensor without elements.
                base = some[0].as_strided((group.size,), (1,), 0) if some else group.like
                self._replay(group, updates, base, drawn)

    @torch.no_grad()
    def factor_lines(self, weights: Sequence[Weight], terms: Sequence[Term]) -> torch.Tensor:
        """Return the factors of all matrices in lines; see `zoreward.kernels.subspaces.Keeping.factor_lines`.

        So nothing is made of each factor: for OPT-13B's 486 that takes Python as long as a tenth of a forward pass.
        """
        drawn, begins, size = self._draw(weights, terms, in_lines=True)
        blocks = [
            drawn[begin : begin + size * rank].view(size, rank)
            for rank, begin in zip((term.family.rank for term in terms), begins, strict=True)
        ]
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)

    def _perturb(
        self, group: Group, members: Sequence[Member], there: list[list[torch.Tensor]] | None
    ) -> list[list[torch.Tensor]]:
        like = group.like
        if there and members:
            # The one allocation, from its beginning.
            copies = there[0][0].as_strided((len(members), group.size), (group.size, 1), 0)
        else:
            copies = torch.empty(len(members), group.size, dtype=like.dtype, device=like.device)
        views = there or [
            list(copies.as_strided((len(members), *shape), (group.size, *strides), place).unbind())
            for shape, strides, place in group.views
        ]
        if group.lines is not None and members:
            terms = [term for member in members for term in member if term.family.rank]
            factors, begins = self._factors(group, terms)
            script, alike, drawn = self._script_of_members(members, begins, like.device)
            if drawn is None:
                return portable.perturb_all(group.weights, members, views, self._subspaces)
            table = self._table(group, self._copy_unit)
            with launched_on(like.device):
                for units, whole in table.parts:
                    triton_kernels.perturb[(len(units),)](
                        table.lines, units, script, len(members), _stored(like), _stored(copies), group.size, factors,
                        BF16=like.dtype == torch.bfloat16, WHOLE=whole, ALIKE=alike, ONE=len(members) == alike,
                        LOW_RANK=tables.rank_of(terms), QUADS=group.quads,
                        DISTRIBUTION=drawn, UNIT=self._copy_unit, **self._options,
                    )  # fmt: skip
        return views

    def _script_of_members(
        self, members: Sequence[Member], begins: dict[Any, int], device: torch.device
    ) -> tuple[torch.Tensor, int, int | None]:
        """The script, how many neighbours share a direction, and `tables.drawn_of`.

        A model's modules ask for the same members, one after the other.
        """
        if self._couple is not None and self._couple[0] is members and self._couple[1] == device and not begins:
            return self._couple[2:]
        script = self._script([tables.script_of(member, begins) for member in members], device)
        drawn = tables.drawn_of(term for member in members for term in member)
        found = script, tables.alike_of(members), drawn
        if isinstance(members, tuple):  # else it may change
            self._couple = members, device, *found
        return found

    def _replay(self, group: Group, updates: Sequence[Update], base: torch.Tensor, drawn: int) -> None:
        like = group.like
        terms = [term for update in updates for term in update.terms if term.family.rank]
        factors, begins = self._factors(group, terms)
        lines = [tables.script_of(u.terms, begins, u.rounding_seed, u.decay, u.anchor) for u in updates]
        one = len(lines) == 1 and lines[0][2] == 1 and lines[0][3] in (tables.DENSE, tables.LOW_RANK)
        kind = 0
        for line in lines:
            kind |= line[3]
        script = self._script(lines, like.device)
        table = self._table(group, self._update_unit)
        with launched_on(like.device):
            for units, whole in table.parts:
                triton_kernels.update[(len(units),)](
                    table.lines, units, script, len(updates), kind, _stored(like), _stored(base), factors,
                    BF16=like.dtype == torch.bfloat16, WHOLE=whole, ONE=one, LOW_RANK=tables.rank_of(terms),
                    QUADS=group.quads, DISTRIBUTION=drawn, UNIT=self._update_unit, **self._options,
                )  # fmt: skip
        for weight, copy in group.copied:
            if any(update.moves(weight.ndim) for update in updates):
                weight.copy_(copy)

    def _factors(self, group: Group, terms: Sequence[Term]) -> tuple[torch.Tensor, dict[Any, int]]:
        """All factors of the matrices, and where those of a direction begin."""
        distinct = list({term.direction: term for term in terms}.values())
        keys = [term.direction for term in distinct]
        if not group.matrices or not distinct:
            return group.like, dict.fromkeys(keys, 0)  # some address; nothing is read there
        drawn, begins, _ = self._draw(group.matrices, distinct)
        return drawn, dict(zip(keys, begins, strict=True))

    def _draw(
        self, weights: Sequence[Weight], terms: Sequence[Term], in_lines: bool = False
    ) -> tuple[torch.Tensor, list[int], int]:
        """Draw the factors of each matrix for each term; where each term's begin; a rank's size.

        As the kernels read them, a and b of each matrix on a boundary; or in lines, all a and then all b.
        """
        device = weights[0][0].device
        families = [term.family for term in terms]
        ranks = [family.rank for family in families]
        table_of_rank = {rank: self._table_of_factors(weights, rank, device, in_lines) for rank in set(ranks)}
        size = next(size for _, size in table_of_rank.values())
        begins = [size * sum(ranks[:t]) for t in range(len(terms))]
        drawn = torch.empty(size * sum(ranks), device=device)
        lines: dict[tuple[int, int], list[list[int]]] = {}
        for term, family, begin in zip(terms, families, begins, strict=True):
            if not family.has_bases:
                key = family.rank, DISTRIBUTIONS.index(family.distribution)
                seeds = [draw.seed for draw in family.draws(term.seed, (1, 1))]
                lines.setdefault(key, []).append([*seeds, family.rank, begin])
        for (rank, distribution), same in lines.items():
            table, _ = table_of_rank[rank]
            for units, _ in table.parts:
                script = self._script(same, device)
                with launched_on(device):
                    triton_kernels.factor_entries[(len(units), len(same))](
                        table.lines, units, script, drawn, DISTRIBUTION=distribution, UNIT=self._copy_unit,
                        **self._options,
                    )  # fmt: skip
        if not any(family.has_bases for family in families):
            return drawn, begins, size
        matrices = matrices_of(weights)
        self._subspaces.hold(matrices, terms, device)
        for term, rank, begin in zip(terms, ranks, begins, strict=True):
            if term.family.has_bases:
                pairs = self._subspaces.factors(matrices, term, device)
                room = drawn[begin : begin + size * rank]
                if in_lines:
                    torch.cat([pair[side] for side in (0, 1) for pair in pairs], out=room.view(size, rank))
                else:
                    places = tables.sides_of(room, weights, rank)
                    copy_all_(places, [side for pair in pairs for side in pair])
        return drawn, begins, size

    def _groups(self, weights: Sequence[Weight], firsts: Sequence[int] = ()) -> list[Group]:
        """The tensors by dtype. Found again by the tensors themselves, if they still lie where they lay."""
        if not weights:
            return []
        tensors, streams = zip(*weights, strict=True)
        key = tuple(map(id, tensors)), streams, *firsts
        addresses, shapes = list(map(torch.Tensor.data_ptr, tensors)), list(map(torch.Tensor.size, tensors))
        known = self._known.get(key)
        if known is not None and known.addresses == addresses and known.shapes == shapes:
            return known.groups
        numbers_of: dict[torch.dtype, list[int]] = {}
        for number, (weight, _) in enumerate(weights):
            numbers_of.setdefault(weight.dtype, []).append(number)
        begins = firsts or [0] * len(weights)
        groups = [
            self._group(numbers, [weights[n] for n in numbers], [begins[n] for n in numbers])
            for numbers in numbers_of.values()
        ]
        if not any(group.copied for group in groups):
            if len(self._known) >= MOST_KNOWN:  # other views each time
                self._known.clear()
            self._known[key] = Known(tensors, addresses, shapes, groups)
        return groups

    def _group(self, numbers: list[int], weights: list[Weight], firsts: list[int]) -> Group:
        flats = [_flat(weight) for weight, _ in weights]
        like = next((flat for flat in flats if flat.numel()), flats[0])
        lines, views, place, factors = [], [], 0, 0
        for flat, (weight, stream), first in zip(flats, weights, firsts, strict=True):
            rows, columns = weight.shape if weight.ndim == 2 else (0, 0)
            room = tables.padded(rows)
            kinds = tables.kinds_of(weight.ndim)
            begin = (flat.data_ptr() - like.data_ptr()) // flat.element_size()
            end = first + flat.numel()
            lines.append([begin - first, end, stream, first, place - first, room, columns, factors, kinds])
            views.append((flat.shape, flat.stride(), place))
            place += -(-flat.numel() // ALIGN) * ALIGN
            factors += room + tables.padded(columns)
        known = lines if place and like.dtype != torch.float64 else None
        copied = [(weight, flat) for flat, (weight, _) in zip(flats, weights, strict=True) if flat is not weight]
        matrices = [pair for pair in weights if pair[0].ndim == 2]
        quads = all(weight.shape[1] % 4 == 0 for weight, _ in matrices)
        return Group(numbers, weights, copied, like, known, {}, views, place, matrices, quads)

    def _table_of_factors(
        self, weights: Sequence[Weight], rank: int, device: torch.device, in_lines: bool
    ) -> tuple[Table, int]:
        """Where the factors of one direction lie, and how many numbers they are for each rank."""
        tensors, streams = zip(*weights, strict=True)
        key = in_lines, rank, device, streams, tuple(map(torch.Tensor.size, tensors))
        if key not in self._factor_tables:
            lines, place = [], 0
            sides = [
                (weight.shape[side], stream, purpose)
                for weight, stream in weights
                for side, purpose in enumerate((Purpose.FACTOR_A, Purpose.FACTOR_B))
            ]
            for length, stream, purpose in [*sides[::2], *sides[1::2]] if in_lines else sides:
                lines.append([0, length * rank, stream, 0, place * rank, purpose, 0, 0, 0])
                place += length if in_lines else tables.padded(length)
            if len(self._factor_tables) >= MOST_KNOWN:
                self._factor_tables.clear()
            self._factor_tables[key] = table_of(lines, 1, self._copy_unit, device), place
        return self._factor_tables[key]

    def _table(self, group: Group, unit: int) -> Table:
        assert group.lines is not None
        if unit not in group.tables:
            group.tables[unit] = table_of(group.lines, self._options["BLOCK"], unit, group.like.device)
        return group.tables[unit]

    def _script(self, lines: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
        """The script on the device; the last one is remembered, because the modules of a model share theirs."""
        key = device, *[value for line in lines for value in line]
        if key not in self._scripts:
            self._scripts.clear()
            signed = [value - 2**64 if value >= 2**63 else value for value in key[1:]]
            self._scripts[key] = torch.tensor(signed, dtype=torch.int64).to(device, non_blocking=True)
        return self._scripts[key]


def _flat(weight: torch.Tensor) -> torch.Tensor:
    """The weight itself, or a copy of it where its elements do not lie in order on a boundary of 16 bytes."""
    if weight.is_contiguous():
        return weight.clone() if weight.data_ptr() % 16 else weight
    return weight.clone(memory_format=torch.contiguous_format)


def _stored(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor
