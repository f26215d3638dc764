"""What masked models and classifiers give for whole texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from zoreward.records import Example
from zoreward.scoring.devices import repeated
from zoreward.scoring.reader import Reader


def whole_logits(reader: Reader, rows: Sequence[Example], members: int) -> torch.Tensor:
    """Return the logits at each row's mask, or those of the classes: (M·N, V), the rows of a member together.

    Args:
        reader: the model, showing its members.
        rows: N rows, which share a forward pass where padding on the right changes nothing.
        members: M.
    """
    lengths = [len(row.prompt_tokens) for row in rows]
    if reader.pads or len(set(lengths)) == 1:
        return _padded_logits(reader, rows, members)
    found = torch.empty(0)
    for length in sorted(set(lengths)):
        same = [r for r in range(len(rows)) if lengths[r] == length]
        part = _padded_logits(reader, [rows[r] for r in same], members)
        if not len(found):
            found = part.new_zeros(members * len(rows), part.shape[-1])
        found[[m * len(rows) + r for m in range(members) for r in same]] = part
    return found


def _padded_logits(reader: Reader, rows: Sequence[Example], members: int) -> torch.Tensor:
    device = next(reader.model.parameters()).device
    width = max(len(row.prompt_tokens) for row in rows)

    def filled(lists: Sequence[Sequence[int]], filling: int) -> torch.Tensor:
        padded = [[*own, *[filling] * (width - len(own))] for own in lists]
        return repeated(padded, members, device)

    given: dict[str, Any] = {"attention_mask": filled([(1,) * len(row.prompt_tokens) for row in rows], 0)}
    if any(row.types for row in rows):
        given["token_type_ids"] = filled([row.types or (0,) * len(row.prompt_tokens) for row in rows], 0)
    known = {name: value for name, value in given.items() if name in reader.accepts}
    cache = {"use_cache": False} if "use_cache" in reader.accepts else {}
    ids = filled([row.prompt_tokens for row in rows], reader.pad_token_id)
    logits: torch.Tensor = reader.model(input_ids=ids, **known, **cache).logits
    if reader.kind == "classifier":
        return logits
    places = torch.tensor([row.place for row in rows], device=device).repeat(members)
    return logits[torch.arange(len(places), device=device), places]
