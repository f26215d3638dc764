"""A population that writes in one batch: against one member at a time, and against the plain model.

    python benchmarks/population.py --check

OPT-1.3B's shape with random weights in bfloat16: 32 low-rank members × 8 prompts × 64 new tokens. The population writes
as in `zoreward tune`, on a GPU by replayed CUDA graphs; one member alone and the plain model by `generate`. The three
are run in turn and medians are compared; each population has other members, as each step of tuning has. `--check`
exits 0 only if the population is at least 20 times as fast as its members one by one, and reaches at least 85 % of the
tokens a second of the plain model with as many rows.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from measure import SHAPES, medians, opt_config
from transformers import OPTForCausalLM

from zoreward.noise import LowRank
from zoreward.records import Member, Term
from zoreward.scoring import Generation, Stepper, engine_of
from zoreward.scoring.decoding import write


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="opt-1.3b")
    parser.add_argument("--members", type=int, default=32)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()

    torch.manual_seed(0)
    config = opt_config(options.shape)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        model = OPTForCausalLM._from_config(config, dtype=torch.bfloat16).eval().requires_grad_(False)
    reader = engine_of(model, 1)
    tokenizer: Any = SimpleNamespace(eos_token_id=None)  # so that no text ends before the others
    model.generation_config.eos_token_id = None
    prompts = [tuple(torch.randint(10, min(50000, config.vocab_size), (8,)).tolist()) for _ in range(options.prompts)]
    members: list[Member] = [
        (Term(k // 2, sign * 1e-2, LowRank(1)),) for k in range(options.members) for sign in (1, -1)
    ]
    members = members[: options.members]
    settings = Generation(max_new_tokens=options.new_tokens)

    stepper = Stepper(reader) if device == "cuda" else None
    drawn = iter(range(1, sys.maxsize))

    def population() -> None:
        first = next(drawn) * len(members)
        some = [tuple(replace(term, seed=first + term.seed) for term in member) for member in members]
        write(reader, tokenizer, prompts, range(len(prompts)), some, settings, stepper=stepper)

    def one_member() -> None:
        write(reader, tokenizer, prompts, range(len(prompts)), members[:1], settings)

    def plain() -> None:
        ids = torch.tensor(prompts * options.members, device=device)
        mask = torch.ones_like(ids)
        with torch.no_grad():
            model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=options.new_tokens,
                min_new_tokens=options.new_tokens,
                do_sample=False,
                pad_token_id=1,
            )

    runs = {"population": population, "one member": one_member, "plain": plain}
    median = medians(runs, options.rounds, torch.device(device))
    if stepper is not None and stepper.problem:
        print(f"by generate: {stepper.problem}")
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, {options.shape}, {options.members} × {options.prompts} prompts")
    for label, seconds in median.items():
        print(f"{seconds:8.3f} s  {label}")
    faster = options.members * median["one member"] / median["population"]
    share = median["plain"] / median["population"]
    print(f"against one at a time: {faster:.1f}×; share of the plain model's tokens a second: {share:.1%}")
    if options.check and not (faster >= 20 and share >= 0.85):
        sys.exit("below the bar: 20× and 85 %")


if __name__ == "__main__":
    main()
