"""Command lines that are wrong, and the files that are wrong in them."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

ROWS = [{"sentence": f"a {word} film", "label": i % 2} for i, word in enumerate(["bad", "good", "dull", "bright"])]

# What a line has unless it says otherwise: `^--flag` takes an option away, `--flag value` replaces its value.
_MODEL = {"--model": ["model"]}
_ANSWERS = {"--template": ["{sentence} it was"], "--choice": [" bad", " good"]}
_OUTPUT = {"--output": ["run"]}
DEFAULTS: dict[str, dict[str, list[str]]] = {
    "tune": {**_MODEL, "--data": ["train.jsonl"], **_ANSWERS, **_OUTPUT, "--steps": ["2"], "--device": ["cpu"]},
    "eval": {**_MODEL, "--data": ["train.jsonl"], **_ANSWERS, "--device": ["cpu"]},
    "bench": {**_MODEL, "--data-dir": ["rows"], "--dev-rows": ["1"], "--steps": ["2"], **_OUTPUT, "--device": ["cpu"]},
    "quickstart": {**_OUTPUT, "--steps": ["1"]},
    "replay": {**_MODEL, **_OUTPUT, "--device": ["cpu"]},
    "win-rate": {"--against": ["model"], "--judge": ["trl:think_format_reward"], "--data": ["train.jsonl"]},
}


def lines_of() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return the lines of the table, each with what its error says and, where the table has it, ` ## ` and its hint:
    those that need no model, and those that may."""
    quick, slow = Path(__file__).with_name("bad_lines.txt").read_text(encoding="utf-8").split("# slow\n")
    return _pairs(quick), _pairs(slow)


def _pairs(table: str) -> list[tuple[str, str]]:
    pairs = [line.partition(" ## ") for line in table.splitlines() if line and not line.startswith("# ")]
    return [(line, error) for line, _, error in pairs]


def words_of(line: str) -> list[str]:
    """Return the words of a line, with what it does not say taken from `DEFAULTS`."""
    line = re.sub(r"\\x([0-9a-f]{2})", lambda code: chr(int(code[1], 16)), line).replace("@long", "a" * 300)
    words = shlex.split(line)
    options = dict(DEFAULTS.get(words[0] if words else "", {}))
    for word in words:
        options.pop(word.lstrip("^").partition("=")[0], None)
    left = [word for word in words if not word.startswith("^")]
    return left + [part for flag, values in options.items() for value in values for part in (flag, value)]


def write_rows(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _bomb(levels: int = 24) -> str:
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 8)}]" for i in range(1, levels)]
    return "\n".join(lines) + "\n"


