"""ε and the learning rate where nobody gives them: how far a random move may go, and steps that together go so far."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoreward.methods import Method
from zoreward.noise import SeedIndex, derive_seed
from zoreward.records import Example, Member, ObjectiveError, Query, Request, Term
from zoreward.registry import Objective
from zoreward.scoring import Engine, Generation, candidate_logprobs, have_same_answers, prompts_of, token_counts

# How much the answers change at the radius, in nats. That of choices was measured on SST-2 with imdb-lm-12m (float32)
# and SmolLM2-135M-Instruct (bfloat16): full weights, low-rank directions and LoRA, cross-entropy and accuracy. That of
# texts is what the rates that were found by hand on SmolLM2 come to.
ANSWER_NATS = 0.01
TEXT_NATS = 0.2
# By how many radii the steps of a run move the weights together, if their signs were drawn: 1 or 2 was the best of 0.5,
# 1, 2 and 4 in all of those settings, and 4 was the worst.
RADII = 1.5

# Such steps take up a share of a bound of the KL, where there is one: 1/(1 + T/75). The rest is for what the run
# learns, which for the same walk grows with T. With it runs of 75 steps (share ½) had 0.084 of 0.1 nats at their end,
# of 300 (share 0.2) met the bound after 210, 260 and 290: preferences, a head as the reward, LoRA (docs/results.md).
AS_MUCH_LEARNED = 75

# Of answers that are given as texts the steps lead so many radii away, and of a bound take up such a share: a tenth of
# 0.05 nats a token. What is learned of pairs moves the model more than that walk, along LoRA's weights by far. Which
# share of pairs gains hardly depends on the way: what is learned and what is broken both grow with it.
GIVEN_NATS, GIVEN_RADII, GIVEN_NOISE_SHARE = 0.0125, 0.6, 0.1

# A rate that was given is doubted where it is so many times more or less than one by the usual radius: those that were
# found lie within a factor of 2 of it.
FAR = 30

# A step of so many seconds is spoken of before the first one.
LONG_STEP = 20.0

# What is looked at: so many directions, on so many rows of choices, or behind so many prompts with texts of so many
# tokens. Of 300 steps of 64 rows that is some 2 % of the forward passes.
DIRECTIONS, ROWS, TEXTS, TOKENS = 8, 64, 16, 64
MOST_LOOKS = 10
# By how much a look may lie farther out than the one before, and the last than the first: beyond it half precision
# overflows before answers move. Below the least change there is only the noise of float64.
MOST_GROWTH, MOST_DISTANCE, LEAST_CHANGE = 30.0, 100.0, 1e-12

Change = Callable[[Sequence[Member]], float]


@dataclass(frozen=True, slots=True)
class Found:
    """What was found in place of options that nobody gave.

    Args:
        radius: r: weights that each move by r times a standard normal number change the answers by `nats`.
        eps: ε of the run: r, or what was given; or more, where the dtype of the weights would hide r.
        learning_rate: of the run.
        nats: δ, the change at the radius: the KL divergence of a choice, that of a token of an answer, or what a token
            of a text loses of its log-probability.
        looks: (ε, change) of each look; the change is infinite where outputs were not finite.
        converged: whether the last look was near the radius; else ε and the rate are guesses.
        rows: that members read, or wrote behind, in all looks.
    """

    radius: float
    eps: float
    learning_rate: float
    nats: float
    looks: tuple[tuple[float, float], ...]
    converged: bool
    rows: int

    def __str__(self) -> str:
        what = {TEXT_NATS: "a token of a text", GIVEN_NATS: "a token of an answer"}.get(self.nats, "a choice")
        if not self.converged:
            changes = ", ".join(f"{change:.2g} at {eps:.2g}" for eps, change in self.looks)
            return (
                f"learning rate {self.learning_rate:g} and eps {self.eps:g} are guesses: {what} should change by "
                f"{self.nats:g} nats, and rows differ in their change by {changes}. Better give --eps and --lr."
            )
        return (
            f"found: learning rate {self.learning_rate:g}, eps {self.eps:g} (where each weight moves by "
            f"{self.radius:.2g} times a normal number, {what} changes by {self.nats:g} nats)"
        )


def found_rate(
    engine: Engine,
    method: Method,
    objective: Objective,
    examples: Sequence[Example],
    *,
    steps_after: Callable[[int], int],
    first: float,
    generation: Generation,
    max_kl: float | None = None,
) -> Found:
    """Return ε and the learning rate of a run from how far its weights may move at random.

        r:   E_z,row change(θ, θ + r z) = δ          (δ = 0.01 nats of a choice, 0.2 nats a token of a text)
        ε  = r
        lr = 1.5 · r · √(K B / T) / rms(w)

    Of answers that are given as texts (preferences, log-likelihoods) δ is 0.0125 nats a token, and 0.6 stands for 1.5;
    of fewer than 64 rows, N, which say less of other texts than of their own, 0.6 √(N/64).

    With signs that mean nothing, T steps of one rate, K directions and B blocks would take the weights 1.5 r away: what
    they learn comes on top, what they break is bounded. Where the KL is bounded, they would take up a share s of the
    bound at most, 1/(1 + T/75) of texts and a tenth of given answers: min(1.5, √(s · max_kl / δ)), or 0.6 for 1.5,
    stands in the place of 1.5. rms(w) is 1 by every way of normalising but that of ranks.
    Looks at ε z are repeated nearer to r until they agree within a factor of 2.

    Args:
        engine: the model, which stands at the weights that the run begins with.
        method: of the run: its directions are looked along, with seeds of their own.
        objective: what is tuned on: its answers are looked at.
        examples: the rows to tune on; the first ones are looked at.
        steps_after: gives T, when so many rows were read to find r: of a budget they are a part.
        first: the distance of the first look.
        generation: how texts are written, for an objective of texts.
        max_kl: the KL a token at which the run ends, or None.
    """
    writes = objective.needs == "completions"
    reads_base = 2 if writes else 1  # after it has written
    examples, terms = examples[: TEXTS if writes else ROWS], _directions_of(method)
    rows, radii, given = len(examples), RADII, False
    steps_after(rows * (len(terms) + reads_base))  # a budget that does not pay for one look is refused before it
    if writes:
        change, nats = _change_of_texts(engine, examples, generation), TEXT_NATS
    elif are_texts(objective, examples):
        change, nats = _change_of_answers(engine, examples), GIVEN_NATS
        radii, given = GIVEN_RADII, True
    else:
        change, nats = _change_of_choices(engine, examples), ANSWER_NATS

    def moved_at(distance: float) -> float:
        try:
            moved = change([(replace(z, coefficient=distance),) for z in terms])
        except ObjectiveError:  # outputs that are not finite
            return math.inf
        return math.inf if math.isnan(moved) else moved if moved > LEAST_CHANGE else 0.0

    radius, looks, converged = _radius(moved_at, nats, first)
    rows *= len(looks) * len(terms) + reads_base
    steps = steps_after(rows)
    if max_kl is not None and nats != ANSWER_NATS:
        share = GIVEN_NOISE_SHARE if given else 1 / (1 + steps / AS_MUCH_LEARNED)
        radii = min(radii, math.sqrt(share * max_kl / nats))
    if given:
        radii *= math.sqrt(min(1.0, len(examples) / ROWS))
    rate = _rounded(rate_of(radii * radius, method, steps))
    return Found(radius, radius, rate, nats, looks, converged, rows)


def are_texts(objective: Objective, examples: Sequence[Example]) -> bool:
    """Return whether answers that are given count as texts of many tokens, each row's its own, not as a choice."""
    margins = objective.compares_with_base and not have_same_answers(examples)
    return objective.needs == "likelihood" or (objective.needs == "choices" and margins)


