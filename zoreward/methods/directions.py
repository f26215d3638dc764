"""Which directions a step moves along: derived from the run's seed and the step's number, so that none is stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from zoreward.noise import DENSE, Family, SeedIndex, derive_seed
from zoreward.records import Term

# The most that a run may have, and that is read from a stranger's file: beyond any use, and within any memory. A line
# of a journal, which has at most 4 MB, has room for fewer directions: one takes some 90 bytes.
MAX_DIRECTIONS = 1 << 16
MAX_WINDOW = 1 << 10
MAX_STEPS = 1 << 40
MAX_BLOCKS = 1 << 16


@dataclass(frozen=True, slots=True)
class Directions:
    """What the directions of a run derive from, and what older steps add to a new one.

    A step t has K_t = count + ⌊t / more_every⌋ directions of its own. Their seeds, and that of the step's rounding, are

        seed of direction k:    derive_seed(seed, t, k)
        rounding seed:          derive_seed(seed, t, 2^64 − 1)

    What a direction shares with others, its family derives from the run's seed: see `Family.at_step`.

    With `full_every` q a step with t mod q > 0 moves along those of step t − t mod q as well, behind its own. With
    `momentum` β its update also has the terms of the window − 1 steps before it, step t − i's times β^i.

    With `blocks` B the directions of step t move one block alone, and terms of older steps theirs. Its turn is
    u = ⌊t / block_every⌋; in every round of B turns each block has one:

        block of turn u:        that with the (u mod B)-th lowest derive_seed(seed, ⌊u / B⌋, 2^63 + block)

    Args:
        seed: of the run.
        count: directions of step 0, ≥ 1.
        family: of the directions.
        refresh: steps that share a part of theirs, ≥ 1.
        more_every: steps after which there is one direction more; 0: never.
        momentum: β, 0 ≤ β < 1.
        window: steps that an update looks back on, itself among them, ≥ 1.
        full_every: steps from one anchor to the next; 0: there are no anchors.
        blocks: into how many blocks the weights are cut; 0: all are moved at once.
        block_every: steps of a block before it is another's turn, ≥ 1.
    """

    seed: int
    count: int
    family: Family = DENSE
    refresh: int = 1
    more_every: int = 0
    momentum: float = 0.0
    window: int = 1
    full_every: int = 0
    blocks: int = 0
    block_every: int = 1

    @property
    def even(self) -> bool:
        """Whether every step has as many directions as the first."""
        return not (self.more_every or self.full_every)

    def anchor(self, step: int) -> int:
        """The last step that was an anchor, which may be this one."""
        return step - step % self.full_every if self.full_every else step

    def drawn(self, step: int) -> int:
        """K_t: how many directions the step draws."""
        return self.count + (step // self.more_every if self.more_every else 0)

    def size(self, step: int) -> int:
        """How many directions the step has: those that it draws, and its anchor's."""
        anchor = self.anchor(step)
        return self.drawn(step) + (self.drawn(anchor) if anchor != step else 0)

    def block(self, step: int) -> int | None:
        """The block whose turn it is; None where there are none.

        >>> sorted(Directions(seed=0, count=1, blocks=3, block_every=2).block(step) for step in range(6, 12))
        [0, 0, 1, 1, 2, 2]
        """
        if not self.blocks:
            return None
        turn = step // self.block_every
        return _order(self.seed, turn // self.blocks, self.blocks)[turn % self.blocks]

    def fresh(self, step: int) -> tuple[Term, ...]:
        """The directions that the step draws, each as a term with the coefficient 1.

        >>> from zoreward.noise import LowRank
        >>> drawn = Directions(seed=0, count=1, family=LowRank(1), refresh=5)
        >>> [first], [third] = drawn.fresh(5), drawn.fresh(7)
        >>> third.family.b_seed == first.seed
        True
        """
        return tuple(self._direction(step, k) for k in range(self.drawn(step)))

    def at(self, step: int) -> tuple[Term, ...]:
        """All directions of a step: those that it draws, then its anchor's."""
        anchor = self.anchor(step)
        return self.fresh(step) + (self.fresh(anchor) if anchor != step else ())

    def own(self, step: int, coefficients: Sequence[float | None]) -> tuple[Term, ...]:
        """The terms along a step's own directions; there is none where the coefficient is None."""
        return tuple(along(z, c) for z, c in zip(self.at(step), coefficients, strict=True) if c is not None)

    def older(self, step: int, past: Sequence[Sequence[float]]) -> tuple[Term, ...]:
        """The terms that momentum adds.

        Args:
            step: the step at hand.
            past: the coefficients of the steps before it, the newest first, 0 where there was no term.
        """
        scale, terms = 1.0, []
        for i, coefficients in enumerate(past, start=1):
            scale *= self.momentum  # not a power, whose last bit depends on the machine
            terms += [along(z, scale * c) for z, c in zip(self.at(step - i), coefficients, strict=True) if c]
        return tuple(terms)

    def rounding_seed(self, step: int) -> int:
        """The seed by which a step's update is rounded."""
        return derive_seed(self.seed, step, SeedIndex.ROUNDING)

    def _direction(self, step: int, k: int) -> Term:
        family = self.family.at_step(self.seed, step, k, self.refresh)
        return Term(derive_seed(self.seed, step, k), 1.0, family, block=self.block(step))


def along(direction: Term, coefficient: float) -> Term:
    """Return another multiple of a term's direction.

    >>> along(Term(7, 1.0), 0.5).coefficient
    0.5
    """
    return replace(direction, coefficient=coefficient)


@lru_cache(maxsize=64)  # momentum and a replay ask for the same rounds again and again
def _order(seed: int, number: int, blocks: int) -> tuple[int, ...]:
    """The blocks in the order of their turns in a round."""
    return tuple(sorted(range(blocks), key=lambda block: derive_seed(seed, number, SeedIndex.BLOCK + block)))