DEEP = 200_000
CONFIGS = {
    "deep": f"eps: {'[' * DEEP}{']' * DEEP}\n",
    "deepmap": f"eps: {'{a: ' * 3000}1{'}' * 3000}\n",
    "bomb": _bomb() + f"choice: *a{23}\n",
    "selfish": "choice: &a [*a]\n",
    "types": "steps: [1, 2]\n",
    "words": "eps: {a: 1}\n",
    "texts": "steps: many\n",
    "dict": "template: {a: b}\n",
    "lists": "template: [a, b]\n",
    "nested": "choice: [[a], [b]]\n",
    "bools": "steps: true\n",
    "fractions": "steps: 1.5\n",
    "huge": f"steps: {'9' * 6000}\n",
    "float": "eps: 1e999\n",
    "nul": "eps: 1\0\n",
    "tag": "eps: !!python/object/apply:os.system ['true']\n",
    "two": "eps: 1e-3\n---\neps: 1e-2\n",
    "numbers": "1: 2\n",
    "objective": "objective: [accuracy]\n",
    "dates": "template: 2020-01-01\n",
    "choices": "choice: great\n",
    "flags": "merge: perhaps\n",
    "no-data": "",
    "set": "set: optim=sgd\n",
    "also": "also: {f1: 1}\n",
    "labelled": "choice: {0: bad, 1: good}\n",
    "average": "average: {macro: true}\n",
    "methods": "method: [spsa]\n",
    "dup": "eps: 1e-3\neps: 1e-2\n",
}
TASK = "template: '{sentence} it was'\nobjective: accuracy\nchoices: [terrible, great]\nlabel: label\n"
TASKS = {
    "t-deep": f"template: {'[' * DEEP}{']' * DEEP}\n",
    "t-bomb": _bomb() + TASK,
    "t-selfish": TASK + "splits: &a {train: *a}\n",
    "t-unknown": TASK + "tempalte: x\n",
    "t-list": "- a\n",
    "t-number": "7\n",
    "t-types": TASK.replace("'{sentence} it was'", "7"),
    "t-choices": TASK.replace("[terrible, great]", "great"),
    "t-choices-int": TASK.replace("[terrible, great]", "[1, 2]"),
    "t-one": TASK.replace("[terrible, great]", "[great]"),
    "t-objective": TASK.replace("objective: accuracy", "objective: acuracy"),
    "t-objective-list": TASK.replace("objective: accuracy", "objective: [accuracy]"),
    "t-rows": TASK + "rows: many\n",
    "t-rows-negative": TASK + "rows: {train: -1}\n",
    "t-rows-text": TASK + "rows: {train: many}\n",
    "t-rows-unknown": TASK + "rows: {tarin: 1}\n",
    "t-splits": TASK + "splits: [train]\n",
    "t-splits-unknown": TASK + "splits: {tarin: x}\n",
    "t-columns": TASK + "columns: [a]\n",
    "t-columns-bad": TASK + "columns: {x: '{nothing}'}\n",
    "t-keep": TASK + "keep: {nothing: 1}\n",
    "t-max": TASK + "max_new_tokens: many\n",
    "t-max-negative": TASK + "max_new_tokens: -1\n",
    "t-nul": "template: a\0b\n",
    "t-brace": TASK.replace("{sentence} it was", "{sentence it was"),
    "t-dunder": TASK.replace("{sentence}", "{sentence.__class__}"),
    "t-model": TASK + "model: recurrent\n",
    "t-data": TASK + "data: no.jsonl\n",
    "t-data-list": TASK + "data: [train.jsonl]\n",
    "t-escape": 'objective: accuracy\ntemplate: "{se\\e[31mntence} it was"\nchoices: [terrible, great]\n',
    "t-train-on": TASK + "train_on: nothing-such\n",
    "t-stop": TASK + "stop: 3\n",
}
DATA = {
    "deep.json": "[" * DEEP + "]" * DEEP,
    "deep.jsonl": '{"sentence": ' + "[" * DEEP + "]" * DEEP + ', "label": 0}\n',
    "deepmap.jsonl": '{"sentence": ' + '{"a": ' * DEEP + "1" + "}" * DEEP + ', "label": 0}\n',
    "hugeint.json": f'[{{"sentence": "a", "label": {"9" * 6000}}}]',
    "hugeint.jsonl": f'{{"sentence": "a", "label": {"9" * 6000}}}\n',
    "hugelabel.jsonl": f'{{"sentence": "a", "label": {10**400}}}\n' * 2,
    "hugefloat.jsonl": '{"sentence": "a", "label": 1e999}\n' * 2,
    "nan.jsonl": '{"sentence": "a", "label": NaN}\n' * 2,
    "nul.jsonl": "\0" * 100,
    "nul.csv": "sentence,label\na\0b,0\n",
    "nulname.csv": "sent\0ence,label\na,0\n",
    "zeros.csv": "\0" * 100,
    "wide.csv": f"sentence,label\n{'a' * 200_000},0\n",
    "quote.csv": 'sentence,label\n"a,0\nb,1\n',
    "more.csv": "sentence,label\na,0,1\n",
    "twice.csv": "sentence,sentence\na,0\n",
    "blank.csv": "\n\n",
    "header.csv": "sentence,label\n",
    "noname.csv": ",\na,0\nb,1\n",
    "scalar.json": "7",
    "text.json": '"a"',
    "numbers.json": "[1, 2]",
    "object.json": "{}",
    "none.json": "[]",
    "cut.json": '[{"sentence": "a"',
    "scalar.jsonl": "7\n",
    "list.jsonl": "[1]\n",
    "nolabel.jsonl": '{"sentence": "a"}\n',
    "nulllabel.jsonl": '{"sentence": "a", "label": null}\n',
    "nullrow.jsonl": "null\n",
    "listlabel.jsonl": '{"sentence": "a", "label": [0]}\n' * 2,
    "dictlabel.jsonl": '{"sentence": "a", "label": {"a": 0}}\n' * 2,
    "negative.jsonl": '{"sentence": "a", "label": -1}\n' * 2,
    "half.jsonl": '{"sentence": "a", "label": 0.5}\n' * 2,
    "names.jsonl": '{"sentence": "a", "label": "maybe"}\n' * 2,
    "escape.jsonl": '{"sentence": "a", "label": "\\u001b[31mred"}\n' * 2,
    "listtext.jsonl": '{"sentence": ["a"], "label": 0}\n{"sentence": ["b"], "label": 1}\n',
    "nulltext.jsonl": '{"sentence": null, "label": 0}\n',
    "emptytext.jsonl": '{"sentence": "", "label": 0}\n',
    "text.parquet": "no parquet",
    "empty.parquet": "",
    "rows.txt": "a\n",
    "noending": "a\n",
    "prompts.jsonl": '{"prompt": "a film"}\n',
    "badmessages.jsonl": '{"prompt": [{"role": "user"}]}\n',
    "wrongmessages.jsonl": '{"prompt": [1, 2]}\n',
    "nullprompt.jsonl": '{"prompt": null}\n',
    "nullprompts.jsonl": '{"prompt": "a"}\n{"prompt": null}\n',
    "nanprompt.jsonl": '{"prompt": "a"}\n{"prompt": NaN}\n',
    "short.csv": "label,prompt\n0,a\n1\n",
    "emptylabel.csv": "sentence,label\na,0\nb,\n",
    "pair.jsonl": '{"prompt": "a film was", "chosen": " good", "rejected": " bad"}\n',
    "pairlist.jsonl": '{"prompt": "a", "chosen": ["good"], "rejected": ["bad"]}\n',
    "pairnull.jsonl": '{"prompt": "a", "chosen": null, "rejected": "bad"}\n',
    "pairempty.jsonl": '{"prompt": "a", "chosen": "", "rejected": ""}\n',
    "options.jsonl": '{"sentence": "a", "ends": "good", "label": 0}\n',
    "options0.jsonl": '{"sentence": "a", "ends": [], "label": 0}\n',
    "options1.jsonl": '{"sentence": "a", "ends": ["good"], "label": 0}\n',
    "optionsnum.jsonl": '{"sentence": "a", "ends": [1, 2], "label": 0}\n',
    "optionsbig.jsonl": '{"sentence": "a", "ends": ["good", "bad"], "label": 9}\n',
}
REWARDS = '''
import sys
import types

from zoreward import objective


def raises(predictions):
    raise ValueError("\\x1b[31mred\\x1b[0m [bold]x[/bold]")


def exits(predictions):
    sys.exit(0)


def returns_none(predictions):
    return None


def returns_text(completions, **columns):
    return "much"


def returns_few(completions, **columns):
    return [1.0] * (len(completions) + 1)


def infinite(predictions):
    return float("-inf")


def no_arguments():
    return 1.0


def positional(a, b, c, /):
    return 1.0


def wants_both(predictions, completions):
    return 1.0


@objective("a b")
def spaced(predictions):
    return 1.0


@objective("acc[/red]")
def marked(predictions, *, level: int = 0):
    """Help with [/red] and \\\\[/x] and [bold]."""
    return 1.0


def takes_model(predictions, *, model: str = "x"):
    return 1.0


@objective("kept", rowwise=True)
def kept(completions):
    return [1.0] * len(completions)


class NeedsState:
    def __init__(self, *, level: int = 0):
        raise RuntimeError("no state")

    def __call__(self, predictions):
        return 1.0


number = 7
module = types
lambda_ = lambda predictions: 1.0
'''
MODULES = {
    "rewards.py": REWARDS,
    "syntax.py": "def f(:\n",
    "exits.py": "import sys\nsys.exit(0)\n",
    "imports.py": "import no_such_module_at_all\n",
    "raises.py": "raise RuntimeError('\\x1b[31mred')\n",
    "latin.py": "",
    "empty.py": "",
}