def rate_of(distance: float, method: Method, steps: int) -> float:
    """Return the rate at which steps whose signs are drawn lead so far; for slopes that are divided by their size."""
    return distance * math.sqrt(method.num_directions * max(1, method.blocks) / steps) / _weight_rms(method)


def doubt_of_rate(rate: float, method: Method, steps: int, first: float) -> str:
    """Return a sentence where a rate that was given is far from what would be found, by what was found elsewhere.

    Args:
        rate: it.
        method: of the run, whose slopes are divided by their size.
        steps: of the run.
        first: the radius that runs of this kind have, more or less.

    >>> from zoreward.methods import SPSA
    >>> doubt_of_rate(1e-5, SPSA(1e-2, 1e-5, 16, normalize="rms"), 300, 1e-2)
    'learning rate 1e-05 is some 300 times less than such runs take: about 0.0035. Left out, it is found before step 1.'
    >>> doubt_of_rate(1e-3, SPSA(1e-2, 1e-3, 16, normalize="rms"), 300, 1e-2)
    ''
    """
    usual = rate_of(RADII * first, method, steps)
    if rate <= 0 or 1 / FAR <= rate / usual <= FAR:
        return ""
    times, how = (usual / rate, "less") if rate < usual else (rate / usual, "more")
    return (
        f"learning rate {rate:g} is some {float(f'{times:.1g}'):,.0f} times {how} than such runs take: about "
        f"{usual:.2g}. Left out, it is found before step 1."
    )


