"""Rows as requests, and answers as columns: what members are asked, and what objectives are given and make of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from zoreward.records import Completion, Example, Member, Request, Scored, Writing
from zoreward.registry import Objective, mean_score
from zoreward.scoring.protocol import Engine, Generation

States = Sequence[Sequence[NDArray[np.float32]]]
"""For each member and text a vector."""
StatesOf = Callable[[Sequence[Request], Sequence[Sequence[Completion]]], States]
Chunk = TypeVar("Chunk")

# What TRL keeps from a reward function because it says it in another way.
_KEPT_BACK = ("prompt", "completion", "completion_ids")


def requests_of(examples: Sequence[Example]) -> list[tuple[Request, ...]]:
    """Return what a model is asked about each row: how likely its candidates are."""
    return [example.requests for example in examples]


def prompts_of(examples: Sequence[Example]) -> list[Request]:
    """Return what a model is asked to go on from: the prompt of each row."""
    return [Request(example.prompt_tokens, ()) for example in examples]


def have_same_answers(examples: Sequence[Example]) -> bool:
    """Return whether all rows have the same candidates, in the same order."""
    return all(example.candidates == examples[0].candidates for example in examples)


def candidate_logprobs(
    engine: Engine, examples: Sequence[Example], members: Sequence[Member] = ((),), *, rows: int | None = None
) -> NDArray[np.float64]:
    """Return the mean log-probability per token of each candidate after its prompt.

        logprobs[m, n, c] = 1/T · Σ_t log p_m(candidate_t | prompt, candidate_<t),  T tokens of candidate c of row n

    Args:
        engine: the model.
        examples: N rows.
        members: M members; by default the model itself.
        rows: most rows of one forward pass; see `Engine.logprobs`.

    Returns:
        logprobs_MNC, float64 ≤ 0; −inf where a row has fewer than C candidates.

    Raises:
        ObjectiveError: the model's outputs are not finite.
    """
    asked = requests_of(examples)
    requests = [request for own in asked for request in own]
    sums_MR = np.stack(engine.logprobs([(member, requests) for member in members], rows=rows))
    return means_of(asked, sums_MR)


def means_of(asked: Sequence[Sequence[Request]], sums_MR: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the means over the tokens of all candidates (M, N, C), from the sums of all rows' requests."""
    counts = np.array(list(map(len, asked)))
    there = np.arange(counts.max()) < counts[:, None]
    logprobs_MNC = np.full((len(sums_MR), *there.shape), -np.inf)
    logprobs_MNC[:, there] = sums_MR / [len(request.target) for own in asked for request in own]
    return logprobs_MNC


def member_scores(
    engine: Engine, objective: Objective, examples: Sequence[Example], members: Sequence[Member] = ((),)
) -> list[float]:
    """Return scores_M: the objective's value for each member, all on the same rows.

    Raises:
        ObjectiveError: the objective raised, or returned what is no score.
    """
    return [one.score for one in scores_of(objective, examples, list(candidate_logprobs(engine, examples, members)))]


def scores_of(
    objective: Objective,
    examples: Sequence[Example],
    logprobs_MNC: Sequence[NDArray[np.float64]],
    of_all: Mapping[str, Any] | None = None,
) -> list[Scored]:
    """Return what each member is worth by what it gives to the candidates; raises what `member_scores` raises.

    Args:
        objective: of given answers.
        examples: N rows.
        logprobs_MNC: of each member.
        of_all: outputs that are the same for all members.
    """
    columns = columns_of(examples) | dict(of_all or {})
    notes = [Notes() for _ in logprobs_MNC]
    batches = [
        (len(examples), columns | outputs_of(objective.needs, examples, own_NC) | {"log_metric": note.log_metric})
        for own_NC, note in zip(logprobs_MNC, notes, strict=True)
    ]
    return [
        Scored(
            objective.combined(returned),
            {name: mean_score(found) for name, found in returned.items()},
            metrics=note.means(),
            returned=returned,
            logprobs_NC=own_NC,
        )
        for own_NC, returned, note in zip(logprobs_MNC, objective.returned_for(batches), notes, strict=True)
    ]


