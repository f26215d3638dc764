"""Perturbed copies and updates of CPU tensors, in NumPy, on as many threads as torch uses.

NumPy, because torch's integer operations draw 9 M numbers a second where NumPy's draw over 50 M on the same two cores.
A tensor is cut into chunks that fit a core's cache; NumPy lets go of the interpreter inside a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zoreward.kernels.philox import Workspace, entries_of_many
from zoreward.kernels.subspaces import Factors, Subspaces, Weight, holding
from zoreward.noise import Dense, Distribution, Purpose
from zoreward.noise import definition as noise
from zoreward.records import Member, Term, Update

# 16,384 blocks: a direction takes some 60 calls of NumPy, a few µs each; and its buffers, 1 MB, stay in a core's cache.
CHUNK = 1 << 16
# Of what the place is a multiple where a part of a whole tensor begins.
ALIGNED = 4
# Entries of tensors up to SMALL are drawn together, up to TOGETHER in a call: 1 MB, and one thread's work in any case.
# So are factors up to FACTOR: alone a draw takes some 100 µs to begin, together an entry takes twice as long, 40 ns.
SMALL, FACTOR, TOGETHER = 1 << 13, 1 << 11, 1 << 18

# By seed, stream, purpose, number and distribution.
Drawn = Mapping[tuple[int, int, int, int, Distribution], NDArray[np.float32]]

_LARGEST_BF16 = 0x7F7F0000
_DEVICE = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Job:
    """Work on one chunk of `count` elements, with a thread's workspace."""

    count: int
    work: Callable[[Workspace], None]


class Directions:
    """The directions of one tensor, chunk by chunk; of those that are made of parts, the parts are kept.

    Where the tensor is the part of a whole one from element `first` on, they are dense.
    """

    def __init__(
        self, shape: tuple[int, ...], stream: int, terms: Iterable[Term], subspaces: Subspaces, drawn: Drawn, first: int
    ) -> None:
        self.first, drawn = first, {} if first else drawn
        self.stream, self._shape, self._numel, self._drawn = stream, shape, math.prod(shape), drawn
        made = {term.direction: term for term in terms if not isinstance(term.family, Dense) and term.moves(len(shape))}
        self._parts = {
            # A column of a factor at a time is multiplied, and lies in one piece.
            direction: [part.copy(order="F" if term.family.rank else "C") for part in own]
            for direction, term in made.items()
            for own in [parts(shape, stream, term, subspaces, drawn)]
        }

    def add(self, acc: NDArray[Any], terms: Iterable[Term], start: int, workspace: Workspace) -> NDArray[Any]:
        """Add Σ coefficient · z of the elements from `start` on, in place; returns `acc`."""
        with np.errstate(over="ignore", invalid="ignore"):  # weights may be infinite; a warning must not stop an update
            for term in terms:
                if isinstance(term.family, Dense):
                    distribution = term.family.distribution
                    z = self._drawn.get((term.seed, self.stream, Purpose.DIRECTION, self._numel, distribution))
                    if z is None:
                        place = self.first + start
                        z = workspace.entries(term.seed, self.stream, place, len(acc), distribution=distribution)
                elif term.direction in self._parts:
                    own = self._parts[term.direction]
                    z = term.family.piece(own, self._shape, start, len(acc), np.arange)
                else:
                    continue
                if acc.dtype == np.float32:
                    acc += workspace.times(term.coefficient, z)
                else:
                    acc += acc.dtype.type(term.coefficient) * z
        return acc


