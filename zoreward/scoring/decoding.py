"""Texts that members write: several members, several prompts, and nothing but the settings given here.

Two members that are nearly alike should write nearly the same: a difference between their scores then comes from the
weights and not from luck. So what is drawn depends on the row, the position and the token, never on the member, on
the batch or on what was drawn before.

A token is drawn by the Gumbel-max trick: argmax_v (logit_v + g_v) with g = −log(−log u) and u uniform is a draw from
softmax(logits). The u come from the Philox counter of `zoreward.noise`:

| Philox | here |
|---|---|
| key | `derive_seed(seed, position, 0)` |
| counter words 0, 1 | token // 4 |
| counter word 2 | the row |
| counter word 3 | `Purpose.SAMPLING` |
| output word | number token % 4 |

Source: common random numbers: Glasserman and Yao 1992. The Gumbel-max trick: Maddison, Tarlow, Minka 2014.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from zoreward.data import PAIRS
from zoreward.members import members_at
from zoreward.noise import Purpose, derive_seed
from zoreward.noise.definition import MASK_32, philox
from zoreward.records import Completion, Member
from zoreward.scoring.devices import bytes_to_keep, free_bytes, without_cudnn_attention
from zoreward.scoring.forward import Reader, not_finite, padded
from zoreward.scoring.logprobs import halves_of, in_halves, rows_at_once, sorted_batches
from zoreward.scoring.protocol import Generation, OwnPasses, Tokens
from zoreward.scoring.stepping import Stepper, is_lost

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Tokens of one call, prompts and completions of all members. What limits them is the cache: 200 KB a token for a model
# of 1.3 B parameters in half precision.
CPU_TOKENS, GPU_TOKENS = 16384, 65536


class HFGenerator:
    """Lets members write by the model itself: members × prompts in one batch, as far as memory goes.

    Members are written for by the model's own `generate`; low-rank members on a GPU by replayed CUDA graphs.

    It learns how much the memory takes: after a call that did not fit, the next ones are half as large.

    Args:
        reader: the model. Where its members cannot share a forward pass they write one after the other.
        tokenizer: the model's.
        tokens: tokens of one call, prompts and completions of all members together.
        stepper: what writes for low-rank members; by default one with graphs where the model is on a GPU.

    Attributes:
        together: for how many members a call is sized, so that its rows do not depend on how many are asked about;
            None: for those that are asked about.
    """

    def __init__(
        self,
        reader: Reader,
        tokenizer: PreTrainedTokenizerBase,
        *,
        tokens: int | None = None,
        stepper: Stepper | None = None,
    ):
        self.reader = reader
        self.tokenizer = tokenizer
        self.stepper = stepper or (Stepper(reader) if reader.device.type == "cuda" else None)
        self.tokens = tokens or (CPU_TOKENS if reader.device.type == "cpu" else GPU_TOKENS)
        self.together: int | None = None

    def generate(
        self,
        prompts: Sequence[Tokens],
        members: Sequence[Member],
        settings: Generation,
        *,
        parts: int = 1,
        passes: OwnPasses | None = None,
    ) -> Iterator[list[list[Tokens | None]]]:
        """Yield the members' completions in order, some members at a time: for each of these a list of N completions.

        A completion is without its prompt and without padding; the token that ended it (EOS) is its last. It depends
        on the member, its prompt and the prompt's place among `prompts` alone, not on what shares a batch with it.

        Args:
            prompts: N prompts.
            members: M members.
            settings: how to write.
            parts: into how many calls at least prompts are cut.
            passes: which calls are made; None: all. What is not written is None.

        Raises:
            ObjectiveError: the model's outputs are not finite.
        """
        first, turn = 0, 0
        while first < len(members):
            size = self._members_at_once(prompts, members, settings)
            # Whoever is asked about some units of members alone cuts them so, too.
            unit = self.together or len(members)
            group = members[first : min(first + size, first - first % unit + unit)]
            lengths = [len(prompt) + settings.max_new_tokens for prompt in prompts]
            alike = None if self.reader.pads else lengths
            rows = rows_at_once(settings.rows, len(prompts), parts)
            batches = sorted_batches(lengths, self.tokens // size, rows, alike)
            yield self._write(prompts, group, batches if passes is None else passes.of(batches, turn), settings)
            first, turn = first + len(group), turn + 1

    def _members_at_once(self, prompts: Sequence[Tokens], members: Sequence[Member], settings: Generation) -> int:
        """For how many members a call is sized: where the unit of work says it, whatever the number that is asked."""
        if not self.reader.grouped:
            return 1
        asked = self.together if self.together and any(members) else len(members)
        tokens = len(prompts) * (max(map(len, prompts)) + settings.max_new_tokens)
        by_rows = settings.rows // len(prompts) if settings.rows else sys.maxsize
        return max(1, min(self.tokens // tokens, by_rows, asked))

    def _write(
        self, prompts: Sequence[Tokens], members: Sequence[Member], batches: list[list[int]], settings: Generation
    ) -> list[list[Tokens | None]]:
        written: list[list[Tokens | None]] = [[None] * len(prompts) for _ in members]

        def written_by(work: tuple[range, list[int]]) -> list[list[Tokens]]:
            some = [members[m] for m in work[0]]
            return write(self.reader, self.tokenizer, prompts, work[1], some, settings, stepper=self.stepper)

        def smaller(work: tuple[range, list[int]]) -> list[tuple[range, list[int]]]:
            self.tokens = max(1, self.tokens // 2)
            return [(half, work[1]) for half in halves_of(work[0])] or [(work[0], half) for half in halves_of(work[1])]

        whole = range(len(members))
        for (group, rows), found in in_halves([(whole, batch) for batch in batches], written_by, smaller):
            for m, completions in zip(group, found, strict=True):
                for n, completion in zip(rows, completions, strict=True):
                    written[m][n] = completion
        return written


def write(
    reader: Reader,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Tokens],
    rows: Sequence[int],
    members: Sequence[Member],
    settings: Generation,
    *,
    forced: LogitsProcessor | None = None,
    stepper: Stepper | None = None,
) -> list[list[Tokens]]:
    """Return what each member writes behind the prompts numbered `rows`, all of them at once.

    Args:
        reader: the model.
        tokenizer: the model's.
        prompts: all prompts.
        rows: which of them; their numbers also say what is drawn for them.
        members: they share the forward passes.
        settings: how to write.
        forced: says what is written; then no completion ends before its greatest length.
        stepper: writes in the place of `generate`, where it suits the members.

    Raises:
        ObjectiveError: the model's outputs are not finite.
    """
    chosen = [prompts[n] for n in rows]
    end_tokens = [] if forced else end_tokens_of(reader.model, tokenizer)
    ids, seen = padded(chosen, reader.pad_token_id, len(members), reader.device, left=reader.kind != PAIRS)
    width = len(reader.start) or ids.shape[1]  # texts begin behind it
    processors = [forced] if forced else _draws(settings, rows, width, None if reader.kind == PAIRS else seen)
    stop = _Stop(tokenizer, settings.stop, width) if settings.stop else None
    found = None
    if stepper is not None and stepper.suits(members):
        found = stepper.write(ids, seen, members, settings.max_new_tokens, end_tokens, processors, stop)
        stop = _Stop(tokenizer, settings.stop, width) if settings.stop else None
    if found is None:
        found = _generated(reader, ids, seen, members, settings.max_new_tokens, end_tokens, processors, stop)
    written, lost = found
    if lost:
        raise not_finite()
    new = [_up_to_end(tokens, end_tokens) for tokens in written.tolist()]
    return [new[m * len(rows) : (m + 1) * len(rows)] for m in range(len(members))]


def _generated(
    reader: Reader,
    ids: torch.Tensor,
    mask: torch.Tensor,
    members: Sequence[Member],
    new_tokens: int,
    end_tokens: Sequence[int],
    processors: Sequence[LogitsProcessor],
    stop: StoppingCriteria | None,
) -> tuple[torch.Tensor, bool]:
    """See `Stepper.write`; by the model's own `generate`."""
    model: Any = reader.model
    finite = _Finite()
    config = GenerationConfig(
        max_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=list(end_tokens) or None,
        pad_token_id=reader.pad_token_id,
    )
    begun: dict[str, torch.Tensor] = {}
    if reader.kind == PAIRS:
        config.decoder_start_token_id = reader.start[0]
        begun["decoder_input_ids"] = torch.tensor([reader.start] * len(ids), device=ids.device)
    keep_bytes = _keep_bytes(reader, len(members))
    with (
        torch.no_grad(),
        without_cudnn_attention(),
        _own_settings(model),
        members_at(model, members, tuned=reader.tuned, keep_bytes=keep_bytes),
    ):
        found = model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=config,
            logits_processor=LogitsProcessorList([finite, *processors]),
            stopping_criteria=StoppingCriteriaList([stop] if stop else []),
            **begun,
        )
    return found[:, len(reader.start) or ids.shape[1] :], finite.lost()


