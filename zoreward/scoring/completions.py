"""Members' scores by what they write, and how varied that is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from zoreward.records import Completion, Example, Member, Scored, Writing
from zoreward.registry import Objective
from zoreward.scoring.decoding import Generation
from zoreward.scoring.generation import Generator
from zoreward.scoring.reader import Tokens
from zoreward.scoring.rewards import score_writings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def completion_scores(
    generator: Generator,
    tokenizer: PreTrainedTokenizerBase,
    objective: Objective,
    examples: Sequence[Example],
    members: Sequence[Member] = ((),),
    settings: Generation | None = None,
    *,
    trainer_state: Any = None,
) -> list[Writing]:
    """Let members write behind the same prompts, and score what they write.

    While the objective scores what some members wrote, in this thread, the next ones write in another. So an
    objective must not use the model that is being scored.

    Args:
        generator: what writes.
        tokenizer: of the model.
        objective: one that needs `completions`.
        examples: N rows, from `render_prompts`.
        members: M members; by default the model itself.
        settings: how to write; by default `Generation()`.
        trainer_state: handed to reward functions that ask for it; by default a fresh `transformers.TrainerState`.

    Returns:
        one `Writing` for each member, in their order.

    Raises:
        ObjectiveError: the objective raised, or returned no score; or the model's outputs are not finite.
    """
    settings = settings or Generation()
    prompts = [example.prompt_tokens for example in examples]
    writings: list[Writing] = []
    for group in _one_ahead(generator.generate(prompts, members, settings)):
        texts = [[completion_of(tokenizer, tokens, settings) for tokens in written] for written in group]
        writings += score_writings(objective, examples, texts, trainer_state)
    return writings


def completion_of(tokenizer: PreTrainedTokenizerBase, tokens: Tokens, settings: Generation) -> Completion:
    """Return tokens as a text that ends before the first stop string."""
    text = _decode(tokenizer, tokens)
    ended = len(tokens) < settings.max_new_tokens or tokens[-1] == tokenizer.eos_token_id
    found = [place for stop in settings.stop if (place := text.find(stop)) >= 0]
    if not found:
        return Completion(text, tokens, ended)
    # The tokens end with the one that completes the stop string.
    lengths = range(1, len(tokens) + 1)
    length = next(n for n in lengths if any(stop in _decode(tokenizer, tokens[:n]) for stop in settings.stop))
    return Completion(text[: min(found)], tokens[:length], True)


def _decode(tokenizer: PreTrainedTokenizerBase, tokens: Tokens) -> str:
    return str(tokenizer.decode(list(tokens), skip_special_tokens=True))


def _one_ahead(chunks: Iterable[list[list[Tokens]]]) -> Iterator[list[list[Tokens]]]:
    """Yield what `chunks` yields; while the caller is at work on one, a thread fetches the next.

    The first is fetched here: where there is only one, everything happens in the caller's thread.
    """
    fetch = iter(chunks)
    chunk = next(fetch, None)
    with ThreadPoolExecutor(1, thread_name_prefix="zoreward-write") as worker:
        while chunk is not None:
            ahead = worker.submit(next, fetch, None)
            yield chunk
            chunk = ahead.result()


def statistics_of(scored: Sequence[Scored]) -> dict[str, float]:
    """Return how long and how varied is what members wrote: `length` and `distinct_2`; nothing if they did not write.

    distinct-2 is counted over all completions together.
    """
    written = [one.tokens for member in scored for one in getattr(member, "completions", ())]
    return {"length": mean_length(written), "distinct_2": distinct_2(written)} if written else {}


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
