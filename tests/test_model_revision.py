"""Contract under test: a model of the Hub at a revision is that revision's, in all that is loaded of it, written down
of it and made of it again; the Hub's cache on the disk is all that is read here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import constants
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from conftest import random_model
from zoreward import ZOConfig, ZOTrainer
from zoreward.cli import main
from zoreward.data import load_rows
from zoreward.scoring import load_model, load_tokenizer

pytestmark = pytest.mark.usefixtures("commands_are_kept", "trials_are_kept")

NAME = "owner/tiny"
REVISIONS = {"main": "a" * 40, "v1": "b" * 40}
PROMPT = ["--template", "{sentence} it was", "--choice", " terrible", "--choice", " great"]
TUNE = ["--data", "train.jsonl", *PROMPT, "--steps", "2", "--lr", "1e-2", "--device", "cpu", "--keep", "last"]


@pytest.fixture(scope="module")
def cache(tokenizer, tmp_path_factory) -> Path:
    """As the Hub's library keeps it: two revisions, of which the tokenizer of the first has a word less."""
    folder = tmp_path_factory.mktemp("hub")
    repository = folder / f"models--{NAME.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    for seed, (name, commit) in enumerate(REVISIONS.items()):
        (repository / "refs" / name).write_text(commit)
        random_model("llama", seed=seed).save_pretrained(repository / "snapshots" / commit)
        tokenizer.save_pretrained(repository / "snapshots" / commit)
        path = repository / "snapshots" / commit / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": 100 + seed}))
    return folder


@pytest.fixture(autouse=True)
def hub(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    words = ["good film", "bad film", "lovely plot", "awful plot"] * 2
    rows = [{"sentence": f"a {text}", "label": number % 2 ^ 1} for number, text in enumerate(words)]
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def weights_of(name: str) -> dict[str, torch.Tensor]:
    return load_model(name, device="cpu").state_dict()


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first.keys() & second.keys())


def test_config_tokenizer_and_weights_are_the_revisions():
    assert same(weights_of(f"{NAME}@v1"), random_model("llama", seed=1).state_dict())
    assert same(weights_of(NAME), random_model("llama", seed=0).state_dict())
    assert same(weights_of(f"{NAME}@{REVISIONS['v1']}"), weights_of(f"{NAME}@v1"))
    assert [load_tokenizer(name).model_max_length for name in (NAME, f"{NAME}@v1")] == [100, 101]


def test_a_run_says_its_revision_and_is_replayed_and_resumed_from_it(capsys):
    assert main(["tune", "neg-cross-entropy", "--model", NAME, "--model-revision", "v1", *TUNE, "--output", "run"]) == 0
    assert yaml.safe_load(Path("run/config.yaml").read_text())["model"] == f"{NAME}@v1"
    header = json.loads(Path("run/journal.jsonl").read_text().splitlines()[0])
    assert header["model"] == f"{NAME}@v1"
    model_card = Path("run/model/README.md").read_text()
    assert f'base_model: "{NAME}"\n' in model_card
    assert "| its revision | `v1` |" in model_card

    # The base without a revision is taken at that of the run; another one is refused.
    assert main(["replay", "run", "--model", NAME, "--output", "again", "--device", "cpu"]) == 0
    assert same(load_file("run/model/model.safetensors"), load_file("again/model.safetensors"))
    capsys.readouterr()
    other = ["--model", NAME, "--model-revision", "main"]
    assert main(["replay", "run", *other, "--output", "other", "--device", "cpu"]) == 2
    assert f"It began with '{NAME}@v1'" in capsys.readouterr().err

    longer = [*TUNE, "--steps", "3", "--output", "run", "--resume"]
    assert main(["tune", "neg-cross-entropy", *other, *longer]) == 2
    assert f"'{NAME}@v1'" in capsys.readouterr().err
    assert main(["tune", "neg-cross-entropy", "--config", "run/config.yaml", *longer]) == 0


def test_an_adapter_knows_the_revision_of_its_base():
    command = ["tune", "neg-cross-entropy", "--model", f"{NAME}@v1", "--tune", "lora", *TUNE, "--output", "lora"]
    assert main(command) == 0
    assert json.loads(Path("lora/model/adapter_config.json").read_text())["revision"] == "v1"
    loaded = load_model("lora/model", device="cpu").get_base_model().state_dict()
    base = {name.replace(".base_layer", ""): weight for name, weight in loaded.items() if "lora_" not in name}
    assert same(base, weights_of(f"{NAME}@v1")) and not same(base, weights_of(NAME))
    assert main(["replay", "lora", "--model", NAME, "--output", "again", "--device", "cpu"]) == 0
    assert json.loads(Path("again/adapter_config.json").read_text())["revision"] == "v1"


def test_a_score_and_a_comparison_are_the_revisions(capsys):
    def scored(*model: str) -> float:
        command = ["eval", "neg-cross-entropy", "--model", *model, "--data", "train.jsonl", *PROMPT, "--json"]
        assert main([*command, "--device", "cpu"]) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])["score"]

    assert scored(NAME, "--model-revision", "v1") == scored(f"{NAME}@v1") != scored(NAME)
    Path("judge.py").write_text("def longer(completions, **columns):\n    return [len(text) for text in completions]\n")
    command = ["win-rate", NAME, "--model-revision", "v1", "--against", NAME, "--judge", "judge.py:longer"]
    data = ["--data", "train.jsonl", "--template", "{sentence}", "--max-new-tokens", "4", "--device", "cpu", "--json"]
    assert main([*command, *data]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["model"], told["against"]) == (f"{NAME}@v1", NAME)
    assert told["equal"] < told["prompts"]


def test_a_trainer_takes_it_as_trls_does(tmp_path):
    how = {"template": "{sentence} it was", "choices": [" terrible", " great"], "max_steps": 1, "use_cpu": True}
    args = ZOConfig("run", model_init_kwargs={"revision": "v1"}, learning_rate=1e-2, **how)
    trainer = ZOTrainer(NAME, objective="accuracy", train_dataset=load_rows("train.jsonl"), args=args)
    assert same(trainer.model.state_dict(), weights_of(f"{NAME}@v1"))
    trainer.train()
    assert json.loads(Path("run/journal.jsonl").read_text().splitlines()[0])["model"] == f"{NAME}@v1"


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (["folder", "--model-revision", "v1"], "'folder' is a folder, which has no revisions"),
        ([f"{NAME}@v1", "--model-revision", "main"], "names another revision than 'main'"),
        ([f"{NAME}@"], f"there is no model '{NAME}@'"),
        ([f"{NAME}@v9"], f"'{NAME}@v9'"),
    ],
)
def test_what_has_no_such_revision_is_told_in_a_line(cache, model, told, capsys):
    shutil.copytree(next(cache.glob("*/snapshots/*")), "folder")
    assert main(["eval", "accuracy", "--model", *model, "--data", "train.jsonl", *PROMPT, "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert "Traceback" not in error


def test_a_loaded_model_has_its_revision():
    from zoreward.records import InputError

    args = ZOConfig("run", model_revision="v1", template="{sentence}", choices=[" terrible", " great"], use_cpu=True)
    model = AutoModelForCausalLM.from_pretrained(NAME)
    with pytest.raises(InputError, match="a loaded model has its revision already"):
        ZOTrainer(model, objective="accuracy", train_dataset=load_rows("train.jsonl"), args=args)
