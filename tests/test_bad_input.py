"""What users get wrong: one line that says what, one that says what to do, exit code 2, and nothing is written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from whole_models import classifier, masked_model, word_tokenizer
from zoreward.cli import main

REWARDS = '''
"""Objectives that go wrong, each in its own way."""

def raises(predictions):
    return {}["positive"]

def is_infinite(predictions):
    return float("inf")

def counts_wrong(predictions):
    return [1.0]

def wants_column(predictions, weight):
    return 1.0

def says_good(predictions):
    return "good"

def says_good_each(predictions):
    return ["good"] * len(predictions)

def takes_seed(predictions, *, seed: int = 0):
    return 1.0
'''

CONFIGS = {
    "key": "chioce: [bad, good]\n",
    "broken": "eps: [1\n",
    "list": "- eps\n",
    "f1": "objective: f1\n",
    "twice": "choice: [bad, good]\nchoices: [bad, good]\n",
    "own": "template: '{sentence}'\nobjective: accuracy\n",
}

BASE = {
    "--model": "model",
    "--data": "train.jsonl",
    "--template": "{sentence} it was",
    "--choice": [" terrible", " great"],
    "--output": "run",
}

# What is changed for other kinds of models.
FILLS = {"--model": "masked", "--template": "{sentence} it was [MASK] ."}
CLASSES = {"--model": "classifier", "--template": "{sentence}", "--choice": None}

# objective, what is changed of BASE, what the error says, what the hint says
CASES = {
    "unknown objective": ("acuracy", {}, "unknown objective 'acuracy'", "did you mean accuracy"),
    "unknown objective lists all": ("zzzz", {}, "unknown objective 'zzzz'", "f1"),
    "no such file of objectives": ("./no.py:f", {}, "no.py", ""),
    "no such objective in the file": ("./rewards.py:raise", {}, "has no 'raise'", "did you mean raises"),
    "unknown label column": ("accuracy", {"--label": "lable"}, "'lable'", "--label label"),
    "template field": ("accuracy", {"--template": "{sentnce} it was"}, "'sentnce'", "--template '{sentence} it was'"),
    "no template": ("accuracy", {"--template": None}, "no prompt", "--template"),
    "label that is no choice": (
        "accuracy",
        {"--data": "three.jsonl"},
        "three.jsonl, line 3: the label 2",
        "labels in the rows",
    ),
    "one choice": ("accuracy", {"--choice": [" great"]}, "one choice is no choice", "--choice"),
    "empty file": ("accuracy", {"--data": "empty.jsonl"}, "empty.jsonl holds no rows", "at least one row"),
    "broken line": ("accuracy", {"--data": "broken.jsonl"}, "broken.jsonl, line 2 is not JSON", "one object a line"),
    "missing file": ("accuracy", {"--data": "trian.jsonl"}, "no file trian.jsonl", "train.jsonl"),
    "unknown ending": ("accuracy", {"--data": "rewards.py"}, "'.py'", ".jsonl"),
    "no --model": ("accuracy", {"--model": None}, "'--model'", "--help"),
    "unknown flag": ("accuracy", {"--temlate": "x"}, "--temlate", "--help"),
    "option out of its choices": ("f1", {"--average": "median"}, "'median' is not one of", "--help"),
    "folder that is no model": ("accuracy", {"--model": "."}, "'.' is no model", "save_pretrained"),
    "missing model": ("accuracy", {"--model": "./modle"}, "no model folder './modle'", "Hub id"),
    "objective is infinite": ("./rewards.py:is_infinite", {}, "'is_infinite' returned inf", "finite"),
    "objective raises": ("./rewards.py:raises", {}, "'raises' raised KeyError: 'positive'", "rewards.py, line 5"),
    "objective counts wrong": ("./rewards.py:counts_wrong", {}, "got 1 for 4 rows", "one for each row"),
    "objective says a word": ("./rewards.py:says_good", {}, "'says_good' returned no number: 'good'", "one number"),
    "objective says words": ("./rewards.py:says_good_each", {}, "returned no number for row 0: 'good'", "one number"),
    "choice without tokens": ("accuracy", {"--choice": ["", " great"]}, "the answer '' has no tokens", "some text"),
    "no room for a prompt": ("accuracy", {"--max-length": "1"}, "leaves no room for the prompt", "--max-length"),
    "shadowed objective": ("mcc", {}, "'mcc' is registered by 'evil' and 'zoreward'", "uninstall 'evil'"),
    "Hub data without network": ("accuracy", {"--data": "nobody/nothing"}, "nobody/nothing", "HF_HUB_OFFLINE"),
    "Hub model without network": ("accuracy", {"--model": "nobody/nothing"}, "nobody/nothing", "HF_HUB_OFFLINE"),
    "config: unknown key": (
        "accuracy",
        {"--config": "key.yaml"},
        "there is no option 'chioce'",
        "did you mean choice?",
    ),
    "config: no YAML": ("accuracy", {"--config": "broken.yaml"}, "broken.yaml, line 2 is not YAML", "name: value"),
    "config: no file": ("accuracy", {"--config": "no.yaml"}, "there is no file no.yaml", "YAML file"),
    "config: no options": ("accuracy", {"--config": "list.yaml"}, "list.yaml holds no options", "name: value"),
    "config: other objective": (
        "accuracy",
        {"--config": "f1.yaml"},
        "is for the objective 'f1'",
        "f1 --config f1.yaml",
    ),
    "config: twice": ("accuracy", {"--config": "twice.yaml"}, "gives 'choices' twice", "keep one"),
    "sklearn: unknown": ("sklearn", {"--name": "f1_macr"}, "no scorer or metric 'f1_macr'", "did you mean f1_macro"),
    "sklearn: a loss": ("sklearn:hamming_loss", {}, "no 'hamming_loss'", "ask for neg_hamming_loss"),
    "sklearn: for no choices": ("sklearn:silhouette_score", {}, "cannot score choices", "something else"),
    "callable: no function": ("callable", {}, "'--function'", "--help"),
    "callable: no option": ("callable", {"--function": "rewards.py:takes_seed", "--option": "sed=1"}, "'sed'", "seed"),
    "also: unknown": ("accuracy", {"--also": "acuracy=1"}, "unknown objective 'acuracy'", "did you mean accuracy"),
    "also: no weight": ("accuracy", {"--also": "f1=much"}, "'much' is no weight", "--also f1=0.1"),
    "also: twice": ("accuracy", {"--also": "accuracy=1"}, "two objectives are called 'accuracy'", "once"),
    "also: other needs": ("accuracy", {"--also": "log-likelihood=1"}, "need different things", "the same"),
    "device": ("accuracy", {"--device": "gpu"}, "no device 'gpu'", "cpu, cuda"),
    "dtype": ("accuracy", {"--dtype": "float8"}, "no dtype 'float8'", "bfloat16"),
    "device-map": ("accuracy", {"--device-map": "both"}, "no device_map 'both'", "auto, balanced"),
    "device and device-map": (
        "accuracy",
        {"--device-map": "auto", "--device": "cpu"},
        "device and device_map say two things",
        "one of them",
    ),
    "no rows": ("accuracy", {"--limit": "0"}, "0 is less than 1", "--help"),
    "split of a file": (
        "accuracy",
        {"--split": "train"},
        "--split train is for datasets from the Hub",
        "leave --split out",
    ),
    "shots of none": ("accuracy", {"--shots-data": "train.jsonl"}, "no demonstrations to give", "--shots 4"),
    "too many shots": ("accuracy", {"--shots": "4"}, "needs 4 rows that ask something else", "lower --shots"),
    "choices twice": ("accuracy", {"--choice-column": "sentence"}, "answers for all rows and a column", "not both"),
    "choice column": ("accuracy", {"--choice": None, "--choice-column": "optoins"}, "'optoins'", "the columns are"),
    "no time for a reward": ("f1", {"--reward-timeout": "0"}, "more than 0 seconds, not 0", "30"),
    "fewer than no retries": ("f1", {"--reward-retries": "-1"}, "0 or more, not -1", "3"),
    "no workers": ("f1", {"--reward-workers": "0"}, "1 or more, not 0", "8"),
    "cache is a file": ("f1", {"--reward-cache": "train.jsonl"}, "'train.jsonl' is a file", "folder"),
    "cache of nothing": ("f1", {"--reward-cache": "kept"}, "'f1' has no scores that can be cached", "rowwise=True"),
    "preference: no column": (
        "preference",
        {"--data": "pairs.jsonl", "--template": None, "--choice": None, "--prompt": "question"},
        "no row has the prompt column 'question'",
        "give --prompt or --template",
    ),
    "preference: alike": (
        "preference",
        {"--data": "alike.jsonl", "--template": None, "--choice": None},
        "none of the 1 preferences is of use: 1 with answers that are alike",
        "two different answers",
    ),
    "preference: half a pair": (
        "preference",
        {"--data": "chosen.jsonl", "--template": None, "--choice": None},
        "no row has the column 'rejected'",
        "prompt, chosen and rejected",
    ),
    "preference: no preferences": (
        "preference",
        {"--template": None, "--choice": None},
        "there is no prompt",
        "rows with prompt, chosen and rejected",
    ),
    "preference: no such form": ("preference", {"--form": "hinge"}, "'hinge' is not one of", "--help"),
    "filter": ("accuracy", {"--template": "{sentence|stripp}"}, "the filter 'stripp'", "did you mean strip?"),
    "no data": ("accuracy", {"--data": None}, "there are no rows", "--task"),
    "task: unknown": ("accuracy", {"--task": "sst3"}, "there is no task 'sst3'", "did you mean sst2?"),
    "task: no file": ("accuracy", {"--task": "my.yaml"}, "there is no file my.yaml", "YAML file"),
    "task: no task": ("accuracy", {"--task": "f1.yaml"}, "there is no template", "template: …"),
    "task: masked": ("accuracy", {"--task": "rte-masked"}, "'rte-masked' is for masked models", "there is rte"),
    "task: masked alone": ("accuracy", {"--task": "qnli-masked"}, "is for masked models", "`zoreward tasks`"),
    "task: masked, short": ("accuracy", {"--task": "qnli"}, "'qnli-masked' is for masked models", "`zoreward tasks`"),
    "task: other columns": ("accuracy", {"--task": "rte", "--template": None}, "'premise'", "the columns are sentence"),
    "task: made columns": ("accuracy", {"--task": "copa"}, "no row has the column 'question'", "sentence, label"),
    "task: no data": ("accuracy", {"--task": "own.yaml", "--data": None}, "'own' names no data", "--data"),
    "bare: no task": ("accuracy", {"--bare": True}, "--bare is for a task", "--task sst2"),
    "bare: none": ("accuracy", {"--task": "own.yaml", "--bare": True}, "'own' has no bare prompt", "bare:"),
    "split seed": ("accuracy", {"--split-seed": "-1"}, "-1 is less than 0", "--help"),
    "masked: no mask": ("accuracy", {"--model": "masked"}, "has no mask", "write [MASK] once"),
    "masked: two masks": ("accuracy", FILLS | {"--template": "[MASK] {sentence} [MASK]"}, "has 2 masks", "[MASK] once"),
    "masked: mask in a row": (
        "accuracy",
        FILLS | {"--data": "mask.jsonl"},
        "mask.jsonl, line 2: there are 2 masks",
        "drop rows",
    ),
    "masked: several tokens": (
        "accuracy",
        FILLS | {"--choice": ["so so", "great"]},
        "holds one token",
        "--show-prompts",
    ),
    "masked: one token twice": ("accuracy", FILLS | {"--choice": ["great", " great"]}, "the same token", "of its own"),
    "masked: shots": ("accuracy", FILLS | {"--shots": "1"}, "takes no demonstrations", "leave --shots out"),
    "masked: no text": ("token-f1", FILLS, "a masked model writes no text", "accuracy"),
    "masked: other task": ("accuracy", FILLS | {"--task": "squad"}, "'squad' is for causal models", "`zoreward tasks`"),
    "mask for another model": ("accuracy", {"--template": "{sentence} [MASK]"}, "fills none", "leave [MASK] out"),
    "classifier: mask": ("accuracy", CLASSES | {"--template": "{sentence} [MASK]"}, "a classifier fills none", "leave"),
    "classifier: no text": (
        "accuracy",
        CLASSES | {"--template": None},
        "no text to classify",
        "--template '{sentence}'",
    ),
    "classifier: more labels": ("accuracy", CLASSES | {"--data": "three.jsonl"}, "none of the 2 classes", "bad, good"),
    "classifier: other classes": (
        "accuracy",
        CLASSES | {"--choice": ["dull", "good"]},
        "are not the model's",
        "bad, good",
    ),
    "classifier: too few choices": (
        "accuracy",
        CLASSES | {"--choice": ["bad", "so so", "good"]},
        "not the model's",
        "bad",
    ),
    "classifier: no text written": ("token-f1", CLASSES, "a classifier writes no text", "accuracy"),
    "classifier: task": ("accuracy", CLASSES | {"--task": "copa"}, "'copa' is none for a classifier", "sst2"),
    "ranker: no text written": ("token-f1", CLASSES | {"--model": "rewards"}, "a ranker writes no text", "accuracy"),
    "ranker: one answer": (
        "log-likelihood",
        CLASSES | {"--model": "rewards", "--answer": "{sentence}"},
        "one output compares answers",
        "preference",
    ),
    "objective wants a column": ("./rewards.py:wants_column", {}, "asks for 'weight'", "sentence"),
}
EVAL_CASES = {
    "calibrate: no choice": ("token-f1", {"--calibrate": True}, "'token-f1' does not choose", "accuracy"),
    "calibrate: masked": (
        "accuracy",
        FILLS | {"--calibrate": True},
        "only answers that a model writes",
        "leave --calibrate out",
    ),
    "calibrate: no template": ("accuracy", {"--calibrate": True, "--template": None}, "no template", "--template"),
}
TUNE_CASES = {
    "flag taken": ("./rewards.py:takes_seed", {}, "--seed is one of zoreward's own", "rename"),
    "eval-data": ("accuracy", {"--eval-data": "three.jsonl"}, "three.jsonl, line 3: the label 2", "labels in the rows"),
    "nothing to evaluate": ("accuracy", {"--eval-every": "5"}, "--eval-every", "--eval-data"),
    "set: no value": ("accuracy", {"--set": "optim"}, "there is no value", "name=value"),
    "set: unknown": ("accuracy", {"--set": "adam_bta1=1"}, "no such field", "did you mean adam_beta1"),
    "set: has an option": ("accuracy", {"--set": "max_steps=5"}, "option of its own", "--help"),
    "set: wrong type": ("accuracy", {"--set": "save_strategy=sometimes"}, "sometimes", "change the option"),
    "eval-limit": ("accuracy", {"--eval-limit": "5"}, "--eval-limit", "--eval-data"),
    "k-shot and rows": ("accuracy", {"--k-shot": "1", "--dev-rows": "1"}, "--k-shot and --dev-rows", "one of them"),
    "k-shot of too few": ("accuracy", {"--k-shot": "2"}, "no class has more than 2 rows", "lower --k-shot"),
    "dev rows of too few": ("accuracy", {"--dev-rows": "4"}, "4 rows leave none to tune on", "lower --dev-rows"),
    "test data": ("accuracy", {"--test-data": "three.jsonl"}, "three.jsonl, line 3: the label 2", "labels in the rows"),
    "no test data": ("accuracy", {"--test-data": "no.jsonl"}, "no file no.jsonl", "did you mean"),
    "output is a file": ("accuracy", {"--output": "train.jsonl"}, "train.jsonl is a file", "folder"),
    "eps of 0": ("accuracy", {"--eps": "0"}, "eps must lie between 1e-12 and", "option"),
    "method without the option": ("accuracy", {"--method": "es", "--normalize": "rms"}, "normalize has no use", "spsa"),
    "option of another method": ("accuracy", {"--full-every": "3"}, "full_every has no use with method spsa", "svrg"),
    "svrg with momentum": ("accuracy", {"--method": "svrg", "--momentum": "0.9"}, "svrg takes no momentum", "option"),
    "svrg with decay": (
        "accuracy",
        {"--method": "svrg", "--weight-decay": "1"},
        "svrg takes no weight_decay",
        "option",
    ),
    "anchor below 0": ("accuracy", {"--anchor": "-1"}, "anchor must lie between 0 and", "option"),
    "anchor without end": ("accuracy", {"--anchor": "inf"}, "inf is no number that float32 can hold", "--help"),
    "svrg with an anchor": ("accuracy", {"--method": "svrg", "--anchor": "1"}, "svrg takes no anchor", "option"),
    "sparse with an anchor": ("accuracy", {"--method": "sparse", "--anchor": "1"}, "share tunes some", "weight_decay"),
    "dense refresh": (
        "accuracy",
        {"--method": "lozo", "--noise": "dense", "--refresh": "9"},
        "refresh is about",
        "opt",
    ),
    "dense subspace": ("accuracy", {"--method": "subzero", "--noise": "dense"}, "a subspace is one of low-rank", "opt"),
    "subspace of another distribution": (
        "accuracy",
        {"--method": "subzero", "--distribution": "gaussian"},
        "directions in a subspace have entries of their own",
        "opt",
    ),
    "subspace of no matrix": (
        "accuracy",
        {"--method": "subzero", "--tune": "norm"},
        "low-rank directions move matrices",
        "noise=dense",
    ),
    "share of nothing": ("accuracy", {"--method": "sparse", "--share": "0"}, "no share of the weights", "above 0"),
    "blocks of svrg": ("accuracy", {"--method": "svrg", "--blocks": "3"}, "svrg moves all blocks", "method=bcd"),
    "one block": ("accuracy", {"--method": "bcd", "--blocks": "1"}, "blocks must be at least 2", "option"),
    "no blocks": ("accuracy", {"--method": "bcd", "--blocks": "0"}, "leaves nothing to take turns", "at least 2"),
    "a block for no step": ("accuracy", {"--block-every": "0"}, "block_every must be at least 1", "option"),
    "too many blocks": ("accuracy", {"--method": "bcd", "--blocks": "9"}, "into 9 blocks", "Choose 2 to 3"),
    "blocks of a head": ("accuracy", {"--method": "bcd", "--tune": "head"}, "in one block of layers", "method=spsa"),
    "blocks of a prefix": ("accuracy", {"--method": "bcd", "--tune": "prefix"}, "a prefix lies in no layer", "lora"),
    "unknown method": ("accuracy", {"--method": "adam"}, "'adam' is not one of", "--help"),
    "no steps": ("accuracy", {"--steps": "0"}, "0 is less than 1", "--help"),
    "steps in words": ("accuracy", {"--steps": "many"}, "'--steps'", "--help"),
    "kl below 0": ("accuracy", {"--kl": "-1"}, "kl=-1.0 is out of range", "0 or more"),
    "max-kl of 0": ("accuracy", {"--max-kl": "0"}, "max_kl=0.0 is out of range", "nats per token"),
    "base without a use": ("accuracy", {"--base-device": "cpu"}, "no base is kept", "drift, kl or max_kl"),
    "warmup of a plateau": (
        "accuracy",
        {"--warmup-steps": "9", "--lr-scheduler-type": "greedy", "--eval-data": "others.jsonl"},
        "warmup_steps has no use with lr_scheduler_type=greedy",
        "constant_with_warmup",
    ),
    "unknown schedule": ("accuracy", {"--lr-scheduler-type": "wavy"}, "wavy is not a valid", "change the option"),
    "tune: no weight": ("accuracy", {"--tune": "lroa"}, "no weight that tune='lroa' names", "Did you mean lora"),
    "tune: no expression": ("accuracy", {"--tune": "q_proj("}, "no regular expression", "bias"),
    "tune: no such layer": ("accuracy", {"--tune": "last-9"}, "has 2 layers, not 9", "last-2"),
    "tune: no bias": ("accuracy", {"--tune": "bias"}, "no weight that tune='bias' names", "model.embed_tokens.weight"),
    "encoder-decoder: prefix": ("accuracy", {"--model": "pairs", "--tune": "prefix"}, "takes no prefix", "tune=lora"),
    "encoder-decoder: drift": ("accuracy", {"--model": "pairs", "--drift": True}, "is not measured yet", "Leave drift"),
    "device-map: prefix": ("accuracy", {"--device-map": "auto", "--tune": "prefix"}, "on one device", "tune=lora"),
    "device-map: drift": ("accuracy", {"--device-map": "auto", "--drift": True}, "need all devices again", "tune=lora"),
    "lora-rank of 0": ("accuracy", {"--tune": "lora", "--lora-rank": "0"}, "lora_rank must be at least 1", "8"),
    "nothing to merge": ("accuracy", {"--merge": True}, "no adapter to merge", "tune=lora"),
    "head: lora": ("accuracy", {"--head": "classifier", "--tune": "lora"}, "an adapter keeps no new head", "last-N"),
    "head: one class": (
        "accuracy",
        CLASSES | {"--head": "classifier", "--data": "same.jsonl"},
        "one class is no",
        "every",
    ),
    "head: no such": ("accuracy", {"--head": "masked"}, "'masked' is not", "--help"),
    "masked: prefix": ("accuracy", FILLS | {"--tune": "prefix"}, "a masked model takes no prefix", "lora"),
    "masked: drift": ("accuracy", FILLS | {"--drift": True}, "nothing whose drift", "Leave drift"),
    "unknown logger": ("accuracy", {"--report-to": "paper"}, "paper is not supported", "install"),
}
# Of these a model need not be read; others are found out when it is there.
UNREAD = {
    "merged prefix": ("accuracy", {"--tune": "prefix", "--merge": True}, "a prefix cannot be merged", "tune=lora"),
    "low-rank, no matrix": (
        "accuracy",
        {"--tune": "norm", "--noise": "low-rank"},
        "low-rank directions move matrices, and none is tuned",
        "noise=dense",
    ),
    "lozo, no matrix": ("accuracy", {"--tune": "norm", "--method": "lozo"}, "move matrices", "noise=dense"),
    "adapter on adapter": (
        "accuracy",
        {"--model": "adapter", "--tune": "lora"},
        "has an adapter already",
        "leave tune",
    ),
}


BENCH_CASES = {
    "unknown task": (["sst3"], {}, "there is no task 'sst3'", "did you mean sst2?"),
    "no task": ([], {}, "'TASK...'", "--help"),
    "masked": (["sst2-masked"], {}, "is for masked models", "there is sst2"),
    "twice": (["sst2", "sst2"], {}, "two tasks are called 'sst2'", "once"),
    "no folder": (["sst2"], {"--data-dir": "no"}, "there is no folder no", "train.jsonl"),
    "empty folder": (["sst2"], {"--data-dir": "plugins"}, "plugins holds no rows", "train.jsonl"),
    "no dev rows": (["own.yaml"], {}, "no rows of 'own' choose", "--dev-rows"),
    "too few rows": (["sst2"], {"--dev-rows": "4"}, "leave none to tune on", "or put dev.jsonl and test.jsonl into"),
    "too few demonstrations": (
        ["sst2"],
        {"--shots": "4"},
        "the dev rows of 'sst2': row 1: --shots 4 needs 4 rows that ask something else",
        "lower --shots",
    ),
    "other columns": (["rte"], {}, "the train rows of 'rte': ", "the columns are sentence"),
    "wrong test label": (["sst2"], {"--data-dir": "wrong"}, "the test rows of 'sst2': row 3: the label 2", "label"),
    "unknown method": (["sst2"], {"--methods": "mezzo"}, "there is no method 'mezzo'", "did you mean mezo?"),
    "no method of the task": (["copa.yaml"], {"--methods": "linear-probe"}, "none of these methods", "--methods"),
    "rate of none": (["sst2"], {"--lr": "shots=1"}, "shots has no learning rate", "adamw"),
    "rate of another": (["sst2"], {"--lr": "adamw=1", "--methods": "mezo"}, "not in the table", "--methods adamw"),
    "no rate": (["sst2"], {"--lr": "mezo=fast"}, "--lr mezo=fast: there is no value above 0", "--lr mezo="),
    "fewer rates": (["sst2"], {"--lr": "mezo=1e-6"}, "numbers of learning rates differ: mezo 1, ", "as many each"),
    "a rate twice": (["sst2"], {"--lr": "mezo=1,1,2"}, "mezo has the learning rates 1, 1, 2", "stands once"),
    "eps of adamw": (["sst2"], {"--eps": "adamw=1"}, "one number for a method of MeZO's", "--eps mezo="),
    "no seeds": (["sst2"], {"--seeds": "0"}, "--seeds 0 leaves no run", "13,21,42"),
    "seeds that are no digits": (["sst2"], {"--seeds": "²"}, "--seeds ²: these are no seeds", "13,21,42"),
    "seeds in words": (["sst2"], {"--seeds": "some"}, "--seeds some: these are no seeds", "13,21,42"),
    "no model": (["sst2"], {"--model": "./modle"}, "no model folder './modle'", "Hub id"),
    "masked model": (["sst2"], {"--model": "masked"}, "for causal models so far, and 'masked' is masked", "eval"),
    "dtype": (["sst2"], {"--dtype": "float8"}, "no dtype 'float8'", "bfloat16"),
    "device": (["sst2"], {"--device": "gpu"}, "no device 'gpu'", "cpu, cuda"),
    "device map": (["sst2"], {"--device-map": "auto"}, "--device-map", "--help"),
    "output is a file": (["sst2"], {"--output": "train.jsonl"}, "train.jsonl is a file", "folder"),
    "no results": (["sst2"], {"--output": "odd"}, "odd/results.jsonl cannot be read", "another folder"),
}


@pytest.fixture(scope="module")
def other_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A masked model, a classifier of two classes, and a reward model."""
    made = {"masked": masked_model("bert"), "classifier": classifier("bert", names=("bad", "good"))}
    made["rewards"] = classifier("bert", names=("reward",))
    folder = tmp_path_factory.mktemp("whole")
    for name, model in made.items():
        model.save_pretrained(folder / name)
        word_tokenizer().save_pretrained(folder / name)
    return {name: folder / name for name in made}


