"""What is seen of a run while it lasts: a bar on a terminal, lines in a log file. Both on stderr."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column
from transformers import TrainerCallback

from zoreward.cli.printing import show_table
from zoreward.journal import moves
from zoreward.methods import all_scored
from zoreward.records import one_line
from zoreward.trainer.window import completion_rows

if TYPE_CHECKING:
    from zoreward.trainer import ZOTrainer

# Steps over which score and speed are averaged: enough to see a trend through the noise of a batch.
WINDOW = 50
# Lines of a table of completions, of the best member; the worst gets one.
SHOWN = 4
# Characters of a cell of that table.
_CELL = 2000
# What is told of texts beside the score.
_OF_TEXTS = ("best", "spread", "length", "distinct_2", "differing", "kl", "moved")
# What the bar leaves out where the terminal is narrow: the first of these first.
_LEAST_FIRST = ("pace", "signal", "best", "moved")
# What the line of an evaluation says elsewhere, or need not say.
_TOLD = ("eval_score", "eval_rows", "eval_runtime")


class ProgressCallback(TrainerCallback):
    """Shows score, best dev score, share of steps without signal, seconds a step and the time left.

    A context manager: leaving it puts the terminal right, whatever happened inside.

    Args:
        trainer: whose run is shown.
        console: where; by default stderr.

    Example:
        >>> progress = ProgressCallback(trainer)  # doctest: +SKIP
        >>> trainer.add_callback(progress)  # doctest: +SKIP
        >>> with progress:  # doctest: +SKIP
        ...     trainer.train()
    """

    def __init__(self, trainer: ZOTrainer, console: Console | None = None):
        self._trainer = trainer
        self._console = console or Console(stderr=True)
        most, width = trainer.args.max_steps, self._console.width
        steps, bar = len(f"{most}/{most}"), min(40, width // 8)
        self._room = width - len("step ") - steps - bar - 2  # of a narrow terminal the text gets what these leave

        def fixed(least: int) -> Column:
            return Column(no_wrap=True, min_width=least)

        columns = (
            TextColumn("step", table_column=fixed(4)),
            MofNCompleteColumn(table_column=fixed(steps)),
            BarColumn(bar, table_column=fixed(bar)),
            TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis")),
        )
        self._bar = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._task = self._bar.add_task("", total=trainer.args.max_steps)
        self._scores: deque[float] = deque(maxlen=WINDOW)
        self._seconds: deque[float] = deque(maxlen=WINDOW)
        self._moved: deque[bool] = deque(maxlen=WINDOW)
        self._best = -math.inf
        self._begun, self._line_at = 0.0, 0  # the latter: after how many steps the last line was printed

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def status(self, step: int, steps: int, room: int | None = None) -> str:
        """Return what is known after `step` of `steps` steps, as one line.

        Args:
            step: how many are done.
            steps: of how many.
            room: characters; what matters least is left out until all fits. None: all.
        """
        told = self._told(step, steps)
        for least in _LEAST_FIRST:
            if room is not None and len(" · ".join(told.values())) > room:
                told.pop(least, None)
        return " · ".join(told.values())

    def _told(self, step: int, steps: int) -> dict[str, str]:
        told = {}
        if self._scores:
            told["score"] = f"score {math.fsum(self._scores) / len(self._scores):.4f}"
        if self._best > -math.inf:
            told["best"] = f"best dev {self._best:.4f}"
        if step:
            state = self._trainer.method_state
            unscored = f" ({state.unscored} without a score)" if state.unscored else ""
            told["signal"] = f"no signal {state.silent / step:.0%}{unscored}"
        if self._moved and not any(self._moved):  # then a score that changes does so with its rows alone
            told["moved"] = "no weight moved" + (f" in {len(self._moved)} steps" if len(self._moved) > 1 else "")
        if self._seconds:
            pace = math.fsum(self._seconds) / len(self._seconds)
            told["pace"] = f"{pace:.2f} s/step"
            left = min(pace * (steps - step), self._trainer.keeper.seconds_left)
            told["left"] = f"{timedelta(seconds=round(left))} left"
        return told

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take in what was done and scored before, where a run goes on."""
        self._best = max([self._best, *(log["eval_score"] for log in state.log_history if "eval_score" in log)])
        self._bar.update(self._task, completed=state.global_step, total=state.max_steps)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._begun = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take in the step's scores, and move the bar."""
        self._seconds.append(time.perf_counter() - self._begun)
        if self._trainer.last_step is not None:
            scores = self._trainer.last_step.scores
            if all_scored(scores):
                self._scores.append(math.fsum(scores) / len(scores))
            self._moved.append(moves(self._trainer.last_step.update))
        status = self.status(state.global_step, state.max_steps, self._room)
        self._bar.update(self._task, completed=state.global_step, total=state.max_steps, description=status)
        every = self._trainer.args.completions_every
        if every and (state.global_step - 1) % every == 0:
            try:
                self._show_completions(state.global_step)
            except Exception as error:  # what a reward logged may be anything; the run does not need the table
                self._print(f"step {state.global_step}: the table of completions cannot be drawn: {one_line(error)}")

        if self._bar.disable and not self._line_at:  # a score, and how long it will take, before the first log
            self._print_status(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Print how a run ended that was not logged at its last step."""
        if self._bar.disable and self._seconds and self._line_at < state.global_step:
            self._print_status(state)

    def _print_status(self, state: Any, statistics: Sequence[str] = ()) -> None:
        self._line_at, steps = state.global_step, state.max_steps
        told = self.status(self._line_at, steps)
        self._print(" · ".join([f"step {self._line_at}/{steps}", told, *statistics]))

    def _show_completions(self, step: int) -> None:
        """Print what the best and the worst member wrote for the step's first prompts."""
        table = completion_rows(self._trainer.last_rows, self._trainer.last_scored)
        if not table:
            return
        first = [line for line in table if line["member"] == table[0]["member"]][:SHOWN]
        last = [line for line in table if line["member"] == table[-1]["member"]][: SHOWN - len(first) + 1]
        rewards = [name for name in table[0] if name not in ("member", "score", "prompt", "completion")]
        rows = [
            (who, line["prompt"][-80:], line["completion"], *(_short(line.get(name)) for name in rewards))
            for who, lines in (("best", first), ("worst", last))
            for line in lines
        ]
        cells = [[one_line(cell, _CELL) for cell in row] for row in rows]
        heads = [one_line(name) for name in ("member", "prompt", "completion", *rewards)]
        show_table(heads, cells, console=self._console, title=f"step {step}")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Print a line where there is no terminal for a bar."""
        if logs and not {"score", "silent"}.isdisjoint(logs):  # no score where no step has one
            statistics = [f"{name.replace('_', '-')} {logs[name]:.3g}" for name in _OF_TEXTS if name in logs]
            if self._bar.disable or statistics:
                self._print_status(state, statistics)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        """Print the dev score, and what is known beside it."""
        if metrics and "eval_score" in metrics:
            self._best = max(self._best, metrics["eval_score"])
            names = [name for name in metrics if name.startswith("eval_") and name not in _TOLD]
            more = [f"{name[5:].replace('_', '-')} {metrics[name]:.4g}" for name in names]
            scores = [f"dev score {metrics['eval_score']:.4f}", f"best {self._best:.4f}"]
            self._print(" · ".join([f"step {state.global_step}", *scores, *more]))

    def _print(self, line: str) -> None:
        self._console.print(one_line(line, None), markup=False, highlight=False, soft_wrap=True)


def _short(value: Any) -> Any:
    return f"{value:.3f}" if isinstance(value, float) else value
