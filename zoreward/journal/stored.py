"""`StoredRun`: what a journal or a trajectory tells."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from zoreward.journal.bounds import check_made, check_method, directions
from zoreward.journal.lines import number, shown, whole
from zoreward.methods import Directions
from zoreward.methods.directions import MAX_BLOCKS
from zoreward.noise import NOISE_VERSION
from zoreward.records import InputError, Rewind, StepRecord, Update, to_float32

OVER_MAX_KL = "over_max_kl"
"""Stands beside the score of a model that has moved farther than was allowed: it is not the best step."""


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A stored run. Its steps are read when they are asked for, so that a run takes no more memory than its file.

    Args:
        header: whatever the steps depend on.
        n_steps: how many steps there are.
        record: step → its `StepRecord`. Read from a trajectory it has no scores.
        evaluations: (steps done, score) of each evaluation, in order; a trajectory has none.
        metrics: what else is known of each evaluation, by name; None of what was not finite.
        groups: what each group of rows says of each evaluation's score, by which its noise is told; empty where the
            file does not tell.
        rewinds: where the run went back to an earlier step, in order. "After so many steps" means behind one there.

    Example:
        >>> run = load_run("runs/sst2")  # doctest: +SKIP
        >>> run.projected_grads(0)  # doctest: +SKIP
        [0.8341]
    """

    header: dict[str, Any]
    n_steps: int
    record: Callable[[int], StepRecord] = field(repr=False)
    evaluations: tuple[tuple[int, float], ...] = ()
    metrics: tuple[dict[str, float | None], ...] = ()
    groups: tuple[tuple[float, ...], ...] = ()
    rewinds: tuple[Rewind, ...] = ()

    @property
    def streams(self) -> dict[str, int]:
        """Canonical name → stream, of each tuned weight."""
        streams: dict[str, int] = self.header["streams"]
        return streams

    @property
    def best_step(self) -> int | None:
        """After how many steps the score was best within the bound of the KL, the first such; None without scores."""
        return max(self.within_bound, key=lambda one: one[1])[0] if self.evaluations else None

    @property
    def within_bound(self) -> tuple[tuple[int, float], ...]:
        """The evaluations of a model that had not moved too far; all of them where every one had.

        >>> StoredRun({}, 9, None, ((0, 0.5), (9, 0.7)), metrics=({}, {OVER_MAX_KL: 1.0})).best_step
        0
        """
        pairs = zip(self.evaluations, self.metrics, strict=True)
        return tuple(one for one, metrics in pairs if not metrics.get(OVER_MAX_KL)) or self.evaluations

    def has_moved_by(self, steps: int) -> bool:
        """Whether any of the first `steps` moved a weight: at a learning rate of 0, or where all tie, none does."""
        return any(map(moves, self.updates(min(steps, self.n_steps))))

    def path(self, steps: int) -> list[int]:
        """Return which steps made the weights that stood there after `steps`, in their order.

        All of them, but for those that a rewind took back.

        >>> from zoreward.records import Rewind
        >>> StoredRun({}, 9, None, rewinds=(Rewind(4, 2, 0.5), Rewind(8, 6, 0.25))).path(9)
        [0, 1, 4, 5, 8]
        """
        spans = []
        for rewind in reversed(self.rewinds):
            if rewind.step <= steps:
                spans.append(range(rewind.step, steps))
                steps = rewind.to
        return [step for span in (range(steps), *reversed(spans)) for step in span]

    def leads(self, start: int, steps: int) -> bool:
        """Whether the weights after `start` steps are on the way to those after `steps`."""
        before, path = self.path(start), self.path(steps)
        return path[: len(before)] == before

    def updates(self, steps: int, start: int = 0) -> Iterator[Update]:
        """Yield what leads from the weights after `start` steps, which are on the way, to those after `steps`."""
        return (self.record(step).update for step in self.path(steps)[len(self.path(start)) :])

    def records(self) -> Iterator[StepRecord]:
        """Yield what happened in each step."""
        return map(self.record, range(self.n_steps))

    def projected_grads(self, step: int) -> list[float] | None:
        """Return g_K of a step: the slope of the score along each direction; None where the file does not tell.

        NaN along a direction of which a member has no score.

            g_k = (s(θ + ε z_k) − s(θ − ε z_k)) / 2ε

        A journal has the scores of couples. A trajectory has the coefficients: g_k = coefficient · K / lr, to the
        precision of float32, unless the scores were normalised, there was momentum, or lr is 0.

        Args:
            step: counts from 0.

        Raises:
            InputError: there is no such step.
        """
        if not 0 <= step < self.n_steps:
            raise InputError(f"there is no step {step}: the run has {self.n_steps}", hint="The first one is step 0.")
        record, drawn = self.record(step), directions(self.header)
        if drawn is None or "normalize" not in self.header["method"]:  # another kind of members than SPSA's
            return None
        method, scores, count = self.header["method"], record.scores, drawn.drawn(step)
        eps = method.get("eps")
        if len(scores) == 2 * count and number(eps) and to_float32(eps) > 0:
            return [(scores[m] - scores[m + 1]) / (2 * to_float32(eps)) for m in range(0, len(scores), 2)]
        if scores or method["normalize"] != "none" or drawn.momentum or record.lr == 0:
            return None
        return [(own or 0.0) * count / record.lr for own in own_coefficients(drawn, record)]

    def gradient(self, step: int, model: Any) -> Any:
        """Return the gradient of the score that a step saw: a mapping from names of weights to tensors.

            ĝ = 1/K Σ_k g_k z_k,    with g_K of `projected_grads`

        A tensor is made when it is asked for. Its mean over directions is the gradient at θ_t, as far as they move the
        weights; a step without momentum or normalisation was lr · ĝ.

        Args:
            step: counts from 0.
            model: with the run's tuned weights, whatever their values: its base, or what `replay` returns.

        Raises:
            InputError: there is no such step, its file tells no slopes, or the model has other weights.

        Example:
            >>> run.gradient(3, model)["model.norm.weight"]  # doctest: +SKIP
            tensor([ 0.0137, -0.0021, …])
        """
        from zoreward.journal.gradients import gradient_of  # not above: who reads a run waits for no torch

        return gradient_of(self.header, step, self.projected_grads(step), model)


