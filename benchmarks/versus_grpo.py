"""zoreward's defaults beside TRL's GRPOTrainer: same model, reward, prompts, machine and seconds.

    python benchmarks/versus_grpo.py --model SMOLLM2 --output runs/versus --seconds 45 --seeds 0 1 2

A run is called zo-TUNE, with no number given, zo-TUNE-RATE, or zo-TUNE-samples, whose members are scored by samples in
the place of greedy texts; or grpo-TUNE-RATE: 256 completions a step, 8 a prompt,
a constant rate, bfloat16 (autocast, where all weights are tuned), LoRA of rank 16 on all linear layers, no gradient
checkpointing, which would save memory and take time; else TRL's defaults. Each has a process of its own; what stands in
OUTPUT/versus.jsonl is not done again. The clock starts with the making of the trainer, the model being in memory, and
the same callback ends both after the first step that passes `--seconds`: compiling, the self-check and the search for a
rate count. Then what was saved is read in float32 and writes by `generate` of transformers, the same for all.

zoreward is given the seconds (`max_seconds`), and times a few steps to know for how many its rate must do. A forward
pass is one row that is written, or read; GRPO reads each row that it wrote, and goes back through it. Of zoreward the
self-check, of a few rows, is left out.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import AutoPeftModelForCausalLM, LoraConfig
from runs import Result, do_runs, results_in
from scipy.stats import sem
from short_answers import DEV_TOPICS, TRAIN_TOPICS, Row, questions, short_answer
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, set_seed

from zoreward import ZOConfig, ZOTrainer, objective
from zoreward.data import load_rows
from zoreward_objectives.reward_model import RewardModel

Reward = Callable[..., list[float]]

RUNS = "zo-full zo-lora grpo-full-1e-5 grpo-full-1e-4 grpo-lora-1e-3".split()
NEW_TOKENS = {"short-answer": 48, "reward-model": 24}
SAMPLES = 4  # of a prompt, in the evaluation
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The columns of the table: a key of a result, and digits.
COLUMNS = {
    "seconds before step 1": ("before_step_1", 1), "seconds": ("took", 1), "steps": ("steps", 0),
    "completions": ("completions", 0), "forward passes": ("forwards", 0), "backward": ("backwards", 0),
    "peak GiB": ("peak_gib", 1), "greedy reward": ("greedy", 3), "sampled": ("sampled", 3),
    "distinct-2": ("greedy_distinct_2", 2), "sampled distinct-2": ("sampled_distinct_2", 2),
}  # fmt: skip


def main() -> None:
    """Do the runs that are missing, one after the other, and print the table."""
    options = parsed()
    path, key = Path(options.output, "versus.jsonl"), ("task", "seconds", "run", "seed")
    wanted = [("base", 0), *((name, seed) for seed in options.seeds for name in options.runs)]
    for one in wanted:
        if (options.task, options.seconds, *one) not in results_in(path, *key):
            for result in do_runs(path, run, [(options, *one)], jobs=1):  # a new process each time
                print(json.dumps(result), flush=True)
    results = results_in(path, *key)
    print_table([results[options.task, options.seconds, *one] for one in wanted])


def parsed() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", required=True, help="a causal model; for short answers one with a chat template")
    parser.add_argument("--output", default="runs/versus")
    parser.add_argument("--seconds", type=float, default=45)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", nargs="+", default=RUNS)
    parser.add_argument("--task", choices=NEW_TOKENS, default="short-answer")
    parser.add_argument("--reward-model", help="of that task: a sequence classifier of one logit, for plain texts")
    parser.add_argument("--data", help="of that task: a folder with train.jsonl and dev.jsonl (prompt)")
    parser.add_argument("--dev", type=int, default=100, help="prompts of the evaluation")
    parser.add_argument("--completions", type=int, help="a step, to try it out: a multiple of 8. Default: see above")
    options = parser.parse_args()
    for name in options.runs:
        if not re.fullmatch(r"zo-(full|lora)(-samples)?|(zo|grpo)-(full|lora)-\d[\d.]*(e-\d+)?", name):
            parser.error(f"{name!r} is no run: zo-full, zo-lora-1e-2 and grpo-full-1e-4 are some")
    if options.task == "reward-model" and not (options.reward_model and options.data):
        parser.error("--task reward-model needs --reward-model and --data")
    return options


def run(options: argparse.Namespace, name: str, seed: int) -> list[Result]:
    """Train and evaluate; `base` is evaluated alone."""
    train, dev = questions(TRAIN_TOPICS, 300), questions(DEV_TOPICS, options.dev)
    reward: Reward = short_answer
    if options.task == "reward-model":
        train, dev = load_rows(f"{options.data}/train.jsonl"), load_rows(f"{options.data}/dev.jsonl", limit=options.dev)
        reward = RewardModel(reward_model=options.reward_model, activation="sigmoid", reward_dtype="float32")
    result: Result = {"task": options.task, "seconds": options.seconds, "run": name, "seed": seed}
    with tempfile.TemporaryDirectory() as folder:
        if name != "base":
            result |= trained(options, name, seed, train, reward, folder)
        return [result | evaluated(options, options.model if name == "base" else folder, dev, reward)]


class Clock(TrainerCallback):
    """Ends a run of either trainer after the first step that passes its seconds."""

    def __init__(self, seconds: float) -> None:
        self.limit, self.start, self.before_step_1, self.took = seconds, time.perf_counter(), math.nan, math.nan

    def now(self) -> float:
        """Return the seconds since the start, with all done that the GPU was asked for."""
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - self.start

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.global_step:
            self.before_step_1 = self.now()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.took = self.now()
        control.should_training_stop |= self.took >= self.limit


def trained(options: argparse.Namespace, name: str, seed: int, rows: list[Row], reward: Reward, folder: str) -> Result:
    """Train, save into a folder, and return what it took."""
    method, tune, *rate = name.split("-", 2)
    written: list[int] = []

    @functools.wraps(reward)
    def counted(completions: Sequence[Any], **columns: Any) -> list[float]:
        written.append(len(completions))
        return reward(completions=completions, **columns)

    set_seed(seed)
    args: dict[str, Any] = {
        "output_dir": f"{folder}/run", "seed": seed, "max_completion_length": NEW_TOKENS[options.task],
        "disable_tqdm": True, "logging_strategy": "no", "save_strategy": "no", "report_to": "none",
        **({"learning_rate": float(rate[0])} if rate and rate != ["samples"] else {}),
    }  # fmt: skip
    half = DEVICE == "cuda" and (method, tune) != ("grpo", "full")  # whose weights are float32 under autocast
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.bfloat16 if half else torch.float32)
    if method == "zo":
        args |= {"max_seconds": options.seconds, "max_steps": 1_000_000}
        args |= {"temperature": 1.0} if rate == ["samples"] else {}
        few = {"num_directions": 2, "per_device_train_batch_size": count // 4} if (count := options.completions) else {}
        all_at_once = objective("reward", rowwise=True)(counted)  # those of all members in one call
        make, given = ZOTrainer, dict[str, Any](args=ZOConfig(**args, tune=tune, **few), objective=all_at_once)
    else:
        make, given = of_grpo(counted, args, tune, options.completions)
    given |= {"model": model.to(DEVICE), "processing_class": tokenizer_of(options.model)}
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    clock = Clock(options.seconds)
    trainer = make(**given, train_dataset=Dataset.from_list(rows), callbacks=[clock])
    trainer.train()
    result = {"before_step_1": clock.before_step_1, "took": clock.took, "steps": trainer.state.global_step}
    result |= {"peak_gib": torch.cuda.max_memory_allocated() / 2**30} if DEVICE == "cuda" else {}
    trainer.save_model(folder)
    forwards, backwards = 2 * sum(written), sum(written)
    if method == "zo":
        forwards, backwards = sum(written) + (trainer.found.rows if trainer.found else 0), 0
        result |= {"eps": trainer.args.eps, "learning_rate": trainer.args.learning_rate}
        result |= {"one_at_a_time": trainer.scorer.problem}
    return {**result, "completions": sum(written), "forwards": forwards, "backwards": backwards}


def of_grpo(reward: Reward, args: dict[str, Any], tune: str, completions: int | None) -> Any:
    """Return the trainer, and what it is made with."""
    from trl import GRPOConfig, GRPOTrainer

    torch.set_float32_matmul_precision("high")
    config = GRPOConfig(
        **args, max_steps=1_000_000, per_device_train_batch_size=completions or 256, lr_scheduler_type="constant",
        gradient_checkpointing=False, bf16=DEVICE == "cuda",
    )  # fmt: skip
    adapter = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    return GRPOTrainer, {"args": config, "reward_funcs": reward, "peft_config": adapter if tune == "lora" else None}


def evaluated(options: argparse.Namespace, folder: str, rows: list[Row], reward: Reward) -> Result:
    """Return the mean reward of greedy texts and of samples, with standard errors, and their shares of new pairs."""
    torch.set_float32_matmul_precision("highest")
    if Path(folder, "adapter_config.json").is_file():
        model: Any = AutoPeftModelForCausalLM.from_pretrained(folder, dtype=torch.float32).merge_and_unload()
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer, result = tokenizer_of(options.model), dict[str, Any]()
    drawn = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "num_return_sequences": SAMPLES}
    for name, draws in (("greedy", False), ("sampled", True)):
        set_seed(1234)
        how = {"max_new_tokens": NEW_TOKENS[options.task], "do_sample": draws, **(drawn if draws else {})}
        texts = written_by(model.to(DEVICE).eval(), tokenizer, [row["prompt"] for row in rows], how)
        chat, many = not isinstance(rows[0]["prompt"], str), len(texts) // len(rows)
        columns = {key: [row[key] for row in rows for _ in range(many)] for key in rows[0]}
        completions = [[{"role": "assistant", "content": text}] if chat else text for text in texts]
        given = {"prompts": columns.pop("prompt"), "completions": completions, **columns}
        rewards = np.reshape(reward(**given), (len(rows), many)).mean(1)
        pairs = [pair for ids in tokenizer(texts, add_special_tokens=False)["input_ids"] for pair in pairwise(ids)]
        result |= {name: rewards.mean().item(), f"{name}_error": sem(rewards).item()}
        result |= {f"{name}_distinct_2": len(set(pairs)) / max(1, len(pairs)), f"{name}_text": texts[0]}
    return result


def tokenizer_of(folder: str) -> Any:
    """Return the tokenizer, which pads on the left."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer


