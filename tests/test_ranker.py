"""Rankers: a head with one output reads each answer with its prompt, and the best answer is the one it likes most."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from rendering import render
from whole_models import byte_tokenizer, classifier, word_tokenizer
from zoreward import ZOConfig, ZOTrainer, evaluate, replay
from zoreward.cli import main
from zoreward.records import InputError, Term
from zoreward.scoring import Head, candidate_logprobs, checked_engine, engine_of, head_of, load_model

ROWS = [
    {"text": "it was a good film", "answers": [" great", " the plot is dull", " bad"], "label": 0},
    {"text": "the plot", "answers": [" lovely", " good film"], "label": 1},
]
ASKED = {"needs": "choices", "template": "{text}", "choice_column": "answers", "kind": "ranker"}
PAIRS = [{"prompt": f"a {word} film", "chosen": " good", "rejected": " bad"} for word in ("lovely", "bright", "dull")]
MEMBERS = ((Term(1, 0.05),), (Term(1, -0.05),))
# float32 outputs of the same row in another batch: some 1e-6 apart for outputs of size 1.
CLOSE = 2e-5


def tokenizer_of(family, plain):
    return {"bert": word_tokenizer, "roberta": byte_tokenizer}.get(family, lambda: plain)()


def output_of(model, encoded) -> float:
    with torch.no_grad():
        return float(model(**encoded).logits[0, 0])


@pytest.mark.parametrize("family", ["bert", "roberta", "llama"])
def test_answers_are_worth_what_the_model_gives_for_each_alone(family, tokenizer):
    model, tokenizer = classifier(family, names=("reward",)), tokenizer_of(family, tokenizer)
    examples = render(ROWS, tokenizer, **ASKED)
    found = candidate_logprobs(engine_of(model, tokenizer.pad_token_id), examples)[0]
    for row, own in zip(ROWS, found, strict=True):
        for answer, value in zip(row["answers"], own, strict=False):
            texts = [row["text"] + answer] if tokenizer.sep_token is None else [row["text"], answer.strip()]
            assert value == pytest.approx(output_of(model, tokenizer(*texts, return_tensors="pt")), abs=CLOSE)
        assert all(np.isneginf(own[len(row["answers"]) :]))
    engine = checked_engine(model, tokenizer.pad_token_id, examples, MEMBERS)
    assert engine.problem is None and engine.pads
    together = candidate_logprobs(engine, examples, MEMBERS)
    alone = [candidate_logprobs(engine, examples, (member,))[0] for member in MEMBERS]
    np.testing.assert_allclose(together, np.stack(alone), atol=CLOSE)


def test_a_long_prompt_is_cut_on_its_left_and_no_answer_is():
    tokenizer = word_tokenizer()
    [example] = render([{"text": "it was a good film", "answers": ["great", "bad film"], "label": 0}], tokenizer,
                       **ASKED, max_length=7)  # fmt: skip
    read = [tokenizer.convert_ids_to_tokens(list(request.prompt)) for request in example.requests]
    assert read == [
        "[CLS] a good film [SEP] great [SEP]".split(),
        "[CLS] good film [SEP] bad film [SEP]".split(),
    ]
    assert [request.types for request in example.requests] == [(0,) * 5 + (1,) * 2, (0,) * 4 + (1,) * 3]
    assert example.truncated == 3
    with pytest.raises(InputError, match="leaves no room for the prompt in 4 tokens"):
        render(ROWS, tokenizer, **ASKED, max_length=4)


def test_preferences_tune_a_reward_model_and_its_replay_has_the_bytes(tmp_path):
    folder = tmp_path / "base"
    classifier("bert", names=("reward",)).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    assert head_of(str(folder)) == Head("ranker")
    args = ZOConfig(str(tmp_path / "run"), max_steps=20, learning_rate=0.01, eps=1e-2, num_directions=4,
                    disable_tqdm=True, use_cpu=True, seed=3, per_device_train_batch_size=3)  # fmt: skip
    trainer = ZOTrainer(str(folder), objective="preference", train_dataset=PAIRS, eval_dataset=PAIRS, args=args)
    before = trainer.evaluate()["eval_score"]
    trainer.train()
    assert trainer.evaluate()["eval_score"] > before + 0.05
    moved = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    again = replay(tmp_path / "run", load_model(str(folder), device="cpu"))
    assert all(torch.equal(moved[name], weight) for name, weight in again.named_parameters())
    with pytest.raises(InputError, match="a ranker writes no text"):
        evaluate(str(folder), "token-f1", ROWS, template="{text}", answer="great")
    with pytest.raises(InputError, match="takes no prefix"):
        ZOTrainer(str(folder), objective="accuracy", train_dataset=PAIRS, args=ZOConfig(tune="prefix", use_cpu=True))


def test_the_command_line_tunes_and_scores_a_ranker(tmp_path, capsys):
    folder, data, run = (str(tmp_path / name) for name in ("base", "rows.jsonl", "run"))
    classifier("roberta", names=("reward",)).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    rows = ["--data", data, "--template", "{text}", "--choice-column", "answers", "--device", "cpu", "--json"]
    assert main(["tune", "accuracy", "--model", folder, *rows, "--steps", "2", "--output", run]) == 0
    capsys.readouterr()
    assert main(["eval", "accuracy", "--model", f"{run}/model", *rows]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["rows"] == 2 and told["score"] in (0.0, 0.5, 1.0)
