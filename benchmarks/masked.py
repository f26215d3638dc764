"""A masked model, pretrained here on the text at hand, tuned on SST-2 through a [MASK].

    python benchmarks/masked.py --data DATA_FOLDER --output runs/masked --samples-from LANGUAGE_MODEL --check

DATA_FOLDER holds sst2/train.jsonl, sst2/dev.jsonl and, where they are there, imdb_prompts and preferences; their texts,
without labels, are what the model learns to fill masks in, beside `--samples` texts that a language model writes behind
the prompts and behind "{sentence} It was". A WordPiece vocabulary is trained on them, then a BERT of `--layers` layers
for `--minutes`.

Then, all with the template of the task `sst2-masked`: the accuracy on sst2/dev.jsonl before tuning, also with the one
threshold without labels (the median margin of 256 training rows) that tuning must be judged beside; a learning rate
chosen by the dev rows that `zoreward tune` holds out of the training rows; and `--seeds` runs of `zoreward tune
neg-cross-entropy` with it, scored once on sst2/dev.jsonl. `--check` exits with 1 unless their mean is above the
accuracy before tuning. Appends to results/masked.csv.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from measure import Result, commit, finish, reach, record
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from zoreward.config import Prompting
from zoreward.data import load_rows, load_task, render
from zoreward.scoring import candidate_logprobs, engine_of, load_model

if TYPE_CHECKING:
    from numpy.typing import NDArray

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LENGTH = 64
IGNORED = -100
TUNING_SEED = 1000


def texts_in(folder: Path) -> list[str]:
    """Return the texts of the rows, without labels."""
    found = [row["sentence"] for row in load_rows(str(folder / "sst2/train.jsonl"))]
    for name, columns in (
        ("imdb_prompts", [["prompt"]]),
        ("preferences", [["prompt", "chosen"], ["prompt", "rejected"]]),
    ):
        path = folder / name / "train.jsonl"
        rows = load_rows(str(path)) if path.exists() else []
        found += ["".join(row[column] for column in own) for row in rows for own in columns]
    return found


@torch.no_grad()
def written_by(name: str, prompts: list[str], count: int, device: torch.device) -> list[str]:
    """Return texts that a language model writes behind prompts, drawn at temperature 1 from torch's own generator."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).to(device).eval()
    found: list[str] = []
    size = 4096 if device.type == "cuda" else 64
    while len(found) < count:
        some = [prompts[n % len(prompts)] for n in range(len(found), min(count, len(found) + size))]
        batch = tokenizer(some, return_tensors="pt", padding=True, return_token_type_ids=False).to(device)
        ids = model.generate(**batch, do_sample=True, top_k=0, max_new_tokens=LENGTH - 16, use_cache=True)
        found += tokenizer.batch_decode(ids, skip_special_tokens=True)
    return found


def wordpiece(texts: list[str], size: int) -> PreTrainedTokenizerFast:
    """Return a WordPiece tokenizer of lower-case words, trained on the texts."""
    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=SPECIAL, show_progress=False)
    core.train_from_iterator(texts, trainer)
    ends = [(token, core.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    core.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ends)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=core, mask_token="[MASK]", **names)


def masked(ids: torch.Tensor, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return BERT's inputs and labels: of 15 % of the tokens 80 % are masked, 10 % others, 10 % themselves."""
    special = ids < len(SPECIAL)
    drawn = torch.rand(ids.shape, device=ids.device)
    asked = (drawn < 0.15) & ~special
    labels = torch.where(asked, ids, IGNORED)
    inputs = torch.where(drawn < 0.12, SPECIAL.index("[MASK]"), ids)
    others = torch.randint(len(SPECIAL), vocabulary, ids.shape, device=ids.device)
    inputs = torch.where((drawn >= 0.12) & (drawn < 0.135), others, inputs)
    return torch.where(special, ids, inputs), labels


def pretrain(texts: list[str], options: argparse.Namespace, folder: Path, device: torch.device) -> dict[str, float]:
    """Train a masked model for some minutes and save it; returns what is told of it."""
    tokenizer = wordpiece(texts, options.vocabulary)
    encoded = tokenizer(texts, truncation=True, max_length=LENGTH, padding="max_length", return_tensors="pt")
    ids = encoded["input_ids"].to(device)
    torch.manual_seed(0)
    shape = {
        "hidden_size": options.hidden,
        "num_hidden_layers": options.layers,
        "num_attention_heads": options.hidden // 64,
    }
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=len(tokenizer), **shape, intermediate_size=4 * options.hidden, max_position_embeddings=128
        )
    ).to(device)
    rates: dict[str, Any] = {"lr": options.lr, "betas": (0.9, 0.98), "weight_decay": 0.01}
    optimizer = torch.optim.AdamW(model.parameters(), **rates, fused=device.type == "cuda")
    steps, start, loss, end = 0, time.perf_counter(), math.nan, 60 * options.minutes
    while (spent := time.perf_counter() - start) < end:
        for group in optimizer.param_groups:  # up over the first 5 % of the time, then down to 0
            group["lr"] = options.lr * min(spent / (0.05 * end), (1 - spent / end) / 0.95)
        batch = ids[torch.randint(len(ids), (options.batch_size,), device=device)]
        batch = batch[:, : int((batch != 0).sum(1).max())]
        inputs, labels = masked(batch, len(tokenizer))
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            output = model(input_ids=inputs, attention_mask=(batch != 0).long(), labels=labels)
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        steps += 1
        if steps % 100 == 0:
            loss = float(output.loss.detach())
            print(f"step {steps}, {spent:.0f} s: loss {loss:.3f}", flush=True)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"weights": sum(weight.numel() for weight in model.parameters()) / 1e6, "steps": steps, "loss": loss}


