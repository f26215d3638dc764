"""A population of LoRA members in one forward pass, against the plain model with as many rows.

    python benchmarks/lora_population.py --check
    python benchmarks/lora_population.py --shape tiny --members 8 --rounds 2   # on a CPU

OPT-1.3B's shape, random weights, bfloat16, LoRA of rank 8 on q and v; 32 dense members (16 antithetic couples) × 8 rows
of 64 tokens. Timed are: the plain model without an adapter on all rows; the members together while their weights are
kept, as in `generate` or in a second batch; the same with making their weights, as once a step; the members one at a
time. The runs are done in turn and medians are compared. `--check` exits 0 only if the members together, their weights
made anew, take at most 1.5 times as long as the plain model, and their logits are those of one at a time.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from contextlib import ExitStack
from typing import Any

import torch
from measure import SHAPES, opt_config, timed
from transformers import OPTForCausalLM

from zoreward.members import adapted, called_model, lora_config, members_at, tuned_weights, update_
from zoreward.noise import family_of
from zoreward.records import Member, Term, Update


@torch.no_grad()
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="opt-1.3b")
    parser.add_argument("--members", type=int, default=32)
    parser.add_argument("--rows", type=int, default=8, help="of each member")
    parser.add_argument("--tokens", type=int, default=64, help="of each row")
    parser.add_argument("--rank", type=int, default=8, help="of the adapter")
    parser.add_argument("--noise-rank", type=int, default=0, help="of the directions; 0: dense")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()

    torch.manual_seed(0)
    config = opt_config(options.shape)
    cuda = torch.cuda.is_available()
    dtype = torch.bfloat16 if cuda else torch.float32
    place = torch.device("cuda" if cuda else "cpu")
    with place:
        plain, base = (OPTForCausalLM._from_config(config, dtype=dtype).eval().requires_grad_(False) for _ in range(2))
    peft_model = adapted(base, lora_config(base, options.rank, 16), 0).eval().requires_grad_(False)
    model, tuned = called_model(peft_model), tuned_weights(peft_model)
    update_(model, Update(0.0, (Term(7, 1e-2),), 0), tuned=tuned)  # B is no longer 0
    family = family_of(rank=options.noise_rank)
    couples = [(Term(k, sign * 1e-2, family),) for k in range(options.members) for sign in (1, -1)]
    members: list[Member] = couples[: options.members]
    own = torch.randint(10, config.vocab_size, (options.rows, options.tokens), device=next(model.parameters()).device)
    rows = own.repeat(options.members, 1)

    def last(some: Any, ids: torch.Tensor) -> torch.Tensor:
        return some(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, logits_to_keep=1).logits

    def together() -> torch.Tensor:
        with members_at(model, members, tuned=tuned):
            return last(model, rows)

    def alone() -> torch.Tensor:
        found = []
        for member in members:
            with members_at(model, (member,), tuned=tuned):
                found.append(last(model, own))
        return torch.cat(found)

    difference = float((together().float() - alone().float()).abs().max())
    spread = float(alone().float().std())
    times: dict[str, list[float]] = {name: [] for name in ("plain", "together, kept", "together", "one at a time")}
    for _ in range(options.rounds + 1):  # the first is not counted
        times["plain"].append(timed(lambda: last(plain, rows), place))
        with ExitStack() as stack:
            stack.enter_context(members_at(model, members, tuned=tuned))
            last(model, rows)
            times["together, kept"].append(timed(lambda: last(model, rows), place))
        times["together"].append(timed(together, place))
        times["one at a time"].append(timed(alone, place))
    median = {name: statistics.median(values[1:]) for name, values in times.items()}
    device = torch.cuda.get_device_name() if cuda else "CPU"
    count = sum(weight.numel() for weight in tuned.weights.values())
    print(f"{device}, torch {torch.__version__}, {options.shape}, {dtype}, {count:,} weights of the adapter")
    print(f"{options.members} members × {options.rows} rows × {options.tokens} tokens")
    for name, seconds in median.items():
        print(f"{seconds * 1e3:9.2f} ms  {name:16} {seconds / median['plain']:.2f}× plain")
    print(f"largest difference of a logit to one at a time: {difference:.1e}; their spread: {spread:.2f}")
    # bfloat16 logits of some four spreads have steps of 2^-6 spreads, and rounding in the layers before moves several
    same = difference <= (8 if cuda else 1e-3) * spread * 2.0**-6
    if options.check and not (median["together"] <= 1.5 * median["plain"] and same):
        sys.exit("below the bar: 1.5 times the plain model, and the same logits")


if __name__ == "__main__":
    main()
