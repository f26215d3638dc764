"""`zoreward tune OBJECTIVE`: tune a model on an objective."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from zoreward.cli.errors import one_line, report
from zoreward.cli.options import (
    DATA,
    MODEL_FIELDS,
    PROMPT_FIELDS,
    REWARD_FIELDS,
    RUN,
    TEXT_FIELDS,
    TUNING,
    TUNING_FIELDS,
    command,
    config_option,
    given_options,
    objective_options,
    option,
    own_options,
    resolved,
)
from zoreward.cli.prepare import (
    batch_option,
    data_options,
    made_objective,
    patient_objective,
    prompt_options,
    quiet_transformers,
    select_device,
    shown_prompts,
    sum_options,
)
from zoreward.cli.rows import TuningRows, has_dev_rows, tuning_rows
from zoreward.cli.task import task_options, with_task
from zoreward.records import InputError, ZorewardError
from zoreward.registry import Objective, get_objective, place_of

if TYPE_CHECKING:
    import inspect

    from zoreward.cli.progress import ProgressCallback
    from zoreward.trainer import ZOTrainer

CONFIG_NAME = "config.yaml"
# Options whose defaults depend on what the objective needs.
_BY_NEED = ("noise", "eps", "num_directions", "normalize", "learning_rate")
_RUN_FILES = (CONFIG_NAME, "journal.jsonl")


def tune_command(source: str, found: Objective) -> Callable[..., int]:
    """Return the command that tunes a model on the objective that `source` names."""
    dev = "Dev rows, a file or a Hub dataset: scored before step 1, at the end and between."
    dev_split = "The split of the dev rows in a Hub dataset: that of --eval-data, else of --data."
    others = "Another field of transformers' TrainingArguments, as name=value. Give it once for each."
    parameters = [
        *data_options("tune on"),
        option("eval_data", str | None, dev, DATA, default=None),
        option("eval_split", str | None, dev_split, DATA, default=None),
        option("eval_limit", int | None, "Take the first dev rows only.", DATA, default=None, least=1),
        *task_options("tune"),
        *own_options(MODEL_FIELDS + PROMPT_FIELDS),
        *prompt_options(),
        *own_options(TEXT_FIELDS),
        *own_options(TUNING_FIELDS),
        *own_options(REWARD_FIELDS),
        *_trainer_options(),
        batch_option(),
        option("set", list[str] | None, others, RUN, default=None),
        option("output", str, "The run folder to write to.", RUN, "--output"),
        option("json", bool, "Print one JSON object as the last line.", RUN, default=False),
        *sum_options(),
    ]
    parameters += objective_options(found, parameters)
    parameters.append(config_option("tune", source, parameters))
    return command(functools.partial(_tune, source), parameters)


def _trainer_options() -> list[inspect.Parameter]:
    """The options of `transformers.TrainingArguments` that have a flag of their own, under their names there."""
    rate = "Learning rate. Default: 1e-6, for text 3e-3."
    accumulation = "Batches a step; their rows are scored together."
    schedule = "How the learning rate changes: constant, linear, cosine, …"
    warmup = "Steps over which the learning rate rises from 0."
    between = "Score the dev rows every so many steps."
    loggers = "Where the scores go too: wandb, tensorboard, mlflow, …"
    return [
        option("max_steps", int, "Steps.", TUNING, "--steps", default=1000, least=1),
        option("per_device_train_batch_size", int, "Rows a batch.", TUNING, "--batch-size", default=16, least=1),
        option("gradient_accumulation_steps", int, accumulation, TUNING, default=1, least=1),
        option("learning_rate", float | None, rate, TUNING, "--lr", default=None),
        option("lr_scheduler_type", str, schedule, TUNING, default="constant"),
        option("warmup_steps", int, warmup, TUNING, default=0, least=0),
        option("weight_decay", float, "Weight decay, times the learning rate.", TUNING, default=0.0),
        option("seed", int, "Seed of directions and of the order of rows.", RUN, default=0),
        option("eval_steps", int | None, between, RUN, "--eval-every", default=None, least=1),
        option("logging_steps", int, "Log every so many steps.", RUN, default=10, least=1),
        option("report_to", str, loggers, RUN, default="none"),
    ]


def _tune(source: str, context: typer.Context, values: dict[str, Any]) -> int:
    out = sys.stdout
    # What a model, a tokenizer or an objective prints is not the result.
    with contextlib.redirect_stdout(sys.stderr):
        task = with_task("tune", context, values)
        _check(values)
        objective = made_objective(source, given_options(context, values), values["also"])
        patient_objective(objective, values)  # the trainer makes it so; here it is seen whether it can be
        at_end = objective
        if task is not None and task.objective != objective.name:
            at_end = get_objective(task.objective)
        rows = tuning_rows(objective, at_end, values, task)
        if values["show_prompts"]:
            prompt = {name: values[name] for name in PROMPT_FIELDS}
            print(shown_prompts(objective, prompt, values, rows.train, rows.shots), file=out)
            return 0
        trainer, progress, before = _prepared(objective, rows, values)
        chosen = {name: getattr(trainer.args, name) for name in values if values[name] is None and name in _BY_NEED}
        write_config(Path(values["output"]), resolved(source, {**values, **chosen}))
        start = time.perf_counter()
        try:
            with progress:
                trainer.train()
            seconds = round(time.perf_counter() - start, 3)
            trainer.save_model(str(Path(values["output"], "model")))
            scores = [] if before is None else [(0, before), *_dev_scores(trainer)]
            test = {} if rows.test is None else _test_score(trainer, at_end, rows, values)
        except KeyboardInterrupt:
            print(f"interrupted after step {trainer.state.global_step}; {values['output']} keeps the journal")
            print(f"zoreward replay {values['output']} --model {values['model']} --output FOLDER makes the model of it")
            return 130
        except ZorewardError as error:
            return report(error, code=1)
        except Exception:
            traceback.print_exc()
            return 1
    summary = {
        "objective": trainer.objective.name,
        "score": scores[-1][1] if scores else None,
        "best": max((score for _, score in scores), default=None),
        "best_step": max(scores, key=lambda found: found[1])[0] if scores else None,
        **(_metrics(trainer) if scores else {}),
        **({"stopped": "kl"} if trainer.drift and trainer.drift.exceeded is not None else {}),
        **test,
        "steps": trainer.state.global_step,
        "seconds": seconds,
        "output": values["output"],
    }
    print(json.dumps(summary, ensure_ascii=False) if values["json"] else _sentence(summary, before))
    return 0


def _check(values: dict[str, Any]) -> None:
    """Find what is wrong with the options themselves."""
    check_output(Path(values["output"]))
    for name in ("eval_steps", "eval_limit"):
        if values[name] is not None and not has_dev_rows(values):
            flag = {"eval_steps": "--eval-every"}.get(name, "--eval-limit")
            raise InputError(f"{flag} has no rows to score", hint=f"give --eval-data, or leave {flag} out")
    _check_numbers(values)


def _prepared(
    objective: Objective, rows: TuningRows, values: dict[str, Any]
) -> tuple[ZOTrainer, ProgressCallback, float | None]:
    """Everything else that can fail before step 1; of the run folder nothing is left if it does."""
    output = Path(values["output"])
    made = [folder for folder in (output, *output.parents) if not folder.exists()]  # by transformers' Trainer
    try:
        trainer = _trainer(objective, values, rows)
        print(_what_is_tuned(trainer))
        from zoreward.cli.progress import ProgressCallback, without_own_progress

        without_own_progress(trainer)
        progress = ProgressCallback(trainer)
        trainer.add_callback(progress)
        return trainer, progress, trainer.evaluate()["eval_score"] if rows.dev else None
    except BaseException:
        with contextlib.suppress(OSError):
            for folder in made:
                folder.rmdir()
        raise


def _trainer(objective: Objective, values: dict[str, Any], rows: TuningRows) -> ZOTrainer:
    device = select_device(values["device"])
    quiet_transformers()
    from zoreward.scoring import checked_device
    from zoreward.trainer import ZOConfig, ZOTrainer

    kind = checked_device(device).type if device else None
    names = [
        *MODEL_FIELDS,
        *PROMPT_FIELDS,
        *TEXT_FIELDS,
        *TUNING_FIELDS,
        *REWARD_FIELDS,
        *(parameter.name for parameter in _trainer_options()),
    ]
    settings = {name: values[name] for name in names}
    settings |= {
        "output_dir": values["output"],
        "eval_strategy": "steps" if values["eval_steps"] else "no",
        "per_device_eval_batch_size": values["eval_batch_size"] or 0,
        "disable_tqdm": True,
        "use_cpu": kind == "cpu",
    }
    try:
        args = ZOConfig(**settings | _others(values["set"], settings, ZOConfig))
        datasets: dict[str, Any] = {"train_dataset": rows.train, "eval_dataset": rows.dev, "shot_dataset": rows.shots}
        return ZOTrainer(model=values["model"], objective=objective, args=args, **datasets)
    except ZorewardError:
        raise
    except (ValueError, TypeError) as error:  # transformers' own checks of its options
        hint = f"change the option that it is about, or leave it out ({place_of(error)})"
        raise InputError(one_line(str(error)), hint=hint) from error


def _others(given: list[str] | None, settings: dict[str, Any], config: type) -> dict[str, Any]:
    """The fields that --set gives, as YAML reads their values."""
    import yaml

    fields = [field.name for field in dataclasses.fields(config) if field.init]
    found = {}
    for one in given or ():
        name, equals, value = one.partition("=")
        if not equals:
            raise InputError(f"--set {one}: there is no value", hint="--set name=value")
        if name in settings:
            raise InputError(f"--set {name}: it has an option of its own", hint="zoreward tune … --help lists them")
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            hint = f"did you mean {near[0]}?" if near else "the fields are those of transformers.TrainingArguments"
            raise InputError(f"--set {name}: there is no such field", hint=hint)
        found[name] = yaml.safe_load(value)
    return found


def _what_is_tuned(trainer: ZOTrainer) -> str:
    count = sum(weight.numel() for weight in trainer.scorer.reader.tuned.weights.values())
    return f"{count:,} of {sum(weight.numel() for weight in trainer.model.parameters()):,} weights are tuned"


def _dev_scores(trainer: ZOTrainer) -> list[tuple[int, float]]:
    """The steps and dev scores of a finished run, in order; the last is that of the tuned model."""

    def found() -> list[tuple[int, float]]:
        return [(log["step"], log["eval_score"]) for log in trainer.state.log_history if "eval_score" in log]

    if not found() or found()[-1][0] != trainer.state.global_step:
        trainer.evaluate()
    return found()


def _test_score(trainer: ZOTrainer, objective: Objective, rows: TuningRows, values: dict[str, Any]) -> dict[str, Any]:
    """The score of the tuned model on the test rows, which nothing has seen until now."""
    from zoreward.scoring import evaluate
    from zoreward.trainer.options import generation_of

    prompt = {name: values[name] for name in PROMPT_FIELDS}
    result = evaluate(
        trainer.model,
        objective,
        rows.test or [],
        tokenizer=trainer.processing_class,
        **prompt,
        shot_rows=rows.shots or rows.train,
        seed=values["seed"],
        batch_size=values["eval_batch_size"],
        generation=generation_of(trainer.args),
    )
    return {"test": result.score, "test_objective": result.objective, "test_rows": result.rows}


def _metrics(trainer: ZOTrainer) -> dict[str, float]:
    """What the last evaluation on the dev rows found beside the score."""
    last = next(log for log in reversed(trainer.state.log_history) if "eval_score" in log)
    told = ("eval_score", "eval_rows", "eval_runtime")
    return {name[5:]: value for name, value in last.items() if name.startswith("eval_") and name not in told}


def _check_numbers(values: dict[str, Any]) -> None:
    from zoreward.methods import SPSA

    names = {"eps": "eps", "num_directions": "num_directions", "learning_rate": "lr", "weight_decay": "weight_decay"}
    given = {name: values[option] for option, name in names.items() if values[option] is not None}
    try:
        SPSA(**given, seed=values["seed"])
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


def _sentence(summary: dict[str, Any], before: float | None) -> str:
    tuned = (
        f"{summary['steps']} steps in {summary['seconds']:.1f} s; the model is in {Path(summary['output'], 'model')}"
    )
    told = []
    if before is not None:
        dev = f"{before:.4f} → {summary['score']:.4f}, best {summary['best']:.4f} at step {summary['best_step']}"
        told.append(f"{summary['objective']} on the dev rows: {dev}")
    if "test" in summary:
        told.append(f"{summary['test_objective']} on the {summary['test_rows']:,} test rows: {summary['test']:.4f}")
    return "\n".join([*told, tuned])
