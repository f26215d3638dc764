"""Masked models and classifiers: what they give for a row is what transformers gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from conftest import random_model
from rendering import render
from terms import term_of
from whole_models import CLASSIFIERS, MASKED, WORDS, byte_tokenizer, classifier, masked_model, word_tokenizer
from zoreward import ZOConfig, ZOTrainer, evaluate, replay
from zoreward.data import classes_of
from zoreward.journal import load_run
from zoreward.records import InputError, Term
from zoreward.scoring import (
    Head,
    candidate_logprobs,
    checked_engine,
    engine_of,
    head_of,
    load_model,
    load_with_head,
)

ROWS = [
    {"text": "a good film", "label": 1},
    {"text": "the plot was not very bright and it is dull", "label": 0},
    {"text": "lovely", "label": 1},
]
MASK = {"needs": "choices", "template": "{text} it was [MASK] .", "choices": ["terrible", "great"], "kind": "masked"}
CLASSES = {"needs": "choices", "template": "{text}", "kind": "classifier", "classes": ("bad", "good", "so so")}
MEMBERS = ((Term(1, 0.05),), (Term(1, -0.05),), (term_of(2, 0.05, 1),))
# float32 outputs of the same row in another batch: some 1e-6 apart for log-probabilities of size 1 to 10.
CLOSE = 2e-5


def tokenizer_of(family):
    return byte_tokenizer() if family == "roberta" else word_tokenizer()


@pytest.mark.parametrize("family", MASKED)
def test_a_masked_models_answers_are_those_of_transformers(family):
    model, tokenizer = masked_model(family), tokenizer_of(family)
    found = candidate_logprobs(engine_of(model, tokenizer.pad_token_id), render(ROWS, tokenizer, **MASK))[0]
    for row, own in zip(ROWS, found, strict=True):
        encoded = tokenizer(f"{row['text']} it was {tokenizer.mask_token} .", return_tensors="pt")
        with torch.no_grad():
            logits = model(**encoded).logits[0]
        [place] = (encoded["input_ids"][0] == tokenizer.mask_token_id).nonzero().flatten().tolist()
        words = [tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in ("terrible", "great")]
        assert [len(word) for word in words] == [1, 1]
        expected = logits[place].double().log_softmax(0)[torch.tensor(words).flatten()]
        np.testing.assert_allclose(own, expected, atol=CLOSE)


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_a_classifiers_answers_are_those_of_transformers(family):
    model, tokenizer = classifier(family), tokenizer_of(family)
    found = candidate_logprobs(engine_of(model, tokenizer.pad_token_id), render(ROWS, tokenizer, **CLASSES))[0]
    for row, own in zip(ROWS, found, strict=True):
        encoded = tokenizer(row["text"], return_tensors="pt")
        encoded.pop("token_type_ids", None)
        with torch.no_grad():
            expected = model(**encoded).logits[0].double().log_softmax(0)
        np.testing.assert_allclose(own, expected, atol=CLOSE)


def test_two_texts_are_told_apart_by_their_types():
    model, tokenizer = classifier("bert"), word_tokenizer()
    rows = [{"a": "a good film", "b": "it was great", "label": 1}, {"a": "a", "b": "the plot is dull", "label": 0}]
    examples = render(rows, tokenizer, **CLASSES | {"template": "{a} [SEP] {b}"})
    found = candidate_logprobs(engine_of(model, tokenizer.pad_token_id), examples)[0]
    for row, own in zip(rows, found, strict=True):
        encoded = tokenizer(row["a"], row["b"], return_tensors="pt")
        assert encoded["token_type_ids"].sum() > 0
        with torch.no_grad():
            expected = model(**encoded).logits[0].double().log_softmax(0)
        np.testing.assert_allclose(own, expected, atol=CLOSE)


@pytest.mark.parametrize(("kind", "family"), [("masked", f) for f in MASKED] + [("classifier", f) for f in CLASSIFIERS])
def test_members_share_a_forward_pass(kind, family):
    model = masked_model(family) if kind == "masked" else classifier(family)
    tokenizer = tokenizer_of(family)
    examples = render(ROWS, tokenizer, **(MASK if kind == "masked" else CLASSES))
    reader = checked_engine(model, tokenizer.pad_token_id, examples, MEMBERS)
    assert reader.problem is None and reader.pads and reader.packer is None
    together = candidate_logprobs(reader, examples, MEMBERS)
    alone = np.concatenate([candidate_logprobs(reader, examples, (member,)) for member in MEMBERS])
    np.testing.assert_allclose(together, alone, atol=CLOSE)
    assert np.abs(together[0] - together[1]).min() > 10 * CLOSE  # members differ


# Texts and tokens


def test_a_text_that_is_too_long_keeps_its_mask():
    tokenizer, mask = word_tokenizer(), word_tokenizer().mask_token_id
    for template in ("{text} it was [MASK] .", "[MASK] : {text}", "{text} [MASK] {text}"):
        rows = [{"text": "a good film " * 20, "label": 0}]
        [example] = render(rows, tokenizer, **MASK | {"template": template, "max_length": 9})
        assert len(example.prompt_tokens) == 9
        assert example.prompt_tokens[example.place] == mask
        assert (example.prompt_tokens[0], example.prompt_tokens[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
        [whole] = render(rows, tokenizer, **MASK | {"template": template})
        assert example.truncated == len(whole.prompt_tokens) - 9
    with pytest.raises(InputError, match="no room for the mask in 2 tokens"):
        render(ROWS, tokenizer, **MASK | {"max_length": 2})


def test_robertas_words_stand_behind_a_space_and_its_mask_takes_the_one_in_front():
    tokenizer = byte_tokenizer()
    for template in ("{text} it was [MASK] .", "[MASK] : {text}"):
        [example] = render(ROWS[:1], tokenizer, **MASK | {"template": template, "choices": ["terrible", " great"]})
        names = [tokenizer.convert_ids_to_tokens(list(tokens)) for tokens in example.candidate_tokens]
        assert names == [["Ġterrible"], ["Ġgreat"]]
    points = render(ROWS[:1], tokenizer, **MASK | {"choices": [".", ","]})[0].candidate_tokens
    assert [tokenizer.convert_ids_to_tokens(list(tokens)) for tokens in points] == [["."], [","]]


def test_the_border_in_front_of_a_mask_is_what_the_tokenizer_writes():
    tokenizer = byte_tokenizer()
    [example] = render(ROWS[:1], tokenizer, **MASK | {"template": "{text} [SEP] it was [MASK] ."})
    assert list(example.prompt_tokens).count(tokenizer.sep_token_id) == 2  # and the one at the end


def test_a_long_text_to_classify_is_cut_on_its_right():
    tokenizer = word_tokenizer()
    [example] = render([{"text": "a good film it was", "label": "good"}], tokenizer, **CLASSES | {"max_length": 4})
    assert tokenizer.convert_ids_to_tokens(list(example.prompt_tokens)) == ["[CLS]", "a", "good", "[SEP]"]
    assert (example.truncated, example.reference, example.candidate_tokens) == (3, 1, ((0,), (1,), (2,)))


@pytest.mark.parametrize(
    ("choices", "label", "candidates", "tokens", "reference"),
    [
        (None, 2, ("bad", "good", "so so"), ((0,), (1,), (2,)), 2),
        (None, "good", ("bad", "good", "so so"), ((0,), (1,), (2,)), 1),
        (["Good", "Bad"], 0, ("Good", "Bad"), ((1,), (0,)), 0),  # by name, in the order of the labels
        (["+=good", "-=bad"], "-", ("good", "bad"), ((1,), (0,)), 1),
        (["one", "two", "three"], 2, ("one", "two", "three"), ((0,), (1,), (2,)), 2),  # by place: other names
    ],
)
def test_choices_name_classes(choices, label, candidates, tokens, reference):
    [example] = render([{"text": "film", "label": label}], word_tokenizer(), **CLASSES, choices=choices)
    assert (example.candidates, example.candidate_tokens, example.reference) == (candidates, tokens, reference)


def test_without_a_template_a_classifier_reads_the_prompts_column():
    rows = [{"review": "a good film", "label": 1}]
    for options in ({"template": None, "prompt": "review"}, {"template": "{review}"}):
        assert render(rows, word_tokenizer(), **CLASSES | options)[0].prompt == "a good film"


def test_the_classes_of_a_new_head():
    assert classes_of(ROWS, None, "label") == ("LABEL_0", "LABEL_1")
    assert classes_of(ROWS, [" bad", " good"], "label") == ("bad", "good")
    with pytest.raises(InputError, match="one of 1,000,000,001 classes"):
        classes_of([{"label": 3}, {"label": 10**9}], None, "label")
    assert classes_of([{"mood": "so so"}, {"mood": "bad"}], None, "mood") == ("bad", "so so")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (MASK | {"template": "{text} it was"}, "has no mask"),
        (MASK | {"template": "[MASK] {text} [MASK]"}, "has 2 masks"),
        (
            MASK | {"template": "{text} [MASK]", "rows": [{"text": "a [MASK] film", "label": 0}]},
            "row 1: there are 2 masks",
        ),
        (MASK | {"choices": ["very dull", "great"]}, "the answer 'very dull' is 'very' \\+ 'dull'"),
        (MASK | {"choices": ["awesome", "great"]}, "the answer 'awesome' is '\\[UNK\\]'"),
        (MASK | {"choices": ["great", " great"]}, "the answers 'great' and ' great' are the same token"),
        (MASK | {"shots": 1}, "a masked model takes no demonstrations"),
        (MASK | {"needs": "likelihood"}, "a masked model gives no likelihood"),
        (CLASSES | {"template": "{text} [MASK]"}, "a classifier fills none"),
        (CLASSES | {"template": None}, "there is no text to classify"),
        (CLASSES | {"choices": ["good", "lovely"]}, "'good', 'lovely' are not the model's classes"),
        (CLASSES | {"choices": ["one", "two"]}, "'one', 'two' are not the model's classes"),
        (CLASSES | {"rows": [{"text": "film", "label": 3}]}, "row 1: the label 3 is none of the 3 classes"),
        (CLASSES | {"rows": [{"text": "film", "label": "great"}]}, "the label 'great' is none of the 3 classes"),
        (CLASSES | {"choice_column": "text"}, "the same classes for all rows"),
        (CLASSES | {"template": "{text} [SEP] {text} [SEP] {text}"}, "stands in its text twice"),
    ],
)
def test_what_does_not_fit_is_refused(options, error):
    rows = options.get("rows", ROWS)
    with pytest.raises(InputError, match=error):
        render(rows, word_tokenizer(), **{name: value for name, value in options.items() if name != "rows"})


# Tuning


def saved(folder, model, tokenizer):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def tuned(folder, model, rows, **options):
    settings = {
        "max_steps": 30,
        "disable_tqdm": True,
        "learning_rate": 0.02,
        "eps": 1e-2,
        "num_directions": 4,
        "use_cpu": True,
        **options,
    }
    args = ZOConfig(str(folder), per_device_train_batch_size=len(rows), seed=3, **settings)
    trainer = ZOTrainer(model, objective="neg-cross-entropy", train_dataset=rows, eval_dataset=rows, args=args)
    before = trainer.evaluate()["eval_score"]
    trainer.train()
    return trainer, before, trainer.evaluate()["eval_score"]


def bits(model):
    return {name: weight.detach().numpy().tobytes() for name, weight in model.named_parameters()}


TOY = [{"text": f"a {word} film", "label": int(word in ("good", "great", "lovely"))} for word in WORDS[:2] + WORDS[7:9]]


@pytest.mark.slow
@pytest.mark.parametrize("family", [MASKED[0], *(pytest.param(one, marks=pytest.mark.slow) for one in MASKED[1:])])
def test_a_masked_model_improves_and_its_replay_has_the_bytes(family, tmp_path):
    base = saved(tmp_path / "base", masked_model(family), tokenizer_of(family))
    options = {"template": "{text} it was [MASK] .", "choices": ["terrible", "great"]}
    trainer, before, after = tuned(
        tmp_path / "run", base, TOY, **options, learning_rate=1e-2, max_steps=80, num_directions=16
    )
    assert trainer.scorer.problem is None
    assert after > before + 0.05, (before, after)
    trainer.save_model(str(tmp_path / "model"))
    assert bits(load_model(str(tmp_path / "model"))) == bits(trainer.model)
    assert bits(replay(tmp_path / "run", load_model(base))) == bits(trainer.model)


@pytest.mark.parametrize(
    ("family", "tune"),
    [("bert", "head"), *(pytest.param(*one, marks=pytest.mark.slow) for one in (("opt", "last-1"), ("llama", "full")))],
)
def test_a_new_head_improves_and_is_made_again(family, tune, tmp_path):
    language = masked_model("bert") if family == "bert" else random_model(family)
    tokenizer = word_tokenizer()
    base = saved(tmp_path / "base", language, tokenizer)
    names = ["bad", "good"]
    settings = {"head": "classifier", "tune": tune, "template": "{text}", "choices": names}
    rate = {"bert": 0.02, "opt": 0.02, "llama": 0.003}[family]
    trainer, before, after = tuned(tmp_path / "run", base, TOY, **settings, learning_rate=rate)
    assert after > before + 0.05, (before, after)
    assert trainer.model.config.id2label == {0: "bad", 1: "good"}
    head = {"bert": "classifier.weight", "opt": "score.weight", "llama": "score.weight"}[family]
    assert head in trainer.scorer.reader.tuned.weights
    whole = len(trainer.scorer.reader.tuned.weights) == len(list(trainer.model.parameters()))
    assert whole == (tune == "full")

    again, new = load_with_head(base, names, 3)  # the run's seed
    assert head in new
    assert bits(replay(tmp_path / "run", again)) == bits(trainer.model)
    other, _ = load_with_head(base, names, 4)
    first = bits(other)
    assert first[head] != bits(load_with_head(base, names, 3)[0])[head]
    assert bits(replay(tmp_path / "run", other)) == bits(trainer.model)  # the head is drawn again
    stranger, _ = load_with_head(base, [*names, "so so"], 3)
    before_refusal = bits(stranger)
    with pytest.raises(InputError, match="fingerprint"):
        replay(tmp_path / "run", stranger)
    assert bits(stranger) == before_refusal

    saved_model = str(tmp_path / "model")
    trainer.save_model(saved_model)
    assert head_of(saved_model) == Head("classifier", ("bad", "good"))
    found = evaluate(saved_model, "neg-cross-entropy", TOY, template="{text}", choices=names)
    assert found.score == pytest.approx(after, abs=1e-6)


def test_a_new_head_in_the_place_of_one_keeps_none_of_its_biases(tmp_path):
    model = classifier("bert", 3)
    torch.nn.init.ones_(model.classifier.bias)
    base = saved(tmp_path / "base", model, word_tokenizer())
    made, new = load_with_head(base, ["x", "y", "z"], 3)  # as many classes as before
    assert "classifier.bias" in new
    assert made.classifier.bias.tolist() == [0.0] * 3


@pytest.mark.parametrize("family", ["modernbert", "bert", "roberta"])
def test_only_what_a_checkpoint_lacks_of_a_new_head_is_drawn(family, tmp_path):
    language = masked_model(family)
    for name, weight in language.named_parameters():
        if "head" in name:  # what is kept differs from all that could be made anew
            torch.nn.init.normal_(weight)
    base = saved(tmp_path / "base", language, tokenizer_of(family))
    made, new = load_with_head(base, ["x", "y"], 3)
    lacks = {
        "modernbert": ["classifier.bias", "classifier.weight"],
        "bert": ["bert.pooler.dense.bias", "bert.pooler.dense.weight", "classifier.bias", "classifier.weight"],
        "roberta": [f"classifier.{layer}.{kind}" for layer in ("dense", "out_proj") for kind in ("bias", "weight")],
    }
    assert new == lacks[family]
    before, after = dict(language.named_parameters()), dict(made.named_parameters())
    assert all(torch.equal(after[name], before[name]) for name in after.keys() - set(new))
    other = dict(load_with_head(base, ["x", "y"], 4)[0].named_parameters())
    assert [name for name in sorted(after) if not torch.equal(after[name], other[name])] == [
        name for name in new if name.endswith("weight")
    ]


@pytest.mark.parametrize("count", [3, 4])
@pytest.mark.parametrize("family", ["modernbert", "bert", "roberta", "llama"])
def test_a_new_head_in_the_place_of_one_is_another_last_layer(family, count, tmp_path):
    model = classifier(family)  # of three classes
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.ones_(weight)
    base = saved(tmp_path / "base", model, tokenizer_of(family))
    made, new = load_with_head(base, ["a", "b", "c", "d"][:count], 3)
    last = {"roberta": "classifier.out_proj", "llama": "score"}.get(family, "classifier")
    assert new == [f"{last}.{kind}" for kind in ("bias", "weight") if family != "llama" or kind == "weight"]
    before, after = dict(model.named_parameters()), dict(made.named_parameters())
    assert after[f"{last}.weight"].shape[0] == count
    assert all(torch.equal(after[name], before[name]) for name in after.keys() - set(new))
    assert not torch.equal(after[f"{last}.weight"][:3], before[f"{last}.weight"])


def test_the_best_step_of_a_new_head_is_made_from_the_base(tmp_path):
    base = saved(tmp_path / "base", masked_model("bert"), word_tokenizer())
    settings = {"head": "classifier", "template": "{text}", "max_steps": 6, "learning_rate": 5.0}
    options = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "no"}
    trainer, _, _ = tuned(tmp_path / "run", base, TOY, **settings, **options)
    best = load_run(tmp_path / "run").best_step
    assert trainer.kept_step == best == 0  # the rate is far too large
    assert bits(replay(tmp_path / "run", load_with_head(base, ["a", "b"], 3)[0], step=best)) == bits(trainer.model)


def test_a_checkpoint_without_its_head_is_refused(tmp_path):
    model = masked_model("bert").bert
    base = saved(tmp_path / "body", model, word_tokenizer())
    with pytest.raises(InputError, match="lacks weights of BertForMaskedLM"):
        load_model(base)
