"""What the people in these journeys have: a CSV, and a small model that has read texts like theirs."""

from __future__ import annotations

import csv
import random
from pathlib import Path

TOPICS = {
    "billing": "invoice refund charged card paid twice".split(),
    "bug": "crash error freeze broken button screen".split(),
    "praise": "love great thanks wonderful helpful team".split(),
}
FILLER = "the app my i it is was a for please today again with and you".split()
PROMPT = "{message}\nlabel:"


def messages(count: int, seed: int) -> list[dict[str, str]]:
    """Rows with the columns id, message and label: seven words, of which two are of the label's topic."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        label = rng.choice(list(TOPICS))
        words = [*rng.choices(FILLER, k=5), *rng.choices(TOPICS[label], k=2)]
        rng.shuffle(words)
        rows.append({"id": str(number), "message": " ".join(words), "label": label})
    return rows


def write_csv(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def save_model(folder: Path, misled: float = 0.6) -> None:
    """Save a two-layer Llama that has learnt what the labels are, with gradients, from rows of which so many of
    `billing` and `bug` were called `praise`: so it tells them apart, and says `praise` too often."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = sorted({*FILLER, *TOPICS, *(word for topic in TOPICS.values() for word in topic), "label", ":"})
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<end>", "<unk>", *words])}
    by_word = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    by_word.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "eos_token": "<end>", "bos_token": "<end>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=by_word, **special)
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    ends = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(vocabulary), max_position_embeddings=64, **size, **ends))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    rng = random.Random(1)
    for step in range(120):
        rows = messages(32, 1000 + step)
        said = ["praise" if rng.random() < misled else row["label"] for row in rows]
        texts = [f"{PROMPT.format(**row)} {label}" for row, label in zip(rows, said, strict=True)]
        tokens = torch.tensor(tokenizer(texts)["input_ids"])
        labels = tokens.clone()
        labels[:, :-1] = -100
        model(input_ids=tokens, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
