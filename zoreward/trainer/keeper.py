"""When weights are written down, and when a run ends before its time."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback
from transformers.trainer_utils import SaveStrategy

from zoreward.records import InputError
from zoreward.scoring import Ranks

if TYPE_CHECKING:
    from zoreward.methods import Method
    from zoreward.trainer.options import ZOConfig

# A snapshot is due after so many seconds of steps: a resume replays at most that, without the forward passes …
SECONDS = 60.0
# … or, where writing it takes long, when it has become this share of the time.
SHARE = 0.01


@dataclass(frozen=True, slots=True)
class Budget:
    """What a run spends forward passes on, each of one member on one batch of rows.

    Args:
        forwards: how many there may be.
        search: those that look for ε and the rate.
        scores: how often the dev rows are scored, before step 1 too, and `score`, what each time takes.
        steps: how many are done, and `in_steps`, what they take together.
    """

    forwards: int
    search: int
    scores: int
    score: int
    steps: int
    in_steps: int

    @property
    def spent(self) -> int:
        """All of them together."""
        return self.search + self.scores * self.score + self.in_steps

    def __str__(self) -> str:
        return f"of {self.forwards:,} forward passes {self.parts}"

    @property
    def parts(self) -> str:
        """What they are spent on, in words."""
        parts = [f"{self.in_steps:,} are for {self.steps:,} step{'s' if self.steps > 1 else ''}"]
        parts += [f"{self.scores * self.score:,} for {self.scores} scores of the dev rows"] if self.score else []
        parts += [f"{self.search:,} for the search for a rate"] if self.search else []
        return ", ".join(parts)


def budget_of(
    args: ZOConfig,
    method: Method,
    rows: int,
    dev_rows: int,
    *,
    searched: int,
    most: int,
    scored: Sequence[int],
    done: int,
) -> Budget:
    """Return how a run spends `max_forwards`, with as many steps as these pay.

    Args:
        args: the options.
        method: says which members a step has, and whether they read all rows.
        rows: how many are tuned on.
        dev_rows: how many are scored between the steps; 0: none.
        searched: how many rows were read to find the rate.
        most: steps, however many are paid.
        scored: after which steps the dev rows were scored, and `done`, how many steps there are, in a run that goes on.

    Raises:
        InputError: they do not pay for one step.
    """
    assert args.max_forwards is not None
    batch = args.rows_a_step
    epoch = -(-rows // batch)
    every = {"epoch": epoch, "steps": args.eval_steps}.get(args.eval_strategy.value) or 0
    score = -(-dev_rows // batch) if every else 0
    known = done if done in scored else done - 1  # up to which step nothing is scored any more
    in_steps, paid = 0, None
    for step in itertools.count(1):
        query = method.ask(replace(method.init(), step=step - 1))
        in_steps += query.reads * (epoch if query.rows == "all" else 1)
        scores = len(scored)
        if score and step > known:
            between = every if every >= 1 else math.ceil(step * every)
            scores += -(-step // between) - known // between
        taken = Budget(args.max_forwards, -(-searched // batch), scores, score, step, in_steps)
        paid = taken if taken.spent <= args.max_forwards else paid
        if step >= most or taken.search + in_steps > args.max_forwards:
            break
    if paid is None:
        message = f"max_forwards={args.max_forwards} does not pay for one step"
        raise InputError(message, hint=f"It is at least {taken.spent}: {taken.parts}.")
    return paid


class Keeper(TrainerCallback):
    """Asks for a snapshot when one is due, and ends a run after the step at hand when that is asked for.

    Args:
        ranks: all of a launch, which end together: where a signal has reached one of them, or by the clock of rank 0.

    Attributes:
        stopping: set it to end the run after the step at hand, as if it had been killed there: nothing is evaluated,
            since a resume does that.
        stopped_by: what ended the run before its last step, as its record calls it; None: nothing, or early stopping.
            `silence`: no step moved anything, which `train` raises. `max_rewinds`: the dev score fell too often.
        judges_silence: whether a run of which no step moves anything says why, and ends itself where it stays so.
        seconds_left: of `max_seconds`; infinite where there is no such end.
        scores_where_seconds_end: whether the dev rows are scored where `max_seconds` ends the run. Without it only if
            they would be scored after the last step alone: else the scores would be others than those of a run that
            goes on.
        budget: how `max_forwards` is spent, where that decides how many steps there are.
        first_score: of the dev rows before step 1, where it is known, or what else the best step goes by: the first
            best one. transformers' loop, which begins with a new state, would take the first after a step for that,
            however low it is.
    """

    def __init__(self, ranks: Ranks | None = None) -> None:
        self._ranks = ranks or Ranks()
        self._all_stop = self.stopping = False
        self.stopped_by: str | None = None
        self.judges_silence = True
        self.scores_where_seconds_end = False
        self.seconds_left = math.inf
        self.budget: Budget | None = None
        self.first_score: float | None = None
        self._began = math.inf
        self._last = 0.0
        self._took = 0.0

    @property
    def due(self) -> bool:
        """Whether a snapshot by cost is due."""
        return time.perf_counter() - self._last >= max(SECONDS, self._took / SHARE)

    @property
    def ends(self) -> bool:
        """Whether the run ends as if it had been killed: all ranks know it after the step at hand."""
        return self._all_stop if self._ranks.several else self.stopping

    def wrote(self, seconds: float) -> None:
        """Take note that a snapshot was written, or tried, and how long that took."""
        self._last, self._took = time.perf_counter(), seconds

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock, and tell the loop of the score before step 1, unless it takes that itself."""
        self._began, self._last, self.seconds_left = math.inf, time.perf_counter(), math.inf
        if self.first_score is not None and state.best_metric is None and not args.eval_on_start:
            state.best_metric = self.first_score

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock of `max_seconds` with the first step."""
        self._began = min(self._began, time.perf_counter())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a snapshot, and for the end."""
        by_cost = args.save_strategy == SaveStrategy.STEPS and args.save_steps == 0
        if args.max_seconds is not None:
            self.seconds_left = max(0.0, args.max_seconds - (time.perf_counter() - self._began))
        late = self.seconds_left == 0
        self._all_stop, late = self._ranks.any(self.stopping, late and self._ranks.first)
        if self._all_stop:
            control.should_training_stop = control.should_save = True
            control.should_evaluate = False
        elif late and state.global_step < state.max_steps:
            self.stopped_by, control.should_training_stop = "max_seconds", True
            if args.eval_strategy == "steps":
                control.should_evaluate |= self.scores_where_seconds_end or state.eval_steps >= state.max_steps
        elif by_cost:
            control.should_save = state.global_step < state.max_steps and self.due

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for the end."""
        if self.ends:
            control.should_training_stop = control.should_save = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the loop, which ends an epoch when it stops, from evaluating."""
        if self.ends or self.stopped_by in ("max_seconds", "silence"):
            control.should_evaluate = False
