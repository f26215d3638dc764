"""What a model predicts for rows, in the form of `transformers.Trainer.predict`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoreward.records import Example, Scored
from zoreward.scoring import Scorer, candidate_logprobs, scores_of


def predicted(
    scorer: Scorer, examples: Sequence[Example], *, seed: int, rows: int | None, trainer_state: Any
) -> tuple[Scored, NDArray[Any], NDArray[np.int64] | None]:
    """Return what the model is worth on N rows, what it predicts for them, and what is right.

    Args:
        scorer: the model and its objective.
        examples: N rows.
        seed: of what is drawn when texts are sampled.
        rows: most rows of one forward pass.
        trainer_state: handed to reward functions that ask for it.

    Returns:
        The score; the texts that were written, (N,), or the log-probabilities of each row's candidates, (N, C) with
        −inf where a row has fewer; the index of the right candidate, (N,), or None where there is none to choose.
    """
    if scorer.objective.needs == "completions":
        [writing] = scorer.score(examples, seed=seed, rows=rows, trainer_state=trainer_state)
        texts = [completion.text for completion in getattr(writing, "completions", ())]
        return writing, np.array(texts, dtype=object), None
    [logprobs_NC] = candidate_logprobs(scorer.engine, examples, rows=rows)
    [scored] = scores_of(scorer.objective, examples, [logprobs_NC])
    if scorer.objective.needs != "choices":
        return scored, logprobs_NC, None
    return scored, logprobs_NC, np.array([example.reference for example in examples], dtype=np.int64)
