"""Perturbed copies and updates in plain torch operations: the same bits as `cpu.py`, for tensors on any device.

Tensors are worked on in groups, so that a model of hundreds of small ones costs few launches; a large one is cut.
Products and sums are separate operations: one fused multiply-add would change the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from zoreward.kernels.subspaces import Factors, Subspaces, Weight, holding, matrices_of
from zoreward.noise import Dense, Distribution, Purpose
from zoreward.noise import definition as noise
from zoreward.records import Direction, Member, Term, Update

# Elements at once: the seven int64 temporaries of their words take 7 · 8 bytes each, 235 MB.
GROUP = 1 << 22
ALIGNED = 4  # as in `cpu.py`

PartsOf = dict[tuple[int, Direction], Sequence[torch.Tensor]]
"""(number of the tensor, `Term.direction`) → parts, of directions that move it and are not dense."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Elements `start` … `start + count − 1` of tensor number `tensor`; in the group's words they begin at `offset`."""

    tensor: int
    start: int
    count: int
    offset: int

    def of(self, drawn: torch.Tensor) -> torch.Tensor:
        """This piece's part of what was drawn for the group."""
        return drawn[self.offset : self.offset + self.count]


@torch.no_grad()
def perturb_all(
    weights: Sequence[Weight],
    members: Sequence[Member],
    into: list[list[torch.Tensor]] | None = None,
    subspaces: Subspaces | None = None,
    firsts: Sequence[int] = (),
) -> list[list[torch.Tensor]]:
    """Return the copies of each tensor at each member; see `zoreward.kernels.cpu.perturb_all`."""
    copies = into or [
        [torch.empty_like(weight, memory_format=torch.contiguous_format) for _ in members] for weight, _ in weights
    ]
    flats = [weight.detach().reshape(-1) for weight, _ in weights]
    terms = [term for member in members for term in member]
    parts = _parts_of(weights, terms, range(len(weights)), holding(subspaces, normals, weights, terms))
    for group in _groups([weight.numel() for weight, _ in weights]):
        draw = _Draw([stream for _, stream in weights], group, flats[0].device, firsts)
        for m, member in enumerate(members):
            z_K = draw.dense(member)
            for piece in group:
                acc = _load(flats[piece.tensor], piece)
                _add_terms(acc, weights[piece.tensor][0], piece, member, z_K, parts)
                out = copies[piece.tensor][m].view(-1)
                out[piece.start : piece.start + piece.count] = acc.to(out.dtype)
    return copies


@torch.no_grad()
def replay_all_(
    weights: Sequence[Weight],
    updates: Sequence[Update],
    bases: Sequence[torch.Tensor] | None = None,
    subspaces: Subspaces | None = None,
    firsts: Sequence[int] = (),
) -> None:
    """Do updates to all tensors in place, one after the other; see `zoreward.kernels.cpu.replay_all_`."""
    moved = [any(update.moves(weight.ndim) for update in updates) for weight, _ in weights]
    firsts = [first for first, moves in zip(firsts, moved, strict=True) if moves] if firsts else ()
    weights = [pair for pair, moves in zip(weights, moved, strict=True) if moves]
    anchors = [base.view(-1) for base, moves in zip(bases, moved, strict=True) if moves] if bases else None
    flats = [weight.detach().reshape(-1) for weight, _ in weights]  # a copy where a weight is not contiguous
    held = holding(subspaces, normals, weights, [term for update in updates for term in update.terms])
    for group in _groups([weight.numel() for weight, _ in weights]):
        draw = _Draw([stream for _, stream in weights], group, flats[0].device, firsts)
        for update in updates:
            _update_group_(weights, flats, group, draw, update, anchors, held)
    for (weight, _), flat in zip(weights, flats, strict=True):
        if not weight.is_contiguous():
            weight.copy_(flat.view(weight.shape))


def _update_group_(
    weights: Sequence[Weight],
    flats: Sequence[torch.Tensor],
    group: Sequence[Piece],
    draw: _Draw,
    update: Update,
    anchors: Sequence[torch.Tensor] | None,
    subspaces: Subspaces,
) -> None:
    moved = [piece for piece in group if update.moves(weights[piece.tensor][0].ndim)]
    half = any(weights[piece.tensor][0].dtype in (torch.bfloat16, torch.float16) for piece in moved)
    parts = _parts_of(weights, update.terms, {piece.tensor for piece in moved}, subspaces)
    z_K = draw.dense(update.terms)
    bits = draw.rounding_bits(update.rounding_seed) if half else None
    for piece in moved:
        weight, flat = weights[piece.tensor][0], flats[piece.tensor]
        acc = _load(flat, piece)
        _add_terms(acc, weight, piece, update.terms, z_K, parts)
        if update.decay != 0 and weight.ndim >= 2:
            acc -= _load(flat, piece) * update.decay
        if update.anchor != 0 and anchors is not None:
            acc -= (_load(flat, piece) - _load(anchors[piece.tensor], piece)) * update.anchor
        rounded = _round(acc, piece.of(bits), weight.dtype) if bits is not None else acc
        flat[piece.start : piece.start + piece.count] = rounded


