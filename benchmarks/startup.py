"""How long the help takes: `zoreward --help` and one command's, against Python itself and a bare Typer program.

python benchmarks/startup.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

BARE = """
import typer
app = typer.Typer()
@app.command()
def hello(name: str = typer.Option("you", help="Whom to greet.")): print(name)
app()
"""
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "python -c 'import typer, rich'": ["-c", "import typer, rich"],
    "a bare Typer program's --help": ["-c", BARE, "--help"],
    "zoreward --help": ["-m", "zoreward", "--help"],
    "zoreward tune accuracy --help": ["-m", "zoreward", "tune", "accuracy", "--help"],
    "zoreward bench --help": ["-m", "zoreward", "bench", "--help"],
}


def main(rounds: int = 7) -> None:
    """Run each in turn, and print medians."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, arguments in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
            times[name].append(time.perf_counter() - start)
    for name, values in times.items():
        print(f"{statistics.median(values):6.3f} s  {name}")


if __name__ == "__main__":
    main()
