"""What members write behind prompts."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import torch
from transformers import LogitsProcessor

from zoreward.members import SelfCheck, self_check
from zoreward.records import Example, Member
from zoreward.scoring.decoding import Generation, write
from zoreward.scoring.logprobs import halves_of, in_halves, sorted_batches
from zoreward.scoring.reader import Reader, Tokens
from zoreward.scoring.stepping import Stepper

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Tokens of one call, prompts and completions of all members. What limits them is the cache: 200 KB a token for a model
# of 1.3 B parameters in half precision.
CPU_TOKENS, GPU_TOKENS = 16384, 65536


class Generator(Protocol):
    """Whatever writes on from prompts under members; another engine can stand behind it."""

    def generate(
        self, prompts: Sequence[Tokens], members: Sequence[Member], settings: Generation
    ) -> Iterable[list[list[Tokens]]]:
        """Yield the members' completions in order, some members at a time: for each of these a list of N completions.

        A completion is without its prompt and without padding; the token that ended it (EOS) is its last. It depends
        on the member, its prompt and the prompt's place among `prompts` alone, not on what shares a batch with it.

        Args:
            prompts: N prompts.
            members: M members.
            settings: how to write.
        """
        ...


class HFGenerator:
    """A `Generator` by the model itself: members × prompts in one batch, as far as memory goes.

    Members are written for by the model's own `generate`; low-rank members on a GPU by replayed CUDA graphs.

    It learns how much the memory takes: after a call that did not fit, the next ones are half as large.

    Args:
        reader: the model. Where its members cannot share a forward pass they write one after the other.
        tokenizer: the model's.
        tokens: tokens of one call, prompts and completions of all members together.
        stepper: what writes for low-rank members; by default one with graphs where the model is on a GPU.
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

    def generate(
        self, prompts: Sequence[Tokens], members: Sequence[Member], settings: Generation
    ) -> Iterator[list[list[Tokens]]]:
        """See `Generator.generate`.

        Raises:
            ObjectiveError: the model's outputs are not finite.
        """
        first = 0
        while first < len(members):
            group = members[first : first + self._members_at_once(prompts, settings)]
            yield self._write(prompts, group, settings)
            first += len(group)

    def _members_at_once(self, prompts: Sequence[Tokens], settings: Generation) -> int:
        if not self.reader.grouped:
            return 1
        tokens = len(prompts) * (max(map(len, prompts)) + settings.max_new_tokens)
        by_rows = settings.rows // len(prompts) if settings.rows else sys.maxsize
        return max(1, min(self.tokens // tokens, by_rows))

    def _write(self, prompts: Sequence[Tokens], members: Sequence[Member], settings: Generation) -> list[list[Tokens]]:
        written: list[list[Tokens]] = [[()] * len(prompts) for _ in members]
        lengths = [len(prompt) + settings.max_new_tokens for prompt in prompts]
        alike = None if self.reader.pads else lengths
        batches = sorted_batches(lengths, self.tokens // len(members), settings.rows, alike)

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


def checked_generator(
    reader: Reader,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    members: Sequence[Member],
    *,
    stepper: Stepper | None = None,
) -> HFGenerator:
    """Return a generator that writes for members together, or one at a time where this model cannot.

    Where it would write by steps of its own, these are compared with the model's `generate`, and left if they differ.

    Args:
        reader: the model.
        tokenizer: the model's.
        examples: real rows to try it on; the first four are taken.
        members: at least two, different from each other.
        stepper: see `HFGenerator`.
    """
    prompts = [example.prompt_tokens for example in examples[:4]]
    if not reader.pads:
        prompts = [prompts[0]] * len(prompts)
    check = self_check(
        reader.model, members, lambda some: _forced_logits(reader, tokenizer, prompts, some), tuned=reader.tuned
    )
    generator = HFGenerator(replace(reader, problem=check.problem, check=check), tokenizer, stepper=stepper)
    if generator.stepper is not None and generator.stepper.suits(check.members):
        _check_steps(generator, prompts, check)
    return generator


def _check_steps(generator: HFGenerator, prompts: Sequence[Tokens], check: SelfCheck) -> None:
    """Compare what the generator's own steps give with what `generate` gives."""
    reader, stepper, members = generator.reader, generator.stepper, check.members
    assert stepper is not None
    plain = _forced_logits(reader, generator.tokenizer, prompts, members)
    by_steps = _forced_logits(reader, generator.tokenizer, prompts, members, stepper)
    stepper.forget()
    if stepper.problem is None and (problem := check.agree(by_steps, plain)):
        stepper.give_up(problem)


def _forced_logits(
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
