"""Contract under test: an encoder–decoder reads a prompt with its encoder and an answer with its decoder.

- A candidate's score is its mean log-probability as transformers itself computes it, however rows are batched.
- Members share a forward pass (test_families.py); what they write is what a model with merged weights writes.
- It is tuned, saved, replayed and evaluated like any other model, with or without an adapter.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, PreTrainedTokenizerFast

from conftest import random_model
from rendering import render, render_prompts
from test_families import EXAMPLES, MEMBERS, model_of, moved, written
from zoreward import ZOConfig, ZOTrainer, evaluate
from zoreward.cli import main
from zoreward.members import tuned_weights
from zoreward.records import InputError
from zoreward.scoring import Generation, HFGenerator, candidate_logprobs, engine_of, load_model

START = {"t5": (0,), "flan-t5": (0,), "bart": (1, 2)}
ROWS = [{"text": f"a {word} film", "label": n % 2} for n, word in enumerate("bad good dull bright".split())]
ASKED = {"template": "{text} was ", "choices": [" terrible", " great"]}


@pytest.fixture
def ending(tiny_t5_dir: Path) -> PreTrainedTokenizerFast:
    """A tokenizer that puts EOS behind a text and knows no BOS, as T5's."""
    return PreTrainedTokenizerFast.from_pretrained(tiny_t5_dir)


@pytest.fixture
def folder(tiny_t5_dir: Path) -> Path:
    """A saved T5 and its tokenizer."""
    return tiny_t5_dir


def words(tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.convert_tokens_to_ids(text.split()))


# --- tokens -------------------------------------------------------------------------------------------------------


def test_the_encoder_reads_all_special_tokens_and_the_decoder_the_bare_answer(ending) -> None:
    [one, *_] = render(ROWS, ending, needs="choices", **ASKED, kind="encoder-decoder")
    assert one.prompt_tokens == words(ending, "a bad film was <end>")
    assert one.candidate_tokens == (words(ending, "terrible"), words(ending, "great"))
    [one, *_] = render_prompts(ROWS, ending, prompt="text", kind="encoder-decoder")
    assert one.prompt_tokens == words(ending, "a bad film <end>")


def test_a_long_prompt_loses_tokens_on_the_left_and_keeps_its_end(ending) -> None:
    how = {"needs": "choices", **ASKED, "kind": "encoder-decoder"}
    [one, *_] = render(ROWS, ending, **how, max_length=3)
    assert (one.prompt_tokens, one.truncated) == (words(ending, "film was <end>"), 2)
    [one, *_] = render_prompts(ROWS, ending, prompt="text", max_length=3, kind="encoder-decoder")
    assert (one.prompt_tokens, one.truncated) == (words(ending, "bad film <end>"), 1)
    with pytest.raises(InputError, match="no room for the prompt in 1 token"):
        render(ROWS, ending, **how, max_length=1)
    with pytest.raises(InputError, match="the answer 'a dull plot' has 3 tokens, not 2"):
        render(ROWS, ending, **{**how, "choices": ["a dull plot", "great"]}, max_length=2)
    with pytest.raises(InputError, match="the answer ' ' has no tokens"):
        render(ROWS, ending, **{**how, "choices": [" ", "great"]})


@pytest.mark.parametrize("choices", [["great", " great"], [" 好", " 坏"]])
def test_answers_that_the_decoder_reads_alike_are_refused(ending, choices) -> None:
    with pytest.raises(InputError, match=f"row 1: the answers {choices[0]!r} and {choices[1]!r} are the same tokens"):
        render(ROWS, ending, needs="choices", **{**ASKED, "choices": choices}, kind="encoder-decoder")


def test_demonstrations_stand_in_front_of_the_prompt_as_far_as_the_encoder_has_room(ending) -> None:
    how = {"needs": "choices", **ASKED, "kind": "encoder-decoder", "shots": 2}
    whole = render(ROWS, ending, **how)
    assert [one.shots for one in whole] == [2] * 4 and len(whole[0].prompt_tokens) == 15
    assert [one.shots for one in render(ROWS, ending, **how, max_length=15)] == [2] * 4  # the answer takes no room
    assert [one.shots for one in render(ROWS, ending, **how, max_length=14)] == [1] * 4


