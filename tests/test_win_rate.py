"""Contract under test: how often one model's completions beat another's, by a judge of any kind."""

from __future__ import annotations

import gc
import json
import math
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from rendering import render, render_prompts
from test_preference_rows import (
    PAIRED,
    chat_tokenizer,
    doubled_prompts,
    hh,
    hh_conversations,
    kto,
    lines_are_told,  # noqa: F401  (a fixture)
    model_dir,  # noqa: F401  (a fixture)
    ultrafeedback,
    ultrafeedback_of_trl,
    with_tools,
)
from test_text_objectives import reward_dir  # noqa: F401  (a fixture)
from zoreward.cli import main
from zoreward.config import Prompting
from zoreward.data import with_prompts
from zoreward.members import update_
from zoreward.records import Completion, Example, ObjectiveError, Term, Update, ZorewardError
from zoreward.registry import get_objective
from zoreward.scoring import Generation, evaluate, load_model, wins
from zoreward.scoring.requests import score_writings
from zoreward.trainer import ZOConfig, ZOTrainer

pytestmark = pytest.mark.usefixtures("trials_are_kept")

COLLECT = gc.collect
# Each function is a judge; of "+" there are more in a better answer.
JUDGES = """
def plus(completions):
    return [text.count("+") for text in completions]

def better(prompts, completions_a, completions_b):
    assert len(prompts) == len(completions_a)
    return [(a.count("+") > b.count("+")) - (a.count("+") < b.count("+"))
            for a, b in zip(completions_a, completions_b)]

def first(prompts, completions_a, completions_b):
    return [1.0 for _ in prompts]

def longer(completions):
    return [len(text) if isinstance(text, str) else len(text[0]["content"]) for text in completions]

def longer_of_two(completions_a, completions_b):
    return [len(str(a)) > len(str(b)) for a, b in zip(completions_a, completions_b)]

def none(completions):
    return [None for _ in completions]

def one_for_all(completions):
    return 1.0

def seven(completions_a, completions_b):
    return [7 for _ in completions_a]

def fails(completions):
    raise ValueError("no more")
"""


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("judges") / "judges.py"
    path.write_text(JUDGES)
    return path


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wins, "DRAWS", 20)


def completion(text: str) -> Completion:
    return Completion(text, tuple(range(len(text) + 1)), True)


def judged(judge: Any, pairs: list[tuple[str, str]], prompts: list[str] | None = None, **columns: list) -> wins.WinRate:
    """What a judge makes of pairs of a completion and one of the base."""
    objective = get_objective("win-rate", judge=judge)
    examples = []
    for n, (_, other) in enumerate(pairs):
        prompt, row = prompts[n] if prompts else f"{n}?", {name: values[n] for name, values in columns.items()}
        examples.append(Example(row, prompt, (), 0, (1,), (), base_completion=completion(other)))
    [scored] = score_writings(objective, examples, [[completion(text) for text, _ in pairs]])
    return wins.wins_of(objective, examples, scored)


# Two wins, a loss, a tie between different answers, and two equal answers: (2 + 3 · ½) / 6.
PAIRS = [("++", "+"), ("+", "no"), ("", "+"), ("a+", "+b"), ("+", "+"), ("", "")]


@pytest.mark.parametrize("judge", ["plus", "better"])
def test_wins_and_ties_are_counted(judge, judges):
    found = judged(f"{judges}:{judge}", PAIRS)
    assert (found.win_rate, found.ties, found.equal) == (3.5 / 6, 0.5, 2)
    assert (found.rows, found.prompts, found.unjudged) == (6, 6, 0)
    assert (found.characters, found.base_characters) == (1.0, 7 / 6)
    assert found.agreed == (1.0 if judge == "better" else None)


def test_a_judge_that_always_prefers_a_place_says_nothing(judges):
    found = judged(f"{judges}:first", PAIRS)
    assert (found.win_rate, found.interval, found.ties, found.agreed) == (0.5, (0.5, 0.5), 1.0, 0.0)


