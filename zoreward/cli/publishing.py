"""`--push-to-hub`: the tuned model on the Hub, with its card and what replays it."""

from __future__ import annotations

from pathlib import Path

from zoreward.cli.saving import MODEL_NAME
from zoreward.records import InputError, StorageError, one_line

# In a folder of its own: servers take each safetensors file beside the weights for weights.
REPLAY_FOLDER = "replay"


def make_repository(name: str | None) -> None:
    """Make a repository, private if it is new: who may not write there learns it before step 1.

    Args:
        name: `user/name`; None: nothing is to be uploaded.

    Raises:
        InputError: it cannot be made.
    """
    if name is None:
        return
    from huggingface_hub import create_repo

    try:
        create_repo(name, private=True, exist_ok=True)
    except Exception as error:  # huggingface_hub and the HTTP client raise their own
        hint = "hf auth login, with a token that may write; and a name such as user/model"
        raise InputError(f"--push-to-hub {name}: {one_line(error)}", hint=hint) from error


def upload(name: str, output: Path) -> str:
    """Upload the model of a run that is over, and its trajectory; return the page's address.

    Args:
        name: of the repository.
        output: the run folder.

    Raises:
        StorageError: it cannot be uploaded; the model is in the run folder.
    """
    from huggingface_hub import upload_file, upload_folder

    from zoreward.journal import TRAJECTORY_NAME

    trajectory = output / TRAJECTORY_NAME
    try:
        done = upload_folder(repo_id=name, folder_path=output / MODEL_NAME, commit_message="Model tuned by zoreward")
        if trajectory.is_file():
            path = f"{REPLAY_FOLDER}/{TRAJECTORY_NAME}"
            upload_file(repo_id=name, path_or_fileobj=trajectory, path_in_repo=path, commit_message="Its trajectory")
    except Exception as error:  # as above
        hint = f"the model is saved; hf upload {name} {output / MODEL_NAME}"
        raise StorageError(f"--push-to-hub {name}: {one_line(error)}", hint=hint) from error
    return str(getattr(done, "repo_url", name))
