"""Contract under test: members in half precision differ where their direction says so, or it is said, and ε raised."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
from torch import nn

import reference
from conftest import random_model
from terms import term_of
from test_trainer import ROWS, config, trainer
from zoreward.members import least_eps, left_of_directions, limited, members_at, smallest, tuned_weights
from zoreward.noise import Dense, LowRank
from zoreward.records import InputError, Term
from zoreward.trainer import ZOConfig, ZOTrainer
from zoreward.trainer.ready import eps_that_shows


def layer(dtype: torch.dtype, size: float = 1.0, count: int = 1024) -> nn.Linear:
    """A matrix with normal weights of this size, as large as the sample."""
    made = nn.Linear(count // 32, 32, bias=False)
    made.weight.data.copy_(size * torch.randn(made.weight.shape, generator=torch.Generator().manual_seed(1)))
    return made.to(dtype)


@pytest.mark.parametrize(
    ("dtype", "eps", "distribution"),
    [
        ("bfloat16", 1e-4, "rademacher"),
        ("bfloat16", 1e-3, "normal"),
        ("bfloat16", 2e-2, "gaussian"),
        ("float16", 1e-4, "rademacher"),
        ("float32", 1e-3, "normal"),
    ],
)
def test_what_is_left_is_that_of_members_by_the_reference(dtype, eps, distribution):
    model = layer(getattr(torch, dtype), 0.1)
    tuned = tuned_weights(model)
    z = reference.entries(0, tuned.streams["weight"], range(1024), distribution=distribution)
    theta = model.weight.detach().float().numpy().ravel()
    sides = []
    for sign in (1, -1):
        patterns = [reference.nearest(w + np.float32(sign * eps) * one, dtype) for w, one in zip(theta, z, strict=True)]
        kinds = {"float32": np.uint32, "bfloat16": np.uint32, "float16": np.uint16}
        shift = 16 if dtype == "bfloat16" else 0
        bits = np.array([pattern << shift for pattern in patterns], kinds[dtype])
        sides.append(bits.view(np.float16 if dtype == "float16" else np.float32).astype(np.float64))
    difference, z = sides[0] - sides[1], z.astype(np.float64)
    left = left_of_directions(tuned, eps, Dense(distribution))
    assert left.share == pytest.approx(np.count_nonzero(difference) / np.count_nonzero(z))
    assert left.cosine == pytest.approx(difference @ z / np.sqrt((difference @ difference) * (z @ z)), abs=1e-12)


def test_members_that_are_dense_differ_by_what_is_left_of_their_direction():
    model = layer(torch.bfloat16, 0.1)
    tuned, seen = tuned_weights(model), []
    with torch.no_grad():
        for sign in (1, -1):
            with members_at(model, ((Term(0, sign * 1e-4),),), tuned=tuned):
                seen.append(model.weight.detach().double().flatten())
    z = torch.from_numpy(reference.normal(0, tuned.streams["weight"], range(1024))).double()
    cosine = float(torch.cosine_similarity(seen[0] - seen[1], z, dim=0))
    assert left_of_directions(tuned, 1e-4).cosine == pytest.approx(cosine) and cosine < 0.7


def test_weights_that_rest_and_vectors_of_low_rank_directions_do_not_count():
    model = nn.Sequential(layer(torch.bfloat16, 1.0), nn.LayerNorm(32).bfloat16())
    tuned = tuned_weights(model)
    resting = limited(tuned, smallest(tuned, 0.1))
    assert left_of_directions(resting, 1e-3).cosine > left_of_directions(tuned, 1e-3).cosine + 0.1
    matrix = tuned_weights(model, "^0")
    for rank in (1, 4):
        assert left_of_directions(tuned, 1e-2, LowRank(rank)) == left_of_directions(matrix, 1e-2, LowRank(rank))


@pytest.mark.parametrize("size", [0.02, 0.1, 0.5])
def test_the_least_eps_shows_directions_and_its_half_does_not(size):
    tuned = tuned_weights(layer(torch.bfloat16, size))
    eps = least_eps(tuned, 1e-4 * size / 0.1, Dense("rademacher"))
    assert left_of_directions(tuned, eps, Dense("rademacher")).cosine >= 0.9
    assert left_of_directions(tuned, eps / 2, Dense("rademacher")).cosine < 0.9
    assert eps < 0.1 * size, "the spacing of bfloat16 numbers around w is |w| / 128 at most"
    assert least_eps(tuned_weights(layer(torch.bfloat16, 100.0)), 1e-4) == 16e-4


BFLOAT16 = {"method": "fzoo", "eps": None, "num_directions": 2}


def test_a_default_is_raised_and_stands_in_the_header_also_when_the_run_goes_on(tmp_path, tokenizer, caplog):
    def made(**changes) -> ZOTrainer:
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="transformers"):
            model = random_model("llama").bfloat16()
            return trainer(tmp_path, tokenizer, model=model, **{**BFLOAT16, "max_steps": 2, **changes})

    run = made()
    [line] = [record.getMessage() for record in caplog.records if "differ in" in record.getMessage()]
    assert run.method.eps > 1e-4 and run.args.eps == run.method.eps
    assert f"ε is raised to {run.method.eps:.3g}" in line and "bfloat16" in line and "at ε 0.0001" in line
    assert left_of_directions(run.ready.tuned, run.method.eps, Dense("rademacher")).cosine >= 0.9
    run.train()
    header = json.loads((tmp_path / "run" / "journal.jsonl").read_text().splitlines()[0])
    assert header["method"]["eps"] == header["config"]["eps"] == run.method.eps
    made(max_steps=3).train(resume_from_checkpoint=True)

    kept = made(eps=2e-4)
    [line] = [record.getMessage() for record in caplog.records if "differ in" in record.getMessage()]
    assert kept.method.eps == 2e-4 and "better is --eps" in line
    made(eps=1e-2)
    assert not [record for record in caplog.records if "differ in" in record.getMessage()]


@pytest.mark.parametrize("size", [1e4, 1e10])
def test_an_eps_that_larger_ones_do_not_better_is_kept(size, caplog):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 64, bias=False), nn.Linear(64, 16, bias=False)).bfloat16()
    with torch.no_grad():
        net[0].weight.normal_(0.0, 0.02)
        net[1].weight.normal_(0.0, 1.0).mul_(size)  # no ε in reason moves these
    args = ZOConfig(eps=1e-3, noise="dense", distribution="normal")
    with caplog.at_level(logging.WARNING, logger="transformers"):
        assert eps_that_shows(tuned_weights(net), args, given=False) == 1e-3
    [line] = [record.getMessage() for record in caplog.records]
    assert "a larger ε changes little" in line and "--dtype float32" in line


def test_members_that_are_all_the_same_are_refused(tmp_path, tokenizer):
    for dtype, eps in ((torch.bfloat16, 1e-10), (torch.float32, 1e-12)):
        model = nn.Module.to(random_model("llama"), dtype)
        for weight in model.parameters():
            weight.data += 1  # far from 0, where numbers lie close together
        args = config(tmp_path, eps=eps)
        with pytest.raises(InputError, match="no weight differs between members") as refused:
            ZOTrainer(model, objective="accuracy", args=args, train_dataset=ROWS, processing_class=tokenizer)
        assert "larger" in refused.value.hint and not (tmp_path / "run" / "journal.jsonl").exists()


def test_low_rank_members_together_are_not_rounded_and_one_alone_is():
    model, count = layer(torch.bfloat16, 0.5), 8192
    tuned, eps = tuned_weights(model), 1e-3
    x = torch.randn(count, 32, generator=torch.Generator().manual_seed(2)).bfloat16()
    members, alone = ((term_of(3, eps, 1),), (term_of(3, -eps, 1),)), []
    z = torch.from_numpy(reference.low_rank(3, tuned.streams["weight"], (32, 32), 1)).double().flatten()
    with torch.no_grad():
        with members_at(model, members, tuned=tuned):
            above, below = model(x.repeat(2, 1)).double().chunk(2)
        for member in members:
            with members_at(model, (member,), tuned=tuned):
                alone.append(model.weight.detach().double().flatten())
    # What the outputs differ by, as a matrix: over so many rows what rounds the outputs themselves averages out.
    together = ((above - below).T @ x.double()).flatten()
    assert torch.cosine_similarity(together, z, dim=0) > 0.95
    assert torch.cosine_similarity(alone[0] - alone[1], z, dim=0) < 0.85
    assert left_of_directions(tuned, eps, LowRank(1)).cosine < 0.9
