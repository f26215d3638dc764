"""`zoreward tune OBJECTIVE`: tune a model on an objective."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from zoreward.cli.errors import one_line, place_of, report
from zoreward.cli.options import (
    DATA,
    MODEL_FIELDS,
    PROMPT_FIELDS,
    RUN,
    TUNING,
    TUNING_FIELDS,
    command,
    given_options,
    objective_options,
    option,
    own_options,
    resolved,
)
from zoreward.cli.prepare import checked_rows, quiet_transformers
from zoreward.records import InputError, ZorewardError
from zoreward.registry import Objective, get_objective

if TYPE_CHECKING:
    import inspect

    from zoreward.cli.progress import ProgressCallback
    from zoreward.trainer import ZOTrainer

CONFIG_NAME = "config.yaml"
_RUN_FILES = (CONFIG_NAME, "journal.jsonl")


def tune_command(source: str, found: Objective) -> Callable[..., int]:
    """Return the command that tunes a model on the objective that `source` names."""
    parameters = [
        option("model", str, "A folder, or a Hub id such as facebook/opt-125m.", DATA),
        option("data", str, "The rows to tune on: .jsonl, .json, .csv or .parquet.", DATA),
        option("eval_data", str | None, "Dev rows: scored before step 1, at the end and between.", DATA, default=None),
        *own_options(MODEL_FIELDS + PROMPT_FIELDS + TUNING_FIELDS),
        *_trainer_options(),
        option("output", str, "The run folder to write to.", RUN, "--output"),
        option("json", bool, "Print one JSON object as the last line.", RUN, default=False),
    ]
    parameters += objective_options(found, parameters)
    return command(functools.partial(_tune, source), parameters)


def _trainer_options() -> list[inspect.Parameter]:
    """The options of `transformers.TrainingArguments` that have a flag of their own, under their names there."""
    accumulation = "Batches a step; their rows are scored together."
    schedule = "How the learning rate changes: constant, linear, cosine, …"
    warmup = "Steps over which the learning rate rises from 0."
    between = "Score the dev rows every so many steps."
    loggers = "Where the scores go too: wandb, tensorboard, mlflow, …"
    return [
        option("max_steps", int, "Steps.", TUNING, "--steps", default=1000, least=1),
        option("per_device_train_batch_size", int, "Rows a batch.", TUNING, "--batch-size", default=16, least=1),
        option("gradient_accumulation_steps", int, accumulation, TUNING, default=1, least=1),
        option("learning_rate", float, "Learning rate.", TUNING, "--lr", default=1e-6),
        option("lr_scheduler_type", str, schedule, TUNING, default="constant"),
        option("warmup_steps", int, warmup, TUNING, default=0, least=0),
        option("weight_decay", float, "Weight decay, times the learning rate.", TUNING, default=0.0),
        option("seed", int, "Seed of directions and of the order of rows.", RUN, default=0),
        option("eval_steps", int | None, between, RUN, "--eval-every", default=None, least=1),
        option("logging_steps", int, "Log every so many steps.", RUN, default=10, least=1),
        option("report_to", str, loggers, RUN, default="none"),
    ]


def _tune(source: str, context: typer.Context, values: dict[str, Any]) -> int:
    # What a model, a tokenizer or an objective prints is not the result.
    with contextlib.redirect_stdout(sys.stderr):
        trainer, progress, before = _prepared(source, given_options(context, values), values)
        write_config(Path(values["output"]), resolved(source, values))
        start = time.perf_counter()
        try:
            with progress:
                trainer.train()
            trainer.save_model(str(Path(values["output"], "model")))
            scores = [] if before is None else [before, *_dev_scores(trainer)]
        except KeyboardInterrupt:
            print(f"interrupted after step {trainer.state.global_step}; {values['output']} keeps the journal")
            return 130
        except ZorewardError as error:
            return report(error, code=1)
        except Exception:
            traceback.print_exc()
            return 1
    summary = {
        "objective": trainer.objective.name,
        "score": scores[-1] if scores else None,
        "best": max(scores, default=None),
        "steps": trainer.state.global_step,
        "seconds": round(time.perf_counter() - start, 3),
        "output": values["output"],
    }
    print(json.dumps(summary, ensure_ascii=False) if values["json"] else _sentence(summary, before))
    return 0


def _prepared(
    source: str, options: dict[str, Any], values: dict[str, Any]
) -> tuple[ZOTrainer, ProgressCallback, float | None]:
    """Everything that can fail before step 1; of the run folder nothing is left if it does."""
    output = Path(values["output"])
    check_output(output)
    if values["eval_steps"] is not None and values["eval_data"] is None:
        raise InputError("--eval-every has no rows to score", hint="give --eval-data, or leave --eval-every out")
    _check_numbers(values)
    objective = get_objective(source, **options)
    prompt = {name: values[name] for name in PROMPT_FIELDS}
    rows = checked_rows(values["data"], objective, prompt)
    dev_rows = None
    if values["eval_data"] is not None:
        with _named(values["eval_data"]):
            dev_rows = checked_rows(values["eval_data"], objective, prompt)
    made = [folder for folder in (output, *output.parents) if not folder.exists()]  # by transformers' Trainer
    try:
        trainer = _trainer(objective, values, rows, dev_rows)
        from zoreward.cli.progress import ProgressCallback, without_own_progress

        without_own_progress(trainer)
        progress = ProgressCallback(trainer)
        trainer.add_callback(progress)
        return trainer, progress, trainer.evaluate()["eval_score"] if dev_rows else None
    except BaseException:
        with contextlib.suppress(OSError):
            for folder in made:
                folder.rmdir()
        raise


def _trainer(objective: Objective, values: dict[str, Any], rows: list[Any], dev_rows: list[Any] | None) -> ZOTrainer:
    quiet_transformers()
    from zoreward.trainer import ZOConfig, ZOTrainer

    names = [*MODEL_FIELDS, *PROMPT_FIELDS, *TUNING_FIELDS, *(parameter.name for parameter in _trainer_options())]
    try:
        args = ZOConfig(
            **{name: values[name] for name in names},
            output_dir=values["output"],
            eval_strategy="steps" if values["eval_steps"] else "no",
            disable_tqdm=True,
        )
        return ZOTrainer(
            model=values["model"],
            objective=objective,
            args=args,
            train_dataset=rows,
            eval_dataset=dev_rows,
        )
    except ZorewardError:
        raise
    except ValueError as error:  # transformers' own checks of its options
        hint = f"change the option that it is about, or leave it out ({place_of(error)})"
        raise InputError(one_line(str(error)), hint=hint) from error


def _dev_scores(trainer: ZOTrainer) -> list[float]:
    """The dev scores of a finished run, in order; the last is that of the tuned model."""

    def found() -> list[tuple[float, float]]:
        return [(log["step"], log["eval_score"]) for log in trainer.state.log_history if "eval_score" in log]

    if not found() or found()[-1][0] != trainer.state.global_step:
        trainer.evaluate()
    return [score for _, score in found()]


def _check_numbers(values: dict[str, Any]) -> None:
    from zoreward.methods import SPSA

    names = ("eps", "num_directions", "weight_decay", "seed")
    try:
        SPSA(lr=values["learning_rate"], **{name: values[name] for name in names})
    except ValueError as error:
        raise InputError(str(error), hint="change the option of that name") from None


def check_output(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise InputError(f"--output {output} is a file", hint="give a folder that does not exist yet")
    for name in _RUN_FILES:
        if (output / name).exists():
            raise InputError(f"{output} holds a run already ({name})", hint="choose another folder for --output")


def write_config(output: Path, options: dict[str, Any]) -> None:
    import yaml

    try:
        output.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(options, sort_keys=False, allow_unicode=True)
        (output / CONFIG_NAME).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"--output {output} cannot be written: {error.strerror}", hint="choose another") from error


@contextlib.contextmanager
def _named(path: str) -> Iterator[None]:
    """Say which file an error is about."""
    try:
        yield
    except ZorewardError as error:
        if path in str(error):
            raise
        raise type(error)(f"{path}: {error}", hint=error.hint) from error


def _sentence(summary: dict[str, Any], before: float | None) -> str:
    tuned = (
        f"{summary['steps']} steps in {summary['seconds']:.1f} s; the model is in {Path(summary['output'], 'model')}"
    )
    if before is None:
        return tuned
    dev = f"{summary['objective']} on the dev rows: {before:.4f} → {summary['score']:.4f}, best {summary['best']:.4f}"
    return f"{dev}\n{tuned}"
