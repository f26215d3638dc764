"""A shell completes commands, objectives, options and their values, once `--install-completion` was run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from zoreward.cli import main


@pytest.mark.parametrize(
    ("line", "among", "not_among"),
    [
        ("zoreward ", {"tune", "eval", "compare", "quickstart"}, {"accuracy"}),
        ("zoreward tu", {"tune"}, {"eval"}),
        ("zoreward tune ", {"accuracy", "preference", "f1"}, {"tune"}),
        ("zoreward tune acc", {"accuracy"}, {"f1"}),
        ("zoreward tune accuracy --me", {"--method", "--merge"}, {"--model"}),
        ("zoreward tune f1 --av", {"--average"}, {"--model"}),
        ("zoreward tune accuracy --template '{text} it", set(), {"accuracy"}),
        ("zoreward tune accuracy --method ", {"spsa", "lozo"}, {"--model"}),
        ("zoreward bench sst2 --see", {"--seeds"}, {"--model"}),
        ("zoreward tune no-such-objective --me", set(), {"--method"}),
    ],
)
@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_a_line_is_completed(
    line: str,
    among: set[str],
    not_among: set[str],
    shell: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("_ZOREWARD_COMPLETE", f"complete_{shell}")
    if shell == "bash":
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(line.split()) - (not line.endswith(" "))))
    else:
        monkeypatch.setenv("_TYPER_COMPLETE_ARGS", line)
        monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")

    assert main([]) == 0

    out, err = capsys.readouterr()
    offered = {word.partition("\t")[0] for word in out.splitlines()}
    assert err == "" and among <= offered and not not_among & offered


def test_it_is_installed_for_the_shell_that_asks(tmp_path: Path) -> None:
    bash = shutil.which("bash")
    assert bash is not None
    command = f"{sys.executable} -m zoreward --install-completion; exit $?"  # a last command would take bash's place

    done = subprocess.run(
        [bash, "-c", command], env={**os.environ, "HOME": str(tmp_path)}, capture_output=True, text=True
    )

    assert (done.returncode, done.stderr) == (0, "")
    script = (tmp_path / ".bash_completions" / "zoreward.sh").read_text()
    assert "_ZOREWARD_COMPLETE=complete_bash" in script
    assert ".bash_completions/zoreward.sh" in (tmp_path / ".bashrc").read_text()
