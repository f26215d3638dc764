"""The model of a run: written as a whole, with a record of what it is, and compared with that record by a resume."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoreward.config import DEFAULTED
from zoreward.data.reading import read_yaml
from zoreward.records import InputError, StorageError, ZorewardError
from zoreward.registry import Objective, code_of

if TYPE_CHECKING:
    from zoreward.journal import StoredRun
    from zoreward.trainer import ZOTrainer

CONFIG_NAME = "config.yaml"
MODEL_NAME = "model"
RECORD_NAME = "zoreward.json"
FORMAT = "zoreward-model-1"
# Endings of files that transformers and PEFT look for in a model's folder.
LOADED = (".json", ".safetensors", ".bin", ".jinja")
# A record of ten thousand files is a tenth of this.
_MAX_RECORD = 16 << 20


@dataclass(frozen=True, slots=True)
class Saved:
    """What stands in a model folder, by the file `zoreward.json` in it.

    Args:
        step: after how many steps the weights stand.
        steps: how many steps the run had done.
        keep: which step was asked for, `last` or `best`.
        merged: whether the adapter was merged into the weights.
        mark: what tells the run's last step from that of another run.
        rows: a SHA-256 of the rows that the command was given.
        files: name → SHA-256 of each file of the model, without its card, which may be edited.
        trajectory: the SHA-256 of the run's trajectory; None where it could not be written.
        found: what the command said of the run beside the scores in its journal; None while that is not known.
    """

    step: int
    steps: int
    keep: str
    merged: bool
    mark: str
    rows: str
    files: dict[str, str]
    trajectory: str | None
    found: dict[str, Any] | None = None


def save_model(trainer: ZOTrainer, output: Path, *, keep: str, rows: str) -> Saved:
    """Write the model and its tokenizer into the run folder: all of it, or nothing. The snapshot has served then.

    At every instant one whole model is there, under its name or beside it: the one before is moved aside until the new
    one, whose files are on the disk by then, has taken its name. See `tidy`.

    Args:
        trainer: of a run that is over.
        output: the run folder.
        keep: which step was asked for, `last` or `best`.
        rows: `digest_of_rows`.

    Raises:
        StorageError: it cannot be written.
    """
    from zoreward.journal import TRAJECTORY_NAME, load_run, remove_snapshot
    from zoreward.journal.disk import remove, sync_all, sync_folder
    from zoreward.journal.snapshot import mark

    target = output / MODEL_NAME
    unfinished, before = _unfinished(output), _before(output)
    try:
        tidy(output)
        trainer.save_model(str(unfinished))
        run = load_run(output)
        saved = Saved(
            step=trainer.kept_step,
            steps=run.n_steps,
            keep=keep,
            merged=bool(trainer.args.merge),
            mark=mark(run.header["fingerprint"], run.record(run.n_steps - 1)),
            rows=rows,
            files=_digests(unfinished),
            trajectory=_digest_or_none(output / TRAJECTORY_NAME),
        )
        write_record(unfinished, saved)
        sync_all(unfinished)
        if target.exists() or target.is_symlink():
            target.rename(before)
        unfinished.rename(target)
        sync_folder(output)
        remove(before)
    except InputError:  # what was made is not what was tuned
        with suppress(OSError):
            tidy(output)
        raise
    except Exception as error:  # safetensors raises its own
        with suppress(OSError):
            tidy(output)
        raise StorageError(
            f"{target} cannot be written: {error}", hint="Make room there, and resume the run."
        ) from error
    remove_snapshot(output)
    return saved


def tidy(output: Path) -> None:
    """Bring a run folder in order in which a save was cut short: the old model or the new one, and nothing else.

    Raises:
        OSError: something cannot be moved or removed.
    """
    from zoreward.journal.disk import remove

    remove(_unfinished(output))
    target, before = output / MODEL_NAME, _before(output)
    if before.exists() and not target.exists():
        before.rename(target)
    remove(before)


def write_record(folder: Path, saved: Saved) -> None:
    """Write down what a model folder holds.

    Raises:
        OSError: it cannot be written.
    """
    from zoreward.journal.disk import write_whole

    text = json.dumps({"format": FORMAT, **asdict(saved)}, indent=1)
    write_whole(folder / RECORD_NAME, lambda file: file.write(text.encode()))


def read_record(folder: Path) -> Saved | None:
    """Return what a model folder is said to hold; None where nothing is said that could be understood."""
    from zoreward.journal.disk import open_file

    try:
        with open_file(folder / RECORD_NAME) as file:
            fields = json.loads(file.read(_MAX_RECORD))
        if fields.pop("format") != FORMAT:
            return None
        saved = Saved(**fields)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    sound = isinstance(saved.files, dict) and isinstance(saved.found, dict | None)
    return saved if sound else None


def with_findings(output: Path, saved: Saved, findings: Mapping[str, Any]) -> None:
    """Add to the record what was found when the model had been saved. Without it a resume finds it again."""
    with suppress(OSError):
        write_record(output / MODEL_NAME, replace(saved, found=dict(findings)))


def keeps_last(output: Path) -> bool:
    """Return whether the run in a folder keeps its last step, as its `config.yaml` says: none of its rows choose."""
    try:
        config = read_yaml(output / CONFIG_NAME, "")
    except ZorewardError:
        return False
    return isinstance(config, dict) and config.get("keep") == "last"


def finished_run(
    output: Path, options: dict[str, Any], objective: Objective, rows: str
) -> tuple[dict[str, Any] | None, str]:
    """Return what is known of a run that has nothing left to do, as far as can be told without its model.

    The lock is held meanwhile. What a kill left beside the model is removed, and a trajectory that is missing or stale
    is written again.

    Args:
        output: the run folder.
        options: of the command, as `config.yaml` holds them; None where the default depends on something.
        objective: the one that is tuned on.
        rows: `digest_of_rows`.

    Returns:
        What was found beside the scores; or None, and why the model has to be saved again: "" where the run is not
        done.

    Raises:
        InputError: the run cannot be resumed: another process is at work on it, its journal is damaged, or missing
            where a trajectory is there.
    """
    from zoreward.journal import JOURNAL_NAME, TRAJECTORY_NAME, has_journal, remove_snapshot, resumable_run
    from zoreward.journal.disk import held

    if not has_journal(output):
        return None, ""
    try:
        with held((output / JOURNAL_NAME).absolute()):
            run = resumable_run(output)
            if run is None or not (_is_done(run, output, options) and _is_made_so(run, objective, options)):
                return None, ""
            tidy(output)
            saved = read_record(output / MODEL_NAME)
            if saved is None:
                return None, "the model is missing, or nothing says what it is"
            if (problem := _problem(run, saved, options, rows, output / MODEL_NAME)) is not None:
                return None, problem
            if saved.trajectory is None or _digest_or_none(output / TRAJECTORY_NAME) != saved.trajectory:
                from zoreward.trainer.resuming import save_trajectory

                save_trajectory(str(output))
            remove_snapshot(output)  # a kill may have come between the model and this
            return saved.found, ""
    except FileNotFoundError:
        return None, ""
    except OSError as error:
        return None, f"it cannot be read ({error.strerror})"


def digest_of_rows(*given: Sequence[dict[str, Any]] | None) -> str:
    """Return a SHA-256 of rows as they were read.

    >>> digest_of_rows([{"a": 1}], None) == digest_of_rows([{"a": 1}], [])
    False
    """
    digest = hashlib.sha256()
    for rows in given:
        digest.update(b"\n-" if rows is None else b"\n+")
        for row in rows or ():
            digest.update(json.dumps(row, default=str, skipkeys=True).encode() + b"\n")
    return digest.hexdigest()


def _is_done(run: StoredRun, output: Path, options: dict[str, Any]) -> bool:
    """Whether the run has done its steps and its last evaluation, with the options that are asked for."""
    import yaml

    from zoreward.journal.disk import open_file

    try:
        with open_file(output / CONFIG_NAME) as file:
            then = yaml.safe_load(file.read(_MAX_RECORD).decode("utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError, RecursionError):
        return False
    if not isinstance(then, dict) or run.n_steps < (options["max_steps"] or then.get("max_steps", 0)):
        return False
    chosen = {name for name in (*DEFAULTED, "max_steps") if options.get(name) is None}
    names = (options.keys() | then.keys()) - chosen
    evaluated = [step for step, _ in run.evaluations] or [run.n_steps]
    return all(options.get(name) == then.get(name) for name in names) and run.n_steps in evaluated


def _is_made_so(run: StoredRun, objective: Objective, options: dict[str, Any]) -> bool:
    """Whether the objective's code and the model's config are those that the run had, as far as can be told."""
    code, before = code_of(objective), run.header.get("code") or {}
    if any(code.get(name) != was for name, was in before.items() if was and code.get(name)):
        return False
    values = json.loads(json.dumps(dict(objective.values), default=str))
    if not objective.parts and values != run.header.get("options"):  # its task may have set them
        return False
    then, file = run.header.get("model_config") or {}, Path(options["model"], "config.json")
    if not file.is_file():  # on the Hub, or gone: the model of the run is there without it
        return True
    try:
        now = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(now, dict) and all(then[name] == value for name, value in now.items() if name in then)


def _problem(run: StoredRun, saved: Saved, options: dict[str, Any], rows: str, folder: Path) -> str | None:
    """Why the model that was saved is not that of the run as it stands and as it is asked for; None if it is."""
    from zoreward.journal.card import CARD_NAME
    from zoreward.journal.snapshot import mark

    best = options["keep"] == "best" and run.best_step is not None
    step = run.best_step if best else run.n_steps
    if saved.mark != mark(run.header["fingerprint"], run.record(run.n_steps - 1)) or saved.steps != run.n_steps:
        return f"the model is that of an earlier end, after {saved.steps} steps"
    if (saved.keep, saved.step, saved.merged) != (options["keep"], step, bool(options["merge"])):
        return "another step, or another form, of the model is asked for"
    if saved.rows != rows or saved.found is None:
        return "what is known of the model is of other rows, or not all there"
    if not (folder / CARD_NAME).is_file():
        return "its card is missing"
    for name, digest in saved.files.items():
        if _digest_or_none(folder / name) != digest:
            return f"its file {name} is missing or damaged"
    strangers = [path.name for path in folder.iterdir() if path.suffix in LOADED and path.name not in saved.files]
    if strangers := sorted(set(strangers) - {RECORD_NAME}):
        return f"a file is in it that was not saved with it, {strangers[0]}"
    return None


def _unfinished(output: Path) -> Path:
    return output / f"{MODEL_NAME}.part"


def _before(output: Path) -> Path:
    return output / f"{MODEL_NAME}.old"


def _digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of a model but its card."""
    from zoreward.journal.card import CARD_NAME

    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / CARD_NAME)
    return {path.relative_to(folder).as_posix(): _digest(path) for path in files}


def _digest_or_none(path: Path) -> str | None:
    try:
        return _digest(path)
    except OSError:
        return None


def _digest(path: Path) -> str:
    from zoreward.journal.disk import open_file

    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # its type says BinaryIO


def say_why(problem: str, output: Path) -> None:
    """Say that the model of a finished run is made again."""
    if problem:
        print(f"the run in {output} is finished, but {problem}: it is saved again", file=sys.stderr)
