"""Contract under test: what the self-check measures, on logits that are made up, so that the right answer is known.

`noise` is put on whatever is read two members at a time, `effect` grows with a member's coefficient.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn

from zoreward.members import SelfCheck, members_at, self_check
from zoreward.records import Member, Term

EPS = 0.5
MEMBERS = ((Term(1, EPS),), (Term(1, -EPS),))
Logits = Callable[[tuple[Member, ...]], torch.Tensor]


def made_up(noise: float, effect: float, spread: float = 1.0, most: float = math.inf) -> Logits:
    """Logits of two rows: ± spread, where the two of MEMBERS differ by `effect`, and larger ones by `most` at most."""
    base = spread * torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)

    def logits_of(members: tuple[Member, ...]) -> torch.Tensor:
        moved = [effect / 2 * member[0].coefficient / EPS if member else 0.0 for member in members]
        moved = [math.copysign(min(abs(move), most / 2), move) for move in moved]
        return torch.stack([base + move for move in moved]) + noise * (len(members) > 1)

    return logits_of


def check_of(logits_of: Logits, **facts: object) -> SelfCheck:
    model = nn.Linear(2, 2).double()
    for name, fact in facts.items():
        setattr(model, name, fact)
    return self_check(model, MEMBERS, logits_of)


def test_noise_error_effect_and_spread_are_what_they_are_called():
    check = check_of(made_up(noise=1e-4, effect=1e-2))
    assert check.problem is None and check.members == MEMBERS
    measured = (check.noise, check.error, check.effect, check.spread)
    assert measured == pytest.approx((1e-4, 1e-4, 1e-2, math.sqrt(8 / 7)), rel=1e-3)  # of 8 numbers, each ± 1


# Twice what noise ≤ effect / 4 asks for is 8e-4: 80 times the first effect, 2.7 times the second, rounded up to a power
# of two. One that says nothing yet, as the third, is made 128 times as large, and looked at again.
@pytest.mark.parametrize(("effect", "scale"), [(1e-5, 128), (3e-4, 4), (1e-9, 128 * 128 * 64)])
def test_directions_that_are_too_small_to_tell_are_tried_larger(effect, scale):
    check = check_of(made_up(noise=1e-4, effect=effect))
    assert check.problem is None and check.noise <= check.effect / 4
    assert [member[0].coefficient for member in check.members] == [scale * EPS, -scale * EPS]


def test_members_that_never_stand_out_of_the_noise_cannot_share_a_pass():
    problem = check_of(made_up(noise=1e-4, effect=1e-5, most=2e-5)).problem
    assert problem == "logits differ by 1.0e-04 where rounding moves them by 1.0e-04, the members by 2.0e-05"


@pytest.mark.parametrize("spread", [0.01, 1.0, 100.0])
def test_noise_is_measured_against_the_spread_of_the_logits(spread):
    """A thousandth of it is rounding, more is not; 1.07 · spread is the standard deviation of eight such numbers."""
    assert check_of(made_up(noise=0.9e-3 * spread, effect=0.1 * spread, spread=spread)).problem is None
    problem = check_of(made_up(noise=1.2e-3 * spread, effect=0.1 * spread, spread=spread)).problem
    assert problem is not None and "in another batch" in problem


@pytest.mark.parametrize("kind", ["quantised", "half precision"])
def test_other_rounding_is_coarser(kind):
    logits_of = made_up(noise=0.1, effect=1.0)
    assert check_of(logits_of).problem is not None
    model = nn.Linear(2, 2) if kind == "quantised" else nn.Linear(2, 2).bfloat16()
    model.is_quantized = kind == "quantised"
    assert self_check(model, MEMBERS, logits_of).problem is None


@pytest.mark.parametrize("most", [1, 0], ids=["together", "alone"])
def test_an_error_of_the_model_is_the_problem(most):
    good = made_up(noise=0.0, effect=1.0)

    def logits_of(members: tuple[Member, ...]) -> torch.Tensor:
        if len(members) > most:
            raise ValueError("a row too many")
        return good(members)

    check = check_of(logits_of)
    assert check == SelfCheck("ValueError: a row too many", 0.0, MEMBERS, error=0.0, effect=0.0, spread=0.0)


def test_logits_that_are_not_finite_cannot_share_a_pass():
    good = made_up(noise=0.0, effect=1.0)
    check = check_of(lambda members: good(members) + (math.nan if len(members) > 1 else 0.0))
    assert check.problem is not None


class _Named(nn.Module):
    """The second of three layers is never called; the third is not either, but its weight is read."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.called, self.of_no_use, self.read = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.called(x)
        return y @ self.read.weight if self.reads else y


@pytest.mark.parametrize(("reads", "problem"), [(True, "read is used without being called"), (False, None)])
def test_a_weight_that_is_read_without_a_call_is_named_and_the_model_is_as_before(reads, problem):
    model = _Named()
    model.reads = reads
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))

    def logits_of(members: tuple[Member, ...]) -> torch.Tensor:
        with torch.no_grad(), members_at(model, members):
            return model(x.repeat(len(members), 1)).view(len(members), 3, -1)

    members = ((Term(1, 0.01),), (Term(1, -0.01),))
    assert self_check(model, members, logits_of).problem == problem
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    pickle.dumps(model)  # a hook of ours that is left behind cannot be pickled
