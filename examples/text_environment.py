"""A small text environment, as a function for TRL's GRPOTrainer has it: python examples/text_environment.py

A guest asks about two things, and the model says a word about each. After an unkind first word the guest leaves. The
function writes both turns with `trainer.model.generate`; zoreward calls it for each member in turn.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import zoreward
from zoreward import ZOConfig, ZOTrainer

SHIPPED = Path(zoreward.__file__).parent / "quickstart"
KIND = set("fresh tasty crisp rich kind friendly quick polite clean cosy bright lovely warm airy tidy".split())
THINGS = "cook waiter hall kitchen table terrace owner chef soup rice bread garden".split()


def words_behind(lines: list[list[int]], trainer: Any) -> list[list[int]]:
    """Return the token that the model writes behind each line: at the weights of the member whose turn it is."""
    inputs = trainer.processing_class.pad({"input_ids": lines}, padding_side="left", return_tensors="pt")
    return trainer.model.generate(**inputs, max_new_tokens=1, do_sample=False)[:, -1:].tolist()


def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
    """Write a conversation for each prompt: as for GRPOTrainer, but one for each, as trainer.num_generations says."""
    tokenizer = trainer.processing_class
    fronts = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    lines, kind, present = [list(front) for front in fronts], [0] * len(prompts), list(range(len(prompts)))
    for turn in (1, 2):
        for n, word in zip(present, present and words_behind([lines[n] for n in present], trainer), strict=True):
            kind[n] += tokenizer.decode(word).strip() in KIND
            asked = f" and the {THINGS[n % len(THINGS)]} was so" if kind[n] == turn == 1 else " ."
            lines[n] += [*word, *tokenizer(asked, add_special_tokens=False)["input_ids"]]
        present = [n for n in present if kind[n]]
    written = [line[len(front) :] for line, front in zip(lines, fronts, strict=True)]
    return {"prompt_ids": fronts, "completion_ids": written, "logprobs": None, "kind_words": kind}


def kindness(completions: list[str], kind_words: list[int], **columns: Any) -> list[float]:
    """The share of the two turns in which the model was kind; the environment has counted."""
    return [count / 2 for count in kind_words]


def main(steps: int = 20, rows: int = 24) -> tuple[float, float]:
    """Return the mean reward on prompts that were not tuned on, before and after."""
    prompts = [{"prompt": f"The {thing} was {how}"} for thing in THINGS for how in ("very", "quite", "so", "really")]
    sizes = {"num_directions": 8, "per_device_train_batch_size": 12, "max_steps": steps, "max_completion_length": 8}
    with tempfile.TemporaryDirectory() as made:
        args = ZOConfig(made, **sizes, use_cpu=True)
        trainer = ZOTrainer(str(SHIPPED / "model"), kindness, args, prompts[:rows], rollout_func=rollout)
        before = trainer.predict(prompts[rows:]).metrics["test_score"]
        trainer.train()
        return before, trainer.predict(prompts[rows:]).metrics["test_score"]


if __name__ == "__main__":
    print("kind words in two turns: {:.2f} before, {:.2f} after".format(*main()))