@pytest.fixture(scope="module")
def home(
    tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path, tiny_t5_dir: Path, other_models: dict[str, Path]
) -> Path:
    """The folder in which the commands run: a model, rows, and objectives that go wrong."""
    home = tmp_path_factory.mktemp("home")
    (home / "model").symlink_to(tiny_model_dir, target_is_directory=True)
    (home / "pairs").symlink_to(tiny_t5_dir, target_is_directory=True)
    for name, path in other_models.items():
        (home / name).symlink_to(path, target_is_directory=True)
    rows = [{"sentence": f"a {word} film", "label": i % 2} for i, word in enumerate(["bad", "good", "dull", "bright"])]
    write_rows(home / "train.jsonl", rows)
    write_rows(home / "others.jsonl", [{**row, "number": n} for n, row in enumerate(rows)])
    write_rows(home / "three.jsonl", [*rows[:2], {**rows[2], "label": 2}])
    write_rows(home / "mask.jsonl", [rows[0], {**rows[1], "sentence": "a [MASK] film"}])
    write_rows(home / "same.jsonl", [{**row, "label": "good"} for row in rows])
    pair = {"prompt": "a film was", "chosen": " good", "rejected": " bad"}
    write_rows(home / "pairs.jsonl", [pair])
    write_rows(home / "alike.jsonl", [{**pair, "rejected": " good"}])
    write_rows(home / "chosen.jsonl", [{"prompt": "a film was", "chosen": " good"}])
    for name in ("rows", "wrong", "odd"):
        (home / name).mkdir()
        write_rows(home / name / "train.jsonl", rows)
        write_rows(home / name / "dev.jsonl", [*rows[:2], {**rows[2], "label": 2}] if name == "wrong" else rows)
    (home / "odd" / "results.jsonl").write_text("[]\n")
    copa = "template: '{sentence}'\nobjective: accuracy\nchoice_column: ends\n"
    copa += "columns: {ends: ['{sentence} a', '{sentence} b']}\n"
    (home / "copa.yaml").write_text(copa)
    (home / "adapter").mkdir()
    (home / "adapter" / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "model", "peft_type": "LORA"})
    )
    (home / "empty.jsonl").write_text("")
    (home / "broken.jsonl").write_text('{"sentence": "a", "label": 0}\n{"sentence": "a", "label": \n')
    (home / "rewards.py").write_text(REWARDS)
    for name, text in CONFIGS.items():
        (home / f"{name}.yaml").write_text(text)
    evil = home / "plugins" / "evil-1.0.dist-info"
    evil.mkdir(parents=True)
    (evil / "METADATA").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n")
    (evil / "entry_points.txt").write_text("[zoreward.objectives]\nmcc = evil:mcc\n")
    return home


