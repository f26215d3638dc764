"""Answers to requests: log-probabilities of given tokens, for many members, with as little forward as possible.

rows → requests → groups that share a prompt → batches → logits → sums over targets → means for each candidate
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, groupby
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from zoreward.data import PAIRS, WHOLE
from zoreward.neighbours.of_transformers import cache_argument, cache_of
from zoreward.records import Member, Request
from zoreward.scoring.forward import Reader, forward, padded
from zoreward.scoring.packing import log_softmax_at
from zoreward.scoring.protocol import OwnPasses, Tokens

# Logits that are turned into float32 at once: 64 MB.
LOGITS_AT_ONCE = 1 << 24

Group = list[Request]
"""Requests that are read together, behind one prompt."""
Sums = NDArray[np.float64]
"""Log-probability of a whole target under each of M members."""
Work = TypeVar("Work")
Result = TypeVar("Result")
Piece = TypeVar("Piece", list[int], list[Request], list[list[Request]], range)


@torch.no_grad()
def request_logprobs(
    reader: Reader, requests: Sequence[Request], members: Sequence[Member] = ((),), passes: OwnPasses | None = None
) -> NDArray[np.float64]:
    """Return the log-probability of each request's target after its prompt.

        logprobs[m, r] = Σ_t log p_m(target_t | prompt, target_<t)

    Equal requests are read once, and so is a prompt for all its targets where the model allows. Prompts are sorted by
    length into full batches; a batch that does not fit the memory is read in halves; only the positions before a
    target's tokens go through the language-model head.

    Args:
        reader: the model.
        requests: R requests.
        members: M members; by default the model itself.
        passes: which passes are made; None: all.

    Returns:
        logprobs_MR, float64 ≤ 0; NaN where the model's outputs are not finite, +inf where nothing was read. Sums are
        float64, in token order.
    """
    size = min(len(members), reader.together or len(members)) if reader.grouped else 1
    batches, columns, read = batches_of(reader, requests, size)
    sums_MR = np.full((len(members), len(columns)), np.inf)
    for first in range(0, len(members), size):
        some = members[first : first + size]
        own = batches if passes is None else passes.of(batches, first // size)
        if not own:
            continue
        with reader.logits_in_float32(), reader.shown(some):
            for batch, sums in in_halves(own, partial(read_batch, reader, members=len(some)), halves_of_groups):
                place = [columns[id(request)] for group in batch for request in group]
                sums_MR[first : first + size, place] = np.stack(sums, axis=1)
    return sums_MR[:, read]


class Share(NamedTuple):
    """What some members are asked, and others are not.

    Args:
        members: M members.
        groups: their requests, behind one prompt each.
        order: for each request that was asked, the place of its equal in the groups.
    """

    members: Sequence[Member]
    groups: list[Group]
    order: list[int]


@torch.no_grad()
def divided_logprobs(
    reader: Reader, asked: Sequence[tuple[Sequence[Member], Sequence[Request]]]
) -> list[NDArray[np.float64]]:
    """Return the log-probabilities of requests that some members are asked, and others of others.

    Members that are asked as much share a pass, whatever they are asked: as many as there is room for, those with
    requests of like length together.

    Args:
        reader: the model, which pads, and shows its members together.
        asked: members, and what these are asked.

    Returns:
        (M, R) for each of `asked`.
    """
    shares, tokens = [], []
    alike: dict[object, list[int]] = {}
    for n, (members, requests) in enumerate(asked):
        groups, behind, numbers, read = groups_of(reader, requests, reader.tokens)
        place = {numbers[id(request)]: i for i, request in enumerate(chain.from_iterable(groups))}
        shares.append(Share(members, groups, [place[number] for number in read]))
        longest = max(len(group[0].prompt) + more for group, more in zip(groups, behind, strict=True))
        tokens.append(len(members) * len(groups) * longest)
        shape = tuple((len(group), sum(len(request.target) > 1 for request in group)) for group in groups)
        alike.setdefault((len(members), shape), []).append(n)

    def sums_of(batch: list[int]) -> list[NDArray[np.float64]]:
        sequences = [group for n in batch for _ in shares[n].members for group in shares[n].groups]
        with reader.logits_in_float32(), reader.shown([member for n in batch for member in shares[n].members]):
            sums = np.concatenate(read_batch(reader, sequences, members=1))
        return [
            own.reshape(len(shares[n].members), -1) for n, own in zip(batch, np.split(sums, len(batch)), strict=True)
        ]

    found: dict[int, NDArray[np.float64]] = {}
    for some in alike.values():
        batches = sorted_batches([tokens[n] for n in some], reader.tokens)
        for batch, sums in in_halves([[some[i] for i in batch] for batch in batches], sums_of, halves_of):
            found |= {n: own[:, shares[n].order] for n, own in zip(batch, sums, strict=True)}
    return [found[n] for n in range(len(asked))]


def side_by_side(requests: Sequence[Request]) -> list[Group]:
    """Requests that stand side by side and have their prompt in common, as those of a row."""
    return [list(group) for _, group in groupby(requests, key=lambda request: id(request.prompt))]


def batches_of(
    reader: Reader, requests: Sequence[Request], members: int
) -> tuple[list[list[Group]], dict[int, int], list[int]]:
    """Requests in groups behind one prompt, and these in batches of like length; of equal requests only the first.

    Returns:
        batches · a number for each request in them, by its `id` · for each request that was asked, the number of its
        equal in the batches.
    """
    most = reader.tokens // (reader.together or members if reader.grouped else 1)
    groups, behind, numbers, read = groups_of(reader, requests, most)
    prompts = [len(group[0].prompt) for group in groups]
    costs = [prompt + more for prompt, more in zip(prompts, behind, strict=True)]
    alike = None if reader.pads else prompts if reader.kind == PAIRS else costs
    batches = sorted_batches(costs, most, rows_at_once(reader.rows, len(groups), reader.parts), alike)
    return [[groups[g] for g in batch] for batch in batches], numbers, read


def groups_of(
    reader: Reader, requests: Sequence[Request], most: int
) -> tuple[list[Group], list[int], dict[int, int], list[int]]:
    """Requests in groups behind one prompt, of equal requests only the first.

    Args:
        reader: the model.
        requests: R requests.
        most: tokens that are read behind one prompt in a group.

    Returns:
        groups · the tokens that each reads behind its prompt · a number for each request in them, by its `id` · the
        number of its equal in the groups for each request that was asked.
    """
    groups: list[Group] = []
    behind: list[int] = []  # tokens that are read behind the prompt
    numbers: dict[int, int] = {}
    read: list[int] = []
    known: dict[object, dict[Tokens, int]] = {}  # behind one prompt: targets and the numbers of their requests
    last: dict[object, int] = {}
    for request in requests:
        shares = reader.shares_prefix or reader.kind != "causal" or len(request.target) == 1
        key = (request.prompt, request.position, request.types, () if shares else request.target)
        targets = known.setdefault(key, {})
        number = targets.setdefault(request.target, len(numbers))
        read.append(number)
        if number < len(numbers):
            continue
        numbers[id(request)] = number
        more = len(request.target) - (reader.kind != PAIRS)
        g = last.get(key)
        if g is None or behind[g] + more > most:
            g = last[key] = len(groups)
            groups.append([])
            behind.append(0)
        groups[g].append(request)
        behind[g] += more
    return groups, behind, numbers, read


def rows_at_once(rows: int | None, of: int, parts: int) -> int | None:
    """Return how many rows share a pass at most, where so many are cut into so many parts at least.

    >>> rows_at_once(None, 16, 1), rows_at_once(None, 18, 4), rows_at_once(2, 18, 4)
    (None, 5, 2)
    """
    return rows if parts == 1 else min(rows or of, -(-of // parts))


def sorted_batches(
    lengths: Sequence[int], tokens: int, rows: int | None = None, alike: Sequence[int] | None = None
) -> list[list[int]]:
    """Cut rows into batches that are full and of like length, the longest rows first.

    Args:
        lengths: tokens of each row.
        tokens: rows × longest row of a batch stays within this; a longer single row makes a batch of its own.
        rows: most rows of a batch.
        alike: only rows that have the same number here share a batch.

    >>> sorted_batches([3, 9, 4, 2], tokens=10)
    [[1], [2, 0], [3]]
    """
    rows = rows or len(lengths)
    batches: list[list[int]] = []
    last: dict[int, list[int]] = {}
    for n in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        kind = 0 if alike is None else alike[n]
        batch = last.get(kind)
        if batch is None or len(batch) == rows or (len(batch) + 1) * lengths[batch[0]] > tokens:
            batch = last[kind] = []
            batches.append(batch)
        batch.append(n)
    return batches


def read_rows(
    reader: Reader, lengths: Sequence[int], tokens: int, read: Callable[[list[int]], Sequence[Result]]
) -> list[Result]:
    """Return what is read of each row, in their order; rows of like length share a pass, as far as the memory goes.

    Args:
        reader: the model.
        lengths: tokens of each row.
        tokens: of a pass; see `sorted_batches`.
        read: returns a result for each row of a batch, whose numbers it is given.
    """
    batches = sorted_batches(lengths, tokens, reader.rows, None if reader.pads else lengths)
    found: dict[int, Result] = {}
    for batch, results in in_halves(batches, read, halves_of):
        found.update(zip(batch, results, strict=True))
    return [found[n] for n in range(len(lengths))]


def in_halves(
    work: Iterable[Work], do: Callable[[Work], Result], halves: Callable[[Work], list[Work]]
) -> Iterator[tuple[Work, Result]]:
    """Yield each piece of work with what `do` gives for it; one that does not fit the memory is done in halves.

    Args:
        work: pieces, which are done in their order.
        do: what may run out of memory.
        halves: of a piece; nothing where it cannot be halved.

    Raises:
        torch.OutOfMemoryError: a piece that cannot be halved does not fit.
    """
    waiting = list(work)
    while waiting:
        piece = waiting.pop(0)
        try:
            result = do(piece)
        except torch.OutOfMemoryError:
            smaller = halves(piece)
            if not smaller:
                raise
            waiting[:0] = smaller
            continue
        yield piece, result


def halves_of(batch: Piece) -> list[Piece]:
    """Return the two halves of a batch of two rows or more.

    >>> halves_of([1, 2, 3]), halves_of([1])
    ([[1], [2, 3]], [])
    """
    middle = len(batch) // 2
    return [batch[:middle], batch[middle:]] if middle else []


def halves_of_groups(batch: list[Group]) -> list[list[Group]]:
    return halves_of(batch) or [[half] for half in halves_of(batch[0])]


def read_batch(reader: Reader, batch: Sequence[Group], members: int) -> list[Sums]:
    """The sums of a batch's requests, in their order, of the members that the model shows."""
    if reader.kind == PAIRS:
        return _decoded(reader, batch, members)
    long = any(len(request.target) > 1 for group in batch for request in group)
    if long and reader.shares_prefix and any(len(group) > 1 for group in batch):
        return _with_cache(reader, batch, members)
    return _whole(reader, batch, members)


