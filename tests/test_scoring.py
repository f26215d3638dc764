"""Contract under test: a candidate's score is its mean log-probability after its prompt, however it is computed."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertLMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)

from conftest import FAMILIES, random_model
from families import with_logit
from terms import term_of
from zoreward.cli.quickstart import MODEL
from zoreward.records import Example, InputError, ObjectiveError, Request, Term
from zoreward.registry import get_objective
from zoreward.scoring import (
    candidate_logprobs,
    checked_engine,
    engine_of,
    evaluate,
    load_model,
    member_scores,
    passes_sized_for,
)
from zoreward.scoring.logprobs import sorted_batches


def example(prompt, *candidates, reference=0) -> Example:
    return Example({}, "", ("",) * len(candidates), reference, tuple(prompt), tuple(map(tuple, candidates)))


SHORT = [
    example([5, 6, 7], [8], [9]),
    example([4], [8], [9]),
    example([9, 9, 3, 4, 5, 6, 11], [10], [12]),
    example([5, 6], [8], [9], [10]),
]
LONG = [
    example([5, 6, 7], [8, 3, 4], [9]),
    example([4], [8], [9, 20]),
    example([9, 9, 3, 4, 5, 6, 11], [10, 11], [12, 13, 14, 15], [16]),
]
SINGLE = [example([5, 6, 7], [8, 3, 4]), example([4], [9]), example([9, 9, 3, 4, 5], [10, 11])]


def slow_logprobs(model, examples) -> np.ndarray:
    """Each candidate alone, unpadded, with all logits."""
    table = np.full((len(examples), max(len(e.candidate_tokens) for e in examples)), -np.inf)
    for n, one in enumerate(examples):
        for c, candidate in enumerate(one.candidate_tokens):
            ids = torch.tensor([[*one.prompt_tokens, *candidate]])
            with torch.no_grad():
                logs = model(input_ids=ids).logits[0].double().log_softmax(-1)
            start = len(one.prompt_tokens) - 1
            table[n, c] = np.mean([float(logs[start + t, token]) for t, token in enumerate(candidate)])
    return table


@pytest.mark.parametrize("examples", [SHORT, LONG, SINGLE], ids=["one-token", "many-tokens", "one-candidate"])
@pytest.mark.parametrize("tokens", [8, 4096])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_exact_under_padding_batching_and_shared_prompts(family, examples, tokens):
    model = random_model(family)
    got = candidate_logprobs(engine_of(model, 0, tokens=tokens), examples)[0]
    expected = slow_logprobs(model, examples)
    assert np.ptp(expected[np.isfinite(expected)]) > 0.5
    # float32 logits of size ≤ 20: the sums of 32 products behind them are good to some 32 · 20 · 2^-24 = 4e-5.
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)


RECURRENT = {
    "rwkv": lambda: RwkvForCausalLM(RwkvConfig(vocab_size=32, hidden_size=32, num_hidden_layers=2, context_length=64)),
    "recurrent_gemma": lambda: RecurrentGemmaForCausalLM(
        RecurrentGemmaConfig(
            vocab_size=32,
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=64,
            lru_width=32,
            attention_window_size=16,
        )
    ),
}


@pytest.mark.parametrize("examples", [SHORT, LONG, SINGLE], ids=["one-token", "many-tokens", "one-candidate"])
@pytest.mark.parametrize("family", RECURRENT)
def test_a_model_that_reads_padding_gets_none(family, examples):
    torch.manual_seed(0)
    model = RECURRENT[family]().eval()
    reader = engine_of(model, 5)  # RecurrentGemma embeds token 0 as zeros, which do no harm
    assert not reader.pads
    expected = slow_logprobs(model, examples)
    np.testing.assert_allclose(candidate_logprobs(reader, examples)[0], expected, rtol=0, atol=1e-4)
    padded = candidate_logprobs(replace(reader, pads=True), examples)[0]
    there = np.isfinite(expected)
    assert abs(padded[there] - expected[there]).max() > 1e-3  # or this test could not fail
    twice = candidate_logprobs(reader, examples, ((Term(1, 0.0),), (Term(2, 0.0),)))
    np.testing.assert_allclose(twice, np.stack([expected] * 2), rtol=0, atol=1e-4)


@pytest.mark.parametrize("reads_padding", [False, True])
def test_in_half_precision_a_masked_row_may_be_rounded_by_another_kernel(reads_padding):
    """Logits of another shape move by 3 % of their spread: no reason not to pad, where padding itself moves nothing."""
    model = random_model("llama").bfloat16()

    def rounded_otherwise(module, args, kwargs, output):
        read = int(kwargs["input_ids"][0, 0] if reads_padding else kwargs["input_ids"].shape[1])
        drawn = torch.randn(output.logits.shape[-1], generator=torch.Generator().manual_seed(read))
        return replace(output, logits=output.logits + 0.03 * output.logits.float().std() * drawn)

    model.register_forward_hook(rounded_otherwise, with_kwargs=True)
    assert engine_of(model, 0).pads is not reads_padding


def test_a_model_that_sees_the_answer_is_refused():
    torch.manual_seed(0)
    config = BertConfig(vocab_size=32, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    with pytest.raises(InputError, match="sees the tokens behind"):
        engine_of(BertLMHeadModel(config).eval(), 0)


def test_a_padding_token_without_an_embedding_does_no_harm():
    model = random_model("llama")
    got = candidate_logprobs(engine_of(model, 1000), SHORT)[0]
    np.testing.assert_allclose(got, slow_logprobs(model, SHORT), rtol=0, atol=1e-4)


def test_batches_that_are_too_large_are_split():
    model = random_model("llama")
    sizes: list[int] = []

    def small_memory(_, args, kwargs):
        sizes.append(len(kwargs["input_ids"]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("too large")

    reader = engine_of(model, 0)
    model.register_forward_pre_hook(small_memory, with_kwargs=True)
    got = candidate_logprobs(reader, SHORT)[0]
    assert max(sizes) == 4
    model._forward_pre_hooks.clear()
    np.testing.assert_allclose(got, slow_logprobs(model, SHORT), rtol=0, atol=1e-4)

    model.register_forward_pre_hook(small_memory, with_kwargs=True)
    fitting = checked_engine(model, 0, SHORT, ((Term(1, 0.01),), (Term(1, -0.01),)))
    sizes.clear()
    candidate_logprobs(replace(fitting, tokens=fitting.tokens // 128), SHORT)
    assert fitting.tokens < reader.tokens


@pytest.mark.parametrize("tokens", [4096, 8], ids=["out-of-memory", "many-tokens"])
def test_the_targets_of_one_prompt_are_split_where_they_are_too_many(tokens):
    model = random_model("llama")
    many = [example([5, 6, 7], *([8, token, 4] for token in range(10, 16)))]
    expected = slow_logprobs(model, many)
    sizes: list[int] = []

    def small_memory(_, args, kwargs):
        sizes.append(len(kwargs["input_ids"]))
        if sizes[-1] > 3 and tokens == 4096:
            raise torch.OutOfMemoryError("too large")

    reader = engine_of(model, 0, tokens=tokens)
    model.register_forward_pre_hook(small_memory, with_kwargs=True)
    got = candidate_logprobs(reader, many)[0]
    assert sizes == ([1, 6, 1, 3, 1, 3] if tokens == 4096 else [1, 4, 1, 2])
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)


def test_equal_requests_are_read_once():
    model = random_model("llama")
    rows: list[int] = []
    model.register_forward_pre_hook(lambda _, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True)
    prompt, other = (5, 6, 7), (9, 4)
    requests = [Request(prompt, (8,)), Request(other, (8,)), Request(prompt, (9,)), Request(prompt, (8,))]
    reader = engine_of(model, 0)
    rows.clear()
    [found] = reader.logprobs([((), requests)])
    assert rows == [2] and found[0] == found[3]
    expected = slow_logprobs(model, [example(prompt, [8], [9]), example(other, [8])])
    np.testing.assert_allclose(found[:3], [expected[0, 0], expected[1, 0], expected[0, 1]], rtol=0, atol=1e-4)


def test_no_more_rows_at_once_than_asked_for():
    model = random_model("llama")
    rows: list[int] = []
    reader = replace(engine_of(model, 0), rows=3)
    model.register_forward_pre_hook(lambda _, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True)
    candidate_logprobs(reader, SHORT)
    assert rows == [3, 1]


def test_the_rows_of_a_pass_do_not_depend_on_how_many_members_are_asked_about():
    model = random_model("llama")
    passes: list[tuple[int, frozenset[int]]] = []

    def look(_, args, kwargs):  # all prompts of SHORT have lengths of their own
        lengths = kwargs["attention_mask"].sum(1).tolist()
        passes.append((len(lengths) // len(set(lengths)), frozenset(lengths)))

    def rows_of(together, count):
        passes.clear()
        members = tuple((Term(seed, 0.01),) for seed in range(count))
        candidate_logprobs(replace(reader, together=together), SHORT, members)
        return {rows for _, rows in passes}

    reader = replace(engine_of(model, 0), tokens=24)
    model.register_forward_pre_hook(look, with_kwargs=True)
    for count in (1, 2, 3, 4):
        assert rows_of(2, count) == {frozenset({7}), frozenset({3, 2, 1})}
        assert {members for members, _ in passes} <= {1, 2}
    assert rows_of(None, 1) != rows_of(None, 2) != rows_of(None, 4)  # or this test could not fail


def test_weights_read_without_a_call_are_perturbed_where_copies_do_not_fit(monkeypatch):
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=32, hidden_size=16, state_size=4, num_hidden_layers=1, use_mambapy=False)
    model = MambaForCausalLM(config).eval()
    members = ((Term(1, 0.1),), (Term(1, -0.1),))
    expected = candidate_logprobs(replace(engine_of(model, 0), problem="one at a time"), SHORT, members)
    monkeypatch.setattr("zoreward.scoring.forward.KEEP_BYTES", 0)
    reader = checked_engine(model, 0, SHORT, members)
    assert reader.problem
    assert np.array_equal(candidate_logprobs(reader, SHORT, members), expected)


def test_low_rank_members_of_a_tuned_model_share_a_pass_in_bfloat16():
    model = load_model(MODEL, dtype="bfloat16", device="cpu")
    members = tuple((term_of(3, sign * 1e-2, 1),) for sign in (1, -1))
    plain = engine_of(model, 0)
    alone = np.concatenate([candidate_logprobs(plain, SHORT[:3], (member,)) for member in members])
    difference = np.abs(alone - candidate_logprobs(plain, SHORT[:3], members)).max()
    assert 2e-2 < difference < 0.2, "copies are rounded, corrections are not"
    assert checked_engine(model, 0, SHORT[:3], members).grouped


def test_a_model_without_an_attention_cache_is_read_whole():
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=32, hidden_size=16, state_size=4, num_hidden_layers=1, use_mambapy=False)
    model = MambaForCausalLM(config).eval()
    reader = engine_of(model, 0, tokens=8)
    assert not reader.shares_prefix
    np.testing.assert_allclose(candidate_logprobs(reader, LONG)[0], slow_logprobs(model, LONG), rtol=0, atol=1e-4)


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_members_score_as_the_models_they_stand_for(family, grouped):
    from zoreward.members import members_at

    model = random_model(family)
    members = ((Term(1, 0.05),), (Term(1, -0.05),), (Term(2, 0.05),))
    reader = replace(engine_of(model, 0), problem=None if grouped else "one at a time, to compare")
    got = candidate_logprobs(reader, LONG, members)
    for m, member in enumerate(members):
        with members_at(model, (member,)):
            np.testing.assert_allclose(got[m], slow_logprobs(model, LONG), rtol=0, atol=1e-4)
    there = np.isfinite(got[0])
    assert abs(got[0][there] - got[1][there]).max() > 0.01


def count_calls(module: torch.nn.Module) -> list[int]:
    positions: list[int] = []
    module.register_forward_pre_hook(lambda _, args: positions.append(args[0].shape[:-1].numel()))
    return positions


def test_only_the_positions_that_matter_go_through_the_head_and_prompts_are_computed_once():
    model = random_model("llama")
    reader = engine_of(model, 0)
    head, first_layer = count_calls(model.lm_head), count_calls(model.model.layers[0].mlp)
    prompt = list(range(3, 23))
    candidate_logprobs(reader, [example(prompt, [4], [5])])
    assert (sum(head), sum(first_layer)) == (1, 20)
    head.clear(), first_layer.clear()
    candidate_logprobs(reader, [example(prompt, [4, 5, 6], [5, 6, 7], [7, 8, 9])])
    assert (sum(head), sum(first_layer)) == (1 + 3 * 2, 20 + 3 * 2)
    head.clear()
    candidate_logprobs(reader, [example(prompt, [4, 5, 6])])
    assert sum(head) == 3


def test_batches_are_full_sorted_and_complete():
    lengths = [int(n) for n in np.random.default_rng(0).integers(1, 50, 200)]
    batches = sorted_batches(lengths, tokens=128)
    assert sorted(n for batch in batches for n in batch) == list(range(200))
    assert all(len(batch) * max(lengths[n] for n in batch) <= 128 for batch in batches)
    assert [lengths[n] for batch in batches for n in batch] == sorted(lengths, reverse=True)
    padded = sum(len(batch) * max(lengths[n] for n in batch) for batch in batches)
    assert padded < 1.1 * sum(lengths)
    assert sorted_batches([500, 3], tokens=128) == [[0], [1]]


def test_objectives_get_what_they_name():
    model = random_model("llama")
    examples = [example([5, 6], [8], [9], reference=1), example([7], [8], [9], reference=0)]
    expected = slow_logprobs(model, examples)
    seen = {}

    def spy(predictions, references, logprobs):
        seen.update(predictions=predictions, references=references, logprobs=logprobs)
        return 0.25

    assert member_scores(engine_of(model, 0), get_objective(spy), examples) == [0.25]
    assert seen["predictions"] == expected.argmax(1).tolist() and seen["references"] == [1, 0]
    np.testing.assert_allclose(seen["logprobs"], expected, rtol=0, atol=1e-4)


def test_evaluate_equals_arithmetic_on_slow_scores(tiny_model_dir, tokenizer):
    rows = [
        {"text": "a good film", "verdict": "great", "label": 1},
        {"text": "bad plot", "verdict": "dull", "label": 0},
        {"text": "the film was not very good", "verdict": "not very good", "label": 0},
    ]
    settings = {"template": "{text} it was", "choices": [" terrible", " great"]}
    model = random_model("llama")
    prompts = [tokenizer(row["text"] + " it was", add_special_tokens=False)["input_ids"] for row in rows]
    choices = [tokenizer.convert_tokens_to_ids([word]) for word in ("terrible", "great")]
    slow = slow_logprobs(model, [example(prompt, *choices) for prompt in prompts])
    labels = np.array([1, 0, 0])

    result = evaluate(str(tiny_model_dir), "accuracy", rows, **settings)
    assert (result.score, result.rows, result.truncated) == (float((slow.argmax(1) == labels).mean()), 3, 0)
    result = evaluate(str(tiny_model_dir), "neg-cross-entropy", rows, **settings)
    shares = slow - np.log(np.exp(slow).sum(1, keepdims=True))
    assert math.isclose(result.score, float(shares[np.arange(3), labels].mean()), abs_tol=1e-4)
    result = evaluate(str(tiny_model_dir), "log-likelihood", rows, template="{text}", answer=" it was {verdict}")
    only = [
        example(
            *(
                tokenizer(text, add_special_tokens=False)["input_ids"]
                for text in (row["text"], "it was " + row["verdict"])
            )
        )
        for row in rows
    ]
    assert math.isclose(result.score, float(slow_logprobs(model, only).mean()), abs_tol=1e-4)


def test_a_model_that_has_lost_its_numbers_is_no_answer():
    model = random_model("llama")
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(ObjectiveError, match="not finite"):
        candidate_logprobs(engine_of(model, 0), SHORT)


@pytest.mark.parametrize("examples", [SHORT, LONG], ids=["one-token", "several-tokens"])
@pytest.mark.parametrize("among_candidates", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_a_logit_that_has_overflowed_is_no_answer(examples, among_candidates, family):
    token = examples[0].candidate_tokens[0][-1] if among_candidates else 31  # which no candidate has
    model = with_logit(random_model(family), token, float("inf"))
    with pytest.raises(ObjectiveError, match="not finite"):
        candidate_logprobs(engine_of(model, 0), examples)


@pytest.mark.parametrize("examples", [SHORT, LONG], ids=["one-token", "several-tokens"])
def test_a_token_that_the_model_forbids_is_as_unlikely_as_can_be(examples):
    token = examples[0].candidate_tokens[0][-1]
    logprobs_MNC = candidate_logprobs(engine_of(with_logit(random_model("llama"), token, -float("inf")), 0), examples)
    for n, row in enumerate(examples):
        for c, answer in enumerate(row.candidate_tokens):
            assert (logprobs_MNC[0, n, c] == -np.inf) == (token in answer)


def test_dense_members_share_passes_as_far_as_their_copies_are_made_once():
    """Copies are made once where they are kept (2 GiB), or where a pass reads all rows; else anew in each pass."""
    model = random_model("gpt2")
    engine, bytes_of_copies = engine_of(model, pad_token_id=0), sum(p.nbytes for p in model.parameters())
    kept = (2 << 30) // bytes_of_copies
    couples = [member for seed in range(kept) for member in ((Term(seed, 0.1),), (Term(seed, -0.1),))]
    tokens = sum(len(one.prompt_tokens) for one in SHORT)  # their answers have one token each, which is not read

    def sized(members, rows=SHORT, **unit):
        return passes_sized_for(engine.cut_as(unit), rows, members)

    assert sized(couples[:kept]) == kept, "all are kept"
    assert sized(couples, read=tokens) == kept - kept % 2, "so many are kept, whatever the passes"
    assert sized(couples, read=tokens * (kept + 100)) == (kept + 100) // 2 * 2, "one pass reads all rows of more"
    assert sized(couples, read=tokens * 4 * kept) == len(couples), "or of all"
    assert sized([(term_of(n, 0.1, rank=1),) for n in range(2 * kept)], read=tokens) == 2 * kept, "they share weights"
    assert sized(couples, rows=[Example({}, "", (), None, (5, 6), ())], read=tokens) == 2 * kept, "texts are written"