@torch.no_grad()
def factors_all(
    weights: Sequence[Weight], terms: Sequence[Term], subspaces: Subspaces | None = None
) -> list[list[Factors]]:
    """Return the factors of each matrix and each low-rank term; see `zoreward.kernels.cpu.factors_all`."""
    parts = _parts_of(weights, terms, range(len(weights)), holding(subspaces, normals, weights, terms))
    pairs = [[parts[number, term.direction] for term in terms] for number in range(len(weights))]
    return [[(a, b) for a, b in own] for own in pairs]


def normals(
    seed: int,
    purpose: int,
    tensors: Sequence[tuple[int, int]],
    device: torch.device,
    distribution: Distribution = "normal",
) -> list[torch.Tensor]:
    """Return the first entries of tensors, from how many and the stream of each."""
    parts: list[list[torch.Tensor]] = [[] for _ in tensors]
    for group in _groups([count for count, _ in tensors]):
        z = _Draw([stream for _, stream in tensors], group, device).entries(seed, distribution, purpose)
        for piece in group:
            parts[piece.tensor].append(piece.of(z))
    return [torch.cat(some) if some else torch.empty(0, device=device) for some in parts]


def _parts_of(
    weights: Sequence[Weight], terms: Sequence[Term], numbers: Iterable[int], subspaces: Subspaces
) -> PartsOf:
    found: PartsOf = {}
    numbers = sorted(numbers)
    for term in {term.direction: term for term in terms if not isinstance(term.family, Dense)}.values():
        own = [number for number in numbers if term.moves(weights[number][0].ndim)]
        made = _parts([weights[number] for number in own], term, subspaces) if own else []
        found |= {(number, term.direction): parts for number, parts in zip(own, made, strict=True)}
    return found


def _parts(weights: Sequence[Weight], term: Term, subspaces: Subspaces) -> Sequence[Sequence[torch.Tensor]]:
    """`Family.parts` of a direction for each tensor."""
    device = weights[0][0].device
    if term.family.has_bases:
        return subspaces.factors(matrices_of(weights), term, device)
    parts = []
    for draws in zip(*(term.family.draws(term.seed, tuple(weight.shape)) for weight, _ in weights), strict=True):
        sizes = [(math.prod(draw.shape), stream) for draw, (_, stream) in zip(draws, weights, strict=True)]
        drawn = normals(draws[0].seed, draws[0].purpose, sizes, device, term.family.distribution)
        parts.append([own.view(draw.shape) for own, draw in zip(drawn, draws, strict=True)])
    return list(zip(*parts, strict=True))


def _add_terms(
    acc: torch.Tensor,
    weight: torch.Tensor,
    piece: Piece,
    terms: Member,
    z_K: Sequence[torch.Tensor | None],
    parts: PartsOf,
) -> None:
    """Add Σ coefficient · z to a piece of a weight, in place. `z_K`: the group's dense directions, None for others."""
    numbers = partial(torch.arange, device=weight.device)
    for dense, term in zip(z_K, terms, strict=True):
        if dense is not None:
            z = piece.of(dense)
        elif (own := parts.get((piece.tensor, term.direction))) is not None:
            z = term.family.piece(own, tuple(weight.shape), piece.start, piece.count, numbers)
        else:
            continue
        acc += z.to(acc.dtype) * term.coefficient


