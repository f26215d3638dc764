"""Memory and seconds of a step: MeZO, with LoRA, with a prefix, SGD and AdamW, by batch size.

    python benchmarks/profiles.py                                                    # one GPU of 80 GB
    python benchmarks/profiles.py --shape tiny --tokens 16 --batch 1 2 --rounds 2    # anywhere

OPT-1.3B's shape with random weights, rows of 400 tokens with two answers of one token, no dropout, no recomputing of
activations. In bfloat16: `mezo` (all weights, dense directions), `mezo-lora` (rank 8), `mezo-prefix` (5 tokens), `sgd`
(no momentum), `adamw-bf16` (weights and both moments in bfloat16). `adamw` is what one tunes with: weights, gradients
and moments in float32, bfloat16 autocast. Those with gradients minimise the cross-entropy over the answers.

Memory is the most that a second step allocates with nothing else on the device; seconds are medians of steps done in
turn. What does not fit is written down as that. Writes profile.csv and, with matplotlib, profile.png into
benchmarks/results.
"""

from __future__ import annotations

import argparse
import csv
import gc
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import RESULTS, SHAPES, commit, machine, opt_config, timed
from torch.nn import functional
from transformers import OPTForCausalLM

from zoreward.members import adapted, lora_config, tuned_weights, update_, with_prefix
from zoreward.methods import SPSA
from zoreward.records import Example
from zoreward.scoring import candidate_logprobs, engine_of

MEZO = {"mezo": 1e-3, "mezo-lora": 1e-2, "mezo-prefix": 1e-1}  # ε
WAYS = (*MEZO, "sgd", "adamw-bf16", "adamw")
LR = 1e-7
ANSWERS = (5, 6)
COLUMNS = ("device", "shape", "commit", "way", "rows", "tokens", "peak GB", "weights GB", "ms", "result")

Line = dict[str, Any]
Step = Callable[[int], None]


def random_model(shape: str, dtype: torch.dtype, device: torch.device) -> Any:
    """OPT of a size, without dropout, weights as they come."""
    torch.manual_seed(0)
    with device:
        return OPTForCausalLM._from_config(opt_config(shape), dtype=dtype).eval()


def examples_of(rows: int, tokens: int) -> list[Example]:
    """Rows of random tokens with two candidates of one token."""
    ids = torch.randint(10, 500, (rows, tokens), generator=torch.Generator().manual_seed(0)).tolist()
    return [Example({}, "", ("a", "b"), 0, tuple(row), tuple((answer,) for answer in ANSWERS)) for row in ids]


def mezo(name: str, options: argparse.Namespace, device: torch.device) -> Step:
    """A step of `zoreward tune`: ask, score both members, tell, update."""
    model = random_model(options.shape, torch.bfloat16, device).requires_grad_(False)
    if name == "mezo-lora":
        model = adapted(model, lora_config(model, 8, 16), 0).eval().requires_grad_(False)
    elif name == "mezo-prefix":
        model = with_prefix(model, 0).eval().requires_grad_(False)
    spsa = SPSA(eps=MEZO[name], lr=LR)
    state = spsa.init()
    reader = engine_of(model, 1, tuned=tuned_weights(model))

    def once(rows: int) -> None:
        nonlocal state
        query = spsa.ask(state)
        scores = candidate_logprobs(reader, examples_of(rows, options.tokens), query.members)[:, :, 0].mean(axis=1)
        update, state = spsa.tell(state, query, scores.tolist())
        update_(reader.model, update, tuned=reader.tuned)

    return once


def gradient(name: str, options: argparse.Namespace, device: torch.device) -> Step:
    """A step of an optimizer of torch."""
    full = name == "adamw"
    model = random_model(options.shape, torch.float32 if full else torch.bfloat16, device)
    weights = list(model.parameters())
    optimizer: torch.optim.Optimizer
    if name == "sgd":
        optimizer = torch.optim.SGD(weights, lr=LR)
    else:
        optimizer = torch.optim.AdamW(weights, lr=LR, weight_decay=0.0)

    def once(rows: int) -> None:
        ids = torch.tensor([one.prompt_tokens for one in examples_of(rows, options.tokens)], device=device)
        try:
            with torch.autocast(device.type, torch.bfloat16, enabled=full):
                output = model(input_ids=ids, attention_mask=torch.ones_like(ids), logits_to_keep=1, use_cache=False)
                logits = output.logits[:, -1, list(ANSWERS)].float()
            functional.cross_entropy(logits, torch.zeros(rows, dtype=torch.long, device=device)).backward()
            optimizer.step()
        finally:
            optimizer.zero_grad()

    return once


