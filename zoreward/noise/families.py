"""The table of names: every family of directions. A new one is its own file, and its place here."""

from __future__ import annotations

from typing import Any

from zoreward.noise.dense import Dense
from zoreward.noise.factors import LowRank
from zoreward.noise.family import Family
from zoreward.noise.kronecker import Kronecker
from zoreward.noise.seeds import Distribution
from zoreward.noise.subspace import Subspace

_KINDS: tuple[type[Family], ...] = (Dense, LowRank, Subspace, Kronecker)

FAMILIES: dict[str, type[Family]] = {kind.name: kind for kind in _KINDS}

NOISES: tuple[str, ...] = tuple(name for name, kind in FAMILIES.items() if kind.about)
"""What the option `noise` may be."""


def family_of(
    noise: str = "", *, rank: int = 0, subspace: bool = False, distribution: Distribution = "normal", refresh: int = 1
) -> Family:
    """Return the family of a run's directions.

    Args:
        noise: its name; "": low-rank where there is a rank, or a subspace, else dense.
        rank: of directions that have one.
        subspace: whether those of a rank lie in a subspace.
        distribution: of the entries.
        refresh: steps that share a part of their directions.

    Raises:
        ValueError: there is no such family, or it has no such option.

    >>> family_of(), family_of(rank=2)
    (Dense(distribution='normal'), LowRank(rank=2, b_seed=None, distribution='normal'))
    """
    if subspace and (noise or not rank):
        raise ValueError("a subspace is one of low-rank directions: rank must be positive, and noise low-rank")
    name = noise or ("subspace" if subspace else "low-rank" if rank else "dense")
    if name not in FAMILIES:
        raise ValueError(f"noise must be one of {', '.join(NOISES)}, not {noise!r}")
    kind = FAMILIES[name]
    options: dict[str, Any] = {"rank": rank, "distribution": distribution}
    if rank and "rank" not in kind.options():
        raise ValueError(f"{name} directions have no rank")
    if distribution != kind.distribution and "distribution" not in kind.options():
        raise ValueError(f"directions in a {name} have entries of their own: distribution must be {kind.distribution}")
    if refresh > 1 and not kind.refreshes:
        raise ValueError(f"refresh is about the factors of low-rank directions: {name} ones have none")
    return kind(**{option: value for option, value in options.items() if option in kind.options()})


def family_options(noise: str, rank: int | None = None) -> dict[str, Any]:
    """Return how `family_of`, and a header, are told of a family that has a name. Dense and low-rank say it by a rank.

    >>> family_options("low-rank"), family_options("dense", 2)
    ({'rank': 1}, {'rank': 0})
    """
    told = {"rank": (rank or 1) if has_rank(noise) else 0}
    return told if noise in ("dense", "low-rank") else {**told, "noise": noise}


def has_rank(noise: str | None) -> bool:
    """Whether directions of this name have a rank.

    >>> has_rank("low-rank"), has_rank("dense")
    (True, False)
    """
    return noise in FAMILIES and "rank" in FAMILIES[noise].options()


def family_from_json(seed: int, told: list[Any], distribution: Distribution) -> Family:
    """Return the family of a term of a journal: what `Family.to_json` gave for its seed.

    Three families are older than names: nothing is dense, a rank alone or with the seed of b low-rank, a rank with two
    seeds a subspace.

    Raises:
        ValueError: it is none.

    >>> family_from_json(7, [2, 5], "normal")
    LowRank(rank=2, b_seed=5, distribution='normal')
    """
    name, numbers = (told[0], told[1:]) if told and isinstance(told[0], str) else ("low-rank", told)
    if not all(type(number) is int for number in numbers):
        raise ValueError("a family is told by whole numbers")
    if told in ([], [0]):
        name, numbers = "dense", []
    elif len(told) == 3 and told[1] == seed:
        name, numbers = "subspace", told[::2]
    elif len(told) == 2 and told[1] == seed:
        numbers = told[:1]
    if name not in FAMILIES:
        raise ValueError(f"there is no family {name!r}")
    kind = FAMILIES[name]
    fields = [option for option in kind.options() if option != "distribution"]
    if len(numbers) > len(fields):
        raise ValueError(f"{name} is told by {len(fields)} numbers, not {len(numbers)}")
    options: dict[str, Any] = dict(zip(fields, numbers, strict=False))
    if len(fields) < len(kind.options()):
        options["distribution"] = distribution
    elif distribution != kind.distribution:
        raise ValueError(f"a {name} has no distribution")
    return kind(**options)
