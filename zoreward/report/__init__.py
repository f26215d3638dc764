"""Pages to look at, made of a run's files: `report.html` of one run, a comparison of several. Free of torch."""

from zoreward.report.comparison import COMPARISON_NAME, write_comparison
from zoreward.report.facts import Facts, facts_of
from zoreward.report.page import REPORT_NAME, write_report

__all__ = ["COMPARISON_NAME", "REPORT_NAME", "Facts", "facts_of", "write_comparison", "write_report"]
