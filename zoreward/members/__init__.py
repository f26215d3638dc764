"""Members of a model in its forward pass, and the one place that writes weights.

`members_at` shows the model as if its weights were θ + Σ coefficient · z(seed), without touching θ. `update_` moves θ.
"""

from zoreward.members.check import grouping_problem
from zoreward.members.context import KEEP_BYTES, members_at, update_, updates_
from zoreward.members.held import HeldCopies
from zoreward.members.low_rank import HeldFactors, needs_copies
from zoreward.members.tuned import Slot, Tuned, tuned_weights

__all__ = [
    "KEEP_BYTES",
    "HeldCopies",
    "HeldFactors",
    "Slot",
    "Tuned",
    "grouping_problem",
    "members_at",
    "needs_copies",
    "tuned_weights",
    "update_",
    "updates_",
]
