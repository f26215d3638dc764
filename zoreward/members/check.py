"""Whether members can share the forward pass of a model: tried out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from torch import nn

from zoreward.members.tuned import Tuned, tuned_weights
from zoreward.records import Member


def grouping_problem(
    model: nn.Module,
    members: Sequence[Member],
    score: Callable[[Sequence[Member]], torch.Tensor],
    *,
    tuned: Tuned | None = None,
    tolerance: float = 1e-3,
) -> str | None:
    """Say why members cannot share a forward pass of this model, or None if they can.

    Some models mix rows, read a child's weight without calling the child, or keep state between calls; several of
    them would be perturbed silently wrong. So the real thing is tried.

    Args:
        model: the model.
        members: M ≥ 2 members, different from each other.
        score: runs the model under the given members, with `members_at`, on real rows; a tensor whose first dimension
            is the member.
        tuned: `tuned_weights(model)`, if it is at hand.
        tolerance: largest difference that counts as rounding. float32 forwards of the same rows in other batches
            differ by some 1e-5; bfloat16 by some 1e-2.
    """
    tuned = tuned or tuned_weights(model)
    owners = tuned.shown_by(members)
    calls: Counter[int] = Counter()
    try:
        with ExitStack() as stack:
            for owner, _ in owners:
                hook = owner.register_forward_pre_hook(lambda module, args: calls.update([id(module)]))
                stack.callback(hook.remove)
            alone = torch.cat([score((member,)) for member in members])
        together = score(members)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    owner_names = {id(module): name for name, module in model.named_modules()}
    # A tied weight may hang in a module that only holds it, as T5's shared embedding does.
    seen = {id(slot.weight) for owner, slots in owners if calls[id(owner)] for slot in slots}
    unseen = [owner for owner, slots in owners if any(id(slot.weight) not in seen for slot in slots)]
    silent = [owner_names[id(owner)] for owner in unseen]
    if silent:
        return f"{silent[0]} is used without being called"
    difference = float((alone.double() - together.double()).abs().max())
    return None if difference <= tolerance else f"scores differ by {difference:.1e}"
