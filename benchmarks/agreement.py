"""MeZO agrees with a plain loop: SST-2, the same seeds and batches, test accuracy side by side.

    python benchmarks/agreement.py --model MODEL --data SST2_FOLDER --output runs/agreement --jobs 8 --check

The plain loop is MeZO as published, and shares nothing with zoreward but the order of rows: float32 weights are moved
in place by +ε, −2ε and +ε along noise of `torch.normal`, which is drawn anew each time; prompts are tokenised here, and
the loss is the cross-entropy over the two answers. Ours is `ZOTrainer` on `neg-cross-entropy`, at its defaults.

Two ways with other noise are two samples of one method, so seeds are compared in pairs and by their mean: `--check`
exits 0 only if the 95 % interval of the mean difference (Student's t) lies within ±2 points of accuracy. Accuracy is
that on dev.jsonl, which nothing was chosen by, and on the training rows that were held out. What is done stands in
`runs.jsonl` of the output folder and is not done again. Writes benchmarks/results/agreement.csv.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from measure import RESULTS, commit, machine, reach
from runs import do_runs, results_in

ANSWERS = (" terrible", " great")
TEMPLATE = "{sentence} It was"
WAYS = ("zoreward", "plain")
BAR = 0.02

Row = dict[str, Any]


def split(options: argparse.Namespace) -> tuple[list[Row], list[Row]]:
    """Return the rows to tune on, out of train.jsonl, and all others."""
    parts = [Path(options.data, f"{name}.jsonl").read_text(encoding="utf-8") for name in ("train", "dev")]
    train, dev = ([json.loads(line) for line in text.splitlines()] for text in parts)
    random.Random(0).shuffle(train)
    return train[: options.train_rows], dev + train[options.train_rows : options.train_rows + options.held_out]


class Plain:
    """A language model and two answers, read with nothing of zoreward's.

    Args:
        name: the model.
        device: where.
    """

    def __init__(self, name: str, device: torch.device):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.device = device
        self.tokenizer = AutoTokenizer.from_pretrained(name)
        self.model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).to(device).eval()
        answers = [self.tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in ANSWERS]
        if any(len(tokens) != 1 for tokens in answers):
            sys.exit(f"{ANSWERS} are more than a token each for this model")
        self.answers = [tokens[0] for tokens in answers]

    def prompts(self, rows: list[Row]) -> list[list[int]]:
        """The tokens of each row's prompt."""
        texts = [TEMPLATE.format(**row) for row in rows]
        return [self.tokenizer(text)["input_ids"] for text in texts]

    @torch.no_grad()
    def logits(self, prompts: list[list[int]]) -> torch.Tensor:
        """(rows, 2): the logits of both answers behind each prompt, padded on the left."""
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(tokens)) + tokens for tokens in prompts], device=self.device)
        mask = torch.tensor([[0] * (longest - len(tokens)) + [1] * len(tokens) for tokens in prompts])
        mask = mask.to(self.device)
        places = (mask.cumsum(1) - 1).clamp(min=0)
        output = self.model(input_ids=ids, attention_mask=mask, position_ids=places, logits_to_keep=1, use_cache=False)
        return output.logits[:, -1, self.answers]

    def accuracy(self, rows: list[Row]) -> float:
        """The share of rows whose right answer has the higher logit."""
        prompts = self.prompts(rows)
        order = sorted(range(len(rows)), key=lambda n: len(prompts[n]))
        right = 0
        for first in range(0, len(order), 128):
            some = order[first : first + 128]
            found = self.logits([prompts[n] for n in some]).argmax(1).tolist()
            right += sum(answer == rows[n]["label"] for answer, n in zip(found, some, strict=True))
        return right / len(rows)


def plain(options: argparse.Namespace, seed: int, device: torch.device) -> tuple[float, float]:
    """Tune by the plain loop; returns the accuracy on the rows that are held out, and the seconds of tuning."""
    train, others = split(options)
    reader = Plain(options.model, device)
    prompts = reader.prompts(train)
    weights = list(reader.model.parameters())

    def move(step: int, scale: float) -> None:
        generator = torch.Generator(device).manual_seed(seed * 1_000_003 + step)
        for weight in weights:
            z = torch.normal(0.0, 1.0, weight.shape, generator=generator, device=device)
            weight.data.add_(z, alpha=scale)

    def loss(rows: list[int]) -> float:
        labels = torch.tensor([train[n]["label"] for n in rows], device=device)
        return float(torch.nn.functional.cross_entropy(reader.logits([prompts[n] for n in rows]), labels))

    start = time.perf_counter()
    step, epoch = 0, 0
    while step < options.steps:
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed + epoch)).tolist()
        for first in range(0, len(order), options.batch_size)[: options.steps - step]:
            rows = order[first : first + options.batch_size]
            move(step, options.eps)
            above = loss(rows)
            move(step, -2 * options.eps)
            below = loss(rows)
            move(step, options.eps)
            move(step, -options.lr * (above - below) / (2 * options.eps))
            step += 1
        epoch += 1
    seconds = time.perf_counter() - start
    return reader.accuracy(others), seconds


