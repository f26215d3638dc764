"""What `tune` and `eval` do before a model is loaded, and the options for it."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoreward.config import Common, Prompting, Rewarding, part_of
from zoreward.data import MASK, Task, check_columns, check_prompts, load_rows, placed
from zoreward.data.rows import WRITERS
from zoreward.records import InputError
from zoreward.registry import Objective, get_objective, spelled_out, weighted_sum

if TYPE_CHECKING:
    from logging import LogRecord

    from zoreward.records import Example
    from zoreward.scoring import Head

Rows = list[dict[str, Any]]

# Their deprecations are told to those who write the code that calls them: us, or each other.
_LIBRARIES = "accelerate|datasets|evaluate|huggingface_hub|peft|sklearn|tokenizers|torch|transformers|trl"


def made_objective(source: str, options: dict[str, Any], asked: Common) -> Objective:
    """Return the objective that is asked for, with those that --also adds, and beside it those of --metric.

    Raises:
        ZorewardError: one cannot be found or made, or a weight is no number, or a metric needs something else.
    """
    objectives, weights = [get_objective(source, **options)], [1.0]
    for added in asked.also or ():
        name, equals, weight = added.rpartition("=")
        objectives.append(get_objective(name if equals else added))
        try:
            weights.append(float(weight) if equals else 1.0)
        except ValueError:
            raise InputError(f"--also {added}: {weight!r} is no weight", hint=f"--also {name}=0.1") from None
    made = weighted_sum(objectives, weights)
    return replace(made, beside=_metrics(asked.metric, made)) if asked.metric else made


def _metrics(names: list[str], objective: Objective) -> tuple[Objective, ...]:
    """The objectives of --metric, which are given what this one is given."""
    if objective.goes_via_reward:
        raise InputError("--metric reports nothing beside --via reward", hint="leave --metric out, and eval afterwards")
    found: dict[str, Objective] = {}
    for name in names:
        source, options = spelled_out(name) or (name, {})
        metric = get_objective(source, **options)
        problem = f"needs {metric.needs}, and {objective.name} {objective.needs}"
        if metric.compares_with_base or metric.reads_base:
            problem = "compares with the model before tuning"
        elif metric.needs == objective.needs:
            problem = ""
        if problem:
            hint = f"leave it out, and score the tuned model afterwards: zoreward eval {source}"
            raise InputError(f"--metric {name} {problem}", hint=hint)
        if metric.name in (objective.name, *(part.name for _, part in objective.parts), *found):
            raise InputError(f"--metric {name} is reported already", hint="leave it out")
        found[metric.name] = metric
    return tuple(found.values())


def objective_with_retries(objective: Objective, options: Rewarding) -> Objective:
    """Return the objective, called as the options about rewards say.

    Raises:
        InputError: they are out of their range, or the objective has no scores that can be cached, or the folder for
            them cannot be made.
    """
    from zoreward.registry.retries import with_retries

    made = with_retries(objective, part_of(Rewarding, options))
    if options.reward_cache is not None:
        _check_cache(options.reward_cache)
    return made


def _check_cache(folder: str) -> None:
    """Refuse a --reward-cache that cannot be made. One that is there and cannot be written to may still be read."""
    from zoreward.registry.cache import FILE_NAME

    file = Path(folder, FILE_NAME)
    if os.path.isdir(file):
        raise InputError(f"--reward-cache {folder}: {file} is a folder", hint="give another folder")
    if not folder or not os.path.isfile(file):
        check_folder(folder, "--reward-cache", hint="give a folder that can be made and written to")


def kind_for(options: Common) -> str:
    """Return which kind of model the options ask for; see `zoreward.scoring.model_kind`.

    Raises:
        ZorewardError: there is no such model.
    """
    if head := getattr(options, "head", None):  # `eval` makes none
        return str(head)
    quiet_transformers()
    from zoreward.scoring import head_of

    return head_of(options.model, trust_remote_code=options.trust_remote_code).kind


def head_for(options: Common, rows: Rows, *, is_needed: bool = False) -> Head | None:
    """Return what the model gives for a row, where what is right of the prompt's options depends on it.

    With a template and answers, and no mask, it does not: then torch need not be imported to check them.

    Args:
        options: of the command.
        rows: those to tune on, or to score.
        is_needed: whether it is, whatever the prompt's options are.

    Raises:
        ZorewardError: there is no such model, or its head gives no classes.
    """
    head, template = getattr(options, "head", None), options.template
    answers = (options.choices, options.choice_column, options.answer) != (None, None, None)
    if not is_needed and not head and answers and template is not None and MASK not in template:
        return None
    quiet_transformers()
    from zoreward.scoring import head_of

    how: dict[str, Any] = {"head": head, "choices": options.choices, "label": options.label}
    with placed(rows):
        return head_of(options.model, rows, **how, trust_remote_code=options.trust_remote_code)


def check_rows(
    objective: Objective,
    prompting: Prompting,
    rows: Rows,
    shot_rows: Rows | None = None,
    head: Head | None = None,
) -> None:
    """Raise if the prompt's options do not fit the rows.

    Args:
        objective: what the rows are for.
        prompting: the prompt's options.
        rows: at least one.
        shot_rows: rows for demonstrations; by default `rows`.
        head: what the model gives for a row, if that is known.

    Raises:
        ZorewardError: a template, a label or a choice does not fit.
    """
    if objective.needs == "completions":
        check_prompts(rows, prompting)
    else:
        known: dict[str, Any] = {} if head is None else {"kind": head.kind, "classes": head.classes}
        with placed(rows):
            check_columns(rows, prompting, needs=objective.needs, shot_rows=shot_rows, **known)
        if count := len(prompting.choices or known.get("classes", ())):
            objective.check_choices(count)


def check_for_model(objective: Objective, options: Common, rows: Rows, shot_rows: Rows | None = None) -> Head | None:
    """Raise if the prompt's options do not fit the rows or the model; return `head_for`, for objectives of choices."""
    head = head_for(options, rows) if objective.needs == "choices" else None
    check_rows(objective, options, rows, shot_rows, head)
    return head


