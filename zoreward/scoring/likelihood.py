"""What an objective that needs `likelihood` is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoreward.records import Example
from zoreward.scoring.choices import logprob_outputs


def likelihood_outputs(examples: Sequence[Example], logprobs_NC: NDArray[np.float64]) -> dict[str, Any]:
    """Return the outputs of one member for an objective that needs `likelihood`.

    Args:
        examples: N rows with one candidate each, the right answer.
        logprobs_NC: its mean log-probability per token, teacher-forced; C is 1.

    Returns:
        `logprobs`, and what `logprob_outputs` adds to it, all (N,) · `references`: the answers' texts.
    """
    of_answers = {name: values_NC[:, 0] for name, values_NC in logprob_outputs(examples, logprobs_NC).items()}
    return {**of_answers, "references": [example.candidates[0] for example in examples]}
