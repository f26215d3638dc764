"""`zoreward influence`: which rows of --data would help a model on the rows of --for, and which would harm it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from zoreward.cli.as_tuned import as_tuned
from zoreward.cli.flags import command
from zoreward.cli.prepare import check_new_file, check_rows, made_ready, quiet_transformers, select_device
from zoreward.cli.printing import Outcome, show_table
from zoreward.config import InfluenceOptions
from zoreward.data import load_rows, write_rows
from zoreward.neighbours.of_typer import source_of
from zoreward.records import Example, InputError
from zoreward.registry import Objective, get_objective

if TYPE_CHECKING:
    from zoreward.scoring import Generation
    from zoreward.trainer.fuzzy_gradients import Influence

# What only slopes along directions have a use for.
_OF_SLOPES = ("objective", "directions", "noise", "eps", "along")
# What is not asked for along a run: it has its own.
_OF_A_RUN = ("noise", "eps", "dtype")


def make_command() -> Callable[..., int]:
    """Return the command that says how much rows help."""
    return command(_influence, InfluenceOptions)


def _influence(context: typer.Context, options: InfluenceOptions) -> Outcome:
    start = time.perf_counter()
    _check(context, options)
    options = as_tuned(context, options, _objective_of(options))
    objective = _objective_of(options)  # choices may be those that the model was tuned with
    place: dict[str, Any] = {"config": options.data_config, "revision": options.revision, "split": options.split}
    rows = load_rows(options.data, limit=options.limit, **place)
    others = load_rows(options.for_data, **(place if options.for_data == options.data else {}))
    device = select_device(options.device)
    quiet_transformers()
    from zoreward.scoring import check_needs, generation_of, head_of

    how: dict[str, Any] = {
        "choices": options.choices,
        "label": options.label,
        "trust_remote_code": options.trust_remote_code,
    }
    head = head_of(options.model, rows, **how)
    check_needs(objective.needs, head)
    for some in (rows, others):
        check_rows(objective, options, some, head=head)
    examples, tokenizer = made_ready([*rows, *others], objective.needs, options, head)
    made = (examples[: len(rows)], examples[len(rows) :], tokenizer, options, device)
    if options.method == "readout":
        found, told = _by_readout(*made)
    else:
        found, told = _by_slopes(objective, generation_of(options, options.seed), *made)
    write_rows(Path(options.output), list(_lines(examples, rows, found)))
    unscored = sum(map(math.isnan, found.dot_N.tolist()))
    summary = {
        **({"objective": objective.name} if options.method == "fuzzy" else {}),
        **{"method": options.method, **told, "rows": len(rows), "for_rows": len(others)},
        **({"unscored": unscored} if unscored else {}),
        "helpful": int((found.dot_N > 2 * found.error_N).sum()),
        "harmful": int((found.dot_N < -2 * found.error_N).sum()),
        **{"output": options.output, "model": options.model, "seconds": round(time.perf_counter() - start, 3)},
    }
    return Outcome(summary, lambda: _show(summary))


def _objective_of(options: InfluenceOptions) -> Objective:
    chooses = options.choices is not None or options.choice_column is not None
    return get_objective(options.objective or ("neg-cross-entropy" if chooses else "log-likelihood"))


def _check(context: typer.Context, options: InfluenceOptions) -> None:
    """Find what is wrong with the options themselves."""
    check_new_file(options.output)
    given = {name for name in (*_OF_SLOPES, *_OF_A_RUN) if source_of(context, name) not in ("", "DEFAULT")}
    if options.method == "readout" and (useless := given & {*_OF_SLOPES}):
        flag = f"--{sorted(useless)[0]}"
        raise InputError(f"{flag} has no use with --method readout", hint=f"leave {flag} out, or --method readout")
    if options.along is not None and (useless := given & {*_OF_A_RUN}):
        flag = f"--{sorted(useless)[0]}"
        raise InputError(f"{flag} and --along say two things: a run has its own", hint=f"leave {flag} out")


def _loaded(options: InfluenceOptions, device: str | None, dtype: str | None) -> Any:
    from zoreward.scoring import load_model

    how: dict[str, Any] = {"device_map": options.device_map, "trust_remote_code": options.trust_remote_code}
    return load_model(options.model, dtype=dtype, device=device, **how).eval()


def _by_readout(
    examples: list[Example], others: list[Example], tokenizer: Any, options: InfluenceOptions, device: str | None
) -> tuple[Influence, dict[str, Any]]:
    import numpy as np

    from zoreward.scoring import engine_of, readout_influence
    from zoreward.trainer.fuzzy_gradients import Influence

    model = _loaded(options, device, options.dtype)
    dot_N, norm_N, length = readout_influence(engine_of(model, tokenizer.pad_token_id), examples, others)
    lengths_N = norm_N * length
    cosine_N = np.divide(dot_N, lengths_N, out=np.zeros_like(dot_N), where=lengths_N != 0)
    return Influence(dot_N, np.zeros_like(dot_N), norm_N, cosine_N), {}


def _by_slopes(
    objective: Objective,
    generation: Generation,
    examples: list[Example],
    others: list[Example],
    tokenizer: Any,
    options: InfluenceOptions,
    device: str | None,
) -> tuple[Influence, dict[str, Any]]:
    import numpy as np

    from zoreward.members import tuned_weights
    from zoreward.methods import make_method
    from zoreward.noise.families import family_options
    from zoreward.trainer.fuzzy_gradients import found_eps, influence, row_slopes, slopes_along, tried_scorer

    every = [*examples, *others]

    def made(model: Any, tuned: Any, ways: Sequence[Any]) -> Any:
        return tried_scorer(model, tokenizer, objective, generation, every, ways, tuned=tuned)

    if options.along is not None:
        from zoreward.journal import load_run

        run = load_run(options.along)
        model = _loaded(options, device, run.header["dtype"])
        with _progress(options.directions) as progress:
            slopes_NK, steps = slopes_along(run, model, made, every, options.directions, progress=progress)
        told = {"along": options.along, "steps": steps, "eps": run.header["method"]["eps"]}
    else:
        model = _loaded(options, device, options.dtype)
        family = family_options(options.noise)
        method = make_method("spsa", num_directions=options.directions, seed=options.seed, **family)
        tuned, ways = tuned_weights(model), method.directions.fresh(0)
        scorer = made(model, tuned, ways)
        eps = options.eps or found_eps(scorer, method, every)
        every = scorer.with_base(every) if objective.compares_with_base else every
        with _progress(len(ways)) as progress:
            slopes_NK = row_slopes(scorer, every, ways, eps, seed=options.seed, progress=progress)
        told = {"eps": eps}
    if not np.nan_to_num(slopes_NK).any():
        hint = "take a larger --eps, or a smoother score"
        raise InputError(f"no row's score differs between members at eps={told['eps']:g}", hint=hint)
    of_others_JK = slopes_NK[len(examples) :]
    of_others_JK = of_others_JK[~np.isnan(of_others_JK).any(axis=1)]
    if unscored := len(others) - len(of_others_JK):
        told["for_unscored"] = unscored
    if not len(of_others_JK):
        raise InputError(f"{objective.name!r} has no score on the rows of --for", hint="give rows that it scores")
    found = influence(slopes_NK[: len(examples)], of_others_JK.mean(0))
    return found, {"directions": slopes_NK.shape[1], **told}


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], object]]:
    """Show how many directions are done, on a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("direction"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)
        yield lambda more: bar.advance(task, more)


def _lines(examples: list[Example], rows: list[dict[str, Any]], found: Influence) -> Iterator[dict[str, Any]]:
    """Each row with what was found of it; null where it has no score."""
    for n, row in enumerate(rows):
        numbers = {
            "influence": found.dot_N[n],
            "standard_error": found.error_N[n],
            "cosine": found.cosine_N[n],
            "norm": found.norm_N[n],
        }
        known = {name: None if math.isnan(value) else float(value) for name, value in numbers.items()}
        prompt = examples[n].prompt if examples[n].messages is None else list(examples[n].messages or ())
        yield {"row": n + 1, **known, "prompt": prompt, "columns": row}


def _show(summary: dict[str, Any]) -> None:
    apart = ("model", "output", "along")
    columns = [name for name in summary if name not in apart]
    show_table(columns, [[f"{summary[n]:.3g}" if n == "eps" else summary[n] for n in columns]])
