"""Best of n against tuning, on one reward and with as many scored completions, with the model that zoreward ships.

python examples/best_of_n.py

Best of n pays for each text it delivers; what is tuned is paid for once. The reward: words of a guest who is pleased.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import zoreward
from zoreward import ZOConfig, ZOTrainer, evaluate
from zoreward.data import load_rows
from zoreward.scoring import Generation

SHIPPED = Path(zoreward.__file__).parent / "quickstart"
PLEASED = set("fresh tasty crisp rich kind friendly quick polite clean cosy bright lovely return Five large".split())
NEW_TOKENS, BATCH, DIRECTIONS = 16, 16, 8


def pleased(completions: list[str], **columns: object) -> list[float]:
    """How many of these words a completion has."""
    return [float(sum(word.strip(".,") in PLEASED for word in text.split())) for text in completions]


def best_of(n: int, trainer: ZOTrainer, rows: list[dict]) -> float:
    """Return the mean reward of the best of n completions of each prompt."""

    def best(completions: list[str]) -> float:  # one number for all rows: no mean over single texts has it
        rewards = pleased(completions)
        return sum(max(rewards[i :: len(rows)]) for i in range(len(rows))) / len(rows)

    drawn = Generation(max_new_tokens=NEW_TOKENS, temperature=1.0, seed=1)
    return evaluate(trainer.model, best, rows * n, tokenizer=trainer.processing_class, generation=drawn).score


def main(steps: int = 12, prompts: int = 32) -> dict[str, tuple[int, float]]:
    """Return for each way the completions that were scored for it, and the mean reward on prompts not tuned on."""
    rows = [{"prompt": " ".join(row["text"].split()[:3])} for row in load_rows(SHIPPED / "train.jsonl")]
    dev = [{"prompt": " ".join(row["text"].split()[:3])} for row in load_rows(SHIPPED / "heldout.jsonl")[:prompts]]
    with tempfile.TemporaryDirectory() as folder:
        sizes = {"num_directions": DIRECTIONS, "per_device_train_batch_size": BATCH, "max_steps": steps}
        texts = {"temperature": 1.0, "max_completion_length": NEW_TOKENS, "completions_every": 0}
        args = ZOConfig(folder, **sizes, **texts, learning_rate=1e-2, eps=2e-2, use_cpu=True, disable_tqdm=True)
        trainer = ZOTrainer(str(SHIPPED / "model"), reward_funcs=pleased, args=args, train_dataset=rows)
        budget = steps * 2 * DIRECTIONS * BATCH
        counts = dict.fromkeys((1, 4, max(1, budget // prompts)))
        found = {f"best of {n}": (n * prompts, best_of(n, trainer, dev)) for n in counts}
        trainer.train()
        return found | {f"tuned, best of {n}": (budget + n * prompts, best_of(n, trainer, dev)) for n in (1, 4)}


if __name__ == "__main__":
    print(f"{'':<18} scored completions   reward")
    for way, (completions, reward) in main().items():
        print(f"{way:<18} {completions:>18,} {reward:>8.3f}")