def _draws(settings: Generation, rows: Sequence[int], start: int, seen: torch.Tensor | None) -> list[LogitsProcessor]:
    """What is done to logits, in the order of transformers; `seen` is 0 where prompts are padded, None: nowhere."""
    draws: list[LogitsProcessor] = []
    if settings.repetition_penalty != 1:
        draws.append(RepetitionPenalty(float(settings.repetition_penalty), seen))
    if settings.temperature == 0:
        return draws
    draws.append(TemperatureLogitsWarper(float(settings.temperature)))
    if settings.top_k:
        draws.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        draws.append(TopPLogitsWarper(settings.top_p))
    if settings.min_p:
        draws.append(MinPLogitsWarper(settings.min_p))
    return [*draws, CommonNumbers(settings.seed, rows, start)]


@contextmanager
def _own_settings(model: Any) -> Iterator[None]:
    """Lay the checkpoint's own generation settings aside: what is not set here would be taken from them."""
    before = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = before


def end_tokens_of(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end a completion: the tokenizer's EOS and those of the checkpoint's generation settings."""
    own = model.generation_config.eos_token_id
    own = [own] if isinstance(own, int) else list(own or [])
    return sorted({*own, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])})


def _up_to_end(tokens: list[int], end_tokens: Sequence[int]) -> Tokens:
    """
    >>> _up_to_end([5, 1, 0, 0], [1]), _up_to_end([5, 6], [1])
    ((5, 1), (5, 6))
    """
    ends = [i for i, token in enumerate(tokens) if token in end_tokens]
    return tuple(tokens[: ends[0] + 1] if ends else tokens)


def _keep_bytes(reader: Reader, members: int) -> int:
    free = free_bytes(reader.device)
    # A weight that is read without a call of its module is perturbed only in a whole copy of the weights.
    return sys.maxsize if free is None or not reader.grouped else bytes_to_keep(reader.device, free, members)


class _Finite(LogitsProcessor):
    """Remembers whether a logit was NaN or +inf, whose argmax would be a token like any other."""

    def __init__(self) -> None:
        self._lost: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        lost = is_lost(scores.amax(-1)).any()
        self._lost = lost if self._lost is None else self._lost | lost
        return scores

    def lost(self) -> bool:
        return self._lost is not None and bool(self._lost)


class RepetitionPenalty(LogitsProcessor):
    """transformers' penalty of tokens that stand in a row already, where padding is none of the row's tokens.

    What a member writes must not depend on the prompts that share its batch, and padding may be EOS.

    Args:
        penalty: of a token.
        seen: 0 where prompts are padded, (R, W); None: nowhere.
    """

    def __init__(self, penalty: float, seen: torch.Tensor | None):
        self._plain = RepetitionPenaltyLogitsProcessor(penalty)
        self._padding = None if seen is None else seen == 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self._padding is not None:
            width = self._padding.shape[1]
            # A token counts once, so padding may be read as the prompt's last token, which stands at its right end.
            own = input_ids[:, :width].where(~self._padding, input_ids[:, width - 1 : width])
            input_ids = torch.cat([own, input_ids[:, width:]], dim=1)
        return self._plain(input_ids, scores)  # type: ignore[arg-type, no-any-return]


class _Stop(StoppingCriteria):
    """Ends rows in which a stop string stands. Texts are compared, as a stop string may lie across tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], start: int):
        self._tokenizer, self._stop, self._start = tokenizer, stop, start
        # A character has at most four tokens (its bytes). Some more: the first token of a text may lose a space.
        self._window = 4 * max(map(len, stop)) + 4
        self._done: list[bool] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self._done = self._done or [False] * len(input_ids)
        waiting = [r for r, done in enumerate(self._done) if not done]
        tails = input_ids[:, max(self._start, input_ids.shape[1] - self._window) :].tolist()
        texts = self._tokenizer.batch_decode([tails[r] for r in waiting], skip_special_tokens=True)
        for r, text in zip(waiting, texts, strict=True):
            self._done[r] = any(stop in text for stop in self._stop)
        return torch.tensor(self._done, device=input_ids.device)


