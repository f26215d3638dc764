"""What is asked of an engine: whoever answers questions about members of a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from zoreward.config import Writing
from zoreward.records import Completion, InputError, Member, Request, Update

if TYPE_CHECKING:
    from zoreward.members import Tuned

Tokens = tuple[int, ...]
Pass = TypeVar("Pass")
Split = Literal["members", "rows"]
Work = Sequence[tuple[Member, Sequence[Request]]]
"""Members, and what each is asked. Members that stand side by side and are asked one and the same list are answered
together."""


@dataclass(frozen=True, slots=True)
class Generation:
    """How members write.

    Args:
        max_new_tokens: greatest length of a completion.
        temperature: 0: always the likeliest token; otherwise tokens are drawn from softmax(logits / temperature).
        top_p: drawn from the likeliest tokens that have this probability together; 1: from all.
        top_k: drawn from so many likeliest tokens; 0: from all.
        min_p: drawn from tokens at least so many times as probable as the likeliest; None: from all.
        repetition_penalty: logits of tokens of the prompt and of what was written are divided by it where they are
            positive, else multiplied; whatever the temperature. 1: they are left as they are.
        stop: a completion ends before the first of these texts.
        seed: of what is drawn, from 0 to 2^64 − 1. The same for every member; another one for each step.
        rows: most rows of one call, all members together; None: as many as the memory takes.

    Raises:
        InputError: a setting is out of its range.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float | None = None
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    rows: int | None = None

    def __post_init__(self) -> None:
        wrong = {
            "max_new_tokens": self.max_new_tokens < 1 and "is at least 1",
            "temperature": not 0 <= self.temperature < float("inf") and "is 0 or more",
            "top_p": not 0 < self.top_p <= 1 and "lies above 0 and is at most 1",
            "top_k": self.top_k < 0 and "is 0 or more",
            "min_p": self.min_p is not None and not 0 <= self.min_p <= 1 and "lies between 0 and 1",
            "repetition_penalty": not 0 < self.repetition_penalty < float("inf") and "is above 0; 1 changes nothing",
            "stop": (isinstance(self.stop, str) or not all(self.stop)) and "holds texts, none of them empty",
            "seed": not 0 <= self.seed < 2**64 and "lies between 0 and 2^64 - 1",
            "rows": self.rows is not None and self.rows < 1 and "is at least 1",
        }
        for name, what in wrong.items():
            if what:
                raise InputError(f"{name}={getattr(self, name)!r} is out of range", hint=f"{name} {what}")


def generation_of(writing: Writing, seed: int) -> Generation:
    """Return how members write, by the options about it.

    Raises:
        InputError: a value is out of its range.
    """
    how = {name: getattr(writing, name) for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")}
    return Generation(writing.max_completion_length, **how, stop=tuple(writing.stop or ()), seed=seed)


@dataclass(frozen=True, slots=True)
class OwnPasses:
    """Which passes of a piece of work are one's own, where several share it: every `size`-th.

    Args:
        rank: of this one, from 0.
        size: how many share it.

    >>> OwnPasses(1, 2).of(["a", "b", "c"]), OwnPasses(1, 2).of(["a", "b", "c"], 1)
    (['b'], ['a', 'c'])
    """

    rank: int
    size: int

    def of(self, every: Sequence[Pass], turn: int = 0) -> list[Pass]:
        """Return one's own; `turn` counts lists of as many passes that came before, of other members."""
        return [one for n, one in enumerate(every, start=turn * len(every)) if n % self.size == self.rank]


class Engine(Protocol):
    """Whoever answers questions about members of a model: all that lies above asks through these methods alone.

    A new engine is a class with them. What a model is told, and what its answers mean, is settled above; members come
    as terms, and answers go back as arrays on the CPU, or as texts.
    """

    def logprobs(self, work: Work, *, rows: int | None = None) -> list[NDArray[np.float64]]:
        """Return for each member how likely the targets of its requests are.

            logprobs[m][r] = Σ_t log p_m(target_t | prompt, target_<t)

        Args:
            work: M members, and what each is asked.
            rows: most rows of one forward pass, whatever the engine's own way to cut the work; None: its own way.

        Returns:
            One float64 array for each member, ≤ 0, in the order of its requests. Sums are in the order of the tokens.

        Raises:
            ObjectiveError: the model's outputs are not finite.
        """

    def generate(self, work: Work, how: Generation) -> Iterator[list[list[Completion]]]:
        """Yield what members write behind their requests' prompts, in the order of the work, some members at a time.

        A completion depends on the member, its prompt and the prompt's place among those that the member is asked
        alone, not on what shares a batch with it.

        Args:
            work: M members, and what each is asked; of a request only the prompt counts.
            how: how to write.

        Yields:
            For each of some members a list with one completion for each of its requests.

        Raises:
            ObjectiveError: the model's outputs are not finite.
        """

    def apply(self, update: Update) -> None:
        """Move θ; nothing else of an engine writes it."""

    def weights(self) -> Tuned:
        """Return the tuned weights, by their canonical names, with all that says how they are moved."""

    @property
    def unit(self) -> dict[str, Any]:
        """How work is cut into forward passes. It is fixed when a run begins, and stands in the header of its journal.

        So the rows that share a pass do not depend on how many members are asked about at a time, or by how many ranks.
        """
