"""Answers that differ by row."""

from __future__ import annotations

import numpy as np
import pytest

from rendering import check_columns, render
from tiny_tokenizers import bpe, ids
from zoreward.data.choices import fixed_choices
from zoreward.records import InputError, UnknownNameError

OPTIONS = {"needs": "choices", "template": "{q}", "choice_column": "ends"}
ROW = {"q": "He", "ends": [" sat", " ran", " flew"], "label": 2}


def references(rows, **options):
    return [example.reference for example in render(rows, bpe(), **OPTIONS | options)]


def test_every_row_has_its_own_answers_in_any_number():
    tokenizer = bpe()
    rows = [ROW, {"q": "She", "ends": (" sang", " slept"), "label": 0}]
    first, second = render(rows, tokenizer, **OPTIONS)
    assert first.candidates == (" sat", " ran", " flew")
    assert second.candidates == (" sang", " slept")
    assert (first.reference, second.reference) == (2, 0)
    assert second.candidate_tokens == (ids(tokenizer, " sang"), ids(tokenizer, " slept"))


def test_answers_without_a_space_fit_a_template_with_one():
    tokenizer = bpe()
    rows = [{"q": "It was", "ends": ["great", "terrible"], "label": 0}]
    [example] = render(rows, tokenizer, **OPTIONS | {"template": "{q} "})
    assert example.prompt_tokens == ids(tokenizer, "It was")
    assert example.candidate_tokens == (ids(tokenizer, " great"), ids(tokenizer, " terrible"))


def test_numpy_arrays_are_lists():
    row = {"q": "He", "ends": np.array([" sat", " ran"], dtype=object), "label": np.int64(1)}
    [example] = render([row], bpe(), **OPTIONS)
    assert example.candidates == (" sat", " ran")
    assert example.reference == 1


@pytest.mark.parametrize("label", [1, "1", True, 1.0, np.int64(1), " ran"], ids=repr)
def test_a_label_is_an_index_or_a_text(label):
    assert references([ROW | {"label": label}]) == [1]


def test_numbers_count_the_answers_even_where_the_answers_are_numbers():
    assert references([{"q": "2 - 1 =", "ends": ["1", "0", "2"], "label": 1}]) == [1]


def test_strings_are_texts_where_every_one_is_an_answer():
    rows = [
        {"q": "1 + 1 =", "ends": ["1", "2", "3"], "label": "2"},  # could be the index of "3"
        {"q": "4 + 1 =", "ends": ["5", "6", "7"], "label": "5"},  # could not
    ]
    assert references(rows) == [1, 0]


def test_strings_are_indices_where_every_one_is_one():
    rows = [
        {"q": "1 + 1 =", "ends": ["1", "2", "3"], "label": "1"},  # could be the text "1"
        {"q": "4 + 1 =", "ends": ["5", "6", "7"], "label": "0"},  # could not
    ]
    assert references(rows) == [1, 0]


def test_strings_that_could_be_both_are_no_trouble_where_both_agree():
    assert references([{"q": "x", "ends": ["0", "1"], "label": "1"}]) == [1]


def test_the_other_rows_needs_no_choices():
    rows = [{"q": "He", "a": " sat"}]
    options = {"needs": "likelihood", "template": "{q}", "answer": "{a}", "choice_column": "ends"}
    assert render(rows, bpe(), **options)[0].candidates == (" sat",)


@pytest.mark.parametrize(
    ("change", "options", "message", "hint"),
    [
        ({}, {"choices": [" a", " b"]}, "answers for all rows and a column of answers", "not both"),
        ({}, {"choice_column": None}, "no answers to choose from", "--choice-column"),
        ({"ends": " sat"}, {}, "row 2: the column 'ends' holds a str, not a list of answers", ".jsonl"),
        ({"ends": {"text": ["a", "b"]}}, {}, "row 2: the column 'ends' holds a dict", "one"),
        ({"ends": None}, {}, "row 2 has no answers in column 'ends'", "fill them"),
        ({"ends": []}, {}, "row 2: the column 'ends' holds 0 answers", "at least two"),
        ({"ends": [" sat"]}, {}, "row 2: the column 'ends' holds 1 answers", "at least two"),
        ({"ends": [" sat", " ran", " sat"]}, {}, "row 2: the column 'ends' holds ' sat' twice", "differ"),
        ({"ends": [" sat", ""]}, {}, "row 2: the column 'ends' holds an empty answer", "some text"),
        ({"ends": [" sat", 3]}, {}, "row 2: the column 'ends' holds 3, which is no text", "string"),
        ({"label": 3}, {}, "row 2: the label 3 belongs to none of its 3 answers", "0 to 2, or the text of an answer"),
        ({"label": -1}, {}, "row 2: the label -1 belongs to none", "0 to 2"),
        ({"label": 0.5}, {}, "row 2: the label 0.5 belongs to none", "0 to 2"),
        ({"label": "sat"}, {}, "row 2: the label 'sat' belongs to none", "' sat', ' ran', ' flew'"),
        ({"label": None}, {}, "row 2 has no label in column 'label'", "fill them"),
        ({"ends": ["1", "2"], "label": "1"}, {}, "row 2: the label '1' is one answer's text and another's", "integers"),
    ],
)
def test_what_does_not_fit_is_named_with_and_without_a_tokenizer(change, options, message, hint):
    rows, options = [ROW, ROW | change], OPTIONS | options
    for attempt in (lambda: check_columns(rows, **options), lambda: render(rows, bpe(), **options)):
        with pytest.raises(InputError) as caught:
            attempt()
        assert message in str(caught.value)
        assert hint in caught.value.hint
        assert "\n" not in str(caught.value) + caught.value.hint


