"""A run that can be left and taken up again: the journal says where it stood, and transformers' loop goes on there."""

from __future__ import annotations

import contextlib
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerControl, TrainerState
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from zoreward.journal import (
    JOURNAL_NAME,
    Journal,
    Run,
    advance,
    load_run,
    read_snapshot,
    reopen,
    write_snapshot,
)
from zoreward.journal.card import CARD_NAME, Told, write_card
from zoreward.journal.disk import remove, sync_all
from zoreward.members import has_adapter
from zoreward.methods import SPSAState, state_after
from zoreward.records import InputError, StepRecord
from zoreward.trainer.comparing import options_of, refuse_other_run
from zoreward.trainer.keeper import Keeper
from zoreward.trainer.optimizer import no_gradients_to_clear, old_objects_left_alone
from zoreward.trainer.past import (
    count_patience,
    due,
    rows_told,
    save_trajectory,
    storage_error,
    told_beside,
    told_where,
)
from zoreward.trainer.ready import Ready, header_of, put_base_back_

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from zoreward.registry import Objective
    from zoreward.scoring import Scorer
    from zoreward.trainer.drift import Drift

logger = logging.get_logger(__name__)


class ResumableTrainer(Trainer):
    """What of `ZOTrainer` is about leaving a run and going on with it.

    Attributes:
        ready: the model, and where it came from.
        keeper: the callback that asks for snapshots; `keeper.stopping = True` ends the run after the step at hand.
        kept_step: after how many steps the model stands, once a run is over.
        header: of the journal, from the beginning of a run on; empty before.
        provenance: what the card of the model says beside what the trainer knows: `rows`, where those to `tune` on, to
            `choose` by and to `test` on come from; `scores`, what else was measured, by name; and `command`.
        begun_with_a_score: whether the journal of a run that goes on has a score from before step 1.
    """

    args: Any
    control: Any
    keeper: Keeper
    method_state: SPSAState
    last_step: StepRecord | None
    method: Any
    objective: Objective
    drift: Drift | None
    scorer: Scorer
    kept_step: int
    header: dict[str, Any]
    provenance: dict[str, Any]
    ready: Ready
    begun_with_a_score: bool
    _journal: Journal | None
    _finished: bool
    _bound: Callable[[float], None]

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Tune the model; see `transformers.Trainer.train`.

        Args:
            resume_from_checkpoint: True, or the output folder, to go on with the run in it from its last step; see
                `resume`. Where there is none yet, it begins.
            kwargs: for `transformers.Trainer.train`.

        Raises:
            InputError: the run folder holds a run that is not to be resumed, or that cannot be.
            StorageError: the journal cannot be written; the weights are those of its last step.
        """
        if resume_from_checkpoint and self._journal is None:
            self.resume(resume_from_checkpoint)
        if self._journal is None:
            self._begin()
        assert self._journal is not None
        with self._journal, no_gradients_to_clear(self.model), old_objects_left_alone():
            try:
                output = self._rest_of_run(**kwargs)
                if self.kept_step < 0:
                    self.kept_step = self.method_state.step
                save_trajectory(self.args.output_dir)
            finally:
                self._journal = None
        return output

    @contextlib.contextmanager
    def holding_run(self) -> Iterator[None]:
        """Open the run, unless `resume` has, and keep other processes from it until the block is left.

        `train` holds the run while it lasts; this is for what belongs to it before and behind that: its model, say.

        Raises:
            InputError: the folder holds a run already, or another process is at work on it.
        """
        if self._journal is None:
            self._begin()
        assert self._journal is not None
        with self._journal.held():
            try:
                yield
            finally:
                if self._journal is not None:  # `train` was not reached
                    self._journal.close()
                    self._journal = None

    def _begin(self) -> None:
        """Open a journal in a folder that has none."""
        if self.method_state.step:
            raise InputError("this trainer has done its run", hint="Make a new ZOTrainer for another.")
        self.header = self._journal_header()
        try:
            self._journal = Journal(self.args.output_dir, self.header)
        except FileExistsError as error:
            raise InputError(
                f"'{self.args.output_dir}' holds a run already ({JOURNAL_NAME})",
                hint="Choose another folder, or go on with it: --resume, in Python resume_from_checkpoint=True.",
            ) from error
        except OSError as error:
            raise storage_error(self.args.output_dir, error) from error
        self._keep_start()
        for log in self.state.log_history:  # scored before step 1
            if "eval_score" in log:
                self._write_evaluation(log["step"], log)

    def _keep_start(self) -> None:
        """Save the prefix that the run begins with, where it is one that the run made."""
        if self.ready.start:
            with told_where(self.args.output_dir):
                self.model.save_pretrained(self.ready.start)
                remove(Path(self.ready.start, CARD_NAME))  # PEFT's, which says nothing true
                sync_all(self.ready.start)

    def _write_step(self, record: StepRecord) -> None:
        assert self._journal is not None
        with told_where(self.args.output_dir):
            self._journal.append(record)

    def _write_evaluation(self, step: int, logged: Mapping[str, float]) -> None:
        assert self._journal is not None
        with told_where(self.args.output_dir):
            self._journal.append_evaluation(step, logged["eval_score"], told_beside(logged))

    def _journal_header(self) -> dict[str, Any]:
        rows = (self.train_dataset, self.eval_dataset)
        return {**header_of(self.ready, self.objective, self.method, self.args, *rows), "unit": self.scorer.engine.unit}

    def resume(self, run_folder: str | Path | Literal[True] = True) -> int:
        """Go to where the run in the output folder ended; `train` goes on from there.

        The model must stand at the weights that the run began with. An evaluation that was due is made up for. Where
        the run has not done a step, it begins anew.

        Args:
            run_folder: the output folder; True means the same.

        Returns:
            The steps that are done.

        Raises:
            InputError: the run is of something else, another process is at work on it, or its journal is damaged; the
                model and the run are as they were.
        """
        folder = self.args.output_dir
        if run_folder is not True and Path(run_folder).absolute() != Path(folder).absolute():
            raise InputError(f"'{run_folder}' is not the output folder", hint=f"Set output_dir={str(run_folder)!r}.")
        if (found := reopen(folder)) is None:
            return 0
        self._journal, run = found
        if run is not None and "rows" not in run.header["method"]:  # by a zoreward that divided by less than half a row
            self.method = replace(self.method, rows=0)
        try:
            self.header = self._journal_header()
            if run is None or (not run.n_steps and not self._same_run(run)):
                self._journal.begin(self.header)
                self._keep_start()
                return 0
            refuse_other_run(folder, run.header, self.header)
            if not run.n_steps:  # a kill may have come between the header and the prefix
                self._keep_start()
            self._take_up(run)
        except BaseException:
            self._journal.close()
            self._journal = None
            raise
        return run.n_steps

    def _same_run(self, run: Run) -> bool:
        try:
            refuse_other_run(self.args.output_dir, run.header, self.header)
        except InputError:
            return False
        return True

    def _take_up(self, run: Run) -> None:
        """Set weights, method and state to where a run ended."""
        state, per_epoch = self._state_after(run)
        if run.n_steps > state.max_steps:
            raise InputError(
                f"the run in '{self.args.output_dir}' has done {run.n_steps} steps, more than {state.max_steps}",
                hint="Ask for as many at least, or replay it up to a step.",
            )
        if self.header["versions"] != run.header.get("versions"):
            logger.warning("The run began with other versions of its libraries: its scores may differ in the last bit.")
        unit = run.header.get("unit") or {}  # of a run of 0.1.0: nothing
        self.scorer = replace(self.scorer, engine=self.scorer.reader.cut_as(unit))
        self._move_to(run, run.n_steps, from_base=True)
        self.method_state = state_after(self.method, run.records())
        self.last_step = run.record(run.n_steps - 1) if run.n_steps else None
        self.state, self.args.eval_on_start = state, self.args.eval_on_start and not run.n_steps
        first_scores = [score for step, score in run.evaluations if step == 0]
        self.begun_with_a_score = bool(first_scores)
        self.keeper.first_score = first_scores[0] if first_scores else None
        stopped = count_patience(self.callback_handler.callbacks, self.args, run.evaluations)
        if run.n_steps:
            self._make_up(run, due(self.args, state, per_epoch))
        self._finished = stopped or self.control.should_training_stop or run.n_steps >= state.max_steps

    def _make_up(self, run: Run, control: TrainerControl) -> None:
        """Do what was due after the last step and may be missing: measure the drift that ends a run, and evaluate."""
        evaluated = any(step == run.n_steps for step, _ in run.evaluations)
        if self.drift and self.args.max_kl is not None:
            if control.should_log:
                self._bound(self.drift.measured(self.scorer, seed=self.args.seed)["kl"])
            if evaluated and self.objective.needs == "completions":
                [scored] = self.scorer.score(self.eval_dataset, seed=self.args.seed, trainer_state=self.state)
                of = {"scored": scored, "of": self.eval_dataset}
                self._bound(self.drift.measured(self.scorer, seed=self.args.seed, **of)["kl"])
        wanted = control.should_evaluate or self.control.should_evaluate
        if self.eval_dataset is not None and wanted and not evaluated:
            self._determine_best_metric(self.evaluate(), trial=None)

    def _state_after(self, run: Run) -> tuple[TrainerState, int]:
        """What transformers' loop knows after the steps of a run, and the steps of an epoch."""
        _, per_epoch, *_, max_steps = self.set_initial_training_values(self.args, self.get_train_dataloader())
        state = TrainerState(train_batch_size=self._train_batch_size, max_steps=max_steps)
        state.compute_steps(self.args, max_steps)
        state.global_step, state.epoch = run.n_steps, run.n_steps / per_epoch
        for (step, score), metrics in zip(run.evaluations, run.metrics, strict=True):
            if step or self.args.eval_on_start:  # what is scored before the loop begins, it does not know
                more = {f"eval_{name}": value for name, value in metrics.items() if value is not None}
                state.log_history.append({"eval_score": score, **more, "epoch": step / per_epoch, "step": step})
            if state.best_metric is None or score > state.best_metric:
                state.best_metric, state.best_global_step = score, step
        return state, per_epoch

    def _rest_of_run(self, **kwargs: Any) -> Any:
        """Run transformers' loop from where the state stands."""
        if self._finished:
            logger.warning("The run in '%s' is finished: %d steps.", self.args.output_dir, self.state.global_step)
            if self.args.load_best_model_at_end:
                self._load_best_model()
            return TrainOutput(self.state.global_step, 0.0, {})
        if not self.method_state.step:
            return super().train(**kwargs)
        # Of a checkpoint the loop needs the state only: the weights are in their place.
        with tempfile.TemporaryDirectory(prefix="zoreward-") as folder:
            self.state.save_to_json(str(Path(folder, TRAINER_STATE_NAME)))
            return super().train(resume_from_checkpoint=folder, **kwargs)

    def write_card(self, folder: str, *, merged: bool = False, **metadata: Any) -> None:
        """Write `README.md` into the folder of a model: how it was made, and what it scores.

        Args:
            folder: where the model is.
            merged: whether its adapter was merged into the weights.
            metadata: more fields for its head, such as `license`.

        Raises:
            OSError: it cannot be written.
        """
        steps, output = self.method_state.step, Path(self.args.output_dir)
        kept = self.kept_step if self.kept_step >= 0 else steps
        evaluations = [(log["step"], log["eval_score"]) for log in self.state.log_history if "eval_score" in log]
        has_moved = kept > 0
        if self.header and (output / JOURNAL_NAME).is_file():
            with contextlib.suppress(InputError):  # another's, or damaged
                run = load_run(output)
                evaluations, has_moved = list(run.evaluations), run.has_moved_by(kept)
        header = self.header or {
            "model": self.ready.source,
            "dtype": self.ready.dtype,
            "objective": self.objective.name,
            "options": options_of(self.objective),
            "method": self.method.for_header(self.args.method),
        }
        told = Told(
            step=kept,
            steps=steps,
            kind="merged" if merged else "adapter" if has_adapter(self.model) else "whole",
            evaluations=evaluations,
            rows=rows_told(self.train_dataset, self.eval_dataset, self.provenance),
            scores=self.provenance.get("scores", {}),
            command=self.provenance.get("command", ""),
            metadata=metadata,
            has_moved=has_moved,
        )
        write_card(folder, header, told)

    def create_model_card(self, *args: Any, **metadata: Any) -> None:
        """Write the card into the output folder; see `write_card`.

        transformers' own would tell of AdamW.
        """
        if args:  # transformers names the language first
            metadata["language"] = args[0]
        known = ("language", "license", "tags", "model_name", "dataset")
        named = {name: value for name, value in metadata.items() if name in known and value}
        if "dataset" in named:
            named["datasets"] = named.pop("dataset")
        self.write_card(self.args.output_dir, merged=self.args.merge, **named)

    # Hooks of transformers' loop.

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """The weights are in their place."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Bring the schedule to the step, and see that it is the one that the run had."""
        if checkpoint is None:
            return
        if hasattr(self.lr_scheduler, "best"):  # it follows the scores
            for log in self.state.log_history:
                if log["step"]:
                    self.lr_scheduler.step(log["eval_score"])
            return
        assert self.last_step is not None
        for done in range(self.state.global_step):  # a schedule may depend on all that came before
            if done == self.state.global_step - 1 and self._get_learning_rate() != self.last_step.lr:
                raise InputError(
                    f"the run had learning rate {self.last_step.lr} in step {done}, not {self._get_learning_rate()}",
                    hint="Resume it with the schedule it began with.",
                )
            with warnings.catch_warnings():  # it misses the steps of the optimizer
                warnings.simplefilter("ignore")
                self.lr_scheduler.step()

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a snapshot. That it cannot be written is a warning: the journal has it all."""
        over = self.state.global_step >= self.state.max_steps
        if over and not self.keeper.stopping and self.args.save_steps == 0:
            return
        assert self.last_step is not None
        start = time.perf_counter()
        try:
            weights = self.scorer.reader.tuned.weights
            write_snapshot(self.args.output_dir, weights, self.header["fingerprint"], self.last_step)
        except OSError as error:
            logger.warning("No snapshot after step %d: %s.", self.state.global_step, error.strerror)
        self.keeper.wrote(time.perf_counter() - start)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Also make the loop ask for the best weights at the end."""
        found: bool = super()._determine_best_metric(metrics, trial)
        self.state.best_model_checkpoint = self.args.output_dir
        return found

    def _load_best_model(self) -> None:
        """Go to the step with the best score: to its snapshot, or by a replay from the base weights."""
        if self.keeper.stopping:
            return
        run = load_run(self.args.output_dir)
        step = run.best_step
        if step is not None and step != self.method_state.step:
            self._move_to(run, step, from_base=False)
            self.kept_step = step

    def _move_to(self, run: Run, step: int, *, from_base: bool) -> None:
        """Put the weights of a step in the place of those of the model.

        Args:
            run: the run.
            step: how many steps.
            from_base: whether the model stands at the weights that the run began with.
        """
        model, tuned = self.scorer.reader.model, self.scorer.reader.tuned
        start = 0
        try:
            start = read_snapshot(self.args.output_dir, tuned.weights, run, step)
        except ValueError as error:
            logger.warning("The snapshot is not used: %s.", error)
        if not start and not from_base:
            put_base_back_(self.ready, run, self.args)
        advance(run, model, tuned, start, step)