def test_probabilities_are_averaged_over_both_orders():
    chances = {("x", "y"): 0.9, ("y", "x"): 0.3, ("x", "z"): 0.8, ("z", "x"): 0.6}  # the second pair: first is better

    def judge(completions_a, completions_b):
        return [chances[pair] for pair in zip(completions_a, completions_b, strict=True)]

    found = judged(judge, [("x", "y"), ("z", "x")])
    assert found.win_rate == pytest.approx(((0.9 + 0.7) / 2 + (0.6 + 0.2) / 2) / 2, abs=1e-12)
    assert found.agreed == 0.5


def test_of_signs_what_one_order_says_and_the_other_leaves_open_counts():
    signs = {("x", "y"): 1, ("y", "x"): 0, ("x", "z"): 0, ("z", "x"): 1, ("y", "z"): -1, ("z", "y"): -1}

    def judge(completions_a, completions_b):
        return [signs[pair] for pair in zip(completions_a, completions_b, strict=True)]

    assert [judged(judge, [pair]).win_rate for pair in (("x", "y"), ("x", "z"), ("y", "z"))] == [1.0, 0.0, 0.5]


def test_equal_answers_are_a_tie_that_nobody_is_asked_about():
    asked = []

    def judge(prompts, completions, level, completion_ids):
        asked.append((prompts, completions, level, [len(ids) for ids in completion_ids]))
        return [len(text) for text in completions]

    assert judged(judge, [("a", "a"), ("bb", "c"), ("d", "d")], level=[1, 2, 3]).win_rate == 2 / 3
    assert asked == [(["1?"], ["bb"], [2], [3]), (["1?"], ["c"], [2], [2])]
    assert judged(judge, [("a", "a")], level=[1]).win_rate == 0.5 and len(asked) == 2


def test_what_the_judge_knows_nothing_of_is_left_out_and_told(judges):
    def judge(completions):
        return [None if text == "?" else len(text) for text in completions]

    found = judged(judge, [("aa", "b"), ("?", "b"), ("c", "?"), ("d", "ee")])
    assert (found.win_rate, found.rows, found.unjudged) == (0.5, 2, 2)
    with pytest.raises(ObjectiveError, match="'win-rate' has no score on these 1 rows"):
        judged(f"{judges}:none", [("a", "b")])


@pytest.mark.parametrize(
    ("judge", "error"),
    [
        ("seven", "the judge 'seven' returned 7 for row 0"),
        ("one_for_all", "the judge 'one_for_all' returned one number for all"),
        ("fails", "no more"),
    ],
)
def test_a_judge_that_is_none_is_named(judge, error, judges):
    with pytest.raises(ObjectiveError, match=error) as raised:
        judged(f"{judges}:{judge}", [("a", "b")])
    assert raised.value.hint


def test_a_judge_may_mix_no_scales():
    def judge(completions_a, completions_b):
        return [0.5 if a == "x" else -1 for a in completions_a]

    with pytest.raises(ObjectiveError, match=r"returned 0\.5 for row 0"):
        judged(judge, [("x", "y")])


# --- the interval --------------------------------------------------------------------------------------------------


def slow_interval(by_prompt: list[list[float]], draws: int) -> list[float]:
    """Draws whole prompts, one after the other."""
    generator = np.random.default_rng(5)
    means = []
    for _ in range(draws):
        drawn = [win for _ in by_prompt for win in by_prompt[generator.integers(len(by_prompt))]]
        means.append(sum(drawn) / len(drawn))
    return [float(np.quantile(means, share)) for share in (0.025, 0.975)]


