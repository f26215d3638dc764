"""The examples run as they are printed, and do what they say."""

from __future__ import annotations

import runpy
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_any_module_is_tuned_on_a_staircase():
    before, after = runpy.run_path(str(EXAMPLES / "any_module.py"))["main"]()
    assert before < 0.7 and after > 0.9, (before, after)
