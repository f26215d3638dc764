"""A reward against the drift that it costs: the reward-model run with four weights of the KL penalty, and a plot.

    python benchmarks/drift.py --model LM --reward-model RM --data IMDB_PROMPTS --output runs/drift --check

Runs `zoreward tune reward-model` once for each `--kl`, all at the same time, on the weights of the attention alone: the
same reward then costs less variety than with all weights (docs/results.md). Scores the dev prompts every ten steps:
mean sigmoid reward, KL to the base per written token, ‖Δθ‖/‖θ‖, distinct-2 of the texts against the base's.
Writes benchmarks/results/drift.csv and drift.png. `--check` exits 0 only if a run with a penalty ends with a reward of
at least 0.90 and a distinct-2 of at least 75 % of the base's.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

COLUMNS = ("kl_penalty", "step", "reward", "kl", "moved", "length", "distinct_2", "distinct_2_of_base", "seconds")
SETTINGS = ("--tune", "self_attn", "--lr", "1e-3")  # a third of the usual rate walks less at random
RESULTS = Path(__file__).parent / "results"


def tune(options: argparse.Namespace, weight: float) -> subprocess.Popen[bytes]:
    """Start the command for one weight of the penalty."""
    command = [
        *(sys.executable, "-m", "zoreward", "tune", "reward-model", "--model", options.model),
        *("--reward-model", options.reward_model, "--activation", "sigmoid", "--data", f"{options.data}/train.jsonl"),
        *("--keep", "last"),
        *("--eval-data", f"{options.data}/dev.jsonl", "--eval-every", "10", "--batch-size", str(options.prompts)),
        *("--max-new-tokens", "24", "--steps", str(options.steps), "--num-directions", str(options.directions)),
        *("--completions-every", "0", "--seed", str(options.seed), "--output", f"{options.output}/kl-{weight:g}"),
        *("--dtype", "float32", "--json", "--drift", "--kl", str(weight), *SETTINGS, *options.more),
    ]
    with Path(options.output, f"kl-{weight:g}.log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


def curve(options: argparse.Namespace, weight: float) -> list[dict[str, Any]]:
    """Return what a run's dev rows were worth, step by step."""
    log = Path(options.output, f"kl-{weight:g}.log").read_text(encoding="utf-8", errors="replace").splitlines()
    lines = []
    for line in log:
        # step 20 · dev score 0.8120 · best 0.8120 · length 23.6 · distinct-2 0.51 · kl 0.12 · moved 0.004
        if " · dev score " in line:
            words = dict(part.rsplit(" ", 1) for part in line.split(" · "))
            lines.append({"kl_penalty": weight, "step": int(words["step"]), "reward": float(words["dev score"])})
            lines[-1] |= {name: float(words[name.replace("_", "-")]) for name in COLUMNS[3:7]}
    for line in lines:
        line["distinct_2_of_base"] = line["distinct_2"] / lines[0]["distinct_2"]
        line["seconds"] = json.loads(log[-1])["seconds"]
    return lines


def plot(lines: list[dict[str, Any]], path: Path) -> None:
    """Draw reward and distinct-2 against KL."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    for weight in dict.fromkeys(line["kl_penalty"] for line in lines):
        own = [line for line in lines if line["kl_penalty"] == weight]
        left.plot([line["kl"] for line in own], [line["reward"] for line in own], marker="o", label=f"--kl {weight:g}")
        right.plot([line["kl"] for line in own], [line["distinct_2_of_base"] for line in own], marker="o")
    left.axhline(0.9, color="grey", linewidth=0.8, linestyle=":")
    right.axhline(0.75, color="grey", linewidth=0.8, linestyle=":")
    for axes, name in ((left, "mean reward of the dev prompts"), (right, "distinct-2, share of the base's")):
        axes.set(xlabel="KL to the base, nats per written token", ylabel=name)
    left.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Tune, write the curves, print where they end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "reward-model", "data", "output"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--kl", type=float, nargs="+", default=[0.0, 0.1, 0.3, 1.0])
    parser.add_argument("--steps", type=int, default=130)
    parser.add_argument("--directions", type=int, default=16, help="a step; each is two members")
    parser.add_argument("--prompts", type=int, default=32, help="a step")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("more", nargs="*", help="options for the command, after --")
    options = parser.parse_args()
    Path(options.output).mkdir(parents=True, exist_ok=True)
    running = [tune(options, weight) for weight in options.kl]
    if any([run.wait() for run in running]):
        sys.exit(f"a run failed: see the logs in {options.output}")
    curves = {weight: curve(options, weight) for weight in options.kl}
    lines = [line for own in curves.values() for line in own]
    options.results.mkdir(parents=True, exist_ok=True)
    with (options.results / "drift.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(lines)
    print(f"{options.steps} steps, {2 * options.directions} members × {options.prompts} prompts × 24 tokens")
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    for own in curves.values():
        for line in own if options.check else own[-1:]:
            print("| " + " | ".join(f"{line[name]:.4g}" for name in COLUMNS) + " |")
    sys.stdout.flush()
    plot(lines, options.results / "drift.png")
    held = [own[-1] for weight, own in curves.items() if weight > 0]
    if options.check and not any(line["reward"] >= 0.9 and line["distinct_2_of_base"] >= 0.75 for line in held):
        sys.exit("below the bar: a reward of 0.90 with 75 % of the base's distinct-2, with a penalty")


if __name__ == "__main__":
    main()
