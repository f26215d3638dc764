"""Rows from the Hub, without the Hub: `datasets` itself reads a folder, so its errors are the real ones."""

from __future__ import annotations

import json
import pickle
import socket
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from zoreward.data import check_hub, hub, load_rows
from zoreward.data.columns import NamedLabel
from zoreward.records import InputError

ROWS = [{"sentence": f"film {i}", "label": i % 2} for i in range(5)]
CARD = """---
dataset_info:
- config_name: small
  features:
  - name: sentence
    dtype: string
  - name: label
    dtype:
      class_label:
        names:
          '0': negative
          '1': positive
- config_name: large
  features:
  - name: sentence
    dtype: string
  - name: label
    dtype: int64
configs:
- config_name: small
  data_files:
  - split: train
    path: small.jsonl
  - split: dev
    path: dev.jsonl
- config_name: large
  data_files: small.jsonl
---
"""


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", *hub._OFFLINE, "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Every address is reachable; these were tried."""
    addresses: list[tuple[str, int]] = []

    def connect(address: tuple[str, int], timeout: float) -> Any:
        addresses.append(address)
        return SimpleNamespace(close=lambda: None)

    monkeypatch.setattr(socket, "create_connection", connect)
    return addresses


@pytest.fixture
def asked(tried: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """`datasets` finds every name in one folder; this is what it was asked for."""
    datasets = pytest.importorskip("datasets")
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "README.md").write_text(CARD)
    for name, rows in (("small", ROWS), ("dev", ROWS[:1])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    calls: list[dict[str, Any]] = []
    real = datasets.load_dataset

    def load_dataset(name: str, config: str | None, *, revision: str | None, **options: Any) -> Any:
        calls.append({"name": name, "config": config, "revision": revision, **options})
        return real(str(folder), config, cache_dir=str(tmp_path / "cache"), **options)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    datasets = pytest.importorskip("datasets")

    def load_dataset(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


def error_of(*args: Any, **options: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        load_rows(*args, **options)
    assert "\n" not in str(caught.value) + caught.value.hint
    return caught.value


# Rows


def test_rows_are_dicts_of_the_train_split_with_classes_as_integers(asked):
    rows = load_rows("owner/name", config="small")
    assert rows == ROWS
    assert all(isinstance(row, dict) and type(row["label"]) is NamedLabel for row in rows)
    assert [row["label"].name for row in rows[:2]] == ["negative", "positive"]
    assert json.dumps(rows) == json.dumps(ROWS) and pickle.loads(pickle.dumps(rows))[1]["label"].name == "positive"
    assert asked == [{"name": "owner/name", "config": "small", "revision": None, "split": "train", "streaming": False}]


def test_split_and_revision_are_passed_on(asked):
    assert load_rows("name", config="small", split="dev", revision="v2") == ROWS[:1]
    assert (asked[0]["split"], asked[0]["revision"]) == ("dev", "v2")


def test_a_limit_streams_and_takes_no_row_more(monkeypatch, tried):
    datasets = pytest.importorskip("datasets")
    taken = []

    def stream(*args: Any, streaming: bool, **options: Any) -> Any:
        assert streaming
        for row in ROWS:
            taken.append(row)
            yield row

    monkeypatch.setattr(datasets, "load_dataset", stream)
    assert load_rows("owner/name", limit=2) == ROWS[:2]
    assert taken == ROWS[:2]


@pytest.mark.parametrize(("split", "limit", "found"), [("train", 2, 2), ("train", 9, 5), ("train[1:4]", 2, 2)])
def test_limits_of_streams_and_slices(asked, split, limit, found):
    start = 1 if "[" in split else 0
    assert load_rows("owner/name", config="small", split=split, limit=limit) == ROWS[start : start + found]


# Errors of datasets


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({}, "'owner/name' has several configurations", "give --data-config, one of: small, large"),
        ({"config": "smal"}, "has no configuration 'smal'", "did you mean small? its configurations: small, large"),
        ({"config": "small", "split": "tst"}, "has no split 'tst'", "give --split, one of: train, dev"),
        ({"config": "small", "split": "tran[:2]"}, "has no split 'tran[:2]'", "did you mean train? give --split, one"),
        ({"config": "small", "split": "tran", "limit": 2}, "has no split 'tran'", "one of: train, dev"),
    ],
)
def test_configurations_and_splits_are_named(asked, options, message, hint):
    error = error_of("owner/name", **options)
    assert message in str(error)
    assert hint in error.hint


@pytest.mark.parametrize(
    ("text", "options", "message", "hint"),
    [
        ("Dataset 'nobody/x' doesn't exist on the Hub or cannot be accessed.", {}, "neither a file here", "owner/name"),
        (
            "Revision 'v9' doesn't exist for dataset 'nobody/x' on the Hub.",
            {"revision": "v9"},
            "no revision 'v9'",
            "tag",
        ),
        ("Dataset 'nobody/x' is a gated dataset on the Hub.", {}, "is gated", "datasets/nobody/x"),
    ],
)
def test_a_dataset_that_cannot_be_had(monkeypatch, tried, text, options, message, hint):
    datasets = pytest.importorskip("datasets")
    failing(monkeypatch, datasets.exceptions.DatasetNotFoundError(text))
    error = error_of("nobody/x", **options)
    assert message in str(error)
    assert hint in error.hint


def test_other_errors_are_said_in_one_line(monkeypatch, tried):
    failing(monkeypatch, RuntimeError("Dataset scripts are\nno longer supported"))
    error = error_of("owner/name")
    assert "'owner/name' cannot be loaded: Dataset scripts are no longer supported" in str(error)
    assert "RuntimeError" in error.hint


def test_an_error_while_rows_arrive_is_ours_too(monkeypatch, tried):
    datasets = pytest.importorskip("datasets")

    def stream(*args: Any, **options: Any) -> Any:
        yield ROWS[0]
        raise OSError("connection lost")

    monkeypatch.setattr(datasets, "load_dataset", stream)
    assert "cannot be loaded: connection lost" in str(error_of("owner/name", limit=2))


def test_offline_says_that_the_cache_has_it_not(monkeypatch, tried):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    failing(monkeypatch, ConnectionError("Couldn't reach 'owner/name' on the Hub (OfflineModeIsEnabled)"))
    error = error_of("owner/name")
    assert "'owner/name' is not in the cache" in str(error)
    assert "unset HF_HUB_OFFLINE" in error.hint
    assert tried == []


def test_without_datasets_it_is_named_before_the_network_is_tried(monkeypatch, tried):
    monkeypatch.setitem(sys.modules, "datasets", None)
    error = error_of("owner/name")
    assert "the package datasets, which is not installed" in str(error)
    assert "pip install datasets" in error.hint
    assert tried == []


def test_an_empty_split_holds_no_rows(monkeypatch, tried):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: [])
    assert "owner/name holds no rows" in str(error_of("owner/name"))


# Is the Hub there?


def test_without_network_nothing_is_loaded(monkeypatch):
    def refuse(address: tuple[str, int], timeout: float) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "create_connection", refuse)
    failing(monkeypatch, AssertionError("datasets was asked"))
    error = error_of("owner/name")
    assert "there is no file 'owner/name' here" in str(error)
    assert "huggingface.co cannot be reached (Name or service not known)" in str(error)
    assert "local file" in error.hint and "HF_HUB_OFFLINE=1" in error.hint


def test_a_name_that_is_looked_up_for_ever_is_given_up(monkeypatch):
    assert hub._TIMEOUT <= 3
    monkeypatch.setattr(hub, "_TIMEOUT", 0.1)
    never = threading.Event()

    def hang(address: tuple[str, int], timeout: float) -> None:
        never.wait(30)
        raise OSError

    monkeypatch.setattr(socket, "create_connection", hang)
    start = time.perf_counter()
    with pytest.raises(InputError, match=r"(?m)^the model 'gpt2' would come from the Hub, .*\(no answer in 0\.1 s\)$"):
        check_hub("the model 'gpt2'")
    assert time.perf_counter() - start < 10  # of 30, on a busy machine
    never.set()


def test_a_port_is_open_or_closed(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
        check_hub("x")
    with pytest.raises(InputError, match=r"x would come from the Hub, but 127\.0\.0\.1 cannot be reached"):
        check_hub("x")


@pytest.mark.parametrize(
    ("endpoint", "address"),
    [
        ("", ("huggingface.co", 443)),
        ("https://mirror.example/hf", ("mirror.example", 443)),
        ("http://mirror.example", ("mirror.example", 80)),
        ("https://mirror.example:8443", ("mirror.example", 8443)),
    ],
)
def test_the_endpoints_own_address_is_tried(monkeypatch, tried, endpoint, address):
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    check_hub("x")
    assert tried == [address]


@pytest.mark.parametrize("endpoint", ["mirror.example", "http://mirror.example:eighty"])
def test_an_endpoint_that_is_no_address(monkeypatch, tried, endpoint):
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(InputError, match=f"HF_ENDPOINT is '{endpoint}', which is no address"):
        check_hub("x")


@pytest.mark.parametrize(
    ("name", "value", "tries"),
    [
        ("HTTPS_PROXY", "http://proxy:3128", 0),
        ("https_proxy", "http://proxy:3128", 0),
        ("ALL_PROXY", "socks5://proxy:1080", 0),
        ("HTTP_PROXY", "http://proxy:3128", 1),  # not for https
        ("HF_HUB_OFFLINE", "1", 0),
        ("HF_HUB_OFFLINE", "true", 0),
        ("HF_HUB_OFFLINE", "0", 1),
    ],
)
def test_behind_a_proxy_or_offline_nothing_is_tried(monkeypatch, tried, name, value, tries):
    monkeypatch.setenv(name, value)
    check_hub("x")
    assert len(tried) == tries
