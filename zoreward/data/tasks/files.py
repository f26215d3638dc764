"""Tasks from YAML files: those that are shipped, by name, and a user's own, by path."""

from __future__ import annotations

import types
import typing
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

from zoreward.data.columns import close_hint, listed
from zoreward.data.derived import check_derived
from zoreward.data.reading import read_yaml
from zoreward.data.tasks.task import Counts, Task
from zoreward.data.templates import fields_of
from zoreward.records import InputError, UnknownNameError

_FOLDER = Path(__file__).parent
_ENDINGS = (".yaml", ".yml")
_MOST = 2**31 - 1
_ONE_OF = {"model": ("causal", "masked"), "needs": ("choices", "completions", "likelihood")}


def list_tasks() -> list[Task]:
    """The tasks that are shipped: those for causal models first, by name."""
    return sorted((_read(path) for path in _FOLDER.glob("*.yaml")), key=lambda task: (task.model, task.name))


def load_task(source: str) -> Task:
    """The task of this name, or that for masked models where there is no other, or that of a user's own YAML file.

    Args:
        source: a name that `list_tasks` knows, or a path that ends in .yaml or .yml. Keys are the fields of `Task`,
            without `name`, which is the file's.

    Raises:
        UnknownNameError: there is no such task.
        MissingFileError: there is no such file.
        InputError: the file is no task; says which key is wrong.

    >>> load_task("sst2").template
    '{sentence|strip} It was'
    >>> load_task("trec").name
    'trec-masked'
    """
    if source.lower().endswith(_ENDINGS):
        return _read(Path(source))
    names = [path.stem for path in sorted(_FOLDER.glob("*.yaml"))]
    if source not in names and f"{source}-masked" in names:
        source = f"{source}-masked"  # where there is none for causal models
    if source not in names:
        hint = f"{close_hint(source, names)}the tasks are {listed(names)}; or give a .yaml file of your own"
        raise UnknownNameError(f"there is no task {source!r}", hint=hint)
    return _read(_FOLDER / f"{source}.yaml")


def _read(path: Path) -> Task:
    given = read_yaml(path, "--task takes a task's name or a YAML file")
    if not isinstance(given, dict):
        raise InputError(f"{path} holds no task", hint="write at least template: and objective:")
    checked = _checked(given, Task, str(path))
    if "rows" in checked:
        checked["rows"] = Counts(**_checked(checked["rows"], Counts, f"{path}, rows"))
    numbers = {"max_new_tokens": checked.get("max_new_tokens"), **asdict(checked.get("rows", Counts()))}
    for key, number in numbers.items():
        if number is not None and not 0 < number <= _MOST:
            raise InputError(f"{path}: {key} is {number}", hint=f"it is 1 or more, and at most {_MOST:,}")
    for key, allowed in _ONE_OF.items():
        if checked.get(key) is not None and checked[key] not in allowed:
            raise InputError(f"{path}: {key} is {checked[key]!r}", hint=f"it is one of {listed(allowed)}")
    for key in checked.get("splits", {}):
        if key not in ("train", "dev", "test"):
            raise InputError(f"{path}: splits has {key!r}", hint="it has train, dev and test")
    for key in ("template", "bare", "content_free", "answer"):
        fields_of(checked.get(key) or "", f"{path}: {key}")
    check_derived(checked.get("columns", {}), str(path))
    return Task(name=path.stem, **checked)


def _checked(given: Any, kind: type, where: str) -> dict[str, Any]:
    """Keys and values that are fields of a dataclass, and of their types."""
    hints = typing.get_type_hints(kind)
    known = [one.name for one in fields(kind) if one.name != "name"]
    if not isinstance(given, dict):
        raise InputError(f"{where} is {given!r:.80}", hint=f"it has {listed(known)}")
    for key, value in given.items():
        if key not in known:
            hint = f"{close_hint(str(key), known)}a task has {listed(known)}"
            raise InputError(f"{where}: there is no key {key!r}", hint=hint)
        if not _fits(value, hints[key]):
            raise InputError(f"{where}: {key} is {value!r:.80}", hint=f"it is {_kind(hints[key])}")
    for one in fields(kind):
        if one.name in known and one.default is MISSING and one.default_factory is MISSING and one.name not in given:
            raise InputError(f"{where}: there is no {one.name}", hint=f"write {one.name}: …")
    return dict(given)


def _kinds(hint: Any) -> list[Any]:
    """The types that a hint allows, without what is in them."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [kind for one in typing.get_args(hint) for kind in _kinds(one)]
    return [typing.get_origin(hint) or hint]


def _fits(value: Any, hint: Any) -> bool:
    if Counts in _kinds(hint):
        return isinstance(value, dict)
    if isinstance(value, list) and list in _kinds(hint):
        return all(isinstance(one, str) for one in value)
    if isinstance(value, bool):
        return False
    return any(isinstance(value, kind) for kind in _kinds(hint))


def _kind(hint: Any) -> str:
    names = {str: "a text", int: "a whole number", list: "a list of texts", types.NoneType: "nothing"}
    return " or ".join(names.get(kind, "pairs, {key: value}") for kind in _kinds(hint))
