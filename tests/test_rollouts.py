"""`rollout_func` as TRL's GRPOTrainer takes it: a function writes several turns with each member, one at a time."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trl import GRPOConfig

from conftest import random_model
from zoreward.journal import load_run
from zoreward.members import members_at
from zoreward.noise import SeedIndex, derive_seed
from zoreward.records import InputError, ObjectiveError
from zoreward.trainer import ZOConfig, ZOTrainer

pytestmark = pytest.mark.usefixtures("trials_are_kept")

WORDS = [" good", " bad", " dull", " great"]
ROWS = [{"prompt": f"the {word} film was", "word": word} for word in map(str.strip, WORDS)]


def two_turns(prompts: list[str], trainer: Any) -> dict[str, Any]:
    """The model writes a word, the environment says "and", the model writes another."""
    tokenizer, lines = trainer.processing_class, []
    front = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    assert trainer.num_generations == trainer.num_generations_eval == 1
    for ids in front:
        line = list(ids)
        for said in (tokenizer("and", add_special_tokens=False)["input_ids"], []):
            asked = torch.tensor([line])
            made = trainer.model.generate(
                asked, attention_mask=torch.ones_like(asked), max_new_tokens=1, do_sample=True, pad_token_id=0
            )
            line = [*made[0].tolist(), *said]
        lines.append(line)
    return {
        "prompt_ids": front,
        "completion_ids": [line[len(ids) :] for ids, line in zip(front, lines, strict=True)],
        "logprobs": None,
        "turns": [2 + n for n in range(len(prompts))],
        "env_mask": [[1, 0, 1]] * len(prompts),
        "place": "a cinema",
    }


def other_code(prompts: list[str], trainer: Any) -> dict[str, Any]:
    return {**two_turns(prompts, trainer), "place": "a theatre"}


SEEN: list[dict[str, Any]] = []


def reward(completions: list[str], turns: list[int], place: list[str], word: list[str], **columns: Any) -> list[float]:
    SEEN.append({"completions": completions, "turns": turns, "place": place, "word": word, **columns})
    return [float(len(text)) for text in completions]


def made(folder: Path, tokenizer: Any, **changes: Any) -> ZOTrainer:
    SEEN.clear()
    sizes = {"max_steps": 2, "per_device_train_batch_size": 4, "num_directions": 2, "max_completion_length": 3}
    numbers = {"eps": 0.3, "learning_rate": 1e-2}
    names = ("args", "reward_funcs", "rollout_func", "objective", "tools", "eval_dataset")
    others = {name: changes.pop(name) for name in names if name in changes}
    args = ZOConfig(str(folder), use_cpu=True, disable_tqdm=True, **{**sizes, **numbers, **changes})
    given = {"args": args, "rollout_func": two_turns, "train_dataset": ROWS, "processing_class": tokenizer, **others}
    given |= {} if "objective" in given else {"reward_funcs": given.get("reward_funcs", reward)}
    return ZOTrainer(random_model("llama", 1), **given)


def test_each_member_writes_and_what_the_rollout_says_are_columns(tmp_path: Path, tokenizer: Any) -> None:
    trainer = made(tmp_path, tokenizer)
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    SEEN.clear()
    trainer.run.journal = None
    step = trainer.run.ask_score_tell(trainer.run.rows)

    assert len(SEEN) == len(step.scored) == 4
    for call, scored in zip(SEEN, step.scored, strict=True):
        assert (call["turns"], call["place"]) == ([2, 3, 4, 5], ["a cinema"] * 4)
        assert call["word"] == [row["word"] for row in ROWS] and "env_mask" not in call and "logprobs" not in call
        assert call["completions"] == [text.text for text in scored.completions]
        assert all(text.split()[1] == "and" for text in call["completions"] if len(text.split()) == 3)
    for name, weight in trainer.model.named_parameters():  # members are shown, and θ stays as it is
        assert torch.equal(weight, before[name])
    # By hand: the model at each member's weights, and the same random numbers for all of them.
    query = trainer.method.ask(trainer.method_state)
    texts = []
    for member in query.members:
        with torch.no_grad(), torch.random.fork_rng(), members_at(trainer.model, (member,), tuned=trainer.ready.tuned):
            torch.manual_seed(seed_of_first_step(trainer))
            ids = two_turns([row["prompt"] for row in ROWS], trainer)["completion_ids"]
        texts.append(tokenizer.batch_decode(ids, skip_special_tokens=True))
    assert texts == [[text.text for text in scored.completions] for scored in step.scored]
    assert len({tuple(one) for one in texts}) > 1


def seed_of_first_step(trainer: ZOTrainer) -> int:
    return derive_seed(trainer.args.seed, trainer.method_state.step, SeedIndex.SAMPLING) % 2**32


def test_a_run_with_rollouts_is_resumed_bit_for_bit_and_knows_its_code(tmp_path: Path, tokenizer: Any) -> None:
    numbers = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())
    whole = made(tmp_path / "whole", tokenizer, max_steps=3)
    whole.train()
    made(tmp_path / "parts", tokenizer, max_steps=1).train()
    again = made(tmp_path / "parts", tokenizer, max_steps=3)
    again.train(resume_from_checkpoint=True)

    for mine, theirs in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert load_run(tmp_path / "whole").header["code"]["rollout_func"]
    with pytest.raises(InputError, match="other code of the objective 'rollout_func'"):
        made(tmp_path / "parts", tokenizer, max_steps=4, rollout_func=other_code).train(resume_from_checkpoint=True)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == numbers[:2]
    assert torch.equal(torch.get_rng_state(), numbers[2])


def test_dev_rows_are_rolled_out_too_and_a_grpo_config_is_taken(tmp_path: Path, tokenizer: Any) -> None:
    config = GRPOConfig(str(tmp_path), bf16=False, use_cpu=True, max_completion_length=3, report_to="none")
    trainer = made(tmp_path, tokenizer, args=config, eval_dataset=ROWS[:2])
    SEEN.clear()

    metrics = trainer.evaluate()

    assert metrics["eval_rows"] == 2 and [call["turns"] for call in SEEN] == [[2, 3]]


def test_conversations_come_as_messages(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"prompt": [{"role": "user", "content": "good"}]}]
    asked: list[Any] = []

    def rollout(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        asked.append(prompts[0])
        prompts[0][0]["content"] = "overwritten"  # what it does to them is its own affair
        return {"prompt_ids": [[1]], "completion_ids": [torch.tensor([5, 1])], "logprobs": [[0.0]]}

    chat = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, pad_token="<pad>", eos_token="<end>")
    chat.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    sizes = {"use_cpu": True, "max_steps": 1, "num_directions": 1, "eps": 0.1, "learning_rate": 1e-3}
    sizes["max_completion_length"] = 2
    said: list[Any] = []

    def heard(completions: list[Any], **columns: Any) -> list[float]:
        said.extend(completions)
        return [float(len(said))]

    trainer = ZOTrainer(random_model("llama"), heard, ZOConfig(str(tmp_path), **sizes), rows, processing_class=chat,
                        rollout_func=rollout)  # fmt: skip
    trainer.train()

    assert (
        asked[0] == [{"role": "user", "content": "overwritten"}] and len(asked) == 3
    )  # before step 1, and two members
    assert said[0] == [{"role": "assistant", "content": chat.decode([5])}]
    assert trainer.run.rows[0].messages[0]["content"] == "good"


def fails(prompts: list[str], trainer: Any) -> Any:
    raise ValueError("no such\nroom")


def returns(value: Any) -> Any:
    return lambda prompts, trainer: value


@pytest.mark.parametrize(
    ("changes", "error", "message", "hint"),
    [
        ({"rollout_func": 3}, InputError, "rollout_func is no function", "prompts and the trainer"),
        ({"rollout_func": fails}, ObjectiveError, "rollout_func raised ValueError: no such room", "test_rollouts.py"),
        ({"rollout_func": returns(None)}, ObjectiveError, "returned NoneType, without completion_ids", "a dict"),
        ({"rollout_func": returns({"texts": []})}, ObjectiveError, "a dict of texts, without", "completion_ids"),
        ({"rollout_func": returns({"completion_ids": [[5]] * 8})}, ObjectiveError,
         "returned 8 completion_ids for 4 prompts", "trainer.num_generations is 1"),
        ({"rollout_func": returns({"completion_ids": [[5]] * 4, "turns": [1]})}, ObjectiveError,
         "returned 1 turns for 4 prompts", "One for each prompt"),
        ({"kl": 0.1}, InputError, "would count as the model's", "Leave kl, max_kl and drift out"),
        ({"objective": "accuracy", "template": "{prompt}", "choices": WORDS, "label": "word"},
         InputError, "'accuracy' scores answers that are given", "of what is written"),
        ({"tools": [reward]}, InputError, "takes no tools", "rollout_func=your_function"),
    ],
    ids=["no function", "raises", "nothing", "no completions", "several", "a column", "kl", "choices", "tools"],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_step_1(
    changes: dict[str, Any], error: Any, message: str, hint: str, tmp_path: Path, tokenizer: Any
) -> None:
    with pytest.raises(error, match=message) as refused:
        made(tmp_path, tokenizer, **changes)
    assert hint in refused.value.hint and not (tmp_path / "journal.jsonl").exists()


def test_vllm_is_refused_by_name(tmp_path: Path, tokenizer: Any) -> None:
    config = GRPOConfig(str(tmp_path), bf16=False, use_cpu=True, report_to="none")
    config.use_vllm = True
    with pytest.raises(InputError, match="writes with vLLM would see no member") as refused:
        made(tmp_path, tokenizer, args=config)
    assert "trainer.model.generate" in refused.value.hint
