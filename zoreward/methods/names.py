"""The methods by name, each with the settings of its paper."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from zoreward.methods.population import Population
from zoreward.methods.spsa import SPSA
from zoreward.methods.steps import Method
from zoreward.methods.svrg import SVRG
from zoreward.records import InputError


@dataclass(frozen=True, slots=True)
class Named:
    """A method that has a name.

    Args:
        kind: what is made.
        fixed: what makes it this method.
        defaults: options of a run (fields of `ZOArguments`, and `learning_rate`) that the user may change, for all
            weights of a model. What is missing here depends on the objective.
        source: author, year, arXiv.
    """

    kind: type[Method]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""


MEZO = {"noise": "dense", "eps": 1e-3, "num_directions": 1, "normalize": "none", "learning_rate": 1e-6}
SUBZERO = {**MEZO, "noise": "low-rank", "rank": 24, "refresh": 1000}
LOZO = {**MEZO, "noise": "low-rank", "rank": 2, "eps": 1e-3 * 2**0.5, "refresh": 50}

METHODS: dict[str, Named] = {
    "spsa": Named(SPSA, source="MeZO: Malladi et al. 2023, arXiv 2305.17333"),
    "svrg": Named(
        SVRG,
        defaults={name: value for name, value in MEZO.items() if name != "normalize"},
        source="MeZO-SVRG: Gautam et al. 2024, arXiv 2404.08080",
    ),
    "momentum": Named(
        SPSA, defaults={"momentum": 0.9}, source="ZO-SGD with momentum: Zhang et al. 2024, arXiv 2402.11592"
    ),
    "sign": Named(
        SPSA,
        fixed={"normalize": "sign"},
        defaults={"noise": "dense", "eps": 1e-3, "num_directions": 1, "learning_rate": 2e-5},
        source="FeedSign: Cai et al. 2025, arXiv 2501.17610",
    ),
    "lozo": Named(SPSA, defaults=LOZO, source="LOZO: Chen et al. 2024, arXiv 2410.07698"),
    "lozo-m": Named(SPSA, defaults={**LOZO, "momentum": 0.9}, source="LOZO-M: Chen et al. 2024, arXiv 2410.07698"),
    "subzero": Named(
        SPSA, fixed={"subspace": True}, defaults=SUBZERO, source="SubZero: Yu et al. 2024, arXiv 2410.08989"
    ),
    "sparse": Named(SPSA, defaults={**MEZO, "share": 0.25}, source="Sparse MeZO: Liu et al. 2024, arXiv 2402.15751"),
    "bcd": Named(SPSA, defaults={**MEZO, "block_every": 1}, source="MeZO-BCD: Park et al. 2025, arXiv 2501.19099"),
    "es": Named(
        Population,
        fixed={"estimator": "zscore"},
        defaults={"noise": "dense", "eps": 1e-3, "num_directions": 30, "learning_rate": 5e-4},
        source="ES at scale: Qiu et al. 2025, arXiv 2509.24372",
    ),
    "fzoo": Named(
        Population,
        fixed={"estimator": "base"},
        defaults={"noise": "dense", "distribution": "rademacher", "eps": 1e-4, "num_directions": 8}
        | {"learning_rate": 5e-5},
        source="FZOO: Dang et al. 2025, arXiv 2506.09034",
    ),
    "eggroll": Named(
        SPSA,
        defaults={"noise": "low-rank", "rank": 1, "normalize": "zscore", "eps": 1e-2, "num_directions": 16}
        | {"learning_rate": 3e-3},
        source="EGGROLL: Sarkar et al. 2025, arXiv 2511.16652",
    ),
}


def named(name: str) -> Named:
    """Return the method of a name.

    Raises:
        InputError: there is none.

    >>> named("lozo").defaults["refresh"]
    50
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
    found = named(name)
    given = {option: value for option, value in options.items() if value is not None}
    for option, value in given.items():
        if not takes(found, option) or (option in found.fixed and found.fixed[option] != value):
            others = [other for other, one in METHODS.items() if takes(one, option) and option not in one.fixed]
            raise InputError(
                f"{option} has no use with method {name}",
                hint=f"Leave it out, or take another method: {', '.join(others)}.",
            )
    if "block_every" in found.defaults and not given.get("blocks"):
        raise InputError(f"{name} moves one block in turn of how many?", hint="Give blocks, from 2 on.")
    try:
        return found.kind(**{**given, **found.fixed})
    except ValueError as error:
        hint = getattr(error, "hint", f"Change that option, or leave it out: {name} has a default.")
        raise InputError(str(error), hint=hint) from None


def takes(method: Named, option: str) -> bool:
    """Whether a method has an option of this name.

    >>> takes(named("spsa"), "normalize"), takes(named("svrg"), "normalize")
    (True, False)
    """
    return option in {one.name for one in fields(method.kind)}


def steps_by_slope(method: Named) -> bool:
    """Whether a method's steps are as long as the slopes of the score, unless the user has it normalise them.

    >>> steps_by_slope(named("svrg")), steps_by_slope(named("sign")), steps_by_slope(named("eggroll"))
    (True, False, False)
    """
    normalize = {**method.defaults, **method.fixed}.get("normalize", "none")
    return method.kind in (SPSA, SVRG) and normalize == "none"
