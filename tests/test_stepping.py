"""Contract under test: what `Stepper` writes is what the model's own `generate` writes, token for token.

On a CPU a step runs as it is; on a GPU it is captured once and replayed, and must give the same.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    MiniCPM3Config,
    MiniCPM3ForCausalLM,
)

from conftest import random_model
from families import with_logit
from terms import term_of
from test_completions import PROMPTS, assert_same_text, examples_of, slow_greedy
from zoreward.members import by_layer, in_blocks, members_at, tuned_weights, update_
from zoreward.neighbours.of_transformers import library_name
from zoreward.records import ObjectiveError, Term, Update
from zoreward.scoring import Generation, HFGenerator, Stepper, checked_generator, engine_of
from zoreward.scoring.decoding import forced_logits
from zoreward.scoring.stepping import LENGTHS

FAMILIES = ["llama", "llama-tied", "gpt2", "opt", "qwen3"]
# Large enough that members write other texts than the base; ranks differ, one member has two terms.
POPULATION = (
    (term_of(21, 0.1, 1),),
    (term_of(21, -0.1, 1),),
    (term_of(22, 0.1, 2),),
    (term_of(23, 0.07, 1), term_of(24, 0.07, 3)),
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="graphs need a GPU")


class Plain:
    """In the place of a stepper: leaves everything to `generate`."""

    problem = None

    def suits(self, members) -> bool:
        return False


def generators(model, tokenizer, **changes) -> tuple[HFGenerator, HFGenerator]:
    """One that writes by steps, one that writes by `generate`."""
    reader = replace(engine_of(model, 0), **changes)
    stepper = Stepper(reader, replays=next(model.parameters()).is_cuda)
    return HFGenerator(reader, tokenizer, stepper=stepper), HFGenerator(reader, tokenizer, stepper=Plain())


def written(generator: HFGenerator, members=POPULATION, prompts=PROMPTS, **settings) -> list[list[tuple[int, ...]]]:
    chunks = generator.generate(prompts, members, Generation(**settings))
    return [completions for chunk in chunks for completions in chunk]


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """How many batches were written by steps."""
    found, plain_write = [], Stepper.write

    def write(self, *args, **kwargs):
        answer = plain_write(self, *args, **kwargs)
        found.append(answer is not None)
        return answer

    monkeypatch.setattr(Stepper, "write", write)
    return found


@pytest.mark.parametrize(
    "family", [name if name == "opt" else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_texts_are_those_of_generate(family, tokenizer, calls) -> None:
    model = random_model(family)
    by_steps, plain = generators(model, tokenizer)
    found = written(by_steps, max_new_tokens=20)
    assert calls == [True]
    assert len({len(tokens) for texts in found for tokens in texts}) > 1, "some rows must end before others"
    assert len({str(texts) for texts in found}) == len(POPULATION), "members must write different texts"
    for member, texts, expected in zip(POPULATION, found, written(plain, max_new_tokens=20), strict=True):
        with members_at(model, (member,)):
            for prompt, tokens, other in zip(PROMPTS, texts, expected, strict=True):
                assert_same_text(tokens, other, slow_greedy(model, prompt, 20)[1])


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.7, "top_k": 5, "top_p": 0.8, "seed": 4},
        {"temperature": 1.2, "min_p": 0.2, "repetition_penalty": 1.5, "seed": 6},
        {"stop": ("film", "the it")},
        {"rows": 10},
        {"max_new_tokens": 1},
        # Each of these is part of one above.
        *(
            pytest.param(settings, marks=pytest.mark.slow)
            for settings in (
                {"temperature": 1.5, "seed": 3},
                {"repetition_penalty": 0.8},
                {"temperature": 1.0, "stop": ("good",), "seed": 5},
                {"max_new_tokens": 2},
            )
        ),
    ],
    ids=str,
)
def test_draws_stop_strings_and_small_batches_are_those_of_generate(settings, tokenizer, calls) -> None:
    by_steps, plain = generators(random_model("llama"), tokenizer)
    settings = {"max_new_tokens": 12, **settings}
    # Equal but for ties of two tokens within rounding, which these 240 tokens do not have.
    assert written(by_steps, **settings) == written(plain, **settings)
    assert calls and all(calls)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
def test_a_desk_is_used_again_in_the_turn_of_other_blocks(device, tokenizer, calls) -> None:
    model = random_model("llama").to(device)
    tuned = tuned_weights(model)
    tuned = in_blocks(tuned, by_layer(model, tuned))
    by_steps, plain = generators(model, tokenizer, tuned=tuned)
    for step, block in enumerate((0, 2, 2, 1)):
        members = tuple((term_of(30 + 2 * step + k, 0.2, 1, block=block),) for k in range(4))
        expected = written(plain, members, max_new_tokens=10)
        assert written(by_steps, members, max_new_tokens=10) == expected
        assert len({str(texts) for texts in expected}) > 1, "members must write different texts"
        update_(model, Update(0.0, members[0], 0, block=block), tuned=tuned)
    assert calls == [True] * 4 and by_steps.stepper.problem is None


def test_a_desk_is_used_again_with_other_prompts_other_members_and_other_weights(tokenizer, calls) -> None:
    model = random_model("opt")
    by_steps, plain = generators(model, tokenizer)
    longer = [prompt * 2 for prompt in PROMPTS]
    for step, prompts in enumerate((longer, PROMPTS, longer)):
        members = tuple((term_of(30 + 2 * step + k, 0.1, 1),) for k in range(4))
        expected = written(plain, members, prompts, max_new_tokens=10)
        assert written(by_steps, members, prompts, max_new_tokens=10) == expected
        update_(model, Update(0.0, members[0], 0))
    assert len(by_steps.stepper._desks) == 1
    grown = [prompt * 6 for prompt in PROMPTS]  # longer than the desk is
    assert len(grown[2]) + 10 > -(-(len(longer[2]) + 10) // LENGTHS) * LENGTHS
    assert written(by_steps, prompts=grown, max_new_tokens=10) == written(plain, prompts=grown, max_new_tokens=10)
    assert all(calls)


def test_what_does_not_suit_is_left_to_generate(tokenizer, calls) -> None:
    model = random_model("llama")
    by_steps, plain = generators(model, tokenizer)
    dense = ((Term(1, 0.05),), (Term(1, -0.05),))
    mixed = ((term_of(1, 0.05, 1),), (Term(1, 0.05),))
    for members in (((),), POPULATION[:1], dense, mixed):
        assert written(by_steps, members, max_new_tokens=4) == written(plain, members, max_new_tokens=4)
    alone, _ = generators(model, tokenizer, problem="one at a time")
    written(alone, max_new_tokens=4)
    assert not calls


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
def test_the_model_itself_is_written_for_once_steps_were_compared(device, tokenizer, calls) -> None:
    model = random_model("llama").to(device)  # four heads on two of keys and values
    rows, couple = examples_of(PROMPTS), ((term_of(1, 0.1, 1),), (term_of(1, -0.1, 1),))
    reader = engine_of(model, 0)
    stepper = Stepper(reader, replays=device == "cuda")
    assert not stepper.suits(((),))
    generator = checked_generator(reader, tokenizer, rows, couple, stepper=stepper)
    plain = HFGenerator(reader, tokenizer, stepper=Plain())
    calls.clear()
    for prompts in (PROMPTS, [prompt * 2 for prompt in PROMPTS], PROMPTS, PROMPTS):
        assert written(generator, ((),), prompts, max_new_tokens=12) == written(
            plain, ((),), prompts, max_new_tokens=12
        )
        written(generator, POPULATION, prompts, max_new_tokens=2)  # an evaluation lies between steps
    assert calls == [True] * 8


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_read_does_not_depend_on_what_was_read_before(dtype, device, tokenizer) -> None:
    model, draw = random_model("llama"), torch.Generator().manual_seed(0)
    for weight in model.parameters():
        if weight.ndim == 1:  # so that it matters in which order a norm rounds
            weight.data = 0.5 + torch.rand(weight.shape, generator=draw)
    reader = engine_of(model.to(device, dtype), 0)
    logits = [forced_logits(reader, tokenizer, PROMPTS, POPULATION, Stepper(reader, replays=device == "cuda"))]
    stepper = Stepper(reader, replays=device == "cuda")
    logits += [forced_logits(reader, tokenizer, PROMPTS, POPULATION, stepper) for _ in range(3)]
    assert all(torch.equal(logits[0], others) for others in logits[1:])


def test_a_model_whose_steps_differ_is_found_out_and_left_to_generate(tokenizer, calls, caplog) -> None:
    good, examples = random_model("llama"), examples_of(PROMPTS)
    reader = engine_of(good, 0)
    checked = checked_generator(reader, tokenizer, examples, POPULATION[:2], stepper=Stepper(reader, replays=False))
    assert checked.stepper.problem is None and calls == [True] * 2  # as it is, then replayed

    class Counting(type(good)):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            cache = kwargs.get(library_name())
            if cache is not None:  # a position of its own making, from the length of the cache
                output.logits = output.logits + cache.get_seq_length() * torch.linspace(0, 1, 32)
            return output

    good.__class__ = Counting
    stepper = Stepper(reader, replays=False)
    checked = checked_generator(reader, tokenizer, examples, POPULATION[:2], stepper=stepper)
    assert "logits differ" in stepper.problem and checked.reader.problem is None
    calls.clear()
    assert written(checked, max_new_tokens=4) == written(HFGenerator(reader, tokenizer), max_new_tokens=4)
    assert not calls


def test_a_model_without_positions_is_left_to_generate() -> None:
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=32, hidden_size=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=1)
    stepper = Stepper(engine_of(BloomForCausalLM(config).eval(), 0))
    assert stepper.problem and not stepper.suits(POPULATION)


def test_a_model_whose_local_attention_counts_from_the_end_of_the_cache_is_left_to_generate(tokenizer, calls) -> None:
    """Texts of four tokens, on which steps are tried, are too short to tell."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "bos_token_id": 1, "eos_token_id": 1}
    model = GPTNeoForCausalLM(GPTNeoConfig(**sizes, attention_types=[[["global", "local"], 1]], window_size=24)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(6 if weight.ndim == 2 else 1)
    reader = engine_of(model, 0)
    stepper = Stepper(reader, replays=False)
    generator = checked_generator(reader, tokenizer, examples_of(PROMPTS), POPULATION[:2], stepper=stepper)
    calls.clear()
    found = written(generator, POPULATION[:2], max_new_tokens=40)
    assert max(len(tokens) for texts in found for tokens in texts) > 24, "texts must be longer than the window"
    assert found == written(HFGenerator(reader, tokenizer, stepper=Plain()), POPULATION[:2], max_new_tokens=40)
    assert not calls and "local attention" in stepper.problem


def test_keys_and_values_may_have_other_widths(tokenizer, calls) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 4, "intermediate_size": 64, "q_lora_rank": 8, "kv_lora_rank": 8}
    sizes |= {"qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}
    tokens = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    by_steps, plain = generators(MiniCPM3ForCausalLM(MiniCPM3Config(**sizes, **tokens)).eval(), tokenizer)
    assert written(by_steps, max_new_tokens=8) == written(plain, max_new_tokens=8)
    assert calls == [True] and by_steps.stepper.problem is None


def test_prompts_of_one_token_in_many_rows(tokenizer, calls, monkeypatch) -> None:
    """They are not padded to the length of a graph, and a desk has read others before."""
    from zoreward.scoring import stepping

    monkeypatch.setattr(stepping, "CAPTURED_TOKENS", 16)
    by_steps, plain = generators(random_model("llama"), tokenizer)
    for prompts in ([(5,), (9,), (12,), (20,)], [(6,), (7,), (8,), (10,)]):
        expected = written(plain, prompts=prompts, max_new_tokens=6)
        assert written(by_steps, prompts=prompts, max_new_tokens=6) == expected
    assert calls == [True] * 2


def test_an_error_inside_leaves_the_batch_to_generate_and_a_lack_of_memory_goes_on(tokenizer) -> None:
    model = random_model("llama")
    by_steps, plain = generators(model, tokenizer)

    def wrong(error: Exception) -> None:
        def raising(*args) -> None:
            raise error

        by_steps.stepper._desks.clear()
        by_steps.stepper._replays = False
        return raising

    from zoreward.scoring import stepping

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stepping.Replays, "do", wrong(torch.OutOfMemoryError("too large")))
        with pytest.raises(torch.OutOfMemoryError):
            by_steps.stepper.write(torch.ones(4, 2).long(), torch.ones(4, 2).long(), POPULATION, 4, [1])
        assert by_steps.stepper.problem is None
        patch.setattr(stepping.Replays, "do", wrong(RuntimeError("not permitted when stream is capturing")))
        assert written(by_steps, max_new_tokens=4) == written(plain, max_new_tokens=4)
        assert "not permitted" in by_steps.stepper.problem


