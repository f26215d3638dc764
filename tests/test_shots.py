"""Demonstrations in front of a prompt."""

from __future__ import annotations

import pytest

from rendering import check_columns, render
from tiny_tokenizers import bpe, ids, letters
from zoreward.records import InputError

WORDS = ["fine", "dull", "a stirring film", "slow", "great fun", "bad", "long", "funny"]
ROWS = [{"sentence": word, "label": i % 2} for i, word in enumerate(WORDS)]
ANSWERS = [" terrible", " great"]
SST2 = {"needs": "choices", "template": "{sentence} It was", "choices": ANSWERS}


def demonstration(row):
    return f"{row['sentence']} It was{ANSWERS[row['label']]}"


def demonstrated(example):
    """The sentences of an example's demonstrations."""
    *shown, _ = example.prompt.split("\n\n")
    return [text.split(" It was")[0] for text in shown]


def test_the_prompt_is_the_text_one_would_write_by_hand():
    pool = [{"sentence": "great fun", "label": 1}, {"sentence": "slow", "label": 0}]
    [example] = render([{"sentence": "fine", "label": 1}], bpe(), **SST2, shots=2, shot_rows=pool)
    fun, slow = "great fun It was great", "slow It was terrible"
    assert example.prompt in (f"{fun}\n\n{slow}\n\nfine It was", f"{slow}\n\n{fun}\n\nfine It was")
    assert (example.candidates, example.reference, example.shots) == ((" terrible", " great"), 1, 2)


def test_a_likelihood_is_demonstrated_with_its_answer():
    rows = [{"q": "who", "a": "me"}, {"q": "where", "a": "here"}]
    options = {"needs": "likelihood", "template": "Q: {q}\nA:", "answer": " {a}"}
    examples = render(rows, bpe(), **options, shots=1)
    assert examples[0].prompt == "Q: where\nA: here\n\nQ: who\nA:"
    assert examples[0].candidates == (" me",)


def test_rows_own_answers_are_demonstrated_with_the_right_one():
    rows = [{"q": "He", "ends": [" sat", " ran"], "label": 1}, {"q": "It", "ends": [" a", " b", " c"], "label": " c"}]
    rows[0]["label"] = " ran"
    examples = render(rows, bpe(), needs="choices", template="{q}", choice_column="ends", shots=1)
    assert [example.prompt for example in examples] == ["It c\n\nHe", "He ran\n\nIt"]


@pytest.mark.parametrize("options", [{}, {"front": "<s>", "behind": "</s>", "bos_token": "<s>"}])
@pytest.mark.parametrize("template", ["{sentence} It was", "{sentence} It was ", "{sentence}\n"])
def test_tokens_are_those_of_the_joined_text(options, template):
    tokenizer = bpe(**options)
    front = (0,) if options else ()
    for example in render(ROWS, tokenizer, **SST2 | {"template": template}, shots=3):
        for candidate, tokens in zip(example.candidates, example.candidate_tokens, strict=True):
            assert example.prompt_tokens + tokens == front + ids(tokenizer, example.prompt + candidate)


@pytest.mark.parametrize("seed", range(5))
def test_no_row_demonstrates_itself_and_all_see_the_same_otherwise(seed):
    examples = render(ROWS, bpe(), **SST2, shots=3, seed=seed)
    shown = [demonstrated(example) for example in examples]
    usual = max(map(tuple, shown), key=lambda own: sum(own == tuple(other) for other in shown))
    spares = set()
    for word, own in zip(WORDS, shown, strict=True):
        assert len(set(own)) == 3
        assert word not in own
        if word in usual:
            assert own[:2] == [other for other in usual if other != word]
            spares.add(own[2])
        else:
            assert tuple(own) == usual
    assert len(spares) == 1  # the same one takes the place of whichever is missing
    assert not spares & set(usual)


def test_a_row_that_asks_the_same_under_another_id_is_no_demonstration():
    rows = [{"idx": i, **row} for i, row in enumerate([ROWS[0], ROWS[0], ROWS[0], ROWS[1], ROWS[2]])]
    for example in render(rows, bpe(), **SST2, shots=2):
        assert example.row["sentence"] not in demonstrated(example)
        assert len(set(demonstrated(example))) == 2


def test_a_question_with_other_answers_is_another_question():
    rows = [{"q": "Which?", "ends": [" a", " b"], "label": 0}, {"q": "Which?", "ends": [" c", " d"], "label": 1}]
    examples = render(rows, bpe(), needs="choices", template="{q}", choice_column="ends", shots=1)
    assert [example.prompt for example in examples] == ["Which? d\n\nWhich?", "Which? a\n\nWhich?"]


def test_the_draw_hangs_on_the_seed_alone():
    def drawn(rows, seed):
        # not one of the rows scored, so that nothing is replaced
        [example] = render(rows, bpe(), **SST2, shots=3, shot_rows=ROWS, seed=seed)
        return demonstrated(example)

    one, other = [{"sentence": "one", "label": 0}], [{"sentence": "other", "label": 1}]
    assert drawn(one, 7) == drawn(other, 7)
    assert len({tuple(drawn(one, seed)) for seed in range(10)}) > 5
    # What random.Random(0) draws, in every Python: 0.844, 0.758, 0.421, 0.259, 0.511, 0.405, 0.784, 0.303.
    assert drawn(one, 0) == [WORDS[3], WORDS[7], WORDS[5]]


