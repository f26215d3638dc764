"""`zoreward tune OBJECTIVE`: tune a model on an objective."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import itertools
import math
import os
import re
import shlex
import sys
import time
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from zoreward.cli.as_tuned import as_tuned
from zoreward.cli.dry_run import told_of
from zoreward.cli.ending import (
    finishing_steps,
    found_in,
    interrupted,
    provenance_of,
    resume_command,
    sentence_of,
    summary_of,
)
from zoreward.cli.flags import given_options, objective_command, resolved
from zoreward.cli.human import with_answers
from zoreward.cli.prepare import (
    check_folder,
    made_objective,
    next_to,
    numbered,
    objective_with_retries,
    quiet_transformers,
    select_device,
    shown_prompts,
)
from zoreward.cli.printing import Outcome, is_first, report, report_failure
from zoreward.cli.publishing import make_repository, upload
from zoreward.cli.report import write_page
from zoreward.cli.saving import (
    CONFIG_NAME,
    MODEL_NAME,
    digest_of_rows,
    finished_run,
    save_model,
    say_why,
    with_findings,
)
from zoreward.cli.task_rows import TuningRows, has_dev_rows, options_for, tuning_rows, with_task
from zoreward.cli.via_reward import save_head, via_reward, with_reward_defaults
from zoreward.config import (
    DEFAULT_OUTPUT,
    DEFAULTED,
    METHOD_DEFAULTS,
    METHOD_OPTIONS,
    Prompting,
    Steps,
    TuneOptions,
    ZOArguments,
    part_of,
)
from zoreward.data.reading import fitting, parse_yaml
from zoreward.neighbours.of_launchers import launch_of
from zoreward.neighbours.of_transformers import silence_, start_logger
from zoreward.neighbours.of_typer import source_of, words_of
from zoreward.records import InputError, SilentRunError, StorageError, ZorewardError, one_line, printable
from zoreward.registry import Objective, get_objective, place_of

if TYPE_CHECKING:
    from zoreward.cli.progress import ProgressCallback
    from zoreward.data import Task
    from zoreward.scoring import RewardHead
    from zoreward.scoring.elastic import Coordinator
    from zoreward.trainer import ZOConfig, ZOTrainer

_RUN_FILES = (CONFIG_NAME, "journal.jsonl")
# How many steps there are where nobody says it, and how often dev rows are scored that choose between them.
_STEPS, _DEV_SCORES = 1000, 10


def make_command(source: str, objective: Objective) -> Callable[..., int]:
    """Return the command that tunes a model on the objective that `source` names."""
    return objective_command(_tune, TuneOptions, "tune", source, objective)


def _tune(source: str, context: typer.Context, options: TuneOptions, flags: dict[str, Any]) -> Outcome | int:
    words = words_of(context)
    options, task = with_task(context, _with_output(options, source))
    _check(options)
    of_objective = options_for(source, task) | given_options(context, flags)
    written = {name: value for name, value in of_objective.items() if name in flags}  # a task may set others too
    objective = made_objective(source, of_objective, options)
    objective_with_retries(objective, options)  # the trainer makes it so; here it is seen whether it can be
    _refuse_with_workers(objective, options)
    at_end = _scored_at_end(objective, source, of_objective, task)
    options = with_reward_defaults(context, options) if objective.goes_via_reward else options
    options = as_tuned(context, options, objective)
    options = with_answers(context, objective, options) if objective.asks_people else options
    rows = tuning_rows(objective, at_end, options, task, words)
    words += () if source_of(context, "output") != "DEFAULT" else ("--output", options.output)
    if options.show_prompts and not options.dry_run:  # which shows prompts too
        text = shown_prompts(objective, options, rows.train, rows.shots)
        return Outcome({"prompts": text}, text)
    options = _with_steps(options, rows)
    if options.dry_run:
        return _dry_run(objective, options, rows)
    output, start = Path(options.output), time.perf_counter()
    make_repository(options.hub)
    digest = digest_of_rows(rows.train, rows.dev, rows.shots, rows.test)
    findings, problem, reward_head, from_first = None, "", None, _found_by_first(objective)
    if objective.goes_via_reward:
        objective, rows, reward_head = via_reward(objective, rows, options, digest)
        at_end = objective if at_end.goes_via_reward else at_end
    if options.resume:
        wanted = resolved(source, options, written)
        findings, problem = from_first(lambda: finished_run(output, wanted, objective, digest))
    if findings is not None:
        print(printable(f"the run in {output} is finished"))
    else:
        say_why(problem, output)
        with contextlib.ExitStack() as held:
            workers = held.enter_context(_workers(options))
            with _no_new_folder(output):
                with contextlib.chdir("."):  # a reward function may change it
                    trainer, progress = _prepared(objective, rows, options, workers)
                trainer.provenance = provenance_of(options, rows, words)
                held.enter_context(trainer.holding_run())
                config = _write_down(source, trainer, options, written, reward_head)
                if is_first():
                    held.callback(write_page, output)
            start = time.perf_counter()
            try:
                with contextlib.chdir("."), finishing_steps(trainer), progress, _helped(trainer, workers, config):
                    trainer.train(resume_from_checkpoint=options.resume)
                if trainer.keeper.ends:
                    return interrupted(trainer, options.output, words)
                findings = _saved_and_found(trainer, at_end, rows, options, digest)
            except KeyboardInterrupt:
                return interrupted(trainer, options.output, words)
            except (Exception, SystemExit) as error:  # the latter from a reward, which may call sys.exit
                return report_failure(error, _way_on(error, trainer, words))
    if not is_first():
        return 0
    summary = summary_of(objective.name, output, round(time.perf_counter() - start, 3), findings)
    return _published(options, Outcome(summary, sentence_of(summary)))


def _way_on(error: BaseException, trainer: ZOTrainer, words: Sequence[str]) -> str:
    is_over = isinstance(error, SilentRunError) and trainer.method_state.step >= trainer.args.max_steps
    return f"{'to save the untuned model all the same' if is_over else 'resume'}: {resume_command(words)}"


def _scored_at_end(objective: Objective, source: str, of_objective: dict[str, Any], task: Task | None) -> Objective:
    """What the test rows are scored by: the task's objective, where it is another than what is tuned on."""
    if task is None or task.objective == objective.name:
        return objective
    reported = of_objective if task.objective == source else options_for(task.objective, task)
    return get_objective(task.objective, **reported)