class _Draw:
    """The words of one group of pieces; the last direction is kept, because couples share theirs."""

    def __init__(
        self, streams: Sequence[int], group: Sequence[Piece], device: torch.device, firsts: Sequence[int] = ()
    ):
        places = [piece.start + (firsts[piece.tensor] if firsts else 0) for piece in group]
        blocks = [
            (place // 4, -(-piece.count // 4), streams[piece.tensor])
            for place, piece in zip(places, group, strict=True)
        ]
        self._block = torch.cat([torch.arange(first, first + n, device=device) for first, n, _ in blocks])
        self._stream = torch.cat([torch.full((n,), stream, device=device) for _, n, stream in blocks])
        self._held: tuple[int, Distribution, int] | None = None
        self._z = torch.empty(0)

    def entries(self, seed: int, distribution: Distribution, purpose: int = Purpose.DIRECTION) -> torch.Tensor:
        if self._held != (seed, distribution, purpose):
            words = self.words(seed, purpose)
            if distribution == "normal":
                self._z = (_popcount(words).float() - 16.0) * float(noise.INV_SQRT_8)
            elif distribution == "rademacher":
                self._z = 1.0 - (words >> 31).float() * 2.0
            else:
                self._z = torch.stack(_box_muller(words[0::2], words[1::2]), dim=1).view(-1)
            self._held = (seed, distribution, purpose)
        return self._z

    def dense(self, terms: Sequence[Term]) -> list[torch.Tensor | None]:
        """The dense directions of some terms, None for others."""
        return [
            self.entries(term.seed, term.family.distribution) if isinstance(term.family, Dense) else None
            for term in terms
        ]

    def rounding_bits(self, seed: int) -> torch.Tensor:
        """`noise.rounding_bits`; a word for each element, of which the half that is its own is kept."""
        sharing = noise.SHARING // 4  # blocks
        group, place = self._block // (2 * sharing), self._block % (2 * sharing)
        words = self.words(seed, Purpose.ROUNDING, group * sharing + place % sharing).view(-1, 4)
        return torch.where((place < sharing)[:, None], words & 0xFFFF, words >> 16).view(-1)

    def words(self, seed: int, purpose: int, block: torch.Tensor | None = None) -> torch.Tensor:
        """`noise.words` of the blocks: 32 bits each, in int64."""
        block = self._block if block is None else block
        counter = block & noise.MASK_32, block >> 32, self._stream, torch.full_like(self._stream, purpose)
        return torch.stack(noise.philox(counter, seed & noise.MASK_32, seed >> 32), dim=1).view(-1)


def _groups(sizes: Sequence[int]) -> Iterator[list[Piece]]:
    group: list[Piece] = []
    offset = 0
    for tensor, size in enumerate(sizes):
        for start in range(0, size, GROUP):
            count = min(GROUP, size - start)
            if group and offset + count > GROUP:
                yield group
                group, offset = [], 0
            group.append(Piece(tensor, start, count, offset))
            offset += -(-count // 4) * 4
    if group:
        yield group


def _load(flat: torch.Tensor, piece: Piece) -> torch.Tensor:
    part = flat[piece.start : piece.start + piece.count]
    return part.clone() if part.dtype in (torch.float32, torch.float64) else part.float()


def _box_muller(word: torch.Tensor, turn: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`noise.box_muller` of words in int64."""
    pattern = ((word >> 8) + 1).float().view(torch.int32)
    e = (pattern - noise.SQRT_HALF) >> 23
    f = (pattern - (e << 23)).view(torch.float32) - 1.0
    square = f * f
    ln = (f - 0.5 * square) + (square * f) * _polynomial(noise.LN, f)
    power = (e - 24).float()
    minus_half = (ln + power * float(noise.LN_2_LOW)) + power * float(noise.LN_2_HIGH)
    radius = (minus_half * -2.0).double().sqrt().float()  # torch's float32 root is not always the nearest
    g = ((turn >> 8 & 0x3FFFFF).float() - 2.0**21) * 2.0**-22
    square = g * g
    sine, cosine = _polynomial(noise.SINE, square) * g, _polynomial(noise.COSINE, square)
    odd, back = (turn >> 30 & 1) == 1, turn >> 31 == 1
    x, y = torch.where(odd, -sine, cosine), torch.where(odd, cosine, sine)
    return radius * torch.where(back, -x, x), radius * torch.where(back, -y, y)


def _polynomial(coefficients: Sequence[np.float32], x: torch.Tensor) -> torch.Tensor:
    value = torch.full_like(x, float(coefficients[-1]))
    for coefficient in coefficients[-2::-1]:
        value = value * x + float(coefficient)
    return value


def _popcount(word: torch.Tensor) -> torch.Tensor:
    word = word - ((word >> 1) & 0x55555555)
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F
    return (word * 0x01010101 >> 24) & 0xFF


def _round(acc: torch.Tensor, bits: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`noise.round_bf16` and `noise.round_fp16`, in torch."""
    if dtype not in (torch.bfloat16, torch.float16):
        return acc
    finite = acc.isfinite()
    pattern = acc.view(torch.int32).long() & noise.MASK_32
    if dtype == torch.bfloat16:
        moved = _as_float((pattern + bits) & 0xFFFF0000)
        largest = torch.finfo(torch.bfloat16).max
        return torch.where(finite, moved.clamp(-largest, largest), acc).to(dtype)
    moved = _as_float((pattern + (bits & 0x1FFF)) & 0xFFFFE000).double()
    u = (bits.double() + 0.5) * 2.0**-16
    small = torch.floor(acc.double() * 2.0**24 + u) * 2.0**-24
    value = torch.where(acc.abs() < 2.0**-14, small, moved).clamp(-65504.0, 65504.0)
    return torch.where(finite, value, acc.double()).to(dtype)


def _as_float(pattern: torch.Tensor) -> torch.Tensor:
    """The float32 whose bits are the lower half of an int64."""
    signed = torch.where(pattern >= 2**31, pattern - 2**32, pattern)
    return signed.int().view(torch.float32)
