"""The append-only record of a run: one JSON object a line, each of a kind.

| kind | when | what |
|---|---|---|
| `header` | first | whatever the steps depend on: noise version, method, streams, versions |
| `step` | once a step | scores, learning rate, and the update as terms |
| `evaluation` | when rows to choose by were scored | the score at that step |

A term is [seed, coefficient], or [seed, coefficient, rank] where its direction is of low rank.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

from zoreward.noise import NOISE_VERSION
from zoreward.records import StepRecord, Term

JOURNAL_NAME = "journal.jsonl"


class Journal:
    """The open journal of one run. Each line has left the process when `append` returns.

    Args:
        folder: the run folder; made if it does not exist.
        header: whatever the steps depend on; `noise_version` is added.

    Raises:
        FileExistsError: the folder holds a journal already.

    Example:
        >>> with Journal(folder, {"seed": 0, "streams": {}}) as journal:  # doctest: +SKIP
        ...     journal.append(step)
    """

    def __init__(self, folder: str | Path, header: dict[str, Any]):
        path = Path(folder) / JOURNAL_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("x", encoding="utf-8")
        self._write({"kind": "header", "noise_version": NOISE_VERSION, **header})

    def append(self, record: StepRecord) -> None:
        """Write one step: its scores, and the update that followed from them."""
        update = record.update
        self._write(
            {
                "kind": "step",
                "step": record.step,
                "scores": list(record.scores),
                "lr": record.lr,
                "decay": update.decay,
                "terms": [_term(term) for term in update.terms],
                "rounding_seed": update.rounding_seed,
            }
        )

    def append_evaluation(self, step: int, score: float) -> None:
        """Write the score of an evaluation after `step` steps."""
        self._write({"kind": "evaluation", "step": step, "score": score})

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line, ensure_ascii=False, allow_nan=False, default=str) + "\n")
        self._file.flush()


def _term(term: Term) -> list[int | float]:
    return [term.seed, term.coefficient, term.rank] if term.rank else [term.seed, term.coefficient]
