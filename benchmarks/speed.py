"""How fast tuning is where launches dominate: steps a second on a metric, seconds to a reward.

    python benchmarks/speed.py --model LM --reward-model RM --sst2 SST2 --prompts IMDB_PROMPTS --output runs/speed

Runs `zoreward tune accuracy` on SST-2 (64 rows a step, settings of sst2.py) and counts steps a second from step 100 on,
then `zoreward tune reward-model` (32 members × 32 prompts × 24 tokens) and scores the dev prompts. `--check` exits 0
only if there are at least 100 steps a second, and a dev reward of at least 0.95 after at most 20 seconds of tuning.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import torch
from reward_model import score, tune
from sst2 import PROMPT

FIRST = 100


def steps_a_second(options: argparse.Namespace) -> float:
    """Steps a second of `zoreward tune accuracy` after the first hundred, by the lines of its log."""
    command = [
        *(sys.executable, "-m", "zoreward", "tune", "accuracy", "--model", options.model),
        *("--data", f"{options.sst2}/train.jsonl", "--template", PROMPT["template"]),
        *("--choice", " terrible", "--choice", " great", "--label", "label", "--steps", str(options.steps)),
        *("--batch-size", "64", "--eps", "5e-3", "--lr", "3e-5", "--seed", "1", "--dtype", "float32"),
        *("--output", f"{options.output}/accuracy"),
    ]
    times: dict[int, float] = {}
    log = Path(options.output, "accuracy.log")
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as run, log.open("w", encoding="utf-8") as file:
        assert run.stderr is not None
        for line in run.stderr:
            file.write(line)
            if found := re.match(r"step (\d+)/", line):
                times[int(found[1])] = time.perf_counter()
    if run.returncode:
        sys.exit(f"zoreward tune accuracy failed: see {log}")
    return (options.steps - FIRST) / (times[options.steps] - times[FIRST])


def reward_and_seconds(options: argparse.Namespace) -> tuple[float, float]:
    """The dev reward after `zoreward tune reward-model`, and the seconds of tuning."""
    rest = {"directions": 16, "cores": None, "data": options.prompts}
    settings = argparse.Namespace(**{**vars(options), **rest, "steps": options.reward_steps, "prompts": 32})
    if tune(settings, 1, 0).wait():
        sys.exit(f"zoreward tune reward-model failed: see {options.output}/seed-1.log")
    log = Path(options.output, "seed-1.log").read_text(encoding="utf-8", errors="replace")
    return score(settings, f"{options.output}/seed-1/model").score, json.loads(log.splitlines()[-1])["seconds"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "reward-model", "sst2", "prompts", "output"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--reward-steps", type=int, default=50)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    Path(options.output).mkdir(parents=True, exist_ok=True)
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"{name}, torch {torch.__version__}")
    pace = steps_a_second(options)
    print(f"tune accuracy: {pace:.1f} steps a second from step {FIRST} to {options.steps}", flush=True)
    reward, seconds = reward_and_seconds(options)
    print(f"tune reward-model: dev reward {reward:.3f} after {options.reward_steps} steps, {seconds:.1f} s of tuning")
    if options.check and not (pace >= 100 and reward >= 0.95 and seconds <= 20):
        sys.exit("below the bar: 100 steps a second; a reward of 0.95 in 20 s")


if __name__ == "__main__":
    main()
