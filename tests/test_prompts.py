from __future__ import annotations

import datetime
import re
import subprocess
import sys

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.utils.logging import warning_once

from rendering import check_columns, render, render_prompts
from tiny_tokenizers import bpe, ids, letters, wordpiece
from zoreward.records import InputError, UnknownNameError

SST2 = "{sentence} It was"
RTE = '{premise}\nDoes this mean that "{hypothesis}" is true? Yes or No?\n'
TERRIBLE_GREAT = [" terrible", " great"]


@pytest.fixture(scope="module")
def plain() -> PreTrainedTokenizerFast:
    return bpe(bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def with_bos_and_eos() -> PreTrainedTokenizerFast:
    return bpe(front="<s>", behind="</s>", bos_token="<s>", eos_token="</s>")


def choose(tokenizer, rows, template=SST2, choices=TERRIBLE_GREAT, needs="choices", **options):
    return render(rows, tokenizer, needs=needs, template=template, choices=choices, **options)


# Texts


def test_sst2_golden(plain):
    row = {"sentence": "a stirring , funny film", "label": 1}
    [example] = choose(plain, [row])
    assert example.prompt == "a stirring , funny film It was"
    assert example.candidates == (" terrible", " great")
    assert example.reference == 1
    assert example.row == row
    assert example.truncated == 0


def test_rte_golden_and_the_line_break_stays_with_the_prompt(plain):
    row = {"premise": "No Weapons Found.", "hypothesis": "Weapons Found.", "label": 0}
    [example] = choose(plain, [row], RTE, ["Yes", "No"])
    assert example.prompt == 'No Weapons Found.\nDoes this mean that "Weapons Found." is true? Yes or No?\n'
    assert example.candidates == ("Yes", "No")
    assert example.reference == 0
    assert example.candidate_tokens == (ids(plain, "Yes"), ids(plain, "No"))


def test_fields_reach_into_values(plain):
    row = {"q": "who", "answers": ["x", "y"], "meta": {"year": 1999}, "score": 0.256, "label": 0}
    template = "{q} {answers[1]} {meta[year]} {score:.1f} {{q}}"
    assert choose(plain, [row], template)[0].prompt == "who y 1999 0.3 {q}"


def test_likelihood_has_the_answer_as_its_only_candidate(plain):
    rows = [{"q": "a", "answers": ["great", "bad"]}, {"q": "b", "answers": ["terrible"]}]
    examples = render(rows, plain, needs="likelihood", template="{q}?", answer=" {answers[0]}\n")
    assert [example.candidates for example in examples] == [(" great\n",), (" terrible\n",)]
    assert [example.reference for example in examples] == [0, 0]
    assert examples[1].candidate_tokens == (ids(plain, " terrible\n"),)


def test_numbers_dates_and_python_spellings_that_are_asked_for_are_texts(plain):
    row = {"when": datetime.date(2024, 2, 3), "n": 3, "x": np.float32(0.5), "yes": True, "tags": ["a"], "label": 0}
    template = "{when} {n} {x} {yes} {tags!r} {tags[0]!s}"
    assert choose(plain, [row], template)[0].prompt == "2024-02-03 3 0.5 True ['a'] a"


def test_filters_follow_one_another_and_leave_format_specifications_alone(plain):
    row = {"q": " is it so ", "meta": {"who": "The Man"}, "score": 0.256, "label": 0}
    template = "{q|strip|as_question} {meta[who]|lower_first_letter} {meta[who]|lower:>8} {score:.1f} {{q|strip}}"
    assert choose(plain, [row], template)[0].prompt == "Is it so? the Man  the man 0.3 {q|strip}"


def test_likelihood_takes_the_right_choice_where_there_is_no_answer(plain):
    rows = [{"sentence": "fine", "label": 1}, {"sentence": "bad", "label": 0}]
    examples = choose(plain, rows, needs="likelihood")
    assert [example.candidates for example in examples] == [(" great",), (" terrible",)]
    rows = [{"sentence": "he", "ends": [" sat", " ran"], "label": 1}]
    [example] = render(rows, plain, needs="likelihood", template="{sentence}", choice_column="ends")
    assert (example.candidates, example.reference) == ((" ran",), 0)


def test_of_several_right_answers_the_first_is_asked_for_and_the_others_are_left_out(plain):
    rows = [
        {"q": "who", "names": [" Ann", " Bob", " Cy", " Di"], "right": [" Cy", " Ann"]},
        {"q": "who", "names": [" Ann", " Bob"], "right": [" Bob"]},
    ]
    examples = render(rows, plain, needs="choices", template="{q}", choice_column="names", label="right")
    assert [example.candidates for example in examples] == [(" Bob", " Cy", " Di"), (" Ann", " Bob")]
    assert [example.reference for example in examples] == [1, 1]


# Labels


@pytest.mark.parametrize("value", [1, True, "1", 1.0, np.int64(1), np.bool_(True), np.float32(1)], ids=repr)
def test_labels_count_the_choices(plain, value):
    rows = [{"sentence": "fine", "label": value}, {"sentence": "bad", "label": type(value)(0)}]
    assert [example.reference for example in choose(plain, rows)] == [1, 0]


@pytest.mark.parametrize("choices", [["neg= terrible", "pos= great"], ["pos= great", "neg= terrible"]])
def test_string_labels_find_their_choice_in_any_order(plain, choices):
    rows = [{"sentence": "fine", "mood": "pos"}, {"sentence": "bad", "mood": "neg"}]
    examples = choose(plain, rows, choices=choices, label="mood")
    assert [example.candidates[example.reference] for example in examples] == [" great", " terrible"]
    assert examples[0].candidates == tuple(choice.split("=")[1] for choice in choices)


@pytest.mark.parametrize("keys", ["0 1", "false true", "False True"])
def test_bools_may_be_named_in_each_usual_way(plain, keys):
    no, yes = keys.split()
    rows = [{"sentence": "fine", "label": True}, {"sentence": "bad", "label": False}]
    examples = choose(plain, rows, choices=[f"{yes}= great", f"{no}= terrible"])
    assert [example.candidates[example.reference] for example in examples] == [" great", " terrible"]


def test_a_named_label_need_not_occur_in_the_rows(plain):
    examples = choose(plain, [{"sentence": "fine", "label": 1}], choices=["0= terrible", "1= great"])
    assert examples[0].candidates == (" terrible", " great")


def test_an_answer_may_contain_an_equals_sign(plain):
    rows = [{"sentence": "fine", "label": 1}]
    assert choose(plain, rows, choices=["0=x=a", "1=y=b"])[0].candidates == ("x=a", "y=b")
    assert choose(plain, [{"sentence": "fine", "label": "y=b"}], choices=["x=a", "y=b"])[0].reference == 1
    assert choose(plain, rows, choices=["0=a", "1=b=c"])[0].candidates == ("a", "b=c")
    # a choice without "=" settles it, whatever stands in the others
    assert choose(plain, rows, choices=["maybe", "1=b"])[0].candidates == ("maybe", "1=b")


def test_names_of_labels_find_their_choice_without_an_equals_sign(plain):
    rows = [{"sentence": "fine", "mood": "pos"}, {"sentence": "bad", "mood": "neg"}]
    for choices in ([" pos", " neg"], ["neg", "pos"]):
        examples = choose(plain, rows, choices=choices, label="mood")
        assert [example.candidates[example.reference].strip() for example in examples] == ["pos", "neg"]


def test_a_label_may_be_reached_by_a_path(plain):
    rows = [{"sentence": "fine", "gold": {"votes": [1, 0]}}, {"sentence": "bad", "gold": {"votes": [0, 0]}}]
    assert [example.reference for example in choose(plain, rows, label="gold[votes][0]")] == [1, 0]
    with pytest.raises(InputError, match=r"row 1: \{gold\[vote\]\} of --label finds nothing") as caught:
        choose(plain, rows, label="gold[vote]")
    assert "votes" in caught.value.hint


@pytest.mark.parametrize(
    ("labels", "count"),
    [([1, 2, 3, 4], 5), (["2", "1", "3"], 4), ([1.0, 2.0], 3), ([3, 2, 1, 1], 5)],
)
def test_labels_that_count_from_1_are_not_taken_for_others(plain, labels, count):
    rows = [{"sentence": "fine", "stars": label} for label in labels]
    choices = [f" {word}" for word in ("awful", "bad", "so so", "good", "great")[:count]]
    with pytest.raises(InputError, match=f"column 'stars' are 1 to {len(set(labels))}, never 0") as caught:
        check_columns(rows, needs="choices", template=SST2, choices=choices, label="stars")
    assert "--choice '1= awful' --choice '2= bad'" in caught.value.hint
    said = [f"{number}={choice}" for number, choice in enumerate(choices, 1)]
    references = [example.reference for example in choose(plain, rows, choices=said, label="stars")]
    assert references == [int(float(label)) - 1 for label in labels]
    counted = [f"{number}={choice}" for number, choice in enumerate(choices)]
    references = [example.reference for example in choose(plain, rows, choices=counted, label="stars")]
    assert references == [int(float(label)) for label in labels]


@pytest.mark.parametrize(("labels", "count"), [([1], 2), ([1, 1], 3), ([1, 2], 5), ([1, 3], 4), ([0, 1, 2, 3], 5)])
def test_a_few_labels_may_miss_the_first(plain, labels, count):
    rows = [{"sentence": "fine", "label": label} for label in labels]
    choices = [f" {word}" for word in ("awful", "bad", "so so", "good", "great")[:count]]
    assert [example.reference for example in choose(plain, rows, choices=choices)] == labels


def test_two_answers_of_equal_tokens_are_refused(tokenizer):
    small = wordpiece(["neg pos it was good"], bos_token="<s>")
    for words, choices, unit in (
        (tokenizer, [" 好", " 坏"], "<unk>"),
        (small, [" GOOD", " good"], "good"),
        (small, [" pos", " Pos"], "pos"),
    ):
        with pytest.raises(InputError, match=f"row 1: the answers {choices[0]!r} and {choices[1]!r} are") as caught:
            choose(words, [{"sentence": "it", "label": 0}], "{sentence} was", choices)
        assert unit in str(caught.value) and caught.value.hint


def test_a_preference_between_equal_tokens_is_left_out(tokenizer):
    rows = [
        {"prompt": "the film was", "chosen": " good", "rejected": " bad"},
        {"prompt": "the film was", "chosen": " 好", "rejected": " 坏"},
    ]
    [one] = render(rows, tokenizer, needs="choices", template=None)
    assert one.row == rows[0]


def test_an_answer_without_a_token_of_its_own_is_said_once(tokenizer, caplog):
    rows = [{"sentence": "it", "label": 0}, {"sentence": "film", "label": 1}]
    for _ in range(2):
        choose(tokenizer, rows, "{sentence} was", [" good", " superb"])
        choose(tokenizer, rows, "{sentence} was", [" good", " bad"])
    assert [record.getMessage() for record in caplog.records] == [
        "The answer ' superb' (and 1 more) holds what the tokenizer does not know: <unk> is scored instead."
    ]
    choose(tokenizer, rows, "{sentence} was", [" good", " <unk>"])
    assert len(caplog.records) == 1  # it was asked for


@pytest.mark.parametrize(
    ("prompt", "answer", "end"),
    [("it was xyz", "good", "xyz"), ("it was q-", "bad", "q-"), ("日本", "語", "日本"), ("it was\n(", "7;", "(")],
)
def test_an_answer_that_is_one_unknown_token_with_its_prompt_is_refused(prompt, answer, end):
    core = Tokenizer(
        models.WordLevel({"it": 0, "was": 1, "good": 2, "bad": 3, "<unk>": 4, "</s>": 5}, unk_token="<unk>")
    )
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="</s>")
    rows = [{"prompt": "it was", "chosen": " good", "rejected": " bad", "text": " good"}]
    rows += [{"prompt": prompt, "chosen": answer, "rejected": " was", "text": answer}]
    with pytest.raises(InputError, match=f"row 2: the answer {answer!r} has no tokens of its own") as refused:
        render(rows, tokenizer, needs="likelihood", template="{prompt}", answer="{text}")
    assert f"makes one, <unk>, of it and of the prompt's end {end!r}" in str(refused.value)
    assert "space in front of the answer" in refused.value.hint
    [one] = render(rows, tokenizer, needs="choices", template=None)  # of preferences it is left out
    assert one.row == rows[0]


