"""Any Python function."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoreward import describe_objective, get_objective, objective
from zoreward_objectives.arguments import read_value, split_option

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
    types = {one.name: one.type for one in describe_objective(function).options}
    written = map(split_option, option or ())
    values = {name: value if types.get(name) is str else read_value(value) for name, value in written}
    return get_objective(function, **values)
