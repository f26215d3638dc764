"""Does a run that is given no number learn as much as one with the best ε and rate of a search by hand?

    python benchmarks/rates.py --model MODEL --sst2 SST2 --output runs/rates

MODEL is a causal model, SST2 a folder with train.jsonl and dev.jsonl (sentence, label). For each objective and what is
tuned: nine pairs of (ε, learning rate) with raw slopes, as published, and more of them until the best one is not at the
edge; one seed; chosen on the first `--choosing` dev rows by what is tuned on. Then that pair and the default (ε and the
rate are found before step 1), each with `--seeds` other seeds, on the dev rows that chose nothing. All runs keep the
step that is best on the choosing rows, as `zoreward tune` does where it is given dev rows. Each setting has a
process of its own, and `--jobs` of them share the GPU. Printed at the end, and written down with every run: the table.

    python benchmarks/rates.py --model MODEL --sst2 SST2 --output runs/estimators --estimators dense low-rank divided

compares estimators in the place of pairs, at equal forward passes: each with the ε and the rate that are found for it,
and with `--times` that rate.

The objective `reward` is that of short_answers.py, a function of texts (48 tokens, written greedily), for a model with
a chat template: 100 of the prompts that nobody is tuned on choose, and the other 100 are what the table has. `--rows`
is then the number of prompts a step.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from short_answers import DEV_TOPICS, TRAIN_TOPICS, questions, short_answer
from sklearn.metrics import roc_auc_score

ANSWERS = {"template": "{sentence} It was", "choices": [" terrible", " great"], "label": "label", "chat": "off"}
OBJECTIVES = {"neg-cross-entropy": "cross_entropy", "accuracy": "accuracy", "auc": "auc", "reward": "reward"}
WRITTEN = {"max_completion_length": 48}
# (ε, rates) to begin with; MeZO's for LoRA are a hundred times those for full weights.
PAIRS = {"full": ([1e-3, 3e-3, 1e-2], [3e-5, 1e-4, 3e-4]), "lora": ([1e-2, 3e-2, 1e-1], [1e-3, 3e-3, 1e-2])}
STEP, MOST_MORE = math.sqrt(10), 6
# All of them read each row of a step twice.
ESTIMATORS: dict[str, dict[str, Any]] = {
    "dense": {"noise": "dense"},
    "low-rank": {"noise": "low-rank"},
    "divided": {"rows_per_direction": 1},
    "divided-4": {"rows_per_direction": 4},
    "divided-8": {"rows_per_direction": 8},
    "divided-8-dense": {"rows_per_direction": 8, "noise": "dense"},
    "momentum": {"method": "momentum", "noise": "low-rank"},
    "divided-momentum": {"method": "momentum", "rows_per_direction": 1},
}


def main() -> None:
    """Run all settings, print the table."""
    options = parsed()
    if options.setting:
        return estimators_of(options) if options.estimators else one_setting(options)
    Path(options.output).mkdir(parents=True, exist_ok=True)
    settings = list(product(options.tune, options.objectives))
    with ThreadPoolExecutor(options.jobs) as pool:
        codes = list(pool.map(lambda setting: in_a_process(options, setting), settings))
    if options.estimators:
        head, rows = ESTIMATORS_HEAD, [row for setting in settings for row in rows_of_estimators(options, *setting)]
    else:
        head, rows = HEAD, [row for tune, objective in settings if (row := row_of(options, tune, objective))]
    table = "\n".join([head, "|---" * (head.count("|") - 1) + "|", *rows])
    Path(options.output, "table.md").write_text(table + "\n", encoding="utf-8")
    print(table)
    if any(codes):
        sys.exit("a setting failed: see its log")


def parsed() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--sst2", help="a folder with train.jsonl and dev.jsonl; not for the objective `reward`")
    parser.add_argument("--output", default="runs/rates")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--tune", nargs="+", default=["full", "lora"])
    parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES)[:3])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--choosing", type=int, default=300, help="dev rows that choose the pair")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--pair", nargs=2, type=float, help="ε and rate, in place of the search by hand")
    parser.add_argument("--estimators", nargs="+", choices=list(ESTIMATORS), help="compare these in the place of pairs")
    parser.add_argument("--times", nargs="+", type=float, default=[], help="of the rate that is found, for estimators")
    parser.add_argument("--setting", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.sst2 is None and options.objectives != ["reward"]:
        parser.error("all objectives but `reward` need --sst2")
    return options


def log_of(options: argparse.Namespace, tune: str, objective: str) -> Path:
    """Return where the runs of a setting are written down."""
    return Path(options.output, f"{tune}-{objective}.jsonl")


def in_a_process(options: argparse.Namespace, setting: tuple[str, str]) -> int:
    """Do all runs of a setting in a process of its own."""
    words = [sys.executable, *sys.argv, "--setting", *setting]
    with log_of(options, *setting).with_suffix(".log").open("w") as log:
        return subprocess.run(words, stdout=log, stderr=subprocess.STDOUT).returncode


def one_setting(options: argparse.Namespace) -> None:
    """Look for the best pair, then run it and the default with other seeds."""
    tune, objective = options.setting
    what = OBJECTIVES[objective]
    better = {"cross_entropy": -1}.get(what, 1)
    with log_of(options, tune, objective).open("w", encoding="utf-8") as file:

        def run(kind: str, seed: int, **values: Any) -> dict[str, Any]:
            result = {"kind": kind, **run_of(options, tune, objective, seed, **values)}
            print(json.dumps(result), file=file, flush=True)
            return result

        found: dict[tuple[float, float], float] = {}
        best, waiting = options.pair, [] if options.pair else list(product(*PAIRS[tune]))
        while waiting:
            for eps, rate in waiting:
                result = run("pair", 0, eps=eps, learning_rate=rate, normalize="none")
                value = result["after"]["choosing"][what]
                found[eps, rate] = -math.inf if math.isnan(value) else better * value
            best = max(found, key=lambda pair: found[pair])
            waiting = [] if len(found) >= 9 + MOST_MORE else beyond(best, found)
        for seed in range(1, options.seeds + 1):
            run("best pair", seed, eps=best[0], learning_rate=best[1], normalize="none")
            run("default", seed)


def estimators_of(options: argparse.Namespace) -> None:
    """Run each estimator with what is found for it, and with multiples of that rate."""
    tune, objective = options.setting
    with log_of(options, tune, objective).open("w", encoding="utf-8") as file:
        for seed, name in product(range(1, options.seeds + 1), options.estimators):
            found: dict[str, Any] = {}
            for times in (1.0, *options.times):
                values = {**ESTIMATORS[name], **found}
                if found:
                    values["learning_rate"] = times * found["learning_rate"]
                result = run_of(options, tune, objective, seed, **values)
                found = found or {key: result[key] for key in ("eps", "learning_rate")} | {"normalize": "running"}
                print(json.dumps({"kind": name, "times": times, **result}), file=file, flush=True)


def beyond(best: tuple[float, float], tried: dict[tuple[float, float], float]) -> list[tuple[float, float]]:
    """Return the pairs beyond the best one, in each direction in which nothing farther was tried.

    >>> beyond((1.0, 3.0), {(1.0, 3.0): 0.9, (0.3, 3.0): 0.8, (3.0, 3.0): 0.7, (1.0, 1.0): 0.6})
    [(1.0, 9.49)]
    """
    more = []
    for place in (0, 1):
        others = [pair[place] for pair in tried if pair[1 - place] == best[1 - place]]
        for times in (1 / STEP, STEP):
            if best[place] == (max(others) if times > 1 else min(others)):
                moved = list(best)
                moved[place] = float(f"{best[place] * times:.3g}")
                more.append((moved[0], moved[1]))
    return more


def run_of(options: argparse.Namespace, tune: str, objective: str, seed: int, **values: Any) -> dict[str, Any]:
    """Tune, and score before and after."""
    from zoreward import ZOConfig, ZOTrainer
    from zoreward import objective as decorated

    writes = objective == "reward"
    args = ZOConfig(
        f"{options.output}/runs/{tune}-{objective}-{seed}-{'-'.join(map(str, values.values()))}",
        per_device_train_batch_size=options.rows, max_steps=options.steps, save_strategy="no", disable_tqdm=True,
        logging_strategy="no", tune=tune, dtype=options.dtype, seed=seed, eval_strategy="steps",
        eval_steps=max(1, options.steps // 10), load_best_model_at_end=True,
        **(WRITTEN if writes else ANSWERS), **values,
    )  # fmt: skip
    start = time.perf_counter()
    train, dev = rows_of(options, writes)
    choosing = len(dev) // 2 if writes else options.choosing
    trainer = ZOTrainer(
        options.model, objective=decorated("reward", rowwise=True)(short_answer) if writes else objective, args=args,
        train_dataset=train, eval_dataset=dev[:choosing],
    )  # fmt: skip
    measure = rewarded if writes else measured
    before = measure(trainer, dev, choosing)
    try:
        trainer.train()
        after = measure(trainer, dev, choosing)
    except Exception as error:  # a rate that is far too large breaks the model: that is a result too
        print(f"{values}: {error}", flush=True)
        after = {part: dict.fromkeys(numbers, math.nan) for part, numbers in before.items()}
    result = {
        "tune": tune, "objective": objective, "seed": seed, "eps": trainer.method.eps,
        "learning_rate": trainer.args.learning_rate, "before": before, "after": after,
        "seconds": round(time.perf_counter() - start, 1),
    }  # fmt: skip
    del trainer
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return result


def rows_of(options: argparse.Namespace, writes: bool) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return rows to tune on, and dev rows."""
    from zoreward.data import load_rows

    if writes:
        return questions(TRAIN_TOPICS, 300), questions(DEV_TOPICS, 200)
    return load_rows(f"{options.sst2}/train.jsonl"), load_rows(f"{options.sst2}/dev.jsonl")


