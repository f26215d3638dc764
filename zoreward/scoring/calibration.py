"""Choices after the share that they have without any content."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from zoreward.records import Example
from zoreward.scoring.logprobs import candidate_logprobs
from zoreward.scoring.reader import Reader


def calibrated_logprobs(
    reader: Reader, examples: Sequence[Example], content_free: Sequence[Example]
) -> NDArray[np.float64]:
    """Return how much likelier each candidate becomes by what its row says.

        calibrated[n, c] = Σ_t log p(candidate_t | prompt, …) − Σ_t log p(candidate_t | content-free prompt, …)

    Sums over a candidate's tokens, not means: a long candidate pays for its length on both sides.

    Args:
        reader: the model.
        examples: N rows.
        content_free: the same rows and candidates behind prompts without content.

    Returns:
        calibrated_NC, float64; −inf where a row has fewer than C candidates.

    Source: surface form competition, Holtzman et al. 2021, arXiv 2104.08315, as in MeZO's released code.
    """
    own_NC = _sums(candidate_logprobs(reader, examples)[0], examples)
    # Mostly the same prompt for all rows, which is read once.
    places: dict[tuple[tuple[int, ...], tuple[tuple[int, ...], ...]], int] = {}
    index = [places.setdefault((one.prompt_tokens, one.candidate_tokens), len(places)) for one in content_free]
    firsts = [content_free[index.index(place)] for place in range(len(places))]
    free_NC = _sums(candidate_logprobs(reader, firsts)[0], firsts)[index]
    found_NC = np.full(own_NC.shape, -np.inf)
    there = np.isfinite(own_NC)
    found_NC[there] = own_NC[there] - free_NC[there]
    return found_NC


def _sums(logprobs_NC: NDArray[np.float64], examples: Sequence[Example]) -> NDArray[np.float64]:
    counts_NC = np.ones(logprobs_NC.shape)
    for n, example in enumerate(examples):
        counts_NC[n, : len(example.candidate_tokens)] = [len(tokens) for tokens in example.candidate_tokens]
    return logprobs_NC * counts_NC
