"""Reward functions of TRL."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from zoreward import get_objective, objective
from zoreward_objectives.arguments import hinted, read_options

if TYPE_CHECKING:
    from zoreward.registry import Objective


@objective("trl", needs="any")
def trl_(*, name: str, option: list[str] | None = None) -> Objective:
    """A reward function of trl.rewards: think_format_reward, accuracy_reward, get_soft_overlong_punishment and others.

    These functions read completions as lists of messages; plain texts are handed to them as such. A function whose
    name begins with get_ makes the reward from options.

    Args:
        name: of the function.
        option: an option of a get_ function, as name=value; give it once for each.

    Raises:
        LookupError: trl.rewards has nothing of that name.
        ValueError: options that the function does not take.

    >>> found = get_objective("trl:think_format_reward")
    >>> found.score(2, completions=["<think>so</think>4", "4"])
    0.5
    """
    function = _found(name)
    values = read_options(option)
    if name.startswith("get_"):
        try:
            inspect.signature(function).bind(**values)
        except TypeError as error:
            raise ValueError(
                f"the options do not fit trl.rewards.{name}{inspect.signature(function)}: {error}"
            ) from error
        function = function(**values)
    elif values:
        raise ValueError(f"trl.rewards.{name} takes no options")

    @functools.wraps(function, assigned=("__doc__",), updated=())
    def reward(completions: Sequence[Any], **columns: Any) -> Any:
        return function(completions=[_messages(completion) for completion in completions], **columns)

    reward.__name__ = name
    # functools.wraps lets inspect see the wrapped parameters, which do not say that all columns are passed on.
    del reward.__wrapped__  # type: ignore[attr-defined]
    return get_objective(reward)


def _found(name: str) -> Callable[..., Any]:
    try:
        from trl import rewards
    except ImportError as error:
        raise LookupError(f"the rewards of TRL need the package trl ({error}): pip install trl") from error
    names = sorted(attribute for attribute in dir(rewards) if attribute.endswith(("_reward", "_punishment")))
    if name not in names:
        import difflib

        near = difflib.get_close_matches(name, names)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise hinted(LookupError(f"trl.rewards has no reward {name!r}"), f"{hint}It has {', '.join(names)}")
    function: Callable[..., Any] = getattr(rewards, name)
    return function


def _messages(completion: Any) -> Any:
    return [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
