"""`reward_funcs` as TRL's GRPOTrainer takes them: functions of any signature, reward models, and paths of these."""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from zoreward.journal import fingerprint
from zoreward.neighbours.of_transformers import checkpoint_of, missing_weights
from zoreward.records import InputError, one_line
from zoreward.registry import Objective, assume_completions, get_objective, list_objectives

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from zoreward.trainer.options import ZOConfig

# Texts of one forward pass of a reward model.
TEXTS_AT_ONCE = 32


def rewards_of(reward_funcs: Any, processing_classes: Any, args: ZOConfig) -> list[Objective]:
    """Return an objective for each of `reward_funcs`, of names that differ: a second `f` is `f_2`.

    Args:
        reward_funcs: one, or a list: a function, whatever it takes; a sequence classifier of one logit, or the folder
            or Hub id of one; or what `get_objective` takes.
        processing_classes: the tokenizer of a reward model, or a list with one for each, None for the model's own.
        args: the options.

    Raises:
        ZorewardError: one of them is no reward, or the tokenizers do not fit them.
    """
    sources = list(reward_funcs) if isinstance(reward_funcs, list | tuple) else [reward_funcs]
    if not sources:
        raise InputError("reward_funcs is an empty list", hint="Give a function: reward_funcs=your_function.")
    several = isinstance(processing_classes, list | tuple)
    tokenizers = list(processing_classes) if several else [processing_classes] * max(1, len(sources))
    if len(tokenizers) != len(sources) or (processing_classes is not None and not several and len(sources) > 1):
        count = len(tokenizers) if several else 1
        message = f"{count} reward_processing_classes and {len(sources)} reward_funcs do not fit together"
        raise InputError(message, hint="Give one for each, None where it is no model.")
    found: list[Objective] = []
    for source, tokenizer in zip(sources, tokenizers, strict=True):
        reward = _reward(source, tokenizer, args)
        taken, name, count = {one.name for one in found}, reward.name, 1
        while name in taken:
            count += 1
            name = f"{reward.name}_{count}"
        found.append(reward if name == reward.name else replace(reward, name=name))
    return found


def _reward(source: Any, tokenizer: Any, args: ZOConfig) -> Objective:
    if isinstance(source, nn.Module):
        return _of_model(source, tokenizer, args, {"fingerprint": fingerprint(source)})
    if isinstance(source, str) and _is_model_path(source):
        return _of_model(_loaded(source, args), tokenizer, args, {"path": source})
    if callable(source) and not isinstance(source, Objective | type):
        return assume_completions(source)
    return get_objective(source)


def _is_model_path(source: str) -> bool:
    """Whether a text is the folder or the Hub id of a model, and not the name or the place of an objective."""
    if ":" in source or source.endswith(".py") or source in {entry.name for entry in list_objectives()}:
        return False
    return os.path.isfile(os.path.join(source, "config.json")) or source.count("/") == 1


def _loaded(path: str, args: ZOConfig) -> nn.Module:
    from transformers import AutoModelForSequenceClassification

    from zoreward.scoring import check_model_name

    try:
        check_model_name(path)  # transformers would ask a Hub that nobody reaches for most of a minute
        model, report = AutoModelForSequenceClassification.from_pretrained(
            path, num_labels=1, trust_remote_code=args.trust_remote_code, output_loading_info=True
        )
    except Exception as error:  # safetensors, the Hub and others raise their own
        message = f"no reward model can be loaded from {path!r}: {one_line(error)}"
        raise InputError(
            message, hint="Give a folder or a Hub id; or a function, or the name of an objective."
        ) from error
    if missing := missing_weights(report):
        message = f"{path!r} was never trained to score: its weights lack {missing[0]}"
        raise InputError(message, hint="Take a reward model.")
    return model  # type: ignore[no-any-return]


def _of_model(model: Any, tokenizer: Any, args: ZOConfig, values: dict[str, Any]) -> Objective:
    path = checkpoint_of(model)
    if tokenizer is None:
        if not path:
            hint = "Give it as reward_processing_classes."
            raise InputError("the reward model does not say where its tokenizer is", hint=hint)
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(path)
        except Exception as error:
            message = f"no tokenizer of the reward model can be loaded from {path!r}: {one_line(error)}"
            raise InputError(message, hint="Give it as reward_processing_classes.") from error
    tokenizer = copy.deepcopy(tokenizer)  # it may be the model's own, which is saved with it
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id  # it looks for the last token before these
    if not getattr(model, "hf_device_map", None):
        model.to(args.device)
    name = os.path.basename(path.rstrip("/")) or type(model).__name__
    reward = RewardOfModel(model.eval(), tokenizer)
    doc = "What a reward model gives for prompt and completion."
    return Objective(name, "completions", reward, (), values, doc, "", stateful=True, rowwise=True)


class RewardOfModel:
    """The logit of a sequence classifier for prompt and completion.

    Source: `GRPOTrainer._calculate_rewards` of TRL 1.16: texts are joined, conversations go through the chat template;
    no special tokens are added, padding stands on the right.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase):
        self._model, self._tokenizer = model, tokenizer

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any]) -> list[float]:
        """Return the reward of each completion."""
        texts = [self._text(p, c) for p, c in zip(prompts, completions, strict=True)]
        order = sorted(range(len(texts)), key=lambda n: (len(texts[n]), n))
        rewards = [0.0] * len(texts)
        for start in range(0, len(order), TEXTS_AT_ONCE):
            some = order[start : start + TEXTS_AT_ONCE]
            inputs = self._tokenizer(
                text=[texts[n] for n in some],
                return_tensors="pt",
                padding=True,
                padding_side="right",
                add_special_tokens=False,
            )
            accepted = inspect.signature(self._model.forward).parameters
            given = {name: value.to(self._model.device) for name, value in inputs.items() if name in accepted}
            for n, logit in zip(some, self._model(**given).logits[:, 0].double().tolist(), strict=True):
                rewards[n] = logit
        return rewards

    def _text(self, prompt: Any, completion: Any) -> str:
        if isinstance(prompt, str):
            return prompt + completion  # type: ignore[no-any-return]
        if self._tokenizer.chat_template is None:
            message = "the prompts are conversations, and the reward model's tokenizer has no chat template"
            raise InputError(message, hint="Take a reward model for conversations, or write the prompts as text.")
        return str(self._tokenizer.apply_chat_template([*prompt, *completion], tokenize=False))
