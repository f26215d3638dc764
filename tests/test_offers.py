"""The command that an error offers: made of one's own columns and labels, and one that fits the rows."""

from __future__ import annotations

import csv
import re
import shlex
from pathlib import Path

import pytest

from whole_models import classifier, masked_model, word_tokenizer
from zoreward.cli import main
from zoreward.records import ObjectiveError
from zoreward.scoring import evaluate
from zoreward.trainer import ZOConfig, ZOTrainer

TEXTS = ["a good film it was", "the bad film is not good", "an awful dull plot", "a bright and lovely plot"]


@pytest.fixture
def home(tmp_path: Path, tiny_model_dir: Path, commands_are_kept: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "M").symlink_to(tiny_model_dir)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(path: Path, header: str, *rows: list[str]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header.split(","), *rows])


def error_and_offer(line: str, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    assert main(shlex.split(line)) == 2
    *_, error, hint = capsys.readouterr().err.splitlines()
    return error, hint.removeprefix("hint: ")


ROWS = [[str(i), text, ["bad", "good", "not"][i % 3]] for i, text in enumerate(TEXTS)]
NUMBERS = [[str(i), text, str(i % 2)] for i, text in enumerate(TEXTS)]
FROM_ONE = [[str(i), text, str(1 + i % 2)] for i, text in enumerate(TEXTS)]
FROM_SEVEN = [[str(i), text, ["7", "9", "10"][i % 3]] for i, text in enumerate(TEXTS)]
CHOICES = "--choice ' bad' --choice ' good' --choice ' not'"


@pytest.mark.parametrize(
    ("header", "rows", "typed", "offered"),
    [
        ("id,message,label", ROWS, "", rf"--template '{{message}}\nlabel:' {CHOICES}"),
        ("id,message,Category", ROWS, "", rf"--template '{{message}}\nCategory:' {CHOICES} --label Category"),
        ("id,my text,label", ROWS, "", rf"--template '{{my text}}\nlabel:' {CHOICES}"),
        ("id,message,label", ROWS, "--template '{message} is'", f"--template '{{message}} is' {CHOICES}"),
        ("id,message,label", ROWS, "--template '{text} is' --choice ' bad' --choice ' good'",
         f"--template '{{message}} is' {CHOICES}"),
        ("id,message,label", ROWS, "--template '{message} is' --choice ' bad' --choice=' good'",
         f"--template '{{message}} is' {CHOICES}"),
        ("id,message,label", FROM_ONE, "--template '{message} is' --choice ' bad' --choice ' good'",
         "--template '{message} is' --choice '1= bad' --choice '2= good'"),
        ("id,message,label", FROM_SEVEN, "--template '{message} is' --choice ' bad' --choice ' good' --choice ' not'",
         "--template '{message} is' --choice '7= bad' --choice '9= good' --choice '10= not'"),
        ("id,message,label", NUMBERS, "", r"--template '{message}\nlabel:' --choice '0= 0' --choice '1= 1'"),
        ("ticket,message,label", ROWS, "--template '{text} is'", f"--template '{{message}} is' {CHOICES}"),
        ("id,message,label", ROWS, "--template '{mesage} is'", f"--template '{{message}} is' {CHOICES}"),
    ],
    ids=["nothing", "another label", "a column with a space", "template", "all but the words", "choice", "from 1",
         "from 7", "numbers", "a number whose name is like text", "misspelled"],
)  # fmt: skip
def test_the_command_has_what_is_missing_and_keeps_the_rest(
    header: str, rows: list[list[str]], typed: str, offered: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(home / "rows.csv", header, *rows)

    error, command = error_and_offer(f"eval accuracy --model M --data rows.csv {typed}", capsys)

    assert f"the columns are {header.replace(',', ', ')}" in error
    shown = sorted({row[2] for row in rows}, key=lambda label: (len(label) if label.isdecimal() else 0, label))
    assert f"{header.split(',')[2]!r} holds {', '.join(shown)}" in error
    words = shlex.split(command)
    assert words[:7] == ["zoreward", *shlex.split("eval accuracy --model M --data rows.csv")]
    assert sorted(zip(words[7::2], words[8::2], strict=True)) == sorted(
        zip(*[iter(shlex.split(offered))] * 2, strict=True)
    )
    if rows is not NUMBERS:  # which this tokenizer does not know
        assert main([*words[1:], "--show-prompts"]) == 0


@pytest.mark.parametrize(
    ("label", "told"),
    [
        ("", "error: rows.csv, line 33 has an empty 'label' (id '31', message 'a good film it was')"),
        ("goood", "error: rows.csv, line 33: the label 'goood' belongs to none of the 2 choices (id '31', message"),
    ],
)
def test_a_slip_in_one_label_makes_no_class(
    label: str, told: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [[str(i), TEXTS[i % 4], ["bad", "good"][i % 2]] for i in range(31)]
    written(home / "rows.csv", "id,message,label", *rows, ["31", TEXTS[0], label])
    typed = "--template '{message} is' --choice ' bad' --choice ' good'"
    error, hint = error_and_offer(f"eval accuracy --model M --data rows.csv {typed}", capsys)
    assert error.startswith(told) and hint in (
        "fill it in, or leave the row out", "did you mean 'good'? mend the row, or leave it out",
    )  # fmt: skip


@pytest.mark.parametrize("typed", ["", "--head classifier --template '{message} is'"], ids=["nothing", "new head"])
def test_a_slip_is_not_offered_as_a_class(typed: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [[str(i), TEXTS[i % 4], ["bad", "good"][i % 2]] for i in range(31)]
    written(home / "rows.csv", "id,message,label", *rows, ["31", TEXTS[0], "goood"])
    error, hint = error_and_offer(f"tune accuracy --model M --data rows.csv {typed}", capsys)
    assert error.startswith("error: rows.csv, line 33: the label 'goood' is almost 'good', which 15 rows have (id '31'")
    assert hint.startswith("mend the row, or leave it out")


@pytest.mark.parametrize("typed", ["--dev-rows 12", "--limit 36 --dev-rows 4", "--train-rows 20 --test-rows 9"])
def test_an_error_names_the_line_of_the_file_whatever_rows_are_held_out(
    typed: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [[str(i), TEXTS[i % 4], ["bad", "good"][i % 2] if i % 9 else ["dull", "so so"][i % 2]] for i in range(40)]
    written(home / "rows.csv", "id,message,label", *rows)
    choices = "--template '{message} is' --choice ' bad' --choice ' good'"
    error, _ = error_and_offer(f"tune accuracy --model M --data rows.csv {choices} {typed}", capsys)
    named = int(re.match(r"error: rows.csv, line (\d+): the label", error)[1])
    assert (home / "rows.csv").read_text().splitlines()[named - 1].rpartition(",")[2] in ("dull", "so so")


def test_a_run_in_the_place_of_its_model_is_told_where_that_is(
    home: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(home / "rows.csv", "id,message,label", *ROWS)
    (home / "run").mkdir()
    (home / "run" / "model").symlink_to(tiny_model_dir)
    error, hint = error_and_offer("eval accuracy --model run --data rows.csv", capsys)
    assert "'run' is no model" in error and "A run's model is in its folder: 'run/model'" in hint


@pytest.mark.parametrize(
    ("typed", "advice"),
    [
        ("--template '{a|strap} is' --choice ' bad' --choice ' good'", "did you mean strip?"),
        ("--template '{message}[MASK]' --choice ' bad' --choice ' good'", "leave [MASK] out"),
        ("--template '{message} is' --choice '0= bad' --choice '7= good'", "labels in the rows"),
        ("--template '{message} is' --choice ' bad'", "--choice once for each"),
    ],
)
def test_what_was_meant_otherwise_is_not_overwritten(
    typed: str, advice: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(home / "rows.csv", "id,message,label", *NUMBERS)

    assert advice in error_and_offer(f"eval accuracy --model M --data rows.csv {typed}", capsys)[1]


def test_nothing_is_offered_that_would_not_do(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(home / "rows.csv", "message,mark", *([text, str(n)] for n, text in enumerate(TEXTS)))

    assert error_and_offer("eval accuracy --model M --data rows.csv", capsys)[1].startswith("give --template")


@pytest.mark.parametrize("kind", ["masked", "classifier", "new head"])
def test_models_that_read_a_whole_text_are_offered_what_they_take(
    kind: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(home / "rows.csv", "id,message,Topic", *ROWS)
    model = classifier("bert", names=("bad", "good", "not")) if kind == "classifier" else masked_model("bert")
    model.save_pretrained(home / "B")
    word_tokenizer().save_pretrained(home / "B")
    head = "--head classifier" if kind == "new head" else ""
    offered = rf"--template '{{message}}\nTopic: [MASK]' {CHOICES}" if kind == "masked" else "--template '{message}'"

    error, command = error_and_offer(f"tune accuracy --model B --data rows.csv {head}".strip(), capsys)

    assert "'Topic' holds bad, good, not" in error
    assert command == f"zoreward tune accuracy --model B --data rows.csv {head} {offered} --label Topic".replace(
        "  ", " "
    )
    assert main([*shlex.split(command)[1:], "--dry-run"]) == 0


def test_two_text_columns_are_both_in_the_prompt(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(
        home / "rows.csv", "title,message,label", *([text, text, row[2]] for text, row in zip(TEXTS, ROWS, strict=True))
    )

    _, command = error_and_offer("tune accuracy --model M --data rows.csv", capsys)

    assert r"--template '{title}\n{message}\nlabel:'" in command


@pytest.mark.parametrize("verb", ["tune", "eval"])
def test_f1_of_one_choice_is_refused_for_three_with_the_average_to_take(
    verb: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(home / "rows.csv", "id,message,label", *ROWS)
    line = rf"{verb} f1 --model M --data rows.csv --template '{{message}}\nlabel:' {CHOICES}"
    error, command = error_and_offer(line, capsys)

    assert "for two choices, not 3" in error
    assert command == f"zoreward {line} --average macro"


@pytest.mark.parametrize("name", ["f1-macro", "macro-f1", "f1_macro", "F1-macro", "macro_f1_score"])
def test_an_objective_and_its_option_may_be_one_word(name: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(home / "rows.csv", "id,message,label", *ROWS)

    code = main([*shlex.split(f"eval {name} --model M --data rows.csv --template {{message}} {CHOICES}"), "--json"])

    out, err = capsys.readouterr()
    assert (code, err) == (0, f"{name} is f1 --average macro\n")
    assert '"objective": "f1"' in out


def test_backslash_and_n_are_a_line_break_where_they_are_typed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(home / "rows.csv", "id,message,label", *ROWS)
    (home / "options.yaml").write_text("template: '{message}\\n is'\n")
    line = f"eval accuracy --model M --data rows.csv {CHOICES} --show-prompts"

    shown = []
    for template in (r"--template '{message}\n is'", r"--template '{message}\\n is'", "--config options.yaml"):
        assert main(shlex.split(f"{line} {template}")) == 0
        shown.append(capsys.readouterr().out.split("answers:")[0])

    assert "a good film it was\n     is" in shown[0]
    assert r"a good film it was\n is" in shown[1]
    assert r"a good film it was\n is" in shown[2]


def test_without_output_each_run_has_a_new_folder_of_its_objective_and_a_resume_the_last(
    home: Path, capsys: pytest.CaptureFixture[str], trials_are_kept: None
) -> None:
    written(home / "rows.csv", "id,message,label", *ROWS)
    how = f"--model M --data rows.csv --template {{message}} {CHOICES} --steps 1 --lr 1e-3"
    line = f"tune neg-cross-entropy {how}"

    told = []
    for more in ("", "", "--resume", "--resume --steps 2"):
        assert main(shlex.split(f"{line} {more}")) == 0
        told.append(capsys.readouterr())

    folders = [next(name for name in ("cross-entropy-2", "cross-entropy/") if name in out) for out, _ in told]
    assert folders == ["cross-entropy/", "cross-entropy-2", "cross-entropy-2", "cross-entropy-2"]
    assert "the run in runs/neg-cross-entropy-2 is finished" in told[2].err
    error, hint = error_and_offer(f"{line} --output runs/neg-cross-entropy", capsys)
    assert "runs/neg-cross-entropy holds a run already" in error
    assert "--output runs/neg-cross-entropy-3" in hint


def test_the_number_of_choices_is_judged_before_a_model_is_loaded(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in Python, and where each row has choices of its own."""
    for module in ("scoring.evaluation", "trainer.ready"):
        monkeypatch.setattr(f"zoreward.{module}.load_model", None)  # whoever loads one fails
    rows = [{"text": "a film", "label": 0, "ends": ends} for ends in ([" good", " bad"], [" good", " bad", " dull"])]
    how = {"template": "{text} it was", "choice_column": "ends"}

    with pytest.raises(ObjectiveError, match="for two choices, not 3"):
        evaluate(str(tiny_model_dir), "f1", rows, **how)
    with pytest.raises(ObjectiveError, match="for two choices, not 3"):
        ZOTrainer(str(tiny_model_dir), objective="f1", train_dataset=rows, args=ZOConfig(**how, use_cpu=True))
