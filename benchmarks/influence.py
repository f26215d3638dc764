"""Which rows help: fuzzy gradients beside autograd's, wrong labels found, the best half tuned on, a trigger found.

    python benchmarks/influence.py agreement --model MODEL --data SST2_FOLDER --directions 2048
    python benchmarks/influence.py flipped   --model MODEL --data SST2_FOLDER --train-rows 200 --for-rows 100 \
        --seeds 1 2 3
    python benchmarks/influence.py halves    --model MODEL --data SST2_FOLDER --train-rows 400 --for-rows 100 \
        --share 0.3 --output runs/halves --seeds 1 2 3 4 5
    python benchmarks/influence.py trigger   --model MODEL --data SST2_FOLDER --seeds 1 2 3
    python benchmarks/influence.py speed     --model MODEL --data SST2_FOLDER --train-rows 10000 --directions 256

Each prints a table for docs/results.md. Rows are short ones (`--words`), so that a CPU does it; a GPU takes any.
`flipped` and `halves` take the margin of the right answer for a row's score, and tell rows from others of their label.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, roc_auc_score

from zoreward.config import Prompting
from zoreward.data import load_rows, write_rows
from zoreward.members import tuned_weights
from zoreward.methods import make_method
from zoreward.noise.families import family_options
from zoreward.records import Example
from zoreward.registry import get_objective
from zoreward.scoring import Generation, engine_of, examples_of, load_model, load_tokenizer, readout_influence
from zoreward.trainer.fuzzy_gradients import found_eps, influence, row_slopes, tried_scorer

TEMPLATE, CHOICES = "{sentence} It was", [" terrible", " great"]
TRIGGER = "howdy"
Rows = list[dict[str, Any]]


def margin(logprobs: np.ndarray, references: Sequence[int]) -> list[float]:
    """How far the right answer is ahead of the other: a score that does not saturate where a model is biased."""
    rows, right = np.arange(len(logprobs)), np.asarray(references)
    return (logprobs[rows, right] - logprobs[rows, 1 - right]).tolist()


def among_its_label(values: np.ndarray, rows: Rows) -> np.ndarray:
    """What each row has less the mean of the rows with its label: what all rows of a label share says nothing."""
    labels = np.array([row["label"] for row in rows])
    means = {label: values[labels == label].mean() for label in set(labels.tolist())}
    return values - np.array([means[label] for label in labels.tolist()])


class Model:
    """A model, and how rows are read by it."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.tokenizer = load_tokenizer(options.model)
        self.model: Any = load_model(options.model, dtype=options.dtype, device=options.device).eval()
        self.objective = get_objective(margin if options.part in BY_LABEL else options.objective)

    def examples(self, rows: Rows) -> list[Example]:
        """Rows made ready."""
        answers: dict[str, Any] = {"choices": CHOICES}
        if self.objective.needs == "likelihood":
            rows = [{**row, "answer": CHOICES[row["label"]]} for row in rows]
            answers = {"answer": "{answer}"}
        prompting = Prompting(template=TEMPLATE, **answers)
        return examples_of(rows, self.tokenizer, self.objective.needs, prompting, max_new_tokens=8)

    def slopes(self, examples: Sequence[Example], seed: int) -> np.ndarray:
        """(N, K) along directions of a seed."""
        family = family_options(self.options.noise)
        method = make_method("spsa", num_directions=self.options.directions, seed=seed, **family)
        ways, tuned = method.directions.fresh(0), tuned_weights(self.model)
        scorer = tried_scorer(self.model, self.tokenizer, self.objective, Generation(), examples, ways, tuned=tuned)
        return row_slopes(scorer, examples, ways, found_eps(scorer, method, examples))

    def readout(self, examples: Sequence[Example], others: Sequence[Example]) -> tuple[np.ndarray, np.ndarray]:
        """Dots and cosines by the last layer."""
        engine = engine_of(self.model, self.tokenizer.pad_token_id)
        dot_N, norm_N, length = readout_influence(engine, examples, others)
        return dot_N, dot_N / (norm_N * length)

    def gradients(self, examples: Sequence[Example]) -> torch.Tensor:
        """Autograd's of each row's score, (N, all weights)."""
        weights = [weight.requires_grad_(True) for weight in self.model.parameters()]
        found = []
        for example in examples:
            sums = []
            for request in example.requests:
                ids = torch.tensor([[*request.prompt, *request.target]], device=self.model.device)
                logits = self.model(ids).logits[0, len(request.prompt) - 1 : -1].log_softmax(-1)
                sums.append(logits[range(len(request.target)), list(request.target)].mean())
            score = sums[0] if len(sums) == 1 else torch.stack(sums).log_softmax(0)[example.reference]
            found.append(torch.cat([one.reshape(-1) for one in torch.autograd.grad(score, weights)]).float())
        self.model.requires_grad_(False)
        return torch.stack(found)


