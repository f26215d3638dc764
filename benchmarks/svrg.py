"""MeZO-SVRG beside MeZO: what memory it takes, and what it gains where there is no prompt.

    python benchmarks/svrg.py memory --shape opt-1.3b --check
    python benchmarks/svrg.py accuracy --model MODEL --data SST2_FOLDER --output runs/svrg --jobs 8

`memory`: the most memory of some steps of either, on random weights in bfloat16, with as many rows in a forward pass;
the bar is a peak of 1.05 times MeZO's.

`accuracy`: SST-2 without a prompt: a new classification head on a language model, tuned on cross-entropy with all
weights or the last layers. Both methods may show the model as many rows (`--budget`, members times rows), and try as
many learning rates (`--rates`), one run each, chosen by the accuracy on dev rows that are held out of the training
rows. Then `--seeds` runs with the chosen rate are scored once on dev.jsonl, which nothing was chosen by. A seed gives
both methods the same first head. What is done stands in `results.jsonl`, and is not done again.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

from runs import do_runs, results_in

from zoreward.data import load_rows

MEMORY_BAR = 1.05
METHODS = ("spsa", "svrg")
# Fewer weights take larger steps.
RATES = {"full": [1e-5, 3e-5, 1e-4, 3e-4, 1e-3], "last-1": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2]}
TUNING_SEED = 1000

Result = dict[str, Any]
Key = tuple[str, str, float, int]


def peaks(shape: str, rows: int, all_rows: int, tokens: int, steps: int) -> dict[str, float]:
    """Return the most memory of steps of each method, in GB, and that of the weights."""
    from dataclasses import replace

    import torch
    from measure import opt_config
    from step import examples_of, peak
    from transformers import OPTForCausalLM

    from zoreward.members import update_
    from zoreward.methods import make_method
    from zoreward.scoring import candidate_logprobs, checked_engine

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.device(device):
        model = OPTForCausalLM(opt_config(shape)).to(torch.bfloat16).eval().requires_grad_(False)
    examples = examples_of(all_rows, tokens)
    found = {"weights": sum(weight.numel() * weight.element_size() for weight in model.parameters()) / 1e9}
    reader = None
    for name in METHODS:
        method = make_method(name, eps=1e-3, lr=1e-7, num_directions=1, seed=0)
        state = method.init()
        # Forward passes of as many rows for both: a pass over all rows is several of them.
        reader = reader or replace(checked_engine(model, 1, examples[:8], method.ask(state).members[:2]), rows=rows)
        with peak(found, name, device):
            for _ in range(steps):
                query = method.ask(state)
                batch = examples if query.rows == "all" else examples[:rows]
                scores = [float(own.mean()) for part in query.parts for own in candidate_logprobs(reader, batch, part)]
                update, state = method.tell(state, query, scores)
                update_(reader.model, update, tuned=reader.tuned)
    return found


def memory(options: argparse.Namespace) -> None:
    """Measure the peaks and compare them."""
    import torch
    from measure import Result as Figure
    from measure import finish, record

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = peaks(options.shape, options.rows, options.all_rows, options.tokens, options.steps)
    results = [Figure(f"{name}, peak" if name in METHODS else name, value, "GB") for name, value in found.items()]
    if found["spsa"]:
        results.append(Figure("svrg's peak over spsa's", found["svrg"] / found["spsa"], "×", most=MEMORY_BAR))
    shape = f"{options.shape}, {options.rows} of {options.all_rows} × {options.tokens}"
    record("svrg-memory", results, device, "bfloat16", shape, options.commit)
    finish(results, options.check)


def split(options: argparse.Namespace) -> tuple[list[Any], list[Any], list[Any]]:
    """Return the rows to tune on, the dev rows to choose by, both out of train.jsonl, and the test rows."""
    rows = load_rows(f"{options.data}/train.jsonl")
    random.Random(0).shuffle(rows)
    end = options.dev_rows + options.train_rows
    return rows[options.dev_rows : end], rows[: options.dev_rows], load_rows(f"{options.data}/dev.jsonl")


def run(options: argparse.Namespace, key: Key) -> list[Result]:
    """Do one run; the test rows are scored only where the rate is chosen already."""
    import torch
    from methods import steps_within

    from zoreward import evaluate
    from zoreward.trainer import ZOConfig, ZOTrainer
    from zoreward.trainer.options import completed, method_of

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // options.jobs))
    method, tune, rate, seed = key
    train, dev, test = split(options)
    folder = Path(options.output, "runs", f"{method}-{tune}-{rate:g}-{seed}")
    shutil.rmtree(folder, ignore_errors=True)
    settings: dict[str, Any] = {
        "method": method,
        "tune": tune,
        "head": "classifier",
        "template": "{sentence}",
        "seed": seed,
        "eps": options.eps,
        "learning_rate": rate,
        "per_device_train_batch_size": options.batch_size,
        "dtype": "float32",
        "disable_tqdm": True,
        "logging_strategy": "no",
        "save_strategy": "no",
    }
    args = completed(ZOConfig(str(folder), max_steps=1, **settings), "choices")
    steps = steps_within(method_of(args, rows=len(train)), options.budget, len(train), options.batch_size)
    args = ZOConfig(str(folder), max_steps=steps, **settings)
    trainer = ZOTrainer(options.model, objective="neg-cross-entropy", args=args, train_dataset=train)
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start

    def accuracy(rows: list[Any]) -> float:
        tokenizer = trainer.processing_class
        return evaluate(trainer.model, "accuracy", rows, tokenizer=tokenizer, template="{sentence}").score

    found = {"method": method, "tune": tune, "rate": rate, "seed": seed, "steps": steps, "dev": accuracy(dev)}
    found |= {"test": accuracy(test)} if seed != TUNING_SEED else {}
    shutil.rmtree(folder, ignore_errors=True)
    return [{**found, "seconds": round(seconds, 1)}]


def done(path: Path) -> dict[Key, Result]:
    """Return the results that are there already."""
    return results_in(path, "method", "tune", "rate", "seed")


def do_all(options: argparse.Namespace, wanted: list[Key]) -> None:
    """Do the runs that are not done yet, side by side."""
    path = Path(options.output, "results.jsonl")
    missing = [(options, key) for key in wanted if key not in done(path)]
    for count, found in enumerate(do_runs(path, run, missing, options.jobs), start=1):
        print(f"{count}/{len(missing)}", found, flush=True)


def chosen(found: dict[Key, Result], method: str, tune: str, rates: list[float]) -> float:
    """Return the rate with the best dev accuracy; of equals the smallest."""
    return max(sorted(rates), key=lambda rate: found[method, tune, rate, TUNING_SEED]["dev"])


def table(options: argparse.Namespace, found: dict[Key, Result]) -> list[dict[str, Any]]:
    """Return a line for each method and what it tunes; svrg's has the gain over spsa, seed by seed."""
    from measure import reach

    lines = []
    for tune in options.tune:
        before: list[float] = []
        for method in METHODS:
            rates = options.rates or RATES.get(tune, RATES["last-1"])
            rate = chosen(found, method, tune, rates)
            runs = [found[method, tune, rate, seed] for seed in options.seeds]
            test = [one["test"] for one in runs]
            gains = [own - other for own, other in zip(test, before or test, strict=True)]
            lines.append(
                {
                    "tune": tune,
                    "method": method,
                    "lr": f"{rate:g}",
                    "at the end of the rates": rate in (min(rates), max(rates)),
                    "steps": runs[0]["steps"],
                    "test": round(statistics.mean(test), 4),
                    "lowest": min(test),
                    "highest": max(test),
                    "gain": round(statistics.mean(gains), 4) if before else "",
                    "±": round(reach(gains), 4) if before else "",
                    "seconds": round(statistics.mean(one["seconds"] for one in runs), 1),
                }
            )
            before = test
    return lines


