"""What `tune` and `eval` do before a model is loaded."""

from __future__ import annotations

from typing import Any

from zoreward.data import check_columns, load_rows
from zoreward.registry import Objective


def checked_rows(path: str, objective: Objective, prompt: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a file, once the prompt's options are known to fit them.

    Args:
        path: the file.
        objective: what the rows are for.
        prompt: the options of the panel "Prompt", by name.

    Raises:
        ZorewardError: the file cannot be read, or a template, a label or a choice does not fit.
    """
    rows = load_rows(path)
    if objective.needs != "completions":
        columns = {name: value for name, value in prompt.items() if name != "max_length"}
        check_columns(rows, needs=objective.needs, **columns)
    return rows


def quiet_transformers() -> None:
    """Keep transformers' progress bars, and what it logs below a warning, off the terminal."""
    from transformers.utils import logging

    logging.set_verbosity_warning()
    logging.disable_progress_bar()
