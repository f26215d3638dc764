"""Reading a journal back, with every line checked, and going on with it; finding a run by its folder or file."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from zoreward.journal.bounds import FREE_DIRECTIONS, MAX_BLOCKS, MAX_RANKS, MAX_TERMS
from zoreward.journal.disk import lock, open_file, opened
from zoreward.journal.lines import LARGEST_SCORE, MAX_LINE, checksum, number, parse, shown, whole
from zoreward.journal.stored import StoredRun, check_header, directions, rewind_of
from zoreward.journal.writer import JOURNAL_NAME, TRAJECTORY_NAME, Journal
from zoreward.methods import Directions
from zoreward.noise import DISTRIBUTIONS, Distribution
from zoreward.noise.families import family_from_json
from zoreward.records import InputError, MissingFileError, Rewind, StepRecord, Term, Update


def load_run(path: str | Path) -> StoredRun:
    """Return the run that a folder or a file holds.

    Args:
        path: a run folder, whose journal is read, or else its trajectory; or one of the two files.

    Raises:
        MissingFileError: there is none.
        InputError: it is damaged.
    """
    path = Path(path)
    if os.path.isdir(path):  # not Path.is_dir, which raises where a name is too long to be one
        for name in (JOURNAL_NAME, TRAJECTORY_NAME):
            if (path / name).exists():
                return load_run(path / name)
        raise MissingFileError(
            f"the folder {path} holds no run", hint=f"Give one with {JOURNAL_NAME} or {TRAJECTORY_NAME} in it."
        )
    if path.suffix != ".safetensors":
        return read_journal(path)
    from zoreward.journal.trajectory import read_trajectory  # not above: journals need no NumPy

    return read_trajectory(path)


def read_journal(path: str | Path) -> StoredRun:
    """Return the run that a journal holds. Nothing in it is run, opened or followed.

    A last line that was cut off in the middle of writing is left out. Whatever else is wrong is refused.

    Args:
        path: the file.

    Raises:
        MissingFileError: there is no such file.
        InputError: it is damaged; the message has the line.
    """
    path = Path(path)
    with opened(path, "journal") as file:
        found = scan(path, file)
    if found.run is None:
        raise InputError(f"{path} has no header: the run ended before its first step", hint="Start the run again.")
    return found.run


def reopen(folder: str | Path, *, sync: bool = False) -> tuple[Journal, StoredRun | None] | None:
    """Open the journal of a run to append to it, and read it. A last line that was cut off is taken away.

    Args:
        folder: the run folder.
        sync: wait for the disk after each line; see `Journal`.

    Returns:
        The journal, locked, and what it holds, None where not even its header is whole; None without a journal.

    Raises:
        InputError: another process is at work on it, it is damaged, or cannot be opened.
    """
    path = Path(folder).absolute() / JOURNAL_NAME
    if not has_journal(folder):
        return None
    try:
        file = path.open("r+b", buffering=0)
        try:
            lock(file, path)
            with path.open("rb") as lines:
                found = scan(path, lines)
            return Journal.resumed(path, file, end=found.end, crc=found.crc, sync=sync), found.run
        except BaseException:
            file.close()
            raise
    except OSError as error:
        raise InputError(f"{path} cannot be opened: {error.strerror}", hint="Look at its permissions.") from error


def has_journal(folder: str | Path) -> bool:
    """Return whether there is a journal in a run folder, to go on with.

    Raises:
        InputError: the run is there without it, or something else has its name.
    """
    path = Path(folder) / JOURNAL_NAME
    if not path.exists():
        if (path.parent / TRAJECTORY_NAME).exists():
            raise InputError(
                f"'{folder}' holds {TRAJECTORY_NAME} but no {JOURNAL_NAME}",
                hint="Such a run can be replayed, but not resumed.",
            )
        return False
    if not path.is_file():
        raise InputError(f"{path} is no journal", hint="Choose another folder.")
    return True


def resumable_run(folder: str | Path) -> StoredRun | None:
    """Read the journal in a run folder as `reopen` does, and leave it as it is.

    Returns:
        What it holds; None where not even its header is whole.

    Raises:
        OSError: it cannot be read.
        InputError: it is damaged.
    """
    path = Path(folder) / JOURNAL_NAME
    with open_file(path) as file:
        return scan(path, file).run


def scan(path: Path, file: BinaryIO) -> Scan:
    """Read and check all whole lines of a journal.

    Raises:
        InputError: it is damaged; the message has the line.
    """
    found = Scan(path)
    while line := file.readline(MAX_LINE + 1):
        if not line.endswith(b"\n"):
            if len(line) > MAX_LINE:
                found.number += 1
                found.refuse(f"it is longer than {MAX_LINE} bytes")
            break
        found.take(line[:-1])
    return found


@dataclass(slots=True)
class Scan:
    """Where a reader stands in a journal.

    Args:
        path: for errors.
        number: of the line read last, from 1.
        crc: its checksum.
        end: bytes of all lines so far.
        header: what the first line holds.
        drawn: what the directions derive from, where the header tells.
        steps: the lines of the steps, as they stand in the file: objects would take several times their room.
        evaluations: (steps done, score).
        metrics: what else is known of each evaluation.
        groups: what groups of rows say of each evaluation's score.
        rewinds: where the run went back.
    """

    path: Path
    number: int = 0
    crc: int = 0
    end: int = 0
    header: dict[str, Any] = field(default_factory=dict)
    drawn: Directions | None = None
    steps: list[bytes] = field(default_factory=list)
    evaluations: list[tuple[int, float]] = field(default_factory=list)
    metrics: list[dict[str, float | None]] = field(default_factory=list)
    groups: list[tuple[float, ...]] = field(default_factory=list)
    rewinds: list[Rewind] = field(default_factory=list)

    @property
    def run(self) -> StoredRun | None:
        """What was read; None without a header."""
        if not self.number:
            return None
        stored = partial(_stored, tuple(self.steps))
        of_scores = (tuple(self.evaluations), tuple(self.metrics), tuple(self.groups))
        return StoredRun(self.header, len(self.steps), stored, *of_scores, tuple(self.rewinds))

    def take(self, line: bytes) -> None:
        """Check a line and keep what it says."""
        self.number += 1
        self.end += len(line) + 1
        try:
            fields = parse(line)
        except ValueError as error:
            self.refuse(f"it is not JSON ({error})")
        kind, step = fields.get("kind"), fields.get("step")
        # Where a step stands in the wrong place its checksum is wrong as well, but says less.
        due = len(self.steps)
        if self.number > 1 and kind in ("step", "evaluation", "rewind") and not (whole(step, due + 1) and step == due):
            self.refuse(f"it has step {shown(step)} where {due} belongs")
        crc = checksum(line, self.crc)
        if crc is None:
            self.refuse("its checksum is wrong: it, or a line before it, was changed, removed or moved")
        self.crc = crc
        if (kind == "header") != (self.number == 1):
            self.refuse("the header is the first line, and only the first")
        if kind == "header":
            self._take_header(fields)
        elif kind == "step":
            if (problem := _step_problem(fields)) is not None:
                self.refuse(problem)
            if self.drawn is not None and self.drawn.drawn(due) > max(FREE_DIRECTIONS, len(fields["scores"])):
                self.refuse("it has fewer scores than the directions that the header tells of")
            self.steps.append(line)
        elif kind == "evaluation":
            if not number(fields.get("score"), LARGEST_SCORE):
                self.refuse("its score is no number")
            metrics = fields.get("metrics", {})
            if not (isinstance(metrics, dict) and all(_is_metric(value) for value in metrics.values())):
                self.refuse("what it tells beside its score is no numbers")
            groups = fields.get("groups", [])
            if not (isinstance(groups, list) and all(number(value, LARGEST_SCORE) for value in groups)):
                self.refuse("what groups of rows say of its score is no numbers")
            self.evaluations.append((due, float(fields["score"])))
            self.metrics.append(metrics)
            self.groups.append(tuple(groups))
        elif kind == "rewind":
            try:
                self.rewinds.append(rewind_of(due, fields.get("to"), fields.get("rate"), self.rewinds))
            except ValueError as error:
                self.refuse(str(error))
        else:
            self.refuse(f"its kind, {shown(kind)}, is not known")

    def _take_header(self, fields: dict[str, Any]) -> None:
        self.header = {name: value for name, value in fields.items() if name not in ("kind", "crc")}
        try:
            check_header(self.header)
        except InputError as error:
            raise InputError(f"{self.path}, line 1: {error}", hint=error.hint) from None
        self.drawn = directions(self.header)

    def refuse(self, problem: str) -> NoReturn:
        """Say what is wrong with the line at hand."""
        hint = "Ask whoever wrote it for another copy."
        if self.number > 2:
            hint = f"The lines before it are sound: `head -n {self.number - 1} {self.path}` prints them."
        raise InputError(f"{self.path}, line {self.number}: {problem}", hint=hint)


def _step_problem(fields: dict[str, Any]) -> str | None:
    scores, terms = fields.get("scores"), fields.get("terms")
    if not whole(fields.get("rounding_seed"), 2**64):
        return "its rounding seed is no whole number"
    if not all(number(fields.get(name, 0.0 if name == "anchor" else None)) for name in ("lr", "decay", "anchor")):
        return "its learning rate, its decay or its anchor is no number"
    if not (isinstance(scores, list) and all(score is None or number(score, LARGEST_SCORE) for score in scores)):
        return "its scores are no numbers"
    distribution = fields.get("distribution", "normal")
    if not (isinstance(distribution, str) and distribution in DISTRIBUTIONS):
        return "its distribution is none"
    if not isinstance(terms, list):
        return "its terms are none"
    if len(terms) > MAX_TERMS:
        return "it has more terms than any step"
    try:
        found = [_term(term, distribution, None) for term in terms]
    except (ValueError, TypeError):
        return "its terms are none"
    if sum(term.family.rank for term in found) > MAX_RANKS:
        return "its terms are of a higher rank than those of any step"
    turn = fields.get("block")
    blocks = fields.get("term_blocks", [turn] * len(terms))
    if not (isinstance(blocks, list) and len(blocks) == len(terms) and all(map(_is_block, [turn, *blocks]))):
        return "its blocks are none"
    return None


def _term(told: Any, distribution: Distribution, block: int | None) -> Term:
    """The term that a line tells; raises a ValueError or a TypeError where it is none."""
    seed, coefficient, *family = told
    if not number(coefficient):
        raise ValueError("its coefficient is no number")
    return Term(seed, coefficient, family_from_json(seed, family, distribution), block=block)


def _is_metric(value: Any) -> bool:
    return value is None or number(value, LARGEST_SCORE)


def _is_block(block: Any) -> bool:
    return block is None or whole(block, MAX_BLOCKS)


def _stored(lines: tuple[bytes, ...], step: int) -> StepRecord:
    """The record of a step whose line has been checked."""
    fields = parse(lines[step])
    turn = fields.get("block")
    blocks = fields.get("term_blocks", [turn] * len(fields["terms"]))
    distribution = fields.get("distribution", "normal")
    terms = tuple(_term(term, distribution, block) for term, block in zip(fields["terms"], blocks, strict=True))
    update = Update(fields["decay"], terms, fields["rounding_seed"], fields.get("anchor", 0.0), block=turn)
    scores = tuple(math.nan if score is None else score for score in fields["scores"])
    return StepRecord(fields["step"], scores, update, fields["lr"])