def accuracy(options: argparse.Namespace) -> None:
    """Choose rates, run, print."""
    import csv

    import torch
    from measure import RESULTS, machine

    Path(options.output).mkdir(parents=True, exist_ok=True)
    path = Path(options.output, "results.jsonl")
    pairs = [(method, tune) for tune in options.tune for method in METHODS]
    rates = {tune: options.rates or RATES.get(tune, RATES["last-1"]) for tune in options.tune}
    do_all(options, [(*pair, rate, TUNING_SEED) for pair in pairs for rate in rates[pair[1]]])
    best = {pair: chosen(done(path), *pair, rates[pair[1]]) for pair in pairs}
    do_all(options, [(*pair, best[pair], seed) for seed in options.seeds for pair in pairs])
    lines = table(options, done(path))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{machine(device)}, torch {torch.__version__}, {options.budget} rows shown, eps {options.eps:g}")
    for line in [list(lines[0]), ["---"] * len(lines[0]), *(list(line.values()) for line in lines)]:
        print("| " + " | ".join(map(str, line)) + " |")
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / "svrg.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["device", "commit", "budget", *lines[0]])
        writer.writeheader()
        writer.writerows(
            {"device": machine(device), "commit": options.commit, "budget": options.budget, **line} for line in lines
        )


def main() -> None:
    """Measure memory or accuracy."""
    from measure import SHAPES, commit

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True)
    one = parts.add_parser("memory")
    one.set_defaults(run=memory)
    one.add_argument("--shape", choices=SHAPES, default="opt-1.3b")
    one.add_argument("--rows", type=int, default=16, help="of a mini-batch")
    one.add_argument("--all-rows", type=int, default=64, help="of a pass over all rows")
    one.add_argument("--tokens", type=int, default=64)
    one.add_argument("--steps", type=int, default=6)
    one.add_argument("--check", action="store_true", help="exit with 1 if the bar is missed")
    two = parts.add_parser("accuracy")
    two.set_defaults(run=accuracy)
    two.add_argument("--model", required=True)
    two.add_argument("--data", required=True, help="a folder with train.jsonl and dev.jsonl of SST-2")
    two.add_argument("--output", required=True)
    two.add_argument("--tune", nargs="+", default=["full", "last-1"])
    two.add_argument("--rates", type=float, nargs="+", help="learning rates to try; by default five")
    two.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    two.add_argument("--budget", type=int, default=128_000, help="rows shown to the model: 1,000 steps of spsa")
    two.add_argument("--batch-size", type=int, default=64)
    two.add_argument("--train-rows", type=int, default=512, help="few, so that svrg can score them all")
    two.add_argument("--dev-rows", type=int, default=512)
    two.add_argument("--eps", type=float, default=1e-3)
    two.add_argument("--jobs", type=int, default=1, help="runs side by side")
    for part in (one, two):
        part.add_argument("--commit", default=commit())
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
