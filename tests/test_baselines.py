"""What tuning is measured beside: choices after the share that they have without content, and a linear probe."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegressionCV
from transformers import PreTrainedTokenizerFast

from conftest import FAMILIES, random_model
from rendering import render
from test_cli import folder, last_object  # noqa: F401  (a fixture)
from zoreward.cli import main
from zoreward.data import content_free_examples, without_content
from zoreward.records import InputError
from zoreward.registry import get_objective
from zoreward.scoring import calibrated_logprobs, engine_of, evaluate, last_hidden_states, linear_probe, probe_scores

pytestmark = pytest.mark.usefixtures("trials_are_kept")

WORDS = ["good", "bad", "great", "dull", "lovely", "awful"]
ROWS = [
    {"text": f"a very {word} film"[: None if i % 2 else -5], "label": i % 2, "who": ["film", "the plot", "it"]}
    for i, word in enumerate(WORDS)
]
TEMPLATE = "{text} it was"


def slow_sum(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, prompt: str, answer: str) -> float:
    """Σ log p of an answer's tokens, one row, no padding, no cache."""
    start = tokenizer(prompt.rstrip(" "), add_special_tokens=False)["input_ids"] or [tokenizer.bos_token_id]
    whole = start + tokenizer(answer, add_special_tokens=False)["input_ids"]
    logprobs = model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    return sum(float(logprobs[place - 1, whole[place]]) for place in range(len(start), len(whole)))


@torch.no_grad()
@pytest.mark.parametrize("free", [" it was", "", "{label} it was"])
def test_calibrated_is_the_sum_less_the_sum_without_content(tokenizer: PreTrainedTokenizerFast, free: str) -> None:
    model = random_model("llama")
    rows = [
        {**row, "ends": [" great", " very bad plot"][: 2 + i % 2] + [" dull"] * (i % 2)} for i, row in enumerate(ROWS)
    ]
    examples = render(rows, tokenizer, needs="choices", template=TEMPLATE, choice_column="ends")
    frees = content_free_examples(examples, tokenizer, template=TEMPLATE, content_free=free)
    found = calibrated_logprobs(engine_of(model, tokenizer.pad_token_id), examples, frees)
    assert found.shape == (6, 3)
    for n, row in enumerate(rows):
        for c in range(3):
            if c >= len(row["ends"]):
                assert found[n, c] == -np.inf
                continue
            prompts = f"{row['text']} it was", free.format(**row)
            own, without = (slow_sum(model, tokenizer, prompt, row["ends"][c]) for prompt in prompts)
            # Two sums of up to three float32 log-probabilities, in other batches: 1e-5 each.
            assert found[n, c] == pytest.approx(own - without, abs=1e-4)


@torch.no_grad()
def test_calibration_moves_predictions_and_demonstrations_stay(tokenizer: PreTrainedTokenizerFast) -> None:
    model = random_model("llama")
    settings = {"template": TEMPLATE, "choices": [" bad", " great"]}
    examples = render(ROWS, tokenizer, needs="choices", shots=1, **settings)
    frees = content_free_examples(examples, tokenizer, template=TEMPLATE, content_free=" it was")
    for example, free in zip(examples, frees, strict=True):
        shown = example.prompt.split("\n\n")[0]
        assert example.prompt == f"{shown}\n\n{example.row['text']} it was"
        assert free.prompt == f"{shown}\n\n it was"
    score = evaluate(model, "neg-cross-entropy", ROWS, tokenizer=tokenizer, content_free="it was", **settings).score
    wanted = []
    for row in ROWS:
        own = np.array([slow_sum(model, tokenizer, f"{row['text']} it was", answer) for answer in settings["choices"]])
        own -= [slow_sum(model, tokenizer, "it was", answer) for answer in settings["choices"]]
        wanted.append(own[row["label"]] - np.logaddexp(*own))
    assert score == pytest.approx(float(np.mean(wanted)), abs=1e-4)  # as above, and a mean
    plain = evaluate(model, "neg-cross-entropy", ROWS, tokenizer=tokenizer, **settings).score
    assert abs(plain - score) > 1e-2


def test_a_template_without_content() -> None:
    assert without_content("{a|strip}, {b[0]:>9} {{so}}") == "N/A, N/A {so}"


