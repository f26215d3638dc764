"""SST-2 with a metric itself as the objective: `zoreward tune OBJECTIVE`, several seeds, beside what costs no tuning.

    python benchmarks/sst2.py --model MODEL --data SST2_FOLDER --output runs/sst2 --seeds 1 2 3 --steps 1500
    python benchmarks/sst2.py … --steps 500 --objective "f1 --average macro"

Runs the command of the README once a seed (seeds at the same time with `--at-once`), then prints a table of
docs/results.md: the objective on the dev rows before, at 500, 1,000 and 1,500 steps, the accuracy of the base, that of
the base with one label-free threshold (the median margin of 256 training rows), and the AUC before and after.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from zoreward.config import Prompting
from zoreward.data import load_rows, render
from zoreward.scoring import candidate_logprobs, engine_of, load_model, load_tokenizer

PROMPT = {"template": "{sentence} It was", "choices": [" terrible", " great"], "label": "label"}
MARKS = (0, 500, 1000, 1500)


def tune(options: argparse.Namespace, seed: int, threads: int) -> subprocess.Popen[bytes]:
    """Start the command for one seed."""
    command = [
        *(sys.executable, "-m", "zoreward", "tune", *shlex.split(options.objective), "--model", options.model),
        *("--data", f"{options.data}/train.jsonl", "--eval-data", f"{options.data}/dev.jsonl"),
        *("--template", PROMPT["template"], "--choice", " terrible", "--choice", " great", "--label", "label"),
        *("--keep", "last"),
        *("--steps", str(options.steps), "--batch-size", "64", "--eps", "5e-3", "--lr", "3e-5", "--eval-every", "250"),
        *("--seed", str(seed), "--output", f"{options.output}/seed-{seed}", "--json"),
        *("--dtype", "float32"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with Path(options.output, f"seed-{seed}.log").open("wb") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def margins(model: str, rows: list[dict[str, object]]) -> NDArray[np.float64]:
    """Return log p(great) − log p(terrible) of each row."""
    tokenizer = load_tokenizer(model)
    examples = render(rows, tokenizer, Prompting(**PROMPT), needs="choices")
    logprobs = candidate_logprobs(engine_of(load_model(model, dtype="float32"), tokenizer.pad_token_id), examples)[0]
    return logprobs[:, 1] - logprobs[:, 0]


def main() -> None:
    """Tune, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--objective", default="accuracy", help="with its options: 'f1 --average macro'")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--at-once", action="store_true", help="run the seeds at the same time, threads shared out")
    parser.add_argument("--threads", type=int, help="of each run; by default all cores, shared out")
    parser.add_argument("--table-only", action="store_true", help="the runs are there already")
    options = parser.parse_args()
    Path(options.output).mkdir(parents=True, exist_ok=True)
    if not options.table_only:
        threads = options.threads or max(1, (os.cpu_count() or 1) // (len(options.seeds) if options.at_once else 1))
        running = []
        for seed in options.seeds:
            running.append(tune(options, seed, threads))
            if not options.at_once and running[-1].wait():
                sys.exit(f"seed {seed} failed: see {options.output}/seed-{seed}.log")
        if any([run.wait() for run in running]):
            sys.exit(f"a seed failed: see the logs in {options.output}")

    dev = load_rows(f"{options.data}/dev.jsonl")
    labels = np.array([row["label"] for row in dev])
    before = margins(options.model, dev)
    threshold = np.median(margins(options.model, load_rows(f"{options.data}/train.jsonl")[:256]))
    print(f"base {((before > 0) == labels).mean():.4f}, with one label-free threshold", end=" ")
    print(f"{((before > threshold) == labels).mean():.4f}, AUC {roc_auc_score(labels, before):.4f}")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    print(f"torch {torch.__version__}, {device}")
    marks = [mark for mark in MARKS if mark <= options.steps]
    print(f"objective: {options.objective}")
    print("| seed | " + " | ".join(f"step {mark:,}" for mark in marks) + " | AUC after | silent steps |")
    print("|---" * (len(marks) + 3) + "|")
    table = []
    for seed in options.seeds:
        folder = Path(options.output, f"seed-{seed}")
        records = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
        scores = {r["step"]: r["score"] for r in records if r["kind"] == "evaluation"}
        steps = [r for r in records if r["kind"] == "step"]
        auc = float(roc_auc_score(labels, margins(str(folder / "model"), dev)))
        silent = statistics.mean(not r["terms"] for r in steps)
        table.append([*(scores.get(mark, float("nan")) for mark in marks), auc, silent])
        print(f"| {seed} | " + " | ".join(f"{value:.4f}" for value in table[-1]) + " |")
    print("| mean | " + " | ".join(f"{statistics.mean(column):.4f}" for column in zip(*table, strict=True)) + " |")


if __name__ == "__main__":
    main()
