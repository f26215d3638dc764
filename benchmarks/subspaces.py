"""What SubZero's subspaces cost: the bases, once in so many steps, and the factors and the update of each step.

    python benchmarks/subspaces.py --shape opt-1.3b              # one GPU
    python benchmarks/subspaces.py --bases                       # anywhere

Beside them directions of the same rank in no subspace, as LOZO's are; and for the bases Gram–Schmidt, twice, sums by
halves, one operation at a time, which gives the same bits everywhere too.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial

import torch
from measure import Result, commit, finish, medians, opt_config, record
from transformers import OPTForCausalLM

from zoreward.kernels import portable
from zoreward.kernels.subspaces import Subspaces, matrices_of
from zoreward.members.tuned import by_kernel
from zoreward.noise import LowRank, Subspace
from zoreward.records import Term, Update


def by_halves(terms: torch.Tensor, axis: int) -> torch.Tensor:
    """The sum over an axis: the second half is added to the first until one number is left."""
    while (count := terms.shape[axis]) > 1:
        half = (count + 1) // 2
        terms.narrow(axis, 0, count - half).add_(terms.narrow(axis, half, count - half))
        terms = terms.narrow(axis, 0, half)
    return terms.select(axis, 0)


def gram_schmidt(lines: torch.Tensor) -> torch.Tensor:
    """Orthogonal lines of float64 matrices (·, r, size), unscaled."""
    q = torch.zeros_like(lines)
    squares = lines.new_ones(lines.shape[:2])
    for k in range(lines.shape[1]):
        v = lines[:, k]
        for _ in range(2 if k else 0):
            shares = by_halves(q[:, :k] * v[:, None], 2) / squares[:, :k]
            v = v - by_halves(q[:, :k] * shares[..., None], 1)
        q[:, k], squares[:, k] = v, by_halves(v * v, 1)
    return q


def bases_by_gram_schmidt(weights: Sequence[torch.Tensor], rank: int) -> None:
    """Orthogonal lines for both sides of each matrix, those of one shape together; without drawing."""
    shapes = [tuple(weight.shape) for weight in weights]
    for shape in set(shapes):
        for side in shape:
            at_once = max(1, (1 << 22) // (side * rank))
            for first in range(0, shapes.count(shape), at_once):
                count = min(at_once, shapes.count(shape) - first)
                gram_schmidt(torch.randn(count, rank, side, device=weights[0].device, dtype=torch.float64))


def costs(options: argparse.Namespace, device: torch.device, rank: int) -> list[Result]:
    """All that is measured of one rank."""
    with torch.device("meta"):
        shapes = [weight.shape for weight in OPTForCausalLM(opt_config(options.shape)).parameters() if weight.ndim == 2]
    weights = [torch.zeros(shape, device=device, dtype=torch.bfloat16) for shape in shapes]
    ((kernel, pairs),) = by_kernel([(weight, stream) for stream, weight in enumerate(weights)], {})
    terms = {"LOZO": Term(1, 1e-6, LowRank(rank)), "SubZero": Term(1, 1e-6, Subspace(rank, 2))}

    def make() -> Subspaces:
        subspaces = Subspaces(getattr(kernel, "_functions", portable).normals)
        subspaces.hold(matrices_of(pairs), [terms["SubZero"]], device)
        return subspaces

    held = sum(side.nbytes for pair in make().held.values() for side in pair)
    results = [Result(f"rank {rank}: held", held / 1e6, "MB")]
    works: dict[str, Callable[[], object]] = {"bases": make}
    works["bases by Gram–Schmidt, less the drawing"] = lambda: bases_by_gram_schmidt(weights, rank)
    for name, term in terms.items() if not options.bases else ():
        works[f"{name}, factors"] = partial(kernel.factors_all, pairs, [term])
        works[f"{name}, update"] = partial(kernel.replay_all_, pairs, [Update(0.0, (term,), 3)])
    found = medians(works, options.rounds, device)
    return results + [Result(f"rank {rank}: {name}", seconds, "s") for name, seconds in found.items()]


def main() -> None:
    """Measure, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="opt-125m")
    parser.add_argument("--ranks", type=int, nargs="+", default=[24, 64])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bases", action="store_true", help="measure the bases alone")
    parser.add_argument("--commit", default=commit())
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    results = [result for rank in options.ranks for result in costs(options, device, rank)]
    record("subspaces", results, device, "bfloat16", options.shape, options.commit)
    finish(results, check=False)


if __name__ == "__main__":
    main()