def told_of_pace(seconds_a_row: float, query: Query, rows: int, steps: int) -> str:
    """Return a sentence about how long steps will take, where one is long and less could be asked for.

    Args:
        seconds_a_row: what a member took to read a row, when the rate was looked for.
        query: of a step.
        rows: of a step.
        steps: of the run.

    >>> query = Query(0, tuple((Term(n, 0.1),) for n in range(128)))
    >>> told_of_pace(0.05, query, 16, 100).partition(".")[0]
    'A step will take about 0:01:42 here, as 128 members read 16 rows, and 100 steps 2:50:40'
    >>> told_of_pace(0.001, query, 16, 100)
    ''
    """
    step = seconds_a_row * query.reads * rows
    if step < LONG_STEP:
        return ""
    long, whole = (timedelta(seconds=round(one)) for one in (step, step * steps))
    return (
        f"A step will take about {long} here, as {len(query.members)} members read {rows} rows, and {steps:,} steps "
        f"{whole}. Fewer --num-directions (half as many members) or a smaller --batch-size make it shorter."
    )


def _radius(
    moved_at: Callable[[float], float], nats: float, first: float
) -> tuple[float, tuple[tuple[float, float], ...], bool]:
    """Return the distance at which so much changes, (distance, change) of all looks, and whether the last one was near.

    >>> _radius(lambda distance: distance**2, 0.01, first=5.0)
    (0.1, ((5.0, 25.0), (0.16666666666666666, 0.027777777777777776)), True)
    >>> _radius(lambda distance: 0.0, 0.01, first=0.01)[::2]
    (0.01, False)
    """
    below, above, distance = 0.0, math.inf, first  # where too little and too much changes
    looks: list[tuple[float, float]] = []
    while len(looks) < MOST_LOOKS and distance <= MOST_DISTANCE * first:
        moved = moved_at(distance)
        looks.append((distance, moved))
        times = math.inf if moved == 0 else math.sqrt(nats / moved)
        if 0.5 <= times <= 2:
            return _rounded(distance * times), tuple(looks), True
        below, above = (max(below, distance), above) if times > 1 else (below, min(above, distance))
        distance *= min(max(times, 1 / MOST_GROWTH), MOST_GROWTH)
        if below > 0 and above < math.inf and not below < distance < above:
            distance = math.sqrt(below * above)
    return _rounded(below if below > 0 and above < math.inf else first), tuple(looks), False


def _weight_rms(method: Method) -> float:
    """The root mean square of what multiplies z, where scores differ by their slopes.

    Ranks of M scores lie evenly between −½ and ½.
    """
    members = 2 * method.num_directions
    return math.sqrt((members + 1) / (12 * (members - 1))) if getattr(method, "normalize", "") == "rank" else 1.0


def _rounded(value: float) -> float:
    """To three digits: what is printed is what is used.

    >>> _rounded(0.00074242)
    0.000742
    """
    return float(f"{value:.3g}")


