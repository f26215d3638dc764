"""What the methods share: their options, where a run stands, and the step along weighted directions."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, replace
from typing import Any

from zoreward.methods.directions import (
    MAX_BLOCKS,
    MAX_DIRECTIONS,
    MAX_STEPS,
    MAX_WINDOW,
    Directions,
    along,
)
from zoreward.noise import Distribution, Family, family_of
from zoreward.noise.factors import MAX_RANK
from zoreward.records import InputError, Member, Query, Rewind, StepRecord, Term, Update

# Beyond these a float32 coefficient, or a slope over 2ε, is 0 or infinite, whatever the model.
LEAST_EPS, MOST_EPS, MOST_RATE = 1e-12, 1e6, 1e6
# The least and the most that whole numbers of a method may be.
BOUNDS = {
    **{"num_directions": (1, MAX_DIRECTIONS), "rank": (0, MAX_RANK), "refresh": (1, MAX_STEPS)},
    **{"more_every": (0, MAX_STEPS), "window": (2, MAX_WINDOW), "blocks": (0, MAX_BLOCKS)},
    **{"block_every": (1, MAX_STEPS), "rows": (0, MAX_STEPS)},
}


@dataclass(frozen=True, slots=True)
class SPSAState:
    """Where a run stands: scalars only, ready for JSON.

    Args:
        step: updates done so far.
        silent: how many of them learned nothing, because the scores did not differ: with SPSA, because every direction
            had the same score on both sides; or because a member had none.
        unscored: how many of these had a member without a score.
        past: with momentum, the coefficients of the steps that the next one looks back on, the newest first.
        squares: with `normalize="running"`, a decaying sum of squared slopes, and that of their number.
    """

    step: int = 0
    silent: int = 0
    past: tuple[tuple[float, ...], ...] = ()
    unscored: int = 0
    squares: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "past", tuple(map(tuple, self.past)))  # JSON has lists
        object.__setattr__(self, "squares", tuple(self.squares))


@dataclass(frozen=True, slots=True)
class Method(ABC):
    """A method: `ask` names the members whose scores it needs, `tell` turns the scores into an update of the weights.

        θ ← θ + lr · (mean_k w_k z_k − weight_decay · θ − anchor · (θ − θ_base))

    with weights w_K of the scores, by which the methods differ. Neither call sees a weight of the model, and the state
    is a few numbers, so a run is resumed from its journal (`state_after`).

    Args:
        eps: ε, from 1e-12 to 1e6, how far members stand from θ; rounded to float32, as the members' coefficients are.
        lr: learning rate ≥ 0.
        num_directions: K ≥ 1 directions a step, averaged.
        weight_decay: ≥ 0; spares tensors with fewer than two dimensions.
        seed: of the run; each step's directions derive from it and the step's number.
        rank: 0 for dense directions; r > 0 for a·bᵀ/√r, which move matrices only.
        floor: a spread of scores below which a method that divides by it takes it for noise, and makes a smaller step.
            The default is ten times what float32 log-probabilities of the same rows differ by in other batches.
        rows: of a step, of which it is half a row at least where scores are counts of rows: accuracy moves by 1/rows,
            whatever the weights moved by, so one row that turned would make a full step. 0: not known.
        refresh: steps that share the factors b of their directions, or their subspace, ≥ 1; for directions of a rank.
        more_every: steps after which each step has one direction more; 0: never.
        momentum: β, 0 ≤ β < 1. The step is then along the mean of the directions of the last `window` steps, weighted
            by β^i, i steps ago, instead of along those of this step alone. Takes no memory, but the update draws
            `window` times as many directions.
        window: steps ≥ 2 that momentum looks back on, this one among them.
        anchor: ≥ 0, decay towards θ_base, the weights before step 1, of which a copy is kept (L2-SP; Li et al. 2018,
            arXiv 1802.01483).
        subspace: directions of a rank are then √(mn)/s · U Z Vᵀ, s = min(m, n, rank): U (m, s) and V (n, s) have
            orthonormal columns and last for `refresh` steps, Z (s, s) is drawn for each direction (SubZero; Yu, Zhou,
            Wang, Li, Tian, Huang 2024, arXiv 2410.08989). Kept beside the weights are r·(m + n) float32 numbers of each
            matrix.
        blocks: into how many blocks the weights are cut, of which each step moves one, in turn; 0: all at once. Which
            weights are in which is the model's affair: see `zoreward.members.in_blocks`.
        block_every: steps ≥ 1 of a block before it is another's turn.
        distribution: of the entries of z, or of its factors a and b: `normal`, 33 levels, `gaussian`, or `rademacher`,
            ±1; see `zoreward.noise`.
        noise: the family of the directions, by its name; "": low-rank where there is a rank, else dense.

    Raises:
        ValueError: a value is out of its range.
    """

    eps: float = 1e-3
    lr: float = 1e-6
    num_directions: int = 1
    weight_decay: float = 0.0
    seed: int = 0
    rank: int = 0
    _: KW_ONLY
    floor: float = 1e-4
    rows: int = 0
    refresh: int = 1
    more_every: int = 0
    momentum: float = 0.0
    window: int = 10
    anchor: float = 0.0
    subspace: bool = False
    blocks: int = 0
    block_every: int = 1
    distribution: Distribution = "normal"
    noise: str = ""

    def __post_init__(self) -> None:
        if not LEAST_EPS <= self.eps <= MOST_EPS:  # NaN neither
            raise ValueError(f"eps must lie between {LEAST_EPS:g} and {MOST_EPS:g}, not {self.eps}")
        if not (self.floor > 0 and math.isfinite(self.floor)):
            raise ValueError(f"floor must be positive, not {self.floor}")
        for name, (least, most) in BOUNDS.items():
            if not least <= getattr(self, name) <= most:
                told = f"at least {least}" if getattr(self, name) < least else f"at most {most:,}"
                raise ValueError(f"{name} must be {told}, not {getattr(self, name)}")
        for name in ("lr", "weight_decay", "anchor"):
            if not 0 <= getattr(self, name) <= MOST_RATE:
                raise ValueError(f"{name} must lie between 0 and {MOST_RATE:g}, not {getattr(self, name)}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be at least 0 and less than 1, not {self.momentum}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must lie between 0 and 2^64 - 1, not {self.seed}")
        _ = self.family
        if self.blocks == 1 or (self.block_every > 1 and not self.blocks):
            raise ValueError("blocks must be at least 2, for block_every to say how long each is tuned; or 0, for none")
        self._check()

    @abstractmethod
    def _check(self) -> None:
        """Check what the method adds, and what it does not take."""

    @property
    def family(self) -> Family:
        """The family of its directions."""
        return family_of(
            self.noise, rank=self.rank, subspace=self.subspace, distribution=self.distribution, refresh=self.refresh
        )

    @property
    def directions(self) -> Directions:
        """What the directions of its steps derive from."""
        window, full_every = self.window if self.momentum else 1, getattr(self, "full_every", 0)  # svrg has the latter
        return Directions(
            self.seed, self.num_directions, self.family, self.refresh, self.more_every, self.momentum, window,
            full_every, self.blocks, self.block_every,
        )  # fmt: skip

    def for_header(self, name: str) -> dict[str, Any]:
        """Return what the header of a journal says of it: its name, and its options.

        >>> from zoreward.methods import SPSA
        >>> {"name", "eps", "rank"} <= SPSA().for_header("spsa").keys()
        True
        """
        fields = {"name": name, **asdict(self)}
        for younger in ("noise", "rows_per_direction"):  # than headers, in which they stand if they say something
            if not fields.get(younger, True):
                del fields[younger]
        return fields

    def init(self) -> SPSAState:
        """Return the state before the first step."""
        return SPSAState()

    def ask(self, state: SPSAState) -> Query:
        """Return the members whose scores this step needs."""
        return Query(state.step, self.members(self.directions.fresh(state.step)))

    def tell(
        self, state: SPSAState, query: Query, scores: Sequence[float], *, lr: float | None = None
    ) -> tuple[Update, SPSAState]:
        """Return the update that the scores call for, and the next state.

        Args:
            state: the state that `query` was asked with.
            query: the answer of `ask`.
            scores: scores_M, higher is better; NaN for a member that has none. Then all directions weigh 0, as they do
                where the scores do not differ: members are compared on the same rows, or not at all.
            lr: this step's learning rate, where a schedule changes it.

        Raises:
            ValueError: wrong number of scores, an infinite score, or a query of another step.
        """
        check_scores(state, query, scores)
        directions, rate = self.directions, self.lr if lr is None else lr
        scored = self.is_scored(scores)
        weights = self.weights(scores) if scored else [0.0] * directions.drawn(state.step)
        weights, squares = self.scaled(weights, state) if scored else (weights, state.squares)
        share = rate * self._newest_share()
        count = len(known(weights))
        coefficients = [share * weight / count if abs(weight) > 0 else None for weight in weights]
        fresh = directions.own(state.step, coefficients)
        terms = fresh + directions.older(state.step, state.past)
        rounding_seed = directions.rounding_seed(state.step)
        block = directions.block(state.step)
        update = Update(rate * self.weight_decay, terms, rounding_seed, rate * self.anchor, block=block)
        past = (rounded(coefficients), *state.past)[: directions.window - 1]
        silent, unscored = state.silent + (not fresh), state.unscored + (not scored)
        return update, SPSAState(state.step + 1, silent, past, unscored, squares)

    def gone_back(self, now: SPSAState, then: SPSAState) -> SPSAState:
        """Return the state of a run whose weights are again those of an earlier state.

        What was learned since is forgotten. The number of the next step stays, so that its directions are new; momentum
        begins anew, as it looks back on steps of adjacent numbers; and silent steps are counted on.

        Args:
            now: where the run stands.
            then: where it stood.
        """
        return replace(then, step=now.step, silent=now.silent, unscored=now.unscored, past=())

    @abstractmethod
    def members(self, directions: Sequence[Term]) -> tuple[Member, ...]:
        """Return the members that stand along directions z_K, each given as a term."""

    @abstractmethod
    def weights(self, scores: Sequence[float]) -> list[float]:
        """Return w_K of the scores of `members`: 0 where they do not differ, NaN where z has no part in the mean."""

    def is_scored(self, scores: Sequence[float]) -> bool:
        """Return whether there is something to learn from: by default, whether all members have a score."""
        return all_scored(scores)

    def scaled(self, weights: list[float], state: SPSAState) -> tuple[list[float], tuple[float, float]]:
        """Return w_K by what earlier steps were like, and `SPSAState.squares` after this one; here, as they are."""
        return weights, state.squares

    def least_spread(self, scores: Sequence[float]) -> float:
        """Return what a spread of these scores is divided by at least.

        >>> from zoreward.methods import SPSA
        >>> SPSA(rows=16).least_spread([0.5, 0.5625]), SPSA(rows=16).least_spread([0.5, 0.51])
        (0.03125, 0.0001)
        """
        counts = self.rows and are_counts(scores, self.rows)
        return max(self.floor, 0.5 / self.rows) if counts else self.floor

    def _newest_share(self) -> float:
        """The newest step's share of a step with momentum: 1 / (1 + β + … + β^(window − 1))."""
        total, scale = 0.0, 1.0
        for _ in range(self.window if self.momentum else 1):
            total, scale = total + scale, scale * self.momentum
        return 1 / total


