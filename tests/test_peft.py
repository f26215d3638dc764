"""Contract under test: what is tuned is what was asked for, and nothing else.

- `--tune` names weights; what names none is refused with names that there are.
- Of a model with an adapter only the adapter's weights are tuned; the base keeps its bits. Members share a forward
  pass: grouped equals one at a time, also in `generate`.
- An adapter's first weights follow from the run's seed alone; no global random state is touched.
- A run saves an adapter that PEFT loads to the same scores, and replays from the plain base to the same bytes.
"""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

import pytest
import torch
from peft import IA3Config, LoHaConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from conftest import random_model
from terms import term_of
from zoreward import replay
from zoreward.cli import main
from zoreward.config import defaults_of
from zoreward.members import (
    adapted,
    adapter_options,
    called_model,
    check_merge,
    check_merged,
    config_of,
    members_at,
    merged_copy,
    tuned_weights,
    update_,
    with_prefix,
)
from zoreward.noise import definition as noise
from zoreward.noise import seeds
from zoreward.records import InputError, Term, Update
from zoreward.registry import objective
from zoreward.scoring import Generation, base_of, engine_of, evaluate, kl_to_base, load_model, member_scores
from zoreward.scoring.decoding import write
from zoreward.trainer import ZOConfig, ZOTrainer

ROWS = [{"text": f"a {word} film", "label": i % 2} for i, word in enumerate("bad good dull great awful lovely".split())]
PROMPT = {"template": "{text} it was", "choices": [" not", " very"]}
CONFIGS = {
    "lora": LoraConfig(r=4, lora_alpha=8),
    "lora-all": LoraConfig(r=4, target_modules="all-linear", init_lora_weights="gaussian", modules_to_save=["lm_head"]),
    "dora": LoraConfig(r=4, use_dora=True),
    "ia3": IA3Config(),
}


def with_adapter(family: str, config: str, seed: int = 3) -> PeftModel:
    """A random model with an adapter of PEFT's own choice of layers, whose B is not 0."""
    model = adapted(random_model(family), CONFIGS[config], seed).eval()
    update_(model, Update(0.0, (Term(1, 0.2),), 0))
    return model


def bits(weights: dict[str, torch.Tensor]) -> dict[str, bytes]:
    return {name: weight.detach().view(-1).view(torch.uint8).numpy().tobytes() for name, weight in weights.items()}


