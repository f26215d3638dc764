"""What we use of Python itself without its promise: what it does when a process ends."""

from __future__ import annotations

import atexit


def run_exit_functions() -> None:
    """Call what loggers and others have registered for the end of the process.

    Private: the function that Python calls then.
    """
    atexit._run_exitfuncs()
