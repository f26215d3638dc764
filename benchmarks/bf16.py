"""bfloat16 against float32 on SST-2, and against the way of the papers: eight seeds, paired.

    python benchmarks/bf16.py --model MODEL --data SST2_FOLDER --output runs/bf16 --jobs 8 --check
    python benchmarks/bf16.py … --jobs 4 --cores 4                   # on CPU cores, so many for each process

Accuracy itself is the objective, with the settings of docs/results.md. A seed has three runs: `float32` and `bfloat16`
are ours, with the same directions on the same rows, and differ in the weights' dtype alone; `four passes` is the
published step in bfloat16, on the same rows again: all weights are moved in place by +εz, −2εz and +εz and then by the
update, z drawn by `torch.normal` anew each time, every result rounded to nearest.

Prints the accuracy on all dev rows after the last step, and the mean difference between bfloat16 and float32 with its
95 % t-interval over the seeds; appends them to benchmarks/results/bf16.csv. `--check` exits 0 only if that interval
lies within ±2 points. What is done stands in `results.jsonl` and is not done again.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from measure import Result, commit, finish, reach, record
from runs import do_runs, results_in
from transformers import TrainerCallback
from transformers.utils import logging

from zoreward.data import load_rows
from zoreward.records import Example
from zoreward.registry import get_objective
from zoreward.scoring import Generation, Scorer, load_model, load_tokenizer, scorer_of
from zoreward.trainer import ZOConfig, ZOTrainer

PROMPT = {"template": "{sentence} It was", "choices": [" terrible", " great"], "label": "label"}
WAYS = ("float32", "bfloat16", "four passes")
BAR = 2.0  # points
Found = dict[str, Any]


class Batches(TrainerCallback):
    """Keeps the rows of each step."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.seen: list[list[Example]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take them from the trainer."""
        self.seen.append(self.trainer.last_rows)


def ours(options: argparse.Namespace, seed: int, dtype: str) -> tuple[Found, list[list[Example]]]:
    """Tune in a dtype; returns what is known of the run, and the rows of its steps."""
    folder = Path(options.output, "runs", f"{dtype}-{seed}")
    shutil.rmtree(folder, ignore_errors=True)
    batches = Batches()
    args = ZOConfig(
        str(folder),
        max_steps=options.steps,
        per_device_train_batch_size=options.batch_size,
        eps=options.eps,
        learning_rate=options.lr,
        seed=seed,
        dtype=dtype,
        use_cpu=bool(options.cores),
        disable_tqdm=True,
        logging_strategy="no",
        save_strategy="no",
        **PROMPT,
    )
    rows = {name: load_rows(f"{options.data}/{name}.jsonl") for name in ("train", "dev")}
    batches.trainer = ZOTrainer(
        options.model,
        objective="accuracy",
        args=args,
        train_dataset=rows["train"],
        eval_dataset=rows["dev"][: options.dev_rows],
        callbacks=[batches],
    )
    before = batches.trainer.evaluate()["eval_score"]
    start = time.perf_counter()
    batches.trainer.train()
    seconds = time.perf_counter() - start
    after = batches.trainer.evaluate()["eval_score"]
    shutil.rmtree(folder, ignore_errors=True)
    silent = batches.trainer.method_state.silent / options.steps
    found = {"before": before, "after": after, "silent": silent, "seconds": round(seconds, 1)}
    return found, [batches.trainer.eval_dataset, *batches.seen]


@torch.no_grad()
def move_(weights: Sequence[torch.Tensor], seed: int, scale: float) -> None:
    """Move weights along the direction of a seed, in place and each rounded to nearest: w ← w + scale · z."""
    generator = torch.Generator(weights[0].device).manual_seed(seed)
    for weight in weights:
        z = torch.normal(0.0, 1.0, weight.shape, generator=generator, dtype=weight.dtype, device=weight.device)
        weight.copy_(weight + scale * z)


def four_passes(options: argparse.Namespace, seed: int, dev: list[Example], batches: list[list[Example]]) -> Found:
    """Tune as published: θ + ε z, θ − ε z, θ again, θ + η · slope · z, all of it in place."""
    model = load_model(options.model, dtype="bfloat16", device="cpu" if options.cores else None).requires_grad_(False)
    scorer = scorer_of(model, load_tokenizer(options.model), get_objective("accuracy"), Generation())
    weights, seeds = list(model.parameters()), torch.Generator().manual_seed(seed)
    before, silent = accuracy(scorer, dev), 0
    start = time.perf_counter()
    for rows in batches:
        direction = int(torch.randint(1 << 31, (), generator=seeds))
        move_(weights, direction, options.eps)
        plus = accuracy(scorer, rows)
        move_(weights, direction, -2 * options.eps)
        minus = accuracy(scorer, rows)
        move_(weights, direction, options.eps)
        slope = (plus - minus) / (2 * options.eps)
        silent += slope == 0
        move_(weights, direction, options.lr * slope)
    seconds = time.perf_counter() - start
    after = accuracy(scorer, dev)
    return {"before": before, "after": after, "silent": silent / len(batches), "seconds": round(seconds, 1)}


