"""A reward model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

from zoreward import objective
from zoreward_objectives.arguments import hinted

# Tokens of one forward pass on a GPU, padding included.
GPU_TOKENS = 16384


@objective("reward-model", rowwise=True)
class RewardModel:
    """What a reward model gives for prompt and completion: a sequence classifier with one logit.

    Plain texts are joined and read without the tokens that the tokenizer would put around them, as in TRL's
    GRPOTrainer. Conversations go through the reward model's own chat template. Texts that are too long lose tokens on
    the left.

    Source: the rewards of TRL's GRPOTrainer for a model.
    """

    def __init__(
        self,
        *,
        reward_model: str,
        activation: Literal["none", "sigmoid"] = "none",
        eos: bool = False,
        special_tokens: bool = False,
        reward_max_length: int | None = None,
        reward_batch_size: int | None = None,
        reward_dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None,
        reward_device: str | None = None,
    ):
        """Load the reward model.

        Args:
            reward_model: a folder or a Hub id.
            activation: sigmoid maps the logit to a number between 0 and 1.
            eos: put the end token behind plain texts, as TRL's RewardTrainer does in training.
            special_tokens: put the tokenizer's own tokens (BOS, or CLS and SEP) around plain texts.
            reward_max_length: most tokens of prompt and completion; by default the reward model's context.
            reward_batch_size: texts at once; by default 16 on a CPU, and as many as make 16,384 tokens on a GPU.
            reward_dtype: of the weights; by default float32 on a CPU and the checkpoint's own elsewhere.
            reward_device: where the reward model runs; by default the GPU if there is one.

        Raises:
            ValueError: it is no reward model, or an option does not fit it.
        """
        if activation not in ("none", "sigmoid"):
            raise ValueError(f"there is no activation {activation!r}: take none or sigmoid")
        for name, limit in (("reward_batch_size", reward_batch_size), ("reward_max_length", reward_max_length)):
            if limit is not None and limit < 1:
                raise ValueError(f"{name} is at least 1, not {limit}")
        self._name = reward_model
        self._tokenizer, self._model = _load(reward_model, reward_dtype, reward_device)
        context = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        self._max_length = min((limit for limit in (reward_max_length, context) if limit), default=None)
        self._sigmoid, self._batch_size = activation == "sigmoid", reward_batch_size
        self._special_tokens = special_tokens
        self._end = self._tokenizer.eos_token if eos else ""
        if self._end is None:
            raise ValueError(f"the tokenizer of {reward_model!r} has no end token: leave the option eos out")

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        """Return the reward of each completion."""
        pairs = list(zip(prompts, completions, strict=True))
        chat = bool(pairs) and not isinstance(pairs[0][0], str)
        texts = [self._chat(p, c) if chat else self._plain(p + c) for p, c in pairs]
        encoded = self._tokenizer(texts, add_special_tokens=self._special_tokens and not chat, verbose=False)
        tokens = [ids[-self._max_length :] if self._max_length else ids for ids in encoded["input_ids"]]
        order = sorted(range(len(tokens)), key=lambda n: (len(tokens[n]), n))
        rewards = [0.0] * len(tokens)
        for batch in self._batches(order, tokens):
            for n, logit in zip(batch, self._logits([tokens[n] for n in batch]), strict=True):
                rewards[n] = 0.5 * (1 + math.tanh(logit / 2)) if self._sigmoid else logit
        return rewards

    def _batches(self, order: list[int], tokens: list[list[int]]) -> list[list[int]]:
        """Texts in order of their lengths, cut into batches."""
        size = self._batch_size or (16 if self._model.device.type == "cpu" else None)
        batches: list[list[int]] = []
        for n in order:  # the last of a batch is the longest
            full = len(batches[-1]) if batches else 0
            if full and (full < size if size else (full + 1) * len(tokens[n]) <= GPU_TOKENS):
                batches[-1].append(n)
            else:
                batches.append([n])
        return batches

    def _plain(self, text: str) -> str:
        return text if text.endswith(self._end) else text + self._end

    def _chat(self, prompt: list[dict[str, Any]], completion: list[dict[str, Any]]) -> str:
        if self._tokenizer.chat_template is None:
            raise hinted(
                ValueError(f"the prompts are conversations, and the tokenizer of {self._name!r} has no chat template"),
                "take a reward model for conversations, or write the prompts as text",
            )
        return str(self._tokenizer.apply_chat_template(prompt + completion, tokenize=False))

    def _logits(self, tokens: list[list[int]]) -> list[float]:
        import torch
        from torch.nn.attention import SDPBackend, sdpa_kernel

        pad = self._model.config.pad_token_id
        width = max([1, *map(len, tokens)])
        device = self._model.device
        ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in tokens], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in tokens], device=device)
        # cuDNN's attention makes a plan for each new shape, 10 to 50 ms, and shapes hardly come back.
        kinds = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
        with torch.inference_mode(), sdpa_kernel(kinds) if device.type == "cuda" else nullcontext():
            logits = self._model(input_ids=ids, attention_mask=mask).logits
        rewards: list[float] = logits[:, 0].double().tolist()
        return rewards


def _load(name: str, dtype: str | None, device: str | None) -> tuple[Any, Any]:
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    if not Path(name).exists() and name.startswith((".", "/", "~")):
        raise hinted(ValueError(f"there is no reward model folder {name!r}"), "give a folder, or a Hub id")
    try:
        config = AutoConfig.from_pretrained(name)
        tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:  # safetensors, sentencepiece, the Hub and others raise their own
        raise ValueError(f"no reward model could be loaded from {name!r}: {_first_line(error)}") from error
    if config.num_labels != 1:
        message = f"{name!r} has {config.num_labels} logits, and a reward model has one"
        raise hinted(ValueError(message), "take a model trained with num_labels=1")
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    chosen = dtype or ("float32" if place.type == "cpu" else "auto")
    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            name, config=config, dtype=chosen, output_loading_info=True
        )
    except Exception as error:
        raise ValueError(f"no reward model could be loaded from {name!r}: {_first_line(error)}") from error
    if report["missing_keys"]:
        first = sorted(report["missing_keys"])[0]
        raise hinted(
            ValueError(f"{name!r} was never trained to score: its weights lack {first}"), "take a reward model"
        )
    if model.config.pad_token_id is None:  # as in TRL: the model looks for the last token that is no padding
        pad = tokenizer.pad_token_id
        model.config.pad_token_id = tokenizer.eos_token_id if pad is None else pad
    if model.config.pad_token_id is None:
        raise ValueError(f"the tokenizer of {name!r} has neither a padding token nor an end token")
    return tokenizer, model.to(place).eval()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
