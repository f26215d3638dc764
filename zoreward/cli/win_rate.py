"""`zoreward win-rate MODEL --against BASE`: a judge says how often one model writes better than another."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import typer

from zoreward.cli.as_tuned import as_tuned
from zoreward.cli.flags import command
from zoreward.cli.prepare import objective_with_retries, quiet_transformers, select_device
from zoreward.cli.printing import Outcome, show_table
from zoreward.config import Loading, Prompting, WinRateOptions, part_of
from zoreward.data import check_prompts, load_rows, with_prompts
from zoreward.registry import get_objective

_OBJECTIVE = "win-rate"
_OF_PROMPTS = ("template", "prompt", "chat", "system_prompt", "chat_template_kwargs", "max_length")


def make_command() -> Callable[..., int]:
    """Return the command that compares two models."""
    return command(_win_rate, WinRateOptions)


def _win_rate(context: typer.Context, options: WinRateOptions) -> Outcome:
    start = time.perf_counter()
    options = as_tuned(context, options)
    prompting = Prompting(**{name: getattr(options, name) for name in _OF_PROMPTS})
    place = {"config": options.data_config, "revision": options.revision, "split": options.split}
    rows = with_prompts(load_rows(options.data, limit=options.limit, **place), prompting)
    check_prompts(rows, prompting)
    device = select_device(options.device)
    quiet_transformers()
    from zoreward.scoring import check_needs, generation_of, head_of, win_rate

    generation = replace(generation_of(options, options.seed), rows=options.eval_batch_size)
    for name in (options.model, options.against):
        check_needs("completions", head_of(name, trust_remote_code=options.trust_remote_code))
    judge = objective_with_retries(get_objective(_OBJECTIVE, judge=options.judge), options)
    loading = part_of(Loading, options)
    found = win_rate(options.model, options.against, rows, judge, prompting, generation, loading, device)
    summary = {
        **_with_ends(asdict(found)),
        "model": options.model,
        "against": options.against,
        "judge": options.judge,
        "seconds": round(time.perf_counter() - start, 3),
    }
    return Outcome(summary, lambda: _show(summary))


def _with_ends(found: dict[str, Any]) -> dict[str, Any]:
    """Numbers alone: of an interval its two ends, `NAME_low` and `NAME_high`."""
    flat: dict[str, Any] = {}
    for name, value in found.items():
        if name.endswith("interval"):
            of = "win_rate" if name == "interval" else name.removesuffix("_interval")
            flat[f"{of}_low"], flat[f"{of}_high"] = value or (None, None)
        else:
            flat[name] = value
    return flat


def _show(summary: dict[str, Any]) -> None:
    def interval(name: str) -> str:
        if summary[name] is None:
            return "unknown: one model's answers are all longer"
        ends = [summary[f"{name}_{end}"] for end in ("low", "high")]
        return _share(summary[name]) + ("" if None in ends else f" ({' to '.join(map(_share, ends))})")

    lines = [
        ("win rate (95 % interval)", interval("win_rate")),
        ("of answers of equal length", interval("length_controlled")),
        ("ties", f"{_share(summary['ties'])}, {summary['equal']:,} of them equal answers"),
        ("mean characters", f"{summary['characters']:.1f}, against {summary['base_characters']:.1f}"),
        ("rows", f"{summary['rows']:,} of {summary['prompts']:,} prompts"),
    ]
    if summary["agreed"] is not None:
        lines.insert(3, ("the judge agrees in both orders", _share(summary["agreed"])))
    if summary["unjudged"]:
        lines.append(("left out by the judge", f"{summary['unjudged']:,}"))
    if summary["truncated"]:
        lines.append(("prompts cut on the left", f"{summary['truncated']:,}"))
    show_table(("", "against the base"), lines)


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"
