"""Contract under test: `members_at` shows θ + Σ c·z and leaves θ alone; `update_` is the only writer.

- Grouped members score as one member at a time, with copies kept and with copies made on the fly; test_families.py has
  the families.
- Whatever happens inside the context, every weight is the same afterwards, bit for bit.
- What cannot be grouped is found out, not computed wrongly.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from torch import nn

import reference
from conftest import random_model
from terms import term_of
from zoreward.members import members_at, self_check, tuned_weights, update_
from zoreward.members.grouping import Grouping
from zoreward.records import InputError, Term, Update

MEMBERS = ((Term(11, 0.05),), (Term(11, -0.05),), (Term(12, 0.05), Term(13, 0.02)))


def digest(model: nn.Module) -> str:
    whole = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        whole.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def bits(weight: torch.Tensor) -> np.ndarray:
    return weight.detach().contiguous().view(-1).numpy().view(np.uint32)


def alone(model: nn.Module, members, *args, **kwargs) -> torch.Tensor:
    outputs = []
    for member in members:
        with torch.no_grad(), members_at(model, (member,)):
            output = model(*args, **kwargs)
            outputs.append(output if isinstance(output, torch.Tensor) else output.logits)
    return torch.cat(outputs)


def test_a_member_is_theta_plus_its_terms():
    net = nn.Linear(5, 3)
    streams = tuned_weights(net).streams
    member = (Term(3, 0.5), Term(4, -0.25))
    with members_at(net, (member,)):
        seen = {name: weight.detach().clone() for name, weight in net._parameters.items()}
    for name, weight in net.named_parameters():
        expected = reference.perturbed(weight.detach().numpy(), "float32", streams[name], [(3, 0.5), (4, -0.25)])
        np.testing.assert_array_equal(bits(seen[name]), expected)


@pytest.mark.parametrize("keep_bytes", [0, 2**30])
@pytest.mark.parametrize("members", [MEMBERS[:1], MEMBERS], ids=["one", "three"])
def test_weights_are_bit_equal_after_an_error_inside(members, keep_bytes):
    model = random_model("llama-tied")
    before, places = digest(model), [id(weight) for weight in model.parameters()]
    forwards = {name: module.__dict__.get("forward") for name, module in model.named_modules()}

    def raise_in_the_middle(module, args):
        raise RuntimeError("reward is down")

    hook = model.model.layers[1].register_forward_pre_hook(raise_in_the_middle)
    with pytest.raises(RuntimeError, match="reward is down"), members_at(model, members, keep_bytes=keep_bytes):
        model(input_ids=torch.ones(len(members), 3, dtype=torch.long))
    hook.remove()
    assert digest(model) == before
    assert [id(weight) for weight in model.parameters()] == places
    assert {name: module.__dict__.get("forward") for name, module in model.named_modules()} == forwards


class Positions(nn.Module):
    """A position table called with one line, a scale in a ParameterList, an owner inside an owner."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(6, 6)
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(6))])
        self.gain = nn.Parameter(torch.tensor(1.5))
        self.inner = nn.Linear(6, 6)

    def forward(self, x):
        position = self.table(torch.arange(x.shape[1]).unsqueeze(0))
        return self.inner(x * self.scales[0] + position) * self.gain


class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.positions = Positions()
        self.table = nn.Embedding(6, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        y = self.positions(x) + self.table(torch.arange(x.shape[1]).unsqueeze(0))
        return self.head(y.reshape(-1, 6)).view(x.shape[0], x.shape[1], 2)


@pytest.mark.parametrize("keep_bytes", [0, 2**30])
def test_position_tables_parameter_lists_nested_owners_and_flattened_rows(keep_bytes):
    torch.manual_seed(0)
    net = Outer()
    x = torch.randn(2, 6, 6)
    expected = alone(net, MEMBERS, x)
    with torch.no_grad(), members_at(net, MEMBERS, keep_bytes=keep_bytes):
        got = net(x.repeat(3, 1, 1))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)  # sums of 6 terms of size ≤ 10: 6 · 10 · 2^-24


