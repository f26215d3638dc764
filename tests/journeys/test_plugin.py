"""A plugin, as one types it: from `zoreward new-objective` to its command, and what one gets wrong on the way."""

from __future__ import annotations

import importlib
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from zoreward.cli import main


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def install(folder: str, site: Path) -> None:
    """As `pip install` does, without a network and into a folder of its own."""
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", str(site)]
    subprocess.run([*pip, f"./{folder}"], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("needs", "option"), [("completions", "--target"), pytest.param("choices", "--price", marks=pytest.mark.slow)]
)
def test_from_nothing_to_a_command(needs, option, home, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new-objective", "short-and-sweet", "--needs", needs]) == 0
    folder, *commands = capsys.readouterr().out.splitlines()
    assert folder == "zoreward-short-and-sweet:"
    pip, test, tune = map(shlex.split, commands)
    assert pip[:3] == ["pip", "install", "-e"] and test[0] == "pytest" and tune[0] == "zoreward"
    install(pip[3], home / "site")
    monkeypatch.syspath_prepend(str(home / "site"))
    monkeypatch.delitem(sys.modules, "zoreward_short_and_sweet", raising=False)
    importlib.invalidate_caches()

    assert main(tune[1:]) == 0
    assert option in capsys.readouterr().out
    assert main(["objectives", "--json"]) == 0
    assert "zoreward-short-and-sweet" in capsys.readouterr().out

    own = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test[1]]
    done = subprocess.run(own, env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True)
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout
    # The test that comes with it can fail.
    module = home / "site" / "zoreward_short_and_sweet.py"
    random = module.read_text().replace("    return [", "    return [0.01 * random.random() + ")
    module.write_text(f"import random\n{random}")
    done = subprocess.run(own, env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True)
    assert "the same rows are worth something else the second time" in done.stdout, done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["f1"], "there is an objective 'f1' already"),
        (["My Metric!"], "'My Metric!' is no name for an objective"),
        (["there"], "'zoreward-there' exists already"),
    ],
)
def test_mistakes_have_a_line_and_a_hint_that_works(words, message, home, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "zoreward-there").mkdir()
    assert main(["new-objective", *words]) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error == f"error: {message}"
    advice = hint.removeprefix("hint: ")
    command = advice[advice.index("zoreward new-objective") :] if "new-objective" in advice else ""
    copied = shlex.split(command)[1:] if command else ["new-objective", *words, *shlex.split(advice.partition(": ")[2])]
    assert main(copied) == 0
    assert not list((home / "zoreward-there").iterdir())
    shutil.rmtree(home / capsys.readouterr().out.splitlines()[0][:-1])
