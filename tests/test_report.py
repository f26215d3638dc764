"""Contract under test: the page of a run says what its files say, loads and runs nothing, and never costs a run."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from browser import measured
from zoreward.cli import main
from zoreward.journal import Journal, load_run
from zoreward.journal.notes import append_note, read_notes
from zoreward.records import Rewind, StepRecord, Term, Update

pytestmark = pytest.mark.usefixtures("commands_are_kept", "trials_are_kept")

PROMPT = ["--template", "{sentence} it was", "--choice", " terrible", "--choice", " great"]
TUNE = ["--model", "model", "--data", "train.jsonl", "--eval-data", "dev.jsonl", "--device", "cpu"]
EVIL = "<script>alert(1)</script>\x1b[31m\"'><img src=x onerror=alert(2)>\u202e" + "w" * 400
# What a journal of zoreward 0.1.0 had; it had neither code nor config of the model, nor groups, nor notes beside it.
OLD = {
    "objective": "accuracy",
    "options": {},
    "method": {
        "name": "spsa",
        "seed": 3,
        "num_directions": 1,
        "rank": 0,
        "eps": 0.001,
        "lr": 0.01,
        "normalize": "none",
    },
    "model": "gpt2",
    "dtype": "float32",
    "fingerprint": "0" * 64,
    "config": {"max_steps": 20, "template": "{text} it was"},
    "rows": {"tune": "1" * 64, "evaluate": "2" * 64},
    "streams": {"wte.weight": 7},
    "versions": {"zoreward": "0.1.0", "torch": "2.11.0", "transformers": "5.17.0"},
}


class Page(HTMLParser):
    """A page, taken apart: tags with their attributes, what stands in cells, all that is written."""

    VOID = ("meta", "br")

    def __init__(self, path: Path):
        super().__init__()
        self.source = path.read_text("utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.written = ""
        self._open: list[str] = []
        self.feed(self.source)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID and not self.get_starttag_text().endswith("/>"):
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("path",):
            assert self._open.pop() == tag, f"</{tag}> closes nothing"
        elif self._open and self._open[-1] == tag:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.written += data
        if {"td", "th"} & set(self._open):
            self.rows[-1][-1] += data


def number(value: float) -> str:
    return f"{value:.6g}".replace("-", "−")


def error_of(accuracy: float) -> str:
    """Of 12 rows."""
    return number(math.sqrt(accuracy * (1 - accuracy) / 11))


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]


def step(place: int, scores: tuple[float, ...]) -> StepRecord:
    return StepRecord(place, scores, Update(0.0, (Term(place, 0.01),), 0), 0.01)


def crafted(folder: Path, header: dict[str, Any], scores: list[tuple[float, ...]], dev: dict[int, float]) -> Path:
    """Write a journal by hand."""
    with Journal(folder, header) as journal:
        for place, own in enumerate(scores):
            if place in dev:
                journal.append_evaluation(place, dev[place])
            journal.append(step(place, own))
        if len(scores) in dev:
            journal.append_evaluation(len(scores), dev[len(scores)])
    return folder


@pytest.fixture(scope="module")
def home(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, rows, and two runs: one of choices, one of texts."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "model").symlink_to(tiny_model_dir, target_is_directory=True)
    (folder / "words.py").write_text("def size(completions):\n    return [-float(len(text)) for text in completions]\n")
    good, bad = ["good", "great", "lovely"], ["bad", "awful", "dull"]
    rows = [{"sentence": f"a {word} film", "prompt": f"the {word}", "label": int(word in good)} for word in good + bad]
    for name, some in (("train", rows * 2), ("dev", rows * 2)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        more = ["--steps", "6", "--eval-every", "2", "--lr", "3e-2", "--eps", "1e-2", "--seed", "2"]
        assert main(["tune", "accuracy", *TUNE, *PROMPT, *more, "--output", "choices"]) == 0
        written = ["--steps", "3", "--eval-every", "1", "--lr", "3e-2", "--eps", "1e-2", "--num-directions", "2"]
        assert main(["tune", "./words.py:size", *TUNE, *written, "--max-new-tokens", "4", "--output", "texts"]) == 0
    return folder


@pytest.fixture
def at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(home)
    return home


def test_a_page_loads_nothing_and_runs_nothing(home: Path) -> None:
    for name in ("choices", "texts"):
        page = Page(home / name / "report.html")
        tags = {tag for tag, _ in page.tags}
        assert not tags & {"script", "link", "img", "iframe", "object", "embed", "a", "base", "form", "image", "use"}
        for _, attributes in page.tags:
            assert not {"src", "href", "srcset", "xlink:href"} & attributes.keys()
            assert not [attribute for attribute in attributes if attribute.startswith("on")]
        assert not re.search(r"url\(|@import|https?://", page.source)
        assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.tags
        assert "prefers-color-scheme: dark" in page.source


def test_the_numbers_are_those_of_the_journal(home: Path) -> None:
    run = home / "choices"
    page, lines = Page(run / "report.html"), lines_of(run)
    dev = [line for line in lines if line["kind"] == "evaluation"]
    kept = json.loads((run / "model" / "zoreward.json").read_text())["step"]
    assert [line["step"] for line in dev] == [0, 2, 4, 6]
    # Accuracy is a mean of n zeros and ones: its standard error is √(s (1 − s) / (n − 1)).
    shown = [
        [f"{line['step']}{', kept' * (line['step'] == kept)}", number(line["score"]), error_of(line["score"])]
        for line in dev
    ]
    start = page.rows.index(["after step", "score", "standard error"])
    assert page.rows[start + 1 : start + 5] == shown
    for step, score in ((line["step"], line["score"]) for line in dev):
        assert f"step {step}: {number(score)}" in page.written  # where the mouse rests
    header = lines[0]
    for value in (header["method"]["eps"], header["method"]["seed"], header["versions"]["torch"]):
        assert str(value) in page.written
    scores = [line["scores"] for line in lines if line["kind"] == "step"]
    silent = sum(plus == minus for plus, minus in scores)
    assert (f"{silent} silent" if silent else "none silent") in page.written
    assert "zoreward tune accuracy --model model" in page.written and "--output choices" in page.written
    assert "12, train.jsonl" in page.written and "zoreward replay choices --model model" in page.written


def test_only_options_that_were_typed_are_listed(home: Path) -> None:
    page = Page(home / "choices" / "report.html").source
    [listed] = re.findall(r"<details><summary>the options that were given</summary>(.*?)</details>", page)
    names = re.findall("<dt>(.*?)</dt>", listed)
    assert {"max_steps", "eval_steps", "template", "choices", "seed"} <= {*names}
    assert not {*names} & {"disable_tqdm", "do_eval", "eval_strategy", "load_best_model_at_end", "noise", "normalize"}
    [listed] = re.findall(r"given</summary>(.*?)</details>", Page(home / "texts" / "report.html").source)
    assert "max_completion_length" in re.findall("<dt>(.*?)</dt>", listed)


def test_words_that_occur_are_explained(tmp_path: Path) -> None:
    scores = [(0.5, 0.25), (0.5, 0.5)]
    with Journal(tmp_path / "run", OLD) as journal:
        journal.append_evaluation(0, 0.5, {"metric/f1": 0.25, "kl": 0.0})
        for place, own in enumerate(scores):
            journal.append(step(place, own))
        journal.append_evaluation(2, 0.5, {"metric/f1": 0.5, "kl": 0.1})
    append_note(tmp_path / "run", "end", {"seconds": 3.0})
    assert main(["report", str(tmp_path / "run")]) == 0
    page = Page(tmp_path / "run" / "report.html")
    for word in ("spread", "silent step", "metric/NAME", "KL"):
        assert f"<dt>{word}</dt>" in page.source
    assert "distinct-2" not in page.source
    assert "1.5 s a step, with dev scores; without loading and saving" in page.written
    crafted(tmp_path / "loud", OLD, scores[:1], {})
    assert main(["report", str(tmp_path / "loud")]) == 0
    assert "<dt>silent step</dt>" not in Page(tmp_path / "loud" / "report.html").source


def test_the_tables_of_answers_count_what_the_score_counts(home: Path) -> None:
    dev = {line["step"]: line["score"] for line in lines_of(home / "choices") if line["kind"] == "evaluation"}
    answers = {note["step"]: note for note in read_notes(home / "choices") if note["kind"] == "answers"}
    assert answers.keys() == dev.keys()
    for step, note in answers.items():
        counts = note["confusion"]
        assert sum(map(sum, counts)) == 12 and [sum(row) for row in counts] == [6, 6]
        assert (counts[0][0] + counts[1][1]) / 12 == dev[step]
    page = Page(home / "choices" / "report.html")
    at = page.rows.index(["", "terrible", "great", "precision", "recall", "F1"])
    counts = answers[0]["confusion"]
    assert [row[1:3] for row in page.rows[at + 1 : at + 3]] == [[str(one) for one in row] for row in counts]
    assert [row[4] for row in page.rows[at + 1 : at + 3]] == [f"{row[n] / 6:.1%}" for n, row in enumerate(counts)]


def test_texts_stand_beside_one_another(home: Path) -> None:
    notes = [note for note in read_notes(home / "texts") if note["kind"] == "answers"]
    page = Page(home / "texts" / "report.html")
    first = notes[0]["texts"]
    assert len(first) == 8 and all(-len(one["completion"]) == one["score"] for one in first)
    for one in first:
        assert one["prompt"] in page.written and one["completion"] in page.written
    assert "Texts, before and after" in page.written
    # A run of a zoreward without notes has the tables of its steps.
    (old := home / "without").mkdir()
    shutil.copy(home / "texts" / "journal.jsonl", old)
    shutil.copytree(home / "texts" / "completions", old / "completions")
    assert main(["report", str(old)]) == 0
    page = Page(old / "report.html")
    assert "What the best member of a step wrote" in page.written
    path = min((old / "completions").iterdir())
    table = parquet.read_table(path).to_pylist()
    ours = [line for line in table if line["member"] == table[0]["member"]][:8]
    assert {line["size"] for line in ours} != {ours[0]["score"]}
    # Beside a text stands its own score, not the mean of its member; without one it is said that it is the mean.
    shown = re.findall(r"in step 1, score (\S+?\d)(?=[a-z <])", page.written)
    assert shown == [number(-len(line["completion"])) for line in ours]
    for line in table:
        del line["size"]
    parquet.write_table(pyarrow.Table.from_pylist(table), path)
    assert main(["report", str(old)]) == 0
    mean = f"in step 1, mean score of what this member wrote {number(ours[0]['score'])}"
    assert Page(old / "report.html").written.count(mean) == len(ours)


def test_texts_are_not_kept_where_none_are_to_be(at_home: Path) -> None:
    more = ["--completions-every", "0", "--steps", "1", "--lr", "1e-3", "--eps", "1e-2", "--max-new-tokens", "2"]
    assert main(["tune", "./words.py:size", *TUNE, *more, "--output", "silent"]) == 0
    assert not [note for note in read_notes("silent") if "texts" in note]


def test_whatever_a_row_or_a_model_says_is_text(tmp_path: Path) -> None:
    header = {**OLD, "objective": EVIL, "model": EVIL, "options": {EVIL: EVIL}, "versions": {EVIL: EVIL}}
    header |= {"config": {EVIL: EVIL, "template": EVIL}, "adapter": {EVIL: EVIL}}
    run = crafted(tmp_path / "run", header, [(0.5, 0.25)], {0: 0.5, 1: 0.75})
    append_note(run, "session", {"command": EVIL, "found": EVIL, "rows": {EVIL: EVIL}, "device": EVIL})
    texts = [{"prompt": EVIL, "completion": EVIL, "score": 1.0}]
    for place in (0, 1):
        append_note(
            run, "answers", {"step": place, "choices": [EVIL, EVIL], "confusion": [[1, 0], [0, 1]], "texts": texts}
        )
    broken = [b'{"kind": "end"', b"[1]", b"\xff\xfe", b'{"kind": "answers", "step": [1]}']
    broken.append(b'{"kind": "end", "seconds": 1' + b"0" * 400 + b"}")
    with (run / "notes.jsonl").open("ab") as file:
        file.write(b"\n".join([b"", *broken]))
    plain = Page(crafted_page(tmp_path / "plain", OLD))
    assert main(["report", str(run)]) == 0
    page = Page(run / "report.html")
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in plain.tags} | {"div", "h3", "pre", "p", "small"}
    assert page.written.count("<script>alert(1)</script>\\x1b[31m") > 10
    assert "\x1b" not in page.source and "\u202e" not in page.source
    assert measured_widths([run / "report.html"], tmp_path) == []


def crafted_page(folder: Path, header: dict[str, Any]) -> Path:
    crafted(folder, header, [(0.5, 0.25)], {0: 0.5, 1: 0.75})
    assert main(["report", str(folder)]) == 0
    return folder / "report.html"


def test_secrets_are_not_told(tmp_path: Path) -> None:
    page = Page(
        crafted_page(tmp_path / "run", {**OLD, "config": {"hub_token": "hf_abc"}, "options": {"key": "sk-abc"}})
    )
    assert "hub_token" in page.written and "abc" not in page.source


@pytest.mark.parametrize("n_steps", [0, 1, 5])
def test_a_run_that_was_cut_off(n_steps: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = crafted(tmp_path / "run", OLD, [(0.5, 0.25)] * n_steps, {})
    append_note(run, "session", {"command": "zoreward tune accuracy --output run", "max_steps": 20})
    with (run / "journal.jsonl").open("ab") as file:
        file.write(b'{"kind": "step", "st')
    assert main(["report", str(run), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["page"] == str(run / "report.html")
    [summary] = printed["runs"]
    assert (summary["steps"], summary["passes"], summary["kept"], summary["score"]) == (
        n_steps,
        2 * n_steps,
        None,
        None,
    )
    written = Page(run / "report.html").written
    assert ("no steps yet" if n_steps == 0 else f"not finished: {n_steps} of 20 steps") in written
    assert "zoreward tune accuracy --output run --resume" in written


def test_a_run_of_the_first_release(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = [(0.5, 0.25), (0.5, 0.5), (math.nan, 0.5), (0.25, 0.75)]
    run = crafted(tmp_path / "run", OLD, scores, {0: 0.5, 2: 0.75, 4: 0.625})
    assert main(["report", str(run), "--json"]) == 0
    [summary] = json.loads(capsys.readouterr().out)["runs"]
    assert {name: summary[name] for name in ("first", "score", "best_step", "silent", "passes", "rewinds")} == {
        "first": 0.5, "score": 0.75, "best_step": 2, "silent": 2, "passes": 8, "rewinds": 0,
    }  # fmt: skip
    assert summary["standard_error"] is None and summary["seconds"] is None
    rows = Page(run / "report.html").rows
    assert ["2", "0.75", "–"] in rows and ["4", "0.625", "–"] in rows


@pytest.mark.parametrize(
    ("scores", "silent"),
    [
        ([(0.5, 0.5, 0.25, 0.25), (0.5, 0.5, 0.25, 0.5), (0.5, 0.25, 0.5, 0.25)], 1),  # pairs that tie one by one
        ([(math.nan, 0.5, 0.25, 0.5), (0.5,) * 4], 2),
    ],
)
def test_silent_steps_are_those_whose_pairs_all_tie(
    scores: list[tuple[float, ...]], silent: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = crafted(tmp_path / "run", OLD, scores, {})
    assert main(["report", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["silent"] == silent


def test_rewinds_are_told(tmp_path: Path) -> None:
    with Journal(tmp_path / "run", OLD) as journal:
        journal.append_evaluation(0, 0.5, groups=[0.25, 0.5, 0.75])
        for place in range(6):
            journal.append(step(place, (0.5, 0.25)))
            if place % 2:
                journal.append_evaluation(place + 1, (0.7, 0.1, 0.8)[place // 2])
            if place == 3:
                journal.append_rewind(Rewind(4, 2, 1 / 3))
    assert main(["report", str(tmp_path / "run")]) == 0
    page = Page(tmp_path / "run" / "report.html")
    assert "after step 4 back to 2, on with 0.333 times the learning rate" in page.written
    classes = [attributes.get("class") or "" for tag, attributes in page.tags if tag == "path"]
    assert classes.count("rewind") == 1
    assert classes.count("dot c0") == 3 and classes.count("dot c0 back") == 1  # of four scores one was taken back
    # The jackknife: groups of ¼, ½, ¾ have a standard deviation of ¼, and a mean of three of them ¼/√3.
    assert ["0", "0.5", number(0.25 / math.sqrt(3))] in page.rows


def test_runs_beside_each_other(at_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slow = {**OLD, "method": {**OLD["method"], "lr": 0.001}, "config": {**OLD["config"], "learning_rate": 0.001}}
    one = crafted(tmp_path / "one", OLD, [(0.5, 0.25)] * 4, {0: 0.5, 4: 0.75})
    two = crafted(tmp_path / "two", slow, [(0.5, 0.25)] * 4, {0: 0.5, 4: 0.625})
    page = tmp_path / "page.html"
    assert main(["report", str(one), str(two), "--output", str(page), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["page"] == str(page) and [run["score"] for run in printed["runs"]] == [0.75, 0.625]
    rows = Page(page).rows
    assert ["one", "4", "0.5", "0.75"] in [row[:4] for row in rows] and ["two", "4", "0.5", "0.625"] in [
        row[:4] for row in rows
    ]
    assert ["learning_rate", "–", "0.001"] in rows
    assert not [row for row in rows if row[0] in ("seed", "template", "method: seed")]  # in which they do not differ
    assert measured_widths([page], tmp_path) == []

    assert main(["report", str(one), str(two), "--output", str(page)]) == 0  # its own page is replaced
    page.write_text("mine")
    assert main(["report", str(one), str(two), "--output", str(page)]) == 2
    assert "is no page of zoreward's" in capsys.readouterr().err and page.read_text() == "mine"
    assert main(["report", str(one), f"{one}/", "--output", str(tmp_path / "other.html")]) == 2
    assert "is given twice" in capsys.readouterr().err and not (tmp_path / "other.html").exists()
    assert main(["report", str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def _raises(*_: Any) -> None:
    raise RuntimeError("no page today")


def _pipe(run: Path) -> None:
    run.mkdir()
    os.mkfifo(run / "notes.jsonl")


BROKEN: dict[str, tuple[Callable[[pytest.MonkeyPatch, Path], None], str]] = {
    "a bug": (lambda patch, run: patch.setattr("zoreward.report.page.body_of", _raises), "no page today"),
    "a folder": (lambda patch, run: (run / "report.html").mkdir(parents=True), "report.html"),
    "another's": (
        lambda patch, run: (run.mkdir(), (run / "report.html").write_text("mine")),
        "no page of zoreward's",
    ),
    "a pipe": (lambda patch, run: _pipe(run), ""),
}


@pytest.mark.parametrize("how", BROKEN)
def test_no_page_costs_a_run(
    how: str, at_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = at_home / f"broken {how}"
    breaks, told = BROKEN[how]
    breaks(monkeypatch, run)
    words = ["tune", "accuracy", *TUNE, *PROMPT, "--steps", "2", "--lr", "1e-3", "--eps", "1e-2", "--output", str(run)]
    assert main(words) == 0
    err = capsys.readouterr().err
    assert told in err and ("The page of the run could not be written" in err) == bool(told)
    assert (run / "model" / "model.safetensors").is_file() and load_run(run).n_steps == 2


def test_a_page_waits_for_no_torch(home: Path) -> None:
    script = """
import sys
from zoreward.cli import main
assert main(["report", "choices"]) == 0
heavy = {"torch", "numpy", "transformers", "sklearn", "datasets", "pyarrow", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
"""
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", script], env=environment, cwd=home, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def measured_widths(pages: list[Path], folder: Path) -> list[Any]:
    """What is wider than a page, on a screen and on a phone."""
    found = measured([(page, width) for page in pages for width in (1200, 390)], folder)
    assert [one["width"] for one in found] == [1200, 390] * len(pages)
    assert all(one["scrolls"] <= one["width"] and one["letters"] >= 11 for one in found), found
    assert all(one["height"] > 300 for one in found)
    return [one["wide"] for one in found if one["wide"]]


def test_nothing_is_wider_than_the_page(home: Path, tmp_path: Path) -> None:
    assert measured_widths([home / "choices" / "report.html", home / "texts" / "report.html"], tmp_path) == []
    (wide := tmp_path / "wide.html").write_text("<!doctype html><p style='width:800px'>wide</p>")
    [on_a_phone] = measured([(wide, 390)], tmp_path)  # so that the test is known to see it
    assert on_a_phone["scrolls"] > 390 and len(on_a_phone["wide"]) == 1
