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
        tolerance: largest difference that counts as rounding; see `tolerance_of`.
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


def tolerance_of(model: nn.Module, members: Sequence[Member] = ()) -> float:
    """Return by how much log-probabilities of the same rows may differ without a reason but rounding.

    Another batch moves them by some 1e-5 in float32, by some 1e-2 in half precision. Of a low-rank member alone the
    weights are rounded, of several together the outputs are corrected, as if weights were not: in bfloat16 that is 0.04
    to 0.09 on language models of 0.1 and 12 M weights, whatever ε is.

    Args:
        model: the model.
        members: those that are compared, alone and together; none where both sides see them the same way.
    """
    if next(model.parameters()).dtype in (torch.float32, torch.float64):
        return 1e-3
    return 0.2 if any(term.rank for member in members for term in member) else 5e-2
