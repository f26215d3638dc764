"""Solve u'' = −4π² sin 2πx, u(0) = u(1) = 0 with a network that is only ever evaluated: no gradient, not even by x.

Derivatives are Stein's: of u smoothed by normal numbers δ of size σ, u'' ≈ E[(δ² − σ²)/σ⁴ · u(x + δ)] on a sparse
grid: in one dimension the nodes of a Gauss–Hermite rule. The middle layer is a tensor train (arXiv 2502.12384).

python examples/pinn.py [FIGURE.svg]
"""

import math
import sys

import numpy as np
import torch
from torch import nn

from zoreward import SPSA, members_at, update_

SIGMA, POINTS = 0.02, torch.linspace(0, 1, 33)
NODES, WEIGHTS = (torch.tensor(part, dtype=torch.float32) for part in np.polynomial.hermite_e.hermegauss(7))
SECOND = WEIGHTS / WEIGHTS.sum() * (NODES**2 - 1) / SIGMA**2


class TensorTrain(nn.Module):
    """A 16 × 16 layer whose weight is a chain of two cores, W[ij, pq] = Σ_r first[i, p, r] · second[r, j, q]."""

    def __init__(self, rank: int = 2):
        super().__init__()  # W then has the entries of a Glorot-normal one
        self.first = nn.Parameter(torch.randn(4, 4, rank) / (16 * rank) ** 0.25)
        self.second = nn.Parameter(torch.randn(rank, 4, 4) / (16 * rank) ** 0.25)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("nij,ipr,rjq->npq", x.view(-1, 4, 4), self.first, self.second).flatten(1)


def main(steps: int = 800) -> tuple[torch.Tensor, torch.Tensor]:
    """Tune; return u on a grid, and the solution sin 2πx there."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # what is computed is smaller than what a second thread costs
    net = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), TensorTrain(), nn.Tanh(), nn.Linear(16, 1)).requires_grad_(False)
    x, source = POINTS[:, None] + SIGMA * NODES, -((2 * math.pi) ** 2) * torch.sin(2 * math.pi * POINTS)
    spsa = SPSA(eps=0.01, lr=0.02, num_directions=8, normalize="rms", seed=0)
    state = spsa.init()
    for step in range(steps):
        query = spsa.ask(state)
        with members_at(net, query.members):  # all in one forward pass, each on rows of its own
            u = x * (1 - x) * net((2 * x - 1).view(-1, 1).repeat(16, 1)).view(16, *x.shape)
        scores = -((u @ SECOND) - source).square().mean(1)
        update, state = spsa.tell(state, query, scores.tolist(), lr=spsa.lr * (1 - step / steps))
        update_(net, update)
    grid = torch.linspace(0, 1, 201)[:, None]
    return (grid * (1 - grid) * net(2 * grid - 1)).squeeze(1), torch.sin(2 * math.pi * grid).squeeze(1)


if __name__ == "__main__":
    u, exact = main()
    print(f"relative error {(u - exact).norm() / exact.norm():.4f}")
    if sys.argv[1:]:
        from matplotlib import pyplot

        pyplot.plot(exact), pyplot.plot(u, "--"), pyplot.legend(["sin 2πx", "the network"]), pyplot.savefig(sys.argv[1])