def write_files(folder: Path, models: dict[str, Path]) -> None:
    """Write all that is wrong into a folder.

    Args:
        folder: an empty one.
        models: folders of whole models: model, pairs, masked, classifier, rewards.
    """
    for name, path in models.items():
        (folder / name).symlink_to(path, target_is_directory=True)
    write_rows(folder / "train.jsonl", ROWS)
    for name in ("rows", "wrong"):
        (folder / name).mkdir()
        write_rows(folder / name / "train.jsonl", ROWS)
        write_rows(folder / name / "dev.jsonl", ROWS if name == "rows" else [{**ROWS[0], "label": 2}])
    for name, text in {**CONFIGS, **TASKS}.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    for name, text in {**DATA, **MODULES}.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "latin.py").write_bytes(b"x = '\xff'\n")
    (folder / "binary.yaml").write_bytes(bytes(range(256)))
    (folder / "binary.jsonl").write_bytes(bytes(range(128, 256)))
    (folder / "binary.csv").write_bytes(b"sentence,label\n\xff\xfe,0\n")
    (folder / "utf16.jsonl").write_text('{"sentence": "a", "label": 0}\n', encoding="utf-16")
    os.mkfifo(folder / "fifo.jsonl")
    os.mkfifo(folder / "fifo.yaml")
    os.mkfifo(folder / "fifo.py")
    (folder / "device.jsonl").symlink_to("/dev/zero")
    (folder / "device.yaml").symlink_to("/dev/zero")
    (folder / "loop.jsonl").symlink_to("loop.jsonl")
    (folder / "folder.jsonl").mkdir()
    (folder / "folder.yaml").mkdir()
    (folder / "dangling").symlink_to("nowhere/at/all")
    (folder / "taken" / "scores.sqlite").mkdir(parents=True)
    _write_models(folder, models["model"])
    _write_runs(folder)


