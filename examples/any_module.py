"""Tune a network that is no language model, on a score that has no gradient: how many points it classifies rightly.

python examples/any_module.py
"""

import torch
from torch import nn

from zoreward import SPSA, members_at, update_


def accuracy(net: nn.Module, points: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of points on the right side: a staircase, flat almost everywhere."""
    return float(((net(points).squeeze(1) > 0) == labels).float().mean())


def main() -> tuple[float, float]:
    """Tune, and return the accuracy before and after."""
    torch.manual_seed(0)
    points = torch.randn(1000, 2)
    labels = points.norm(dim=1) < 1.18  # inside a circle or outside: no line separates them
    net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1)).requires_grad_(False)
    before = accuracy(net, points, labels)

    spsa = SPSA(eps=0.1, lr=0.3, num_directions=4, seed=0)
    state = spsa.init()
    for _ in range(200):
        query = spsa.ask(state)
        scores = []
        for member in query.members:
            with members_at(net, (member,)):
                scores.append(accuracy(net, points, labels))
        update, state = spsa.tell(state, query, scores)
        update_(net, update)

    after = accuracy(net, points, labels)
    print(f"accuracy before {before:.3f}, after {after:.3f}; {state.silent} of {state.step} steps had no signal")
    return before, after


if __name__ == "__main__":
    main()
