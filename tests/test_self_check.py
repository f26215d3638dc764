"""Contract under test: members share a pass where a model can, in every dtype, and nowhere else.

- What goes wrong when members share a pass is found, in half precision too: rows that mix, a weight that is read
  without a call, state that is kept between calls.
- What only looks like it gives nothing up: rounding, and a module that these rows never use.
- Members that give the same logits are refused: no score could tell them apart.
- A model in half precision gives the log-probabilities of answers from logits in float32.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from conftest import random_model
from terms import term_of
from zoreward.members import SelfCheck, members_at, self_check, tuned_weights
from zoreward.records import Example, InputError, Member, Term
from zoreward.scoring import candidate_logprobs, engine_of

DENSE = ((Term(11, 0.01),), (Term(11, -0.01),))
LOW_RANK = ((term_of(11, 0.01, 1),), (term_of(11, -0.01, 1),))
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def check_of(net: nn.Module, members: tuple[Member, ...] = DENSE, rows: int = 3) -> SelfCheck:
    torch.manual_seed(0)
    x = torch.randn(rows, 8).to(next(net.parameters()).dtype)

    def logits_of(some: tuple[Member, ...]) -> torch.Tensor:
        with torch.no_grad(), members_at(net, some, keep_bytes=0):
            return net(x.repeat(len(some), 1)).float().view(len(some), rows, -1)

    return self_check(net, members, logits_of)


class Net(nn.Module):
    """Three layers, each called; what `forward` does between them is what the tests are about."""

    def __init__(self, between: Callable[[Net, torch.Tensor], torch.Tensor] = lambda net, y: y):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second, self.last = (nn.Linear(8, 8) for _ in range(3))
        self.unused = nn.Linear(8, 8)
        self.calls = 0
        self._between = between

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.last(self._between(self, torch.tanh(self.second(torch.tanh(self.first(x))))))


def beside_the_next_row(net: Net, y: torch.Tensor) -> torch.Tensor:
    return y - y.roll(1, 0)


def through_the_weight(net: Net, y: torch.Tensor) -> torch.Tensor:
    return y @ net.unused.weight


def growing(net: Net, y: torch.Tensor) -> torch.Tensor:
    return y * (1 + 0.5 * net.calls)


@pytest.mark.parametrize("members", [DENSE, LOW_RANK], ids=["dense", "low-rank"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_plain_model_shares_a_pass_although_a_module_is_never_used(dtype, members):
    check = check_of(Net().to(dtype), members)
    assert check.problem is None
    assert check.error <= 4 * check.noise < 0.3 * check.spread, "noise is rounding"
    assert check.effect >= 4 * check.noise, "the members tried last stand out of the noise"


@pytest.mark.parametrize("members", [DENSE, LOW_RANK], ids=["dense", "low-rank"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("between", "problem"),
    [
        (beside_the_next_row, "logits differ by"),
        (through_the_weight, "unused is used without being called"),
        (growing, "in another batch|logits differ by"),
    ],
)
def test_what_cannot_be_shared_is_found_in_every_dtype(between, problem, dtype, members):
    found = check_of(Net(between).to(dtype), members).problem
    assert found is not None and re.search(problem, found), found


@pytest.mark.parametrize("members", [DENSE, LOW_RANK], ids=["dense", "low-rank"])
def test_members_that_change_nothing_are_refused(members):
    net = Net()
    tuned = tuned_weights(net, r"unused\..*")
    x = torch.randn(3, 8)

    def logits_of(some: tuple[Member, ...]) -> torch.Tensor:
        with torch.no_grad(), members_at(net, some, tuned=tuned):
            return net(x.repeat(len(some), 1)).view(len(some), 3, -1)

    with pytest.raises(InputError, match="change nothing"):
        self_check(net, members, logits_of, tuned=tuned)


@pytest.mark.parametrize(("dtype", "eps"), [(torch.bfloat16, 1e-5), (torch.float16, 1e-7), (torch.float32, 1e-12)])
def test_members_below_what_the_dtype_shows_are_refused(dtype, eps):
    net = Net().to(dtype)
    with torch.no_grad():
        for weight in net.parameters():
            weight.copy_(weight.sign() * weight.abs().clamp(min=0.1))  # so that no weight is small enough to move
    with pytest.raises(InputError, match="eps is below") as refused:
        check_of(net, ((Term(1, eps),), (Term(1, -eps),)))
    assert "--eps" in str(refused.value.hint)


EXAMPLES = [
    Example({}, "", ("", ""), 0, tuple(prompt), candidates)
    for prompt, candidates in [
        ((3, 4, 5), ((6,), (7,))),
        ((8, 9), ((10, 11), (12, 13, 14))),
        ((15, 16, 17, 18), ((19,), (20, 21))),
    ]
]


@pytest.mark.parametrize("members", [((),), DENSE, LOW_RANK], ids=["itself", "dense", "low-rank"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama-tied", "gpt2"])
def test_logits_of_answers_are_float32_under_half_precision(family, dtype, members):
    """In half precision a logit of this size moves by up to 0.06; from the same hidden states, float32 by 1e-5."""
    model = random_model(family).to(dtype)
    head = model.get_output_embeddings()
    with torch.no_grad():
        head.weight.mul_(8)
    reader, seen = engine_of(model, 0), []
    hook = head.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    with torch.no_grad():
        candidate_logprobs(reader, EXAMPLES, members)
    hook.remove()
    assert seen and all(logits.dtype == torch.float32 for _, logits in seen)
    if members == ((),):
        for hidden, logits in seen:
            exact = hidden.double() @ head.weight.detach().double().t()
            rounded = (hidden @ head.weight.detach().t()).double()
            error = float((logits.double() - exact).abs().max())
            assert error <= 1e-4 < float((rounded - exact).abs().max())  # 32 products of size ≤ 64: 32 · 64 · 2^-24
    assert model(input_ids=torch.tensor([[3, 4]])).logits.dtype == dtype, "only while answers are read"


def test_members_of_a_half_precision_model_are_what_they_are_alone():
    model = random_model("llama-tied").bfloat16()
    reader = engine_of(model, 0)
    together = candidate_logprobs(reader, EXAMPLES, DENSE)
    alone = [candidate_logprobs(reader, EXAMPLES, (member,))[0] for member in DENSE]
    there = np.isfinite(together[0])
    assert np.abs(together[0] - together[1])[there].max() > 0.01
    for own, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(own[there], other[there], rtol=0, atol=1e-6)  # a CPU computes a row alike