class Lookup(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.shift = nn.Parameter(torch.ones(3))

    def forward(self, x, table):
        return self.linear(x) + torch.tanh(table + self.shift).sum(0)


def test_a_length_that_happens_to_be_divisible_is_not_cut():
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.lookup = Lookup()

        def forward(self, x, table):  # 6 lines of a table, which 3 members divide, but no row in any
            return self.lookup(x, table)

    net = Table()
    x, table = torch.randn(1, 3), torch.randn(6, 3)
    expected = alone(net, MEMBERS, x, table)
    with torch.no_grad(), members_at(net, MEMBERS, keep_bytes=0):
        got = net(x.repeat(3, 1), table)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)  # sums of 21 products of size ≤ 3


def score(net: nn.Module, members, x: torch.Tensor, *args) -> torch.Tensor:
    with torch.no_grad(), members_at(net, members, keep_bytes=0):
        return net(x.repeat(len(members), 1), *args).reshape(len(members), len(x), -1)


def test_self_check_finds_a_module_whose_weight_is_read_by_its_parent():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.child = nn.Linear(3, 2)

        def forward(self, x):
            return x @ self.child.weight.T

    net = Reads()
    x = torch.randn(1, 3)
    problem = self_check(net, MEMBERS[:2], lambda some: score(net, some, x)).problem
    assert problem == "child is used without being called"


def test_self_check_finds_rows_that_mix():
    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x):
            y = self.linear(x)
            return y - y.mean(0)

    net, x = Centred(), torch.randn(2, 3)
    assert "differ" in str(self_check(net, MEMBERS[:2], lambda some: score(net, some, x)).problem)
    plain = nn.Linear(3, 2)
    assert self_check(plain, MEMBERS[:2], lambda some: score(plain, some, x)).problem is None


def test_rows_that_the_members_do_not_divide_are_refused():
    net = nn.Linear(2, 1)
    with members_at(net, MEMBERS), pytest.raises(InputError, match="4 rows cannot be shared by 3"):
        net(torch.ones(4, 2))


def test_update_moves_every_weight_once_and_tied_weights_together():
    model = random_model("llama-tied")
    tuned = tuned_weights(model)
    before = {name: weight.detach().clone() for name, weight in tuned.weights.items()}
    assert "lm_head.weight" not in before
    update = Update(0.1, (Term(5, 0.25), Term(6, 0.125)), rounding_seed=1)
    update_(model, update)
    for name, weight in tuned.weights.items():
        sample = [0, weight.numel() // 2, weight.numel() - 1]  # the whole is compared in test_rounding.py
        expected = reference.updated(
            before[name].numpy().reshape(-1)[sample],
            "float32",
            weight.ndim,
            tuned.streams[name],
            update.decay,
            [(5, 0.25), (6, 0.125)],
            rounding_seed=1,
            indices=sample,
        )
        np.testing.assert_array_equal(bits(weight)[sample], expected, err_msg=name)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_members_and_updates_agree_on_the_direction():
    net = nn.Linear(4, 4, bias=False)
    with members_at(net, ((Term(9, 0.5),),)):
        shown = net.weight.detach().clone()
    update_(net, Update(0.0, (Term(9, 0.5),), 0))
    assert torch.equal(net.weight, shown)


def test_update_writes_a_transposed_weight_that_still_requires_grad():
    net = nn.Linear(3, 3, bias=False)
    start = torch.randn(3, 3).t()
    net.weight = nn.Parameter(start)
    with members_at(net, ((Term(9, 0.5),),)):
        shown = net.weight.detach().clone()
    update_(net, Update(0.0, (Term(9, 0.5),), 0))
    assert torch.equal(net.weight, shown)


@pytest.mark.parametrize("keep_bytes", [0, 2**30])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_outputs_written_side_by_side_are_the_joined_ones(bias, keep_bytes, monkeypatch):
    """What a GPU does with linear layers, tried on a CPU: rows, flattened tokens, and inputs cut out of others."""

    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(5, 4, bias=bias), nn.Linear(4, 3, bias=bias)

        def forward(self, x):
            return self.last(self.first(x.reshape(-1, 5)).view(*x.shape[:2], 4)[:, -1:])

    torch.manual_seed(0)
    net, x = Head(), torch.randn(2, 3, 5)
    expected = alone(net, MEMBERS, x)
    monkeypatch.setattr(Grouping, "_can_write_into", lambda self, args, kwargs: True)
    monkeypatch.setattr(Grouping, "_joined", lambda self, outputs: pytest.fail("outputs were joined"))
    with torch.no_grad(), members_at(net, MEMBERS, keep_bytes=keep_bytes):
        got = net(x.repeat(3, 1, 1))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)  # sums of 9 products of size ≤ 10
    assert (expected[:2] - expected[2:4]).abs().max() > 1e-3


