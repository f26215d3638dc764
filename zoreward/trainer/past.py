"""What follows for transformers' loop from the journal of a run that goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from transformers import EarlyStoppingCallback
from transformers.trainer_callback import DefaultFlowCallback, TrainerControl, TrainerState

from zoreward.records import StorageError


def count_patience(callbacks: list[Any], args: Any, evaluations: tuple[tuple[int, float], ...]) -> bool:
    """Have early stopping count what the journal has; return whether it stops the run.

    The score before step 1 is the first best one.
    """
    stopped = False
    for callback in callbacks:
        if isinstance(callback, EarlyStoppingCallback):
            callback.early_stopping_patience_counter, best = 0, None
            for _, score in evaluations:
                callback.check_metric_value(args, SimpleNamespace(best_metric=best), None, score)
                best = score if best is None else max(best, score)
            stopped |= callback.early_stopping_patience_counter >= callback.early_stopping_patience
    return stopped


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
