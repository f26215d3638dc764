"""Columns that are made of other columns, as a task describes them. No code: templates, and four words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zoreward.data.columns import close_hint, column_in, columns_hint, columns_of, field_value, listed
from zoreward.data.templates import fields_of, fill
from zoreward.records import InputError

Row = dict[str, Any]

_KEYS = ("of", "values", "text", "replace", "each")


def check_derived(columns: Mapping[str, Any], where: str) -> None:
    """Raise if a description of columns is malformed, before there are rows.

    Raises:
        InputError: it is. `where` names the description.
    """
    for name, how in columns.items():
        what = f"{where}: the column {name!r}"
        if isinstance(how, str):
            fields_of(how, what)
        elif isinstance(how, list) and how and all(isinstance(one, str) for one in how):
            for one in how:
                fields_of(one, what)
        elif not isinstance(how, dict) or not ("of" in how) ^ ("text" in how):
            hint = "it is a template, a list of templates, or has either of: or text:"
            raise InputError(f"{what} is not described in a way that is known", hint=hint)
        else:
            _check_keys(how, what)


def with_columns(rows: Sequence[Row], columns: Mapping[str, Any]) -> list[Row]:
    """The rows with further columns, each made of the row's own and of those that were made before it.

    A column is described by

    - a template: a text;
    - a list of templates: a list of texts, such as a row's own answers;
    - `{of: PATH}`: what stands at `PATH`, `answers[text]`, unchanged; of a list of paths, at the first where something
      stands; `{of: PATH, values: {a: x, b: y}}`: x where that is a, y where it is b;
    - `{text: TEMPLATE, replace: {OLD: TEMPLATE}}`: the text, OLD in it replaced; with `each: PATH` a list, one text for
      each item of the list at `PATH`, which is `{each}` in both templates.

    Raises:
        InputError: a description is malformed, or does not fit a row.

    Example:
        >>> [row] = with_columns([{"who": ["Ann", "Bob"], "ask": "X left."}],
        ...                      {"ends": {"text": " {ask}", "each": "who", "replace": {"X": "{each}"}}})
        >>> row["ends"]
        [' Ann left.', ' Bob left.']
    """
    check_derived(columns, "columns")
    made = [dict(row) for row in rows]
    for name, how in columns.items():
        what = f"the column {name!r}"
        for row, value in zip(made, _values(made, how, what) if made else [], strict=True):
            row[name] = value
    return made


def _check_keys(how: dict[str, Any], what: str) -> None:
    for key in how:
        if key not in _KEYS:
            hint = f"{close_hint(str(key), _KEYS)}known are {listed(_KEYS)}"
            raise InputError(f"{what} has {key!r}, which means nothing there", hint=hint)
    allowed = ("of", "values") if "of" in how else ("text", "replace", "each")
    for key in how:
        if key not in allowed:
            raise InputError(
                f"{what} has {key}: beside {allowed[0]}:", hint=f"with {allowed[0]}: go {listed(allowed[1:])}"
            )
    if isinstance(how.get("of"), list) and how["of"] and all(isinstance(path, str) for path in how["of"]):
        how = {**how, "of": how["of"][0]}
    for key, kind in (("of", str), ("text", str), ("each", str), ("values", dict), ("replace", dict)):
        if key in how and not isinstance(how[key], kind):
            kinds = "a text" if kind is str else "pairs, {old: new}"
            raise InputError(
                f"{what}: {key}: is no {'text' if kind is str else 'list of pairs'}", hint=f"it is {kinds}"
            )
    for template in (how.get("text", ""), *how.get("replace", {}).values()):
        fields_of(str(template), what)


def _values(rows: list[Row], how: Any, what: str) -> list[Any]:
    if isinstance(how, str):
        return fill(how, rows, what)
    if isinstance(how, list):
        return [list(texts) for texts in zip(*(fill(one, rows, what) for one in how), strict=True)]
    if "of" in how:
        found = _at(rows, how["of"], what)
        return found if "values" not in how else [_looked_up(value, how["values"], what) for value in found]
    if "each" not in how:
        return _replaced(rows, how, what)
    lists = _at(rows, how["each"], what)
    for number, items in enumerate(lists, 1):
        if not isinstance(items, list | tuple):
            raise InputError(f"row {number}: {what} is made for each of {how['each']!r}, which is no list here")
    single = [{**row, "each": item} for row, items in zip(rows, lists, strict=True) for item in items]
    texts = iter(_replaced(single, how, what) if single else [])
    return [[next(texts) for _ in items] for items in lists]


def _at(rows: list[Row], paths: str | list[str], what: str) -> list[Any]:
    path, *others = [paths] if isinstance(paths, str) else paths
    columns = columns_of(rows)
    try:
        if (column := column_in(path)) not in columns:
            raise InputError(f"{what}: no row has the column {column!r}", hint=columns_hint(column, columns))
        return _found(rows, path, what)
    except InputError:
        if not others:
            raise
        return _at(rows, others, what)


def _found(rows: list[Row], path: str, what: str) -> list[Any]:
    return [field_value(path, row, f"row {number}", what) for number, row in enumerate(rows, 1)]


def _looked_up(value: Any, values: Mapping[Any, Any], what: str) -> Any:
    if value not in values:
        raise InputError(f"{what} has no value for {value!r:.80}", hint=f"known are {listed(list(map(str, values)))}")
    return values[value]


def _replaced(rows: list[Row], how: Mapping[str, Any], what: str) -> list[str]:
    texts = fill(how["text"], rows, what)
    for old, new in how.get("replace", {}).items():
        news = fill(new, rows, what) if fields_of(new, what) else [new] * len(rows)
        texts = [text.replace(old, own) for text, own in zip(texts, news, strict=True)]
    return texts
