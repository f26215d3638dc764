"""A script that was written for TRL's GRPOTrainer, in which the trainer's import and name are changed, and no more.

And what people who do that get wrong most likely: one line each, and a hint that works when it is copied.
"""

from __future__ import annotations

import logging
import re
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification, TrainerCallback
from trl import GRPOConfig

from conftest import random_model
from zoreward import ZOConfig, ZOTrainer
from zoreward.records import InputError, ZorewardError

SCRIPT = """
from datasets import Dataset
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer


def says_good(completions, word, **kwargs):
    texts = [completion[0]["content"] for completion in completions]
    return [float(text.split().count(one)) for text, one in zip(texts, word)]


beginnings = ["the film was", "a plot", "it was very", "this film is not"] * 8
dataset = Dataset.from_list(
    [{"prompt": [{"role": "user", "content": text}], "word": "good"} for text in beginnings]
)

training_args = GRPOConfig(
    output_dir="grpo-run",
    learning_rate=1e-5,
    num_generations=8,
    per_device_train_batch_size=8,
    gradient_accumulation_steps=1,
    max_completion_length=5,
    num_train_epochs=6,
    logging_steps=3,
    bf16=False,
    report_to="none",
    use_vllm=False,
    beta=0.04,
    temperature=1.0,
)
trainer = GRPOTrainer(
    model="tiny-model",
    reward_funcs=says_good,
    args=training_args,
    train_dataset=dataset,
    peft_config=LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
)
trainer.train()
trainer.save_model()
"""
CHANGED = {
    "from trl import GRPOConfig, GRPOTrainer": "from trl import GRPOConfig\nfrom zoreward import ZOTrainer",
    "trainer = GRPOTrainer(": "trainer = ZOTrainer(",
}
TEMPLATE = "{% for message in messages %}{{ message['content'] + ' ' }}{% endfor %}"


@pytest.fixture
def folder(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the model of the script, which chats, and the process in it."""
    shutil.copytree(tiny_model_dir, tmp_path / "tiny-model")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path / "tiny-model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_script_runs_with_another_trainer_and_its_reward_rises(folder: Path, caplog: pytest.LogCaptureFixture):
    script = SCRIPT
    for line, instead in CHANGED.items():
        assert script.count(line) == 1
        script = script.replace(line, instead)
    (folder / "script.py").write_text(script)
    with caplog.at_level(logging.WARNING):
        trainer = runpy.run_path("script.py")["trainer"]
    scores = [line["score"] for line in trainer.state.log_history if "score" in line]  # each of three steps
    assert sum(scores[-2:]) / 2 > sum(scores[:2]) / 2 + 0.15, scores
    [told] = caplog.messages
    assert told.startswith("learning_rate=1e-05 is one for gradients and is not used")
    tuned = AutoPeftModelForCausalLM.from_pretrained(folder / "grpo-run")
    for name, weight in trainer.model.named_parameters():
        assert torch.equal(weight, tuned.get_parameter(name)), name
    assert AutoTokenizer.from_pretrained(folder / "grpo-run").chat_template == TEMPLATE


# --- mistakes ---------------------------------------------------------------------------------------------------------


def reward(completions, **kwargs):
    return [float(len(text)) for text in completions]


def arguments(**others: Any) -> dict[str, Any]:
    """What ZOTrainer is called with; `config` is for GRPOConfig, or `ours` for ZOConfig instead."""
    given = {"bf16": False, "max_completion_length": 2, "report_to": "none", "max_steps": 1}
    config = GRPOConfig("run", **given, **others.pop("config", {}))
    if "ours" in others:
        config = ZOConfig("run", use_cpu=True, **others.pop("ours"))
    rows = [{"prompt": "the film was"}, {"prompt": "a plot"}]
    return {"model": "tiny-model", "reward_funcs": reward, "train_dataset": rows, "args": config, **others}


def random_ranker() -> LlamaForSequenceClassification:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForSequenceClassification(LlamaConfig(vocab_size=32, num_labels=1, **sizes))


class Quiet(TrainerCallback):
    """Does nothing."""


# What is given, the message, a part of the hint, and what is given when the hint is followed.
MISTAKES = {
    "ref_model": ({"ref_model": "tiny-model"}, "ZOTrainer takes no ref_model", "beta", {"config": {"beta": 0.04}}),
    "rollout_func": (
        {"rollout_func": lambda prompts, trainer: {"completion_ids": [[5]] * 8 * len(prompts)}},
        "rollout_func returned 16 completion_ids for 2 prompts",
        "One for each prompt",
        {"rollout_func": lambda prompts, trainer: {"completion_ids": [[5]] * len(prompts)}},
    ),
    "tools": (
        {"tools": [reward]},
        "ZOTrainer takes no tools",
        "rollout_func=your_function",
        {"rollout_func": lambda prompts, trainer: {"completion_ids": [[5]] * len(prompts)}},
    ),
    "optimizers": ({"optimizers": (torch.optim.SGD, None)}, "ZOTrainer takes no optimizers", "Leave it out", {}),
    "masked": (
        {"config": {"mask_truncated_completions": True}},
        "mask_truncated_completions=True cannot be met",
        "Leave it out",
        {},
    ),
    "a column of another name": (
        {"train_dataset": [{"question": "the film was"}]},
        "no row has the prompt column 'prompt'",
        "in Python prompt=… or template=… of ZOConfig; the columns are question",
        {"train_dataset": [{"question": "the film was"}], "ours": {"prompt": "question", "max_completion_length": 2}},
    ),
    "reward_funcs": ({"reward_funcs": []}, "reward_funcs is an empty list", "=your_function", {}),
    "a reward that is not there": (
        {"reward_funcs": "./reward-model"},
        "no reward model can be loaded from './reward-model'",
        "Give a folder or a Hub id",
        {"reward_funcs": "./ranker"},
    ),
    "a language model as a reward": (
        {"reward_funcs": "./tiny-model"},
        "was never trained to score",
        "Take a reward model",
        {"reward_funcs": "./ranker"},
    ),
}


@pytest.mark.usefixtures("trials_are_kept")
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_its_hint_works(folder: Path, name: str):
    wrong, message, hint, right = MISTAKES[name]
    with pytest.raises(ZorewardError, match=re.escape(message)) as found:
        ZOTrainer(**arguments(**wrong))
    assert hint in found.value.hint and "\n" not in str(found.value)
    if "ranker" in str(right):
        random_ranker().save_pretrained("ranker")
        AutoTokenizer.from_pretrained("tiny-model").save_pretrained("ranker")
    ZOTrainer(**arguments(**right))


def test_a_model_without_a_name_needs_a_tokenizer(folder: Path):
    model = random_model("llama")
    with pytest.raises(InputError, match="no name that its tokenizer could be found by") as found:
        ZOTrainer(**arguments(model=model))
    call = found.value.hint.partition("processing_class=")[2].rstrip(".").replace("NAME", "tiny-model")
    ZOTrainer(**arguments(model=model, processing_class=eval(call)))


def test_what_says_nothing_is_taken_and_callbacks_are_called(folder: Path):
    empty = {"optimizers": (None, None), "tools": None, "rollout_func": None, "quantization_config": None}
    trainer = ZOTrainer(**arguments(callbacks=[Quiet()]), **empty)
    assert any(isinstance(one, Quiet) for one in trainer.callback_handler.callbacks)
    with pytest.raises(TypeError, match="unexpected keyword argument 'reward_func'"):
        ZOTrainer(**arguments(), reward_func=reward)
