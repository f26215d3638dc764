"""LoRA and a prefix on SST-2, and LoRA on a reward model: `zoreward tune`, several seeds.

    python benchmarks/adapters.py --model LM --sst2 SST2 --reward-model RM --prompts IMDB_PROMPTS --output runs --check
    python benchmarks/adapters.py … --only lora --seeds 1 --steps 300 --lr 3e-4 1e-3 3e-3    # look for a learning rate

Runs the command once for each task, learning rate and seed, all of a task at the same time, then scores the saved
adapters anew, from their folders. `--check` exits 0 only if the means over the seeds reach 0.77 on SST-2's dev rows
with LoRA and with a prefix, and 0.85 (mean sigmoid reward on the dev prompts) with LoRA on the reward model.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Task:
    """What is tuned on what, and what it must reach.

    Args:
        words: of the command.
        steps: by default.
        lr: by default.
        bar: of the mean over the seeds.
    """

    words: tuple[str, ...]
    steps: int
    lr: float
    bar: float


SST2 = ("neg-cross-entropy", "--template", "{sentence} It was", "--choice", " terrible", "--choice", " great")
TASKS = {
    "lora": Task((*SST2, "--tune", "lora", "--batch-size", "64", "--eps", "1e-2"), 1500, 1e-3, 0.77),
    "prefix": Task(
        (*SST2, "--tune", "prefix", "--batch-size", "64", "--eps", "3e-1", "--lr-scheduler-type", "linear"),
        6000,
        2e-1,
        0.77,
    ),
    "reward": Task(
        (
            *("reward-model", "--tune", "lora", "--num-directions", "8", "--batch-size", "16"),
            *("--max-new-tokens", "24", "--eps", "5e-2"),
        ),
        100,
        2e-2,
        0.85,
    ),
}


def words_of(options: argparse.Namespace, name: str) -> list[str]:
    """Return the task's words that depend on where things are."""
    if name == "reward":
        return ["--reward-model", options.reward_model, "--activation", "sigmoid"]
    return ["--label", "label"]


def data_of(options: argparse.Namespace, name: str) -> str:
    """Return the folder of the task's rows."""
    return str(options.prompts if name == "reward" else options.sst2)


def log_of(folder: Path) -> Path:
    """Return the file beside a run's folder that has what its command says."""
    return folder.with_name(f"{folder.name}.log")


def tune(options: argparse.Namespace, name: str, lr: float, seed: int, threads: int) -> subprocess.Popen[bytes]:
    """Start the command for one seed."""
    task, folder = TASKS[name], Path(options.output, f"{name}-{lr:g}-{seed}")
    objective, *rest = task.words
    command = [
        *(sys.executable, "-m", "zoreward", "tune", objective, *rest, *words_of(options, name)),
        *("--model", options.model, "--data", f"{data_of(options, name)}/train.jsonl", "--dtype", "float32", "--json"),
        *("--steps", str(options.steps or task.steps), "--lr", str(lr), "--seed", str(seed), "--output", str(folder)),
        *shlex.split(options.more),
    ]
    with log_of(folder).open("wb") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)


def score(options: argparse.Namespace, name: str, model: str) -> float:
    """Score a saved adapter, or the base, on the dev rows: accuracy, or the mean reward."""
    from zoreward import evaluate
    from zoreward.data import load_rows
    from zoreward.scoring import Generation

    rows = load_rows(f"{data_of(options, name)}/dev.jsonl")
    if name == "reward":
        reward = {"reward_model": options.reward_model, "activation": "sigmoid"}
        generation = Generation(max_new_tokens=24)
        found = evaluate(model, "reward-model", rows, dtype="float32", generation=generation, options=reward)
        return found.score
    prompt = {"template": "{sentence} It was", "choices": [" terrible", " great"]}
    return evaluate(model, "accuracy", rows, dtype="float32", **prompt).score


def main() -> None:
    """Tune, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "sst2", "output"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--reward-model")
    parser.add_argument("--prompts")
    parser.add_argument("--only", choices=TASKS, nargs="+", default=list(TASKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int)
    parser.add_argument("--lr", type=float, nargs="+", help="by default the task's own")
    parser.add_argument("--more", default="", help="words for every command: '--eps 3e-2'")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    Path(options.output).mkdir(parents=True, exist_ok=True)
    low = []
    for name in options.only:
        task = TASKS[name]
        runs = [(lr, seed) for lr in options.lr or [task.lr] for seed in options.seeds]
        threads = max(1, (os.cpu_count() or 1) // len(runs))
        running = [tune(options, name, lr, seed, threads) for lr, seed in runs]
        if any([run.wait() for run in running]):
            sys.exit(f"a run of {name} failed: see the logs in {options.output}")
        print(f"{name}: {options.steps or task.steps} steps of {' '.join(task.words)}")
        print(f"base {score(options, name, options.model):.4f}", flush=True)
        for lr in dict.fromkeys(lr for lr, _ in runs):
            folders = [Path(options.output, f"{name}-{lr:g}-{seed}") for seed in options.seeds]
            scores = [score(options, name, str(folder / "model")) for folder in folders]
            logs = [log_of(folder).read_text(encoding="utf-8", errors="replace") for folder in folders]
            seconds = [json.loads(log.splitlines()[-1])["seconds"] for log in logs]
            mean = statistics.mean(scores)
            each = ", ".join(f"{one:.4f}" for one in scores)
            print(f"lr {lr:g}: {each}; mean {mean:.4f}; {min(seconds):.0f} to {max(seconds):.0f} s", flush=True)
            if mean < task.bar:
                low.append(f"{name} at lr {lr:g}: {mean:.4f} < {task.bar}")
    if options.check and low:
        sys.exit("below the bar: " + "; ".join(low))


if __name__ == "__main__":
    main()