def divided_scores(
    engine: Engine,
    objective: Objective,
    examples: Sequence[Example],
    members: Sequence[Member],
    shares: Sequence[slice],
) -> tuple[list[Scored], list[float]]:
    """Let antithetic pairs answer, each on rows of its own.

    An objective that scores rows is called for all members θ + εz_k together, and for all θ − εz_k; one that scores the
    set also for each pair's rows by themselves.

    Args:
        engine: the model.
        objective: one of answers that are given.
        examples: N rows.
        members: pairs, side by side; those behind the last share are not asked.
        shares: which rows are the first pair's, the second's and so on.

    Returns:
        what the members θ + εz_k are worth together, on all rows, and the members θ − εz_k · each member's score on its
        rows, NaN where it has none.

    Raises:
        ObjectiveError: the objective raised, or returned what is no score; or the model's outputs are not finite.
    """
    asked = requests_of(examples)
    lists = [[request for own in asked[share] for request in own] for share in shares]
    found = engine.logprobs([(member, lists[m // 2]) for m, member in enumerate(members[: 2 * len(shares)])])
    logprobs_2NC = means_of(asked, np.stack([np.concatenate(found[side::2]) for side in (0, 1)]))
    sides = scores_of(objective, examples, list(logprobs_2NC))
    scores = [math.nan] * len(members)
    for k, share in enumerate(shares):
        if all(isinstance(values, list) for values in sides[0].returned.values()):
            pair = [
                objective.combined({name: values[share] for name, values in side.returned.items()}) for side in sides
            ]
        else:
            width = max(map(len, asked[share]))
            own = scores_of(objective, examples[share], list(logprobs_2NC[:, share, :width]))
            pair = [one.score for one in own]
        scores[2 * k : 2 * k + 2] = pair
    return sides, scores


def outputs_of(needs: str, examples: Sequence[Example], logprobs_NC: NDArray[np.float64]) -> dict[str, Any]:
    """Return the outputs of one member for an objective of answers that are given.

        logprob_sums[n, c] = T · logprobs[n, c],  T tokens of candidate c of row n

    Args:
        needs: `choices`, or `likelihood`, whose rows have one candidate each, the right answer.
        examples: N rows.
        logprobs_NC: mean log-probability per token of each candidate; −inf where a row has fewer.

    Returns:
        `logprobs` and `logprob_sums`; `base_logprobs` and `base_logprob_sums`, the same of the model before tuning,
        where the examples know them. All are (N, C), −inf where a row has fewer candidates; (N,) for `likelihood`.
        `references`: the index of each row's right candidate; for `likelihood` the answers' texts. For `choices`
        `predictions`: the index of each row's likeliest candidate, the first of equals.
    """
    counts_NC = token_counts(examples)
    outputs: dict[str, Any] = {"logprobs": logprobs_NC, "logprob_sums": logprobs_NC * counts_NC}
    known = [example.base_logprobs for example in examples if example.base_logprobs is not None]
    if len(known) == len(examples):
        base_NC = _filled(known, -np.inf)
        outputs |= {"base_logprobs": base_NC, "base_logprob_sums": base_NC * counts_NC}
    if needs == "likelihood":
        of_answers = {name: values_NC[:, 0] for name, values_NC in outputs.items()}
        return {**of_answers, "references": [example.candidates[0] for example in examples]}
    references = [example.reference for example in examples]
    return {"predictions": logprobs_NC.argmax(axis=1).tolist(), "references": references, **outputs}


def token_counts(examples: Sequence[Example]) -> NDArray[np.float64]:
    """Return how many tokens each candidate has: (N, C); 1 where a row has fewer candidates."""
    return _filled([[len(request.target) for request in own] for own in requests_of(examples)], 1.0)


def _filled(lists: Sequence[Sequence[float]], filling: float) -> NDArray[np.float64]:
    table = np.full((len(lists), max(map(len, lists))), filling)
    for own, row in zip(lists, table, strict=True):
        row[: len(own)] = own
    return table


def with_base(engine: Engine, examples: Sequence[Example], *, rows: int | None = None) -> list[Example]:
    """Return the rows with the log-probabilities that the model as it is now gives to their candidates.

    Called before step 1, it makes the model the base that objectives compare with.
    """
    [logprobs_NC] = candidate_logprobs(engine, examples, rows=rows)
    return [
        replace(example, base_logprobs=tuple(own[: len(example.requests)].tolist()))
        for example, own in zip(examples, logprobs_NC, strict=True)
    ]


def with_mismatched(
    engine: Engine, examples: Sequence[Example], *, context: int | None = None, rows: int | None = None
) -> list[Example]:
    """Return the rows with answers to another prompt, and how likely they are behind their own by the model as it is.

    They are those of the last row before that has another prompt, or of the row before where none has; before the first
    row stands the last. A prompt loses tokens on its left where both do not fit the context.

    Args:
        engine: the model.
        examples: N rows, which fit the context.
        context: tokens that the model can read; None: any number.
        rows: most rows of one forward pass.
    """
    prompts, asked, last = [example.prompt_tokens for example in examples], [], len(examples) - 1
    other = next((n for n in range(last, -1, -1) if prompts[n] != prompts[0]), last)
    for n, prompt in enumerate(prompts):
        other = n - 1 if n and prompts[n - 1] != prompt else other
        answers = examples[other].candidate_tokens
        asked.append([Request(prompt[-(context - len(one)) :] if context else prompt, one) for one in answers])
    [sums] = engine.logprobs([((), [request for own in asked for request in own])], rows=rows)
    base = iter(np.asarray(sums).tolist())
    return [
        replace(one, mismatched=tuple((request, next(base)) for request in own))
        for one, own in zip(examples, asked, strict=True)
    ]


def mismatched_ratios(engine: Engine, examples: Sequence[Example], *, rows: int | None = None) -> NDArray[np.float64]:
    """Return log π(y′|x)/π_ref(y′|x) of each mismatched answer y′, (R,), π the model as it is now without a member."""
    known = [one for example in examples for one in example.mismatched]
    [sums] = engine.logprobs([((), [request for request, _ in known])], rows=rows)
    return np.asarray(sums) - [of_base for _, of_base in known]


def written(engine: Engine, examples: Sequence[Example], how: Generation) -> list[Completion]:
    """Return what the model as it is now writes behind the prompts.

    Raises:
        ObjectiveError: the model's outputs are not finite.
    """
    [[texts]] = engine.generate([((), prompts_of(examples))], how)
    return texts


def completion_scores(
    engine: Engine,
    objective: Objective,
    examples: Sequence[Example],
    members: Sequence[Member] = ((),),
    how: Generation | None = None,
    *,
    trainer_state: Any = None,
    states_of: StatesOf | None = None,
) -> list[Writing]:
    """Let members write behind the same prompts, and score what they write.

    While the objective scores what some members wrote, in this thread, the next ones write in another. So an
    objective must not use the model that is being scored.

    Args:
        engine: what writes.
        objective: one that needs `completions`.
        examples: N rows, from `render_prompts`.
        members: M members; by default the model itself.
        how: how to write; by default `Generation()`.
        trainer_state: handed to reward functions that ask for it; by default a fresh `transformers.TrainerState`.
        states_of: reads `base_states`, for an objective that names them; in the thread that writes, since both use the
            model.

    Returns:
        one `Writing` for each member, in their order.

    Raises:
        ObjectiveError: the objective raised, or returned no score; or the model's outputs are not finite.
    """
    prompts = prompts_of(examples)
    writings: list[Writing] = []
    chunks = engine.generate([(member, prompts) for member in members], how or Generation())
    for texts, states in _one_ahead((texts, states_of and states_of(prompts, texts)) for texts in chunks):
        writings += score_writings(objective, examples, texts, trainer_state, states)
    return writings


def _one_ahead(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
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


def score_writings(
    objective: Objective,
    examples: Sequence[Example],
    texts: Sequence[Sequence[Completion]],
    trainer_state: Any = None,
    states_MN: States | None = None,
) -> list[Writing]:
    """Score what members wrote; async rewards of all of them run together.

    Args:
        objective: one that needs `completions`.
        examples: N rows.
        texts: for each member what it wrote for each row.
        trainer_state: handed to reward functions that ask for it; by default a fresh `transformers.TrainerState`.
        states_MN: `base_states` of these texts, where they are known.

    Raises:
        ObjectiveError: the objective raised, or returned what is no score.
    """
    if trainer_state is None:
        from transformers import TrainerState

        trainer_state = TrainerState()
    notes = [Notes() for _ in texts]
    known = [{} if states_MN is None else {"base_states": own} for own in states_MN or texts]
    batches = [
        (
            len(examples),
            {**completion_outputs(examples, written), **states, "trainer_state": trainer_state} | note.loggers(),
        )
        for written, states, note in zip(texts, known, notes, strict=True)
    ]
    return [
        Writing(
            completions=tuple(written),
            score=objective.combined(returned),
            part_scores={name: mean_score(found) for name, found in returned.items()},
            rewards={name: tuple(found) for name, found in returned.items() if isinstance(found, list)},
            extra=note.extra,
            metrics=note.means(),
            returned=returned,
        )
        for written, returned, note in zip(texts, objective.returned_for(batches), notes, strict=True)
    ]


def columns_of(examples: Sequence[Example]) -> dict[str, list[Any]]:
    """Return the rows' columns as lists; a row without a column has None there."""
    names = dict.fromkeys(name for example in examples for name in example.row)
    return {name: [example.row.get(name) for example in examples] for name in names}


def completion_outputs(examples: Sequence[Example], written: Sequence[Completion]) -> dict[str, Any]:
    """Return the outputs of one member for an objective that needs `completions`.

    Args:
        examples: N rows, all of them plain or all of them conversations.
        written: what the member wrote for each.

    Returns:
        `prompts`: texts, or lists of messages · `completions`: texts, or lists of one message of the assistant's ·
        `completion_ids`: lists of tokens, up to and with EOS · `base_completions`, `base_completion_ids`: the same of
        the model before tuning, where the examples know it · every column, but `prompt`, `completion` and
        `completion_ids`.
    """
    chat = examples[0].messages is not None
    columns = columns_of(examples)
    for name in dict.fromkeys(name for one in written for name in one.columns or ()):  # a rollout's win, as in TRL
        columns[name] = [(one.columns or {}).get(name) for one in written]
    columns = {name: values for name, values in columns.items() if name not in _KEPT_BACK}
    of_base = [example.base_completion for example in examples if example.base_completion is not None]
    sides = {"": written} | ({"base_": of_base} if len(of_base) == len(examples) else {})
    outputs = {**columns, "prompts": [list(one.messages) if one.messages else one.prompt for one in examples]}
    for side, texts in sides.items():
        outputs[f"{side}completions"] = [_as_said(one.text) if chat else one.text for one in texts]
        outputs[f"{side}completion_ids"] = [list(one.tokens) for one in texts]
    return outputs


def _as_said(text: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text}]


class Notes:
    """What objectives log beside their scores."""

    def __init__(self) -> None:
        self.extra: dict[str, list[Any]] = {}
        self.metrics: dict[str, list[float]] = {}

    def means(self) -> dict[str, float]:
        """Return the mean of each metric over the times it was logged."""
        return {name: math.fsum(values) / len(values) for name, values in self.metrics.items()}

    def loggers(self) -> dict[str, Any]:
        """Return what reward functions log with."""
        return {"log_extra": self.log_extra, "log_metric": self.log_metric}

    def log_extra(self, column: str, values: list[Any]) -> None:
        """Add values to a column."""
        self.extra.setdefault(str(column), []).extend(values)

    def log_metric(self, name: str, value: float) -> None:
        """Add a value of a metric."""
        self.metrics.setdefault(metric_name(name), []).append(float(value))


def metric_name(name: object) -> str:
    """Return the name under which a metric of an objective's own is told: none that zoreward gives begins so.

    A reward that logs "score" would else take the place of the score by which the best step is chosen; and one that
    logs "dev score" would look like it on the screen.

    >>> metric_name("share"), metric_name("dev score")
    ('metric/share', 'metric/dev score')
    """
    return f"metric/{name}"


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


def repeated_4(completions: Iterable[Sequence[int]]) -> float:
    """Return the share of fours of neighbouring tokens that stood in the same text before; 0 where there is no four.

    >>> repeated_4([[1, 2, 3, 4, 1, 2, 3, 4], [5, 6, 7, 8]])
    0.16666666666666663
    """
    fours = [list(zip(*(tokens[n:] for n in range(4)), strict=False)) for tokens in completions]
    count = sum(map(len, fours))
    return 1 - sum(len(set(own)) for own in fours) / count if count else 0.0


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
