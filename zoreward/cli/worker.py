"""`zoreward worker ADDRESS`: help with a run that listens for workers."""

from __future__ import annotations

import os
import shlex
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from zoreward.cli.flags import command
from zoreward.cli.prepare import made_objective
from zoreward.cli.printing import Outcome, report_failure
from zoreward.cli.task_rows import TuningRows, options_for, task_of, tuning_rows
from zoreward.cli.tune import trainer_for
from zoreward.config import TuneOptions, WorkerOptions
from zoreward.neighbours.of_typer import words_of
from zoreward.records import InputError, ObjectiveError, RanksError, ZorewardError, one_line
from zoreward.registry import describe_objective

if TYPE_CHECKING:
    from zoreward.scoring.channel import Channel
    from zoreward.trainer import ZOTrainer

# What a run writes, chooses by, bounds and reports is its coordinator's affair.
_NOT_HERE: dict[str, Any] = {
    **{"keep": "last", "patience": None, "max_rewinds": None, "eval_steps": None, "eval_batch_size": None},
    **{"max_seconds": None, "max_forwards": None, "metric": None, "report_to": "none", "reward_cache": None},
}


def make_command() -> Callable[..., int]:
    """Return the command that helps with a run."""
    return command(_worker, WorkerOptions)


def _worker(context: typer.Context, options: WorkerOptions) -> Outcome | int:
    from zoreward.scoring.channel import TOKEN, TOKEN_FILE, connected, given_token, place_of_address

    if place_of_address(options.address)[1] == 0:
        hint = "port 0 is for tune, which takes one that is free and prints it"
        raise InputError(f"nobody listens at {options.address}", hint=hint)
    start, token = time.perf_counter(), given_token()
    if token is None:
        hint = f"set {TOKEN} to what tune printed, or {TOKEN_FILE} to a file that holds it"
        raise InputError("a worker has to know the token of the run", hint=hint)
    again = shlex.join(["zoreward", *words_of(context)])
    print(f"waiting for a run at {options.address}")
    with connected(options.address, token) as channel:
        try:
            return _helped(channel, options, start, again)
        except ObjectiveError as error:
            return report_failure(error, again)
        except OSError as error:
            if isinstance(error, ZorewardError):
                raise
            message = f"the run at {options.address} has ended before its last step: {one_line(error, 120)}"
            return report_failure(RanksError(message, hint="when it has been resumed, start workers again"), again)


def _helped(channel: Channel, options: WorkerOptions, start: float, again: str) -> Outcome | int:
    from zoreward import __version__
    from zoreward.scoring.elastic import ask
    from zoreward.trainer.follower import Followed, follow

    found = Followed()
    reply = ask(channel, "begin", name=f"{socket.gethostname()}:{os.getpid()}", version=__version__)
    if "config" in reply:
        with tempfile.TemporaryDirectory(prefix="zoreward-worker-") as folder:
            trainer = _trainer_of(reply["config"], options, folder, again)
            found = follow(trainer, channel, options.address)
    if not found.is_finished and not reply.get("end"):
        raise ConnectionError("it was interrupted, or has failed")
    summary = {"steps": found.steps, "members": found.members, "seconds": round(time.perf_counter() - start, 3)}
    return Outcome(summary, f"the run is over; {found.members} members were scored here")


def _trainer_of(config: Mapping[str, Any], options: WorkerOptions, folder: str, again: str) -> ZOTrainer:
    """The trainer of a run as its coordinator has it, without dev rows, and with an output that is thrown away."""
    _refuse_code(config, options, again)
    known = [field.name for field in fields(TuneOptions)]
    own = {name: value for name, value in config.items() if name not in (*known, "objective")}
    elsewhere = {name: getattr(options, name) for name in ("model", "data", "device")}
    instead = {**_NOT_HERE, "output": str(Path(folder, "run")), **{n: v for n, v in elsewhere.items() if v is not None}}
    if config.get("eval_data") or config.get("eval_split"):  # else they are held out of those to tune on
        instead |= {"eval_data": None, "eval_split": None, "eval_limit": None, "dev_rows": None}
    if config.get("test_data"):
        instead |= {"test_data": None, "test_rows": None}
    if options.device is None:
        instead["device"] = None
    asked = TuneOptions(**{name: config[name] for name in known if name in config} | instead)
    task = task_of(asked)
    objective = made_objective(config["objective"], {**options_for(config["objective"], task), **own}, asked)
    if not objective.reads_base:
        asked = replace(asked, drift=False, max_kl=None, base_device=None)
    rows = tuning_rows(objective, objective, asked, task)
    return trainer_for(objective, asked, TuningRows(rows.train, None, rows.shots, None))


def _refuse_code(config: Mapping[str, Any], options: WorkerOptions, again: str) -> None:
    """Refuse a run that would have code run here that nobody here has named.

    Raises:
        InputError: the message names it.
    """
    named = set(map(os.path.normpath, options.code or ()))
    if code := [text for text in dict.fromkeys(_code_of(config)) if os.path.normpath(text) not in named]:
        flags = " ".join(f"--code {shlex.quote(text)}" for text in code)
        message = f"the run calls {' and '.join(map(repr, code))}, and a worker takes no code on another's word"
        raise InputError(message, hint=f"if you know it: {again} {flags}")
    if config.get("trust_remote_code") and not options.trust_remote_code:
        hint = f"if you know it: {again} --trust-remote-code"
        raise InputError("the run's model brings code, and a worker takes none on another's word", hint=hint)


def _code_of(config: Mapping[str, Any]) -> Iterator[str]:
    """What names code in the options of a run: in the place of an objective, or an option of one."""
    added = [text.rpartition("=")[0] or text for text in config.get("also") or ()]
    for source in (config["objective"], *added):
        if ":" in source or describe_objective(source).needs == "any":  # which makes an objective of what it is told
            yield source
    known = {field.name for field in fields(TuneOptions)}
    own = [value for name, value in config.items() if name not in known and name != "objective"]
    for value in own:
        texts = map(str, value if isinstance(value, list) else [value])
        yield from (text for text in texts if ":" in text or text.endswith(".py"))
