"""How near the kernels come to the speed of memory: a copy of the same device, in the same run, is the bound.

    python benchmarks/kernels.py --check                      # on one GPU: 2^30 weights in bfloat16
    python benchmarks/kernels.py --weights 1000000 --one-tensor  # anywhere, without bars

Beside them the plain way, as published: `torch.normal` in the weights' precision, then an addition, four times a step.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from measure import Result, commit, finish, medians, record

from zoreward.members.tuned import by_kernel
from zoreward.noise import Dense, LowRank
from zoreward.records import Term, Update

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
COUPLE = ((Term(1, 1e-3),), (Term(1, -1e-3),))
# Passes that are timed together: queued one behind the other, as those of a model's modules are.
QUEUED = 8


def opt_125m() -> list[tuple[int, ...]]:
    """The shapes of OPT-125M's 196 tensors."""
    attention = [(768, 768), (768,)] * 4
    layer = [*attention, (768,), (768,), (3072, 768), (3072,), (768, 3072), (768,), (768,), (768,)]
    return [(50272, 768), (2050, 768), (768,), (768,), *layer * 12]


def plain_pass(weights: list[torch.Tensor], scale: float) -> None:
    """One of the four passes of a step as published: noise in the weights' precision, then an addition."""
    for weight in weights:
        weight.add_(torch.normal(0.0, 1.0, weight.shape, dtype=weight.dtype, device=weight.device), alpha=scale)


def passes(weights: list[torch.Tensor], device: torch.device) -> dict[str, Callable[[], object]]:
    """What is measured, by name."""
    ((kernel, pairs),) = by_kernel([(weight, stream) for stream, weight in enumerate(weights)], {})
    one, both = kernel.perturb_all(pairs, COUPLE[:1]), kernel.perturb_all(pairs, COUPLE)
    others = {
        f"{what}, {distribution}": work
        for distribution in ("rademacher", "gaussian")
        for term in [Term(2, 1e-6, Dense(distribution))]
        for what, work in (
            ("perturbed copy", lambda term=term: kernel.perturb_all(pairs, ((term,),), one)),
            ("update, one term", lambda term=term: kernel.replay_all_(pairs, [Update(0.0, (term,), 3)])),
        )
    }
    return {
        "perturbed copy": lambda: kernel.perturb_all(pairs, COUPLE[:1], one),
        "both perturbed copies of a couple": lambda: kernel.perturb_all(pairs, COUPLE, both),
        "perturbed copy, in new memory": lambda: kernel.perturb_all(pairs, COUPLE[:1]),
        "update, one term": lambda: kernel.replay_all_(pairs, [Update(0.0, (Term(2, 1e-6),), 3)]),
        "update, one low-rank term": lambda: kernel.replay_all_(pairs, [Update(0.0, (Term(2, 1e-6, LowRank(1)),), 3)]),
        "16 updates in one pass": lambda: kernel.replay_all_(
            pairs, [Update(0.0, (Term(n, 1e-6),), n) for n in range(16)]
        ),
        **others,
        "plain pass, torch.normal": lambda: plain_pass(weights, 1e-9),
    }


STREAMS = {"perturbed copy": 2, "both perturbed copies of a couple": 3}
"""How often the weights' bytes are read or written; 2 for whatever is not named."""


def queued(work: Callable[[], object]) -> Callable[[], object]:
    """The work, QUEUED times."""

    def several() -> None:
        for _ in range(QUEUED):
            work()

    return several


def large(options: argparse.Namespace, device: torch.device) -> list[Result]:
    """One matrix."""
    side = int(options.weights**0.5)
    weight = torch.randn(side, side, device=device, dtype=DTYPES[options.dtype])
    other = torch.empty_like(weight)
    works = {"copy": lambda: other.copy_(weight), **passes([weight], device)}
    found = medians({name: queued(work) for name, work in works.items()}, options.rounds, device)
    bandwidth = QUEUED * 2 * weight.nbytes / found["copy"]
    results = [Result("copy", bandwidth / 1e9, "GB/s")]
    for name in list(found)[1:]:
        share = QUEUED * STREAMS.get(name, 2) * weight.nbytes / found[name] / bandwidth
        bar = 0.85 if name in ("perturbed copy", "both perturbed copies of a couple", "update, one term") else None
        results.append(Result(f"{name}, share of the copy's bandwidth", share, "", least=bar))
    return results


def many(options: argparse.Namespace, device: torch.device) -> list[Result]:
    """Hundreds of tensors."""
    weights = [torch.randn(shape, device=device, dtype=DTYPES[options.dtype]) for shape in opt_125m()]
    flat = torch.cat([weight.view(-1) for weight in weights])
    other = torch.empty_like(flat)

    works = {"copy": queued(lambda: other.copy_(flat))}
    works |= {name: queued(work) for name, work in passes(weights, device).items()}
    found = medians(works, options.rounds, device)
    results = []
    for name in list(found)[1:]:
        bound = STREAMS.get(name, 2) / 2 * found["copy"]
        bar = 3.0 if name in ("perturbed copy", "update, one term") else None
        results.append(Result(f"OPT-125M: {name}, over its bandwidth time", found[name] / bound, "×", most=bar))
    return results


def main() -> None:
    """Measure, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=int, default=1 << 30)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--one-tensor", action="store_true", help="leave out the 196 tensors of OPT-125M")
    parser.add_argument("--commit", default=commit())
    parser.add_argument("--check", action="store_true", help="exit with 1 if a bar is missed")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    results = large(options, device) + ([] if options.one_tensor else many(options, device))
    record("kernels", results, device, options.dtype, f"{options.weights} weights", options.commit)
    finish(results, options.check)


if __name__ == "__main__":
    main()
