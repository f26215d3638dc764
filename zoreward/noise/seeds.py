"""What noise goes by: streams of tensors, seeds of a run's directions, purposes, distributions. Free of NumPy."""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterable
from enum import IntEnum, unique
from typing import Literal, get_args

NOISE_VERSION = 2

Distribution = Literal["normal", "gaussian", "rademacher"]
"""What the entries of directions are like; see `zoreward.noise.definition.entries`."""

DISTRIBUTIONS: tuple[Distribution, ...] = get_args(Distribution)


class Purpose(IntEnum):
    """The fourth word of Philox's counter: what is drawn for one purpose shares no number with another's.

    SAMPLING and FIRST_WEIGHTS are one number. That is harmless: the keys of tokens are derived from a seed, a position
    and k = 0, those of first weights from a seed and k = 2^64 − 3 or 2^64 − 4, or they are the run's seed itself. So
    they differ, but for a chance of 2^-64. Another number would change what stored runs wrote.
    """

    DIRECTION = 0
    ROUNDING = 1
    FACTOR_A, FACTOR_B = 2, 3  # of low-rank directions
    FIRST_WEIGHTS = SAMPLING = 4  # of adapters and heads; of tokens that are drawn
    BASIS_U, BASIS_V, CORE = 5, 6, 7  # of subspaces
    KRONECKER_A, KRONECKER_B = 8, 9


@unique
class SeedIndex(IntEnum):
    """The k of `derive_seed` for what is no direction: directions count from 0 on, so none of them shares a seed."""

    BLOCK = 2**63  # and block numbers on top of it: the order in which blocks of layers take turns
    SILENCE = 2**64 - 6  # members by which the share of silent steps is expected
    RADIUS = 2**64 - 5  # directions along which the radius is measured
    HEAD = 2**64 - 4  # first weights of a new head
    ADAPTER = 2**64 - 3  # first weights of an adapter
    SAMPLING = 2**64 - 2  # tokens that are drawn in a step
    ROUNDING = 2**64 - 1  # the rounding of a step's update


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
    """Return the 64-bit seed of direction `k` of step `step`; `SeedIndex` has the `k` of everything else.

    >>> derive_seed(0, 0, 0) != derive_seed(0, 0, 1)
    True
    """
    digest = hashlib.blake2b(struct.pack("<QQQ", run_seed, step, k), digest_size=8).digest()
    return int.from_bytes(digest, "little")
