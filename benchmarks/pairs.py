"""Is this tree as fast as another? Two trees' benchmarks in lockstep: a measurement here, the same one there, in turn.

    git worktree add /tmp/base COMMIT
    python benchmarks/pairs.py /tmp/base step.py --shape opt-13b --tokens 64 --rounds 15
    python benchmarks/pairs.py /tmp/base log accuracy --model LM --data train.jsonl … --steps 1000 --logging-steps 50

Both trees run the same words at the same time, each in a process of its own that stands still while the other one
measures. A measurement is a call of `timed` in measure.py (step.py, population.py, lora_population.py, kernels.py),
or, with `log`, what lies between two lines that `zoreward tune` logs. Printed for each kind of measurement: the median
ratio of this tree's seconds to the other's over all pairs, and its 95 % interval by order statistics. `--skip` leaves
the first ones out, in which kernels are compiled.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Run both, print the ratios."""
    if sys.argv[1:2] == ["--child"]:
        return child(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("other", help="the other tree")
    parser.add_argument("--skip", type=int, default=1, help="measurements of each kind that do not count")
    parser.add_argument("--only", help="what is measured, names apart by commas; the rest is not done")
    parser.add_argument("words", nargs=argparse.REMAINDER, help="benchmark and its options")
    options = parser.parse_args()
    trees = [HERE.parent, Path(options.other).resolve()]
    children = [begun(tree, options.words, options.only) for tree in trees]
    seconds: list[dict[str, list[float]]] = [defaultdict(list), defaultdict(list)]
    running = [True, True]
    while all(running):
        for number, one in enumerate(children):
            assert one.stdin is not None and one.stdout is not None
            if not one.stdout.readline():  # it has come to its next measurement, or to its end
                running[number] = False
                continue
            one.stdin.write("go\n")
            one.stdin.flush()
            if line := one.stdout.readline():
                name, value = json.loads(line)
                seconds[number][name].append(value)
    failed = [tree for tree, one, runs in zip(trees, children, running, strict=True) if not runs and one.wait()]
    for one in children:
        one.kill()
    for name in seconds[0]:
        pairs = list(zip(seconds[0][name], seconds[1][name], strict=False))[options.skip :]
        print(line_of(name, [ours / theirs for ours, theirs in pairs], [pair[0] for pair in pairs]), flush=True)
    if failed:
        sys.exit(f"the benchmark failed in {failed[0]}")


def begun(tree: Path, words: list[str], only: str | None) -> subprocess.Popen[str]:
    """Begin a tree's process."""
    path = os.pathsep.join(map(str, [tree, tree / "objectives", tree / "benchmarks"]))
    more = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    others = [part for part in more if part and not Path(part).resolve().is_relative_to(HERE.parent)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([path, *others])}
    command = [sys.executable, "-P", str(HERE / "pairs.py"), "--child", only or "", *words]
    if words[0] == "log":
        command += ["--output", str(Path("/tmp", f"pairs-{os.getpid()}-{tree.name}-{time.time_ns()}"))]
    return subprocess.Popen(
        command, cwd=tree, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=sys.stderr, text=True
    )


class Turns:
    """Lets a process measure only when it is its turn; what it prints itself goes to standard error."""

    def __init__(self) -> None:
        self.out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def wait(self) -> None:
        """Say that a measurement comes next, and wait for the turn."""
        print("ready", file=self.out, flush=True)
        if not sys.stdin.readline():
            sys.exit()

    def measured(self, name: str, seconds: float) -> None:
        """Hand over a measurement."""
        print(json.dumps([name, seconds]), file=self.out, flush=True)


def child(only: str, words: list[str]) -> None:
    """Run a benchmark of this process's tree, or `zoreward tune`, in turns."""
    names, turns = [name for name in only.split(",") if name], Turns()
    if words[0] == "log":
        return logged(words[1:], turns)
    import measure

    plain_timed = measure.timed

    def medians(works: Any, rounds: int, device: Any) -> dict[str, float]:
        found: dict[str, list[float]] = defaultdict(list)
        for _ in range(rounds + 1):
            for name, work in works.items():
                if not names or name in names:
                    found[name].append(timed(work, device, name))
        return {name: statistics.median(found.get(name, [1.0])) for name in works}

    def timed(work: Any, device: Any, name: str = "") -> float:
        turns.wait()
        seconds = plain_timed(work, device)
        turns.measured(name or getattr(work, "__name__", "work"), seconds)
        return seconds

    measure.timed, measure.medians = timed, medians
    sys.argv = words
    module = __import__(words[0].removesuffix(".py"))
    module.main()


def logged(words: list[str], turns: Turns) -> None:
    """Run `zoreward tune` and measure what lies between the lines of its log."""
    from zoreward.cli import main as zoreward

    plain_write, last = sys.stderr.write, [0.0]

    def write(text: str) -> int:
        if re.search(r"^\s*step \d+/", text):
            if last[0]:
                turns.measured("between lines", time.perf_counter() - last[0])
            turns.wait()
            last[0] = time.perf_counter()
        return plain_write(text)

    sys.stderr.write = write  # type: ignore[method-assign]
    zoreward(["tune", *words])


def line_of(name: str, ratios: list[float], ours: list[float]) -> str:
    """Return a line with the median ratio and its 95 % interval.

    >>> line_of("step", [1.0, 1.1, 0.9, 1.0, 1.0, 1.2], [0.5] * 6)
    'step: 1.000 [0.900, 1.200] of 6 pairs; 500.0 ms here'
    """
    from scipy.stats import binom

    ordered, count = sorted(ratios), len(ratios)
    if not count:
        return f"{name}: no pairs"
    low = max(0, int(binom.ppf(0.025, count, 0.5)) - 1)
    interval = f"[{ordered[low]:.3f}, {ordered[count - 1 - low]:.3f}]"
    milliseconds = 1e3 * statistics.median(ours)
    return f"{name}: {statistics.median(ordered):.3f} {interval} of {count} pairs; {milliseconds:.1f} ms here"


if __name__ == "__main__":
    main()
