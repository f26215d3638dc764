"""A plugin for pytest: a deprecated call is an error where it is ours. `make test-newest` takes it.

Libraries warn at their own lines, or through a hook of torch, and they call deprecated names of each other. So whose
call it is, is read off the stack: the first caller outside the library that warns and those that only pass calls on.

    PYTHONPATH=tests python -m pytest -p deprecations
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
KINDS = (DeprecationWarning, FutureWarning, PendingDeprecationWarning)
OURS = ("zoreward", "zoreward_objectives", "benchmarks", "examples")
# They call what they are given, and are asked for nothing themselves.
PASS_ON = ("accelerate", "contextlib", "functools", "inspect", "logging", "torch", "warnings", Path(__file__).stem)


def caller(packages: Iterable[str]) -> str:
    """Return whose call it is that a library warns of.

    Args:
        packages: top-level names of the frames' modules, from the warning outwards.

    >>> caller(["warnings", "transformers", "transformers", "torch", "zoreward", "pytest"])
    'zoreward'
    >>> caller(["transformers", "peft", "zoreward"])  # PEFT's to mend
    'peft'
    >>> caller(["torch", "torch", "zoreward"]), caller(["zoreward"])
    ('zoreward', 'zoreward')
    """
    warning = None
    for name in packages:
        if name in PASS_ON or name == warning:
            continue
        if warning is None and name not in OURS:
            warning = name
        else:
            return name
    return ""


def stack() -> Iterator[str]:
    """Yield the top-level names of the modules of all callers, the nearest first."""
    frame = sys._getframe(1)
    while frame is not None:
        yield str(frame.f_globals.get("__name__", "")).partition(".")[0]
        frame = frame.f_back  # type: ignore[assignment]


class Log(logging.Handler):
    """Takes note of what is logged of deprecations."""

    def __init__(self, told: list[str]):
        super().__init__(logging.WARNING)
        self._told = told

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        text = record.getMessage()
        if "deprecated" in text and caller(stack()) in OURS:
            self._told.append(text)


@pytest.fixture(autouse=True)
def no_deprecated_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test after which our code has called something deprecated. Not at once: some errors are caught."""
    told: list[str] = []
    plain = warnings.warn

    def warn(message: Any, category: Any = None, stacklevel: int = 1, *args: Any, **kwargs: Any) -> None:
        kind = type(message) if isinstance(message, Warning) else category or UserWarning
        if issubclass(kind, KINDS) and caller(stack()) in OURS:
            told.append(f"{kind.__name__}: {message}")
        plain(message, category, stacklevel + 1, *args, **kwargs)

    once = getattr(logging.Logger, "warning_once", logging.Logger.warning)

    def warning_once(self: logging.Logger, *args: Any, **kwargs: Any) -> None:
        # What transformers says once it says in each test: else only the first that meets such a call would fail.
        (logging.Logger.warning if self.name.startswith("transformers") else once)(self, *args, **kwargs)

    monkeypatch.setattr(warnings, "warn", warn)
    monkeypatch.setattr(logging.Logger, "warning_once", warning_once, raising=False)
    handler = Log(told)
    loggers = [logging.getLogger(name) for name in ("", "transformers")]
    for logger in loggers:
        logger.addHandler(handler)
    yield
    for logger in loggers:
        logger.removeHandler(handler)
    if told:
        pytest.fail("\n".join(["our own calls are deprecated:", *dict.fromkeys(told)]), pytrace=False)
