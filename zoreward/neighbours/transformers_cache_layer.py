"""A layer of transformers' cache whose tensors stay where they are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from transformers.cache_utils import Cache, StaticLayer


class FixedLayer(StaticLayer):
    """Keys and values of one layer, in tensors of full length; a model writes a prompt, then to the token it is given.

    Private: that a model hands its keys and values to `update` and goes on with what that returns, and asks
    `get_seq_length` for nothing but positions and a mask, which are given.

    Args:
        keys: of the tokens so far, (rows, heads, tokens, width): for the shape and the device.
        values: the same.
        length: tokens that there is room for.
        position: where the next token is written, a tensor of one number that the caller changes.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, length: int, position: torch.Tensor):
        super().__init__(length)
        self._position = position
        self.keys = keys.new_zeros(*keys.shape[:2], length, keys.shape[3])
        self.values = values.new_zeros(*values.shape[:2], length, values.shape[3])
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the keys and values of a token, and return those of all tokens; of a prompt, which is all there is."""
        if (width := key_states.shape[2]) > 1:
            self.keys[:, :, :width], self.values[:, :, :width] = key_states, value_states
            return key_states, value_states
        self.keys.index_copy_(2, self._position, key_states)
        self.values.index_copy_(2, self._position, value_states)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Return a number, not a tensor."""
        return self.max_cache_len - 1


def cache_of_layers(layers: Iterable[FixedLayer]) -> Cache:
    """Return a cache that consists of these layers."""
    return Cache(layers=list(layers))  # type: ignore[arg-type]
