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

from zoreward.cli.errors import one_line, place_of, report
from zoreward.records import StorageError, ZorewardError

if TYPE_CHECKING:
    from zoreward.trainer import ZOTrainer

CONFIG_NAME = "config.yaml"
MODEL_NAME = "model"
# Options whose defaults depend on what the objective needs.
BY_NEED = ("noise", "eps", "num_directions", "normalize", "learning_rate")
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
    print(f"interrupted after step {trainer.method_state.step}; {output} keeps the journal", file=sys.stderr)
    print(f"resume: {resume_command(words)}", file=sys.stderr)
    return 130


def failed(error: Exception, words: Sequence[str]) -> int:
    """Say what went wrong in a run and how to go on; returns the exit code."""
    if not isinstance(error, ZorewardError):
        message = one_line(f"{type(error).__name__}: {error}")
        error = ZorewardError(message, hint=place_of(error))
    report(error, code=1)
    print(f"resume: {resume_command(words)}", file=sys.stderr)
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
    if (
        any(value not in (None, then.get(name)) for name, value in options.items())
        or run.n_steps < options["max_steps"]
    ):
        return False
    return not options["eval_data"] or run.n_steps in [step for step, _ in run.evaluations]
