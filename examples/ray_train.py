"""Ray Train starts the ranks: each of its workers calls one function, which makes a trainer as a script for one does.

    pip install "ray[train]"
    python examples/ray_train.py MODEL 2      # a folder with a model, and how many workers

Ray sets RANK and WORLD_SIZE as torchrun does, so zoreward shares the members of a step among the workers. Where one
dies, Ray begins all of them anew, and the run goes on from its journal; `runs` must lie on a disk that all see.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROWS = [{"text": text, "label": label} for text, label in (("a dull film", 0), ("a lovely film", 1)) for _ in range(8)]


def tune(settings: dict[str, Any]) -> None:
    """What each worker does."""
    from zoreward import ZOConfig, ZOTrainer

    args = ZOConfig(
        settings["output"],
        template="{text} It was",
        choices=[" bad", " good"],
        max_steps=settings["steps"],
        num_directions=4,
        use_cpu=not settings["gpus"],
    )
    trainer = ZOTrainer(settings["model"], objective="neg-cross-entropy", train_dataset=ROWS, args=args)
    trainer.train(resume_from_checkpoint=True)
    trainer.save_model(str(Path(settings["output"], "model")))  # rank 0 writes it


def main(model: str, workers: int, output: str = "runs/by-ray", steps: int = 20, gpus: bool = False) -> Path:
    """Tune by so many workers; returns the folder of the run."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    folder = Path(output).absolute()
    settings = {"model": str(Path(model).absolute()), "output": str(folder), "steps": steps, "gpus": gpus}
    TorchTrainer(
        tune,
        train_loop_config=settings,
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpus),
        run_config=RunConfig(storage_path=str(folder.parent / "ray"), failure_config=FailureConfig(max_failures=3)),
    ).fit()
    return folder


if __name__ == "__main__":
    print(f"the model is in {main(sys.argv[1], int(sys.argv[2]))}/model")