def _published(options: TuneOptions, outcome: Outcome) -> Outcome | int:
    """Upload the model where that was asked for; what is known of the run is printed in any case."""
    if options.hub is not None:
        try:
            print(printable(f"uploaded: {upload(options.hub, Path(options.output))}"))
        except StorageError as error:
            report(error)
            return dataclasses.replace(outcome, code=1)
    return outcome


def _with_output(options: TuneOptions, source: str) -> TuneOptions:
    """The options with a run folder, where none was given: a new one of the objective's name; of a resume the last."""
    if options.output != DEFAULT_OUTPUT:
        return options
    if launch_of() is not None:  # each rank would choose by what it finds there
        raise InputError("several ranks share a run folder", hint="name it: --output runs/NAME")
    first = Path(DEFAULT_OUTPUT).with_name(re.sub(r"[^\w.-]+", "-", source.rpartition(":")[2]))
    new = next_to(first) if os.path.lexists(first) else first
    before = [first, *itertools.takewhile(lambda folder: folder != new, numbered(first))] if new != first else [first]
    return dataclasses.replace(options, output=str(before[-1] if options.resume else new))


def _with_steps(options: TuneOptions, rows: TuningRows) -> TuneOptions:
    """The options with what follows from the rows, and from one another."""
    steps = options.max_steps or (None if options.max_forwards or options.max_seconds else _STEPS)
    keep = options.keep or ("best" if rows.dev else "last")
    held = None if has_dev_rows(options) or not rows.dev else len(rows.dev)  # which were held out: config.yaml says so
    return dataclasses.replace(options, keep=keep, max_steps=steps, dev_rows=held or options.dev_rows)


