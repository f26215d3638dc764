"""Tuning a model with transformers' own training loop: its callbacks, loggers, schedules, samplers and saving."""

from zoreward.trainer.loop import ZOTrainer
from zoreward.trainer.options import ZOConfig

__all__ = ["ZOConfig", "ZOTrainer"]