ICE = {"q": "Which melts?", "choices": {"text": ["ice", "rock", "iron"], "label": ["A", "B", "C"]}, "key": "B"}
LEAD = {"q": "Which sinks?", "choices": {"text": ["wood", "3", "lead"], "label": ["1", "2", "3"]}, "key": "3"}


@pytest.mark.parametrize("column", ["choices", "choices[text]"])
def test_a_label_is_the_name_that_stands_beside_an_answer(column):
    tasks = {"needs": "choices", "template": "{q} ", "choice_column": column, "label": "key"}
    examples = render([ICE, LEAD], bpe(), **tasks)
    assert [example.candidates for example in examples] == [("ice", "rock", "iron"), ("wood", "3", "lead")]
    assert [example.reference for example in examples] == [1, 2]
    [number] = render([{**LEAD, "key": 3}], bpe(), **tasks)  # the name 3, not the index 3
    assert number.reference == 2


def test_answers_and_their_names_may_be_pairs_lists_of_numpy_or_lie_deeper():
    tasks = {"needs": "choices", "template": "{q} ", "label": "key"}
    pairs = {"q": "Which?", "choices": [{"label": "x", "text": "ice"}, {"label": "y", "text": "rock"}], "key": "y"}
    deeper = {"q": "Which?", "task": {"choices": ICE["choices"], "key": "C"}}
    arrays = {**ICE, "choices": {name: np.array(value) for name, value in ICE["choices"].items()}}
    assert render([pairs], bpe(), **tasks, choice_column="choices")[0].reference == 1
    for column in ("task[choices]", "task[choices][text]"):
        [example] = render([deeper], bpe(), **{**tasks, "label": "task[key]"}, choice_column=column)
        assert (example.candidates, example.reference) == (("ice", "rock", "iron"), 2)
    for column in ("choices", "choices[text]"):
        assert render([arrays], bpe(), **tasks, choice_column=column)[0].reference == 1


def test_names_are_used_for_all_rows_or_for_none():
    tasks = {"needs": "choices", "template": "{q} ", "choice_column": "choices[text]", "label": "key"}
    for keys, expected in ((("rock", "lead"), [1, 2]), ((2, 0), [2, 0])):
        rows = [{**row, "key": key} for row, key in zip((ICE, LEAD), keys, strict=True)]
        assert [example.reference for example in render(rows, bpe(), **tasks)] == expected
    with pytest.raises(InputError, match="row 2: the label 'D' belongs to none of its 3 answers"):
        render([ICE, {**LEAD, "key": "D"}], bpe(), **tasks)


def test_several_right_answers_may_be_named():
    rows = [{**ICE, "key": ["C", "A"]}, {**LEAD, "key": ["1"]}]
    first, second = render(rows, bpe(), needs="choices", template="{q} ", choice_column="choices", label="key")
    assert (first.candidates, first.reference) == (("rock", "iron"), 1)
    assert (second.candidates, second.reference) == (("wood", "3", "lead"), 0)


def test_indices_that_never_name_a_first_answer_are_doubted(caplog):
    ends, options = (
        [" a", " b", " c", " d"],
        {"label": "doubted"},
    )  # a message is said once, so the column has its own name
    rows = [{"q": "x", "ends": ends, "doubted": label} for label in (1, 2, 3)]
    assert references([*rows, {"q": "x", "ends": ends, "doubted": 0}], **options) == [1, 2, 3, 0]
    assert not caplog.records
    assert references(rows, **options) == references(rows, **options) == [1, 2, 3]
    assert len(caplog.records) == 1 and "never name a row's first answer" in caplog.text


def test_an_unknown_column_lists_neighbours():
    with pytest.raises(UnknownNameError, match="no row has the answers column 'end'") as caught:
        check_columns([ROW], **OPTIONS | {"choice_column": "end"})
    assert caught.value.hint == "give --choice-column; did you mean ends? the columns are q, ends, label"


@pytest.mark.parametrize(
    ("labels", "choices", "places"),
    [
        (["bug", "praise"], ["bug", "praise"], [0, 1]),
        (["bug", "praise"], [" praise", " bug"], [1, 0]),
        (["bug ", "praise"], [" bug", " praise"], [0, 1]),
        (["bug", "Praise"], [" Bug", " praise"], [0, 1]),
        (["us", "US"], [" US", " us"], [1, 0]),
        (["bug"], [" praise", " Bug", " billing"], [1]),
    ],
    ids=["alike", "behind spaces", "spaces in a cell", "capitals", "capitals that tell", "a label without rows"],
)
def test_a_choice_that_is_a_label_is_for_it(labels: list[str], choices: list[str], places: list[int]) -> None:
    rows = [{"label": label} for label in labels]

    assert [place for _, place in fixed_choices(rows, choices, "label")] == places


@pytest.mark.parametrize(
    ("labels", "choices"),
    [(["bug", "Bug"], [" BUG", " praise"]), (["bug", "praise"], [" Bug", " BUG"]), (["0", "bug"], [" 0", " bug"])],
    ids=["two labels alike", "two choices alike", "a number among them"],
)
def test_what_could_be_two_labels_is_none(labels: list[str], choices: list[str]) -> None:
    with pytest.raises(InputError, match="belongs to none of the 2 choices"):
        fixed_choices([{"label": label} for label in labels], choices, "label")


def test_the_row_whose_label_does_not_fit_is_named() -> None:
    rows = [{"label": label} for label in ("good", "bad", "good", "neutral", "bad")]
    with pytest.raises(InputError, match=r"^row 4: the label 'neutral' belongs to none of the 2 choices"):
        fixed_choices(rows, [" bad", " good"], "label")
    with pytest.raises(InputError, match=r"^row 2 has an empty 'label'"):
        fixed_choices([{"label": "good"}, {"label": ""}], [" bad", " good"], "label")