def accuracy(scorer: Scorer, rows: Sequence[Example]) -> float:
    """Return the accuracy of the model as it stands."""
    return scorer.score(rows)[0].score


def run(options: argparse.Namespace, seed: int) -> list[Found]:
    """Do the three runs of a seed."""
    found, _ = ours(options, seed, "float32")
    half, (dev, *batches) = ours(options, seed, "bfloat16")
    results = (found, half, four_passes(options, seed, dev, batches))
    return [{"seed": seed, "way": way, **one} for way, one in zip(WAYS, results, strict=True)]


def settle(places: Any, cores: int | None) -> None:
    """Give a process its CPU cores; `places` counts the processes."""
    logging.disable_progress_bar()
    if cores:
        with places.get_lock():
            first = places.value * cores
            places.value += 1
        os.sched_setaffinity(0, range(first, first + cores))
        torch.set_num_threads(cores)
    else:
        torch.set_num_threads(1)


def do_all(options: argparse.Namespace) -> dict[tuple[int, str], Found]:
    """Do the seeds that are not done yet, side by side; returns all results by seed and way."""
    path, names = Path(options.output, "results.jsonl"), ("seed", "way")
    found = results_in(path, *names)
    missing = [(options, seed) for seed in options.seeds if any((seed, way) not in found for way in WAYS)]
    settings = (multiprocessing.get_context("spawn").Value("i", 0), options.cores)
    for one in do_runs(path, run, missing, options.jobs, settle=settle, settings=settings):
        print(one, flush=True)
    return results_in(path, *names)


def results_of(options: argparse.Namespace, found: dict[tuple[int, str], Found]) -> list[Result]:
    """Print the table; returns its figures, with the bar."""
    print("\n| seed | " + " | ".join(WAYS) + " | bfloat16 − float32 |\n" + "|---" * (len(WAYS) + 2) + "|")
    results = []
    for seed in options.seeds:
        after = [found[seed, way]["after"] for way in WAYS]
        print(f"| {seed} | " + " | ".join(f"{value:.4f}" for value in after) + f" | {after[1] - after[0]:+.4f} |")
        results += [
            Result(f"seed {seed}: dev accuracy, {way}", value, "") for way, value in zip(WAYS, after, strict=True)
        ]
    means = [statistics.mean(found[seed, way]["after"] for seed in options.seeds) for way in WAYS]
    print("| mean | " + " | ".join(f"{value:.4f}" for value in means) + f" | {means[1] - means[0]:+.4f} |")
    for name, values in (("before", ".4f"), ("silent", ".3f"), ("seconds", ".1f")):
        told = [statistics.mean(found[seed, way][name] for seed in options.seeds) for way in WAYS]
        print(f"| {name} | " + " | ".join(f"{value:{values}}" for value in told) + " | |")
    results += [Result(f"mean dev accuracy, {way}", value, "") for way, value in zip(WAYS, means, strict=True)]
    for number, way in ((1, "bfloat16"), (2, "four passes")):
        pairs = [100 * (found[seed, WAYS[number]]["after"] - found[seed, "float32"]["after"]) for seed in options.seeds]
        mean, half = statistics.mean(pairs), reach(pairs)
        bars = (-BAR, BAR) if number == 1 else (None, None)
        results += [
            Result(f"{way} − float32, mean of {len(pairs)} pairs", mean, "points"),
            Result(f"{way} − float32, 95 % interval, lower end", mean - half, "points", least=bars[0]),
            Result(f"{way} − float32, 95 % interval, upper end", mean + half, "points", most=bars[1]),
        ]
    return results


def main() -> None:
    """Tune, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, help="a folder with train.jsonl and dev.jsonl of SST-2")
    parser.add_argument("--output", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(1, 9)))
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--eps", type=float, default=5e-3)
    parser.add_argument("--lr", type=float, default=3e-5)
    parser.add_argument("--dev-rows", type=int, default=872)
    parser.add_argument("--jobs", type=int, default=1, help="seeds side by side")
    parser.add_argument("--cores", type=int, help="CPU cores for each job; without it a GPU, which all jobs share")
    parser.add_argument("--commit", default=commit())
    parser.add_argument("--check", action="store_true", help="exit with 1 if bfloat16 may be 2 points away")
    options = parser.parse_args()
    results = results_of(options, do_all(options))
    device = torch.device("cpu" if options.cores or not torch.cuda.is_available() else "cuda")
    record("bf16", results, device, "bfloat16", f"{Path(options.model).name}, {options.steps} steps", options.commit)
    finish(results, options.check)


if __name__ == "__main__":
    main()
