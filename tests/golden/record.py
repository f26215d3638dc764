"""Record the golden runs anew: `OMP_NUM_THREADS=1 python tests/golden/record.py`, a minute on one slow core.

24 short runs over methods, kinds of directions, kinds of objectives and dtypes, each in a file `runs/NAME.json` that
tests/test_golden.py holds the code to:

| field | holds |
|---|---|
| `model` | the family of tests/families.py and the dtype; `made_model` makes its weights |
| `journal` | the lines of the run's journal as they were written, the header without what depends on the machine |
| `asked` | [seed, coefficient] of each term of each member of the last step |
| `first`, `last` | SHA-256 of all weights before step 1 and after the last step |
| `z` | the bits of some entries of directions: of the first step's first term, and of the last step's last one |
| `requests` | tokens of some rows: a prompt and its candidates, or what the tuned model wrote behind it |
| `logprobs` | mean log-probability per token of each candidate: of the base, of two members of the first step at the |
| | base, and of the tuned model |

The files pin what must not change: a commit that records them anew says why. Nothing in them depends on the day, the
folder or the releases of libraries, apart from the last bits of scores and log-probabilities, and what follows from
those: two recordings on one machine are the same bytes. Weights come from numpy's Philox, whose words are the same in
every release of numpy, by exact arithmetic.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # where families.py is

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast, PrinterCallback

from families import random_model
from tiny_tokenizers import wrap
from zoreward.journal import JOURNAL_NAME, StoredRun, checked_base, load_run
from zoreward.journal.lines import encode
from zoreward.members import Tuned
from zoreward.methods import Method, make_method
from zoreward.noise import seeds
from zoreward.records import Example, Member, Term
from zoreward.scoring import LocalEngine, candidate_logprobs, checked_engine, engine_of
from zoreward.trainer import ZOConfig, ZOTrainer

FOLDER = Path(__file__).with_name("runs")
STEPS = 5
# What of a header depends on the machine that records, on its libraries, or on the text of the code.
DROPPED = ("versions", "model", "model_config", "code")


@dataclass(frozen=True)
class Golden:
    """One run.

    Args:
        name: of its file: method, directions or adapter, kind of objective, dtype.
        family: of the model.
        options: of `ZOConfig`, beside those of its kind.
        objective: instead of that of its kind.
    """

    name: str
    family: str
    options: dict[str, Any] = field(default_factory=dict)
    objective: str | None = None

    @property
    def kind(self) -> str:
        return next(kind for kind in KINDS if f"-{kind}-" in self.name)

    @property
    def dtype(self) -> str:
        return "bfloat16" if self.name.endswith("-bf16") else "float32"


LOW_RANK, LORA = {"noise": "low-rank"}, {"tune": "lora", "lora_rank": 4, "eps": 0.2, "learning_rate": 0.05}
FALLING = {"lr_scheduler_type": "linear"}
# Of methods whose steps do not grow with the slope of the score.
BOLD = {"learning_rate": 0.05}
RUNS = [
    Golden("spsa-dense-choices-fp32", "llama", {"num_directions": 2, "weight_decay": 0.1, **FALLING}),
    Golden("spsa-dense-choices-bf16", "llama", {"num_directions": 2, "weight_decay": 0.1}),
    Golden("spsa-dense-preferences-bf16", "gpt2", {"anchor": 20.0, "distribution": "gaussian"}),
    Golden("spsa-dense-texts-fp32", "llama-tied", {"noise": "dense", "num_directions": 3, "normalize": "rank", **BOLD}),
    Golden("spsa-low-rank-choices-fp32", "gpt2", {**LOW_RANK, "rank": 3, "distribution": "gaussian"}),
    Golden("spsa-low-rank-texts-bf16", "qwen3", {"num_directions": 4, **BOLD}),
    Golden("spsa-lora-choices-bf16", "qwen3", {**LORA}),
    Golden("spsa-lora-texts-fp32", "llama", {**LORA, "num_directions": 3}),
    Golden("spsa-lora-preferences-fp32", "llama-tied", {**LORA, "blocks": 2}),
    Golden("momentum-dense-likelihood-fp32", "opt", {"window": 3}),
    Golden("momentum-low-rank-preferences-bf16", "llama", {**LOW_RANK, "momentum": 0.5, "window": 3, "blocks": 2}),
    Golden("sign-dense-choices-bf16", "llama", {"more_every": 2, **BOLD}, "accuracy"),
    Golden("sign-lora-preferences-bf16", "gpt2", {**LORA, "learning_rate": 0.1}),
    Golden("svrg-dense-choices-fp32", "llama", {"full_every": 3, "full_rate": 2.0}),
    Golden("svrg-lora-choices-bf16", "llama", {**LORA, "full_every": 2, "full_rate": 1.0, "anneal_every": 2}),
    Golden("lozo-low-rank-choices-bf16", "llama", {"refresh": 2}),
    Golden("lozo-m-low-rank-texts-fp32", "qwen3", {"refresh": 3, "window": 3, "num_directions": 2, "eps": 0.1}),
    Golden("subzero-low-rank-choices-fp32", "llama", {"refresh": 3, "rank": 5}),
    Golden("subzero-low-rank-preferences-bf16", "llama", {"refresh": 2, "rank": 40, "momentum": 0.5, **BOLD}),
    Golden("sparse-dense-choices-fp32", "qwen3"),
    Golden("bcd-dense-choices-bf16", "opt", {"weight_decay": 1.0}),
    Golden("es-dense-texts-fp32", "gpt2", {"num_directions": 4, **BOLD}),
    Golden("fzoo-dense-choices-bf16", "llama-tied", {"num_directions": 4, **BOLD}),
    Golden("eggroll-low-rank-preferences-fp32", "llama", {"num_directions": 3, "distribution": "rademacher", **BOLD}),
]  # fmt: skip

# --- what the runs are made of ---------------------------------------------------------------------------------------

WORDS = (
    "good bad film a the it was great terrible an awful lovely plot dull bright and not very is this "
    "of in story long short actor scene quite ending"
).split()
GOOD, BAD = "good great lovely bright".split(), "bad awful dull terrible".split()
# Prompts, and below candidates, of several lengths: rows are padded, and candidates have one token or two.
REVIEWS = [f"{a} {c} film {e}" for a, c, e in zip(GOOD + BAD, BAD + GOOD, ["", "it was quite a plot"] * 4, strict=True)]


def worth(completions: Sequence[str], **columns: Any) -> list[float]:
    """Reward completions by the mean place of their words in the list of all words."""
    places = [[WORDS.index(word) for word in text.split() if word in WORDS] for text in completions]
    return [sum(found) / len(WORDS) / max(1, len(found)) for found in places]


KINDS: dict[str, dict[str, Any]] = {
    "choices": {
        "objective": "neg-cross-entropy",
        "rows": [{"text": text, "label": i % 2} for i, text in enumerate(REVIEWS)],
        "options": {"template": "{text} it was", "choices": [" not good", " very"]},
    },
    "likelihood": {
        "objective": "log-likelihood",
        "rows": [{"text": text, "word": text.split()[0]} for text in REVIEWS],
        "options": {"template": "{text} it was", "answer": " {word} and bright"},
    },
    "texts": {
        "objective": worth,
        "rows": [{"prompt": text} for text in REVIEWS],
        "options": {"max_completion_length": 6},
    },
    "preferences": {
        "objective": "preference",
        "rows": [
            {"prompt": f"{text} was", "chosen": f" {a}", "rejected": f" {b} and {b}"}
            for text, a, b in zip(REVIEWS, GOOD * 2, BAD * 2, strict=True)
        ],
        "options": {},
    },
}


def made_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word; an unknown word is <unk>."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<end>", "<unk>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return wrap(words, pad_token="<pad>", eos_token="<end>", bos_token="<end>", unk_token="<unk>")


@torch.no_grad()
def made_model(family: str, dtype: str) -> PreTrainedModel:
    """A two-layer model whose weights depend on their names alone: even over ±0.4, of vectors near 1 or 0."""
    model = random_model(family)
    for name, weight in model.named_parameters():
        even = np.random.Philox(key=int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little"))
        words = even.random_raw(weight.numel()) >> np.uint64(40)  # 24 bits: the numbers below are exact
        values = torch.from_numpy(words.astype(np.float32) * np.float32(2.0**-23) - np.float32(1)).view(weight.shape)
        centre, width = (0.0, 0.375) if weight.ndim > 1 else (float(name.endswith("weight")), 0.125)
        weight.copy_(centre + width * values)
    return model.to(getattr(torch, dtype))


# --- what is asked of zoreward: what a change of its insides may have to change here ---------------------------------


def method_of(header: dict[str, Any]) -> Method:
    """The method of a run."""
    return make_method(**header["method"])


def base_of(run: StoredRun, model: PreTrainedModel) -> tuple[nn.Module, Tuned]:
    """The base of a run, with the adapter that it made, and the weights that it tuned."""
    return checked_base(run, model)


def entries_of(term: Term, stream: int, shape: Sequence[int]) -> NDArray[np.float32]:
    """A term's direction for one tensor, flat; by the definition, not by the kernels."""
    return term.family.entries(term.seed, stream, tuple(shape), 0, int(np.prod(shape)))


