"""`python -m zoreward` is `zoreward`."""

from __future__ import annotations

import os
import sys
import threading
from typing import NoReturn

from zoreward.cli import main
from zoreward.neighbours.of_python import run_exit_functions
from zoreward.registry import left_behind

# Seconds for what loggers and others do when a process ends.
_LAST_WORDS = 3.0


def run() -> NoReturn:
    """Run the command line and end the process with its exit code.

    A reward that hangs was left behind in its thread. Taking an interpreter apart around it may crash, and where the
    reward waits for a process of its own, it may wait too; so then the process just ends.
    """
    code = main()
    if left_behind():
        ending = threading.Thread(target=run_exit_functions, daemon=True)
        ending.start()
        ending.join(_LAST_WORDS)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    run()
