"""`snapshot.safetensors`: the weights of a run at one of its steps, so that a resume need not replay all of it.

It holds the tuned weights under their canonical names, and says its `step` and its `mark`, which ties it to that step
of this run; see `zoreward.journal.tensors`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import torch

from zoreward.journal.disk import open_file, write_whole
from zoreward.journal.lines import whole
from zoreward.journal.stored import StoredRun
from zoreward.journal.tensors import CHUNK, Layout, entries_of, read_head, write_tensors
from zoreward.records import Rewind, StepRecord, Term

SNAPSHOT_NAME = "snapshot.safetensors"
FORMAT = "zoreward-snapshot-2"

_DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}

Weights = Mapping[str, torch.Tensor]


def mark(fingerprint: str, record: StepRecord, rewinds: Sequence[Rewind] = ()) -> str:
    """Return what tells a step of a run from the same step of any other: a SHA-256.

    Args:
        fingerprint: of the weights that the run began with.
        record: the step.
        rewinds: where the run had gone back when its weights were written.
    """
    update = record.update
    terms = [(term.seed, term.coefficient, *_told(term)) for term in update.terms]
    others = [term.family.distribution for term in update.terms if term.family.distribution != "normal"]
    said = [fingerprint, record.step, [*map(float, record.scores)], update.decay, terms, update.rounding_seed]
    said += [update.anchor] if update.anchor else []
    said += [] if update.block is None else [update.block, [term.block for term in update.terms]]
    said += [others] if others else []
    said += [[[rewind.step, rewind.to] for rewind in rewinds]] if rewinds else []
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def _told(term: Term) -> list[int | str | None]:
    """What a mark has of a family: rank, seeds of a, b and the subspace, as when all had these; or its name."""
    told = term.family.to_json(term.seed) or [0]
    return [told[0], term.seed, *told[1:], *[term.seed, None][len(told) - 1 :]]


def write_snapshot(
    folder: str | Path, weights: Weights, fingerprint: str, record: StepRecord, rewinds: Sequence[Rewind] = ()
) -> None:
    """Write weights as they stand after a step. The snapshot before stays until the new one is whole.

    Args:
        folder: the run folder.
        weights: canonical name → tuned weight.
        fingerprint: of the weights that the run began with.
        record: the last step.
        rewinds: where the run has gone back so far.

    Raises:
        OSError: it cannot be written; the one before is still there.
    """
    about = {"step": record.step + 1, "mark": mark(fingerprint, record, rewinds)}
    pieces = (piece for weight in weights.values() for piece in _bytes(weight))
    write_whole(Path(folder, SNAPSHOT_NAME), lambda file: write_tensors(file, FORMAT, about, _layout(weights), pieces))


@torch.no_grad()
def read_snapshot(folder: str | Path, weights: Weights, run: StoredRun, most: int) -> int:
    """Put the weights of a snapshot in the place of those of a model. They are changed only if all of it is sound.

    Args:
        folder: the run folder.
        weights: canonical name → tuned weight, changed in place.
        run: whose snapshot it must be.
        most: the step that it may stand at, at most, and that it must be on the way to.

    Returns:
        The steps they have done; 0 without a snapshot.

    Raises:
        ValueError: it cannot be used; the message says why.
    """
    try:
        with open_file(Path(folder, SNAPSHOT_NAME)) as file:
            about, entries = read_head(file, FORMAT)
            step = about.get("step")
            if not whole(step, min(most, run.n_steps) + 1) or not step:
                raise ValueError(f"it stands at step {step}")
            rewinds = [rewind for rewind in run.rewinds if rewind.step <= step]
            if about.get("mark") != mark(run.header["fingerprint"], run.record(step - 1), rewinds):
                raise ValueError("it belongs to another run")
            if not run.leads(step, most):
                raise ValueError(f"the run has gone back from its step {step}")
            if entries != entries_of(_layout(weights)):
                raise ValueError("its weights are not those of the model")
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


def _layout(weights: Weights) -> Layout:
    return {name: (_DTYPES[weight.dtype], tuple(weight.shape)) for name, weight in weights.items()}


def _bytes(weight: torch.Tensor) -> Iterator[memoryview]:
    flat = weight.detach().contiguous().view(-1)
    rows = max(1, CHUNK // weight.element_size())
    for piece in flat.split(rows) if flat.numel() else ():
        yield memoryview(piece.cpu().view(torch.uint8).numpy())


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
