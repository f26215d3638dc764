"""What the benchmarks of the engine share: sizes of models, clocks, bars, and a file of results."""

from __future__ import annotations

import csv
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import OPTConfig

RESULTS = Path(__file__).parent / "results"

# hidden size, layers, heads
SHAPES = {
    "tiny": (64, 2, 4),
    "opt-125m": (768, 12, 12),
    "opt-1.3b": (2048, 24, 32),
    "opt-13b": (5120, 40, 40),
    "opt-30b": (7168, 48, 56),
    "opt-66b": (9216, 64, 72),
}


@dataclass(frozen=True)
class Result:
    """A figure, and the bar it must hold.

    Args:
        what: what was measured.
        value: its figure.
        unit: of the figure.
        least, most: the bar; None where there is none.
    """

    what: str
    value: float
    unit: str
    least: float | None = None
    most: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the bar is held."""
        return (self.least is None or self.value >= self.least) and (self.most is None or self.value <= self.most)

    def __str__(self) -> str:
        bars = [
            f"{word} {bar:g}" for word, bar in (("at least", self.least), ("at most", self.most)) if bar is not None
        ]
        bar = f"   bar: {', '.join(bars)} → {'held' if self.holds else 'MISSED'}" if bars else ""
        value = f"{self.value:.3f}" if self.value == 0 or abs(self.value) >= 0.01 else f"{self.value:.3g}"
        return f"{self.what:<58} {value:>10} {self.unit}{bar}"


def medians(works: Mapping[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, float]:
    """Return the median seconds of each, all of them run in turn, after one round that does not count."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            seconds = timed(work, device)
            if number:
                found[name].append(seconds)
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that `work` takes, until the device is done."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait for what the device has still to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reach(values: Sequence[float]) -> float:
    """Return half the width of the 95 % interval of a mean, by Student's t; NaN for a single value.

    >>> round(reach([1.0, 2.0, 3.0]), 3)
    2.484
    """
    if len(values) < 2:
        return math.nan
    from scipy.stats import t

    return float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


def opt_config(shape: str) -> OPTConfig:
    """Return the config of OPT in a size, without dropout."""
    hidden, layers, heads = SHAPES[shape]
    return OPTConfig(
        hidden_size=hidden,
        word_embed_proj_dim=hidden,
        ffn_dim=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        dropout=0.0,
        vocab_size=512 if shape == "tiny" else 50272,
    )


def machine(device: torch.device) -> str:
    """Return the device's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def commit() -> str:
    """Return the commit that is measured; empty outside a repository."""
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=RESULTS.parent)
    return done.stdout.strip()


def record(name: str, results: list[Result], device: torch.device, dtype: str, shape: str, version: str) -> None:
    """Print results, and append them to `results/NAME.csv`."""
    print(f"{machine(device)}, torch {torch.__version__}, {dtype}, {shape}")
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}.csv"
    new = not file.exists()
    with file.open("a", newline="", encoding="utf-8") as opened:
        rows = csv.writer(opened)
        if new:
            rows.writerow(["device", "dtype", "shape", "commit", "what", "value", "unit", "least", "most"])
        for result in results:
            print(result, flush=True)
            value = f"{result.value:.4g}"
            key = [machine(device), dtype, shape, version]
            rows.writerow([*key, result.what, value, result.unit, result.least, result.most])


def finish(results: list[Result], check: bool) -> None:
    """Leave with 1 if a bar was asked for and is missed."""
    missed = [result.what for result in results if not result.holds]
    if check and missed:
        sys.exit(f"missed: {'; '.join(missed)}")
