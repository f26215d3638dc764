"""What is told of the steps since the last log line, and what is kept of the texts that were written."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers.utils import logging

from zoreward.records import Example, Scored, Writing, one_line
from zoreward.scoring import share_that_differs, statistics_of

# A model that is pushed too hard for a reward repeats itself: warn below this share of the first step's distinct-2.
COLLAPSE = 0.5


class Window:
    """Collects what members were worth, for the next line of the log."""

    def __init__(self) -> None:
        self._scored: list[list[Scored]] = []
        self._total, self._count = 0.0, 0
        self._first: dict[str, float] | None = None

    def __bool__(self) -> bool:
        return bool(self._scored)

    def add(self, scored: Sequence[Scored]) -> None:
        """Take in the members of one step."""
        self._scored.append([replace(member, returned={}, logprobs_NC=None) for member in scored])  # they may be large
        if not any(math.isnan(member.score) for member in scored):
            self._total += _mean([member.score for member in scored])
            self._count += 1

    @property
    def mean_loss(self) -> float:
        """Minus the mean score of all steps that had one; 0 where there was none."""
        return -self._total / self._count if self._count else 0.0

    def means(self) -> dict[str, float]:
        """Return the means over steps and members since the last call.

        `score`; `score/NAME` for each part of a weighted sum; what objectives logged. Where members wrote also: `best`,
        the best member's score, `spread`, the standard deviation between members, `length` in tokens, `distinct_2` over
        all completions of a step, `differing`, the share of members whose texts are not the first's. What no member has
        is left out.
        """
        steps = [_of_step(scored) for scored in self._scored]
        self._scored.clear()
        names = dict.fromkeys(name for step in steps for name in step)
        found = {name: _mean([step[name] for step in steps if name in step]) for name in names}
        self._watch(found)
        return found

    def _watch(self, found: dict[str, float]) -> None:
        if not {"distinct_2", "score"} <= found.keys():
            return
        first = self._first = self._first or found
        if found["score"] > first["score"] and found["distinct_2"] < COLLAPSE * first["distinct_2"]:
            logging.get_logger(__name__).warning(
                "The score rises (%.4f, first %.4f) while the texts repeat themselves: distinct-2 is %.3f, first %.3f.",
                *(found["score"], first["score"], found["distinct_2"], first["distinct_2"]),
            )


def _of_step(scored: Sequence[Scored]) -> dict[str, float]:
    scores = _known([one.score for one in scored])
    found = {"score": _mean(scores)} if scores else {}
    if len(scored[0].part_scores) > 1:
        parts = {name: _known([one.part_scores[name] for one in scored]) for name in scored[0].part_scores}
        found |= {f"score/{name}": _mean(values) for name, values in parts.items() if values}
    written = [one for one in scored if isinstance(one, Writing)]
    if written and scores:
        found["best"] = max(scores)
        found["spread"] = math.sqrt(_mean([(score - found["score"]) ** 2 for score in scores]))
    if written:
        found |= statistics_of(written)
        found["differing"] = share_that_differs([[one.text for one in member.completions] for member in written])
    for name in dict.fromkeys(name for one in scored for name in one.metrics):
        if values := _known([one.metrics[name] for one in scored if name in one.metrics]):
            found[name] = _mean(values)
    return found


def _known(values: Sequence[float]) -> list[float]:
    """Those that are a number."""
    return [value for value in values if not math.isnan(value)]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def completion_rows(rows: Sequence[Example], scored: Sequence[Scored]) -> list[dict[str, Any]]:
    """Return a table of what members wrote, best members first: member, score, prompt, completion, rewards, extras."""
    order = sorted(range(len(scored)), key=lambda m: math.inf if math.isnan(scored[m].score) else -scored[m].score)
    table = []
    for m in order:
        one = scored[m]
        if isinstance(one, Writing):
            for n, (example, completion) in enumerate(zip(rows, one.completions, strict=True)):
                rewards = {name: values[n] for name, values in one.rewards.items()}
                extra = {name: values[n] for name, values in one.extra.items() if len(values) == len(rows)}
                score = None if math.isnan(one.score) else one.score
                line = {"member": m, "score": score, "prompt": example.prompt, "completion": completion.text}
                line |= {f"reward/{name}" if name in line else name: value for name, value in rewards.items()}
                line |= {f"extra/{name}" if name in line else name: value for name, value in extra.items()}
                table.append(line)
    return table


def save_completions(folder: str, step: int, rows: Sequence[Example], scored: Sequence[Scored]) -> Path:
    """Write the table of a step into the run folder, as Parquet, or as JSON lines where pyarrow is not installed.

    Values of a column that have no type in common, or none that can be stored, are stored as text.

    Returns:
        the file: `completions/step-000010.parquet`.
    """
    table = completion_rows(rows, scored)
    path = Path(folder, "completions", f"step-{step:06}.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        path = path.with_suffix(".jsonl")
        lines = [", ".join(f"{json.dumps(name)}: {_json_of(value)}" for name, value in line.items()) for line in table]
        path.write_text("".join(f"{{{line}}}\n" for line in lines), "utf-8")
        return path
    names = dict.fromkeys(name for line in table for name in line)
    columns = {one_line(name, None): [line.get(name) for line in table] for name in names}
    parquet.write_table(pyarrow.table({name: _column(values) for name, values in columns.items()}), path)
    return path


def _column(values: list[Any]) -> Any:
    """Values as Parquet stores them, or their texts."""
    import pyarrow
    from pyarrow import parquet

    try:
        if _is_deep(values):
            raise ValueError("nested too deeply")
        stored = pyarrow.array(values)
        if pyarrow.types.is_nested(stored.type):  # some of these can be held, but not be written
            parquet.write_table(pyarrow.table({"": stored}), pyarrow.BufferOutputStream())
        return stored
    except Exception:  # pyarrow's own errors, and whatever an object raises that is looked into
        return pyarrow.array([None if value is None else _text_of(value) for value in values], pyarrow.string())


def _is_deep(value: Any, levels: int = 16) -> bool:
    """Whether lists or dicts are nested beyond so many levels: pyarrow crashes on what holds itself."""
    if not isinstance(value, list | tuple | dict):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deep(one, levels - 1) for one in inner)


def _json_of(value: Any) -> str:
    """A value as JSON; where it cannot be, its text."""
    try:
        return json.dumps(value, ensure_ascii=True, allow_nan=False, default=_text_of)
    except (TypeError, ValueError, RecursionError):  # keys that JSON has not, NaN, what holds itself
        return json.dumps(_text_of(value))


def _text_of(value: Any) -> str:
    """The text of anything, in characters that UTF-8 has."""
    try:
        text = str(value)
    except Exception:
        text = f"<{type(value).__name__}>"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
