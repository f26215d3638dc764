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
    checked_rows,
    data_options,
    made_objective,
    prompt_options,
    quiet_transformers,
    rows_of,
    select_device,
    shot_rows_of,
    shown_prompts,
    sum_options,
)
from zoreward.records import InputError, ZorewardError
from zoreward.registry import Objective

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
        *own_options(MODEL_FIELDS + PROMPT_FIELDS),
        *prompt_options(),
        *own_options(TEXT_FIELDS),
        *own_options(TUNING_FIELDS),
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
        _check(values)
        objective = made_objective(source, given_options(context, values), values["also"])
        rows = _rows(objective, values)
        if values["show_prompts"]:
            prompt = {name: values[name] for name in PROMPT_FIELDS}
            print(shown_prompts(objective, prompt, values, rows["train_dataset"], rows["shot_dataset"]), file=out)
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
            scores = [] if before is None else [before, *_dev_scores(trainer)]
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
        "score": scores[-1] if scores else None,
        "best": max(scores, default=None),
        "steps": trainer.state.global_step,
        "seconds": seconds,
        "output": values["output"],
    }
    print(json.dumps(summary, ensure_ascii=False) if values["json"] else _sentence(summary, before))
    return 0


def _check(values: dict[str, Any]) -> None:
    """Find what is wrong with the options themselves."""
    check_output(Path(values["output"]))
    dev = values["eval_data"] or values["eval_split"]
    for name in ("eval_steps", "eval_limit"):
        if values[name] is not None and not dev:
            flag = {"eval_steps": "--eval-every"}.get(name, "--eval-limit")
            raise InputError(f"{flag} has no rows to score", hint=f"give --eval-data, or leave {flag} out")
    _check_numbers(values)


def _rows(objective: Objective, values: dict[str, Any]) -> dict[str, Any]:
    """The rows to tune on, the dev rows and those for demonstrations, as ZOTrainer's arguments."""
    prompt = {name: values[name] for name in PROMPT_FIELDS}
    shot_rows = shot_rows_of(objective, prompt, values)
    rows, dev_rows = rows_of(objective, prompt, values, shot_rows), None
    source, split = values["eval_data"] or values["data"], values["eval_split"]
    if values["eval_data"] is not None or split is not None:
        whose = {"config": values["data_config"], "revision": values["revision"]} if source == values["data"] else {}
        where = {**whose, "split": split, "limit": values["eval_limit"]}
        with _named(source):
            dev_rows = checked_rows(objective, prompt, source, shot_rows or rows, **where)
    return {"train_dataset": rows, "eval_dataset": dev_rows, "shot_dataset": shot_rows}


def _prepared(
    objective: Objective, rows: dict[str, Any], values: dict[str, Any]
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
        return trainer, progress, trainer.evaluate()["eval_score"] if rows["eval_dataset"] else None
    except BaseException:
        with contextlib.suppress(OSError):
            for folder in made:
                folder.rmdir()
        raise


def _trainer(objective: Objective, values: dict[str, Any], rows: dict[str, Any]) -> ZOTrainer:
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
        return ZOTrainer(model=values["model"], objective=objective, args=args, **rows)
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


def _dev_scores(trainer: ZOTrainer) -> list[float]:
    """The dev scores of a finished run, in order; the last is that of the tuned model."""

    def found() -> list[tuple[float, float]]:
        return [(log["step"], log["eval_score"]) for log in trainer.state.log_history if "eval_score" in log]

    if not found() or found()[-1][0] != trainer.state.global_step:
        trainer.evaluate()
    return [score for _, score in found()]


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