def drawn_together(weights: Sequence[Weight], terms: Iterable[Term]) -> Drawn:
    """Return what is drawn for many tensors in few calls: small factors; small dense directions, if they are few."""
    wanted: dict[Distribution, dict[tuple[int, int, int, int], None]] = {}
    small = [(stream, weight.numel()) for weight, stream in weights if 0 < weight.numel() <= min(SMALL, CHUNK)]
    directions = {term.direction: term for term in terms}.values()
    dense = [term for term in directions if isinstance(term.family, Dense)]
    for term in dense if len(dense) * sum(count for _, count in small) <= TOGETHER else ():
        own = wanted.setdefault(term.family.distribution, {})
        own |= {(term.seed, stream, Purpose.DIRECTION, count): None for stream, count in small}
    for term in directions:
        if isinstance(term.family, Dense) or term.family.has_bases:
            continue
        own = wanted.setdefault(term.family.distribution, {})
        for weight, stream in weights:
            for draw in term.family.draws(term.seed, tuple(weight.shape)) if term.moves(weight.ndim) else ():
                if 0 < (count := math.prod(draw.shape)) <= FACTOR:
                    own[draw.seed, stream, draw.purpose, count] = None
    drawn: dict[tuple[int, int, int, int, Distribution], NDArray[np.float32]] = {}
    for distribution, own in wanted.items():
        for draws in _in_calls(list(own)):
            entries = entries_of_many(draws, distribution)
            drawn.update(((*draw, distribution), z) for draw, z in zip(draws, entries, strict=True))
    return drawn


def _in_calls(draws: list[tuple[int, int, int, int]]) -> Iterator[list[tuple[int, int, int, int]]]:
    """Cut draws into lists of up to TOGETHER entries."""
    first, entries = 0, 0
    for number, (*_, count) in enumerate(draws):
        if entries + count > TOGETHER:
            yield draws[first:number]
            first, entries = number, 0
        entries += count
    if draws[first:]:
        yield draws[first:]


def parts(
    shape: tuple[int, ...], stream: int, term: Term, subspaces: Subspaces, drawn: Drawn
) -> list[NDArray[np.float32]]:
    """Return `Family.parts` of a direction for a tensor."""
    family, made = term.family, []
    if family.has_bases:
        [pair] = subspaces.factors([(shape, stream)], term, _DEVICE)
        return [part.numpy() for part in pair]
    for draw in family.draws(term.seed, shape):
        count = math.prod(draw.shape)
        part = drawn.get((draw.seed, stream, draw.purpose, count, family.distribution))
        if part is None:
            part = _whole(draw.seed, stream, count, draw.purpose, family.distribution)
        made.append(part.reshape(draw.shape))
    return made


def factors_all(
    weights: Sequence[Weight], terms: Sequence[Term], subspaces: Subspaces | None = None
) -> list[list[Factors]]:
    """Return for each matrix and its stream, and for each low-rank term, the factors a (m, r) and b (n, r), float32.

    Args:
        weights: the matrices and their streams.
        terms: the low-rank terms.
        subspaces: where those that terms lie in are kept; None: made for this call.
    """
    held, drawn = holding(subspaces, normals, weights, terms), drawn_together(weights, terms)
    return [
        [
            (torch.from_numpy(a), torch.from_numpy(b))
            for a, b in (parts(tuple(weight.shape), stream, term, held, drawn) for term in terms)
        ]
        for weight, stream in weights
    ]


def normals(seed: int, purpose: int, tensors: Sequence[tuple[int, int]], device: torch.device) -> list[torch.Tensor]:
    """Return the first normals of tensors, from how many and the stream of each."""
    return [torch.from_numpy(_whole(seed, stream, count, purpose)) for count, stream in tensors]


def _whole(
    seed: int, stream: int, count: int, purpose: int, distribution: Distribution = "normal"
) -> NDArray[np.float32]:
    z, workspace = np.empty(count, np.float32), Workspace(min(CHUNK, count))
    for start in range(0, count, CHUNK):
        piece = z[start : start + CHUNK]
        piece[:] = workspace.entries(seed, stream, start, len(piece), purpose, distribution)
    return z


