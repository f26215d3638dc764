"""Contract under test: on every family of models, members that share a forward pass are those of one at a time.

One at a time means a whole copy of the weights at the member: no module of the model is called in another way.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from peft import LoraConfig, get_peft_model
from torch import nn

from families import ALONE, CAUSAL, ENCODER_DECODER, MASKED, random_model
from terms import term_of
from zoreward import ZOConfig, ZOTrainer, evaluate
from zoreward.members import members_at, tuned_weights, update_
from zoreward.records import Example, InputError, Member, Term, Update
from zoreward.scoring import (
    Generation,
    HFGenerator,
    candidate_logprobs,
    checked_engine,
    checked_generator,
    engine_of,
)

# Large enough that members differ from the base and from each other; ranks differ, one member has two terms.
MEMBERS: dict[str, tuple[Member, ...]] = {
    "dense": ((Term(11, 0.05),), (Term(11, -0.05),), (Term(12, 0.05), Term(13, 0.02))),
    "low-rank": (
        *((term_of(21, 0.1, 1),), (term_of(22, 0.1, 2),), (term_of(23, 0.07, 1), term_of(24, 0.07, 3))),
        (term_of(25, 0.1, 1, b_seed=21),),
    ),
}
PROMPTS = [(5, 6, 7), (9, 9, 3, 4, 5, 6, 11), (20, 21, 22, 23)]
NEW = 5
# float32: grouped members are the same products of the same rows, but a library may block a product with more rows in
# another way, and low-rank members add z to the output instead of the weight. Sums of 48 terms of size ≤ 4: some
# 48 · 4 · 2^-24 = 1e-5 a layer.
TOLERANCE = 1e-4
# Logits are good to some 1e-4, so two tokens that are nearer than this may change places.
NEAR_TIE = 1e-3


@cache
def model_of(family: str) -> nn.Module:
    return random_model(family)


def example(prompt: tuple[int, ...], *candidates: tuple[int, ...]) -> Example:
    return Example({}, "", ("",) * len(candidates), 0, prompt, candidates)


EXAMPLES = [
    example(PROMPTS[0], (8, 3, 4), (9,)),
    example(PROMPTS[1], (10, 11), (12, 13, 14, 15), (16,)),
    example(PROMPTS[2], (8,), (9, 20)),
]


def inputs(model: Any, members: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Four rows, one of them padded, once for each member; and which of the logits count."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, 30, (4, 7), generator=generator)
    mask = torch.ones_like(tokens)
    valid = mask.bool()
    given = {"input_ids": tokens, "attention_mask": mask}
    if model.config.is_encoder_decoder:
        mask[0, 4:] = 0
        given["decoder_input_ids"] = torch.randint(3, 30, (4, 5), generator=generator)
        valid = torch.ones(4, 5, dtype=torch.bool)
    else:
        mask[0, :3] = 0
        valid = mask.bool()
    return {name: tensor.repeat(members, 1) for name, tensor in given.items()}, valid.repeat(members, 1)


@torch.no_grad()
def logits_at(model: Any, members: tuple[Member, ...], **options: Any) -> torch.Tensor:
    given, valid = inputs(model, len(members))
    with members_at(model, members, **options):
        return model(**given).logits[valid].view(len(members), -1, 32)


def moved(model: nn.Module, member: Member) -> nn.Module:
    """A copy whose weights are those of the member."""
    other = copy.deepcopy(model)
    update_(other, Update(0.0, member, 0))
    return other


@torch.no_grad()
def logits_behind(model: Any, prompt: tuple[int, ...], answer: tuple[int, ...]) -> torch.Tensor:
    """The logits of the tokens of an answer and of one more: unpadded, without a cache."""
    if model.config.is_encoder_decoder:
        start = (1, 2) if model.config.model_type == "bart" else (0,)
        ids = {"input_ids": torch.tensor([prompt]), "decoder_input_ids": torch.tensor([[*start, *answer]])}
        return model(**ids, use_cache=False).logits[0, len(start) - 1 :]
    return model(input_ids=torch.tensor([[*prompt, *answer]]), use_cache=False).logits[0, len(prompt) - 1 :]


def slow_logprobs(model: Any) -> np.ndarray:
    """Each candidate alone."""
    table = np.full((len(EXAMPLES), max(len(one.candidate_tokens) for one in EXAMPLES)), -np.inf)
    for n, one in enumerate(EXAMPLES):
        for c, answer in enumerate(one.candidate_tokens):
            logs = logits_behind(model, one.prompt_tokens, answer).double().log_softmax(-1)
            table[n, c] = np.mean([float(logs[t, token]) for t, token in enumerate(answer)])
    return table


def slow_greedy(model: Any, prompt: tuple[int, ...]) -> tuple[tuple[int, ...], list[float]]:
    """The likeliest tokens, and by how much they are at each step."""
    written, margins = (), []
    while len(written) < NEW and 1 not in written:
        best = logits_behind(model, prompt, written)[-1].topk(2)
        written += (int(best.indices[0]),)
        margins.append(float(best.values[0] - best.values[1]))
    return written, margins


def assert_same_text(found: tuple[int, ...], expected: tuple[int, ...], margins: list[float]) -> None:
    if found != expected:
        first = next(i for i in range(len(expected)) if found[i : i + 1] != expected[i : i + 1])
        assert margins[first] < NEAR_TIE, (found, expected, first)


def written(generator: HFGenerator, members: tuple[Member, ...]) -> list[list[tuple[int, ...]]]:
    chunks = generator.generate(PROMPTS, members, Generation(max_new_tokens=NEW))
    return [texts for chunk in chunks for texts in chunk]


# A tied head, a position table, experts that are chosen by rounding, and an encoder; of the other families the logits
# along dense directions are quick tests, and what stands on them, and low-rank directions, slow ones.
QUICK = ("llama-tied", "gpt2", "qwen3-moe", "flan-t5")
# Above the logits, each family along one kind.
ANSWERED = {"llama-tied": "low-rank", "gpt2": "dense", "qwen3-moe": "low-rank", "flan-t5": "dense"}
WRITTEN = {"llama-tied": "dense", "flan-t5": "low-rank"}
HALVED = {"qwen3-moe": "dense", "flan-t5": "low-rank"}


def with_noise(quick: dict[str, str]) -> list[Any]:
    """All families that answer along all kinds of directions; all but one kind for some are slow."""
    return [
        pytest.param(family, noise, marks=() if quick.get(family) == noise else pytest.mark.slow)
        for family in (*CAUSAL, *ENCODER_DECODER)
        for noise in MEMBERS
    ]


@pytest.mark.parametrize(
    ("family", "noise"),
    [
        pytest.param(family, noise, marks=() if noise == "dense" or family in QUICK else pytest.mark.slow)
        for family in (*CAUSAL, *MASKED, *ENCODER_DECODER)
        for noise in MEMBERS
    ],
)
def test_logits_of_grouped_members_are_those_of_one_at_a_time(family: str, noise: str) -> None:
    model, members = model_of(family), MEMBERS[noise]
    before = [weight.clone() for weight in model.parameters()]
    expected = torch.cat([logits_at(model, (member,)) for member in members])
    for keep_bytes in (0, 2**30):
        got = logits_at(model, members, keep_bytes=keep_bytes)
        torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE)
    all_at_once = torch.cat([logits_at(model, ((),)), expected])
    for n, one in enumerate(all_at_once):
        for other in all_at_once[:n]:
            assert (one - other).abs().max() > 0.1, "members must differ visibly, or the comparison shows nothing"
    assert all(torch.equal(weight, old) for weight, old in zip(model.parameters(), before, strict=True))


# Rows of each member, and tokens of a row. Rows of all four members are as many as a row's tokens, as the models are
# wide, and as experts' inner layers: lengths that happen to be those of the call must not be taken for its rows.
SHAPES = [(1, 4), (4, 16), (8, 5), (6, 3)]


def with_dora(family: str) -> nn.Module:
    torch.manual_seed(0)
    config = LoraConfig(r=4, use_dora=True, init_lora_weights=False)
    return get_peft_model(random_model(family), config).get_base_model().eval()


# Every shape with each family and each kind of directions; not all three.
SHAPED = [
    pytest.param(family, noise, shape, marks=() if (f + s) % 2 == (noise == "dense") else pytest.mark.slow)
    for f, family in enumerate(["bart", "t5", "gpt2", "qwen3-moe"])
    for noise in MEMBERS
    for s, shape in enumerate(SHAPES)
]


@pytest.mark.parametrize(
    ("family", "noise", "shape"),
    [*SHAPED, *(("dora", "dense", shape) for shape in SHAPES)],
    ids=lambda value: value if isinstance(value, str) else f"{value[0]}x{value[1]}",
)
@torch.no_grad()
def test_rows_may_be_as_many_as_tokens_or_as_the_model_is_wide(family: str, noise: str, shape: tuple[int, int]) -> None:
    model: Any = with_dora("llama") if family == "dora" else model_of(family)
    members = (*MEMBERS[noise], (Term(31, 0.05),))[:4] if noise == "dense" else MEMBERS[noise]
    tuned = tuned_weights(model, "lora" if family == "dora" else "full")
    tokens = torch.randint(3, 30, shape, generator=torch.Generator().manual_seed(1))
    given = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    if model.config.is_encoder_decoder:
        given["decoder_input_ids"] = tokens
    expected = []
    for member in members:
        with members_at(model, (member,), tuned=tuned):
            expected.append(model(**given).logits)
    with members_at(model, members, tuned=tuned):
        got = model(**{name: tensor.repeat(4, 1) for name, tensor in given.items()}).logits
    torch.testing.assert_close(got, torch.cat(expected), rtol=0, atol=TOLERANCE)
    assert all((one - other).abs().max() > 0.01 for n, one in enumerate(expected) for other in expected[:n])


@pytest.mark.parametrize(("family", "noise"), with_noise(ANSWERED))
def test_choices_of_grouped_members_are_those_of_one_at_a_time(family: str, noise: str) -> None:
    model, members = model_of(family), MEMBERS[noise]
    reader = checked_engine(model, 0, EXAMPLES, members[:2])
    assert reader.problem is None
    together = candidate_logprobs(reader, EXAMPLES, members)
    for member, found in zip(members, together, strict=True):
        np.testing.assert_allclose(found, slow_logprobs(moved(model, member)), rtol=0, atol=TOLERANCE)
    known = [table[np.isfinite(table)] for table in together]
    assert all(abs(one - other).max() > 0.01 for n, one in enumerate(known) for other in known[:n])


@pytest.mark.parametrize(("family", "noise"), with_noise(WRITTEN))
def test_texts_of_grouped_members_are_those_of_one_at_a_time(family: str, noise: str, tokenizer) -> None:
    model, members = model_of(family), MEMBERS[noise]
    generator = checked_generator(engine_of(model, 0), tokenizer, EXAMPLES, members[:2])
    assert generator.reader.problem is None
    [base, *together] = written(generator, ((), *members))
    assert all(texts != base for texts in together), "members must write other texts, or the comparison shows nothing"
    assert len({str(texts) for texts in together}) > len(members) // 2
    for member, texts in zip(members, together, strict=True):
        other = moved(model, member)
        for prompt, tokens in zip(PROMPTS, texts, strict=True):
            assert_same_text(tokens, *slow_greedy(other, prompt))


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)], ids=["bfloat16", "float16"]
)
@pytest.mark.parametrize(("family", "noise"), with_noise(HALVED))
def test_members_share_a_pass_in_half_precision(family: str, noise: str, dtype: torch.dtype, tokenizer) -> None:
    model = copy.deepcopy(model_of(family)).to(dtype)
    members = MEMBERS[noise][:2]
    assert checked_engine(model, 0, EXAMPLES, members).problem is None
    assert checked_generator(engine_of(model, 0), tokenizer, EXAMPLES, members).reader.problem is None


@pytest.mark.parametrize("noise", ["dense", pytest.param("low-rank", marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", ALONE)
def test_what_cannot_be_grouped_is_found_out_and_scored_one_at_a_time(family: str, noise: str, tokenizer) -> None:
    model, members = model_of(family), MEMBERS[noise]
    generator = checked_generator(engine_of(model, 0), tokenizer, EXAMPLES, members[:2])
    assert generator.reader.problem is not None
    for member, texts in zip(members, written(generator, members), strict=True):
        other = moved(model, member)
        for prompt, tokens in zip(PROMPTS, texts, strict=True):
            assert_same_text(tokens, *slow_greedy(other, prompt))
    reader = checked_engine(model, 0, EXAMPLES, members[:2])
    for member, found in zip(members, candidate_logprobs(reader, EXAMPLES, members), strict=True):
        np.testing.assert_allclose(found, slow_logprobs(moved(model, member)), rtol=0, atol=TOLERANCE)


class NeedsPictures(hf.LlamaForCausalLM):
    def forward(self, *args: Any, pixel_values: torch.Tensor | None = None, **kwargs: Any) -> Any:
        if pixel_values is None:
            raise ValueError("pixel_values are needed")
        return super().forward(*args, **kwargs)


def test_a_model_that_fails_by_itself_is_refused_by_name(tokenizer, tmp_path) -> None:
    model = random_model("llama")
    model.__class__ = NeedsPictures
    rows = [{"text": "a good film", "label": 0}, {"text": "a bad film", "label": 1}]
    asked = {"template": "{text} was", "choices": [" great", " terrible"]}
    message = "NeedsPictures cannot be run: ValueError: pixel_values are needed"
    with pytest.raises(InputError, match=message):
        evaluate(model, "accuracy", rows, tokenizer=tokenizer, **asked)
    args = ZOConfig(str(tmp_path / "run"), **asked, use_cpu=True)
    with pytest.raises(InputError, match=message):
        ZOTrainer(model, objective="accuracy", args=args, train_dataset=rows, processing_class=tokenizer)
    assert not (tmp_path / "run").exists()


def test_a_model_that_sees_the_tokens_behind_is_refused_by_name() -> None:
    torch.manual_seed(0)
    config = hf.XLNetConfig(vocab_size=32, d_model=32, n_layer=2, n_head=4, d_inner=48)
    with pytest.raises(InputError, match="XLNetLMHeadModel sees the tokens behind"):
        engine_of(hf.XLNetLMHeadModel(config).eval(), 0)


def test_padding_whose_embedding_is_zeros_is_not_taken_for_padding_that_does_no_harm() -> None:
    class Summing(hf.LlamaForCausalLM):
        """Adds the embeddings of all tokens so far, padding's too."""

        def forward(self, input_ids: torch.Tensor, **kwargs: Any) -> Any:
            return super().forward(inputs_embeds=self.model.embed_tokens(input_ids).cumsum(1), **kwargs)

    model = random_model("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[0] = 0
    assert engine_of(model, 0).pads
    model.__class__ = Summing
    assert not engine_of(model, 0).pads
