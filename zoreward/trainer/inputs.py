"""What a trainer is given, made ready or refused."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING, Any

from transformers.utils import logging

from zoreward.config import Prompting, Rewarding, finds_rate, part_of
from zoreward.data import at_revision, rows_of
from zoreward.data.preferences import are_preferences
from zoreward.members import (
    PREFIX_TOKENS,
    check_tune,
    has_adapter,
)
from zoreward.neighbours.of_transformers import use_one_gpu_
from zoreward.records import Example, InputError, ObjectiveError
from zoreward.registry import Objective, get_objective, weighted_sum
from zoreward.registry.retries import with_retries
from zoreward.scoring import (
    Generation,
    Head,
    adapter_base,
    check_device_map,
    check_loaded,
    check_model_name,
    config_of_model,
    examples_of,
    generation_of,
    have_same_answers,
    head_of,
    length_limit,
    load_tokenizer,
    prepare_tokenizer,
)
from zoreward.trainer.options import completed, method_of
from zoreward.trainer.penalty import check_drift, keeps_base
from zoreward.trainer.reward_funcs import rewards_of

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from zoreward.scoring import Scorer
    from zoreward.trainer.options import ZOConfig


def made_examples(
    dataset: Any,
    needs: str,
    args: ZOConfig,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel | str,
    shot_rows: list[dict[str, Any]],
    head: Head,
) -> list[Example]:
    """Return the rows made ready for the model; see `examples_of`."""
    rows = rows_of(dataset)
    if not rows:
        raise InputError("there are no rows to tune on", hint="Give train_dataset at least one row.")
    limit = length_limit(
        args.max_length,
        model,
        prefix=PREFIX_TOKENS if args.tune == "prefix" else None,
        trust_remote_code=args.trust_remote_code,
    )
    prompting, new = part_of(Prompting, args, max_length=limit), args.max_completion_length
    how: dict[str, Any] = {"max_new_tokens": new, "head": head, "shot_rows": shot_rows, "seed": args.seed}
    return examples_of(rows, tokenizer, needs, prompting, **how)


@dataclass(frozen=True, slots=True, eq=False)
class Given:
    """What a trainer is given, checked as far as it can be without the weights of the model.

    Args:
        args: completed options.
        eps_given: whether ε was among them.
        finds_rate: whether ε and the learning rate are to be found.
        objective: what is tuned on, with its timeouts and retries.
        adapter: whether an adapter is tuned.
        head: what the model gives for a row.
        tokenizer: the model's.
        generation: how texts are written.
        make: makes other rows ready; `make(rows, model=…)`.
        examples: the rows to tune on.
        eval_examples: those to choose by, or None.
    """

    args: ZOConfig
    eps_given: bool
    finds_rate: bool
    objective: Objective
    adapter: bool
    head: Head
    tokenizer: Any
    generation: Generation
    make: Callable[..., list[Example]]
    examples: list[Example]
    eval_examples: list[Example] | None


def all_given(
    model: PreTrainedModel | PeftModel | str,
    args: ZOConfig,
    objective: Objective,
    datasets: tuple[Any, Any, Any],
    tokenizer: PreTrainedTokenizerBase | None,
    peft_config: Any,
) -> Given:
    """Return what a trainer is given, checked and made ready.

    Args:
        model: a folder or Hub id, or a loaded model.
        args: the options.
        objective: what is tuned on.
        datasets: the rows to tune on, those to choose by, those to take demonstrations from; each may be None.
        tokenizer: the model's; None to load it.
        peft_config: of the adapter that is put in.

    Raises:
        ZorewardError: something does not fit together; the hint says what to do.
    """
    check_choices, adapter = objective.check_choices, tunes_adapter(model, args, peft_config)
    objective = with_retries(objective, part_of(Rewarding, args))
    finds, eps_given = finds_rate(args), args.eps is not None
    args = completed(
        args, objective.needs, adapter=adapter, finds=finds, compares_with_base=objective.compares_with_base
    )
    if args.rows_per_direction is not None and objective.needs == "completions":
        hint = "Leave rows_per_direction out: members write for the same prompts."
        raise InputError("rows are divided among directions where answers are given", hint=hint)
    method_of(args)  # what is wrong with its options is told before rows are read
    generation = generation_of(args, args.seed)
    args.drift = args.drift or objective.reads_base  # `completed` has made a copy of the options
    check_drift(args)
    train, dev, shots = (None if dataset is None else rows_of(dataset) for dataset in datasets)
    head = checked_head(model, args, train or [])
    check_quantised(model, args, adapter)
    trust = args.trust_remote_code
    if tokenizer is None and not name_of(model):
        hint = 'Give it: processing_class=AutoTokenizer.from_pretrained("NAME").'
        raise InputError("the model has no name that its tokenizer could be found by", hint=hint)
    tokenizer = prepare_tokenizer(
        tokenizer or load_tokenizer(name_of(model), trust_remote_code=trust, kind=head.kind), head.kind
    )
    shot_rows = (train or []) if shots is None else shots
    settings: dict[str, Any] = {"args": args, "tokenizer": tokenizer, "shot_rows": shot_rows, "head": head}
    make: Callable[..., list[Example]] = functools.partial(made_examples, needs=objective.needs, **settings)
    examples = make(train or [], model=model)
    eval_examples = None if dev is None else make(dev, model=model)
    if not are_preferences(train or [], objective.needs, part_of(Prompting, args)):  # of which the first is right
        refuse_one_answer(objective, examples)
    check_choices(max(len(example.candidates) for example in examples))
    check_batches(args, len(examples))
    warn_about_context(examples, args.shots if objective.needs != "completions" else 0)
    divided = args.rows_per_direction is not None
    warn_about_classes(objective, examples, args.rows_per_direction or args.rows_a_step, divided=divided)
    return Given(args, eps_given, finds, objective, adapter, head, tokenizer, generation, make, examples, eval_examples)


def checked_head(model: PreTrainedModel | PeftModel | str, args: ZOConfig, rows: Sequence[dict[str, Any]]) -> Head:
    """Return what the model gives for a row.

    Raises:
        ZorewardError: there is no such model, or an option makes no sense for its kind.
    """
    trust = args.trust_remote_code
    head = head_of(model, rows, head=args.head, choices=args.choices, label=args.label, trust_remote_code=trust)
    if head.reads_whole:
        name = "a masked model" if head.kind == "masked" else "a classifier"
        if keeps_base(args):
            raise InputError(f"{name} writes nothing whose drift could be measured", hint="Leave drift and kl out.")
        if args.tune == "prefix":
            raise InputError(f"{name} takes no prefix", hint="Take tune=lora, last-N, head or full.")
    if head.kind == "encoder-decoder":
        if keeps_base(args):
            raise InputError("the drift of an encoder–decoder is not measured yet", hint="Leave drift and kl out.")
        if args.tune == "prefix":
            raise InputError("an encoder–decoder takes no prefix", hint="Take tune=lora, last-N, head or full.")
    if head.is_new and args.tune == "lora":
        raise InputError("an adapter keeps no new head", hint="Take tune=full, last-N or head.")
    return head


def refuse_one_answer(objective: Objective, examples: Sequence[Example]) -> None:
    """Refuse rows that teach nothing but to give one answer to whatever is read.

    Args:
        objective: what is tuned on; one that does not look at right answers may have its own reason.
        examples: the rows to tune on.

    Raises:
        InputError: all have the same answers, and the same right one.
    """
    parts = [part for _, part in objective.parts] or [objective]
    compares = any("references" in signature(part.function).parameters for part in parts)
    answer = one_answer(examples) if objective.needs == "choices" and compares and len(examples) > 1 else None
    if answer is not None:
        message = (
            f"all {len(examples):,} rows to tune on have the same right answer, {answer!r}: it would always be given"
        )
        raise InputError(
            message, hint="Give rows of every answer; the first rows of a sorted file (--limit) may have one alone."
        )


def one_answer(examples: Sequence[Example]) -> str | None:
    """Return the right answer of all rows, where they have the same answers and it is the same; else None."""
    first = examples[0]
    same = have_same_answers(examples) and all(example.reference == first.reference for example in examples)
    return first.candidates[first.reference] if same else None


def check_rollout(objective: Objective, args: ZOConfig, *, several: bool) -> None:
    """Refuse a `rollout_func` beside what cannot go with one yet.

    Args:
        objective: what is tuned on.
        args: completed options.
        several: whether ranks share the run.

    Raises:
        InputError: it cannot.
    """
    problem = ""
    if objective.needs != "completions":
        problem, hint = (
            f"{objective.name!r} scores answers that are given",
            "Take one of what is written.",
        )
    elif several:
        problem, hint = "its members are not shared by ranks", "Start one process."
    elif keeps_base(args) or objective.reads_base or objective.compares_with_base:
        problem = "what the environment says would count as the model's in a comparison with the base"
        hint = "Leave kl, max_kl and drift out, and objectives that compare with the base."
    if problem:
        raise InputError(f"rollout_func: {problem}", hint=hint)


def warn_about_context(examples: Sequence[Example], shots: int) -> None:
    """Say how many prompts lost something to fit the context."""
    logger = logging.get_logger(__name__)
    if truncated := sum(example.truncated > 0 for example in examples):
        logger.warning("%d of %d prompts were cut on the left to fit the context.", truncated, len(examples))
    if fewer := sum(example.shots < shots for example in examples):
        logger.warning("%d of %d prompts have room for fewer than %d demonstrations.", fewer, len(examples), shots)


def check_batches(args: ZOConfig, rows: int) -> None:
    """Find out whether there is a batch to tune on.

    Raises:
        InputError: the only one is short, and short ones are dropped.
    """
    size = args.per_device_train_batch_size
    if args.dataloader_drop_last and rows < size:
        hint = f"Leave dataloader_drop_last out, or take a batch of {rows} rows at most."
        raise InputError(f"{rows} rows make no full batch of {size}, and others are dropped", hint=hint)


def warn_about_classes(objective: Objective, examples: Sequence[Example], rows: int, *, divided: bool = False) -> None:
    """Say where batches hold so few rows of the rarest answer that a score of the whole batch is biased.

    Of a metric that is no mean over rows (F1, MCC, AUC), the mean over batches is not its value on all rows. Known are
    such objectives by what they say they return: one `float`.

    Args:
        objective: what is tuned on.
        examples: the rows to tune on.
        rows: those of a batch, or of a direction.
        divided: whether a batch is divided among directions.
    """
    parts = [part for _, part in objective.parts] or [objective]
    names = [one.name for one in parts if signature(one.function).return_annotation in (float, "float")]
    same = have_same_answers(examples)
    if not names or objective.needs != "choices" or not same or rows >= len(examples):
        return
    [*_, (rarest, count)] = Counter(example.reference for example in examples).most_common()
    expected, enough = rows * count / len(examples), min(len(examples), -(-2 * len(examples) // count))
    if expected < 2:
        logging.get_logger(__name__).warning(
            "%s of %d rows holds %.2g of the rarest answer, %r, on average; the mean of %s over such batches is "
            "not what it is on all rows. Take --%s %d or more.",
            "A direction's share" if divided else "A batch",
            rows, expected, examples[0].candidates[rarest], ", ".join(names),
            "rows-per-direction" if divided else "batch-size", enough,
        )  # fmt: skip


# Share of batches of one class below which nothing is said of them.
FEW = 0.01
# Rows that the objective is tried on.
ONE_CLASS_ROWS = 8


def warn_about_one_class(scorer: Scorer, examples: Sequence[Example], args: ZOConfig) -> None:
    """Say so before step 1 where batches will have no score because all their rows have the same right choice."""
    divided = args.rows_per_direction is not None
    size = min(args.rows_per_direction or args.rows_a_step, len(examples))
    counts = Counter(example.reference for example in examples)
    share = sum(math.comb(count, size) for count in counts.values()) / math.comb(len(examples), size)
    if scorer.objective.needs != "choices" or share < FEW:
        return
    most, _ = counts.most_common(1)[0]
    rows = [example for example in examples if example.reference == most][: min(size, ONE_CLASS_ROWS)]
    if scorer.objective.compares_with_base:
        rows = scorer.with_base(rows)
    try:
        [scored] = scorer.score(rows)
    except ObjectiveError as error:
        logging.get_logger(__name__).warning(
            "About %.0f %% of the batches are of one class, which may end the run: %s.", 100 * share, error
        )
        return
    if math.isnan(scored.score):
        logging.get_logger(__name__).warning(
            "%r has no score on rows of one class, as in about %.0f %% of the %s of %d rows: these %s move "
            "nothing. %s leaves fewer of them.",
            *(scorer.objective.name, 100 * share, "shares" if divided else "batches", size),
            *(("directions", "More --rows-per-direction") if divided else ("steps", "A larger batch size")),
        )


def one_objective(objective: Any, reward_funcs: Any, processing_classes: Any, args: ZOConfig) -> Objective:
    """Return the objective that is given under one of two names; several make their weighted sum."""
    if (objective is None) == (reward_funcs is None):
        raise InputError("give the objective once", hint='Either objective="accuracy" or reward_funcs=your_function.')
    if reward_funcs is not None:
        return weighted_sum(rewards_of(reward_funcs, processing_classes, args), args.reward_weights)
    if processing_classes is not None:
        hint = "Give the reward model as reward_funcs, or leave them out."
        raise InputError("reward_processing_classes are those of reward_funcs, and there are none", hint=hint)
    sources = objective if isinstance(objective, list | tuple) else [objective]
    return weighted_sum([get_objective(source) for source in sources], args.reward_weights)


def with_revision(model: Any, args: ZOConfig) -> Any:
    """Return a model's name with the revision that the options ask for, or the model that is loaded already.

    Raises:
        InputError: it is loaded, or a folder, and a revision is asked for.
    """
    if isinstance(model, str):
        return at_revision(model, args.model_revision)
    if args.model_revision is not None:
        raise InputError("a loaded model has its revision already", hint="Leave model_revision out.")
    return model


def refuse_what_is_missing(model: Any, args: ZOConfig, peft_config: Any) -> None:
    """Refuse what can be refused before anything is loaded."""
    if peft_config is not None and args.tune != "full":
        raise InputError(f"peft_config and tune={args.tune!r} say two things", hint="Leave one of them out.")
    if isinstance(peft_config, dict):
        raise InputError("peft_config is a dict, not a config of PEFT", hint="Give it as peft_config=LoraConfig(r=16).")
    check_tune(args.tune)
    if args.world_size > 1:
        raise InputError("runs over several processes are not supported yet", hint="Start one process.")
    check_device_map(args.device_map)
    if args.device_map or (not isinstance(model, str) and getattr(model, "hf_device_map", None)):
        _check_spread(model, args)
    elif args.n_gpu > 1:
        logging.get_logger(__name__).warning_once(
            f"Of {args.n_gpu} GPUs this run takes the first. All of them: torchrun --nproc-per-node {args.n_gpu}, or "
            "for a model that one does not hold, device_map=auto."
        )
        use_one_gpu_(args)  # else transformers would put a copy of the model on each
    if args.load_best_model_at_end and args.save_strategy != "best" and not name_of(model):
        hint = 'Give the model as a folder or Hub id; or save_strategy="best", which writes its weights down.'
        raise InputError("the best step is made from the base weights, and this model has no name", hint=hint)


def _check_spread(model: PreTrainedModel | PeftModel | str, args: ZOConfig) -> None:
    """Refuse what a model on several devices cannot do."""
    if not isinstance(model, str):
        if args.device_map:
            raise InputError("a loaded model has its place already", hint="Leave device_map out.")
        check_loaded(model)
    if args.use_cpu and args.device_map:
        raise InputError("device and device_map say two things", hint="Leave one of them out.")
    if args.tune == "prefix":
        raise InputError("a prefix lies on one device, as the model must", hint="Take tune=lora, or no device_map.")
    if keeps_base(args) and not tunes_adapter(model, args, None):
        hint = "Take tune=lora, whose base costs nothing; or no device_map."
        raise InputError("the base that drift is measured from would need all devices again", hint=hint)


def tunes_adapter(model: PreTrainedModel | PeftModel | str, args: ZOConfig, peft_config: Any) -> bool:
    """Whether an adapter is tuned: one that is asked for, or the model's own.

    Raises:
        ZorewardError: there is no such model; it has an adapter, and another is asked for; or there is to be none, and
            it is to be merged.
    """
    found = peft_config is not None or args.tune in ("lora", "prefix")
    if isinstance(model, str):
        check_model_name(model)
    has_one = adapter_base(model) is not None if isinstance(model, str) else has_adapter(model)
    if found and has_one:
        hint = "It is what is tuned: leave tune and peft_config out."
        raise InputError("the model has an adapter already", hint=hint)
    found = found or has_one
    if args.merge and not found:
        raise InputError("there is no adapter to merge", hint="Leave merge out, or take tune=lora.")
    if args.merge and args.tune == "prefix":
        raise InputError("a prefix cannot be merged into the weights", hint="Leave merge out, or take tune=lora.")
    return found


def check_quantised(model: PreTrainedModel | PeftModel | str, args: ZOConfig, adapter: bool) -> None:
    """Find out, before weights are read, whether quantised ones would have to be written.

    Raises:
        InputError: they would.
    """
    config = config_of_model(model, trust_remote_code=args.trust_remote_code)
    if not getattr(model, "is_quantized", getattr(config, "quantization_config", None) is not None):
        return
    if not adapter:
        raise InputError("a quantised model is tuned through an adapter", hint="Take tune=lora, or a peft_config.")
    if args.merge:
        hint = "Leave merge out; the adapter can be merged into the base before it was quantised."
        raise InputError("an adapter is not merged into quantised weights, which would round it", hint=hint)


def name_of(model: PreTrainedModel | str) -> str:
    """Return the folder or Hub id of a model."""
    return model if isinstance(model, str) else model.name_or_path