def _whole(reader: Reader, batch: Sequence[Group], members: int) -> list[Sums]:
    """Prompts with their targets in one sequence; of targets of one token, the logits behind the prompt tell all."""
    if reader.kind in WHOLE:
        prompts = [group[0].prompt for group in batch]
        types = [group[0].types or (0,) * len(group[0].prompt) for group in batch]
        logits = forward(reader, prompts, members, types=types if any(map(any, types)) else None).logits
        if reader.kind == "masked":
            places = torch.tensor([group[0].position for group in batch], device=logits.device).repeat(members)
            logits = logits[torch.arange(len(places), device=logits.device), places]
        logits_RTV = logits.unsqueeze(1)
    else:
        sequences = [(*group[0].prompt, *group[0].target[:-1]) for group in batch]
        keep = max(len(request.target) for group in batch for request in group)
        logits_RTV = forward(reader, sequences, members, keep=keep).logits[:, -keep:]
    reader.look(logits_RTV[:, -1])
    return _sums(logits_RTV, [[request.target for request in group] for group in batch], members, left=True)


def _decoded(reader: Reader, batch: Sequence[Group], members: int) -> list[Sums]:
    """Prompts through the encoder, each once, and targets through the decoder."""
    from transformers.modeling_outputs import BaseModelOutput

    model: Any = reader.model
    ids, mask = padded([group[0].prompt for group in batch], reader.pad_token_id, members, reader.device)
    hidden = model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
    requests, origin = _behind(batch, members)
    begun = [(*reader.start, *request.target[:-1]) for request in requests]
    logits_RTV = model(
        encoder_outputs=BaseModelOutput(last_hidden_state=hidden[origin]),
        attention_mask=mask[origin],
        decoder_input_ids=padded(begun, reader.pad_token_id, members, reader.device)[0],
        use_cache=False,
    ).logits[:, len(reader.start) - 1 :]
    reader.look(logits_RTV[:, 0])
    return _sums(logits_RTV, [[request.target] for request in requests], members)


