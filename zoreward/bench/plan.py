"""What stands in a table: the methods, and what a run of one is given. Free of torch."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from zoreward.config import (
    DATA,
    RUN,
    TUNING,
    Command,
    Data,
    Held,
    Loading,
    Prompting,
    Splits,
    Steps,
    options,
    same_as,
    setting,
)
from zoreward.data import Split, Task
from zoreward.data.reading import fitting
from zoreward.records import InputError, UnknownNameError
from zoreward.registry import Objective, describe_objective, get_objective


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchMethod:
    """A row of the table.

    Args:
        about: what it does.
        kind: `score` changes nothing, `majority` needs no model, `probe` fits a regression, `mezo` and `adamw` tune.
        rates: the learning rates that are tried by default; none where there is nothing to tune.
        eps: ε of MeZO; None: that of `zoreward.config.DEFAULTS`.
        metric: whether it is tuned on the task's own metric, not on what the task tunes on.
        tune: what is tuned, as `--tune`.
        seeded: whether a seed changes anything.
    """

    about: str
    kind: Literal["majority", "score", "probe", "mezo", "adamw"] = "score"
    rates: tuple[float, ...] = ()
    eps: float | None = None
    metric: bool = False
    tune: str = "full"
    seeded: bool = True


# Three rates each. MeZO's are those of its paper: RoBERTa's, F1's on OPT, RoBERTa's with LoRA. With ε 1e-3 a third of
# the steps on accuracy had no signal, with 5e-3 a tenth.
METHODS = {
    "majority": BenchMethod(about="always the most frequent answer", kind="majority", seeded=False),
    "zero-shot": BenchMethod(about="the model as it is", seeded=False),
    "shots": BenchMethod(about="demonstrations in front of each row"),
    "calibrated": BenchMethod(about="answers less what a prompt without content gives them", seeded=False),
    "linear-probe": BenchMethod(about="logistic regression on last hidden states", kind="probe", seeded=False),
    "mezo": BenchMethod(about="MeZO on what the task tunes on, all weights", kind="mezo", rates=(1e-7, 1e-6, 1e-5)),
    "mezo-metric": BenchMethod(
        about="MeZO on the task's metric itself", kind="mezo", rates=(1e-6, 5e-6, 1e-5), eps=5e-3, metric=True
    ),
    "mezo-lora": BenchMethod(
        about="MeZO on what the task tunes on, LoRA", kind="mezo", rates=(1e-5, 5e-5, 1e-4), tune="lora"
    ),
    "adamw": BenchMethod(about="AdamW with gradients, all weights", kind="adamw", rates=(1e-5, 3e-5, 1e-4)),
}
"""Every method, by name, in the order of the table. The first is a column of it."""


@options(TUNING)
class BenchOptions:
    """The options of `zoreward bench`."""

    tasks: list[str] = setting(help="A task of `zoreward tasks`, or a YAML file; one or more.", argument="TASK...")
    model: str = same_as(Data, "model")
    data_dir: str | None = setting(
        default=None,
        help="A folder with train.jsonl and dev.jsonl; of several tasks, a folder of such. Default: the tasks' own "
        "data.",
        panel=DATA,
    )
    device: str | None = same_as(Data, "device")
    dtype: str | None = same_as(Loading, "dtype")
    trust_remote_code: bool = same_as(Loading, "trust_remote_code")
    train_rows: int | None = same_as(Held, "train_rows", help="Rows to tune on. Default: the task's.")
    dev_rows: int | None = same_as(Held, "dev_rows", help="Rows that choose. Default: the task's.")
    test_rows: int | None = same_as(Splits, "test_rows", help="Rows that are reported. Default: the task's.")
    split_seed: int = same_as(Splits, "split_seed")
    methods: str | None = setting(
        default=None,
        help=f"Methods, with commas between: {', '.join(list(METHODS)[1:])}. Default: all that a task has.",
    )
    seeds: str = setting(
        default="5", help="How many seeds, from 0 on; or a list, 13,21,42. The first chooses the settings."
    )
    max_steps: int = same_as(Steps, "max_steps", default=1000, help="Steps of every tuning run.")
    per_device_train_batch_size: int = same_as(Steps, "per_device_train_batch_size", help="Rows a step.")
    learning_rate: list[str] | None = setting(
        default=None,
        help="Learning rates that a method tries, METHOD=1e-6,1e-5,1e-4. Give it once for each; as many for all.",
        flag="--lr",
    )
    eps: list[str] | None = setting(default=None, help="ε of a method, METHOD=5e-3. Give it once for each.")
    eval_steps: int | None = same_as(
        Steps,
        "eval_steps",
        help="Score the dev rows every so many steps; the best step counts. Default: four times.",
        panel=TUNING,
    )
    shots: int = setting(default=32, help="Demonstrations of the method `shots`, as many as fit.", least=1)
    max_length: int | None = same_as(Prompting, "max_length", panel=TUNING)
    chat: Literal["auto", "on", "off"] = same_as(Prompting, "chat", panel=TUNING)
    system_prompt: str | None = same_as(Prompting, "system_prompt", panel=TUNING)
    chat_template_kwargs: dict[str, Any] | str | None = same_as(Prompting, "chat_template_kwargs", panel=TUNING)
    jobs: int = setting(
        default=1,
        help="Runs side by side, each in a process of its own. Seconds are then those of a busy machine.",
        panel=RUN,
        least=1,
        most=1024,
    )
    output: str = setting(
        help="The folder for table.md, table.csv, plot.png and results.jsonl; of one that is there, what is done is "
        "kept.",
        panel=RUN,
    )
    json: bool = same_as(Command, "json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What all methods share.

    Args:
        steps: of every tuning run.
        batch_size: rows of a step.
        eval_every: steps between two dev scores.
        shots: demonstrations, for the method of that name.
        eps: ε by method, instead of its own.
        dtype: of the weights; AdamW's are float32.
        device: where; by default the GPU if there is one.
        max_length: tokens of prompt and answer.
        chat, system_prompt, chat_template_kwargs: of conversations; see `zoreward.config.Prompting`.
        trust_remote_code: run the code that comes with the model.
    """

    steps: int = 1000
    batch_size: int = 16
    eval_every: int = 250
    shots: int = 32
    eps: Mapping[str, float] = field(default_factory=dict)
    dtype: str | None = None
    device: str | None = None
    max_length: int | None = None
    chat: Literal["auto", "on", "off"] = "auto"
    system_prompt: str | None = None
    chat_template_kwargs: dict[str, Any] | str | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """A task, a model, and what is done with them.

    Args:
        task: the task.
        model: a folder or a Hub id.
        rows: to tune on, to choose by, to report. A run that chooses has no test rows.
        settings: what all methods share.
    """

    task: Task
    model: str
    rows: Split
    settings: Settings

    @property
    def prompting(self) -> Prompting:
        """How rows become prompts."""
        names = ("max_length", "chat", "system_prompt", "chat_template_kwargs")
        return replace(self.task.prompting, **{name: getattr(self.settings, name) for name in names})

    def configuration(self) -> dict[str, Any]:
        """Return what changes a result, in plain types: tables with different ones cannot be mixed."""
        rows = {name: getattr(self.rows, name) for name in ("train", "dev", "test")}
        task = {name: value for name, value in asdict(self.task).items() if name not in ("about", "source", "rows")}
        if not task["options"]:  # as tables of earlier versions had none
            del task["options"]
        settings = asdict(self.settings)
        if settings["chat"] != "on":  # as tables of earlier versions, of raw prompts, had none
            settings["chat"] = None
        return {
            "task": self.task.name,
            "model": self.model,
            "rows": {name: len(of_part) for name, of_part in rows.items()},
            **{name: settings[name] for name in settings if name not in ("device", "trust_remote_code")},
            "prompt": _digest(task),
            **{f"{name} rows": _digest(of_part) for name, of_part in rows.items()},
        }


