"""Contract under test: every kernel gives the same bits as `kernels/cpu.py`, which test_rounding.py holds to the slow
reference: copies and updates, every dtype, any shape and stride, several tensors at once, cut or whole. On a GPU too,
where there is one."""

from __future__ import annotations

import pytest
import torch

from zoreward.kernels import cpu, portable
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


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_updates_are_bit_equal(dtype, decay, device, group):
    update = Update(decay, (Term(7, 1e-3), Term(8, -2e-5)), rounding_seed=9)
    expected, got = weights(dtype, "cpu"), weights(dtype, device)
    cpu.update_all_(expected, update)
    portable.update_all_(got, update)
    for (mine, _), (theirs, _) in zip(got, expected, strict=True):
        assert pattern(mine) == pattern(theirs)
    assert any(
        pattern(mine) != pattern(start) for (mine, _), (start, _) in zip(got, weights(dtype, "cpu"), strict=True)
    )
