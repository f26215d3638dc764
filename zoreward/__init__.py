"""Tune language models on whatever can be scored, with forward passes alone."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoreward.journal import replay
    from zoreward.members import members_at, update_
    from zoreward.methods import SPSA
    from zoreward.registry import describe_objective, get_objective, list_objectives, objective
    from zoreward.scoring import evaluate
    from zoreward.trainer import ZOConfig, ZOTrainer

__version__ = "0.1.0"

__all__ = [
    "SPSA",
    "ZOConfig",
    "ZOTrainer",
    "describe_objective",
    "evaluate",
    "get_objective",
    "list_objectives",
    "members_at",
    "objective",
    "replay",
    "update_",
]

# torch takes seconds to import; `zoreward --help` must not wait for it.
_HOMES = {
    "SPSA": "zoreward.methods",
    "ZOConfig": "zoreward.trainer",
    "ZOTrainer": "zoreward.trainer",
    "describe_objective": "zoreward.registry",
    "evaluate": "zoreward.scoring",
    "get_objective": "zoreward.registry",
    "list_objectives": "zoreward.registry",
    "members_at": "zoreward.members",
    "objective": "zoreward.registry",
    "replay": "zoreward.journal",
    "update_": "zoreward.members",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'zoreward' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
