"""What TRL's GRPOConfig and GRPOTrainer call by a name, here: translated, refused, or without meaning.

TRL is not imported: a config is known by the name of its class, and its fields and their defaults by itself.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from transformers.utils import logging

from zoreward.records import InputError

Values = Mapping[str, Any]
DOC = "docs/coming-from-grpo.md"

# --- translated -------------------------------------------------------------------------------------------------------

# What ZOConfig has too, under the same name. It is taken over where it is not GRPOConfig's default,
KEPT = frozenset(
    """
    output_dir max_steps num_train_epochs per_device_train_batch_size gradient_accumulation_steps lr_scheduler_type
    lr_scheduler_kwargs warmup_steps seed data_seed full_determinism use_cpu tf32 resume_from_checkpoint
    max_completion_length temperature top_p top_k min_p repetition_penalty chat_template_kwargs reward_weights
    trust_remote_code
    logging_strategy logging_steps logging_first_step logging_nan_inf_filter log_level log_level_replica disable_tqdm
    report_to run_name project trackio_space_id trackio_bucket_id trackio_static_space_id
    eval_strategy eval_steps eval_delay eval_on_start per_device_eval_batch_size do_train do_eval do_predict
    save_strategy save_steps load_best_model_at_end skip_memory_metrics
    push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision
    accelerator_config dataloader_drop_last dataloader_num_workers dataloader_pin_memory
    dataloader_persistent_workers dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order
    train_sampling_strategy
    """.split()
)
# and these in any case, since they say what the run is: how long, on which rows, how long the texts may be.
ALWAYS = (
    *("output_dir", "num_train_epochs", "per_device_train_batch_size", "seed"),
    *("max_completion_length", "num_generations"),
)
# Of `model_init_kwargs`: what speeds up a backward pass, or attention that is not ours.
_SPEED = ("attn_implementation", "low_cpu_mem_usage", "use_cache", "use_kernels")
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def _members(value: int, of: Values) -> dict[str, Any]:
    return {"num_directions": -(-value // 2)}


def _prompt_length(value: int, of: Values) -> dict[str, Any]:
    return {"max_length": value + of["max_completion_length"]}


def _completions_every(value: bool, of: Values) -> dict[str, Any]:
    return {"completions_every": int(of["logging_steps"])} if value and of["logging_steps"] >= 1 else {}


def _best_by(value: str, of: Values) -> dict[str, Any]:
    goes_by_score = value.removeprefix("eval_") in ("loss", "reward", "score")
    return {} if goes_by_score else {"metric_for_best_model": value}


def _generation(value: Any, of: Values) -> dict[str, Any]:
    given = dict(_parsed(value))
    found = {name: given.pop(name) for name in _SAMPLING if name in given}
    if "max_new_tokens" in given:
        found["max_completion_length"] = given.pop("max_new_tokens")
    for name in ("stop_strings", "stop"):
        if name in given:
            texts = given.pop(name)
            found["stop"] = [texts] if isinstance(texts, str) else texts
    if given.pop("do_sample", None) is False:
        found["temperature"] = 0.0
    given.pop("use_cache", None)
    if given:
        known = ", ".join((*_SAMPLING, "max_new_tokens", "stop_strings", "do_sample"))
        raise InputError(f"generation_kwargs: {', '.join(given)} cannot be met", hint=f"Known are {known}.")
    return found


def _loading(value: Any, of: Values) -> dict[str, Any]:
    given = {name: one for name, one in _parsed(value).items() if name not in _SPEED}
    found: dict[str, Any] = {name: given.pop(name) for name in ("device_map", "trust_remote_code") if name in given}
    for name in ("torch_dtype", "dtype"):
        if name in given:
            found["dtype"] = str(given.pop(name)).removeprefix("torch.")
    if "revision" in given:
        found["model_revision"] = given.pop("revision")
    if given:
        call = ", ".join(f"{name}={one!r}" for name, one in given.items())
        hint = f"Load it yourself: model=AutoModelForCausalLM.from_pretrained(NAME, {call})."
        raise InputError(f"model_init_kwargs: {', '.join(given)} cannot be met", hint=hint)
    return found


# What has another name or another form here; in this order, so that a later one wins. Given are the value and all
# others that are known.
TRANSLATED: dict[str, Callable[[Any, Values], dict[str, Any]]] = {
    "num_generations": _members,
    "beta": lambda value, of: {"kl": value},
    "max_prompt_length": _prompt_length,  # of older releases
    "shuffle_dataset": lambda value, of: {} if value else {"train_sampling_strategy": "sequential"},
    "scale_rewards": lambda value, of: {"normalize": "running"} if value in ("none", False) else {},
    "log_completions": _completions_every,
    "metric_for_best_model": _best_by,
    "bf16": lambda value, of: {} if value else {"dtype": "float32"},
    "fp16": lambda value, of: {"dtype": "float16"} if value else {},
    "model_init_kwargs": _loading,
    "generation_kwargs": _generation,
}

# --- refused ----------------------------------------------------------------------------------------------------------

# Where another value than the default would change what is tuned, and cannot be met: what to do instead.
_ONE_PROCESS = 'Start one process and leave it out; model_init_kwargs={"device_map": "auto"} spreads a large model.'
REFUSED = {
    "multi_objective_aggregation": "Leave it out: rewards are summed; reward_weights bring them to one size.",
    "mask_truncated_completions": "Leave it out; a reward may return None for a text that it does not want to count.",
    "sync_ref_model": "Leave it out: beta compares with the model before step 1, throughout.",
    "vllm_structured_outputs_regex": "Leave it out, and let a reward say whether a text fits.",
    "log_completions_hub_repo": "Leave it out: they are in the run folder, completions/; `hf upload` takes them.",
    "auto_find_batch_size": "Leave it out: a batch that is too large is split by itself.",
    "ignore_data_skip": "Leave it out: a resume goes on with the rows that come next.",
    **dict.fromkeys(("deepspeed", "fsdp", "parallelism_config"), _ONE_PROCESS),
}

# --- without meaning --------------------------------------------------------------------------------------------------

# By the reason.
WITHOUT_MEANING = {
    "There is no gradient, no optimizer and no backward pass.": """
        learning_rate weight_decay optim optim_args optim_target_modules adam_beta1 adam_beta2 adam_epsilon
        max_grad_norm label_smoothing_factor gradient_checkpointing gradient_checkpointing_kwargs
        activation_checkpointing activation_checkpointing_kwargs neftune_noise_alpha use_liger_kernel
        liger_kernel_config disable_dropout router_aux_loss_coef cast_lm_head_to_fp32 torch_compile
        torch_compile_backend torch_compile_mode torch_empty_cache_steps use_cache average_tokens_across_devices""",
    "A member's score is its reward: there is no loss of tokens, no ratio of policies and nothing to clip.": """
        epsilon epsilon_high delta num_iterations loss_type importance_sampling_level top_entropy_quantile
        entropy_coef use_adaptive_entropy entropy_coef_min entropy_coef_max entropy_coef_delta entropy_target
        sapo_temperature_neg sapo_temperature_pos vespo_k_pos vespo_lambda_pos vespo_k_neg vespo_lambda_neg
        off_policy_mask_threshold use_bias_correction_kl ref_model_mixup_alpha ref_model_sync_steps""",
    "All members of a step write in one batch, which the model itself does; in vLLM with engine='vllm'.": """
        use_vllm vllm_mode vllm_model_impl vllm_enable_sleep_mode vllm_server_base_url vllm_server_host
        vllm_server_port vllm_server_timeout vllm_group_port vllm_gpu_memory_utilization vllm_max_model_length
        vllm_tensor_parallel_size vllm_importance_sampling_correction vllm_importance_sampling_mode
        vllm_importance_sampling_clip_max vllm_importance_sampling_clip_min vllm_importance_sampling_cap
        cache_implementation use_transformers_paged use_transformers_continuous_batching
        transformers_continuous_batching_config generation_batch_size steps_per_generation num_generations_eval
        pad_to_multiple_of max_tool_calling_iterations""",
    "There is one process.": """
        ds3_gather_for_generation local_rank ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers
        ddp_static_graph ddp_backend ddp_timeout fsdp_config log_on_each_node save_on_each_node""",
    "The journal is the checkpoint, beside one snapshot.": """
        save_total_limit save_only_model enable_jit_checkpoint restore_callback_states_from_checkpoint""",
    "Rows are scored by the reward, which is given the columns that it names.": """
        remove_unused_columns label_names length_column_name prediction_loss_only eval_do_concat_batches
        eval_use_gather_object eval_accumulation_steps include_for_metrics batch_eval_metrics greater_is_better
        bf16_full_eval fp16_full_eval include_num_input_tokens_seen debug""",
    "Completions are kept in the run folder, each with its rewards.": """
        num_completions_to_print log_unique_prompts log_multimodal""",
}
_NOTHING = frozenset(" ".join(WITHOUT_MEANING.values()).split())

# --- a whole config ---------------------------------------------------------------------------------------------------


def is_grpo_config(config: Any) -> bool:
    """Whether this is TRL's GRPOConfig, or a subclass of it."""
    return any(kind.__name__ == "GRPOConfig" for kind in type(config).__mro__)


