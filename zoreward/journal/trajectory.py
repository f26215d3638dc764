"""`trajectory.safetensors`: a run as 4 bytes a direction and step. Everything else is derived from the run's seed."""

from __future__ import annotations

import io
import json
import zlib
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoreward.journal.bounds import MAX_TERMS, check_method, directions
from zoreward.journal.disk import opened, write_whole
from zoreward.journal.lines import number, parse, whole
from zoreward.journal.stored import StoredRun, check_header, own_coefficients, rewind_of
from zoreward.journal.tensors import entries_of, read_head, write_tensors
from zoreward.methods import Directions
from zoreward.records import InputError, Rewind, StepRecord, Update

# The latter where the run went back, which a reader of the former would not know.
FORMATS = PLAIN, REWOUND = "zoreward-trajectory-1", "zoreward-trajectory-2"
MAX_FILE = 1 << 30
MAX_HEADER = 4 << 20

# Where a direction moved nothing there is no term: adding 0 · z would turn a weight of −0 into +0.
NO_TERM = np.float32("nan")
_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "U32": np.dtype("<u4"), "U8": np.dtype("u1")}
_LETTERS = {dtype: letters for letters, dtype in _DTYPES.items()}
# Numbers of each step: an array, or one number where it never changed. Without an anchor it is 0.
_A_STEP = ("decay", "lr", "anchor")

Arrays = dict[str, NDArray[Any]]


def write_trajectory(run: StoredRun, path: str | Path) -> None:
    """Write a run as a trajectory: a safetensors file with 4 bytes a direction and step; see docs/journal.md.

    Args:
        run: the run.
        path: the file; replaced where it exists.

    Raises:
        InputError: a step has terms that do not follow from the run's seed.
        OSError: it cannot be written.
    """
    data = trajectory_bytes(run)
    write_whole(path, lambda file: file.write(data))


def trajectory_bytes(run: StoredRun) -> bytes:
    """Return what a trajectory file of a run holds.

    Raises:
        InputError: a step has terms that do not follow from the run's seed.
    """
    drawn = directions(run.header)
    if drawn is None:
        raise InputError("the header does not say what the directions derive from", hint="Keep the journal.")
    rows: list[NDArray[Any]] = []
    rates = np.zeros(run.n_steps)
    decays, anchors = np.zeros((2, run.n_steps), "<f4")
    for step, record in enumerate(run.records()):
        own = own_coefficients(drawn, record, _past(drawn, rows[_since(run.rewinds, step) :]))
        rows.append(np.array([NO_TERM if value is None else value for value in own], "<f4"))
        rates[step], decays[step], anchors[step] = record.lr, record.update.decay, record.update.anchor
    coefficients = np.concatenate(rows) if rows else np.empty(0, "<f4")
    if drawn.even:
        coefficients = coefficients.reshape(run.n_steps, drawn.count)
    names = sorted(run.streams)
    header = {name: value for name, value in run.header.items() if name != "streams"}
    about: dict[str, Any] = {"header": header, "steps": run.n_steps}
    arrays: Arrays = {"coefficients": coefficients}
    for name, values in zip(_A_STEP, (decays, rates, anchors), strict=True):
        if len(set(values.tolist())) > 1:
            arrays[name] = values.astype("<f4")
        else:
            about[name] = float(values[0]) if len(values) else 0.0
    arrays["streams"] = np.array([run.streams[name] for name in names], "<u4")
    arrays["names"] = np.frombuffer(zlib.compress(json.dumps(names).encode("ascii"), 9), "u1")
    layout = {name: (_LETTERS[array.dtype], array.shape) for name, array in arrays.items()}
    file = io.BytesIO()
    if run.rewinds:
        about["rewinds"] = [[rewind.step, rewind.to, rewind.rate] for rewind in run.rewinds]
    write_tensors(
        file, REWOUND if run.rewinds else PLAIN, about, layout, [array.tobytes() for array in arrays.values()]
    )
    return file.getvalue()


def read_trajectory(path: str | Path) -> StoredRun:
    """Return the run that a trajectory holds. Nothing in it is run, opened or followed.

    Args:
        path: the file.

    Raises:
        MissingFileError: there is no such file.
        InputError: it is damaged, or no trajectory.
    """
    path = Path(path)
    with opened(path, "trajectory") as file:
        data = file.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise InputError(f"{path} is larger than any trajectory", hint="Look what it is.")
    try:
        return run_of(data)
    except InputError as error:
        raise InputError(f"{path}: {error}", hint=error.hint) from None
    except ValueError as error:
        hint = "Ask whoever wrote it for another copy, or replay the journal."
        raise InputError(f"{path} is damaged, or no trajectory: {error}", hint=hint) from None