def rewind_of(step: int, to: Any, rate: Any, before: Sequence[Rewind]) -> Rewind:
    """Return what a file tells of a rewind.

    Args:
        step: how many steps were done.
        to: the step that it leads to.
        rate: by what learning rates are multiplied from then on.
        before: the rewinds before it.

    Raises:
        ValueError: it is none.
    """
    if not (whole(to, step) and number(rate) and rate > 0):
        raise ValueError("it does not say which step the run went back to, and how it went on")
    if before and not before[-1].step < step:
        raise ValueError("there is no step since the run went back before")
    return Rewind(step, to, float(rate))


def moves(update: Update) -> bool:
    """Whether an update moves any weight.

    >>> from zoreward.records import Term
    >>> moves(Update(0.0, (Term(7, 0.0),), 0)), moves(Update(0.0, (Term(7, 0.5),), 0))
    (False, True)
    """
    return bool(update.decay or update.anchor or any(term.coefficient for term in update.terms))


def check_header(header: dict[str, Any]) -> None:
    """Check what a replay reads of a header.

    Raises:
        InputError: something is missing, or not what it should be.
    """
    version = header.get("noise_version")
    if version != NOISE_VERSION or type(version) is not int:
        raise InputError(
            f"its noise version is {shown(version)}, not {NOISE_VERSION}", hint="Take the zoreward that wrote it."
        )
    streams = header.get("streams")
    if not (isinstance(streams, dict) and all(whole(stream, 2**32) for stream in streams.values())):
        raise InputError("its header has no table of streams", hint="Ask whoever wrote it for another copy.")
    if not re.fullmatch("[0-9a-f]{64}", str(header.get("fingerprint"))):
        raise InputError("its header has no fingerprint", hint="Ask whoever wrote it for another copy.")
    limits = header.get("limits", dict.fromkeys(streams, 0.0))
    if not (isinstance(limits, dict) and limits.keys() == streams.keys() and all(map(number, limits.values()))):
        raise InputError("its limits are not those of its weights", hint="Ask whoever wrote it for another copy.")
    _check_blocks(header)
    check_method(header)
    check_made(header)
    if header.get("dtype") not in ("float64", "float32", "bfloat16", "float16"):
        raise InputError("its header does not say the weights' dtype", hint="Ask whoever wrote it for another copy.")


def _check_blocks(header: dict[str, Any]) -> None:
    """Check that the weights are cut into the blocks that the method has.

    Raises:
        InputError: they are not.
    """
    method = header.get("method")
    count = method.get("blocks", 0) if isinstance(method, dict) else 0
    blocks = header.get("blocks", {})
    sound = whole(count, MAX_BLOCKS + 1) and isinstance(blocks, dict)
    sound = sound and all(whole(block, count) for block in blocks.values())
    sound = sound and set(blocks.values()) == set(range(count))
    if not (sound and blocks.keys() == (header["streams"].keys() if count else set())):
        raise InputError("its blocks are not those of its weights", hint="Ask whoever wrote it for another copy.")


def own_coefficients(drawn: Directions, record: StepRecord, past: Sequence[Sequence[float]] = ()) -> list[float | None]:
    """Return a step's coefficient along each of its directions, from which all its terms follow; None without a term.

    Args:
        drawn: what the run's directions derive from.
        record: the step.
        past: the coefficients of the steps before it that count, the newest first, 0 where there was no term.

    Raises:
        InputError: a term that does not follow.
    """
    update, step = record.update, record.step
    older = drawn.older(step, past)
    end = len(update.terms) - len(older)
    found: list[float | None] = [None] * drawn.size(step)
    ways, k = drawn.at(step), 0
    for term in update.terms[: max(end, 0)]:
        while k < len(ways) and ways[k].direction != term.direction:
            k += 1
        if k == len(ways):
            break
        found[k] = term.coefficient
        k += 1
    if update.terms != drawn.own(step, found) + older:
        raise InputError(f"step {step} has terms that do not follow from the seed", hint="Keep the journal.")
    if update.block != drawn.block(step):
        raise InputError(f"step {step} moves another block than the seed says", hint="Keep the journal.")
    if update.rounding_seed != drawn.rounding_seed(step):
        raise InputError(f"step {step} was not rounded by the run's seed", hint="Keep the journal.")
    return found
