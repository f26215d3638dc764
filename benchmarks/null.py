"""The null hypothesis of a tuned model: the best of many random moves of the base, each as far as tuning moved it.

    python benchmarks/null.py preference --model BASE --tuned RUN/model --data dev.jsonl --count 3200

A random direction that is as long as ‖θ_tuned − θ_base‖ costs one look at the dev rows, and many looks find a lucky
one. What tuning has found is worth what it is better than the best of as many looks as tuning itself took: steps ×
members. Directions are of the run's own kind (`--rank 1`, or 0 for dense ones), ± each; the best is picked by the dev
rows, which favours the null.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

from torch import nn

from zoreward import get_objective
from zoreward.config import Prompting
from zoreward.data import load_rows
from zoreward.noise import derive_seed, family_of
from zoreward.records import Member, Scored, Term
from zoreward.scoring import (
    Generation,
    Scorer,
    engine_of,
    examples_of,
    load_model,
    load_tokenizer,
    prepare_tokenizer,
    with_base,
)

# Members that share a forward pass.
AT_ONCE = 32


def distance(model: nn.Module, base: nn.Module) -> float:
    """Return ‖θ − θ_base‖ over all weights."""
    own = dict(base.named_parameters())
    squares = [
        float((weight.detach().double().cpu() - own[name].detach().double().cpu()).square().sum())
        for name, weight in model.named_parameters()
    ]
    return math.sqrt(math.fsum(squares))


def random_members(model: nn.Module, norm: float, count: int, *, rank: int, seed: int) -> list[Member]:
    """Return `count` members at a distance of `norm` from θ, two for each random direction.

    The distance is that of the mean: entries of z have variance 1, so ‖z‖² is the number of weights that z moves. A
    direction of rank 1 is some per cent longer or shorter.
    """
    family = family_of(rank=rank)
    sizes = [weight.numel() for weight in model.parameters() if family.moves(weight.ndim)]
    coefficient = norm / math.sqrt(sum(sizes))
    seeds = [derive_seed(seed, 0, k) for k in range(-(-count // 2))]
    return [(Term(one, sign * coefficient, family),) for one in seeds for sign in (1, -1)][:count]


def scores_of_random(scorer: Scorer, examples: Sequence, members: Sequence[Member]) -> list[Scored]:
    """Return what each random member is worth."""
    found: list[Scored] = []
    for start in range(0, len(members), AT_ONCE):
        found += scorer.score(examples, members[start : start + AT_ONCE])
    return found


def null(
    objective: str, base: str, tuned: str, rows: list[dict], *, count: int, rank: int, seed: int, dtype: str = "float32"
) -> dict:
    """Return the norm of the tuned move, and the scored random moves of the same norm."""
    model, other = load_model(base, dtype="float32"), load_model(tuned, dtype="float32")
    tokenizer = prepare_tokenizer(load_tokenizer(base))
    norm = distance(other, model)
    del other
    model = load_model(base, dtype=dtype)
    found = get_objective(objective)
    examples = examples_of(rows, tokenizer, found.needs, Prompting(), max_new_tokens=0)
    reader = engine_of(model.eval().requires_grad_(False), tokenizer.pad_token_id)
    if found.compares_with_base:
        examples = with_base(reader, examples)
    scorer = Scorer(reader, found, Generation())
    members = random_members(model, norm, count, rank=rank, seed=seed)
    return {"norm": norm, "scored": scores_of_random(scorer, examples, members)}


def main() -> None:
    """Score random moves, print the best."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("objective", help="one of given answers: preference, accuracy on pairs, …")
    for name in ("model", "tuned", "data"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--count", type=int, default=3200)
    parser.add_argument("--rank", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = load_rows(options.data)
    found = null(
        options.objective, options.model, options.tuned, rows,
        count=options.count, rank=options.rank, seed=options.seed,
    )  # fmt: skip
    scores = sorted(one.score for one in found["scored"])
    print(f"‖Δθ‖ {found['norm']:.4f}, {len(scores)} random moves as long, {len(rows)} rows")
    print(f"best {scores[-1]:.4f}, median {scores[len(scores) // 2]:.4f}, worst {scores[0]:.4f}")


if __name__ == "__main__":
    main()
