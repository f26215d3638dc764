"""The records that travel between the packages, and the errors.

    row → prompt → batch → members → outputs → scores → update → journal

Everything here is frozen, small and free of torch. Shape letters, used as suffixes all over the project:

| letter | size |
|---|---|
| `M` | members of a query |
| `K` | directions of a step |
| `N` | rows |
| `C` | candidates of a row (the longest list, where they differ) |
| `B` | rows of one forward pass |
| `R` | sequences of one forward pass, members × rows |
| `T` | tokens of a sequence |
"""

from __future__ import annotations

import struct
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

from zoreward.noise.dense import DENSE
from zoreward.noise.family import Family, check_seed


class ZorewardError(Exception):
    """Base of every error that zoreward raises on purpose.

    The message is one line that says what is wrong; `hint` is one line that says what to do. Every subclass is also
    the standard exception of its kind, so `except ValueError` goes on working.
    """

    def __init__(self, message: str, hint: str = ""):
        super().__init__(message)
        self.hint = hint
        if hint:
            self.add_note(f"hint: {hint}")  # which Python shows below the message


class InputError(ZorewardError, ValueError):
    """Rows, templates, options or models that cannot be used as they are."""


class RowError(InputError):
    """A row that is to be mended or left out: no option does that."""


class NoRoomError(InputError):
    """A model, or what is done with it, that does not fit the memory of its device."""


class UnknownNameError(ZorewardError, LookupError):
    """A name that nobody has registered: an objective, a column, a choice."""

    __str__ = Exception.__str__


class MissingFileError(ZorewardError, FileNotFoundError):
    """A file or folder that does not exist."""

    __str__ = Exception.__str__


class ObjectiveError(ZorewardError, RuntimeError):
    """An objective that raised, or returned something that is no score."""


class SilentRunError(ZorewardError, RuntimeError):
    """A run that ended itself because none of its steps moved anything; the hint says what to try."""


class RanksError(ZorewardError, RuntimeError):
    """Another process of the run has ended or cannot be reached, or one of them is not like the others."""


class StorageError(ZorewardError, OSError):
    """A file of the run that cannot be written: a full disk, a folder that is gone."""

    __str__ = Exception.__str__


def to_float32(value: float) -> float:
    """Return the float32 nearest to `value`, as a Python float.

    >>> to_float32(0.5), to_float32(1e-3)
    (0.5, 0.0010000000474974513)
    """
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


LONGEST_MESSAGE = 400
"""Characters of a message of somebody else's, at most."""

# They join letters, in emoji and in Persian, say; what else has no shape of its own could mislead.
_JOINERS = "\u200c\u200d"
_HARMLESS = ("Zs", "Cn", "Co")  # other spaces; characters that this Python does not know yet; private ones


def printable(text: str) -> str:
    r"""Return a text of which a terminal obeys nothing but tabs and new lines: all else is shown escaped.

    Whatever is printed and comes from elsewhere goes through this or `one_line`: rows, completions, messages of errors,
    names. Escape sequences, marks that turn the direction of writing, halves of surrogate pairs: all that could move a
    cursor, hide or reorder what stands beside it is written as Python writes it.

    >>> printable("a \x1b[31mred\x1b[0m film\n größe 日本")
    'a \\x1b[31mred\\x1b[0m film\n größe 日本'
    """
    return text if text.isprintable() else "".join(map(_shown, text))


def one_line(text: object, limit: int | None = LONGEST_MESSAGE) -> str:
    r"""Return a text as one `printable` line of bounded length.

    Args:
        text: of anything else its `str`; its type where it has none.
        limit: characters at most; where there are more, the last one is "…". None: all.

    >>> one_line("first\n  second\tthird"), one_line("\x1b[31mred\x07")
    ('first second third', '\\x1b[31mred\\x07')
    >>> one_line("a" * 10_000_000, limit=5)
    'aaaa…'
    """
    try:
        whole = text if type(text) is str else str(text)
    except Exception:
        whole = f"<{type(text).__name__}>"
    part = whole if limit is None else whole[: 16 * limit]  # of a message of 10 MB only the beginning is looked at
    line = printable(" ".join(part.split()))
    if limit is not None and (len(line) > limit or len(part) < len(whole)):
        return line[: limit - 1] + "…"
    return line


