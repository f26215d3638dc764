"""How far a run has moved from its base: logged, held back by a penalty, and bounded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn
from transformers.utils import logging

from zoreward.records import Example, InputError, Member, Request, Scored, Writing
from zoreward.scoring import (
    Base,
    Scorer,
    base_of,
    checked_device,
    distinct_2,
    kl_to_base,
    mean_length,
    weights_moved,
)

if TYPE_CHECKING:
    from zoreward.trainer.options import ZOConfig

# Rows that the model writes for when its drift is measured: some thousand tokens.
DRIFT_ROWS = 32

Tokens = tuple[int, ...]


class Drift:
    """What a run needs to say, and to bound, how far it has moved.

    Args:
        base: the model before step 1.
        rows: what the model writes for when it is measured.
        kl: β, what of the KL is taken from each member's score.
        max_kl: the KL at which the run stops; None: never.

    Attributes:
        exceeded: the KL that stopped the run, or None.
    """

    def __init__(self, base: Base, rows: Sequence[Example], kl: float, max_kl: float | None):
        self.base, self._rows, self._kl, self._max_kl = base, list(rows[:DRIFT_ROWS]), kl, max_kl
        self.exceeded: float | None = None

    def penalised(
        self, scorer: Scorer, examples: Sequence[Example], members: Sequence[Member], scored: Sequence[Scored]
    ) -> list[Scored]:
        """Return what members are worth less their penalty: score_m − β · KL_m, KL_m behind what member m wrote.

        Where the answers are given it is the KL behind these. Logged are `unpenalised`, the objective's own score, and
        `member_kl`.
        """
        if not self._kl:
            return list(scored)

        def kls_of(own: Sequence[int]) -> list[float]:
            texts = _texts(examples, [scored[m] for m in own])
            return kl_to_base(scorer.reader, self.base, *texts, [members[m] for m in own])

        kls = scorer.shared_out(members, kls_of)
        return [
            replace(
                one,
                score=one.score - self._kl * kl,
                metrics={**one.metrics, "unpenalised": one.score, "member_kl": kl},
            )
            for one, kl in zip(scored, kls, strict=True)
        ]

    def measured(
        self, scorer: Scorer, *, seed: int, scored: Scored | None = None, of: Sequence[Example] = ()
    ) -> dict[str, float]:
        """Return how far the model has moved.

        `kl`: nats per token behind what the model itself writes for some rows, or wrote as `scored` for the rows `of` ·
        `moved`: ‖θ − θ_base‖ / ‖θ_base‖, where the base keeps weights · `distinct_2` and `length` of these texts,
        where the objective needs none.
        """
        found: dict[str, float] = {}
        if isinstance(scored, Writing):
            prompts, texts = _texts(of, [scored])
        else:
            prompts = [example.prompt_tokens for example in self._rows]
            work = [((), [Request(prompt, ()) for prompt in prompts])]
            [[written]] = scorer.engine.generate(work, replace(scorer.generation, seed=seed))
            texts = [[completion.tokens for completion in written]]
            if scorer.objective.needs != "completions":
                found = {"length": mean_length(texts[0]), "distinct_2": distinct_2(texts[0])}
        [kl] = kl_to_base(scorer.reader, self.base, prompts, texts)
        moved = weights_moved(scorer.reader, self.base)
        return {"kl": kl, **({} if moved is None else {"moved": moved}), **found}

    def exceeds(self, kl: float) -> bool:
        """Whether the run has moved too far; the first time it is also said."""
        if self._max_kl is None or kl <= self._max_kl:
            return False
        if self.exceeded is None:
            self.exceeded = kl
            logging.get_logger(__name__).warning("The KL to the base, %.4g, exceeds %g: stop.", kl, self._max_kl)
        return True


def check_drift(args: ZOConfig) -> None:
    """Refuse options about drift that are out of their range, or of no use.

    Raises:
        InputError: one is.
    """
    if args.kl < 0 or not math.isfinite(args.kl):
        raise InputError(f"kl={args.kl} is out of range", hint="It is 0 or more: how much of the KL a score loses.")
    if args.base_device is not None:
        checked_device(args.base_device)
        if not keeps_base(args):
            hint = "Give drift, kl or max_kl, or leave base_device out."
            raise InputError("base_device is set, and no base is kept", hint=hint)


def drift_of(model: nn.Module, args: ZOConfig, rows: Sequence[Example]) -> Drift | None:
    """Return what measures a run's drift, with a copy of the model as it is; None where nobody asks for it.

    Raises:
        InputError: the copy has no room.
    """
    if not keeps_base(args):
        return None
    base = base_of(model, checked_device(args.base_device) if args.base_device else None)
    if not base.adapter:
        where = next(base.model.parameters()).device
        logging.get_logger(__name__).warning("A copy of the base is kept on %s: %.3g MB.", where, base.bytes / 1e6)
    return Drift(base, rows, args.kl, args.max_kl)


def keeps_base(args: ZOConfig) -> bool:
    """Whether a run is compared with its base."""
    return bool(args.drift or args.kl or args.max_kl is not None)


def _texts(examples: Sequence[Example], scored: Sequence[Scored]) -> tuple[list[Tokens], list[list[Tokens]]]:
    """Prompts, and for each member what stands behind them: what it wrote, or all the answers that are given."""
    if all(isinstance(one, Writing) for one in scored):
        prompts = [example.prompt_tokens for example in examples]
        return prompts, [[text.tokens for text in one.completions] for one in scored if isinstance(one, Writing)]
    pairs = [(example.prompt_tokens, answer) for example in examples for answer in example.candidate_tokens]
    return [prompt for prompt, _ in pairs], [[answer for _, answer in pairs] for _ in scored]