@pytest.mark.parametrize("kind", ["causal", "encoder-decoder"])
def test_a_preferred_answer_that_the_tokenizer_drops_is_no_end_of_the_text(kind):
    tokenizer = letters([], eos_token="</s>")
    rows = [{"prompt": "ab", "chosen": "cd", "rejected": "zz"}]
    with pytest.raises(InputError, match="none of the 1 preferences is of use: 1 with an answer that has no tokens"):
        render(rows, tokenizer, needs="choices", template=None, kind=kind)


@pytest.mark.parametrize(("blank", "joined"), [(" ", "great"), ("", "s"), ("\n", ",")])
def test_an_answer_that_adds_nothing_to_its_prompt_has_no_tokens_whatever_the_others_have(blank, joined):
    # The other answer is joined with the prompt's last word, so what is scored begins in front of that word.
    with pytest.raises(InputError, match=f"(?m)row 1: the answer {re.escape(repr(blank))} has no tokens$"):
        choose(two_words(), [{"x": "it was", "label": 0}], "{x}", [blank, joined])


def two_words() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordLevel({"it": 0, "was": 1, "<unk>": 2, "</s>": 3}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="</s>")


def test_an_answer_that_makes_its_prompt_s_last_word_unknown_is_told(tokenizer, caplog):
    rows = [{"q": "the film was", "a": "good"}]
    [one] = render(rows, tokenizer, needs="likelihood", template="{q}", answer="{a}")
    assert one.candidate_tokens == ((tokenizer.unk_token_id,),)
    record = caplog.records[-1]
    assert "The answer 'good' with the end of its prompt makes a word that the tokenizer" in record.getMessage()