@pytest.mark.parametrize("options", [{}, {"front": "<s>", "bos_token": "<s>"}])
def test_as_many_demonstrations_as_fit_are_shown(options):
    tokenizer, front = bpe(**options), len(options) // 2
    full = render(ROWS, tokenizer, **SST2, shots=4)
    seen = set()
    for max_length in range(front + 4, 64, 2):
        examples = render(ROWS, tokenizer, **SST2, shots=4, max_length=max_length)
        for example, whole in zip(examples, full, strict=True):
            parts = whole.prompt.split("\n\n")
            tails = ["\n\n".join(parts[-1 - count :]) for count in range(5)]
            fitting = [
                count
                for count, text in enumerate(tails)
                if front + max(len(ids(tokenizer, text + answer)) for answer in ANSWERS) <= max_length
            ]
            assert example.shots == max(fitting, default=0)
            assert example.prompt == tails[example.shots]  # the first ones went
            assert (example.truncated > 0) == (not fitting)
            assert len(example.prompt_tokens) + max(map(len, example.candidate_tokens)) <= max_length
            seen.add((example.shots, example.truncated > 0))
    assert seen == {(0, True), (0, False), (1, False), (2, False), (3, False), (4, False)}


def test_only_a_prompt_too_long_by_itself_is_cut():
    tokenizer = letters([], front="<s>", bos_token="<s>")
    rows = [{"x": "abcdabcd", "label": 0}, {"x": "ab", "label": 0}]
    long, short = render(rows, tokenizer, needs="choices", template="{x}", choices=["c", "d"], shots=1, max_length=7)
    assert (long.prompt, long.shots, long.truncated) == ("abcdabcd", 0, 3)
    assert long.prompt_tokens == (0, *ids(tokenizer, "dabcd"))
    # "abcdabcd" is too long a demonstration for it
    assert (short.prompt, short.shots, short.truncated) == ("ab", 0, 0)


def test_fitting_encodes_each_text_about_once(monkeypatch):
    tokenizer = bpe()
    rows = [{"sentence": f"{WORDS[i % 8]} {i}", "label": i % 2} for i in range(40)]
    encoded = []
    encode = type(tokenizer).__call__

    def counting(self, texts, **options):
        encoded.append(sum(map(len, texts)))
        return encode(self, texts, **options)

    monkeypatch.setattr(type(tokenizer), "__call__", counting)
    examples = render(rows, tokenizer, **SST2, shots=16, max_length=150)
    assert {0 < example.shots < 16 for example in examples} == {True}
    # A prompt is encoded once by itself and once with each of two candidates. Looking for the number of demonstrations
    # may take a second try, and the bare rows and demonstrations, each shorter than a prompt.
    assert sum(encoded) < (3 * 2 + 3) * sum(len(example.prompt) for example in examples)


def test_shots_are_counted_only_where_there_are_some():
    assert [example.shots for example in render(ROWS, bpe(), **SST2)] == [0] * len(ROWS)


@pytest.mark.parametrize(
    ("rows", "options", "message", "hint"),
    [
        (ROWS, {"shots": -1}, "--shots -1 is less than 0", "give 0"),
        (ROWS, {"shots": 8}, "row 1: --shots 8 needs 8 rows that ask something else, and there are 7", "lower"),
        (
            [ROWS[0]],
            {"shots": 1},
            "row 1: --shots 1 needs 1 rows that ask something else, and there are 0",
            "more rows",
        ),
        ([ROWS[0]] * 5, {"shots": 1}, "row 1: --shots 1 needs 1 rows", "more rows"),
        (ROWS[:2], {"shots": 2, "shot_rows": ROWS[1:3]}, "row 2: --shots 2 needs 2 rows", "and there is 1"),
        (ROWS, {"shots": 1, "shot_rows": []}, "rows for demonstrations: there are no rows", "at least one"),
        (ROWS, {"shots": 1, "shot_rows": [ROWS[0], {"label": 0}]}, "rows for demonstrations: row 2 has no", "label"),
        (
            [{"sentence": "x", "label": "neg"}],
            {"shots": 1, "shot_rows": ROWS, "choices": ["neg= bad", "pos= good"]},
            "rows for demonstrations: every choice has an '=', and what stands in front of it is no label: neg, pos",
            "labels in the rows: 0, 1",
        ),
    ],
)
def test_too_few_rows_are_named_with_and_without_a_tokenizer(rows, options, message, hint):
    options = SST2 | options
    for attempt in (lambda: check_columns(rows, **options), lambda: render(rows, bpe(), **options)):
        with pytest.raises(InputError) as caught:
            attempt()
        assert message in str(caught.value)
        assert hint in str(caught.value) + caught.value.hint


def test_a_pool_as_large_as_the_shots_is_enough_for_other_rows():
    [example] = render(ROWS[:1], bpe(), **SST2, shots=2, shot_rows=ROWS[1:3])
    assert set(demonstrated(example)) == set(WORDS[1:3])
