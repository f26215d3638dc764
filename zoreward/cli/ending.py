"""From step 1 to the saved model: how a run is ended, resumed and kept by the command line."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoreward.cli.printing import is_first
from zoreward.cli.saving import MODEL_NAME
from zoreward.config import TuneOptions
from zoreward.neighbours.of_launchers import launch_of
from zoreward.neighbours.of_transformers import is_out_of_patience
from zoreward.records import printable

if TYPE_CHECKING:
    from zoreward.cli.task_rows import TuningRows
    from zoreward.journal import StoredRun
    from zoreward.trainer import ZOTrainer

SIGNALS = ("SIGINT", "SIGTERM")


def resume_command(words: Sequence[str]) -> str:
    """Return the command that goes on with a run, quoted for a shell.

    Args:
        words: those behind `zoreward` that began it.

    >>> resume_command(["tune", "f1", "--template", "{text} It was"])
    "zoreward tune f1 --template '{text} It was' --resume"
    """
    command = shlex.join(["zoreward", *words, *([] if "--resume" in words else ["--resume"])])
    launch = launch_of()
    return command if launch is None else launch.command(command)


@contextlib.contextmanager
def finishing_steps(trainer: ZOTrainer) -> Iterator[None]:
    """Have Ctrl-C and SIGTERM end the run after the step at hand; the second time at once."""

    def finish(number: int, frame: Any) -> None:
        trainer.keeper.stopping = True
        if is_first():
            os.write(2, b"\nfinishing the step; a second time stops at once\n")  # print may be at work already
        for name in before:
            signal.signal(getattr(signal, name), _stop)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {name: signal.signal(getattr(signal, name), finish) for name in SIGNALS if hasattr(signal, name)}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


def _stop(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def interrupted(trainer: ZOTrainer, output: str, words: Sequence[str]) -> int:
    """Say where the run stands and how to go on; returns the exit code."""
    if not is_first():
        return 130
    stands = f"interrupted after step {trainer.method_state.step}; {output} keeps the journal"
    print(printable(f"{stands}\nresume: {resume_command(words)}"), file=sys.stderr)
    return 130


def found_in(trainer: ZOTrainer, run: StoredRun) -> dict[str, Any]:
    """Return what is known beside the scores: of the last evaluation, why the run stopped, what is kept, GPU memory.

    The names are those of every run of the same kind; what is not known is None.

    Args:
        trainer: of a run that is over.
        run: its journal.
    """
    from zoreward.scoring import peak_bytes

    peak = peak_bytes(trainer.args.device)
    return {
        **(run.metrics[-1] if run.metrics else {}),
        "stopped": _why_stopped(trainer),
        "peak_gb": None if peak is None else round(peak / 1e9, 3),
        "kept": trainer.kept_step,
    }


def _why_stopped(trainer: ZOTrainer) -> str | None:
    if trainer.keeper.stopped_by is not None:
        return trainer.keeper.stopped_by
    if trainer.keeper.budget is not None and trainer.method_state.step >= trainer.args.max_steps:
        return "max_forwards"
    over = is_out_of_patience(trainer.callback_handler.callbacks)
    return "patience" if over and trainer.method_state.step < trainer.args.max_steps else None


def summary_of(objective: str, output: Path, seconds: float, findings: dict[str, Any]) -> dict[str, Any]:
    """Return what is told of a run that is over: its scores from the journal, and what else was found."""
    from zoreward.journal import load_run

    run = load_run(output)
    scores = [score for _, score in run.evaluations]
    return {
        "objective": objective,
        "score": scores[-1] if scores else None,
        "best": max((score for _, score in run.within_bound), default=None),
        "best_step": run.best_step,
        "rewinds": len(run.rewinds),
        **findings,
        "steps": run.n_steps,
        "seconds": seconds,
        "output": str(output),
    }


def sentence_of(summary: dict[str, Any]) -> str:
    """Return the same in words."""
    from zoreward.journal import load_run

    output, steps = Path(summary["output"]), summary["steps"]
    step = summary.get("kept", steps)
    model = "model" if step == steps else f"model of step {step}"
    sentences = []
    if summary["score"] is not None:
        first = load_run(output).evaluations[0][1]
        dev = f"{first:.4f} → {summary['score']:.4f}, best {summary['best']:.4f} at step {summary['best_step']}"
        sentences.append(f"{summary['objective']} on the dev rows: {dev}")
    if "test" in summary:
        scored = f"{summary['test_objective']} on the {summary['test_rows']:,} test rows"
        sentences.append(f"{scored}: {summary['test']:.4f}")
    if rewinds := load_run(output).rewinds:
        often = "once" if len(rewinds) == 1 else f"{len(rewinds)} times"
        sentences.append(f"went back {often}, and on with {rewinds[-1].rate:.2g} times the learning rate")
    memory = f", at most {summary['peak_gb']:.3g} GB on the GPU" if summary.get("peak_gb") is not None else ""
    for option in fields(TuneOptions):
        if option.name == summary.get("stopped") and (why := option.metadata.get("stops")):
            sentences.append(f"stopped after {steps} steps: {why} (--{option.name.replace('_', '-')})")
    if not load_run(output).has_moved_by(steps):
        sentences.append("no step moved a weight: they are those of the base")
    done = f"{steps} steps in {summary['seconds']:.1f} s{memory}; the {model} is in {output / MODEL_NAME}"
    page = output / "report.html"
    look = [f"a page to look at: {page}"] if page.is_file() else []
    return "\n".join([*sentences, done, *look, *_kept_and_others(load_run(output), output, step)])


def _kept_and_others(run: StoredRun, output: Path, step: int) -> list[str]:
    """Which step is kept and what it scores on the dev rows, and how to get another; nothing where none was scored."""
    if not run.evaluations:
        return []
    score = dict(run.evaluations).get(step)
    which = "the best" if step == run.best_step else "the last"
    if step == 0 < run.n_steps:
        which = "the base: no step scores better"
    scored = "not scored" if score is None else f"dev score {score:.4f}"
    command = shlex.join(["zoreward", "replay", str(output), "--step", "N", "--model", str(run.header.get("model"))])
    return [f"kept: step {step}, {scored}, {which}; another: {command} --output FOLDER"]


def provenance_of(options: TuneOptions, rows: TuningRows, words: Sequence[str]) -> dict[str, Any]:
    """Return what the card of the model says beside what the trainer knows; see `ZOTrainer`.

    Args:
        options: of the command.
        rows: what the run was given.
        words: those behind `zoreward` that began it.
    """
    data = ", ".join(str(part) for part in (options.data, options.data_config, options.split) if part)
    dev = ", ".join(part for part in (options.eval_data, options.eval_split) if part)
    sources = {"tune": data, "choose": dev or f"of {data}"}
    if rows.test is not None:
        sources["test"] = f"{len(rows.test):,}, {options.test_data or data}"
    typed = [word for word in words if word not in ("--resume", "--json")]
    secret = re.compile(r"(token|password|secret|key)=.*", re.IGNORECASE)
    return {"rows": sources, "command": shlex.join(["zoreward", *(secret.sub(r"\1=…", word) for word in typed)])}
