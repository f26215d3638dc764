"""Preferences as objective: `zoreward tune preference`, three seeds, and the null hypothesis in the same table.

    python benchmarks/preference.py --model imdb-lm-12m --data PREFERENCES --output runs/preference --check

Runs the command once a seed, all at the same time, with settings that were fixed before: 512 rows a step, 16 rank-1
directions, score differences over their rms. Then reads base and tuned models once more and prints, for the dev rows:
the share that gained over the base, with a 95 % interval from 10,000 bootstrap samples of the rows; DPO's margin; the
chosen answers' log-probability per token; KL to the base per token that is written; how far the weights moved. Below
stands the best of as many random moves of the base, of equal length, as one run scored members (benchmarks/null.py).

`--check` exits 0 only if the mean share of the seeds is at least 60 %, the lower bound of that mean over rows is above
50 %, and the mean is above the best random move.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from null import null

from zoreward.config import Prompting
from zoreward.data import load_rows
from zoreward.scoring import (
    candidate_logprobs,
    engine_of,
    examples_of,
    load_model,
    load_tokenizer,
    prepare_tokenizer,
)

SETTINGS = "--noise low-rank --num-directions 16 --normalize rms --eps 1e-2 --lr 1e-3 --batch-size 512".split()
SETTINGS += ["--set", "dataloader_drop_last=true"]  # the last rows of an epoch are too few for a step
MEMBERS = 32
RESULTS = Path(__file__).parent / "results" / "preference.csv"


def tune(options: argparse.Namespace, seed: int) -> subprocess.Popen[bytes]:
    """Start the command for one seed, on a GPU of its own where there are several."""
    command = [
        *(sys.executable, "-m", "zoreward", "tune", "preference", "--model", options.model),
        *("--keep", "last"),
        *("--data", f"{options.data}/train.jsonl", "--eval-data", f"{options.data}/dev.jsonl", "--eval-every", "25"),
        *SETTINGS,
        *("--steps", str(options.steps), "--seed", str(seed), "--dtype", options.dtype, "--drift"),
        *("--max-new-tokens", "24", "--json", "--output", f"{options.output}/seed-{seed}", *options.more),
    ]
    with Path(options.output, f"seed-{seed}.log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | _own_gpu(options, seed))


def _own_gpu(options: argparse.Namespace, seed: int) -> dict[str, str]:
    count = torch.cuda.device_count()
    if count < 2:
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    return {"CUDA_VISIBLE_DEVICES": visible.split(",")[options.seeds.index(seed) % count]}


def summary(options: argparse.Namespace, seed: int) -> dict:
    """Return what the command printed."""
    log = Path(options.output, f"seed-{seed}.log").read_text(encoding="utf-8", errors="replace")
    return dict(json.loads(log.splitlines()[-1]))


def margins_and_chosen(model: str, base: str, rows: list[dict]) -> tuple[np.ndarray, float, float]:
    """Return DPO's margin of each row, and the chosen answers' log-probability per token of model and base."""
    tokenizer = prepare_tokenizer(load_tokenizer(base))
    examples = examples_of(rows, tokenizer, "choices", Prompting(), max_new_tokens=0)
    counts = np.array([[len(tokens) for tokens in example.candidate_tokens] for example in examples])
    found = []
    for name in (model, base):
        loaded = load_model(name, dtype="float32").eval().requires_grad_(False)
        [logprobs] = candidate_logprobs(engine_of(loaded, tokenizer.pad_token_id), examples)
        found.append(logprobs)
    ratios = (found[0] - found[1]) * counts
    return ratios[:, 0] - ratios[:, 1], float(found[0][:, 0].mean()), float(found[1][:, 0].mean())


def interval(values: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of the mean, from 10,000 bootstrap samples."""
    rng = np.random.default_rng(0)
    means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(10_000)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    """Tune, measure, print, check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "data", "output"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--dtype", default="float16" if torch.cuda.is_available() else "float32", help="of the members")
    parser.add_argument("--random", type=int, help="random moves; by default as many as a run scored members")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--csv", default=str(RESULTS))
    parser.add_argument("more", nargs="*", help="options for the command, after --")
    options = parser.parse_args()
    Path(options.output).mkdir(parents=True, exist_ok=True)
    running = [tune(options, seed) for seed in options.seeds]
    if any([run.wait() for run in running]):
        sys.exit(f"a seed failed: see the logs in {options.output}")

    rows = load_rows(f"{options.data}/dev.jsonl")
    lines, shares = [], []
    for seed in options.seeds:
        told = summary(options, seed)
        h, chosen, before = margins_and_chosen(f"{options.output}/seed-{seed}/model", options.model, rows)
        share = np.where(h == 0, 0.5, h > 0)
        low, high = interval(share)
        shares.append(share)
        lines.append(
            {
                "who": f"seed {seed}", "share": share.mean(), "low": low, "high": high, "margin": h.mean(),
                "chosen_logprob": chosen, "base_chosen_logprob": before, "kl": told["kl"], "moved": told["moved"],
                "seconds": told["seconds"],
            }
        )  # fmt: skip
    each_row = np.mean(shares, axis=0)
    low, high = interval(each_row)
    lines.append({"who": "mean", "share": each_row.mean(), "low": low, "high": high})
    for name in ("margin", "chosen_logprob", "base_chosen_logprob", "kl", "moved", "seconds"):
        lines[-1][name] = statistics.mean(line[name] for line in lines[:-1])

    count = options.random or options.steps * MEMBERS
    tuned = f"{options.output}/seed-{options.seeds[0]}/model"
    found = null("preference", options.model, tuned, rows, count=count, rank=1, seed=0, dtype=options.dtype)
    random_shares = sorted(one.metrics["metric/share"] for one in found["scored"])
    best = max(found["scored"], key=lambda one: one.metrics["metric/share"])
    names = ("share", "margin", "chosen_logprob")
    lines.append({"who": f"best of {count} random moves", **{name: best.metrics[f"metric/{name}"] for name in names}})
    lines.append({"who": "their median", "share": statistics.median(random_shares)})

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"{device}, torch {torch.__version__}, {options.steps} steps, {len(rows)} dev rows, ‖Δθ‖ {found['norm']:.3f}")
    columns = list(lines[0])
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for line in lines:
        cells = [line.get(name, "") for name in columns]
        print("| " + " | ".join(f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in cells) + " |")
    Path(options.csv).parent.mkdir(parents=True, exist_ok=True)
    with Path(options.csv).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(lines)
    if options.check and not (each_row.mean() >= 0.6 and low > 0.5 and each_row.mean() > random_shares[-1]):
        sys.exit(
            "below the bar: a mean share of 60 %, a lower bound above 50 %, and every seed above the best random move"
        )


if __name__ == "__main__":
    main()
