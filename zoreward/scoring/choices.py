"""What an objective that needs `choices` is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoreward.records import Example


def choice_outputs(examples: Sequence[Example], logprobs_NC: NDArray[np.float64]) -> dict[str, Any]:
    """Return the outputs of one member for an objective that needs `choices`.

    Args:
        examples: N rows.
        logprobs_NC: mean log-probability per token of each candidate.

    Returns:
        `predictions`: index of each row's likeliest candidate, the first of equals · `references`: index of the right
        one · `logprobs`: logprobs_NC.
    """
    return {
        "predictions": logprobs_NC.argmax(axis=1).tolist(),
        "references": [example.reference for example in examples],
        "logprobs": logprobs_NC,
    }
