"""An engine and a scorer for the ranks of a launch: each does some of the passes, and all know all answers.

Passes are shared as a whole, cut as the engine's unit of work says, so that scores do not depend on how many ranks
there are. Where members are shared, a rank reads all rows under its own, scores them, and gives numbers alone. Where
rows are shared, and where the model itself is asked, all are given what each has read or written, and rank 0 calls the
objective. So a function is called once for each completion, whatever the number of ranks.

Where some ranks hold a model together, such a group shares in the work as a rank does elsewhere: all in it make the
same passes, since each has a part of every layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.utils import logging

from zoreward.members import Tuned
from zoreward.records import (
    Completion,
    Example,
    Member,
    ObjectiveError,
    RanksError,
    Scored,
    Update,
    Writing,
    one_line,
)
from zoreward.scoring.forward import not_finite
from zoreward.scoring.local import LocalEngine
from zoreward.scoring.protocol import Generation, OwnPasses, Split, Work
from zoreward.scoring.ranks import Ranks
from zoreward.scoring.requests import candidate_logprobs, mismatched_ratios, prompts_of, score_writings, scores_of
from zoreward.scoring.scorer import Result, Scorer

# Stands for all log-probabilities of a rank whose outputs are not finite: none is so low.
_LOST = -np.finfo(np.float64).max
_HOLES = "ranks cut their work differently: some passes were made by none"
_HINT = "One of them may have run out of memory: take fewer rows or members at a time, or resume on GPUs of one kind."


@dataclass(frozen=True, slots=True, eq=False)
class ShardedEngine:
    """An `Engine` of several ranks, which all must ask it the same.

    Args:
        local: that of this rank, cut alike on all.
        ranks: who shares its work.
        group: how many ranks, next to each other, hold a model together.

    Example:
        >>> engine = ShardedEngine(engine_of(model, 0), Ranks(launch_of()))  # doctest: +SKIP
        >>> engine.logprobs([((), requests)])  # doctest: +SKIP
        [array([-2.3, -0.7])]
    """

    local: LocalEngine
    ranks: Ranks
    group: int = 1

    @property
    def share(self) -> int:
        """Which share of the work is this rank's, and that of those that hold the model with it."""
        return self.ranks.rank // self.group

    @property
    def shares(self) -> int:
        """Into how many shares the work falls."""
        return self.ranks.size // self.group

    def logprobs(self, work: Work, *, rows: int | None = None) -> list[NDArray[np.float64]]:
        """See `Engine.logprobs`: each rank makes some of the passes, and what is sent are log-probabilities."""
        try:
            with told_of_the_dead():
                own = self.local.logprobs(work, rows=rows, passes=self._passes)
        except ObjectiveError:  # who looks for a rate goes on from there: all ranks must
            own = [np.full(len(requests), _LOST) for _, requests in work]
        every = self.ranks.least(np.concatenate(own))  # +inf stands where a rank has read nothing
        if (every == _LOST).any():
            raise not_finite()
        if np.isposinf(every).any():
            raise RanksError(_HOLES, hint=_HINT)
        return np.split(every, np.cumsum([len(one) for one in own])[:-1])

    def generate(self, work: Work, how: Generation) -> Iterator[list[list[Completion]]]:
        """See `Engine.generate`: each rank writes some of the texts, which are sent to all; all come at once."""
        own = [texts for chunk in self.local.generate(work, how, passes=self._passes) for texts in chunk]
        # What a rank has not written is None there.
        told = [[None if text is None else (text.text, text.tokens, text.ended) for text in texts] for texts in own]
        every = [
            [next((one for one in of_ranks if one is not None), None) for of_ranks in zip(*texts, strict=True)]
            for texts in zip(*self.ranks.values(told), strict=True)
        ]
        if any(text is None for texts in every for text in texts):
            raise RanksError(_HOLES, hint=_HINT)
        yield [[Completion(text[0], tuple(text[1]), text[2]) for text in texts if text] for texts in every]

    def apply(self, update: Update) -> None:
        """See `Engine.apply`."""
        self.local.apply(update)

    def weights(self) -> Tuned:
        """See `Engine.weights`."""
        return self.local.weights()

    @property
    def unit(self) -> dict[str, Any]:
        """See `Engine.unit`."""
        of_group = {"ranks": self.shares, "tensor_parallel": self.group} if self.group > 1 else {}
        return {**self.local.unit, **of_group}

    @property
    def problem(self) -> str | None:
        """Why members cannot share a forward pass; None if they can."""
        return self.local.problem

    def cut_as(self, unit: Mapping[str, Any]) -> ShardedEngine:
        """See `LocalEngine.cut_as`."""
        return replace(self, local=self.local.cut_as(unit))

    def owners(self, members: Sequence[Member]) -> list[list[int]] | None:
        """Return the numbers of the members in each share of the work; None where members are not shared."""
        size = self.local.together or len(members)
        if self.local.split != "members" or size >= len(members) or not any(members) or self.shares == 1:
            return None
        owned: list[list[int]] = [[] for _ in range(self.shares)]
        for m in range(len(members)):
            owned[m // size % self.shares].append(m)
        return owned

    @property
    def _passes(self) -> OwnPasses:
        return OwnPasses(self.share, self.shares)


@dataclass(frozen=True, slots=True, eq=False)
class ShardedScorer(Scorer):
    """A `Scorer` of several ranks. All return the same scores; what others' members wrote, a rank may not know."""

    engine: ShardedEngine

    def score(
        self,
        examples: Sequence[Example],
        members: Sequence[Member] = ((),),
        *,
        seed: int = 0,
        rows: int | None = None,
        trainer_state: Any = None,
    ) -> list[Scored]:
        """See `Scorer.score`."""
        owned = self.engine.owners(members)
        if owned is None:
            return self._by_rows(examples, members, seed=seed, rows=rows, trainer_state=trainer_state)
        own = owned[self.engine.share]
        local = Scorer(self.engine.local, self.objective, self.generation, self.base)
        how: dict[str, Any] = {"seed": seed, "rows": rows, "trainer_state": trainer_state}
        with told_of_the_dead():
            found = local.score(examples, [members[m] for m in own], **how) if own else []
        scored = dict(zip(own, found, strict=True))
        beside = [[one.part_scores, one.metrics] for one in scored.values()]
        is_more = any(len(parts) > 1 or metrics for parts, metrics in beside)
        [more], scores = self._shared(owned, [one.score for one in scored.values()], [float(is_more)])
        told = [[{self.objective.name: score}, {}] for score in scores]
        if more:
            for numbers, of_share in zip(owned, self.engine.ranks.values(beside)[:: self.engine.group], strict=True):
                for m, one in zip(numbers, of_share or (), strict=True):
                    told[m] = one
        return [scored.get(m) or Scored(scores[m], parts, metrics=metrics) for m, (parts, metrics) in enumerate(told)]

    def shared_out(self, members: Sequence[Member], work: Callable[[Sequence[int]], list[float]]) -> list[float]:
        """See `Scorer.shared_out`."""
        owned = self.engine.owners(members) or [[*range(len(members))], *[[]] * (self.engine.shares - 1)]
        own = owned[self.engine.share]
        return self._shared(owned, work(own) if own else [])[1]

    def _shared(
        self, owned: Sequence[Sequence[int]], own: Sequence[float], flags: Sequence[float] = ()
    ) -> tuple[list[float], list[float]]:
        """The largest of each flag over all ranks, and a number for each member, from those that each rank owns."""
        most = max(map(len, owned))
        every = self.engine.ranks.floats([*flags, *own, *[0.0] * (most - len(own))])[:: self.engine.group]
        values = [0.0] * sum(map(len, owned))
        for numbers, found in zip(owned, every[:, len(flags) :].tolist(), strict=True):
            for m, value in zip(numbers, found, strict=False):
                values[m] = value
        return every[:, : len(flags)].max(axis=0, initial=0.0).tolist(), values

    def _by_rows(
        self, examples: Sequence[Example], members: Sequence[Member], *, seed: int, rows: int | None, trainer_state: Any
    ) -> list[Scored]:
        """All answers to all ranks, the objective by rank 0, and its numbers to all."""
        is_first, scored, problem = self.engine.ranks.first, list[Scored](), None
        if self.objective.needs != "completions":
            logprobs_MNC = candidate_logprobs(self.engine, examples, members, rows=rows)
            of_all = {}
            if self.objective.reads_mismatched:
                of_all["mismatched_ratios"] = mismatched_ratios(self.engine, examples, rows=rows)
        else:
            how, prompts = replace(self.generation, seed=seed, rows=rows or self.generation.rows), prompts_of(examples)
            texts = [own for chunk in self.engine.generate([(one, prompts) for one in members], how) for own in chunk]
        try:
            if is_first and self.objective.needs != "completions":
                scored = scores_of(self.objective, examples, list(logprobs_MNC), of_all)
            elif is_first:
                reads = self.base is not None and self.objective.reads_base
                states = self._states_of(prompts, texts) if reads else None
                scored = [*score_writings(self.objective, examples, texts, trainer_state, states)]
        except ObjectiveError as error:
            problem = error
        # What functions returned for each row is asked of one model alone: how its score falls, say.
        told = self.engine.ranks.from_first(
            [
                [one.score, one.part_scores, one.metrics, dict(one.returned) if len(members) == 1 else {}]
                for one in scored
            ]
            if problem is None
            else {"problem": str(problem), "hint": problem.hint}
        )
        if problem is not None:
            raise problem
        if isinstance(told, dict):  # whoever goes on after it does so on all ranks
            raise ObjectiveError(told["problem"], hint=told["hint"])
        if is_first:
            return scored
        found: list[Scored] = []
        for m, (score, parts, metrics, returned) in enumerate(told):
            known = {"metrics": metrics, "returned": returned}
            if self.objective.needs == "completions":
                found.append(Writing(score, parts, completions=tuple(texts[m]), rewards={}, extra={}, **known))
            else:
                found.append(Scored(score, parts, logprobs_NC=logprobs_MNC[m], **known))
        return found

    def once(self, work: Callable[[], Result]) -> Result:
        """See `Scorer.once`."""
        ranks = self.engine.ranks
        return ranks.from_first(work() if ranks.first else None)  # type: ignore[no-any-return]

    @property
    def reader(self) -> LocalEngine:
        """The engine of this rank: what is read by it in other ways, all ranks read alike."""
        return self.engine.local

    def cut_as(self, unit: Mapping[str, Any]) -> ShardedScorer:
        """See `Scorer.cut_as`."""
        return replace(self, engine=self.engine.cut_as(unit))


def sharded(
    scorer: Scorer, ranks: Ranks, split: Literal["auto"] | Split, members: Sequence[Member], group: int = 1
) -> Scorer:
    """Return a scorer whose work the ranks share; the scorer itself where there is one process.

    Args:
        scorer: of this rank.
        ranks: all of them.
        split: what they share; `auto`: members where there are enough of them.
        members: those of a step that are scored together.
        group: how many ranks hold a model together.
    """
    if not ranks.several:
        return scorer
    unit = scorer.reader.unit
    # Ranks that share a GPU may have found room for different sizes.
    read, written = ranks.least(np.array([unit["read"], unit["written"] or 0], dtype=np.float64)).astype(int).tolist()
    shares = ranks.size // group
    size = members_of_a_pass(members, shares)
    busy = -(-len(members) // size)
    chosen = ("members" if busy >= shares else "rows") if split == "auto" else split
    if chosen == "members" and busy < shares:
        logging.get_logger(__name__).warning(
            "%d members keep %d of %d ranks busy: take more directions, or --ranks-split rows.",
            *(len(members), busy * group, ranks.size),
        )
    together = min(size if chosen == "members" else len(members), unit["members"] or len(members))
    own = {"ranks": shares, "split": chosen, "members": together, "read": read, "written": written or None}
    engine = ShardedEngine(scorer.reader.cut_as(own), ranks, group)
    return ShardedScorer(engine, scorer.objective, scorer.generation, scorer.base)


def sharing_passes(scorer: Scorer, ranks: Ranks | None, examples: Sequence[Example]) -> Scorer:
    """Return a scorer whose ranks share the passes that one process would make: its scores are that one's, bit for bit.

    Args:
        scorer: of this rank, which scores the model as it is.
        ranks: all of them; None: there is one process.
        examples: the rows.

    Raises:
        RanksError: a rank has other rows.
    """
    if ranks is None or not ranks.several:
        return scorer
    ranks.refuse_unlike({"other rows": repr([(one.prompt_tokens, one.candidate_tokens) for one in examples])})
    engine = ShardedEngine(scorer.reader, ranks)
    return ShardedScorer(engine, scorer.objective, scorer.generation, scorer.base)


def members_of_a_pass(members: Sequence[Member], ranks: int) -> int:
    """How many members share a pass where ranks share them: two at least where alone they would be rounded copies."""
    size = -(-len(members) // ranks)
    if not any(term.family.rank for member in members for term in member):
        return size
    size = max(2, size)
    while len(members) % size == 1 and size < len(members):
        size += 1
    return size


@contextmanager
def told_of_the_dead() -> Iterator[None]:
    """Say that another rank has ended, where a layer could not gather.

    Raises:
        RanksError: in the place of what torch's process group raises.
    """
    try:
        yield
    except RuntimeError as error:
        told = str(error)
        if isinstance(error, torch.OutOfMemoryError) or not ("gloo" in told or "NCCL" in told):
            raise
        why = one_line(told.splitlines()[0].rpartition("] ")[2], 120)
        raise RanksError(
            f"another rank has ended, or cannot be reached: {why}", hint="What it said stands near."
        ) from error
