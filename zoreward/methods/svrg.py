"""MeZO-SVRG: a mini-batch step corrected by what the same mini-batch said at an anchor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from zoreward.methods.directions import MAX_STEPS, along
from zoreward.methods.estimators import slopes
from zoreward.methods.steps import MOST_RATE, Method, SPSAState, all_scored, antithetic_pairs, check_scores, rounded
from zoreward.records import InputError, Member, Query, Term, Update

FALL, DIVISOR = 0.05, 5.0
"""By which share of itself a window's mean score may fall, and what the rates are divided by if it falls further."""


@dataclass(frozen=True, slots=True)
class SVRGState(SPSAState):
    """Where a run stands: scalars only, ready for JSON.

    Args:
        past: the coefficients of the updates since the anchor, the newest first: they lead back to it.
        slopes: g_K of all rows at the anchor.
        annealed: how often the rates were divided.
        total: the sum of the mean scores of the window's steps so far, and `counted`, how many of these have one.
        before: the mean score of the last window that has one; None where there is none yet.
    """

    slopes: tuple[float, ...] = ()
    annealed: int = 0
    total: float = 0.0
    counted: int = 0
    before: float | None = None

    def __post_init__(self) -> None:
        super(
            SVRGState, self
        ).__post_init__()  # a slotted dataclass is another class than the one in which it is written
        object.__setattr__(self, "slopes", tuple(self.slopes))


