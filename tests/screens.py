"""What a terminal of a width shows of a command: of a real one, by a pseudo-terminal, not of a file."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import sys
import termios
from collections.abc import Sequence
from pathlib import Path

# What rich writes to draw a line anew, and what else a terminal obeys beside colours.
_MOVES = re.compile(r"\x1b\[(\d*)A|\x1b\[2K|\r|\x1b\[\?25[hl]|\n")
COLOURS = re.compile(r"\x1b\[[\d;]*m")


def shown(words: Sequence[str], columns: int, folder: Path) -> list[str]:
    """Return the lines that `zoreward` leaves on a terminal, with their colours.

    Args:
        words: behind `zoreward`.
        columns: of the terminal.
        folder: where it is typed.
    """
    process, screen = pty.fork()
    if process == 0:
        os.chdir(folder)
        fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        unset = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
        os.execvpe(sys.executable, [sys.executable, "-m", "zoreward", *words], {**unset, "TERM": "xterm-256color"})
    written = b""
    while True:
        try:
            part = os.read(screen, 1 << 16)
        except OSError:  # so Linux says that the other end is closed
            break
        if not part:
            break
        written += part
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    os.close(screen)
    assert code == 0, written.decode("utf-8", "replace")
    return left_on_screen(written.decode("utf-8", "replace"))


def left_on_screen(written: str) -> list[str]:
    """Return the lines that are there in the end.

    >>> left_on_screen("one\\nstep 1\\r\\x1b[2Kstep 2\\r\\nlast")
    ['one', 'step 2', 'last']
    """
    lines, at, begin = [""], 0, 0
    for move in _MOVES.finditer(written):
        lines[at] += written[begin : move.start()]
        begin = move.end()
        if move[0] == "\n":
            at += 1
            lines += [""] * (at == len(lines))
        elif move[0] == "\x1b[2K":
            lines[at] = ""
        elif move[0].endswith("A"):
            at = max(0, at - int(move[1] or 1))
    lines[at] += written[begin:]
    return lines if lines[-1] else lines[:-1]
