"""What a run folder knows of a run, as the pages show it. Nothing here is opened by a name that a file gives."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import stdev
from typing import Any

from zoreward.journal import StoredRun, load_run
from zoreward.journal.disk import open_file
from zoreward.journal.lines import LARGEST_SCORE
from zoreward.journal.lines import number as is_number
from zoreward.journal.notes import read_notes
from zoreward.journal.stored import OVER_MAX_KL
from zoreward.records import Rewind, StepRecord

# Of a table of completions, at most.
_TABLE_BYTES, TEXTS = 16 << 20, 8


@dataclass(frozen=True, slots=True)
class Step:
    """One step, as far as it is shown.

    Args:
        score: the mean of its members; None where one has no score, or the file does not tell.
        spread: the standard deviation between its members.
        lr: its learning rate.
        is_silent: whether its members scored alike, or one had no score.
    """

    score: float | None
    spread: float | None
    lr: float
    is_silent: bool


@dataclass(frozen=True, slots=True)
class DevScore:
    """A score of the dev rows.

    Args:
        step: after how many steps.
        score: it.
        error: its standard error; None where that is not known.
        metrics: what was measured beside it.
        answers: what became of the rows, as the notes tell; see `zoreward.journal.notes`.
    """

    step: int
    score: float
    error: float | None
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    answers: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Written:
    """Texts of one step that stand in `completions/`: what its best member wrote.

    Args:
        step: its number.
        rows: each with `prompt`, `completion`, `score`, the text's own, and `mean`, that of the member's texts; of
            the two the former is None where the table has none, as of several objectives.
    """

    step: int
    rows: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Facts:
    """A run, as its pages show it.

    Args:
        path: of its folder or file, as it was given.
        header: of its journal.
        steps: what was done.
        dev: the scores of the dev rows, in order.
        rewinds: where it went back.
        best_step: with the best dev score; None without any.
        kept: after how many steps the saved weights stand; None where none are saved.
        findings: what the command noted when the model was saved: `stopped`, `peak_gb`, `test`, ….
        session: what the run noted when it began: `command`, `found`, `rows`, ….
        seconds: of all its steps and dev scores; None where it was not noted.
        passes: one is one member that read one batch.
        before, after: what the members of the first and of the last step with texts wrote, where dev texts are not
            known.
    """

    path: str
    header: Mapping[str, Any]
    steps: Sequence[Step]
    dev: Sequence[DevScore]
    rewinds: Sequence[Rewind] = ()
    best_step: int | None = None
    kept: int | None = None
    findings: Mapping[str, Any] = field(default_factory=dict)
    session: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    passes: int = 0
    before: Written | None = None
    after: Written | None = None

    @property
    def name(self) -> str:
        """The last part of its path."""
        return Path(self.path).name or self.path

    @property
    def objective(self) -> str:
        """What was maximised."""
        return str(self.header.get("objective") or "a score")

    @property
    def model(self) -> str:
        """What was tuned: a folder or a Hub id; "" where it had none."""
        return str(self.header.get("model") or "")

    @property
    def n_silent(self) -> int:
        """How many steps learned nothing."""
        return sum(step.is_silent for step in self.steps)

    @property
    def first(self) -> DevScore | None:
        """The first dev score."""
        return self.dev[0] if self.dev else None

    @property
    def shown(self) -> DevScore | None:
        """The dev score of the weights that are kept; while none are, the best one."""
        step = self.best_step if self.kept is None else self.kept
        return next((one for one in reversed(self.dev) if one.step == step), self.dev[-1] if self.dev else None)

    def summary(self) -> dict[str, Any]:
        """Return the numbers, for `--json`."""
        first, shown = self.first, self.shown
        return {
            "run": self.path,
            "objective": self.objective,
            "model": self.model,
            "steps": len(self.steps),
            "kept": self.kept,
            "first": first and first.score,
            "score": shown and shown.score,
            "standard_error": shown and shown.error,
            "best_step": self.best_step,
            "silent": self.n_silent,
            "rewinds": len(self.rewinds),
            "seconds": self.seconds,
            "passes": self.passes,
            "stopped": self.findings.get("stopped"),
        }


def facts_of(path: str | Path, *, kept: int | None = None, findings: Mapping[str, Any] | None = None) -> Facts:
    """Return what there is to show of a run.

    Args:
        path: its folder, its journal or its trajectory.
        kept: after how many steps the weights stand that are saved, where some are.
        findings: what is known of it beside its files.

    Raises:
        MissingFileError: there is no run.
        InputError: it is damaged, or has not begun.
    """
    run, folder = load_run(path), Path(path)
    folder = folder if folder.is_dir() else folder.parent
    notes, records = read_notes(folder), list(run.records())
    in_pairs = bool({"normalize", "full_every"} & set(run.header.get("method") or ()))  # SPSA's, and SVRG's
    ends = [note.get("seconds") for note in notes if note.get("kind") == "end"]
    seconds = [one for one in ends if is_number(one, LARGEST_SCORE)]
    sessions = [note for note in notes if note.get("kind") == "session"]
    answers = {note["step"]: note for note in notes if note.get("kind") == "answers" and type(note.get("step")) is int}
    has_texts = any(note.get("texts") for note in answers.values())  # better ones: before and after of the same rows
    tables = [] if has_texts else _tables(folder, run.n_steps)
    name = str(run.header.get("objective"))
    return Facts(
        path=str(path),
        header=run.header,
        steps=[_step_of(record, in_pairs=in_pairs) for record in records],
        dev=_dev_scores(run, answers),
        rewinds=run.rewinds,
        best_step=run.best_step,
        kept=kept,
        findings=dict(findings or {}),
        session={name: value for session in sessions for name, value in session.items() if value is not None},
        seconds=math.fsum(seconds) if seconds else None,
        passes=sum(len(record.scores) for record in records),
        before=_read_table(*tables[0], name) if tables else None,
        after=_read_table(*tables[-1], name) if len(tables) > 1 else None,
    )


def _step_of(record: StepRecord, *, in_pairs: bool) -> Step:
    """What is shown of a step. `in_pairs`: whether its members are antithetic pairs, which then tie one by one."""
    scores = record.scores
    if not scores or any(map(math.isnan, scores)):
        return Step(None, None, record.lr, bool(scores))
    pairs = zip(scores[::2], scores[1::2], strict=True) if in_pairs and len(scores) % 2 == 0 else [scores]
    is_silent = all(min(pair) == max(pair) for pair in pairs)
    mean = math.fsum(scores) / len(scores)
    spread = math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / len(scores))
    return Step(mean, spread, record.lr, is_silent)


def _dev_scores(run: StoredRun, answers: Mapping[Any, Mapping[str, Any]]) -> list[DevScore]:
    found = []
    for (step, score), metrics, groups in zip(run.evaluations, run.metrics, run.groups, strict=True):
        own = answers.get(step, {})
        error = own.get("standard_error")
        if not is_number(
            error, LARGEST_SCORE
        ):  # of a score of all rows together, by the jackknife; see docs/journal.md
            error = stdev(groups) / math.sqrt(len(groups)) if len(groups) > 1 else None
        beside = {name: value for name, value in metrics.items() if name != OVER_MAX_KL}
        found.append(DevScore(step, score, error, beside, own))
    return found


def _tables(folder: Path, steps: int) -> list[tuple[int, Path]]:
    """The tables of completions of a run, by their step."""
    names = sorted(Path(folder, "completions").glob("step-*"))
    numbered = [(path.stem.removeprefix("step-"), path) for path in names if path.suffix in (".parquet", ".jsonl")]
    return [(int(number), path) for number, path in numbered if number.isdigit() and int(number) < steps]


def _read_table(step: int, path: Path, objective: str) -> Written | None:
    """What the best member of a step wrote; None where the table cannot be read.

    Args:
        step: its number.
        path: the table.
        objective: by whose name, or `reward/` and it, the column with each text's own score is called.
    """
    # One that is called as a column of the table's own stands behind the prefix.
    own = [name for name in (f"reward/{objective}", objective) if name not in ("member", "score", "prompt")]
    try:
        with open_file(path) as file:
            content = file.read(_TABLE_BYTES)
        if path.suffix == ".jsonl":
            lines = [json.loads(line) for line in content.splitlines()[:TEXTS]]
        else:
            from io import BytesIO

            from pyarrow import parquet

            known = parquet.read_schema(BytesIO(content)).names
            columns = [name for name in ("member", "score", "prompt", "completion", *own) if name in known]
            lines = parquet.read_table(BytesIO(content), columns=columns).slice(0, TEXTS).to_pylist()
        best = [line for line in lines if line.get("member") == lines[0].get("member")]
        rows = []
        for line in best:
            score = next((line[name] for name in own if name in line), None)
            told = {"score": score, "mean": line.get("score")}
            rows.append({**{name: line.get(name) for name in ("prompt", "completion")}, **told})
        return Written(step, rows)
    except Exception:  # pyarrow is missing, or whatever it raises of a file that is damaged
        return None