def _with_cache(reader: Reader, batch: Sequence[Group], members: int) -> list[Sums]:
    """Prompts once, then their targets on copies of the cache."""
    prompts = [group[0].prompt for group in batch]
    output = forward(reader, prompts, members, use_cache=True)
    reader.look(output.logits[:, -1])
    first_tokens = [[request.target[:1] for request in group] for group in batch]
    firsts = _sums(output.logits[:, -1:], first_tokens, members)

    long, origin = _behind([[request for request in group if len(request.target) > 1] for group in batch], members)
    cache = cache_of(output)
    cache.reorder_cache(torch.tensor(origin, device=reader.device))
    seen = padded(prompts, 0, members, reader.device, left=True)[1][origin]
    tails = [request.target[:-1] for request in long]
    more = {cache_argument(reader.accepts): cache}
    logits_RTV = forward(reader, tails, members, keep=max(map(len, tails)), use_cache=True, seen=seen, **more).logits
    reader.look(logits_RTV[:, 0])
    rest = iter(_sums(logits_RTV, [[request.target[1:]] for request in long], members))
    requests = [request for group in batch for request in group]
    return [
        first + next(rest) if len(request.target) > 1 else first
        for request, first in zip(requests, firsts, strict=True)
    ]


def _behind(batch: Sequence[Group], members: int) -> tuple[list[Request], list[int]]:
    """The requests of all groups, and for each under each member which sequence of the prompts it follows."""
    requests = [(n, request) for n, group in enumerate(batch) for request in group]
    return [request for _, request in requests], [m * len(batch) + n for m in range(members) for n, _ in requests]


