"""`snapshot.safetensors`: the weights of a run at one of its steps, so that a resume need not replay all of it.

A safetensors file with the tuned weights under their canonical names. Its metadata: `format`, `step`, `mark`, which
ties it to that step of this run, and `sha256`, of all but the first 8 bytes, with 64 zeros in its own place.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from zoreward.journal.disk import open_file, write_whole
from zoreward.journal.lines import parse
from zoreward.journal.stored import StoredRun
from zoreward.records import StepRecord, Term

SNAPSHOT_NAME = "snapshot.safetensors"
FORMAT = "zoreward-snapshot-1"
# Bytes that are read, or fetched from a device, at once.
CHUNK = 64 << 20
MAX_HEADER = 64 << 20

_DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_NO_SUM = "0" * 64

Weights = Mapping[str, torch.Tensor]


def mark(fingerprint: str, record: StepRecord) -> str:
    """Return what tells a step of a run from the same step of any other: a SHA-256.

    Args:
        fingerprint: of the weights that the run began with.
        record: the step.
    """
    update = record.update
    terms = [(term.seed, term.coefficient, *_told(term)) for term in update.terms]
    others = [term.family.distribution for term in update.terms if term.family.distribution != "normal"]
    said = [fingerprint, record.step, [*map(float, record.scores)], update.decay, terms, update.rounding_seed]
    said += [update.anchor] if update.anchor else []
    said += [] if update.block is None else [update.block, [term.block for term in update.terms]]
    said += [others] if others else []
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def _told(term: Term) -> list[int | str | None]:
    """What a mark has of a family: rank, seeds of a, b and the subspace, as when all had these; or its name."""
    told = term.family.to_json(term.seed) or [0]
    return [told[0], term.seed, *told[1:], *[term.seed, None][len(told) - 1 :]]


def write_snapshot(folder: str | Path, weights: Weights, fingerprint: str, record: StepRecord) -> None:
    """Write weights as they stand after a step. The snapshot before stays until the new one is whole.

    Args:
        folder: the run folder.
        weights: canonical name → tuned weight.
        fingerprint: of the weights that the run began with.
        record: the last step.

    Raises:
        OSError: it cannot be written; the one before is still there.
    """
    about = {"step": str(record.step + 1), "mark": mark(fingerprint, record)}
    write_whole(Path(folder, SNAPSHOT_NAME), lambda file: _write(file, weights, about))


@torch.no_grad()
def read_snapshot(folder: str | Path, weights: Weights, run: StoredRun, most: int) -> int:
    """Put the weights of a snapshot in the place of those of a model. They are changed only if all of it is sound.

    Args:
        folder: the run folder.
        weights: canonical name → tuned weight, changed in place.
        run: whose snapshot it must be.
        most: the step that it may stand at, at most.

    Returns:
        The steps they have done; 0 without a snapshot.

    Raises:
        ValueError: it cannot be used; the message says why.
    """
    try:
        with open_file(Path(folder, SNAPSHOT_NAME)) as file:
            step, start = _checked(file, weights, run, most)
            file.seek(start)
            for weight in weights.values():
                _fill(file, weight)
            return step
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise ValueError(f"it cannot be read: {error.strerror}") from error


def remove_snapshot(folder: str | Path) -> None:
    """Remove the snapshot of a run that is over, and what was left of an unfinished one."""
    with contextlib.suppress(OSError):
        for name in (SNAPSHOT_NAME, f"{SNAPSHOT_NAME}.part"):
            Path(folder, name).unlink(missing_ok=True)


def _write(file: BinaryIO, weights: Weights, metadata: dict[str, str]) -> None:
    head = _head(weights, {"format": FORMAT, **metadata, "sha256": _NO_SUM})
    digest = hashlib.sha256(head)
    file.write(len(head).to_bytes(8, "little") + head)
    for weight in weights.values():
        for piece in _bytes(weight):
            digest.update(piece)
            file.write(piece)
    file.seek(8)
    file.write(_head(weights, {"format": FORMAT, **metadata, "sha256": digest.hexdigest()}))


def _head(weights: Weights, metadata: dict[str, str]) -> bytes:
    text = json.dumps({"__metadata__": metadata, **_entries(weights)}).encode("ascii")
    return text + b" " * (-len(text) % 8)


def _entries(weights: Weights) -> dict[str, Any]:
    entries, end = {}, 0
    for name, weight in weights.items():
        start, end = end, end + weight.numel() * weight.element_size()
        entries[name] = {"dtype": _DTYPES[weight.dtype], "shape": list(weight.shape), "data_offsets": [start, end]}
    return entries


def _bytes(weight: torch.Tensor) -> Iterator[memoryview]:
    flat = weight.detach().contiguous().view(-1)
    rows = max(1, CHUNK // weight.element_size())
    for piece in flat.split(rows) if flat.numel() else ():
        yield memoryview(piece.cpu().view(torch.uint8).numpy())


def _checked(file: BinaryIO, weights: Weights, run: StoredRun, most: int) -> tuple[int, int]:
    """The step of a sound snapshot that fits, and where its data begins."""
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= MAX_HEADER:
        raise ValueError("its header has an impossible length")
    head = file.read(length)
    try:
        entries = parse(head)
    except ValueError as error:
        raise ValueError(f"its header is damaged ({error})") from None
    metadata = entries.pop("__metadata__", None)
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise ValueError(f"its format is not {FORMAT}")
    said, step = str(metadata.get("sha256")), str(metadata.get("step"))
    if not (step.isdecimal() and len(step) < 19):
        raise ValueError("it does not say its step")
    if not 0 < int(step) <= min(most, run.n_steps):
        raise ValueError(f"it stands at step {int(step)}")
    if metadata.get("mark") != mark(run.header["fingerprint"], run.record(int(step) - 1)):
        raise ValueError("it belongs to another run")
    if entries != _entries(weights):
        raise ValueError("its weights are not those of the model")
    digest = hashlib.sha256(head.replace(said.encode(), _NO_SUM.encode(), 1))
    while piece := file.read(CHUNK):
        digest.update(piece)
    if digest.hexdigest() != said:
        raise ValueError("its checksum is wrong")
    return int(step), 8 + length


def _fill(file: BinaryIO, weight: torch.Tensor) -> None:
    whole = torch.empty(weight.shape, dtype=weight.dtype)
    if whole.numel():
        buffer = memoryview(whole.view(-1).view(torch.uint8).numpy())
        while buffer:  # one call may read a part only
            count = file.readinto(buffer)  # type: ignore[attr-defined]
            if not count:
                raise ValueError("it became shorter while it was read")
            buffer = buffer[count:]
    weight.copy_(whole)
