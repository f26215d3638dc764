"""What an objective that needs `likelihood` is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoreward.records import Example


def likelihood_outputs(examples: Sequence[Example], logprobs_NC: NDArray[np.float64]) -> dict[str, Any]:
    """Return the outputs of one member for an objective that needs `likelihood`.

    Args:
        examples: N rows with one candidate each, the right answer.
        logprobs_NC: its mean log-probability per token, teacher-forced; C is 1.

    Returns:
        `logprobs`: (N,) · `references`: the answers' texts.
    """
    return {"logprobs": logprobs_NC[:, 0], "references": [example.candidates[0] for example in examples]}
