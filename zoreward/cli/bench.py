"""`zoreward bench TASK …`: methods × seeds × settings, as one table."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from zoreward.bench import (
    BY_DEFAULT,
    METHODS,
    BenchOptions,
    Plan,
    Results,
    Settings,
    as_csv,
    as_markdown,
    bench_rows,
    check_plan,
    check_rates,
    check_shots,
    checked_methods,
    draw,
    fitting,
    lines_of,
    problem_of,
    rates_of,
    run_all,
    runs_of,
)
from zoreward.cli.ending import SIGNALS
from zoreward.cli.flags import LARGEST, SMALLEST, command
from zoreward.cli.prepare import check_folder, quiet_transformers, select_device
from zoreward.cli.printing import Outcome, report_failure, show_table
from zoreward.cli.task_rows import refuse_masked
from zoreward.config import MOST_SEED
from zoreward.data import check_chat_template, load_task, seen_before
from zoreward.data.tasks import Counts
from zoreward.neighbours.of_typer import words_of
from zoreward.records import InputError, ZorewardError, one_line, printable

Tables = dict[str, dict[str, tuple[float, ...]]]
"""Of each task the methods, and the learning rates that each tries."""

_MOST_SEEDS, _STEPS = 1000, 1000


def make_command() -> Callable[..., int]:
    """Return the command that makes a table of a task."""
    return command(_bench, BenchOptions)


def _bench(context: typer.Context, options: BenchOptions) -> Outcome:
    check_folder(options.output)
    given = None if options.methods is None else _listed(",".join(options.methods))
    methods = checked_methods(BY_DEFAULT if given is None else given)
    if not methods:
        raise InputError("--methods names none", hint=f"for example {', '.join(BY_DEFAULT)}")
    seeds = _seeds(options.seeds)
    rates = _by_method(options.learning_rate, "--lr")
    check_rates(rates, methods)
    plans = _plans(options)
    tables = {}
    for name, plan in plans.items():
        names = _methods_of(plan, methods, is_all=given is None)
        tables[name] = {method: rates_of(plan.task, method, rates) for method in names}
    results = Results(Path(options.output))
    for plan in plans.values():
        results.check(plan.configuration())
    _check_model(plans)
    for name, plan in plans.items():
        if "shots" in tables[name]:
            check_shots(plan)
    for name, plan in plans.items():
        train, dev, test = (f"{len(rows):,}" for rows in (plan.rows.train, plan.rows.dev, plan.rows.test))
        print(printable(f"{name}: {train} to tune on, {dev} dev, {test} test rows"))
        for line in seen_before(plan.rows.train, plan.rows.dev, plan.rows.test):
            print(printable(f"{name}: {line}"))
        results.begin(plan.configuration())
    code = _run(plans, tables, seeds, results, options, shlex.join(["zoreward", *words_of(context)]))
    lines = []
    for name, plan in plans.items():
        runs = _runs_of(name, tables[name], seeds, results)
        lines += lines_of(plan, runs, len(seeds), results.runs)
    _write(lines, Path(options.output))
    return Outcome({"model": options.model, "lines": lines, "output": options.output}, lambda: _show(lines), code)


def _show(lines: list[dict[str, Any]]) -> None:
    """Print the tables: as Markdown into a file, as a terminal's where there is one."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        print(printable(as_markdown(lines)))
        return
    for task in dict.fromkeys(line["task"] for line in lines):
        of_task = [line for line in lines if line["task"] == task]
        heads, rows = fitting(of_task, console.width)
        show_table(heads, rows, console=console, title=printable(f"{task}, {of_task[0]['metric']}"))


