from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest

from rendering import render
from tiny_tokenizers import bpe
from zoreward.data import classes_of, load_rows, placed, rows_of
from zoreward.data.choices import class_choices
from zoreward.data.tasks import with_columns
from zoreward.records import InputError, MissingFileError

ROWS = [{"sentence": 'slow, but "fine"\nat last', "label": 1}, {"sentence": "über\u2028bad", "label": 0}]


def write(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_jsonl_keeps_order_types_and_line_separators_inside_text(tmp_path):
    lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
    # U+2028 ends a line for str.splitlines, but not in JSON lines; blank lines and \r\n are harmless
    path = write(tmp_path, "rows.jsonl", f"{lines[0]}\r\n\n{lines[1]}\n\n")
    assert load_rows(path) == ROWS
    assert load_rows(str(path)) == ROWS


def test_json_is_a_list_of_objects(tmp_path):
    assert load_rows(write(tmp_path, "rows.json", json.dumps(ROWS, indent=2))) == ROWS


def test_csv_values_stay_strings_and_short_lines_lack_the_column(tmp_path):
    path = write(tmp_path, "rows.CSV", '\ufeffsentence,label\r\n"slow, but ""fine""\nat last",1\r\nbad\r\n')
    assert load_rows(path) == [{"sentence": 'slow, but "fine"\nat last', "label": "1"}, {"sentence": "bad"}]


def test_parquet_keeps_types_and_adds_nothing_from_the_folders_name(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    folder = tmp_path / "split=train"
    folder.mkdir()
    rows = [{"sentence": "fine", "answers": ["a", "b"], "label": 1}, {"sentence": "bad", "answers": [], "label": None}]
    parquet.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    assert load_rows(folder / "rows.parquet") == rows


def class_label_file(folder: Path, names: list[str], labels: list[int | None]) -> Path:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    features = {"sentence": {"dtype": "string", "_type": "Value"}, "label": {"names": names, "_type": "ClassLabel"}}
    rows = [{"sentence": f"film {number}", "label": label} for number, label in enumerate(labels)]
    info = {"huggingface": json.dumps({"info": {"features": features}})}
    parquet.write_table(pa.Table.from_pylist(rows).replace_schema_metadata(info), folder / "named.parquet")
    return folder / "named.parquet"


def chosen(rows: Any, *choices: str) -> list[str]:
    examples = render(rows, bpe(), needs="choices", template="{sentence} was", choices=list(choices))
    return [example.candidates[example.reference] for example in examples]


@pytest.mark.parametrize("source", ["parquet", "dataset"])
def test_a_schemas_names_of_classes_name_choices(tmp_path, source):
    def rows(names, labels):
        if source == "parquet":
            return load_rows(class_label_file(tmp_path, names, labels))
        datasets = pytest.importorskip("datasets")
        features = datasets.Features({"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
        columns = {"sentence": [f"film {number}" for number in range(len(labels))], "label": labels}
        return datasets.Dataset.from_dict(columns, features=features)

    two = rows(["neg", "pos"], [1, 0])
    assert [row["label"] for row in two] == [1, 0]
    assert chosen(two, "neg= terrible", "pos= great") == [" great", " terrible"]
    assert chosen(two, "pos= great", "neg= terrible") == [" great", " terrible"]
    assert chosen(two, " pos", " neg") == [" pos", " neg"]
    assert chosen(two, " terrible", " great") == [" great", " terrible"]  # in the order of the numbers
    assert chosen(two, "1= great", "0= terrible") == [" great", " terrible"]
    stars = rows(["1", "2", "3"], [0, 1])  # names that look like numbers are names where all keys are
    assert chosen(stars, "1= bad", "2= so so", "3= good") == [" bad", " so so"]
    assert chosen(stars, "0= bad", "1= so so", "2= good") == [" bad", " so so"]
    three = rows(["no", "maybe", "yes"], [1, 2])  # 0 never occurs, but a schema counts from 0
    assert chosen(three, " no", " maybe", " yes") == chosen(three, " yes", " no", " maybe") == [" maybe", " yes"]
    with pytest.raises(InputError, match="is no label: bad, good") as caught:
        chosen(two, "bad= terrible", "good= great")
    assert "labels in the rows: 0 (neg), 1 (pos)" in caught.value.hint
    with pytest.raises(InputError, match="row 2: the label 2 belongs to none") as caught:
        chosen(three, "no= no", "maybe= maybe")
    assert "0 (no), 1 (maybe), 2 (yes)" in caught.value.hint


def test_a_models_classes_are_found_by_the_datasets_names(tmp_path):
    rows = load_rows(class_label_file(tmp_path, ["neg", "pos"], [1, 0, 1]))
    assert classes_of(rows, None, "label") == ("neg", "pos")
    assert [index for _, index in class_choices(rows, ["POS", "NEG"], "label")] == [0, 1, 0]
    assert [index for _, index in class_choices(rows, ["LABEL_0", "LABEL_1"], "label")] == [1, 0, 1]
    stars = [{"label": number} for number in (1, 2, 3)]
    with pytest.raises(InputError, match="are 1 to 3, never 0") as caught:
        class_choices(stars, ["one star", "two", "three", "four"], "label")
    assert "--choice '1=one star' --choice 2=two --choice" in caught.value.hint


def test_what_is_no_number_of_a_class_stays_as_it_is(tmp_path):
    rows = load_rows(class_label_file(tmp_path, ["neg", "pos"], [1, None, -1, 2]))
    assert [type(row["label"]).__name__ for row in rows] == ["NamedLabel", "NoneType", "int", "int"]


HALF = "fine \ud83d"


@pytest.mark.parametrize(
    ("row", "column", "shown"),
    [
        ({"sentence": HALF}, "sentence", r"'fine \ud83d'"),
        ({"label": 1, "ends": ["a", "\udc00b"]}, "ends", r"'\udc00b'"),
        ({"prompt": [{"role": "user", "content": f"é {HALF}"}]}, "prompt", r"'\xe9 fine \ud83d'"),
    ],
)
def test_half_a_character_is_named_by_its_row_and_column(tmp_path, row, column, shown):
    path = write(tmp_path, "rows.jsonl", '{"sentence": "ü \\ud83d\\ude42"}\n' + json.dumps(row))
    for attempt, where in ((lambda: load_rows(path), f"{path}, row 2"), (lambda: rows_of([{}, row]), "row 2")):
        with pytest.raises(InputError) as caught:
            attempt()
        assert str(caught.value) == f"{where}: the column '{column}' holds half a character, {shown}"
        assert "U+FFFD" in caught.value.hint
    assert load_rows(path, limit=1) == [{"sentence": "ü 🙂"}]


def test_a_data_frame_is_rows():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"sentence": ["film 0", "film 1"], "label": [1, 0]}, index=["x", "y"])
    assert rows_of(frame) == [{"sentence": "film 0", "label": 1}, {"sentence": "film 1", "label": 0}]
    assert chosen(frame, " bad", " good") == chosen(frame.to_dict("records"), " bad", " good") == [" good", " bad"]
    for column, value in (("sentence", None), ("label", float("nan")), ("sentence", pd.NA)):
        broken = frame.astype(object)
        broken.loc["y", column] = value
        with pytest.raises(InputError, match="row 2") as caught:
            chosen(broken, " bad", " good")
        assert column in str(caught.value)


def test_splits_columns_and_names_are_no_rows():
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list([{"sentence": "fine", "label": 1}])
    splits = datasets.DatasetDict({"train": rows, "test": rows})
    for given, message, hint in (
        (splits, "these are 2 splits or columns, not rows", "rows['train']; there are train, test"),
        ({"sentence": ["fine"], "label": [1]}, "these are 2 splits or columns", "there are sentence, label"),
        ("train.jsonl", "'train.jsonl' is the name of rows", "load_rows"),
        (Path("train.csv"), "'train.csv' is the name of rows", "load_rows"),
    ):
        with pytest.raises(InputError) as caught:
            render(given, bpe(), needs="choices", template="{sentence} was", choices=[" bad", " good"])
        assert message in str(caught.value) and hint in caught.value.hint


def test_rows_may_have_different_columns(tmp_path):
    assert load_rows(write(tmp_path, "rows.jsonl", '{"a": 1}\n{"b": 2}\n')) == [{"a": 1}, {"b": 2}]


@pytest.mark.parametrize(
    ("name", "content", "message", "hint"),
    [
        ("rows.txt", "x", "ending '.txt'", ".jsonl, .json, .csv, .parquet"),
        ("rows", "x", "no ending", ".parquet"),
        ("rows.jsonl", "", "holds no rows", "at least one"),
        ("rows.json", "\n", "holds no rows", "at least one"),
        ("rows.json", "[]", "holds no rows", "at least one"),
        ("rows.csv", "", "holds no rows", "at least one"),
        ("rows.csv", "sentence,label\n", "holds no rows", "at least one"),
        ("rows.jsonl", '{"a": 1}\n\n{"a": 2,}\n', "line 3 is not JSON: ", "one object a line"),
        ("rows.jsonl", '{"a": 1}\n{"a" 2}\n', "line 2 is not JSON: Expecting ':' delimiter at column 6", "one object"),
        ("rows.jsonl", '{"a": 1}\n[1, 2]\n', "line 2 is a list, not an object", "every line looks like"),
        ("rows.jsonl", '{"a": 1}\nnull\n', "line 2 is null, not an object", "every line looks like"),
        ("rows.json", '{"a": 1}\n{"a": 2}\n', "line 2 is not JSON: Extra data", ".jsonl"),
        ("rows.json", '{"data": []}', "is an object, not a list", "[{…}, {…}]"),
        ("rows.json", '[{"a": 1}, "x"]', "row 2 is a string, not an object", "every row looks like"),
        (
            "rows.csv",
            "a,b\n1,2\nslow, but fine,1\n",
            "line 3 has more values than the header has columns (2)",
            "quotes",
        ),
        ("rows.csv", 'a,b\n"never closed,1\nx,2\n', "is not CSV", ".jsonl"),
        ("rows.csv", "a,b,a\n1,2,3\n", "two columns named 'a'", "rename"),
        ("rows.csv", "text;label\nslow, but fine;good\n", "separated by ';'", "commas"),
        ("rows.jsonl", b'{"a": "\xff"}\n', "not UTF-8 text: invalid start byte at byte 7", "UTF-8"),
        ("rows.parquet", b"no parquet", "is not a Parquet file", "anew"),
    ],
)
def test_a_file_that_cannot_be_used_says_where_and_why(tmp_path, name, content, message, hint):
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    path = write(tmp_path, name, content)
    with pytest.raises(InputError) as caught:
        load_rows(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)
    assert hint in caught.value.hint
    assert "\n" not in str(caught.value) + caught.value.hint


def test_a_missing_file_names_its_neighbours(tmp_path):
    write(tmp_path, "train.jsonl", "{}")
    with pytest.raises(MissingFileError, match=r"tarin\.jsonl") as caught:
        load_rows(tmp_path / "tarin.jsonl")
    assert caught.value.hint == f"did you mean {tmp_path / 'train.jsonl'}?"
    with pytest.raises(MissingFileError) as caught:
        load_rows(tmp_path / "zzz.csv")
    assert caught.value.hint == f"files of rows in {tmp_path}: train.jsonl"
    with pytest.raises(MissingFileError) as caught:
        load_rows(tmp_path / "nowhere" / "train.jsonl")
    assert str(tmp_path / "nowhere") in caught.value.hint


def test_a_folder_is_no_file(tmp_path):
    write(tmp_path, "dev.csv", "a\n1\n")
    with pytest.raises(InputError, match="is a folder") as caught:
        load_rows(tmp_path)
    assert "dev.csv" in caught.value.hint


def test_limit_keeps_the_first_rows(tmp_path):
    path = write(tmp_path, "rows.jsonl", '{"a": 1}\n{"a": 2}\n{"a": 3}\n')
    assert load_rows(path, limit=2) == [{"a": 1}, {"a": 2}]
    assert len(load_rows(path, limit=9)) == 3
    with pytest.raises(InputError, match="--limit 0 leaves no rows"):
        load_rows(path, limit=0)


@pytest.mark.parametrize(
    ("name", "text", "place"),
    [
        ("rows.jsonl", '{"a": 1}\n\n{"b": 2}\n', "line 3"),
        ("rows.csv", 'a,b\n"one\ntwo",1\n\n"three\nfour",2\n', "line 5"),
        ("rows.json", '[{"a": 1},\n\n{"b": 2}]', "row 2"),
    ],
)
def test_a_row_knows_its_place_whatever_rows_it_stands_among(tmp_path, name, text, place):
    path = write(tmp_path, name, text)
    *_, last = load_rows(path)
    alone = pickle.loads(pickle.dumps(with_columns([last], {"c": "{b}"})))
    with pytest.raises(InputError, match=f"^{re.escape(str(path))}, {place} has none$"), placed(alone):
        raise InputError("row 1 has none")
    with pytest.raises(InputError, match=r"^row 2 has none$"), placed(alone):
        raise InputError("row 2 has none")


@pytest.mark.parametrize("option", ["config", "split", "revision"])
def test_what_is_only_for_the_hub_is_refused_with_a_file(tmp_path, option):
    path = write(tmp_path, "rows.jsonl", '{"a": 1}\n')
    flag = {"config": "--data-config", "split": "--split", "revision": "--revision"}[option]
    with pytest.raises(InputError, match=f"{flag} x is for datasets from the Hub") as caught:
        load_rows(str(path), **{option: "x"})
    assert "rows.jsonl is a local file" in str(caught.value)
    assert f"leave {flag} out" in caught.value.hint
    with pytest.raises(MissingFileError):  # which says more than that a file takes no such option
        load_rows(tmp_path / "raws.jsonl", **{option: "x"})


@pytest.mark.parametrize(
    "source", ["tarin.jsonl", "data/TRAIN.CSV", "./train", "../train", "/tmp/no/train", "a/b/c", Path("owner/name")]
)
def test_what_is_plainly_a_path_is_not_asked_for_on_the_hub(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("zoreward.data.rows.hub_rows", lambda *args, **options: pytest.fail("asked the Hub"))
    with pytest.raises(MissingFileError, match="there is no file"):
        load_rows(source)


def test_what_exists_is_not_asked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("zoreward.data.rows.hub_rows", lambda *args, **options: pytest.fail("asked the Hub"))
    write(tmp_path, "sst2", "x")
    (tmp_path / "owner" / "name").mkdir(parents=True)
    with pytest.raises(InputError, match="sst2 has no ending"):
        load_rows("sst2")
    with pytest.raises(InputError, match="owner/name is a folder"):
        load_rows("owner/name")
