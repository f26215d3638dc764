"""Members' scores by answers that are given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from zoreward.records import Example, Member, Scored
from zoreward.registry import Objective, mean_score
from zoreward.scoring.choices import choice_outputs
from zoreward.scoring.columns import columns_of
from zoreward.scoring.likelihood import likelihood_outputs
from zoreward.scoring.logprobs import candidate_logprobs
from zoreward.scoring.reader import Reader
from zoreward.scoring.rewards import Notes

OUTPUTS = {"choices": choice_outputs, "likelihood": likelihood_outputs}


def member_scores(
    reader: Reader, objective: Objective, examples: Sequence[Example], members: Sequence[Member] = ((),)
) -> list[float]:
    """Return scores_M: the objective's value for each member, all on the same rows.

    Raises:
        ObjectiveError: the objective raised, or returned what is no score.
    """
    return [scored.score for scored in answer_scores(reader, objective, examples, members)]


def answer_scores(
    reader: Reader, objective: Objective, examples: Sequence[Example], members: Sequence[Member] = ((),)
) -> list[Scored]:
    """Return what each member is worth, with the parts of a weighted sum.

    Raises what `member_scores` raises.
    """
    return scores_of(objective, examples, list(candidate_logprobs(reader, examples, members)))


def scores_of(
    objective: Objective, examples: Sequence[Example], logprobs_MNC: Sequence[NDArray[np.float64]]
) -> list[Scored]:
    """Return what each member is worth by what it gives to the candidates; raises what `member_scores` raises."""
    columns = columns_of(examples)
    outputs = OUTPUTS[objective.needs]
    notes = [Notes() for _ in logprobs_MNC]
    batches = [
        (len(examples), {**columns, **outputs(examples, logprobs_NC), "log_metric": note.loggers["log_metric"]})
        for logprobs_NC, note in zip(logprobs_MNC, notes, strict=True)
    ]
    return [
        Scored(
            objective.combined(returned),
            {name: mean_score(found) for name, found in returned.items()},
            metrics=note.means(),
        )
        for returned, note in zip(objective.returned_for(batches), notes, strict=True)
    ]


def with_base(reader: Reader, examples: Sequence[Example]) -> list[Example]:
    """Return the rows with the log-probabilities that the model as it is now gives to their candidates.

    Called before step 1, it makes the model the base that objectives compare with.
    """
    [logprobs_NC] = candidate_logprobs(reader, examples)
    return [
        replace(example, base_logprobs=tuple(own[: len(example.candidate_tokens)].tolist()))
        for example, own in zip(examples, logprobs_NC, strict=True)
    ]
