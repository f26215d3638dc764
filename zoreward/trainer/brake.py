"""The brake: whether a dev score has fallen by more than noise, so that a run goes back to its best step.

The rows to choose by are cut into G groups, and each evaluation says what each group says of its score:

    p_g = G · s − (G − 1) · s_−g         s the score of all rows, s_−g without those of group g

(the jackknife's pseudo-values; Tukey 1958). Of a mean over rows p_g is the mean over the group, where groups are of one
size; of F1, AUC and other scores of all rows together it is what the group adds. Two evaluations are of the same rows,
so what they differ by is known better than either: with d_g the differences of their p_g,

    fall = s_best − s_now                error = √(Σ (d_g − mean d)² / (G · (G − 1)))

and a fall beyond two errors is one that other rows of the same kind would mostly show as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import stdev
from typing import TYPE_CHECKING

from zoreward.records import Example, ObjectiveError, Rewind, Scored
from zoreward.registry import Objective
from zoreward.scoring import scores_of

if TYPE_CHECKING:
    from zoreward.trainer.options import ZOConfig

# G: a prime, so that rows in which classes take turns spread over all groups; with fewer rows than that, one each. Of
# fewer than the second number the error says little: it is 0 where two rows fall alike.
GROUPS, LEAST_GROUPS = 17, 8
ERRORS = 2.0
# What learning rates are divided by where a run goes back; where it goes back to the same step once more, having gained
# nothing in between; and how often it goes back.
DIVISOR, AGAIN, MOST = 3.0, 10.0, 4


@dataclass(frozen=True, slots=True)
class Fall:
    """A dev score that has fallen by more than noise.

    Args:
        step: where it was scored.
        score: what it is there.
        best_step: where it was best on the way there, and `best`, what it was there.
        error: the standard error of their difference.
        to: which step to go back to: the best one; or the first weights, where the score is below theirs and that of
            the best step was not above it by more than noise. On imdb-lm-12m such a step was better than the base by
            the prior of the answers, and broken otherwise.
    """

    step: int
    score: float
    best_step: int
    best: float
    error: float
    to: int

    def __str__(self) -> str:
        fallen = f"the dev score fell from {self.best:.4f} after step {self.best_step} to {self.score:.4f}"
        below = ", below that of step 0" if self.to < self.best_step else ""
        return f"step {self.step}: {fallen}, more than {ERRORS:g} standard errors of {self.error:.2g}{below}"


@dataclass(slots=True)
class Brake:
    """What a run's evaluations say of whether it should go back.

    Args:
        most: how often it may; 0: it is not asked.

    >>> brake = Brake(most=4)
    >>> brake.take(0, 0.5, (0.4, 0.5, 0.6))
    >>> brake.take(10, 0.45, (0.45, 0.4, 0.5)); brake.fall([]) is None  # within the noise
    True
    >>> brake.take(20, 0.3, (0.25, 0.3, 0.35)); str(brake.fall([]))
    'step 20: the dev score fell from 0.5000 after step 0 to 0.3000, more than 2 standard errors of 0.029'
    """

    most: int
    _evaluations: list[tuple[int, float, tuple[float, ...]]] = field(default_factory=list)

    def take(self, step: int, score: float, groups: Sequence[float]) -> None:
        """Take in an evaluation: after how many steps, the score, and what each group says of it."""
        self._evaluations.append((step, score, tuple(groups)))

    def groups_at(self, step: int) -> tuple[float, ...]:
        """Return what the groups said at the last evaluation after so many steps; nothing where that is not known."""
        return next((groups for at, _, groups in reversed(self._evaluations) if at == step), ())

    def fall(self, rewinds: Sequence[Rewind]) -> Fall | None:
        """Return how far the score has fallen; None within the noise, or where none is known.

        It is held against the best score on the way to where the run stands, which is not that of a step taken back.

        Args:
            rewinds: where the run has gone back.
        """
        if not self.most or not self._evaluations:
            return None
        way = [one for one in self._evaluations if all(one[0] <= back.to or one[0] > back.step for back in rewinds)]
        if not way:
            return None
        (first_step, first, start), (best_step, best, before) = way[0], max(way, key=lambda one: one[1])
        step, score, now = self._evaluations[-1]
        if not len(now) == len(before) > 1 or best - score <= ERRORS * (error := _error(before, now)):
            return None
        lost = score < first and len(start) == len(before) and best - first <= ERRORS * _error(before, start)
        return Fall(step, score, best_step, best, error, 0 if first_step == 0 and lost else best_step)


def _error(before: Sequence[float], now: Sequence[float]) -> float:
    """The standard error of the difference of two scores, from what the same groups say of them."""
    return stdev(b - n for b, n in zip(before, now, strict=True)) / math.sqrt(len(now))


def rewind_after(fall: Fall, rewinds: Sequence[Rewind]) -> Rewind:
    """Return how a run goes back that has gone back so before.

    >>> fall = Fall(step=20, score=0.3, best_step=0, best=0.5, error=0.03, to=0)
    >>> rewind_after(fall, []).rate * 3, round(rewind_after(fall, [Rewind(10, 0, 1 / 3)]).rate * 30, 6)
    (1.0, 1.0)
    """
    rate, to = (rewinds[-1].rate, rewinds[-1].to) if rewinds else (1.0, None)
    return Rewind(fall.step, fall.to, rate / (AGAIN if to == fall.best_step else DIVISOR))


def rewinds_of(args: ZOConfig, model: str) -> int:
    """Return how often a run may go back: not where the last step is kept, nor where its base cannot be loaded again.

    Args:
        args: the options.
        model: the folder or Hub id of the model, or "".
    """
    if not args.load_best_model_at_end or not model:
        return 0
    return MOST if args.max_rewinds is None else args.max_rewinds


def values_of_groups(objective: Objective, examples: Sequence[Example], scored: Scored) -> tuple[float, ...]:
    """Return p_g of a score; nothing where it has none without some group, or texts are scored all together.

    Args:
        objective: what the rows were scored by; one that gives a number for all rows is called again for each group.
        examples: N rows.
        scored: what came of them.
    """
    count = min(GROUPS, len(examples))
    kept = [[n for n in range(len(examples)) if n % count != group] for group in range(count)]
    if count < LEAST_GROUPS or not scored.returned:
        return ()
    if all(isinstance(found, list) for found in scored.returned.values()):
        lists = scored.returned.items()
        without = [objective.combined({name: [found[n] for n in rows] for name, found in lists}) for rows in kept]
    elif scored.logprobs_NC is None:
        return ()
    else:
        try:
            without = [_score_of(objective, [examples[n] for n in rows], scored.logprobs_NC[rows]) for rows in kept]
        except ObjectiveError:
            return ()
    values = tuple(count * scored.score - (count - 1) * score for score in without)
    return values if all(map(math.isfinite, values)) else ()


def _score_of(objective: Objective, examples: Sequence[Example], logprobs_NC: object) -> float:
    width = max(len(example.candidates) for example in examples)
    [scored] = scores_of(objective, examples, [logprobs_NC[:, :width]])  # type: ignore[index]
    return scored.score