def canonical(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights of the base by the names that they have without an adapter."""
    named = {seeds.canonical_name(name).replace(".base_layer", ""): w for name, w in model.named_parameters()}
    return {name: w for name, w in named.items() if "lora_" not in name and "modules_to_save" not in name}


# --- which weights ---------------------------------------------------------------------------------------------------


def last(family: str, tune: str) -> set[str]:
    return set(tuned_weights(random_model(family), tune).weights)


def test_kinds_name_their_weights():
    layer = {name for name in last("llama", "full") if name.startswith("model.layers.1.")}
    assert len(layer) == 9
    assert last("llama", "last-1") == layer | {"model.norm.weight", "lm_head.weight"}
    assert last("llama-tied", "last-1") == layer | {"model.norm.weight"}
    assert last("llama", "head") == {"lm_head.weight"}
    assert last("llama", r"layers\.1\..*norm") == {name for name in layer if "norm" in name}
    assert last("gpt2", "last-2") == {
        name for name in last("gpt2", "full") if name not in ("transformer.wte.weight", "transformer.wpe.weight")
    }
    opt = last("opt", "last-1")  # whose last norm stands before the layers
    assert {"model.decoder.final_layer_norm.weight", "model.decoder.layers.1.fc1.bias"} < opt
    assert not any("embed" in name or ".layers.0." in name for name in opt)
    biases = last("gpt2", "bias")
    assert len(biases) == 13 and all(name.endswith(".bias") for name in biases)


def test_streams_of_some_weights_are_those_of_all():
    everything = tuned_weights(random_model("gpt2")).streams
    assert tuned_weights(random_model("gpt2"), "bias").streams.items() < everything.items()


@pytest.mark.parametrize(
    ("family", "tune", "error", "hint"),
    [
        ("llama", "bias", "no weight that tune='bias' names", "model.embed_tokens.weight"),
        ("llama-tied", "head", "is its embedding", "last-1"),
        ("llama", "lroa", "tune='lroa'", "Did you mean lora"),
        ("llama", "last-3", "2 layers, not 3", "last-1 to last-2"),
        ("llama", "last-0", "names no layer", "last-1"),
        ("llama", "q_proj(", "no regular expression", "head"),
    ],
)
def test_what_names_no_weight_is_refused(family, tune, error, hint):
    with pytest.raises(InputError, match=error.replace("(", r"\(")) as caught:
        tuned_weights(random_model(family), tune)
    assert hint in caught.value.hint


@pytest.mark.parametrize("config", CONFIGS)
def test_of_a_model_with_an_adapter_exactly_what_its_file_holds_is_tuned(config, tmp_path):
    model = with_adapter("llama", config)
    tuned = tuned_weights(model)
    model.save_pretrained(tmp_path)
    held = load_file(tmp_path / "adapter_model.safetensors")
    assert len(held) == len(tuned.weights)
    assert sorted(map(str, bits(held).values())) == sorted(map(str, bits(tuned.weights).values()))
    assert len(set(tuned.streams.values())) == len(tuned.streams)
    # transformers' own model, with the layers in it, has the same names
    assert tuned_weights(called_model(model)).streams == tuned.streams


# --- members ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_grouped_members_are_those_of_one_at_a_time(family, config, rank):
    peft_model = with_adapter(family, config)
    model = called_model(peft_model)
    members = ((term_of(11, 0.3, rank),), (term_of(11, -0.3, rank),), (term_of(12, 0.3, rank), term_of(13, 0.1, rank)))
    tokens = torch.randint(3, 30, (4, 7), generator=torch.Generator().manual_seed(0))
    base, tuned = canonical(model), tuned_weights(model)
    before, own = bits(base), bits(tuned.weights)
    expected = []
    for member in members:
        with torch.no_grad(), members_at(model, (member,)):
            expected.append(model(input_ids=tokens).logits)
    if config == "dora" and rank:  # lora_A is called with a unit matrix, for all rows at once
        with pytest.raises(InputError, match="no row or token"), torch.no_grad(), members_at(model, members):
            model(input_ids=tokens.repeat(3, 1))
    else:
        with torch.no_grad(), members_at(model, members):
            got = model(input_ids=tokens.repeat(3, 1)).logits
        # Sums of 48 products of size ≤ 1 in another order, 48 · 2^-24 ≈ 3e-6 a layer; logits are of size 30.
        torch.testing.assert_close(got, torch.cat(expected), rtol=0, atol=3e-4)
        assert (expected[0] - expected[1]).abs().max() > 1, "members must differ, or the comparison shows nothing"
    assert bits(base) == before and bits(tuned.weights) == own


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_members_write_together_what_they_write_alone(family, rank, tokenizer):
    reader = engine_of(with_adapter(family, "lora"), 0)
    members = tuple((term_of(seed, 0.3, rank),) for seed in range(4))
    prompts = [(3, 4, 5), (6, 7, 8, 9)]
    settings = Generation(max_new_tokens=6)
    together = write(reader, tokenizer, prompts, range(2), members, settings)
    alone = [write(reader, tokenizer, prompts, range(2), (member,), settings)[0] for member in members]
    assert together == alone
    assert len({str(texts) for texts in alone}) > 1


# --- first weights ---------------------------------------------------------------------------------------------------


def test_names_of_modules_are_written_in_one_order(tmp_path):
    config = LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")
    adapted(random_model("llama"), config, 0).save_pretrained(tmp_path)
    names = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert len(names) == 14 and names == sorted(names)  # seven in each layer; by luck in 1 of 14! cases


def test_first_weights_follow_from_the_seed_alone():
    state = torch.get_rng_state()
    first, again, other = (adapted(random_model("llama"), CONFIGS["lora"], seed) for seed in (3, 3, 4))
    random_model("llama")
    torch.set_rng_state(state)
    model = random_model("llama")
    state = torch.get_rng_state()
    adapted(model, CONFIGS["dora"], 3)
    assert torch.equal(state, torch.get_rng_state())
    weights = [tuned_weights(model).weights for model in (first, again, other)]
    assert bits(weights[0]) == bits(weights[1]) != bits(weights[2])
    name = "model.layers.0.self_attn.q_proj.lora_A.default.weight"
    # The definition, once, by hand: even over ±1/√32, from a purpose of its own.
    seed = seeds.derive_seed(3, 0, 2**64 - 3)
    words = noise.words(seed, seeds.stream_of(name), 0, 4 * 32, 4)
    expected = torch.tensor([(int(word) >> 8) * 2.0**-23 - 1 for word in words], dtype=torch.float32)
    expected = expected * torch.tensor(32**-0.5, dtype=torch.float32)
    assert torch.equal(weights[0][name].view(-1), expected)
    assert not weights[0][name.replace("lora_A", "lora_B")].any()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.filterwarnings("error")
def test_what_peft_and_transformers_warn_each_other_of_is_kept_back(family, tmp_path, tokenizer):
    random_model(family).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    for tune in ("lora", "prefix"):
        run = trainer(tmp_path / tune, tokenizer, str(tmp_path / "base"), tune=tune)
        run.save_model(str(tmp_path / tune / "adapter"))
        load_model(str(tmp_path / tune / "adapter"))


def test_an_adapter_is_float32_beside_half_precision():
    model = adapted(random_model("llama").to(torch.bfloat16), CONFIGS["lora"], 3)
    assert {weight.dtype for weight in tuned_weights(model).weights.values()} == {torch.float32}


@pytest.mark.parametrize("config", CONFIGS)
def test_options_that_were_written_down_make_the_same_adapter(config):
    model = adapted(random_model("llama"), CONFIGS[config], 3)
    options = json.loads(json.dumps(adapter_options(model)))
    again = adapted(random_model("llama"), config_of(options), 3)
    assert bits(dict(again.named_parameters())) == bits(dict(model.named_parameters()))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"peft_type": "LOHA"},
        {"peft_type": ["LORA"]},
        {"peft_type": "LORA", "init_lora_weights": "eva"},
        {"peft_type": "LORA", "arrow_config": {}},
        {"peft_type": "LORA", "r": 0},
    ],
    ids=str,
)
def test_options_of_a_strangers_file_are_refused(options):
    model = random_model("llama")
    with pytest.raises(InputError):
        adapted(model, config_of(options), 0)


@pytest.mark.parametrize(
    ("config", "error"),
    [
        (LoHaConfig(target_modules=["q_proj"]), "LOHA adapters cannot be tuned yet"),
        (LoraConfig(init_lora_weights="pissa"), "init_lora_weights='pissa'"),
        (LoraConfig(bias="all"), "bias='all'"),
        (LoraConfig(target_modules=["no_proj"]), "PEFT cannot make this adapter"),
    ],
)
def test_adapters_that_could_not_be_made_again_are_refused(config, error):
    with pytest.raises(InputError, match=error):
        adapted(random_model("llama"), config, 0)


def test_models_whose_adapter_cannot_be_tuned_are_refused():
    loha = get_peft_model(random_model("llama"), LoHaConfig(target_modules=["q_proj"]))
    with pytest.raises(InputError, match="LOHA adapters cannot be tuned yet"):
        tuned_weights(loha)
    two = adapted(random_model("llama"), CONFIGS["lora"], 0)
    two.add_adapter("other", LoraConfig(r=2))
    two.base_model.set_adapter(["default", "other"])
    with pytest.raises(InputError, match="2 active adapters"):
        tuned_weights(two)
    with pytest.raises(InputError, match="has an adapter already"):
        adapted(two, CONFIGS["lora"], 0)
    with pytest.raises(InputError, match="does not fit a model that has an adapter"):
        tuned_weights(with_adapter("llama", "lora"), "bias")
    merged = with_adapter("llama", "lora")
    merged.merge_adapter()
    with pytest.raises(InputError, match="merged or disabled"):
        tuned_weights(merged)


# --- a run -----------------------------------------------------------------------------------------------------------


def trainer(folder: Path, tokenizer, model, objective="neg-cross-entropy", peft_config=None, **changes) -> ZOTrainer:
    settings = {"max_steps": 4, "per_device_train_batch_size": 6, "learning_rate": 1e-2, "eps": 1e-2, **changes}
    return ZOTrainer(
        model,
        objective=objective,
        args=ZOConfig(str(folder / "run"), use_cpu=True, disable_tqdm=True, **PROMPT, **settings),
        train_dataset=ROWS,
        eval_dataset=ROWS,
        processing_class=tokenizer,
        peft_config=peft_config,
    )


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        ("lora", torch.bfloat16),
        ("dora", torch.float32),
        pytest.param("lora", torch.float32, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_run_moves_the_adapter_alone_and_is_saved_and_replayed(config, dtype, tmp_path, tokenizer):
    model = random_model("llama").to(dtype)
    base, name = bits(canonical(model)), str(tmp_path / "base")
    model.save_pretrained(name)
    tokenizer.save_pretrained(name)
    run = trainer(tmp_path, tokenizer, load_model(name, dtype="auto"), peft_config=CONFIGS[config])
    assert run.scorer.reader.grouped
    first = bits(run.scorer.reader.tuned.weights)
    run.train()
    run.save_model(str(tmp_path / "adapter"))
    assert bits(canonical(run.model)) == base
    moved = bits(run.scorer.reader.tuned.weights)
    assert all(first[name] != moved[name] for name in first)

    # PEFT's own way, and ours
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(name, dtype=dtype), tmp_path / "adapter")
    assert bits(tuned_weights(again).weights) == moved
    scores = [
        member_scores(engine_of(one.eval(), 0), run.objective, run.eval_dataset)
        for one in (run.model, again, load_model(str(tmp_path / "adapter"), dtype="auto"))
    ]
    assert scores[0] == scores[1] == scores[2]

    replayed = replay(tmp_path / "run", AutoModelForCausalLM.from_pretrained(name, dtype=dtype))
    assert isinstance(replayed, PeftModel)
    assert bits(dict(replayed.named_parameters())) == bits(dict(run.model.named_parameters()))
    replay(tmp_path / "run" / "trajectory.safetensors", load_model(name, dtype="auto"), step=2)


def test_a_run_on_a_given_adapter_replays_on_that_adapter(tmp_path, tokenizer):
    run = trainer(tmp_path, tokenizer, with_adapter("llama", "lora"))
    run.train()
    replayed = replay(tmp_path / "run", with_adapter("llama", "lora"))
    assert bits(dict(replayed.named_parameters())) == bits(dict(run.model.named_parameters()))
    with pytest.raises(InputError, match="only one of them has"):
        replay(tmp_path / "run", random_model("llama"))


def test_a_wrong_base_is_refused_and_left_as_it_was(tmp_path, tokenizer):
    trainer(tmp_path, tokenizer, random_model("llama"), tune="lora").train()
    other = random_model("llama", seed=1)
    before = bits(dict(other.named_parameters()))
    with pytest.raises(InputError, match="another fingerprint"):
        replay(tmp_path / "run", other)
    assert bits(dict(other.named_parameters())) == before
    with pytest.raises(InputError, match="made its adapter itself"):
        replay(tmp_path / "run", with_adapter("llama", "lora"))


@pytest.mark.parametrize("tune", ["bias", "last-1", "ln_"])
def test_a_run_of_some_weights_moves_those_alone_and_is_replayed(tune, tmp_path, tokenizer):
    model = random_model("gpt2")
    before = bits(canonical(model))
    names = set(tuned_weights(model, tune).weights)
    run = trainer(tmp_path, tokenizer, model, tune=tune)
    run.train()
    after = bits(canonical(model))
    assert {name for name in before if before[name] != after[name]} == names
    again = replay(tmp_path / "run", random_model("gpt2"))
    assert bits(dict(again.named_parameters())) == bits(dict(model.named_parameters()))


def test_an_adapter_of_members_that_write_is_tuned(tmp_path, tokenizer):
    @objective("length")
    def length(completions) -> list[float]:
        """Long texts."""
        return [float(len(one)) for one in completions]

    run = trainer(
        tmp_path, tokenizer, random_model("llama"), length, tune="lora", num_directions=2, eps=0.3,
        max_completion_length=4,
    )  # fmt: skip
    assert run.scorer.problem is None
    run.train()
    assert run.method_state.step == 4 and run.method_state.silent < 4


def test_defaults_for_an_adapter(tmp_path, tokenizer):
    run = trainer(
        tmp_path, tokenizer, random_model("llama"), tune="lora", eps=None, learning_rate=None, normalize="none"
    )
    assert (run.method.eps, run.method.lr, run.method.rank) == (1e-2, 1e-4, 0)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"tune": "bias", "noise": "low-rank", "family": "gpt2"}, "low-rank directions move matrices"),
        ({"merge": True}, "no adapter to merge"),
        ({"tune": "bias", "peft_config": LoraConfig()}, "say two things"),
        ({"tune": "lora", "lora_rank": 0}, "lora_rank must be at least 1"),
        ({"peft_config": {"r": 8}}, "peft_config is a dict"),
        ({"tune": "nothing"}, "tune='nothing'"),
    ],
    ids=str,
)
def test_refused_before_a_step(changes, error, tmp_path, tokenizer):
    changes = dict(changes)
    with pytest.raises(InputError, match=error):
        trainer(tmp_path, tokenizer, random_model(changes.pop("family", "llama")), **changes)
    assert not (tmp_path / "run").exists()


def test_merged_is_a_copy_with_the_adapter_in_its_weights(tmp_path):
    model = with_adapter("llama", "lora")
    before = bits(dict(model.named_parameters()))
    merged = merged_copy(model)
    assert bits(dict(model.named_parameters())) == before
    tokens = torch.randint(3, 30, (2, 7))
    assert set(canonical(merged)) == set(canonical(random_model("llama")))
    with torch.no_grad():
        # W + BA in one product instead of two: sums of 32 + 4 terms in another order, logits of size 30
        torch.testing.assert_close(merged(tokens).logits, model(tokens).logits, rtol=0, atol=1e-3)
        assert (random_model("llama")(tokens).logits - model(tokens).logits).abs().max() > 0.1


@pytest.mark.parametrize(
    ("method", "eps", "rate"), [("sparse", 1e-2, 1e-4), ("bcd", 1e-2, 1e-4), ("es", 5e-3, 1e-2 / 3)]
)
def test_a_method_on_an_adapter_has_its_radius_and_rate(method, eps, rate, tmp_path, tokenizer):
    defaults = defaults_of(method, "answers", "lora")
    assert (defaults["eps"], defaults["learning_rate"]) == (pytest.approx(eps), pytest.approx(rate))
    args = ZOConfig(str(tmp_path), use_cpu=True, tune="lora", method=method, learning_rate=rate, **PROMPT)
    model = random_model("llama")
    run = ZOTrainer(model, objective="accuracy", args=args, train_dataset=ROWS, processing_class=tokenizer)
    assert (run.method.eps, run.method.lr) == (pytest.approx(eps), rate)
    limits = run.ready.tuned.limits
    assert bool(limits) == (method == "sparse")
    assert all((limit > 1e38) == (".lora_B." in name) for name, limit in limits.items())


TIED = [
    ("llama-tied", ["embed_tokens", "lm_head", "q_proj"], None),
    ("llama-tied", ["lm_head"], None),
    ("gpt2", ["wte"], None),
    ("opt", ["embed_tokens", "lm_head"], None),
    ("llama-tied", ["q_proj"], ["embed_tokens"]),
    ("gpt2", ["c_attn"], ["lm_head"]),
]


def with_targets(family: str, targets: list[str], saved: list[str] | None = None) -> PeftModel:
    model = adapted(random_model(family), LoraConfig(r=4, target_modules=targets, modules_to_save=saved), 3).eval()
    update_(model, Update(0.0, (Term(1, 0.2),), 0))
    return model


@pytest.mark.filterwarnings("ignore:.*tie")
@pytest.mark.parametrize(("family", "targets", "saved"), TIED)
def test_tied_weights_are_two_in_a_merged_model_whose_adapter_changes_one_of_them(family, targets, saved, tmp_path):
    model, tokens = with_targets(family, targets, saved), torch.randint(3, 30, (2, 7))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nobody can do anything about what PEFT says of them
        merged = merged_copy(model)
    check_merged(model, merged, [5, 7, 9])
    merged.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.tie_word_embeddings is False
    with torch.no_grad():
        expected = called_model(model)(tokens).logits
        torch.testing.assert_close(loaded(tokens).logits, expected, rtol=0, atol=1e-3)
        assert (random_model(family)(tokens).logits - expected).abs().max() > 0.1
    untouched = merged_copy(with_targets("llama-tied", ["q_proj"]))
    assert untouched.config.tie_word_embeddings is True
    assert untouched.get_input_embeddings().weight is untouched.get_output_embeddings().weight


@pytest.mark.parametrize(
    ("family", "targets", "saved"),
    [("t5", ["shared", "q"], None), ("bart", ["lm_head"], None), ("bert", ["query"], ["word_embeddings"])],
)
@pytest.mark.filterwarnings("ignore:.*tie")
def test_weights_that_are_tied_to_several_are_not_merged(family, targets, saved):
    with pytest.raises(InputError, match="tied to others") as refused:
        check_merge(with_targets(family, targets, saved))
    assert "target_modules" in refused.value.hint
    check_merge(with_targets(family, targets[-1:] if family != "bart" else ["q_proj"]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_merged_model_that_gives_something_else_is_noticed(dtype):
    model = with_targets("llama-tied", ["q_proj", "v_proj", "up_proj"]).to(dtype)
    merged = merged_copy(model)
    check_merged(model, merged, [5, 7, 9, 11])
    for name in ("model.layers.1.self_attn.v_proj.weight", "model.embed_tokens.weight"):
        wrong = merged_copy(model)
        wrong.get_parameter(name).data.mul_(1.5)
        with pytest.raises(InputError, match="logits are off by"):
            check_merged(model, wrong, [5, 7, 9, 11])
    merged.get_parameter("model.norm.weight").data[0] = math.nan
    with pytest.raises(InputError, match="off by nan"):
        check_merged(model, merged, [5, 7, 9, 11])


# --- a prefix --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2"])
def test_a_prefix_is_read_as_peft_reads_it_and_by_members_together(family, tokenizer):
    model = with_prefix(random_model(family), 3)
    inner, tuned = called_model(model), tuned_weights(model)
    assert list(tuned.weights) == ["prompt_encoder.default.embedding.weight"]
    tokens = torch.randint(3, 30, (4, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = random_model(family)(input_ids=tokens).logits
        expected = model(input_ids=tokens).logits  # PEFT's forward, without a mask and so without padding
        assert torch.equal(inner(input_ids=tokens).logits, expected)
        assert (expected - plain).abs().max() > 0.1
    reader = engine_of(model, 0)
    assert reader.pads and reader.shares_prefix
    members = tuple((Term(seed, 0.5),) for seed in range(3))
    prompts, settings = [(3, 4, 5), (6, 7, 8, 9)], Generation(max_new_tokens=5)
    together = write(reader, tokenizer, prompts, range(2), members, settings)
    assert len({str(texts) for texts in together}) > 1
    assert together == [write(reader, tokenizer, prompts, range(2), (one,), settings)[0] for one in members]
    written = write(reader, tokenizer, prompts[:1], range(1), ((),), settings)[0][0]
    # Rows that are packed into one line, kept apart by a mask of their own, see it too.
    first = torch.tensor([[*prompts[0], *prompts[1]]])
    row = torch.tensor([0, 0, 0, 1, 1, 1, 1])
    apart = ~((row[:, None] == row) & torch.ones(7, 7).tril().bool())
    bias = torch.zeros(1, 1, 7, 7).masked_fill_(apart, torch.finfo(torch.float32).min)
    places = torch.tensor([[0, 1, 2, 0, 1, 2, 3]])
    with torch.no_grad():
        line = inner(input_ids=first, attention_mask=bias, position_ids=places).logits[0, 3:]
        alone = inner(input_ids=torch.tensor([prompts[1]])).logits[0]
    torch.testing.assert_close(line, alone, rtol=0, atol=1e-3)  # as below: sums in another order
    with torch.no_grad():  # the same without a cache of its own
        whole = inner(input_ids=torch.tensor([prompts[0] + written])).logits[0]
    assert written == tuple(whole[2:-1].argmax(-1).tolist())


def test_a_prefix_begins_with_real_activations():
    model = with_prefix(random_model("llama"), 3)
    words = noise.words(3, seeds.stream_of("prefix"), 0, 5, 4)
    first = torch.tensor([[int(word) % 32 for word in words]])
    tokens = torch.randint(3, 30, (2, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = random_model("llama")(input_ids=torch.cat([first.repeat(2, 1), tokens], dim=1)).logits[:, 5:]
        got = called_model(model)(input_ids=tokens).logits
    # The same float32 products, of 12 rows in one batch or of 5 and 7: 48 · 2^-24 a layer, logits of size 30.
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-3)


def test_a_run_on_a_prefix_is_saved_and_replayed(tmp_path, tokenizer):
    model = random_model("opt")  # it has an embedding for each of its 64 positions, and none beyond
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    base = bits(dict(model.named_parameters()))
    run = trainer(tmp_path, tokenizer, load_model(str(tmp_path / "base")), tune="prefix", eps=None, learning_rate=None)
    assert (run.method.eps, run.method.lr) == (1e-1, 1e-2)
    long = [{"text": "good " * 200, "label": 0}, {"text": "bad " * 200, "label": 1}]
    run.evaluate(long)
    run.train()
    run.save_model(str(tmp_path / "adapter"))
    own = {name.removeprefix("base_model."): w for name, w in run.model.named_parameters() if "prompt" not in name}
    assert bits(own) == base
    again = load_model(str(tmp_path / "adapter"))
    scores = [member_scores(engine_of(one, 0), run.objective, run.eval_dataset) for one in (run.model, again)]
    assert scores[0] == scores[1]
    assert evaluate(str(tmp_path / "adapter"), "neg-cross-entropy", long, **PROMPT).truncated == 2
    replayed = replay(tmp_path / "run", load_model(str(tmp_path / "run" / "start")))
    assert bits(dict(replayed.named_parameters())) == bits(dict(run.model.named_parameters()))
    with pytest.raises(InputError, match="cannot be merged"):
        merged_copy(replayed)


@pytest.mark.parametrize("tune", ["lora", pytest.param("prefix", marks=pytest.mark.slow)])
def test_a_run_on_an_adapter_is_resumed_where_it_stood(tune, tmp_path, tokenizer):
    whole = trainer(tmp_path / "whole", tokenizer, random_model("llama"), tune=tune)
    whole.train()
    first = trainer(tmp_path, tokenizer, random_model("llama"), tune=tune, max_steps=2)
    first.train()
    rest = trainer(tmp_path, tokenizer, random_model("llama"), tune=tune)
    assert rest.resume() == 2
    rest.train()
    assert bits(dict(rest.model.named_parameters())) == bits(dict(whole.model.named_parameters()))


@pytest.mark.parametrize("tune", ["lora", "prefix"])
def test_the_drift_of_an_adapter_is_measured_against_the_model_without_it(tune, tmp_path, tokenizer):
    model = random_model("llama")
    adapter = adapted(model, CONFIGS["lora"], 3) if tune == "lora" else with_prefix(model, 3)
    reader, base = engine_of(adapter.eval(), 0), base_of(adapter)
    prompts, texts = [(3, 4, 5), (6, 7, 8, 9)], [[(5, 6, 7), (8, 9)]]
    [before] = kl_to_base(reader, base, prompts, texts)
    assert before == 0 if tune == "lora" else before > 0.01  # B is 0; a prefix of real activations is read at once
    update_(reader.model, Update(0.0, (Term(1, 0.3),), 0), tuned=reader.tuned)
    [after] = kl_to_base(reader, base, prompts, texts)
    sequence = torch.tensor([[*prompts[0], *texts[0][0][:-1]]])
    with torch.no_grad():
        p = reader.model(sequence).logits[0, 2:].double().log_softmax(-1)
        q = random_model("llama")(sequence).logits[0, 2:].double().log_softmax(-1)
    [one] = kl_to_base(reader, base, prompts[:1], [texts[0][:1]])
    # float32 logits of size 30 differ by some 1e-5 in a batch of another shape
    assert one == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-3)
    assert after > 0.01


# --- a quantised base ------------------------------------------------------------------------------------------------


class Int8Linear(nn.Linear):
    """A linear layer whose weight is 8 bits and a scale for each line, as quantisers make it."""

    def __init__(self, linear: nn.Linear):
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.weight = nn.Parameter((linear.weight.detach() / scale).round().to(torch.int8), requires_grad=False)
        self.register_buffer("scale", scale)
        self.register_parameter("bias", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ (self.weight.to(x.dtype) * self.scale.to(x.dtype)).T


def quantised() -> nn.Module:
    model = random_model("llama")
    for layer in model.model.layers:
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(layer.self_attn, name, Int8Linear(getattr(layer.self_attn, name)))
    return model


def test_an_adapter_of_a_quantised_base_is_tuned_and_replayed(tmp_path, tokenizer):
    model = quantised()
    before = bits(dict(model.named_parameters()))
    run = trainer(tmp_path, tokenizer, model, tune="lora")
    run.train()
    assert bits(canonical(run.model)) == before
    replayed = replay(tmp_path / "run", quantised())
    assert bits(dict(replayed.named_parameters())) == bits(dict(run.model.named_parameters()))


def test_a_quantised_model_without_an_adapter_is_refused(tmp_path, tokenizer):
    model = quantised()
    model.is_quantized = True
    with pytest.raises(InputError, match="tuned through an adapter"):
        trainer(tmp_path, tokenizer, model)


# --- the commands ----------------------------------------------------------------------------------------------------


def test_the_commands_tune_score_merge_and_replay_an_adapter(tmp_path, tiny_model_dir, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("base").symlink_to(tiny_model_dir, target_is_directory=True)
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    data = ["--data", "train.jsonl", "--template", "{text} it was", "--choice", " not", "--choice", " very"]
    data += ["--device", "cpu"]
    tune = ["tune", "neg-cross-entropy", "--model", "base", *data, "--eval-data", "train.jsonl", "--tune", "lora"]
    tune += ["--steps", "3", "--lr", "0.01", "--json"]

    assert main([*tune, "--output", "run"]) == 0
    out, err = capsys.readouterr()
    score = json.loads(out.splitlines()[-1])["score"]
    assert "1,792 of 19,360 weights are tuned" in err  # in 2 layers q and v: 8 · (32 + 32) + 8 · (32 + 16)
    assert (Path("run/model/adapter_config.json")).is_file() and not Path("run/model/config.json").exists()

    def eval_score(model: str) -> float:
        assert main(["eval", "neg-cross-entropy", "--model", model, *data, "--json"]) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])["score"]

    assert eval_score("run/model") == score
    assert main(["replay", "run", "--model", "base", "--output", "again", "--device", "cpu"]) == 0
    capsys.readouterr()
    for name in ("adapter_model.safetensors", "adapter_config.json", "tokenizer.json"):
        assert Path("again", name).read_bytes() == Path("run/model", name).read_bytes(), name

    assert main([*tune, "--merge", "--output", "merged"]) == 0
    capsys.readouterr()
    assert not Path("merged/model/adapter_config.json").exists()
    # log-probabilities of size 5; W + BA is one product instead of two
    assert eval_score("merged/model") == pytest.approx(score, abs=1e-4)

    Path("run/model/adapter_config.json").write_text(
        Path("run/model/adapter_config.json").read_text().replace('"base"', '"./gone"')
    )
    assert main(["eval", "accuracy", "--model", "run/model", *data]) == 2
    assert "the base of the adapter 'run/model' is not there" in capsys.readouterr().err
