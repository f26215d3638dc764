"""What a tuning step costs beside the two forward passes that it needs: time and memory, full weights and low rank.

    python benchmarks/step.py --check                                # on one GPU of 80 GB: OPT-13B's and 30B's shapes
    python benchmarks/step.py --shape opt-66b                        # on one GPU of 141 GB
    python benchmarks/step.py --shape tiny --rows 4 --tokens 16      # anywhere

Random weights in bfloat16. A step is what `zoreward tune` does for candidates of one token: ask, score both members on
the same rows, tell, update. The bound is two plain forward passes of the same rows with the logits of the last token.
Beside them the plain way, as published: +ε, forward, −2ε, forward, +ε, update, `torch.normal` drawn anew each time.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from kernels import plain_pass
from measure import SHAPES, Result, commit, finish, medians, opt_config, record
from transformers import OPTForCausalLM

from zoreward.members import members_at, update_
from zoreward.methods import SPSA
from zoreward.noise import family_of
from zoreward.records import Example, Term, Update
from zoreward.scoring import LocalEngine, candidate_logprobs, engine_of, needed_memory
from zoreward.trainer.optimizer import old_objects_left_alone

# The bars of OPT-13B, by tokens a row: (dense, low-rank) over two plain forward passes.
BARS = {64: (1.60, 1.10), 400: (1.10, 1.10)}
MEMORY_BAR = 1.05
EPS, LR = 1e-3, 1e-6
IN_A_ROW = 3


def random_model(shape: str, device: torch.device) -> OPTForCausalLM:
    """OPT of a size, without dropout, weights as they come."""
    config = opt_config(shape)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            return OPTForCausalLM(config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)


def examples_of(rows: int, tokens: int) -> list[Example]:
    """Rows of random tokens with two candidates of one token."""
    ids = torch.randint(10, 500, (rows, tokens), generator=torch.Generator().manual_seed(0)).tolist()
    return [Example({}, "", ("a", "b"), 0, tuple(row), ((5,), (6,))) for row in ids]


def in_a_row(work: Callable[[], None]) -> Callable[[], None]:
    """The work several times, without waiting in between, as a run does its steps."""

    def several() -> None:
        for _ in range(IN_A_ROW):
            work()

    return several


@torch.no_grad()
def forwards(model: OPTForCausalLM, ids: torch.Tensor, times: int = 2) -> None:
    """Plain forward passes with the logits of the last token."""
    for _ in range(times):
        model(input_ids=ids, attention_mask=torch.ones_like(ids), logits_to_keep=1, use_cache=False)


def step(reader: LocalEngine, examples: list[Example], rank: int) -> Callable[[], None]:
    """A step of ours."""
    spsa = SPSA(eps=EPS, lr=LR, rank=rank)
    state = spsa.init()

    def once() -> None:
        nonlocal state
        query = spsa.ask(state)
        scores = candidate_logprobs(reader, examples, query.members)[:, :, 0].mean(axis=1)
        update, state = spsa.tell(state, query, scores.tolist())
        update_(reader.model, update, tuned=reader.tuned)

    return once


def plain_step(model: OPTForCausalLM, ids: torch.Tensor) -> None:
    """A step as published."""
    weights = list(model.parameters())
    with torch.no_grad():
        plain_pass(weights, EPS)
        forwards(model, ids, 1)
        plain_pass(weights, -2 * EPS)
        forwards(model, ids, 1)
        plain_pass(weights, EPS)
        plain_pass(weights, 1e-9)


def parts_of(reader: LocalEngine, ids: torch.Tensor) -> dict[str, Callable[[], None]]:
    """What a step is made of."""
    families = {rank: family_of(rank=rank) for rank in (0, 1)}
    couples = {rank: tuple((Term(1, sign * EPS, family),) for sign in (1, -1)) for rank, family in families.items()}

    @torch.no_grad()
    def members(rank: int) -> None:
        with members_at(reader.model, couples[rank], tuned=reader.tuned):
            forwards(reader.model, ids.repeat(2, 1), 1)

    def update(rank: int) -> None:
        update_(reader.model, Update(0.0, (Term(1, 1e-9, families[rank]),), 2), tuned=reader.tuned)

    return {
        "dense: both members": lambda: members(0),
        "dense: update": lambda: update(0),
        "low rank: both members": lambda: members(1),
        "low rank: update": lambda: update(1),
    }


@contextmanager
def peak(found: dict[str, float], name: str, device: torch.device) -> Iterator[None]:
    """Note the most memory that was taken inside, in GB."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    yield
    found[name] = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else 0.0


