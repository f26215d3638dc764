"""One batch of texts: several members, several prompts, and nothing but the settings given here."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from zoreward.config import Writing
from zoreward.data import PAIRS
from zoreward.members import members_at
from zoreward.records import InputError, Member
from zoreward.scoring.devices import bytes_to_keep, free_bytes
from zoreward.scoring.reader import Reader, Tokens, not_finite, padded
from zoreward.scoring.sampling import CommonNumbers
from zoreward.scoring.stepping import Stepper, is_lost

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Generation:
    """How members write.

    Args:
        max_new_tokens: greatest length of a completion.
        temperature: 0: always the likeliest token; otherwise tokens are drawn from softmax(logits / temperature).
        top_p: drawn from the likeliest tokens that have this probability together; 1: from all.
        top_k: drawn from so many likeliest tokens; 0: from all.
        stop: a completion ends before the first of these texts.
        seed: of what is drawn, from 0 to 2^64 − 1. The same for every member; another one for each step.
        rows: most rows of one call, all members together; None: as many as the memory takes.

    Raises:
        InputError: a setting is out of its range.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    seed: int = 0
    rows: int | None = None

    def __post_init__(self) -> None:
        wrong = {
            "max_new_tokens": self.max_new_tokens < 1 and "is at least 1",
            "temperature": not 0 <= self.temperature < float("inf") and "is 0 or more",
            "top_p": not 0 < self.top_p <= 1 and "lies above 0 and is at most 1",
            "top_k": self.top_k < 0 and "is 0 or more",
            "stop": (isinstance(self.stop, str) or not all(self.stop)) and "holds texts, none of them empty",
            "seed": not 0 <= self.seed < 2**64 and "lies between 0 and 2^64 - 1",
            "rows": self.rows is not None and self.rows < 1 and "is at least 1",
        }
        for name, what in wrong.items():
            if what:
                raise InputError(f"{name}={getattr(self, name)!r} is out of range", hint=f"{name} {what}")


def generation_of(writing: Writing, seed: int) -> Generation:
    """Return how members write, by the options about it.

    Raises:
        InputError: a value is out of its range.
    """
    how = (writing.max_completion_length, writing.temperature, writing.top_p, writing.top_k)
    return Generation(*how, stop=tuple(writing.stop or ()), seed=seed)


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
    end_tokens = [] if forced else _end_tokens(reader.model, tokenizer)
    ids, seen = padded(chosen, reader.pad_token_id, len(members), reader.device, left=reader.kind != PAIRS)
    width = len(reader.start) or ids.shape[1]  # texts begin behind it
    processors = [forced] if forced else _draws(settings, rows, width)
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


def _draws(settings: Generation, rows: Sequence[int], start: int) -> list[LogitsProcessor]:
    if settings.temperature == 0:
        return []
    draws: list[LogitsProcessor] = [TemperatureLogitsWarper(float(settings.temperature))]
    if settings.top_k:
        draws.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        draws.append(TopPLogitsWarper(settings.top_p))
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


def _end_tokens(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
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