def shot_rows_of(objective: Objective, options: Common, task: Task | None = None) -> Rows | None:
    """Return the rows of --shots-data, None without it."""
    if options.shots_data is None:
        return None
    if not options.shots:
        raise InputError("--shots-data has no demonstrations to give", hint="say how many: --shots 4")
    rows = load_rows(options.shots_data)
    if task is not None:
        rows = task.prepared(task.kept(rows))
    check_rows(objective, part_of(Prompting, options, shots=0), rows)
    return rows


def shown_prompts(objective: Objective, options: Common, rows: Rows, shot_rows: Rows | None) -> str:
    """Return the first prompts as the model would read them. The tokenizer is loaded, the model is not."""
    head = head_for(options, rows, is_needed=True)
    assert head is not None
    from zoreward.data import describe_prompts

    examples, tokenizer = made_ready(rows, objective.needs, options, head, shot_rows)
    return describe_prompts(examples, tokenizer, classes=head.kind == "classifier")


def made_ready(
    rows: Rows, needs: str, options: Any, head: Head, shot_rows: Rows | None = None
) -> tuple[list[Example], Any]:
    """Return rows as the model reads them, and its tokenizer; the model is not loaded.

    Args:
        rows: checked ones.
        needs: what the objective needs.
        options: of prompts, of loading a model and of what it writes.
        head: of the model.
        shot_rows: demonstrations.
    """
    from zoreward.scoring import examples_of, length_limit, load_tokenizer

    trust: dict[str, Any] = {"trust_remote_code": options.trust_remote_code}
    tokenizer = load_tokenizer(options.model, **trust, kind=head.kind)
    prompting = part_of(Prompting, options, max_length=length_limit(options.max_length, options.model, **trust))
    how: dict[str, Any] = {"head": head, "shot_rows": shot_rows, "seed": options.seed}
    return examples_of(
        rows, tokenizer, needs, prompting, max_new_tokens=options.max_completion_length, **how
    ), tokenizer


