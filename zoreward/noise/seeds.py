"""What noise goes by: streams of tensors, seeds of a run's directions, purposes. Free of NumPy."""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterable

NOISE_VERSION = 2
# The fourth word of Philox's counter. A family of directions has purposes of its own, in its file.
DIRECTION, ROUNDING, FIRST_WEIGHTS = 0, 1, 4

_WRAPPERS = re.compile(r"(^|(?<=\.))(base_model\.model\.|_orig_mod\.|module\.)")


def canonical_name(name: str) -> str:
    """Return a parameter's name without the wrappers that tools put around a model.

    >>> canonical_name("module._orig_mod.base_model.model.lm_head.weight")
    'lm_head.weight'
    """
    inner = _WRAPPERS.sub("", name)
    return inner if inner == name else canonical_name(inner)  # one wrapper may sit inside another's name


def stream_of(name: str) -> int:
    """Return the 32-bit stream of a tensor: the first 4 bytes of BLAKE2b of its canonical name.

    >>> stream_of("lm_head.weight") == stream_of("module.lm_head.weight")
    True
    """
    return int.from_bytes(hashlib.blake2b(canonical_name(name).encode(), digest_size=4).digest(), "little")


def streams(names: Iterable[str]) -> dict[str, int]:
    """Return a stream for each name, no two alike.

    Two names whose hashes collide would share their z. The later one in sorted order is hashed again with a suffix.
    """
    table: dict[str, int] = {}
    taken: set[int] = set()
    for name in sorted(names, key=canonical_name):
        stream, attempt = stream_of(name), 0
        while stream in taken:
            attempt += 1
            stream = stream_of(f"{canonical_name(name)}\0{attempt}")
        taken.add(stream)
        table[name] = stream
    return table


def derive_seed(run_seed: int, step: int, k: int) -> int:
    """Return the 64-bit seed of direction `k` of step `step`; `k` = 2^64 − 1 is the step's rounding seed.

    >>> derive_seed(0, 0, 0) != derive_seed(0, 0, 1)
    True
    """
    digest = hashlib.blake2b(struct.pack("<QQQ", run_seed, step, k), digest_size=8).digest()
    return int.from_bytes(digest, "little")
