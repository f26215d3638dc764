"""Contract under test: what is scored is the text that is read, wherever a tokenizer parts prompt and answer."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from rendering import render
from tiny_tokenizers import bpe, ids, letters, unigram, wordpiece
from zoreward.data import content_free_examples

ENDS = [
    *("It was", "It was ", "It was  ", "Answer:", "Answer: ", "Answer (", 'He said "', "a [", "b {", "cost $", "x -"),
    *("x +", "no #", "I was un", "over", "3", "3.", "3.1", "Well?", "Well?\n", "Well ...", "it'", "don'", "caf", "日",
      "so 🙂", "<", "http:/", "A:\n\n", "1 + 1 ="),
]  # fmt: skip
ANSWERS = [
    *(" great", "great", "1", "-1", "+1", "10", ".5", "!", "?!", '"', '")', ")", "t", "s it", "happy", "lucky", "come"),
    *("\nYes", "  two", " (a)", "(b)", "=2", "/x", "é", "本", "🙂"),
]  # fmt: skip
OTHER = "zebra 77"
OTHERS = [f"{end}{answer}{OTHER}" for end in ENDS for answer in ("", "great")]
PAIRS = [(end, answer) for end in ENDS for answer in ANSWERS]
TEXTS = [f"{end}{answer}" for end, answer in PAIRS] + ["overcome it", "unhappy and unlucky", *OTHERS, *"azebr7"]

TOKENIZERS = {
    "bytes": lambda: bpe(TEXTS, 700, bos_token="<s>"),
    "bytes behind BOS": lambda: bpe(TEXTS, 700, front="<s>", behind="</s>", bos_token="<s>", eos_token="</s>"),
    "few merges": lambda: bpe(bos_token="<s>"),
    "unigram": lambda: unigram(TEXTS, 400, bos_token="<s>"),
    "unigram behind BOS": lambda: unigram(TEXTS, 400, front="<s>", bos_token="<s>"),
    "word pieces": lambda: wordpiece(TEXTS, 400, bos_token="<s>"),
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return TOKENIZERS[request.param]()


def front_of(tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    [full, bare] = [tuple(tokenizer("It", add_special_tokens=own)["input_ids"]) for own in (True, False)]
    return full[: full.index(bare[0])]


def test_there_are_as_many_pairs_as_promised():
    assert len(PAIRS) >= 700 and len(set(TEXTS)) > 690


def test_what_is_scored_decodes_to_the_joined_text(tokenizer):
    rows = [{"end": end, "answers": [answer, OTHER, answer + OTHER], "label": 0} for end, answer in PAIRS]
    examples = render(rows, tokenizer, needs="choices", template="{end}", choice_column="answers")
    front, spanned = front_of(tokenizer), 0
    for (end, _), example in zip(PAIRS, examples, strict=True):
        stem = ids(tokenizer, end.rstrip(" "))
        begun = example.prompt_tokens[len(front) :] or ids(tokenizer, "")
        if example.prompt_tokens == (0,):  # no token of the prompt is left, and the model begins with BOS
            begun = ()
        assert stem[: len(begun)] == begun
        spanned += len(begun) < len(stem)
        for candidate, tokens in zip(example.candidates, example.candidate_tokens, strict=True):
            assert begun + tokens == ids(tokenizer, end + candidate)
            read = tokenizer.decode(begun + tokens, clean_up_tokenization_spaces=False)
            if "Byte" in type(tokenizer.backend_tokenizer.pre_tokenizer).__name__:
                assert read == end + candidate
        nexts = {tokens[0] for tokens in example.candidate_tokens}
        # Not a token sooner than it must: the next one of the prompt is not the next one of every candidate.
        assert len(begun) == len(stem) or nexts != {stem[len(begun)]}
    assert spanned > 10 or tokenizer.vocab_size < 330  # the texts do hold what they are to try


def test_an_answer_alone_is_scored_as_it_is_read(tokenizer):
    some = PAIRS[::3]
    rows = [{"end": end, "answer": answer} for end, answer in some]
    front = front_of(tokenizer)
    examples = render(rows, tokenizer, needs="likelihood", template="{end}", answer="{answer}")
    for (end, answer), example in zip(some, examples, strict=True):
        begun = () if example.prompt_tokens == (0,) else example.prompt_tokens[len(front) :]
        assert begun + example.candidate_tokens[0] == ids(tokenizer, end + answer)


def test_preferences_are_scored_as_they_are_read(tokenizer):
    some, front = PAIRS[::7], front_of(tokenizer)
    explicit = [{"prompt": end, "chosen": answer, "rejected": OTHER} for end, answer in some]
    implicit = [{"chosen": end + answer, "rejected": end + OTHER} for end, answer in some]
    for rows in (explicit, implicit):
        for (end, answer), example in zip(some, render(rows, tokenizer, needs="choices", template=None), strict=True):
            begun = () if example.prompt_tokens == (0,) else example.prompt_tokens[len(front) :]
            for text, tokens in zip((answer, OTHER), example.candidate_tokens, strict=True):
                last = () if tokenizer.eos_token is None else (tokenizer.eos_token_id,)
                assert begun + tokens == ids(tokenizer, end + text) + last


@pytest.mark.parametrize("sign", ["-", "+"])
def test_a_sign_in_front_of_a_number_is_not_lost(sign):
    tokenizer = bpe([f"({sign}1)", f"({sign}2)", "(1)", "(2)"] * 3, 300)
    rows = [{"q": "x", "y": f"{sign}1"}, {"q": "x", "y": "1"}]
    choices = [f"{sign}1={sign}1", "1=1"]
    examples = render(rows, tokenizer, needs="choices", template="{q} (", choices=choices, label="y")
    assert [example.reference for example in examples] == [0, 1]
    signed, plain = examples[0].candidate_tokens
    assert tokenizer.decode(examples[0].prompt_tokens + signed) == f"x ({sign}1" and signed != plain
    assert len(ids(tokenizer, f"({sign}1")) < len(ids(tokenizer, "(")) + len(ids(tokenizer, f"{sign}1"))


def test_demonstrations_and_a_content_free_prompt_part_there_too():
    tokenizer = letters([("b", "c"), ("d", "a")])
    rows = [{"x": "aab", "label": 0}, {"x": "dab", "label": 1}, {"x": "cab", "label": 0}]
    template = {"needs": "choices", "template": "{x}", "choices": ["cd", "d"]}
    shown = render(rows, tokenizer, **template, shots=1)
    free = content_free_examples(shown, tokenizer, template="{x}", content_free="ab")
    for example in (*shown, *free):
        for candidate, tokens in zip(example.candidates, example.candidate_tokens, strict=True):
            assert example.prompt_tokens + tokens == ids(tokenizer, example.prompt + candidate)
        assert example.candidate_tokens == (ids(tokenizer, "bcd"), ids(tokenizer, "bd"))