LABELS = [{"text": "a film", "label": label} for label in ("great", "terrible")]


@pytest.mark.parametrize(
    ("options", "instead"),
    [
        ({"template": "{text} It was"}, "--choice ' great' --choice ' terrible'"),
        ({"template": "{text}\nlabel:"}, "--choice ' great' --choice ' terrible'"),
        ({"template": "{text} It was", "choices": ["great= great", "terrible=terrible"]},
         "--choice 'great= great' --choice 'terrible= terrible'"),
        ({"template": "{text} It was", "needs": "likelihood", "answer": "{label}"}, "--answer ' {label}'"),
        ({"template": "{text}\nlabel:", "choices": None, "choice_column": "ends", "label": "at"},
         "--template '{text}\\nlabel: '"),
        ({"template": "{text} It was "}, None),
        ({"template": "{text} It was\n"}, None),
        ({"template": "{text} It was", "choices": [" great", " terrible"]}, None),
        ({"template": "{text} It was ("}, None),
        ({"template": "{text} It was", "choices": ["great=!", "terrible=?"]}, None),
        ({"template": "{label}{text} It was", "choices": ["great=素", "terrible=悪"]}, None),
    ],
)  # fmt: skip
def test_answers_that_go_on_with_the_last_word_are_told_with_what_to_type(options, instead, plain, caplog):
    warning_once.cache_clear()
    rows = [{**row, "ends": ["great", "terrible"], "at": n} for n, row in enumerate(LABELS)]

    choose(plain, rows, **{"choices": ["great", "terrible"], **options})

    told = [record.getMessage().partition("If that is not meant: ")[2] for record in caplog.records]
    assert told == ([] if instead is None else [instead])