def named(error: BaseException) -> str:
    """Return an exception as one line of bounded length: its type and what it says.

    >>> named(ValueError("too cold")), named(SystemExit())
    ('ValueError: too cold', 'SystemExit')
    """
    text = one_line(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _shown(character: str) -> str:
    harmless = character.isprintable() or character in "\t\n" or character in _JOINERS
    if harmless or unicodedata.category(character) in _HARMLESS:
        return character
    return character.encode("unicode_escape").decode("ascii")


Direction = tuple[int, Family]
"""Seed and family: what z depends on, beside the tensor."""


@dataclass(frozen=True, slots=True)
class Term:
    """A multiple of one direction: `coefficient` · z(`seed`).

    Args:
        seed: names the direction z; 0 ≤ seed < 2^64.
        coefficient: rounded to float32 on creation, so that a term means the same wherever it is stored.
        family: which z a seed means; see `zoreward.noise`.
        block: which block of layers it moves, from 0; None: all weights. Says where, and nothing about z itself.

    Raises:
        ValueError: the seed or the block is out of range.

    >>> Term(7, 0.25)
    Term(seed=7, coefficient=0.25, family=Dense(distribution='normal'), block=None)
    """

    seed: int
    coefficient: float
    family: Family = DENSE
    block: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if self.block is not None and self.block < 0:
            raise ValueError(f"blocks count from 0, and {self.block} is less")
        object.__setattr__(self, "coefficient", to_float32(self.coefficient))

    @property
    def direction(self) -> Direction:
        """What z depends on, beside the tensor. Terms of one differ by a multiple.

        >>> Term(7, 0.25).direction == Term(7, -0.5).direction
        True
        """
        return self.seed, self.family

    def moves(self, ndim: int) -> bool:
        """Whether the direction has a part in tensors of `ndim` dimensions."""
        return self.family.moves(ndim)


Member = tuple[Term, ...]
"""The model at θ + Σ coefficient · z(seed). The empty tuple is the model itself."""


@dataclass(frozen=True, slots=True)
class Query:
    """What a method wants to know: the score of each member, all on the same rows, or each pair on rows of its own.

    Args:
        step: counts from 0.
        members: M members; an antithetic pair stands side by side, θ + εz before θ − εz.
        rows: which rows: those of the step's `batch`, or `all` rows that are tuned on.
        at_once: how many members share a forward pass at most; None: all. Fewer take less memory.
        rows_per_direction: 0, or how many rows at least each antithetic pair has to itself: the rows are divided
            among the pairs, so that each is read twice, however many members there are.
    """

    step: int
    members: tuple[Member, ...]
    rows: Literal["batch", "all"] = "batch"
    at_once: int | None = None
    rows_per_direction: int = 0

    @property
    def parts(self) -> list[tuple[Member, ...]]:
        """The members that are scored together, on the same rows.

        >>> [term.coefficient for term in Query(0, ((), (Term(1, 0.5),), (Term(1, -0.5),)), at_once=2).parts[1][0]]
        [-0.5]
        """
        size = 2 if self.rows_per_direction else self.at_once or len(self.members)
        return [self.members[m : m + size] for m in range(0, len(self.members), size)]

    @property
    def reads(self) -> int:
        """How often each row is read."""
        return 2 if self.rows_per_direction else len(self.members)

    def divided(self, n_rows: int) -> list[slice]:
        """Return which rows are the first pair's, the second's and so on; none are left for pairs behind the last.

        >>> Query(0, ((),) * 8, rows_per_direction=2).divided(7)
        [slice(0, 2, None), slice(2, 4, None), slice(4, 7, None)]
        """
        pairs = min(len(self.members) // 2, max(1, n_rows // self.rows_per_direction))
        ends = [n_rows * pair // pairs for pair in range(pairs + 1)]
        return [slice(*own) for own in pairwise(ends)]


@dataclass(frozen=True, slots=True)
class Update:
    """What is done to θ at the end of a step.

        θ ← round(θ + Σ coefficient · z(seed) − decay · θ − anchor · (θ − θ_base))

    Args:
        decay: share of θ that is taken away, ≥ 0; only from tensors with two or more dimensions (not from biases and
            norms). Rounded to float32.
        terms: in the order in which they are added.
        rounding_seed: 0 ≤ rounding_seed < 2^64; decides the stochastic rounding of half-precision weights.
        anchor: share of the way from θ_base, the weights before any update, that is taken back, ≥ 0; of all tensors.
            Rounded to float32.
        block: the block of layers whose turn it is: decay and anchor are of its tensors alone. None: of all.
    """

    decay: float
    terms: tuple[Term, ...]
    rounding_seed: int
    anchor: float = 0.0
    block: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "decay", to_float32(self.decay))
        object.__setattr__(self, "anchor", to_float32(self.anchor))

    def moves(self, ndim: int) -> bool:
        """Whether tensors of `ndim` dimensions are written at all."""
        return self.anchor != 0 or (self.decay != 0 and ndim >= 2) or any(term.moves(ndim) for term in self.terms)


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What happened in one step.

    Args:
        step: counts from 0.
        scores: scores_M, in the order of the query's members; NaN for a member that has none.
        update: what was done to θ.
        lr: the step's learning rate.
    """

    step: int
    scores: tuple[float, ...]
    update: Update
    lr: float


@dataclass(frozen=True, slots=True)
class Rewind:
    """A run went back: the weights that a step left behind take the place of those at hand, and the next step has the
    number that it would have had.

    Args:
        step: how many steps were done.
        to: after how many of them the weights stood that are taken up again; less than `step`.
        rate: by what learning rates of the schedule are multiplied from then on, above 0.
    """

    step: int
    to: int
    rate: float


@dataclass(frozen=True, slots=True)
class Request:
    """What a model is asked: how likely is `target`, given `prompt`?

    A candidate of a choice, a reference answer, an answer that is preferred, a class and the word at a mask are all
    asked for in this way.

    Args:
        prompt: tokens that are given; what an encoder reads, of an encoder–decoder.
        target: tokens that are asked for. A classifier's only one is the number of a class.
        position: of the token in the prompt behind which the target is asked for: −1, the last, but for a masked model
            that of the mask.
        types: of the prompt's tokens, for a model that tells a first text from a second; empty where all are 0.

    >>> Request((5, 6), (7,)).position
    -1
    """

    prompt: tuple[int, ...]
    target: tuple[int, ...]
    position: int = -1
    types: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Example:
    """A row made ready for a model that scores given answers, or that writes its own.

    Args:
        row: the dataset's own row.
        prompt: the rendered prompt, as text.
        candidates: the answers to be compared, as text; one for `likelihood`, none for `completions`.
        reference: index of the right candidate; 0 where there are none; −1 where the only one is said to be bad.
        prompt_tokens: at least one token.
        candidate_tokens: for each candidate at least one token.
        truncated: tokens that were cut off the prompt's left so that the longest candidate, or what is to be written,
            fits.
        shots: demonstrations in the prompt.
        messages: the conversation that the prompt was rendered from; None for a plain prompt.
        base_logprobs: mean log-probability per token of each candidate under the model as it was before any step; None
            where no objective asks for them.
        base_completion: what that model wrote behind the prompt; None where no objective asks for it.
        mismatched: answers to another row's prompt behind this one's, each with the log-probability that this model
            gave it; none where no objective asks for them.
        place: `Request.position` of the candidates.
        types: `Request.types` of the candidates.
        asked: what a model is asked about each candidate, where that is not its tokens behind the prompt's.

    Attributes:
        requests: what a model is asked about the row: one for each candidate.
    """

    row: dict[str, Any]
    prompt: str
    candidates: tuple[str, ...]
    reference: int
    prompt_tokens: tuple[int, ...] = field(repr=False)
    candidate_tokens: tuple[tuple[int, ...], ...] = field(repr=False)
    truncated: int = 0
    shots: int = 0
    messages: tuple[dict[str, Any], ...] | None = None
    base_logprobs: tuple[float, ...] | None = field(default=None, repr=False)
    base_completion: Completion | None = field(default=None, repr=False, kw_only=True)
    mismatched: tuple[tuple[Request, float], ...] = field(default=(), repr=False, kw_only=True)
    place: int = -1
    types: tuple[int, ...] = field(default=(), repr=False)
    asked: tuple[Request, ...] = field(default=(), repr=False)
    requests: tuple[Request, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        usual = [Request(self.prompt_tokens, target, self.place, self.types) for target in self.candidate_tokens]
        object.__setattr__(self, "requests", self.asked or tuple(usual))


@dataclass(frozen=True, slots=True)
class Completion:
    """What a member wrote behind a prompt.

    Args:
        text: without special tokens, and up to the first stop string.
        tokens: as the model wrote them; the token that ended it (EOS, or the last one of a stop string) is the last.
        ended: whether it came to an end by itself; otherwise it was cut off at the greatest length.
        columns: what a `rollout_func` says of it, for objectives.
    """

    text: str
    tokens: tuple[int, ...] = field(repr=False)
    ended: bool
    columns: Mapping[str, Any] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Scored:
    """The score of one member on N rows.

    Args:
        score: the objective's value; higher is better. NaN where it has none: it left out all rows.
        part_scores: the value of each part of a weighted sum, otherwise of the objective alone; NaN where a part has
            none.
        metrics: numbers that objectives logged with `log_metric`, as `metric/NAME`; the mean where one was logged
            repeatedly.
        returned: what each part returned: a number for each row, or one for all.
        logprobs_NC: what the candidates were given; None where the model wrote.
    """

    score: float
    part_scores: dict[str, float]
    metrics: dict[str, float] = field(default_factory=dict, kw_only=True)
    returned: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False, kw_only=True)
    logprobs_NC: Any = field(default=None, repr=False, compare=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class Writing(Scored):
    """What one member wrote for N prompts, and its score.

    Args:
        completions: one for each prompt.
        rewards: for each part that scores rows, the reward of each completion; None where it was left out.
        extra: columns that reward functions logged with `log_extra`.
    """

    completions: tuple[Completion, ...]
    rewards: dict[str, tuple[float | None, ...]]
    extra: dict[str, list[Any]]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The score of one model on some rows.

    Args:
        objective: its name.
        score: higher is better.
        rows: how many rows were scored.
        truncated: how many prompts lost tokens on their left to fit the context.
        fewer_shots: how many prompts had no room for all demonstrations.
        parts: for a weighted sum: the score of each objective, by name.
        statistics: of what was written: `length` in tokens and `distinct_2`; empty where nothing was.
        metrics: numbers that the objective logged with `log_metric`, as `metric/NAME`.
        examples: the rows, as the model read them.
        scored: what the score was made of.
    """

    objective: str
    score: float
    rows: int
    truncated: int
    fewer_shots: int = 0
    parts: dict[str, float] = field(default_factory=dict)
    statistics: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    examples: tuple[Example, ...] = field(default=(), repr=False, compare=False, kw_only=True)
    scored: Scored | None = field(default=None, repr=False, compare=False, kw_only=True)
