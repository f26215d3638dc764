"""ε and the learning rate where nobody gives them: how far a random move may go, and steps that together go so far."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoreward.methods import Method
from zoreward.noise import derive_seed
from zoreward.records import Example, Member, Request, Term
from zoreward.scoring import Engine, Generation, candidate_logprobs

# How much the answers change at the radius, in nats. That of choices was measured on SST-2 with imdb-lm-12m (float32)
# and SmolLM2-135M-Instruct (bfloat16): full weights, low-rank directions and LoRA, cross-entropy and accuracy. That of
# texts is what the rates that were found by hand on SmolLM2 come to.
ANSWER_NATS = 0.01
TEXT_NATS = 0.2
# By how many radii the steps of a run move the weights together, if their signs were drawn: 1 to 2 were the best of
# 0.5, 1, 2 and 4 in all of those settings, and 4 was always too much.
RADII = 1.5
# Root mean square of what multiplies z, by how scores are normalised. Of `zscore` and `rank` that of unrelated scores.
WEIGHT_RMS = {"zscore": math.sqrt(0.5), "rank": math.sqrt(1 / 24)}

# What is looked at: so many directions, on so many rows of choices, or behind so many prompts with texts of so many
# tokens. Of 300 steps of 64 rows that is some 2 % of the forward passes.
DIRECTIONS, ROWS, TEXTS, TOKENS = 8, 64, 16, 64
MOST_LOOKS = 8
# Keeps the seeds of these directions apart from those of steps, rounding, adapters and heads.
RADIUS_INDEX = 2**64 - 5


@dataclass(frozen=True, slots=True)
class Found:
    """What was found in place of options that nobody gave.

    Args:
        radius: r, how far weights move along a random direction until the answers change by `nats`.
        eps: ε.
        learning_rate: of the run.
        nats: δ, the change at the radius: the KL divergence of a choice, or what a token of a text loses of its
            log-probability.
        looks: (ε, change) of each look.
        sure: whether the last look is near the radius; else the answers did not change, or not more with a larger ε.
    """

    radius: float
    eps: float
    learning_rate: float
    nats: float
    looks: tuple[tuple[float, float], ...]
    sure: bool

    def __str__(self) -> str:
        what = "a token of a text" if self.nats == TEXT_NATS else "a choice"
        if not self.sure:
            changes = ", ".join(f"{change:.2g} at {eps:.2g}" for eps, change in self.looks)
            return (
                f"eps {self.eps:g} and learning rate {self.learning_rate:g} are guesses: {what} changes by {changes} "
                "(nats), and no distance by as much as it should. Better give --eps and --lr."
            )
        return (
            f"found: eps {self.eps:g}, learning rate {self.learning_rate:g} (where weights move at random by "
            f"{self.radius:.2g}, {what} changes by {self.nats:g} nats)"
        )


def found_rate(
    engine: Engine,
    method: Method,
    examples: Sequence[Example],
    needs: str,
    *,
    steps: int,
    generation: Generation | None = None,
) -> Found:
    """Return ε and the learning rate of a run from how far its weights may move at random.

        r:   E_z,row change(θ, θ + r z) = δ          (δ = 0.01 nats of a choice, 0.2 nats a token of a text)
        ε  = r
        lr = 1.5 · r · √(K B / T) / rms(w)

    With signs that mean nothing, T steps of K directions and B blocks would take the weights 1.5 r away: what they
    learn comes on top, what they break is bounded. Looks at ε z are repeated nearer to r until they agree within 2.

    Args:
        engine: the model, which stands at the weights that the run begins with.
        method: of the run: its directions are looked along, with seeds of their own, and its ε is the first distance.
        examples: the rows to tune on; the first ones are looked at.
        needs: what the objective needs: `choices` or `completions`.
        steps: T.
        generation: how texts are written; for `completions`.

    Raises:
        ObjectiveError: the model's outputs are not finite.
    """
    if needs == "completions":
        assert generation is not None
        change, nats = _change_of_texts(engine, examples[:TEXTS], generation), TEXT_NATS
    else:
        change, nats = _change_of_choices(engine, examples[:ROWS]), ANSWER_NATS
    terms = _directions_of(method)
    eps, looks, sure = method.eps, list[tuple[float, float]](), False
    while not sure and len(looks) < MOST_LOOKS:
        moved = change([(replace(z, coefficient=eps),) for z in terms])
        looks.append((eps, moved))
        radius = eps * min(max(math.sqrt(nats / moved), 1 / 30), 30.0) if moved > 0 else 3 * eps
        sure = 0.5 <= radius / eps <= 2
        eps = radius
    radius = _rounded(radius if sure else method.eps)
    rate = RADII * radius * math.sqrt(method.num_directions * max(1, method.blocks) / steps)
    rate /= WEIGHT_RMS.get(getattr(method, "normalize", ""), 1.0)
    return Found(radius, radius, _rounded(rate), nats, tuple(looks), sure)


def _rounded(value: float) -> float:
    """To three digits: what is printed is what is used.

    >>> _rounded(0.00074242)
    0.000742
    """
    return float(f"{value:.3g}")


def _directions_of(method: Method) -> tuple[Term, ...]:
    """Directions as the method's, of another seed; along all blocks at once."""
    own = replace(
        method, seed=derive_seed(method.seed, 0, RADIUS_INDEX), num_directions=DIRECTIONS, blocks=0, block_every=1
    )
    return own.directions.fresh(0)