def test_where_a_space_makes_no_difference_none_is_missed(caplog):
    warning_once.cache_clear()
    choose(wordpiece(), [{"text": "a film", "label": 0}], "{text} it was:", ["terrible", "great"])
    assert not caplog.records


@pytest.mark.parametrize("cell", ["", "  ", "\n"])
def test_rows_that_ask_nothing_are_told_once(tokenizer, cell, caplog):
    rows = [{"a": "it", "b": cell, "label": 0}, {"a": cell, "b": cell, "label": 1}, {"a": cell, "b": "x", "label": 1}]
    warning_once.cache_clear()
    choose(tokenizer, rows, "{a} {b} was", [" good", " bad"])
    choose(tokenizer, [*rows, rows[1]], "{a} was", [" good", " bad"])
    render_prompts([{"p": "it"}, {"p": cell}], tokenizer, prompt="p")
    render_prompts([{"p": "it"}, {"p": cell}], tokenizer, prompt="p")
    assert [one.getMessage() for one in caplog.records] == [
        "Row 2 asks nothing: there is no text in a, b. Drop such rows, or fill them.",
        "Row 2 (and 2 more) asks nothing: there is no text in a. Drop such rows, or fill them.",
        "Row 2 asks nothing: there is no text in p. Drop such rows, or fill them.",
    ]


