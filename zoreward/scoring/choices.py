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
        one · `logprobs`: logprobs_NC, and what `logprob_outputs` adds to it.
    """
    return {
        "predictions": logprobs_NC.argmax(axis=1).tolist(),
        "references": [example.reference for example in examples],
        **logprob_outputs(examples, logprobs_NC),
    }


def logprob_outputs(examples: Sequence[Example], logprobs_NC: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Return mean log-probabilities, their sums, and both for the base where the examples know them.

        logprob_sums[n, c] = T · logprobs[n, c],  T tokens of candidate c of row n

    Args:
        examples: N rows.
        logprobs_NC: mean log-probability per token of each candidate; −inf where a row has fewer.

    Returns:
        `logprobs` and `logprob_sums`; `base_logprobs` and `base_logprob_sums`, the same of the model before tuning.
        All (N, C), −inf where a row has fewer candidates.
    """
    counts_NC = np.ones(logprobs_NC.shape)
    for n, example in enumerate(examples):
        counts_NC[n, : len(example.candidate_tokens)] = [len(tokens) for tokens in example.candidate_tokens]
    found = {"logprobs": logprobs_NC, "logprob_sums": logprobs_NC * counts_NC}
    known = [example.base_logprobs for example in examples if example.base_logprobs is not None]
    if len(known) == len(examples):
        base_NC = np.full(logprobs_NC.shape, -np.inf)
        for n, own in enumerate(known):
            base_NC[n, : len(own)] = own
        found |= {"base_logprobs": base_NC, "base_logprob_sums": base_NC * counts_NC}
    return found
