"""Rows from the Hugging Face Hub, which need the package datasets, and what tells of models there. Free of torch."""

from __future__ import annotations

import importlib.util
import itertools
import os
import queue
import re
import threading
from typing import Any
from urllib.parse import urlsplit

from zoreward.data.columns import class_names, close_hint, listed, with_class_names
from zoreward.records import InputError, MissingFileError

_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
_TIMEOUT = 3.0


def hub_rows(
    name: str, *, config: str | None = None, split: str | None = None, limit: int | None = None, revision: str | None
) -> list[dict[str, Any]]:
    """The rows of a dataset on the Hub; see `load_rows`.

    Raises:
        InputError: the dataset, its configuration, split or revision does not exist, or cannot be had.
    """
    if importlib.util.find_spec("datasets") is None:
        raise InputError(
            f"there is no file '{name}', and datasets from the Hub need the package datasets, which is not installed",
            hint="pip install datasets, or give a local file",
        )
    # Before the import, which alone takes seconds.
    check_hub(f"there is no file '{name}' here, and the dataset of that name")
    from datasets import load_dataset

    split = split or "train"
    # A stream has no places to slice at.
    streaming = limit is not None and "[" not in split
    try:
        dataset = load_dataset(name, config, split=split, revision=revision, streaming=streaming)
        return with_class_names(itertools.islice(dataset, limit), class_names(getattr(dataset, "features", None)))
    except Exception as error:  # datasets, huggingface_hub, the HTTP client and pyarrow raise their own
        raise _explained(error, name, config, split, revision) from error


def holds_model(folder: str | os.PathLike[str]) -> bool:
    """Return whether a folder holds a model, or an adapter, as `save_pretrained` writes them.

    >>> holds_model("/")
    False
    """
    return any(os.path.isfile(os.path.join(folder, name)) for name in ("config.json", "adapter_config.json"))


def at_revision(name: str, revision: str | None) -> str:
    """Return one name for a model of the Hub and its revision; see `parted`.

    Args:
        name: a folder or a Hub id.
        revision: a branch, tag or commit; None: the name says it, or it is the newest.

    Raises:
        InputError: the name is that of a folder, or says another revision.

    >>> at_revision("facebook/opt-125m", "main"), at_revision("gpt2", None)
    ('facebook/opt-125m@main', 'gpt2')
    """
    if revision is None:
        return name
    if os.path.exists(name):
        raise InputError(f"'{name}' is a folder, which has no revisions", hint="leave --model-revision out")
    first, named = parted(name)
    if named.get("revision", revision) != revision:
        hint = "say it once: NAME@REVISION or --model-revision"
        raise InputError(f"'{name}' names another revision than {revision!r}", hint=hint)
    return f"{first}@{revision}"


def parted(name: str) -> tuple[str, dict[str, Any]]:
    """Return the folder or Hub id that a name begins with, and its revision as `from_pretrained` takes it.

    Raises:
        MissingFileError: nothing stands before or behind the @.

    >>> parted("facebook/opt-125m@refs/pr/1"), parted("gpt2")
    (('facebook/opt-125m', {'revision': 'refs/pr/1'}), ('gpt2', {}))
    """
    first, at, revision = name.partition("@")
    if not at or os.path.exists(name) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", first):
        return name, {}
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", revision):
        hint = "a model of the Hub at a revision is NAME@REVISION, with a branch, tag or commit"
        raise MissingFileError(f"there is no model '{name}'", hint=hint)
    return first, {"revision": revision}


def check_hub(what: str) -> None:
    """Find out within three seconds that the Hub cannot be reached, where its own libraries would try for minutes.

    Nothing is tried where a proxy is set, through which alone the way may lead, or where the Hub's libraries are told
    to stay offline (`HF_HUB_OFFLINE=1`) and read what they have.

    Args:
        what: that is to come from the Hub; the error begins with it: "the model 'gpt2'".

    Raises:
        InputError: the host of `HF_ENDPOINT`, by default huggingface.co, accepts no connection.
    """
    from urllib.request import getproxies  # not at the top: the command line reads this module for its help

    if _offline():
        return
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    url = urlsplit(endpoint)
    try:
        address = url.hostname or "", url.port or (80 if url.scheme == "http" else 443)
    except ValueError:  # the port is no number
        address = "", 0
    if not address[0]:
        raise InputError(f"HF_ENDPOINT is {endpoint!r}, which is no address", hint="it looks like https://example.org")
    if {url.scheme, "all"} & getproxies().keys():
        return
    # In a thread, because nothing bounds the time that looking up a name takes.
    answers: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_try, args=(address, answers), daemon=True).start()
    try:
        trouble = answers.get(timeout=_TIMEOUT)
    except queue.Empty:
        trouble = f"no answer in {_TIMEOUT:g} s"
    if trouble:
        raise InputError(
            f"{what} would come from the Hub, but {url.hostname} cannot be reached ({trouble})",
            hint="give a local file or folder, or set HF_HUB_OFFLINE=1 to use what is in the cache",
        )


def _offline() -> bool:
    return any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in _OFFLINE)


def _try(address: tuple[str, int], answers: queue.SimpleQueue[str]) -> None:
    """Connect; answer with what went wrong, or nothing."""
    import socket

    try:
        socket.create_connection(address, timeout=_TIMEOUT).close()
        answers.put("")
    except (OSError, UnicodeError) as error:  # UnicodeError: a host that no name server could know
        answers.put(getattr(error, "strerror", None) or str(error) or type(error).__name__)


def _explained(error: Exception, name: str, config: str | None, split: str, revision: str | None) -> InputError:
    """What an error of `datasets` says, in one line and a hint. Only its texts tell these errors apart."""
    text = str(error)
    names = re.search(r"\[(.*?)\]", text)
    known = re.findall(r"'([^']*)'", names[1]) if names else []
    if text.startswith("Config name is missing"):
        return InputError(
            f"the dataset '{name}' has several configurations", hint=f"give --data-config, one of: {listed(known)}"
        )
    if text.startswith("BuilderConfig ") and "not found" in text:
        hint = f"{close_hint(str(config), known)}its configurations: {listed(known)}"
        return InputError(f"the dataset '{name}' has no configuration '{config}'", hint=hint)
    if text.startswith(("Unknown split", "Bad split")):
        hint = f"{close_hint(split, known)}give --split, one of: {listed(known)}"
        return InputError(f"the dataset '{name}' has no split '{split}'", hint=hint)
    if type(error).__name__ == "DatasetNotFoundError":
        if revision is not None and text.startswith("Revision"):
            return InputError(f"the dataset '{name}' has no revision '{revision}'", hint="give a branch, tag or commit")
        if "gated" in text:
            hint = f"ask for access at https://huggingface.co/datasets/{name}, then `hf auth login`"
            return InputError(f"the dataset '{name}' is gated, and you have no access", hint=hint)
        return InputError(
            f"'{name}' is neither a file here nor a dataset on the Hub that you can read",
            hint="check the name: owner/name; a private dataset needs `hf auth login`",
        )
    if isinstance(error, ConnectionError) and _offline():
        hint = "unset HF_HUB_OFFLINE to ask the Hub, or give a local file"
        return InputError(f"the dataset '{name}' is not in the cache, and the Hub may not be asked", hint=hint)
    reason = " ".join(text.split()) or type(error).__name__
    return InputError(
        f"the dataset '{name}' cannot be loaded: {reason:.300}",
        hint=f"this came from datasets ({type(error).__name__})",
    )
