"""Small random models with real tokenizers; nothing here is downloaded."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported, and transformers may do that

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

WORDS = "good bad film a the it was great terrible an awful lovely plot dull bright and not very is this".split()
FAMILIES = ["llama", "llama-tied", "gpt2", "opt", "qwen3"]


def pytest_collection_finish() -> None:
    """Keep the garbage collector off what is imported: transformers calls it after each training, for half a second."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Let Python end as it does: libraries complain of what is not collected."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word; an unknown word is <unk>."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<end>", "<unk>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<end>", bos_token="<end>", unk_token="<unk>"
    )


def random_model(family: str, seed: int = 0) -> PreTrainedModel:
    """A two-layer model of a family, its weights large enough that members and rows differ visibly."""
    torch.manual_seed(seed)
    size = {"vocab_size": 32, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0, "initializer_range": 0.3}
    layers = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
    heads = {"num_key_value_heads": 2, "intermediate_size": 48}
    if family in ("llama", "llama-tied"):
        config = LlamaConfig(**size, **layers, **heads, tie_word_embeddings=family == "llama-tied")
        model: PreTrainedModel = LlamaForCausalLM(config)
    elif family == "qwen3":
        model = Qwen3ForCausalLM(Qwen3Config(**size, **layers, **heads, head_dim=8, tie_word_embeddings=False))
    elif family == "opt":
        del size["initializer_range"]
        config = OPTConfig(**size, **layers, init_std=0.3, ffn_dim=48, word_embed_proj_dim=32)
        model = OPTForCausalLM(config)
    else:
        model = GPT2LMHeadModel(GPT2Config(**size, n_embd=32, n_layer=2, n_head=4, n_positions=64))
    return model.eval()


@pytest.fixture(scope="session")
def tiny_model_dir(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved two-layer Llama and its tokenizer."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    random_model("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
