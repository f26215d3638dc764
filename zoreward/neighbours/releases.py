"""The libraries that zoreward stands on: from which release on, and up to which its tests have run. Free of torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

# The newest release of each that the tests have run with. `make lock` writes it.
TESTED = {
    "accelerate": "1.15.0",
    "datasets": "5.2.0",
    "evaluate": "0.4.6",
    "numpy": "2.4.6",
    "packaging": "26.4",
    "peft": "0.21.2",
    "psutil": "7.2.2",
    "pyyaml": "6.0.4",
    "rich": "15.0.0",
    "sacrebleu": "2.6.0",
    "safetensors": "0.8.0",
    "scikit-learn": "1.9.1",
    "torch": "2.13.0",
    "transformers": "5.24.0",
    "trl": "1.16.0",
    "typer": "0.29.2",
}


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A library that zoreward needs.

    Args:
        name: of its distribution.
        installed: its release here; None where it is missing.
        floor: the oldest release that zoreward takes; None where it says nothing.
        tested: the newest release that the tests have run with.
    """

    name: str
    installed: str | None
    floor: str | None
    tested: str

    @property
    def problem(self) -> str:
        """What is wrong with the installed release; "" where it is one that the tests have run with, or between two.

        >>> Neighbour("torch", "2.13.0+cpu", "2.11", "2.13.0").problem
        ''
        >>> Neighbour("torch", "2.15.0+cu130", "2.11", "2.13.0").problem
        'newer than tested'
        """
        from packaging.version import Version

        if self.installed is None:
            return "missing"
        here = Version(Version(self.installed).public)  # without what a build adds, as +cpu
        if self.floor is not None and here < Version(self.floor):
            return "too old"
        return "newer than tested" if here > Version(self.tested) else ""


def neighbours() -> Iterator[Neighbour]:
    """Yield each library that zoreward needs, as it is installed here."""
    floors = dict(filter(None, map(_floor, metadata.requires("zoreward") or ())))
    for name, tested in TESTED.items():
        try:
            installed: str | None = metadata.version(name)
        except metadata.PackageNotFoundError:
            installed = None
        yield Neighbour(name, installed, floors.get(name), tested)


def newer_than_tested() -> str:
    """Return one line that says which libraries are newer than the newest that was tested; "" where none is."""
    newer = [library for library in neighbours() if library.problem == "newer than tested"]
    listed = ", ".join(f"{library.name} {library.installed} (tested up to {library.tested})" for library in newer)
    return f"newer than this zoreward was tested with: {listed}" if listed else ""


def _floor(requirement: str) -> tuple[str, str] | None:
    """
    >>> _floor("scikit-learn>=1.5"), _floor("torchao>=0.15; extra == 'torchao'"), _floor("rich")
    (('scikit-learn', '1.5'), None, None)
    """
    match = re.fullmatch(r"([\w.-]+) *>= *([\d.]+)", requirement)
    return (match[1], match[2]) if match else None
