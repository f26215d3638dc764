"""Contract under test: what a member writes depends on the member, the prompt and the seed alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from transformers import (
    GenerationConfig,
    MinPLogitsWarper,
    PreTrainedTokenizerFast,
    RepetitionPenaltyLogitsProcessor,
    RwkvConfig,
    RwkvForCausalLM,
)

from conftest import random_model
from rendering import render_prompts
from zoreward.members import members_at
from zoreward.noise import Purpose
from zoreward.noise import definition as noise
from zoreward.records import Example, InputError, ObjectiveError, Term, UnknownNameError
from zoreward.registry import get_objective
from zoreward.scoring import (
    Generation,
    HFGenerator,
    LocalEngine,
    checked_generator,
    completion_scores,
    distinct_2,
    engine_of,
    mean_length,
    share_that_differs,
)
from zoreward.scoring.decoding import _words, completion_of, gumbel

PROMPTS = [(5, 6, 7), (4,), (9, 9, 3, 4, 5, 6, 11), (5, 6), (20, 21, 22, 23)]
MEMBERS = tuple((Term(seed, sign * 0.05),) for seed in (1, 2) for sign in (1, -1))
CHAT = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}plot{% endif %}"
)


@pytest.fixture
def chat_tokenizer(tiny_model_dir) -> PreTrainedTokenizerFast:
    found = PreTrainedTokenizerFast.from_pretrained(tiny_model_dir)
    found.chat_template = CHAT
    return found


def generator_for(model, tokenizer, **changes) -> HFGenerator:
    tokens = changes.pop("tokens", None)
    return HFGenerator(replace(engine_of(model, 0), **changes), tokenizer, tokens=tokens)


def engine_for(model, tokenizer, tokens: int) -> LocalEngine:
    return replace(engine_of(model, 0), generator=generator_for(model, tokenizer, tokens=tokens))


def written(generator: HFGenerator, members=((),), prompts=PROMPTS, **settings) -> list[list[tuple[int, ...]]]:
    chunks = generator.generate(prompts, members, Generation(**settings))
    return [completions for chunk in chunks for completions in chunk]


def examples_of(prompts: Sequence[tuple[int, ...]], **columns) -> list[Example]:
    rows = [{name: values[n] for name, values in columns.items()} for n in range(len(prompts))]
    return [Example(row, f"p{n}", (), 0, prompt, ()) for n, (row, prompt) in enumerate(zip(rows, prompts, strict=True))]


@torch.no_grad()
def slow_greedy(model, prompt: tuple[int, ...], steps: int) -> tuple[tuple[int, ...], list[float]]:
    """One prompt, unpadded, without a cache; the margin between the two best tokens at each step."""
    tokens, margins = list(prompt), []
    for _ in range(steps):
        best = model(input_ids=torch.tensor([tokens])).logits[0, -1].topk(2)
        tokens.append(int(best.indices[0]))
        margins.append(float(best.values[0] - best.values[1]))
        if tokens[-1] == 1:
            break
    return tuple(tokens[len(prompt) :]), margins


def assert_same_text(found: tuple[int, ...], expected: tuple[int, ...], margins: list[float]) -> None:
    if found != expected:
        first = next(i for i in range(len(expected)) if found[i : i + 1] != expected[i : i + 1])
        # Logits in another batch are good to some 1e-4 (float32); nearer ones may change places.
        assert margins[first] < 1e-3, (found, expected, first)


# --- members ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        pytest.param({"tokens": 30}, {}, marks=pytest.mark.slow),
        pytest.param({}, {"rows": 3}, marks=pytest.mark.slow),
        ({"problem": "one at a time"}, {}),
        ({"tokens": 90}, {"rows": 7}),
    ],
    ids=["few-tokens", "few-rows", "alone", "both"],
)
def test_how_the_work_is_cut_changes_nothing(changes, settings, tokenizer) -> None:
    model = random_model("llama")
    for temperature in (0.0, 1.5):
        how = {"max_new_tokens": 6, "temperature": temperature, "seed": 3}
        whole = written(generator_for(model, tokenizer), MEMBERS, **how)
        # Equal but for ties of two tokens within rounding, which these 120 tokens do not have.
        assert written(generator_for(model, tokenizer, **changes), MEMBERS, **how, **settings) == whole


def test_all_members_and_prompts_go_through_one_call_within_the_rows_that_are_allowed(tokenizer) -> None:
    model, calls = random_model("llama"), []
    model.register_forward_pre_hook(lambda _, args, kwargs: calls.append(len(kwargs["input_ids"])), with_kwargs=True)
    generator = generator_for(model, tokenizer)
    calls.clear()
    written(generator, MEMBERS, max_new_tokens=1)
    assert calls == [20]
    calls.clear()
    written(generator, MEMBERS, max_new_tokens=1, rows=10)
    assert calls == [10, 10]
    calls.clear()
    written(generator, MEMBERS[:1], max_new_tokens=1, rows=3)
    assert calls == [3, 2]


@pytest.mark.slow
def test_a_batch_that_does_not_fit_is_halved_and_the_next_ones_are_smaller(tokenizer) -> None:
    model, sizes = random_model("llama"), []
    generator = generator_for(model, tokenizer)
    expected = written(generator, MEMBERS, max_new_tokens=6)

    def small_memory(_, args, kwargs):
        sizes.append(len(kwargs["input_ids"]))
        if sizes[-1] > 4:
            raise torch.OutOfMemoryError("too large")

    generator.tokens = 20 * 13
    hook = model.register_forward_pre_hook(small_memory, with_kwargs=True)
    assert written(generator, MEMBERS, max_new_tokens=6) == expected
    assert max(sizes) == 20
    sizes.clear()
    assert written(generator, MEMBERS, max_new_tokens=6) == expected
    assert max(sizes) <= 5
    hook.remove()


def test_weights_settings_and_random_state_are_left_alone(tokenizer) -> None:
    model = random_model("llama")
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    # what a checkpoint brings along would change the text
    model.generation_config = own = GenerationConfig(repetition_penalty=5.0, do_sample=True, eos_token_id=1)
    torch.manual_seed(7)
    state = torch.random.get_rng_state()
    generator = generator_for(model, tokenizer)
    found = written(generator, max_new_tokens=8)[0]
    written(generator, MEMBERS, max_new_tokens=4, temperature=1.0)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.generation_config is own
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    for prompt, completion in zip(PROMPTS, found, strict=True):
        assert_same_text(completion, *slow_greedy(model, prompt, 8))


def test_a_model_that_reads_padding_gets_none(tokenizer) -> None:
    torch.manual_seed(0)
    config = RwkvConfig(
        vocab_size=32, hidden_size=32, num_hidden_layers=2, context_length=64, bos_token_id=1, eos_token_id=1
    )
    model = RwkvForCausalLM(config).eval()
    generator = generator_for(model, tokenizer)
    assert not generator.reader.pads
    for prompt, completion in zip(PROMPTS, written(generator, max_new_tokens=6)[0], strict=True):
        assert_same_text(completion, *slow_greedy(model, prompt, 6))


def test_a_model_that_cannot_share_a_pass_is_found_out_and_writes_one_by_one(tokenizer) -> None:
    good = random_model("llama")
    examples = examples_of(PROMPTS)
    assert checked_generator(engine_of(good, 0), tokenizer, examples, MEMBERS[:2]).reader.problem is None

    class Mixing(type(good)):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = output.logits - output.logits.mean(dim=0, keepdim=True)  # rows see each other
            return output

    bad = random_model("llama")
    bad.__class__ = Mixing
    mixing = checked_generator(engine_of(bad, 0), tokenizer, examples, MEMBERS[:2])
    assert "differ" in str(mixing.reader.problem)


def test_a_model_that_has_lost_its_numbers_writes_nothing(tokenizer) -> None:
    model = random_model("llama")
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    generator = HFGenerator(engine_of(model, 0), tokenizer)
    with pytest.raises(ObjectiveError, match="not finite"):
        written(generator, max_new_tokens=3)


# --- sampling -----------------------------------------------------------------------------------------------------


def test_the_random_numbers_are_those_of_the_project_s_noise() -> None:
    words = _words(12345678901234567890, torch.tensor([0, 7, 2**32 - 1]), 5)
    for row, stream in zip(words, (0, 7, 2**32 - 1), strict=True):
        assert row.tolist() == noise.words(12345678901234567890, stream, 0, 20, Purpose.SAMPLING).tolist()


def test_gumbel_numbers_have_the_distribution_s_mean_and_variance() -> None:
    drawn = gumbel(0, range(100), 3, 2000, "cpu")
    count = drawn.numel()
    # mean 0.5772, variance π²/6, fourth central moment 5.4 of its square: five standard errors
    assert float(drawn.mean()) == pytest.approx(0.5772157, abs=5 * math.sqrt(math.pi**2 / 6 / count))
    assert float(drawn.var()) == pytest.approx(math.pi**2 / 6, rel=5 * math.sqrt(4.4 / count))
    assert float(drawn.max()) < 23


def test_equal_members_draw_the_same_and_other_seeds_and_rows_do_not(tokenizer) -> None:
    generator = generator_for(random_model("llama"), tokenizer)
    prompts = [(5, 6, 7)] * 8
    how = {"max_new_tokens": 8, "temperature": 1.0, "prompts": prompts}
    first, second, other = written(generator, ((), (Term(1, 0.0),), MEMBERS[0]), **how)
    assert first == second != other
    assert len(set(first)) > 4
    assert written(generator, seed=1, **how)[0] != first
    again = written(generator, **how)[0]
    assert again == first


def test_sampled_tokens_follow_the_model(tokenizer) -> None:
    model = random_model("llama")
    rows, temperature = 4000, 2.0
    generator = generator_for(model, tokenizer, tokens=10**6)
    how = {"max_new_tokens": 1, "temperature": temperature, "prompts": [(5, 6, 7)] * rows}
    drawn = torch.tensor([tokens[0] for tokens in written(generator, **how)[0]]).bincount(minlength=32) / rows
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[5, 6, 7]])).logits[0, -1]
    shares = (logits / temperature).softmax(-1)
    # five standard errors of a share, for each of 32 tokens
    assert ((drawn - shares).abs() <= 5 * (shares * (1 - shares) / rows).sqrt() + 1e-9).all()
    assert (shares > 0.02).sum() > 5
    for settings in ({"top_k": 3}, {"top_p": 0.5}):
        cut = {tokens[0] for tokens in written(generator, **how, **settings)[0]}
        order = shares.sort(descending=True)
        kept = 3 if "top_k" in settings else int((order.values.cumsum(0) < 0.5).sum()) + 1
        assert cut == set(order.indices[:kept].tolist())


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_min_p_and_the_penalty_of_repetitions_are_those_of_transformers(tokenizer, temperature) -> None:
    how = {"max_new_tokens": 8, "temperature": temperature, "min_p": 0.3, "repetition_penalty": 1.7, "seed": 6}
    prompts, members = [(5, 6, 7, 8), (9,), (1, 10)], ((), MEMBERS[0])  # 0 is padding, which no row of its own has
    model = random_model("llama")
    texts = written(generator_for(model, tokenizer), members, prompts, **how)
    penalised, kept = RepetitionPenaltyLogitsProcessor(1.7), MinPLogitsWarper(0.3)
    removed = 0
    for member, of_member in zip(members, texts, strict=True):
        with members_at(model, (member,)), torch.no_grad():
            for row, (prompt, tokens) in enumerate(zip(prompts, of_member, strict=True)):
                for position, token in enumerate(tokens):
                    ids = torch.tensor([[*prompt, *tokens[:position]]])
                    logits = model(input_ids=ids).logits[:, -1]
                    repeated = torch.zeros_like(logits, dtype=bool).index_fill_(1, ids[0], True)
                    by_hand = torch.where(repeated, torch.where(logits > 0, logits / 1.7, logits * 1.7), logits)
                    torch.testing.assert_close(by_hand, penalised(ids, logits))
                    if temperature:
                        shares = (by_hand / temperature).softmax(-1)
                        rare = shares < 0.3 * shares.max()
                        removed += int(rare.sum())
                        by_hand = (by_hand / temperature).masked_fill(rare, -math.inf)
                        torch.testing.assert_close(by_hand, kept(ids, penalised(ids, logits) / temperature))
                        by_hand = by_hand + gumbel(6, [row], position, logits.shape[1], "cpu")
                    assert token == int(by_hand.argmax())
    assert texts != written(generator_for(model, tokenizer), members, prompts, **how | {"repetition_penalty": 1.0})
    assert not temperature or removed


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": 0},
        {"temperature": -1.0},
        {"top_p": 0.0},
        {"top_k": -1},
        {"min_p": 1.5},
        {"min_p": -0.1},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": float("inf")},
        {"stop": ("",)},
        {"stop": "x"},
        {"seed": -1},
        {"rows": 0},
    ],
)
def test_settings_out_of_range(wrong) -> None:
    with pytest.raises(InputError, match=f"{next(iter(wrong))}=.* is out of range"):
        Generation(**wrong)


# --- texts --------------------------------------------------------------------------------------------------------


def test_a_completion_ends_with_the_end_token_or_before_a_stop_string(tokenizer) -> None:
    ids = tokenizer("good film a the it was", add_special_tokens=False)["input_ids"]
    found = completion_of(tokenizer, (*ids[:2], 1), Generation())
    assert (found.text, found.tokens, found.ended) == ("good film", (*ids[:2], 1), True)
    found = completion_of(tokenizer, tuple(ids), Generation(max_new_tokens=6))
    assert (found.text, found.ended) == ("good film a the it was", False)
    found = completion_of(tokenizer, tuple(ids), Generation(max_new_tokens=6, stop=("it", "m a t")))
    assert (found.text, found.tokens, found.ended) == ("good fil", tuple(ids[:4]), True)
    found = completion_of(tokenizer, (1,), Generation())
    assert (found.text, found.ended) == ("", True)


def test_a_stop_string_ends_the_writing_not_only_the_text(tokenizer) -> None:
    generator = generator_for(random_model("llama"), tokenizer)
    free = written(generator, max_new_tokens=16)[0]
    text = tokenizer.decode(list(free[2]), skip_special_tokens=True)
    words = text.split()
    stop = f"{words[2]} {words[3]}"
    stopped = written(generator, max_new_tokens=16, stop=(stop,))[0]
    settings = Generation(max_new_tokens=16, stop=(stop,))
    for tokens, all_tokens in zip(stopped, free, strict=True):
        assert completion_of(tokenizer, tokens, settings) == completion_of(tokenizer, all_tokens, settings)
    assert completion_of(tokenizer, stopped[2], settings).text == text[: text.index(stop)]
    # behind it the row is filled up, with padding
    kept = len(completion_of(tokenizer, stopped[2], settings).tokens)
    assert kept < 10 and set(stopped[2][kept:]) <= {0} and stopped[2] != free[2]


def test_completion_scores_give_scores_texts_and_rewards(tokenizer) -> None:
    engine = engine_for(random_model("llama"), tokenizer, tokens=60)  # several chunks
    threads = []

    def long(completions, completion_ids, answer):
        import threading

        threads.append(threading.current_thread() is threading.main_thread())
        return [len(ids) + right for ids, right in zip(completion_ids, answer, strict=True)]

    examples = examples_of(PROMPTS, answer=[1, 2, 3, 4, 5])
    writings = completion_scores(engine, get_objective(long), examples, MEMBERS, Generation(6))
    assert threads == [True] * len(MEMBERS)
    for writing, tokens in zip(writings, written(engine.generator, MEMBERS, max_new_tokens=6), strict=True):
        assert [one.tokens for one in writing.completions] == tokens
        assert [one.text for one in writing.completions] == [
            tokenizer.decode(list(ids), skip_special_tokens=True) for ids in tokens
        ]
        expected = tuple(len(ids) + n for n, ids in enumerate(tokens, 1))
        assert writing.rewards == {"long": expected}
        assert writing.score == writing.part_scores["long"] == sum(expected) / 5


def test_an_error_of_the_objective_arrives_and_nothing_goes_on(tokenizer) -> None:
    engine = engine_for(random_model("llama"), tokenizer, tokens=60)

    def wrong(completions):
        return [1.0]

    with pytest.raises(ObjectiveError, match="wrong number of scores: got 1 for 5 rows"):
        completion_scores(engine, get_objective(wrong), examples_of(PROMPTS), MEMBERS, Generation(4))


def test_what_is_counted() -> None:
    assert distinct_2([(1, 2, 1, 2), (1, 2), (7,)]) == 2 / 4
    assert distinct_2([(1,), ()]) == 0.0
    assert mean_length([(1, 2, 1), (7,), ()]) == 4 / 3
    assert share_that_differs([["a"], ["b"]], base_N=["a"]) == 0.5
    assert share_that_differs([["a"]]) == 0.0


# --- prompts ------------------------------------------------------------------------------------------------------


def test_plain_prompts_from_a_column_or_a_template(tokenizer) -> None:
    rows = [{"prompt": "a good film", "x": "bad"}, {"prompt": "", "x": "it"}]
    first, second = render_prompts(rows, tokenizer)
    assert first.prompt_tokens == tuple(tokenizer("a good film", add_special_tokens=False)["input_ids"])
    assert second.prompt_tokens == (1,)  # BOS: a model needs something to begin with
    assert (first.candidates, first.messages, first.row) == ((), None, rows[0])
    filled = render_prompts(rows, tokenizer, template="{x} film")
    assert [one.prompt for one in filled] == ["bad film", "it film"]
    [cut] = render_prompts([{"prompt": "a good film"}], tokenizer, max_length=2)
    assert (cut.prompt_tokens, cut.truncated) == (first.prompt_tokens[1:], 1)


def test_conversations_go_through_the_chat_template(chat_tokenizer) -> None:
    asked = [{"role": "it", "content": "was good"}]
    begun = [*asked, {"role": "assistant", "content": "the"}]
    first, second = render_prompts([{"prompt": asked}, {"prompt": begun}], chat_tokenizer)
    assert (first.prompt, first.messages) == ("it was good plot", tuple(asked))
    assert first.prompt_tokens == tuple(chat_tokenizer("it was good plot", add_special_tokens=False)["input_ids"])
    assert second.prompt.endswith("the")


def test_prompts_that_cannot_be_used(tokenizer, chat_tokenizer) -> None:
    chat = [{"role": "user", "content": "x"}]
    cases = [
        ([{"prompt": chat}], tokenizer, "has no chat template"),
        ([{"prompt": chat}, {"prompt": "x"}], chat_tokenizer, "row 2 is of another kind"),
        ([{"prompt": "x"}, {"prompt": chat}], chat_tokenizer, "row 2 is of another kind"),
        ([{"prompt": 3}], chat_tokenizer, "row 1: 3 in the column 'prompt' is no prompt"),
        ([{"prompt": []}], chat_tokenizer, "is no prompt"),
        ([{"prompt": "x"}, {"prompt": None}], tokenizer, "row 2 has no prompt in column 'prompt'"),
        ([], tokenizer, "there are no rows"),
    ]
    for rows, some, message in cases:
        with pytest.raises(InputError, match=message):
            render_prompts(rows, some)
    with pytest.raises(UnknownNameError, match="no row has the prompt column 'prompt'") as caught:
        render_prompts([{"promt": "x"}], tokenizer)
    assert "did you mean promt" in caught.value.hint
    with pytest.raises(InputError, match="leaves 0 tokens for the prompt"):
        render_prompts([{"prompt": "x"}], tokenizer, max_length=0)
    chat_tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InputError, match=r"row 1 does not fit the chat template: roles must alternate"):
        render_prompts([{"prompt": chat}], chat_tokenizer)
