"""Contract under test: `--noise kronecker`, z = A ⊗ B for matrices and nothing for other tensors.

- A's shape is that of the divisors nearest to the roots; z is NumPy's Kronecker product of numbers of the reference.
- Copies and updates are the formula bit for bit: cut anywhere, in every dtype, beside dense and low-rank terms, with
  decay, anchor and stochastic rounding; the CPU's kernel, plain torch and the GPU's give the same.
- Every method that takes families runs with it, goes on after a kill, and is replayed from journal and trajectory.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import reference
from conftest import random_model
from test_replay import bits
from test_resume import killed, lines, same, trainer, weights
from zoreward import replay
from zoreward.config import METHOD_DEFAULTS
from zoreward.kernels import cpu, portable
from zoreward.kernels.subspaces import Keeping
from zoreward.methods import make_method
from zoreward.noise import LowRank, family_of
from zoreward.noise import definition as noise
from zoreward.noise.kronecker import Kronecker, divisor
from zoreward.records import InputError, Term, Update

DTYPES = [
    *(torch.float32, torch.bfloat16),
    *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in (torch.float16, torch.float64)),
]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def z_of(seed: int, stream: int, shape: tuple[int, int], distribution: str = "normal") -> np.ndarray:
    """The direction, by the formula: m₁ and n₁ found among all divisors, A ⊗ B by NumPy."""
    if 0 in shape:
        return np.zeros(shape, np.float32)
    near = [min((abs(d - size**0.5), d) for d in range(1, size + 1) if size % d == 0)[1] for size in shape]
    shapes = near, [size // part for size, part in zip(shape, near, strict=True)]
    a, b = (
        reference.entries(seed, stream, range(math.prod(own)), purpose, distribution).reshape(own)
        for own, purpose in zip(shapes, (8, 9), strict=True)
    )
    return np.kron(a, b)


def test_a_divisor_is_the_nearest_to_the_root():
    for size in range(1, 500):
        assert divisor(size) == min((abs(d - size**0.5), d) for d in range(1, size + 1) if size % d == 0)[1]
    assert [divisor(size) for size in (0, 768, 50_257, 152_064)] == [1, 24, 29, 384]


@pytest.mark.parametrize("distribution", ["normal", "gaussian", "rademacher"])
@pytest.mark.parametrize("shape", [(1, 1), (6, 4), (7, 12), (36, 30), (5, 3)])
def test_a_direction_is_the_kronecker_product(shape, distribution):
    for seed, stream in ((0, 7), (2**64 - 1, 2**32 - 1)):
        got = Kronecker(distribution).entries(seed, stream, shape, 0, math.prod(shape))
        expected = z_of(seed, stream, shape, distribution).reshape(-1)
        assert got.dtype == np.float32 and got.tobytes() == expected.tobytes()


def test_a_direction_has_full_rank_mean_0_and_variance_1():
    z = np.stack([Kronecker().entries(seed, 7, (24, 20), 0, 480).astype(np.float64) for seed in range(400)])
    assert np.linalg.matrix_rank(z[0].reshape(24, 20)) == 20
    # Products of two independent numbers: mean 0, also given the other; mean square 1, with E[z⁴] = 2.94² per entry.
    # A direction has 16 numbers A and 30 numbers B, so its mean square varies by 1.94/16 + 1.94/30 or so: 5 sigmas.
    assert abs(z.mean()) < 5 / np.sqrt(z.size)
    assert abs((z**2).mean() - 1) < 5 * np.sqrt((1.94 / 16 + 1.94 / 30) / 400)


def moved(weight: torch.Tensor, stream: int, update: Update, base: torch.Tensor) -> torch.Tensor:
    """A matrix or a vector after an update, by the formulas, one float operation at a time."""
    kind = np.float64 if weight.dtype == torch.float64 else np.float32
    theta, origin = (tensor.double().numpy().astype(kind).reshape(-1) for tensor in (weight, base))
    acc, matrix = theta.copy(), weight.ndim == 2
    for term in update.terms:
        if isinstance(term.family, Kronecker):
            z = z_of(term.seed, stream, tuple(weight.shape), term.family.distribution).reshape(-1) if matrix else None
        elif term.family.rank:
            rank = term.family.rank
            z = reference.low_rank(term.seed, stream, weight.shape, rank).reshape(-1) if matrix else None
        else:
            z = reference.entries(term.seed, stream, range(theta.size), distribution=term.family.distribution)
        if z is not None:
            acc = acc + kind(term.coefficient) * z.astype(kind)
    if matrix:
        acc = acc - kind(update.decay) * theta
    acc = acc - kind(update.anchor) * (theta - origin)
    random = noise.rounding_bits(update.rounding_seed, stream, 0, theta.size)
    if weight.dtype == torch.bfloat16:
        rounded = torch.from_numpy(noise.round_bf16(acc, random).view(np.int16)).view(torch.bfloat16)
    else:
        rounded = torch.from_numpy(noise.round_fp16(acc, random) if weight.dtype == torch.float16 else acc)
    return rounded.view(weight.shape)


@pytest.fixture(params=["cpu", "portable", "gpu"])
def kernel(request, monkeypatch):
    """A kernel, and its device. Chunks and groups end in the middle of a line."""
    monkeypatch.setattr(cpu, "CHUNK", 12)
    monkeypatch.setattr(portable, "GROUP", 12)
    if request.param == "gpu":
        return pytest.importorskip("zoreward.kernels.gpu").Kernels(block=1024, unit=1024), DEVICE
    return Keeping(cpu if request.param == "cpu" else portable), "cpu"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_copies_and_updates_are_the_formula(kernel, dtype):
    functions, device = kernel
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(*shape, generator=generator).to(dtype) for shape in [(6, 10), (7, 9), (9,)]]
    tensors += [torch.randn(5, 8, generator=generator).to(dtype).T, torch.empty(0, 4, dtype=dtype)]
    given = [(tensor, stream) for stream, tensor in enumerate(tensors, 3)]
    first, second = Term(1, 0.25, Kronecker()), Term(2**64 - 1, -0.5, Kronecker("rademacher"))
    members = ((first,), (Term(1, -0.25, Kronecker()),), (second, Term(3, 0.1), Term(4, 0.2, LowRank(2))), ())
    there = [(tensor.clone().to(device), stream) for tensor, stream in given]
    for (tensor, stream), copies in zip(given, functions.perturb_all(there, members), strict=True):
        for member, copy in zip(members, copies, strict=True):
            wide = tensor if dtype == torch.float64 else tensor.float()
            expected = moved(wide, stream, Update(0.0, member, 0), wide).to(dtype)  # to nearest
            assert torch.equal(copy.cpu(), expected)
    bases = functions.perturb_all(there, ((),))
    updates = [Update(0.1, (first, Term(3, 0.1)), 5, 0.25), Update(0.0, (second,), 6), Update(0.0, (), 7)]
    functions.replay_all_(there, updates, [copy for [copy] in bases])
    for (tensor, stream), (got, _) in zip(given, there, strict=True):
        expected = tensor
        for update in updates:
            if update.moves(tensor.ndim):
                expected = moved(expected, stream, update, tensor)
        assert torch.equal(got.cpu(), expected)


TAKE_IT = [name for name, defaults in METHOD_DEFAULTS.items() if "refresh" not in defaults]
QUICK = ("svrg",)


@pytest.mark.parametrize(
    "method", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in TAKE_IT]
)
def test_a_run_of_every_method_goes_on_after_a_kill_and_is_replayed(method, tmp_path, tokenizer):
    few = {"max_steps": 3, "num_directions": 2, "eval_strategy": "no", "anchor": 0.0, "normalize": None}
    options = {"weight_decay": 0.0 if method == "svrg" else 0.1, "dtype": torch.bfloat16}
    options |= {"method": method, "noise": "kronecker", **few}
    run = trainer(tmp_path / "whole", tokenizer, model=half(), **options)
    run.train()
    assert run.method.family == family_of("kronecker", distribution="rademacher" if method == "fzoo" else "normal")
    assert bits(run.model) != bits(half())
    killed(tmp_path / "killed", tokenizer, 2, model=half(), **options)
    again = trainer(tmp_path / "killed", tokenizer, model=half(), **options)
    again.train(resume_from_checkpoint=True)
    assert same(weights(run), weights(again)) and lines(tmp_path / "whole") == lines(tmp_path / "killed")
    header, step, *_ = lines(tmp_path / "whole")
    assert header["method"]["noise"] == "kronecker"
    assert all(term[2:] == ["kronecker"] for term in step["terms"])
    for path in (tmp_path / "whole", tmp_path / "whole" / "trajectory.safetensors"):
        assert bits(replay(path, half())) == bits(run.model)


def half():
    return random_model("llama").to(torch.bfloat16)


def test_what_is_of_other_families_is_refused():
    for options in ({"rank": 2}, {"refresh": 3}, {"subspace": True}):
        with pytest.raises(InputError, match=r"rank|refresh"):
            make_method("spsa", noise="kronecker", **options)
