"""Which releases of its libraries the project is developed with: `make lock`; and the oldest: `make test-floors`.

python tests/pins.py lock constraints.txt        # pin what is installed beside this Python
python tests/pins.py floors torch==2.13.0        # print the oldest releases, but for another torch
"""

from __future__ import annotations

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "zoreward" / "neighbours" / "releases.py"
HEADER = """\
# What `make test` and `make check` run with; written by `make lock`. What of it is not needed is not installed.
# Of torch any build and patch will do; what its builds for CUDA bring along, they pin themselves, an older Triton too.
"""
# Builds of torch bring their own of these.
FREE = re.compile(r"zoreward.*|setuptools|nvidia-.*|cuda-.*")


def normal(name: str) -> str:
    """Return a distribution's name as indexes spell it.

    >>> normal("scikit_learn"), normal("PyYAML")
    ('scikit-learn', 'pyyaml')
    """
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(installed: dict[str, str]) -> list[str]:
    """Return a line for each installed distribution that is to be pinned.

    >>> pins({"rich": "15.0.0", "torch": "2.13.0+cpu", "nvidia-nccl-cu13": "2.28", "triton": "3.9.0"})
    ['rich==15.0.0', 'torch==2.13.*', 'triton<=3.9.0']
    """
    lines = []
    for name, version in sorted(installed.items()):
        if name == "torch":
            lines.append(f"torch=={'.'.join(version.split('.')[:2])}.*")
        elif name == "triton":
            lines.append(f"triton<={version}")
        elif not FREE.fullmatch(name):
            lines.append(f"{name}=={version}")
    return lines


def table(text: str, installed: dict[str, str]) -> str:
    """Return zoreward/neighbours/releases.py with the installed releases as the newest that are tested.

    >>> table('    "rich": "14.0",', {"rich": "15.0.0"})
    '    "rich": "15.0.0",'
    """

    def line(found: re.Match[str]) -> str:
        return f'    "{found[1]}": "{installed[found[1]].partition("+")[0]}",'

    return re.sub(r'^    "([a-z-]+)": "[^"]*",$', line, text, flags=re.MULTILINE)


def floors(project: dict[str, list[str]], others: dict[str, str]) -> list[str]:
    """Return a line for each dependency, with its floor as the only release.

    Args:
        project: what pyproject.toml says under `project`.
        others: name → requirement that takes the place of the floor.

    Raises:
        SystemExit: a dependency has no floor.

    >>> floors({"dependencies": ["rich>=14.0", "torch>=2.11"]}, {"torch": "torch==2.13.0"})
    ['rich==14.0', 'torch==2.13.0']
    """
    lines = []
    for requirement in project["dependencies"]:
        found = re.fullmatch(r"([\w.-]+)>=([\d.]+)", requirement)
        if found is None:
            raise SystemExit(f"pyproject.toml: {requirement!r} has no floor; write {requirement}>=VERSION")
        lines.append(others.get(found[1], f"{found[1]}=={found[2]}"))
    return lines


def main(words: list[str]) -> None:
    """Run one of the two commands."""
    if words[0] == "floors":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        others = {re.split(r"[=<>~!]", word)[0]: word for word in words[1:]}
        print("\n".join(floors(project, others)))
        return
    installed = {normal(one.metadata["Name"]): one.version for one in metadata.distributions()}
    Path(words[1]).write_text(HEADER + "\n".join(pins(installed)) + "\n", encoding="utf-8")
    TABLE.write_text(table(TABLE.read_text(encoding="utf-8"), installed), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
