"""Tuning a model: `Run`, the loop, and `ZOTrainer`, which drives one as users of transformers' Trainer know it."""

from zoreward.trainer.loop import ZOTrainer
from zoreward.trainer.options import ZOConfig
from zoreward.trainer.run import Run, Step

__all__ = ["Run", "Step", "ZOConfig", "ZOTrainer"]