def _write_models(folder: Path, good: Path) -> None:
    def copied(name: str) -> Path:
        shutil.copytree(good, folder / name)
        return folder / name

    def config_of(name: str, **changes: Any) -> None:
        path = copied(name) / "config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps({**config, **changes}))

    config_of("m-type", model_type="nothing-such", architectures=["NothingForCausalLM"])
    config_of("m-vision", model_type="vit", architectures=["ViTForImageClassification"])
    config_of("m-shape", hidden_size=64)
    config_of("m-layers", num_hidden_layers=4)
    config_of("m-negative", num_hidden_layers=-1)
    config_of("m-words", hidden_size="large")
    config_of("m-huge", vocab_size=10**12)
    config_of("m-arch", architectures="LlamaForCausalLM")
    config_of("m-arch-number", architectures=[7])
    config_of("m-escape", model_type="\x1b[31mred")
    (copied("m-cut") / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    (copied("m-zero") / "model.safetensors").write_bytes(b"")
    (copied("m-header") / "model.safetensors").write_bytes(b"\xff" * 64)
    (copied("m-noweights") / "model.safetensors").unlink()
    (copied("m-notokens") / "tokenizer.json").unlink()
    (folder / "m-notokens" / "tokenizer_config.json").unlink(missing_ok=True)
    (copied("m-badtokens") / "tokenizer.json").write_text("{")
    (copied("m-badconfig") / "config.json").write_text("{")
    (copied("m-listconfig") / "config.json").write_text("[]")
    (copied("m-deepconfig") / "config.json").write_text("[" * DEEP)
    (copied("m-noconfig") / "config.json").unlink()
    (copied("m-template") / "chat_template.jinja").write_text("{% for %}")
    for name, text in {
        "a-nobase": {"peft_type": "LORA"},
        "a-missing": {"base_model_name_or_path": "./no-such", "peft_type": "LORA"},
        "a-type": {"base_model_name_or_path": "model", "peft_type": "MAGIC"},
        "a-noweights": {"base_model_name_or_path": "model", "peft_type": "LORA", "task_type": "CAUSAL_LM"},
        "a-self": {"base_model_name_or_path": "a-self", "peft_type": "LORA"},
        "a-list": ["x"],
        "a-number": {"base_model_name_or_path": 7, "peft_type": "LORA"},
    }.items():
        (folder / name).mkdir()
        (folder / name / "adapter_config.json").write_text(json.dumps(text))
        if name != "a-noweights":
            (folder / name / "adapter_model.safetensors").touch()
    (folder / "a-broken").mkdir()
    (folder / "a-broken" / "adapter_config.json").write_text("{")
    (folder / "m-empty").mkdir()


def _write_runs(folder: Path) -> None:
    for name in ("r-empty", "r-text", "r-binary", "r-json", "r-safetensors"):
        (folder / name).mkdir()
    (folder / "r-folder" / "journal.jsonl").mkdir(parents=True)
    (folder / "r-text" / "journal.jsonl").write_text("hello\n")
    (folder / "r-binary" / "journal.jsonl").write_bytes(bytes(range(256)) * 10)
    (folder / "r-json" / "journal.jsonl").write_text('{"version": 1}\n')
    (folder / "r-safetensors" / "trajectory.safetensors").write_bytes(b"\xff" * 100)