def perturb_all(
    weights: Sequence[Weight],
    members: Sequence[Member],
    into: list[list[torch.Tensor]] | None = None,
    subspaces: Subspaces | None = None,
    firsts: Sequence[int] = (),
) -> list[list[torch.Tensor]]:
    """Return copies of each tensor at each member: round(θ + Σ coefficient · z(seed)).

    Args:
        weights: θ, and the streams: any shape and stride, float64, float32, bfloat16 or float16. Left as they are.
        members: M members; neighbours that use the same direction share its computation.
        into: what this function gave for these tensors, or such of their shapes and dtypes, and M members: to be
            written over and returned.
        subspaces: as for `factors_all`.
        firsts: where each tensor begins in a whole one, of which it is a part: a multiple of `ALIGNED`, and all
            directions are dense; empty: all are whole.

    Returns:
        For each tensor M contiguous ones of its shape and dtype. Sums are float32 (float64 for float64 weights), added
        in the order of the terms, each product and each sum rounded once; half precision is rounded to nearest.
    """
    copies = into or [[torch.empty(weight.shape, dtype=weight.dtype) for _ in members] for weight, _ in weights]
    terms, jobs = [term for member in members for term in member], []
    all_directions = _directions(weights, terms, subspaces, firsts)
    for (weight, _), own, directions in zip(weights, copies, all_directions, strict=True):
        theta, outs = _flat(weight.detach().contiguous()), [_flat(copy) for copy in own]
        jobs += _over_chunks(partial(_fill, outs, theta, weight.dtype, members, directions), weight.numel())
    run(jobs)
    return copies


@torch.no_grad()
def replay_all_(
    weights: Sequence[Weight],
    updates: Sequence[Update],
    bases: Sequence[torch.Tensor] | None = None,
    subspaces: Subspaces | None = None,
    firsts: Sequence[int] = (),
) -> None:
    """Do updates in place, one after the other, in one pass over the weights.

        θ ← round(θ + Σ coefficient · z(seed) − decay · θ − anchor · (θ − θ_base))

    Half precision is rounded stochastically, from the update's `rounding_seed`, once, at the end; see
    `zoreward.noise.definition`. A chunk goes through all updates while it is in the cache. The parts of all terms that
    are not dense are held at once. What no update moves is not written.

    Args:
        weights: the tensors and their streams.
        updates: in their order.
        bases: θ_base of each tensor, where updates have an anchor: what `perturb_all(weights, ((),))` gave before any.
        subspaces: as for `factors_all`.
        firsts: as for `perturb_all`.
    """
    terms, jobs, copied = [term for update in updates for term in update.terms], [], []
    all_directions = _directions(weights, terms, subspaces, firsts)
    for (weight, _), base, directions in zip(weights, bases or [None] * len(weights), all_directions, strict=True):
        if moving := [update for update in updates if update.moves(weight.ndim)]:
            theta = weight.detach().contiguous()  # a copy where it is not
            copied += [] if weight.is_contiguous() else [(weight, theta)]
            jobs += _over_chunks(partial(_write, theta, base, moving, directions), weight.numel())
    run(jobs)
    for weight, theta in copied:
        weight.copy_(theta)


def _directions(
    weights: Sequence[Weight], terms: Sequence[Term], subspaces: Subspaces | None, firsts: Sequence[int]
) -> Iterator[Directions]:
    held, drawn = holding(subspaces, normals, weights, terms), drawn_together(weights, terms)
    pairs = zip(weights, firsts or [0] * len(weights), strict=True)
    return (Directions(tuple(weight.shape), stream, terms, held, drawn, first) for (weight, stream), first in pairs)


def _fill(
    outs: Sequence[NDArray[Any]],
    theta: NDArray[Any],
    dtype: torch.dtype,
    members: Sequence[Member],
    directions: Directions,
    start: int,
    workspace: Workspace,
) -> None:
    """Write a chunk of each copy."""
    before = _load(theta[start : start + CHUNK], dtype)
    for member, out in zip(members, outs, strict=True):
        acc = directions.add(before.copy(), member, start, workspace)
        out[start : start + CHUNK] = _to_nearest(acc, dtype)