def _directions_of(method: Method) -> tuple[Term, ...]:
    """Directions as the method's, of another seed; along all blocks at once."""
    own = replace(
        method, seed=derive_seed(method.seed, 0, SeedIndex.RADIUS), num_directions=DIRECTIONS, blocks=0, block_every=1
    )
    return own.directions.fresh(0)


def _change_of_choices(engine: Engine, examples: Sequence[Example]) -> Change:
    """What members change of the answers to these rows, in nats: KL(θ, member), the move that all rows share aside.

    Where all rows have the same answers, their logits move together by more than apart: on SmolLM2 the margin between
    two answers by 65 times the distance, and each row's beside that by 45 times. The former is the prior of the
    answers, which a few steps put right, and no harm is done by moving it.
    """
    before_NC = _distribution(candidate_logprobs(engine, examples)[0])
    there_NC, alike = np.isfinite(before_NC), have_same_answers(examples)

    def change(members: Sequence[Member]) -> float:
        moved_MNC = _distribution(candidate_logprobs(engine, examples, members))
        if alike:
            moved_MNC = _distribution(moved_MNC - (moved_MNC - before_NC).mean(1, keepdims=True))
        with np.errstate(invalid="ignore"):  # a row with fewer answers has −inf on both sides
            gained_MNC = np.where(there_NC, np.exp(before_NC) * (before_NC - moved_MNC), 0.0)
        return float(gained_MNC.sum(-1).mean())

    return change


def _change_of_answers(engine: Engine, examples: Sequence[Example]) -> Change:
    """What members change of a token of answers that are given, in nats, with Δ_c = log π_member/π_θ of answer c.

        change = E_row  h² / 2T,   h = Δ_1 − Δ_2,   T tokens of both answers              of one answer  Δ² / 2T

    Of texts that the model could have written, Δ of a small move is a sum of T unrelated parts, of which each has a
    mean square of twice a token's KL. The difference leaves out what a move does to all answers behind a prompt.
    """
    counts_NC = token_counts(examples)
    [before_NC] = candidate_logprobs(engine, examples)
    there_NC = np.isfinite(before_NC)
    tokens_N, answers_N = np.where(there_NC, counts_NC, 0).sum(1), there_NC.sum(1)
    one_N = answers_N == 1
    parts_N = np.where(one_N, 1.0, 1 - 1 / answers_N)  # of squares that are left about their mean

    def change(members: Sequence[Member]) -> float:
        moved_MNC = candidate_logprobs(engine, examples, members)
        with np.errstate(invalid="ignore"):
            ratios_MNC = np.where(there_NC, (moved_MNC - before_NC) * counts_NC, 0.0)
        mean_MN1 = np.where(one_N, 0.0, ratios_MNC.sum(-1) / answers_N)[..., None]
        squares_MN = np.where(there_NC, (ratios_MNC - mean_MN1) ** 2, 0.0).sum(-1)
        return float((squares_MN / (2 * parts_N * tokens_N)).mean())

    return change


def _distribution(logprobs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log-probabilities of candidates that sum up to 1 in each row; those that a row has not stay at −inf."""
    return logprobs - np.logaddexp.reduce(logprobs, axis=-1, keepdims=True)


def _change_of_texts(engine: Engine, examples: Sequence[Example], generation: Generation) -> Change:
    """What members take from the log-probability of each token that the model itself writes, greedily."""
    greedy: dict[str, Any] = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": None, "repetition_penalty": 1.0}
    short = replace(generation, **greedy, max_new_tokens=min(TOKENS, generation.max_new_tokens))
    prompts = prompts_of(examples)
    [[texts]] = list(engine.generate([((), prompts)], short))
    requests = [Request(prompt.prompt, text.tokens) for prompt, text in zip(prompts, texts, strict=True) if text.tokens]
    if not requests:  # it writes nothing, so nothing can be said of it
        return lambda members: 0.0
    lengths = np.array([len(request.target) for request in requests])
    [before_R] = engine.logprobs([((), requests)])

    def change(members: Sequence[Member]) -> float:
        moved_MR = np.stack(engine.logprobs([(member, requests) for member in members]))
        return float(((before_R - moved_MR) / lengths).mean())

    return change