def options_from_grpo(config: Any, instead: Values) -> dict[str, Any]:
    """Return what a GRPOConfig says, as arguments of ZOConfig; warn of what was set and has no meaning here.

    Args:
        config: the GRPOConfig.
        instead: what is given in its place, which is not spoken of.

    Raises:
        InputError: it is none; or something was set that would change what is tuned, and cannot be met.
    """
    if not is_grpo_config(config):
        name = type(config).__name__
        raise InputError(f"{name} is not TRL's GRPOConfig", hint="ZOConfig.from_grpo(GRPOConfig(…)).")
    values = {one.name: getattr(config, one.name) for one in dataclasses.fields(config)}
    changed = {one.name: values[one.name] for one in dataclasses.fields(config) if not _is_default(one, values)}
    taken = {name: values[name] for name in ALWAYS if name in values} | changed
    if taken.get("max_completion_length", 0) is None:
        raise InputError("max_completion_length=None bounds no text", hint="Give a number: max_completion_length=512.")
    options = _translated(taken, values)
    if "learning_rate" in changed and "learning_rate" not in instead:
        logging.get_logger(__name__).warning(
            "learning_rate=%g is one for gradients and is not used: zoreward finds its own before step 1. To set it: "
            "args=ZOConfig.from_grpo(args, learning_rate=3e-3).",
            changed.pop("learning_rate"),
        )
    _tell_without_meaning({name: value for name, value in changed.items() if name not in instead})
    return {**options, **instead}


