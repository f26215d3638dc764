"""Check what `zoreward quickstart` promises: every seed gets better, by much, quickly, on sentences never seen.

    python benchmarks/quickstart/check.py
    python benchmarks/quickstart/check.py --update random     # must fail: the scores have no say in where it goes
    python benchmarks/quickstart/check.py --update zero       # must fail: the weights stay as they are

Exits with 0 if all holds, else with 1.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from rich.console import Console
from rich.table import Table

from zoreward.cli.quickstart import HELDOUT, STEPS, TRAIN, Comparison, compare, make_trainer
from zoreward.data import load_rows
from zoreward.methods import SPSA
from zoreward.records import Update

TEXT = Path(__file__).with_name("text.txt")
SEEDS = range(5)
OVER_BASE, OVER_MAJORITY, OVER_THRESHOLD, SECONDS = 0.20, 0.10, 0.10, 90.0


def failures(found: Comparison) -> list[str]:
    """Return which promises a run broke."""
    bars = [
        (found.after - found.before, OVER_BASE, "zero-shot"),
        (found.after - found.majority, OVER_MAJORITY, "the majority class"),
        (found.after - found.threshold, OVER_THRESHOLD, "the base with a threshold"),
    ]
    # Differences of shares are not exact: 0.7 − 0.5 is less than 0.2.
    broken = [f"{gain:+.1%} over {what}, not {least:+.0%}" for gain, least, what in bars if gain < least - 1e-9]
    if found.seconds > SECONDS:
        broken.append(f"{found.seconds:.0f} s, not {SECONDS:.0f}")
    return broken


def seen_before(heldout: list[str], train: list[str], text: str) -> list[str]:
    """Return the held-out sentences that occur in the tuning rows or in the text."""
    rows = set(train)
    return [sentence for sentence in heldout if sentence in rows or sentence in text]


@contextlib.contextmanager
def broken_update(kind: str | None, seed: int) -> Iterator[None]:
    """Make the tuning worthless: every coefficient is 0, or keeps its size and gets a random sign.

    Args:
        kind: "zero", "random" or None, which changes nothing.
        seed: of what is random.
    """
    rng, tell = random.Random(seed), SPSA.tell

    def wrapped(self: SPSA, state: Any, query: Any, scores: Any, **kwargs: Any) -> tuple[Update, Any]:
        update, state = tell(self, state, query, scores, **kwargs)
        factors = (-1, 1) if kind == "random" else (0,)
        terms = [dataclasses.replace(term, coefficient=rng.choice(factors) * term.coefficient) for term in update.terms]
        return dataclasses.replace(update, terms=tuple(terms)), state

    with mock.patch.object(SPSA, "tell", wrapped) if kind else contextlib.nullcontext():
        yield


def run(seed: int, steps: int = STEPS, update: str | None = None) -> Comparison:
    """Do what the command does, with nothing kept."""
    with tempfile.TemporaryDirectory() as folder, broken_update(update, seed):
        return compare(make_trainer(Path(folder), seed=seed, steps=steps))


def main(arguments: list[str] | None = None) -> int:
    """Run all seeds, print a table, and return the exit code."""
    parser = argparse.ArgumentParser(description="Check what `zoreward quickstart` promises.")
    parser.add_argument("--update", choices=("zero", "random"), help="break the tuning; the check must then fail")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args(arguments)
    heldout, train = ([row["text"] for row in load_rows(path)] for path in (HELDOUT, TRAIN))
    seen = seen_before(heldout, train, TEXT.read_text(encoding="utf-8"))
    table = Table("seed", "majority", "before", "threshold", "after", "steps", "seconds")
    broken = []
    for seed in options.seeds:
        found = run(seed, options.steps, options.update)
        broken += [f"seed {seed}: {failure}" for failure in failures(found)]
        shares = (found.majority, found.before, found.threshold, found.after)
        table.add_row(str(seed), *(f"{share:.1%}" for share in shares), str(found.steps), f"{found.seconds:.1f}")
    console = Console()
    console.print(table)
    broken += [f"a held-out sentence was seen before: {sentence}" for sentence in seen]
    for line in broken or ["All promises hold."]:
        console.print(line, highlight=False, soft_wrap=True)
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
