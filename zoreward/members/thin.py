"""Members of a thin linear layer, as adapters have, in one batched product instead of one product for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from zoreward.members.hooked import gives_float32, has_other_forward
from zoreward.members.tuned import Slot
from zoreward.neighbours.of_torch import weights_in

# A matrix whose shorter side is at most this: its product takes less time than its launch, and its copies lie side by
# side at little cost. Adapters have ranks up to this.
THIN = 64

Product = Callable[[torch.Tensor], torch.Tensor]
"""x → y: rows of one member after the other, in the first dimension."""


def thin_product(owner: nn.Module, slots: Sequence[Slot], kept: Mapping[int, list[torch.Tensor]]) -> Product | None:
    """Return the forward of a thin `nn.Linear` for the rows of all members; None for any other module.

    y_m = x_m·W_mᵀ + bias_m for the M members at once. The last bit of a sum may differ from that of a plain product.

    Args:
        owner: the module.
        slots: where its tuned weights hang.
        kept: the copies of their weights at each member, by the weight's id.
    """
    holds = {slot.key: slot.weight for slot in slots if slot.holder is owner}
    weight = weights_in(owner).get("weight")
    if type(owner).forward is not nn.Linear.forward or has_other_forward(owner) or len(holds) != len(slots):
        return None
    if weight is None or min(weight.shape) > THIN or holds.get("weight") is not weight or gives_float32(owner):
        return None
    bias = weights_in(owner).get("bias")
    weights_T = torch.stack(kept[id(weight)]).mT
    biases = None
    if bias is not None:
        own = kept[id(bias)] if "bias" in holds else [bias.detach()] * len(weights_T)
        biases = torch.stack(own).unsqueeze(1)

    def product(x: torch.Tensor) -> torch.Tensor:
        grouped = x.reshape(len(weights_T), -1, x.shape[-1])
        y = torch.bmm(grouped, weights_T) if biases is None else torch.baddbmm(biases, grouped, weights_T)
        return y.view(*x.shape[:-1], y.shape[-1])

    return product
