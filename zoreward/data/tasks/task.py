"""What a task is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from zoreward.config import Prompting, Writing
from zoreward.data.derived import with_columns
from zoreward.records import InputError

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How many rows a paper took; None where it says nothing.

    Args:
        train: rows to tune on.
        dev: rows that choose, held out of those to tune on.
        test: rows that are scored at the end.
        k_shot: instead of train and dev: so many rows of each class for either.
    """

    train: int | None = None
    dev: int | None = None
    test: int | None = None
    k_shot: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task: where its rows are, how they become prompts, and what counts.

    Args:
        name: what the user calls it.
        template: the prompt; see `zoreward.data.render`.
        objective: what is reported.
        about: the question it asks, in one line.
        source: who made the data, and who the prompt.
        model: `causal`, or `masked` for models that fill a `[MASK]`.
        data: a dataset on the Hub, or a file.
        data_config: the dataset's configuration.
        revision: the dataset's branch, tag or commit.
        splits: the dataset's split for `train`, `dev` and `test`. Without dev its rows are held out of train.
        rows: how many.
        drop: values of columns; rows that have one of them are left out.
        columns: made of other columns; see `zoreward.data.derived.with_columns`.
        bare: the prompt without words of ours: the columns alone.
        content_free: the prompt without what the row says, for calibration.
        choices, choice_column, label, answer: see `zoreward.data.render`.
        needs: what the objective needs.
        options: of `objective`, by name; what is given on the command line wins.
        train_on: the objective that the paper tunes on.
        max_new_tokens: most tokens that are written, for `completions`.
        stop: what ends a text that is written.
    """

    name: str
    template: str
    objective: str
    about: str = ""
    source: str = ""
    model: str = "causal"
    data: str | None = None
    data_config: str | None = None
    revision: str | None = None
    splits: Mapping[str, str] = field(default_factory=dict)
    rows: Counts = field(default_factory=Counts)
    drop: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    columns: Mapping[str, Any] = field(default_factory=dict)
    bare: str | None = None
    content_free: str | None = None
    choices: list[str] | None = None
    choice_column: str | None = None
    label: str = "label"
    answer: str | None = None
    needs: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    train_on: str | None = None
    max_new_tokens: int | None = None
    stop: list[str] | None = None

    @property
    def prompting(self) -> Prompting:
        """How its rows become prompts."""
        names = ("template", "choices", "choice_column", "label", "answer")
        return Prompting(**{name: getattr(self, name) for name in names})

    @property
    def writing(self) -> Writing:
        """How a model writes for it."""
        return Writing(max_completion_length=self.max_new_tokens or Writing.max_completion_length, stop=self.stop)

    def kept(self, rows: Sequence[Row]) -> list[Row]:
        """The rows that belong to the task: those without a value that `drop` names.

        Raises:
            InputError: none is left.

        >>> Task(name="t", template="{x}", objective="f1", drop={"y": [-1]}).kept([{"y": 0}, {"y": -1}])
        [{'y': 0}]
        """
        left = [row for row in rows if not any(row.get(name) in values for name, values in self.drop.items())]
        if rows and not left:
            raise InputError(
                f"the task {self.name!r} leaves out every one of these rows",
                hint=f"it drops {', '.join(f'{name}: {list(values)}' for name, values in self.drop.items())}",
            )
        return left

    def prepared(self, rows: Sequence[Row]) -> list[Row]:
        """The rows with the columns that the task makes.

        Raises:
            InputError: a row does not have what they are made of.
        """
        return with_columns(rows, self.columns) if self.columns else list(rows)
