"""Contract under test: a person is shown two texts and asked; answers are kept as rows, are not asked for again, and
give the same weights again; ten of them move a small model the right way."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from zoreward.cli import main
from zoreward.data import load_rows, write_rows
from zoreward.journal import load_run
from zoreward.scoring import load_model, load_tokenizer

pytestmark = pytest.mark.usefixtures("commands_are_kept", "trials_are_kept")

PROMPTS = ["a film", "the film was", "it is a", "this plot"]
LIKED = {"good", "great", "lovely", "bright"}
ASKED = "q to stop asking: "
TUNING = ["--steps", "2", "--num-directions", "8", "--max-new-tokens", "6", "--device", "cpu"]


def liked(text: str) -> int:
    return sum(word in LIKED for word in text.split())


@pytest.fixture
def line(tiny_model_dir: Path, tmp_path: Path) -> list[str]:
    write_rows(tmp_path / "prompts.jsonl", [{"prompt": prompt} for prompt in PROMPTS])
    rows = ["--data", str(tmp_path / "prompts.jsonl"), "--answers", str(tmp_path / "answers.jsonl")]
    return ["tune", "human", "--model", str(tiny_model_dir), *rows, *TUNING]


def said(monkeypatch: pytest.MonkeyPatch, *answers: str) -> io.StringIO:
    spoken = io.StringIO("".join(f"{answer}\n" for answer in answers))
    monkeypatch.setattr(sys, "stdin", spoken)
    return spoken


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_model(str(folder / "model"), dtype="float32").named_parameters())


def test_answers_are_kept_and_tuned_on_and_give_the_same_weights_again(
    line: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said(monkeypatch, "1", "what?", "2", "=", "1")
    assert main([*line, "--questions", "3", "--output", str(tmp_path / "run")]) == 0

    shown = capsys.readouterr().err
    assert shown.count(ASKED) == 5 and "[3 of 3]" in shown and "[4 of 3]" not in shown
    kept = load_rows(tmp_path / "answers.jsonl")
    assert [row["prompt"] for row in kept] == [PROMPTS[0], PROMPTS[1], PROMPTS[3]]  # none was better behind the third
    blocks = shown.split(ASKED)
    for block, row, better in ((blocks[0], kept[0], 1), (blocks[1], kept[1], 2), (blocks[4], kept[2], 1)):
        texts = [own.strip() for own in (row["chosen"], row["rejected"])]
        first, second = texts if better == 1 else texts[::-1]
        assert f"  1: {first}\n" in block and f"  2: {second}\n" in block

    # The rows by themselves, and the same command, which asks nothing.
    nothing = said(monkeypatch)
    rows = ["--data", str(tmp_path / "answers.jsonl")]
    model = line[line.index("--model") : line.index("--data")]
    assert main(["tune", "preference", *model, *rows, *TUNING, "--output", str(tmp_path / "again")]) == 0
    assert main([*line, "--questions", "3", "--output", str(tmp_path / "same")]) == 0
    assert nothing.tell() == 0 and ASKED not in capsys.readouterr().err
    then = weights(tmp_path / "run")
    for other in ("again", "same"):
        assert all(torch.equal(weight, then[name]) for name, weight in weights(tmp_path / other).items())
        assert [step.update for step in load_run(tmp_path / other).records()] == [
            step.update for step in load_run(tmp_path / "run").records()
        ]
    assert load_run(tmp_path / "run").has_moved_by(2)


def test_more_questions_are_asked_later_and_who_stops_keeps_what_there_is(
    line: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said(monkeypatch, "1", "q")
    assert main([*line, "--questions", "5", "--output", str(tmp_path / "one")]) == 0
    answers = tmp_path / "answers.jsonl"
    first = load_rows(answers)
    answers.write_bytes(answers.read_bytes().rstrip(b"\n"))  # as some editors leave it
    said(monkeypatch, "2")  # and then the pipe ends
    assert main([*line, "--questions", "5", "--output", str(tmp_path / "two")]) == 0

    # A run's config.yaml has its answers as data.
    assert main([*line, "--data", str(answers), "--questions", "5", "--output", str(tmp_path / "three")]) == 2
    kept = load_rows(answers)
    assert len(first) == 1 and len(kept) == 2 and kept[0] == first[0] and kept[1]["prompt"] == PROMPTS[1]
    told = capsys.readouterr().err
    assert "[2 of 5]" in told and "has the answers, and no prompts to ask about" in told


@pytest.mark.slow
def test_ten_answers_through_a_pipe_move_the_model_the_right_way(line: list[str], tmp_path: Path) -> None:
    """Somebody who likes four words, at the other end of two pipes."""
    where = [
        *line,
        "--output",
        str(tmp_path / "run"),
        "--steps",
        "24",
        "--num-directions",
        "16",
        "--lr",
        "0.04",
        "--json",
    ]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-m", "zoreward", *where], text=True, bufsize=1, **pipes) as person:
        assert person.stdin is not None and person.stderr is not None and person.stdout is not None
        seen, answers = "", 0
        while letter := person.stderr.read(1):
            seen += letter
            if seen.endswith(ASKED):
                one, two = (liked(part) for part in seen.rpartition("  1: ")[2].split("  2: "))
                answers += one != two
                person.stdin.write("=\n" if one == two else "1\n" if one > two else "2\n")
                seen = ""
        assert json.loads(person.stdout.read())["steps"] == 24, seen
    assert person.returncode == 0 and answers == 10
    rows = load_rows(tmp_path / "answers.jsonl")
    assert len(rows) == 10 and all(liked(row["chosen"]) > liked(row["rejected"]) for row in rows)

    before, after = mass(line[line.index("--model") + 1]), mass(str(tmp_path / "run" / "model"))
    assert after > 1.25 * before, (before, after)


def mass(folder: str) -> float:
    """How likely a model finds the four words, behind prompts and behind any word after these."""
    model, tokenizer = load_model(folder, dtype="float32").eval(), load_tokenizer(folder)
    words = tokenizer.convert_tokens_to_ids(sorted(LIKED))
    begun = [torch.tensor([[*tokenizer(prompt)["input_ids"], word]]) for prompt in PROMPTS for word in range(3, 23)]
    with torch.no_grad():
        return float(
            torch.stack([model(ids).logits[0, -2:].softmax(-1)[:, words].sum(-1).mean() for ids in begun]).mean()
        )


@pytest.mark.parametrize(
    ("more", "spoken", "told"),
    [
        (("--answers", "answers.txt"), "", "is no .jsonl file"),
        (("--questions", "0"), "", "questions must be at least 1"),
        ((), "q", "there is no answer to tune on"),
        ((), "", "there is no answer to tune on"),
        (("--dry-run",), "", "there is no answer to tune on"),
        (("--task", "sst2"), "", "a task has answers"),
        (("--answers", "PROMPTS"), "", "row 1 has no prompt, chosen and rejected"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_nothing_written(
    more: tuple[str, ...], spoken: str, told: str, line: list[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    said(monkeypatch, *([spoken] if spoken else []))
    words = [str(tmp_path / "prompts.jsonl") if word == "PROMPTS" else word for word in more]
    assert main([*line, "--output", str(tmp_path / "run"), *words]) == 2
    errors = [one for one in capsys.readouterr().err.splitlines() if one.startswith("error:")]
    assert len(errors) == 1 and told in errors[0]
    assert not (tmp_path / "run").exists() and not (tmp_path / "answers.jsonl").exists()


def test_without_a_file_for_the_answers_nothing_is_asked(
    line: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said(monkeypatch, "1")
    at = line.index("--answers")
    assert main([*line[:at], *line[at + 2 :]]) == 2
    assert "--answers does not say where" in capsys.readouterr().err


def test_a_model_that_writes_one_text_alone_is_told(
    line: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said(monkeypatch, "1")
    assert main([*line, "--temperature", "0", "--output", str(tmp_path / "run")]) == 2
    assert "the model wrote the same text twice, 20 times in a row" in capsys.readouterr().err
