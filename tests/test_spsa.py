"""Contract under test: SPSA's step is MeZO's, its estimate is the gradient on average, its state is plain scalars."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch import nn

import reference
from zoreward.members import members_at, tuned_weights, update_
from zoreward.methods import SPSA, SPSAState
from zoreward.records import to_float32


class Curve(nn.Module):
    """A smooth function of a matrix and a vector, in float64."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.matrix = nn.Parameter(torch.randn(3, 4, generator=generator, dtype=torch.float64))
        self.vector = nn.Parameter(torch.randn(4, generator=generator, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x @ self.matrix.T).sum() + (self.vector**3).sum()


X = torch.linspace(-1, 1, 4, dtype=torch.float64)


def run(net: nn.Module, spsa: SPSA, steps: int, score) -> SPSAState:
    state = spsa.init()
    for _ in range(steps):
        query = spsa.ask(state)
        scores = []
        for member in query.members:
            with torch.no_grad(), members_at(net, (member,)):
                scores.append(float(score(net)))
        update, state = spsa.tell(state, query, scores)
        update_(net, update)
    return state


@pytest.mark.parametrize(("directions", "decay"), [(1, 0.0), (1, 0.1), (3, 0.1)])
def test_steps_equal_the_slow_mezo_written_from_the_formula(directions, decay):
    net = Curve()
    theta = {name: weight.detach().numpy().copy() for name, weight in net.named_parameters()}
    start = dict(theta)
    spsa = SPSA(eps=1e-3, lr=0.05, num_directions=directions, weight_decay=decay, seed=42)
    steps = 3
    run(net, spsa, steps, lambda net: net(X))

    def loss(weights: dict[str, np.ndarray]) -> float:
        return -float(np.tanh(weights["matrix"] @ X.numpy()).sum() + (weights["vector"] ** 3).sum())

    limits = {name: np.zeros_like(value) for name, value in theta.items()}
    for step in range(steps):
        seeds = [reference.derive_seed(42, step, k) for k in range(directions)]
        moved, slopes = reference.mezo_step(theta, loss, seeds=seeds, eps=1e-3, lr=0.05, weight_decay=decay)
        # The coefficients lr·g/K and lr·wd are stored as float32: off by at most 2^-24 of themselves.
        for name, old in theta.items():
            z_K = [np.abs(reference.direction(theta, seed)[name]) for seed in seeds]
            by_terms = sum(abs(0.05 * g / directions) * z for g, z in zip(slopes, z_K, strict=True))
            limits[name] += 2.0**-24 * (by_terms + 0.05 * decay * np.abs(old))
        theta = moved
    for name, weight in net.named_parameters():
        assert np.abs(theta[name] - start[name]).max() > 1e-3
        # A difference of one step changes the slopes of the next: by less than as much again at lr 0.05.
        assert (np.abs(weight.detach().numpy() - theta[name]) <= 3 * limits[name] + 1e-14).all()


def test_expectation_of_the_estimate_is_the_gradient_of_a_quadratic():
    size, samples = 6, 2_000
    centre = torch.arange(1.0, size + 1, dtype=torch.float64)
    net = nn.ParameterDict({"w": nn.Parameter(torch.zeros(size, dtype=torch.float64))})
    [stream] = tuned_weights_of(net)
    spsa = SPSA(eps=0.5, lr=1.0, seed=7)

    from zoreward.noise import definition as noise

    total = np.zeros(size)
    squares = np.zeros(size)
    state = spsa.init()
    for _ in range(samples):
        query = spsa.ask(state)
        z = noise.normal(query.members[0][0].seed, stream, 0, size).astype(float)
        scores = [-float(((sign * 0.5 * z - centre.numpy()) ** 2).sum()) for sign in (1, -1)]
        update, state = spsa.tell(state, query, scores)
        estimate = sum(term.coefficient for term in update.terms) * z
        total += estimate
        squares += estimate**2
    mean = total / samples
    error = np.sqrt((squares / samples - mean**2) / samples)
    gradient = 2 * centre.numpy()  # of −(w − c)² at w = 0
    # On a quadratic the two-sided difference is exact, so E[g z] = E[z zᵀ] ∇ = ∇. Five standard errors, six entries:
    # a right estimator fails once in 300,000 runs, and this one is seeded.
    assert (np.abs(mean - gradient) < 5 * error).all(), (mean, gradient, error)
    assert (5 * error < 0.5 * gradient.max()).all(), "the limit must be able to reject"


def tuned_weights_of(net: nn.Module) -> list[int]:
    return list(tuned_weights(net).streams.values())


def test_ascends_a_smooth_function():
    net = nn.Linear(4, 1, bias=False)
    target = torch.tensor([[1.0, -1.0, 0.5, 2.0]])
    before = float(((net.weight - target) ** 2).sum().detach())
    run(net, SPSA(eps=1e-3, lr=0.05, num_directions=2, seed=1), 200, lambda n: -((n.weight - target) ** 2).sum())
    after = float(((net.weight - target) ** 2).sum().detach())
    assert after < 1e-3 * before  # contraction 1 − 2·0.05·… per step; 200 steps of a 4-dimensional quadratic


def test_a_silent_step_moves_nothing_and_is_counted():
    spsa = SPSA(num_directions=2)
    state = spsa.init()
    query = spsa.ask(state)
    update, state = spsa.tell(state, query, [0.5, 0.5, 0.7, 0.7])
    assert update.terms == () and state == SPSAState(step=1, silent=1)
    update, state = spsa.tell(state, spsa.ask(state), [0.5, 0.5, 0.7, 0.6])
    assert len(update.terms) == 1 and state == SPSAState(step=2, silent=1)


def test_state_survives_json_and_directions_follow_the_seed():
    spsa = SPSA(seed=3, num_directions=2)
    state = SPSAState(**json.loads(json.dumps(asdict(SPSAState(step=12, silent=4)))))
    assert spsa.ask(state) == spsa.ask(SPSAState(12, 4))
    query = spsa.ask(state)
    assert [member[0].seed for member in query.members[::2]] == [reference.derive_seed(3, 12, k) for k in range(2)]
    assert [member[0].coefficient for member in query.members] == [to_float32(s * 1e-3) for s in (1, -1, 1, -1)]
    assert spsa.ask(SPSAState(13)).members[0][0].seed != query.members[0][0].seed
    assert SPSA(seed=4, num_directions=2).ask(state).members[0][0].seed != query.members[0][0].seed


@pytest.mark.parametrize(
    ("scores", "message"), [([1.0], "2 members"), ([1.0, -float("inf")], "finite"), ([1.0, float("inf")], "finite")]
)
def test_scores_that_are_none_are_refused(scores, message):
    spsa = SPSA()
    with pytest.raises(ValueError, match=message):
        spsa.tell(spsa.init(), spsa.ask(spsa.init()), scores)


def test_a_query_of_another_step_is_refused():
    spsa = SPSA()
    with pytest.raises(ValueError, match="step"):
        spsa.tell(SPSAState(step=1), spsa.ask(spsa.init()), [1.0, 2.0])


@pytest.mark.parametrize("wrong", [{"eps": 0.0}, {"num_directions": 0}, {"lr": -1.0}, {"seed": -1}])
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError):
        SPSA(**wrong)