# --- scores -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def plain_logprobs(family: str) -> np.ndarray:
    """From the loss that transformers computes for labels, one answer at a time."""
    model = model_of(family)
    table = np.full((len(EXAMPLES), max(len(one.candidate_tokens) for one in EXAMPLES)), -np.inf)
    for n, one in enumerate(EXAMPLES):
        for c, answer in enumerate(one.candidate_tokens):
            forced = START[family][1:]
            labels = torch.tensor([[*forced, *answer]])
            labels_that_count = labels.clone()
            labels_that_count[:, : len(forced)] = -100
            read = model.prepare_decoder_input_ids_from_labels(labels)
            ids = torch.tensor([one.prompt_tokens])
            table[n, c] = -float(model(input_ids=ids, decoder_input_ids=read, labels=labels_that_count).loss)
    return table


@pytest.mark.parametrize(("pads", "tokens"), [(True, 4096), (True, 8), (False, 4096)])
@pytest.mark.parametrize("family", START)
def test_scores_are_those_of_transformers_own_loss(family: str, pads: bool, tokens: int) -> None:
    reader = engine_of(model_of(family), 0, tokens=tokens)
    assert reader.kind == "encoder-decoder" and reader.pads and reader.start == START[family]
    expected = plain_logprobs(family)
    assert np.ptp(expected[np.isfinite(expected)]) > 0.3
    # float32 logits of size ≤ 20: the sums of 32 products behind them are good to some 32 · 20 · 2^-24 = 4e-5.
    found = candidate_logprobs(replace(reader, pads=pads), EXAMPLES)[0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_a_prompt_goes_through_the_encoder_once_for_all_its_answers() -> None:
    model, rows = random_model("t5"), []
    reader = engine_of(model, 0)
    model.encoder.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    candidate_logprobs(reader, EXAMPLES, MEMBERS["dense"])
    assert rows == [len(EXAMPLES) * len(MEMBERS["dense"])]


@pytest.mark.parametrize("noise", MEMBERS)
@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.0, "seed": 3},
        pytest.param({"stop": ("film",)}, marks=pytest.mark.slow),
        pytest.param({"rows": 2}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_members_write_what_models_with_merged_weights_write(settings: dict, noise: str, tokenizer) -> None:
    model, members = model_of("t5"), MEMBERS[noise]
    prompts = [one.prompt_tokens for one in EXAMPLES]
    how = Generation(**{"max_new_tokens": 6, **settings})

    def texts(model, members):
        chunks = HFGenerator(engine_of(model, 0), tokenizer).generate(prompts, members, how)
        return [completions for chunk in chunks for completions in chunk]

    together = texts(model, members)
    # Equal but for ties of two tokens within rounding, which these some 50 tokens do not have.
    assert together == [texts(moved(model, member), ((),))[0] for member in members]
    assert len({str(own) for own in together}) > 1


def test_texts_are_those_of_transformers_own_generate(tokenizer) -> None:
    model = model_of("bart")
    found = written(HFGenerator(engine_of(model, 0), tokenizer), ((),))[0]
    for one, tokens in zip(EXAMPLES, found, strict=True):
        ids = torch.tensor([one.prompt_tokens])
        [expected] = model.generate(input_ids=ids, do_sample=False, max_new_tokens=len(tokens) + 1).tolist()
        assert tuple(expected) == (1, 2, *tokens)


def test_a_model_that_does_not_say_what_its_decoder_begins_with_is_refused() -> None:
    model = random_model("t5")
    for settings in (model.config, model.generation_config):
        settings.decoder_start_token_id = settings.bos_token_id = None
    with pytest.raises(InputError, match="does not say what its decoder begins with"):
        engine_of(model, 0)


# --- runs ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_toy_is_learned_saved_and_replayed(folder: Path, tmp_path: Path, capsys) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    asked = ["--data", str(data), "--template", "{text} was", "--choice", "terrible", "--choice", "great", "--json"]
    run = tmp_path / "run"
    steps = ["--steps", "40", "--lr", "1e-2", "--eps", "1e-2", "--num-directions", "8", "--output", str(run)]

    def last(*line: str) -> dict:
        assert main(list(line)) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    before = last("eval", "neg-cross-entropy", "--model", str(folder), *asked)["score"]
    last("tune", "neg-cross-entropy", "--model", str(folder), *asked, *steps)
    after = last("eval", "neg-cross-entropy", "--model", str(run / "model"), *asked)["score"]
    assert after > before + 0.1
    assert main(["replay", str(run), "--model", str(folder), "--output", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (run / "model" / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_texts_are_tuned_by_a_reward(folder: Path, ending, tmp_path: Path) -> None:
    def likes_film(completions: list[str]) -> list[float]:
        return [float(text.split().count("film")) for text in completions]

    options = {"max_steps": 8, "max_completion_length": 6, "learning_rate": 0.1, "eps": 0.1, "num_directions": 4}
    args = ZOConfig(str(tmp_path / "run"), prompt="text", eval_strategy="no", use_cpu=True, **options)
    trainer = ZOTrainer(str(folder), likes_film, args, train_dataset=ROWS)
    assert trainer.scorer.problem is None
    before = evaluate(str(folder), likes_film, ROWS, prompt="text", generation=Generation(6)).score
    trainer.train()
    after = evaluate(trainer.model, likes_film, ROWS, tokenizer=ending, prompt="text", generation=Generation(6)).score
    assert after > before


def test_an_adapter_is_one_for_pairs_of_texts_and_is_made_again(folder: Path, tmp_path: Path, capsys) -> None:
    run, again = tmp_path / "run", tmp_path / "again"
    args = ZOConfig(str(run), **ASKED, tune="lora", max_steps=2, use_cpu=True)
    trainer = ZOTrainer(str(folder), objective="neg-cross-entropy", args=args, train_dataset=ROWS)
    assert trainer.scorer.problem is None
    trainer.train()
    trainer.save_model(str(run / "model"))
    assert json.loads((run / "model" / "adapter_config.json").read_text())["task_type"] == "SEQ_2_SEQ_LM"
    assert type(load_model(str(run / "model"), device="cpu")).__name__ == "PeftModelForSeq2SeqLM"
    assert main(["replay", str(run), "--model", str(folder), "--output", str(again)]) == 0
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (again / name).read_bytes() == (run / "model" / name).read_bytes()


@pytest.mark.parametrize(("family", "place"), [("t5", "decoder.block.1."), ("bart", "model.decoder.layers.1.")])
def test_the_last_layers_are_the_decoder_s(family: str, place: str) -> None:
    names = tuned_weights(random_model(family), "last-1").weights
    layers = {name for name in names if "norm" not in name.split(".")[-2] or ".block." in name or ".layers." in name}
    assert any(name.startswith(place) for name in names)
    assert all("decoder." in name for name in layers)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drift": True}, "the drift of an encoder–decoder is not measured yet"),
        ({"max_kl": 0.1}, "the drift of an encoder–decoder is not measured yet"),
        ({"tune": "prefix"}, "an encoder–decoder takes no prefix"),
    ],
)
def test_what_is_not_there_yet_is_refused(options: dict, message: str, folder: Path, tmp_path: Path) -> None:
    args = ZOConfig(str(tmp_path / "run"), **ASKED, use_cpu=True, **options)
    with pytest.raises(InputError, match=message):
        ZOTrainer(str(folder), objective="accuracy", args=args, train_dataset=ROWS)


def test_a_saved_model_loads_in_transformers(folder: Path) -> None:
    reader = engine_of(AutoModelForSeq2SeqLM.from_pretrained(folder).eval(), 0)
    np.testing.assert_array_equal(
        candidate_logprobs(reader, EXAMPLES), candidate_logprobs(engine_of(model_of("t5"), 0), EXAMPLES)
    )