def run_of(data: bytes) -> StoredRun:
    """Return the run that the bytes of a trajectory hold.

    Raises:
        InputError: its noise is not ours, or its header lacks something.
        ValueError: it is no trajectory.
    """
    file = io.BytesIO(data)
    about, entries = read_head(file, *FORMATS, largest=min(MAX_HEADER, max(0, len(data) - 8)))
    body = memoryview(data)[file.tell() :]
    header, steps = about.get("header"), about.get("steps")
    if isinstance(header, dict):
        check_method(header)
    drawn = directions(header) if isinstance(header, dict) else None
    if not isinstance(header, dict) or drawn is None or not whole(steps, MAX_FILE):
        raise ValueError("it does not say what its directions derive from")
    if steps * 4 > len(body):
        raise ValueError("it has more steps than numbers")
    ends = range(0, (steps + 1) * drawn.count, drawn.count) if drawn.even else _ends(drawn, steps)
    if steps and drawn.size(steps - 1) * (drawn.window if drawn.momentum else 1) > MAX_TERMS:
        raise ValueError("it has more directions a step than any run")
    arrays = _arrays(entries, body, about, (steps, drawn.count) if drawn.even else (ends[-1],), steps)
    names = _names(arrays["names"].tobytes(), len(arrays["streams"]))
    header = {**header, "streams": dict(zip(names, arrays["streams"].tolist(), strict=True))}
    check_header(header)
    numbers = [np.asarray(arrays.get(name, about.get(name, 0.0))) for name in _A_STEP]
    if np.isinf(arrays["coefficients"]).any() or not all(np.isfinite(values).all() for values in numbers):
        raise ValueError("a number in it is not finite")
    flat, rewinds = arrays["coefficients"].reshape(-1), _rewinds(about.get("rewinds", []), steps)

    def record(step: int) -> StepRecord:
        return _stored(drawn, lambda at: flat[ends[at] : ends[at + 1]], numbers, step, _since(rewinds, step))

    return StoredRun(header, steps, record, rewinds=rewinds)


def _rewinds(told: Any, steps: int) -> tuple[Rewind, ...]:
    """Where the run went back."""
    if not (isinstance(told, list) and all(isinstance(one, list) and len(one) == 3 for one in told)):
        raise ValueError("its rewinds are none")
    found: list[Rewind] = []
    for step, to, rate in told:
        if not whole(step, steps + 1):
            raise ValueError("a rewind is of no step")
        found.append(rewind_of(step, to, rate, found))
    return tuple(found)


def _since(rewinds: Sequence[Rewind], step: int) -> int:
    """The first step of those behind the last rewind before a step: momentum looks back no further."""
    before = bisect_right(rewinds, step, key=lambda rewind: rewind.step)
    return rewinds[before - 1].step if before else 0


def _arrays(
    entries: dict[str, Any], body: memoryview, about: dict[str, Any], shape_of_all: tuple[int, ...], steps: int
) -> Arrays:
    """The arrays, if they are those that such a run has, in their order and without a gap."""
    layout: dict[str, tuple[str, tuple[int, ...]]] = {"coefficients": ("F32", shape_of_all)}
    for name in _A_STEP:
        if name in entries and name not in about:
            layout[name] = ("F32", (steps,))
        elif not number(about.get(name, 0.0 if name == "anchor" else None)):
            raise ValueError(f"its {name} is no number")
    for name, letters in (("streams", "U32"), ("names", "U8")):
        shape = entries[name].get("shape") if isinstance(entries.get(name), dict) else None
        if not (isinstance(shape, list) and len(shape) == 1 and whole(shape[0], MAX_FILE)):
            raise ValueError(f"it has no array '{name}'")
        layout[name] = (letters, (shape[0],))
    expected = entries_of(layout)
    if entries != expected or expected["names"]["data_offsets"][1] != len(body):
        raise ValueError("its arrays are not those of such a run")
    return {
        name: np.frombuffer(body[slice(*expected[name]["data_offsets"])], _DTYPES[letters]).reshape(shape)
        for name, (letters, shape) in layout.items()
    }


def _names(packed: bytes, count: int) -> list[str]:
    """The names, unpacked up to a bound: a hostile file could hold a thousand times its size."""
    unpack = zlib.decompressobj()
    try:
        text = unpack.decompress(packed, MAX_HEADER)
    except zlib.error:
        raise ValueError("its names cannot be unpacked") from None
    names = parse(b'{"names": %s}' % text).get("names") if unpack.eof and not unpack.unused_data else None
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names) and len(set(names)) == count):
        raise ValueError("its names are not those of its streams")
    return names


def _ends(drawn: Directions, steps: int) -> Sequence[int]:
    """Where each step's coefficients begin, and where the last one's end."""
    return [0, *accumulate(drawn.size(step) for step in range(steps))]


def _past(drawn: Directions, rows: Sequence[NDArray[Any]]) -> list[list[float]]:
    """The coefficients that a step with momentum looks back on, from those of all steps before it."""
    newest_first = rows[: -drawn.window : -1]
    return [np.nan_to_num(row, nan=0.0).tolist() for row in newest_first]


def _stored(
    drawn: Directions, row: Callable[[int], NDArray[Any]], numbers: Sequence[NDArray[Any]], step: int, since: int
) -> StepRecord:
    """The record of a step.

    Args:
        drawn: what its directions derive from.
        row: step → its coefficients.
        numbers: an array for each of `_A_STEP`, or one number where it never changed.
        step: which.
        since: the first step that momentum looks back on.
    """
    own = [value if value == value else None for value in row(step).tolist()]
    past = _past(drawn, [row(before) for before in range(max(since, step - drawn.window + 1), step)])
    terms = drawn.own(step, own) + drawn.older(step, past)
    decay, rate, anchor = (float(values[step] if values.ndim else values) for values in numbers)
    update = Update(decay, terms, drawn.rounding_seed(step), anchor, block=drawn.block(step))
    return StepRecord(step, (), update, rate)
