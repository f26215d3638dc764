"""Does a real model in half precision keep the fast paths, and what does a step cost?

    python benchmarks/real_model.py --model SMOLLM2 --sst2 SST2 --output runs/real --check

SMOLLM2 is an instruction-tuned model with a chat template, SST2 a folder with train.jsonl (sentence, label).

First the self-check, for every dtype, method with directions of its own and kind of scoring: by how much logits differ
between two members together and one at a time (`error`), and when a member's rows are batched in another way (`noise`),
beside how far members move them (`effect`) and their `spread`; and what was given up, if anything.
Then `zoreward tune` as it is typed: a reward function from a file on 32 members × 16 chat prompts × 48 tokens, full
weights and LoRA; accuracy on 64 rows of SST-2; and, with `--squad`, a file of SQuAD's rows with a column `answer`, F1
on 32 members × 16 prompts × 24 tokens. Seconds a step are the median after the first few. `--check` exits 1 where a
fast path was given up, or a step on a GPU took longer than its bar.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from zoreward.config import Prompting
from zoreward.data import load_rows, render, render_prompts
from zoreward.members import tuned_weights
from zoreward.methods import make_method
from zoreward.noise.families import family_options
from zoreward.records import Member
from zoreward.scoring import checked_engine, checked_generator, engine_of, load_model, load_tokenizer

TOPICS = "tea soup rain chess bread maps bees salt wool ice paint jazz trees trains clocks kites".split()
GIVEN_UP = ("one at a time", "without CUDA graphs")
# Steps that make graphs and caches.
WARM = 5
# Methods whose members differ in kind, with an ε that shows: dense and ±1 entries, factors, kept factors, products.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "spsa, dense": ("spsa", {"eps": 1e-3}),
    "fzoo": ("fzoo", {"eps": 1e-3}),
    "spsa, kronecker": ("spsa", {"eps": 1e-3, **family_options("kronecker")}),
    "spsa, low-rank": ("spsa", {"eps": 1e-2, **family_options("low-rank")}),
    "lozo": ("lozo", {"eps": 1e-2, "rank": 2}),
    "eggroll": ("eggroll", {"eps": 1e-2}),
    "subzero": ("subzero", {"eps": 1e-2, "rank": 24}),
}

REWARD = '''
def short_answer(completions, topic, **columns):
    """A short text that names its topic."""
    texts = [completion[0]["content"] for completion in completions]
    return [0.5 * (name in text) - abs(len(text) - 40) / 40 for text, name in zip(texts, topic)]
'''


def main() -> None:
    """Measure, print and write down."""
    options = parsed()
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    write_inputs(output)
    checks = [one for dtype in options.dtypes for one in self_checks(options, dtype)]
    for one in checks:
        print(json.dumps(one), flush=True)
    steps = [] if options.no_steps else steps_of(options)
    for one in steps:
        print(json.dumps(one), flush=True)
    (output / "real_model.json").write_text(json.dumps({"checks": checks, "steps": steps}, indent=1))
    lost = [one for one in checks + steps if one["given_up"]]
    slow = [one for one in steps if torch.cuda.is_available() and not one["seconds_a_step"] <= one["bar"]]
    if options.check and (lost or slow):
        sys.exit(f"given up: {lost}; too slow: {slow}")


def parsed() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--sst2", required=True)
    parser.add_argument("--squad")
    parser.add_argument("--output", default="runs/real")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16", "float16"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS], help="of the self-check")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--no-steps", action="store_true", help="the self-check alone")
    parser.add_argument("--check", action="store_true")
    return parser.parse_args()


def write_inputs(output: Path) -> None:
    """Write the chat prompts and the reward function."""
    asked = [{"prompt": [{"role": "user", "content": f"Write one line about {one}."}], "topic": one} for one in TOPICS]
    (output / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    (output / "reward.py").write_text(REWARD)


def self_checks(options: argparse.Namespace, dtype: str) -> list[dict[str, Any]]:
    """Run the self-check on choices and texts, with two members of each method."""
    model, tokenizer = load_model(options.model, dtype=dtype), load_tokenizer(options.model)
    tuned, pad = tuned_weights(model), tokenizer.pad_token_id or 0
    rows = load_rows(f"{options.sst2}/train.jsonl", limit=8)
    answers = Prompting(template="{sentence} It was", choices=[" terrible", " great"])
    examples = render(rows, tokenizer, answers, needs="choices")
    chats = render_prompts(load_rows(Path(options.output, "prompts.jsonl"), limit=4), tokenizer, Prompting())
    found = []
    for name in options.methods:
        method, given = METHODS[name]
        asked = make_method(method, seed=7, **given)
        members: list[Member] = [member for member in asked.ask(asked.init()).members if member][:2]
        start = time.perf_counter()
        reader = checked_engine(model, pad, examples, members, tuned=tuned)
        packer = "" if reader.packer is None else reader.packer.problem or ""
        given_up = reader.problem or packer
        if name == "spsa, dense" and torch.cuda.is_available() and reader.packer is None:
            given_up = given_up or "no graphs"
        kind = {"dtype": dtype, "method": name, "eps": given["eps"]}
        seconds = round(time.perf_counter() - start, 2)
        found.append({**kind, "needs": "choices", "given_up": given_up, "seconds": seconds, **told(reader)})
        start = time.perf_counter()
        generator = checked_generator(engine_of(model, pad, tuned=tuned), tokenizer, chats, members)
        given_up = generator.reader.problem or (generator.stepper and generator.stepper.problem) or ""
        seconds = round(time.perf_counter() - start, 2)
        found.append({**kind, "needs": "texts", "given_up": given_up, "seconds": seconds, **told(generator.reader)})
    return found


def told(reader: Any) -> dict[str, Any]:
    """Return what the self-check measured."""
    check = reader.check
    return {name: float(f"{getattr(check, name):.3g}") for name in ("error", "noise", "effect", "spread")}


def steps_of(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time the steps of a reward function from a file, of SQuAD's F1 and of accuracy on SST-2, as they are typed."""
    output = Path(options.output)
    members = ["--num-directions", "16", "--batch-size", "16", "--logging-steps", "1"]
    reward = ["tune", f"{output}/reward.py:short_answer", "--data", f"{output}/prompts.jsonl", "--max-new-tokens", "48"]
    squad = ["tune", "token-f1", "--data", str(options.squad), "--max-new-tokens", "24", "--chat", "off"]
    squad += ["--template", "Title: {title}\nContext: {context}\nQuestion: {question}\nAnswer:"]
    choices = ["tune", "accuracy", "--data", f"{options.sst2}/train.jsonl", "--batch-size", "64", "--chat", "off"]
    choices += ["--template", "{sentence} It was", "--choice", " terrible", "--choice", " great", "--label", "label"]
    runs = [
        timed("reward, full", [*reward, *members], options, options.steps, bar=0.2),
        timed("reward, LoRA", [*reward, *members, "--tune", "lora"], options, options.steps, bar=0.2),
        timed("choices", choices, options, 40 * options.steps, bar=1 / 60),
    ]
    return [*runs, timed("squad", [*squad, *members], options, options.steps, bar=1.0)] if options.squad else runs


