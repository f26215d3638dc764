"""Which of two models writes better, by a judge: the share of wins, how sure it is, and what it is without length."""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoreward.config import Loading, Prompting, part_of
from zoreward.noise.seeds import derive_seed
from zoreward.records import Completion, Example, Writing
from zoreward.registry import Objective, no_score
from zoreward.scoring.checkpoints import check_needs, head_of, length_limit
from zoreward.scoring.loading import load_model, load_tokenizer
from zoreward.scoring.local import engine_of
from zoreward.scoring.protocol import Generation
from zoreward.scoring.requests import score_writings, written
from zoreward.scoring.scorer import examples_of, running

# Of prompts, for an interval.
DRAWS = 1000

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class WinRate:
    """How often one model's completions beat another's.

    Args:
        win_rate: the mean of what rows have: 1 for a win, 0 for a loss, ½ for a tie, or between.
        interval: in which it lies for 95 % of draws of as many prompts; None with a single prompt.
        length_controlled: what the win rate would be with completions of equal length; None where that cannot be told.
        length_controlled_interval: as `interval`.
        ties: the share of rows that have ½.
        equal: how many rows have two equal completions, which is a tie.
        agreed: of a judge that compares, the share of the other rows for which it says the same in both orders.
        characters: mean length of the model's completions.
        base_characters: of the other's.
        rows: how many were judged.
        unjudged: how many were not: the judge left them out.
        prompts: how many different ones the judged rows have.
        truncated: how many prompts lost tokens on their left to fit the context of either model.
    """

    win_rate: float
    interval: Interval | None
    length_controlled: float | None
    length_controlled_interval: Interval | None
    ties: float
    equal: int
    agreed: float | None
    characters: float
    base_characters: float
    rows: int
    unjudged: int
    prompts: int
    truncated: int


def win_rate(
    model: str,
    against: str,
    rows: Sequence[dict[str, Any]],
    judge: Objective,
    prompting: Prompting,
    generation: Generation,
    loading: Loading,
    device: str | None = None,
) -> WinRate:
    """Let two models write behind the same prompts, and a judge say who wrote better.

    One model is in memory at a time. What is drawn, the two draw independently of each other.

    Args:
        model: a folder or Hub id, of a whole model or an adapter.
        against: another, in the same way; its tokens may be others.
        rows: the dataset, a dict each.
        judge: an objective that says of each row how far `completions` win over `base_completions`, from 0 to 1, such
            as the shipped `win-rate`.
        prompting: how rows become prompts.
        generation: how both write; its seed is also that of the interval.
        loading: how weights are loaded.
        device: where to; by default the GPU if there is one.

    Raises:
        ZorewardError: a model or the prompts cannot be used, or the judge fails or judges nothing.

    Example:
        >>> judge = get_objective("win-rate", judge="reward-model-folder")  # doctest: +SKIP
        >>> win_rate("runs/a/model", "gpt2", rows, judge, Prompting(), Generation(), Loading())  # doctest: +SKIP
        WinRate(win_rate=0.71, interval=(0.65, 0.77), …)
    """
    ready = [_made_ready(name, rows, prompting, generation, loading) for name in (model, against)]
    others = replace(generation, seed=derive_seed(generation.seed, 1, 0))
    texts = []
    for name, made, how in zip((model, against), ready, (generation, others), strict=True):
        texts.append(_written(name, *made, how, loading, device))
        gc.collect()  # a model and what it writes with hold each other: else both models may be there at once
    examples = [replace(one, base_completion=text) for one, text in zip(ready[0][0], texts[1], strict=True)]
    [scored] = score_writings(judge, examples, [texts[0]])
    truncated = sum(one.truncated > 0 or two.truncated > 0 for one, two in zip(ready[0][0], ready[1][0], strict=True))
    return replace(wins_of(judge, examples, scored, generation.seed), truncated=truncated)


def _made_ready(
    name: str, rows: Sequence[dict[str, Any]], prompting: Prompting, generation: Generation, loading: Loading
) -> tuple[list[Example], Any]:
    """The prompts for a model, and its tokenizer."""
    trust: dict[str, Any] = {"trust_remote_code": loading.trust_remote_code}
    head = head_of(name, **trust)
    check_needs("completions", head)
    tokenizer = load_tokenizer(name, **trust, kind=head.kind)
    own = part_of(Prompting, prompting, max_length=length_limit(prompting.max_length, name, **trust))
    how: dict[str, Any] = {"max_new_tokens": generation.max_new_tokens, "head": head}
    return examples_of(rows, tokenizer, "completions", own, **how), tokenizer


