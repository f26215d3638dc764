"""Rows from files and the Hub, and prompts from rows. Free of torch."""

from __future__ import annotations

from zoreward.data.conversations import check_prompts, render_prompts
from zoreward.data.hub import check_hub
from zoreward.data.prompts import check_columns, render
from zoreward.data.rows import load_rows
from zoreward.data.show import describe_prompts

__all__ = ["check_columns", "check_hub", "check_prompts", "describe_prompts", "load_rows", "render", "render_prompts"]
