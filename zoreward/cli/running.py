"""From step 1 to the saved model: how a run is ended, resumed and kept by the command line."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoreward.cli.errors import place_of, report
from zoreward.records import StorageError, ZorewardError, named, printable

if TYPE_CHECKING:
    from zoreward.trainer import ZOTrainer

CONFIG_NAME = "config.yaml"
MODEL_NAME = "model"
# Options whose defaults depend on what the objective needs.
BY_NEED = ("noise", "rank", "eps", "num_directions", "normalize", "momentum", "refresh", "share", "learning_rate")
SIGNALS = ("SIGINT", "SIGTERM")


def resume_command(words: Sequence[str]) -> str:
    """Return the command that goes on with a run, quoted for a shell.

    Args:
        words: those behind `zoreward` that began it.

    >>> resume_command(["tune", "f1", "--template", "{text} It was"])
    "zoreward tune f1 --template '{text} It was' --resume"
    """
    return shlex.join(["zoreward", *words, *([] if "--resume" in words else ["--resume"])])


@contextlib.contextmanager
def finishing_steps(trainer: ZOTrainer) -> Iterator[None]:
    """Have Ctrl-C and SIGTERM end the run after the step at hand; the second time at once."""

    def finish(number: int, frame: Any) -> None:
        trainer.keeper.stopping = True
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


def save_model(trainer: ZOTrainer, output: Path) -> None:
    """Write the model and its tokenizer into the run folder: all of it, or nothing. The snapshot has served then.

    Raises:
        StorageError: it cannot be written.
    """
    from zoreward.journal import remove_snapshot

    target, unfinished = output / MODEL_NAME, output / f"{MODEL_NAME}.part"
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        trainer.save_model(str(unfinished))
        if target.exists():
            shutil.rmtree(target)
        unfinished.rename(target)
    except Exception as error:  # safetensors raises its own
        shutil.rmtree(unfinished, ignore_errors=True)
        raise StorageError(
            f"{target} cannot be written: {error}", hint="Make room there, and resume the run."
        ) from error
    remove_snapshot(output)


def interrupted(trainer: ZOTrainer, output: str, words: Sequence[str]) -> int:
    """Say where the run stands and how to go on; returns the exit code."""
    stands = f"interrupted after step {trainer.method_state.step}; {output} keeps the journal"
    print(printable(f"{stands}\nresume: {resume_command(words)}"), file=sys.stderr)
    return 130


def failed(error: BaseException, words: Sequence[str]) -> int:
    """Say what went wrong in a run and how to go on; returns the exit code."""
    if not isinstance(error, ZorewardError):
        error = ZorewardError(named(error), hint=place_of(error))
    report(error, code=1)
    print(printable(f"resume: {resume_command(words)}"), file=sys.stderr)
    return 1


def is_finished(output: Path, options: dict[str, Any]) -> bool:
    """Whether a run has nothing left to do, as far as can be told without its model.

    Args:
        output: the run folder.
        options: of the command, as `config.yaml` holds them; None where the default depends on something.
    """
    import yaml

    from zoreward.journal import load_run

    config = output / CONFIG_NAME
    if not (config.is_file() and (output / MODEL_NAME).is_dir()):
        return False
    try:
        then, run = yaml.safe_load(config.read_text(encoding="utf-8")), load_run(output)
    except (OSError, yaml.YAMLError, UnicodeDecodeError, ZorewardError):
        return False
    if not isinstance(then, dict) or run.n_steps < options["max_steps"]:
        return False
    given = {name: value for name, value in options.items() if value is not None or name not in BY_NEED}
    evaluated = [step for step, _ in run.evaluations]
    return all(value == then.get(name) for name, value in given.items()) and run.n_steps in (evaluated or [run.n_steps])


def found_in(trainer: ZOTrainer) -> dict[str, Any]:
    """Return what is known beside the scores: of the last evaluation, why the run stopped, what is kept, GPU memory."""
    from zoreward.scoring import peak_bytes

    logs = [log for log in trainer.state.log_history if "eval_score" in log][-1:]
    told = ("eval_score", "eval_rows", "eval_runtime")
    metrics = {name[5:]: log[name] for log in logs for name in log if name.startswith("eval_") and name not in told}
    stopped = {"stopped": "kl"} if trainer.drift and trainer.drift.exceeded is not None else {}
    peak = peak_bytes(trainer.args.device)
    memory = {} if peak is None else {"peak_gb": round(peak / 1e9, 3)}
    return {**metrics, **stopped, **memory, "kept": trainer.kept_step}


def summary_of(objective: str, output: Path, seconds: float, found: dict[str, Any]) -> dict[str, Any]:
    """Return what is told of a run that is over: its scores from the journal, and what else was found."""
    from zoreward.journal import load_run

    run = load_run(output)
    scores = [score for _, score in run.evaluations]
    return {
        "objective": objective,
        "score": scores[-1] if scores else None,
        "best": max(scores, default=None),
        "best_step": run.best_step,
        **found,
        "steps": run.n_steps,
        "seconds": seconds,
        "output": str(output),
    }


def sentence_of(summary: dict[str, Any]) -> str:
    """Return the same in words."""
    from zoreward.journal import load_run

    output, steps = Path(summary["output"]), summary["steps"]
    kept = summary.get("kept", steps)
    model = "model" if kept == steps else f"model of step {kept}"
    told = []
    if summary["score"] is not None:
        first = load_run(output).evaluations[0][1]
        dev = f"{first:.4f} → {summary['score']:.4f}, best {summary['best']:.4f} at step {summary['best_step']}"
        told.append(f"{summary['objective']} on the dev rows: {dev}")
    if "test" in summary:
        told.append(f"{summary['test_objective']} on the {summary['test_rows']:,} test rows: {summary['test']:.4f}")
    memory = f", at most {summary['peak_gb']:.3g} GB on the GPU" if "peak_gb" in summary else ""
    done = f"{steps} steps in {summary['seconds']:.1f} s{memory}; the {model} is in {output / MODEL_NAME}"
    return "\n".join([*told, done])
