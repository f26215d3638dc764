"""Contract under test: a model's cache is handed over and read under the name that the model and transformers use."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers.utils.generic import ModelOutput

from conftest import random_model
from terms import term_of
from test_completions import PROMPTS
from test_scoring import LONG, slow_logprobs
from zoreward.members import called_model, with_prefix
from zoreward.neighbours.of_transformers import CACHE_NAMES, NEW_NAME, OLD_NAME, library_name
from zoreward.records import Term
from zoreward.scoring import Generation, HFGenerator, Stepper, candidate_logprobs, engine_of
from zoreward.trainer import ZOConfig, ZOTrainer

OTHER_NAME = {NEW_NAME: OLD_NAME, OLD_NAME: NEW_NAME}[library_name()]


@pytest.fixture(autouse=True)
def no_other_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a release of transformers whose outputs know one name only, and no warning of the other."""
    monkeypatch.delattr(ModelOutput, OTHER_NAME, raising=False)
    monkeypatch.setattr(ModelOutput, "_replace_old_cache_name", lambda self, name: name, raising=False)


def strict_model(family: str, argument: str) -> torch.nn.Module:
    """A model that takes its cache under one name, and nothing under another."""
    model = random_model(family)
    source = f"""
def forward(self, input_ids=None, attention_mask=None, position_ids=None, {argument}=None, use_cache=None):
    known = dict(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=use_cache)
    return plain_forward(self, **known, {library_name()}={argument})
"""
    scope = {"plain_forward": type(model).forward}
    exec(source, scope)
    model.__class__ = type(type(model).__name__, (type(model),), {"forward": scope["forward"]})
    return model


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("argument", CACHE_NAMES)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_answers_of_several_tokens_are_read_behind_a_shared_prompt(family: str, argument: str) -> None:
    model = strict_model(family, argument)
    reader = engine_of(model, 0)
    assert reader.shares_prefix
    [found] = candidate_logprobs(reader, LONG, [()])
    np.testing.assert_allclose(found, slow_logprobs(model, LONG), atol=1e-4)  # float32 sums in another order


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("argument", CACHE_NAMES)
def test_texts_are_written_by_steps(argument: str, tokenizer) -> None:
    members = tuple((term_of(seed, 0.1, 1),) for seed in (1, 2))
    settings = Generation(max_new_tokens=6)

    def texts(name: str) -> list[list[tuple[int, ...]]]:
        reader = engine_of(strict_model("llama", name), 0)
        generator = HFGenerator(reader, tokenizer, stepper=Stepper(reader, replays=False))
        found = [completions for chunk in generator.generate(PROMPTS, members, settings) for completions in chunk]
        assert generator.stepper.problem is None
        return found

    assert texts(argument) == texts(library_name())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("argument", CACHE_NAMES)
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_a_prefix_is_read_by_a_model_of_either_name(family: str, argument: str) -> None:
    tokens = torch.randint(3, 30, (2, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = called_model(with_prefix(random_model(family), 3))(input_ids=tokens).logits
        found = called_model(with_prefix(strict_model(family, argument), 3))(input_ids=tokens).logits
        plain = random_model(family)(input_ids=tokens).logits
    assert torch.equal(found, expected) and (found - plain).abs().max() > 0.1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_members_of_a_prefix_write_different_texts(family: str, tokenizer) -> None:
    """Each of their tokens is the likeliest that a pass over the whole text, without any cache, gives."""
    model = with_prefix(random_model(family), 3)
    generator = HFGenerator(engine_of(model, 0), tokenizer)
    weight = model.prompt_encoder.default.embedding.weight
    texts = []
    for step in (0.0, 0.5, 1.0):
        with torch.no_grad():
            weight += step * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
            [[completions]] = generator.generate(PROMPTS, [()], Generation(max_new_tokens=5))
            for prompt, completion in zip(PROMPTS, completions, strict=True):
                whole = called_model(model)(input_ids=torch.tensor([prompt + completion])).logits[0]
                assert completion == tuple(whole[len(prompt) - 1 : -1].argmax(-1).tolist())
        texts.append(completions)
    assert len({str(completions) for completions in texts}) == 3
    members = tuple((Term(seed, 0.5),) for seed in range(3))
    [chunk] = generator.generate(PROMPTS, members, Generation(max_new_tokens=5))
    assert len({str(completions) for completions in chunk}) == 3


@pytest.mark.filterwarnings("error::FutureWarning", "error::DeprecationWarning")
def test_a_run_on_texts_moves_its_prefix(tmp_path, tokenizer) -> None:
    def good_words(completions, **columns):
        return [float(text.split().count("good")) for text in completions]

    settings = {"max_steps": 2, "max_completion_length": 5, "num_directions": 4, "per_device_train_batch_size": 4}
    args = ZOConfig(str(tmp_path / "run"), use_cpu=True, disable_tqdm=True, tune="prefix", eps=0.5, **settings)
    rows = [{"prompt": text} for text in ("the film was", "a plot", "it was very", "this film is not")]
    run = ZOTrainer(
        random_model("llama"), objective=good_words, args=args, train_dataset=rows, processing_class=tokenizer
    )
    [weight] = run.scorer.reader.tuned.weights.values()
    before = weight.detach().clone()
    run.train()
    texts = {tuple(completion.text for completion in scored.completions) for scored in run.last_scored}
    assert len(texts) > 1, "members write the same"
    assert not torch.equal(weight, before)
