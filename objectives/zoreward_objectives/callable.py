"""Any Python function."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoreward import describe_objective, get_objective, objective
from zoreward_objectives.arguments import read_options

if TYPE_CHECKING:
    from zoreward.registry import Objective


@objective("callable", needs="any")
def callable_(*, function: str, option: list[str] | None = None) -> Objective:
    """Any Python function, from a file or a module.

    The same as giving the file in the objective's place, `zoreward tune rewards.py:brevity`, where the function's own
    options are flags.

    Args:
        function: where it is: path/file.py:name or package.module:name.
        option: an option of the function's own, as name=value; give it once for each.

    Raises:
        ValueError: an option without "=".

    >>> from zoreward import get_objective
    >>> get_objective("callable", function="zoreward_objectives.accuracy:accuracy").name
    'accuracy'
    """
    texts = [described.name for described in describe_objective(function).options if described.type is str]
    return get_objective(function, **read_options(option, texts))