# Tokens


@pytest.mark.parametrize("template", [SST2, SST2 + " ", SST2 + "  ", "{sentence}\n"])
@pytest.mark.parametrize("choices", [TERRIBLE_GREAT, ["terrible", "great"]])
def test_prompt_and_candidate_tokens_are_the_joint_encoding(plain, with_bos_and_eos, template, choices):
    rows = [{"sentence": "a stirring , funny film", "label": 1}, {"sentence": "zq", "label": 0}]
    for tokenizer, front in ((plain, ()), (with_bos_and_eos, (with_bos_and_eos.bos_token_id,))):
        for example in choose(tokenizer, rows, template, choices):
            for candidate, tokens in zip(example.candidates, example.candidate_tokens, strict=True):
                assert example.prompt_tokens + tokens == front + ids(tokenizer, example.prompt + candidate)


def test_spaces_at_the_prompts_end_are_scored_with_the_candidates(plain):
    rows = [{"sentence": "fine", "label": 1}]
    [spaced] = choose(plain, rows, SST2 + " ", ["terrible", "great"])
    [usual] = choose(plain, rows, SST2, [" terrible", " great"])
    assert spaced.prompt_tokens == usual.prompt_tokens
    assert spaced.candidate_tokens == usual.candidate_tokens
    assert spaced.prompt == "fine It was "


def test_bos_stands_in_front_and_eos_nowhere(with_bos_and_eos):
    [example] = choose(with_bos_and_eos, [{"sentence": "fine", "label": 1}])
    assert example.prompt_tokens == (0, *ids(with_bos_and_eos, "fine It was"))
    assert example.candidate_tokens == (ids(with_bos_and_eos, " terrible"), ids(with_bos_and_eos, " great"))


def test_a_template_with_its_own_bos_has_one(with_bos_and_eos):
    rows = [{"sentence": "a stirring film", "label": 1}]
    [example] = choose(with_bos_and_eos, rows, "<s>{sentence} It was")
    [usual] = choose(with_bos_and_eos, rows)
    assert example.prompt_tokens == usual.prompt_tokens
    assert example.candidate_tokens == usual.candidate_tokens
    [short] = choose(with_bos_and_eos, rows, "<s>{sentence} It was", max_length=4)
    assert short.prompt_tokens[0] == 0


def test_a_token_across_the_border_is_scored_with_every_candidate():
    tokenizer = letters([("b", "c")])
    # "ab" is a·b, "abcd" is a·bc·d, "abd" is a·b·d: they part behind a
    [example] = choose(tokenizer, [{"x": "ab", "label": 0}], "{x}", ["cd", "d"])
    assert example.prompt_tokens == ids(tokenizer, "a")
    assert example.candidate_tokens == (ids(tokenizer, "bcd"), ids(tokenizer, "bd"))
    [single] = render([{"x": "ab"}], tokenizer, needs="likelihood", template="{x}", answer="c{x}")
    assert (single.prompt_tokens, single.candidate_tokens) == (ids(tokenizer, "a"), (ids(tokenizer, "bcab"),))


def test_candidates_that_begin_alike_lose_nothing():
    [example] = choose(letters([("c", "d")]), [{"x": "ab", "label": 0}], "{x}", ["cda", "cdb"])
    assert example.prompt_tokens == ids(letters([("c", "d")]), "ab")
    assert example.candidate_tokens == tuple(ids(letters([("c", "d")]), text) for text in ("cda", "cdb"))


