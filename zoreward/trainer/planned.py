"""What a run will be, as far as it is known before the weights of its model are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zoreward.records import InputError, Query
from zoreward.registry import Objective
from zoreward.scoring import Memory, check_division
from zoreward.trainer.engines import check_engine
from zoreward.trainer.inputs import Given, all_given
from zoreward.trainer.options import method_of, takes_turns
from zoreward.trainer.penalty import keeps_base
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
    if args.tensor_parallel is not None:
        _refuse_to_divide(model, given)
    check_engine(model, given)
    method = method_of(given.args, rows=len(given.examples))
    query = method.ask(method.init())
    return Planned(given, query, checked_memory(model, given, query, peft_config))


def _refuse_to_divide(model: Any, given: Given) -> None:
    """Refuse what cannot be done yet with a model that ranks hold together."""
    args, size = given.args, given.args.tensor_parallel
    assert size is not None
    refusals = {
        "is not built for texts that members write": given.objective.needs == "completions",
        f"is not built for {args.noise} directions (take noise=dense)": args.noise != "dense",
        "is not built for adapters: all weights are tuned": given.adapter,
        f"is not built for a part of the weights (tune={args.tune}): all are tuned": args.tune != "full",
        "is not built for kl, max_kl and drift": keeps_base(args) or bool(args.drift),
        "divides a model that it loads itself, by a folder or Hub id": not isinstance(model, str),
        "is not built for anchor, share and blocks": bool(args.anchor) or args.share is not None or takes_turns(args),
    }
    for told, refused in refusals.items():
        if refused:
            raise InputError(f"tensor_parallel={size} {told}", hint="Leave it out where one GPU holds the model.")
    check_division(model, size, given.head, trust_remote_code=args.trust_remote_code)
