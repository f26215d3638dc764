"""Scores of members, whatever the objective needs: answers that are given, or texts that the members write."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from transformers.utils import logging

from zoreward.config import Prompting, part_of
from zoreward.data import PAIRS, placed, render, render_prompts
from zoreward.members import Tuned, called_model, has_adapter
from zoreward.records import Completion, Example, InputError, Member, Request, Scored, ZorewardError, one_line
from zoreward.registry import Objective
from zoreward.scoring.checkpoints import Head, check_needs, length_limit
from zoreward.scoring.decoding import end_tokens_of
from zoreward.scoring.drift import Base
from zoreward.scoring.local import LocalEngine, checked_engine, ends_told, engine_of, passes_sized_for
from zoreward.scoring.protocol import Engine, Generation
from zoreward.scoring.requests import (
    States,
    candidate_logprobs,
    completion_scores,
    divided_scores,
    mismatched_ratios,
    score_writings,
    scores_of,
    with_base,
    with_mismatched,
    written,
)
from zoreward.scoring.reward_head import answer_states
from zoreward.scoring.rollouts import Rollouts

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

# Tokens that are written when members and objective are tried before step 1.
TRIAL_TOKENS = 16

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, eq=False)
class Scorer:
    """An engine, an objective, and how its members are scored by it.

    Args:
        engine: who answers.
        objective: what members are scored by.
        generation: how they write, for an objective that needs `completions`.
        base: the model before tuning, for an objective that reads what it holds of what was written.
        rollouts: write in the place of the engine, where a user's function does.
    """

    engine: Engine
    objective: Objective
    generation: Generation
    base: Base | None = None
    rollouts: Rollouts | None = None

    def score(
        self,
        examples: Sequence[Example],
        members: Sequence[Member] = ((),),
        *,
        seed: int = 0,
        rows: int | None = None,
        trainer_state: Any = None,
    ) -> list[Scored]:
        """Return for each member what it is worth on these rows; a `Writing` where it wrote something.

        Args:
            examples: N rows.
            members: M members; by default the model itself.
            seed: of what is drawn when texts are sampled; the same for all members.
            rows: most rows of one forward pass.
            trainer_state: handed to reward functions that ask for it.

        Raises:
            ObjectiveError: the objective raised, or returned no score; or the model's outputs are not finite.
        """
        if self.objective.needs != "completions":
            logprobs_MNC = candidate_logprobs(self.engine, examples, members, rows=rows)
            # Of θ, not of each member: a reference point that moved with a member would have a gradient of its own.
            of_all = {}
            if self.objective.reads_mismatched:
                of_all["mismatched_ratios"] = mismatched_ratios(self.engine, examples, rows=rows)
            return scores_of(self.objective, examples, list(logprobs_MNC), of_all)
        if self.rollouts is not None:
            turns = ([self.rollouts.written(self.reader, examples, one, seed=seed, rows=rows)] for one in members)
            return [one for own in turns for one in score_writings(self.objective, examples, own, trainer_state)]
        how = replace(self.generation, seed=seed, rows=rows or self.generation.rows)
        what = (self.engine, self.objective, examples, members, how)
        states_of = self._states_of if self.base is not None and self.objective.reads_base else None
        return [*completion_scores(*what, trainer_state=trainer_state, states_of=states_of)]

    def score_divided(
        self, examples: Sequence[Example], members: Sequence[Member], shares: Sequence[slice]
    ) -> tuple[list[Scored], list[float]]:
        """Return what antithetic pairs are worth, each on rows of its own; see `divided_scores`."""
        return divided_scores(self.engine, self.objective, examples, members, shares)

    def _states_of(self, prompts: Sequence[Request], texts: Sequence[Sequence[Completion]]) -> States:
        """What the base holds of what members wrote; see `answer_states`."""
        assert self.base is not None and self.reader.generator is not None
        ends = end_tokens_of(self.reader.model, self.reader.generator.tokenizer)
        pairs = [(prompt.prompt, text.tokens) for own in texts for prompt, text in zip(prompts, own, strict=True)]
        found = answer_states(self.reader, self.base, pairs, ends)
        return [found[start : start + len(prompts)] for start in range(0, len(found), len(prompts))]

    def with_base(self, examples: Sequence[Example], *, rows: int | None = None) -> list[Example]:
        """Return the rows with what the model as it is now makes of them, for an objective that compares with it.

        That is how likely it finds their candidates or, for an objective that needs `completions`, what it writes when
        it always takes the likeliest token. Called before step 1, it makes the model the base.

        Args:
            examples: N rows.
            rows: most rows of one forward pass.
        """
        if self.objective.needs != "completions":
            found = with_base(self.engine, examples, rows=rows)
            if not self.objective.reads_mismatched:
                return found
            return with_mismatched(self.engine, found, context=length_limit(None, self.reader.model), rows=rows)
        greedy = replace(self.generation, temperature=0.0, rows=rows or self.generation.rows)
        texts = written(self.engine, examples, greedy)
        return [replace(one, base_completion=text) for one, text in zip(examples, texts, strict=True)]

    def shared_out(self, members: Sequence[Member], work: Callable[[Sequence[int]], list[float]]) -> list[float]:
        """Return a number for each member, worked out by whoever has scored it.

        Args:
            members: M members, as they were scored.
            work: returns a number for each of some members, whose places among them it is given.
        """
        return work(range(len(members)))

    def once(self, work: Callable[[], Result]) -> Result:
        """Return what a piece of work gives that one process is to do: what JSON can hold."""
        return work()

    def cut_as(self, unit: Mapping[str, Any]) -> Scorer:
        """Return the scorer with another unit of work; see `LocalEngine.cut_as`."""
        return replace(self, engine=self.reader.cut_as(unit))

    def weights_put(self) -> None:
        """Take notice that weights were put in the place of those of the model, by a resume or a rewind."""

    def compare_weights(self, step: int) -> None:
        """See that whoever answers has the weights of the model; here it is the model itself.

        Raises:
            InputError: they are others.
        """

    @property
    def reader(self) -> LocalEngine:
        """The engine, where it is the one at hand: its model can be read in other ways too."""
        if not isinstance(self.engine, LocalEngine):
            raise InputError("that needs the model at hand", hint="Leave out what reads its logits: drift and kl.")
        return self.engine

    @property
    def problem(self) -> str | None:
        """Why members cannot share a forward pass; None if they can."""
        return getattr(self.engine, "problem", None)


def scorer_of(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    objective: Objective,
    generation: Generation,
    *,
    tuned: Tuned | None = None,
) -> Scorer:
    """Return what scores this model, one member at a time or few."""
    return Scorer(engine_of(model, tokenizer.pad_token_id, tokenizer, tuned=tuned), objective, generation)


def checked_scorer(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    objective: Objective,
    generation: Generation,
    examples: Sequence[Example],
    members: Sequence[Member],
    *,
    tuned: Tuned | None = None,
    step: tuple[Sequence[Example], Sequence[Member]] | None = None,
) -> Scorer:
    """Return what scores this model, after trying members on real rows; `try_objective` does the rest.

    Args:
        model: the model.
        tokenizer: the model's.
        objective: what members are scored by.
        generation: how they write, where the objective needs `completions`.
        examples: some rows.
        members: at least two, different from each other.
        tuned: the model's tuned weights; by default `tuned_weights(model)`.
        step: rows and members that a step may have: passes are sized for them.

    Raises:
        InputError: the model fails on these rows by itself.
    """
    with running(model):
        pad = tokenizer.pad_token_id
        engine = checked_engine(model, pad, examples, members[:2], tokenizer=tokenizer, tuned=tuned)
    together = passes_sized_for(engine, *step) if step else None
    scorer = Scorer(engine.cut_as({"members": together}), objective, generation)
    # A model that has not moved is its own base.
    return replace(scorer, base=Base(model, adapter=has_adapter(model)) if objective.reads_base else None)


def try_objective(scorer: Scorer, examples: Sequence[Example]) -> None:
    """Score the model as it is on some rows, with short texts; that they have no score is a warning.

    Raises:
        ObjectiveError: the objective raised, or returned no score.
        InputError: the model fails on these rows by itself.
    """
    objective, how = scorer.objective, scorer.generation
    trial = replace(scorer, generation=replace(how, max_new_tokens=min(TRIAL_TOKENS, how.max_new_tokens)))
    with running(scorer.reader.model):
        rows = trial.with_base(examples) if objective.compares_with_base else examples
        _tell_of_no_score(objective, trial.score(rows), len(rows))


def _tell_of_no_score(objective: Objective, scored: Sequence[Scored], n_rows: int) -> None:
    if any(math.isnan(one.score) for one in scored):
        logging.get_logger(__name__).warning(
            "%r has no score on the first %d rows: a step on such rows moves nothing.", objective.name, n_rows
        )


@contextmanager
def running(model: nn.Module) -> Iterator[None]:
    """Name the model where it fails by itself: what it raises is about its insides.

    Raises:
        InputError: in the place of what is neither of ours nor a lack of memory.
    """
    try:
        with ends_told(model):
            yield
    except (ZorewardError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        told = one_line((str(error).strip().splitlines() or [""])[0])
        name = type(called_model(model)).__name__
        hint = "Take another model: this one cannot score these rows, tuned or not."
        raise InputError(f"{name} cannot be run: {type(error).__name__}: {told}", hint=hint) from error


def examples_of(
    rows: Sequence[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    needs: str,
    prompting: Prompting,
    *,
    max_new_tokens: int,
    head: Head | None = None,
    shot_rows: Sequence[dict[str, Any]] | None = None,
    seed: int = 0,
) -> list[Example]:
    """Return rows made ready for what an objective needs.

    Args:
        rows: at least one.
        tokenizer: of the model.
        needs: what the objective needs.
        prompting: how rows become prompts; its `max_length` counts what stands or is written behind them too.
        max_new_tokens: tokens that are written at most.
        head: of the model; by default a causal one's.
        shot_rows: where demonstrations come from; by default `rows`.
        seed: of the draw of demonstrations.

    Raises:
        ZorewardError: rows, template and answers do not fit together.
    """
    head = head or Head()
    check_needs(needs, head)
    if needs == "completions":
        room = prompting.max_length
        if room is not None and head.kind != PAIRS:  # an encoder–decoder writes in a text of its own
            room -= max_new_tokens
        return render_prompts(rows, tokenizer, part_of(Prompting, prompting, max_length=room), kind=head.kind)
    how: dict[str, Any] = {"shot_rows": shot_rows, "seed": seed, "kind": head.kind, "classes": head.classes}
    with placed(rows):
        return render(rows, tokenizer, prompting, needs=needs, **how)