def timed(name: str, words: list[str], options: argparse.Namespace, steps: int, *, bar: float) -> dict[str, Any]:
    """Return the median seconds of a step after the first few, and what the command said that it gave up."""
    command = [sys.executable, "-m", "zoreward", *words, "--model", options.model, "--dtype", "bfloat16", "--json"]
    folder = name.replace(", ", "-")
    command += ["--steps", str(steps), "--output", f"{options.output}/{folder}"]
    lines, times, start = [], {}, time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert run.stderr is not None and run.stdout is not None
        for line in run.stderr:
            lines.append(line)
            if found := re.match(r"step (\d+)/", line):
                times[int(found[1])] = time.perf_counter() - start
        out = run.stdout.read()
    Path(options.output, f"{folder}.log").write_text("".join(lines))
    if run.returncode:
        sys.exit(f"{' '.join(command)}\n{''.join(lines)}")
    logged = [(step, seconds) for step, seconds in times.items() if step > WARM]
    seconds = statistics.median((b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(logged))
    given_up = " ".join(line.strip() for line in lines if any(words in line for words in GIVEN_UP))
    peak = json.loads(out.splitlines()[-1]).get("peak_gb")
    result = {"run": name, "given_up": given_up, "seconds_a_step": round(seconds, 4), "bar": round(bar, 4)}
    return {**result, "seconds_to_the_first_log": round(next(iter(times.values())), 1), "peak_gb": peak}


if __name__ == "__main__":
    main()