def rewarded(trainer: Any, rows: list[dict[str, Any]], choosing: int) -> dict[str, dict[str, float]]:
    """Return the mean reward of greedy texts on the rows that choose, and on the others."""
    parts = {"choosing": rows[:choosing], "other": rows[choosing:]}
    return {name: {"reward": round(trainer.evaluate(part)["eval_score"], 4)} for name, part in parts.items()}


def measured(trainer: Any, rows: list[dict[str, Any]], choosing: int) -> dict[str, dict[str, float]]:
    """Return accuracy, cross-entropy and AUC on the rows that choose, and on the others."""
    predicted = trainer.predict(rows)
    logprobs_NC = np.asarray(predicted.predictions, dtype=np.float64)
    labels_N = np.asarray(predicted.label_ids)
    logprobs_NC -= np.logaddexp.reduce(logprobs_NC, axis=1, keepdims=True)
    result = {}
    for name, part in (("choosing", slice(0, choosing)), ("other", slice(choosing, None))):
        logprobs, labels = logprobs_NC[part], labels_N[part]
        values = {
            "accuracy": float((logprobs.argmax(1) == labels).mean()),
            "cross_entropy": float(-logprobs[np.arange(len(labels)), labels].mean()),
            "auc": float(roc_auc_score(labels, logprobs[:, 1] - logprobs[:, 0])),
        }
        result[name] = {name: round(value, 4) for name, value in values.items()}
    return result