def couple(seed: int, rank: int, size: float = 0.3) -> tuple[tuple[Term, ...], ...]:
    return tuple((term_of(seed, sign * size, rank),) for sign in (1, -1))


def logits(model: nn.Module, ids: torch.Tensor, members, tuned) -> torch.Tensor:
    with torch.no_grad(), members_at(model, members, tuned=tuned, keep_bytes=0):
        return model(input_ids=ids).logits


@pytest.mark.parametrize("rank", [0, 2], ids=["dense", "low-rank"])
def test_later_members_see_the_weights_and_terms_of_their_own_time(rank):
    model, ids = random_model("opt"), torch.arange(3, 9).repeat(4, 1)
    tuned = tuned_weights(model)
    logits(model, ids, couple(1, rank), tuned)
    [first] = tuned.shared.values()
    for seed in (2, 3):
        update_(model, Update(0.0, (Term(seed, 0.1),), 0), tuned=tuned)
        found = logits(model, ids, couple(seed, rank), tuned)
        assert torch.equal(found, logits(model, ids, couple(seed, rank), tuned_weights(model)))
    assert first in tuned.shared.values(), "made once"
    model.double()
    found = logits(model, ids, couple(4, rank), tuned)
    assert found.dtype == torch.float64
    assert torch.equal(found, logits(model, ids, couple(4, rank), tuned_weights(model)))


def test_members_of_another_number_rank_or_inner_context_share_nothing():
    model, ids = random_model("opt"), torch.arange(3, 9).repeat(4, 1)
    tuned = tuned_weights(model)
    for members in (couple(1, 0), couple(1, 1), (*couple(1, 0), *couple(2, 0)), couple(3, 0)):
        found = logits(model, ids, members, tuned)
        assert torch.equal(found, logits(model, ids, members, tuned_weights(model)))
    own = {name: dict(module.__dict__) for name, module in model.named_modules()}
    with pytest.raises(InputError, match="cannot be shared"):
        logits(model, ids[:3], couple(4, 0), tuned)
    assert all(dict(module.__dict__) == own[name] for name, module in model.named_modules())
    found = logits(model, ids, couple(5, 0), tuned)
    assert torch.equal(found, logits(model, ids, couple(5, 0), tuned_weights(model)))


@pytest.mark.parametrize("rank", [0, 2], ids=["dense", "low-rank"])
def test_a_forward_that_is_replaced_between_two_contexts_is_seen(rank):
    model, ids = random_model("opt"), torch.arange(3, 9).repeat(4, 1)
    tuned = tuned_weights(model)
    before = logits(model, ids, couple(1, rank), tuned)
    layer = model.model.decoder.layers[0].fc1
    layer.forward = lambda x, plain=layer.forward: 2 * plain(x)
    found = logits(model, ids, couple(1, rank), tuned)
    assert not torch.allclose(before, found)
    assert torch.equal(found, logits(model, ids, couple(1, rank), tuned_weights(model)))
    del layer.forward
    assert torch.equal(before, logits(model, ids, couple(1, rank), tuned))
