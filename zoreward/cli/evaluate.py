"""`zoreward eval OBJECTIVE`: score a model."""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import typer

from zoreward.cli.options import (
    DATA,
    MODEL_FIELDS,
    MOST_SEED,
    PROMPT,
    PROMPT_FIELDS,
    REWARD_FIELDS,
    RUN,
    TEXT_FIELDS,
    command,
    config_option,
    given_options,
    objective_options,
    option,
    own_options,
)
from zoreward.cli.prepare import (
    batch_option,
    data_options,
    made_objective,
    patient_objective,
    prompt_options,
    quiet_transformers,
    select_device,
    shown_prompts,
    sum_options,
)
from zoreward.cli.rows import scored_rows
from zoreward.cli.task import task_options, with_task
from zoreward.cli.terminal import json_line
from zoreward.data import Task, check_calibration, without_content
from zoreward.records import Evaluation, InputError, printable
from zoreward.registry import Objective

if TYPE_CHECKING:
    from zoreward.scoring import Generation


def eval_command(source: str, found: Objective) -> Callable[..., int]:
    """Return the command that scores a model with the objective that `source` names."""
    base = "The model before it was tuned, for objectives that compare with it: a folder or a Hub id."
    calibrate = "Score answers by how much likelier the prompt makes them than one without content does."
    parameters = [
        *data_options("score on"),
        option("base_model", str | None, base, DATA, default=None),
        *task_options("eval"),
        *own_options(MODEL_FIELDS + PROMPT_FIELDS + TEXT_FIELDS + REWARD_FIELDS),
        *prompt_options(),
        option("calibrate", bool, calibrate, PROMPT, default=False),
        batch_option(),
        option("seed", int, "Seed of demonstrations, and of what is drawn.", RUN, default=0, least=0, most=MOST_SEED),
        option("json", bool, "Print one JSON object as the last line.", RUN, default=False),
        *sum_options(),
    ]
    parameters += objective_options(found, parameters)
    parameters.append(config_option("eval", source, parameters))
    return command(functools.partial(_eval, source), parameters)


def _eval(source: str, context: typer.Context, values: dict[str, Any]) -> int:
    start = time.perf_counter()
    out = sys.stdout
    # What a model, a tokenizer or an objective prints is not the result.
    with contextlib.redirect_stdout(sys.stderr):
        task = with_task("eval", context, values)
        prompt = {name: values[name] for name in PROMPT_FIELDS}
        objective = made_objective(source, given_options(context, values), values["also"])
        if values["base_model"] is not None and not objective.compares_with_base:
            hint = "leave --base-model out, or take preference"
            raise InputError(f"--base-model has no use: {objective.name!r} compares with no base", hint=hint)
        content_free = _content_free(objective, values, task)
        objective = patient_objective(objective, values)
        rows, shot_rows = scored_rows(objective, prompt, values, task)
        device = select_device(values["device"])
        if values["show_prompts"]:
            text = shown_prompts(objective, prompt, values, rows, shot_rows)
            print(json_line({"prompts": text}) if values["json"] else printable(text), file=out)
            return 0
        quiet_transformers()
        from zoreward.scoring import evaluate

        result = evaluate(
            values["model"],
            objective,
            rows,
            **prompt,
            shot_rows=shot_rows,
            seed=values["seed"],
            dtype=values["dtype"],
            device=device,
            device_map=values["device_map"],
            trust_remote_code=values["trust_remote_code"],
            batch_size=values["eval_batch_size"],
            generation=_generation(values),
            base=values["base_model"],
            content_free=content_free,
        )
    summary = _summary(result, values, calibrated=content_free is not None)
    summary["seconds"] = round(time.perf_counter() - start, 3)
    if values["json"]:
        print(json_line(summary))
    else:
        _print_table(summary)
    return 0


def _generation(values: dict[str, Any]) -> Generation:
    from zoreward.scoring import Generation

    return Generation(
        max_new_tokens=values["max_completion_length"],
        temperature=values["temperature"],
        top_p=values["top_p"],
        top_k=values["top_k"],
        stop=tuple(values["stop"] or ()),
        seed=values["seed"],
    )


def _summary(result: Evaluation, values: dict[str, Any], *, calibrated: bool) -> dict[str, Any]:
    return {
        "objective": result.objective,
        "score": result.score,
        **({"parts": result.parts} if result.parts else {}),
        **result.statistics,
        **result.metrics,
        "rows": result.rows,
        "truncated": result.truncated,
        **({"fewer_shots": result.fewer_shots} if values["shots"] else {}),
        **({"calibrated": True} if calibrated else {}),
        "model": values["model"],
    }


def _content_free(objective: Objective, values: dict[str, Any], task: Task | None) -> str | None:
    """The prompt to calibrate with: the task's, for its own prompt; otherwise that with "N/A" for all columns."""
    if not values["calibrate"]:
        return None
    chooses = objective.needs == "choices" and not objective.compares_with_base
    check_calibration(objective.name, chooses, values["template"])
    if task is not None and values["template"] == task.template and task.content_free is not None:
        return task.content_free
    return without_content(values["template"])


def _print_table(summary: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    summary = {**summary, **summary.get("parts", {})}
    columns = [name for name in summary if name not in ("parts", "model")]  # a model has been typed, and may be long
    table = Table(box=box.SIMPLE_HEAD)
    for name in columns:  # not as texts, which may look like markup
        table.add_column(Text(printable(name)))
    cells = [f"{value:.4f}" if isinstance(value, float) else str(value) for value in map(summary.get, columns)]
    table.add_row(*(Text(printable(cell)) for cell in cells))
    Console().print(table)
