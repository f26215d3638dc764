"""What a line of the journal costs, with and without waiting for the disk; and the size and reading time of the files.

python benchmarks/journal.py [--folder WHERE]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from zoreward.journal import Journal, fingerprint, load_run
from zoreward.methods import SPSA
from zoreward.records import StepRecord


def write(folder: Path, steps: int, directions: int, sync: bool) -> list[float]:
    """Write a run, and return the microseconds of each `append`."""
    spsa = SPSA(num_directions=directions)
    method = {"name": "spsa", "seed": 0, "num_directions": directions, "rank": 0, "eps": 1e-3}
    header = {"fingerprint": "0" * 64, "dtype": "float32", "streams": {"weight": 7}, "method": method}
    state, times = spsa.init(), []
    with Journal(folder, header, sync=sync) as journal:
        for step in range(steps):
            query = spsa.ask(state)
            scores = [0.5 + 1e-3 * m + 1e-7 * step for m in range(2 * directions)]
            update, state = spsa.tell(state, query, scores)
            start = time.perf_counter()
            journal.append(StepRecord(step, tuple(scores), update, spsa.lr))
            times.append((time.perf_counter() - start) * 1e6)
    return times


def main() -> None:
    """Measure, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", help="on the disk that is meant; by default where temporary files go")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        for directions, sync, steps in ((1, False, 5000), (16, False, 5000), (1, True, 300), (16, True, 300)):
            times = sorted(write(Path(name, f"{directions}-{sync}"), steps, directions, sync))
            print(
                f"append, {directions} directions, sync={sync}: median {statistics.median(times):.0f} µs, "
                f"99 % below {times[len(times) * 99 // 100]:.0f} µs"
            )
        write(Path(name, "long"), 20_000, 1, False)
        load_run(Path(name, "long")).save(Path(name, "long", "trajectory.safetensors"))
        for kind in ("journal.jsonl", "trajectory.safetensors"):
            path = Path(name, "long", kind)
            start = time.perf_counter()
            load_run(path)
            print(f"{kind} of 20,000 steps: {path.stat().st_size:,} bytes, read in {time.perf_counter() - start:.2f} s")
    weights = torch.nn.ParameterList([torch.zeros(1 << 26) for _ in range(4)])
    start = time.perf_counter()
    fingerprint(weights)
    print(f"fingerprint: {time.perf_counter() - start:.2f} s a GiB on {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
