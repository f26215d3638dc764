"""Contract under test: every kernel gives the same bits as `kernels/cpu.py`, which test_rounding.py holds to the slow
reference: copies and updates, every dtype, any shape and stride, several tensors at once, cut or whole. On a GPU too,
where there is one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from zoreward.kernels import cpu, portable
from zoreward.kernels.philox import entries_of_many
from zoreward.noise import Purpose
from zoreward.noise import definition as noise
from zoreward.records import Term, Update

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
MEMBERS = ((Term(3, 0.01),), (Term(3, -0.01),), (Term(2**64 - 1, 0.5), Term(3, 1e-6)), ())


def weights(dtype: torch.dtype, device: str) -> list[tuple[torch.Tensor, int]]:
    generator = torch.Generator().manual_seed(0)
    special = torch.tensor([0.0, -0.0, 1e-6, -3e-8, 6e-5, 65504.0, -3.38e38, float("inf"), -float("inf")])
    tensors = [
        torch.randn(5, 7, generator=generator),
        torch.randn(7, 5, generator=generator).T,
        torch.randn(3, generator=generator),
        torch.tensor(1.5),
        torch.empty(0),
        special,
        torch.randn(50, 101, generator=generator) * 1e-3,
    ]
    streams = [2**32 - 1, 0, 1, 2, 3, 4, 5]
    # .to after .T, so that the transposed one keeps its stride
    return [(tensor.to(dtype).to(device), stream) for tensor, stream in zip(tensors, streams, strict=True)]


def pattern(tensor: torch.Tensor) -> bytes:
    return tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


@pytest.fixture(params=[64, 1 << 22], ids=["cut", "whole"])
def group(request, monkeypatch):
    monkeypatch.setattr(portable, "GROUP", request.param)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_copies_are_bit_equal(dtype, device, group):
    expected = cpu.perturb_all(weights(dtype, "cpu"), MEMBERS)
    got = portable.perturb_all(weights(dtype, device), MEMBERS)
    for mine, theirs in zip(got, expected, strict=True):
        assert [pattern(copy) for copy in mine] == [pattern(copy) for copy in theirs]


@pytest.mark.parametrize("kernel", [cpu, portable], ids=lambda kernel: kernel.__name__.rsplit(".")[-1])
def test_copies_that_are_there_are_written_over(kernel):
    given, other = weights(torch.bfloat16, "cpu"), tuple((Term(8, 0.5),) for _ in MEMBERS)
    there = kernel.perturb_all(given, other)
    places = [copy.data_ptr() for copies in there for copy in copies]
    got = kernel.perturb_all(given, MEMBERS, there)
    assert [copy.data_ptr() for copies in got for copy in copies] == places
    for mine, theirs in zip(got, cpu.perturb_all(given, MEMBERS), strict=True):
        assert [pattern(copy) for copy in mine] == [pattern(copy) for copy in theirs]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_updates_are_bit_equal(dtype, decay, device, group):
    update = Update(decay, (Term(7, 1e-3), Term(8, -2e-5)), rounding_seed=9)
    expected, got = weights(dtype, "cpu"), weights(dtype, device)
    cpu.replay_all_(expected, [update])
    portable.replay_all_(got, [update])
    for (mine, _), (theirs, _) in zip(got, expected, strict=True):
        assert pattern(mine) == pattern(theirs)
    assert any(
        pattern(mine) != pattern(start) for (mine, _), (start, _) in zip(got, weights(dtype, "cpu"), strict=True)
    )


def anchor_by_hand(weight: torch.Tensor, base: torch.Tensor, stream: int, update: Update) -> torch.Tensor:
    """The update by its formula, one float32 operation at a time in NumPy, rounded as `noise` says."""
    dtype = weight.dtype
    theta, start = (tensor.float().numpy().reshape(-1) for tensor in (weight, base))
    acc = theta.copy()
    for term in update.terms:
        z = noise.normal(term.seed, stream, 0, len(theta))
        acc = acc + np.float32(term.coefficient) * z
    if update.decay and weight.ndim >= 2:
        acc = acc - np.float32(update.decay) * theta
    acc = acc - np.float32(update.anchor) * (theta - start)
    random = noise.rounding_bits(update.rounding_seed, stream, 0, len(theta))
    if dtype == torch.bfloat16:
        return torch.from_numpy(noise.round_bf16(acc, random).view(np.int16)).view(torch.bfloat16).view(weight.shape)
    rounded = noise.round_fp16(acc, random) if dtype == torch.float16 else acc
    return torch.from_numpy(rounded).view(weight.shape)


@pytest.mark.parametrize("kernel", [cpu, portable], ids=["cpu", "portable"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_an_anchor_takes_back_a_share_of_the_way_from_the_base(dtype, kernel, group):
    generator = torch.Generator().manual_seed(1)
    tensors = [torch.randn(shape, generator=generator).to(dtype) for shape in ((50, 101), (3,))]
    pairs = [(tensor, stream) for stream, tensor in enumerate(tensors)]
    bases = [copy for [copy] in kernel.perturb_all(pairs, ((),))]
    updates = [
        Update(0.0, (Term(7, 0.3),), rounding_seed=1),
        Update(0.1, (Term(8, 0.2), Term(9, -0.1)), rounding_seed=2, anchor=0.25),
        Update(0.0, (), rounding_seed=3, anchor=0.5),
    ]
    expected = [tensor.clone() for tensor in tensors]
    for update in updates:
        expected = [
            anchor_by_hand(now, base, n, update) for n, (now, base) in enumerate(zip(expected, bases, strict=True))
        ]
    kernel.replay_all_(pairs, updates, bases)
    for mine, theirs in zip(tensors, expected, strict=True):
        assert pattern(mine) == pattern(theirs)


def test_an_anchor_alone_halves_the_way_with_each_step_and_spares_no_vector():
    weight, vector = torch.tensor([[4.0, -2.0]]), torch.tensor([1.0])
    pairs = [(weight, 0), (vector, 1)]
    bases = [copy for [copy] in cpu.perturb_all(pairs, ((),))]
    weight += 8.0
    vector += 8.0
    cpu.replay_all_(pairs, [Update(0.0, (), 0, anchor=0.5)] * 2, bases)
    assert weight.tolist() == [[6.0, 0.0]] and vector.tolist() == [3.0]


@pytest.mark.parametrize("distribution", ["normal", "gaussian", "rademacher"])
def test_small_tensors_that_are_drawn_together_have_the_entries_of_each(distribution):
    draws = [
        (seed, stream, purpose, count)
        for seed in (0, 5, 2**64 - 1)
        for stream, purpose, count in ((0, Purpose.DIRECTION, 1), (7, Purpose.FACTOR_A, 6), (2**32 - 1, 2, 129))
    ]
    for (seed, stream, purpose, count), z in zip(draws, entries_of_many(draws, distribution), strict=True):
        np.testing.assert_array_equal(z, noise.entries(seed, stream, 0, count, purpose, distribution))
