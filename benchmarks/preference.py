"""Preferences as objective: `zoreward tune preference`, three seeds, and the null hypothesis in the same table.

    python benchmarks/preference.py --model imdb-lm-12m --data PREFERENCES --output runs/preference --check

Runs the command once a seed, all at the same time, with settings that were fixed before: 512 rows a step, 16 rank-1
directions, score differences over their rms. Then reads base and tuned models once more and prints, for the dev rows:
the share that gained over the base, with a 95 % interval from 10,000 bootstrap samples of the rows; DPO's margin; the
chosen answers' log-probability per token; KL to the base per token that is written; how far the weights moved. Below
stands the best of as many random moves of the base, of equal length, as one run scored members (benchmarks/null.py).

`--check` exits 0 only if the mean share of the seeds is at least 60 %, the lower bound of that mean over rows is above
50 %, and the mean is above the best random move.

    python benchmarks/preference.py --via reward --model imdb-lm-12m --data PREFERENCES --output runs/via-reward \
        --judge imdb-rm-8m --prompts IMDB_PROMPTS/dev.jsonl --steps 40

With `--via reward` no setting is given but the number of steps, and what counts is what the models write behind prompts
that nobody saw: how often a judge, which labelled the pairs and chooses nothing, prefers it to the base's, greedy and
sampled, ties ½, and the KL of the samples. `--check` then asks for 80 % greedy and 68 % sampled at 0.10 nats a token.
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

from zoreward import get_objective
from zoreward.config import Prompting
from zoreward.data import load_rows
from zoreward.records import Writing
from zoreward.scoring import (
    Base,
    Generation,
    candidate_logprobs,
    engine_of,
    examples_of,
    kl_to_base,
    load_model,
    load_tokenizer,
    prepare_tokenizer,
    repeated_4,
    scorer_of,
)

SETTINGS = "--noise low-rank --num-directions 16 --normalize rms --eps 1e-2 --lr 1e-3 --batch-size 512".split()
SETTINGS += ["--set", "dataloader_drop_last=true"]  # the last rows of an epoch are too few for a step
MEMBERS = 32
NEW_TOKENS = 24
# How often samples are drawn for each prompt, of the model and of the base: one draw is ± 3 % of wins.
SAMPLES = 4
# Of what `--via reward` must show: win rates greedy and sampled, and the KL of samples.
GREEDY, SAMPLED, KL = 0.80, 0.68, 0.10
RESULTS = Path(__file__).parent / "results" / "preference.csv"


def tune(options: argparse.Namespace, seed: int) -> subprocess.Popen[bytes]:
    """Start the command for one seed, on a GPU of its own where there are several."""
    command = [
        *(sys.executable, "-m", "zoreward", "tune", "preference", "--model", options.model),
        *("--data", f"{options.data}/train.jsonl", "--eval-data", f"{options.data}/dev.jsonl"),
        *("--eval-every", str(options.eval_every)),
        *(["--via", "reward"] if options.via == "reward" else [*SETTINGS, "--keep", "last", "--drift"]),
        *("--steps", str(options.steps), "--seed", str(seed), "--dtype", options.dtype),
        *("--max-new-tokens", str(NEW_TOKENS), "--json", "--output", f"{options.output}/seed-{seed}", *options.more),
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


def judged(options: argparse.Namespace, model: str) -> dict[str, float]:
    """Return how often the judge prefers what a model writes to what the base writes, and the KL of its samples."""
    tokenizer = prepare_tokenizer(load_tokenizer(options.model))
    rows = load_rows(options.prompts, limit=256)
    examples = examples_of(rows, tokenizer, "completions", Prompting(), max_new_tokens=NEW_TOKENS)
    reward = get_objective("reward-model", reward_model=options.judge)
    nets = [load_model(name, dtype="float32").eval().requires_grad_(False) for name in (model, options.model)]
    reader, found = engine_of(nets[0], tokenizer.pad_token_id), dict[str, float]()
    prompts = [example.prompt_tokens for example in examples]
    for name, temperature, times in (("greedy", 0.0, 1), ("sampled", 1.0, SAMPLES)):
        wins, texts, kls = [], [], []
        for time in range(times):
            # Numbers of their own: with common ones the two would write alike.
            hows = [Generation(NEW_TOKENS, temperature=temperature, seed=2 * time + own) for own in (0, 1)]
            own, base = (
                scorer_of(net, tokenizer, reward, how).score(examples, seed=how.seed)[0]
                for net, how in zip(nets, hows, strict=True)
            )
            assert isinstance(own, Writing) and isinstance(base, Writing)
            ahead = np.subtract(own.rewards["reward-model"], base.rewards["reward-model"])
            wins.append(np.where(ahead == 0, 0.5, ahead > 0))
            texts.append([completion.tokens for completion in own.completions])
            kls += kl_to_base(reader, Base(nets[1], adapter=False), prompts, texts[-1:])
        low, high = interval(np.mean(wins, axis=0))
        values = {"win": np.mean(wins), "low": low, "high": high, "kl": np.mean(kls)}
        values["repeated_4"] = repeated_4([tokens for some in texts for tokens in some])
        found |= {f"{name}_{key}": float(value) for key, value in values.items()}
    return found


def via_reward(options: argparse.Namespace) -> None:
    """Print what the judge says of each seed's model, and check it."""
    lines = []
    for seed in options.seeds:
        told = summary(options, seed)
        line = {"who": f"seed {seed}", **judged(options, f"{options.output}/seed-{seed}/model")}
        lines.append(line | {"step": told["kept"], "seconds": told["seconds"]})
    names = [name for name in lines[0] if name != "who"]
    lines.append({"who": "mean", **{name: statistics.mean(line[name] for line in lines) for name in names}})
    told, mean = "torch " + torch.__version__, lines[-1]
    write_table(options, f"{told}, {options.steps} steps, {' '.join(options.more)}", lines)
    if options.check and not (
        mean["greedy_win"] >= GREEDY and mean["sampled_win"] >= SAMPLED and mean["sampled_kl"] <= KL
    ):
        sys.exit(f"below the bar: {GREEDY:.0%} greedy and {SAMPLED:.0%} sampled at a KL of {KL} a token")


