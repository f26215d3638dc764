"""`evaluate`: the score of one model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from zoreward.config import Prompting
from zoreward.data import check_calibration, content_free_examples
from zoreward.records import Evaluation, Example, InputError, Scored, Writing
from zoreward.registry import Objective, Source, get_objective, no_score
from zoreward.scoring.baselines import calibrated_logprobs
from zoreward.scoring.checkpoints import Head, head_of, length_limit
from zoreward.scoring.devices import check_device_map
from zoreward.scoring.loading import load_model, load_tokenizer, prepare_tokenizer
from zoreward.scoring.protocol import Generation
from zoreward.scoring.ranks import Ranks
from zoreward.scoring.requests import score_writings, scores_of, statistics_of
from zoreward.scoring.scorer import Scorer, examples_of, running, scorer_of
from zoreward.scoring.sharded import sharing_passes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def evaluate(
    model: PreTrainedModel | str,
    objective: Source | Sequence[Source],
    rows: Sequence[dict[str, Any]],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    template: str | None = None,
    prompt: str = "prompt",
    choices: Sequence[str] | None = None,
    choice_column: str | None = None,
    label: str = "label",
    answer: str | None = None,
    max_length: int | None = None,
    shots: int = 0,
    shot_rows: Sequence[dict[str, Any]] | None = None,
    seed: int = 0,
    dtype: str | None = None,
    device: str | None = None,
    device_map: str | None = None,
    trust_remote_code: bool = False,
    batch_size: int | None = None,
    generation: Generation | None = None,
    options: dict[str, Any] | None = None,
    base: PreTrainedModel | str | None = None,
    content_free: str | None = None,
    chat_template_kwargs: dict[str, Any] | str | None = None,
    chat: Literal["auto", "on", "off"] = "auto",
    system_prompt: str | None = None,
    ranks: Ranks | None = None,
) -> Evaluation:
    """Score a model on rows. Nothing is changed.

    Args:
        model: a causal or masked language model, or a classifier; or a folder or Hub id to load it from.
        objective: a name, a function, or anything else that `get_objective` takes; several for their sum.
        rows: the dataset, a dict each.
        tokenizer: needed with a loaded model.
        template: the prompt, with columns in braces.
        prompt: the column of the prompt where there is no template, for objectives that need completions and for
            preferences.
        choices: the candidates in label order, or `label=answer`.
        choice_column: instead of choices, the column that holds each row's own.
        label: the column that holds the right choice.
        answer: the right answer as a template, for objectives that need a likelihood.
        max_length: tokens of prompt and answer; by default the model's context.
        shots: demonstrations in front of each prompt; fewer where the context is short.
        shot_rows: where to take them from; by default `rows`, but never the row itself.
        seed: decides which they are.
        dtype: of the weights, where the model is loaded here; see `load_model`.
        device: where to load it; by default the GPU if there is one.
        device_map: instead, how to spread it over several GPUs; see `load_model`.
        trust_remote_code: run the code that comes with the model.
        batch_size: rows of one forward pass; by default as many as make it efficient.
        generation: how to write, for objectives that need completions.
        options: the objective's own options.
        base: the model before it was tuned, for objectives that compare with it; with the same tokens.
        content_free: the prompt without what a row says, a text or a template: choices are then scored by how much
            likelier they become by the prompt; see `calibrated_logprobs`.
        chat_template_kwargs: what the chat template is told, for conversations.
        chat: `on`: prompts that are texts are the user's turn, and answers the assistant's, by the chat template;
            `off`: they are raw; `auto`: so too, which is said where there is a chat template.
        system_prompt: the system's turn of conversations that begin with none.
        ranks: processes of a launch that share the work; all must call this, and rank 0 has all that is returned.

    Raises:
        ZorewardError: the rows, the template or the objective do not fit together, or it has no score on them.

    Example:
        >>> evaluate("gpt2", "accuracy", rows, template="{text} It was",
        ...          choices=[" bad", " good"])  # doctest: +SKIP
        Evaluation(objective='accuracy', score=0.71, rows=872, truncated=0)
    """
    check_device_map(device_map, device)
    chosen = get_objective(objective, **(options or {}))
    generation = generation or Generation(seed=seed)
    prompting = Prompting(
        template=template,
        prompt=prompt,
        choices=choices,  # type: ignore[arg-type]
        choice_column=choice_column,
        label=label,
        answer=answer,
        max_length=length_limit(max_length, model, trust_remote_code=trust_remote_code),
        shots=shots,
        chat_template_kwargs=chat_template_kwargs,
        chat=chat,
        system_prompt=system_prompt,
    )
    how: dict[str, Any] = {"max_new_tokens": generation.max_new_tokens, "shot_rows": shot_rows, "seed": seed}
    examples, tokenizer, head = _made_ready(rows, model, tokenizer, chosen, prompting, trust_remote_code, how)
    free = _without_content(chosen, head, prompting, examples, tokenizer, content_free)
    place = dict[str, Any](dtype=dtype, device=device, device_map=device_map, trust_remote_code=trust_remote_code)
    if chosen.compares_with_base:
        before = scorer_of(_base_model(base, place, chosen.name), tokenizer, chosen, generation)
        examples = sharing_passes(before, ranks, examples).with_base(examples, rows=batch_size)
        del before  # one model at a time in memory
    model = load_model(model, **place) if isinstance(model, str) else model
    with running(model):
        scorer = sharing_passes(scorer_of(model.eval(), tokenizer, chosen, generation), ranks, examples)
        known = None if free is None else calibrated_logprobs(scorer.engine, examples, free, rows=batch_size)
        settings: dict[str, Any] = {"seed": generation.seed, "rows": batch_size, "shots": shots}
        return evaluated(scorer, examples, logprobs_NC=known, must_score=True, **settings)[0]


def _made_ready(
    rows: Sequence[dict[str, Any]],
    model: PreTrainedModel | str,
    tokenizer: PreTrainedTokenizerBase | None,
    chosen: Objective,
    prompting: Prompting,
    trust_remote_code: bool,
    how: dict[str, Any],
) -> tuple[list[Example], PreTrainedTokenizerBase, Head]:
    """The rows made ready, the tokenizer that did it, and what the model gives for a row.

    Args:
        rows: the dataset.
        model: that will read them.
        tokenizer: its own; None: it is loaded.
        chosen: the objective.
        prompting: how rows become prompts.
        trust_remote_code: run the code that comes with the model.
        how: more arguments of `examples_of`.
    """
    head = head_of(model, trust_remote_code=trust_remote_code)
    if tokenizer is None:
        name = model if isinstance(model, str) else model.name_or_path
        tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code, kind=head.kind)
    tokenizer = prepare_tokenizer(tokenizer, head.kind)
    examples = examples_of(rows, tokenizer, chosen.needs, prompting, head=head, **how)
    chosen.check_choices(max(len(example.candidates) for example in examples))
    return examples, tokenizer, head


def _base_model(base: PreTrainedModel | str | None, place: dict[str, Any], objective: str) -> PreTrainedModel:
    """The model before it was tuned, ready to be scored.

    Raises:
        ZorewardError: there is none, or it cannot be loaded.
    """
    if base is None:
        hint = "give --base-model: the model as it was before it was tuned"
        raise InputError(f"{objective!r} compares a model with its base, and there is none", hint=hint)
    return (load_model(base, **place) if isinstance(base, str) else base).eval()


def _without_content(
    chosen: Objective,
    head: Head,
    prompting: Prompting,
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    content_free: str | None,
) -> list[Example] | None:
    """The rows behind prompts without content; None where the model is not to be calibrated.

    Args:
        chosen: the objective.
        head: of the model.
        prompting: how the rows were made ready.
        examples: the rows.
        tokenizer: of the model.
        content_free: see `evaluate`.

    Raises:
        InputError: no answer is written, or there is no prompt to take the content from.
    """
    if content_free is None:
        return None
    if head.reads_whole:
        raise InputError("only answers that a model writes are calibrated", hint="leave --calibrate out")
    template, limit = prompting.template, prompting.max_length
    check_calibration(chosen.name, chosen.needs == "choices" and not chosen.compares_with_base, template)
    how: dict[str, Any] = {"content_free": content_free, "max_length": limit, "kind": head.kind}
    how["chat_template_kwargs"] = prompting.chat_template_kwargs
    return content_free_examples(examples, tokenizer, template=template or "", **how)


def evaluated(
    scorer: Scorer,
    examples: Sequence[Example],
    *,
    seed: int = 0,
    rows: int | None = None,
    shots: int = 0,
    trainer_state: Any = None,
    logprobs_NC: NDArray[np.float64] | None = None,
    must_score: bool = False,
) -> tuple[Evaluation, Scored]:
    """Return the score of the model as it is, and what it was made of. All who evaluate a model come here.

    Args:
        scorer: the model and its objective.
        examples: N rows.
        seed: of what is drawn when texts are sampled.
        rows: most rows of one forward pass.
        shots: demonstrations that each prompt was to have.
        trainer_state: handed to reward functions that ask for it.
        logprobs_NC: what the candidates are given, where that is known already.
        must_score: whether it is an error that there is no score.

    Raises:
        ObjectiveError: the objective raised, or has no score on these rows.
    """
    objective = scorer.objective
    if logprobs_NC is None:
        [scored] = scorer.score(examples, seed=seed, rows=rows, trainer_state=trainer_state)
    else:
        [scored] = scores_of(objective, examples, [logprobs_NC])
    if must_score and math.isnan(scored.score):
        raise no_score(objective.name, len(examples))
    beside = dict[str, float]()
    if objective.beside:
        beside = scorer.once(lambda: _beside(objective, examples, scored, trainer_state))
    evaluation = Evaluation(
        objective=objective.name,
        score=scored.score,
        rows=len(examples),
        truncated=sum(example.truncated > 0 for example in examples),
        fewer_shots=0 if objective.needs == "completions" else sum(example.shots < shots for example in examples),
        parts=scored.part_scores if objective.parts else {},
        statistics=statistics_of([scored]),
        metrics=scored.metrics | beside,
        examples=tuple(examples),
        scored=scored,
    )
    return evaluation, scored


def _beside(objective: Objective, examples: Sequence[Example], scored: Scored, trainer_state: Any) -> dict[str, float]:
    """What the objectives that are reported beside this one say of the same answers, by their names."""
    found = {}
    for other in objective.beside:
        own: Sequence[Scored]
        if isinstance(scored, Writing):
            own = score_writings(other, examples, [scored.completions], trainer_state)
        else:
            own = scores_of(other, examples, [scored.logprobs_NC])
        found[f"metric/{other.name}"] = own[0].score
    return found
