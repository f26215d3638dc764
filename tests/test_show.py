"""Prompts to look at."""

from __future__ import annotations

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from rendering import render
from tiny_tokenizers import letters
from zoreward.data import describe_prompts
from zoreward.records import Example


def test_prompts_answers_and_tokens_are_all_there():
    tokenizer = letters([("b", "c")], front="<s>", bos_token="<s>")
    rows = [{"x": "abcd", "label": 1}, {"x": "a\nb", "label": 0}, {"x": "dd", "label": 0}]
    examples = render(rows, tokenizer, needs="choices", template="{x}", choices=["dd", "d"], max_length=5)
    assert (
        describe_prompts(examples, tokenizer, n=2)
        == """\
row 1 of 3: 3 tokens of prompt, 2 of the longest answer, 1 tokens cut off on the left to fit
  prompt:
    abcd
  answers:
      'dd'
    → 'd'
  tokens:
    prompt (3): <s> bc d
    'dd' (2): d d
    'd' (1): d

row 2 of 3: 3 tokens of prompt, 2 of the longest answer
  prompt:
    a
    b
  answers:
    → 'dd'
      'd'
  tokens:
    prompt (3): <s> a b
    'dd' (2): d d
    'd' (1): d"""
    )


def test_demonstrations_are_counted_and_blank_lines_kept():
    tokenizer = letters([])
    rows = [{"x": "a", "label": 0}, {"x": "b", "label": 0}]
    options = {"needs": "choices", "template": "{x}", "choices": ["c", "d"], "shots": 1}
    text = describe_prompts(render(rows, tokenizer, **options), tokenizer)
    assert "2 of 2: 3 tokens of prompt, 1 of the longest answer, 1 demonstration\n  prompt:\n    ac\n\n    b\n" in text


def test_tokens_with_white_space_are_quoted():
    core = Tokenizer(models.Unigram([("a", 0.0), (" ", 0.0), ("\n", 0.0)]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    rows = [{"x": "a a\n", "a": "a"}]
    text = describe_prompts(render(rows, tokenizer, needs="likelihood", template="{x}", answer="{a}"), tokenizer)
    assert "    prompt (4): a ' ' a '\\n'\n" in text


def test_a_row_to_be_answered_freely_has_no_answers_to_show():
    tokenizer = letters([])
    examples = [Example({}, "ab", (), 0, tuple(tokenizer("ab")["input_ids"]), ())]
    assert (
        describe_prompts(examples, tokenizer)
        == """\
row 1 of 1: 2 tokens of prompt
  prompt:
    ab
  tokens:
    prompt (2): a b"""
    )
