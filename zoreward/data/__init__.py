"""Rows from files and the Hub, and prompts from rows. Free of torch."""

from __future__ import annotations

from zoreward.data.choices import classes_of, label_names
from zoreward.data.columns import placed
from zoreward.data.conversations import check_chat_template
from zoreward.data.hub import at_revision, check_hub, holds_model, parted
from zoreward.data.preferences import prompts_of_preferences, with_prompts
from zoreward.data.prompts import (
    check_calibration,
    check_columns,
    check_prompts,
    content_free_examples,
    describe_prompts,
    render,
    render_prompts,
    without_content,
)
from zoreward.data.rows import Split, k_shot_rows, load_rows, rows_of, sample_rows, seen_before, split_rows, write_rows
from zoreward.data.tasks import Task, list_tasks, load_task
from zoreward.data.tokens import BORDER, MASK, PAIRS, WHOLE

__all__ = [
    "BORDER",
    "MASK",
    "PAIRS",
    "WHOLE",
    "Split",
    "Task",
    "at_revision",
    "check_calibration",
    "check_chat_template",
    "check_columns",
    "check_hub",
    "check_prompts",
    "classes_of",
    "content_free_examples",
    "describe_prompts",
    "holds_model",
    "k_shot_rows",
    "label_names",
    "list_tasks",
    "load_rows",
    "load_task",
    "parted",
    "placed",
    "prompts_of_preferences",
    "render",
    "render_prompts",
    "rows_of",
    "sample_rows",
    "seen_before",
    "split_rows",
    "with_prompts",
    "without_content",
    "write_rows",
]
