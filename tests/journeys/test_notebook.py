"""The notebook of the examples, cell by cell as Jupyter runs it, and what people get wrong in one."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from zoreward import replay
from zoreward.records import InputError

NOTEBOOK = Path(__file__).parents[2] / "examples" / "first_steps.ipynb"


def cells() -> list[str]:
    """The code of the notebook."""
    return [
        "".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"
    ]


def typed(code: str, names: dict[str, Any]) -> None:
    """Run a cell in the notebook's one namespace, under a name as IPython gives it."""
    exec(compile(code, "<ipython-input-1-0123456789ab>", "exec"), names)


class Shown:
    """What IPython displays: the last text of each place, of which an update is another text."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def display(self, shown: str, display_id: bool = False) -> Any:
        place = len(self.texts)
        self.texts.append(shown)
        handle = ModuleType("handle")
        handle.update = lambda text: self.texts.__setitem__(place, text)  # type: ignore[attr-defined]
        return handle


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Shown:
    """An empty folder, and transformers' bar for notebooks in place of that for terminals, without IPython."""
    found, display = Shown(), ModuleType("IPython.display")
    display.HTML, display.display = str, found.display  # type: ignore[attr-defined]
    for name, module in (("IPython", ModuleType("IPython")), ("IPython.display", display)):
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["IPython"].display = display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformers.utils.notebook", display)  # afterwards it is forgotten
    del sys.modules["transformers.utils.notebook"]
    bar = importlib.import_module("transformers.utils.notebook").NotebookProgressCallback
    monkeypatch.setattr("transformers.trainer.DEFAULT_PROGRESS_CALLBACK", bar)
    monkeypatch.chdir(tmp_path)
    return found


def test_the_notebook_runs_and_its_score_rises(shown: Shown, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for code in cells():
        typed(code, names)

    before, after = names["before"]["eval_score"], names["after"]["eval_score"]
    assert after > before + 0.1, (before, after)
    out = capsys.readouterr().out.splitlines()
    assert out == [f"accuracy on 200 reviews that were not tuned on: {before:.3f} before, {after:.3f} after"]
    assert {"step", "score", "eval_score"} <= set(names["history"]) and len(names["history"]) > 8
    [tracker] = [text for text in shown.texts if "30/30" in text]
    scores = [log["eval_score"] for log in names["trainer"].state.log_history if "eval_score" in log]
    assert "<th>Score</th>" in tracker.replace(' style="text-align: left;"', "").replace("\n", "")
    assert all(f"<td>{score:.6f}</td>" in tracker for score in scores[:-1])


def test_the_notebook_holds_no_outputs() -> None:
    """Which would be those of another machine, or of another release."""
    found = json.loads(NOTEBOOK.read_text())["cells"]
    assert all(cell["outputs"] == [] and not cell["execution_count"] for cell in found if cell["cell_type"] == "code")


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def names(shown: Shown) -> dict[str, Any]:
    """What is defined when the trainer has been made: the cells before it, with fewer rows."""
    found: dict[str, Any] = {"__name__": "__main__"}
    for code in cells()[1:3]:
        typed(code.partition("\ntrainer = ")[0], found)
    found["dev_rows"] = found["dev_rows"][:20]
    return found


def refused(code: str, names: dict[str, Any]) -> tuple[str, str]:
    """What the cell's error says: a line, and a hint."""
    with pytest.raises(InputError) as found:
        typed(code, names)
    assert "\n" not in str(found.value) + found.value.hint
    return str(found.value), found.value.hint


def test_a_cell_that_is_run_twice_changes_no_run(names: dict[str, Any]) -> None:
    made = 'trainer = make_trainer("run", "accuracy", steps=2)'
    typed(f"{made}\ntrainer.train()", names)
    journal = Path("run/journal.jsonl").read_bytes()

    message, hint = refused("trainer.train()", names)
    assert message == "this trainer has done its run" and "new ZOTrainer" in hint
    message, hint = refused(f"{made}\ntrainer.train()", names)
    assert message.endswith("holds a run already (journal.jsonl)") and "resume_from_checkpoint=True" in hint
    assert Path("run/journal.jsonl").read_bytes() == journal

    typed('trainer = make_trainer("run", "accuracy", steps=3)\ntrainer.train(resume_from_checkpoint=True)', names)
    assert names["trainer"].state.global_step == 3


def test_a_function_of_a_cell_is_known_by_its_name(names: dict[str, Any]) -> None:
    """After a restart it has to be defined again to go on; the weights need none."""
    made = 'trainer = make_trainer("run", {}, steps={})\ntrainer.train(resume_from_checkpoint=True)'
    own = "lambda predictions, references: [float(p == r) for p, r in zip(predictions, references)]"
    typed(made.format(own, 2), names)
    weights = {name: weight.clone() for name, weight in names["trainer"].model.named_parameters()}

    message, hint = refused(made.format("'accuracy'", 3), names)
    assert message.endswith("was made with objective='<lambda>', not 'accuracy'") and "what it began with" in hint
    base = AutoModelForCausalLM.from_pretrained(names["shipped"] / "model", dtype=names["trainer"].model.dtype)
    again = dict(replay("run", base).named_parameters())
    assert all(torch.equal(weight, again[name]) for name, weight in weights.items())
    typed(made.format(own, 3), names)
    assert names["trainer"].state.global_step == 3
