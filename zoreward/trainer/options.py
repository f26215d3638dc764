"""`ZOConfig`: every option of a run."""

from __future__ import annotations

import copy
import os
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from transformers import SchedulerType, TrainingArguments

from zoreward.config import METHOD_OPTIONS, ZOArguments, defaults_of
from zoreward.methods import Method, make_method, named
from zoreward.methods.directions import MAX_STEPS
from zoreward.noise import Family, family_of
from zoreward.noise.families import family_options, has_rank
from zoreward.records import InputError
from zoreward.scoring import one_of_its_own
from zoreward.trainer.from_grpo import is_grpo_config, options_from_grpo, takes_grpo_names

# What trades time for the memory of a backward pass; transformers 5.24 gives it the first name, and v6 takes the other.
_SAVING = ("activation_checkpointing", "gradient_checkpointing")


@takes_grpo_names
@dataclass
class ZOConfig(ZOArguments, TrainingArguments):
    """Every option of a run: `ZOArguments`, and all of `transformers.TrainingArguments`.

    Some defaults are not those of TrainingArguments: 1,000 steps of 16 rows (unless max_steps or num_train_epochs is
    given; with max_forwards alone, as many as these pay), a constant learning rate, no clipping; for objectives of text
    16 low-rank directions, differences over their rms. Where no learning rate is given, ε and the rate are found before
    step 1 (see `zoreward.trainer.radius`), for preferences with 64 directions or 32; for svrg and raw slopes they
    are MeZO's, ε 1e-3 and 1e-6. Each step scores all rows of all its accumulated batches together. The journal is the
    checkpoint: what is saved besides is one snapshot of the weights, for a quick resume. By default it is written when
    it costs little; every `save_steps` steps; with each new best score (`save_strategy="best"`); or never (`"no"`).

    The names of TRL's GRPOConfig are taken too: `beta`, `num_generations`, … (docs/coming-from-grpo.md).

    Raises:
        InputError: an option that makes no sense without gradients.

    Example:
        >>> ZOConfig("runs/sst2", max_steps=1500, learning_rate=3e-5, eps=5e-3).lr_scheduler_type
        <SchedulerType.CONSTANT: 'constant'>
    """

    output_dir: str = "zoreward-run"
    learning_rate: float | None = None
    max_steps: int = -1
    num_train_epochs: float = 0.0
    per_device_train_batch_size: int = 16
    lr_scheduler_type: str = "constant"
    max_grad_norm: float = 0.0
    logging_steps: float = 10
    save_strategy: str = "steps"
    save_steps: float = field(
        default=0, metadata={"help": "Write the weights down every so many steps, for a quick resume. 0: by cost."}
    )
    load_best_model_at_end: bool = field(
        default=False, metadata={"help": "At the end, take the weights of the step with the best dev score."}
    )
    metric_for_best_model: str | None = "score"
    greater_is_better: bool | None = True
    report_to: Any = "none"
    dataloader_pin_memory: bool = False
    remove_unused_columns: bool | None = False
    logging_nan_inf_filter: bool = False
    per_device_eval_batch_size: int = field(
        default=0, metadata={"help": "Rows of one forward pass over the dev rows. 0: as many as make it efficient."}
    )
    reward_weights: list[float] | None = field(
        default=None, metadata={"help": "Weights of several objectives. Default: 1 each."}
    )

    def __post_init__(self) -> None:
        for option in ("max_steps", "num_train_epochs"):
            if not getattr(self, option) <= MAX_STEPS:  # NaN neither
                message = f"{option}={getattr(self, option)} is more than any run does"
                raise InputError(message, hint=f"It is at most {MAX_STEPS:,}.")
        if self.max_steps <= 0 and self.num_train_epochs <= 0:
            self.max_steps = MAX_STEPS if self.max_forwards else 1000
        # transformers demands checkpoints where there are evaluations; the journal has every step.
        best: bool = self.load_best_model_at_end
        self.load_best_model_at_end = False
        with one_of_its_own(self.use_cpu):
            super().__post_init__()
            _ = self.device  # which is looked for once
        self.load_best_model_at_end = best
        self.output_dir = os.path.abspath(self.output_dir)  # a reward function may change the directory
        if self.warmup_steps:
            self.lr_scheduler_type = _with_warmup(self.lr_scheduler_type)
        refusals = {
            "max_grad_norm": (self.max_grad_norm > 0, "There is no gradient to clip."),
            "fp16": (self.fp16, 'Load the weights in float16 instead: dtype="float16".'),
            **{name: (getattr(self, name, False), "There is no backward pass to save memory for.") for name in _SAVING},
            "auto_find_batch_size": (self.auto_find_batch_size, "A batch that is too large is split by itself."),
            "ignore_data_skip": (self.ignore_data_skip, "A resume goes on with the rows that come next."),
        }
        for name, (given, hint) in refusals.items():
            if given:
                raise InputError(f"{name} has no use in a run of forward passes", hint=hint)
        for one in fields(self):
            value, above = getattr(self, one.name), one.metadata.get("above")
            if above is not None and value is not None and not value > above:  # NaN neither
                hint = f"It is above {above}, in {one.metadata['unit']}."
                raise InputError(f"{one.name}={value} is out of range", hint=hint)
        if best and self.eval_strategy == "no":
            raise InputError("load_best_model_at_end has no scores to choose by", hint='Set eval_strategy="steps".')
        if self.max_rewinds and not best:
            hint = "Set load_best_model_at_end (--keep best); or leave max_rewinds out."
            raise InputError("a run goes back to its best step, and the last one is to be kept", hint=hint)
        if best and self.metric_for_best_model not in ("score", "eval_score"):
            message = f"load_best_model_at_end goes by the score, not by {self.metric_for_best_model!r}"
            raise InputError(message, hint="Leave metric_for_best_model out; or keep the last step.")

    @classmethod
    def from_grpo(cls, config: Any, **instead: Any) -> ZOConfig:
        """Return what TRL's GRPOConfig says, as options of a run; warn of what was set and has no meaning here.

        Taken over are the length of the run, of its batches and its texts, the seed, and what was set to another value
        than GRPOConfig's default. The learning rate is not: it is one for gradients.

        Args:
            config: a GRPOConfig.
            instead: options of ZOConfig that are set otherwise.

        Raises:
            InputError: it is none; or something was set that would change what is tuned, and cannot be met.

        Example:
            >>> ZOConfig.from_grpo(GRPOConfig("run", beta=0.04), learning_rate=3e-3).kl  # doctest: +SKIP
            0.04
        """
        return cls(**options_from_grpo(config, instead))

    @property
    def rows_a_step(self) -> int:
        """The rows that a step scores its members on: those of all its accumulated batches."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    def changed(self) -> dict[str, Any]:
        """Return the options that are not at their defaults, for the record: without paths, names and passwords."""
        left_out = ["output_dir", "logging_dir", "run_name", "hub_token", "report_to", "accelerator_config"]
        left_out += [one.name for one in fields(self) if not one.metadata.get("recorded", True)]
        # Not by comparing with a ZOConfig of defaults: making one resets accelerate's state of the process.
        defaults = {one.name: one.default for one in fields(self) if one.default is not MISSING}
        return {
            name: value
            for name, value in self.to_dict().items()
            if name in defaults and name not in left_out and value != defaults[name] and (value or defaults[name])
        }


def config_of(args: Any) -> ZOConfig:
    """Return the options that a trainer is given: a ZOConfig, TRL's GRPOConfig, or None for the defaults.

    Raises:
        InputError: they are neither.
    """
    if args is None or isinstance(args, ZOConfig):
        return args or ZOConfig()
    if not is_grpo_config(args):
        hint = "Give args=ZOConfig(…); TRL's GRPOConfig(…) is taken, too."
        raise InputError(f"args is a {type(args).__name__}, not a ZOConfig", hint=hint)
    return ZOConfig.from_grpo(args)


def _with_warmup(schedule: Any) -> Any:
    """The schedule of a learning rate that rises at first: transformers' `constant` would leave that out silently."""
    if schedule == SchedulerType.CONSTANT:
        return SchedulerType.CONSTANT_WITH_WARMUP
    if schedule in ("reduce_lr_on_plateau", "greedy"):  # the latter is not known to every transformers
        message = f"warmup_steps has no use with lr_scheduler_type={schedule.value}"
        raise InputError(message, hint="Leave one of them out; or take lr_scheduler_type=constant_with_warmup.")
    return schedule


