"""What is printed and comes from elsewhere is shown to the terminal, never obeyed by it; JSON stands alone."""

from __future__ import annotations

import io
import json
import logging
import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from bad_lines import write_rows
from screens import COLOURS, shown
from test_cli import EVAL, TUNE, folder, last_object  # noqa: F401  (a fixture)
from whole_models import classifier, word_tokenizer
from zoreward.cli import main
from zoreward.cli.printing import json_line, printable_warnings, show_table
from zoreward.records import Completion, Example, Writing, one_line, printable

pytestmark = pytest.mark.usefixtures("commands_are_kept", "trials_are_kept")

RED, TITLE, BACK = "\x1b[31mred", "\x1b]0;owned\x07", "good\x08\x08\x08\x08bad "
HOSTILE = f"{RED} {TITLE} {BACK}\x9b1m \u202etxt [/red] [bold]"
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (RED, r"\x1b[31mred"),
        (TITLE, r"\x1b]0;owned\x07"),
        ("a\rb\x08c\x7fd", r"a\rb\x08c\x7fd"),
        ("\x9b1m\x85", r"\x9b1m\x85"),
        ("a\u202eb\u2066c\u200ed", r"a\u202eb\u2066c\u200ed"),
        ("half \ud83d of one", r"half \ud83d of one"),
        ("a\0b\u2028c", r"a\x00b\u2028c"),
    ],
)
def test_what_a_terminal_obeys_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
    shown.encode("utf-8")


@pytest.mark.parametrize("text", ["", "a\tb\nc", "naïve – 你好", "👩‍👩‍👧 family", "שלום עולם", "[/red] \\[x] `$(x)`"])
def test_texts_of_all_languages_stay(text: str) -> None:
    assert printable(text) == text


def test_an_error_is_one_line_of_bounded_length() -> None:
    assert one_line(f"{RED}\nsecond\x85third\x0bfourth") == r"\x1b[31mred second third fourth"
    assert len(one_line("x" * 10_000_000)) < 2000


@pytest.mark.parametrize(
    ("value", "back"),
    [
        ({"a": HOSTILE, "b": "half \ud83d", "é": [1.5, True, None]}, None),
        ({"score": float("nan"), "all": [float("inf"), -float("inf"), 0.5]}, {"score": None, "all": [None, None, 0.5]}),
        ({"path": Path("x")}, {"path": "x"}),
    ],
)
def test_json_is_valid_and_harmless(value: dict, back: dict | None) -> None:
    line = json_line(value)
    assert not OBEYED.search(line) and "\n" not in line
    assert json.loads(line, parse_constant=lambda name: pytest.fail(name)) == (back or value)


def test_warnings_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging as their_logging

    handler = logging.StreamHandler(screen := io.StringIO())
    their_logging.add_handler(handler)
    their_logging.set_verbosity_warning()  # another test may have left another
    try:
        with printable_warnings():
            logging.getLogger("zoreward.somewhere").warning("a %s\nof two lines", HOSTILE)
            their_logging.get_logger("transformers.somewhere").warning("a model of type %s", RED)
    finally:
        their_logging.remove_handler(handler)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(r"a \x1b[31mred") and lines[0].endswith("of two lines")
    assert not OBEYED.search(lines[0])
    assert screen.getvalue() == "a model of type \\x1b[31mred\n"
    logging.getLogger("zoreward.somewhere").warning("said once, by Python itself")
    assert "\x1b" not in capsys.readouterr().err


ODD = '''
import enum
from typing import Literal

from zoreward import objective

class Kind(enum.Enum):
    A = "[/red]"
    B = "plain"

class Worse(enum.Enum):
    A = "\\x1b[31ma"

@objective("acc[/red]")
def marked(predictions, *, mode: Literal["[/bold]", "x"] = "[/bold]", bad: Literal["\\x1b[1m", "b"] = "b",
           text: str = "[/dim] \\x1b[2m", kind: Kind = Kind.A, worse: Worse = Worse.A) -> float:
    """Help with [/red] and \\\\[/x] and [bold] and \\x1b[31m escape, at the end \\\\

    Args:
        mode: one of [/these] or \\\\[/those]
        text: any \\x1b[31m text \\\\
        kind: it
    """
    return 0.5

def raises(predictions):
    raise ValueError("\\x1b[31mred [/x] " + "long " * 100_000)

def logs(completions, log_extra=None, log_metric=None, **columns):
    log_extra("\\x1b[32mcolumn[/red]", ["\\x1b[33m[/x]"] * len(completions))
    log_metric("metric[/red]\\x1b[1m", 1.0)
    return [0.5] * len(completions)
'''


