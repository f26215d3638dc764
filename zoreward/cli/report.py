"""`zoreward report RUN`: a page to look at, of one run or of several beside each other."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from zoreward.cli.flags import command
from zoreward.cli.printing import Outcome
from zoreward.cli.saving import MODEL_NAME, read_record
from zoreward.config import ReportOptions
from zoreward.records import InputError, one_line

if TYPE_CHECKING:
    from zoreward.report import Facts


def make_command() -> Callable[..., int]:
    """Return the command that writes pages."""
    return command(_report, ReportOptions)


def _report(context: typer.Context, options: ReportOptions) -> Outcome:
    from zoreward.report import COMPARISON_NAME, REPORT_NAME, write_comparison, write_report

    runs = [facts_in(path) for path in options.runs]
    if len(runs) > 1:
        page = Path(options.output or COMPARISON_NAME)
    else:
        folder = Path(runs[0].path)
        page = Path(options.output or (folder if folder.is_dir() else folder.parent) / REPORT_NAME)
    try:
        if len(runs) > 1:
            write_comparison(page, runs)
        else:
            write_report(page, runs[0])
    except OSError as error:
        raise InputError(f"{page} cannot be written: {error.strerror}", hint="choose another: --output FILE") from error
    return Outcome({"page": str(page), "runs": [one.summary() for one in runs]}, f"a page to look at: {page}")


def facts_in(path: str) -> Facts:
    """Return what there is to show of a run: what its files say, and the record of its model.

    Raises:
        MissingFileError: there is no run.
        InputError: it is damaged, or has not begun.
    """
    from zoreward.report import facts_of

    saved = read_record(Path(path, MODEL_NAME))
    if saved is None:
        return facts_of(path)
    return facts_of(path, kept=saved.step, findings=saved.found)


def write_page(output: Path) -> None:
    """Write the page of a run that has just ended. That it cannot be written is a warning: nothing depends on it."""
    try:
        from zoreward.report import REPORT_NAME, write_report

        write_report(output / REPORT_NAME, facts_in(str(output)))
    except Exception as error:
        logging.getLogger("zoreward").warning("The page of the run could not be written: %s.", one_line(error))