@dataclass(frozen=True, slots=True)
class Run:
    """One run.

    Args:
        task: its name.
        method: its name.
        rate: the learning rate; None where there is none.
        seed: of directions and batches, or of demonstrations.
        chooses: whether it only chooses the rate: then it is not given the test rows.
    """

    task: str
    method: str
    rate: float | None
    seed: int
    chooses: bool

    def __str__(self) -> str:
        rate = "" if self.rate is None else f" lr {self.rate:g}"
        return f"{self.task} {self.method}{rate} seed {self.seed}{' (chooses)' if self.chooses else ''}"


def options_of_task(task: Task) -> dict[str, Any]:
    """Return what a task says about the options of its objective.

    Raises:
        ZorewardError: there is no such objective or option, or a value is of another type.
    """
    kinds = {option.name: option.type for option in describe_objective(task.objective).options}
    return {
        name: fitting(value, str(value), kinds.get(name, Any), f"{name} of the task {task.name!r}")
        for name, value in task.options.items()
    }


def objectives_of(task: Task) -> tuple[Objective, Objective | None]:
    """Return the metric of a task, and what it tunes on if it says so."""
    metric = get_objective(task.objective, **options_of_task(task))
    return metric, None if task.train_on is None else get_objective(task.train_on)


def problem_of(task: Task, name: str) -> str | None:
    """Return why a method has no place in a task's table; None if it has."""
    metric, smooth = objectives_of(task)
    method = METHODS[name]
    if metric.needs != "choices":
        if name in ("majority", "calibrated", "linear-probe"):
            return f"{metric.name} does not choose between answers"
        if name == "shots" and metric.needs == "completions":
            return "what is written takes no demonstrations yet"
    if method.kind == "probe" and task.choice_column is not None:
        return "its rows have answers of their own, and a probe needs classes"
    if method.rates and not method.metric and smooth is None:
        return "it has no train_on"
    if method.metric and task.train_on == task.objective:
        return "its metric is what it tunes on"
    return None


