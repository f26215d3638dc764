"""How long a replay takes, and whether a GPU gives the same bytes as the CPU.

    python benchmarks/replay.py --model MODEL --steps 1000
    python benchmarks/replay.py --model MODEL --steps 20 --check

The run is made up: updates of a plausible size, on the model's own weights.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import asdict
from typing import Any

import torch

from zoreward.journal import Journal, fingerprint, load_run, replay, weights_dtype
from zoreward.journal.stored import StoredRun
from zoreward.members import tuned_weights
from zoreward.methods import SPSA
from zoreward.records import StepRecord
from zoreward.scoring import load_model


def made_up(model: torch.nn.Module, steps: int, rank: int) -> StoredRun:
    """Return a run of this model."""
    spsa = SPSA(eps=1e-3, lr=1e-6, rank=rank)
    header = {
        "fingerprint": fingerprint(model),
        "dtype": weights_dtype(model),
        "streams": tuned_weights(model).streams,
        "method": {"name": "spsa", **asdict(spsa)},
    }
    state = spsa.init()
    with tempfile.TemporaryDirectory() as folder:
        with Journal(folder, header) as journal:
            for step in range(steps):
                query = spsa.ask(state)
                scores = (0.5, 0.5 + 1e-3 * (1 + step % 7))
                update, state = spsa.tell(state, query, scores)
                journal.append(StepRecord(step, scores, update, spsa.lr))
        return load_run(folder)


def timed(options: argparse.Namespace, device: str, dtype: str, rank: int) -> Any:
    """Replay on a device, print how long it took, and return the weights."""
    model = load_model(options.model, dtype=dtype, device=device)
    run = made_up(model, options.steps, rank)
    start = time.perf_counter()
    replay(run, model)
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    weights = sum(weight.numel() for weight in model.parameters())
    kind = f"rank {rank}" if rank else "dense"
    print(
        f"{device}, {dtype}, {kind}: {options.steps} steps of {weights / 1e6:.1f} M weights in {seconds:.1f} s, "
        f"{options.steps * weights / seconds / 1e6:.0f} M numbers a second",
        flush=True,
    )
    return model


def main() -> None:
    """Measure, or compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--check", action="store_true", help="compare CPU and GPU, all dtypes, dense and low-rank")
    options = parser.parse_args()
    if not options.check:
        timed(options, options.device, options.dtype, options.rank)
        return
    for dtype in ("float32", "bfloat16", "float16"):
        for rank in (0, 2):
            cpu, gpu = (fingerprint(timed(options, device, dtype, rank)) for device in ("cpu", "cuda"))
            print(f"{dtype}, rank {rank}: {'the same bytes' if cpu == gpu else 'OTHER BYTES'}", flush=True)
            if cpu != gpu:
                raise SystemExit(1)


if __name__ == "__main__":
    main()
