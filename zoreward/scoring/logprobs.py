"""Mean log-probabilities of given answers, for many members, with as little forward as possible."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from zoreward.data import PAIRS, WHOLE
from zoreward.members import KEEP_BYTES, SelfCheck, Tuned, cache_argument, cache_of, members_at, self_check
from zoreward.records import Example, Member, ObjectiveError
from zoreward.scoring.devices import repeated
from zoreward.scoring.packing import Packer, log_softmax_at
from zoreward.scoring.pairs import pair_logits
from zoreward.scoring.reader import Reader, reader_of
from zoreward.scoring.whole import whole_logits

# Logits that are turned into float32 at once: 256 MB.
LOGITS_AT_ONCE = 1 << 26


def checked_reader(
    model: nn.Module,
    pad_token_id: int,
    examples: Sequence[Example],
    members: Sequence[Member],
    *,
    tuned: Tuned | None = None,
    packer: Packer | None = None,
) -> Reader:
    """Return a reader that scores members together, or one at a time where this model cannot share a forward pass.

    Args:
        model: the model.
        pad_token_id: fills rows up on the left.
        examples: real rows to try it on.
        members: at least two, different from each other.
        tuned: its tuned weights; by default `tuned_weights(model)`.
        packer: tried too; by default one with graphs where the model is on a GPU.
    """
    reader = _fitting(reader_of(model, pad_token_id, tuned=tuned), examples, members)
    check = self_check(reader.model, members, lambda some: _logits_of(reader, examples, some), tuned=reader.tuned)
    reader = replace(reader, problem=check.problem, check=check)
    if packer is None and next(model.parameters()).device.type == "cuda" and reader.grouped:
        packer = Packer(reader)
    return replace(reader, packer=_checked_packer(packer, reader, examples, check))


def _logits_of(reader: Reader, examples: Sequence[Example], members: Sequence[Member]) -> torch.Tensor:
    """The logits that answers are read from under one member or two, in the same batches of rows: (M, rows, V)."""
    seen: list[torch.Tensor] = []

    def look(logits: torch.Tensor) -> None:
        seen.append(logits.float().cpu().view(len(members), -1, logits.shape[-1]))

    own = replace(reader, tokens=reader.tokens * len(members) // 2, look=look)
    candidate_logprobs(own, examples, members)
    return torch.cat(seen, dim=1)


def _checked_packer(
    packer: Packer | None, reader: Reader, examples: Sequence[Example], check: SelfCheck
) -> Packer | None:
    """Compare what the packer reads with what is read without it; None if it is of no use here."""
    members = check.members
    if packer is None or not packer.suits(examples, members, reader.rows):
        return None
    plain = torch.from_numpy(candidate_logprobs(reader, examples, members))
    for _ in range(2):  # as it is, then replayed
        logprobs = packer.logprobs(examples, members)
        if logprobs is None:
            return None
        if problem := check.agree(torch.from_numpy(logprobs), plain):
            packer.give_up(problem)
            return None
    return packer


def _fitting(reader: Reader, examples: Sequence[Example], members: Sequence[Member]) -> Reader:
    """Return the reader with as many tokens at once as the memory holds, tried on the longest rows."""
    costs = [_cost(reader, example) for example in examples]
    longest = [examples[n] for n in sorted_batches(costs, reader.tokens // len(members), reader.rows)[0]]
    while True:
        try:
            shown = members_at(reader.model, members, tuned=reader.tuned)
            with torch.no_grad(), reader.logits_in_float32(), shown:
                list(_batch_logprobs(reader, longest, len(members)))
            return reader
        except torch.OutOfMemoryError:
            if len(longest) == 1:
                raise
        except Exception:  # what else may be wrong with this model is found out, and told, later
            return reader
        longest = longest[: len(longest) // 2]
        reader = replace(reader, tokens=reader.tokens // 2)


@torch.no_grad()
def candidate_logprobs(
    reader: Reader, examples: Sequence[Example], members: Sequence[Member] = ((),)
) -> NDArray[np.float64]:
    """Return the mean log-probability per token of each candidate after its prompt.

        logprobs[m, n, c] = 1/T · Σ_t log p_m(candidate_t | prompt, candidate_<t),  T tokens of candidate c of row n

    Rows are sorted by length into full batches; a prompt is computed once for all its candidates where the model
    allows; only the positions before a candidate's tokens go through the language-model head.

    Args:
        reader: the model.
        examples: N rows.
        members: M members; by default the model itself.

    Returns:
        logprobs_MNC, float64 ≤ 0; −inf where a row has fewer than C candidates. Sums are float64, in token order.
    """
    if reader.packer is not None and reader.packer.suits(examples, members, reader.rows):
        own = reader.packer.logprobs(examples, members)
        if own is not None:
            return _all_finite(own)
    width = max(len(example.candidate_tokens) for example in examples)
    logprobs_MNC = np.full((len(members), len(examples), width), -np.inf)
    costs = [_cost(reader, example) for example in examples]
    groups = [members] if reader.grouped else [(member,) for member in members]
    # A weight that is read without a call of its module is perturbed only in a whole copy of the weights.
    keep_bytes = KEEP_BYTES if reader.grouped else sys.maxsize
    first = 0
    for group in groups:
        shown = members_at(reader.model, group, tuned=reader.tuned, keep_bytes=keep_bytes)
        with reader.logits_in_float32(), shown:
            batches = sorted_batches(costs, reader.tokens // len(group), reader.rows)
            while batches:
                batch = batches.pop(0)
                try:
                    found = list(_batch_logprobs(reader, [examples[n] for n in batch], len(group)))
                except torch.OutOfMemoryError:
                    if len(batch) == 1:
                        raise
                    batches[:0] = [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
                    continue
                for (n, c), values_M in found:
                    logprobs_MNC[first : first + len(group), batch[n], c] = values_M
        first += len(group)
    return _all_finite(logprobs_MNC)


def _all_finite(logprobs_MNC: NDArray[np.float64]) -> NDArray[np.float64]:
    if np.isnan(logprobs_MNC).any():  # an argmax would take NaN for the first answer
        raise ObjectiveError(
            "the model's outputs are not finite",
            hint="Take bfloat16 or float32 instead of float16, or a smaller learning rate or eps.",
        )
    return logprobs_MNC


def sorted_batches(lengths: Sequence[int], tokens: int, rows: int | None = None) -> list[list[int]]:
    """Cut rows into batches that are full and of like length, the longest rows first.

    Args:
        lengths: tokens of each row.
        tokens: rows × longest row of a batch stays within this; a longer single row makes a batch of its own.
        rows: most rows of a batch.

    >>> sorted_batches([3, 9, 4, 2], tokens=10)
    [[1], [2, 0], [3]]
    """
    rows = rows or len(lengths)
    batches: list[list[int]] = []
    for n in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        if batches and len(batches[-1]) < rows and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= tokens:
            batches[-1].append(n)
        else:
            batches.append([n])
    return batches


def _cost(reader: Reader, example: Example) -> int:
    if reader.kind == PAIRS:
        return len(example.prompt_tokens) + sum(map(len, example.candidate_tokens))
    extra = [len(tokens) - 1 for tokens in example.candidate_tokens]
    if reader.shares_prefix or len(extra) == 1 or not any(extra):
        return len(example.prompt_tokens) + sum(extra)
    return sum(len(example.prompt_tokens) + more for more in extra)


Place = tuple[int, int]  # row of the batch, candidate


def _batch_logprobs(reader: Reader, rows: list[Example], members: int) -> Iterator[tuple[Place, list[float]]]:
    places = [(n, c) for n, row in enumerate(rows) for c in range(len(row.candidate_tokens))]
    long = [(n, c) for n, c in places if len(rows[n].candidate_tokens[c]) > 1]
    if reader.kind == PAIRS:
        yield from _decoded(reader, rows, places, members)
    elif not long:
        yield from _after_prompt(reader, rows, places, members)
    elif reader.shares_prefix and len(places) > len(rows):
        yield from _with_cache(reader, rows, places, long, members)
    else:
        yield from _whole(reader, rows, places, members)


def _after_prompt(
    reader: Reader, rows: list[Example], places: list[Place], members: int
) -> Iterator[tuple[Place, list[float]]]:
    """Candidates of one token: the logits after the prompt, or at its mask, are all there is to know."""
    if reader.kind in WHOLE:
        logits_RV = whole_logits(reader, rows, members)
    else:
        logits_RV = forward(reader, [row.prompt_tokens for row in rows], members, keep=1)[0][:, -1]
    reader.look(logits_RV)
    firsts = [[tokens[0] for tokens in row.candidate_tokens] for row in rows]
    table = _log_softmax_at(logits_RV, _padded(firsts, members, logits_RV.device))
    for n, c in places:
        yield (n, c), table[n :: len(rows), c].tolist()


def _decoded(
    reader: Reader, rows: list[Example], places: list[Place], members: int
) -> Iterator[tuple[Place, list[float]]]:
    """Prompts through the encoder, candidates through the decoder."""
    answers = [(n, rows[n].candidate_tokens[c]) for n, c in places]
    logits_RTV = pair_logits(reader, [row.prompt_tokens for row in rows], answers, members)
    reader.look(logits_RTV[:, 0])
    targets = _padded([answer for _, answer in answers], members, logits_RTV.device)
    table = _log_softmax_at(logits_RTV, targets.unsqueeze(-1))
    for r, place in enumerate(places):
        kept = table[r :: len(places), : len(answers[r][1]), 0]
        yield place, (kept.sum(axis=1) / kept.shape[1]).tolist()


def _whole(
    reader: Reader, rows: list[Example], places: list[Place], members: int
) -> Iterator[tuple[Place, list[float]]]:
    """Prompt and candidate in one sequence, once for each candidate."""
    answers = [rows[n].candidate_tokens[c] for n, c in places]
    sequences = [(*rows[n].prompt_tokens, *answer[:-1]) for (n, _), answer in zip(places, answers, strict=True)]
    keep = max(map(len, answers))
    logits_RTV, _ = forward(reader, sequences, members, keep=keep)
    reader.look(logits_RTV[:, -1])
    # Sequences end on the right, so answers are filled up on the left.
    targets = [(0,) * (keep - len(answer)) + answer for answer in answers]
    table = _log_softmax_at(logits_RTV[:, -keep:], _padded(targets, members, logits_RTV.device).unsqueeze(-1))
    for r, place in enumerate(places):
        kept = table[r :: len(places), keep - len(answers[r]) :, 0]
        yield place, (kept.sum(axis=1) / kept.shape[1]).tolist()


def _with_cache(
    reader: Reader, rows: list[Example], places: list[Place], long: list[Place], members: int
) -> Iterator[tuple[Place, list[float]]]:
    """The prompt once, then its candidates on copies of its cache."""
    prompts = [row.prompt_tokens for row in rows]
    logits_RTV, cache = forward(reader, prompts, members, keep=1, use_cache=True)
    reader.look(logits_RTV[:, -1])
    device = logits_RTV.device
    firsts = [[tokens[0] for tokens in row.candidate_tokens] for row in rows]
    first = _log_softmax_at(logits_RTV[:, -1], _padded(firsts, members, device))

    origin = [m * len(rows) + n for m in range(members) for n, _ in long]
    cache.reorder_cache(torch.tensor(origin, device=device))
    tails = [rows[n].candidate_tokens[c] for n, c in long]
    inputs = _padded([tail[:-1] for tail in tails], members, device)
    mask_R = _padded([(1,) * (len(tail) - 1) for tail in tails], members, device)
    prompt_mask = _left_mask(prompts, members, device)[origin]
    kwargs = _known(
        reader,
        attention_mask=torch.cat([prompt_mask, mask_R], dim=1),
        position_ids=prompt_mask.sum(1, keepdim=True) + torch.arange(inputs.shape[1], device=device),
    )
    kwargs[cache_argument(reader.accepts)] = cache
    logits_RTV = reader.model(input_ids=inputs, use_cache=True, **kwargs).logits
    reader.look(logits_RTV[:, 0])
    rest = _log_softmax_at(logits_RTV, _padded([tail[1:] for tail in tails], members, device).unsqueeze(-1))

    row_of = {place: r for r, place in enumerate(long)}
    for n, c in places:
        total = first[n :: len(rows), c].copy()
        length = len(rows[n].candidate_tokens[c])
        if length > 1:
            total += rest[row_of[n, c] :: len(long), : length - 1, 0].sum(axis=1)
        yield (n, c), (total / length).tolist()


def forward(
    reader: Reader, sequences: Sequence[Sequence[int]], members: int, keep: int, use_cache: bool = False
) -> tuple[torch.Tensor, Any]:
    """Run the sequences, left-padded, once for each member; logits of at least the last `keep` positions."""
    lengths = list(map(len, sequences))
    if not reader.pads and len(set(lengths)) > 1:
        return _forward_by_length(reader, sequences, members, keep), None
    device = next(reader.model.parameters()).device
    padded = [(reader.pad_token_id,) * (max(lengths) - len(tokens)) + tuple(tokens) for tokens in sequences]
    ids = repeated(padded, members, device)
    mask = _left_mask(sequences, members, device)
    kwargs = _known(
        reader,
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        logits_to_keep=keep,
    )
    output = reader.model(input_ids=ids, use_cache=use_cache, **kwargs)
    return output.logits, cache_of(output)


def _forward_by_length(reader: Reader, sequences: Sequence[Sequence[int]], members: int, keep: int) -> torch.Tensor:
    """The last `keep` logits, from one forward pass for each length; zeros in front of shorter sequences."""
    logits_RTV = torch.empty(0)
    for length in sorted({len(tokens) for tokens in sequences}):
        same = [r for r, tokens in enumerate(sequences) if len(tokens) == length]
        part, _ = forward(reader, [sequences[r] for r in same], members, keep)
        part = part[:, -keep:]
        if not len(logits_RTV):
            logits_RTV = part.new_zeros(members * len(sequences), keep, part.shape[-1])
        places = [m * len(sequences) + r for m in range(members) for r in same]
        logits_RTV[places, keep - part.shape[1] :] = part
    return logits_RTV


def _known(reader: Reader, **kwargs: Any) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name in reader.accepts}


def _left_mask(sequences: Sequence[Sequence[int]], members: int, device: torch.device) -> torch.Tensor:
    length = max(map(len, sequences))
    mask = [[0] * (length - len(tokens)) + [1] * len(tokens) for tokens in sequences]
    return repeated(mask, members, device)


def _padded(lists: Sequence[Sequence[int]], members: int, device: torch.device) -> torch.Tensor:
    """Right-padded with zeros, once for each member: int64 (M·len(lists), longest)."""
    width = max(map(len, lists))
    filled = [list(items) + [0] * (width - len(items)) for items in lists]
    return repeated(filled, members, device)


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
