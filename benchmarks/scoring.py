"""Rows per second of scoring choices: full batches sorted by length, against batches in the order of the file.

python benchmarks/scoring.py --model MODEL --data sst2/dev.jsonl
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace

import torch

from zoreward.config import Prompting
from zoreward.data import load_rows, render
from zoreward.scoring import candidate_logprobs, engine_of, load_model, load_tokenizer


def main() -> None:
    """Measure in turn, and print the median of the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=872)
    parser.add_argument("--unsorted-batch", type=int, default=32, help="rows of a batch in the order of the file")
    options = parser.parse_args()

    tokenizer = load_tokenizer(options.model)
    examples = render(
        load_rows(options.data)[: options.rows],
        tokenizer,
        Prompting(template="{sentence} It was", choices=[" terrible", " great"]),
        needs="choices",
    )
    reader = engine_of(load_model(options.model), tokenizer.pad_token_id)
    whole_slices = replace(reader, tokens=1 << 30)

    def unsorted() -> None:
        for start in range(0, len(examples), options.unsorted_batch):
            candidate_logprobs(whole_slices, examples[start : start + options.unsorted_batch])

    ways = {"sorted, full": lambda: candidate_logprobs(reader, examples), "unsorted": unsorted}
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            speeds[name].append(len(examples) / (time.perf_counter() - start))
    ratios = [a / b for a, b in zip(*speeds.values(), strict=True)]
    print(f"{len(examples)} rows, {torch.get_num_threads()} threads, medians of {options.rounds} rounds in turn")
    for name, values in speeds.items():
        print(f"{name}: {statistics.median(values):.1f} rows a second")
    print(f"ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
