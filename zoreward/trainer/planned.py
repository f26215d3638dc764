"""What a run will be, as far as it is known before the weights of its model are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zoreward.records import Query
from zoreward.registry import Objective
from zoreward.scoring import Memory
from zoreward.trainer.inputs import Given, all_given
from zoreward.trainer.options import method_of
from zoreward.trainer.ready import checked_memory

if TYPE_CHECKING:
    from zoreward.trainer.options import ZOConfig


@dataclass(frozen=True, slots=True, eq=False)
class Planned:
    """A run before its model is loaded.

    Args:
        given: what it is given, checked and made ready.
        query: the first one of its method.
        memory: what it needs, None where that cannot be told.
    """

    given: Given
    query: Query
    memory: Memory | None


def planned(
    model: Any, args: ZOConfig, objective: Objective, datasets: tuple[Any, Any, Any], tokenizer: Any, peft_config: Any
) -> Planned:
    """Return what a run will be; its arguments and errors are those of `all_given`, and a model that does not fit."""
    given = all_given(model, args, objective, datasets, tokenizer, peft_config)
    method = method_of(given.args, rows=len(given.examples))
    query = method.ask(method.init())
    return Planned(given, query, checked_memory(model, given, query, peft_config))