def test_a_prompt_that_an_answer_takes_in_begins_with_bos():
    for front in ("<s>", ""):
        tokenizer = letters([("b", "c")], front=front, bos_token="<s>")
        [example] = choose(tokenizer, [{"x": "b", "label": 0}], "{x}", ["c", "d"])
        assert example.prompt_tokens == (0,)
        assert example.candidate_tokens == (ids(tokenizer, "bc"), ids(tokenizer, "bd"))
    with pytest.raises(InputError, match="row 1: the prompt's first token is joined with the answer's"):
        choose(letters([("b", "c")]), [{"x": "b", "label": 0}], "{x}", ["c", "d"])


def test_a_shorter_prompt_is_cut_on_its_left_by_as_much():
    tokenizer = letters([("b", "c")], front="<s>", bos_token="<s>")
    [example] = choose(tokenizer, [{"x": "aaab", "label": 0}], "{x}", ["cd", "d"], max_length=5)
    # <s>·a·a and bc·d, or b·d: one a of three had to go
    assert (example.prompt_tokens, example.truncated) == ((0, *ids(tokenizer, "aa")), 1)
    assert example.candidate_tokens == (ids(tokenizer, "bcd"), ids(tokenizer, "bd"))


@pytest.mark.parametrize(
    ("names", "start"), [({"bos_token": "<s>", "eos_token": "</s>"}, "<s>"), ({"eos_token": "</s>"}, "</s>")]
)
def test_an_empty_prompt_begins_with_bos_or_else_eos(names, start):
    tokenizer = bpe(**names)
    [example] = choose(tokenizer, [{"x": "", "label": 0}], "{x} ", ["great", "bad"])
    assert example.prompt_tokens == (tokenizer.convert_tokens_to_ids(start),)
    assert example.candidate_tokens[0] == ids(tokenizer, " great")


def test_an_empty_prompt_is_an_error_where_nothing_can_begin():
    with pytest.raises(InputError, match="row 2: the prompt has no tokens"):
        choose(bpe(), [{"x": "a", "label": 0}, {"x": "", "label": 0}], "{x}")


@pytest.mark.parametrize(
    ("answer", "told", "hint"),
    [
        ("", "'' has no tokens$", "it needs some text"),
        ("zz", "'zz' has no tokens, as this tokenizer knows nothing of it", "take words that it knows"),
    ],
)
def test_a_candidate_without_tokens_is_named(answer, told, hint):
    with pytest.raises(InputError, match=f"(?m)row 1: the answer {told}") as refused:
        choose(letters([]), [{"x": "ab", "label": 0}], "{x}", ["c", answer])
    assert refused.value.hint.startswith(hint)


def test_truncation_keeps_bos_and_the_right_end():
    rows = [{"x": "abcdabcd", "label": 0}, {"x": "ab", "label": 0}]
    for front, head in (("<s>", (0,)), ("", ())):
        tokenizer = letters([], front=front, behind="</s>", bos_token="<s>")
        long, short = choose(tokenizer, rows, "{x}", ["cc", "ddd"], max_length=7)
        room = 7 - len("ddd") - len(head)
        assert long.prompt_tokens == head + ids(tokenizer, "abcdabcd"[-room:])
        assert long.truncated == 8 - room
        assert long.prompt == "abcdabcd"
        assert long.candidate_tokens == (ids(tokenizer, "cc"), ids(tokenizer, "ddd"))
        assert short.prompt_tokens == head + ids(tokenizer, "ab")
        assert short.truncated == 0


def test_truncation_begins_one_token_above_max_length():
    tokenizer = letters([], front="<s>", bos_token="<s>")
    rows = [{"x": "abcd", "label": 0}]
    exact, less = (choose(tokenizer, rows, "{x}", ["c", "dd"], max_length=n)[0] for n in (7, 6))
    assert (exact.truncated, less.truncated) == (0, 1)


