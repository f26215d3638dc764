"""Small random models of many families; nothing here is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from transformers import PreTrainedModel

TOKENS: dict[str, Any] = {"vocab_size": 32, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
LAYERS: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
# Weights large enough that members and rows differ visibly.
WIDE: dict[str, Any] = {"initializer_range": 0.3}
PLAIN = {**TOKENS, **LAYERS, **WIDE, "intermediate_size": 48, "max_position_embeddings": 64}
HEADS = {**PLAIN, "num_key_value_heads": 2}
GPT2 = {**TOKENS, **WIDE, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
BART = {
    **{"d_model": 32, "max_position_embeddings": 64, "init_std": 0.3, "forced_eos_token_id": None},
    **{f"{half}_{name}": n for half in ("encoder", "decoder") for name, n in [("layers", 2), ("attention_heads", 4)]},
    **{f"{half}_ffn_dim": 48 for half in ("encoder", "decoder")},
}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}


def _opt() -> PreTrainedModel:
    size = {name: value for name, value in PLAIN.items() if name not in ("initializer_range", "intermediate_size")}
    return hf.OPTForCausalLM(hf.OPTConfig(**size, init_std=0.3, ffn_dim=48, word_embed_proj_dim=32))


def _gemma() -> PreTrainedModel:
    kinds = ["sliding_attention", "full_attention"]
    # Its embedding is scaled up: were it tied, each token would be followed by itself.
    size = {**HEADS, "head_dim": 8, "tie_word_embeddings": False}
    return hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**size, sliding_window=4, layer_types=kinds))


def _t5(**options: Any) -> PreTrainedModel:
    config = hf.T5Config(**{**TOKENS, "bos_token_id": None}, **T5, decoder_start_token_id=0, **options)
    model = hf.T5ForConditionalGeneration(config)
    with torch.no_grad():
        for weight in model.parameters():  # T5 begins with an embedding of size 1 and attention far below
            if weight.ndim == 2:
                weight.normal_(0.0, 0.3)
    return model


def _bart() -> PreTrainedModel:
    model = hf.BartForConditionalGeneration(hf.BartConfig(**TOKENS, **BART, decoder_start_token_id=1))
    model.generation_config.forced_bos_token_id = 2
    return model


CAUSAL: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**HEADS, tie_word_embeddings=False)),
    "llama-tied": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**HEADS, tie_word_embeddings=True)),
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2)),
    "opt": _opt,
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**HEADS, head_dim=8, tie_word_embeddings=False)),
    "gemma3": _gemma,
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**HEADS, sliding_window=4)),
    "phi": lambda: hf.PhiForCausalLM(hf.PhiConfig(**PLAIN)),
    "gpt-neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**PLAIN)),
    "bloom": lambda: hf.BloomForCausalLM(hf.BloomConfig(**TOKENS, **WIDE, hidden_size=32, n_layer=2, n_head=4)),
    "qwen3-moe": lambda: hf.Qwen3MoeForCausalLM(hf.Qwen3MoeConfig(**HEADS, **EXPERTS, head_dim=8)),
}
MASKED: dict[str, Callable[[], PreTrainedModel]] = {
    "bert": lambda: hf.BertForMaskedLM(hf.BertConfig(**PLAIN)),
    "roberta": lambda: hf.RobertaForMaskedLM(hf.RobertaConfig(**{**PLAIN, "max_position_embeddings": 66})),
}
ENCODER_DECODER: dict[str, Callable[[], PreTrainedModel]] = {
    "t5": _t5,
    "flan-t5": lambda: _t5(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "bart": _bart,
}
STATE = {**TOKENS, "hidden_size": 32, "num_hidden_layers": 2}
# Members of these cannot share a forward pass.
ALONE: dict[str, Callable[[], PreTrainedModel]] = {
    "mamba": lambda: hf.MambaForCausalLM(hf.MambaConfig(**STATE, **WIDE, state_size=8)),
}
BUILDERS = {**CAUSAL, **MASKED, **ENCODER_DECODER, **ALONE}


def random_model(family: str, seed: int = 0) -> PreTrainedModel:
    """A two-layer model of a family, its weights large enough that members and rows differ visibly."""
    torch.manual_seed(seed)
    return BUILDERS[family]().eval()


def with_logit(model: PreTrainedModel, token: int, value: float) -> PreTrainedModel:
    """Return the model, which gives `token` this logit from now on, whatever it reads."""

    def put(module: torch.nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
        return output.index_fill(-1, torch.tensor([token], device=output.device), value)

    model.get_output_embeddings().register_forward_hook(put)
    return model