def _plans(options: BenchOptions) -> dict[str, Plan]:
    """Every task with its rows, checked."""
    counts = Counts(train=options.train_rows, dev=options.dev_rows, test=options.test_rows)
    steps = options.max_steps or (None if options.max_forwards else _STEPS)
    if steps is None and options.eval_steps:
        message = "--eval-every counts steps, and --max-forwards says how many there are"
        raise InputError(message, hint="leave --eval-every out, for four dev scores; or give --steps")
    settings = Settings(
        steps=steps,
        forwards=options.max_forwards,
        batch_size=options.per_device_train_batch_size,
        eval_every=options.eval_steps,
        shots=options.shots,
        eps={name: values[0] for name, values in _by_method(options.eps, "--eps").items()},
        dtype=options.dtype,
        device=select_device(options.device),
        max_length=options.max_length,
        chat=options.chat,
        system_prompt=options.system_prompt,
        chat_template_kwargs=options.chat_template_kwargs,
        trust_remote_code=options.trust_remote_code,
    )
    tasks = [load_task(source) for source in options.tasks]
    plans: dict[str, Plan] = {}
    if options.data_dir == "":
        raise InputError("--data-dir '' names no folder", hint="give one with train.jsonl, or leave --data-dir out")
    for number, task in enumerate(tasks):
        refuse_masked(task)
        if task.name in [other.name for other in tasks[:number]]:
            raise InputError(f"two tasks are called {task.name!r}", hint="give each once")
    for task in tasks:
        folder = None if options.data_dir is None else Path(options.data_dir)
        if folder is not None and (len(tasks) > 1 or os.path.isdir(folder / task.name)):
            folder = folder / task.name
        plan = Plan(task, options.model, bench_rows(task, folder, counts, options.split_seed), settings)
        check_plan(plan)
        plans[task.name] = plan
    return plans


def _methods_of(plan: Plan, methods: Sequence[str], *, is_all: bool) -> list[str]:
    """Those of the methods that a task has; says which it has not, and why."""
    names = []
    for name in dict.fromkeys(["majority", *methods]):
        problem = problem_of(plan.task, name)
        if problem is None:
            names.append(name)
        elif name != "majority" or is_all:
            print(printable(f"{plan.task.name} has no {name}: {problem}"))
    if not set(names) - {"majority"}:
        raise InputError(f"{plan.task.name!r} has none of these methods", hint="--methods zero-shot,mezo,adamw")
    return names


def _check_model(plans: dict[str, Plan]) -> None:
    """Find out what is wrong with model, dtype and device before the first run."""
    from zoreward.scoring import check_model_name, checked_device, head_of, load_tokenizer
    from zoreward.scoring.devices import first_device
    from zoreward.scoring.loading import checked_dtype

    quiet_transformers()
    plan = next(iter(plans.values()))
    device = checked_device(first_device() if plan.settings.device is None else plan.settings.device)
    checked_dtype(plan.settings.dtype, device)
    check_model_name(plan.model)
    kind = head_of(plan.model, trust_remote_code=plan.settings.trust_remote_code).kind
    if kind != "causal":
        hint = "zoreward tune and eval take it, with --task too"
        raise InputError(f"tables are for causal models so far, and '{plan.model}' is {kind}", hint=hint)
    tokenizer = load_tokenizer(plan.model, trust_remote_code=plan.settings.trust_remote_code)
    check_chat_template(plan.prompting, tokenizer, kind, plain=True)


def _run(
    plans: dict[str, Plan], tables: Tables, seeds: list[int], results: Results, options: BenchOptions, again: str
) -> int:
    """Do the runs: first those that need no other's rate. Says why not all of them are done; returns the exit code."""
    from zoreward.bench.measuring import forget_model
    from zoreward.scoring.devices import gpus_seen

    late, gpus = threading.Event(), gpus_seen() if options.device is None and options.jobs > 1 else []
    try:
        with _ending_after(options.max_seconds, late):
            for _ in range(2):  # the second time it is known which rates first seeds have chosen
                runs = [_runs_of(name, table, seeds, results) for name, table in tables.items()]
                every = [run for table in runs for of_method in table.values() for run in of_method]
                run_all(every, plans, results, jobs=options.jobs, gpus=gpus, tell=_tell)
    except KeyboardInterrupt:
        why = f"{options.max_seconds:g} seconds had passed (--max-seconds)" if late.is_set() else "interrupted"
        print(printable(f"\n{why}; what is done is kept: {again}"), file=sys.stderr)
        return 0 if late.is_set() else 130
    except (Exception, SystemExit) as error:
        return report_failure(error, f"what is done is kept; go on: {again}")
    finally:
        forget_model()
    failed = [run for run, result in results.runs.items() if result.get("failed")]
    if failed:
        what = str(failed[0]) if len(failed) == 1 else f"{len(failed)} runs"
        print(printable(f"{what} failed; the same command tries again: {again}"), file=sys.stderr)
    return 1 if failed else 0