@torch.no_grad()
def written_by(model: Any, tokenizer: Any, prompts: list[Any], how: dict[str, Any]) -> list[str]:
    """Return what a model writes behind prompts, all at once."""
    if chat := not isinstance(prompts[0], str):
        prompts = tokenizer.apply_chat_template(prompts, add_generation_prompt=True, tokenize=False)
    inputs = tokenizer(prompts, add_special_tokens=not chat, padding=True, return_tensors="pt").to(model.device)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    written = model.generate(input_ids=ids, attention_mask=mask, pad_token_id=tokenizer.pad_token_id, **how)
    return tokenizer.batch_decode(written[:, ids.shape[1] :], skip_special_tokens=True)


def print_table(results: Sequence[Result]) -> None:
    """Print mean ± standard error over seeds, a line for each run."""
    print(f"\n| run | seeds | {' | '.join(COLUMNS)} |\n" + "|---" * (2 + len(COLUMNS)) + "|")
    for name in dict.fromkeys(result["run"] for result in results):
        own, cells = [result for result in results if result["run"] == name], []
        for key, digits in COLUMNS.values():
            values = [result[key] for result in own if key in result]
            error = f" ± {sem(values):.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):,.{digits}f}{error}" if values else "–")
        print(f"| {name} | {len(own)} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
