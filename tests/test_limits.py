"""Contract under test: with limits only the small weights of each tensor are tuned, in members, updates and replays."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

import reference
from conftest import random_model
from terms import term_of
from test_lowrank import raw
from zoreward.journal.lines import number
from zoreward.members import limited, members_at, smallest, tuned_weights, update_, updates_
from zoreward.methods import make_method
from zoreward.records import Term, Update

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def net(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 2, bias=False)).to(dtype)


def test_limits_are_percentiles_of_each_tensor():
    tuned = tuned_weights(net())
    limits = smallest(tuned, 0.3)
    for name, weight in tuned.weights.items():
        sizes = np.sort(weight.detach().abs().numpy().ravel())
        limit = sizes[int(np.ceil(0.3 * sizes.size)) - 1]
        assert limits[name] == (limit if name != "1.bias" else torch.finfo(torch.float32).max), name
    assert smallest(tuned, 1.0)["2.weight"] == float(tuned.weights["2.weight"].detach().abs().max())


@pytest.mark.parametrize("zeros", [5, 3, 1])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_tensor_whose_limit_would_be_0_is_tuned_as_a_whole(dtype, zeros):
    """All zero, as LoRA's B; mostly zero, as a pruned one; and one with fewer zeros than small weights."""
    layer = nn.Linear(5, 1, bias=False).to(dtype)
    layer.weight.data.copy_(torch.tensor([0.0] * zeros + [0.5, -0.25, 2.0, 1.0][: 5 - zeros]))
    tuned = tuned_weights(layer)
    limits = smallest(tuned, 0.4)
    assert json.loads(json.dumps(limits)) == limits and all(map(number, limits.values()))
    tuned = limited(tuned, limits)
    free, z = layer.weight.detach().clone(), {}
    for step in range(4):
        update_(layer, Update(0.0, (Term(step, 0.125),), step), tuned=tuned)
        drawn = reference.normal(step, tuned.streams["weight"], range(5))
        z[step] = torch.from_numpy(np.float32(0.125) * drawn)
    if zeros < 2:  # the limit is that of the second smallest, 0.25
        assert limits["weight"] == 0.25
        assert layer.weight[0, 1] == 0.5 and layer.weight[0, 3] == 2.0
        return
    expected = free.double() + sum(step.double() for step in z.values())
    # Four roundings, of numbers up to 4.
    tolerance = 4 * 4 * torch.finfo(dtype).eps if dtype != torch.float64 else 1e-6
    torch.testing.assert_close(layer.weight.detach().double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_updates_move_the_small_weights_alone(dtype):
    plain, masked = net(dtype), net(dtype)
    tuned = tuned_weights(masked)
    tuned = limited(tuned, smallest(tuned, 0.4))
    updates = [Update(0.1, (Term(seed, 0.05), term_of(seed, 0.03, rank=1)), seed) for seed in (1, 2, 3)]
    resting = []
    for update in updates:
        before = {name: weight.detach().clone() for name, weight in tuned.weights.items()}
        plain.load_state_dict(masked.state_dict())
        update_(plain, update)
        update_(masked, update, tuned=tuned)
        for (name, weight), full in zip(tuned.weights.items(), plain.parameters(), strict=True):
            small = before[name].abs() <= tuned.limits[name]
            assert raw(weight[small]) == raw(full[small]), name
            assert raw(weight[~small]) == raw(before[name][~small]), name
        assert not torch.equal(tuned.weights["0.weight"], before["0.weight"])
        resting.append((before["2.weight"].abs() > tuned.limits["2.weight"]).tolist())
    assert resting[0] != resting[2], "weights that outgrow their limit rest from then on"
    again = net(dtype)
    tuned = tuned_weights(again)
    updates_(again, updates, tuned=limited(tuned, smallest(tuned, 0.4)))
    assert [raw(weight) for weight in again.parameters()] == [raw(weight) for weight in masked.parameters()]


@pytest.mark.parametrize("keep_bytes", [0, 2**30])
@pytest.mark.parametrize("rank", [0, 1])
def test_members_are_shown_with_their_small_weights_moved(rank, keep_bytes):
    model, x = random_model("llama-tied"), torch.randint(3, 30, (2, 5))
    tuned = tuned_weights(model)
    tuned = limited(tuned, smallest(tuned, 0.25))
    members = ((term_of(1, 0.1, rank),), (term_of(1, -0.1, rank),))
    with torch.no_grad(), members_at(model, members, tuned=tuned, keep_bytes=keep_bytes):
        got = model(input_ids=x.repeat(2, 1)).logits.view(2, 2, 5, -1)
    for m, ((term,),) in enumerate(zip(members, strict=True)):
        moved = random_model("llama-tied")
        for name, weight in tuned_weights(moved).weights.items():
            if rank and weight.ndim != 2:
                continue
            shape, stream = tuple(weight.shape), tuned.streams[name]
            if rank:
                z = reference.low_rank(1, stream, shape, rank)
            else:
                z = reference.normal(1, stream, range(weight.numel())).reshape(shape)
            mask = (weight.detach().abs() <= tuned.limits[name]).numpy()
            weight.data += torch.from_numpy(np.float32(term.coefficient) * z * mask)
        with torch.no_grad():
            expected = moved(input_ids=x).logits
        # other blockings of the same sums, as in test_members
        torch.testing.assert_close(got[m], expected, rtol=0, atol=1e-4)
    assert (got[0] - got[1]).abs().max() > 0.1


def test_sparse_mezo_takes_its_papers_steps():
    """Algorithm 1 of arXiv 2402.15751 in float64: z is masked by |θ| ≤ the base's percentile, in estimate and step."""
    torch.manual_seed(0)
    model = nn.Linear(6, 5).double()
    x = torch.randn(4, 6, dtype=torch.float64)

    def loss_at(weight: np.ndarray, bias: np.ndarray) -> float:
        return float(np.tanh(x.numpy() @ weight.T + bias).sum())

    theta = {name: weight.detach().numpy().copy() for name, weight in model.named_parameters()}
    streams = reference.streams(theta)
    limits = {name: np.sort(np.abs(w).ravel())[int(np.ceil(0.3 * w.size)) - 1] for name, w in theta.items()}
    eps, lr = float(np.float32(1e-2)), 0.05
    tuned = tuned_weights(model)
    tuned = limited(tuned, smallest(tuned, 0.3))
    method = make_method("sparse", eps=1e-2, lr=lr, seed=7)
    state, rested = method.init(), []
    for step in range(8):
        query, scores = method.ask(state), []
        for member in query.members:
            with torch.no_grad(), members_at(model, (member,), tuned=tuned):
                scores.append(-float(torch.tanh(model(x)).sum()))
        update, state = method.tell(state, query, scores)
        update_(model, update, tuned=tuned)

        masks = {name: np.abs(weight) <= limits[name] for name, weight in theta.items()}
        seed = reference.derive_seed(7, step, 0)
        z = {
            name: reference.normal(seed, streams[name], range(w.size)).reshape(w.shape) * masks[name]
            for name, w in theta.items()
        }
        above, below = (loss_at(*(theta[name] + sign * eps * z[name] for name in theta)) for sign in (1, -1))
        theta = {name: w - lr * (above - below) / (2 * eps) * z[name] for name, w in theta.items()}
        rested.append(int(sum(mask.sum() for mask in masks.values())))
        for name, weight in model.named_parameters():
            # Coefficients are float32: 2^-24 of a step of at most 1, and what the steps before were off.
            np.testing.assert_allclose(weight.detach().numpy(), theta[name], rtol=0, atol=5e-6)
    assert rested[0] == 2 + 9 and rested[-1] < rested[0], "some weights outgrow their limit, or the mask shows nothing"
