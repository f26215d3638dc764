"""`ZOTrainer`: a `Run` behind the face of `transformers.Trainer`: its callbacks, loggers, schedules and saving."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from accelerate import skip_first_batches
from torch import nn
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback
from transformers.trainer_callback import TrainerControl, TrainerState
from transformers.trainer_utils import PredictionOutput, SaveStrategy, TrainOutput, speed_metrics
from transformers.utils import logging

from zoreward.journal import JOURNAL_NAME, Journal, StoredRun, load_run, write_snapshot
from zoreward.journal.card import CARD_NAME, Told, write_card, write_prompting
from zoreward.journal.disk import remove, sync_all
from zoreward.journal.notes import append_note, remove_notes
from zoreward.journal.stored import OVER_MAX_KL
from zoreward.members import check_merged, has_adapter, in_all_blocks, merged_copy
from zoreward.methods import Method, SPSAState, all_scored, state_after
from zoreward.neighbours.of_launchers import alone
from zoreward.neighbours.of_transformers import silence_
from zoreward.records import Example, InputError, Scored, SilentRunError, StepRecord, one_line
from zoreward.registry import Objective, Source, assume_completions, code_of
from zoreward.scoring import (
    Rollouts,
    Scorer,
    candidate_logprobs,
    checked_scorer,
    evaluated,
    sharded,
    try_objective,
)
from zoreward.trainer.brake import Brake, rewind_after, rewinds_of, values_of_groups
from zoreward.trainer.engines import LOCAL, served_elsewhere
from zoreward.trainer.from_grpo import rollout_of
from zoreward.trainer.header import header_of, options_of, refuse_other_run, unit_of
from zoreward.trainer.inputs import (
    check_rollout,
    name_of,
    one_objective,
    refuse_what_is_missing,
    warn_about_one_class,
    with_revision,
)
from zoreward.trainer.keeper import Keeper, budget_of
from zoreward.trainer.noting import answers_of, noted, send_completions
from zoreward.trainer.optimizer import Batch, RateHolder, old_objects_left_alone, slope
from zoreward.trainer.options import FIRST_EPS, ZOConfig, config_of, family_of_run, method_of, part_that_is_tuned
from zoreward.trainer.penalty import drift_of
from zoreward.trainer.planned import planned
from zoreward.trainer.radius import Found, doubt_of_rate, found_rate, told_of_pace
from zoreward.trainer.ready import eps_that_shows, ready_model
from zoreward.trainer.replicas import (
    COMPARE_EVERY,
    compare_weights,
    joined,
    refuse_other_inputs,
    refuse_other_runs,
    reopened,
    shared_journal,
)
from zoreward.trainer.resuming import (
    count_patience,
    due,
    move_to,
    new_state,
    put_base_back_,
    rows_told,
    save_trajectory,
    state_after_run,
    storage_error,
    told_beside,
    told_where,
)
from zoreward.trainer.run import Run, Step
from zoreward.trainer.silence import (
    LEAST_STEPS,
    MUCH,
    expected_share,
    steps_before_end,
    steps_before_look,
    trial_rows,
    why_silent,
)
from zoreward.trainer.window import Window, save_completions

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel, TrainingArguments

logger = logging.get_logger(__name__)

# Rows on which objective and model are tried before step 1: enough for a set-level metric to be defined, and a
# forward pass or two.
TRIAL_ROWS = 8
# The first steps make graphs and caches; the third one takes what those after it take.
STEPS_TO_TIME = 3


class ZOTrainer(Trainer):
    """Tunes a language model on an objective with forward passes alone.

    Everything is checked before anything is written: the objective, the rows, the template, the model, and the
    objective's value on a few rows.

    Args:
        model: a folder or Hub id, or a loaded model: a causal or masked language model, or a classifier. Of one with an
            adapter the adapter is tuned.
        reward_funcs: the objective, as GRPOTrainer takes it: a function, a reward model (a sequence classifier of one
            logit) or its path, or several; or the name of an objective.
        args: the options; or a GRPOConfig, whose options are taken over (see `ZOConfig.from_grpo`).
        train_dataset: rows; a list of dicts, a `datasets.Dataset` or a `pandas.DataFrame`.
        eval_dataset: rows to choose by.
        processing_class: the tokenizer; by default the model's own.
        reward_processing_classes: the tokenizers of `reward_funcs` that are models; by default the models' own.
        callbacks: transformers' callbacks.
        peft_config: puts an adapter into the model, LoRA's (DoRA's too) or IA3's, which alone is tuned and saved.
        objective: what `get_objective` takes, in the place of `reward_funcs`; give one of the two. Several make their
            sum, with `reward_weights` of the options.
        shot_dataset: rows to take demonstrations from, where `shots` of the options asks for some; by default those to
            tune on, but never the row itself.
        others: `rollout_func` of GRPOTrainer, for members in turn (docs/coming-from-grpo.md); others of its arguments
            have no counterpart: None, or they are refused.

    Attributes:
        run: the `Run` that it drives.
        objective: the `Objective`.
        head: what kind of model is tuned, and a classifier's classes.
        method: the method at work, and `method_state`, where it stands.
        scorer: the `Scorer` of its members.
        ready: the model, and where it came from.
        ranks: the processes that share the run, where a launcher started several; all must call the same methods.
        keeper: the callback that asks for snapshots; `keeper.stopping = True` ends the run after the step at hand.
        header: of the journal, from the beginning of a run on; empty before.
        provenance: what the card of the model says beside what the trainer knows: `rows`, where those to `tune` on, to
            `choose` by and to `test` on come from; `scores`, what else was measured, by name; and `command`.
        begun_with_a_score: whether the journal of a run that goes on has a score from before step 1.
        memory: the `Memory` that the run was thought to need before its weights were read, or None.
        drift: the `Drift` that says how far the run has moved, or None.
        kept_step: after how many steps the model stands, once a run is over: its last, or the best one with
            `load_best_model_at_end`.
        found: the ε and the learning rate that were `Found` when the run began, or None.
        last_step: the `StepRecord` of the last step, or None; `last_rows` and `last_scored`: what it was scored on, and
            what each member was worth and wrote.

    Raises:
        ZorewardError: something does not fit together; the hint says what to do.

    Example:
        >>> trainer = ZOTrainer("gpt2", objective="accuracy", train_dataset=rows,
        ...                     args=ZOConfig("runs/demo", template="{text} It was",
        ...                                   choices=[" bad", " good"]))  # doctest: +SKIP
        >>> trainer.train(); trainer.save_model("runs/demo/model")  # doctest: +SKIP
    """

    # Of Trainer; said again for type checkers that do not read transformers.
    eval_dataset: Any
    optimizer: Any
    lr_scheduler: Any
    control: TrainerControl
    state: TrainerState

    def __init__(
        self,
        model: PreTrainedModel | PeftModel | str,
        reward_funcs: Source | Sequence[Source] | None = None,
        args: ZOConfig | TrainingArguments | None = None,
        train_dataset: Dataset | Sequence[dict[str, Any]] | None = None,
        eval_dataset: Dataset | Sequence[dict[str, Any]] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        reward_processing_classes: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        peft_config: PeftConfig | None = None,
        *,
        objective: Source | Sequence[Source] | None = None,
        shot_dataset: Dataset | Sequence[dict[str, Any]] | None = None,
        **others: Any,
    ):
        rollout, args = rollout_of(others, args), config_of(args)
        model = with_revision(model, args)
        self.ranks = joined(args)
        refuse_what_is_missing(model, args, peft_config)
        chosen = one_objective(objective, reward_funcs, reward_processing_classes, args)
        datasets = (train_dataset, eval_dataset, shot_dataset)
        plan = planned(model, args, chosen, datasets, processing_class, peft_config)
        self.given, self.memory, given = plan.given, plan.memory, plan.given
        args, chosen, self.head, examples = given.args, given.objective, given.head, given.examples
        refuse_other_inputs(self.ranks, given)
        if rollout is not None:
            check_rollout(chosen, args, several=self.ranks.several or args.engine != LOCAL)
        self.ready = ready_model(model, self.head, args, peft_config, self.ranks)
        args.eps = self._eps_that_shows(args)
        method = method_of(args, rows=len(examples), blocks=len(set(self.ready.tuned.blocks.values())))
        scorer = self._tried_scorer(method, examples, rollout)
        warn_about_one_class(scorer, examples, args)
        eval_examples = given.eval_examples
        if chosen.compares_with_base:  # which the model is now, and after step 1 no more
            examples, eval_examples = _with_base(scorer, examples, eval_examples, args)
        self.drift = drift_of(self.ready.model, args, eval_examples or examples)
        scorer = replace(scorer, base=self.drift.base if self.drift else None)
        self.run = Run(scorer, method, examples, seed=args.seed, drift=self.drift)
        self.found: Found | None = None
        self.keeper, self._window = Keeper(self.ranks), Window()
        self._brake = Brake(rewinds_of(args, name_of(model)))
        self.header: dict[str, Any] = {}
        self.provenance: dict[str, Any] = {}
        self._answers: dict[str, Any] = {}  # of the last evaluation
        self.kept_step = -1  # while the run lasts; 0 is the base
        self.begun_with_a_score = self._finished = False
        self._silence: SilentRunError | None = None
        self._become_trainer(args, examples, eval_examples, callbacks)
        if rollout is not None:
            try_objective(self.scorer, examples[:TRIAL_ROWS])

    def _tried_scorer(self, method: Method, examples: Sequence[Example], rollout: Any) -> Scorer:
        """Return what scores members, once they and the objective were tried on a few rows."""
        given, args, objective = self.given, self.given.args, self.given.objective
        query = method.ask(method.init())
        scorer = checked_scorer(
            self.ready.model, given.tokenizer, objective, given.generation, examples[:TRIAL_ROWS],
            in_all_blocks(query.members), tuned=self.ready.tuned, step=(examples[: args.rows_a_step], query.parts[0]),
        )  # fmt: skip
        scorer = sharded(scorer, self.ranks, args.ranks_split, query.parts[0], args.tensor_parallel or 1)
        scorer = served_elsewhere(scorer, self.ready, given, query.members)
        if rollout is not None:  # it is given this trainer, and tried when that is ready
            scorer = replace(scorer, rollouts=Rollouts(rollout, self))
        else:
            try_objective(scorer, examples[:TRIAL_ROWS])
            if scorer.problem:
                times = f"a step takes up to {len(query.members)} times as long"
                logger.warning("Members are scored one at a time (%s): %s.", times, scorer.problem)
        if (scorer.problem or rollout is not None) and family_of_run(args).rank:  # so each is rounded, after all
            eps_that_shows(self.ready.tuned, args, given=True, one_at_a_time=True)
        return scorer

    def _become_trainer(
        self, args: ZOConfig, examples: Any, eval_examples: Any, callbacks: list[TrainerCallback] | None
    ) -> None:
        """Be a `Trainer` of one process, which is silent on all ranks but the first."""
        args.report_to = args.report_to if self.ranks.first else []
        with alone():
            super().__init__(
                model=self.ready.model, args=args, data_collator=Batch, train_dataset=examples,
                eval_dataset=eval_examples, processing_class=self.given.tokenizer,
                callbacks=[*(callbacks or ()), self.keeper],
            )  # type: ignore[arg-type]  # fmt: skip
        if self.accelerator.num_processes > 1:
            hint = "Make ZOConfig after any Accelerator or TrainingArguments of another kind."
            raise InputError("accelerate would give each rank rows of its own", hint=hint)
        if not self.ranks.first:
            silence_(self)

    @property
    def objective(self) -> Objective:
        """What members are scored by."""
        return self.run.objective

    @property
    def num_generations(self) -> int:
        """How many completions a `rollout_func` returns for a prompt: members take the place of generations."""
        return 1

    num_generations_eval = num_generations

    @property
    def method(self) -> Method:
        """Which members are asked for, and what their scores turn into."""
        return self.run.method

    @property
    def method_state(self) -> SPSAState:
        """Where the method stands."""
        return self.run.state

    @property
    def scorer(self) -> Scorer:
        """What scores members."""
        return self.run.scorer

    @property
    def last_step(self) -> StepRecord | None:
        """What happened in the last step."""
        return self.run.last.record if self.run.last else None

    @property
    def last_rows(self) -> Sequence[Example]:
        """What the members of the last step were scored on."""
        return self.run.last.rows if self.run.last else []

    @property
    def last_scored(self) -> list[Scored]:
        """What each member of the last step was worth, and wrote."""
        return self.run.last.scored if self.run.last else []

    # The run.

    def train(
        self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, ignore_keys_for_eval: Any = None
    ) -> TrainOutput:
        """Tune the model.

        Args:
            resume_from_checkpoint: True, or the output folder, to go on with the run in it from its last step; see
                `resume`. Where there is none yet, it begins.
            trial: not used; transformers' argument.
            ignore_keys_for_eval: not used; transformers' argument.

        Raises:
            InputError: the run folder holds a run that is not to be resumed, or that cannot be.
            StorageError: the journal cannot be written; the weights are those of its last step.
            SilentRunError: none of the first steps moved anything; or of all, as the objective had no score, or one for
                all. The run has ended as it ends otherwise, but for the best step, which is not taken; it can be
                resumed, and has as many steps again.
        """
        args, start = self.args, time.time()
        self._memory_tracker.start()
        if resume_from_checkpoint and self.run.journal is None:
            self.resume(resume_from_checkpoint)
        if self.run.journal is None:
            self._open_run()
        assert self.run.journal is not None
        begun_at, metrics = self.method_state.step, dict[str, float]()
        is_noted = self.ranks.first and not self._finished
        with self.run.journal, old_objects_left_alone(), noted(self) if is_noted else contextlib.nullcontext():
            try:
                if self._finished:
                    logger.warning("The run in '%s' is finished: %d steps.", args.output_dir, begun_at)
                else:
                    self._do_steps(begun_at)
                    steps = self.state.global_step - begun_at
                    samples = steps * args.train_batch_size * args.gradient_accumulation_steps
                    metrics = speed_metrics("train", start, num_samples=samples, num_steps=steps)
                    metrics |= {"total_flos": self.state.total_flos, "train_loss": self._window.mean_loss}
                    self._memory_tracker.stop_and_update_metrics(metrics)
                    self.log(metrics)
                has_best = self._finished or self.state.best_model_checkpoint is not None
                if args.load_best_model_at_end and has_best and self._silence is None:
                    self._take_best_step()
                self._compare_weights(self.method_state.step)
                if not self._finished:
                    self._fire("on_train_end")
                if self._silence is not None:
                    raise self._silence
                if self.kept_step < 0:
                    self.kept_step = self.method_state.step
                if self.ranks.first:
                    save_trajectory(args.output_dir)
            finally:
                self.run.journal = None
        return TrainOutput(self.state.global_step, metrics.get("train_loss", 0.0), metrics)

    def _do_steps(self, begun_at: int) -> None:
        """Do the steps that are left, epoch after epoch, with transformers' events around them."""
        args, loader = self.args, self.get_train_dataloader()
        state, per_epoch = new_state(args, len(loader))
        if not begun_at:
            self.state = state
        self.state.is_world_process_zero = self.state.is_local_process_zero = self.ranks.first
        if args.bf16:  # autocast
            self.accelerator.prepare_model(self.model, device_placement=False, evaluation_mode=True)
        self.lr_scheduler = None
        self.create_optimizer_and_scheduler(self.state.max_steps)
        if begun_at:
            self._bring_schedule_to(begun_at)
        self.run.learning_rate, self.run.trainer_state = lambda: self.optimizer.param_groups[0]["lr"], self.state
        events = self.callback_handler
        events.optimizer, events.lr_scheduler, events.train_dataloader = self.optimizer, self.lr_scheduler, loader
        self._fire("on_train_begin")
        if args.eval_on_start:
            self.evaluate()
        first, steps_done = divmod(begun_at, per_epoch)
        done = steps_done * args.gradient_accumulation_steps  # batches of the first epoch
        for epoch in range(first, self.state.num_train_epochs):
            self._fire("on_epoch_begin")
            batches = skip_first_batches(loader, done) if done else loader
            batches.set_epoch(epoch)
            self._steps_of_epoch(batches, epoch, done, len(loader), begun_at)
            done = 0
            self._fire("on_epoch_end")
            self._log_evaluate_save()
            if self.control.should_training_stop:
                break

    def _steps_of_epoch(self, batches: Any, epoch: int, done: int, of: int, begun_at: int) -> None:
        """Do a step with every `gradient_accumulation_steps` batches, and with what is left of them at the end."""
        rows: list[Example] = []
        for number, batch in enumerate(batches, start=done + 1):
            if not rows:
                self._fire("on_step_begin")
            rows += batch.examples
            if number % self.args.gradient_accumulation_steps and number < of:
                self._fire("on_substep_end")
            else:
                self._do_step(rows, epoch + number / of)
                self._judge_silence(self.method_state.step - begun_at)
                rows = []
            if self.control.should_epoch_stop or self.control.should_training_stop:
                break

    def _do_step(self, rows: list[Example], epoch: float) -> None:
        """Do one step of the run on these rows, and tell everybody."""
        args, run = self.args, self.run
        step = run.ask_score_tell(rows)
        self._fire("on_pre_optimizer_step")
        with told_where(args.output_dir):
            run.journal_and_apply(step)
        if (step.record.step + 1) % COMPARE_EVERY == 0:
            self._compare_weights(step.record.step + 1)
        self.optimizer.step()
        self._fire("on_optimizer_step")
        if not hasattr(self.lr_scheduler, "best"):  # else it follows the scores
            self.lr_scheduler.step()
        self.state.global_step, self.state.epoch = self.state.global_step + 1, epoch
        self._window.add(step.scored)
        number, every = step.record.step, args.completions_every
        if every and number % every == 0 and self.objective.needs == "completions" and self.ranks.first:
            try:
                save_completions(args.output_dir, number, step.rows, step.scored)
                send_completions(self)
            except Exception as error:  # the run does not need them
                logger.warning("Completions could not be written: %s.", one_line(error))
        if run.state.unscored == 1 and not all_scored(step.record.scores):
            logger.warning(
                "Step %d moves nothing: %r has no score on its rows. More of this kind are counted, not told.",
                *(number + 1, self.objective.name),
            )
        self._fire("on_step_end")
        self._log_evaluate_save()

    def _compare_weights(self, step: int) -> None:
        """See that all ranks, and whoever writes, have the same weights."""
        compare_weights(self.ranks, self.ready, step)
        self.scorer.compare_weights(step)

    def _judge_silence(self, done: int) -> None:
        """Where no step has moved anything, say once why, and ask for the end where it stays so.

        A whole run whose objective had no score, or one score for all, has failed, however short it was.

        Args:
            done: steps since the run began, or went on: whoever resumes it means it.
        """
        step, steps = self.method_state.step, self.state.max_steps
        assert self.last_step is not None
        if self.method_state.silent < step or not self.last_step.lr or not self.keeper.judges_silence:
            return
        is_over = step >= steps or self.control.should_training_stop
        ends, looks = done >= steps_before_end(steps) and not is_over, steps_before_look(steps)
        was_whole = is_over and done == step and not self.keeper.ends
        if not ends and not was_whole and step != looks:
            return
        may_look = not is_over or self.keeper.budget is None  # which would be exceeded behind the last step
        advice = why_silent(self.run, load_run(self.args.output_dir).records(), may_look=may_look)
        if ends or (was_whole and advice.by_scores):
            message = f"none of the {step} steps{' so far' if ends else ''} has moved anything: {advice.why}"
            self._silence = SilentRunError(message, hint=f"{advice.hint}.")
        elif step <= looks:
            logger.warning("None of the first %d steps moved anything: %s. %s.", step, advice.why, advice.hint)
        if ends:
            self.keeper.stopped_by, self.control.should_training_stop = "silence", True

    def _log_evaluate_save(self) -> None:
        """Do what callbacks have asked for."""
        if self.control.should_log and self._window:
            assert self.last_step is not None
            drawn, means = self.method.directions.drawn(self.last_step.step), self._window.means()
            logs = {"loss": -means["score"]} if "score" in means else {}  # of the steps that have a score
            logs |= {"grad_norm": slope(self.last_step, drawn), "learning_rate": self.last_step.lr, **means}
            logs["silent"] = self.method_state.silent / self.method_state.step
            if self.method_state.unscored:
                logs["unscored"] = self.method_state.unscored
            if self.drift:
                logs |= self.drift.measured(self.scorer, seed=self.args.seed)
                self._bound_drift(logs["kl"])
            self.log(logs)
        if self.control.should_evaluate:
            metrics = self.evaluate()
            if hasattr(self.lr_scheduler, "best"):
                self.lr_scheduler.step(metrics[self._best_goes_by])
            is_best = self._is_best(metrics)
            if self.args.save_strategy == SaveStrategy.BEST:
                self.control.should_save = is_best
            self._go_back_if_fallen()
        if self.control.should_save:
            self._write_snapshot()
            self._fire("on_save")

    def _go_back_if_fallen(self) -> None:
        """Go back to the best step where the dev score has fallen by more than noise; or end the run there."""
        run, step = self.run, self.state.global_step
        back = run.rewinds and run.rewinds[-1].step == step  # a kill came behind it
        over = self.control.should_training_stop or step >= self.state.max_steps
        if back or over or (fall := self._brake.fall(run.rewinds)) is None or fall.step != step:
            return
        if len(run.rewinds) >= self._brake.most:
            logger.warning("%s: the run ends, after %d rewinds.", fall, len(run.rewinds))
            self.keeper.stopped_by, self.control.should_training_stop = "max_rewinds", True
            return
        assert run.journal is not None
        rewind, problem = rewind_after(fall, run.rewinds), ""
        try:
            put_base_back_(self.ready, load_run(self.args.output_dir), self.args)
        except InputError as error:  # nothing is written yet, and the weights are as they were
            problem = str(error)
        self.ranks.refuse_unlike({"another base to go back to": problem})
        if problem:
            logger.warning("%s: the run goes on as it is, since %s.", fall, problem)
            self._brake.most = 0
            return
        with told_where(self.args.output_dir):
            run.journal.append_rewind(rewind)
        stored = load_run(self.args.output_dir)
        move_to(self.ready, stored, step, self.args, from_base=True)
        self.scorer.weights_put()
        run.rewinds, run.state = stored.rewinds, state_after(self.method, stored.records(), stored.rewinds)
        logger.warning("%s: back to step %d, and on with %.3g times the learning rate.", fall, rewind.to, rewind.rate)

    def _fire(self, event: str) -> None:
        self.control = getattr(self.callback_handler, event)(self.args, self.state, self.control)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Return what stands in the place of an optimizer: it has a learning rate for schedules to set."""
        self.optimizer = RateHolder(self.scorer.reader.tuned.weights.values(), {"lr": self.args.learning_rate})
        return self.optimizer

    @property
    def _best_goes_by(self) -> str:
        return f"eval_{str(self.args.metric_for_best_model).removeprefix('eval_')}"

    def _is_best(self, metrics: Mapping[str, float]) -> bool:
        """Whether these are the best metrics so far; then they are remembered."""
        state, args = self.state, self.args
        state.best_model_checkpoint = args.output_dir
        if metrics.get(f"eval_{OVER_MAX_KL}"):
            return False
        if args.metric_for_best_model is None:
            return False
        if self._best_goes_by not in metrics:
            message = f"the best step goes by {self._best_goes_by}, which is not measured"
            raise InputError(message, hint=f"There are {', '.join(metrics)}.")
        value, best = metrics[self._best_goes_by], state.best_metric
        if best is not None and not (value > best if args.greater_is_better else value < best):
            return False
        state.best_metric = value
        if args.save_strategy != SaveStrategy.NO:
            state.best_global_step = state.global_step
        return True

    def _bound_drift(self, kl: float) -> None:
        """End the run after this step if the model has moved too far; the rows to choose by are scored once more."""
        if self.drift and self.drift.exceeds(kl):
            self.keeper.stopped_by = "kl"
            self.control.should_training_stop = True
            self.control.should_evaluate = self.args.eval_strategy != "no"

    def is_world_process_zero(self) -> bool:
        """Return whether this is rank 0, which alone writes and logs."""
        return self.ranks.first

    def is_local_process_zero(self) -> bool:
        """Return the same: accelerate takes each rank for a process by itself."""
        return self.ranks.first

    # What a model is worth.

    def evaluate(
        self,
        eval_dataset: Sequence[dict[str, Any]] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Score the model on the rows to choose by, or on others.

        Returns:
            `eval_score`, `eval_rows`, `eval_runtime` in seconds; where the model wrote, `eval_length` and
            `eval_distinct_2`; and what the objective logs, as `eval_metric/share`.

        Raises:
            InputError: there are no rows; or others than before step 1, for an objective that compares with the base.
            ObjectiveError: the objective raised, or has no score on these rows.
        """
        examples = self.eval_dataset if eval_dataset is None else self._other_examples(eval_dataset)
        if examples is None:
            raise InputError("there are no rows to evaluate on", hint="Give ZOTrainer an eval_dataset.")
        start = time.perf_counter()
        rows = self.args.per_device_eval_batch_size or None
        found, scored = evaluated(
            self.scorer, examples, seed=self.args.seed, rows=rows, trainer_state=self.state, must_score=True
        )
        values = {"score": found.score, **found.statistics, **found.metrics, "rows": float(found.rows)}
        if self.drift:
            values |= self.drift.measured(self.scorer, seed=self.args.seed, scored=scored, of=examples)
            self._bound_drift(values["kl"])
            if self.drift.exceeds(values["kl"]):
                values[OVER_MAX_KL] = 1.0
        values |= {f"score/{name}": value for name, value in found.parts.items()}
        values["runtime"] = time.perf_counter() - start
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in values.items()}
        self.log(metrics)
        by_our_rows = metric_key_prefix == "eval" and eval_dataset is None
        if by_our_rows and self._brake.most:
            groups = values_of_groups(self.objective, examples, scored)
            self._brake.take(self.state.global_step, found.score, groups)
        if by_our_rows:
            self._answers = answers_of(self.objective, examples, scored, texts=self.args.completions_every > 0)
            self._answers["step"] = self.state.global_step
        if by_our_rows and self.run.journal is not None:
            self._write_evaluation(self.state.global_step, metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        if by_our_rows and not self.state.global_step:
            self.state.best_metric = self.keeper.first_score = metrics.get(self._best_goes_by)
        return metrics

    def predict(
        self,
        test_dataset: Sequence[dict[str, Any]],
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "test",
    ) -> PredictionOutput:
        """Score the model on other rows, and return what it says of each; nothing is logged or written down.

        Args:
            test_dataset: rows, with the columns that those to tune on have.
            ignore_keys: not used; transformers' argument.
            metric_key_prefix: stands in front of the metrics' names.

        Returns:
            `predictions`: the log-probabilities of each row's candidates, (N, C), −inf where a row has fewer; or the
            texts that were written, (N,). `label_ids`: the right choice, (N,), where there is one. `metrics`:
            `test_score`, `test_rows`, `test_runtime`, and what `evaluate` returns beside them.

        Raises:
            InputError: there are no rows; or the model has moved, and the objective compares with the base.
        """
        start, examples = time.perf_counter(), self._other_examples(test_dataset)
        rows, predictions, labels = self.args.per_device_eval_batch_size or None, None, None
        if self.objective.needs != "completions":
            [predictions] = candidate_logprobs(self.scorer.engine, examples, rows=rows)
        if self.objective.needs == "choices":
            labels = np.array([example.reference for example in examples], dtype=np.int64)
        found, scored = evaluated(
            self.scorer, examples, seed=self.args.seed, rows=rows, trainer_state=self.state, logprobs_NC=predictions
        )
        if predictions is None:
            predictions = np.array([text.text for text in getattr(scored, "completions", ())], dtype=object)
        values = {"score": found.score, **found.statistics, **found.metrics, "rows": float(found.rows)}
        values["runtime"] = time.perf_counter() - start
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in values.items()}
        return PredictionOutput(predictions=predictions, label_ids=labels, metrics=metrics)

    def _other_examples(self, rows: Sequence[dict[str, Any]]) -> list[Example]:
        """Rows that are not those to choose by, made ready."""
        examples: list[Example] = self.given.make(rows, model=self.model)
        if not self.objective.compares_with_base:
            return examples
        if self.method_state.step:
            hint = "Give them as eval_dataset when ZOTrainer is made; or evaluate(…, base=…)."
            raise InputError("the model has moved, so other rows have no base to compare with", hint=hint)
        return self.scorer.with_base(examples, rows=self.args.per_device_eval_batch_size or None)

    # The run folder.

    @contextlib.contextmanager
    def holding_run(self) -> Iterator[None]:
        """Open the run, unless `resume` has, and keep other processes from it until the block is left.

        `train` holds the run while it lasts; this is for what belongs to it before and behind that: its model, say.

        Raises:
            InputError: the folder holds a run already, or another process is at work on it.
        """
        if self.run.journal is None:
            self._open_run()
        assert self.run.journal is not None
        with self.run.journal.held():
            try:
                yield
            finally:
                if self.run.journal is not None:  # `train` was not reached
                    self.run.journal.close()
                    self.run.journal = None

    def _open_run(self) -> None:
        """Open a journal in a folder that has none."""
        if self.method_state.step:
            raise InputError("this trainer has done its run", hint="Make a new ZOTrainer for another.")
        holds_one = InputError(
            f"'{self.args.output_dir}' holds a run already ({JOURNAL_NAME})",
            hint="Choose another folder, or go on with it: --resume, in Python resume_from_checkpoint=True.",
        )
        if self.ranks.first and Path(self.args.output_dir, JOURNAL_NAME).exists():  # before a rate is looked for
            raise holds_one
        self._find_rate()
        self.header, folder = self._header(), self.args.output_dir
        self._compare_ranks()
        try:
            self.run.journal = shared_journal(self.ranks, folder, lambda: Journal(folder, self.header))
        except FileExistsError as error:
            raise holds_one from error
        except OSError as error:
            raise storage_error(self.args.output_dir, error) from error
        self._keep_start()
        if self.ranks.first:
            remove_notes(self.args.output_dir)  # those of a run that was removed
        for log in self.state.log_history:  # scored before step 1
            if "eval_score" in log:
                self._write_evaluation(log["step"], log)

    def _find_rate(self) -> None:
        """Find the learning rate, and ε, where nobody gave the rate; the method is made anew."""
        given, args = self.given, self.args
        first = FIRST_EPS[part_that_is_tuned(args, adapter=given.adapter)]
        if not given.finds_rate:
            steps = self._steps_after(0)
            by_size = args.normalize not in (None, "none")  # else it depends on the scale of the scores
            if by_size and (doubt := doubt_of_rate(args.learning_rate, self.method, steps, first)):
                logger.warning("%s", doubt)
            return
        start = time.perf_counter()
        found = found_rate(
            self.scorer.engine,
            self.method,
            self.objective,
            self.run.rows,
            steps_after=self._steps_paid,
            first=first,
            generation=given.generation,
            max_kl=args.max_kl,
        )
        seconds_a_row = (time.perf_counter() - start) / found.rows
        if not given.eps_given:
            args.eps = found.eps
        eps = self._eps_that_shows(args)
        self.found = found = replace(found, eps=eps)
        (logger.info if found.converged else logger.warning)("%s", found)
        self._take_rate(found.eps, found.learning_rate, self.args.normalize)
        query = self.method.ask(self.method.init())
        if self.objective.needs != "completions" and query.rows == "batch":  # writing takes longer than reading
            steps, rows = self._steps_paid(found.rows), min(args.rows_a_step, len(self.run.rows))
            if long := told_of_pace(seconds_a_row, query, rows, steps):
                logger.warning("%s", long)
        if self._scores_by_share_of_seconds:
            self.args.eval_steps = max(1, int(self.args.eval_steps * self._steps_paid(found.rows)))
        if self._steps_paid(found.rows) >= LEAST_STEPS:
            self._tell_of_silent_steps()

    def _eps_that_shows(self, args: ZOConfig) -> float:
        """See `eps_that_shows`; of ranks that hold a model together all take what rank 0 finds in its part."""
        eps = eps_that_shows(self.ready.tuned, args, given=self.given.eps_given)
        return float(self.ranks.from_first(eps)) if self.ready.division else eps

    def _steps_after(self, rows: int, scored: Sequence[int] = (), done: int = 0) -> int:
        """Return how many steps there are when so many rows were read to find the rate; see `budget_of`."""
        args = self.args
        most = new_state(args, len(self.get_train_dataloader()))[0].max_steps
        if args.max_forwards is None:
            return most
        counts = (len(self.run.rows), len(self.eval_dataset or ()))
        how: dict[str, Any] = {"most": most, "scored": scored, "done": done}
        budget = budget_of(args, self.method, *counts, searched=rows, **how)
        if rows and budget.steps >= LEAST_STEPS:  # then some steps are tried before the first
            rows += trial_rows(self.method, self.objective, len(self.run.rows), args.rows_a_step)
            budget = budget_of(args, self.method, *counts, searched=rows, **how)
        if budget.steps < most or self.keeper.budget is not None:
            self.keeper.budget, args.max_steps = budget, budget.steps
        return budget.steps

    def _steps_paid(self, rows: int) -> int:
        """Return how many steps forward passes and seconds pay, when so many rows were read to find the rate."""
        return min(self._steps_after(rows), self._steps_in_seconds)

    @cached_property
    def _steps_in_seconds(self) -> int:
        """About how many steps `max_seconds` pay, by the last of a few that are done for nothing."""
        if self.args.max_seconds is None:
            return sys.maxsize
        for _ in range(STEPS_TO_TIME):
            start = time.perf_counter()
            self.run.ask_score_tell(self.run.rows[: self.args.rows_a_step])
        steps = max(1, int(self.args.max_seconds / (time.perf_counter() - start)))
        return int(self.ranks.from_first(steps))

    @property
    def _scores_by_share_of_seconds(self) -> bool:
        """Whether `eval_steps` is a share of the steps that `max_seconds` pay, whose number is not known yet."""
        return self.args.max_seconds is not None and 0 < (self.args.eval_steps or 0) < 1

    def _tell_of_silent_steps(self) -> None:
        """Say before step 1 where many steps are to be expected to move nothing."""
        rows = self.args.rows_a_step
        share = expected_share(self.scorer.engine, self.method, self.objective, self.run.rows, rows)
        if share is not None and share > MUCH:
            logger.warning(
                "About %.0f %% of the first steps will move nothing: on batches of %d rows %r often gives members the "
                "same score. Try a larger --batch-size or --eps, or a smooth objective such as neg-cross-entropy.",
                *(100 * share, min(rows, len(self.run.rows)), self.objective.name),
            )

    def _take_rate(self, eps: float, learning_rate: float, normalize: str | None) -> None:
        """Go on with an ε, a learning rate and a way of normalising."""
        self.args.eps, self.args.learning_rate, self.args.normalize = eps, learning_rate, normalize
        blocks = len(set(self.ready.tuned.blocks.values()))
        self.run.method = method_of(self.args, rows=len(self.run.rows), blocks=blocks)

    def _take_rate_of(self, run: StoredRun) -> None:
        """Go on with what a run with the same method found, or began with, whichever machine this is."""
        header, scored = run.header, [step for step, _ in run.evaluations]
        self._steps_after(header.get("searched", 0), scored, run.n_steps)
        then, same = header["config"], header["method"].get("name") == self.args.method
        if self.given.finds_rate and same and {"eps", "learning_rate"} <= then.keys():
            eps = self.args.eps if self.given.eps_given else then["eps"]
            self._take_rate(eps, then["learning_rate"], then.get("normalize"))
            if self._scores_by_share_of_seconds:
                self.args.eval_steps = then.get("eval_steps", self.args.eval_steps)

    def _keep_start(self) -> None:
        """Save the prefix that the run begins with, where it is one that the run made."""
        if self.ready.start and self.ranks.first:
            with told_where(self.args.output_dir):
                self.model.save_pretrained(self.ready.start)
                remove(Path(self.ready.start, CARD_NAME))  # PEFT's, which says nothing true
                sync_all(self.ready.start)

    def _write_evaluation(self, step: int, logged: Mapping[str, float]) -> None:
        assert self.run.journal is not None
        if self.ranks.first and self._answers.get("step") == step:
            append_note(self.args.output_dir, "answers", self._answers)
        with told_where(self.args.output_dir):
            groups = self._brake.groups_at(step)
            self.run.journal.append_evaluation(step, logged["eval_score"], told_beside(logged), groups)

    def _header(self) -> dict[str, Any]:
        rows = (self.train_dataset, self.eval_dataset)
        header = header_of(self.ready, self.objective, self.method, self.args, *rows)  # type: ignore[arg-type]
        searched = {"searched": self.found.rows} if self.found and self.args.max_forwards else {}
        if self.scorer.rollouts is not None:
            [code] = code_of(assume_completions(self.scorer.rollouts.function)).values()
            header["code"] = {**header["code"], "rollout_func": code}
        return {**header, **searched, "unit": self.scorer.engine.unit}

    def _compare_ranks(self) -> None:
        engine, done = self.scorer.reader, self.state.global_step
        refuse_other_runs(self.ranks, self.header, self.method_state, engine, self.ready, done)

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
        if (opened := reopened(self.ranks, folder)) is None:
            return 0
        self.run.journal, stored = opened
        before = (self.args.eps, self.args.learning_rate, self.args.normalize)
        try:
            if stored is not None:
                self._take_rate_of(stored)
            if stored is not None and "rows" not in stored.header["method"]:  # then divided by less than half a row
                self.run.method = replace(self.method, rows=0)
            self.header = self._header()
            try:
                if stored is not None:
                    refuse_other_run(folder, stored.header, self.header)
            except InputError:
                if stored is not None and stored.n_steps:
                    raise
                stored = None
            if stored is None:  # nothing of it is done
                self._take_rate(*before)
                self._find_rate()
                self.header = self._header()
                self.run.journal.begin(self.header)
            if stored is None or not stored.n_steps:  # a kill may have come between the header and the prefix
                self._keep_start()
            if stored is not None:
                self._take_up(stored)
            self._compare_ranks()
        except BaseException:
            self._take_rate(*before)
            self.run.journal.close()
            self.run.journal = None
            raise
        return stored.n_steps if stored is not None else 0

    def _take_up(self, stored: StoredRun) -> None:
        """Set weights, method and state to where a run ended, and do what was due there."""
        args, done = self.args, stored.n_steps
        state, per_epoch = state_after_run(args, len(self.get_train_dataloader()), stored)
        if done > state.max_steps:
            raise InputError(
                f"the run in '{args.output_dir}' has done {done} steps, more than {state.max_steps}",
                hint="Ask for as many at least, or replay it up to a step.",
            )
        if self.header["versions"] != stored.header.get("versions"):
            logger.warning("The run began with other versions of its libraries: its scores may differ in the last bit.")
        unit, begun_with = unit_of(stored.header), stored.header.get("unit")
        if self.ranks.several and begun_with and "ranks" not in begun_with:
            logger.warning("The run began in one process: its passes stay whole, so some ranks may have nothing to do.")
        if begun_with and (then := unit.get("engine", LOCAL)) != (now := self.scorer.engine.unit.get("engine", LOCAL)):
            logger.warning("What members wrote until now came from the engine %s; from now on it is %s.", then, now)
        cut = self.scorer.reader.unit.get("ranks", 1)
        self.run.scorer = self.scorer.cut_as(unit)
        if self.objective.compares_with_base and cut != unit["ranks"]:  # which was read in other passes
            self.run.rows, self.eval_dataset = _with_base(self.scorer, self.run.rows, self.eval_dataset, args)
            self.train_dataset = self.run.rows
        move_to(self.ready, stored, done, args, from_base=True)
        self.scorer.weights_put()
        self.run.rewinds = stored.rewinds
        self.run.state = state_after(self.method, stored.records(), stored.rewinds)
        if done:
            self.run.last = Step(stored.record(done - 1), [], [], self.run.state)
        self.state, args.eval_on_start = state, args.eval_on_start and not done
        first_scores = [score for step, score in stored.evaluations if step == 0]
        self.begun_with_a_score = bool(first_scores)
        self.keeper.first_score = first_scores[0] if first_scores else None
        stopped = count_patience(self.callback_handler.callbacks, args, stored.evaluations)
        for (step, score), groups in zip(stored.evaluations, stored.groups, strict=True):
            self._brake.take(step, score, groups)
        if done:
            self._make_up(stored, due(args, state, per_epoch))
            if not stopped:
                self._go_back_if_fallen()
        self._finished = stopped or self.control.should_training_stop or done >= state.max_steps

    def _make_up(self, stored: StoredRun, control: TrainerControl) -> None:
        """Do what was due after the last step and may be missing: measure the drift that ends a run, and evaluate."""
        evaluated_then = any(step == stored.n_steps for step, _ in stored.evaluations)
        if self.drift and self.args.max_kl is not None:
            if control.should_log:
                self._bound_drift(self.drift.measured(self.scorer, seed=self.args.seed)["kl"])
            if evaluated_then and self.objective.needs == "completions":
                [scored] = self.scorer.score(self.eval_dataset, seed=self.args.seed, trainer_state=self.state)
                of: dict[str, Any] = {"scored": scored, "of": self.eval_dataset}
                self._bound_drift(self.drift.measured(self.scorer, seed=self.args.seed, **of)["kl"])
        wanted = control.should_evaluate or self.control.should_evaluate
        if self.eval_dataset is not None and wanted and not evaluated_then:
            self._is_best(self.evaluate())

    def _bring_schedule_to(self, done: int) -> None:
        """Bring the schedule of the learning rate to a step, and see that it is the one that the run had."""
        if hasattr(self.lr_scheduler, "best"):  # it follows the scores
            for log in self.state.log_history:
                if log["step"]:
                    self.lr_scheduler.step(log["eval_score"])
            return
        assert self.last_step is not None
        for step in range(done):  # a schedule may depend on all that came before
            rate = self.optimizer.param_groups[0]["lr"]
            rate *= self.run.rate_scale(step)
            if step == done - 1 and rate != self.last_step.lr:
                raise InputError(
                    f"the run had learning rate {self.last_step.lr} in step {step}, not {rate}",
                    hint="Resume it with the schedule it began with.",
                )
            self.optimizer.step()
            self.lr_scheduler.step()

    def _write_snapshot(self) -> None:
        """Write the weights down. That they cannot be is a warning: the journal has it all."""
        over = self.state.global_step >= self.state.max_steps
        if not self.ranks.first or self.ready.division:  # each rank has a part, and the journal has it all
            return
        if over and not self.keeper.ends and self.args.save_steps == 0:
            return
        assert self.last_step is not None
        start = time.perf_counter()
        try:
            weights = self.scorer.reader.tuned.weights
            mine = (self.header["fingerprint"], self.last_step, self.run.rewinds)
            write_snapshot(self.args.output_dir, weights, *mine)
        except OSError as error:
            logger.warning("No snapshot after step %d: %s.", self.state.global_step, error.strerror)
        self.keeper.wrote(time.perf_counter() - start)

    def _take_best_step(self) -> None:
        """Go to the step with the best score: to its snapshot, or by a replay from the base weights."""
        if self.keeper.ends:
            return
        stored = load_run(self.args.output_dir)
        step = stored.best_step
        if step is not None and step != self.method_state.step:
            move_to(self.ready, stored, step, self.args, from_base=False)
            self.scorer.weights_put()
            self.kept_step = step

    # The model, saved.

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, or the adapter where one is tuned, the tokenizer, and a card that says how it was made.

        With the option `merge` the whole model with its adapter merged in; what is pushed to the Hub keeps the adapter.
        Unlike `transformers.Trainer.save_model` it leaves no pickle (`training_args.bin`): the journal has the options.

        Raises:
            InputError: the merged model gives something else than the model with its adapter; nothing is saved.
        """
        state = self.ready.division.state(self.model) if self.ready.division else None
        if not self.ranks.first:
            return
        merge, folder = self.args.merge and not _internal_call, output_dir or self.args.output_dir
        model: Any = merged_copy(self.model) if merge else self.model
        if merge:
            check_merged(self.model, model, self.train_dataset[0].prompt_tokens)  # type: ignore[index]
        model.save_pretrained(folder, **({"state_dict": state} if state else {}))
        self.processing_class.save_pretrained(folder)
        self.write_card(folder, merged=merge)  # PEFT has written one of its own
        write_prompting(folder, self.header.get("config") or self.args.changed())
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def write_card(self, folder: str, *, merged: bool = False, **metadata: Any) -> None:
        """Write `README.md` into the folder of a model: how it was made, and what it scores.

        Args:
            folder: where the model is.
            merged: whether its adapter was merged into the weights.
            metadata: more fields for its head, such as `license`.

        Raises:
            OSError: it cannot be written.
        """
        if not self.ranks.first:
            return
        steps, output = self.method_state.step, Path(self.args.output_dir)
        kept = self.kept_step if self.kept_step >= 0 else steps
        evaluations = [(log["step"], log["eval_score"]) for log in self.state.log_history if "eval_score" in log]
        has_moved = kept > 0
        if self.header and (output / JOURNAL_NAME).is_file():
            with contextlib.suppress(InputError):  # another's, or damaged
                stored = load_run(output)
                evaluations, has_moved = list(stored.evaluations), stored.has_moved_by(kept)
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


def _with_base(
    scorer: Scorer, examples: Sequence[Example], dev: list[Example] | None, args: ZOConfig
) -> tuple[list[Example], list[Example] | None]:
    """Rows to tune on and to choose by, with what the base says of them, each read in the passes of its scores."""
    rows = args.per_device_eval_batch_size or None
    return scorer.with_base(examples), dev and scorer.with_base(dev, rows=rows)