def _dry_run(objective: Objective, options: TuneOptions, rows: TuningRows) -> Outcome:
    if objective.goes_via_reward:
        hint = "take --show-prompts, or a reward that there is: --reward-model"
        raise InputError("--dry-run cannot tell of a run on a reward that is yet to be made", hint=hint)
    with _made_config(options, rows) as args:
        from zoreward.trainer.planned import planned

        return told_of(planned(options.model, args, objective, (rows.train, rows.dev, rows.shots), None, None))


def _found_by_first(objective: Objective) -> Callable[[Callable[[], Any]], Any]:
    """What looks something up in the run folder: of several ranks the first one does, and tells the others.

    Raises:
        InputError: several ranks cannot do yet what is asked for.
    """
    if launch_of() is None:
        return lambda find: find()
    if objective.goes_via_reward:
        hint = "start one process, or make the reward first and give it: --reward-model"
        raise InputError("--via reward is fitted and tuned on in one process", hint=hint)
    from zoreward.trainer.replicas import joined

    ranks = joined()
    return lambda find: ranks.from_first(find() if ranks.first else None)


@contextlib.contextmanager
def _workers(options: TuneOptions) -> Iterator[Coordinator | None]:
    """Listen for workers, if that is asked for, and say how to start one."""
    if options.elastic is None:
        yield None
        return
    from zoreward.scoring.channel import TOKEN, given_token, new_token
    from zoreward.scoring.elastic import Coordinator

    given = given_token()
    token = given or new_token()
    with Coordinator(options.elastic, token) as workers:
        print(f"to help: {'' if given else f'{TOKEN}={token} '}zoreward worker {workers.address}")
        if not workers.is_local:
            print("other machines may connect: what is sent is signed with the token, and not encrypted")
        yield workers


@contextlib.contextmanager
def _helped(trainer: ZOTrainer, workers: Coordinator | None, config: dict[str, Any]) -> Iterator[None]:
    """Let workers help with the steps that are done inside, and tell them the end."""
    if workers is None:
        yield
        return
    from zoreward.trainer.follower import open_to_workers

    with workers:
        open_to_workers(trainer, workers, config)
        yield
        workers.is_finished = not trainer.keeper.ends


def _refuse_with_workers(objective: Objective, options: TuneOptions) -> None:
    """Refuse what workers cannot help with yet."""
    if options.elastic is None:
        return
    from zoreward.scoring.channel import place_of_address

    place_of_address(options.elastic)
    refusals = {
        "a launch of several ranks": (launch_of() is not None, "start one process, and workers beside it"),
        "--via reward": (objective.goes_via_reward, "make the reward first, and give it: --reward-model"),
        "--engine": (options.engine != "local", "leave one of the two out: workers write by engines of their own"),
        "--ranks-split rows": (options.ranks_split == "rows", "leave it out: workers share members"),
        "--rows-per-direction": (options.rows_per_direction is not None, "leave it out, or take torchrun"),
        "--kl": (bool(options.kl), "take --max-kl, which is measured by the coordinator alone; or torchrun"),
        "--device-map": (options.device_map is not None, "leave it out, where one GPU holds the model"),
        "--set dataloader_num_workers": (
            any(given.startswith("dataloader_num_workers") for given in options.set or ()),
            "leave it out: rows are in memory",
        ),
    }
    for what, (is_given, hint) in refusals.items():
        if is_given:
            raise InputError(f"--elastic does not go with {what}", hint=hint)


def _check(options: TuneOptions) -> None:
    """Find what is wrong with the options themselves."""
    check_output(options.output, resume=options.resume or options.dry_run)  # which writes nothing
    for flag, given in (("--eval-every", options.eval_steps), ("--eval-limit", options.eval_limit)):
        if given is not None and not has_dev_rows(options):
            raise InputError(
                f"{flag} has no rows to score", hint=f"give --dev-rows 64 or --eval-data, or leave {flag} out"
            )
    for wanted, flag in ((options.keep == "best", "--keep best"), (options.patience, "--patience")):
        if wanted and not has_dev_rows(options):
            raise InputError(f"{flag} goes by dev scores between the steps", hint="give --dev-rows 64 or --eval-data")
    _check_numbers(options)


