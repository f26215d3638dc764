"""A metric of scikit-learn as the objective, in Python: Matthews' correlation, with the model that zoreward ships.

python examples/scikit_learn.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import zoreward
from zoreward import ZOConfig, ZOTrainer
from zoreward.data import load_rows

SHIPPED = Path(zoreward.__file__).parent / "quickstart"
PROMPT = {"template": "{text} It was", "choices": [" bad", " good"]}


def main(steps: int = 80) -> tuple[float, float]:
    """Tune, and return the metric on held-out rows before and after."""
    with tempfile.TemporaryDirectory() as folder:
        args = ZOConfig(
            folder,
            **PROMPT,
            max_steps=steps,
            per_device_train_batch_size=32,
            eps=2e-2,
            learning_rate=2.5e-4,
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = ZOTrainer(
            str(SHIPPED / "model"),
            objective="sklearn:matthews_corrcoef",
            args=args,
            train_dataset=load_rows(SHIPPED / "train.jsonl"),
            eval_dataset=load_rows(SHIPPED / "heldout.jsonl"),
        )
        before = trainer.evaluate()["eval_score"]
        trainer.train()
        return before, trainer.evaluate()["eval_score"]


if __name__ == "__main__":
    before, after = main()
    print(f"Matthews' correlation on held-out rows: {before:.3f} before, {after:.3f} after")
