"""Somebody releases: the pages of each version stand beside each other on a branch, and nothing else is changed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
ENVIRONMENT = ROOT / ".venv-docs"


def test_versions_stand_beside_each_other_and_the_newest_is_the_latest(tmp_path: Path) -> None:
    home = tmp_path / "clone"
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, files.split("\0")):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, home / name)

    def run(*words: str) -> str:
        who = {
            f"GIT_{role}_{key}": "nobody@example.org" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")
        }
        done = subprocess.run(words, cwd=home, env={**os.environ, **who}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("git", "init", "--quiet", "--initial-branch", "main")
    run("git", "add", "--all")
    run("git", "commit", "--quiet", "--message", "all")
    # Where the tools are here already, they are not installed once more.
    ready = ["--old-file", f"{ENVIRONMENT}/.ready"] if (ENVIRONMENT / ".ready").exists() else []
    make = ["make", "docs-version", f"DOCS={ENVIRONMENT}", *ready]
    run(*make, "VERSION=0.1")
    with (home / "docs" / "index.md").open("a") as page:
        page.write("\nAnother ending.\n")
    run(*make, "VERSION=0.2")

    listed = {one["version"]: one["aliases"] for one in json.loads(run("git", "show", "gh-pages:versions.json"))}
    assert listed == {"0.2": ["latest"], "0.1": []}
    assert "Another ending." not in run("git", "show", "gh-pages:0.1/index.html")
    assert run("git", "show", "gh-pages:latest") == "0.2"  # a link to it
    assert "Another ending." in run("git", "show", "gh-pages:0.2/index.html")
    assert '"latest/' in run("git", "show", "gh-pages:index.html")
    assert run("git", "status", "--short").split() == ["M", "docs/index.md"]
    assert run("git", "rev-list", "--count", "main").strip() == "1"


def test_without_a_version_nothing_is_made(tmp_path: Path) -> None:
    done = subprocess.run(
        ["make", "docs-version", f"DOCS={tmp_path}", "--old-file", f"{tmp_path}/.ready"],
        cwd=ROOT,
        env={**os.environ, "VERSION": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0 and "make docs-version VERSION=0.2.0" in done.stdout