def test_the_interval_is_that_of_a_slow_bootstrap_of_prompts(judges, monkeypatch):
    monkeypatch.setattr(wins, "DRAWS", 1000)
    generator = np.random.default_rng(0)
    by_prompt = [[float(w) for w in np.full(n % 4 + 1, generator.random() < 0.7)] for n in range(40)]
    prompts = [str(n) for n, of_prompt in enumerate(by_prompt) for _ in of_prompt]
    pairs = [("+a", "b") if win else ("aa", "+") for of_prompt in by_prompt for win in of_prompt]
    found = judged(f"{judges}:plus", pairs, prompts)
    assert found.length_controlled is None  # all are longer
    assert found.prompts == 40 and found.rows == 100
    # Ends of 1000 draws are known to 1/20 of the interval's width or so.
    expected = slow_interval(by_prompt, 2000)
    assert found.interval == pytest.approx(expected, abs=0.03)
    alone = slow_interval([[win] for of_prompt in by_prompt for win in of_prompt], 2000)
    assert expected[1] - expected[0] > 1.3 * (alone[1] - alone[0])  # rows of a prompt are drawn together
    assert judged(f"{judges}:plus", pairs, prompts) == found


def test_a_single_prompt_has_no_interval():
    found = judged(lambda completions: [len(text) for text in completions], [("aa", "b"), ("a", "bb")], ["?", "?"])
    assert (found.win_rate, found.interval, found.length_controlled_interval) == (0.5, None, None)


# --- without length ------------------------------------------------------------------------------------------------


def of_lengths(differences: list[int]) -> list[tuple[str, str]]:
    return [("a" * (20 + d), "b" * 20) for d in differences]


def test_a_win_rate_that_is_length_alone_is_one_half_without(judges):
    differences = [-9, -6, -3, -1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]  # longer three times out of four
    found = judged(f"{judges}:longer", of_lengths(differences))
    assert found.win_rate == 0.75
    assert found.length_controlled == pytest.approx(0.5, abs=0.06)
    low, high = found.length_controlled_interval
    assert low < 0.5 < high


def test_a_win_rate_in_which_length_has_no_part_stays():
    differences = [-4, -3, -2, -1, 1, 2, 3, 4] * 3
    pairs = [("+" * (20 + d), "b" * 20) if n % 4 else ("a" * (20 + d), "b" * 20) for n, d in enumerate(differences)]
    pairs = [("+" + a[1:], b) if n < 18 else ("a" + a[1:].replace("+", "a"), b) for n, (a, b) in enumerate(pairs)]

    def judge(completions_a, completions_b):
        return [("+" in a) - ("+" in b) for a, b in zip(completions_a, completions_b, strict=True)]

    flat = [(a if "+" in a else "b" * len(a), b if "+" in a else "+" * len(b)) for a, b in pairs]
    found = judged(judge, flat)
    assert found.win_rate == 0.75
    assert found.length_controlled == pytest.approx(0.75, abs=0.02)


def test_without_length_is_scikit_learn_s_regression():
    generator = np.random.default_rng(3)
    longer = generator.integers(-30, 40, 80)
    win = np.where(generator.random(80) < 1 / (1 + np.exp(-longer / 20 - 0.4)), 1.0, 0.0)
    features = np.tanh(longer / np.std(longer)).reshape(-1, 1)
    expected = LogisticRegression(C=100).fit(features, win).predict_proba([[0.0]])[0, 1]
    assert wins.length_controlled(win, longer) == pytest.approx(expected, abs=1e-6)
    twice = np.where(np.arange(80) < 40, 2, 0)  # as a draw has it
    drawn = LogisticRegression(C=100).fit(features[:40].repeat(2, 0), win[:40].repeat(2)).predict_proba([[0.0]])[0, 1]
    assert wins.length_controlled(win, longer, twice) == pytest.approx(drawn, abs=1e-4)


