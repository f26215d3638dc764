"""Small random models that read a text as a whole, and tokenizers with a mask."""

from __future__ import annotations

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    ModernBertConfig,
    ModernBertForMaskedLM,
    ModernBertForSequenceClassification,
    OPTConfig,
    OPTForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
)

WORDS = "good bad film a the it was great terrible an awful lovely plot dull bright and not very is this . , ?".split()
MASKED = ["bert", "roberta"]
CLASSIFIERS = ["bert", "roberta", "opt", "llama", "gpt2"]


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word between [CLS] and [SEP], as BERT's: a second text has type 1."""
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {
        name: f"[{name[:-6].upper()}]" for name in ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    }
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=words, model_input_names=inputs, **names)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes joined to words with the space in front, as RoBERTa's; its mask takes the space in front of it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *alphabet])}
    merges: list[tuple[str, str]] = []
    for word in ("Ġgood", "Ġbad", "Ġgreat", "Ġterrible", "great"):
        for end in range(2, len(word) + 1):
            if word[:end] not in vocabulary:
                merges.append((word[: end - 1], word[end - 1]))
                vocabulary[word[:end]] = len(vocabulary)
    core = Tokenizer(models.BPE(vocabulary, merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=False
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>"}
    mask = AddedToken("<mask>", lstrip=True, special=True)
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", mask_token=mask, **names)


def _config(family: str, vocabulary: int, **more: object) -> object:
    size = {"vocab_size": vocabulary, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    heads = {"intermediate_size": 48, "max_position_embeddings": 64, "initializer_range": 0.3, **more}
    if family == "bert":
        return BertConfig(**size, **heads, pad_token_id=0)
    if family == "roberta":
        return RobertaConfig(**size, **heads, pad_token_id=1, bos_token_id=0, eos_token_id=2, type_vocab_size=1)
    if family == "modernbert":
        ends = dict.fromkeys(("cls_token_id", "bos_token_id"), 2) | dict.fromkeys(("sep_token_id", "eos_token_id"), 3)
        return ModernBertConfig(**size, **heads, **ends, pad_token_id=0)
    if family == "opt":
        places = {
            "max_position_embeddings": 64,
            "init_std": 0.3,
            "ffn_dim": 48,
            "word_embed_proj_dim": 32,
            "pad_token_id": 0,
        }
        return OPTConfig(**size, **places, **more)
    if family == "llama":
        return LlamaConfig(**size, **heads, num_key_value_heads=2, pad_token_id=None)
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.3}
    return GPT2Config(vocab_size=vocabulary, **shape, pad_token_id=None, **more)


def masked_model(family: str, seed: int = 0, vocabulary: int = 320) -> PreTrainedModel:
    """A two-layer masked model, its weights large enough that members and rows differ visibly."""
    torch.manual_seed(seed)
    kinds = {"bert": BertForMaskedLM, "roberta": RobertaForMaskedLM, "modernbert": ModernBertForMaskedLM}
    return kinds[family](_config(family, vocabulary)).eval()


def classifier(family: str, seed: int = 0, names: tuple[str, ...] = ("bad", "good", "so so")) -> PreTrainedModel:
    """A two-layer classifier of a family."""
    torch.manual_seed(seed)
    kinds = {
        "bert": BertForSequenceClassification,
        "roberta": RobertaForSequenceClassification,
        "modernbert": ModernBertForSequenceClassification,
        "opt": OPTForSequenceClassification,
        "llama": LlamaForSequenceClassification,
        "gpt2": GPT2ForSequenceClassification,
    }
    numbered = dict(enumerate(names))
    labels = {"id2label": numbered, "label2id": {name: number for number, name in numbered.items()}}
    return kinds[family](_config(family, 320, **labels)).eval()
