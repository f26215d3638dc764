"""What follows for transformers' loop from the journal of a run that goes on."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback
from transformers.trainer_callback import DefaultFlowCallback, TrainerControl, TrainerState
from transformers.utils import logging

from zoreward.journal import TRAJECTORY_NAME, load_run
from zoreward.neighbours.of_transformers import is_out_of_patience, recount_patience_
from zoreward.records import StorageError, ZorewardError


class EndsRun(EarlyStoppingCallback):
    """Ends a run whose dev scores get no better, whichever step is kept."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Not transformers' warning that the best step is not kept: that may be what is asked for."""


def count_patience(callbacks: list[Any], args: Any, evaluations: tuple[tuple[int, float], ...]) -> bool:
    """Have early stopping count what the journal has; return whether it stops the run.

    The score before step 1 is the first best one.
    """
    recount_patience_(callbacks, args, [score for _, score in evaluations])
    return is_out_of_patience(callbacks)


# What a line of the journal says elsewhere, or what is no value of the run.
_NOT_BESIDE = ("eval_score", "eval_rows", "eval_runtime")


def told_beside(logged: Mapping[str, float]) -> dict[str, float | None]:
    """Return what is known of an evaluation beside its score; None for what is not finite.

    >>> told_beside({"eval_score": 0.5, "eval_length": 7.0, "eval_kl": float("nan"), "eval_runtime": 0.1, "step": 3})
    {'length': 7.0, 'kl': None}
    """
    names = [name for name in logged if name.startswith("eval_") and name not in _NOT_BESIDE]
    return {name[5:]: float(logged[name]) if math.isfinite(logged[name]) else None for name in names}


def rows_told(train: Sequence[Any], dev: Sequence[Any] | None, provenance: Mapping[str, Any]) -> dict[str, str]:
    """Return how many rows there were and where they come from, by what they were for.

    >>> rows_told([1, 2], None, {"rows": {"tune": "train.jsonl"}})
    {'rows to tune on': '2, train.jsonl'}
    """
    sources = provenance.get("rows", {})
    told = {}
    for name, purpose, rows in (("tune", "rows to tune on", train), ("choose", "dev rows", dev)):
        if rows is not None:
            told[purpose] = ", ".join([f"{len(rows):,}", *([sources[name]] if sources.get(name) else [])])
    if sources.get("test"):
        told["test rows"] = str(sources["test"])
    return told


def save_trajectory(folder: str) -> bool:
    """Write the trajectory of the run in a folder; return whether it could be. If not, that is a warning."""
    try:
        load_run(folder).save(Path(folder, TRAJECTORY_NAME))
    except (OSError, ZorewardError, ValueError) as error:  # the journal has it all
        told = getattr(error, "strerror", None) or str(error)
        logging.get_logger(__name__).warning("%s could not be written: %s.", TRAJECTORY_NAME, told)
        return False
    return True


def due(args: Any, state: TrainerState, per_epoch: int) -> TrainerControl:
    """Return what transformers' loop would do after the last step: `should_log`, `should_evaluate`."""
    control, flow = TrainerControl(), DefaultFlowCallback()
    flow.on_step_end(args, state, control)
    if state.global_step % per_epoch == 0 or state.global_step >= state.max_steps:
        flow.on_epoch_end(args, state, control)
    return control


def storage_error(folder: str, error: OSError) -> StorageError:
    """Return what is said when the run cannot be written down."""
    if not Path(folder).exists():
        return StorageError(f"the run folder '{folder}' is gone", hint="What was in it is lost: begin anew.")
    return StorageError(f"'{folder}' cannot be written: {error.strerror}", hint="Make room there, and resume the run.")


@contextlib.contextmanager
def told_where(folder: str) -> Iterator[None]:
    """Say what cannot be written, and what to do."""
    try:
        yield
    except OSError as error:
        raise storage_error(folder, error) from error