@pytest.fixture
def odd(folder: Path) -> Path:  # noqa: F811
    (folder / "odd.py").write_text(ODD)
    rows = [{"sentence": f"a good {HOSTILE}", "label": 1, "prompt": HOSTILE}, {"sentence": "a bad film", "label": 0}]
    write_rows(folder / "odd.jsonl", [rows[0], {**rows[1], "prompt": "a film"}])
    return folder


def test_help_with_markup_is_help(odd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("tune", "eval"):
        assert main([verb, "./odd.py:marked", "--help"]) == 0
        text = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert not OBEYED.search(text)
        assert r"Help with [/red] and \[/x] and [bold] and \x1b[31m escape" in text
        assert r"one of [/these] or \[/those]" in text
        assert "--kind" in text and "--worse" not in text and "--bad" not in text


def test_names_of_strangers_packages_are_shown(
    odd: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    info = odd / "odd-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: od[/red]d\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[zoreward.objectives]\nx[/red] = odd:marked\n\x1b[31my = odd:marked\n")
    monkeypatch.syspath_prepend(odd)
    for words in (["tune", "--help"], ["objectives"]):
        assert main(words) == 0
        text = capsys.readouterr().out
        assert not OBEYED.search(text)
        assert "x[/red]" in text and r"\x1b[31my" in text and "od[/red]d" in text
    assert main(["objectives", "--json"]) == 0
    out = capsys.readouterr().out
    assert not OBEYED.search(out.rstrip("\n"))
    assert {"x[/red]", RED[:5] + "y"} <= {row["name"] for row in json.loads(out)["objectives"]}


def test_prompts_to_look_at_are_shown(odd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["eval", "accuracy", *EVAL, "--data", "odd.jsonl", "--show-prompts"]
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert not OBEYED.search(out) and r"a good \x1b[31mred \x1b]0;owned\x07" in out
    assert err == ""
    assert main([*words, "--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and not OBEYED.search(out.rstrip("\n"))
    assert f"a good {RED}" in json.loads(out)["prompts"]


@pytest.mark.parametrize("verb", ["eval", "tune"])
def test_an_error_of_a_reward_is_shown(verb: str, odd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "./odd.py:raises", *(EVAL if verb == "eval" else TUNE)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: objective 'raises' raised ValueError: \\x1b[31mred [/x] long")
    assert not OBEYED.search(err) and len(err) < 3000


def test_names_in_a_table_of_scores_are_shown(
    odd: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    words = ["--also", "./odd.py:marked", "--data", "odd.jsonl"]
    assert main(["eval", "accuracy", *EVAL, *words]) == 0
    out = capsys.readouterr().out
    assert "acc[/red]" in out and "parts" not in out and not OBEYED.search(out)


def test_metrics_and_columns_that_a_reward_logs_are_shown(odd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "model", "--data", "odd.jsonl", "--max-new-tokens", "2"]
    assert main(["eval", "./odd.py:logs", *words]) == 0
    assert not OBEYED.search(capsys.readouterr().out)
    words += ["--eval-data", "odd.jsonl", "--steps", "1", "--num-directions", "1", "--output", "run", "--json"]
    assert main(["tune", "./odd.py:logs", *words]) == 0
    out, err = capsys.readouterr()
    assert not OBEYED.search(err) and r"\x1b[32mcolumn[/red]" in err
    assert not OBEYED.search(out.rstrip("\n"))
    assert out.count("\n") == 1 and last_object(out)["objective"] == "logs"


def test_what_cannot_be_shown_does_not_end_the_run() -> None:
    from rich.console import Console

    from zoreward.cli.progress import ProgressCallback

    class Shy:
        def __str__(self) -> str:
            raise RuntimeError("no picture")

    rows = [Example({}, "a prompt", (), 0, (1,), ())]
    written = Writing(0.5, {"one": 0.5}, (Completion("text", (1,), True),), {"one": (0.5,)}, {"extra": [Shy()]})
    trainer = SimpleNamespace(
        args=SimpleNamespace(max_steps=8, completions_every=1),
        method_state=SimpleNamespace(silent=0, step=0, unscored=0),
        last_step=None,
        last_rows=rows,
        last_scored=[written],
        keeper=SimpleNamespace(seconds_left=math.inf),
    )
    screen = io.StringIO()
    callback = ProgressCallback(trainer, Console(file=screen, width=150))
    state = SimpleNamespace(global_step=1, max_steps=8)
    callback.on_step_begin(None, state, None)
    callback.on_step_end(None, state, None)
    assert "<Shy>" in screen.getvalue(), "its type stands for what has no text"


def test_names_of_a_models_classes_are_shown(odd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classifier("bert", names=(RED, "good[/red]")).save_pretrained(odd / "classes")
    word_tokenizer().save_pretrained(odd / "classes")
    words = ["--model", "classes", "--data", "train.jsonl", "--template", "{sentence}", "--output", "run"]
    assert main(["tune", "accuracy", *words, "--steps", "1"]) == 0
    err = capsys.readouterr().err
    assert r"a classifier of \x1b[31mred, good[/red]" in err and not OBEYED.search(err)


def test_a_run_of_a_stranger_is_shown(odd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (odd / "theirs").mkdir()
    (odd / "theirs" / "journal.jsonl").write_text('{"kind": "\x1b[31mred"}\n')
    assert main(["replay", "theirs", "--json"]) == 2
    assert main(["replay", "theirs\x1b[31m", "--json"]) == 2
    assert not OBEYED.search(capsys.readouterr().err)


def test_a_table_of_one_row_that_is_too_wide_stands_on_end() -> None:
    heads = ["objective", "score", "metric/share improved", "metric/logprob chosen", "rows", "standard_error"]
    row = ["preference", "0.5123 ± 0.0123", "0.5312", "-143.1234", "1,000", "0.0123"]
    for width in (80, 120):
        show_table(heads, [row], console=Console(file=(screen := io.StringIO()), width=width))
        lines = screen.getvalue().splitlines()
        assert "…" not in screen.getvalue() and max(map(len, lines)) <= width
        together = [line for line in lines if all(cell in line for cell in row)]
        pairs = [line.split("  ", 1) for line in map(str.strip, lines) if line.strip()]
        if width == 120:
            assert len(together) == 1
        else:
            assert [[cell.strip() for cell in pair] for pair in pairs] == [
                list(p) for p in zip(heads, row, strict=True)
            ]


LINE = {"task": "sst2", "metric": "accuracy", "method": "mezo", "setting": "lr 0.008 to 0.01 (found), step 16 of 30"}
LINE |= {
    "test": 0.91,
    "dev": 0.92,
    "majority": 0.5,
    "train_rows": 1000,
    "dev_rows": 500,
    "test_rows": 872,
    "shown": 64_000,
    "seconds": 40.5,
}


def test_a_table_of_bench_fits_a_terminal_and_is_markdown_in_a_file() -> None:
    from zoreward.bench.table import COLUMNS, as_markdown, fitting

    lines = [LINE, {**LINE, "method": "zero-shot", "setting": ""}]
    for width, gone in ((80, {"train/dev/test"}), (160, set())):
        heads, rows = fitting(lines, width)
        screen = io.StringIO()
        show_table(heads, rows, console=Console(file=screen, width=width))
        shown = screen.getvalue()
        assert "…" not in shown and max(map(len, shown.splitlines())) <= width
        assert gone & set(heads) == set() and {"method", "setting", "test", "dev"} <= set(heads)
        assert {"±", "peak memory"}.isdisjoint(heads)  # nobody has one
    assert as_markdown(lines).count("|") == (len(COLUMNS) + 1) * 4


@pytest.mark.slow
@pytest.mark.parametrize("width", [80, 120])
def test_a_run_fits_a_terminal(width: int, folder: Path) -> None:  # noqa: F811
    lines = [COLOURS.sub("", line) for line in shown(["tune", "accuracy", *TUNE, "--steps", "12"], width, folder)]

    [bar] = [line for line in lines if "━" in line]
    assert len(bar) <= width and bar.startswith("step 12/12 ━") and bar.endswith("left")
