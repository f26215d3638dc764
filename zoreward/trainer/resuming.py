"""What a run folder says of a run that goes on: its weights, its state, and what is due; and what is written there."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import EarlyStoppingCallback
from transformers.trainer_callback import DefaultFlowCallback, TrainerControl, TrainerState
from transformers.utils import logging

from zoreward.journal import (
    TRAJECTORY_NAME,
    StoredRun,
    advance,
    checked_base,
    load_run,
    read_snapshot,
    write_trajectory,
)
from zoreward.journal.stored import OVER_MAX_KL
from zoreward.neighbours.of_transformers import is_out_of_patience, recount_patience_
from zoreward.records import InputError, StorageError, ZorewardError
from zoreward.scoring import load_model, load_with_head
from zoreward.trainer.ready import Ready

if TYPE_CHECKING:
    from zoreward.trainer.options import ZOConfig


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


def new_state(args: ZOConfig, batches: int) -> tuple[TrainerState, int]:
    """Return what transformers' callbacks know before step 1, and the steps of an epoch.

    Args:
        args: the options.
        batches: of an epoch; `gradient_accumulation_steps` of them are a step.
    """
    per_epoch = max(1, math.ceil(batches / args.gradient_accumulation_steps))
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * per_epoch)
    state = TrainerState(train_batch_size=args.train_batch_size, max_steps=steps)
    state.num_train_epochs = math.ceil(steps / per_epoch)
    state.compute_steps(args, steps)
    return state, per_epoch


def state_after_run(args: ZOConfig, batches: int, run: StoredRun) -> tuple[TrainerState, int]:
    """Return what transformers' callbacks know after the steps of a run, and the steps of an epoch."""
    state, per_epoch = new_state(args, batches)
    state.global_step, state.epoch = run.n_steps, run.n_steps / per_epoch
    for (step, score), metrics in zip(run.evaluations, run.metrics, strict=True):
        if step or args.eval_on_start:  # what is scored before the loop begins, it does not know
            more = {f"eval_{name}": value for name, value in metrics.items() if value is not None}
            state.log_history.append({"eval_score": score, **more, "epoch": step / per_epoch, "step": step})
        if not metrics.get(OVER_MAX_KL) and (state.best_metric is None or score > state.best_metric):
            state.best_metric, state.best_global_step = score, step
    return state, per_epoch


def move_to(ready: Ready, run: StoredRun, step: int, args: ZOConfig, *, from_base: bool) -> None:
    """Put the weights of a step in the place of those of the model.

    Args:
        ready: the model.
        run: the run.
        step: how many steps.
        args: the options of the run.
        from_base: whether the model stands at the weights that the run began with.

    Raises:
        InputError: the base weights are needed, and cannot be loaded or are others.
    """
    start = 0
    try:
        start = read_snapshot(args.output_dir, ready.tuned.weights, run, step)
    except ValueError as error:
        if from_base:  # else it may well be of a later step than the best one
            logging.get_logger(__name__).warning("The snapshot is not used: %s.", error)
    if not start and not from_base:
        put_base_back_(ready, run, args)
    advance(run, ready.model, ready.tuned, start, step)


@torch.no_grad()
def put_base_back_(ready: Ready, run: StoredRun, args: ZOConfig) -> None:
    """Load the weights that a run began with, again, and put them in the place of those of its model.

    Raises:
        InputError: they cannot be loaded, or are others; the model is as it was.
    """
    place: dict[str, Any] = {
        "dtype": run.header["dtype"],
        "device": "cpu",
        "trust_remote_code": args.trust_remote_code,
    }
    try:
        if ready.head.is_new:
            base, _ = load_with_head(ready.source, ready.head.classes, args.seed, **place)
        else:
            base = load_model(ready.source, **place)
        _, fresh = checked_base(run, base)
    except ZorewardError as error:
        raise InputError(
            f"the base weights for the best step cannot be loaded again from '{ready.source}': {error}",
            hint=f"zoreward replay {args.output_dir} --step {run.best_step} makes them from another copy.",
        ) from error
    for canonical, weight in ready.tuned.weights.items():
        whole = fresh.weights[canonical]
        weight.copy_(ready.division.own(canonical, whole, weight) if ready.division else whole)


def due(args: Any, state: TrainerState, per_epoch: int) -> TrainerControl:
    """Return what transformers' loop would do after the last step: `should_log`, `should_evaluate`."""
    control, flow = TrainerControl(), DefaultFlowCallback()
    flow.on_step_end(args, state, control)
    if state.global_step % per_epoch == 0 or state.global_step >= state.max_steps:
        flow.on_epoch_end(args, state, control)
    return control


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
        write_trajectory(load_run(folder), Path(folder, TRAJECTORY_NAME))
    except (OSError, ZorewardError, ValueError) as error:  # the journal has it all
        told = getattr(error, "strerror", None) or str(error)
        logging.get_logger(__name__).warning("%s could not be written: %s.", TRAJECTORY_NAME, told)
        return False
    return True


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
