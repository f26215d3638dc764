"""The papers' tasks, one YAML file each: data, prompt, answers, objective. A user's own file works too."""

from __future__ import annotations

import copy
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from zoreward.config import Prompting, Writing
from zoreward.data.columns import close_hint, column_in, columns_hint, columns_of, field_value, listed
from zoreward.data.reading import read_yaml
from zoreward.data.templates import fields_of, fill
from zoreward.records import InputError, UnknownNameError

_FOLDER = Path(__file__).parent
_ENDINGS = (".yaml", ".yml")
_LARGEST = 2**31 - 1
_ONE_OF = {"model": ("causal", "masked"), "needs": ("choices", "completions", "likelihood")}
_TEMPLATES = ("template", "bare", "content_free", "answer")
# How a column is made of others: from what stands somewhere in the row, or as a text.
_OF, _TEXT = ("of", "values"), ("text", "replace", "each")

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How many rows a paper took; None where it says nothing.

    Args:
        train: rows to tune on.
        dev: rows that choose, held out of those to tune on.
        test: rows that are scored at the end.
        k_shot: instead of train and dev: so many rows of each class for either.
    """

    train: int | None = None
    dev: int | None = None
    test: int | None = None
    k_shot: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task: where its rows are, how they become prompts, and what counts.

    Args:
        name: what the user calls it.
        template: the prompt; see `zoreward.data.render`.
        objective: what is reported.
        about: the question it asks, in one line.
        source: who made the data, and who the prompt.
        model: `causal`, or `masked` for models that fill a `[MASK]`.
        data: a dataset on the Hub, or a file.
        data_config: the dataset's configuration.
        revision: the dataset's branch, tag or commit.
        splits: the dataset's split for `train`, `dev` and `test`. Without dev its rows are held out of train.
        rows: how many.
        drop: values of columns; rows that have one of them are left out.
        columns: made of other columns; see `with_columns`.
        bare: the prompt without words of ours: the columns alone.
        content_free: the prompt without what the row says, for calibration.
        choices, choice_column, label, answer: see `zoreward.data.render`.
        needs: what the objective needs.
        options: of `objective`, by name; what is given on the command line wins.
        train_on: the objective that the paper tunes on.
        max_new_tokens: most tokens that are written, for `completions`.
        stop: what ends a text that is written.
    """

    name: str
    template: str
    objective: str
    about: str = ""
    source: str = ""
    model: str = "causal"
    data: str | None = None
    data_config: str | None = None
    revision: str | None = None
    splits: Mapping[str, str] = field(default_factory=dict)
    rows: Counts = field(default_factory=Counts)
    drop: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    columns: Mapping[str, Any] = field(default_factory=dict)
    bare: str | None = None
    content_free: str | None = None
    choices: list[str] | None = None
    choice_column: str | None = None
    label: str = "label"
    answer: str | None = None
    needs: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    train_on: str | None = None
    max_new_tokens: int | None = None
    stop: list[str] | None = None

    @property
    def prompting(self) -> Prompting:
        """How its rows become prompts."""
        names = ("template", "choices", "choice_column", "label", "answer")
        return Prompting(**{name: getattr(self, name) for name in names})

    @property
    def writing(self) -> Writing:
        """How a model writes for it."""
        return Writing(max_completion_length=self.max_new_tokens or Writing.max_completion_length, stop=self.stop)

    def kept(self, rows: Sequence[Row]) -> list[Row]:
        """The rows that belong to the task: those without a value that `drop` names.

        Raises:
            InputError: none is left.

        >>> Task(name="t", template="{x}", objective="f1", drop={"y": [-1]}).kept([{"y": 0}, {"y": -1}])
        [{'y': 0}]
        """
        left = [row for row in rows if not any(row.get(name) in values for name, values in self.drop.items())]
        if rows and not left:
            hint = f"it drops {', '.join(f'{name}: {list(values)}' for name, values in self.drop.items())}"
            raise InputError(f"the task {self.name!r} leaves out every one of these rows", hint=hint)
        return left

    def prepared(self, rows: Sequence[Row]) -> list[Row]:
        """The rows with the columns that the task makes.

        Raises:
            InputError: a row does not have what they are made of.
        """
        return with_columns(rows, self.columns) if self.columns else list(rows)


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
    values = _checked(given, Task, str(path))
    if "rows" in values:
        values["rows"] = Counts(**_checked(values["rows"], Counts, f"{path}, rows"))
    for key, number in {"max_new_tokens": values.get("max_new_tokens"), **asdict(values.get("rows", Counts()))}.items():
        if number is not None and not 0 < number <= _LARGEST:
            raise InputError(f"{path}: {key} is {number}", hint=f"it is 1 or more, and at most {_LARGEST:,}")
    for key, allowed in _ONE_OF.items():
        if values.get(key) is not None and values[key] not in allowed:
            raise InputError(f"{path}: {key} is {values[key]!r}", hint=f"it is one of {listed(allowed)}")
    for key in values.get("splits", {}):
        if key not in ("train", "dev", "test"):
            raise InputError(f"{path}: splits has {key!r}", hint="it has train, dev and test")
    for key in _TEMPLATES:
        fields_of(values.get(key) or "", f"{path}: {key}")
    _check_columns(values.get("columns", {}), f"{path}: ")
    return Task(name=path.stem, **values)


