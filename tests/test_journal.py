"""Contract under test: what a run has written is read back exactly, up to a torn last line; whatever was changed is
refused with a line number; a trajectory says the same in 4 bytes a direction and step; no file can do harm."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from conftest import random_model
from terms import term_of
from zoreward.journal import Journal, StoredRun, fingerprint, load_run, read_journal, read_trajectory, weights_dtype
from zoreward.journal.lines import MAX_LINE, encode
from zoreward.journal.trajectory import run_of, trajectory_bytes, write_trajectory
from zoreward.methods import SPSA
from zoreward.noise import streams
from zoreward.records import InputError, MissingFileError, StepRecord, Update

METHOD = {"name": "spsa", "seed": 5, "num_directions": 2, "rank": 1, "eps": 0.5, "lr": 0.25, "normalize": "none"}
HEADER = {"fingerprint": "ab" * 32, "dtype": "bfloat16", "streams": {"head.weight": 7, "body.weight": 9}}
RUN = {**HEADER, "method": METHOD, "options": {"größe": 0.1}}
EVALUATIONS = ((0, 0.25), (2, 0.5), (4, 0.75))


def steps(count: int = 4, rank: int = 1, schedule: bool = False) -> list[StepRecord]:
    """Steps of two directions; in step 1 one of them moves nothing, in step 2 both."""
    spsa = SPSA(eps=0.5, lr=0.25, num_directions=2, weight_decay=0.1, seed=5, rank=rank)
    state, records = spsa.init(), []
    for step in range(count):
        scores = [(0.1, 0.4, 0.3 + step, 0.2), (0.5, 0.5, 0.1, 0.7), (0.5,) * 4][step % 3]
        lr = 0.25 / (1 + step) if schedule else 0.25
        update, state = spsa.tell(state, spsa.ask(state), scores, lr=lr)
        records.append(StepRecord(step, scores, update, lr))
    return records


def write(folder: Path, records: list[StepRecord], header: dict = RUN) -> Path:
    with Journal(folder, header) as journal:
        for record in records:
            for step, score in EVALUATIONS:
                if step == record.step:
                    journal.append_evaluation(step, score)
            journal.append(record)
        journal.append_evaluation(len(records), 0.75)
    return folder / "journal.jsonl"


def records_of(run: StoredRun) -> list[StepRecord]:
    return [run.record(step) for step in range(run.n_steps)]


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> bytes:
    """The bytes of a journal of four steps and three evaluations: eight lines."""
    return write(tmp_path_factory.mktemp("run"), steps()).read_bytes()


def test_what_was_written_is_read_back(tmp_path):
    run = load_run(write(tmp_path, steps()).parent)
    assert records_of(run) == steps()
    assert run.evaluations == EVALUATIONS
    assert run.header == {"noise_version": 2, **RUN}


def test_each_line_carries_the_crc_32_of_all_before_it(stored):
    so_far = b""
    for line in stored.splitlines():
        so_far += line[:-20]
        assert json.loads(line)["crc"] == f"{zlib.crc32(so_far):08x}" == line[-10:-2].decode()


def test_a_line_has_left_the_process_when_append_returns(tmp_path):
    with Journal(tmp_path, RUN) as journal:
        for done, record in enumerate(steps(), 1):
            journal.append(record)
            assert read_journal(tmp_path / "journal.jsonl").n_steps == done


def test_sync_waits_for_the_disk_after_each_line(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    write(tmp_path / "without", steps())
    assert not synced
    with Journal(tmp_path / "with", RUN, sync=True) as journal:
        assert len(set(synced)) == 2  # the file, and the folder that names it
        synced.clear()
        for record in steps():
            journal.append(record)
        assert len(synced) == 4


def test_a_full_disk_leaves_whole_lines(tmp_path):
    path, records = tmp_path / "journal.jsonl", steps()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal(tmp_path, RUN) as journal:
        journal.append(records[0])
        before = path.read_bytes()
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 50, hard))
        try:
            with pytest.raises(OSError, match="too large"):
                journal.append(records[1])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert path.read_bytes() == before
        journal.append(records[1])
    assert records_of(read_journal(path)) == records[:2]


# Damage.


def read(data: bytes, folder: Path) -> StoredRun:
    path = folder / "damaged.jsonl"
    path.write_bytes(data)
    return read_journal(path)


def assert_refused_or_a_prefix(data: bytes, stored: bytes, folder: Path) -> None:
    try:
        run = read(data, folder)
    except InputError as error:
        assert "line" in str(error) or "no header" in str(error)
        assert error.hint
        return
    assert stored.startswith(data[: data.rfind(b"\n") + 1])  # what is left out is a torn line at most
    assert records_of(run) == steps()[: run.n_steps]
    assert run.evaluations == EVALUATIONS[: len(run.evaluations)]


quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quick
@given(st.data())
def test_a_journal_cut_anywhere_gives_the_steps_before(stored, tmp_path, data):
    cut = data.draw(st.integers(0, len(stored)))
    whole = stored[:cut].splitlines(keepends=True)
    whole = [line for line in whole if line.endswith(b"\n")]
    if not whole:
        with pytest.raises(InputError, match="no header"):
            read(stored[:cut], tmp_path)
        return
    run = read(stored[:cut], tmp_path)
    done = sum(b'"kind": "step"' in line for line in whole)
    assert records_of(run) == steps()[:done]
    assert len(run.evaluations) == len(whole) - 1 - done


@quick
@given(st.data())
def test_a_flipped_bit_is_noticed(stored, tmp_path, data):
    changed = bytearray(stored)
    place = data.draw(st.integers(0, len(stored) - 1))
    changed[place] ^= 1 << data.draw(st.integers(0, 7))
    if place == len(stored) - 1:  # the last newline: the line before it counts as torn
        assert read(bytes(changed), tmp_path).evaluations == EVALUATIONS[:-1]
        return
    line = stored[:place].count(b"\n") + 1
    # A lost newline joins two lines; a newline that appears cuts one.
    with pytest.raises(InputError, match=f"line {line}:"):
        read(bytes(changed), tmp_path)


@quick
@given(st.data())
def test_lines_that_were_moved_doubled_or_removed_are_noticed(stored, tmp_path, data):
    lines = stored.splitlines(keepends=True)
    some = st.lists(st.sampled_from(lines), max_size=12)
    order = data.draw(st.one_of(st.permutations(lines), some))
    assert_refused_or_a_prefix(b"".join(order), stored, tmp_path)


@quick
@given(st.binary(max_size=300), st.integers(0, 3000), st.integers(0, 300))
def test_foreign_bytes_are_refused(stored, tmp_path, foreign, place, length):
    assert_refused_or_a_prefix(stored[:place] + foreign + stored[place + length :], stored, tmp_path)


def test_the_first_wrong_line_is_named_and_the_sound_ones_are_offered(stored, tmp_path):
    lines = stored.splitlines(keepends=True)
    cases = {
        "line 6: it has step 3 where 2 belongs": [*lines[:5], *lines[6:]],
        "line 7: it has step 2 where 3 belongs": [*lines[:6], *lines[5:]],
        "line 5: its checksum is wrong": [*lines[:4], *lines[5:]],  # an evaluation is missing: step 2 follows step 1
        "line 4: its checksum is wrong": [*lines[:3], lines[3].replace(b"0.25", b"0.75"), *lines[4:]],
        "line 8: it is not JSON": [*lines[:7], lines[7][:30] + b"\n"],
    }
    for message, changed in cases.items():
        with pytest.raises(InputError, match=message) as refused:
            read(b"".join(changed), tmp_path)
        line = int(message.split()[1][:-1])
        assert f"head -n {line - 1} " in refused.value.hint


def signed(*lines: dict) -> bytes:
    """Lines with their right checksums, whatever they say."""
    data, crc = b"", 0
    for fields in lines:
        line, crc = encode(fields, crc)
        data += line
    return data


STEP = {
    "kind": "step", "step": 0, "scores": [0.5, 0.25], "lr": 0.1, "decay": 0.0, "terms": [[3, 0.5]], "rounding_seed": 4
}  # fmt: skip
HEAD = {"classes": ["a", "b"], "weights": ["score.weight"], "spread": 0.02}
FIRST = {"kind": "header", "noise_version": 2, **HEADER}
FALSE = {
    "unknown kind": (FIRST, {"kind": "snapshot", "step": 0}),
    "no kind": (FIRST, {"step": 0}),
    "second header": (FIRST, FIRST),
    "no header": (STEP,),
    "noise version": ({**FIRST, "noise_version": 1},),
    "noise version of another type": ({**FIRST, "noise_version": True},),
    "no fingerprint": ({**FIRST, "fingerprint": "../../etc/passwd"},),
    "no dtype": ({**FIRST, "dtype": "int8"},),
    "no streams": ({**FIRST, "streams": {"a": 2**32}},),
    "streams of another type": ({**FIRST, "streams": [1, 2]},),
    "seed too large": (FIRST, {**STEP, "terms": [[2**64, 0.5]]}),
    "negative seed": (FIRST, {**STEP, "terms": [[-1, 0.5]]}),
    "seed that is true": (FIRST, {**STEP, "terms": [[True, 0.5]]}),
    "coefficient too large": (FIRST, {**STEP, "terms": [[1, 1e39]]}),
    "coefficient in words": (FIRST, {**STEP, "terms": [[1, "0.5"]]}),
    "rank too large": (FIRST, {**STEP, "terms": [[1, 0.5, 10**9]]}),
    "basis seed too large": (FIRST, {**STEP, "terms": [[1, 0.5, 2, 1, 2**64]]}),
    "a basis and another seed of b": (FIRST, {**STEP, "terms": [[1, 0.5, 2, 3, 4]]}),
    "a basis without a rank": (FIRST, {**STEP, "terms": [[1, 0.5, 0, 1, 4]]}),
    "term of six": (FIRST, {**STEP, "terms": [[1, 0.5, 2, 1, 4, 5]]}),
    "a distribution that there is not": (FIRST, {**STEP, "distribution": "cauchy"}),
    "a distribution in a subspace": (FIRST, {**STEP, "terms": [[1, 0.5, 2, 1, 4]], "distribution": "gaussian"}),
    "distributions": (FIRST, {**STEP, "distribution": ["normal"]}),
    "term of one": (FIRST, {**STEP, "terms": [[1]]}),
    "terms are none": (FIRST, {**STEP, "terms": {"1": 0.5}}),
    "scores in words": (FIRST, {**STEP, "scores": ["good"]}),
    "score too large": (FIRST, {**STEP, "scores": [10**4000]}),
    "no learning rate": (FIRST, {**STEP, "lr": None}),
    "decay too large": (FIRST, {**STEP, "decay": 10**400}),
    "anchor too large": (FIRST, {**STEP, "anchor": 1e39}),
    "anchor in words": (FIRST, {**STEP, "anchor": "0.5"}),
    "head of another type": ({**FIRST, "head": "classifier"},),
    "head with a list for a name": ({**FIRST, "head": {**HEAD, "weights": [["score.weight"]]}},),
    "head with as many classes": ({**FIRST, "head": {**HEAD, "classes": 2}},),
    "head without a spread": ({**FIRST, "head": {**HEAD, "spread": None}},),
    "rounding seed": (FIRST, {**STEP, "rounding_seed": 2**64}),
    "step that is false": (FIRST, {**STEP, "step": False}),
    "first step is not 0": (FIRST, {**STEP, "step": 1}),
    "step after the end": (FIRST, STEP, {**STEP, "step": 5}),
    "evaluation ahead": (FIRST, {"kind": "evaluation", "step": 3, "score": 0.5}),
    "evaluation in words": (FIRST, {"kind": "evaluation", "step": 0, "score": "good"}),
    "metrics in words": (FIRST, {"kind": "evaluation", "step": 0, "score": 0.5, "metrics": {"length": "long"}}),
    "groups in words": (FIRST, {"kind": "evaluation", "step": 0, "score": 0.5, "groups": ["high"]}),
    "a rewind to itself": (FIRST, STEP, {"kind": "rewind", "step": 1, "to": 1, "rate": 0.5}),
    "a rewind before the first step": (FIRST, {"kind": "rewind", "step": 0, "to": 0, "rate": 0.5}),
    "a rewind to what is to come": (FIRST, STEP, {"kind": "rewind", "step": 1, "to": 3, "rate": 0.5}),
    "a rewind that is not yet due": (FIRST, STEP, {"kind": "rewind", "step": 2, "to": 0, "rate": 0.5}),
    "a rewind of no rate": (FIRST, STEP, {"kind": "rewind", "step": 1, "to": 0, "rate": 0}),
    "two rewinds at once": (FIRST, STEP, *[{"kind": "rewind", "step": 1, "to": 0, "rate": 0.5}] * 2),
    "ranks beyond all bounds": (FIRST, {**STEP, "terms": [[1, 0.5, 4096]] * 65}),
    "directions without scores": ({**FIRST, "method": {**METHOD, "num_directions": 1000}}, STEP),
    "directions that grow": ({**FIRST, "method": {**METHOD, "num_directions": 65, "more_every": 1}}, STEP),
    **{
        f"method of {name}={str(value)[:20]}": ({**FIRST, "method": {**METHOD, "momentum": 0.5, name: value}},)
        for name, value in [
            ("num_directions", 10**8),
            ("num_directions", 0),
            ("num_directions", "2"),
            ("window", 10**9),
            ("rank", 10**6),
            ("blocks", 10**9),
            ("refresh", 0),
            ("more_every", 10**4000),
            ("seed", -1),
            ("block_every", 2**50),
            ("momentum", 1.5),
            ("distribution", {"normal": 1}),
        ]
    },
    "an adapter of all memory": ({**FIRST, "adapter": {"peft_type": "LORA", "r": 10**9}},),
    "an adapter of one layer's rank": ({**FIRST, "adapter": {"peft_type": "LORA", "rank_pattern": {"q": 10**9}}},),
    "an adapter's names that match for ever": (
        {**FIRST, "adapter": {"peft_type": "LORA", "target_modules": ".*.*.*.*.*.*x"}},
    ),
    "an adapter that is none": ({**FIRST, "adapter": ["LORA"]},),
    "a head of all memory": ({**FIRST, "head": {**HEAD, "classes": ["c"] * 10**5}},),
    "blocks that nobody has": ({**FIRST, "method": {**METHOD, "blocks": 60_000}},),
}


@pytest.mark.parametrize("case", FALSE)
def test_lines_that_say_what_cannot_be_are_refused_though_their_checksum_is_right(case, tmp_path):
    data, start = signed(*FALSE[case]), time.process_time()
    with pytest.raises(InputError, match=f"line {len(FALSE[case])}:") as refused:
        read(data, tmp_path)
    assert time.process_time() - start < 0.5
    assert refused.value.hint and len(str(refused.value)) < 300
    assert read(signed({**FIRST, "head": HEAD}, {**STEP, "anchor": 0.5}), tmp_path).n_steps == 1


@pytest.mark.parametrize(
    "line",
    [
        b"[" * 100_000,
        b'{"a": ' * 100_000,
        b'{"step": 1' + b"0" * 5000 + b"}",
        b'{"step": 1e999}',
        b'{"step": NaN}',
        b'{"step": 0, "step": 1}',
        b"\xff\xfe",
        b"[1]",
        b" " * (MAX_LINE + 1),
    ],
    ids=["lists", "objects", "digits", "infinity", "NaN", "twice", "bytes", "no object", "long"],
)
def test_json_that_harms_is_refused(line, tmp_path):
    with pytest.raises(InputError, match="line 2:"):
        read(signed(FIRST) + line + b"\n", tmp_path)


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")  # opening it would wait for ever
    os.mkfifo(tmp_path / "pipe.safetensors")
    for path in (tmp_path / "pipe.jsonl", tmp_path / "pipe.safetensors", Path("/dev/zero")):
        with pytest.raises(InputError, match="is no"):
            load_run(path)
    for path in (tmp_path, tmp_path / "none.jsonl", tmp_path / "none.safetensors"):
        with pytest.raises(MissingFileError):
            load_run(path)


# Trajectories.


@pytest.mark.parametrize("schedule", [False, True])
def test_a_trajectory_holds_the_same_updates(schedule, tmp_path):
    run = read_journal(write(tmp_path, steps(7, schedule=schedule)))
    write_trajectory(run, tmp_path / "trajectory.safetensors")
    again = read_trajectory(tmp_path / "trajectory.safetensors")
    assert list(again.updates(7)) == list(run.updates(7))
    assert again.header == run.header
    # a scheduled rate is stored as float32, a relative 2^-24
    assert [again.record(n).lr for n in range(7)] == pytest.approx([run.record(n).lr for n in range(7)], rel=2**-24)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["journal.jsonl", "trajectory.safetensors"]


def test_terms_of_0_and_no_terms_are_told_apart(tmp_path):
    records = steps(3)
    for step, zero in ((0, 0.0), (2, -0.0)):
        seeds = [member[0].seed for member in SPSA(num_directions=2, seed=5).ask(SPSA().init()).members[::2]]
        terms = (term_of(seeds[1], zero, 1),) if step == 0 else records[step].update.terms
        update = Update(0.0, terms, records[step].update.rounding_seed)
        records[step] = StepRecord(step, records[step].scores, update, 0.25)
    run = read_journal(write(tmp_path, records))
    again = run_of(trajectory_bytes(run))
    for step in range(3):
        mine, theirs = again.record(step).update.terms, records[step].update.terms
        assert [str(term) for term in mine] == [str(term) for term in theirs]  # −0.0 == 0.0, but reads otherwise
    assert len(records[0].update.terms) == 1 and not records[2].update.terms


@pytest.mark.slow
def test_20_000_steps_take_less_than_100_000_bytes():
    names = [f"model.decoder.layers.{n}.self_attn.{w}_proj.{kind}" for n in range(64) for w in "qkvo" for kind in
             ("weight", "bias")] + [f"model.decoder.layers.{n}.fc{i}.{kind}" for n in range(64) for i in (1, 2) for
             kind in ("weight", "bias")] + ["lm_head.weight"]  # as many as OPT-66B has, nearly  # fmt: skip
    spsa = SPSA(seed=3)
    header = {"noise_version": 2, **HEADER, "streams": streams(names), "method": {**METHOD, "seed": 3, "rank": 0}}
    header["method"]["num_directions"] = 1

    def record(step: int) -> StepRecord:
        state = type(spsa.init())(step)
        update, _ = spsa.tell(state, spsa.ask(state), [0.5, 0.4 + 1e-5 * step])
        return StepRecord(step, (), update, spsa.lr)

    data = trajectory_bytes(StoredRun(header, 20_000, record))
    assert len(data) <= 100_000, len(data)
    again = run_of(data)
    assert again.streams == streams(names)
    assert all(again.record(step).update == record(step).update for step in range(0, 20_000, 997))


def test_other_readers_can_read_a_trajectory(tmp_path):
    run = read_journal(write(tmp_path, steps()))
    path = tmp_path / "trajectory.safetensors"
    write_trajectory(run, path)
    with safe_open(path, "numpy") as file:
        about = json.loads(file.metadata()["run"])
        coefficients, numbers, packed = (file.get_tensor(name) for name in ("coefficients", "streams", "names"))
    assert about["steps"] == 4 and about["header"]["fingerprint"] == HEADER["fingerprint"]
    names = json.loads(zlib.decompress(packed.tobytes()))
    assert dict(zip(names, numbers.tolist(), strict=True)) == HEADER["streams"]
    for step in range(4):
        moved = [float(value) for value in coefficients[step] if not np.isnan(value)]
        assert moved == [term.coefficient for term in steps()[step].update.terms]


def test_steps_that_do_not_follow_from_the_seed_cannot_be_a_trajectory(tmp_path):
    for name, update in {
        "direction": Update(0.0, (term_of(1, 0.5, 1),), steps()[0].update.rounding_seed),
        "rank": steps(rank=2)[0].update,
        "rounding": Update(0.0, steps()[0].update.terms, 1),
    }.items():
        run = read_journal(write(tmp_path / name, [StepRecord(0, (), update, 0.25)]))
        with pytest.raises(InputError, match="step 0"):
            write_trajectory(run, tmp_path / "trajectory.safetensors")
    assert not (tmp_path / "trajectory.safetensors").exists()


def test_projected_gradients_are_the_slopes(tmp_path):
    run = read_journal(write(tmp_path, steps()))
    # ε = 0.5: the denominator is 1
    assert run.projected_grads(0) == [0.1 - 0.4, 0.3 - 0.2]
    assert run.projected_grads(1) == [0.0, 0.1 - 0.7]
    trajectory = run_of(trajectory_bytes(run))
    for step in range(4):
        # a coefficient is float32, a relative 2^-24
        assert trajectory.projected_grads(step) == pytest.approx(run.projected_grads(step), rel=2**-24)
    with pytest.raises(InputError, match="no step 4"):
        run.projected_grads(4)
    ranked = read_journal(write(tmp_path / "ranked", steps(), {**RUN, "method": {**METHOD, "normalize": "rank"}}))
    assert ranked.projected_grads(0) == [0.1 - 0.4, 0.3 - 0.2]
    assert run_of(trajectory_bytes(ranked)).projected_grads(0) is None


@pytest.fixture(scope="module")
def trajectory(tmp_path_factory) -> bytes:
    return trajectory_bytes(read_journal(write(tmp_path_factory.mktemp("run"), steps(schedule=True))))


def load(data: bytes, folder: Path) -> StoredRun:
    path = folder / "damaged.safetensors"
    path.write_bytes(data)
    return load_run(path)


@quick
@given(st.data())
def test_a_damaged_trajectory_is_refused_or_says_the_same(trajectory, tmp_path, data):
    changed = bytearray(trajectory)
    for _ in range(data.draw(st.integers(0, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    start, length = data.draw(st.integers(0, len(changed))), data.draw(st.integers(0, 40))
    changed[start : start + length] = data.draw(st.binary(max_size=40))
    try:
        run = load(bytes(changed), tmp_path)
    except InputError as error:
        assert error.hint
        return
    expected = run_of(trajectory)
    assert run.header == expected.header and records_of(run) == records_of(expected)


def changed(trajectory: bytes, **changes) -> bytes:
    """A trajectory that says something else, with its right checksum: `about`, `entries` and `body` can be changed."""
    length = int.from_bytes(trajectory[:8], "little")
    entries, body = json.loads(trajectory[8 : 8 + length]), trajectory[8 + length :]
    about = json.loads(entries.pop("__metadata__")["run"])
    about, body = {**about, **changes.get("about", {})}, changes.get("body", body)
    entries = {name: {**entry, **changes.get(name, {})} for name, entry in entries.items()}
    text = json.dumps(about)
    digest = hashlib.sha256(text.encode() + body).hexdigest()
    metadata = {"format": "zoreward-trajectory-1", "run": text, "sha256": digest}
    head = json.dumps({"__metadata__": metadata, **entries, **changes.get("more", {})}).encode()
    return len(head).to_bytes(8, "little") + head + body


HOSTILE = {
    "header longer than the file": lambda t: (2**63).to_bytes(8, "little") + t[8:],
    "header of nothing": lambda t: bytes(8) + t[8:],
    "empty": lambda t: b"",
    "more steps than there are": lambda t: changed(t, about={"steps": 5}),
    "steps beyond all bounds": lambda t: changed(t, about={"steps": 10**18}),
    "steps that are true": lambda t: changed(t, about={"steps": True}),
    "shape that overflows": lambda t: changed(t, coefficients={"shape": [2**63, 2**63]}),
    "another dtype": lambda t: changed(t, coefficients={"dtype": "F64"}),
    "negative offsets": lambda t: changed(t, coefficients={"data_offsets": [-8, 24]}),
    "offsets of the neighbour": lambda t: changed(t, decay={"data_offsets": [0, 16]}),
    "an array more": lambda t: changed(t, more={"../x": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}),
    "no streams": lambda t: changed(t, streams={"shape": "many"}),
    "bytes behind the last array": lambda t: changed(t, body=t[8 + int.from_bytes(t[:8], "little") :] + b"x"),
    "infinite coefficients": lambda t: changed(
        t, body=np.float32([np.inf]).tobytes() + t[8 + int.from_bytes(t[:8], "little") + 4 :]
    ),
    "a rate beside the rates": lambda t: changed(t, about={"lr": 0.5}),
    "anchor in words": lambda t: changed(t, about={"anchor": "high"}),
    "anchor too large": lambda t: changed(t, about={"anchor": 1e39}),
    "rate in words": lambda t: changed(t, about={"lr": "high"}),
    "no method": lambda t: changed(t, about={"header": {"noise_version": 2, **HEADER}}),
    "noise version": lambda t: changed(t, about={"header": {"noise_version": 9, **RUN}}),
    "a subspace in words": lambda t: changed(
        t, about={"header": {"noise_version": 2, **RUN, "method": {**METHOD, "subspace": "yes"}}}
    ),
    "a distribution that there is not": lambda t: changed(
        t, about={"header": {"noise_version": 2, **RUN, "method": {**METHOD, "distribution": "cauchy"}}}
    ),
    "a subspace of another distribution": lambda t: changed(
        t,
        about={
            "header": {
                "noise_version": 2,
                **RUN,
                "method": {**METHOD, "rank": 2, "subspace": True, "distribution": "gaussian"},
            }
        },
    ),
    "rank beyond all bounds": lambda t: with_method(t, rank=10**9),
    "as many directions": lambda t: with_method(t, num_directions=10**8),
    "a long window": lambda t: with_method(t, momentum=0.9, window=10**6),
    "directions times window": lambda t: with_method(t, num_directions=1 << 15, momentum=0.9, window=1 << 9),
    "directions times rank": lambda t: with_method(t, num_directions=1 << 12, rank=1 << 12),
    "as many blocks": lambda t: with_method(t, blocks=10**7),
    "directions that are no numbers": lambda t: with_method(t, num_directions=[[2]]),
    "more directions with each step": lambda t: with_method(t, more_every=1, num_directions=10**4),
    "a digit too many": lambda t: with_method(t, refresh=10**4000),
    "an adapter of all memory": lambda t: with_header(t, adapter={"peft_type": "LORA", "r": 10**9}),
    "an adapter's names that match for ever": lambda t: with_header(
        t, adapter={"peft_type": "LORA", "r": 2, "target_modules": "(a+)+$"}
    ),
    "a head of all memory": lambda t: with_header(t, head={**HEAD, "classes": ["c"] * 10**5}),
    "a rewind of no step": lambda t: changed(t, about={"rewinds": [[5, 1, 0.5]]}),
    "a rewind ahead": lambda t: changed(t, about={"rewinds": [[2, 2, 0.5]]}),
    "rewinds that go back": lambda t: changed(t, about={"rewinds": [[3, 2, 0.5], [2, 1, 0.5]]}),
    "rewinds in words": lambda t: changed(t, about={"rewinds": "none"}),
}


def with_header(t: bytes, **changes) -> bytes:
    return changed(t, about={"header": {"noise_version": 2, **RUN, **changes}})


def with_method(t: bytes, **changes) -> bytes:
    return with_header(t, method={**METHOD, **changes})


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_trajectories_are_refused(case, trajectory, tmp_path):
    data, start = HOSTILE[case](trajectory), time.process_time()
    with pytest.raises(InputError) as refused:
        load(data, tmp_path)
    assert time.process_time() - start < 0.5
    assert refused.value.hint and len(str(refused.value)) < 400
    assert load(changed(trajectory), tmp_path).n_steps == 4  # what is not changed is read


@pytest.mark.slow
def test_names_that_unpack_without_end_are_refused(trajectory, tmp_path):
    length = int.from_bytes(trajectory[:8], "little")
    entries, body = json.loads(trajectory[8 : 8 + length]), trajectory[8 + length :]
    start, _ = entries["names"]["data_offsets"]
    bomb = zlib.compress(b" " * (1 << 28), 9)  # 256 MB in 0.3
    names = {"shape": [len(bomb)], "data_offsets": [start, start + len(bomb)]}
    data = changed(trajectory, body=body[:start] + bomb, names=names)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="names"):
            load(data, tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 50 << 20
    finally:
        tracemalloc.stop()


# Fingerprints.


def test_a_fingerprint_can_be_computed_by_others():
    model = random_model("gpt2").to(torch.bfloat16)
    lines = []
    for name, weight in sorted(model.named_parameters()):
        raw = weight.detach().contiguous().view(torch.int16).numpy().tobytes()
        shape = "x".join(map(str, weight.shape))
        lines.append(f"{name} bfloat16 {shape} {hashlib.sha256(raw).hexdigest()}\n")
    assert fingerprint(model) == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_a_fingerprint_sees_a_bit_a_dtype_and_a_shape_but_no_wrapper():
    model = random_model("llama-tied")
    before = fingerprint(model)
    assert fingerprint(torch.nn.ModuleDict({"module": model})) == before
    weight = model.model.layers[1].mlp.up_proj.weight
    with torch.no_grad():
        weight.view(torch.int32)[3, 4] ^= 1
        assert fingerprint(model) != before
        weight.view(torch.int32)[3, 4] ^= 1
        assert fingerprint(model) == before
        weight.data = weight.data.view(weight.shape[1], weight.shape[0])
    assert fingerprint(model) != before
    assert fingerprint(random_model("llama-tied").half()) != before
    assert weights_dtype(model) == "float32" and weights_dtype(model.half()) == "float16"
