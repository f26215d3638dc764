"""An engine whose members write elsewhere: as LoRA adapters, in vLLM or behind a server.

θ stands in the model at hand, as in any run. What other engines are told of it are adapters, and of its updates seeds
and coefficients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from zoreward.members import Tuned, digest_of_weights, has_adapter
from zoreward.noise import SeedIndex, derive_seed
from zoreward.records import Completion, Example, InputError, Member, Request, Update
from zoreward.scoring.adapter_files import Adapter, AdapterFiles
from zoreward.scoring.decoding import completion_of, end_tokens_of
from zoreward.scoring.forward import not_finite
from zoreward.scoring.local import LocalEngine
from zoreward.scoring.protocol import Generation, Tokens, Work
from zoreward.scoring.requests import prompts_of
from zoreward.scoring.scorer import Scorer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What a token's log-probability may differ by from that of the engine at hand, and be rounding.
FLOORS = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.1}
# Tokens that members write when they are compared before step 1.
TRIAL_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Written:
    """What was written behind a prompt.

    Args:
        tokens: with the one that ended it.
        logprob: of all of them together; NaN where the model's outputs are not finite.
    """

    tokens: Tokens
    logprob: float


class Writer(Protocol):
    """Who writes for adapters. One that `holds` weights of its own moves them by seeds and coefficients.

    Attributes:
        name: with the release; it stands in the header of a run.
        holds: whether it can write at any weights.
        takes: the modules of which it takes adapters; None: it does not say.
        rank: the largest that an adapter may have; None: it does not say.
        folder: where adapters are written for it; None: where temporary files are.
    """

    name: str
    holds: bool
    takes: set[str] | None
    rank: int | None
    folder: Path | None

    def write(
        self, asked: Sequence[tuple[Adapter | None, Sequence[Tokens]]], how: Generation, ends: Sequence[int]
    ) -> list[list[Written]]:
        """Return what is written with each adapter behind each of its prompts; None is the model as it is.

        Args:
            asked: adapters, and the prompts of each.
            how: how to write.
            ends: the tokens that end what is written.
        """

    def take(self, weights: Mapping[str, Any], tuned: Tuned) -> None:
        """Go to the weights of a model, by their names; and know what is tuned of them."""

    def apply(self, update: Update) -> None:
        """Do an update, by its seeds and coefficients."""

    def show(self, member: Member) -> None:
        """Go to a member until the next call; () is back to the weights."""

    def digest(self) -> str:
        """Return `digest_of_weights` of the tuned weights."""


@dataclass(frozen=True, slots=True, eq=False)
class ServedEngine:
    """An `Engine` whose texts are a `Writer`'s; given answers are read by the engine at hand.

    Args:
        local: the engine at hand, which has θ.
        writer: who writes.
        files: writes members as adapters.
        moves: whether θ is the writer's too; else adapters have all that moves.
        problem: why members write one after the other; None if they do not.

    Example:
        >>> engine = ServedEngine(local, writer, AdapterFiles(local.model, local.tuned), False)  # doctest: +SKIP
    """

    local: LocalEngine
    writer: Writer
    files: AdapterFiles
    moves: bool
    problem: str | None = None

    def logprobs(self, work: Work, *, rows: int | None = None) -> list[NDArray[np.float64]]:
        """See `Engine.logprobs`."""
        return self.local.logprobs(work, rows=rows)

    def generate(self, work: Work, how: Generation) -> Iterator[list[list[Completion]]]:
        """See `Engine.generate`; all come at once. Where members draw, they share their seeds, each row its own."""
        yield [[completion_of(self._tokenizer, one.tokens, how) for one in own] for own in self.written(work, how)]

    def written(self, work: Work, how: Generation) -> list[list[Written]]:
        """Return what members write behind their requests' prompts.

        Raises:
            ObjectiveError: the model's outputs are not finite.
        """
        ends = end_tokens_of(self.local.model, self._tokenizer)
        members = [member for member, _ in work]
        prompts = [[request.prompt for request in requests] for _, requests in work]
        if self.moves and self.files.problem(members, self.writer.takes, self.writer.rank):
            found = []
            try:
                for member, own in zip(members, prompts, strict=True):
                    self.writer.show(member)
                    found += self.writer.write([(None, own)], how, ends)
            finally:
                self.writer.show(())
        else:
            with self.files.written(members) as adapters:
                found = self.writer.write(list(zip(adapters, prompts, strict=True)), how, ends)
        if any(one.logprob != one.logprob for own in found for one in own):
            raise not_finite()
        return found

    @property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        assert self.local.generator is not None
        return self.local.generator.tokenizer

    def apply(self, update: Update) -> None:
        """See `Engine.apply`."""
        self.local.apply(update)
        if self.moves:
            self.writer.apply(update)

    def weights(self) -> Tuned:
        """See `Engine.weights`."""
        return self.local.weights()

    @property
    def unit(self) -> dict[str, Any]:
        """See `Engine.unit`; and who writes."""
        return {**self.local.unit, "engine": self.writer.name}

    def take(self) -> None:
        """Have the writer go to the weights of the model at hand."""
        if self.moves:
            self.writer.take(dict(self.local.model.named_parameters()), self.local.tuned)

    def compare(self, step: int) -> None:
        """See that the writer's weights are those at hand, bit for bit.

        Raises:
            InputError: they are not.
        """
        if self.moves and self.writer.digest() != digest_of_weights(self.local.tuned):
            hint = "Please report it. The journal has the run: zoreward replay gives its weights."
            raise InputError(f"{self.writer.name} has other weights after step {step}", hint=hint)


@dataclass(frozen=True, slots=True, eq=False)
class ServedScorer(Scorer):
    """A `Scorer` whose texts are written elsewhere."""

    engine: ServedEngine

    @property
    def reader(self) -> LocalEngine:
        """The engine at hand, whose model has θ."""
        return self.engine.local

    def cut_as(self, unit: Mapping[str, Any]) -> ServedScorer:
        """See `Scorer.cut_as`."""
        return replace(self, engine=replace(self.engine, local=self.reader.cut_as(unit)))

    def weights_put(self) -> None:
        """See `Scorer.weights_put`."""
        self.engine.take()

    def compare_weights(self, step: int) -> None:
        """See `Scorer.compare_weights`."""
        self.engine.compare(step)


def settings_of(how: Generation, row: int) -> dict[str, Any]:
    """Return how vLLM writes for a row, in this process or behind a server: the same for every member.

    >>> settings_of(Generation(max_new_tokens=8), 0)["temperature"]
    0.0
    """
    return {
        "max_tokens": how.max_new_tokens,
        "temperature": how.temperature,
        "top_p": how.top_p,
        "top_k": how.top_k,
        "min_p": how.min_p or 0.0,
        "repetition_penalty": how.repetition_penalty,
        "stop": list(how.stop),
        "seed": derive_seed(how.seed, row, SeedIndex.SAMPLING) >> 1,  # it takes 63 bits
    }


def served(
    scorer: Scorer, make: Callable[[int], Writer], examples: Sequence[Example], members: Sequence[Member]
) -> ServedScorer:
    """Return a scorer whose texts are written elsewhere, after trying it on real rows.

    Args:
        scorer: of the engine at hand.
        make: makes the writer, which is told the largest rank of its adapters.
        examples: some rows.
        members: those of a step.

    Raises:
        InputError: members cannot be served, or what is served are others.
    """
    local = scorer.reader
    moves = not has_adapter(local.model)
    files = AdapterFiles(local.model, local.tuned)
    writer = make(files.rank(members))
    files.folder = writer.folder
    if moves and not writer.holds:
        hint = "Take --tune lora, whose adapters it loads; or --engine vllm."
        raise InputError(f"{writer.name} serves a model whose own weights cannot be moved", hint=hint)
    engine = ServedEngine(local, writer, files, moves, files.problem(members, writer.takes, writer.rank) or None)
    engine.take()
    _check(engine, prompts_of(examples), [(), *members[:2]])
    return ServedScorer(engine, scorer.objective, scorer.generation, scorer.base)


def _check(engine: ServedEngine, prompts: Sequence[Request], members: Sequence[Member]) -> None:
    """Compare how likely the writer and the engine at hand find what is written: at each member, and at none."""
    work = [(member, prompts) for member in members]
    texts = engine.written(work, Generation(max_new_tokens=TRIAL_TOKENS))
    asked = [[replace(request, target=one.tokens) for request, one in zip(prompts, own, strict=True)] for own in texts]
    here = engine.logprobs(list(zip(members, asked, strict=True)))
    there = [np.array([one.logprob for one in own]) for own in texts]
    counts = [np.array([len(one.tokens) for one in own]) for own in texts]
    for member, one, other, count in zip(members, here, there, counts, strict=True):
        floor = FLOORS[str(next(engine.local.model.parameters()).dtype).removeprefix("torch.")]
        off = float(np.abs(one - other).sum() / count.sum())
        if not off <= floor:
            who = "a member" if member else "the model"
            raise InputError(
                f"{engine.writer.name} is {off:.2g} nats a token from the engine at hand for {who}; rounding explains "
                f"{floor:g}",
                hint="Leave --engine out; and please report the model.",
            )
