"""Objectives: how a function becomes one, where they are found, and how their results become one score. No torch.

A plugin is an entry point of the group `zoreward.objectives`; the shipped objectives come through the same door:

    [project.entry-points."zoreward.objectives"]
    brevity = "my_package.rewards:brevity"
"""

from zoreward.registry.decorator import assume_completions, objective
from zoreward.registry.objective import (
    Needs,
    Objective,
    Option,
    Returned,
    left_behind,
    mean_score,
    no_score,
    weighted_sum,
)
from zoreward.registry.places import is_ctrl_c, place_of
from zoreward.registry.sources import (
    Entry,
    Source,
    code_of,
    describe_objective,
    get_objective,
    list_objectives,
    spelled_out,
)

__all__ = [
    "Entry",
    "Needs",
    "Objective",
    "Option",
    "Returned",
    "Source",
    "assume_completions",
    "code_of",
    "describe_objective",
    "get_objective",
    "is_ctrl_c",
    "left_behind",
    "list_objectives",
    "mean_score",
    "no_score",
    "objective",
    "place_of",
    "spelled_out",
    "weighted_sum",
]