def _change_of_choices(engine: Engine, examples: Sequence[Example]) -> Any:
    """What members change of the answers to these rows: KL(θ, member), the move that all rows share aside.

    All rows' logits of an answer move together by far more than apart (65 to 45 on SmolLM2). That is the prior of the
    answers, which a few steps put right, and no harm is done by moving it.
    """
    before_NC = _distribution(candidate_logprobs(engine, examples)[0])

    def change(members: Sequence[Member]) -> float:
        moved_MNC = candidate_logprobs(engine, examples, members)
        with np.errstate(invalid="ignore"):  # rows with fewer candidates have −inf on both sides
            shift_MNC = moved_MNC - before_NC
        shift_MNC = np.where(np.isfinite(before_NC), shift_MNC, np.nan)
        apart_MNC = _distribution(before_NC + shift_MNC - np.nanmean(shift_MNC, axis=1, keepdims=True))
        there_NC = np.isfinite(before_NC)
        terms_MNC = np.where(there_NC, np.exp(before_NC) * (before_NC - np.where(there_NC, apart_MNC, 0.0)), 0.0)
        return float(terms_MNC.sum(-1).mean())

    return change


def _distribution(logprobs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log-probabilities of candidates that sum up to 1 in each row; −inf and NaN, where there is none, stay out."""
    filled = np.where(np.isnan(logprobs), -np.inf, logprobs)
    return filled - np.logaddexp.reduce(filled, axis=-1, keepdims=True)


def _change_of_texts(engine: Engine, examples: Sequence[Example], generation: Generation) -> Any:
    """What members take from the log-probability of each token that the model itself writes, greedily."""
    greedy: dict[str, Any] = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": None, "repetition_penalty": 1.0}
    short = replace(generation, **greedy, max_new_tokens=min(TOKENS, generation.max_new_tokens))
    prompts = [Request(example.prompt_tokens, ()) for example in examples]
    [[texts]] = list(engine.generate([((), prompts)], short))
    requests = [Request(prompt.prompt, text.tokens) for prompt, text in zip(prompts, texts, strict=True) if text.tokens]
    lengths = np.array([len(request.target) for request in requests])
    [before_R] = engine.logprobs([((), requests)])

    def change(members: Sequence[Member]) -> float:
        moved_MR = np.stack(engine.logprobs([(member, requests) for member in members]))
        return float(((before_R - moved_MR) / lengths).mean())

    return change