def test_max_length_leaves_at_least_one_token_of_the_prompt():
    tokenizer = letters([], front="<s>", bos_token="<s>")
    rows = [{"x": "abcd", "label": 0}]
    [example] = choose(tokenizer, rows, "{x}", ["c", "dddd"], max_length=6)
    assert example.prompt_tokens == (0, *ids(tokenizer, "d"))
    with pytest.raises(
        InputError, match="row 1: the answer 'dddd' has 4 tokens and leaves no room for the prompt in 5"
    ):
        choose(tokenizer, rows, "{x}", ["c", "dddd"], max_length=5)


def test_rows_are_encoded_together(plain, monkeypatch):
    calls = []
    encode = type(plain).__call__
    monkeypatch.setattr(type(plain), "__call__", lambda self, *args, **kw: calls.append(1) or encode(self, *args, **kw))
    choose(plain, [{"sentence": f"film {i}", "label": 0} for i in range(50)])
    assert len(calls) <= 3  # all prompts, all joined texts, one text to see what the tokenizer adds


# Errors


GOOD = {"sentence": "fine", "label": 1}
CHAT = [{"role": "user", "content": "Is it fine?"}]
NAN = float("nan")


@pytest.mark.parametrize(
    ("rows", "options", "message", "hint"),
    [
        ([], {}, "no rows", "at least one"),
        (["fine"], {}, "row 1 is a str", "{column: value}"),
        ([GOOD], {"needs": "completions"}, "'completions'", "choices or likelihood"),
        ([GOOD], {"template": None}, "no prompt", "--template"),
        ([GOOD], {"choices": None}, "no answers to choose from", "--choice"),
        ([GOOD], {"needs": "likelihood", "choices": None}, "no right answer", "--answer"),
        ([GOOD], {"template": "{sentence|stirp}"}, "the filter 'stirp'", "did you mean strip? the filters are"),
        ([GOOD], {"template": "{sentense|strip}"}, "'sentense'", "did you mean sentence?"),
        ([GOOD], {"template": "{label|strip}"}, "row 1 does not fit --template", "':'"),
        ([GOOD], {"template": "{sentense} It"}, "'sentense'", "did you mean sentence? the columns are sentence, label"),
        ([GOOD], {"template": "{sentence:>{wide}}"}, "no row has the column 'wide'", "the columns are sentence, label"),
        ([GOOD], {"template": "{zzz[0]}"}, "no row has the column 'zzz'", "the columns are sentence, label"),
        ([GOOD], {"template": "sentence"}, "names no column", "{sentence}"),
        ([GOOD], {"template": "It was {{}}"}, "names no column", "sentence, label"),
        ([GOOD], {"template": "{} It was"}, "{} names no column", "{sentence}"),
        ([GOOD], {"template": "{0} It was"}, "{0} names no column", "{sentence}"),
        ([GOOD], {"template": "{sentence It was"}, "expected '}'", "{{"),
        ([GOOD], {"needs": "likelihood", "answer": "label"}, "--answer 'label' names no column", "{label}"),
        ([GOOD, {"label": 1}], {}, "row 2 has no column 'sentence'", "it has label"),
        ([GOOD, {"sentence": None, "label": 1}], {}, "row 2: {sentence} of --template is empty", "fill them"),
        ([{"a": [1]}, {"a": []}], {"template": "{a[0]}"}, "row 2: {a[0]} of --template finds nothing", "holds []"),
        ([{"a": {"b": None}}], {"template": "{a[b]}"}, "row 1: {a[b]} of --template is empty", "fill them"),
        ([GOOD], {"template": "{sentence:d}"}, "row 1 does not fit --template", "':'"),
        ([{"a": ["x"], "label": 0}], {"template": "{a} was"}, "row 1: {a} of --template is a list", "{a[0]}"),
        ([{"a": {"b": "x"}}], {"template": "{a}"}, "row 1: {a} of --template is a dict", "{a[b]}"),
        ([{"a": ("x",)}], {"template": "{a|strip}"}, "row 1: {a} of --template is a tuple", "{a[0]}"),
        ([{"a": np.array(["x"])}], {"template": "{a}"}, "row 1: {a} of --template is a ndarray", "{a[0]}"),
        ([{"a": b"x"}], {"template": "{a}"}, "row 1: {a} of --template is a bytes", "texts and numbers"),
        ([{"a": object()}], {"template": "{a}"}, "row 1: {a} of --template is a object", "texts and numbers"),
        ([{"a": CHAT}], {"template": "{a}"}, "row 1: {a} of --template is messages", "give --prompt a,"),
        ([{"a": [CHAT]}], {"template": "{a[0]}"}, "{a[0]} of --template is messages", "{a[0][0][content]}"),
        (
            [GOOD | {"to": ["Hoesung Lee"]}],
            {"needs": "likelihood", "answer": " {to}"},
            "row 1: {to} of --answer is a list, not a text",
            "{to[0]}",
        ),
        ([GOOD, {"sentence": NAN, "label": 1}], {}, "row 2: {sentence} of --template is empty (NaN)", "fill them"),
        ([GOOD, {"sentence": "x", "label": NAN}], {}, "row 2 has no label in column 'label' (NaN)", "fill them"),
        ([{"a": {"b": np.float32("nan")}}], {"template": "{a[b]}"}, "{a[b]} of --template is empty (NaN)", "fill"),
        (
            [GOOD],
            {"template": "{sentence} \udce9t\udce9"},
            "--template '{sentence} \\udce9t\\udce9' holds half",
            "UTF-8",
        ),
        ([GOOD], {"choices": [" a", " \ud83d"]}, "the choice ' \\ud83d' holds half a character", "UTF-8"),
        ([GOOD], {"choices": ["no=x", "yes=y"]}, "in front of it is no label: no, yes", "0=no=x"),
        ([GOOD], {"choices": [" great"]}, "one choice", "--choice"),
        ([GOOD], {"choices": " great"}, "one choice", "--choice"),
        ([GOOD], {"choices": [False, True]}, "the choice False is no text", "quotes"),
        ([GOOD], {"choices": [" a", " b", " a"]}, "the answer ' a'", "its own"),
        ([GOOD], {"choices": ["1= a", "1= b"]}, "the label '1'", "its own"),
        ([GOOD], {"choices": ["0= a", "1= a"]}, "the answer ' a'", "its own"),
        (
            [{"sentence": "x", "label": 0}, {"sentence": "x", "label": 2}],
            {},
            "row 2: the label 2 ",
            "in the rows: 0, 2",
        ),
        ([{"sentence": "x", "label": -1}], {}, "row 1: the label -1 ", "choices are for 0, 1"),
        ([{"sentence": "x", "label": "pos"}], {}, "row 1: the label 'pos' ", "label=answer"),
        ([{"sentence": "x", "label": 0.5}], {}, "row 1: the label 0.5 ", "0, 1"),
        (
            [{"sentence": "x", "label": "pos"}, {"sentence": "x", "label": "neutral"}],
            {"choices": ["pos= a", "neg= b"]},
            "row 2: the label 'neutral' ",
            "labels in the rows: 'pos', 'neutral'; choices are for pos, neg",
        ),
        ([GOOD, {"sentence": "x"}], {}, "row 2 has no label in column 'label'", "fill them"),
        ([GOOD, {"sentence": "x", "label": None}], {}, "row 2 has no label in column 'label'", "fill them"),
    ],
)
def test_what_does_not_fit_is_named_with_and_without_a_tokenizer(plain, rows, options, message, hint):
    options = {"needs": "choices", "template": SST2, "choices": TERRIBLE_GREAT, "label": "label"} | options
    for attempt in (lambda: check_columns(rows, **options), lambda: render(rows, plain, **options)):
        with pytest.raises(InputError) as caught:
            attempt()
        assert message in str(caught.value)
        assert hint in caught.value.hint
        assert "\n" not in str(caught.value) + caught.value.hint


def test_an_unknown_label_column_lists_neighbours_and_columns():
    with pytest.raises(UnknownNameError, match="'lable'") as caught:
        check_columns([GOOD], needs="choices", template=SST2, choices=TERRIBLE_GREAT, label="lable")
    assert "did you mean label?" in caught.value.hint
    assert "the columns are sentence, label" in caught.value.hint


def test_importing_the_room_imports_nothing_heavy():
    heavy = {"torch", "transformers", "numpy", "pyarrow", "datasets", "huggingface_hub"}
    code = f"import sys, zoreward.data; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
