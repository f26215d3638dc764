"""What stands in a table: the methods, and what a run of one is given. Free of torch."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from types import SimpleNamespace
from typing import Any, Literal

from zoreward.config import (
    DATA,
    METHOD_DEFAULTS,
    RUN,
    TUNING,
    Command,
    Data,
    Held,
    Loading,
    Prompting,
    Running,
    Splits,
    Steps,
    defaults_of,
    finds_rate,
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
        kind: `score` changes nothing, `majority` needs no model, `probe` fits a regression, `zo` and `adamw` tune.
        method: of `zo`, as `zoreward tune --method`; None: MeZO, whatever the objective needs.
        metric: whether it is tuned on the task's own metric, not on what the task tunes on.
        tune: what is tuned, as `--tune`.
        seeded: whether a seed changes anything.
    """

    about: str
    kind: Literal["majority", "score", "probe", "zo", "adamw"] = "score"
    method: str | None = None
    metric: bool = False
    tune: str = "full"
    seeded: bool = True

    @property
    def tunes(self) -> bool:
        """Whether it has a learning rate."""
        return self.kind in ("zo", "adamw")


METHODS = {
    "majority": BenchMethod(about="always the most frequent answer", kind="majority", seeded=False),
    "zero-shot": BenchMethod(about="the model as it is", seeded=False),
    "shots": BenchMethod(about="demonstrations in front of each row"),
    "calibrated": BenchMethod(about="answers less what a prompt without content gives them", seeded=False),
    "linear-probe": BenchMethod(about="logistic regression on last hidden states", kind="probe", seeded=False),
    **{
        name + on + through: BenchMethod(
            about=f"{name} on {'its metric' if on else 'what it tunes on'}, {'LoRA' if through else 'all weights'}",
            kind="zo",
            method=None if name == "mezo" else name,
            metric=bool(on),
            tune="lora" if through else "full",
        )
        for name in ("mezo", *METHOD_DEFAULTS)
        for through in ("", "-lora")
        for on in ("", "-metric")
    },
    "adamw": BenchMethod(about="AdamW with gradients, all weights", kind="adamw"),
}
"""Every method, by name, in the order of the table. The first is a column of it."""
BY_DEFAULT = ("zero-shot", "shots", "calibrated", "linear-probe", "mezo", "mezo-metric", "mezo-lora", "adamw")
_LISTED = f"{', '.join(BY_DEFAULT)}; or another of `zoreward tune --method`, as lozo, lozo-metric or lozo-lora"

