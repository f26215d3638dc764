"""Members' scores by answers that are given."""

from __future__ import annotations

from collections.abc import Sequence

from zoreward.records import Example, Member, Scored
from zoreward.registry import Objective
from zoreward.scoring.choices import choice_outputs
from zoreward.scoring.columns import columns_of
from zoreward.scoring.likelihood import likelihood_outputs
from zoreward.scoring.logprobs import candidate_logprobs
from zoreward.scoring.reader import Reader
from zoreward.scoring.rewards import part_score

OUTPUTS = {"choices": choice_outputs, "likelihood": likelihood_outputs}


def member_scores(
    reader: Reader, objective: Objective, examples: Sequence[Example], members: Sequence[Member] = ((),)
) -> list[float]:
    """Return scores_M: the objective's value for each member, all on the same rows.

    Raises:
        ObjectiveError: the objective raised, or returned no score.
    """
    return [scored.score for scored in answer_scores(reader, objective, examples, members)]


def answer_scores(
    reader: Reader, objective: Objective, examples: Sequence[Example], members: Sequence[Member] = ((),)
) -> list[Scored]:
    """Return what each member is worth, with the parts of a weighted sum.

    Raises what `member_scores` raises.
    """
    columns = columns_of(examples)
    outputs = OUTPUTS[objective.needs]
    batches = [
        (len(examples), {**columns, **outputs(examples, logprobs_NC)})
        for logprobs_NC in candidate_logprobs(reader, examples, members)
    ]
    return [
        Scored(objective.combined(returned), {name: part_score(name, found) for name, found in returned.items()})
        for returned in objective.returned_for(batches)
    ]