def rates_of(given: Mapping[str, Sequence[float]], methods: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Return the learning rates that each method tries: as many for all that have one, smallest first.

    Args:
        given: those that are not the method's own.
        methods: the methods of the table.

    Raises:
        InputError: one tries more than another, or a rate twice; or a method is given rates and has none.

    >>> rates_of({"mezo": [1e-5, 1e-6, 1e-4]}, ["zero-shot", "mezo", "adamw"])
    {'mezo': (1e-06, 1e-05, 0.0001), 'adamw': (1e-05, 3e-05, 0.0001)}
    """
    for name in given:
        if not METHODS[name].rates:
            raise InputError(f"{name} has no learning rate", hint=f"those of {listed_with_rates()} can be given")
        if name not in methods:
            raise InputError(f"--lr is about {name}, which is not in the table", hint=f"--methods {name},…")
    by_method = {name: tuple(sorted(given.get(name, METHODS[name].rates))) for name in methods if METHODS[name].rates}
    for name, rates in by_method.items():
        if len(set(rates)) < len(rates) or min(rates) <= 0:
            raise InputError(
                f"{name} has the learning rates {', '.join(f'{rate:g}' for rate in rates)}",
                hint="each is above 0, and stands once",
            )
    counts = {name: len(rates) for name, rates in by_method.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise InputError(
            f"the numbers of learning rates differ: {listed}", hint="give --lr METHOD=… for all, as many each"
        )
    return by_method


def listed_with_rates() -> str:
    """Return the names of the methods that have a learning rate."""
    return ", ".join(name for name, method in METHODS.items() if method.rates)


def checked_methods(names: Sequence[str]) -> list[str]:
    """Return the names of methods, in the order of the table.

    Raises:
        UnknownNameError: there is no such method.

    >>> checked_methods(["mezo", "zero-shot"])
    ['zero-shot', 'mezo']
    """
    for name in names:
        if name not in METHODS:
            near = difflib.get_close_matches(name, METHODS, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            hint += f"the methods are {', '.join(METHODS)}"
            raise UnknownNameError(f"there is no method {name!r}", hint=hint)
    return [name for name in METHODS if name in names]


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.blake2b(text.encode("ascii"), digest_size=8).hexdigest()
