"""What a line of the journal costs, with and without waiting for the disk; and the size and reading time of the files.

    python benchmarks/journal.py [--folder WHERE]
    python benchmarks/journal.py --check

With --check: the share of a step that its line takes, on the quickstart's model; more than 1 % is an error.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from unittest import mock

import torch

from zoreward.cli.quickstart import make_trainer
from zoreward.journal import Journal, fingerprint, load_run, write_trajectory
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


def share_of_a_step(steps: int = 60) -> float:
    """Tune the quickstart's model, print the medians of a step and of its line, and return their quotient."""
    torch.set_num_threads(1)  # as the quickstart does
    lines, ends = [], []
    real = Journal.append

    def timed(journal: Journal, record: StepRecord) -> None:
        start = time.perf_counter()
        real(journal, record)
        ends.append(time.perf_counter())
        lines.append(ends[-1] - start)

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(Journal, "append", timed):
        make_trainer(Path(folder, "run"), seed=0, steps=steps).train()
    step = statistics.median(later - earlier for earlier, later in pairwise(ends))
    line = statistics.median(lines)
    print(f"a step of the quickstart's model: {step * 1e3:.1f} ms, its line: {line * 1e6:.0f} µs, {line / step:.2%}")
    return line / step


def main() -> None:
    """Measure, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", help="on the disk that is meant; by default where temporary files go")
    parser.add_argument("--check", action="store_true", help="see that a line takes at most 1 %% of a step")
    options = parser.parse_args()
    if options.check:
        if share_of_a_step() > 0.01:
            raise SystemExit("the journal takes more than 1 % of a step")
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        for directions, sync, steps in ((1, False, 5000), (16, False, 5000), (1, True, 300), (16, True, 300)):
            times = sorted(write(Path(name, f"{directions}-{sync}"), steps, directions, sync))
            print(
                f"append, {directions} directions, sync={sync}: median {statistics.median(times):.0f} µs, "
                f"99 % below {times[len(times) * 99 // 100]:.0f} µs"
            )
        write(Path(name, "long"), 20_000, 1, False)
        write_trajectory(load_run(Path(name, "long")), Path(name, "long", "trajectory.safetensors"))
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
