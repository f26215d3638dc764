"""What a trainer is given, made ready or refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformers.utils import logging

from zoreward.records import Example, InputError
from zoreward.registry import Objective, get_objective, weighted_sum
from zoreward.scoring import examples_of, length_limit

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from zoreward.trainer.options import ZOConfig


def made_examples(
    dataset: Any,
    needs: str,
    args: ZOConfig,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel | str,
    shot_rows: list[dict[str, Any]],
) -> list[Example]:
    """Return the rows made ready for the model; see `examples_of`."""
    rows = list(dataset) if dataset is not None else []
    if not rows:
        raise InputError("there are no rows to tune on", hint="Give train_dataset at least one row.")
    limit = length_limit(
        args.max_length, model if isinstance(model, str) else model.config, trust_remote_code=args.trust_remote_code
    )
    return examples_of(
        rows,
        tokenizer,
        needs,
        max_length=limit,
        max_new_tokens=args.max_completion_length,
        template=args.template,
        prompt=args.prompt,
        choices=args.choices,
        choice_column=args.choice_column,
        label=args.label,
        answer=args.answer,
        shots=args.shots,
        shot_rows=shot_rows,
        seed=args.seed,
    )


def warn_about_context(examples: Sequence[Example], shots: int) -> None:
    """Say how many prompts lost something to fit the context."""
    logger = logging.get_logger(__name__)
    if truncated := sum(example.truncated > 0 for example in examples):
        logger.warning("%d of %d prompts were cut on the left to fit the context.", truncated, len(examples))
    if fewer := sum(example.shots < shots for example in examples):
        logger.warning("%d of %d prompts have room for fewer than %d demonstrations.", fewer, len(examples), shots)


def one_objective(objective: Any, reward_funcs: Any, weights: list[float] | None) -> Objective:
    """Return the objective that is given under one of two names; several make their weighted sum."""
    given = [value for value in (objective, reward_funcs) if value is not None]
    if len(given) != 1:
        raise InputError("give the objective once", hint='Either objective="accuracy" or reward_funcs=your_function.')
    sources = given[0] if isinstance(given[0], list | tuple) else [given[0]]
    return weighted_sum([get_objective(source) for source in sources], weights)


def refuse_what_is_missing(model: Any, args: ZOConfig, reward_processing_classes: Any, peft_config: Any) -> None:
    """Refuse what can be refused before anything is loaded."""
    if reward_processing_classes is not None or peft_config is not None:
        raise InputError("reward_processing_classes and peft_config are not supported yet", hint="Leave them out.")
    if args.world_size > 1:
        raise InputError("runs over several processes are not supported yet", hint="Start one process.")
    if hasattr(model, "peft_config"):
        raise InputError("a model with adapters cannot be tuned yet", hint="Merge them: model.merge_and_unload().")
    if args.n_gpu > 1:
        raise InputError("this process sees several GPUs", hint="Set CUDA_VISIBLE_DEVICES to one of them.")
    if args.load_best_model_at_end and args.save_strategy != "best" and not name_of(model):
        hint = 'Give the model as a folder or Hub id; or save_strategy="best", which writes its weights down.'
        raise InputError("the best step is made from the base weights, and this model has no name", hint=hint)


def name_of(model: PreTrainedModel | str) -> str:
    """Return the folder or Hub id of a model."""
    return model if isinstance(model, str) else model.name_or_path