@pytest.fixture(scope="module")
def files_before(home: Path) -> set[str]:
    return files_in(home)


@pytest.fixture(autouse=True)
def folder(
    home: Path, files_before: set[str], commands_are_kept: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """Run the commands there; what is written is taken away, and no test writes over what is there."""
    monkeypatch.chdir(home)
    monkeypatch.syspath_prepend(str(home / "plugins"))
    # A Hub that nobody answers for: port 9 of this machine.
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for name in ("HF_HUB_OFFLINE", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    yield home
    for name in sorted(files_in(home) - files_before, reverse=True):
        (home / name).rmdir() if (home / name).is_dir() else (home / name).unlink()


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def words_of(verb: str, objective: str, changes: dict) -> list[str]:
    options = {**BASE, **changes}
    if verb == "eval":
        del options["--output"]
    words = [verb, objective]
    for flag, value in options.items():
        for one in value if isinstance(value, list) else [value]:
            words += [] if one is None else [flag] if one is True else [flag, one]
    return words


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if "__pycache__" not in path.parts}


@pytest.mark.parametrize(
    ("verb", "case"),
    [("tune", case) for case in [*CASES, *TUNE_CASES]] + [("eval", case) for case in [*CASES, *EVAL_CASES]],
)
def test_one_line_and_a_hint_and_nothing_written(
    verb: str, case: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    objective, changes, error, hint = (CASES | TUNE_CASES | EVAL_CASES)[case]
    before = files_in(folder)

    code = main(words_of(verb, objective, changes))

    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["error", "hint"], err
    assert error in lines[0]
    assert hint in lines[1]
    assert len(lines[1]) > len("hint: ")
    assert "Traceback" not in err
    assert code == 2
    assert out == ""
    assert files_in(folder) == before


@pytest.mark.parametrize("case", UNREAD)
def test_what_does_not_go_together_is_refused_before_weights_are_read(
    case: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from zoreward.trainer import ready

    objective, changes, error, hint = UNREAD[case]
    monkeypatch.setattr(ready, "load_model", lambda *args, **kwargs: pytest.fail("the weights are read"))
    before = files_in(folder)
    assert main(words_of("tune", objective, changes)) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("error: ") and error in first
    assert second.startswith("hint: ") and hint in second
    assert files_in(folder) == before


@pytest.mark.parametrize("case", BENCH_CASES)
def test_bench_says_one_line_and_a_hint_and_writes_nothing(
    case: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks, changes, error, hint = BENCH_CASES[case]
    options = {"--model": "model", "--data-dir": "rows", "--dev-rows": "1", "--output": "out", **changes}
    if case == "no dev rows":
        del options["--dev-rows"]
    before = files_in(folder)

    code = main(["bench", *tasks, *(word for pair in options.items() for word in pair)])

    out, err = capsys.readouterr()
    lines = err.splitlines()[-2:]
    assert [line.partition(":")[0] for line in lines] == ["error", "hint"], err
    assert error in lines[0]
    assert hint in lines[1]
    assert (code, out) == (2, "")
    assert files_in(folder) == before


@pytest.mark.parametrize("name", ["config.yaml", "journal.jsonl"])
def test_a_folder_that_holds_a_run_is_left_alone(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "run").mkdir()
    (folder / "run" / name).write_text("mine")
    before = files_in(folder)

    assert main(words_of("tune", "accuracy", {})) == 2

    err = capsys.readouterr().err
    assert err.startswith(f"error: run holds a run already ({name})\nhint: ")
    assert files_in(folder) == before
    assert (folder / "run" / name).read_text() == "mine"


def test_an_empty_output_folder_of_the_users_is_kept(folder: Path) -> None:
    (folder / "run").mkdir()
    assert main(words_of("tune", "./rewards.py:is_infinite", {})) == 2
    assert (folder / "run").is_dir()


def test_an_objective_that_fails_on_the_dev_rows_alone_leaves_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "even.py").write_text(
        "def only_even(predictions):\n    if len(predictions) % 2:\n        raise ValueError('odd')\n    return 1.0\n"
    )
    rows = (folder / "train.jsonl").read_text().splitlines(keepends=True)
    (folder / "dev.jsonl").write_text("".join(rows[:3]))
    before = files_in(folder)

    changes = {"--eval-data": "dev.jsonl", "--output": "runs/of/mine"}
    assert main(words_of("tune", "./even.py:only_even", changes)) == 2

    assert "raised ValueError: odd" in capsys.readouterr().err
    assert files_in(folder) == before


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["tune", "--model", "model", "accuracy"], "error: the objective comes before --model"),
        (["tuen"], "error: No such command 'tuen'."),
    ],
)
def test_commands_that_do_not_exist(words: list[str], error: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert (out, len(lines)) == ("", 2)
    assert lines[0].startswith(error)
    assert lines[1].startswith("hint: ")


NO_ROOM = {
    "weights": (
        "accuracy",
        {},
        60_000,
        "needs 0.0703 MB for its weights; this machine has 0.06 MB",
        "--dtype bfloat16",
    ),
    "half weights": ("accuracy", {"--dtype": "bfloat16"}, 10_000, "in bfloat16 needs", "smaller model"),
    "base": ("accuracy", {"--kl": "0.1"}, 250_000, "for a copy of its base", "--base-device"),
}


@pytest.mark.parametrize("case", NO_ROOM)
def test_what_cannot_fit_is_refused_before_weights_are_read(
    case: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from zoreward.scoring import memory
    from zoreward.trainer import ready

    objective, changes, free, error, hint = NO_ROOM[case]
    monkeypatch.setattr(memory, "free_bytes", lambda device: free)
    monkeypatch.setattr(ready, "load_model", lambda *args, **kwargs: pytest.fail("the weights are read"))
    before = files_in(folder)

    assert main(words_of("tune", objective, {"--device": "cpu", **changes})) == 2

    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["error", "hint"], lines
    assert error in lines[0]
    assert hint in lines[1]
    assert files_in(folder) == before