def _write_down(
    source: str, trainer: ZOTrainer, options: TuneOptions, written: dict[str, Any], head: RewardHead | None
) -> dict[str, Any]:
    """Say what was found, and write down what a run is made of, beside its journal, which is open; return that."""
    if trainer.found is not None and trainer.found.converged:
        print(trainer.found)
    if trainer.keeper.budget is not None:
        print(trainer.keeper.budget)
    output = Path(options.output)
    names = [name for name in (*DEFAULTED, "max_steps") if getattr(options, name) is None]
    chosen = {name: getattr(trainer.args, name) for name in names}
    config = resolved(source, dataclasses.replace(options, **chosen), written)
    if not is_first():
        return config
    try:
        if head is not None:
            save_head(head, output)
        write_config(output, config)
    except (InputError, StorageError):
        from zoreward.journal.notes import remove_notes

        if not options.resume:  # the journal is ours: nobody else holds the run
            Path(output, "journal.jsonl").unlink(missing_ok=True)
            remove_notes(output)
        raise
    return config


@contextlib.contextmanager
def _no_new_folder(output: Path) -> Iterator[None]:
    """Leave no empty run folder behind if what is done inside fails."""
    made = [folder for folder in (output, *output.parents) if not folder.exists()]  # by transformers' Trainer too
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for folder in made:
                folder.rmdir()
        raise


def _prepared(
    objective: Objective, rows: TuningRows, options: TuneOptions, workers: Coordinator | None
) -> tuple[ZOTrainer, ProgressCallback]:
    """Everything else that can fail before the run is opened."""
    trainer = trainer_for(objective, options, rows)
    if workers is not None:
        from zoreward.trainer.follower import coordinate

        coordinate(trainer, workers)
    print(_what_is_tuned(trainer))
    if trainer.memory is not None:
        print(f"memory: {trainer.memory}")
    if not rows.dev:
        print("no dev rows: the last step is kept, and nothing notices a fall; --eval-data or --dev-rows gives some")
    from zoreward.cli.progress import ProgressCallback

    silence_(trainer)
    progress = ProgressCallback(trainer)
    if is_first():
        trainer.add_callback(progress)
    done = trainer.resume() if options.resume else 0
    if done:
        print(f"resuming after step {done}")
    elif rows.dev and not trainer.begun_with_a_score:
        trainer.evaluate()
    return trainer, progress


def trainer_for(objective: Objective, options: TuneOptions, rows: TuningRows) -> ZOTrainer:
    """Return the trainer of a run, whose model is loaded."""
    with _made_config(options, rows) as args:
        from zoreward.trainer import ZOTrainer
        from zoreward.trainer.resuming import EndsRun

        datasets: dict[str, Any] = {"train_dataset": rows.train, "eval_dataset": rows.dev, "shot_dataset": rows.shots}
        callbacks = [EndsRun(options.patience)] if options.patience else None
        trainer = ZOTrainer(model=options.model, objective=objective, args=args, callbacks=callbacks, **datasets)
        trainer.keeper.scores_where_seconds_end = options.eval_steps is None
        return trainer


@contextlib.contextmanager
def _made_config(options: TuneOptions, rows: TuningRows) -> Iterator[ZOConfig]:
    """The options as the trainer takes them; what transformers says of them, here or inside, is one line."""
    device = select_device(options.device)
    quiet_transformers()
    from zoreward.scoring import check_device_map, checked_device
    from zoreward.trainer import ZOConfig

    check_device_map(options.device_map, device)
    kind = None if device is None else checked_device(device).type
    _check_logger(options.report_to)
    settings = vars(part_of(ZOArguments, options)) | vars(part_of(Steps, options))
    settings |= {
        "output_dir": options.output,
        "max_steps": options.max_steps or -1,
        "eval_strategy": "steps" if rows.dev else "no",
        "eval_steps": options.eval_steps or (_steps_between_dev_scores(options) if rows.dev else None),
        "load_best_model_at_end": options.keep == "best",
        "per_device_eval_batch_size": options.eval_batch_size or 0,
        "disable_tqdm": True,
        "use_cpu": kind == "cpu",
    }
    others = _others(options.set, settings, ZOConfig)
    try:
        args = ZOConfig(**settings | others)
        _check_schedule(args)
        yield args
    except ZorewardError:
        raise
    except Exception as error:  # transformers' own checks of its options, of several kinds
        hint = f"change the option that it is about, or leave it out ({place_of(error)})"
        message = str(error) if isinstance(error, ValueError | TypeError) else f"{type(error).__name__}: {error}"
        raise InputError(one_line(message), hint=hint) from error


