"""`zoreward eval OBJECTIVE`: score a model."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import typer

from zoreward.cli.options import (
    DATA,
    MODEL_FIELDS,
    PROMPT_FIELDS,
    RUN,
    command,
    given_options,
    objective_options,
    option,
    own_options,
)
from zoreward.cli.prepare import checked_rows, quiet_transformers
from zoreward.registry import Objective


def eval_command(source: str, found: Objective) -> Callable[..., int]:
    """Return the command that scores a model with the objective that `source` names."""
    parameters = [
        option("model", str, "A folder, or a Hub id such as facebook/opt-125m.", DATA),
        option("data", str, "The rows to score on: .jsonl, .json, .csv or .parquet.", DATA),
        *own_options(MODEL_FIELDS + PROMPT_FIELDS),
        option("json", bool, "Print one JSON object as the last line.", RUN, default=False),
    ]
    parameters += objective_options(found, parameters)
    return command(functools.partial(_eval, source, found), parameters)


def _eval(source: str, found: Objective, context: typer.Context, values: dict[str, Any]) -> int:
    start = time.perf_counter()
    options = given_options(context, values)
    prompt = {name: values[name] for name in PROMPT_FIELDS}
    # What a model, a tokenizer or an objective prints is not the result.
    with contextlib.redirect_stdout(sys.stderr):
        rows = checked_rows(values["data"], found, prompt)
        quiet_transformers()
        from zoreward.scoring import evaluate

        result = evaluate(values["model"], source, rows, **prompt, dtype=values["dtype"], options=options)
    summary = {
        "objective": result.objective,
        "score": result.score,
        "rows": result.rows,
        "truncated": result.truncated,
        "model": values["model"],
        "seconds": round(time.perf_counter() - start, 3),
    }
    if values["json"]:
        print(json.dumps(summary, ensure_ascii=False))
    else:
        _print_table(summary)
    return 0


def _print_table(summary: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    columns = [name for name in summary if name != "model"]  # which has been typed, and may be long
    table = Table(*columns, box=box.SIMPLE_HEAD)
    shown = [summary[name] for name in columns]
    table.add_row(*(Text(f"{value:.4f}" if isinstance(value, float) else str(value)) for value in shown))
    Console().print(table)