def test_numbers_that_are_lost_are_told_and_do_not_stay_in_the_cache(tokenizer) -> None:
    model = random_model("llama")
    by_steps, plain = generators(model, tokenizer)
    for temperature in (0.0, 1.0):
        with torch.no_grad():
            kept = model.model.norm.weight.clone()
            model.model.norm.weight[3] = float("nan")
        with pytest.raises(ObjectiveError, match="not finite"):
            written(by_steps, max_new_tokens=3, temperature=temperature)
        with torch.no_grad():
            model.model.norm.weight.copy_(kept)
        assert written(by_steps, max_new_tokens=9) == written(plain, max_new_tokens=9)


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0}, {"stop": ("zzz",)}], ids=["greedy", "drawn", "stop"])
def test_a_logit_that_has_overflowed_is_told(settings, tokenizer) -> None:
    for generator in generators(with_logit(random_model("llama"), 7, float("inf")), tokenizer):
        with pytest.raises(ObjectiveError, match="not finite"):
            written(generator, max_new_tokens=3, **settings)


def test_a_token_that_the_model_forbids_is_never_written(tokenizer) -> None:
    token = written(generators(random_model("llama"), tokenizer)[1], max_new_tokens=3)[0][0][0]
    for generator in generators(with_logit(random_model("llama"), token, -float("inf")), tokenizer):
        for texts in written(generator, max_new_tokens=3):
            assert all(token not in text for text in texts)