def are_counts(scores: Sequence[float], rows: int) -> bool:
    """Whether scores are means over so many rows of whole numbers, as accuracy is: nothing lies between two of them.

    >>> are_counts([0.25, 0.5], rows=4), are_counts([0.25, 0.3], rows=4)
    (True, False)
    """
    return all(abs(score * rows - round(score * rows)) < 1e-6 for score in scores)


def antithetic_pairs(directions: Sequence[Term], eps: float, start: Member = ()) -> tuple[Member, ...]:
    """Return the antithetic pairs along directions: start + εz_0, start − εz_0, start + εz_1, …

    >>> [member[0].coefficient for member in antithetic_pairs([Term(7, 1.0)], 0.5)]
    [0.5, -0.5]
    """
    return tuple((*start, along(z, sign * eps)) for z in directions for sign in (1, -1))


def rounded(coefficients: Iterable[float | None]) -> tuple[float, ...]:
    """Return coefficients as terms have them, in float32; 0 for None.

    >>> rounded([0.5, None])
    (0.5, 0.0)
    """
    return tuple(0.0 if value is None else Term(0, value).coefficient for value in coefficients)


def check_scores(state: SPSAState, query: Query, scores: Sequence[float]) -> None:
    """Check what a method is told.

    Raises:
        ValueError: wrong number of scores, an infinite score, or a query of another step.
    """
    if query.step != state.step:
        raise ValueError(f"the query belongs to step {query.step}, the state to step {state.step}")
    if len(scores) != len(query.members):
        raise ValueError(f"{len(query.members)} members need as many scores, not {len(scores)}")
    if any(map(math.isinf, scores)):
        raise ValueError(f"scores must be finite, or NaN where there is none, got {list(scores)}")