HEAD = (
    "| tuned | objective | base | best pair (ε, rate) | its mean ± SE | default | its mean ± SE | share of the gain |"
)


def row_of(options: argparse.Namespace, tune: str, objective: str) -> str:
    """Return the table's row of a setting; empty where it did not come to an end."""
    runs = [json.loads(line) for line in log_of(options, tune, objective).read_text(encoding="utf-8").splitlines()]
    what = OBJECTIVES[objective]
    of_kind = {kind: [run for run in runs if run["kind"] == kind] for kind in ("best pair", "default")}
    if any(len(some) < options.seeds for some in of_kind.values()):
        return ""
    base = runs[0]["before"]["other"][what]
    cells, means = [], []
    for some in of_kind.values():
        values = [run["after"]["other"][what] for run in some]
        means.append(statistics.mean(values))
        cells += [f"{some[0]['eps']:.3g}, {some[0]['learning_rate']:.3g}", mean_and_error(values)]
    share = (means[1] - base) / (means[0] - base) if means[0] != base else math.nan
    return f"| {tune} | {objective} | {base:.3f} | {' | '.join(cells)} | {share:.0%} |"


ESTIMATORS_HEAD = (
    "| tuned | objective | estimator | times the rate | ε, rate | accuracy | cross-entropy | AUC | seconds |"
)


def rows_of_estimators(options: argparse.Namespace, tune: str, objective: str) -> list[str]:
    """Return the table's rows of a setting: base, then each estimator with each rate, mean ± standard error."""
    runs = [json.loads(line) for line in log_of(options, tune, objective).read_text(encoding="utf-8").splitlines()]
    names = ("accuracy", "cross_entropy", "auc")
    rows = []
    if runs:
        base = [f"{runs[0]['before']['other'][name]:.3f}" for name in names]
        rows.append(f"| {tune} | {objective} | none | | | {' | '.join(base)} | |")
    for kind, times in dict.fromkeys((run["kind"], run["times"]) for run in runs):
        some = [run for run in runs if (run["kind"], run["times"]) == (kind, times)]
        cells = [mean_and_error([run["after"]["other"][name] for run in some]) for name in names]
        seconds = statistics.mean(run["seconds"] for run in some)
        found = f"{some[0]['eps']:.3g}, {some[0]['learning_rate']:.3g}"
        rows.append(f"| {tune} | {objective} | {kind} | {times:g} | {found} | {' | '.join(cells)} | {seconds:.0f} |")
    return rows


def mean_and_error(values: list[float]) -> str:
    """Return a mean and its standard error.

    >>> mean_and_error([0.5, 0.7])
    '0.600 ± 0.100'
    """
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{statistics.mean(values):.3f} ± {error:.3f}"


if __name__ == "__main__":
    main()
