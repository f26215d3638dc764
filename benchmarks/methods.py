"""Methods × seeds at equal forward passes: SST-2, accuracy itself as the objective.

    python benchmarks/methods.py --model MODEL --data SST2_FOLDER --output runs/methods --jobs 4
    python benchmarks/methods.py … --methods spsa lozo svrg --seeds 1 2 3 --budget 64000

Every method may show as many rows to the model as `--budget` says, members times rows. Its learning rate is chosen
first: one run for each of `--factors` times the rate in `RATES`, by the accuracy on dev rows that are held out of the
training rows. Then `--seeds` runs with that rate, scored once on the 872 rows of dev.jsonl, which nothing was chosen
by. Runs go side by side in `--jobs` processes. What is done stands in `results.jsonl` and is not done again, so what
was cut off goes on with the same command.

Writes `table.md`, `table.csv` and `plot.png` into the output folder and prints the table.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

from runs import do_runs, results_in

from zoreward.data import load_rows
from zoreward.methods import METHODS, Method

PROMPT = {"template": "{sentence} It was", "choices": [" terrible", " great"], "label": "label"}
EPS = 5e-3  # for all: accuracy is a staircase, and with 1e-3 a third of the steps had no signal
# The middle of the rates that are tried. Slopes of accuracy at this ε are some 3, so that 3e-5 moves weights by 1e-4 a
# step; where w_K are of size 1 the rate moves them as far, and further where steps are fewer and better.
RATES = {
    "spsa": 3e-5,
    "svrg": 3e-5,
    "momentum": 3e-5,
    "sign": 1e-4,
    "lozo": 3e-5,
    "lozo-m": 3e-5,
    "subzero": 3e-5,
    "sparse": 1e-4,
    "bcd": 3e-5,
    "es": 1e-3,
    "fzoo": 5e-4,
    "eggroll": 1e-3,
}
TUNING_SEED = 1000
CURVE = 8  # dev scores along a run

Result = dict[str, Any]


def steps_within(method: Method, budget: int, rows: int, batch: int) -> int:
    """Return how many steps show the model at most `budget` rows, members times rows; at least one."""
    state, shown = method.init(), 0
    while True:
        query = method.ask(state)
        shown += len(query.members) * (rows if query.rows == "all" else batch)
        if shown > budget and state.step:
            return state.step
        _, state = method.tell(state, query, [0.0] * len(query.members))


def split(options: argparse.Namespace) -> tuple[list[Any], list[Any], list[Any]]:
    """Return the rows to tune on, the dev rows to choose by, both out of train.jsonl, and the test rows."""
    rows = load_rows(f"{options.data}/train.jsonl")
    random.Random(0).shuffle(rows)
    end = options.dev_rows + options.train_rows
    return (
        rows[options.dev_rows : end],
        rows[: options.dev_rows],
        load_rows(f"{options.data}/dev.jsonl")[: options.test_rows],
    )


def run(options: argparse.Namespace, name: str, factor: float, seed: int) -> list[Result]:
    """Do one run; the test rows are scored only where the rate is chosen already."""
    import torch

    from zoreward.trainer import ZOConfig, ZOTrainer
    from zoreward.trainer.options import completed, method_of

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // options.jobs))
    train, dev, test = split(options)
    folder = Path(options.output, "runs", f"{name}-{factor:g}-{seed}")
    shutil.rmtree(folder, ignore_errors=True)
    settings: dict[str, Any] = {
        "method": name,
        "seed": seed,
        "eps": EPS,
        "learning_rate": RATES[name] * factor,
        "per_device_train_batch_size": options.batch_size,
        "dtype": "float32",
        "disable_tqdm": True,
        "logging_strategy": "no",
        **PROMPT,
    }
    args = completed(ZOConfig(str(folder), max_steps=1, **settings), "choices")
    steps = steps_within(method_of(args, rows=len(train)), options.budget, len(train), options.batch_size)
    between = max(1, steps // CURVE)
    trainer = ZOTrainer(
        options.model,
        objective="accuracy",
        args=ZOConfig(str(folder), max_steps=steps, eval_strategy="steps", eval_steps=between, **settings),
        train_dataset=train,
        eval_dataset=dev,
    )
    start = time.perf_counter()
    trainer.evaluate()
    trainer.train()
    seconds = time.perf_counter() - start
    curve = [(log["step"], log["eval_score"]) for log in trainer.state.log_history if "eval_score" in log]
    if curve[-1][0] != steps:
        curve.append((steps, trainer.evaluate()["eval_score"]))
    final = {} if seed == TUNING_SEED else {"test": trainer.evaluate(test, metric_key_prefix="test")["test_score"]}
    shutil.rmtree(folder, ignore_errors=True)
    silent = trainer.method_state.silent / steps
    found = {"method": name, "factor": factor, "seed": seed, "steps": steps, "dev": curve[-1][1], "silent": silent}
    return [{**found, **final, "seconds": round(seconds, 1), "curve": curve}]


def done(path: Path) -> dict[tuple[str, float, int], Result]:
    """Return the results that are there already, by method, factor and seed."""
    return results_in(path, "method", "factor", "seed")


def do_all(options: argparse.Namespace, wanted: list[tuple[str, float, int]]) -> None:
    """Do the runs that are not done yet, side by side."""
    path = Path(options.output, "results.jsonl")
    missing = [(options, *one) for one in wanted if one not in done(path)]
    for count, found in enumerate(do_runs(path, run, missing, options.jobs), start=1):
        print(f"{count}/{len(missing)}", {key: found[key] for key in found if key != "curve"}, flush=True)


def chosen(found: dict[tuple[str, float, int], Result], name: str, factors: list[float]) -> float:
    """Return the factor with the best dev score; of equals the smallest."""
    return max(sorted(factors), key=lambda factor: found[name, factor, TUNING_SEED]["dev"])


def table(options: argparse.Namespace, found: dict[tuple[str, float, int], Result]) -> list[dict[str, Any]]:
    """Return a line for each method, the best test accuracy first."""
    lines = []
    for name in options.methods:
        factor = chosen(found, name, options.factors)
        runs = [found[name, factor, seed] for seed in options.seeds]
        test = [one["test"] for one in runs]
        line = {"method": name, "lr": f"{RATES[name] * factor:.1e}", "steps": runs[0]["steps"]}
        line |= {"dev before": runs[0]["curve"][0][1], "dev": statistics.mean(one["dev"] for one in runs)}
        line |= {"test": statistics.mean(test), "lowest": min(test), "highest": max(test)}
        line |= {"silent": statistics.mean(one["silent"] for one in runs)}
        lines.append({**line, "seconds": statistics.mean(one["seconds"] for one in runs)})
    return sorted(lines, key=lambda line: -line["test"])


def written(options: argparse.Namespace, lines: list[dict[str, Any]]) -> str:
    """Write table.csv and table.md; returns the latter."""
    with Path(options.output, "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    rows = [[f"{value:.4f}" if isinstance(value, float) else str(value) for value in line.values()] for line in lines]
    text = "\n".join("| " + " | ".join(row) + " |" for row in [list(lines[0]), ["---"] * len(lines[0]), *rows]) + "\n"
    Path(options.output, "table.md").write_text(text)
    return text


def plot(options: argparse.Namespace, found: dict[tuple[str, float, int], Result]) -> None:
    """Draw the dev accuracy over the rows that the model was shown: mean of the seeds, from lowest to highest."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        print("no plot: matplotlib is not installed")
        return
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for name in options.methods:
        factor = chosen(found, name, options.factors)
        curves = [found[name, factor, seed]["curve"] for seed in options.seeds]
        x = [options.budget * step / curves[0][-1][0] for step, _ in curves[0]]
        y = list(zip(*[[score for _, score in curve] for curve in curves], strict=True))
        [line] = axes.plot(x, [statistics.mean(scores) for scores in y], label=name)
        axes.fill_between(x, list(map(min, y)), list(map(max, y)), alpha=0.1, color=line.get_color())
    axes.set(xlabel="rows shown to the model, members × rows", ylabel="dev accuracy")
    axes.legend()
    figure.savefig(Path(options.output, "plot.png"), dpi=120, bbox_inches="tight")


def main() -> None:
    """Choose rates, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, help="a folder with train.jsonl and dev.jsonl of SST-2")
    parser.add_argument("--output", required=True)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--factors", type=float, nargs="+", default=[0.3, 1.0, 3.0], help="of each method's rate")
    parser.add_argument("--budget", type=int, default=128_000, help="rows shown to the model: 1,000 steps of spsa")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--train-rows", type=int, default=1024, help="few, so that svrg can score them all")
    parser.add_argument("--dev-rows", type=int, default=512)
    parser.add_argument("--test-rows", type=int, default=872)
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    options = parser.parse_args()
    Path(options.output).mkdir(parents=True, exist_ok=True)
    path = Path(options.output, "results.jsonl")
    do_all(options, [(name, factor, TUNING_SEED) for name in options.methods for factor in options.factors])
    rates = {name: chosen(done(path), name, options.factors) for name in options.methods}
    do_all(options, [(name, rates[name], seed) for seed in options.seeds for name in options.methods])
    print(written(options, table(options, done(path))))
    plot(options, done(path))


if __name__ == "__main__":
    main()