def _write(
    weight: torch.Tensor,
    base: torch.Tensor | None,
    updates: Sequence[Update],
    directions: Directions,
    start: int,
    workspace: Workspace,
) -> None:
    """Take a chunk of a weight through all updates."""
    dtype, piece = weight.dtype, _flat(weight)[start : start + CHUNK]
    for update in updates:
        decays = update.decay != 0 and weight.ndim >= 2
        if dtype in (torch.float32, torch.float64) and not decays and update.anchor == 0:
            directions.add(piece, update.terms, start, workspace)
            continue
        before = _load(piece, dtype)
        acc = directions.add(before.copy(), update.terms, start, workspace)
        with np.errstate(over="ignore", invalid="ignore"):  # as in `add`
            if decays:
                acc -= acc.dtype.type(update.decay) * before
            if update.anchor != 0 and base is not None:
                acc -= acc.dtype.type(update.anchor) * (before - _load(_flat(base)[start : start + CHUNK], dtype))
        if dtype in (torch.bfloat16, torch.float16):
            place = directions.first + start
            bits = workspace.rounding_bits(update.rounding_seed, directions.stream, place, len(piece))
            piece[:] = _round_bf16(acc, bits) if dtype == torch.bfloat16 else noise.round_fp16(acc, bits)
        else:
            piece[:] = acc


def run(jobs: Iterable[Job]) -> None:
    """Run jobs on `torch.get_num_threads()` threads; the first error is raised."""
    work = [job for job in jobs if job.count]
    threads = min(torch.get_num_threads(), -(-sum(job.count for job in work) // CHUNK))
    queue = iter(work)  # `next` on one list iterator from several threads hands out each job once

    def drain() -> None:
        workspace = Workspace(min(CHUNK, max((job.count for job in work), default=0)))
        for job in queue:
            job.work(workspace)

    if threads <= 1:
        drain()
        return
    with ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(drain) for _ in range(threads)]:
            future.result()


def _over_chunks(chunk_job: Callable[[int, Workspace], None], numel: int) -> list[Job]:
    return [Job(min(CHUNK, numel - start), partial(chunk_job, start)) for start in range(0, numel, CHUNK)]


def _flat(tensor: torch.Tensor) -> NDArray[Any]:
    flat = tensor.view(-1)
    return flat.view(torch.int16).numpy().view(np.uint16) if tensor.dtype == torch.bfloat16 else flat.numpy()


def _load(piece: NDArray[Any], dtype: torch.dtype) -> NDArray[Any]:
    """Return the weights as the floats in which sums are taken; float32 and float64 are not copied."""
    if dtype == torch.bfloat16:
        return (piece.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return piece.astype(np.float32) if dtype == torch.float16 else piece


def _round_bf16(acc: NDArray[np.float32], bits: NDArray[np.uint32]) -> NDArray[Any]:
    """Return `noise.round_bf16` of the same arguments; `bits` are used up."""
    pattern = acc.view(np.uint32)
    if (pattern & np.uint32(0x7FFFFFFF)).max() >= _LARGEST_BF16:
        return noise.round_bf16(acc, bits)
    np.add(bits, pattern, out=bits)  # nothing can overflow, or is infinite or NaN
    return np.right_shift(bits, np.uint32(16), out=bits)


def _to_nearest(acc: NDArray[Any], dtype: torch.dtype) -> NDArray[Any]:
    if dtype == torch.bfloat16:
        pattern = acc.view(np.uint32)
        even = (pattern + np.uint32(0x7FFF) + ((pattern >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        return np.where(np.isnan(acc), (pattern >> np.uint32(16)) | np.uint32(0x0040), even).astype(np.uint16)
    if dtype == torch.float16:
        with np.errstate(over="ignore"):
            return acc.astype(np.float16)
    return acc
