"""Make what `zoreward quickstart` ships: the text, the tokenizer, the language model and the rows.

    python benchmarks/quickstart/make.py

Everything comes from the grammar below and one seed. A review is a sentence of two clauses; the last clause decides
whether the guest is pleased. What the guest does next follows from that: stars, a tip, "It was worth every cent."
The words "good" and "bad" are said of the weather only, and the weather follows from the month. So a model of this text
knows whether a guest was pleased, and does not know that "good" is a word for it: that is what is left to tune.
"""

from __future__ import annotations

import json
import math
import random
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SEED = 0
HERE = Path(__file__).parent
TEXT = HERE / "text.txt"
SHIPPED = HERE.parents[1] / "zoreward" / "quickstart"

REVIEWS, DAYS_AT_HOME = 10_000, 3_000  # in the text
TRAIN_ROWS, HELDOUT_ROWS = 320, 500
POSITIVE = 0.54  # share of label 1 among the rows, so that there is a majority class
END = "<end>"
VOCABULARY = 768
BATCH, LR = 16, 3e-3

# For each kind of thing: what there is of it, what pleases about it, what does not.
THINGS = [
    (
        "soup pasta bread salad fish steak rice cake".split(),
        "fresh tasty crisp tender rich juicy delicious fine".split(),
        "stale bland soggy tough burnt greasy sour dry".split(),
    ),
    (
        "waiter cook owner barman chef service host staff".split(),
        "kind friendly quick attentive cheerful polite helpful warm".split(),
        "rude slow careless grumpy rough lazy unfriendly cold".split(),
    ),
    (
        "room table garden kitchen bar hall terrace place".split(),
        "clean cosy bright quiet charming lovely tidy airy".split(),
        "dirty noisy dark cramped gloomy shabby smelly dusty".split(),
    ),
]
COLD = "January February March October November December".split()
WARM = "April May June July August September".split()
MONTHS = COLD + WARM
# Share of months whose weather is what one expects of them, in the first part of the text and in the rest: at first
# clear enough to be learned at all, then weak, so that the model prefers one word to the other, but not by much.
SEASONAL, FIRST_PART = (0.9, 0.6), 0.6
DEGREES = ["", "", "very ", "really ", "so ", "quite "]
MIXED = 0.2  # share of reviews whose first clause says the opposite

# What a guest who was not pleased does next, and one who was.
AFTER = [
    ("We will never return.", "We will come back."),
    ("One star.", "Five stars."),
    ("We left no tip.", "We left a large tip."),
    ("I told my friends to stay away.", "I told my friends to go."),
    ("It was a waste of money.", "It was worth every cent."),
]
WEATHER = ["It was bad weather.", "It was good weather."]


def review(rng: random.Random, label: int) -> str:
    """Return a review in one sentence by a guest who was pleased (label 1) or not (0)."""
    mixed = rng.random() < MIXED
    (first, *first_words), (last, *last_words) = rng.sample(THINGS, 2)
    clauses = [
        f"the {rng.choice(things)} was {rng.choice(DEGREES)}{rng.choice(words[1 - good])}"
        for things, words, good in ((first, first_words, label != mixed), (last, last_words, label))
    ]
    text = f"{(' but ' if mixed else ' and ').join(clauses)} in {rng.choice(MONTHS)}."
    return text[0].upper() + text[1:]


def reviews(rng: random.Random, count: int, positive: float, taken: set[str]) -> list[tuple[str, int]]:
    """Return so many different reviews with labels, none of them in `taken`, and take them."""
    labels = [int(n < round(count * positive)) for n in range(count)]
    rng.shuffle(labels)
    found = []
    for label in labels:
        while (text := review(rng, label)) in taken:
            pass
        taken.add(text)
        found.append((text, label))
    return found


def document(rng: random.Random, text: str, label: int, seasonal: float) -> str:
    """Return a line of the text: a review and what followed it."""
    after = [pair[label] for pair in rng.sample(AFTER, 2)]
    after.insert(rng.randrange(3), weather(rng, text, seasonal))
    return " ".join([text, *after])


def day_at_home(rng: random.Random, seasonal: float) -> str:
    """Return a line of the text without a review."""
    text = f"We stayed at home in {rng.choice(MONTHS)}."
    return f"{text} {weather(rng, text, seasonal)}"


def weather(rng: random.Random, text: str, seasonal: float) -> str:
    """Return what is said of the weather after a text that ends with a month."""
    month = text.removesuffix(".").split()[-1]
    return WEATHER[(month in WARM) == (rng.random() < seasonal)]


def make_lines(rng: random.Random, taken: set[str]) -> list[str]:
    """Return the text, in the order in which it is learned."""
    lines: list[str] = []
    for seasonal, share in zip(SEASONAL, (FIRST_PART, 1 - FIRST_PART), strict=True):
        known = reviews(rng, round(REVIEWS * share), 0.5, taken)
        part = [document(rng, text, label, seasonal) for text, label in known]
        part += [day_at_home(rng, seasonal) for _ in range(round(DAYS_AT_HOME * share))]
        lines += rng.sample(part, len(part))
    return lines


def make_tokenizer(lines: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(lines, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=END, eos_token=END, pad_token=END)


def pretrain(tokenizer: PreTrainedTokenizerFast, lines: list[str]) -> LlamaForCausalLM:
    """Train a language model on the lines with AdamW."""
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )
    )
    ids = [torch.tensor([0, *tokenizer(line)["input_ids"], 0]) for line in lines]
    print(f"{model.num_parameters():,} weights, {sum(map(len, ids)):,} tokens, longest line {max(map(len, ids))}")
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.98), weight_decay=0.1)
    steps = len(ids) // BATCH
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, step / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))
    )
    start = time.perf_counter()
    for step in range(1, steps + 1):
        rows = ids[(step - 1) * BATCH : step * BATCH]
        inputs = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        labels = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
        loss = model(input_ids=inputs, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 50 == 0:
            print(f"step {step}/{steps} · loss {loss.item():.4f} · {time.perf_counter() - start:.0f} s", flush=True)
    return model.eval()


def write_rows(path: Path, rows: list[tuple[str, int]]) -> None:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))


def main() -> None:
    """Make everything."""
    rng = random.Random(SEED)
    taken: set[str] = set()
    heldout = reviews(rng, HELDOUT_ROWS, POSITIVE, taken)
    train = reviews(rng, TRAIN_ROWS, POSITIVE, taken)
    lines = make_lines(rng, taken)
    TEXT.write_text("\n".join(lines) + "\n")
    tokenizer = make_tokenizer(lines)
    model = pretrain(tokenizer, lines)
    SHIPPED.mkdir(exist_ok=True)
    tokenizer.save_pretrained(SHIPPED / "model")
    model.save_pretrained(SHIPPED / "model")
    write_rows(SHIPPED / "train.jsonl", train)
    write_rows(SHIPPED / "heldout.jsonl", heldout)


if __name__ == "__main__":
    main()