def _checked(given: Any, kind: type, where: str) -> dict[str, Any]:
    """Keys and values that are fields of a dataclass, and of their types."""
    hints = typing.get_type_hints(kind)
    known = {one.name: one for one in fields(kind) if one.name != "name"}
    if not isinstance(given, dict):
        raise InputError(f"{where} is {given!r:.80}", hint=f"it has {listed(list(known))}")
    for key, value in given.items():
        if key not in known:
            hint = f"{close_hint(str(key), known)}a task has {listed(list(known))}"
            raise InputError(f"{where}: there is no key {key!r}", hint=hint)
        kinds = _kinds(hints[key])
        if not _fits(value, kinds):
            names = {str: "a text", int: "a whole number", list: "a list of texts", types.NoneType: "nothing"}
            hint = " or ".join(names.get(one, "pairs, {key: value}") for one in kinds)
            raise InputError(f"{where}: {key} is {value!r:.80}", hint=f"it is {hint}")
    for name, one in known.items():
        if one.default is MISSING and one.default_factory is MISSING and name not in given:
            raise InputError(f"{where}: there is no {name}", hint=f"write {name}: …")
    return dict(given)


def _kinds(hint: Any) -> list[Any]:
    """The types that a hint allows, without what is in them; a dataclass is written as pairs."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [kind for one in typing.get_args(hint) for kind in _kinds(one)]
    return [dict] if hint is Counts or typing.get_origin(hint) is Mapping else [typing.get_origin(hint) or hint]


def _fits(value: Any, kinds: Sequence[Any]) -> bool:
    if isinstance(value, list):
        return list in kinds and all(isinstance(item, str) for item in value)
    return not isinstance(value, bool) and isinstance(value, tuple(kinds))


# Columns that are made of other columns, as a task describes them. No code: templates, and five words


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
    _check_columns(columns, "")
    made = [copy.copy(row) for row in rows]
    for name, how in columns.items():
        what = f"the column {name!r}"
        for row, value in zip(made, _values(made, how, what) if made else [], strict=True):
            row[name] = value
    return made


def _check_columns(columns: Mapping[str, Any], where: str) -> None:
    """Raise if a description of columns is malformed, before there are rows."""
    for name, how in columns.items():
        what = f"{where}the column {name!r}"
        if isinstance(how, dict) and ("of" in how) ^ ("text" in how):
            _check_keys(how, what)
        elif isinstance(how, str) or (isinstance(how, list) and how and all(isinstance(one, str) for one in how)):
            for template in [how] if isinstance(how, str) else how:
                fields_of(template, what)
        else:
            hint = "it is a template, a list of templates, or has either of: or text:"
            raise InputError(f"{what} is not described in a way that is known", hint=hint)


def _check_keys(how: dict[str, Any], what: str) -> None:
    allowed = _OF if "of" in how else _TEXT
    for key, value in how.items():
        if key not in _OF + _TEXT:
            hint = f"{close_hint(str(key), _OF + _TEXT)}known are {listed(_OF + _TEXT)}"
            raise InputError(f"{what} has {key!r}, which means nothing there", hint=hint)
        if key not in allowed:
            hint = f"with {allowed[0]}: go {listed(allowed[1:])}"
            raise InputError(f"{what} has {key}: beside {allowed[0]}:", hint=hint)
        if key in ("values", "replace"):
            if not isinstance(value, dict):
                raise InputError(f"{what}: {key}: is no list of pairs", hint="it is pairs, {old: new}")
        else:
            texts = value if key == "of" and isinstance(value, list) and value else [value]
            if not all(isinstance(text, str) for text in texts):
                raise InputError(f"{what}: {key}: is no text", hint="it is a text")
    for template in (how.get("text", ""), *how.get("replace", {}).values()):
        fields_of(str(template), what)


def _values(rows: list[Row], how: Any, what: str) -> list[Any]:
    if isinstance(how, str):
        return fill(how, rows, what)
    if isinstance(how, list):
        return [list(texts) for texts in zip(*(fill(one, rows, what) for one in how), strict=True)]
    if "of" in how:
        values = _at(rows, how["of"], what)
        return values if "values" not in how else [_looked_up(value, how["values"], what) for value in values]
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
        return [field_value(path, row, f"row {number}", what) for number, row in enumerate(rows, 1)]
    except InputError:
        if not others:
            raise
        return _at(rows, others, what)


def _looked_up(value: Any, values: Mapping[Any, Any], what: str) -> Any:
    if value not in values:
        raise InputError(f"{what} has no value for {value!r:.80}", hint=f"known are {listed(list(map(str, values)))}")
    return values[value]


def _replaced(rows: list[Row], how: Mapping[str, Any], what: str) -> list[str]:
    texts = fill(how["text"], rows, what)
    for old, new in how.get("replace", {}).items():
        news = fill(new, rows, what) if fields_of(new, what) else [new] * len(rows)
        texts = [text.replace(old, new) for text, new in zip(texts, news, strict=True)]
    return texts
