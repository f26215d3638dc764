"""Members of a model in its forward pass, and the one place that writes weights.

`members_at` shows the model as if its weights were θ + Σ coefficient · z(seed), without touching θ. `update_` moves θ.
"""

from zoreward.members.check import grouping_problem
from zoreward.members.context import KEEP_BYTES, members_at, update_, updates_
from zoreward.members.limits import limited, smallest
from zoreward.members.tuned import Slot, Tuned, tuned_weights

__all__ = [
    "KEEP_BYTES",
    "Slot",
    "Tuned",
    "grouping_problem",
    "limited",
    "members_at",
    "smallest",
    "tuned_weights",
    "update_",
    "updates_",
]
