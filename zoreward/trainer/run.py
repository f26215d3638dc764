"""`Run`: what a run is, and what one step of it does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from zoreward.journal import Journal
from zoreward.methods import Method, SPSAState
from zoreward.noise import SeedIndex, derive_seed
from zoreward.records import Example, Query, Rewind, Scored, StepRecord
from zoreward.registry import Objective
from zoreward.scoring import Scorer
from zoreward.trainer.penalty import Drift


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a run.

    Args:
        record: what the journal keeps of it: scores, learning rate, update.
        rows: what its members were scored on.
        scored: what each member is worth, and what it wrote; where each pair has rows of its own, what the members
            θ + εz_k are worth together, and the members θ − εz_k.
        state: where the method stands after it.
    """

    record: StepRecord
    rows: Sequence[Example]
    scored: list[Scored]
    state: SPSAState


class Run:
    """A model that is tuned on an objective, by a method, on rows, into a journal: `for step in run:` tunes it.

    Args:
        scorer: scores members of the model on the objective.
        method: which members to ask for, and what their scores turn into.
        rows: all rows that are tuned on, which some methods ask for now and then.
        journal: takes a line for each step; it must be open when a step is done.
        batches: the rows of each step; the run ends with them.
        seed: of what is drawn when members write.
        learning_rate: gives that of the step at hand; by default it is the method's own.
        drift: takes from each score what the member has moved away from the base, if that is asked for.
        trainer_state: handed to reward functions that ask for it.

    Attributes:
        state: where the method stands.
        last: the last `Step`, or None.
        rewinds: where the run has gone back, after which its learning rates are lower.

    Example:
        >>> run = Run(scorer, SPSA(lr=1e-3), rows, journal, batches=[rows[:16], rows[16:32]])  # doctest: +SKIP
        >>> for step in run:  # doctest: +SKIP
        ...     print(step.record.scores)
    """

    def __init__(
        self,
        scorer: Scorer,
        method: Method,
        rows: Sequence[Example],
        journal: Journal | None = None,
        *,
        batches: Iterable[Sequence[Example]] = (),
        seed: int = 0,
        learning_rate: Callable[[], float] | None = None,
        drift: Drift | None = None,
    ):
        self.scorer, self.method, self.rows, self.journal, self.batches = scorer, method, rows, journal, batches
        self.seed, self.learning_rate, self.drift = seed, learning_rate, drift
        self.trainer_state: Any = None
        self.state: SPSAState = method.init()
        self.last: Step | None = None
        self.rewinds: tuple[Rewind, ...] = ()

    @property
    def objective(self) -> Objective:
        """What members are scored by."""
        return self.scorer.objective

    def __iter__(self) -> Iterator[Step]:
        for rows in self.batches:
            step = self.ask_score_tell(rows)
            self.journal_and_apply(step)
            yield step

    def ask_score_tell(self, rows: Sequence[Example]) -> Step:
        """Ask the method for members, score them, and tell it the scores. Nothing is changed.

        Raises:
            ObjectiveError: the objective raised, or the model's outputs are not finite.
        """
        query = self.method.ask(self.state)
        rows = list(self.rows) if query.rows == "all" else rows
        scored, scores = self._scores(query, rows)
        rate = self.learning_rate() if self.learning_rate else self.method.lr
        rate *= self.rate_scale(query.step)
        update, state = self.method.tell(self.state, query, scores, lr=rate)
        return Step(StepRecord(query.step, scores, update, rate), rows, scored, state)

    def _scores(self, query: Query, rows: Sequence[Example]) -> tuple[list[Scored], tuple[float, ...]]:
        """What members are worth, as `Step.scored` and as the method is told."""
        if query.rows_per_direction:
            scored, scores = self.scorer.score_divided(rows, query.members, query.divided(len(rows)))
            return scored, tuple(scores)
        options: dict[str, Any] = {"seed": derive_seed(self.seed, query.step, SeedIndex.SAMPLING)}
        options["trainer_state"] = self.trainer_state
        scored = [member for part in query.parts for member in self.scorer.score(rows, part, **options)]
        if self.drift:
            scored = self.drift.penalised(self.scorer, rows, query.members, scored)
        return scored, tuple(member.score for member in scored)

    def rate_scale(self, step: int) -> float:
        """Return by what learning rates of the schedule are multiplied in a step."""
        return next((rewind.rate for rewind in reversed(self.rewinds) if rewind.step <= step), 1.0)

    def journal_and_apply(self, step: Step) -> None:
        """Write the step into the journal, then do its update to the weights.

        In this order: a step that is written down can be replayed, whatever happens then.

        Raises:
            OSError: the line cannot be written; the weights are those of the step before.
        """
        assert self.journal is not None
        self.journal.append(step.record)
        self.scorer.engine.apply(step.record.update)
        self.state, self.last = step.state, step
