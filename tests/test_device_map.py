"""Contract under test: a model that accelerate has spread over devices is tuned to the same bits.

Here all places are the CPU, with accelerate's hooks in place; what is moved between GPUs is tried where there are two.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import dispatch_model
from torch import nn

from conftest import random_model
from terms import term_of
from test_families import EXAMPLES, MEMBERS, logits_at, model_of, written
from test_pairs import ASKED, ROWS
from zoreward import ZOConfig, ZOTrainer, evaluate
from zoreward.kernels import cpu
from zoreward.members import tuned_weights, update_
from zoreward.records import InputError, Term, Update
from zoreward.scoring import HFGenerator, candidate_logprobs, engine_of, load_model

GPUS = torch.cuda.device_count()
needs_two_gpus = pytest.mark.skipif(GPUS < 2, reason="there are no two GPUs")
FAMILIES = ["llama-tied", "opt", "gpt2", "t5"]
QUICK = {"llama-tied": "low-rank", "gpt2": "dense"}


def places_of(model: nn.Module, first: int | str, last: int | str) -> dict[str, int | str]:
    """Every layer by itself: the first half of the modules that hold weights in one place, the others in another."""
    whole: list[str] = []
    for name, module in model.named_modules():
        alone = type(module).__name__ in (model._no_split_modules or ()) or not list(module.children())
        if alone and not any(name.startswith(f"{other}.") for other in whole):
            whole.append(name)
    tied = {name for name, module in model.named_modules() if module in embeddings(model)}
    return {name: first if n < len(whole) // 2 or name in tied else last for n, name in enumerate(whole)}


def embeddings(model: nn.Module) -> list[nn.Module]:
    """The modules that share a weight: one place for all."""
    shared = model.get_input_embeddings().weight
    return [module for module in model.modules() if shared in set(module._parameters.values())]


def spread(family: str, first: int | str = "cpu", last: int | str = "cpu") -> nn.Module:
    model = random_model(family)
    return dispatch_model(
        model, places_of(model, first, last), skip_keys=model._skip_keys_device_placement, force_hooks=True
    )


@pytest.mark.parametrize(
    ("family", "noise"),
    [
        pytest.param(name, noise, marks=() if QUICK.get(name) == noise else pytest.mark.slow)
        for name in FAMILIES
        for noise in MEMBERS
    ],
)
def test_members_of_a_spread_model_are_those_of_the_plain_one(family: str, noise: str, tokenizer) -> None:
    model, plain, members = spread(family), model_of(family), MEMBERS[noise]
    assert sum("_old_forward" in module.__dict__ for module in model.modules()) > 4
    forwards = [(module, module.__dict__.get("_old_forward")) for module in model.modules()]
    for keep_bytes in (0, 2**30):
        found, expected = (logits_at(one, members, keep_bytes=keep_bytes) for one in (model, plain))
        assert torch.equal(found, expected)  # the same operations, in the same order
    found, expected = (candidate_logprobs(engine_of(one, 0), EXAMPLES, members) for one in (model, plain))
    np.testing.assert_array_equal(found, expected)
    found, expected = (written(HFGenerator(engine_of(one, 0), tokenizer), members) for one in (model, plain))
    assert found == expected
    # generate itself hooks an encoder; all else is as it was
    assert all(module.__dict__.get("_old_forward") == before for module, before in forwards if before is not None)


@pytest.mark.parametrize("family", ["llama-tied", "gpt2"])
def test_low_rank_members_of_a_spread_model_need_no_perturbed_weights(family: str, monkeypatch) -> None:
    model = spread(family)
    monkeypatch.setattr(cpu, "perturb_all", lambda weights, *_: weights and pytest.fail("weights were copied"))
    logits_at(model, MEMBERS["low-rank"])


@pytest.fixture(scope="module")
def tied(tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tied")
    random_model("llama-tied").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_that_is_loaded_by_a_map_has_the_same_weights_buffers_and_ties(tied: Path, dtype: str) -> None:
    by_map, plain = load_model(str(tied), dtype=dtype, device_map="auto"), load_model(str(tied), dtype=dtype)
    assert by_map.lm_head.weight is by_map.model.embed_tokens.weight
    for kind in ("named_parameters", "named_buffers"):
        found, expected = dict(getattr(by_map, kind)()), dict(getattr(plain, kind)())
        assert found.keys() == expected.keys() and found
        assert all(torch.equal(found[name].cpu(), one.cpu()) for name, one in expected.items())
        assert all(found[name].dtype == one.dtype for name, one in expected.items())


def test_tied_weights_move_once_and_buffers_not_at_all() -> None:
    model, plain = spread("llama-tied"), random_model("llama-tied")
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert buffers
    for one in (model, plain):
        update_(one, Update(0.1, (Term(5, 0.25), term_of(6, 0.125, 1)), 1))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    for name, weight in tuned_weights(plain).weights.items():
        assert torch.equal(tuned_weights(model).weights[name], weight), name
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())


def run(model, folder: Path, **options) -> dict[str, torch.Tensor]:
    args = ZOConfig(str(folder), **ASKED, max_steps=3, learning_rate=0.01, eps=0.01, save_strategy="no", **options)
    trainer = ZOTrainer(model, objective="neg-cross-entropy", args=args, train_dataset=ROWS)
    trainer.train()
    trainer.save_model(str(folder / "model"))
    return {name: weight.cpu() for name, weight in trainer.model.named_parameters()}


# On several, a run without a map is refused, and test_on_two_gpus says what this one says.
@pytest.mark.skipif(GPUS > 1, reason="a run without a map wants one device")
def test_a_run_by_a_map_is_the_run_without(tied: Path, tmp_path: Path) -> None:
    plain = run(str(tied), tmp_path / "plain")
    by_map = run(str(tied), tmp_path / "map", device_map="auto")
    assert all(torch.equal(by_map[name], weight) for name, weight in plain.items())
    assert (tmp_path / "map/model/model.safetensors").read_bytes() == (
        tmp_path / "plain/model/model.safetensors"
    ).read_bytes()
    scores = [evaluate(str(tied), "accuracy", ROWS, **ASKED, **how).score for how in ({}, {"device_map": "auto"})]
    assert scores[0] == scores[1]


def test_a_model_that_is_spread_already_is_tuned_where_it_stands(tied: Path, tokenizer, tmp_path: Path) -> None:
    model = load_model(str(tied), dtype="float32", device="cpu")
    by_hooks = dispatch_model(model, places_of(model, "cpu", "cpu"), force_hooks=True)
    found = run(by_hooks, tmp_path / "hooks", use_cpu=True)
    expected = run(str(tied), tmp_path / "plain", use_cpu=True)
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device_map": "auto", "tune": "prefix"}, "a prefix lies on one device"),
        ({"device_map": "auto", "drift": True}, "would need all devices again"),
        ({"device_map": "both"}, "no device_map 'both'"),
        ({"device_map": "auto", "use_cpu": True}, "device and device_map say two things"),
    ],
    ids=str,
)
def test_what_a_spread_model_cannot_do_is_refused(options: dict, message: str, tied: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        run(str(tied), tmp_path / "run", **options)


def test_a_model_whose_weights_are_away_is_refused(tied: Path, tmp_path: Path) -> None:
    model = load_model(str(tied), device="cpu")
    model.hf_device_map = {"": "cpu"}
    with pytest.raises(InputError, match="a loaded model has its place already"):
        run(model, tmp_path / "run", device_map="auto")
    model.model.layers[1].to("meta")
    with pytest.raises(InputError, match=r"does not fit: model\.layers\.1\..* has no place"):
        run(model, tmp_path / "run")


@needs_two_gpus
@pytest.mark.parametrize("noise", MEMBERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_on_two_gpus_scores_texts_and_updates_are_those_of_one(family: str, noise: str, tokenizer) -> None:
    model, plain, members = spread(family, 0, 1), random_model(family).cuda(), MEMBERS[noise]
    assert len({weight.device for weight in model.parameters()}) == 2
    for _ in range(2):
        found, expected = (candidate_logprobs(engine_of(one, 0), EXAMPLES, members) for one in (model, plain))
        np.testing.assert_array_equal(found, expected)  # the same kernels on GPUs of one kind
        found, expected = (written(HFGenerator(engine_of(one, 0), tokenizer), members) for one in (model, plain))
        assert found == expected
        for one in (model, plain):
            update_(one, Update(0.1, members[-1], 1))
        for weight, other in zip(model.parameters(), plain.parameters(), strict=True):
            assert torch.equal(weight.cpu(), other.cpu())