@dataclass(frozen=True, slots=True)
class SVRG(Method):
    """MeZO-SVRG, maximising a score: variance reduction by an anchor θ̄, q − 1 steps old at most.

    Every q-th step scores all rows, at θ ± ε z_k, and is the anchor; the others score a mini-batch, at θ ± ε z_k and
    at θ̄ ± ε z_k, with the same z_k and on the same rows:

        t mod q = 0:  θ̄ ← θ,  g_k = (s(θ + ε z_k) − s(θ − ε z_k)) / 2ε,  ζ_k = z_k
                      θ ← θ + lr · full_rate · mean_k g_k ζ_k
        else:         θ ← θ + lr · mean_k ((ĝ_k(θ) − ĝ_k(θ̄)) z_k + g_k ζ_k)

    | paper | here |
    |---|---|
    | η₂, η₁ | `lr`, `lr` · `full_rate` |
    | q | `full_every` |
    | κ, α, and the window of the annealing | 1.05, 5, `anneal_every` |

    The paper keeps θ̄ and g as two further copies of the weights. Here g is one term for each direction and θ̄ is θ
    less the updates since: their terms are a few numbers, so a run takes MeZO's memory. In float32 θ̄ is the anchor to
    within the rounding of these sums, in half precision to within that of q − 1 updates. The released code draws two z
    for the two mini-batch estimates, and its anchor moves with the weights; this is the published method.

    A step without a score moves nothing. Where that is one of all rows, the anchor is new and its slopes are 0.

    Annealing: after every `anneal_every` steps, lr is divided by 5 if their mean score is lower than that of the
    `anneal_every` steps before by more than 5 % of its size. (Of losses that is the paper's rule: mean over mean above
    1.05.)

    Args:
        weight_decay: must be 0: the anchor would not be θ and a few terms.
        momentum: must be 0.
        blocks: must be 0: the estimate of all rows would be of another block than those of the batch that correct it.
        full_every: q ≥ 2, steps from one pass over all rows to the next.
        full_rate: ≥ 0, by how much a step of all rows is larger.
        anneal_every: steps of a window; 0: the rates stay. The paper takes an epoch. The other arguments are those of
            `Method`.

    Raises:
        ValueError: a value is out of its range.

    Example:
        >>> svrg = SVRG(eps=0.5, lr=0.1)
        >>> state = svrg.init()
        >>> [svrg.ask(state).rows, svrg.ask(SVRGState(1, past=((0.5,),), slopes=(1.0,))).rows]
        ['all', 'batch']

    Source: Gautam, Park, Zhou, Raman, Ha 2024, "Variance-reduced zeroth-order methods for fine-tuning language models",
    arXiv 2404.08080.
    """

    full_every: int = field(default=2, kw_only=True)
    full_rate: float = field(default=10.0, kw_only=True)
    anneal_every: int = field(default=0, kw_only=True)

    def _check(self) -> None:
        if self.full_every < 2:
            raise ValueError(f"full_every must be at least 2, not {self.full_every}: else every step scores all rows")
        if not 0 <= self.full_rate <= MOST_RATE:
            raise ValueError(f"full_rate must lie between 0 and {MOST_RATE:g}, not {self.full_rate}")
        if self.anneal_every < 0:
            raise ValueError(f"anneal_every must be at least 0, not {self.anneal_every}")
        for option in ("full_every", "anneal_every"):
            if getattr(self, option) > MAX_STEPS:
                raise ValueError(f"{option} must be at most {MAX_STEPS:,}, not {getattr(self, option)}")
        if name := next((name for name in ("weight_decay", "momentum", "anchor") if getattr(self, name)), None):
            raise ValueError(f"svrg takes no {name}: the way back to its anchor is made of this step's terms alone")

        if self.blocks:
            raise InputError(
                "svrg moves all blocks at once: those of its two estimates would be different ones",
                hint="Take method=bcd, or leave blocks and block_every out.",
            )

    def init(self) -> SVRGState:
        """Return the state before the first step."""
        return SVRGState()

    def ask(self, state: SPSAState) -> Query:
        """Return the antithetic pairs around θ, and between anchors those around the anchor, of the same directions."""
        fresh = self.directions.fresh(state.step)
        here = self.members(fresh)
        if state.step % self.full_every == 0:
            return Query(state.step, here, rows="all")
        return Query(state.step, here + antithetic_pairs(fresh, self.eps, self.at_anchor(state)), at_once=len(here))

    def at_anchor(self, state: SPSAState) -> Member:
        """Return the anchor as a member: the updates since, taken back, one term for each direction."""
        sums: dict[Term, float] = {}
        for i, coefficients in enumerate(state.past, start=1):
            for z, coefficient in zip(self.directions.at(state.step - i), coefficients, strict=True):
                sums[z] = sums.get(z, 0.0) - coefficient
        return tuple(along(z, total) for z, total in sums.items() if total != 0)

    def tell(
        self, state: SPSAState, query: Query, scores: Sequence[float], *, lr: float | None = None
    ) -> tuple[Update, SVRGState]:
        """Return the update that the scores call for, and the next state; see `Method.tell`.

        Raises:
            ValueError: wrong number of scores, an infinite score, or a query of another step.
        """
        assert isinstance(state, SVRGState)
        check_scores(state, query, scores)
        if not all_scored(scores):
            return self._unscored(state)
        rate = (self.lr if lr is None else lr) / DIVISOR**state.annealed
        count = 2 * self.directions.drawn(state.step)
        here, there = slopes(scores[:count], self.eps), slopes(scores[count:], self.eps)
        full, past = state.slopes, state.past
        if state.step % self.full_every == 0:
            full, past, weights = tuple(here), (), [self.full_rate * slope for slope in here]
        else:
            weights = [slope - anchored for slope, anchored in zip(here, there, strict=True)]
        parts = [rate * weight / len(here) for weight in weights]
        if there:
            parts += [rate * slope / len(full) for slope in full]
        coefficients = [part if part != 0 else None for part in parts]
        terms = self.directions.own(state.step, coefficients)
        update = Update(0.0, terms, self.directions.rounding_seed(state.step))
        after = replace(state, silent=state.silent + (not terms), past=(rounded(coefficients), *past), slopes=full)
        mean = math.fsum(scores[:count]) / count
        return update, self._next(replace(after, total=state.total + mean, counted=state.counted + 1))

    def gone_back(self, now: SPSAState, then: SPSAState) -> SVRGState:
        """Return the state of a run whose weights are again those of an earlier state; see `Method.gone_back`.

        The weights that it went back to are the anchor, whose slopes are not known, until the next one: steps before
        that move nothing. A window of the annealing begins, and its rates stay as low as they are.
        """
        assert isinstance(now, SVRGState) and isinstance(then, SVRGState)
        directions, anchor = self.directions, self.directions.anchor(now.step)
        past = tuple(rounded([None] * directions.size(step)) for step in reversed(range(anchor, now.step)))
        slopes = (0.0,) * directions.drawn(anchor)
        after = replace(now, squares=then.squares, past=past, slopes=slopes)
        return replace(after, total=0.0, counted=0, before=then.before)

    def members(self, directions: Sequence[Term]) -> tuple[Member, ...]:
        """Return the antithetic pairs around θ."""
        return antithetic_pairs(directions, self.eps)

    def weights(self, scores: Sequence[float]) -> list[float]:
        """Return g_K of the antithetic pairs around θ."""
        return slopes(scores, self.eps)

    def _unscored(self, state: SVRGState) -> tuple[Update, SVRGState]:
        """What follows from a step that has no score: nothing moves."""
        count = self.directions.drawn(state.step)
        after = replace(state, silent=state.silent + 1, unscored=state.unscored + 1)
        if state.step % self.full_every == 0:
            after = replace(after, slopes=(0.0,) * count, past=(rounded([None] * count),))
        else:
            after = replace(after, past=(rounded([None] * (count + len(state.slopes))), *state.past))
        return Update(0.0, (), self.directions.rounding_seed(state.step)), self._next(after)

    def _next(self, state: SVRGState) -> SVRGState:
        """The state of the next step, whose rates are lower where a window's scores fell."""
        step = state.step + 1
        if not self.anneal_every:
            return replace(state, step=step, total=0.0, counted=0)
        if step % self.anneal_every:
            return replace(state, step=step)
        if not state.counted:  # no step of the window has a score: the next is held against the window before it
            return replace(state, step=step, total=0.0)
        mean = state.total / state.counted
        fell = state.before is not None and mean < state.before - FALL * abs(state.before)
        return replace(state, step=step, total=0.0, counted=0, before=mean, annealed=state.annealed + fell)