def made(name: str, options: argparse.Namespace, device: torch.device) -> Step:
    """The step of a way."""
    return (mezo if name in MEZO else gradient)(name, options, device)


def allocated(device: torch.device, *, most: bool = False) -> float | None:
    """GB on the device: now, or the most since the last reset; None without a GPU."""
    if device.type != "cuda":
        return None
    return (torch.cuda.max_memory_allocated(device) if most else torch.cuda.memory_allocated(device)) / 1e9


def empty(device: torch.device) -> None:
    """Give back what nobody holds."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peaks(name: str, options: argparse.Namespace, device: torch.device) -> dict[int, Line]:
    """The memory of a way by rows, alone on the device."""
    found: dict[int, Line] = {}
    try:
        step = made(name, options, device)
    except torch.OutOfMemoryError:
        return {rows: {"result": "out of memory"} for rows in options.batch}
    weights = allocated(device)
    for rows in options.batch:
        try:
            step(rows)  # the first one makes what stays: moments, kernels
            empty(device)
            step(rows)
            found[rows] = {"peak GB": allocated(device, most=True), "weights GB": weights, "result": "fits"}
        except torch.OutOfMemoryError:
            found[rows] = {"weights GB": weights, "result": "out of memory"}
        empty(device)
    return found


def seconds(lines: dict[tuple[str, int], Line], options: argparse.Namespace, device: torch.device) -> None:
    """Put the median of each step's seconds into its line; all models stand on the device at once."""
    steps: dict[str, Step] = {}
    for name in options.ways:
        try:
            steps[name] = made(name, options, device)
        except torch.OutOfMemoryError:
            empty(device)
    for rows in options.batch:
        times: dict[str, list[float]] = {name: [] for name in steps if lines[name, rows]["result"] == "fits"}
        for number in range(options.rounds + 1):
            for name in list(times):
                spent = once_timed(steps[name], rows, device)
                if spent is None:
                    del times[name]
                    empty(device)
                elif number:
                    times[name].append(spent)
        for name, found in times.items():
            lines[name, rows]["ms"] = statistics.median(found) * 1e3


def once_timed(step: Step, rows: int, device: torch.device) -> float | None:
    """The seconds of a step; None where it does not fit beside the other models, though it does alone."""
    try:
        return timed(lambda: step(rows), device)
    except torch.OutOfMemoryError:
        return None


def plot(lines: list[Line], path: Path) -> None:
    """Draw memory and seconds by rows."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        print("no plot: matplotlib is not installed")
        return
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    for name in dict.fromkeys(line["way"] for line in lines):
        for axes, column in zip(panels, ("peak GB", "ms"), strict=True):
            own = [line for line in lines if line["way"] == name and line.get(column) is not None]
            axes.plot([line["rows"] for line in own], [line[column] for line in own], marker="o", label=name)
    for axes, label in zip(panels, ("most memory of a step, GB", "ms a step"), strict=True):
        axes.set(xlabel=f"rows of {lines[0]['tokens']} tokens a step", ylabel=label, ylim=(0, None))
        axes.set_xscale("log", base=2)
    panels[0].legend()
    figure.savefig(path, dpi=120)


def cell(value: Any) -> str:
    """A cell of the table."""
    return "–" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="opt-1.3b")
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--commit", default=commit())
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    key = {"device": machine(device), "shape": options.shape, "commit": options.commit, "tokens": options.tokens}
    lines: dict[tuple[str, int], Line] = {}
    for name in options.ways:
        for rows, line in peaks(name, options, device).items():
            lines[name, rows] = {**key, "way": name, "rows": rows, **line}
        empty(device)
    seconds(lines, options, device)
    options.results.mkdir(parents=True, exist_ok=True)
    with (options.results / "profile.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for line in lines.values():
            writer.writerow({name: cell(line[name]) for name in COLUMNS if line.get(name) is not None})
    print(f"{key['device']}, torch {torch.__version__}, {options.shape}, rows of {options.tokens} tokens")
    print("| way | rows | peak GB | weights GB | ms a step | |\n|---|---|---|---|---|---|")
    for line in lines.values():
        shown = [line.get(name) for name in ("way", "rows", "peak GB", "weights GB", "ms", "result")]
        print(f"| {' | '.join(map(cell, shown))} |")
    plot(list(lines.values()), options.results / "profile.png")


if __name__ == "__main__":
    main()
