"""A run whose steps move nothing: how many such steps are to be expected, why all are so, and what to try."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from inspect import signature

import numpy as np

from zoreward.methods import Method
from zoreward.noise import SeedIndex, derive_seed
from zoreward.records import Example, StepRecord, Writing
from zoreward.registry import Objective
from zoreward.scoring import Engine, candidate_logprobs, scores_of, share_that_differs
from zoreward.trainer.inputs import one_answer
from zoreward.trainer.run import Run

# Equal scores by which an objective counts as constant: fewer may be so by chance.
ENOUGH = 16
# How many steps the share of silent ones is expected from, at least, and on how many rows; the share below which
# nothing is said of it; and the steps of a run that are too few to ask.
SAMPLES, ROWS, MUCH, LEAST_STEPS = 12, 64, 0.25, 200
_SMOOTH = "a smooth objective such as neg-cross-entropy"


def steps_before_look(steps: int) -> int:
    """Return after how many silent steps a run says why.

    >>> [steps_before_look(steps) for steps in (5, 300, 20_000)]
    [20, 30, 50]
    """
    return min(max(20, steps // 10), 50)


def steps_before_end(steps: int) -> int:
    """Return after how many steps, all of them silent, a run ends itself.

    >>> [steps_before_end(steps) for steps in (5, 300, 20_000)]
    [100, 100, 4000]
    """
    return max(100, steps // 5)


@dataclass(frozen=True, slots=True)
class Advice:
    """Why no step moves anything, and what to try: a sentence without its full stop.

    Args:
        why: no step does.
        hint: what to try.
        by_scores: whether it is the objective's doing, which has no score, or one for all members, though they differ.
    """

    why: str
    hint: str
    by_scores: bool = False


def why_silent(run: Run, records: Iterable[StepRecord], *, may_look: bool = True) -> Advice:
    """Return why no step has moved anything, as far as rows, texts, scores and one more look at members tell.

    Where answers are given, it is looked whether those of the next step's members differ on the rows of the last.

    Args:
        run: stands behind such a step.
        records: all its steps.
        may_look: whether forward passes for one more look may be taken.
    """
    assert run.last is not None
    objective, rows, eps = run.objective, run.last.rows, run.method.eps
    scores = [score for record in records for score in record.scores if not math.isnan(score)]
    values = set(scores)
    if not values:
        if objective.needs == "choices" and one_answer(rows) is not None:
            why = f"batches of {len(rows)} rows hold rows of one answer, on which {objective.name!r} has no score"
            return Advice(why, "Take a larger --batch-size", True)
        why = f"{objective.name!r} has no score on the rows of any step"
        return Advice(why, "See what it returns: None or NaN leaves a row out; or take a larger --batch-size", True)
    constant = f"every score is {next(iter(values)):g}" if len(values) == 1 else ""
    is_constant = bool(constant) and len(scores) >= ENOUGH
    written = [member for member in run.last.scored if isinstance(member, Writing)]
    if objective.needs == "completions":  # a rank may have none: then another one tells
        if written and not share_that_differs([[text.text for text in member.completions] for member in written]):
            hint = f"Take an --eps above {eps:g}, longer texts (--max-new-tokens), or --temperature 1"
            return Advice("all members write the same texts", hint)
        why = constant or "the texts of all members are worth the same"
        hint = "Take a reward that tells these texts apart, prompts of which some succeed, or a larger --batch-size"
        return Advice(why, hint, is_constant)
    if not may_look:
        return Advice(constant or "all members score the same", f"Take a larger --eps or --batch-size, or {_SMOOTH}")
    logprobs_MNC = candidate_logprobs(run.scorer.engine, rows, run.method.ask(run.state).parts[0])
    answers_MN = logprobs_MNC.argmax(axis=2) if objective.needs == "choices" else logprobs_MNC[:, :, 0]
    if (answers_MN == answers_MN[0]).all():
        why = f"the answers to a batch of {len(rows)} rows are the same for all members at eps {eps:g}"
        return Advice(why, f"Take a larger --eps or --batch-size, or {_SMOOTH}")
    if constant:
        return Advice(
            f"{constant}, whatever members answer", "See what the objective returns, or take other rows", is_constant
        )
    why = f"{objective.name!r} moves in coarse steps on the {len(rows)} rows of a batch, and members score the same"
    return Advice(why, f"Take a larger --batch-size or --eps, or {_SMOOTH}")


def trial_rows(method: Method, objective: Objective, examples: int, rows: int) -> int:
    """Return how many rows members read in `expected_share`; 0 where it returns None."""
    parts = [set(signature(part.function).parameters) for _, part in objective.parts or ((1.0, objective),)]
    counts = all("predictions" in names and names.isdisjoint(("logprobs", "logprob_sums")) for names in parts)
    drawn, rows = min(ROWS, examples), min(rows, examples)
    query = method.ask(method.init())
    if not counts or objective.needs != "choices" or rows > ROWS or query.rows_per_direction:
        return 0
    return -(-SAMPLES // (drawn // rows)) * drawn * len(query.members)


def expected_share(
    engine: Engine, method: Method, objective: Objective, examples: Sequence[Example], rows: int
) -> float | None:
    """Return which share of steps will be silent, from some steps that are scored and not done.

    Args:
        engine: the model, which stands at the weights that the run begins with.
        method: of the run; it is asked with seeds of their own.
        objective: None is returned unless it counts: all its parts take the answers, none how likely they are; or where
            directions have rows of their own, of which some nearly always turn.
        examples: the rows to tune on; some are drawn.
        rows: of a batch; None is returned where there are more than are looked at.
    """
    rows = min(rows, len(examples))
    if not trial_rows(method, objective, len(examples), rows):
        return None
    other = replace(method, seed=derive_seed(method.seed, 0, SeedIndex.SILENCE))
    draw = np.random.default_rng(other.seed)  # files are often sorted, and a run's batches are not
    drawn = [examples[n] for n in draw.permutation(len(examples))[:ROWS]]
    batches = len(drawn) // rows
    silent = []
    for step in range(-(-SAMPLES // batches)):
        state = replace(other.init(), step=step)
        query = other.ask(state)
        logprobs_MNC = candidate_logprobs(engine, drawn, query.members)
        for chosen in draw.permutation(len(drawn))[: batches * rows].reshape(batches, rows):
            batch = [drawn[n] for n in chosen]
            width = max(len(example.candidates) for example in batch)
            of_batch = scores_of(objective, batch, list(logprobs_MNC[:, chosen, :width]))
            _, after = other.tell(state, query, [member.score for member in of_batch], lr=1.0)
            silent.append(after.silent - state.silent)
    return float(np.mean(silent))
