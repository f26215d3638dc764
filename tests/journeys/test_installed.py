"""The journey of the CSV from `pip install` on: the wheel, in an environment of its own, typed in a terminal.

The libraries are those that are here: only zoreward is installed anew, and what is imported is not this tree.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

import people

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
READS = r"--data messages.csv --template '{message}\nlabel:' --choice ' billing' --choice ' bug' --choice ' praise'"
Typed = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> Typed:
    """Types a line in a shell, in a folder with a CSV and a model, where zoreward was installed by pip."""
    home, built = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("built")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    run = {"check": True, "timeout": 300}
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", built, ROOT], **run)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", built / "env"], **run)
    [wheel], [packages] = built.glob("*.whl"), (built / "env").glob("lib/python*/site-packages")
    # A path in a .pth adds no others: the tree, which the tests have installed, stays out.
    (packages / "libraries.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n")
    subprocess.run([*pip, "--python", built / "env", "install", "--no-deps", "--no-index", wheel], **run)
    people.save_model(home / "M")
    people.write_csv(home / "messages.csv", people.messages(300, seed=0))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL"))}
    environment |= {"PATH": f"{built}/env/bin:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "COLUMNS": "80"}

    def run_line(line: str) -> subprocess.CompletedProcess[str]:
        how = {"cwd": home, "env": environment, "capture_output": True, "text": True, "timeout": 300}
        return subprocess.run(line, shell=True, check=False, **how)

    return run_line


def test_what_is_imported_is_what_pip_has_installed(typed: Typed) -> None:
    where = typed("""python -c "import zoreward, zoreward_objectives as o; print(zoreward.__file__, o.__file__)" """)

    paths = where.stdout.split()
    assert len(paths) == 2 and not any(path.startswith(f"{ROOT}/") for path in paths), where
    objectives = json.loads(typed("zoreward objectives --json").stdout)["objectives"]
    assert {"accuracy", "f1", "preference"} <= {row["name"] for row in objectives}


def test_three_commands_from_a_csv_to_a_better_macro_f1(typed: Typed) -> None:
    lines = [
        f"zoreward eval f1-macro --model M {READS} --json",
        f"zoreward tune f1-macro --model M {READS} --steps 100 --json",
        "zoreward eval f1-macro --model runs/f1/model --data messages.csv --json",  # asked as it was tuned
    ]

    done = [typed(line) for line in lines]

    assert [one.returncode for one in done] == [0, 0, 0], [one.stderr for one in done]
    assert not any(word in one.stderr for one in done for word in ("error:", "Traceback"))
    before, _, after = (json.loads(one.stdout) for one in done)
    assert after["score"] - before["score"] > max(0.2, 4 * before["standard_error"])
    page = typed("zoreward report runs/f1 --json")
    assert page.returncode == 0 and Path(json.loads(page.stdout)["page"]).name == "report.html"


def test_the_command_that_an_error_offers_works_when_it_is_copied(typed: Typed) -> None:
    refused = typed("zoreward tune f1-macro --model M --data messages.csv")
    assert refused.returncode == 2 and refused.stdout == ""

    command = refused.stderr.splitlines()[-1].removeprefix("hint: ")

    assert typed(f"{command} --steps 2 --output runs/copied").returncode == 0


def test_quickstart_and_a_plugin_s_first_steps(typed: Typed) -> None:
    assert typed("zoreward quickstart --steps 3 --json").returncode == 0
    made = typed("zoreward new-objective politeness")
    assert made.returncode == 0 and "zoreward-politeness" in made.stdout + made.stderr