def examples_of(requests: Iterable[dict[str, Any]]) -> list[Example]:
    """Rows made ready of their tokens."""
    return [
        Example(
            row={}, prompt="", candidates=("",) * len(one["targets"]), reference=0,
            prompt_tokens=tuple(one["prompt"]), candidate_tokens=tuple(map(tuple, one["targets"])),
        )
        for one in requests
    ]  # fmt: skip


PAIR = ((Term(1, 0.05),), (Term(1, -0.05),))


def reader_for(model: nn.Module, tuned: Tuned | None = None) -> LocalEngine:
    """What reads with a model."""
    return engine_of(model, 0, tuned=tuned)


def logprobs_of(
    reader: LocalEngine, requests: Iterable[dict[str, Any]], members: Sequence[Member] = ((),)
) -> NDArray[np.float64]:
    """The mean log-probability per token of each candidate under each member: (members, rows, candidates)."""
    return candidate_logprobs(reader, examples_of(requests), members)


def tolerance_of(reader: LocalEngine, requests: Iterable[dict[str, Any]], members: Sequence[Member] = PAIR) -> float:
    """By how much log-probabilities may differ from those of another machine, or of other batches.

    In float32 1e-5: rounding makes 2e-6 of the same weights in float64. In half precision four times the floor that the
    self-check finds for the model on these rows: a root mean square over the vocabulary, of which one token's
    log-probability is seldom more than three times off.

    Args:
        reader: what reads.
        requests: the rows.
        members: two that differ, from which the floor is taken.
    """
    if next(reader.model.parameters()).dtype == torch.float32:
        return 1e-5
    check = checked_engine(reader.model, 0, examples_of(requests), members, tuned=reader.tuned).check
    assert check is not None and check.problem is None, check
    return 4 * check.noise