def ours(options: argparse.Namespace, seed: int, device: torch.device) -> tuple[float, float]:
    """Tune with `ZOTrainer`; returns the same, the accuracy by the plain reader."""
    from zoreward.trainer import ZOConfig, ZOTrainer

    train, others = split(options)
    folder = Path(options.output, f"run-{seed}")
    shutil.rmtree(folder, ignore_errors=True)
    args = ZOConfig(
        str(folder),
        max_steps=options.steps,
        seed=seed,
        eps=options.eps,
        learning_rate=options.lr,
        per_device_train_batch_size=options.batch_size,
        template=TEMPLATE,
        choices=list(ANSWERS),
        dtype="float32",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=device.type == "cpu",
    )
    trainer = ZOTrainer(options.model, objective="neg-cross-entropy", args=args, train_dataset=train)
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    reader = Plain(options.model, device)
    reader.model.load_state_dict(trainer.model.state_dict())
    shutil.rmtree(folder, ignore_errors=True)
    return reader.accuracy(others), seconds


def run(options: argparse.Namespace, way: str, seed: int) -> list[dict[str, Any]]:
    """Do one run, or score the model as it is."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // options.jobs))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = False
    if way == "before":
        found = Plain(options.model, device).accuracy(split(options)[1]), 0.0
    else:
        found = (plain if way == "plain" else ours)(options, seed, device)
    return [{"way": way, "seed": seed, "accuracy": found[0], "seconds": round(found[1], 1)}]


def do_all(options: argparse.Namespace) -> dict[tuple[str, int], dict[str, Any]]:
    """Do the runs that are not done yet, side by side; returns all by way and seed."""
    path, names = Path(options.output, "runs.jsonl"), ("way", "seed")
    found = results_in(path, *names)
    wanted = [("before", 0), *((way, seed) for seed in options.seeds for way in reversed(WAYS))]
    missing = [(options, *one) for one in wanted if one not in found]
    for one in do_runs(path, run, missing, options.jobs):
        print(one, file=sys.stderr, flush=True)
    return results_in(path, *names)


def main() -> None:
    """Tune both ways, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, help="a folder with train.jsonl and dev.jsonl of SST-2")
    parser.add_argument("--output", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(1, 9)))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--eps", type=float, default=1e-3)
    parser.add_argument("--lr", type=float, default=3e-5)
    parser.add_argument("--train-rows", type=int, default=2000)
    parser.add_argument("--held-out", type=int, default=4920, help="training rows that are only scored")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--commit", default=commit())
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    Path(options.output).mkdir(parents=True, exist_ok=True)
    found = do_all(options)
    rows = len(split(options)[1])
    device = machine(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    print(f"{device}, torch {torch.__version__}, float32; {options.steps} steps of {options.batch_size} rows")
    print(f"accuracy on {rows:,} rows; before: {found['before', 0]['accuracy']:.4f}")
    print("| seed | zoreward | plain loop | difference | seconds | plain |\n|---|---|---|---|---|---|")
    pairs = [[found[way, seed] for way in WAYS] for seed in options.seeds]
    for seed, (own, other) in zip(options.seeds, pairs, strict=True):
        scores = own["accuracy"], other["accuracy"]
        print(f"| {seed} | {scores[0]:.4f} | {scores[1]:.4f} | {scores[0] - scores[1]:+.4f} ", end="")
        print(f"| {own['seconds']:.0f} | {other['seconds']:.0f} |")
    means = [statistics.mean(pair[way]["accuracy"] for pair in pairs) for way in (0, 1)]
    differences = [own["accuracy"] - other["accuracy"] for own, other in pairs]
    mean, half = statistics.mean(differences), reach(differences)
    low, high = mean - half, mean + half
    held = low >= -BAR and high <= BAR
    print(f"| mean | {means[0]:.4f} | {means[1]:.4f} | {mean:+.4f} | | |")
    print(f"95 % interval of the difference: {low:+.4f} to {high:+.4f}; bar ±{BAR:.2f}: {'held' if held else 'MISSED'}")
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / "agreement.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["device", "commit", "steps", "rows", "seed", "way", "accuracy", "seconds"])
        for one in (one for pair in pairs for one in pair):
            key = [device, options.commit, options.steps, rows]
            writer.writerow([*key, one["seed"], one["way"], f"{one['accuracy']:.5f}", one["seconds"]])
    if options.check and not held:
        sys.exit("missed: the 95 % interval leaves ±2 points")


if __name__ == "__main__":
    main()
