"""A reward model as the objective: `zoreward tune reward-model`, several seeds, and what became of the texts.

    python benchmarks/reward_model.py --model LM --reward-model RM --data IMDB_PROMPTS --output runs/rm --cores 2

Runs the command once a seed (with `--cores`, on so many CPU cores each, all seeds at the same time), then prints: mean
sigmoid reward on the dev prompts before and after, seconds of tuning, length and distinct-2 of the texts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from zoreward import evaluate
from zoreward.data import load_rows
from zoreward.records import Evaluation
from zoreward.scoring import Generation, load_model, load_tokenizer


def tune(options: argparse.Namespace, seed: int, place: int) -> subprocess.Popen[bytes]:
    """Start the command for one seed; `place` counts the seeds."""
    command = [
        *(sys.executable, "-m", "zoreward", "tune", "reward-model", "--model", options.model),
        *("--reward-model", options.reward_model, "--activation", "sigmoid", "--data", f"{options.data}/train.jsonl"),
        *("--num-directions", str(options.directions), "--batch-size", str(options.prompts)),
        *("--max-new-tokens", "24", "--steps", str(options.steps), "--completions-every", "10"),
        *("--seed", str(seed), "--output", f"{options.output}/seed-{seed}", "--dtype", "float32", "--json"),
    ]
    environment = dict(os.environ)
    if options.cores:
        environment |= {"OMP_NUM_THREADS": str(options.cores), "CUDA_VISIBLE_DEVICES": ""}
        first = place * options.cores
        command = ["taskset", "-c", f"{first}-{first + options.cores - 1}", *command, "--device", "cpu"]
    with Path(options.output, f"seed-{seed}.log").open("wb") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)


def score(options: argparse.Namespace, model: str) -> Evaluation:
    """Evaluate a model on the dev prompts."""
    return evaluate(
        load_model(model, dtype="float32"),
        "reward-model",
        load_rows(f"{options.data}/dev.jsonl"),
        tokenizer=load_tokenizer(model),
        generation=Generation(max_new_tokens=24),
        options={"reward_model": options.reward_model, "activation": "sigmoid"},
    )


def main() -> None:
    """Tune, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "reward-model", "data", "output"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--directions", type=int, default=8, help="a step; each is two members")
    parser.add_argument("--prompts", type=int, default=16, help="a step")
    parser.add_argument("--cores", type=int, help="CPU cores for each seed; without it a GPU, one seed after the other")
    options = parser.parse_args()
    Path(options.output).mkdir(parents=True, exist_ok=True)
    running = []
    for place, seed in enumerate(options.seeds):
        running.append(tune(options, seed, place))
        if not options.cores:
            running[-1].wait()
    if any([run.wait() for run in running]):
        sys.exit(f"a seed failed: see the logs in {options.output}")

    base = score(options, options.model)
    print(f"{options.steps} steps, {2 * options.directions} members × {options.prompts} prompts × 24 tokens")
    print("| seed | reward before | after | seconds of tuning | length before | after | distinct-2 before | after |")
    print("|---" * 8 + "|")
    afters = []
    for seed in options.seeds:
        log = Path(options.output, f"seed-{seed}.log").read_text(encoding="utf-8", errors="replace")
        seconds = json.loads(log.splitlines()[-1])["seconds"]
        after = score(options, f"{options.output}/seed-{seed}/model")
        afters.append(after.score)
        values = [base.score, after.score, seconds]
        values += [one.statistics[name] for name in ("length", "distinct_2") for one in (base, after)]
        print(f"| {seed} | " + " | ".join(f"{value:.3f}" for value in values) + " |", flush=True)
    print(f"mean after: {statistics.mean(afters):.3f}, lowest {min(afters):.3f}")


if __name__ == "__main__":
    main()
