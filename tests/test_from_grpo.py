"""Contract under test: what TRL's GRPOConfig says is translated, refused or said to be without meaning.

That each of its fields is known is a contract with a neighbour, in tests/test_neighbours.py.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from trl import GRPOConfig, SFTConfig

from conftest import random_model
from zoreward import ZOConfig, ZOTrainer
from zoreward.records import InputError
from zoreward.registry import assume_completions, weighted_sum
from zoreward.trainer.from_grpo import KEPT, OTHER_ARGUMENTS, REFUSED, TRANSLATED, WITHOUT_MEANING

DOC = Path(__file__).parents[1] / "docs" / "coming-from-grpo.md"


def grpo(folder: Path, **given: Any) -> GRPOConfig:
    return GRPOConfig(str(folder / "run"), **{"use_cpu": True, "bf16": True, **given})


def test_defaults_of_grpo_say_how_long_a_run_is_and_nothing_is_said_of_them(tmp_path, caplog):
    found = ZOConfig.from_grpo(grpo(tmp_path))
    assert found.changed() == {
        "per_device_train_batch_size": 8, "num_train_epochs": 3.0, "max_completion_length": 512, "seed": 42,
        "num_directions": 4, "use_cpu": True,
    }  # fmt: skip
    assert (found.learning_rate, found.temperature, found.output_dir) == (None, 0.0, str(tmp_path / "run"))
    assert not caplog.messages


TRANSLATIONS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"max_completion_length": 7, "max_steps": 9, "seed": 3}, {"max_completion_length": 7, "max_steps": 9, "seed": 3}),
    ({"num_generations": 7, "per_device_train_batch_size": 14}, {"num_directions": 4, "rows_a_step": 14}),
    ({"beta": 0.04}, {"kl": 0.04}),
    ({"temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.1}, {"temperature": 0.7, "top_p": 0.9, "top_k": 5}),
    ({"log_completions": True, "logging_steps": 3}, {"completions_every": 3, "logging_steps": 3}),
    ({"shuffle_dataset": False}, {"train_sampling_strategy": "sequential"}),
    ({"scale_rewards": False}, {"normalize": "running"}),
    ({"scale_rewards": "batch"}, {"normalize": None}),
    ({"bf16": False}, {"dtype": "float32", "bf16": False}),
    ({"bf16": False, "model_init_kwargs": {"dtype": torch.bfloat16}}, {"dtype": "bfloat16"}),
    ({"model_init_kwargs": {"revision": "v1"}}, {"model_revision": "v1"}),
    ({"model_init_kwargs": '{"device_map": "auto", "torch_dtype": "auto"}'}, {"device_map": "auto", "dtype": "auto"}),
    ({"generation_kwargs": {"top_k": 3, "stop_strings": "."}, "top_k": 5}, {"top_k": 3, "stop": ["."]}),
    ({"generation_kwargs": '{"do_sample": false, "max_new_tokens": 4}'}, {"max_completion_length": 4}),
    ({"chat_template_kwargs": {"enable_thinking": False}}, {"chat_template_kwargs": {"enable_thinking": False}}),
    ({"reward_weights": [1.0, 0.5], "repetition_penalty": 1.1}, {"reward_weights": [1.0, 0.5]}),
    ({"lr_scheduler_type": "cosine", "warmup_steps": 5}, {"lr_scheduler_type": "cosine", "warmup_steps": 5}),
    (
        {"eval_strategy": "steps", "eval_steps": 5, "save_steps": 5, "load_best_model_at_end": True},
        {"eval_strategy": "steps", "load_best_model_at_end": True, "metric_for_best_model": "score"},
    ),
]


@pytest.mark.parametrize(("given", "expected"), TRANSLATIONS)
def test_what_is_set_is_translated_and_not_spoken_of(tmp_path, caplog, given, expected):
    found = ZOConfig.from_grpo(grpo(tmp_path, **given))
    assert {name: getattr(found, name) for name in expected} == expected
    assert not caplog.messages


def test_what_is_without_meaning_is_told_in_one_line(tmp_path, caplog):
    given = {"epsilon": 0.3, "use_vllm": True, "weight_decay": 0.1, "loss_type": "grpo", "steps_per_generation": 4}
    ZOConfig.from_grpo(grpo(tmp_path, **given, model_init_kwargs={"attn_implementation": "sdpa"}))
    [told] = caplog.messages
    told = told.rstrip(".").partition(": ")[2]
    assert set(told.split(", ")) == {*given, "model_init_kwargs['attn_implementation']"}


def test_a_first_order_rate_is_not_used_and_another_is_set_as_the_line_says(tmp_path, caplog):
    args = grpo(tmp_path, learning_rate=1e-5)
    assert ZOConfig.from_grpo(args).learning_rate is None
    [told] = caplog.messages
    assert "learning_rate=1e-05" in told
    caplog.clear()
    call = told.partition("args=")[2].rstrip(".")
    assert eval(call).learning_rate == 3e-3
    assert not caplog.messages


def test_what_cannot_be_met_is_refused_all_at_once(tmp_path):
    with pytest.raises(InputError, match="mask_truncated_completions=True, sync_ref_model=True cannot be met") as found:
        ZOConfig.from_grpo(grpo(tmp_path, sync_ref_model=True, mask_truncated_completions=True))
    assert REFUSED["sync_ref_model"] in found.value.hint


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"generation_kwargs": {"num_beams": 2}}, "generation_kwargs: num_beams"),
        ({"model_init_kwargs": {"subfolder": "a"}}, "model_init_kwargs: subfolder"),
        ({"multi_objective_aggregation": "normalize_then_sum"}, "multi_objective_aggregation='normalize_then_sum'"),
        ({"max_completion_length": None}, "max_completion_length=None bounds no text"),
    ],
)
def test_values_without_a_counterpart_are_refused(tmp_path, given, message):
    with pytest.raises(InputError, match=re.escape(message)):
        ZOConfig.from_grpo(grpo(tmp_path, **given))


def test_a_subclass_and_what_it_adds_is_told(tmp_path, caplog):
    from dataclasses import dataclass

    @dataclass
    class Ours(GRPOConfig):
        curriculum: str = "none"

    found = ZOConfig.from_grpo(Ours(str(tmp_path), use_cpu=True, bf16=True, curriculum="easy first", top_k=4))
    assert found.top_k == 4 and "curriculum" in caplog.text


def test_another_config_is_refused(tmp_path, tokenizer):
    other = SFTConfig(str(tmp_path), use_cpu=True, bf16=True)
    with pytest.raises(InputError, match="args is a SFTConfig, not a ZOConfig"):
        ZOTrainer(random_model("llama"), reward_funcs=len, args=other, processing_class=tokenizer)
    with pytest.raises(InputError, match="SFTConfig is not TRL's GRPOConfig"):
        ZOConfig.from_grpo(other)


def test_names_of_grpo_are_keyword_arguments_of_our_config_too(tmp_path, caplog):
    found = ZOConfig(
        str(tmp_path), use_cpu=True, beta=0.1, num_generations=8, max_prompt_length=100, max_completion_length=20,
        log_completions=True, use_vllm=False, vllm_mode="server", learning_rate=1e-2, sync_ref_model=False,
    )  # fmt: skip
    assert (found.kl, found.num_directions, found.max_length, found.learning_rate) == (0.1, 4, 120, 1e-2)
    assert [message.partition(": ")[2] for message in caplog.messages] == ["vllm_mode."]
    with pytest.raises(InputError, match="kl is given twice: also as beta"):
        ZOConfig(str(tmp_path), use_cpu=True, kl=0.1, beta=0.1)
    with pytest.raises(InputError, match="sync_ref_model=True cannot be met"):
        ZOConfig(str(tmp_path), use_cpu=True, sync_ref_model=True)
    with pytest.raises(TypeError, match="unexpected keyword argument 'betta'"):
        ZOConfig(str(tmp_path), use_cpu=True, betta=0.1)


# --- the learning rate ------------------------------------------------------------------------------------------------


def says_good(completions, **columns):
    return [float(text.split().count("good")) for text in completions]


@pytest.mark.parametrize(
    ("given", "doubted"),
    [
        ({"learning_rate": 1e-5}, "times less than such runs take"),
        ({"learning_rate": 3.0}, "times more than such runs take"),
        ({"learning_rate": 1e-2}, ""),
        ({"learning_rate": 1e-5, "normalize": "none"}, ""),  # its size depends on that of the scores
    ],
)
@pytest.mark.usefixtures("trials_are_kept")
def test_a_rate_far_from_what_would_be_found_is_doubted_once(tmp_path, tokenizer, caplog, given, doubted):
    args = ZOConfig(
        str(tmp_path / "run"), use_cpu=True, max_steps=2, num_directions=2, max_completion_length=2, **given
    )
    run = ZOTrainer(
        random_model("llama"), says_good, args, [{"prompt": "the film was"}] * 4, processing_class=tokenizer
    )
    with caplog.at_level(logging.WARNING):
        run.train()
    told = [message for message in caplog.messages if "such runs take" in message]
    assert [doubted in message for message in told] == ([True] if doubted else [])


# --- the order of rows ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("trials_are_kept")
def test_rows_that_are_not_to_be_shuffled_come_as_they_stand(tmp_path, tokenizer):
    seen: list[str] = []

    def watched(prompts, completions, trainer_state, **columns):
        if trainer_state.max_steps:
            seen.extend(prompts)
        return says_good(completions)

    prompts = ["a plot", "the film was", "it was very", "this film is", "not a film", "bright film"]
    config = grpo(tmp_path, shuffle_dataset=False, per_device_train_batch_size=2, num_generations=2, num_train_epochs=1)
    args = ZOConfig.from_grpo(config, max_completion_length=2, learning_rate=1e-3)
    rows = [{"prompt": prompt} for prompt in prompts]
    ZOTrainer(random_model("llama"), watched, args, rows, processing_class=tokenizer).train()
    assert list(dict.fromkeys(seen)) == prompts


# --- the page ---------------------------------------------------------------------------------------------------------


def names_in(text: str) -> list[str]:
    return re.findall(r"`([a-z_0-9]+)`", text)


def test_the_page_has_every_name_in_its_group():
    page = DOC.read_text()
    tables = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")]
    assert [names_in(first)[0] for first, *_ in tables if names_in(first)] == list(TRANSLATED)
    same, refused = (page.partition(start)[2].partition("\n\n")[0] for start in ("**The same name:**", "**Refused**"))
    assert sorted(names_in(same)) == sorted(KEPT)
    assert names_in(refused) == [*REFUSED, *OTHER_ARGUMENTS]
    reasons = {first.removeprefix("| "): names_in(rest[0]) for first, *rest in tables}
    assert {why: reasons.get(why) for why in WITHOUT_MEANING} == {
        why: names.split() for why, names in WITHOUT_MEANING.items()
    }


def code_of(*starts: str) -> dict[str, Any]:
    """What the page's blocks of code that begin so define."""
    blocks = re.findall(r"```python\n(.*?)```", DOC.read_text(), re.DOTALL)
    found: dict[str, Any] = {}
    for start in starts:
        [block] = [block for block in blocks if block.startswith(start)]
        exec(block, found)
    return found


