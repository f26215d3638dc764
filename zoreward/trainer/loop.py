"""`ZOTrainer`: our steps in transformers' own training loop."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_utils import PredictionOutput
from transformers.utils import logging

from zoreward.config import Rewarding, part_of
from zoreward.data import rows_of
from zoreward.journal import Journal
from zoreward.members import called_model, check_merged, in_all_blocks, merged_copy
from zoreward.methods import all_scored
from zoreward.noise import derive_seed
from zoreward.records import Example, InputError, Query, Scored, StepRecord, one_line
from zoreward.registry import Source, no_score
from zoreward.registry.retries import with_retries
from zoreward.scoring import (
    LocalEngine,
    Scorer,
    checked_scorer,
    generation_of,
    load_tokenizer,
    prepare_tokenizer,
    statistics_of,
    with_base,
)
from zoreward.trainer.drift import check_drift, drift_of
from zoreward.trainer.inputs import (
    check_batches,
    check_quantised,
    checked_head,
    made_examples,
    name_of,
    one_objective,
    refuse_what_is_missing,
    tunes_adapter,
    warn_about_classes,
    warn_about_context,
    warn_about_one_class,
)
from zoreward.trainer.keeper import Keeper
from zoreward.trainer.memory import checked_memory
from zoreward.trainer.optimizer import Batch, UpdateOptimizer
from zoreward.trainer.options import ZOConfig, completed, family_of_run, method_of
from zoreward.trainer.predicting import predicted
from zoreward.trainer.ready import eps_that_shows, ready_model
from zoreward.trainer.resumable import ResumableTrainer
from zoreward.trainer.window import Window, save_completions

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftConfig, PeftModel

# Rows on which objective and model are tried before step 1: enough for a set-level metric to be defined, and a
# forward pass or two.
TRIAL_ROWS = 8

# Keeps the seeds of what is drawn in a step apart from those of its directions and of its rounding.
SAMPLING_INDEX = 2**64 - 2


class ZOTrainer(ResumableTrainer):
    """Tunes a language model on an objective with forward passes alone.

    Everything is checked before anything is written: the objective, the rows, the template, the model, and the
    objective's value on a few rows.

    Args:
        model: a folder or Hub id, or a loaded model: a causal or masked language model, or a classifier. Of one with an
            adapter the adapter is tuned.
        reward_funcs: the objective, as GRPOTrainer takes it: a function, a reward model (a sequence classifier of one
            logit) or its path, or several; or the name of an objective.
        args: the options.
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

    Attributes:
        objective: the `Objective`.
        head: what kind of model is tuned, and a classifier's classes.
        method: the method at work, and `method_state`, where it stands.
        scorer: the `Scorer` of its members.
        memory: the `Memory` that the run was thought to need before its weights were read, or None.
        drift: the `Drift` that says how far the run has moved, or None.
        kept_step: after how many steps the model stands, once a run is over: its last, or the best one with
            `load_best_model_at_end`.
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

    optimizer: Any  # of Trainer; said again for type checkers that do not read transformers

    def __init__(
        self,
        model: PreTrainedModel | PeftModel | str,
        reward_funcs: Source | Sequence[Source] | None = None,
        args: ZOConfig | None = None,
        train_dataset: Dataset | Sequence[dict[str, Any]] | None = None,
        eval_dataset: Dataset | Sequence[dict[str, Any]] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        reward_processing_classes: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        peft_config: PeftConfig | None = None,
        *,
        objective: Source | Sequence[Source] | None = None,
        shot_dataset: Dataset | Sequence[dict[str, Any]] | None = None,
    ):
        args = args or ZOConfig()
        refuse_what_is_missing(model, args, peft_config)
        chosen = one_objective(objective, reward_funcs, reward_processing_classes, args)
        self.objective = with_retries(chosen, part_of(Rewarding, args))
        adapter, needs = tunes_adapter(model, args, peft_config), self.objective.needs
        eps_given, args = args.eps is not None, completed(args, needs, adapter=adapter)
        self.method, generation = method_of(args), generation_of(args, args.seed)
        check_drift(args)
        train_rows = rows_of(train_dataset if train_dataset is not None else ())
        self.head = checked_head(model, args, train_rows)
        check_quantised(model, args, adapter)
        tokenizer = processing_class or load_tokenizer(
            name_of(model), trust_remote_code=args.trust_remote_code, kind=self.head.kind
        )
        tokenizer = prepare_tokenizer(tokenizer, self.head.kind)
        self._shot_rows = rows_of(shot_dataset) if shot_dataset is not None else train_rows
        settings = (needs, args, tokenizer, model, self._shot_rows, self.head)
        train_examples = made_examples(train_rows, *settings)
        self.method = method_of(args, rows=len(train_examples))
        eval_examples = made_examples(eval_dataset, *settings) if eval_dataset is not None else None
        check_batches(args, len(train_examples))
        warn_about_context(train_examples, args.shots if needs != "completions" else 0)
        batch_rows = args.per_device_train_batch_size * args.gradient_accumulation_steps
        warn_about_classes(self.objective, train_examples, batch_rows)
        self.method_state = self.method.init()
        query = self.method.ask(self.method_state)
        self.memory = checked_memory(
            model, args, peft_config, query, needs, train_examples, adapter=adapter, head=self.head
        )
        self.ready = ready_model(model, self.head, args, peft_config)
        args.eps = eps_that_shows(self.ready.tuned, args, given=eps_given)
        self.method = method_of(args, rows=len(train_examples), blocks=len(set(self.ready.tuned.blocks.values())))
        query = self.method.ask(self.method_state)
        self.scorer = self._checked_scorer(tokenizer, generation, train_examples, query, args)
        warn_about_one_class(self.scorer, train_examples, args)
        if self.objective.compares_with_base:  # which the model is now, and after step 1 no more
            train_examples = with_base(self.scorer.reader, train_examples)
            if eval_examples is not None:
                eval_examples = with_base(self._eval_reader(args), eval_examples)
        self.drift = drift_of(self.ready.model, args, eval_examples or train_examples)
        self._generation_config = copy.deepcopy(getattr(called_model(self.ready.model), "generation_config", None))
        self._stand_at_base()
        super().__init__(
            model=self.ready.model,
            args=args,
            data_collator=Batch,
            train_dataset=train_examples,  # type: ignore[arg-type]
            eval_dataset=eval_examples,  # type: ignore[arg-type]
            processing_class=tokenizer,
            callbacks=[*(callbacks or ()), self.keeper],
        )

    def _checked_scorer(
        self, tokenizer: Any, generation: Any, examples: list[Example], query: Query, args: ZOConfig
    ) -> Scorer:
        """The scorer, tried on some rows with the members of the first step; says if they cannot share a pass."""
        model, tuned, rows = self.ready.model, self.ready.tuned, examples[:TRIAL_ROWS]
        members = in_all_blocks(query.members)
        scorer = checked_scorer(
            model, tokenizer, self.objective, generation, rows, members, tuned=tuned, together=len(query.parts[0])
        )
        if scorer.problem:
            times = f"a step takes up to {len(query.members)} times as long"
            logging.get_logger(__name__).warning("Members are scored one at a time (%s): %s.", times, scorer.problem)
            if family_of_run(args).rank:  # so each is rounded, after all
                eps_that_shows(tuned, args, given=True, one_at_a_time=True)
        return scorer

    def _stand_at_base(self) -> None:
        """What is known of a run that has not begun."""
        self.last_step: StepRecord | None = None
        self.last_rows: list[Example] = []
        self.last_scored: list[Scored] = []
        self._rows: list[Example] = []
        self._loss = 0.0
        self._window = Window()
        self._journal: Journal | None = None
        self._finished = self.begun_with_a_score = False
        self.header: dict[str, Any] = {}
        self.provenance: dict[str, Any] = {}
        self.kept_step = -1  # while the run lasts; 0 is the base
        self.keeper = Keeper()

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
        examples = self.eval_dataset
        if eval_dataset is not None:
            examples = self._other_examples(eval_dataset)
        if examples is None:
            raise InputError("there are no rows to evaluate on", hint="Give ZOTrainer an eval_dataset.")
        start = time.perf_counter()
        rows = self.args.per_device_eval_batch_size or None
        [scored] = self.scorer.score(examples, seed=self.args.seed, rows=rows, trainer_state=self.state)
        if math.isnan(scored.score):  # the best step is chosen by it
            raise no_score(self.objective.name, len(examples))
        values = {"score": scored.score, **statistics_of([scored]), **scored.metrics, "rows": float(len(examples))}
        if self.drift:
            values |= self.drift.measured(self.scorer, seed=self.args.seed, scored=scored, of=examples)
            self._bound(values["kl"])
        if len(scored.part_scores) > 1:
            values |= {f"score/{name}": value for name, value in scored.part_scores.items()}
        values["runtime"] = time.perf_counter() - start
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in values.items()}
        self.log(metrics)
        by_our_rows = metric_key_prefix == "eval" and eval_dataset is None
        if self._journal is not None and by_our_rows:
            self._write_evaluation(self.state.global_step, metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        if by_our_rows and not self.state.global_step:
            by = f"eval_{str(self.args.metric_for_best_model).removeprefix('eval_')}"
            self.state.best_metric = self.keeper.first_score = metrics.get(by)
        return metrics

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, or the adapter where one is tuned, the tokenizer, and a card that says how it was made.

        With the option `merge` the whole model with its adapter merged in; checkpoints keep the adapter. Unlike
        `transformers.Trainer.save_model` it leaves no pickle (`training_args.bin`): the journal has the options.

        Raises:
            InputError: the merged model gives something else than the model with its adapter; nothing is saved.
        """
        merge, folder = self.args.merge and not _internal_call, output_dir or self.args.output_dir
        model: Any = merged_copy(self.model) if merge else self.model
        if merge:
            check_merged(self.model, model, self.train_dataset[0].prompt_tokens)  # type: ignore[index]
        if isinstance(model, PreTrainedModel):  # transformers' loop has written the tokenizer's end tokens into it
            model.generation_config = self._generation_config
        model.save_pretrained(folder)
        self.processing_class.save_pretrained(folder)
        self.write_card(folder, merged=merge)  # PEFT has written one of its own
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

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
        settings: dict[str, Any] = {"seed": self.args.seed, "rows": self.args.per_device_eval_batch_size or None}
        scored, predictions, labels = predicted(self.scorer, examples, trainer_state=self.state, **settings)
        values = {"score": scored.score, **statistics_of([scored]), **scored.metrics, "rows": float(len(examples))}
        values["runtime"] = time.perf_counter() - start
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in values.items()}
        return PredictionOutput(predictions=predictions, label_ids=labels, metrics=metrics)

    def _other_examples(self, rows: Sequence[dict[str, Any]]) -> list[Example]:
        """Rows that are not those to choose by, made ready."""
        settings = (self.objective.needs, self.args, self.processing_class, self.model, self._shot_rows, self.head)
        examples = made_examples(rows, *settings)
        if not self.objective.compares_with_base:
            return examples
        if self.method_state.step:
            hint = "Give them as eval_dataset when ZOTrainer is made; or evaluate(…, base=…)."
            raise InputError("the model has moved, so other rows have no base to compare with", hint=hint)
        return with_base(self._eval_reader(self.args), examples)

    def _bound(self, kl: float) -> None:
        """End the run after this step if the model has moved too far; the rows to choose by are scored once more."""
        if self.drift and self.drift.exceeds(kl):
            self.keeper.stopped_by = "kl"
            self.control.should_training_stop = True
            self.control.should_evaluate = self.args.eval_strategy != "no"

    def _eval_reader(self, args: ZOConfig) -> LocalEngine:
        """The reader as `evaluate` reads: the same batches, so that a model that has not moved ties with its base."""
        return replace(self.scorer.reader, rows=args.per_device_eval_batch_size or None)

    # What follows are hooks of transformers' training loop; tests/test_trainer.py runs them in it.

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Return the optimizer: it gives schedulers a learning rate to set, and calls our update."""
        weights = list(self.scorer.reader.tuned.weights.values())
        self.optimizer = UpdateOptimizer(weights, self.args.learning_rate, self._apply_update)
        return self.optimizer

    def training_step(self, model: nn.Module, inputs: Batch, num_items_in_batch: Any = None) -> torch.Tensor:
        """Collect a batch; with the last one of a step, score the members on all of them. Returns minus the score.

        Where a step has no score, minus that of the last step that has one.
        """
        self._rows += inputs.examples
        if self.last_step is not None:  # accelerate's wrapper looks for a package on the disk in each step
            self.optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        if not self.accelerator.sync_gradients:
            return torch.zeros((), device=self.args.device)
        rows, self._rows = self._rows, []
        query = self.method.ask(self.method_state)
        seed = derive_seed(self.args.seed, query.step, SAMPLING_INDEX)
        if query.rows == "all":
            rows = list(self.train_dataset)  # type: ignore[arg-type]
        scored = [
            one
            for members in query.parts
            for one in self.scorer.score(rows, members, seed=seed, trainer_state=self.state)
        ]
        if self.drift:
            scored = self.drift.penalised(self.scorer, rows, query.members, scored)
        scores = tuple(one.score for one in scored)
        rate = self._get_learning_rate()
        update, self.method_state = self.method.tell(self.method_state, query, scores, lr=rate)
        self.last_step = StepRecord(query.step, scores, update, rate)
        self.last_rows, self.last_scored = rows, scored
        self._window.add(scored)
        every = self.args.completions_every
        if every and query.step % every == 0 and self.objective.needs == "completions":
            try:
                save_completions(self.args.output_dir, query.step, rows, scored)
            except Exception as error:  # the run does not need them
                logging.get_logger(__name__).warning("Completions could not be written: %s.", one_line(error))
        if all_scored(scores):
            self._loss = -math.fsum(scores) / len(scores)
        elif self.method_state.unscored == 1:
            logging.get_logger(__name__).warning(
                "Step %d moves nothing: %r has no score on its rows. More of this kind are counted, not told.",
                *(query.step + 1, self.objective.name),
            )
        return torch.full((), self._loss, device=self.args.device)

    def _apply_update(self) -> None:
        record = self.last_step
        assert record is not None
        self._write_step(record)
        self.scorer.engine.apply(record.update)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> float:
        assert self.last_step is not None
        return _slope(self.last_step, self.method.directions.drawn(self.last_step.step))

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted."""
        return 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with what the steps since the last time were like, the share without signal, and the drift.

        Also how many steps had no score so far, if any; the loss is of those that had one.
        """
        if "loss" in logs and self._window:
            logs |= self._window.means()
            logs["silent"] = self.method_state.silent / self.method_state.step
            if self.method_state.unscored:
                logs["unscored"] = self.method_state.unscored
                del logs["loss"]
                logs |= {"loss": -logs["score"]} if "score" in logs else {}
            if self.drift:
                logs |= self.drift.measured(self.scorer, seed=self.args.seed)
                self._bound(logs["kl"])
        super().log(logs, start_time)


def _slope(record: StepRecord, directions: int) -> float:
    """The norm of what the step made of the scores along its directions, in the place of a gradient's.

    With raw differences it is the norm of the projected gradients.
    """
    norm = math.sqrt(math.fsum(term.coefficient**2 for term in record.update.terms))
    return norm * directions / record.lr if record.lr else 0.0
