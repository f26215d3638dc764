"""Rows from a file (JSON lines, JSON, CSV, Parquet) or from the Hub, and which of them are for what.

Free of torch; Parquet needs pyarrow.
"""

from __future__ import annotations

import csv
import difflib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from zoreward.data.columns import (
    PlacedRow,
    Row,
    broken_text,
    class_names,
    class_names_in,
    listed,
    values_of,
    with_class_names,
)
from zoreward.data.hub import hub_rows
from zoreward.data.reading import check_regular
from zoreward.records import InputError, MissingFileError, one_line

T = TypeVar("T")


def load_rows(
    source: str | Path,
    *,
    config: str | None = None,
    split: str | None = None,
    limit: int | None = None,
    revision: str | None = None,
) -> list[Row]:
    """The rows of a local file or of a dataset on the Hub, in their order.

    A file's ending says what it is: `.jsonl` (one object a line; blank lines do not count), `.json` (a list of
    objects), `.csv` (with a header; comma, double quotes, UTF-8; values stay strings) or `.parquet` (needs pyarrow).
    Rows need not have the same columns. A dataset's classes stay the integers that they are stored as; where the
    dataset or the Parquet file knows their names, the integers know them too (`NamedLabel`).

    Args:
        source: a file, or `owner/name` of a dataset on the Hub. What exists here is never asked for there; nor is what
            has one of the endings above, or begins as paths do.
        config: for the Hub: which configuration of the dataset.
        split: for the Hub: which split, `train` by default; also `train[:100]`, `train+validation`.
        limit: keep the first so many rows, ≥ 1. From the Hub no more are fetched, unless the split is a slice.
        revision: for the Hub: a branch, tag or commit.

    Raises:
        MissingFileError: there is no such file.
        InputError: an unknown ending, no rows, or something in the file that cannot be read or is no whole text; says
            where. A dataset that cannot be had. `config`, `split` or `revision` with a file.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "train.csv"
        >>> _ = path.write_text("sentence,label\\na fine film,1\\n")
        >>> load_rows(path)
        [{'sentence': 'a fine film', 'label': '1'}]
    """
    if limit is not None and limit < 1:
        raise InputError(f"--limit {limit} leaves no rows", hint="give 1 or more, or leave it out")
    if not str(source):
        raise InputError("there is no file ''", hint="give a file, or a Hub dataset")
    if isinstance(source, str) and _is_hub_name(source):
        rows = hub_rows(source, config=config, split=split, limit=limit, revision=revision)
    else:
        rows = _file_rows(Path(source), {"--data-config": config, "--split": split, "--revision": revision})[:limit]
    if not rows:
        raise InputError(f"{source} holds no rows", hint="give a file or a split with at least one row")
    _check_rows(rows, f"{source}, row")
    return [
        row if isinstance(row, PlacedRow) else PlacedRow(row, str(source), "row", number)
        for number, row in enumerate(rows, 1)
    ]


def rows_of(dataset: Any) -> list[Row]:
    """The rows of whatever holds some: a list of dicts, a `datasets.Dataset`, a `pandas.DataFrame`.

    A Dataset's numbers of classes know their names.

    Raises:
        InputError: it holds no rows: the splits of a `DatasetDict`, a dict of columns, a name; or a text in a row is
            not whole.

    >>> rows_of({"train": [], "test": []})
    Traceback (most recent call last):
    zoreward.records.InputError: these are 2 splits or columns, not rows
    hint: give one, rows['train']; there are train, test. Rows are a list of dicts, or a Dataset
    """
    if isinstance(dataset, Mapping):
        first = next(iter(dataset), "train")
        hint = f"give one, rows[{first!r}]; there are {listed(list(dataset))}. Rows are a list of dicts, or a Dataset"
        raise InputError(f"these are {len(dataset)} splits or columns, not rows", hint=hint)
    if isinstance(dataset, str | bytes | Path):
        hint = "read them first: zoreward.data.load_rows(…)"
        raise InputError(f"{str(dataset)!r:.80} is the name of rows, not rows", hint=hint)
    if type(dataset).__name__ == "DataFrame" and hasattr(dataset, "to_dict"):
        # Its cells are arrays where Parquet has lists, as messages are.
        cells = (row.items() for row in dataset.to_dict("records"))
        dataset = [
            {name: value.tolist() if hasattr(value, "tolist") else value for name, value in row} for row in cells
        ]
    if names := class_names(getattr(dataset, "features", None)):
        dataset = with_class_names(dataset, names)
    rows = list(dataset)
    _check_rows(rows, "row")
    return rows


