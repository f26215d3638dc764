"""`zoreward eval OBJECTIVE`: score a model."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from zoreward.cli.as_tuned import as_tuned
from zoreward.cli.flags import given_options, objective_command
from zoreward.cli.prepare import (
    check_new_file,
    made_objective,
    objective_with_retries,
    quiet_transformers,
    select_device,
    shown_prompts,
)
from zoreward.cli.printing import Outcome, is_first, show_table
from zoreward.cli.task_rows import options_for, scored_rows, with_task
from zoreward.config import EvalOptions, Prompting, part_of
from zoreward.data import Task, check_calibration, without_content, write_rows
from zoreward.neighbours.of_launchers import launch_of
from zoreward.neighbours.of_typer import words_of
from zoreward.records import Evaluation, InputError
from zoreward.registry import Objective

if TYPE_CHECKING:
    from zoreward.scoring import Ranks


def make_command(source: str, objective: Objective) -> Callable[..., int]:
    """Return the command that scores a model with the objective that `source` names."""
    return objective_command(_eval, EvalOptions, "eval", source, objective)


def _eval(source: str, context: typer.Context, options: EvalOptions, flags: dict[str, Any]) -> Outcome:
    start = time.perf_counter()
    options, task = with_task(context, options)
    of_objective = options_for(source, task) | given_options(context, flags)
    objective = made_objective(source, of_objective, options)
    if objective.goes_via_reward:
        raise InputError("--via reward is for tune", hint="leave it out: eval scores the answers of the rows")
    if options.base_model is not None and not objective.compares_with_base:
        hint = "leave --base-model out, or take preference"
        raise InputError(f"--base-model has no use: {objective.name!r} compares with no base", hint=hint)
    options = as_tuned(context, options, objective)
    content_free = _content_free(objective, options, task)
    if options.output is not None:
        check_new_file(options.output)
    objective = objective_with_retries(objective, options)
    rows, shot_rows = scored_rows(objective, options, task, words_of(context))
    ranks = _ranks(options)
    device = select_device(options.device)
    if options.show_prompts:
        text = shown_prompts(objective, options, rows, shot_rows)
        return Outcome({"prompts": text}, text)
    quiet_transformers()
    from zoreward.scoring import evaluate, generation_of, rows_of_evaluation

    result = evaluate(
        options.model,
        objective,
        rows,
        **vars(part_of(Prompting, options)),
        shot_rows=shot_rows,
        seed=options.seed,
        dtype=options.dtype,
        device=device,
        device_map=options.device_map,
        trust_remote_code=options.trust_remote_code,
        batch_size=options.eval_batch_size,
        generation=generation_of(options, options.seed),
        base=options.base_model,
        content_free=content_free,
        ranks=ranks,
    )
    if not is_first():
        return Outcome({}, "")
    if options.output is not None:
        write_rows(Path(options.output), rows_of_evaluation(objective, result))
    summary = {
        "objective": result.objective,
        "score": result.score,
        **({"parts": result.parts} if result.parts else {}),
        **result.statistics,
        **result.metrics,
        "rows": result.rows,
        "truncated": result.truncated,
        **_beside(objective, result, options.seed),
        **({"fewer_shots": result.fewer_shots} if options.shots else {}),
        **({"calibrated": True} if content_free is not None else {}),
        "model": options.model,
        "seconds": round(time.perf_counter() - start, 3),
    }
    return Outcome(summary, lambda: _show(summary))


def _ranks(options: EvalOptions) -> Ranks | None:
    """The processes that share the passes, each of which has a GPU of its own; None: there is one.

    Raises:
        InputError: each is to spread the model.
    """
    if launch_of() is None:
        return None
    if options.device_map is not None:
        raise InputError("device_map spreads a model that each of several ranks is to hold", hint="leave it out")
    from zoreward.scoring import one_of_its_own
    from zoreward.trainer.replicas import joined

    with one_of_its_own(options.device == "cpu"):
        pass  # from now on it sees its own GPU alone
    return joined()


def _beside(objective: Objective, result: Evaluation, seed: int) -> dict[str, float]:
    """What says how much a score is worth, as far as it is known."""
    from zoreward.scoring import majority_score, standard_error

    found = {
        "standard_error": standard_error(objective, result, seed=seed),
        "majority": majority_score(objective, result.examples),
    }
    return {name: value for name, value in found.items() if value is not None}


def _content_free(objective: Objective, options: EvalOptions, task: Task | None) -> str | None:
    """The prompt to calibrate with: the task's, for its own prompt; otherwise that with "N/A" for all columns."""
    if not options.calibrate:
        return None
    chooses = objective.needs == "choices" and not objective.compares_with_base
    check_calibration(objective.name, chooses, options.template)
    if task is not None and options.template == task.template and task.content_free is not None:
        return task.content_free
    return without_content(options.template or "")


def _show(summary: dict[str, Any]) -> None:
    values = {**summary, **summary.get("parts", {})}
    apart = ("parts", "model", "standard_error")  # a model has been typed, and may be long
    columns = [name for name in values if name not in apart]
    cells = {name: f"{values[name]:.4f}" if isinstance(values[name], float) else values[name] for name in columns}
    if "standard_error" in values:
        cells["score"] += f" ± {values['standard_error']:.4f}"
    show_table(columns, [list(cells.values())])
