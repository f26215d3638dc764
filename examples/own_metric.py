"""An objective of your own, in a file: `zoreward tune examples/own_metric.py:share_right --model … --data …`.

Also as `zoreward tune callable --function examples/own_metric.py:share_right`. No decorator, no import: the names of
the parameters say what is wanted, a keyword-only parameter with a type and a default is an option (`--certain 0.6`).
"""

from __future__ import annotations

import numpy as np


def share_right(predictions: list[int], references: list[int], logprobs: np.ndarray, *, certain: float = 0.0) -> float:
    """Share of rows answered right, among all; an answer given with too little certainty counts as wrong.

    Args:
        certain: the least probability, among the choices, that an answer needs.
    """
    shares = np.exp(logprobs - logprobs.max(axis=1, keepdims=True))
    sure = shares.max(axis=1) / shares.sum(axis=1) >= certain
    return float(np.mean(sure & (np.array(predictions) == np.array(references))))


if __name__ == "__main__":
    shares = np.log(np.array([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7]]))
    print(share_right([0, 1, 1], [0, 1, 0], shares), share_right([0, 1, 1], [0, 1, 0], shares, certain=0.8))
