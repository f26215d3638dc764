"""Is the rate that a run finds for itself a good one? Beside multiples of it, and raw slopes with rates by hand.

    python benchmarks/rates.py --model MODEL --sst2 SST2 --output runs/rates

MODEL is a causal model, SST2 a folder with train.jsonl and dev.jsonl (sentence, label). For each objective, what is
tuned and seed: `--steps` steps of 64 rows with the ε and the learning rate that are found; with that rate times
`--times`; and with `normalize=none`, ε as in MeZO, and each of `--rates`. Printed and written down, a line a run:
accuracy, cross-entropy and AUC of dev rows that chose nothing, before and after, and the seconds.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from zoreward import ZOConfig, ZOTrainer
from zoreward.data import load_rows

ANSWERS = {"template": "{sentence} It was", "choices": [" terrible", " great"], "label": "label"}


def main() -> None:
    """Run all, print each, write all down."""
    options = parsed()
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    with (output / "rates.jsonl").open("w", encoding="utf-8") as file:
        for tune in options.tune:
            for objective in options.objectives:
                for seed in range(options.seeds):
                    for run in runs_of(options, tune, objective, seed):
                        print(json.dumps(run), flush=True)
                        print(json.dumps(run), file=file, flush=True)


def parsed() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--sst2", required=True)
    parser.add_argument("--output", default="runs/rates")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--tune", nargs="+", default=["full", "lora"])
    parser.add_argument("--objectives", nargs="+", default=["neg-cross-entropy", "accuracy"])
    parser.add_argument("--times", nargs="*", type=float, default=[1 / 3, 3.0])
    parser.add_argument("--rates", nargs="*", type=float, default=[1e-5, 3e-5, 1e-4])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--dev", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=1)
    return parser.parse_args()


def runs_of(options: argparse.Namespace, tune: str, objective: str, seed: int) -> Any:
    """Yield what each run of a setting comes to, the one that finds its rate first."""
    found = run_of(options, tune, objective, seed, "found")
    yield found
    same = {"eps": found["eps"], "normalize": "running"}
    for times in options.times:
        rate = float(f"{times * found['learning_rate']:.3g}")
        yield run_of(options, tune, objective, seed, f"found x {times:.2g}", learning_rate=rate, **same)
    scale = {"full": 1, "lora": 100}[tune]  # MeZO's for LoRA
    for rate in options.rates:
        yield run_of(options, tune, objective, seed, "raw slopes", learning_rate=rate * scale, normalize="none")


def run_of(
    options: argparse.Namespace, tune: str, objective: str, seed: int, name: str, **values: Any
) -> dict[str, Any]:
    """Tune, and score before and after."""
    args = ZOConfig(
        f"{options.output}/{tune}-{objective}-{seed}-{name.replace(' ', '-')}-{values.get('learning_rate', '')}",
        per_device_train_batch_size=options.rows, max_steps=options.steps, save_strategy="no", disable_tqdm=True,
        logging_strategy="no", tune=tune, dtype=options.dtype, seed=seed, **ANSWERS, **values,
    )  # fmt: skip
    start = time.perf_counter()
    trainer = ZOTrainer(
        options.model, objective=objective, args=args, train_dataset=load_rows(f"{options.sst2}/train.jsonl")
    )
    dev = load_rows(f"{options.sst2}/dev.jsonl", limit=options.dev)
    before = measured(trainer, dev)
    trainer.train()
    result = {
        "run": name, "tune": tune, "objective": objective, "seed": seed, "eps": trainer.method.eps,
        "learning_rate": trainer.args.learning_rate, "silent": trainer.method_state.silent, "before": before,
        "after": measured(trainer, dev), "seconds": round(time.perf_counter() - start, 1),
    }  # fmt: skip
    del trainer
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return result


def measured(trainer: ZOTrainer, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return accuracy, cross-entropy and AUC on rows."""
    predicted = trainer.predict(rows)
    logprobs_NC = np.asarray(predicted.predictions, dtype=np.float64)
    labels_N = np.asarray(predicted.label_ids)
    logprobs_NC -= np.logaddexp.reduce(logprobs_NC, axis=1, keepdims=True)
    values = {
        "accuracy": float((logprobs_NC.argmax(1) == labels_N).mean()),
        "cross_entropy": float(-logprobs_NC[np.arange(len(labels_N)), labels_N].mean()),
        "auc": float(roc_auc_score(labels_N, logprobs_NC[:, 1] - logprobs_NC[:, 0])),
    }
    return {name: round(value, 4) for name, value in values.items()}


if __name__ == "__main__":
    main()