LEAST_BLOCKS = 2


# Where the first look for ε stands, by what is tuned: near what was found there.
FIRST_EPS = {"full": 1e-2, "lora": 5e-2, "prefix": 1e-1}


def part_that_is_tuned(args: ZOConfig, *, adapter: bool) -> str:
    """Return "full", for weights of the model itself, "lora" or "prefix": what defaults depend on."""
    return "full" if not adapter else "prefix" if args.tune == "prefix" else "lora"


def completed(
    args: ZOConfig, needs: str, *, adapter: bool = False, finds: bool = False, compares_with_base: bool = False
) -> ZOConfig:
    """Return the options with the defaults of their method, and else those that fit what the objective needs and what
    is tuned.

    Args:
        args: the options.
        needs: what the objective needs.
        adapter: whether an adapter is tuned.
        finds: see `zoreward.config.finds_rate`: ε is then where the first look stands, and slopes are divided by their
            running rms.
        compares_with_base: whether the objective compares with the model before step 1.

    Raises:
        InputError: there is no such method, or directions of every weight are to have a rank.

    >>> completed(ZOConfig("run", eps=5e-3, use_cpu=True), "completions").eps
    0.005
    """
    args = copy.copy(args)
    named(args.method)  # there is such a method
    part, rank = part_that_is_tuned(args, adapter=adapter), args.rank
    given = "margins" if finds and compares_with_base else "answers"
    defaults = defaults_of(args.method, "text" if needs == "completions" else given, part)
    if finds:
        defaults["eps"] = FIRST_EPS[part]
        defaults["normalize"] = {"none": "running"}.get(defaults["normalize"], defaults["normalize"])
    if args.rows_per_direction is not None:
        defaults |= {"noise": "low-rank", "num_directions": max(1, args.rows_a_step // max(1, args.rows_per_direction))}
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if rank is not None and not has_rank(args.noise):
        message = f"rank={rank} has no use with {args.noise} directions"
        raise InputError(message, hint="Take noise=low-rank, or leave it out.")
    if args.data_seed is None:  # else the order of rows would follow torch's own state, which others may set
        args.data_seed = args.seed
    return args


def takes_turns(args: ZOConfig) -> bool:
    """Whether completed options ask for blocks of layers that are tuned in turn."""
    return args.blocks is not None or args.block_every is not None


def method_of(args: ZOConfig, rows: int = 0, blocks: int = 0) -> Method:
    """Return the method that completed options ask for.

    Args:
        args: the options.
        rows: how many rows are tuned on; 0: not known yet.
        blocks: how many blocks of layers the weights have; 0: not known yet.

    Raises:
        InputError: a value is out of its range, or two do not go together.
    """
    if args.rank is not None and args.rank < 1:
        raise InputError(f"rank={args.rank} is no rank of directions", hint="It is at least 1; or take noise=dense.")
    if args.share is not None and not 0 < args.share <= 1:
        raise InputError(f"share={args.share} is no share of the weights", hint="It is above 0 and at most 1.")
    if args.share is not None and args.anchor:
        hint = "Take weight_decay, or leave one of the two out."
        raise InputError("an anchor pulls on all weights, and share tunes some", hint=hint)
    if args.rows_per_direction is not None:
        _check_division(args, args.rows_per_direction)
    if takes_turns(args):
        _check_turns(args)
        blocks = blocks or args.blocks or LEAST_BLOCKS
    given = {name: getattr(args, name) for name in METHOD_OPTIONS}
    if args.method == "svrg" and args.anneal_every is None:
        given["anneal_every"] = -(-rows // args.rows_a_step)
    family = family_options(str(args.noise), args.rank)
    return make_method(
        args.method, **given, **family, lr=args.learning_rate, rows=min(rows, args.rows_a_step), blocks=blocks
    )


def family_of_run(args: ZOConfig) -> Family:
    """Return the family of the directions that completed options ask for."""
    return family_of(**family_options(str(args.noise), args.rank), distribution=args.distribution or "normal")


def _check_division(args: ZOConfig, own: int) -> None:
    rows = args.rows_a_step
    if not 1 <= own <= rows:
        raise InputError(f"rows_per_direction={own} is none of 1 to {rows}, the rows of a step", hint="Change one.")
    if args.num_directions is not None and args.num_directions * own > rows:
        message = f"{args.num_directions} directions of {own} rows each are more than the {rows} rows of a step"
        raise InputError(message, hint="Leave num_directions out: it follows.")
    if args.kl:
        hint = "Leave kl or rows_per_direction out."
        raise InputError("a penalty is of members that are scored on the same rows, and theirs are divided", hint=hint)


def _check_turns(args: ZOConfig) -> None:
    if args.blocks is not None and args.blocks < LEAST_BLOCKS:
        raise InputError(
            f"blocks={args.blocks} leaves nothing to take turns", hint="It is at least 2; or leave it out."
        )
    if args.tune == "prefix":
        hint = "Take tune=lora, whose weights lie in all layers; or method=spsa."
        raise InputError("a prefix lies in no layer, and blocks are of layers", hint=hint)