def peaks(reader: LocalEngine, examples: list[Example], ids: torch.Tensor) -> dict[str, float]:
    """The most memory of a plain forward pass, and of steps."""
    found: dict[str, float] = {}
    device = ids.device
    with peak(found, "plain forward", device):
        forwards(reader.model, ids, 1)
    with peak(found, "dense step", device):
        step(reader, examples, 0)()
    with peak(found, "low-rank step", device):
        step(reader, examples, 1)()
    return found


def said(reader: LocalEngine, examples: list[Example]) -> float:
    """What is said of a dense step before a run, in GB."""
    spsa, device = SPSA(eps=EPS, lr=LR), next(reader.model.parameters()).device
    members = spsa.ask(spsa.init()).members
    found = needed_memory(
        reader.model,
        reader.tuned,
        members,
        examples,
        rows=len(examples),
        new_tokens=0,
        copied=0,
        device=device,
    )
    return 0.0 if found is None else (found.certain + found.activations) / 1e9


def compare(reader: LocalEngine, rows: int, tokens: int, rounds: int, bars: bool) -> list[Result]:
    """Time and memory of a step, over those of plain forward passes."""
    device = next(reader.model.parameters()).device
    examples = examples_of(rows, tokens)
    ids = torch.tensor([example.prompt_tokens for example in examples], device=device)
    memory = peaks(reader, examples, ids)
    works = {
        "two plain forward passes": lambda: forwards(reader.model, ids),
        "dense step": step(reader, examples, 0),
        "low-rank step": step(reader, examples, 1),
        **parts_of(reader, ids),
        "step as published": lambda: plain_step(reader.model, ids),
    }
    found = medians({name: in_a_row(work) for name, work in works.items()}, rounds, device)
    found = {name: seconds / IN_A_ROW for name, seconds in found.items()}
    bound = found.pop("two plain forward passes")
    where = f"{rows} × {tokens}: "
    dense, low_rank = BARS.get(tokens, (None, None)) if bars else (None, None)
    most = {"dense step": dense, "low-rank step": low_rank}
    results = [Result(f"{where}two plain forward passes", bound * 1e3, "ms")]
    results += [Result(where + name, seconds / bound, "×", most=most.get(name)) for name, seconds in found.items()]
    memory["dense step, as said before"] = said(reader, examples)
    for name, gigabytes in memory.items():
        results.append(Result(f"{where}peak of a {name}", gigabytes, "GB"))
    if memory["plain forward"]:
        share = memory["dense step"] / memory["plain forward"]
        results.append(
            Result(
                f"{where}peak of a dense step, over a plain forward's", share, "×", most=MEMORY_BAR if bars else None
            )
        )
    return results


def once(reader: LocalEngine, rows: int, tokens: int) -> list[Result]:
    """One step on full weights: its time and its memory."""
    device = next(reader.model.parameters()).device
    examples = examples_of(rows, tokens)
    memory: dict[str, float] = {}
    work = step(reader, examples, 0)
    with peak(memory, "dense step", device):
        found = medians({"dense step": work}, 2, device)
    where = f"{rows} × {tokens}: "
    return [
        Result(f"{where}dense step", found["dense step"] * 1e3, "ms"),
        Result(f"{where}peak of a dense step", memory["dense step"], "GB"),
        Result(f"{where}peak of a dense step, as said before", said(reader, examples), "GB"),
    ]


def measure(shape: str, options: argparse.Namespace, device: torch.device) -> list[Result]:
    """All about one shape."""
    model = random_model(shape, device)
    reader = engine_of(model, 1)
    results: list[Result] = []
    large = shape in ("opt-30b", "opt-66b")
    for tokens in options.tokens[:1] if large else options.tokens:
        if large:
            results += once(reader, options.rows, tokens)
        else:
            results += compare(reader, options.rows, tokens, options.rounds, shape == "opt-13b")
    weights = sum(weight.numel() for weight in model.parameters())
    record("step", results, device, "bfloat16", f"{shape}, {weights / 1e9:.2f} G weights", options.commit)
    return results


def main() -> None:
    """Measure, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, action="append", help="may be given several times")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--tokens", type=int, action="append", help="may be given several times; 64 and 400")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--commit", default=commit())
    parser.add_argument("--check", action="store_true", help="exit with 1 if a bar is missed")
    options = parser.parse_args()
    options.tokens = options.tokens or [64, 400]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    results: list[Result] = []
    for shape in options.shape or ["opt-13b", "opt-30b"]:
        with old_objects_left_alone():
            results += measure(shape, options, device)
        gc.collect()
    finish(results, options.check)


if __name__ == "__main__":
    main()
