"""Spike: estimators beside each other at equal forward rows, on SST-2 with rank-1 directions in float32.

    python benchmarks/spikes/estimators.py --model MODEL --sst2 SST2 --configs shared:c=1.5 rows:c=1.5 rows:c=1.5,n=8

A configuration is KIND:name=value,…; c is the rate in radii (what `--lr` finds is 1.5), T steps of `--rows` rows:

    shared   one direction for all rows
    rows     a direction for n rows each (n, 1)
    line     rows, then a pair along Σ w_k z_k on rows of its own, whose slope is the step's length; T/2 steps
    cone     one direction cos φ · m̂ + sin φ · z around the momentum m (phi, beta)
    scaled   rows, with a scale for each layer: s² = (slope²/curvature)^p of the layer (p), measured before step 1

Slopes are divided by their running rms (raw=1: not, and c is the learning rate). Prints a line of JSON for each, and a
table at the end.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from transformers import AutoModelForCausalLM, AutoTokenizer

ANSWERS = (" terrible", " great")
Pair = tuple[torch.Tensor, torch.Tensor]


class Bench:
    """A model whose linear layers take a rank-1 move for each row, and rows of SST-2."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.device = options, torch.device(options.device)
        self.tokenizer = AutoTokenizer.from_pretrained(options.model)
        self.model: Any = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
        self.model.to(self.device).eval().requires_grad_(False)
        self.layers = [m for m in self.model.model.modules() if isinstance(m, torch.nn.Linear)]
        names = {m: name for name, m in self.model.model.named_modules()}
        self.block = [int(names[m].split(".")[1]) for m in self.layers]  # layers.3.self_attn.q_proj
        self.base = [layer.weight.clone() for layer in self.layers]
        self.moves: dict[Any, Pair] = {}
        for layer in self.layers:
            layer.register_forward_hook(self._moved)
        encode = self.tokenizer.encode
        self.answers = torch.tensor([encode(a, add_special_tokens=False)[0] for a in ANSWERS], device=self.device)
        self.train, self.dev = (self._rows(name) for name in ("train", "dev"))

    def _rows(self, name: str) -> list[tuple[list[int], int]]:
        with open(f"{self.options.sst2}/{name}.jsonl", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        return [(self.tokenizer.encode(row["sentence"] + " It was"), int(row["label"])) for row in rows]

    def _moved(self, layer: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
        if layer not in self.moves:
            return None
        a, b = self.moves[layer]
        inner = torch.bmm(inputs[0], b[self.part].unsqueeze(2))
        return torch.baddbmm(output, inner, a[self.part].unsqueeze(1))

    def logprobs(self, rows: Sequence[tuple[list[int], int]]) -> torch.Tensor:
        """Log-probabilities (N, 2) of both answers; row n is moved by line n of `moves`."""
        found = torch.empty(len(rows), 2, device=self.device)
        order = sorted(range(len(rows)), key=lambda n: -len(rows[n][0]))
        while order:
            width = len(rows[order[0]][0])
            some, order = order[: max(1, self.options.tokens // width)], order[max(1, self.options.tokens // width) :]
            ids = torch.zeros(len(some), width, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for line, n in enumerate(some):
                ids[line, width - len(rows[n][0]) :] = torch.tensor(rows[n][0])
                mask[line, width - len(rows[n][0]) :] = 1
            ids, mask, self.part = ids.to(self.device), mask.to(self.device), torch.tensor(some, device=self.device)
            place = (mask.cumsum(1) - 1).clamp(min=0)
            hidden = self.model.model(input_ids=ids, attention_mask=mask, position_ids=place, use_cache=False)[0]
            head = self.model.get_output_embeddings().weight[self.answers]
            found[self.part] = torch.log_softmax(hidden[:, -1] @ head.T, -1)
        return found

    def scores(self, rows: Sequence[tuple[list[int], int]]) -> torch.Tensor:
        """Scores (N,): the right answer's log-probability, or whether it is the likelier."""
        logprobs, labels = self.logprobs(rows), torch.tensor([y for _, y in rows], device=self.device)
        if self.options.objective == "accuracy":
            return (logprobs.argmax(1) == labels).float()
        return logprobs[torch.arange(len(rows)), labels]

    def directions(self, generator: torch.Generator, count: int) -> list[Pair]:
        """K directions of each layer: a (K, m), b (K, n)."""

        def normal(size: int) -> torch.Tensor:
            return torch.randn(count, size, generator=generator, device=self.device)

        return [(normal(w.shape[0]), normal(w.shape[1])) for w in self.base]

    def measured(self) -> dict[str, float]:
        """Accuracy, cross-entropy and AUC on the dev rows."""
        self.moves = {}
        logprobs, labels = self.logprobs(self.dev).double().cpu().numpy(), np.array([y for _, y in self.dev])
        right = logprobs[np.arange(len(labels)), labels]
        if not np.isfinite(logprobs).all():
            return dict.fromkeys(("accuracy", "cross_entropy", "auc"), math.nan)
        return {
            "accuracy": round(float((logprobs.argmax(1) == labels).mean()), 4),
            "cross_entropy": round(float(-right.mean()), 4),
            "auc": round(float(roc_auc_score(labels, logprobs[:, 1] - logprobs[:, 0])), 4),
        }

    def put(self, moves: Sequence[Pair], eps: float, scales: Sequence[float]) -> None:
        """Let row n be moved by ε · s_layer · a_n b_nᵀ; then as many rows by its negative."""
        self.moves = {
            layer: (torch.cat([eps * s * a, -eps * s * a]), b.repeat(2, 1))
            for layer, (a, b), s in zip(self.layers, moves, scales, strict=True)
        }

    def add(self, change: Sequence[torch.Tensor], scale: float) -> None:
        """θ ← θ + scale · change."""
        for layer, one in zip(self.layers, change, strict=True):
            layer.weight.add_(one, alpha=scale)


def change_of_choices(bench: Bench, generator: torch.Generator, eps: float, only: int | None, looks: int = 8) -> float:
    """KL of 64 rows' choices along random directions, what all rows share left out, as in zoreward.trainer.radius."""
    rows, total = bench.train[:64], 0.0
    bench.moves = {}
    before = bench.logprobs(rows)
    for _ in range(looks):
        scales = [1.0 if only is None or block == only else 0.0 for block in bench.block]
        pairs = [(a.expand(64, -1), b.expand(64, -1)) for a, b in bench.directions(generator, 1)]
        bench.put(pairs, eps, scales)
        after = bench.logprobs(rows)
        moved = torch.log_softmax(after - (after - before).mean(0), -1)
        total += float((before.exp() * (before - moved)).sum(1).mean()) / looks
    return max(total, 1e-12)


def radius_of(bench: Bench) -> float:
    """r: where random moves change a choice by 0.01 nats."""
    eps, generator = 5e-3, torch.Generator(bench.device).manual_seed(99)
    for _ in range(6):
        times = math.sqrt(0.01 / change_of_choices(bench, generator, eps, None))
        eps *= min(max(times, 0.1), 10)
        if 0.7 < times < 1.4:
            break
    return eps


def scales_of(bench: Bench, eps: float, power: float) -> list[float]:
    """s of each linear layer by slope²/curvature of its block, so that all together keep their curvature."""
    generator, blocks = torch.Generator(bench.device).manual_seed(77), sorted(set(bench.block))
    slope, curvature = {}, {}
    for block in blocks:
        own = eps * math.sqrt(len(blocks))
        curvature[block] = change_of_choices(bench, generator, own, block, 4) / own**2
        squares = []
        for start in range(0, 8 * bench.options.rows, bench.options.rows):
            rows = bench.train[start : start + bench.options.rows]
            pairs = [(a.expand(len(rows), -1), b.expand(len(rows), -1)) for a, b in bench.directions(generator, 1)]
            bench.put(pairs, own, [float(b == block) for b in bench.block])
            plus, minus = bench.scores([*rows, *rows]).view(2, -1).mean(1).tolist()
            squares.append(((plus - minus) / (2 * own)) ** 2)
        slope[block] = sum(squares) / len(squares)
    worth = {block: (slope[block] / curvature[block]) ** power for block in blocks}
    norm = sum(curvature.values()) / sum(worth[block] * curvature[block] for block in blocks)
    print(json.dumps({"scales": [round(math.sqrt(worth[block] * norm), 2) for block in blocks]}), flush=True)
    return [math.sqrt(worth[block] * norm) for block in bench.block]


def run(bench: Bench, kind: str, values: dict[str, float], radius: float, seed: int) -> dict[str, Any]:
    """Tune from the base weights by one estimator."""
    options, rows, start = bench.options, bench.options.rows, time.perf_counter()
    for layer, base in zip(bench.layers, bench.base, strict=True):
        layer.weight.copy_(base)
    c, per, raw = values.get("c", 1.5), int(values.get("n", 1)), bool(values.get("raw"))
    eps = values.get("eps", radius)
    steps = options.steps // 2 if kind == "line" else options.steps
    count = 1 if kind in ("shared", "cone") else rows // per
    lr = c if raw else c * radius * math.sqrt((1 if kind == "line" else count) / steps)
    generator = torch.Generator(bench.device).manual_seed(1000 + seed)
    order = np.random.default_rng(seed)
    scales = scales_of(bench, eps, values.get("p", 0.5)) if kind == "scaled" else [1.0] * len(bench.layers)
    squares = number = 0.0
    momentum: list[torch.Tensor] | None = None

    def over_rms(slopes: torch.Tensor) -> torch.Tensor:
        nonlocal squares, number
        squares, number = 0.9 * squares + float((slopes**2).mean()), 0.9 * number + 1
        return slopes if raw else slopes / max(math.sqrt(squares / number), 1e-30)

    def pair(change: Sequence[torch.Tensor], some: Any) -> torch.Tensor:
        bench.moves, both = {}, []
        for scale in (eps, -2 * eps):
            bench.add(change, scale)
            both.append(bench.scores(some).mean())
        bench.add(change, eps)
        return ((both[0] - both[1]) / (2 * eps)).reshape(1)

    waiting: list[int] = []
    log = []

    def batch() -> list[tuple[list[int], int]]:
        nonlocal waiting
        if len(waiting) < rows:
            waiting = order.permutation(len(bench.train)).tolist()
        taken, waiting = waiting[:rows], waiting[rows:]
        return [bench.train[n] for n in taken]

    for step in range(1, steps + 1):
        some, moves = batch(), bench.directions(generator, count)
        if kind == "cone":
            fresh = [a.T @ b for a, b in moves]
            if momentum is not None:
                length = math.sqrt(sum(float((m**2).sum()) for m in momentum) / sum(m.numel() for m in momentum))
                cos, sin = math.cos(values.get("phi", 1.35)), math.sin(values.get("phi", 1.35))
                fresh = [cos * m / max(length, 1e-30) + sin * z for m, z in zip(momentum, fresh, strict=True)]
            weight = float(over_rms(pair(fresh, some)))
            beta = values.get("beta", 0.95)
            momentum = momentum or [torch.zeros_like(z) for z in fresh]
            for m, z in zip(momentum, fresh, strict=True):
                m.mul_(beta).add_(z, alpha=(1 - beta) * weight)
            bench.add(fresh, lr * weight)
        else:
            share = rows // count
            wide = [(a.repeat_interleave(share, 0), b.repeat_interleave(share, 0)) for a, b in moves]
            bench.put(wide, eps, scales)
            plus, minus = bench.scores([*some, *some]).view(2, count, -1).mean(2)
            slopes = (plus - minus) / (2 * eps)
            if kind == "line":
                slopes = slopes / slopes.square().mean().sqrt().clamp(min=1e-30) / math.sqrt(count)
            else:
                slopes = over_rms(slopes) / count
            change = [s * (a * slopes[:, None]).T @ b for (a, b), s in zip(moves, scales, strict=True)]
            bench.add(change, lr * float(over_rms(pair(change, batch()))) if kind == "line" else lr)
        if step in (steps // 3, 2 * steps // 3, steps):
            log.append(bench.measured())
    return {"kind": kind, **values, "seed": seed, "lr": lr, "eps": eps, "log": log,
            "seconds": round(time.perf_counter() - start, 1)}  # fmt: skip


@torch.no_grad()
def main() -> None:
    """Run all configurations with all seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--sst2", required=True)
    parser.add_argument("--configs", nargs="+", required=True)
    parser.add_argument("--objective", choices=["neg-cross-entropy", "accuracy"], default="neg-cross-entropy")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--dev-rows", type=int, default=872)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--tokens", type=int, default=0, help="of a pass; 0: 16,384 on a GPU, 1,024 on a CPU")
    parser.add_argument("--radius", type=float, help="where it is known")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    options.tokens = options.tokens or (16384 if options.device.startswith("cuda") else 1024)
    bench = Bench(options)
    bench.dev = bench.dev[: options.dev_rows]
    radius = options.radius or radius_of(bench)
    print(json.dumps({"radius": radius, "objective": options.objective, "base": bench.measured()}), flush=True)
    results = []
    for config in options.configs:
        kind, _, rest = config.partition(":")
        values = {name: float(value) for name, _, value in (part.partition("=") for part in rest.split(",") if part)}
        for seed in options.seeds:
            results.append({"config": config, **run(bench, kind, values, radius, seed)})
            print(json.dumps(results[-1]), flush=True)
    print(table(options.configs, results))


def table(configs: Sequence[str], results: Sequence[dict[str, Any]]) -> str:
    """Means over the seeds: accuracy / cross-entropy / AUC after a third, two thirds and all of the rows."""
    lines = ["| | ⅓ | ⅔ | all |", "|---|---|---|---|"]
    mean: Callable[[list[float]], float] = lambda values: sum(values) / len(values)  # noqa: E731
    for config in configs:
        logs = [one["log"] for one in results if one["config"] == config]
        cells = [
            " / ".join(
                f"{mean([log[place][name] for log in logs]):.3f}" for name in ("accuracy", "cross_entropy", "auc")
            )
            for place in range(3)
        ]
        lines.append(f"| {config} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