def _sums(
    logits_RTV: torch.Tensor, targets: Sequence[Sequence[Tokens]], members: int, *, left: bool = False
) -> list[Sums]:
    """The log-probability of each target of each sequence, one after the other, under each of M members.

    Args:
        logits_RTV: before each token of the targets; R is members × sequences.
        targets: for each sequence one or more, which share its logits.
        members: M.
        left: whether the logits in front belong to no token of a target that is shorter than others.
    """
    length, most = max(len(target) for several in targets for target in several), max(map(len, targets))

    def filled(target: Tokens) -> Tokens:
        filling = (0,) * (length - len(target))
        return filling + target if left else target + filling

    lines = [[*map(filled, several), *[(0,) * length] * (most - len(several))] for several in targets]
    index = torch.tensor(lines).to(logits_RTV.device, non_blocking=True).transpose(1, 2).repeat(members, 1, 1)
    table = _log_softmax_at(logits_RTV, index)
    sums = []
    for n, several in enumerate(targets):
        for c, target in enumerate(several):
            place = slice(length - len(target), None) if left else slice(len(target))
            sums.append(table[n :: len(targets), place, c].sum(axis=1))
    return sums


def _log_softmax_at(logits: torch.Tensor, targets: torch.Tensor) -> NDArray[np.float64]:
    """Return `log_softmax_at` as float64, without a float32 copy of all logits at once.

    Args:
        logits: (R, …, V).
        targets: (R, …, n), indices into V.
    """
    rows_at_once = max(1, LOGITS_AT_ONCE // max(1, logits[0].numel()))
    pieces = []
    for part, index in zip(logits.split(rows_at_once), targets.split(rows_at_once), strict=True):
        pieces.append(log_softmax_at(part.float(), index).cpu().double())
    return torch.cat(pieces).numpy()
