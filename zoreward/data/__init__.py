"""Rows from files, and prompts from rows. Free of torch."""

from __future__ import annotations

from zoreward.data.prompts import check_columns, render
from zoreward.data.rows import load_rows

__all__ = ["check_columns", "load_rows", "render"]