# --- recording -------------------------------------------------------------------------------------------------------


def digest(model: nn.Module) -> str:
    """SHA-256 of the names and bytes of all weights."""
    found = hashlib.sha256()
    for name, weight in sorted((seeds.canonical_name(name), weight) for name, weight in model.named_parameters()):
        found.update(name.encode() + weight.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def bits(values: Iterable[np.float32]) -> list[str]:
    """Bit patterns in hexadecimal.

    >>> bits(np.float32([1.0, -2.0]))
    ['3f800000', 'c0000000']
    """
    return [f"{int(pattern):08x}" for pattern in np.asarray(list(values), np.float32).view(np.uint32)]


def record(golden: Golden, folder: Path) -> dict[str, Any]:
    """Do a run in an empty folder and return what is recorded of it."""
    trainer = trained(golden, folder)
    journal = portable(folder / JOURNAL_NAME)
    run = load_run(folder / JOURNAL_NAME)
    base, tuned = base_of(run, made_model(golden.family, golden.dtype))
    method, first = method_of(run.header), digest(base)
    members = method.ask(method.init()).members[-2:]
    asked = method.ask(state_before_last(method, run)).members
    requests, reader, tuned_reader = requests_of(trainer), reader_for(base, tuned), reader_for(trainer.model)
    base_logprobs, *members_logprobs = logprobs_of(reader, requests, [(), *members]).tolist()
    logprobs = {
        "base": base_logprobs,
        "members": members_logprobs,
        "tuned": logprobs_of(tuned_reader, requests)[0].tolist(),
    }
    tolerance = max(tolerance_of(reader, requests, members), tolerance_of(tuned_reader, requests))
    check_moved(golden, logprobs, tolerance)
    return {
        "model": {"family": golden.family, "dtype": golden.dtype},
        "journal": journal,
        "asked": [[[term.seed, term.coefficient] for term in member] for member in asked],
        "first": first,
        "last": digest(trainer.model),
        "z": [*some_entries(run, tuned, 0, 0), *some_entries(run, tuned, run.n_steps - 1, -1)],
        "requests": requests,
        "logprobs": logprobs,
    }


def trained(golden: Golden, folder: Path) -> ZOTrainer:
    """Do a run; return its trainer."""
    kind = KINDS[golden.kind]
    options = {"eps": 0.05, "learning_rate": 0.005, "method": re.split("-(dense|low-rank|lora)-", golden.name)[0]}
    args = ZOConfig(
        str(folder), max_steps=STEPS, per_device_train_batch_size=4, use_cpu=True, disable_tqdm=True,
        logging_strategy="no", save_strategy="no", seed=11, **{**options, **kind["options"], **golden.options},
    )  # fmt: skip
    trainer = ZOTrainer(
        made_model(golden.family, golden.dtype), objective=golden.objective or kind["objective"], args=args,
        train_dataset=kind["rows"], processing_class=made_tokenizer(),
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer


def portable(path: Path) -> list[dict[str, Any]]:
    """Take what depends on the machine out of a journal's header, in the file too; return its lines."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for name in DROPPED:
        lines[0].pop(name, None)
    crc, encoded = 0, []
    for line in lines:
        del line["crc"]
        text, crc = encode(line, crc)
        encoded.append(text.decode())
    for name, value in lines[0].items():
        for own in (str(path.parent), str(Path(__file__).parents[2]), torch.__version__, transformers.__version__):
            if own in json.dumps(value):
                sys.exit(f"the header's {name!r} holds {own!r}, which other machines do not have: take it into DROPPED")
    path.write_text("".join(encoded))
    return [json.loads(text) for text in encoded]


def state_before_last(method: Method, run: StoredRun) -> Any:
    """Where a run stood before its last step."""
    state = method.init()
    for step in range(run.n_steps - 1):
        record = run.record(step)
        _, state = method.tell(state, method.ask(state), record.scores, lr=record.lr)
    return state


def requests_of(trainer: ZOTrainer) -> list[dict[str, Any]]:
    """The tokens of some rows: a prompt and its candidates, or what the tuned model writes behind it."""
    rows = list(trainer.train_dataset)[:3]
    targets = [row.candidate_tokens for row in rows]
    if trainer.objective.needs == "completions":
        [written] = trainer.scorer.score(rows)
        targets = [(completion.tokens,) for completion in written.completions]
    return [
        {"prompt": list(row.prompt_tokens), "targets": [list(one) for one in own]}
        for row, own in zip(rows, targets, strict=True)
    ]


def some_entries(run: StoredRun, tuned: Tuned, step: int, number: int) -> list[dict[str, Any]]:
    """Bits of entries of a step's term: of the last matrix that it moves and, where it moves some, the last vector."""
    term = run.record(step).update.terms[number]
    moved = {
        min(weight.ndim, 2): (name, list(weight.shape))
        for name, weight in tuned.weights.items()
        if term.moves(weight.ndim) and term.block in (None, tuned.blocks.get(name))
    }
    found = []
    for name, shape in moved.values():
        z = entries_of(term, tuned.streams[name], shape)
        at = sorted({0, 1, 2, 3, len(z) // 3, len(z) // 2, len(z) - 2, len(z) - 1})
        found.append({"step": step, "term": number, "weight": name, "shape": shape, "at": at, "bits": bits(z[at])})
    return found


def check_moved(golden: Golden, logprobs: dict[str, Any], tolerance: float) -> None:
    """Make sure that members and tuned model stand further from the base than is tolerated, or they pin nothing."""
    base, *others = (np.array(one) for one in [logprobs["base"], *logprobs["members"], logprobs["tuned"]])
    moved = [float(np.abs(other - base).max()) for other in others]
    told = f"{golden.name:40} moved by " + ", ".join(f"{one:.3f}" for one in moved) + f"; tolerance {tolerance:.5f}"
    print(told, flush=True)
    if min(moved) < max(0.1, 3 * tolerance):
        sys.exit(f"{golden.name}: log-probabilities hardly move; take a larger eps or learning_rate")


def text_of(recorded: dict[str, Any]) -> str:
    """JSON with a line for each field, and for each line of the journal."""
    fields = {name: json.dumps(value, allow_nan=False) for name, value in recorded.items()}
    fields["journal"] = "[\n" + ",\n".join(map(json.dumps, recorded["journal"])) + "\n]"
    return "{\n" + ",\n".join(f'"{name}": {value}' for name, value in fields.items()) + "\n}\n"


def main() -> None:
    """Record every run, and drop files of runs that are no more."""
    torch.set_num_threads(1)
    texts = {}
    for golden in RUNS:
        with tempfile.TemporaryDirectory() as folder:
            texts[golden.name] = text_of(record(golden, Path(folder)))
    for path in FOLDER.glob("*.json"):
        path.unlink()
    for name, text in texts.items():
        FOLDER.joinpath(f"{name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