def _steps_between_dev_scores(options: TuneOptions) -> float:
    """Where nobody says it: some ten scores where the scores between the steps decide something, else one at the end.

    Of steps that are not known yet, a share.

    >>> from types import SimpleNamespace
    >>> _steps_between_dev_scores(SimpleNamespace(max_steps=250, keep="best", patience=None))
    25
    """
    if options.keep == "best" or options.patience:
        return 1 / _DEV_SCORES if options.max_steps is None else max(1, options.max_steps // _DEV_SCORES)
    return options.max_steps or sys.maxsize


def _check_logger(name: str) -> None:
    """Find out, before a model is loaded, that a logger is not known, or not installed."""
    if name in ("none", "all"):
        return
    try:
        start_logger(name)
    except Exception as error:
        hint = "install what it needs, or take another of those that transformers knows: wandb, tensorboard, …"
        raise InputError(f"--report-to {name!r}: {one_line(str(error))}", hint=hint) from error


def _check_schedule(args: ZOConfig) -> None:
    """Find out, before a model is loaded, that a schedule of the learning rate cannot be made of what is given."""
    import torch
    from transformers import get_scheduler

    steps = max(args.max_steps, 1)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    how = {"scheduler_specific_kwargs": args.lr_scheduler_kwargs or {}}
    try:
        get_scheduler(args.lr_scheduler_type, optimizer, args.get_warmup_steps(steps), steps, **how)
    except Exception as error:
        hint = "take --lr-scheduler-type constant, linear or cosine; or give what it needs: --set lr_scheduler_kwargs=…"
        raise InputError(f"--lr-scheduler-type {args.lr_scheduler_type}: {one_line(str(error))}", hint=hint) from error


def _others(given: list[str] | None, settings: dict[str, Any], config: type) -> dict[str, Any]:
    """The fields that --set gives, as YAML reads their values."""
    kinds = typing.get_type_hints(config)
    defaults = {field.name: field.default for field in dataclasses.fields(config) if field.init}
    others = {}
    for assignment in given or ():
        name, equals, value = assignment.partition("=")
        if not equals:
            raise InputError(f"--set {assignment}: there is no value", hint="--set name=value")
        if name in (*settings, "push_to_hub"):
            raise InputError(f"--set {name}: it has an option of its own", hint="zoreward tune … --help lists them")
        if name not in defaults:
            near = difflib.get_close_matches(name, defaults, n=1)
            hint = f"did you mean {near[0]}?" if near else "the fields are those of transformers.TrainingArguments"
            raise InputError(f"--set {name}: there is no such field", hint=hint)
        what = f"--set {name}"
        others[name] = fitting(parse_yaml(value, what), value.strip(), kinds[name], what)
        if isinstance(others[name], int | float) and others[name] < 0 and defaults[name] != -1:
            raise InputError(f"--set {name}: {value} is less than 0", hint="give 0 or more, or leave it out")
    return others


def _what_is_tuned(trainer: ZOTrainer) -> str:
    tuned, head = trainer.scorer.reader.tuned, trainer.head
    elsewhere = sum(math.prod(part.shape) - tuned.weights[name].numel() for name, part in tuned.parts.items())
    count = elsewhere + sum(weight.numel() for weight in tuned.weights.values())
    if head.kind == "classifier":
        whose = "a new head" if head.is_new else "the checkpoint has it"
        print(printable(f"a classifier of {', '.join(head.classes)}: {whose}"))
    elif head.kind == "masked":
        print("a masked model")
    every = elsewhere + sum(weight.numel() for weight in trainer.model.parameters())
    return f"{count:,} of {every:,} weights are tuned"


def _saved_and_found(
    trainer: ZOTrainer, at_end: Objective, rows: TuningRows, options: TuneOptions, digest: str
) -> dict[str, Any]:
    """Save the model of a run that is over, and return what is known of it beside the scores in the journal.

    Of several ranks the first one does; where the score of the test rows needs the trainer, all share it, and where
    they hold a model together, all of it.
    """
    from zoreward.journal import load_run

    if not is_first():
        if options.tensor_parallel is not None:  # it has a part of the model
            trainer.save_model()
            if rows.test is not None:
                _test_score(trainer, at_end, rows, options)
        elif rows.test is not None and at_end.reads_base:
            trainer.predict(rows.test)
        return {}
    output = Path(options.output)
    assert options.keep is not None
    saved = save_model(trainer, output, keep=options.keep, rows=digest)
    findings = found_in(trainer, load_run(output))
    if rows.test is not None:
        findings |= _test_score(trainer, at_end, rows, options)
        trainer.provenance["scores"] = {f"{findings['test_objective']} on the test rows": findings["test"]}
        with contextlib.suppress(OSError):  # the model is there
            trainer.write_card(str(output / MODEL_NAME), merged=trainer.args.merge)
    with_findings(output, saved, findings)
    return findings


def _test_score(trainer: ZOTrainer, objective: Objective, rows: TuningRows, options: TuneOptions) -> dict[str, Any]:
    """The score of the tuned model on the test rows, which nothing has seen until now."""
    from zoreward.scoring import evaluate, generation_of

    if objective.reads_base:  # the trainer has the base
        found = trainer.predict(rows.test or []).metrics
        return {"test": found["test_score"], "test_objective": objective.name, "test_rows": len(rows.test or [])}
    result = evaluate(
        trainer.model,
        objective,
        rows.test or [],
        tokenizer=trainer.processing_class,
        **vars(part_of(Prompting, options)),
        shot_rows=rows.shots or rows.train,
        seed=options.seed,
        batch_size=options.eval_batch_size,
        generation=generation_of(trainer.args, trainer.args.seed),
        base=options.model if objective.compares_with_base else None,
        dtype=options.dtype,
        trust_remote_code=options.trust_remote_code,
    )
    return {"test": result.score, "test_objective": result.objective, "test_rows": result.rows}


def _check_numbers(options: TuneOptions) -> None:
    from zoreward.methods import make_method
    from zoreward.noise.families import family_options

    defaults = METHOD_DEFAULTS[options.method]
    every = options.block_every or defaults.get("block_every")
    given = {name: getattr(options, name) for name in METHOD_OPTIONS} | {"block_every": every}
    given["blocks"] = options.blocks or (every and 2)  # how many there are, the model says
    noise = options.noise or defaults.get("noise", "low-rank")
    make_method(options.method, **given, lr=options.learning_rate, **family_options(noise))


def check_output(output: str, *, resume: bool | None = None) -> None:
    """Refuse a folder that a run cannot be written to. `resume`: whether that was asked for; None: it cannot be."""
    check_folder(output)
    other = f"choose another folder: --output {shlex.quote(str(next_to(Path(output))))}"
    if Path(output, CONFIG_NAME).is_dir():
        raise InputError(f"{Path(output, CONFIG_NAME)} is a folder", hint=other)
    for name in _RUN_FILES:
        if not resume and (Path(output, name).exists() or Path(output, name).is_symlink()):
            hint = other if resume is None else f"{other}, or go on with that run: --resume"
            raise InputError(f"{output} holds a run already ({name})", hint=hint)


def write_config(output: Path, options: dict[str, Any]) -> None:
    import yaml

    from zoreward.journal.disk import write_whole

    text = yaml.safe_dump(options, sort_keys=False, allow_unicode=True)
    try:
        output.mkdir(parents=True, exist_ok=True)
        write_whole(output / CONFIG_NAME, lambda file: file.write(text.encode("utf-8")))
    except OSError as error:
        raise InputError(f"--output {output} cannot be written: {error.strerror}", hint="choose another") from error
