"""Log-likelihood of the right answer."""

from __future__ import annotations

from collections.abc import Iterable

from zoreward import objective


@objective("log-likelihood", needs="likelihood", range=(float("-inf"), 0))
def log_likelihood(logprobs: Iterable[float]) -> list[float]:
    """Mean log-probability per token of the right answer, given the prompt.

    Minus the usual language-model loss, by answers: a long answer counts as much as a short one.

    Args:
        logprobs: (N,), of each row's right answer.

    Returns: one number ≤ 0 for each row.

    Source: how MeZO trains on question answering, Malladi et al. 2023, arXiv 2305.17333.

    >>> log_likelihood([-0.5, -1.5])
    [-0.5, -1.5]
    """
    return [float(value) for value in logprobs]