@pytest.mark.parametrize(
    ("win", "longer", "expected"),
    [
        ([1, 0, 1], [3, 5, 4], None),  # all longer
        ([1, 0, 1], [-3, -5, -4], None),
        ([1, 0, 1, 1], [0, 0, 0, 0], 0.75),
        ([1, 1, 1], [-3, 0, 4], 1.0),
        ([0, 0], [-3, 4], 0.0),
        ([0.5, 0.5], [-3, 3], 0.5),
    ],
)
def test_without_length_where_there_is_nothing_to_fit(win, longer, expected):
    found = wins.length_controlled(np.array(win, dtype=float), np.array(longer))
    assert found is None if expected is None else found == pytest.approx(expected, abs=1e-9)


# --- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tiny_model_dir: Path, reward_dir: Path, judges: Path, tmp_path, monkeypatch, tokenizer) -> Path:  # noqa: F811
    """Two models, a reward model and rows of prompts."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").symlink_to(tiny_model_dir)
    (tmp_path / "rm").symlink_to(reward_dir)
    (tmp_path / "judges.py").write_text(JUDGES)
    model = load_model(str(tiny_model_dir), device="cpu")
    update_(model, Update(0.0, (Term(3, 0.1),), 0))
    model.save_pretrained(tmp_path / "moved")
    tokenizer.save_pretrained(tmp_path / "moved")
    texts = ["the film was", "a good", "it is very", "this plot was", "a lovely", "the film is"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return tmp_path


WORDS = ["--against", "base", "--data", "rows.jsonl", "--max-new-tokens", "6", "--device", "cpu", "--json"]


def told(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["win-rate", *words]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def by_hand(home: Path, judge: str) -> float:
    """The same from rewards of each model's completions alone, by `evaluate`'s way of writing."""
    texts: dict[str, list[str]] = {}

    def keep(completions):
        texts[name] = completions
        return [0.0 for _ in completions]

    rows = [json.loads(line) for line in (home / "rows.jsonl").read_text().splitlines()]
    for name in ("moved", "base"):
        evaluate(str(home / name), keep, rows, device="cpu", generation=Generation(max_new_tokens=6))
    prompts = [row["prompt"] for row in rows]
    reward = get_objective("reward-model", reward_model="rm") if judge == "rm" else get_objective(f"judges.py:{judge}")
    one, other = (
        reward.returned_for([(len(rows), {"prompts": prompts, "completions": texts[name]})])[0][reward.name]
        for name in ("moved", "base")
    )
    pairs = list(zip(texts["moved"], texts["base"], one, other, strict=True))
    assert any(a != b for a, b, *_ in pairs)
    return sum(0.5 if a == b or x == y else float(x > y) for a, b, x, y in pairs) / len(pairs)


@pytest.mark.parametrize("judge", ["rm", "longer"])
def test_the_command_says_what_two_evaluations_would(judge, home, capsys):
    source = judge if judge == "rm" else f"judges.py:{judge}"
    found = told(["moved", *WORDS, "--judge", source], capsys)
    assert found["win_rate"] == pytest.approx(by_hand(home, judge), abs=1e-12)
    assert found["win_rate_low"] <= found["win_rate"] <= found["win_rate_high"]
    assert (found["model"], found["against"], found["judge"]) == ("moved", "base", source)
    assert (found["rows"], found["prompts"], found["unjudged"]) == (6, 6, 0)


def test_a_model_against_itself_is_one_half_and_draws_are_its_own(home, capsys):
    greedy = told(["base", *WORDS, "--judge", "judges.py:longer"], capsys)
    assert (greedy["win_rate"], greedy["equal"], greedy["length_controlled"]) == (0.5, 6, 0.5)
    drawn = told(["base", *WORDS, "--judge", "judges.py:longer_of_two", "--temperature", "1.5"], capsys)
    assert drawn["equal"] < 6 and drawn["agreed"] is not None
    again = told(["base", *WORDS, "--judge", "judges.py:longer_of_two", "--temperature", "1.5"], capsys)
    assert {**again, "seconds": 0} == {**drawn, "seconds": 0}


def test_one_model_is_in_memory_at_a_time(home, monkeypatch):
    loaded = []

    def load(*args, **options):
        assert not any(one() for one in loaded)
        model = load_model(*args, **options)
        model.__dict__["itself"] = model  # a circle, as the trials that these tests keep leave it
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr(wins, "load_model", load)
    monkeypatch.setattr(gc, "collect", COLLECT)  # which tests go without
    gc.disable()  # else one may come at the right time by chance
    try:
        assert main(["win-rate", "moved", *WORDS, "--judge", "judges.py:longer"]) == 0
    finally:
        gc.enable()
    assert len(loaded) == 2


def test_the_command_s_table(home, capsys):
    assert main(["win-rate", "base", *WORDS[:-1], "--judge", "judges.py:longer"]) == 0
    out = capsys.readouterr().out
    assert "50.0 % (50.0 % to 50.0 %)" in out and "6 of them equal answers" in out


def test_an_adapter_is_a_model(home, capsys):
    words = ["--model", "base", "--data", "rows.jsonl", "--tune", "lora", "--steps", "1", "--max-new-tokens", "4"]
    words += ["--lr", "30", "--eps", "0.1", "--batch-size", "3", "--output", "run", "--device", "cpu"]
    assert main(["tune", "judges.py:longer", *words]) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert (home / "run" / "model" / "adapter_config.json").is_file()
    found = told(["run/model", *WORDS, "--judge", "judges.py:longer"], capsys)
    assert found["rows"] == 6 and found["equal"] < 6


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--judge", "judges.py:nothing"], "'judges.py' has no 'nothing'"),
        (["--judge", "nowhere.py:plus"], "there is no file 'nowhere.py'"),
        (["--judge", "nowhere"], "there is no judge 'nowhere'"),
        (["--judge", "./nowhere"], "there is no judge './nowhere'"),
        (["--judge", "accuracy"], "the judge 'accuracy' needs choices"),
        (["--judge", "moved"], "'moved' has 2 logits, and a reward model has one"),
        (["--judge", "rm", "--against", "./nowhere"], "there is no model folder './nowhere'"),
        (["--judge", "rm", "--against", "rm"], "a ranker writes no text"),
        (["--judge", "rm", "--prompt", "question"], "no row has the prompt column 'question'"),
        (["--judge", "rm", "--template", "{question}"], "no row has the column 'question'"),
        (["--judge", "rm", "--data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--judge", "rm", "--temperature", "-1"], "temperature"),
        (["--judge", "judges.py:plus", "--reward-cache", "scores"], "has no scores that can be cached"),
        ([], "Missing option '--judge'"),
    ],
)
def test_bad_input_is_one_line_before_a_model_is_loaded(words, error, home, capsys, monkeypatch):
    monkeypatch.setattr(wins, "load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    given = [word for n, word in enumerate(WORDS) if not {word, WORDS[n - 1]} & set(words)]
    assert main(["win-rate", "moved", *given, *words]) == 2
    out, err = capsys.readouterr()
    assert [line.partition(":")[0] for line in err.splitlines()] == ["error", "hint"] and not out
    assert error in err


# --- rows of preferences -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [*PAIRED, lambda: kto(False), lambda: kto(True)])
def test_the_command_takes_preferences(layout, model_dir, judges, tmp_path, capsys):  # noqa: F811
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in layout()))
    words = [str(model_dir), "--against", str(model_dir), "--data", str(tmp_path / "rows.jsonl"), "--device", "cpu"]
    found = told([*words, "--judge", f"{judges}:longer_of_two", "--max-new-tokens", "2", "--json"], capsys)
    assert (found["win_rate"], found["rows"]) == (0.5, found["equal"]) and found["rows"] in (46, 50)


@pytest.mark.parametrize("layout", [hh, hh_conversations, ultrafeedback, ultrafeedback_of_trl])
def test_prompts_that_are_found_are_those_of_tune_preference(layout, caplog):
    rows = with_prompts(layout(), Prompting())
    examples = render(layout(), chat_tokenizer(), needs="choices")
    assert [one.prompt for one in render_prompts(rows, chat_tokenizer())] == [one.prompt for one in examples]
    assert [{**row, "prompt": None} for row in rows] == [{**one.row, "prompt": None} for one in examples]


@pytest.mark.parametrize("layout", [with_tools, doubled_prompts, lambda: kto(False), lambda: kto(True)])
def test_rows_whose_prompt_is_there_are_as_they_are(layout):
    rows = layout()
    assert with_prompts(rows, Prompting()) is rows


@pytest.mark.parametrize("layout", [hh, hh_conversations, ultrafeedback_of_trl])
def test_eval_and_tune_take_preferences_without_a_column_of_prompts(layout, model_dir, judges, tmp_path, capsys):  # noqa: F811
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in layout()))
    words = ["win-rate", "--judge", f"{judges}:longer_of_two", "--model", str(model_dir), "--device", "cpu", "--json"]
    words += ["--data", str(tmp_path / "rows.jsonl"), "--max-new-tokens", "2"]
    assert main(["eval", *words, "--base-model", str(model_dir)]) == 0, capsys.readouterr().err
    found = json.loads(capsys.readouterr().out)
    assert (found["score"], found["rows"]) == (0.5, 46)
    short = ["--steps", "1", "--batch-size", "2", "--num-directions", "1", "--lr", "1e-3"]
    assert main(["tune", *words, *short, "--output", str(tmp_path / "run")]) == 0, capsys.readouterr().err


def test_completions_without_a_label_are_plain_rows():
    rows = [{"prompt": "?", "completion": "!"}]
    assert with_prompts(rows, Prompting()) is rows


# --- the objective -------------------------------------------------------------------------------------------------


def test_evaluate_compares_with_the_greedy_base(home):
    rows = [json.loads(line) for line in (home / "rows.jsonl").read_text().splitlines()]
    options = {"device": "cpu", "options": {"judge": "judges.py:longer"}, "generation": Generation(max_new_tokens=6)}
    found = evaluate("moved", "win-rate", rows, base="base", **options)
    assert found.score == pytest.approx(by_hand(home, "longer"), abs=1e-12)
    assert evaluate("base", "win-rate", rows, base="base", **options).score == 0.5
    with pytest.raises(ZorewardError, match="'win-rate' compares a model with its base, and there is none"):
        evaluate("moved", "win-rate", rows, **options)


def test_a_run_tunes_on_it_and_its_rate_is_found(home, capsys):
    words = ["--model", "base", "--data", "rows.jsonl", "--eval-data", "rows.jsonl", "--steps", "2", "--seed", "1"]
    words += ["--max-new-tokens", "6", "--batch-size", "6", "--device", "cpu", "--output", "run", "--json"]
    assert main(["tune", "win-rate", "--judge", "judges.py:longer", *words]) == 0, capsys.readouterr().err
    out, err = capsys.readouterr()
    found = json.loads(out.splitlines()[-1])
    assert "found: learning rate" in err
    lines = [json.loads(line) for line in (home / "run" / "journal.jsonl").read_text().splitlines()]
    scores = [score for line in lines for score in line.get("scores") or ()]
    assert scores and all(0 <= score <= 1 for score in scores) and len(set(scores)) > 1
    before = [line["evaluation"] for line in lines if "evaluation" in line] if "evaluation" in str(lines) else []
    assert found["best"] >= 0.5 and not any(math.isnan(score) for score in before)
    # The base of the dev rows is what the model wrote before step 1, not what it writes now.
    assert main(["eval", "win-rate", "--judge", "judges.py:longer", "--model", "run/model", "--base-model", "base",
                 "--data", "rows.jsonl", "--max-new-tokens", "6", "--device", "cpu", "--json"]) == 0  # fmt: skip
    assert json.loads(capsys.readouterr().out)["score"] == pytest.approx(found["best"], abs=1e-12)


def test_a_run_that_is_resumed_compares_with_the_same_base(home, capsys):
    words = ["win-rate", "--judge", "judges.py:better_by_length", "--model", "base", "--data", "rows.jsonl"]
    words += ["--device", "cpu", "--max-new-tokens", "6", "--batch-size", "3", "--num-directions", "2", "--lr", "3e-2"]
    (home / "judges.py").write_text(
        JUDGES
        + """
