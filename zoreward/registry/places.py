"""Where in the user's own code something happened."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

_STANDARD = Path(sysconfig.get_path("stdlib"))
_OURS = Path(__file__).parents[1]


def place_of(error: BaseException | None) -> str:
    """Return where an exception was raised: the last line that is neither Python's, nor a package's, nor zoreward's.

    Where there is none, the last line of all; "" where that is not known.

    >>> place_of(None)
    ''
    """
    stack = traceback.extract_tb(error.__traceback__) if error is not None else []
    return f"raised in {_last(stack)}" if stack else ""


def place_in(frame: FrameType | None) -> str:
    """Return where a call stands, as `place_of` does; "" where that is not known."""
    return _last(traceback.extract_stack(frame)) if frame is not None else ""


def _last(stack: Sequence[traceback.FrameSummary]) -> str:
    own = [one for one in stack if not one.filename.startswith("<") and not _is_packaged(Path(one.filename))]
    last = (own or stack)[-1]
    return f"{last.filename}, line {last.lineno}"


def _is_packaged(path: Path) -> bool:
    installed = {"site-packages", "dist-packages"} & {*path.parts}
    return bool(installed) or path.is_relative_to(_STANDARD) or path.is_relative_to(_OURS)
