"""A task's table: methods × settings × seeds, chosen by dev rows, reported on test rows. No torch before it runs."""

from __future__ import annotations

from zoreward.bench.driver import run_all
from zoreward.bench.plan import (
    BY_DEFAULT,
    METHODS,
    BenchMethod,
    BenchOptions,
    Plan,
    Run,
    Settings,
    check_rates,
    checked_methods,
    problem_of,
    rates_of,
    runs_of,
)
from zoreward.bench.pools import bench_rows, check_plan, check_shots
from zoreward.bench.results import Results
from zoreward.bench.table import as_csv, as_markdown, draw, fitting, lines_of

__all__ = [
    "BY_DEFAULT",
    "METHODS",
    "BenchMethod",
    "BenchOptions",
    "Plan",
    "Results",
    "Run",
    "Settings",
    "as_csv",
    "as_markdown",
    "bench_rows",
    "check_plan",
    "check_rates",
    "check_shots",
    "checked_methods",
    "draw",
    "fitting",
    "lines_of",
    "problem_of",
    "rates_of",
    "run_all",
    "runs_of",
]