def write_table(options: argparse.Namespace, title: str, lines: list[dict]) -> None:
    """Print a table, and write it down."""
    print(title)
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
    parser.add_argument("--csv", help="by default in benchmarks/results")
    parser.add_argument("--via", choices=("margin", "reward"), default="margin")
    parser.add_argument("--judge", help="a reward model, for --via reward")
    parser.add_argument("--prompts", help="rows with prompts, for --via reward")
    parser.add_argument("--eval-every", type=int, help="by default 25; for --via reward a tenth of the steps")
    parser.add_argument("more", nargs="*", help="options for the command, after --")
    options = parser.parse_args()
    options.csv = options.csv or str(
        RESULTS.with_stem("preference" if options.via == "margin" else "preference-reward")
    )
    options.eval_every = options.eval_every or (25 if options.via == "margin" else max(1, options.steps // 10))
    if options.via == "reward" and not (options.judge and options.prompts):
        parser.error("--via reward asks for --judge and --prompts")
    Path(options.output).mkdir(parents=True, exist_ok=True)
    running = [tune(options, seed) for seed in options.seeds]
    if any([run.wait() for run in running]):
        sys.exit(f"a seed failed: see the logs in {options.output}")
    if options.via == "reward":
        return via_reward(options)

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
    title = (
        f"{device}, torch {torch.__version__}, {options.steps} steps, {len(rows)} dev rows, ‖Δθ‖ {found['norm']:.3f}"
    )
    write_table(options, title, lines)
    if options.check and not (each_row.mean() >= 0.6 and low > 0.5 and each_row.mean() > random_shares[-1]):
        sys.exit(
            "below the bar: a mean share of 60 %, a lower bound above 50 %, and every seed above the best random move"
        )


if __name__ == "__main__":
    main()
