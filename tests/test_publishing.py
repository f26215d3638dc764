"""A tuned model on the Hub, without the Hub: what is uploaded, and that whoever finds it can make it again."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from zoreward.cli import main

pytestmark = pytest.mark.usefixtures("commands_are_kept", "trials_are_kept")

TUNE = shlex.split(
    "tune neg-cross-entropy --model model --data rows.jsonl --template '{text} it was' --choice ' bad' --choice ' good'"
)
TUNE += shlex.split("--keep last --steps 2 --batch-size 4 --eps 0.1 --lr 0.01 --noise dense --device cpu")


@pytest.fixture
def repository(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is uploaded comes to lie here; the folder of the run's base and rows is the working directory."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_model_dir, "model")
    rows = [{"text": text, "label": n % 2} for n, text in enumerate(["a bad film", "a good film"] * 4)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = tmp_path / "hub"

    def create_repo(repo_id: str, *, private: bool, exist_ok: bool) -> None:
        assert (repo_id, private, exist_ok) == ("me/mine", True, True)
        folder.mkdir(exist_ok=True)

    def upload_folder(*, repo_id: str, folder_path: Path, commit_message: str) -> Any:
        shutil.copytree(folder_path, folder, dirs_exist_ok=True)

    def upload_file(*, repo_id: str, path_or_fileobj: Path, path_in_repo: str, commit_message: str) -> Any:
        target = folder / path_in_repo
        target.parent.mkdir(exist_ok=True)
        shutil.copy(path_or_fileobj, target)

    for function in (create_repo, upload_folder, upload_file):
        monkeypatch.setattr(huggingface_hub, function.__name__, function)
    return folder


def refusing(*args: Any, **options: Any) -> None:
    raise OSError("401: no token\nwas given")


@pytest.mark.parametrize("tune", ["full", "lora", "lora --merge"])
def test_what_is_uploaded_can_be_made_again_by_the_command_on_its_card(repository: Path, tune: str) -> None:
    assert main([*TUNE, "--tune", *tune.split(), "--push-to-hub", "me/mine", "--output", "run"]) == 0
    saved = {path.name for path in Path("run/model").iterdir()}
    assert {path.name for path in repository.iterdir()} == saved | {"replay"}
    card = (repository / "README.md").read_text(encoding="utf-8")
    assert "[arXiv 2305.17333](https://arxiv.org/abs/2305.17333)" in card
    assert "| template | `{text} it was` |" in card and "| answers | ` bad`, ` good` |" in card
    [command] = [line.strip() for line in card.splitlines() if line.startswith("    zoreward replay")]
    words = shlex.split(
        command.replace("trajectory.safetensors", str(repository / "replay" / "trajectory.safetensors"))
    )
    assert main([*words[1:-1], "again"]) == 0
    weights = "model.safetensors" if tune == "full" else "adapter_model.safetensors"
    again = Path("again", weights).read_bytes()
    if tune == "lora --merge":
        assert again and "the adapter that was merged into it back, bit for bit" in card
    else:
        assert again == (repository / weights).read_bytes()
    assert "hub" not in Path("run/config.yaml").read_text()


def test_who_may_not_write_there_learns_it_before_step_1(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(huggingface_hub, "create_repo", refusing)
    assert main([*TUNE, "--push-to-hub", "me/mine", "--output", "run"]) == 2
    assert "error: --push-to-hub me/mine: 401: no token was given\nhint: hf auth login" in capsys.readouterr().err
    assert not Path("run").exists()


def test_a_failed_upload_leaves_the_model_and_a_resume_uploads_it(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*TUNE, "--push-to-hub", "me/mine", "--output", "run"]
    with monkeypatch.context() as away:
        away.setattr(huggingface_hub, "upload_folder", refusing)
        assert main([*words, "--json"]) == 1
    told = capsys.readouterr()
    assert json.loads(told.out)["steps"] == 2 and "hint: the model is saved; hf upload me/mine run/model" in told.err
    assert not any(repository.iterdir())
    assert main([*words, "--resume"]) == 0
    assert (repository / "model.safetensors").read_bytes() == Path("run/model/model.safetensors").read_bytes()


def test_transformers_own_way_which_uploads_the_run_folder_is_refused(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TUNE, "--set", "push_to_hub=true", "--output", "run"]) == 2
    assert "it has an option of its own" in capsys.readouterr().err