def takes_grpo_names(config: type[_Config]) -> type[_Config]:
    """Make a config take the names of GRPOConfig that it does not have itself, as keyword arguments.

    Args:
        config: `ZOConfig`.
    """
    own, made = {one.name for one in dataclasses.fields(config)}, config.__init__  # type: ignore[arg-type,misc]

    @functools.wraps(made)
    def initialised(self: Any, *given: Any, **named: Any) -> None:
        foreign = {name: named.pop(name) for name in tuple(named) if name not in own and name in _known()}
        defaults = {name: getattr(config, name) for name in ("max_completion_length", "logging_steps")}
        options = _translated({name: value for name, value in foreign.items() if value is not None}, defaults | named)
        if twice := sorted(options.keys() & named.keys()):
            hint = f"Leave {' and '.join(foreign)} out."
            raise InputError(f"{', '.join(twice)} is given twice: also as {', '.join(foreign)}", hint=hint)
        _tell_without_meaning(foreign)
        made(self, *given, **named, **options)

    config.__init__ = initialised  # type: ignore[method-assign]
    return config


_Config = TypeVar("_Config")


def _known() -> frozenset[str]:
    return KEPT | TRANSLATED.keys() | REFUSED.keys() | _NOTHING


def _translated(taken: Values, values: Values) -> dict[str, Any]:
    refused = [name for name in taken if name in REFUSED and taken[name] not in (None, False, "", "sum_then_normalize")]
    if refused:
        hints = " ".join(dict.fromkeys(REFUSED[name] for name in refused))
        raise InputError(f"{', '.join(f'{name}={taken[name]!r}' for name in refused)} cannot be met", hint=hints)
    options = {name: value for name, value in taken.items() if name in KEPT and value is not None}
    for name, translate in TRANSLATED.items():
        if name in taken:
            options |= translate(taken[name], values)
    return options