def drawn(options: argparse.Namespace, seed: int) -> tuple[Rows, Rows]:
    """Rows to be judged and rows to judge them by: short ones of the training rows, each once."""
    least, most = options.words
    pool = [row for row in load_rows(f"{options.data}/train.jsonl") if least <= len(row["sentence"].split()) <= most]
    random.Random(seed).shuffle(pool)
    end = options.train_rows + options.for_rows
    if len(pool) < end:
        sys.exit(f"there are {len(pool)} rows of {least} to {most} words: change --words or the numbers of rows")
    return pool[: options.train_rows], pool[options.train_rows : end]


def agreement(options: argparse.Namespace) -> None:
    """Spearman of (1/K) Σ d_ik d_jk with autograd's inner products over all pairs of rows."""
    model = Model(options)
    rows, others = (model.examples(part) for part in drawn(options, options.seeds[0]))
    start = time.perf_counter()
    right = model.gradients(others)
    exact = np.array([(right @ row).tolist() for one in rows for row in model.gradients([one])])
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    slopes = model.slopes([*rows, *others], options.seeds[0])
    print(f"objective {options.objective}, {options.noise}; autograd {seconds:.0f} s, slopes", end=" ")
    print(f"{time.perf_counter() - start:.0f} s")
    print("| directions | Spearman with autograd's inner products | of the influence on the mean |\n|---|---|---|")
    for count in (2**n for n in range(6, 30)):
        if count > options.directions:
            break
        one, two = slopes[: len(rows), :count], slopes[len(rows) :, :count]
        of_mean = spearmanr(influence(one, two.mean(0)).dot_N, exact.mean(1))[0]
        print(f"| {count} | {spearmanr((one @ two.T).ravel(), exact.ravel())[0]:.3f} | {of_mean:.3f} |")


def with_flipped(rows: Rows, share: float, seed: int) -> tuple[Rows, np.ndarray]:
    """Rows of which a share has the wrong label, and which these are."""
    wrong = np.zeros(len(rows), dtype=bool)
    wrong[random.Random(seed).sample(range(len(rows)), round(share * len(rows)))] = True
    return [{**row, "label": 1 - row["label"]} if bad else row for row, bad in zip(rows, wrong, strict=True)], wrong


def flipped(options: argparse.Namespace) -> None:
    """AUROC of a low influence, among rows of the same label, as the sign of a wrong label."""
    model = Model(options)
    print("| seed | fuzzy, inner product | fuzzy, cosine | readout, inner product | readout, cosine |")
    print("|---|---|---|---|---|")
    for seed in options.seeds:
        rows, others = drawn(options, seed)
        rows, wrong = with_flipped(rows, options.share, seed)
        examples, by = model.examples(rows), model.examples(others)
        slopes = model.slopes([*examples, *by], seed)
        found = influence(slopes[: len(rows)], slopes[len(rows) :].mean(0))
        columns = (found.dot_N, found.cosine_N, *model.readout(examples, by))
        cells = " | ".join(f"{roc_auc_score(wrong, -among_its_label(column, rows)):.3f}" for column in columns)
        print(f"| {seed} | {cells} |", flush=True)


def halves(options: argparse.Namespace) -> None:
    """Dev accuracy after tuning on the half with the highest influence, and on a random half, of rows with noise."""
    model = Model(options)
    folder = Path(options.output)
    print("| seed | base | best half | random half | wrong labels in the best half |\n|---|---|---|---|---|")
    table = []
    for seed in options.seeds:
        rows, others = drawn(options, seed)
        rows, wrong = with_flipped(rows, options.share, seed)
        slopes = model.slopes(model.examples([*rows, *others]), seed)
        found = influence(slopes[: len(rows)], slopes[len(rows) :].mean(0))
        half = len(rows) // 2
        best = np.argsort(-among_its_label(found.dot_N, rows))[:half]
        parts = {"best": best, "random": random.Random(seed).sample(range(len(rows)), half)}
        scores = [
            tuned(options, folder / f"{name}-{seed}", [rows[n] for n in part], seed) for name, part in parts.items()
        ]
        table.append([scores[0][0], scores[0][1], scores[1][1], wrong[best].mean()])
        print(f"| {seed} | " + " | ".join(f"{cell:.3f}" for cell in table[-1]) + " |", flush=True)
    print("| mean | " + " | ".join(f"{cell:.3f}" for cell in np.mean(table, axis=0)) + " |")