def margins(model: str, rows: list[Any]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return by how much "great" is likelier than "terrible" in each row, and the labels."""
    from transformers import AutoTokenizer

    task = load_task("sst2-masked")
    tokenizer = AutoTokenizer.from_pretrained(model)
    asked = Prompting(template=task.template, choices=task.choices, max_length=128)
    examples = render(rows, tokenizer, asked, needs="choices", kind="masked")
    logprobs = candidate_logprobs(engine_of(load_model(model), tokenizer.pad_token_id), examples)[0]
    return logprobs[:, 1] - logprobs[:, 0], np.array([example.reference for example in examples])


def tune(options: argparse.Namespace, model: str, jobs: list[tuple[float, int]]) -> list[dict[str, Any]]:
    """Run `zoreward tune` side by side, one run for each rate and seed; returns what they tell as JSON."""
    running = []
    threads = str(max(1, (os.cpu_count() or 1) // len(jobs)))
    for rate, seed in jobs:
        words = ["tune", "neg-cross-entropy", "--task", "sst2", "--model", model, "--json", "--seed", seed]
        words += ["--data", f"{options.data}/sst2/train.jsonl", "--test-data", f"{options.data}/sst2/dev.jsonl"]
        words += ["--dev-rows", options.dev_rows, "--steps", options.steps, "--batch-size", 64, "--eps", options.eps]
        words += ["--lr", rate, "--logging-steps", options.steps, "--output", f"{options.output}/{rate:g}-{seed}"]
        command = [sys.executable, "-m", "zoreward", *map(str, words)]
        environment = os.environ | {"OMP_NUM_THREADS": threads}
        with Path(options.output, f"{rate:g}-{seed}.log").open("w") as errors:
            running.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environment, text=True))
    found = []
    for (rate, seed), process in zip(jobs, running, strict=True):
        told, _ = process.communicate()
        if process.returncode:
            sys.exit(f"lr {rate:g}, seed {seed} failed: see {options.output}/{rate:g}-{seed}.log")
        found.append(json.loads(told.splitlines()[-1]))
        print(f"lr {rate:g}, seed {seed}: {found[-1]}", flush=True)
    return found


def main() -> None:
    """Pretrain, score, tune, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--pretrained", help="a masked model that is there already")
    parser.add_argument("--samples-from", help="a causal language model that writes more text")
    parser.add_argument("--samples", type=int, default=131072)
    parser.add_argument("--minutes", type=float, default=2.0, help="of pretraining")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=6144)
    parser.add_argument("--batch-size", type=int, default=256, help="of pretraining")
    parser.add_argument("--lr", type=float, default=1e-3, help="of pretraining")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-5, 3e-5, 1e-4, 3e-4], help="of tuning, to try")
    parser.add_argument("--eps", type=float, default=1e-3)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--dev-rows", type=int, default=512)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--commit", default=commit())
    parser.add_argument("--check", action="store_true", help="exit with 1 unless tuning helps")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    model, results = options.pretrained or str(folder / "base"), []
    if not options.pretrained:
        texts, start = texts_in(Path(options.data)), time.perf_counter()
        if options.samples_from:
            torch.manual_seed(0)
            prompts = [row["prompt"] for row in load_rows(f"{options.data}/imdb_prompts/train.jsonl")]
            prompts += [f"{row['sentence']} It was" for row in load_rows(f"{options.data}/sst2/train.jsonl")]
            texts += written_by(options.samples_from, prompts, options.samples, device)
        print(f"{len(texts):,} texts, {time.perf_counter() - start:.0f} s", flush=True)
        told = pretrain(texts, options, folder / "base", device)
        results += [Result("weights", told["weights"], "M"), Result("steps of pretraining", told["steps"], "")]
        results.append(Result("loss at masks, at the end of pretraining", told["loss"], "nats"))
    dev, labels = margins(model, load_rows(f"{options.data}/sst2/dev.jsonl"))
    train, _ = margins(model, load_rows(f"{options.data}/sst2/train.jsonl")[:256])
    before = float(((dev > 0) == labels).mean())
    results.append(Result("accuracy before tuning", before, ""))
    results.append(Result("with one label-free threshold", float(((dev > np.median(train)) == labels).mean()), ""))
    print(*results, sep="\n", flush=True)
    tried = tune(options, model, [(rate, TUNING_SEED) for rate in options.rates])
    _, rate = max(zip([one["score"] for one in tried], options.rates, strict=True))
    runs = tune(options, model, [(rate, seed) for seed in options.seeds])
    test = [one["test"] for one in runs]
    assert all(one["test_objective"] == "accuracy" for one in runs)
    results += [Result("learning rate", rate, ""), Result("95 % interval of the mean, ±", reach(test), "")]
    results.append(Result("accuracy after tuning, lowest", min(test), ""))
    results.append(Result("accuracy after tuning, mean", statistics.mean(test), "", least=math.nextafter(before, 1)))
    shape = f"{options.layers} layers × {options.hidden}, {options.steps} steps, {len(options.seeds)} seeds"
    record("masked", results, device, "float32", shape, options.commit)
    finish(results, options.check)


if __name__ == "__main__":
    main()
