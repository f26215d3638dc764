"""`zoreward compare A B`: whether one model's scores of the same rows are better than another's, or only seem so."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import typer

from zoreward.cli.flags import command
from zoreward.cli.printing import Outcome, show_table
from zoreward.config import CompareOptions
from zoreward.data import load_rows
from zoreward.records import InputError, ZorewardError, printable
from zoreward.registry import get_objective

_DRAWS = 10_000
# Random numbers at once: 8 MB of them.
_AT_ONCE = 2**20
_MADE_BY = "zoreward eval OBJECTIVE … --output rows.jsonl"
_ROW_BY_ROW = f"evaluate with an objective that scores row by row, as accuracy or token-f1 does: {_MADE_BY}"


def make_command() -> Callable[..., int]:
    """Return the command that compares the scores of rows."""
    return command(_compare, CompareOptions)


def _compare(context: typer.Context, options: CompareOptions) -> Outcome:
    files = (options.a, options.b)
    rows_a, rows_b = (_scored_rows(file) for file in files)
    _check_same_rows(rows_a, rows_b, files)
    found = _of_all(rows_a, rows_b, files, options.seed) or _of_rows(rows_a, rows_b, options.seed)
    other_prompts = sum(_text(a["prompt"]) != _text(b["prompt"]) for a, b in zip(rows_a, rows_b, strict=True))
    if other_prompts:
        what = f"{other_prompts:,} of {len(rows_a):,} rows were read behind another prompt in {options.b}"
        print(printable(f"{what}: models and prompts are compared at once; evaluate both alike"), file=sys.stderr)
    summary = {**found, "other_prompts": other_prompts, "a": options.a, "b": options.b}
    return Outcome(summary, lambda: _show(summary))


def _of_rows(rows_a: list[dict[str, Any]], rows_b: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    """How far the mean scores of rows differ."""
    pairs = [(a["score"], b["score"]) for a, b in zip(rows_a, rows_b, strict=True)]
    both = [pair for pair in pairs if None not in pair]
    if len(both) < 2:
        hint = "evaluate both on more rows"
        raise InputError(f"{len(both)} of {len(pairs)} rows have a score in both files, which says nothing", hint=hint)
    found = paired_difference([a for a, _ in both], [b for _, b in both], seed=seed)
    return {**found, "rows": len(both), "left_out": len(pairs) - len(both)}


def _of_all(
    rows_a: list[dict[str, Any]], rows_b: list[dict[str, Any]], files: tuple[str, str], seed: int
) -> dict[str, Any] | None:
    """How far scores of all rows together differ, such as two F1; None where rows have scores of their own.

    Raises:
        InputError: the objective is not known here, or gives these rows another score than the files say.
    """
    kinds = {(row.get("objective"), row.get("options")) for row in (*rows_a, *rows_b) if "score_of_all" in row}
    if not kinds:
        return None
    hint = "evaluate both with the same objective and the same options"
    if len(kinds) > 1 or None in next(iter(kinds)) or not all("score_of_all" in row for row in (*rows_a, *rows_b)):
        raise InputError("the rows of the two files are not scored alike", hint=hint)
    if len(rows_a) < 2:
        raise InputError("one row says nothing", hint="evaluate both on more rows")
    [(name, options)] = kinds
    try:
        objective = get_objective(str(name), **json.loads(str(options)))
    except (ZorewardError, ValueError, TypeError) as error:
        told = f"its rows are scored by {name!r}, all together, and that is no objective that is known by its name"
        raise InputError(f"{files[0]}: {told}", hint=_ROW_BY_ROW) from error
    from zoreward.scoring import examples_of_evaluation, set_difference

    print(f"{name} of rows drawn anew, some thousand times: this may take half a minute", file=sys.stderr)
    try:
        examples, logprobs_NC = examples_of_evaluation(rows_a)
        found = set_difference(objective, examples, [logprobs_NC, examples_of_evaluation(rows_b)[1]], seed=seed)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{files[0]} lacks choices, answers or logprobs", hint=f"give what {_MADE_BY} wrote"
        ) from error
    for file, rows, score in ((files[0], rows_a, found["score_a"]), (files[1], rows_b, found["score_b"])):
        said = rows[0]["score_of_all"]
        if not isinstance(said, float | int) or not math.isclose(score, said, abs_tol=1e-6):  # NaN neither
            message = f"{file} says {said}, and {name!r} makes {score} of its rows"
            raise InputError(message, hint="evaluate both again: the objective or the file is another than it was")
    return {**found, "rows": len(rows_a)}


def paired_difference(scores_a: Sequence[float], scores_b: Sequence[float], *, seed: int = 0) -> dict[str, Any]:
    """Return how far two models differ on the same rows, d_n = b_n − a_n being the difference on row n.

        difference                         d̄, the mean of the N differences
        standard_error                     s / √N, with their standard deviation s
        difference_low, difference_high    95 % of the means of 10,000 draws of N of the N differences, with
                                           replacement, lie between these (the bootstrap; Efron 1979)
        p_value                            how often |d̄| is at least so large where the sign of each d_n is drawn: all
                                           2^n of n differences other than 0, or (1 + how many) / 10,001 of 10,000 draws

    Args:
        scores_a: of each row, two or more.
        scores_b: of the same rows.
        seed: of the draws.

    >>> found = paired_difference([0.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0])
    >>> found["difference"], found["p_value"], found["better_in_b"]
    (0.75, 0.25, 3)
    """
    import numpy as np

    a_N, b_N = np.asarray(scores_a, np.float64), np.asarray(scores_b, np.float64)
    difference_N = b_N - a_N
    count, draw = len(difference_N), np.random.default_rng(seed)
    means = [difference_N[draw.integers(count, size=(some, count))].mean(axis=1) for some in _portions(count)]
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    return {
        "score_a": float(a_N.mean()),
        "score_b": float(b_N.mean()),
        "difference": float(difference_N.mean()),
        "standard_error": float(difference_N.std(ddof=1) / math.sqrt(count)),
        "difference_low": float(low),
        "difference_high": float(high),
        "p_value": _sign_flip_p(difference_N, draw),
        "better_in_a": int((difference_N < 0).sum()),
        "better_in_b": int((difference_N > 0).sum()),
        "same": int((difference_N == 0).sum()),
    }


def _sign_flip_p(difference_N: Any, draw: Any) -> float:
    """How often the sum of differences, with signs that are drawn, is at least as far from 0 as it is; see above.

    A sum with signs is twice that of the differences whose sign is +, less that of all.
    """
    import numpy as np

    moved_n = difference_N[difference_N != 0]
    # Sums of the same numbers in another order differ in their last digits.
    least = abs(moved_n.sum()) - 1e-9 * np.abs(moved_n).sum()

    def reached(signs: Any) -> int:
        return int((np.abs(2 * (signs @ moved_n) - moved_n.sum()) >= least).sum())

    if 2 ** len(moved_n) <= _DRAWS:
        every = np.arange(2 ** len(moved_n))[:, None] >> np.arange(len(moved_n)) & 1
        return reached(every) / len(every)
    drawn = (draw.integers(2, size=(some, len(moved_n)), dtype=np.int8) for some in _portions(len(moved_n)))
    return (1 + sum(map(reached, drawn))) / (1 + _DRAWS)


def _portions(count: int) -> Iterator[int]:
    """How many draws of so many numbers are made at once, until all are made."""
    most = max(1, _AT_ONCE // count)
    for begun in range(0, _DRAWS, most):
        yield min(most, _DRAWS - begun)


def _scored_rows(file: str) -> list[dict[str, Any]]:
    """The rows that `eval --output` wrote to a file, each with its score.

    Raises:
        InputError: it is another kind of file; or no row has a score.
    """
    rows = load_rows(Path(file))
    for number, row in enumerate(rows, 1):
        if not {"prompt", "score"} <= row.keys():
            raise InputError(f"{file}: row {number} has no prompt and score", hint=f"give what this wrote: {_MADE_BY}")
        score = row["score"]
        is_number = isinstance(score, int | float) and not isinstance(score, bool) and math.isfinite(score)
        if score is not None and not is_number:
            raise InputError(f"{file}: row {number} has the score {score!r}", hint=f"give what this wrote: {_MADE_BY}")
    if all(row["score"] is None and "score_of_all" not in row for row in rows):
        told = "no row has a score of its own; its objective gives one number for all"
        raise InputError(f"{file}: {told}", hint=_ROW_BY_ROW)
    return rows


def _check_same_rows(rows_a: list[dict[str, Any]], rows_b: list[dict[str, Any]], files: tuple[str, str]) -> None:
    """Refuse files of other rows, or of another objective. The prompt of a row may differ, where templates do."""
    hint = "evaluate both on the same rows: the same --data, --limit and --seed"
    if len(rows_a) != len(rows_b):
        raise InputError(f"{files[0]} has {len(rows_a):,} rows, {files[1]} {len(rows_b):,}", hint=hint)
    for number, (a, b) in enumerate(zip(rows_a, rows_b, strict=True), 1):
        if a.get("objective") != b.get("objective"):
            names = f"{a.get('objective')!r} and {b.get('objective')!r}"
            raise InputError(f"row {number} is scored by {names}", hint="evaluate both with the same objective")
        known = "columns" if "columns" in a and "columns" in b else "prompt"
        if _text(a[known]) != _text(b[known]):
            raise InputError(f"row {number} of {files[0]} is another than that of {files[1]}", hint=hint)


def _text(value: Any) -> str:
    """What two values are compared by. In a column of Parquet each dict has the keys of all."""
    return json.dumps(_present(value), sort_keys=True, default=str)


def _present(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _present(item) for name, item in value.items() if item is not None}
    return [_present(item) for item in value] if isinstance(value, list) else value


def _show(summary: dict[str, Any]) -> None:
    shown = {name: f"{value:.4f}" for name, value in summary.items() if isinstance(value, float)}
    mean = "mean score" if "same" in summary else "score"
    lines = [
        (f"{mean} of A, {summary['a']}", shown["score_a"]),
        (f"{mean} of B, {summary['b']}", shown["score_b"]),
        ("B − A, ± its standard error", f"{shown['difference']} ± {shown['standard_error']}"),
        ("95 % interval of B − A", f"{shown['difference_low']} to {shown['difference_high']}"),
        ("p, if neither is better", shown["p_value"]),
    ]
    if "same" in summary:
        lines.append(("rows better in B", f"{summary['better_in_b']:,} of {summary['rows']:,}"))
        lines.append(("rows better in A", f"{summary['better_in_a']:,}"))
        lines.append(("rows the same", f"{summary['same']:,}"))
    else:
        lines.append(("rows with another answer in B", f"{summary['other_answers']:,} of {summary['rows']:,}"))
    if summary.get("left_out"):
        lines.append(("rows without a score, left out", f"{summary['left_out']:,}"))
    if summary["other_prompts"]:
        lines.append(("rows with another prompt in B", f"{summary['other_prompts']:,}"))
    show_table(("", "B against A"), lines)