@pytest.mark.parametrize("chat", [False, True])
def test_the_page_s_reward_of_verl_scores_rows_of_verl(chat):
    def compute_score(data_source, solution_str, ground_truth, extra_info=None):
        return float(solution_str.endswith(ground_truth)) + extra_info["index"]

    reward = code_of("def reward")
    reward["compute_score"] = compute_score
    texts = ["it is 4", "it is 5"]
    completions = [[{"role": "assistant", "content": text}] for text in texts] if chat else texts
    rows = {
        "prompts": ["2 + 2", "2 + 3"], "data_source": ["sums"] * 2, "extra_info": [{"index": 0}, {"index": 10}],
        "reward_model": [{"style": "rule", "ground_truth": "4"}, {"style": "rule", "ground_truth": "4"}],
    }  # fmt: skip
    scored = assume_completions(reward["reward"]).score(2, completions=completions, **rows)
    assert scored == (1.0 + 10.0) / 2


def test_the_page_s_functions_of_a_rubric_score_one_completion_each():
    async def correct(completion, answer) -> float:
        return float(completion[-1]["content"] == answer)

    def short(completion, **kwargs) -> float:
        return float(len(completion[-1]["content"]) < 3)

    of_rubric = code_of("import inspect")["of_rubric"]
    texts = [[{"role": "assistant", "content": text}] for text in ("4", "5", "many")]
    rows = {"prompts": ["a", "b", "c"], "completions": texts, "answer": ["4", "4", "many"]}
    both = weighted_sum([assume_completions(of_rubric(f)) for f in (correct, short)], [1.0, 0.3])
    assert [part.name for _, part in both.parts] == ["correct", "short"]
    assert both.score(3, **rows) == pytest.approx((2 + 2 * 0.3) / 3)
