"""Preferences: zoreward's two ways, TRL's DPO, KTO and GRPO, best-of-n and a probe, in one table and one figure.

    python benchmarks/preference.py --model imdb-lm-12m --data PREFERENCES --judge imdb-rm-8m \
        --prompts IMDB_PROMPTS/dev.jsonl --output runs/preference --jobs 3 --figure runs/preference/curve.svg

A run is called
- zo-reward-lora: `zoreward tune preference --via reward`, no number given but the steps
- zo-margin-full, zo-margin-lora: `zoreward tune preference`, no number given but the steps and 512 rows a step
- zo-margin-fixed: a setting that was fixed before (SETTINGS)
- dpo-full, dpo-lora, kto-full, kto-lora, with a rate behind it or without: then all of RATES are run with the first
  seed, and the one that orders most dev pairs rightly, TRL's reward accuracy, with the others. 64 pairs a step,
  bfloat16 (autocast, where all weights are tuned), LoRA of rank 16 on all linear layers, no gradient checkpointing;
  else TRL's defaults
- grpo-full-RATE, grpo-lora-RATE: 256 completions a step, a constant rate, on the head that `probe` fits
- best-of-N: of N samples of the base that which the head likes best; KL is log N − (N − 1)/N a text, at most
- probe: the head itself, a Bradley–Terry model on the base's states; it writes nothing.
- shuffled-RUN, beside zo-reward-lora and zo-margin-lora: what the run moved in each weight, shuffled; a random move.

Each is done in a worker process, of which `--jobs` share the machine, and written down as a line of
OUTPUT/preference.jsonl; what stands there is not done again: one OUTPUT is for one model and one set of options.

All are measured alike, in float32. Of the dev pairs: the share whose chosen answer gained over the rejected one since
before tuning, ties ½. Behind prompts that nobody saw: how often a judge, which labelled the pairs and chooses nothing,
prefers what is written to what the base writes, greedily and in four samples a prompt; the same at equal lengths; KL to
the base a token of samples. `±` is a standard error over seeds; of the share, an interval is of the mean over seeds, by
rows; of wins, the mean of each seed's interval by prompts. The rate of DPO and KTO and the step that `--via reward`
keeps are chosen by the dev pairs and their prompts, so their own shares are a little too good.

Seconds are those of the whole command, loading and saving too, or of a TRL trainer, its making too; of GRPO and
best-of-n those of the head are added. A forward pass is one row that is read or written. Of zoreward the search for a
rate, dev rows and the self-check are left out of the passes (not of the seconds); of best-of-N they are those of one
prompt. Memory is PyTorch's, beyond what the
process held before; that of inference is 512 of the prompts to tune on, which the base goes on from.

With `--chat` the pairs become conversations: the user asks for a film review with the row's prompt as its beginning,
and the answers are the row's, that beginning in front of them. The judge reads the answer alone.

`--check` exits 0 only if, of the runs that are there: zo-margin-fixed gains 60 % of the pairs, more than the best of as
many random moves as one of its runs scored members (benchmarks/null.py), with 50 % below its interval;
zo-reward-lora wins 80 % greedily and 68 % of samples at 0.10 nats a token.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import json
import math
import os
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from null import null
from runs import Result, do_runs, results_in
from scipy.stats import sem

from zoreward import get_objective
from zoreward.cli import main as zoreward
from zoreward.cli.via_reward import load_head, save_head
from zoreward.config import Prompting
from zoreward.data import load_rows, prompts_of_preferences
from zoreward.journal import load_run, replay
from zoreward.records import Completion, Example
from zoreward.registry import Objective
from zoreward.scoring import (
    Base,
    Generation,
    answer_states,
    candidate_logprobs,
    end_tokens_of,
    engine_of,
    examples_of,
    fit_head,
    kl_to_base,
    load_model,
    load_tokenizer,
    mean_length,
    preference_states,
    prepare_tokenizer,
    repeated_4,
    score_writings,
)
from zoreward.scoring.requests import written
from zoreward.scoring.wins import wins_of
from zoreward_objectives.reward_model import RewardModel

RUNS = "zo-reward-lora zo-margin-full zo-margin-lora dpo-full dpo-lora kto-full grpo-lora-1e-3 best-of-16".split()
SETTINGS = "--noise low-rank --num-directions 16 --normalize rms --eps 1e-2 --lr 1e-3".split()
RATES = {"full": ("1e-5", "3e-5", "1e-4", "3e-4", "1e-3"), "lora": ("1e-4", "3e-4", "1e-3", "3e-3", "1e-2")}
PAIRS = 64  # a step of DPO and KTO
# How often samples are drawn for each prompt, of the model and of the base: one draw is ± 3 % of wins.
SAMPLES = 4
GREEDY, SAMPLED, KL = 0.80, 0.68, 0.10
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The columns of the table: a key of a result, and digits.
COLUMNS = {
    "pairs gained": ("share", 3), "greedy wins": ("greedy", 3), "sampled wins": ("sampled", 3),
    "greedy, equal lengths": ("greedy_equal", 3), "sampled, equal lengths": ("sampled_equal", 3),
    "KL": ("sampled_kl", 3), "KL, greedy": ("greedy_kl", 3), "tokens": ("sampled_tokens", 1),
    "repeated": ("sampled_repeated", 3), "greedy repeated": ("greedy_repeated", 3), "steps": ("steps", 0),
    "seconds": ("seconds", 1), "forward passes": ("forwards", 0), "backward": ("backwards", 0),
    "peak GiB": ("peak_gib", 2), "× inference": ("over_inference", 2),
}  # fmt: skip


def main() -> None:
    """Do the runs that are missing, print the table, draw the figure, check."""
    options = parsed()
    path, first = Path(options.output, "preference.jsonl"), options.seeds[0]
    write_rows(options)
    do_missing(options, path, [("base", first), ("probe", first)])
    named = [name for name in options.runs if re.search(r"\d$", name) or name.startswith("zo-")]
    searched = {name: [f"{name}-{rate}" for rate in rates_of(name)] for name in options.runs if name not in named}
    do_missing(options, path, [(name, seed) for seed in options.seeds for name in named if is_wanted(name, seed, first)]
               + [(name, first) for names in searched.values() for name in names])  # fmt: skip
    results = results_in(path, "run", "seed")
    best = [max(names, key=lambda name: results[name, first]["share"]) for names in searched.values()]
    last = [(name, seed) for seed in options.seeds for name in best]
    extra = ["random-moves"] if far_runs(options) else []
    do_missing(options, path, last + [(name, first) for name in extra])
    shuffled = [f"shuffled-{name}" for name in ("zo-reward-lora", "zo-margin-lora") if name in options.runs]
    do_missing(options, path, [(name, seed) for name in shuffled for seed in options.seeds])
    results, lines = results_in(path, "run", "seed"), dict[str, list[Result]]()
    for name in ("base", "probe", *named, *best, *extra, *shuffled):
        lines[name] = [results[name, seed] for seed in options.seeds if (name, seed) in results]
    print_table(options, lines)
    if options.figure:
        draw(options.figure, lines, [results[name, first] for names in searched.values() for name in names])
    if options.check:
        check(lines)


def parsed() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "output", "judge"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--data", required=True, help="a folder with train.jsonl and dev.jsonl of pairs")
    parser.add_argument("--prompts", required=True, help="rows with prompts that nobody was tuned on")
    parser.add_argument("--chat", action="store_true", help="for a model with a chat template: see above")
    parser.add_argument("--runs", nargs="+", default=RUNS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=300, help="of zo-reward")
    parser.add_argument("--margin-steps", type=int, default=50, help="of zo-margin")
    parser.add_argument("--trl-steps", type=int, default=105, help="of DPO and KTO: three times 2,237 pairs")
    parser.add_argument("--grpo-steps", type=int, default=30)
    parser.add_argument("--completions", type=int, default=256, help="of a step of GRPO: a multiple of 8")
    parser.add_argument("--dtype", default="float32", help="of what zoreward tunes")
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--limit", type=int, help="pairs to tune on, and a quarter of it dev pairs, to try it out")
    parser.add_argument("--prompts-limit", type=int, default=256)
    parser.add_argument("--points", type=int, default=5, help="of each curve, with the first seed")
    parser.add_argument("--random", type=int, help="random moves; by default as many as a run scored members")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--figure", help="a file to draw in: .svg, .png")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    rate = r"-\d[\d.]*(e-\d+)?"
    pattern = rf"zo-(reward-lora|margin-(full|lora|fixed))|(dpo|kto)-(full|lora)({rate})?|grpo-(full|lora){rate}"
    for name in options.runs:
        if not re.fullmatch(rf"{pattern}|best-of-\d+", name):
            parser.error(f"{name!r} is no run: see above for what there is")
    return options


def rates_of(name: str) -> tuple[str, ...]:
    """Return the rates of which one is chosen."""
    return RATES[name.split("-")[1]]


def far_runs(options: argparse.Namespace) -> list[str]:
    """Return the runs with which random moves can be compared: they move all weights, by the margin."""
    return [name for name in options.runs if name in ("zo-margin-fixed", "zo-margin-full")]


def is_wanted(name: str, seed: int, first: int) -> bool:
    """Tell whether a run is done with a seed: what nobody trains is done once."""
    return seed == first or not name.startswith("best-of")


def write_rows(options: argparse.Namespace) -> None:
    """Write what all read into the output folder: train.jsonl, dev.jsonl and prompts.jsonl."""
    few = options.limit
    rows = {
        "train": load_rows(f"{options.data}/train.jsonl", limit=few),
        "dev": load_rows(f"{options.data}/dev.jsonl", limit=few and max(2, few // 4)),
        "prompts": load_rows(options.prompts, limit=options.prompts_limit),
    }
    Path(options.output).mkdir(parents=True, exist_ok=True)
    for name, own in rows.items():
        own = [in_turns(row) for row in own] if options.chat else own
        Path(options.output, f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))


def in_turns(row: Result) -> Result:
    """Return a row as a conversation.

    >>> in_turns({"prompt": "I saw", "chosen": " it."})["chosen"]
    [{'role': 'assistant', 'content': 'I saw it.'}]
    """
    asked = f"Write one or two sentences of a film review. They begin with: {row['prompt']}"
    said = {name: row["prompt"] + row[name] for name in ("chosen", "rejected") if name in row}
    answers = {name: [{"role": "assistant", "content": text}] for name, text in said.items()}
    return {"prompt": [{"role": "user", "content": asked}], **answers}


def do_missing(options: argparse.Namespace, path: Path, wanted: Sequence[tuple[str, int]]) -> None:
    """Do the runs that have no line yet."""
    there = results_in(path, "run", "seed")
    given = [(options, *one) for one in dict.fromkeys(wanted) if one not in there]
    threads = max(1, (os.cpu_count() or 1) // options.jobs)
    for one in do_runs(path, run, given, min(options.jobs, len(given) or 1), settle=settle, settings=(threads,)):
        shown = {key: value for key, value in one.items() if not isinstance(value, list)}
        print(json.dumps(shown), flush=True)


def settle(threads: int) -> None:
    """Begin a worker process."""
    from transformers.utils import logging

    torch.set_num_threads(min(threads, torch.get_num_threads()))
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def run(options: argparse.Namespace, name: str, seed: int) -> list[Result]:
    """Train and measure."""
    gc.collect()
    result: Result = {"run": name, "seed": seed, "jobs": options.jobs, "device": device_name()}
    by = yardstick(*(getattr(options, key) for key in ("model", "output", "judge", "new_tokens")))
    if name == "random-moves":
        return [result | random_moves(options, by)]
    if name.startswith("shuffled-"):
        return [result | measured(by, shuffled_run(options, name.removeprefix("shuffled-"), seed))]
    if name == "probe":
        return [result | probed(options, by)]
    if name == "base":
        return [result | measured(by, by.base) | {"peak_gib": inference_memory(options, by)}]
    head = load_head(options.output)
    assert head is not None
    if name.startswith("best-of"):
        return [result | {"seconds": head.about["seconds"]} | best_of(by, head, int(name.rpartition("-")[2]))]
    held = torch.cuda.memory_allocated() if DEVICE == "cuda" else 0
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    found, models = (by_zoreward if name.startswith("zo-") else by_trl)(options, by, name, seed)
    if DEVICE == "cuda":
        found["peak_gib"] = (torch.cuda.max_memory_allocated() - held) / 2**30
    curve = []
    for step, model in models:
        whole = step == found["kept"]
        told = measured(by, model, whole=whole)
        curve.append((step, told["sampled_kl"], told["sampled"]))
        result |= told if whole else {}
        del model
    return [result | found | {"curve": curve}]


def device_name() -> str:
    """Return what the machine computes with."""
    return torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU"


# How all are measured


@dataclass(frozen=True, slots=True, eq=False)
class Yardstick:
    """What models are measured with, and what the base has.

    Args:
        tokenizer: of the base.
        base: the model before tuning, float32.
        judge: who wins.
        pairs: the dev pairs.
        base_sums_NC: of their answers the log-probabilities by the base.
        ways: how texts are written: name, prompts with what the base wrote, and settings.
    """

    tokenizer: Any
    base: Any
    judge: Objective
    pairs: list[Example]
    base_sums_NC: np.ndarray
    ways: list[tuple[str, list[Example], Generation]]


@functools.cache
def yardstick(model: str, output: str, judge: str, new_tokens: int) -> Yardstick:
    """Return it, made once in a process."""
    tokenizer = prepare_tokenizer(load_tokenizer(model))
    rows = {name: load_rows(f"{output}/{name}.jsonl") for name in ("dev", "prompts")}
    pairs = examples_of(rows["dev"], tokenizer, "choices", Prompting(), max_new_tokens=0)
    prompts = examples_of(rows["prompts"], tokenizer, "completions", Prompting(), max_new_tokens=new_tokens)
    base = load_model(model, dtype="float32").eval().requires_grad_(False)
    engine, ways = engine_of(base, tokenizer.pad_token_id, tokenizer), []
    for name, temperature, times in (("greedy", 0.0, 1), ("sampled", 1.0, SAMPLES)):
        # Numbers of their own: with common ones the two would write alike.
        hows = [Generation(new_tokens, temperature=temperature, seed=seed) for seed in (1, 2)]
        texts = written(engine, prompts * times, hows[1])
        own = [replace(one, base_completion=text) for one, text in zip(prompts * times, texts, strict=True)]
        ways.append((name, own, hows[0]))
    found = get_objective("win-rate", judge=judge_of_reviews(judge) if prompts[0].messages else judge)
    return Yardstick(tokenizer, base, found, pairs, logprob_sums(engine, pairs), ways)


def judge_of_reviews(reward_model: str) -> Any:
    """Return a judge that reads what the assistant says, and nothing else."""
    reward = RewardModel(reward_model=reward_model)

    def liked(completions: Sequence[Any]) -> list[float]:
        return reward(prompts=[""] * len(completions), completions=[messages[0]["content"] for messages in completions])

    return liked


def logprob_sums(engine: Any, pairs: list[Example]) -> np.ndarray:
    """Return the log-probability of each answer."""
    counts = np.array([[len(tokens) for tokens in example.candidate_tokens] for example in pairs])
    [logprobs_NC] = candidate_logprobs(engine, pairs)
    return np.asarray(logprobs_NC * counts)


@torch.no_grad()
def measured(by: Yardstick, model: Any, *, whole: bool = True) -> Result:
    """Return what a model is worth; not whole: what its samples are."""
    engine, result = engine_of(model, by.tokenizer.pad_token_id, by.tokenizer), dict[str, Any]()
    for name, examples, how in by.ways if whole else by.ways[1:]:
        texts = written(engine, examples, how)
        prompts, tokens = [one.prompt_tokens for one in examples], [text.tokens for text in texts]
        kl = kl_to_base(engine, Base(by.base, adapter=False), prompts, [tokens])
        result |= {**judged(by, name, examples, texts), f"{name}_kl": kl[0], f"{name}_text": texts[0].text}
    if whole:
        ratios = logprob_sums(engine, by.pairs) - by.base_sums_NC
        ahead = ratios[:, 0] - ratios[:, 1]
        gained = np.where(ahead == 0, 0.5, ahead > 0)
        result |= {"share": float(gained.mean()), "margin": float(ahead.mean()), "gained": gained.tolist()}
    return result


def judged(by: Yardstick, name: str, examples: list[Example], texts: Sequence[Completion]) -> Result:
    """Return what the judge says of texts, and what they look like."""
    [scored] = score_writings(by.judge, examples, [texts])
    wins, tokens = wins_of(by.judge, examples, scored), [text.tokens for text in texts]
    found = {"": wins.win_rate, "_interval": wins.interval, "_equal": wins.length_controlled}
    found |= {"_equal_interval": wins.length_controlled_interval}
    found |= {"_tokens": mean_length(tokens), "_repeated": repeated_4(tokens)}
    return {name + key: value for key, value in found.items()}


# The competitors


def probed(options: argparse.Namespace, by: Yardstick) -> Result:
    """Fit the head, save it for all who write for it, and return how it orders the dev pairs."""
    start = time.perf_counter()
    rows = load_rows(f"{options.output}/train.jsonl")
    train = examples_of(rows, by.tokenizer, "choices", Prompting(), max_new_tokens=0)
    engine, ends = engine_of(by.base, by.tokenizer.pad_token_id), end_tokens_of(by.base, by.tokenizer)
    states = [preference_states(engine, Base(by.base, adapter=False), own, ends) for own in (train, by.pairs)]
    head = fit_head(states[0], train)
    seconds = time.perf_counter() - start
    save_head(replace(head, about=head.about | {"seconds": seconds}), options.output)
    right = [head.right(states[1][[n]], [one.reference]) for n, one in enumerate(by.pairs)]
    return {"share": statistics.mean(right), "gained": right, "seconds": seconds, "forwards": 2 * len(train)}


@torch.no_grad()
def best_of(by: Yardstick, head: Any, count: int) -> Result:
    """Return what the judge says of the samples of the base that the head likes best."""
    engine, (name, examples, how) = engine_of(by.base, by.tokenizer.pad_token_id, by.tokenizer), by.ways[1]
    many = [example for example in examples for _ in range(count)]
    texts = written(engine, many, how)
    read = [(one.prompt_tokens, text.tokens) for one, text in zip(many, texts, strict=True)]
    states = answer_states(engine, Base(by.base, adapter=False), read, end_tokens_of(by.base, by.tokenizer))
    best = head.logits(np.stack(states)).reshape(-1, count).argmax(1)
    found = judged(by, name, examples, [texts[n * count + k] for n, k in enumerate(best)])
    return found | {"sampled_kl": (math.log(count) - (count - 1) / count) / found["sampled_tokens"], "forwards": count}


def random_moves(options: argparse.Namespace, by: Yardstick) -> Result:
    """Return the share that the best of many random moves gains, each as far as a run by the margin went."""
    tuned = f"{options.output}/{far_runs(options)[0]}-{options.seeds[0]}"
    run = load_run(tuned)
    count = options.random or run.n_steps * 2 * int(run.header["method"]["num_directions"])
    rows, dtype = load_rows(f"{options.output}/dev.jsonl"), options.dtype
    found = null("preference", options.model, f"{tuned}/model", rows, count=count, rank=1, seed=0, dtype=dtype)
    shares = [one.metrics["metric/share"] for one in found["scored"]]
    return {"share": max(shares), "median": statistics.median(shares), "norm": found["norm"], "steps": count}


def shuffled_run(options: argparse.Namespace, name: str, seed: int) -> Any:
    """Return the model that a run kept, with what it moved in each weight shuffled: a random move, as long."""
    kept = results_in(Path(options.output, "preference.jsonl"), "run", "seed")[name, seed]["kept"]
    run, generator = load_run(Path(options.output, f"{name}-{seed}")), torch.Generator().manual_seed(seed)
    before, after = (
        replay(run, load_model(options.model, dtype=run.header["dtype"]), step=step).float() for step in (0, kept)
    )
    with torch.no_grad():
        for old, new in zip(before.parameters(), after.parameters(), strict=True):
            moved = (new - old).flatten()
            order = torch.randperm(len(moved), generator=generator).to(moved.device)
            new.copy_(old + moved[order].view_as(old))
    return after.eval().requires_grad_(False)


def by_zoreward(
    options: argparse.Namespace, by: Yardstick, name: str, seed: int
) -> tuple[Result, Iterator[tuple[int, Any]]]:
    """Run the command, and return what it took, and the model after some steps: with the first seed, else the last."""
    folder, train = Path(options.output, f"{name}-{seed}"), f"{options.output}/train.jsonl"
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was broken off
    _, way, how = name.split("-")
    rows = len(load_rows(train))
    given = ["--via", "reward", "--steps", options.steps] if way == "reward" else [
        "--batch-size", min(512, rows // 2), "--set", "dataloader_drop_last=true",  # the last of an epoch are too few
        "--steps", options.margin_steps, "--eval-every", options.margin_steps, "--keep", "last",
        *(SETTINGS if how == "fixed" else ["--tune", how]),
    ]  # fmt: skip
    words = [
        *("tune", "preference", "--model", options.model, "--data", train, "--dtype", options.dtype, "--seed", seed),
        *("--eval-data", f"{options.output}/dev.jsonl", "--max-new-tokens", options.new_tokens),
        *("--json", "--output", folder, *given),
    ]
    log, start = folder.with_suffix(".log"), time.perf_counter()
    with log.open("w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        code = zoreward(list(map(str, words)))
    if code:
        raise RuntimeError(f"zoreward ended with {code}: see {log}")
    seconds, run, told = time.perf_counter() - start, load_run(folder), json.loads(log.read_text().splitlines()[-1])
    method = run.header["method"]
    # Two answers of a row are read; a text is written, and read by the base for the head.
    forwards = run.n_steps * 2 * method["num_directions"] * method["rows"] * 2 + 2 * rows
    found = {"seconds": seconds, "steps": run.n_steps, "kept": told["kept"], "forwards": forwards, "backwards": 0}
    found |= {"tuning_seconds": told["seconds"], "rate": method["lr"], "eps": method["eps"]}

    def models() -> Iterator[tuple[int, Any]]:
        for step in steps_of_curve(options, seed, found["kept"], run.n_steps):
            before = load_model(options.model, dtype=run.header["dtype"])
            yield step, replay(run, before, step=step).float().eval().requires_grad_(False)

    return found, models()


def steps_of_curve(options: argparse.Namespace, seed: int, kept: int, steps: int) -> list[int]:
    """Return after which steps a run is measured."""
    if seed != options.seeds[0]:
        return [kept]
    return sorted({kept, *(math.ceil(steps * k / options.points) for k in range(1, options.points + 1))})


def by_trl(
    options: argparse.Namespace, by: Yardstick, name: str, seed: int
) -> tuple[Result, Iterator[tuple[int, Any]]]:
    """Train with TRL; return what `by_zoreward` does."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

    kind, tune, rate = name.split("-", 2)
    set_seed(seed)
    half = DEVICE == "cuda" and tune == "lora"  # all weights are float32, under autocast
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.bfloat16 if half else torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(options.model, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    adapter = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    steps = options.grpo_steps if kind == "grpo" else options.trl_steps
    keeping = keeper(steps_of_curve(options, seed, steps, steps))
    with tempfile.TemporaryDirectory() as folder:
        args: dict[str, Any] = {
            "output_dir": folder, "seed": seed, "learning_rate": float(rate), "max_steps": steps, "report_to": "none",
            "disable_tqdm": True, "logging_strategy": "no", "save_strategy": "no", "gradient_checkpointing": False,
            "bf16": DEVICE == "cuda",
        }  # fmt: skip
        start = time.perf_counter()
        make, given, forwards = trainer_of(options, by, kind, args)
        given |= {"model": model.to(DEVICE), "processing_class": tokenizer, "callbacks": [keeping]}
        trainer = make(**given, peft_config=adapter if tune == "lora" else None)
        trainer.train()
    seconds = time.perf_counter() - start - keeping.paused
    seconds += load_head(options.output).about["seconds"] if kind == "grpo" else 0  # type: ignore[union-attr]
    backwards = steps * (options.completions if kind == "grpo" else 2 * PAIRS)
    found = {"seconds": seconds, "steps": steps, "kept": steps, "rate": float(rate), "forwards": forwards * backwards}

    def models() -> Iterator[tuple[int, Any]]:
        for step, weights in keeping.kept.items():
            fresh: Any = load_model(options.model, dtype="float32")
            fresh = get_peft_model(fresh, adapter) if tune == "lora" else fresh
            own = dict(fresh.named_parameters())
            with torch.no_grad():
                for key, weight in weights.items():
                    own[key].copy_(weight)
            yield step, fresh.eval().requires_grad_(False)

    return found | {"backwards": backwards}, models()


def keeper(steps: Sequence[int]) -> Any:
    """Return a callback that keeps the tuned weights after some steps, and the seconds that this took."""
    from transformers import TrainerCallback

    class Keeper(TrainerCallback):
        def __init__(self) -> None:
            self.kept: dict[int, dict[str, torch.Tensor]] = {}
            self.paused = 0.0

        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if state.global_step in steps:
                start = time.perf_counter()
                own = {name: one for name, one in model.named_parameters() if one.requires_grad}
                self.kept[state.global_step] = {name: one.detach().to("cpu", copy=True) for name, one in own.items()}
                self.paused += time.perf_counter() - start

    return Keeper()


def trainer_of(options: argparse.Namespace, by: Yardstick, kind: str, args: Result) -> tuple[Any, Result, int]:
    """Return TRL's trainer, what it is made with, and how many rows it reads for each that goes backwards."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, KTOConfig, KTOTrainer

    rows = load_rows(f"{options.output}/train.jsonl")
    batch = "per_device_train_batch_size"
    if kind == "dpo":
        config = DPOConfig(**args, **{batch: PAIRS})
        return DPOTrainer, {"args": config, "train_dataset": Dataset.from_list(rows)}, 2
    if kind == "kto":
        single = [
            {"prompt": row["prompt"], "completion": row[answer], "label": answer == "chosen"}
            for row in rows for answer in ("chosen", "rejected")
        ]  # fmt: skip
        # KTO itself reads them in their order.
        mixed = Dataset.from_list(single).shuffle(seed=args["seed"])
        return KTOTrainer, {"args": KTOConfig(**args, **{batch: 2 * PAIRS}), "train_dataset": mixed}, 4
    prompts = prompts_of_preferences(rows, Prompting())
    config = GRPOConfig(
        **args, **{batch: options.completions}, lr_scheduler_type="constant", max_completion_length=options.new_tokens
    )
    given = {"args": config, "train_dataset": Dataset.from_list(prompts), "reward_funcs": reward_of_head(options, by)}
    return GRPOTrainer, given, 3  # written, read, and read by the base for the head


def reward_of_head(options: argparse.Namespace, by: Yardstick) -> Any:
    """Return the fitted head as a reward function for TRL."""
    head = load_head(options.output)
    prompts = prompts_of_preferences(load_rows(f"{options.output}/train.jsonl"), Prompting())
    examples = examples_of(prompts, by.tokenizer, "completions", Prompting(), max_new_tokens=options.new_tokens)
    known = {json.dumps(row["prompt"]): one.prompt_tokens for row, one in zip(prompts, examples, strict=True)}
    engine, base = engine_of(by.base, by.tokenizer.pad_token_id), Base(by.base, adapter=False)
    ends = end_tokens_of(by.base, by.tokenizer)

    def liked(prompts: Sequence[Any], completion_ids: Sequence[Sequence[int]], **columns: Any) -> list[float]:
        asked = [known[json.dumps(prompt)] for prompt in prompts]
        texts = [(own, tuple(tokens)) for own, tokens in zip(asked, completion_ids, strict=True)]
        return head(base_states=answer_states(engine, base, texts, ends), completion_ids=completion_ids)  # type: ignore[misc]

    return liked


def inference_memory(options: argparse.Namespace, by: Yardstick) -> float | None:
    """Return the GiB that the base takes to write behind 512 prompts that are tuned on, in the dtype of the runs."""
    if DEVICE != "cuda":
        return None
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    model = load_model(options.model, dtype=options.dtype).eval()
    engine = engine_of(model, by.tokenizer.pad_token_id, by.tokenizer)
    rows = prompts_of_preferences(load_rows(f"{options.output}/train.jsonl"), Prompting())
    examples = examples_of(rows, by.tokenizer, "completions", Prompting(), max_new_tokens=options.new_tokens)
    written(engine, (examples * 512)[:512], replace(by.ways[1][2], max_new_tokens=options.new_tokens))
    return (torch.cuda.max_memory_allocated() - held) / 2**30


# What is told


def print_table(options: argparse.Namespace, lines: dict[str, list[Result]]) -> None:
    """Print mean ± standard error over seeds, with intervals, a line for each run."""
    memory = lines["base"][0]["peak_gib"]
    print(f"\n{lines['base'][0]['device']}, torch {torch.__version__}, {options.jobs} at a time, {options.dtype}")
    print(f"\n| run | seeds | {' | '.join(COLUMNS)} |\n" + "|---" * (2 + len(COLUMNS)) + "|")
    for name, own in lines.items():
        cells = []
        for result in own:
            if memory and result.get("peak_gib"):
                result["over_inference"] = result["peak_gib"] / memory
        for key, digits in COLUMNS.values():
            values = [result[key] for result in own if result.get(key) is not None]
            error = f" ± {sem(values):.{digits}f}" if len(values) > 1 else ""
            ends = interval(own, key)
            between = f" ({ends[0]:.{digits}f} to {ends[1]:.{digits}f})" if ends else ""
            cells.append(f"{np.mean(values):,.{digits}f}{error}{between}" if values else "–")
        print(f"| {name} | {len(own)} | {' | '.join(cells)} |")


def interval(results: Sequence[Result], key: str) -> tuple[float, float] | None:
    """Return in which 95 % of draws of rows lie, of the mean over seeds; of wins, the means of each seed's ends."""
    if key == "share" and all("gained" in result for result in results):
        gained_N, rng = np.mean([result["gained"] for result in results], axis=0), np.random.default_rng(0)
        means = [rng.choice(gained_N, len(gained_N)).mean() for _ in range(10_000)]
        low, high = np.quantile(means, [0.025, 0.975])
        return float(low), float(high)
    ends = [result[f"{key}_interval"] for result in results if result.get(f"{key}_interval")]
    return None if not ends else tuple(np.mean(ends, axis=0).tolist())


def draw(path: str, lines: dict[str, list[Result]], searched: Sequence[Result]) -> None:
    """Draw the win rate of samples over their KL: the first seed's course, all seeds' ends, and rates not taken."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        print("no figure: matplotlib is not installed")
        return
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for name, own in lines.items():
        ends = [result for result in own if "sampled_kl" in result and name != "base"]
        if not ends:
            continue
        curve = [(0.0, 0.5), *((kl, win) for _, kl, win in ends[0].get("curve", []))]
        [line] = axes.plot(*zip(*curve, strict=True), marker="." if len(curve) > 1 else "", linewidth=1)
        x, y = ([result[key] for result in ends] for key in ("sampled_kl", "sampled"))
        axes.scatter(x, y, color=line.get_color(), label=name)
        kind = re.sub(r"-\d[\d.]*(e-\d+)?$", "", name)
        others = [one for one in searched if one["run"] != name and one["run"].startswith(f"{kind}-")]
        x, y = ([result[key] for result in others] for key in ("sampled_kl", "sampled"))
        axes.scatter(x, y, color=line.get_color(), marker="x", label=f"{kind}, other rates" if others else None)
    axes.axhline(0.5, color="grey", linewidth=0.5)
    axes.set(xlabel="KL to the base, nats a token of samples", ylabel="win rate of samples over the base's")
    axes.set_xscale("symlog", linthresh=0.1)
    axes.set_xlim(left=0)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=110, bbox_inches="tight")


def check(lines: dict[str, list[Result]]) -> None:
    """End with 1 where a bar is missed."""

    def mean(name: str, key: str) -> float:
        return statistics.mean(result[key] for result in lines[name])

    if "zo-margin-fixed" in lines:
        low = interval(lines["zo-margin-fixed"], "share")
        assert low is not None
        share = mean("zo-margin-fixed", "share")
        if not (share >= 0.6 and low[0] > 0.5 and share > mean("random-moves", "share")):
            sys.exit("zo-margin-fixed is below 60 % of the pairs, 50 % at its interval's end, or the best random move")
    if "zo-reward-lora" in lines:
        greedy, sampled, kl = (mean("zo-reward-lora", key) for key in ("greedy", "sampled", "sampled_kl"))
        if not (greedy >= GREEDY and sampled >= SAMPLED and kl <= KL):
            sys.exit(f"zo-reward-lora is below {GREEDY:.0%} greedy and {SAMPLED:.0%} sampled at a KL of {KL} a token")


if __name__ == "__main__":
    main()