def _tell_without_meaning(given: Values) -> None:
    """Say what was given and does nothing here. Who says that something is not to be is right anyway."""
    names = [name for name, value in given.items() if (name in _NOTHING or name not in _known()) and value]
    names += [f"model_init_kwargs[{name!r}]" for name in _parsed(given.get("model_init_kwargs")) if name in _SPEED]
    if names:
        logging.get_logger(__name__).warning("Without meaning here, and left out (%s): %s.", DOC, ", ".join(names))


def _is_default(one: dataclasses.Field[Any], values: Values) -> bool:
    """Whether a field of a GRPOConfig is as nobody has set it; of what it works out by itself, as it works it out."""
    value = getattr(values[one.name], "value", values[one.name])  # of an enumeration
    default = one.default if one.default_factory is dataclasses.MISSING else one.default_factory()
    if one.name == "bf16":
        default = not values["fp16"]
    elif one.name == "activation_checkpointing":
        default = values.get("gradient_checkpointing")
    elif one.name == "pad_to_multiple_of":
        default = None
    elif one.name == "steps_per_generation":
        default = values["gradient_accumulation_steps"]
    elif one.name == "generation_batch_size":
        return True  # follows from the one before, or the other way round
    elif one.name == "greater_is_better" or (one.name == "metric_for_best_model" and value == "loss"):
        return True  # follow from load_best_model_at_end
    return bool(value == default) or (not value and not default)


def _parsed(value: Any) -> dict[str, Any]:
    return json.loads(value) if isinstance(value, str) else value or {}


# --- a trainer's arguments --------------------------------------------------------------------------------------------

_TURNS = "Write the turns yourself, with the model: rollout_func=your_function; docs/coming-from-grpo.md has one."
_NO_OPTIMIZER = "Leave it out: ZOConfig(method=…, learning_rate=…) say how the weights move."
# Arguments of GRPOTrainer, of its older releases and of transformers' Trainer that have no counterpart.
OTHER_ARGUMENTS = {
    **dict.fromkeys(("environment_factory", "tools"), _TURNS),
    **dict.fromkeys(("optimizers", "optimizer_cls_and_kwargs"), _NO_OPTIMIZER),
    "quantization_config": "Load the model with it: AutoModelForCausalLM.from_pretrained(NAME, quantization_config=…).",
    "ref_model": "Leave it out: beta of GRPOConfig, kl of ZOConfig, compares with the model before step 1.",
    "tokenizer": "Give it as processing_class=tokenizer.",
    "compute_metrics": "Leave it out: what reward_funcs log with log_metric is measured on eval_dataset, too.",
    "data_collator": "Leave it out: rows become prompts by template and prompt of ZOConfig.",
    "model_init": "Give the model itself, or its name.",
}


def rollout_of(others: Values, args: Any) -> Callable[[list[Any], Any], Any] | None:
    """Return `rollout_func`, if it is given; refuse arguments of GRPOTrainer without a counterpart, unless they say
    nothing.

    Args:
        others: arguments of GRPOTrainer that ZOTrainer does not name.
        args: the options, as they are given.

    Raises:
        InputError: one is given that has no counterpart, or the function cannot write here.
        TypeError: nobody knows one.
    """
    rollout = others.get("rollout_func")
    if rollout is not None and not callable(rollout):
        raise InputError("rollout_func is no function", hint="It is called with prompts and the trainer.")
    if rollout is not None and getattr(args, "use_vllm", False):
        hint = "Leave use_vllm out, and write with trainer.model.generate: it is one member at a time."
        raise InputError("a rollout_func that writes with vLLM would see no member of a step", hint=hint)
    for name, value in others.items():
        if name == "rollout_func":
            continue
        if name not in OTHER_ARGUMENTS:
            raise TypeError(f"ZOTrainer.__init__() got an unexpected keyword argument {name!r}")
        if value is not None and value != (None, None):
            raise InputError(f"ZOTrainer takes no {name}", hint=OTHER_ARGUMENTS[name])
    return rollout