def all_scored(scores: Sequence[float]) -> bool:
    """Return whether all members have a score, so that they can be compared.

    >>> all_scored([0.5, 0.0]), all_scored([0.5, float("nan")])
    (True, False)
    """
    return not any(map(math.isnan, scores))


def known(values: Sequence[float]) -> list[float]:
    """Return the values that are a number.

    >>> known([0.5, float("nan")])
    [0.5]
    """
    return [value for value in values if not math.isnan(value)]


def state_after(method: Method, records: Iterable[StepRecord], rewinds: Sequence[Rewind] = ()) -> SPSAState:
    """Return where a run stands after the steps of its journal: every state is made again from the scores.

    Args:
        method: the method of the run.
        records: all its steps, from step 0 on.
        rewinds: where it went back.

    Raises:
        InputError: an update does not follow from its scores, so they are another method's, or were changed.

    Example:
        >>> state_after(SPSA(seed=3), load_run("runs/sst2").records())  # doctest: +SKIP
    """
    back = {rewind.step: rewind.to for rewind in rewinds}
    ends, before = set(back.values()), dict[int, SPSAState]()  # where rewinds lead to, and the states there

    def settled(state: SPSAState) -> SPSAState:
        if state.step in back:
            state = method.gone_back(state, before[back[state.step]])
        if state.step in ends:
            before[state.step] = state
        return state

    state = settled(method.init())
    for record in records:
        query = method.ask(state)
        if len(record.scores) != len(query.members):
            raise InputError(
                f"step {record.step} has {len(record.scores)} scores, not {len(query.members)}",
                hint="Take the options that the run began with.",
            )
        update, state = method.tell(state, query, record.scores, lr=record.lr)
        if update != record.update:
            raise InputError(
                f"step {record.step} does not follow from its scores", hint="Take the options that the run began with."
            )
        state = settled(state)
    return state
