"""What PEFT and transformers warn each other of."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Keep back warnings of PEFT that are no business of the user's: what it sets right, and what it calls.

    >>> with quiet_peft():
    ...     warnings.warn("fan_in_fan_out is set to False but the target module is `Conv1D`.")
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "fan_in_fan_out")  # PEFT sets it itself
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # PEFT asks for it
        yield