def gumbel(seed: int, rows: Sequence[int], position: int, size: int, device: torch.device | str) -> torch.Tensor:
    """Return the g of each row and token: float64 (rows, size), from −3.2 to 22.9.

    Args:
        seed: of the whole draw, from 0 to 2^64 − 1.
        rows: their numbers, from 0 to 2^32 − 1.
        position: how many tokens were written before.
        size: of the vocabulary.
        device: where the numbers are wanted.
    """
    words = _words(derive_seed(seed, position, 0), torch.tensor(rows, device=device), -(-size // 4))
    u = (words[:, :size].double() + 0.5) * 2.0**-32
    return -torch.log(-torch.log(u))


def _words(key: int, stream_R: torch.Tensor, blocks: int) -> torch.Tensor:
    """`zoreward.noise.words` of several streams, on any device: 32-bit words in int64, (R, 4 · blocks)."""
    x0 = torch.arange(blocks, device=stream_R.device).expand(len(stream_R), blocks)
    x1 = torch.zeros_like(x0)
    x2, x3 = stream_R[:, None].expand_as(x0), torch.full_like(x0, Purpose.SAMPLING)
    words = philox((x0, x1, x2, x3), key & MASK_32, key >> 32)
    return torch.stack(words, dim=2).view(len(stream_R), -1)


class CommonNumbers(LogitsProcessor):
    """Adds the Gumbel numbers of rows and positions to the logits, so that their argmax is a draw.

    Args:
        seed: of the whole draw.
        rows: the numbers of one member's rows; the logits' rows are these, once for each member.
        start: length of the prompts.
    """

    def __init__(self, seed: int, rows: Sequence[int], start: int):
        self._seed, self._rows, self._start = seed, rows, start

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        position = input_ids.shape[1] - self._start
        drawn = gumbel(self._seed, self._rows, position, scores.shape[1], scores.device)
        return scores + drawn.to(scores.dtype).repeat(len(scores) // len(self._rows), 1)


def completion_of(tokenizer: PreTrainedTokenizerBase, tokens: Tokens, settings: Generation) -> Completion:
    """Return tokens as a text that ends before the first stop string."""
    text = _decode(tokenizer, tokens)
    ended = len(tokens) < settings.max_new_tokens or tokens[-1] == tokenizer.eos_token_id
    found = [place for stop in settings.stop if (place := text.find(stop)) >= 0]
    if not found:
        return Completion(text, tokens, ended)
    # The tokens end with the one that completes the stop string.
    lengths = range(1, len(tokens) + 1)
    length = next(n for n in lengths if any(stop in _decode(tokenizer, tokens[:n]) for stop in settings.stop))
    return Completion(text[: min(found)], tokens[:length], True)


def _decode(tokenizer: PreTrainedTokenizerBase, tokens: Tokens) -> str:
    return str(tokenizer.decode(list(tokens), skip_special_tokens=True))


def forced_logits(
    reader: Reader,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Tokens],
    members: Sequence[Member],
    stepper: Stepper | None = None,
) -> torch.Tensor:
    """The logits before each of four given tokens, written one after the other through the cache: (M, N · 4, V)."""
    forced, settings = _Forced(prompts[0][-1]), Generation(max_new_tokens=4)  # one read, one as it is, two replayed
    write(reader, tokenizer, prompts, range(len(prompts)), members, settings, forced=forced, stepper=stepper)
    logits = torch.stack(forced.logits, dim=1)
    return logits.view(len(members), -1, logits.shape[-1])


class _Forced(LogitsProcessor):
    """Lets every row write one given token, and keeps the logits before it."""

    def __init__(self, token: int):
        self._token = token
        self.logits: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.logits.append(scores.float().cpu().clone())  # they may be written over
        forced = torch.full_like(scores, float("-inf"))
        forced[:, self._token] = 0
        return forced