def better_by_length(completions_a, completions_b):
    return [0.5 + (len(a) - len(b)) / 1000 for a, b in zip(completions_a, completions_b)]
"""
    )
    assert main(["tune", *words, "--steps", "4", "--output", "whole"]) == 0, capsys.readouterr().err
    assert main(["tune", *words, "--steps", "2", "--output", "parts"]) == 0
    assert main(["tune", *words, "--steps", "4", "--output", "parts", "--resume"]) == 0, capsys.readouterr().err
    scores = [
        [
            line["scores"]
            for line in map(json.loads, (home / run / "journal.jsonl").read_text().splitlines())
            if "scores" in line
        ]
        for run in ("whole", "parts")
    ]
    assert scores[0] == scores[1] and len(scores[0]) == 4 and len({str(one) for one in scores[0]}) > 1


def test_members_are_scored_by_a_reward_model_in_one_call(home, monkeypatch):
    args = ZOConfig("run", use_cpu=True, disable_tqdm=True, max_steps=1, per_device_train_batch_size=4,
                    max_completion_length=4, num_directions=2, learning_rate=1e-3)  # fmt: skip
    rows = [json.loads(line) for line in (home / "rows.jsonl").read_text().splitlines()]
    objective = get_objective("win-rate", judge="rm")
    run = ZOTrainer("base", objective=objective, args=args, train_dataset=rows)
    calls = []
    model = objective.function.__wrapped__
    monkeypatch.setattr(type(model), "__call__", lambda self, prompts, completions, **columns: (
        calls.append(len(prompts)), [float(len(text)) for text in completions])[1])  # fmt: skip
    run.train()
    assert 1 <= len(calls) <= 2  # of the step's four members; both models' completions at once


def test_a_judge_that_compares_may_be_asked_row_by_row(home, capsys):
    text = "from zoreward import objective\n\n@objective('pair', rowwise=True)\n"
    text += "def pair(completions_a, completions_b):\n"
    text += "    assert len(completions_a) == NUMBER\n"
    text += "    return [len(a) > len(b) for a, b in zip(completions_a, completions_b)]\n"
    found = []
    for number, words in ((1, ["--reward-workers", "3"]), (None, [])):
        Path("pair.py").write_text(text.replace("NUMBER", str(number or "len(completions_b)")))
        found.append(told(["moved", *WORDS, "--judge", "pair.py:pair", *words], capsys))
    assert {**found[0], "seconds": 0} == pytest.approx({**found[1], "seconds": 0}, abs=1e-12)
    assert found[0]["agreed"] is not None and found[0]["ties"] < 1


def test_the_cache_knows_an_edited_judge(home, capsys):
    text = "from zoreward import objective\n\n@objective('judge', rowwise=True)\ndef judge(completions):\n"
    Path("j.py").write_text(text + "    return [float(len(one)) for one in completions]\n")
    words = ["moved", *WORDS, "--judge", "j.py:judge", "--reward-cache", "scores"]
    first = told(words, capsys)
    Path("j.py").write_text(text + "    return [-float(len(one)) for one in completions]\n")
    second = told(words, capsys)
    assert second["win_rate"] == pytest.approx(1 - first["win_rate"], abs=1e-12) and first["ties"] < 1