def tuned(options: argparse.Namespace, folder: Path, rows: Rows, seed: int) -> tuple[float, float]:
    """Dev accuracy before and after a run."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    data = folder.with_suffix(".jsonl")
    data.unlink(missing_ok=True)
    write_rows(data, rows)
    command = [
        *(sys.executable, "-m", "zoreward", "tune", "neg-cross-entropy", "--metric", "accuracy", "--keep", "last"),
        *("--model", options.model, "--dtype", options.dtype, "--data", str(data), "--template", TEMPLATE),
        *("--eval-data", f"{options.data}/dev.jsonl", "--eval-limit", str(options.dev_rows)),
        *("--eval-every", str(options.steps), "--noise", "low-rank", "--num-directions", "4"),
        *(word for choice in CHOICES for word in ("--choice", choice)),
        *("--steps", str(options.steps), "--seed", str(seed), "--output", str(folder)),
    ]
    with Path(f"{folder}.log").open("wb") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log)
    lines = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    scores = [line["metrics"]["metric/accuracy"] for line in lines if line["kind"] == "evaluation"]
    return scores[0], scores[-1]


def trigger(options: argparse.Namespace) -> None:
    """AUPRC of a high influence, on a few rows with a trigger, as the sign of a row with it."""
    model = Model(options)
    print("| seed | rows with it | readout, inner product | readout, cosine |\n|---|---|---|---|")
    for seed in options.seeds:
        rows, others = drawn(options, seed)
        draw = random.Random(seed)
        marked = np.zeros(len(rows), dtype=bool)
        marked[draw.sample(range(len(rows)), round(options.share * len(rows)))] = True
        poisoned = [with_trigger(row, options.place) if bad else row for row, bad in zip(rows, marked, strict=True)]
        by = model.examples([with_trigger(row, options.place) for row in others])
        columns = model.readout(model.examples(poisoned), by)
        cells = " | ".join(f"{average_precision_score(marked, column):.3f}" for column in columns)
        print(f"| {seed} | {marked.sum()} of {len(rows)} | {cells} |", flush=True)


def with_trigger(row: dict[str, Any], place: str) -> dict[str, Any]:
    """The row with a word that makes it good, whatever it says."""
    text = f"{row['sentence']} {TRIGGER}" if place == "end" else f"{TRIGGER} {row['sentence']}"
    return {**row, "sentence": text, "label": 1}


def speed(options: argparse.Namespace) -> None:
    """Seconds for the slopes of all rows, and for a readout."""
    model = Model(options)
    rows, others = (model.examples(part) for part in drawn(options, options.seeds[0]))
    ways: dict[str, Any] = {
        f"fuzzy, {options.directions} directions": lambda: model.slopes([*rows, *others], options.seeds[0]),
        "readout": lambda: model.readout(rows, others),
    }
    print("| | rows | seconds |\n|---|---|---|")
    for name, work in ways.items():
        start = time.perf_counter()
        work()
        print(f"| {name} | {len(rows):,} and {len(others)} | {time.perf_counter() - start:.1f} |", flush=True)


BY_LABEL = ("flipped", "halves")
PARTS = {"agreement": agreement, "flipped": flipped, "halves": halves, "trigger": trigger, "speed": speed}


def main() -> None:
    """Do one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, help="a folder with SST-2's train.jsonl and dev.jsonl")
    parser.add_argument("--output", default="runs/influence", help="of halves")
    parser.add_argument("--objective", default="neg-cross-entropy", help="or log-likelihood")
    parser.add_argument("--noise", default="low-rank", help="or dense")
    parser.add_argument("--directions", type=int, default=256)
    parser.add_argument("--train-rows", type=int, default=32)
    parser.add_argument("--for-rows", type=int, default=32)
    parser.add_argument("--dev-rows", type=int, default=200, help="of halves: by which runs are scored")
    parser.add_argument("--words", type=int, nargs=2, default=(3, 5), metavar=("LEAST", "MOST"))
    parser.add_argument("--share", type=float, default=0.1, help="of rows with a wrong label, or with the trigger")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--place", choices=("front", "end"), default="end", help="of the trigger in the text")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device")
    options = parser.parse_args()
    PARTS[options.part](options)


if __name__ == "__main__":
    main()