def _runs_of(task: str, table: Mapping[str, tuple[float, ...]], seeds: list[int], results: Results) -> dict[str, Any]:
    return {method: runs_of(task, method, rates, seeds, results.runs) for method, rates in table.items()}


@contextlib.contextmanager
def _ending_after(seconds: float | None, late: threading.Event) -> Iterator[None]:
    """Have SIGTERM end what is done inside as Ctrl-C does, and so many seconds too; `late` tells if it was these."""

    def end() -> None:
        late.set()
        signal.raise_signal(signal.SIGINT)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    before = [signal.signal(number, signal.default_int_handler) for number in numbers]  # a shell may have them ignored
    timer = threading.Timer(min(threading.TIMEOUT_MAX if seconds is None else seconds, threading.TIMEOUT_MAX), end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _tell(line: str) -> None:
    print(printable(line))


def _write(lines: list[dict[str, Any]], folder: Path) -> None:
    (folder / "table.md").write_text(as_markdown(lines), encoding="utf-8")
    (folder / "table.csv").write_text(as_csv(lines), encoding="utf-8")
    try:
        draw(lines, folder / "plot.png")
    except ZorewardError as error:
        print(one_line(f"{error}: {error.hint}"))


def _listed(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _seeds(text: str) -> list[int]:
    """The seeds that are asked for: so many, or these."""
    words = _listed(text)
    if not words or not all(word.isdecimal() for word in words) or len(set(words)) < len(words):
        raise InputError(f"--seeds {text}: these are no seeds", hint="a number, 5, or a list, 13,21,42")
    if any(len(word) > len(str(MOST_SEED)) or int(word) > MOST_SEED for word in words):
        raise InputError(f"--seeds {text}: a seed is at most {MOST_SEED:,}", hint="a number, 5, or a list, 13,21,42")
    seeds = [int(word) for word in words]
    if "," in text:
        return seeds
    if not 0 < seeds[0] <= _MOST_SEEDS:
        raise InputError(
            f"--seeds {text} leaves no run" if not seeds[0] else f"--seeds {text}: that many are never done",
            hint=f"a number up to {_MOST_SEEDS}, or a list, 13,21,42",
        )
    return list(range(seeds[0]))


def _by_method(given: list[str] | None, flag: str) -> dict[str, list[float]]:
    """What an option says for methods, by name: METHOD=1e-6,1e-5."""
    by_name: dict[str, list[float]] = {}
    for word in given or ():
        name, _, text = word.partition("=")
        example = "mezo=1e-6,1e-5,1e-4" if flag == "--lr" else "mezo=5e-3"
        try:
            numbers = [float(word) for word in _listed(text)]
        except ValueError:
            numbers = []
        if not numbers or not all(SMALLEST <= number <= LARGEST for number in numbers):
            hint = f"{flag} {example}; float32 must hold it"
            raise InputError(f"{flag} {word}: there is no value above 0", hint=hint)
        checked_methods([name])
        if flag == "--eps" and (METHODS[name].kind != "zo" or len(numbers) > 1):
            raise InputError(f"{flag} {word}: it is one number for a method of MeZO's", hint=f"{flag} {example}")
        if name in by_name:
            raise InputError(f"{flag} is given twice for {name}", hint=f"{flag} {example}")
        by_name[name] = numbers
    return by_name