# --- graphs -------------------------------------------------------------------------------------------------------


@needs_gpu
@pytest.mark.parametrize("family", FAMILIES)
def test_replayed_steps_are_those_of_generate(family, tokenizer, calls) -> None:
    model = random_model(family).cuda()
    by_steps, plain = generators(model, tokenizer)
    prompts = PROMPTS * 40  # so many that copies would cost less than corrections
    for step in range(3):  # the second and the third time nothing but replays
        members = tuple((term_of(40 + 2 * step + k, 0.1, 1),) for k in range(4))
        for settings in ({}, {"temperature": 1.0, "seed": step}, {"stop": ("film",)}):
            found = written(by_steps, members, prompts, max_new_tokens=20, **settings)
            expected = written(plain, members, prompts, max_new_tokens=20, **settings)
            # A tie within rounding may fall otherwise: of some 16,000 tokens whose gaps are of size 1, rounding at 1e-4
            # would reach one or two rows of 800.
            assert sum(a != b for x, y in zip(found, expected, strict=True) for a, b in zip(x, y, strict=True)) <= 8
        update_(model, Update(0.0, members[0], 0))
    assert calls == [True] * 9
    desk = next(iter(by_steps.stepper._desks.values()))
    assert desk.graphs.are_captured


@needs_gpu
def test_moved_weights_are_captured_again(tokenizer, calls) -> None:
    model = random_model("llama").cuda()
    by_steps, plain = generators(model, tokenizer)
    written(by_steps, max_new_tokens=8)
    with torch.no_grad():
        for weight in model.parameters():
            weight.data = weight.data * 1.5
    assert written(by_steps, max_new_tokens=8) == written(plain, max_new_tokens=8)
    assert all(calls)