def _check_rows(rows: Iterable[Any], what: str) -> None:
    """Raise if a row is no dict, or a text in it holds half a character, as JSON's `\\ud83d` alone is.

    No tokenizer can read such a text.

    Raises:
        InputError: one is, or does. `what` stands in front of the row's number.
    """
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise InputError(f"{what} {number} is a {type(row).__name__}, not a dict", hint="a row is {column: value}")
        for column, value in row.items():
            if (text := broken_text(value)) is not None:
                message = f"{what} {number}: the column {column!r} holds half a character, {ascii(text)[:80]}"
                raise InputError(message, hint="drop such rows; or write the whole character, or U+FFFD in its place")


def _is_hub_name(source: str) -> bool:
    path = Path(source)
    # Not Path.exists, which raises where a name is too long to be one.
    looks_local = path.suffix.lower() in _READERS or source.startswith(".") or os.path.exists(path)
    return not looks_local and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) is not None


def _file_rows(path: Path, hub_options: dict[str, str | None]) -> list[Row]:
    if os.path.isdir(path):
        raise InputError(f"{path} is a folder, not a file of rows", hint=_files_hint(path))
    try:
        check_regular(path)
    except MissingFileError as error:
        raise MissingFileError(str(error), hint=_neighbours_hint(path)) from None
    for option, value in hub_options.items():
        if value is not None:
            hint = f"leave {option} out, or give a dataset's name"
            hint += "; a model's is --model-revision" if option == "--revision" else ""
            raise InputError(f"{option} {value} is for datasets from the Hub, and {path} is a local file", hint=hint)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        ending = f"the ending {path.suffix!r}" if path.suffix else "no ending"
        raise InputError(f"{path} has {ending}, so its format is unknown", hint=f"known endings: {', '.join(_READERS)}")
    try:
        return reader(path)
    except UnicodeDecodeError as error:
        message = f"{path} is not UTF-8 text: {error.reason} at byte {error.start}"
        raise InputError(message, hint="save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None


def _read_jsonl(path: Path) -> list[Row]:
    hint = "a .jsonl file has one object a line; name a file that is one list .json"
    with path.open(encoding="utf-8-sig") as lines:
        return [
            PlacedRow(_object(_from_json(line, path, hint, number), path, f"line {number}"), str(path), "line", number)
            for number, line in enumerate(lines, 1)
            if line.strip()
        ]


def _read_json(path: Path) -> list[Row]:
    text = path.read_text(encoding="utf-8-sig")
    if not text.strip():
        return []
    rows = _from_json(text, path, "a .json file is one list of objects; name a file with one object a line .jsonl")
    if not isinstance(rows, list):
        hint = "put the rows into one list: [{…}, {…}]"
        raise InputError(f"{path} is {_kind(rows)}, not a list of objects", hint=hint)
    return [_object(row, path, f"row {number}") for number, row in enumerate(rows, 1)]


def _from_json(text: str, path: Path, hint: str, line: int | None = None) -> Any:
    """What a file says, or the line of this number in it."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "it goes too deep" if isinstance(error, RecursionError) else str(error)
        if isinstance(error, json.JSONDecodeError):
            line, reason = line or error.lineno, f"{error.msg} at column {error.colno}"
        place = f"{path}, line {line}" if line else str(path)
        raise InputError(f"{place} is not JSON: {reason}", hint=hint) from None


def _object(value: Any, path: Path, where: str) -> Row:
    if not isinstance(value, dict):
        hint = f'every {where.split()[0]} looks like {{"sentence": "a fine film", "label": 1}}'
        raise InputError(f"{path}, {where} is {_kind(value)}, not an object", hint=hint)
    return value


def _read_csv(path: Path) -> list[Row]:
    rows: list[Row] = []
    with path.open(encoding="utf-8-sig", newline="") as lines:
        # strict: without it a quote that is never closed swallows the rest of the file without a word
        reader = csv.DictReader(_without_nul(lines, path), strict=True)
        try:
            names = list(reader.fieldnames or ())
            for name in names:
                if names.count(name) > 1:
                    raise InputError(f"{path} has two columns named {name!r}", hint="rename one of them in the header")
            if len(names) == 1 and (other := next((one for one in ";\t" if one in names[0]), None)):
                raise InputError(
                    f"{path} is separated by {other!r}, not by commas", hint="save it with commas, or as .jsonl"
                )
            for row in reader:
                if None in row:
                    raise InputError(
                        f"{path}, line {reader.line_num} has more values than the header has columns ({len(names)})",
                        hint='put values with commas into double quotes: "slow, but fine"',
                    )
                values = {name: value for name, value in row.items() if value is not None}
                first = reader.line_num - sum(value.count("\n") for value in values.values())
                rows.append(PlacedRow(values, str(path), "line", first))
        except csv.Error as error:
            hint = "a quote inside a quoted value is written twice; or save the rows as .jsonl"
            raise InputError(f"{path}, line {reader.line_num} is not CSV: {error}", hint=hint) from None
    return rows


def _read_parquet(path: Path) -> list[Row]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        hint = "pip install pyarrow, or save the rows as .jsonl"
        raise InputError(f"{path} needs pyarrow, which is not installed", hint=hint) from None
    try:
        with ParquetFile(path) as file:
            return with_class_names(file.read().to_pylist(), class_names_in(file.schema_arrow.metadata))
    except ArrowException as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is not a Parquet file: {reason}", hint="write it anew") from None


_READERS: dict[str, Callable[[Path], list[Row]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write rows to a new file, as its ending says: .jsonl, or .parquet, which needs pyarrow.

    Raises:
        InputError: it cannot be written, or the values of a column are of kinds that do not go into one of Parquet's.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "rows.jsonl"
    >>> write_rows(path, [{"prompt": "fine", "score": 1.0}]); load_rows(path)
    [{'prompt': 'fine', 'score': 1.0}]
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        WRITERS[path.suffix.lower()](path, rows)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}", hint="give another file") from None


def _write_jsonl(path: Path, rows: Sequence[Row]) -> None:
    with path.open("x", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)


def _write_parquet(path: Path, rows: Sequence[Row]) -> None:
    import pyarrow
    from pyarrow.parquet import write_table

    try:
        write_table(pyarrow.Table.from_pylist(list(rows)), path)
    except pyarrow.ArrowException as error:
        raise InputError(f"{path}: {one_line(error)}", hint="write the rows to a .jsonl file") from None


WRITERS: dict[str, Callable[[Path, Sequence[Row]], None]] = {".jsonl": _write_jsonl, ".parquet": _write_parquet}
"""What writes rows to a file, by its ending."""


def _kind(value: object) -> str:
    """What a JSON value is called in JSON.

    >>> _kind([1]), _kind(None), _kind(2.5)
    ('a list', 'null', 'a number')
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    names: dict[type, str] = {dict: "an object", list: "a list", str: "a string"}
    return names.get(type(value), "a number")


def _without_nul(lines: Iterable[str], path: Path) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if "\0" in line:
            raise InputError(f"{path}, line {number} holds a NUL", hint="is it text? save it as UTF-8")
        yield line


def _neighbours_hint(path: Path) -> str:
    if not os.path.isdir(path.parent):
        return f"there is no folder {path.parent} either"
    close = difflib.get_close_matches(path.name, [file.name for file in path.parent.iterdir()])
    names = " or ".join(str(path.parent / name) for name in close)
    return f"did you mean {names}?" if close else _files_hint(path.parent)


def _files_hint(folder: Path) -> str:
    names = sorted(file.name for file in folder.iterdir() if file.suffix.lower() in _READERS)
    return f"files of rows in {folder}: {listed(names, most=10)}"


# Which rows are tuned on, which choose, and which are scored at the end. Seeded; needs NumPy

PUBLISHED_SEEDS = (13, 21, 42, 87, 100)
"""Of the k-shot draws of LM-BFF and MeZO."""


@dataclass(frozen=True, slots=True)
class Split:
    """Rows, each in one of three lists.

    Args:
        train: rows to tune on.
        dev: rows that choose: a learning rate, a step. Never tuned on.
        test: rows that are scored at the end. They choose nothing.
    """

    train: list[Row]
    dev: list[Row]
    test: list[Row]


def split_rows(rows: Sequence[Row], *, train: int | None = None, dev: int = 0, test: int = 0, seed: int = 0) -> Split:
    """Rows of one list, none of them in two parts.

    The test rows are drawn first and with a seed of their own, so that they are the same for every `seed`. Of the
    others, `train + dev` are drawn, and the last `dev` of these are the dev rows. Where there are fewer, the rows to
    tune on are fewer. A list that is not divided keeps its order.

    Args:
        rows: at least one.
        train: rows to tune on; None: all that are left.
        dev: rows that choose.
        test: rows that are scored at the end.
        seed: of the draw, 0 ≤ seed < 2^32.

    Raises:
        InputError: no row would be left to tune on.

    Source: the draw of MeZO's `large_models` (Malladi et al. 2023): NumPy's legacy generator, whose numbers are
    promised never to change.

    >>> parts = split_rows([{"i": i} for i in range(10)], train=4, dev=3, test=2, seed=1)
    >>> [[row["i"] for row in part] for part in (parts.train, parts.dev, parts.test)]
    [[9, 3, 1, 7], [0, 5, 4], [2, 8]]
    """
    scored = set(_order(len(rows), 0)[:test])
    left = [row for i, row in enumerate(rows) if i not in scored]
    if not (dev or test) and (train is None or train >= len(left)):
        return Split(left, [], [])
    wanted = len(left) if train is None else train + dev
    drawn = [left[i] for i in _order(len(left), seed)[:wanted]]
    if len(drawn) <= dev:
        held = " and ".join(f"{count:,} {name}" for count, name in ((dev, "dev"), (test, "test")) if count)
        hint = "lower --dev-rows or --test-rows, or give --eval-data or --test-data"
        raise InputError(f"{len(rows):,} rows leave none to tune on beside {held} rows", hint=hint)
    cut = len(drawn) - dev
    return Split(drawn[:cut], drawn[cut:], sample_rows(rows, test))


def seen_before(train: Sequence[Row], dev: Sequence[Row] | None, test: Sequence[Row] | None) -> list[str]:
    """Return a sentence where dev rows are rows to tune on, and one where test rows are those or dev rows.

    Rows are the same where all their columns are. What is scored on them says less of rows that nobody has seen.

    >>> seen_before([{"text": "fine"}], [{"text": "fine"}, {"text": "dull"}], None)[0].partition(":")[0]
    '1 of 2 dev rows is a row to tune on too'
    """
    told, known, use = [], set(map(_spelled, train)), "to tune on"
    for name, rows in (("dev", dev), ("test", test)):
        spelled = [_spelled(row) for row in rows or ()]
        if count := sum(row in known for row in spelled):
            are = "is a row" if count == 1 else "are rows"
            why = "their scores say less of rows that nobody has seen; take them out of one of the two"
            told.append(f"{count:,} of {len(spelled):,} {name} rows {are} {use} too: {why}")
        if spelled:
            known.update(spelled)
            use = "to tune on or to choose by"
    return told


def _spelled(row: Row) -> str:
    return json.dumps(row, default=str, skipkeys=True, sort_keys=True)


def k_shot_rows(rows: Sequence[Row], label: str, k: int, *, seed: int) -> Split:
    """`k` rows of each class to tune on, and the next `k` of it that choose.

    A class with fewer than 2·k rows gives what it has, first to tune on.

    Args:
        rows: at least one.
        label: the column of the class.
        k: rows of each class, ≥ 1.
        seed: of the draw, 0 ≤ seed < 2^32; published are `PUBLISHED_SEEDS`.

    Raises:
        UnknownNameError: no row has the column.
        InputError: a row has no class, or no rows are left that could choose.

    Source: the draw of LM-BFF (Gao et al. 2021), also MeZO's for masked models.

    >>> parts = k_shot_rows([{"i": i, "label": i % 2} for i in range(8)], "label", 1, seed=13)
    >>> [row["i"] for row in parts.train], [row["i"] for row in parts.dev]
    ([1, 4], [3, 6])
    """
    classes: dict[str, list[Row]] = {}
    values = values_of(list(rows), label, "label", "--label")
    for i in _order(len(rows), seed):
        classes.setdefault(str(values[i]), []).append(rows[i])
    train = [row for own in classes.values() for row in own[:k]]
    dev = [row for own in classes.values() for row in own[k : 2 * k]]
    if not dev:
        raise InputError(f"no class has more than {k} rows, so none are left that choose", hint="lower --k-shot")
    return Split(train, dev, [])


def sample_rows(rows: Sequence[T], count: int | None, *, seed: int = 0) -> list[T]:
    """`count` of the rows, drawn; all in their order where there are no more, or `count` is None.

    >>> sample_rows("abcdef", 3), sample_rows("abc", 3)
    (['f', 'c', 'b'], ['a', 'b', 'c'])
    """
    if count is None or count >= len(rows):
        return list(rows)
    return [rows[i] for i in _order(len(rows), seed)[:count]]


def _order(count: int, seed: int) -> list[int]:
    """A seeded order of 0 … count − 1, the same with every NumPy."""
    import numpy as np

    if not 0 <= seed < 2**32:
        raise InputError(f"--split-seed {seed} is out of range", hint="it lies between 0 and 2^32 - 1")
    order: list[int] = np.random.RandomState(seed).permutation(count).tolist()
    return order
