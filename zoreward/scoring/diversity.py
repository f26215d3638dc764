"""How varied what was written is: a model that is pushed too hard for a reward begins to repeat itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise


def distinct_2(completions: Iterable[Sequence[int]]) -> float:
    """Return the share of different pairs of neighbouring tokens, counted over all completions together; 0 to 1.

        distinct-2 = number of different bigrams / number of bigrams

    It falls with the number of completions: compare like with like. 0 where there is no bigram.

    Source: Li et al. 2016, "A diversity-promoting objective function for neural conversation models", with tokens for
    words.

    >>> distinct_2([[1, 2, 3], [1, 2]])
    0.6666666666666666
    """
    pairs = [pair for tokens in completions for pair in pairwise(tokens)]
    return len(set(pairs)) / len(pairs) if pairs else 0.0


def mean_length(completions: Iterable[Sequence[int]]) -> float:
    """Return the mean number of tokens.

    >>> mean_length([[1, 2, 3], [1]])
    2.0
    """
    lengths = [len(tokens) for tokens in completions]
    return sum(lengths) / len(lengths) if lengths else 0.0


def share_that_differs(texts_MN: Sequence[Sequence[str]], base_N: Sequence[str] | None = None) -> float:
    """Return the share of members that wrote something else than the base for at least one prompt; 0 to 1.

    Where it is small, members are too alike to be told apart by what they write.

    Args:
        texts_MN: what each member wrote.
        base_N: what they are compared with; by default the first member, which is then not counted.

    >>> share_that_differs([["a", "b"], ["a", "b"], ["a", "c"]])
    0.5
    """
    others = texts_MN if base_N is not None else texts_MN[1:]
    base = list(texts_MN[0] if base_N is None else base_N)
    return sum(list(texts) != base for texts in others) / len(others) if others else 0.0
