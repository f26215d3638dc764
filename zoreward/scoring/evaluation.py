"""From members and rows to scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from zoreward.data import render
from zoreward.records import Evaluation, Example, Member
from zoreward.registry import Objective, get_objective
from zoreward.scoring.choices import choice_outputs
from zoreward.scoring.likelihood import likelihood_outputs
from zoreward.scoring.loading import load_model, load_tokenizer, prepare_tokenizer
from zoreward.scoring.logprobs import candidate_logprobs
from zoreward.scoring.reader import Reader, reader_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

OUTPUTS = {"choices": choice_outputs, "likelihood": likelihood_outputs}


def member_scores(
    reader: Reader, objective: Objective, examples: Sequence[Example], members: Sequence[Member] = ((),)
) -> list[float]:
    """Return scores_M: the objective's value for each member, all on the same rows.

    Raises:
        ObjectiveError: the objective raised, or returned no score.
    """
    columns = columns_of(examples)
    logprobs_MNC = candidate_logprobs(reader, examples, members)
    outputs = OUTPUTS[objective.needs]
    return [
        objective.score(len(examples), **{**columns, **outputs(examples, logprobs_NC)}) for logprobs_NC in logprobs_MNC
    ]


def columns_of(examples: Sequence[Example]) -> dict[str, list[Any]]:
    """Return the rows' columns as lists; a row without a column has None there."""
    names = dict.fromkeys(name for example in examples for name in example.row)
    return {name: [example.row.get(name) for example in examples] for name in names}


def evaluate(
    model: PreTrainedModel | str,
    objective: str | Callable[..., Any],
    rows: Sequence[dict[str, Any]],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    template: str | None = None,
    choices: Sequence[str] | None = None,
    label: str = "label",
    answer: str | None = None,
    max_length: int | None = None,
    dtype: str | None = None,
    options: dict[str, Any] | None = None,
) -> Evaluation:
    """Score a model on rows. Nothing is changed.

    Args:
        model: a causal language model, or a folder or Hub id to load it from.
        objective: a name, a function, or anything else that `get_objective` takes.
        rows: the dataset, a dict each.
        tokenizer: needed with a loaded model.
        template: the prompt, with columns in braces.
        choices: the candidates in label order, or `label=answer`.
        label: the column that holds the right choice.
        answer: the right answer as a template, for objectives that need a likelihood.
        max_length: tokens of prompt and answer; by default the model's context.
        dtype: of the weights, where the model is loaded here; see `load_model`.
        options: the objective's own options.

    Raises:
        ZorewardError: the rows, the template or the objective do not fit together.

    Example:
        >>> evaluate("gpt2", "accuracy", rows, template="{text} It was",
        ...          choices=[" bad", " good"])  # doctest: +SKIP
        Evaluation(objective='accuracy', score=0.71, rows=872, truncated=0)
    """
    chosen = get_objective(objective, **(options or {}))
    if tokenizer is None:
        tokenizer = load_tokenizer(model if isinstance(model, str) else model.name_or_path)
    tokenizer = prepare_tokenizer(tokenizer)
    examples = render(
        rows,
        tokenizer,
        needs=chosen.needs,
        template=template,
        choices=choices,
        label=label,
        answer=answer,
        max_length=length_limit(max_length, model if isinstance(model, str) else model.config),
    )
    loaded = load_model(model, dtype=dtype) if isinstance(model, str) else model
    [score] = member_scores(reader_of(loaded.eval(), tokenizer.pad_token_id), chosen, examples)
    return Evaluation(chosen.name, score, len(examples), sum(example.truncated > 0 for example in examples))


def length_limit(max_length: int | None, source: Any) -> int | None:
    """Return how many tokens of prompt and answer a model is given: what is asked for, within its context.

    Args:
        max_length: what is asked for; None: all that the model can read.
        source: its config, or a folder or Hub id to load it from.

    >>> from transformers import GPT2Config
    >>> [length_limit(wanted, GPT2Config(n_positions=64)) for wanted in (None, 32, 100)]
    [64, 32, 64]
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(source) if isinstance(source, str) else source
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    return min((limit for limit in (max_length, context) if limit), default=None)