def numbered(folder: Path) -> Iterator[Path]:
    """Return the names for more folders of this kind: `NAME-2`, `NAME-3`, …"""
    return (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))


def next_to(folder: Path) -> Path:
    """Return the first of these names that nothing has."""
    return next(other for other in numbered(folder) if not os.path.lexists(other))


def check_folder(output: str, option: str = "--output", hint: str = "give a folder that does not exist yet") -> None:
    """Refuse a folder that cannot be made, or written to. Nothing is left there.

    Args:
        output: the folder.
        option: that it was given by.
        hint: what to give instead.

    Raises:
        InputError: it is a file, or lies under one; or its disk, its name or its rights do not allow it.
    """
    import tempfile

    path = Path(output)
    if not output.strip() or "\0" in output:
        raise InputError(f"{option} {output!r} names no folder", hint=hint)
    if os.path.lexists(path) and not os.path.isdir(path):
        kind = "a link to nothing" if path.is_symlink() and not os.path.exists(path) else "a file"
        raise InputError(f"{option} {output} is {kind}", hint=hint)
    nearest = next(folder for folder in (path, *path.absolute().parents) if os.path.lexists(folder))
    try:
        for part in path.parts:
            if len(os.fsencode(part)) > os.pathconf(nearest, "PC_NAME_MAX"):
                raise InputError(f"{option} {part:.20}… is too long a name", hint=hint)
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise InputError(
            f"{option} {output} cannot be written: {error.strerror}", hint=f"choose another folder for {option}"
        ) from error


def check_new_file(path: str, option: str = "--output") -> None:
    """Refuse a file of rows that is there already, or that cannot be written.

    Raises:
        InputError: it is, or its ending says nothing that can be written, or there is no such folder to write to.
    """
    endings = " or ".join(WRITERS)
    if Path(path).suffix.lower() not in WRITERS:
        raise InputError(f"{option} {path!r} is no file of rows that can be written", hint=f"end it in {endings}")
    if os.path.lexists(path):
        raise InputError(f"{option} {path} is there already", hint="give another name, or take it away")
    check_folder(str(Path(path).parent), option, hint="give a file in a folder that can be written to")


def select_device(device: str | None) -> str | None:
    """Return the device as torch will know it, before torch is imported.

    transformers takes the first GPU that it sees, so of several only the one that is asked for is shown to it.
    """
    if device and device.startswith("cuda:") and device[5:].isdigit() and "CUDA_VISIBLE_DEVICES" not in os.environ:
        os.environ["CUDA_VISIBLE_DEVICES"] = device[5:]
        return "cuda"
    return device


def quiet_transformers() -> None:
    """Keep transformers' progress bars, what it logs below a warning, and deprecations in it off the terminal."""
    from transformers.utils import logging

    logging.set_verbosity_warning()
    logging.disable_progress_bar()
    # Code that comes with a model may ask outputs for names of older releases.
    logging.get_logger("transformers.utils.generic").addFilter(_is_no_deprecation)


def _is_no_deprecation(record: LogRecord) -> bool:
    return "deprecated" not in record.getMessage()


@contextlib.contextmanager
def quiet_deprecations() -> Iterator[None]:
    """Keep deprecations that libraries tell at lines of their own off the terminal, unless Python was asked for them.

    What a user's own code calls, where Python names its line, is still told.

    >>> with quiet_deprecations():
    ...     warnings.warn_explicit("`old` is deprecated", FutureWarning, "x.py", 1, module="torch.nn.modules.module")
    """
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.filterwarnings("ignore", category=FutureWarning, module=rf"({_LIBRARIES})(\.|$)")
        yield
