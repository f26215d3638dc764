"""`zoreward replay`: a stored run and its base weights make the tuned model."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from zoreward.cli.flags import command
from zoreward.cli.prepare import check_folder, quiet_transformers, select_device
from zoreward.cli.printing import Outcome, report
from zoreward.config import ReplayOptions
from zoreward.data import parted
from zoreward.records import InputError, StorageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from zoreward.journal import StoredRun


def make_command() -> Callable[..., int]:
    """Return the command that replays a run."""
    return command(_replay, ReplayOptions)


def _replay(context: typer.Context, options: ReplayOptions) -> Outcome | int:
    start = time.perf_counter()
    _check(options)
    from zoreward.journal import load_run
    from zoreward.journal.replaying import checked_step

    run = load_run(options.run)
    steps = checked_step(run, options.step)
    others = [load_run(other) for other in options.merge or ()]
    if others:
        from zoreward.journal.history import check_sum

        check_sum([run, *others])
    if options.output is not None and options.model is not None:
        model, tokenizer = _loaded(run, _at_its_revision(options.model, run), options)
        model = _moved([run, *others], model, steps, options)
        try:
            _save(Path(options.output), model, tokenizer, run, steps, options)
        except StorageError as error:
            return report(error, code=1)
    seconds = round(time.perf_counter() - start, 3)
    scale = None if options.scale == 1 else options.scale
    made = {"average": options.average, "scale": scale, "merge": options.merge}
    made = {name: value for name, value in made.items() if value is not None}
    summary: dict[str, Any] = {"run": options.run, "steps": steps, **made, "output": options.output, "seconds": seconds}
    if options.json:
        summary["history"] = list(_history(run, steps))
        if run.rewinds:
            summary["rewinds"] = [asdict(rewind) for rewind in run.rewinds if rewind.step <= steps]
    return Outcome(summary, f"{steps} steps in {seconds:.1f} s; the model is in {options.output}")


def _check(options: ReplayOptions) -> None:
    """Find what is wrong with the options themselves."""
    if (options.model is None) != (options.output is None):
        given, missing = ("--model", "--output") if options.model else ("--output", "--model")
        raise InputError(f"{given} needs {missing}", hint="zoreward replay RUN --model BASE --output FOLDER")
    if options.output is None and not options.json:
        raise InputError(
            "there is nothing to do", hint="give --model BASE and --output FOLDER, or --json for the history of the run"
        )
    others = options.merge is not None or options.scale != 1
    if options.output is None and (others or options.average is not None):
        raise InputError("--average, --scale and --merge make a model", hint="give --model BASE and --output FOLDER")
    if options.average is not None and others:
        raise InputError("--average is of one run as it was", hint="leave --scale and --merge out, or --average")
    if options.merge is not None and options.step is not None:
        raise InputError("--merge takes all steps of each run", hint="leave --step out")
    if options.output is not None:
        check_folder(options.output)
        output = Path(options.output)
        if output.is_dir() and any(output.iterdir()):
            raise InputError(f"--output {output} is not empty", hint="give a folder that does not exist yet")


def _at_its_revision(base: str, run: StoredRun) -> str:
    """The base with the revision that the run began with, where it is the same model and no other is asked for."""
    began = str(run.header.get("model") or "")
    return began if parted(began)[0] == base else base


def _loaded(run: StoredRun, base: str, options: ReplayOptions) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    device = select_device(options.device)
    quiet_transformers()
    from zoreward.scoring import head_of, load_model, load_tokenizer, load_with_head

    trust: dict[str, Any] = {"trust_remote_code": options.trust_remote_code}
    made = run.header.get("head")
    kind = "classifier" if made else head_of(base, **trust).kind
    tokenizer = load_tokenizer(base, **trust, kind=kind)
    place: dict[str, Any] = {
        "dtype": run.header["dtype"],
        "device": device,
        "device_map": options.device_map,
        **trust,
    }
    if isinstance(made, dict):  # its first weights are drawn again by the replay
        return load_with_head(base, [str(name) for name in made.get("classes") or ()], 0, **place)[0], tokenizer
    return load_model(base, **place), tokenizer


def _moved(runs: list[StoredRun], model: PreTrainedModel, steps: int, options: ReplayOptions) -> PreTrainedModel:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from zoreward.journal import replay, replay_mean, replay_sum

    console = Console(stderr=True)
    columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=steps)

        def progress(done: int) -> None:
            bar.update(task, completed=done)

        if options.average is not None:
            return replay_mean(runs[0], model, options.average, step=steps, progress=progress)
        if options.merge or options.scale != 1:
            step = None if options.merge else steps
            return replay_sum(runs, model, scale=options.scale, step=step, progress=progress)
        return replay(runs[0], model, step=steps, progress=progress)


def _save(
    output: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    run: StoredRun,
    steps: int,
    options: ReplayOptions,
) -> None:
    """Write all of it, or nothing: into a folder that is empty, or not there yet."""
    from zoreward.journal.card import Told, write_card, write_prompting

    kind = "adapter" if getattr(model, "peft_config", None) else "whole"
    combined = _combined(options)
    evaluations = [] if combined else [(step, score) for step, score in run.evaluations if step <= steps]
    made = [folder for folder in (output, *output.parents) if not folder.exists()]
    try:
        output.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(output)
        tokenizer.save_pretrained(output)
        moved = bool(options.merge) or (options.scale != 0 and run.has_moved_by(steps))
        description = Told(steps, run.n_steps, kind, evaluations, has_moved=moved, combined=combined)
        write_card(output, run.header, description)  # PEFT has written one of its own
        write_prompting(output, run.header.get("config") or {})
    except Exception as error:  # safetensors raises its own
        with contextlib.suppress(OSError):
            for path in output.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            for folder in made:
                folder.rmdir()
        hint = "make room, or choose another"
        raise StorageError(f"--output {output} cannot be written: {error}", hint=hint) from error


def _combined(options: ReplayOptions) -> tuple[str, ...]:
    """The words of the command by which the weights are not those of a step."""
    average = () if options.average is None else ("--average", str(options.average))
    scale = () if options.scale == 1 else ("--scale", str(options.scale))
    return (*average, *scale, *(word for other in options.merge or () for word in ("--merge", other)))


def _history(run: StoredRun, steps: int) -> Iterator[dict[str, Any]]:
    """Each step's learning rate, scores and slopes; null where the file does not tell."""
    for step in range(steps):
        record = run.record(step)
        slopes = run.projected_grads(step)
        yield {"step": step, "lr": record.lr, "scores": record.scores or None, "projected_grads": slopes}
