"""What memory members take beside the model's own weights."""

from __future__ import annotations

from collections.abc import Sequence

from zoreward.members.context import KEEP_BYTES
from zoreward.members.grouping import members_at_once
from zoreward.members.low_rank import are_factored, split
from zoreward.members.shared import fit, pass_bytes
from zoreward.members.tuned import Tuned, bytes_of
from zoreward.records import Member


def scratch_bytes(tuned: Tuned, members: Sequence[Member], keep_bytes: int = KEEP_BYTES) -> int:
    """Return the bytes that `members_at` holds at a time for these members: copies of weights, or factors of low rank.

    The weights are not read: they may be on torch's meta device. What is left out are large linear layers of low rank
    that take copies on a GPU because they see many tokens.

    Args:
        tuned: the tuned weights.
        members: M members.
        keep_bytes: as for `members_at`.

    Example:
        >>> import torch
        >>> from zoreward.members import tuned_weights
        >>> from zoreward.records import Term
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Linear(4, 2)).to("meta")
        >>> couple = ((Term(1, 0.1),), (Term(1, -0.1),))
        >>> scratch_bytes(tuned_weights(net), couple), scratch_bytes(tuned_weights(net), couple, keep_bytes=0)
        (368, 176)
    """
    owners = tuned.shown_by(members)
    if len(members) == 1 and fit(owners, 1, keep_bytes):
        return bytes_of(slot.weight for _, slots in owners for slot in slots)
    corrected, copied = split(owners) if are_factored(members) else ([], owners)
    columns = len(members) * max((sum(term.family.rank for term in member) for member in members), default=0)
    matrices = {id(slot.weight): slot.weight for _, slot, _ in corrected}.values()
    factors = columns * sum(sum(weight.shape) * weight.element_size() for weight in matrices)
    if fit(copied, len(members), keep_bytes):
        return factors + len(members) * bytes_of(slot.weight for _, slots in copied for slot in slots)
    vectors = bytes_of(slot.weight for _, slots in copied for slot in slots if slot.weight.ndim < 2)
    largest = 0
    for _, slots in copied:
        made = [slot for slot in slots if slot.weight.ndim >= 2]
        at_once = min(len(members), members_at_once(made, pass_bytes(tuned)))
        largest = max(largest, at_once * bytes_of(slot.weight for slot in made))
    return factors + len(members) * vectors + largest


def lasting_bytes(tuned: Tuned, members: Sequence[Member]) -> int:
    """Return the bytes that the members' directions leave for later ones: float32, as of the bases of subspaces.

    Args:
        tuned: the tuned weights.
        members: M members.

    Example:
        >>> import torch
        >>> from zoreward.members import tuned_weights
        >>> from zoreward.noise import Subspace
        >>> from zoreward.records import Term
        >>> couple = ((Term(1, 0.1, Subspace(2, 5)),), (Term(1, -0.1, Subspace(2, 5)),))
        >>> lasting_bytes(tuned_weights(torch.nn.Linear(8, 4)), couple)
        96
    """
    families = {term.family for member in members for term in member}
    shapes = [tuple(weight.shape) for weight in tuned.weights.values()]
    return 4 * sum(family.lasting_numbers(shape) for family in families for shape in shapes)
