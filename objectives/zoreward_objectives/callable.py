"""Any Python function."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from zoreward import describe_objective, get_objective, objective

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
    values = {}
    for one in option or ():
        name, equals, value = one.partition("=")
        if not equals:
            raise ValueError(f"the option {one!r} is not written as name=value")
        values[name] = value if types.get(name) is str else _read(value)
    return get_objective(function, **values)


def _read(value: str) -> Any:
    """A number, true, false, null or a list as JSON writes it; everything else is text."""
    try:
        return json.loads(value)
    except ValueError:
        return value