@pytest.mark.usefixtures("folder")
def test_calibrating_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"sentence": row["text"], "label": row["label"]} for row in ROWS]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["eval", "neg-cross-entropy", "--model", "model", "--data", "rows.jsonl", "--json"]
    by_hand = ["--template", "{sentence|strip} It was", "--choice", " terrible", "--choice", " great"]

    def score(*more: str) -> dict:
        assert main([*words, *more]) == 0, capsys.readouterr().err
        return last_object(capsys.readouterr().out)

    task = score("--task", "sst2", "--calibrate")
    assert task["calibrated"] is True
    settings = {"template": "{sentence|strip} It was", "choices": [" terrible", " great"]}
    for found, free in ((task, " It was"), (score(*by_hand, "--calibrate"), "N/A It was")):
        wanted = evaluate("model", "neg-cross-entropy", rows, content_free=free, **settings)
        assert found["score"] == pytest.approx(wanted.score, rel=1e-12)
    assert score("--task", "sst2")["score"] != task["score"]


# The linear probe


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_are_those_that_the_head_reads(family: str, tokenizer: PreTrainedTokenizerFast) -> None:
    model = random_model(family)
    examples = render(ROWS, tokenizer, needs="choices", template=TEMPLATE, choices=[" bad", " great"])
    assert len({len(example.prompt_tokens) for example in examples}) > 1
    states = last_hidden_states(engine_of(model, tokenizer.pad_token_id), examples)
    for example, state in zip(examples, states, strict=True):
        wanted = model(torch.tensor([example.prompt_tokens])).logits[0, -1]
        found = model.get_output_embeddings()(torch.from_numpy(state))
        # float32 sums of 32 products of size ~1 in another order; a state of another token is off by whole units
        torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_probe_is_scikit_learns_on_the_same_features(tokenizer: PreTrainedTokenizerFast) -> None:
    model = random_model("llama")
    rows = [{"text": f"{a} {b} film", "label": (i + j) % 3} for i, a in enumerate(WORDS) for j, b in enumerate(WORDS)]
    settings = {"template": TEMPLATE, "choices": [" bad", " great", " dull"]}
    examples = render(rows, tokenizer, needs="choices", **settings)
    train, test = examples[:24], examples[24:]
    reader = engine_of(model, tokenizer.pad_token_id)
    features = [last_hidden_states(reader, some) for some in (train, test)]
    theirs = LogisticRegressionCV(max_iter=5000, cv=5, random_state=0).fit(features[0], [e.reference for e in train])
    references = [example.reference for example in train]
    ours = linear_probe(features[0], references, features[1], 3)
    np.testing.assert_array_equal(ours, theirs.predict_log_proba(features[1]))
    accuracy = theirs.score(features[1], [example.reference for example in test])
    scores = [scored.score for scored in probe_scores(reader, get_objective("accuracy"), train, (test, train[:4]))]
    assert scores[0] == accuracy and len(scores) == 2


def test_a_class_that_is_not_fitted_on_is_never_chosen() -> None:
    features = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    found = linear_probe(features, [0, 2] * 6, features, 4)
    assert np.isneginf(found[:, [1, 3]]).all() and np.isfinite(found[:, [0, 2]]).all()
    assert np.exp(found).sum(axis=1) == pytest.approx(np.ones(12), abs=1e-12)


@pytest.mark.parametrize("references", [[1, 1, 1, 1], [0, 0, 0, 1]])
def test_too_few_rows_to_fit_on(references: list[int]) -> None:
    with pytest.raises(InputError, match="two classes or more, and two rows of each"):
        linear_probe(np.zeros((4, 2), np.float32), references, np.zeros((1, 2), np.float32), 2)


def test_rows_with_answers_of_their_own_have_no_classes(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{**row, "ends": [" bad", f" {word}"]} for row, word in zip(ROWS, WORDS, strict=True) if word != "bad"]
    examples = render(rows, tokenizer, needs="choices", template=TEMPLATE, choice_column="ends")
    with pytest.raises(InputError, match="the same for all rows"):
        probe_scores(engine_of(random_model("llama"), 0), get_objective("accuracy"), examples, [examples])
