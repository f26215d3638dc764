"""How much of a tuning step on a CPU is the engine's own work (noise, perturbing, updating), and how much is forward.

    python benchmarks/cpu_step.py --model MODEL --data sst2/train.jsonl

Beside it the plain way, as published: three passes of `torch.randn` and add for the two members, one for the update;
and two forward passes of the model as it is, each over all rows at once, with logits at the answers' place alone.
"""

from __future__ import annotations

import argparse
import platform
import random
import statistics
import time
from collections.abc import Callable

import torch
from peft import LoraConfig, get_peft_model

from zoreward.config import Prompting
from zoreward.data import load_rows, render
from zoreward.members import members_at, update_
from zoreward.methods import SPSA
from zoreward.records import Example
from zoreward.registry import get_objective
from zoreward.scoring import engine_of, load_model, load_tokenizer, member_scores
from zoreward.scoring.forward import padded


def seconds(work: Callable[[], object]) -> float:
    """Return how long `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@torch.no_grad()
def plain_passes(model: torch.nn.Module) -> None:
    """What a step costs beside its two forward passes where weights are perturbed in place with torch's noise."""
    for scale in (1e-9, -2e-9, 1e-9, 1e-12):
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=scale)


@torch.no_grad()
def two_forward_passes(model: torch.nn.Module, examples: list[Example], pad: int) -> None:
    """Read all prompts twice, padded on the left, for the logits of the token behind them."""
    ids, mask = padded([example.prompt_tokens for example in examples], pad, 1, torch.device("cpu"), left=True)
    for _ in range(2):
        model(input_ids=ids, attention_mask=mask, logits_to_keep=1, use_cache=False).logits.float().log_softmax(-1)


def main() -> None:
    """Measure, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--tune", choices=["full", "lora"], default="full")
    parser.add_argument("--dtype", default="auto")
    options = parser.parse_args()

    tokenizer = load_tokenizer(options.model)
    rows = random.Random(0).sample(load_rows(options.data), options.batch_size)
    asked = Prompting(template="{sentence} It was", choices=[" terrible", " great"])
    examples = render(rows, tokenizer, asked, needs="choices")
    model = load_model(options.model, dtype=options.dtype).requires_grad_(False)
    if options.tune == "lora":
        lora = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        model = get_peft_model(model, lora).requires_grad_(False).eval()
    reader = engine_of(model, tokenizer.pad_token_id)
    objective = get_objective("accuracy")
    spsa = SPSA(eps=5e-3, lr=3e-5, seed=1)
    state = spsa.init()
    perturbing, updating, steps, plain, passes = [], [], [], [], []
    for _ in range(options.steps):
        query = spsa.ask(state)

        def perturb(query=query) -> None:
            with members_at(model, query.members, tuned=reader.tuned):
                pass

        perturbing.append(seconds(perturb))
        start = time.perf_counter()
        scores = member_scores(reader, objective, examples, query.members)
        update, state = spsa.tell(state, query, scores)
        updating.append(seconds(lambda update=update: update_(model, update, tuned=reader.tuned)))
        steps.append(time.perf_counter() - start)
        plain.append(seconds(lambda: plain_passes(model)))
        passes.append(seconds(lambda: two_forward_passes(model, examples, tokenizer.pad_token_id)))
    step, ours = statistics.median(steps), statistics.median(perturbing) + statistics.median(updating)
    weights = sum(weight.numel() for weight in model.parameters())
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{weights / 1e6:.1f} M weights, {options.batch_size} rows, medians of {options.steps} steps")
    print(f"step {step:.3f} s, of which noise, perturbing and update {ours:.3f} s: {ours / step:.1%}")
    print(f"two perturbed copies {statistics.median(perturbing):.3f} s, update {statistics.median(updating):.3f} s")
    print(f"four plain passes with torch.randn {statistics.median(plain):.3f} s")
    ratio = statistics.median(one / other for one, other in zip(steps, passes, strict=True))
    print(f"two plain forward passes {statistics.median(passes):.3f} s: a step takes {ratio:.3f} of them")


if __name__ == "__main__":
    main()
