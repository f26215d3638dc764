"""`zoreward replay`: a stored run and its base weights make the tuned model."""

from __future__ import annotations

import contextlib
import inspect
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoreward.cli.errors import report
from zoreward.cli.options import command, option, own_options
from zoreward.cli.prepare import check_folder, quiet_transformers, select_device
from zoreward.cli.terminal import json_line
from zoreward.config import DATA, RUN, Data
from zoreward.records import InputError, StorageError, printable

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from zoreward.journal import StoredRun


def replay_command() -> Callable[..., int]:
    """Return the command that replays a run."""
    where = typer.Argument(metavar="RUN", help="A run folder, a journal.jsonl or a trajectory.safetensors.")
    run = inspect.Parameter("run", inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[str, where])
    base = "The weights that the run began with: a folder, or a Hub id. Others are refused."
    parameters = [
        run,
        option("model", str | None, base, DATA, default=None),
        *own_options(Data, ["device"]),
        option("device_map", str | None, "auto: spread the model over all GPUs that are seen.", DATA, default=None),
        option("trust_remote_code", bool, "Run the code that the model brings along.", DATA, default=False),
        option(
            "output",
            str | None,
            "A new folder for the model, or the run's adapter, and the tokenizer.",
            RUN,
            default=None,
        ),
        option("step", int | None, "How many steps. Default: all.", RUN, default=None, least=0),
        option("json", bool, "Print the scores and slopes of each step, in one JSON object.", RUN, default=False),
    ]
    return command(_replay, parameters)


def _replay(context: typer.Context, values: dict[str, Any]) -> int:
    start = time.perf_counter()
    _check(values)
    with contextlib.redirect_stdout(sys.stderr):  # what a model's code prints is not the result
        from zoreward.journal import load_run
        from zoreward.journal.replaying import checked_step

        run = load_run(values["run"])
        steps = checked_step(run, values["step"])
        if values["output"]:
            model, tokenizer = _loaded(run, values)
            model = _moved(run, model, steps)
            try:
                _save(Path(values["output"]), model, tokenizer, run, steps)
            except StorageError as error:
                return report(error, code=1)
    summary = {
        "run": values["run"],
        "steps": steps,
        "output": values["output"],
        "seconds": round(time.perf_counter() - start, 3),
    }
    if values["json"]:
        print(json_line({**summary, "history": list(_history(run, steps))}))
    else:
        print(printable(f"{steps} steps in {summary['seconds']:.1f} s; the model is in {values['output']}"))
    return 0


def _check(values: dict[str, Any]) -> None:
    """Find what is wrong with the options themselves."""
    if (values["model"] is None) != (values["output"] is None):
        given, missing = ("--model", "--output") if values["model"] else ("--output", "--model")
        raise InputError(f"{given} needs {missing}", hint="zoreward replay RUN --model BASE --output FOLDER")
    if values["output"] is None and not values["json"]:
        raise InputError(
            "there is nothing to do", hint="give --model BASE and --output FOLDER, or --json for the history of the run"
        )
    if values["output"] is not None:
        check_folder(values["output"])
        output = Path(values["output"])
        if output.is_dir() and any(output.iterdir()):
            raise InputError(f"--output {output} is not empty", hint="give a folder that does not exist yet")


def _loaded(run: StoredRun, values: dict[str, Any]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    device = select_device(values["device"])
    quiet_transformers()
    from zoreward.scoring import head_of, load_model, load_tokenizer, load_with_head

    trust = {"trust_remote_code": values["trust_remote_code"]}
    made = run.header.get("head")
    kind = "classifier" if made else head_of(values["model"], **trust).kind
    tokenizer = load_tokenizer(values["model"], **trust, kind=kind)
    place: dict[str, Any] = {
        "dtype": run.header["dtype"],
        "device": device,
        "device_map": values["device_map"],
        **trust,
    }
    if isinstance(made, dict):  # its first weights are drawn again by the replay
        return load_with_head(values["model"], [str(one) for one in made.get("classes") or ()], 0, **place)[
            0
        ], tokenizer
    return load_model(values["model"], **place), tokenizer


def _moved(run: StoredRun, model: PreTrainedModel, steps: int) -> PreTrainedModel:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from zoreward.journal import replay

    console = Console(stderr=True)
    columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=steps)
        return replay(run, model, step=steps, progress=lambda done: bar.update(task, completed=done))


def _save(output: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, run: StoredRun, steps: int) -> None:
    """Write all of it, or nothing: into a folder that is empty, or not there yet."""
    from zoreward.journal.card import Told, write_card

    kind = "adapter" if getattr(model, "peft_config", None) else "whole"
    evaluations = [(step, score) for step, score in run.evaluations if step <= steps]
    made = [folder for folder in (output, *output.parents) if not folder.exists()]
    try:
        output.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(output)
        tokenizer.save_pretrained(output)
        told = Told(steps, run.n_steps, kind, evaluations, has_moved=run.has_moved_by(steps))
        write_card(output, run.header, told)  # PEFT has written one of its own
    except Exception as error:  # safetensors raises its own
        with contextlib.suppress(OSError):
            for path in output.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            for folder in made:
                folder.rmdir()
        hint = "make room, or choose another"
        raise StorageError(f"--output {output} cannot be written: {error}", hint=hint) from error


def _history(run: StoredRun, steps: int) -> Iterator[dict[str, Any]]:
    """Each step's learning rate, scores and slopes; null where the file does not tell."""
    for step in range(steps):
        record = run.record(step)
        slopes = run.projected_grads(step)
        yield {"step": step, "lr": record.lr, "scores": record.scores or None, "projected_grads": slopes}
