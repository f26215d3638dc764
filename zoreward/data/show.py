"""Rendered rows to look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from zoreward.records import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def describe_prompts(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, n: int = 3, *, classes: bool = False
) -> str:
    """The first `n` examples as plain text: what the model reads, what it is asked about, and the tokens of both.

    `→` marks the right answer. Tokens stand as the tokenizer names them (`Ġ`, `▁`: a space), in quotes where they hold
    white space themselves. With `classes` the answers are a classifier's, and have no tokens; rows that a model answers
    freely have none.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import PreTrainedTokenizerFast
        >>> words = Tokenizer(models.WordLevel({"fine": 0, "It": 1, "was": 2, "bad": 3, "good": 4}))
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
        >>> example = Example({}, "fine It was", (" bad", " good"), 1, (0, 1, 2), ((3,), (4,)))
        >>> print(describe_prompts([example], tokenizer))
        row 1 of 1: 3 tokens of prompt, 1 of the longest answer
          prompt:
            fine It was
          answers:
              ' bad'
            → ' good'
          tokens:
            prompt (3): fine It was
            ' bad' (1): bad
            ' good' (1): good
    """
    return "\n\n".join(
        _described(example, tokenizer, f"row {number} of {len(examples)}", classes)
        for number, example in enumerate(examples[:n], 1)
    )


def _described(example: Example, tokenizer: PreTrainedTokenizerBase, name: str, classes: bool) -> str:
    facts = [f"{len(example.prompt_tokens)} tokens of prompt"]
    if example.candidates and not classes:
        facts.append(f"{max(map(len, example.candidate_tokens))} of the longest answer")
    if example.shots:
        facts.append(f"{example.shots} demonstrations" if example.shots > 1 else "1 demonstration")
    if example.truncated:
        side = "right" if classes else "left" if example.place < 0 else "ends"
        facts.append(f"{example.truncated} tokens cut off on the {side} to fit")
    answers = [
        f"{'→' if index == example.reference else ' '} {candidate!r}"
        for index, candidate in enumerate(example.candidates)
    ]
    named = [
        ("prompt", example.prompt_tokens),
        *([] if classes else zip(map(repr, example.candidates), example.candidate_tokens, strict=True)),
    ]
    tokens = [f"{what} ({len(own)}): {_spelled(own, tokenizer)}" for what, own in named]
    lines = [f"{name}: {', '.join(facts)}"]
    blocks = {"prompt": example.prompt.split("\n"), "answers": answers, "tokens": tokens}
    for what, block in blocks.items():
        if not block:
            continue
        lines += [f"  {what}:", *(f"    {line}".rstrip() if what == "prompt" else f"    {line}" for line in block)]
    return "\n".join(lines)


def _spelled(tokens: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    names = tokenizer.convert_ids_to_tokens(list(tokens))
    return " ".join(repr(name) if not name or name.split() != [name] else name for name in names)
