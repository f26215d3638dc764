"""Where in the user's own code something happened."""

from __future__ import annotations

import dis
import signal
import sysconfig
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

_STANDARD = Path(sysconfig.get_path("stdlib"))
_OURS = Path(__file__).parents[1]


def place_of(error: BaseException | None) -> str:
    """Return where an exception was raised: the last line that is neither Python's, nor a package's, nor zoreward's.

    Where there is none, the last line of all but those by which Python imports; "" where that is not known. Code that
    is no Python is raised by nobody: the place is then the line that cannot be read.

    >>> place_of(None), place_of(SyntaxError("invalid syntax", ("rewards.py", 2, 7, "def f(:")))
    ('', 'see rewards.py, line 2: def f(:')
    """
    if isinstance(error, SyntaxError) and error.filename and not error.filename.startswith("<"):
        text = (error.text or "").strip()
        return f"see {error.filename}, line {error.lineno or 1}" + (f": {text}" if text else "")
    stack = traceback.extract_tb(error.__traceback__) if error is not None else []
    last = _last(stack)
    return f"raised in {last}" if last else ""


def place_in(frame: FrameType | None) -> str:
    """Return where a call stands, as `place_of` does; "" where that is not known."""
    return _last(traceback.extract_stack(frame)) if frame is not None else ""


def is_ctrl_c(error: BaseException) -> bool:
    """Return whether an exception is the user's wish to stop, and not something that somebody's code has raised.

    Both are a KeyboardInterrupt. A signal comes between two instructions, and is raised in the main thread: by Python
    itself, or in the handler. What code raises by itself was raised by that instruction.

    Example: the end of `except BaseException as error: if is_ctrl_c(error): raise`
    """
    if not isinstance(error, KeyboardInterrupt) or threading.current_thread() is not threading.main_thread():
        return False
    trace = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    handlers = [getattr(signal.getsignal(number), "__code__", None) for number in (signal.SIGINT, signal.SIGTERM)]
    if not trace or any(frame.f_code in handlers for frame in trace):
        return True
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    assert last is not None
    instruction = last.tb_frame.f_code.co_code[last.tb_lasti]
    return dis.opname[instruction] != "RAISE_VARARGS"


def _last(stack: Sequence[traceback.FrameSummary]) -> str:
    frames = [frame for frame in stack if not frame.filename.startswith("<") and not _is_packaged(Path(frame.filename))]
    frames = frames or [frame for frame in stack if not _imports(frame.filename)]
    return f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else ""


def _imports(filename: str) -> bool:
    return filename.startswith("<frozen importlib") or Path(filename).is_relative_to(_STANDARD / "importlib")


def _is_packaged(path: Path) -> bool:
    installed = {"site-packages", "dist-packages"} & {*path.parts}
    return bool(installed) or path.is_relative_to(_STANDARD) or path.is_relative_to(_OURS)