def _written(
    name: str, examples: list[Example], tokenizer: Any, how: Generation, loading: Loading, device: str | None
) -> list[Completion]:
    place: dict[str, Any] = {"dtype": loading.dtype, "device": device, "device_map": loading.device_map}
    model = load_model(name, **place, trust_remote_code=loading.trust_remote_code)
    with running(model):
        return written(engine_of(model, tokenizer.pad_token_id, tokenizer), examples, how)


def wins_of(judge: Objective, examples: Sequence[Example], scored: Writing, seed: int = 0) -> WinRate:
    """Return what a judge's scores of rows amount to.

    Args:
        judge: what scored them.
        examples: N rows, with what the other model wrote.
        scored: what the model wrote, and its scores.
        seed: of the draws of prompts.

    Raises:
        ObjectiveError: the judge left out all rows.
    """
    returned = scored.rewards[judge.name]
    judged = [n for n, win in enumerate(returned) if win is not None]
    if not judged:
        raise no_score(judge.name, len(examples))
    of_base = [example.base_completion for example in examples]
    sides = zip(scored.completions, of_base, strict=True)
    pairs = [(one.text, other.text) for one, other in sides if other is not None]
    lengths = np.array([[len(text) for text in pair] for pair in pairs])
    numbers: dict[str, int] = {}
    prompt_N = np.array([numbers.setdefault(examples[n].prompt, len(numbers)) for n in judged])
    win_N = np.array([returned[n] for n in judged])
    longer_N = lengths[judged, 0] - lengths[judged, 1]
    draws = _draws(prompt_N, seed)
    controlled = length_controlled(win_N, longer_N)
    of_draws = [] if controlled is None else [length_controlled(win_N, longer_N, count_N) for count_N in draws]
    return WinRate(
        win_rate=float(win_N.mean()),
        interval=_interval([float(np.average(win_N, weights=count_N)) for count_N in draws]),
        length_controlled=controlled,
        length_controlled_interval=_interval(of_draws),
        ties=float((win_N == 0.5).mean()),
        equal=sum(one == other for one, other in pairs),
        agreed=scored.metrics.get("metric/agreed"),
        characters=float(lengths[:, 0].mean()),
        base_characters=float(lengths[:, 1].mean()),
        rows=len(judged),
        unjudged=len(examples) - len(judged),
        prompts=len(numbers),
        truncated=sum(example.truncated > 0 for example in examples),
    )


def _draws(prompt_N: NDArray[np.int64], seed: int) -> list[NDArray[np.int64]]:
    """How often each row stands in draws of as many prompts, with replacement; none of a single prompt."""
    prompts = int(prompt_N.max()) + 1
    generator = np.random.default_rng(seed)
    even = np.full(prompts, 1 / prompts)
    return [generator.multinomial(prompts, even)[prompt_N] for _ in range(DRAWS)] if prompts > 1 else []


def _interval(values: Sequence[float | None]) -> Interval | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)


def length_controlled(
    win_N: NDArray[np.float64], longer_N: NDArray[np.int64], count_N: NDArray[np.int64] | None = None
) -> float | None:
    """Return what the win rate would be if completions were of equal length.

        P(win) = σ(a + b · tanh(d / s)),  d characters more than the other's, s their standard deviation;  σ(a)

    A logistic regression; b²/200 is added to its loss, so that b stays finite where length alone decides. A row with a
    win of w counts as w wins and 1 − w losses. Where no length differs, or all rows are won or all lost, it is the win
    rate. Where one model's completions are all longer, what length does and what else does cannot be told apart.

    Args:
        win_N: what each row has, from 0 to 1.
        longer_N: by how many characters the model's completion is longer.
        count_N: how often each row counts; by default once.

    Returns:
        It; None where all completions of one model are longer.

    Source: AlpacaEval's length-controlled win rates, Dubois et al. 2024, arXiv 2404.04475; without its term for how
    hard a prompt is.

    >>> round(length_controlled(np.array([1.0, 1.0, 0.0, 0.0]), np.array([9, 5, -5, -9])), 6)
    0.5
    >>> length_controlled(np.array([1.0, 0.0]), np.array([9, 5])) is None
    True
    """
    count_N = np.ones(len(win_N), dtype=np.int64) if count_N is None else count_N
    there = longer_N[count_N > 0]
    if there.min() > 0 or there.max() < 0:
        return None
    weights = np.concatenate([count_N * win_N, count_N * (1 - win_N)])
    counted, is_win = weights > 0, np.repeat([1, 0], len(win_N))
    if not there.any() or len(np.unique(is_win[counted])) < 2:
        return float(np.average(win_N, weights=count_N))
    from sklearn.linear_model import LogisticRegression

    features = np.tile(np.tanh(longer_N / longer_N.std()), 2)[:, None]
    fitted = LogisticRegression(C=100.0).fit(features[counted], is_win[counted], sample_weight=weights[counted])
    return 1 / (1 + math.exp(-float(fitted.intercept_[0])))