# What AdamW tries; and what others try of their default, where a rate cannot be found.
_ADAMW, _TIMES = (1e-5, 3e-5, 1e-4), (0.1, 1.0, 10.0)


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
    model_revision: str | None = same_as(Loading, "model_revision")
    train_rows: int | None = same_as(Held, "train_rows", help="Rows to tune on. Default: the task's.")
    dev_rows: int | None = same_as(Held, "dev_rows", help="Rows that choose. Default: the task's.")
    test_rows: int | None = same_as(Splits, "test_rows", help="Rows that are reported. Default: the task's.")
    split_seed: int = same_as(Splits, "split_seed")
    methods: list[str] | None = setting(
        default=None,
        help=f"Rows of the table, with commas between: {_LISTED}. Default: all of the former that a task has.",
        flag="--methods --method",
    )
    seeds: str = setting(
        default="5", help="How many seeds, from 0 on; or a list, 13,21,42. The first chooses the settings."
    )
    max_steps: int | None = same_as(
        Steps, "max_steps", help="Steps of every tuning run. Default: 1000; with --max-forwards as many as these pay."
    )
    max_forwards: int | None = same_as(
        Running,
        "max_forwards",
        help="Forward passes of every tuning run, with its dev scores and its search for a rate; a step of AdamW "
        "counts as 3.",
    )
    per_device_train_batch_size: int = same_as(Steps, "per_device_train_batch_size", help="Rows a step.")
    learning_rate: list[str] | None = setting(
        default=None,
        help="Learning rates that a method tries, METHOD=1e-6,1e-5,1e-4. Give it once for each; as many for all. "
        "Default: each finds its own; AdamW and svrg try three.",
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
        help="Runs side by side, each in a process of its own, which take the GPUs in turn. Seconds are then those of "
        "a busy machine.",
        panel=RUN,
        least=1,
        most=1024,
    )
    output: str = setting(
        help="The folder for table.md, table.csv, plot.png and results.jsonl; of one that is there, what is done is "
        "kept.",
        panel=RUN,
    )
    max_seconds: float | None = same_as(
        Running,
        "max_seconds",
        help="End after so many seconds of runs, with the table so far; the same command goes on.",
        least=0.001,
    )
    json: bool = same_as(Command, "json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What all methods share.

    Args:
        steps: of every tuning run; None: as many as `forwards` pay.
        forwards: forward passes of every tuning run, its dev scores among them; None: as many as it takes.
        batch_size: rows of a step.
        eval_every: steps between two dev scores; None: four in a run.
        shots: demonstrations, for the method of that name.
        eps: ε by method, instead of what is found, or else its own.
        dtype: of the weights; AdamW's are float32.
        device: where; by default the GPU if there is one.
        max_length: tokens of prompt and answer.
        chat, system_prompt, chat_template_kwargs: of conversations; see `zoreward.config.Prompting`.
        trust_remote_code: run the code that comes with the model.
    """

    steps: int | None = 1000
    forwards: int | None = None
    batch_size: int = 16
    eval_every: int | None = None
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
        rows: to tune on, to choose by, to report.
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
        rates: the learning rates that it tries, of which the dev rows choose one, the smallest first; none where the
            method finds its own, or has none.
        seed: of directions and batches, or of demonstrations.
    """

    task: str
    method: str
    rates: tuple[float, ...]
    seed: int

    def __str__(self) -> str:
        rates = f" lr {', '.join(f'{rate:g}' for rate in self.rates)}" if self.rates else ""
        return f"{self.task} {self.method}{rates} seed {self.seed}"


def runs_of(
    task: str, name: str, rates: Sequence[float], seeds: Sequence[int], results: Mapping[Run, Mapping[str, Any]]
) -> list[Run]:
    """Return the runs of a row of the table, as far as they are known.

    Where there are rates to choose from, the first seed tries them all, and the others take the one that it chose.

    Args:
        task: the name of the task.
        name: of the method.
        rates: that it tries.
        seeds: of the table.
        results: what is done so far.

    >>> first = Run("t", "adamw", (1e-5, 1e-4), 0)
    >>> [str(run) for run in runs_of("t", "adamw", (1e-5, 1e-4), [0, 1], {})]
    ['t adamw lr 1e-05, 0.0001 seed 0']
    >>> [str(run) for run in runs_of("t", "adamw", (1e-5, 1e-4), [0, 1], {first: {"rate": 1e-4}})]
    ['t adamw lr 1e-05, 0.0001 seed 0', 't adamw lr 0.0001 seed 1']
    """
    first, *others = seeds if METHODS[name].seeded else seeds[:1]
    run = Run(task, name, tuple(rates), first)
    if len(rates) < 2:
        return [run, *(replace(run, seed=seed) for seed in others)]
    rate = results.get(run, {}).get("rate")
    return [run, *(Run(task, name, (rate,), seed) for seed in others if rate is not None)]


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
    if method.tunes and not method.metric and smooth is None:
        return "it has no train_on"
    if method.metric and task.train_on == task.objective:
        return "its metric is what it tunes on"
    return None


def rates_of(task: Task, name: str, given: Mapping[str, Sequence[float]]) -> tuple[float, ...]:
    """Return the learning rates that a method tries, the smallest first; none where it finds its own, or has none.

    Args:
        task: what it is tuned on depends on it.
        name: of the method.
        given: those that are not the method's own, by method.

    >>> from zoreward.data import load_task
    >>> rates_of(load_task("squad"), "svrg", {}), rates_of(load_task("sst2"), "mezo", {})
    ((1e-07, 1e-06, 1e-05), ())
    """
    method = METHODS[name]
    if not method.tunes or name in given:
        return tuple(sorted(given.get(name, ())))
    if method.kind == "adamw":
        return _ADAMW
    metric, smooth = objectives_of(task)
    objective, of_tune = metric if method.metric or smooth is None else smooth, method.method or "spsa"
    ungiven = SimpleNamespace(learning_rate=None, normalize=None, method=of_tune)
    if finds_rate(ungiven):
        return ()
    default = defaults_of(of_tune, "text" if objective.needs == "completions" else "answers", method.tune)
    return tuple(float(f"{times * default['learning_rate']:.12g}") for times in _TIMES)


def check_rates(given: Mapping[str, Sequence[float]], methods: Sequence[str]) -> None:
    """Refuse learning rates that are given for what has none, or is not in the table; twice; or more for some.

    Raises:
        InputError: says what is wrong.

    >>> check_rates({"mezo": [1e-5, 1e-6], "adamw": [1e-5, 1e-4]}, ["zero-shot", "mezo", "adamw"])
    """
    for name, rates in given.items():
        if not METHODS[name].tunes:
            raise InputError(f"{name} has no learning rate", hint="those of mezo, adamw and their like can be given")
        if name not in methods:
            raise InputError(f"--lr is about {name}, which is not in the table", hint=f"--methods {name},…")
        if len(set(rates)) < len(rates):
            listed = ", ".join(f"{rate:g}" for rate in rates)
            raise InputError(f"{name} has the learning rates {listed}", hint="each stands once")
    counts = {name: len(rates) for name, rates in given.items()}
    if "adamw" in methods:
        counts.setdefault("adamw", len(_ADAMW))
    if given and len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise InputError(
            f"the numbers of learning rates differ: {listed}", hint="give --lr METHOD=… for all, as many each"
        )


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
            hint += f"the methods are {_LISTED}"
            raise UnknownNameError(f"there is no method {name!r}", hint=hint)
    return [name for name in METHODS if name in names]


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.blake2b(text.encode("ascii"), digest_size=8).hexdigest()
