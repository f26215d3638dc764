"""The papers' tasks: every prompt and option against a hand-written row, and what is wrong with a task's file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from zoreward.cli import main
from zoreward.config import Prompting
from zoreward.data import list_tasks, load_rows, load_task
from zoreward.data.tasks import Task, with_columns
from zoreward.data.templates import fields_of, fill
from zoreward.data.texts import texts_of
from zoreward.data.tokens import Text
from zoreward.records import InputError, MissingFileError, UnknownNameError
from zoreward.registry import describe_objective

# Written by hand from the papers, not by this code.
GOLDEN: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("golden").joinpath("tasks.json").read_text())
NAMES = [task.name for task in list_tasks()]


def texts(task: Task, rows: list[dict], template: str | None = None, needs: str = "choices") -> list[Text]:
    template = task.template if template is None else template
    answers = {name: getattr(task, name) for name in ("choices", "choice_column", "label", "answer")}
    return texts_of(rows, needs, Prompting(template=template, **answers))


def loaded(task: Task, folder: Path) -> list[dict]:
    """The task's golden row, from a file with the columns that the Hub's have."""
    (folder / "rows.jsonl").write_text(json.dumps(GOLDEN[task.name]["row"]) + "\n")
    return task.prepared(task.kept(load_rows(folder / "rows.jsonl")))


def test_every_task_has_a_hand_written_row() -> None:
    assert sorted(NAMES) == sorted(GOLDEN)
    causal = "sst2 rte cb boolq wsc wic multirc copa record squad drop".split()
    masked = "sst2 sst5 mr cr snli mnli rte qnli trec cola subj mrpc qqp".split()
    assert sorted(NAMES) == sorted([*causal, *(f"{name}-masked" for name in masked)])


@pytest.mark.parametrize("name", NAMES)
def test_prompt_and_options_are_those_of_the_paper(name: str, tmp_path: Path) -> None:
    task, golden = load_task(name), GOLDEN[name]
    rows = loaded(task, tmp_path)
    assert fill(task.template, rows, "template") == [golden["prompt"]]
    assert fill(task.bare or "", rows, "bare") == [golden["bare"]]
    if "options" in golden:
        [text] = texts(task, rows)
        assert text.prompt == golden["prompt"]
        assert list(text.candidates) == golden["options"]
        assert text.candidates[text.reference] == golden["right"]
        assert texts(task, rows, needs="likelihood")[0].candidates == (golden["right"],)
    else:
        assert texts(task, rows, needs="likelihood")[0].candidates == (golden["answer"],)
        assert rows[0]["answer"] == golden["answers"]  # what token-f1 compares with
    if "content_free" in golden:
        free = task.content_free or ""
        assert (fill(free, rows, "content_free") if fields_of(free, "content_free") else [free]) == [
            golden["content_free"]
        ]


@pytest.mark.parametrize("name", NAMES)
def test_what_counts_and_what_is_tuned_on_need_what_the_task_has(name: str) -> None:
    task = load_task(name)
    assert describe_objective(task.objective).needs == task.needs
    trained = describe_objective(task.train_on or "").needs
    assert trained == ("choices" if task.train_on == "neg-cross-entropy" else "likelihood")
    assert (task.choices is None) != (task.choice_column is None) or task.needs == "completions"
    assert (task.needs == "completions") == (task.max_new_tokens == 50 and task.stop == ["\n"])
    assert task.about and task.source and task.data


def test_numbers_of_rows_are_the_published_ones() -> None:
    for task in list_tasks():
        rows = task.rows
        if task.model == "masked":
            assert (rows.train, rows.dev, rows.test, rows.k_shot) == (None, None, 1000, 16)
        else:
            dev = 100 if task.name in ("cb", "copa") else 500
            assert (rows.train, rows.dev, rows.test, rows.k_shot) == (1000, dev, 1000, None)
        assert set(task.splits) == {"train", "test"}


def test_the_other_link_of_copa(tmp_path: Path) -> None:
    task = load_task("copa")
    row = {**GOLDEN["copa"]["row"], "question": "effect", "premise": "Why me? "}
    assert fill(task.template, task.prepared([row]), "template") == ["Why me? so "]
    with pytest.raises(InputError, match="the column 'link' has no value for 'reason'"):
        task.prepared([{**row, "question": "reason"}])


def test_squads_answers_may_be_a_plain_list() -> None:
    row = {**GOLDEN["squad"]["row"], "answers": GOLDEN["squad"]["answers"]}
    assert load_task("squad").prepared([row])[0]["answer"] == GOLDEN["squad"]["answers"]


def test_rows_without_a_label_are_left_out() -> None:
    task = load_task("snli-masked")
    rows = [{"label": 0}, {"label": -1}, {"label": 2}]
    assert task.kept(rows) == [{"label": 0}, {"label": 2}]
    with pytest.raises(InputError, match="leaves out every one"):
        task.kept([{"label": -1}])


# Columns made of others


def test_columns_are_made_one_after_the_other_and_rows_stay_as_they_were() -> None:
    rows = [{"a": "x", "many": ["p", "q"]}, {"a": "y", "many": []}]
    made = with_columns(
        rows,
        {
            "up": {"of": "a", "values": {"x": 1, "y": 0}},
            "pair": ["{a}!", "{up}?"],
            "each_one": {"text": "{a} @", "each": "many", "replace": {"@": "{each}"}},
            "raw": {"of": "many"},
            "first": {"of": ["none", "many[text]", "many"]},
            "literal": {"text": "{a}.", "replace": {"x": "<>"}},
        },
    )
    assert [row["pair"] for row in made] == [["x!", "1?"], ["y!", "0?"]]
    assert [row["each_one"] for row in made] == [["x p", "x q"], []]
    assert [row["literal"] for row in made] == ["<>.", "y."]
    assert made[0]["raw"] == made[0]["first"] == ["p", "q"]
    assert rows == [{"a": "x", "many": ["p", "q"]}, {"a": "y", "many": []}]


@pytest.mark.parametrize(
    ("columns", "message", "hint"),
    [
        ({"x": 3}, "the column 'x' is not described", "a template"),
        ({"x": {"text": "{a}", "of": "a"}}, "the column 'x' is not described", "either"),
        ({"x": {"text": "{a}", "echa": "many"}}, "'x' has 'echa'", "did you mean each?"),
        ({"x": {"of": "a", "each": "many"}}, "'x' has each: beside of:", "values"),
        ({"x": {"of": ["a", 3]}}, "'x': of: is no text", "a text"),
        ({"x": {"of": ["b", "c"]}}, "no row has the column 'c'", "the columns are a, many"),
        ({"x": {"text": "{a}", "replace": "b"}}, "replace: is no list of pairs", "{old: new}"),
        ({"x": "{a|lowr}"}, "the filter 'lowr'", "did you mean lower"),
        ({"x": {"text": "{a}", "replace": {"b": "{a|lowr}"}}}, "the filter 'lowr'", "lower"),
        ({"x": "{b}"}, "no row has the column 'b'", "the columns are a, many"),
        ({"x": {"of": "b[0]"}}, "no row has the column 'b'", "the columns are a, many"),
        ({"x": {"of": "many[4]"}}, "row 1: {many[4]} of the column 'x' finds nothing", "['p']"),
        ({"x": {"text": "{each}", "each": "a"}}, "'a', which is no list here", ""),
        ({"x": {"of": "a", "values": {"v": 1}}}, "no value for 'w'", "known are v"),
        ({"x": "{many|strip}"}, "row 1: {many} of the column 'x' is a list, not a text", "{many[0]}"),
    ],
)
def test_columns_that_cannot_be_made(columns: dict, message: str, hint: str) -> None:
    with pytest.raises(InputError) as caught:
        with_columns([{"a": "w", "many": ["p"]}], columns)
    assert message in str(caught.value)
    assert hint in caught.value.hint
    assert "\n" not in str(caught.value) + caught.value.hint


# Files


def test_a_users_own_file(tmp_path: Path) -> None:
    path = tmp_path / "mood.yaml"
    path.write_text('template: "{text} So:"\nobjective: f1\nchoices: [" sad", " glad"]\nrows: {dev: 20}\n')
    task = load_task(str(path))
    assert (task.name, task.template, task.objective, task.label) == ("mood", "{text} So:", "f1", "label")
    assert (task.rows.dev, task.rows.train, task.data) == (20, None, None)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (
            "tempalte: '{a}'\nobjective: f1",
            "no key 'tempalte'",
            "did you mean template? a task has template, objective",
        ),
        ("template: '{a}'", "there is no objective", "write objective:"),
        ("template: '{a}'\nobjective: f1\nname: x", "no key 'name'", "a task has"),
        ("template: 3\nobjective: f1", "template is 3", "it is a text"),
        ("template: '{a}'\nobjective: f1\nchoices: [yes, no]", "choices is [True, False]", "a list of texts"),
        ("template: '{a}'\nobjective: f1\nrows: {tran: 3}", "rows: there is no key 'tran'", "did you mean train?"),
        ("template: '{a}'\nobjective: f1\nrows: {train: many}", "rows: train is 'many'", "a whole number"),
        ("template: '{a}'\nobjective: f1\nrows: 3", "rows is 3", "pairs"),
        ("template: '{a}'\nobjective: f1\nsplits: {tests: x}", "splits has 'tests'", "train, dev and test"),
        ("template: '{a}'\nobjective: f1\nmodel: huge", "model is 'huge'", "causal, masked"),
        ("template: '{a'\nobjective: f1", "template '{a'", "{{"),
        ("template: '{a}'\nobjective: f1\ncolumns: {b: '{a|lowr}'}", "the filter 'lowr'", "did you mean lower"),
        ("- template", "holds no task", "template: and objective:"),
        ("a: [", "line 2 is not YAML", "name: value"),
    ],
)
def test_files_that_are_no_tasks(text: str, message: str, hint: str, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(text + "\n")
    with pytest.raises(InputError) as caught:
        load_task(str(tmp_path / "my.yaml"))
    assert "my.yaml" in str(caught.value)
    assert message in str(caught.value)
    assert hint in caught.value.hint
    assert "\n" not in str(caught.value) + caught.value.hint


def test_unknown_names_have_neighbours(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="there is no task 'sst3'") as caught:
        load_task("sst3")
    assert "did you mean sst2?" in caught.value.hint
    assert "boolq, cb" in caught.value.hint
    with pytest.raises(MissingFileError, match="there is no file"):
        load_task(str(tmp_path / "none.yaml"))


def test_a_name_without_a_task_for_causal_models_is_that_for_masked_ones() -> None:
    short = [name.removesuffix("-masked") for name in NAMES]
    assert {load_task(name).name for name in short} == set(NAMES) - {"sst2-masked", "rte-masked"}
    assert load_task("sst2").model == load_task("rte").model == "causal"


def test_tasks_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks"]) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in NAMES)
    assert main(["tasks", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["tasks"]
    assert [task["name"] for task in listed] == NAMES
    assert listed[NAMES.index("copa")]["splits"] == {"train": "train", "test": "validation"}


def test_the_documentation_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[1]
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    import tasks

    written = (root / "docs" / "tasks.md").read_text(encoding="utf-8")
    assert written == tasks.page(), "python benchmarks/tasks.py > docs/tasks.md"
