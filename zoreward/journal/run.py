"""`Run`: what a journal or a trajectory tells."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zoreward.journal.lines import number, shown, whole
from zoreward.methods.steps import ROUNDING_INDEX
from zoreward.noise import NOISE_VERSION, derive_seed
from zoreward.records import InputError, StepRecord, Update, to_float32

MAX_RANK = 4096
MAX_DIRECTIONS = 1 << 20


@dataclass(frozen=True, slots=True)
class Run:
    """A stored run. Its steps are read when they are asked for, so that a run takes no more memory than its file.

    Args:
        header: whatever the steps depend on.
        n_steps: how many steps there are.
        record: step → its `StepRecord`. Read from a trajectory it has no scores.
        evaluations: (steps done, score) of each evaluation, in order; a trajectory has none.

    Example:
        >>> run = load_run("runs/sst2")  # doctest: +SKIP
        >>> run.projected_grads(0)  # doctest: +SKIP
        [0.8341]
    """

    header: dict[str, Any]
    n_steps: int
    record: Callable[[int], StepRecord] = field(repr=False)
    evaluations: tuple[tuple[int, float], ...] = ()

    @property
    def streams(self) -> dict[str, int]:
        """Canonical name → stream, of each tuned weight."""
        streams: dict[str, int] = self.header["streams"]
        return streams

    @property
    def best_step(self) -> int | None:
        """After how many steps the score was best, the first such; None where nothing was evaluated."""
        return max(self.evaluations, key=lambda one: one[1])[0] if self.evaluations else None

    def updates(self, steps: int, start: int = 0) -> Iterator[Update]:
        """Yield what the steps from `start` up to `steps` (not included) did to the weights."""
        return (self.record(step).update for step in range(start, steps))

    def projected_grads(self, step: int) -> list[float] | None:
        """Return g_K of a step: the slope of the score along each direction; None where the file does not tell.

            g_k = (s(θ + ε z_k) − s(θ − ε z_k)) / 2ε

        A journal has the scores of SPSA. A trajectory has the coefficients: g_k = coefficient · K / lr, to the
        precision of float32, unless the scores were normalised or lr is 0.

        Args:
            step: counts from 0.

        Raises:
            InputError: there is no such step.
        """
        if not 0 <= step < self.n_steps:
            raise InputError(f"there is no step {step}: the run has {self.n_steps}", hint="The first one is step 0.")
        record, drawn = self.record(step), directions(self.header)
        if drawn is None or self.header["method"].get("name") != "spsa":
            return None
        method, scores, count = self.header["method"], record.scores, drawn.per_step
        eps = method.get("eps")
        if len(scores) == 2 * count and number(eps) and to_float32(eps) > 0:
            return [(scores[m] - scores[m + 1]) / (2 * to_float32(eps)) for m in range(0, len(scores), 2)]
        if scores or method.get("normalize", "none") != "none" or record.lr == 0:
            return None
        slopes = [0.0] * count
        for k, term in zip(places(drawn, record), record.update.terms, strict=True):
            slopes[k] = term.coefficient * count / record.lr
        return slopes

    def save(self, path: str | Path) -> None:
        """Write the run as a trajectory: a safetensors file with 4 bytes a direction and step; see docs/journal.md.

        Args:
            path: the file; replaced where it exists.

        Raises:
            InputError: a step has terms that do not follow from the run's seed.
            OSError: it cannot be written.
        """
        from zoreward.journal.trajectory import write_trajectory

        write_trajectory(self, path)


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
    if header.get("dtype") not in ("float64", "float32", "bfloat16", "float16"):
        raise InputError("its header does not say the weights' dtype", hint="Ask whoever wrote it for another copy.")


@dataclass(frozen=True, slots=True)
class Directions:
    """What the directions of a run derive from: its seed, their number K a step, and their rank."""

    seed: int
    per_step: int
    rank: int


def directions(header: dict[str, Any]) -> Directions | None:
    """Return what a run's directions derive from; None where its header does not tell."""
    method = header.get("method")
    if not isinstance(method, dict):
        return None
    seed, count, rank = method.get("seed"), method.get("num_directions"), method.get("rank", 0)
    if not (whole(seed, 2**64) and whole(count, MAX_DIRECTIONS) and count and whole(rank, MAX_RANK + 1)):
        return None
    return Directions(seed, count, rank)


def places(drawn: Directions, record: StepRecord) -> list[int]:
    """Return k for each term of a step: which of the step's directions it moves along, in ascending order.

    Raises:
        InputError: a term that is none of them.
    """
    update, found, k = record.update, [], 0
    for term in update.terms:
        while k < drawn.per_step and derive_seed(drawn.seed, record.step, k) != term.seed:
            k += 1
        if k == drawn.per_step or term.rank != drawn.rank:
            raise InputError(f"step {record.step} has terms that do not follow from the seed", hint="Keep the journal.")
        found.append(k)
        k += 1
    if update.rounding_seed != derive_seed(drawn.seed, record.step, ROUNDING_INDEX):
        raise InputError(f"step {record.step} was not rounded by the run's seed", hint="Keep the journal.")
    return found
