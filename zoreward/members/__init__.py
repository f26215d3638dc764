"""Members of a model in its forward pass, and the one place that writes weights.

`members_at` shows the model as if its weights were θ + Σ coefficient · z(seed), without touching θ. `update_` moves θ.
"""

from zoreward.members.adapters import (
    adapted,
    adapter_options,
    adapter_state,
    called_model,
    check_merge,
    check_merged,
    check_no_adapter,
    config_of,
    has_adapter,
    lora_config,
    merged_copy,
    task_type,
)
from zoreward.members.check import SelfCheck, self_check
from zoreward.members.chosen import check_tune
from zoreward.members.context import (
    KEEP_BYTES,
    anchored,
    kept_members,
    lasting_bytes,
    members_at,
    scratch_bytes,
    update_,
    updates_,
)
from zoreward.members.copies import HeldCopies, HeldFactors, member_factors, perturbed_copies
from zoreward.members.forwards import Float32Layer, float32_layer
from zoreward.members.low_rank import are_factored, needs_copies
from zoreward.members.new_weights import (
    PREFIX_TOKENS,
    draw_head_,
    first_spread,
    has_prefix,
    head_names,
    new_names,
    with_prefix,
)
from zoreward.members.restrictions import (
    by_layer,
    check_blocks,
    in_all_blocks,
    in_blocks,
    in_each_block,
    limited,
    smallest,
)
from zoreward.members.rounded import ENOUGH, least_eps, left_of_directions
from zoreward.members.tuned import Slot, Tuned, bytes_of, digest_of_weights, divided, has_triton, tuned_weights

__all__ = [
    "ENOUGH",
    "KEEP_BYTES",
    "PREFIX_TOKENS",
    "Float32Layer",
    "HeldCopies",
    "HeldFactors",
    "SelfCheck",
    "Slot",
    "Tuned",
    "adapted",
    "adapter_options",
    "adapter_state",
    "anchored",
    "are_factored",
    "by_layer",
    "bytes_of",
    "called_model",
    "check_blocks",
    "check_merge",
    "check_merged",
    "check_no_adapter",
    "check_tune",
    "config_of",
    "digest_of_weights",
    "divided",
    "draw_head_",
    "first_spread",
    "float32_layer",
    "has_adapter",
    "has_prefix",
    "has_triton",
    "head_names",
    "in_all_blocks",
    "in_blocks",
    "in_each_block",
    "kept_members",
    "lasting_bytes",
    "least_eps",
    "left_of_directions",
    "limited",
    "lora_config",
    "member_factors",
    "members_at",
    "merged_copy",
    "needs_copies",
    "new_names",
    "perturbed_copies",
    "scratch_bytes",
    "self_check",
    "smallest",
    "task_type",
    "tuned_weights",
    "update_",
    "updates_",
    "with_prefix",
]
