"""The methods by name, each with the settings of its paper."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from zoreward.methods.estimators import SPSA, Population
from zoreward.methods.steps import Method
from zoreward.methods.svrg import SVRG
from zoreward.records import InputError


@dataclass(frozen=True, slots=True)
class Named:
    """A method that has a name. Its defaults stand in `zoreward.config.METHOD_DEFAULTS`.

    Args:
        kind: what is made.
        source: author, year, arXiv.
        fixed: what makes it this method.
    """

    kind: type[Method]
    source: str
    fixed: Mapping[str, Any] = field(default_factory=dict)


METHODS: dict[str, Named] = {
    "spsa": Named(SPSA, "MeZO: Malladi et al. 2023, arXiv 2305.17333"),
    "svrg": Named(SVRG, "MeZO-SVRG: Gautam et al. 2024, arXiv 2404.08080"),
    "momentum": Named(SPSA, "ZO-SGD with momentum: Zhang et al. 2024, arXiv 2402.11592"),
    "sign": Named(SPSA, "FeedSign: Cai et al. 2025, arXiv 2501.17610", {"normalize": "sign"}),
    "lozo": Named(SPSA, "LOZO: Chen et al. 2024, arXiv 2410.07698"),
    "lozo-m": Named(SPSA, "LOZO-M: Chen et al. 2024, arXiv 2410.07698"),
    "subzero": Named(SPSA, "SubZero: Yu et al. 2024, arXiv 2410.08989", {"subspace": True}),
    "sparse": Named(SPSA, "Sparse MeZO: Liu et al. 2024, arXiv 2402.15751"),
    "bcd": Named(SPSA, "MeZO-BCD: Park et al. 2025, arXiv 2501.19099"),
    "es": Named(Population, "ES at scale: Qiu et al. 2025, arXiv 2509.24372", {"estimator": "zscore"}),
    "fzoo": Named(Population, "FZOO: Dang et al. 2025, arXiv 2506.09034", {"estimator": "base"}),
    "eggroll": Named(SPSA, "EGGROLL: Sarkar et al. 2025, arXiv 2511.16652"),
}


def named(name: str) -> Named:
    """Return the method of a name.

    Raises:
        InputError: there is none.

    >>> named("sign").fixed
    {'normalize': 'sign'}
    """
    if name in METHODS:
        return METHODS[name]
    near = difflib.get_close_matches(name, METHODS, n=1)
    hint = f"Did you mean {near[0]}?" if near else f"Choose one of {', '.join(METHODS)}."
    raise InputError(f"there is no method {name!r}", hint=hint)


def make_method(name: str, **options: Any) -> Method:
    """Return the method of a name, with these options; one that is None is left at its default.

    Raises:
        InputError: there is no such method, it does not take an option, or a value is out of its range.

    >>> make_method("fzoo", eps=1e-3, normalize=None).eps
    0.001
    """
    method = named(name)
    given = {option: value for option, value in options.items() if value is not None}
    for option, value in given.items():
        if not _takes(method, option) or (option in method.fixed and method.fixed[option] != value):
            others = [other for other, its in METHODS.items() if _takes(its, option) and option not in its.fixed]
            raise InputError(
                f"{option} has no use with method {name}",
                hint=f"Leave it out, or take another method: {', '.join(others)}.",
            )
    if name == "bcd" and not given.get("blocks"):
        raise InputError("bcd moves one block in turn of how many?", hint="Give blocks, from 2 on.")
    try:
        return method.kind(**{**given, **method.fixed})
    except ValueError as error:
        hint = getattr(error, "hint", f"Change that option, or leave it out: {name} has a default.")
        raise InputError(str(error), hint=hint) from None


def _takes(method: Named, option: str) -> bool:
    return option in {argument.name for argument in fields(method.kind)}
