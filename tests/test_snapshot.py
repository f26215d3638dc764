"""Contract under test: a snapshot gives back the weights it was made of, at its own step of its own run, or is refused
and changes nothing; a journal that is opened again goes on where its last whole line ends, or is left as it was."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zoreward.journal import (
    Journal,
    StoredRun,
    load_run,
    read_journal,
    read_snapshot,
    remove_snapshot,
    reopen,
    write_snapshot,
)
from zoreward.journal.disk import sync_all, write_whole
from zoreward.journal.snapshot import SNAPSHOT_NAME
from zoreward.records import InputError, MissingFileError, StepRecord, Term, Update

HEADER = {"fingerprint": "ab" * 32, "dtype": "bfloat16", "streams": {"a": 7}}
RECORDS = [StepRecord(step, (0.5, 0.25 * step), Update(0.0, (Term(step, 0.5),), step), 0.1) for step in range(4)]
RUN = StoredRun(HEADER, 4, RECORDS.__getitem__)

quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    made = {
        "a": torch.randn(3, 5).T,
        "b": torch.randn(7).to(torch.bfloat16),
        "c": torch.tensor(1.5, dtype=torch.float64),
    }
    return {**made, "d": torch.empty(0), "e": torch.randn(4).half()}


def same(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.fixture
def stored(tmp_path: Path) -> bytes:
    """The bytes of a snapshot after step 3; its folder holds nothing else."""
    write_snapshot(tmp_path, weights(), HEADER["fingerprint"], RECORDS[2])
    return (tmp_path / SNAPSHOT_NAME).read_bytes()


def test_weights_come_back_in_every_dtype_and_shape(stored, tmp_path):
    found = weights(1)
    assert read_snapshot(tmp_path, found, RUN, 4) == 3
    assert same(found, weights())
    assert [path.name for path in tmp_path.iterdir()] == [SNAPSHOT_NAME]
    remove_snapshot(tmp_path)
    assert not list(tmp_path.iterdir()) and read_snapshot(tmp_path, found, RUN, 4) == 0


def of_other_scores(step: int) -> StepRecord:
    return StepRecord(step, (0.5, 0.9), RECORDS[step].update, 0.1)


@pytest.mark.parametrize(
    ("run", "most", "changes", "message"),
    [
        (RUN, 2, {}, "stands at step 3"),
        (StoredRun(HEADER, 2, RECORDS.__getitem__), 4, {}, "stands at step 3"),
        (StoredRun({**HEADER, "fingerprint": "cd" * 32}, 4, RECORDS.__getitem__), 4, {}, "another run"),
        (StoredRun(HEADER, 4, of_other_scores), 4, {}, "another run"),
        (RUN, 4, {"f": torch.zeros(2)}, "not those of the model"),
        (RUN, 4, {"b": torch.zeros(7)}, "not those of the model"),
        (RUN, 4, {"e": torch.zeros(2, 2).half()}, "not those of the model"),
    ],
    ids=["later step", "journal cut", "other base", "other scores", "more weights", "other dtype", "other shape"],
)
def test_what_does_not_fit_is_refused(run, most, changes, message, stored, tmp_path):
    found = {**weights(1), **changes}
    before = {name: weight.clone() for name, weight in found.items()}
    with pytest.raises(ValueError, match=message):
        read_snapshot(tmp_path, found, run, most)
    assert same(found, before)


@pytest.mark.slow
@quick
@given(st.data())
def test_a_damaged_snapshot_is_refused_and_changes_nothing(stored, tmp_path, data):
    changed = bytearray(stored)
    for _ in range(data.draw(st.integers(0, 2))):
        changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    start, length = data.draw(st.integers(0, len(changed))), data.draw(st.integers(0, 60))
    changed[start : start + length] = data.draw(st.binary(max_size=60))
    (tmp_path / SNAPSHOT_NAME).write_bytes(changed)
    found = weights(1)
    try:
        assert read_snapshot(tmp_path, found, RUN, 4) == 3
    except ValueError:
        assert same(found, weights(1))
        return
    assert same(found, weights())  # what is between the parts of its head does not count


def test_a_snapshot_that_cannot_be_finished_leaves_the_one_before(stored, tmp_path, monkeypatch):
    from zoreward.journal import snapshot

    def full(weight: torch.Tensor) -> list:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(snapshot, "_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        write_snapshot(tmp_path, weights(1), HEADER["fingerprint"], RECORDS[3])
    assert [path.name for path in tmp_path.iterdir()] == [SNAPSHOT_NAME]
    assert (tmp_path / SNAPSHOT_NAME).read_bytes() == stored


# Whatever has the name of a file.


def _looped(path: Path) -> None:
    path.symlink_to(path)


STRANGERS = {
    "a pipe": lambda path: os.mkfifo(path),
    "a folder": lambda path: path.mkdir(),
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": _looped,
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
}


@pytest.mark.parametrize("stranger", STRANGERS)
def test_what_is_no_file_is_refused_at_once_and_replaced(stranger, tmp_path):
    for name in (SNAPSHOT_NAME, f"{SNAPSHOT_NAME}.part", "journal.jsonl", "trajectory.safetensors"):
        STRANGERS[stranger](tmp_path / name)
    try:
        assert read_snapshot(tmp_path, weights(), RUN, 4) == 0 and stranger == "a link to nothing"
    except ValueError as error:
        assert "cannot be read" in str(error)
    with pytest.raises((InputError, MissingFileError)):
        load_run(tmp_path)
    for name in ("journal.jsonl", "trajectory.safetensors"):
        with pytest.raises((InputError, MissingFileError)):
            load_run(tmp_path / name)
    if stranger == "a folder":
        with pytest.raises(OSError):
            write_snapshot(tmp_path, weights(), HEADER["fingerprint"], RECORDS[2])
        return
    write_snapshot(tmp_path, weights(), HEADER["fingerprint"], RECORDS[2])
    assert read_snapshot(tmp_path, weights(1), RUN, 4) == 3
    assert not (tmp_path / f"{SNAPSHOT_NAME}.part").is_symlink()


def test_what_is_written_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done, real = [], os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: done.append("synced"))
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("named"), real(*names)))
    write_whole(tmp_path / "a", lambda file: file.write(b"new"))
    assert done == ["synced", "named", "synced"]  # the file, its name, the folder
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "b").write_bytes(b"")
    sync_all(tmp_path)
    assert len(done) == 3 + 4  # two files, two folders


# Journals that are opened again.


@pytest.fixture(scope="module")
def journal(tmp_path_factory) -> bytes:
    folder = tmp_path_factory.mktemp("run")
    with Journal(folder, HEADER) as file:
        for record in RECORDS:
            file.append(record)
            file.append_evaluation(record.step + 1, 0.5)
    return (folder / "journal.jsonl").read_bytes()


@quick
@given(st.data())
def test_a_journal_cut_anywhere_goes_on_to_the_same_bytes(journal, tmp_path, data):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(journal[: data.draw(st.integers(0, len(journal)))])
    opened, run = reopen(tmp_path)
    with opened:
        if run is None:
            opened.begin(HEADER)
        for record in RECORDS:
            if run is None or record.step >= run.n_steps:
                opened.append(record)
            if run is None or record.step + 1 not in [step for step, _ in run.evaluations]:
                opened.append_evaluation(record.step + 1, 0.5)
    assert path.read_bytes() == journal
    assert [path.name for path in tmp_path.iterdir()] == ["journal.jsonl"]


@quick
@given(st.data())
def test_a_damaged_journal_is_left_as_it_was_and_can_be_opened_by_others(journal, tmp_path, data):
    lines = journal.splitlines(keepends=True)
    place, bit = data.draw(st.integers(0, len(journal) - 2)), data.draw(st.integers(0, 7))
    flipped = bytearray(journal)
    flipped[place] ^= 1 << bit
    order = data.draw(st.permutations(lines[1:]).filter(lambda found: found != lines[1:]))
    damaged = data.draw(st.sampled_from([bytes(flipped), lines[0] + b"".join(order), journal + lines[-1]]))
    path = tmp_path / "journal.jsonl"
    path.write_bytes(damaged)
    for _ in range(2):
        with pytest.raises(InputError, match="line"):
            reopen(tmp_path)
    assert path.read_bytes() == damaged


SLOW = [pytest.param(filling, marks=pytest.mark.slow) for filling in (b"[[[1]]],", b"{},", b"[],")]


@pytest.mark.parametrize("filling", [b"1,", b'"",', *SLOW], ids=str)
def test_a_line_of_4_mb_takes_less_than_200_mb(filling, journal, tmp_path):
    import tracemalloc

    line = b'{"kind": "step", "step": 0, "terms": [' + filling * ((4 << 20) // len(filling) - 20) + b"0]}\n"
    (tmp_path / "journal.jsonl").write_bytes(journal.splitlines(keepends=True)[0] + line)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="line 2"):
            read_journal(tmp_path / "journal.jsonl")
        assert tracemalloc.get_traced_memory()[1] < 200 << 20
    finally:
        tracemalloc.stop()


def test_a_folder_in_the_place_of_a_journal_is_refused(tmp_path):
    (tmp_path / "journal.jsonl").mkdir()
    with pytest.raises(InputError, match="is no journal"):
        reopen(tmp_path)
    assert reopen(tmp_path / "elsewhere") is None


def test_a_trajectory_named_as_the_run_is_not_resumed(tmp_path):
    (tmp_path / "trajectory.safetensors").write_text(json.dumps({}))
    with pytest.raises(InputError, match="but no journal"):
        reopen(tmp_path)
