"""Memory that is told before a run is what its tensors take; and what cannot fit is refused before weights are read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM

from conftest import FAMILIES, random_model
from terms import term_of
from zoreward import scoring
from zoreward.cli import ending
from zoreward.members import (
    adapted,
    bytes_of,
    context,
    copies,
    grouping,
    lasting_bytes,
    lora_config,
    members_at,
    scratch_bytes,
    tuned_weights,
)
from zoreward.neighbours.of_transformers import cache_of
from zoreward.noise import LowRank
from zoreward.records import Example, Member, NoRoomError, Term
from zoreward.scoring import Generation, HFGenerator, blank_model, decoding, engine_of, load_model, memory
from zoreward.scoring.memory import Memory, cache_bytes, check_memory, needed_memory
from zoreward.trainer import ZOConfig, ZOTrainer

CPU = torch.device("cpu")
DENSE = ((Term(1, 0.1),), (Term(1, -0.1),))
SUBSPACE = ((term_of(1, 0.1, 3, basis_seed=5),), (term_of(1, -0.1, 3, basis_seed=5),))
LOW = ((term_of(1, 0.1, 2), term_of(2, 0.1, 1)), (term_of(1, -0.1, 2),))
ROWS = [{"text": word, "label": n % 2} for n, word in enumerate(["good", "bad", "great", "awful"])]


@pytest.fixture(params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    random_model(request.param).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_bytes_of_weights_are_known_without_reading_them(folder: Path, dtype: str) -> None:
    before = torch.get_rng_state()
    blank = blank_model(str(folder), dtype=dtype, device=CPU)
    assert {weight.device.type for weight in blank.parameters()} == {"meta"}
    assert torch.equal(torch.get_rng_state(), before)
    assert bytes_of(blank.parameters()) == bytes_of(load_model(str(folder), dtype=dtype, device="cpu").parameters())


def test_auto_takes_the_dtype_of_the_config(tmp_path: Path) -> None:
    model = random_model("llama").to(torch.float16)
    model.save_pretrained(tmp_path)
    blank = blank_model(str(tmp_path), dtype="auto", device=CPU)
    assert bytes_of(blank.parameters()) == bytes_of(model.parameters())


def test_a_stored_adapter_counts_too(tmp_path: Path) -> None:
    random_model("llama").save_pretrained(tmp_path / "base")
    base = load_model(str(tmp_path / "base"), device="cpu")
    adapted(base, lora_config(base, 4, 8), seed=0).save_pretrained(tmp_path / "adapter")
    loaded = load_model(str(tmp_path / "adapter"), dtype="bfloat16", device="cpu")
    blank = blank_model(str(tmp_path / "adapter"), dtype="bfloat16", device=CPU)
    assert bytes_of(blank.parameters()) == bytes_of(loaded.parameters()) > bytes_of(base.parameters()) // 2


def test_quantised_weights_are_not_guessed(tmp_path: Path) -> None:
    model = random_model("llama")
    model.config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    model.config.save_pretrained(tmp_path)
    assert blank_model(str(tmp_path), dtype="auto", device=CPU) is None


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The bytes of each set of copies or factors that is made."""
    sizes: list[int] = []
    made_copies, made_factors = copies.perturbed_copies, copies.member_factors

    def counted_copies(slots, members, kernels, into=None):
        found = made_copies(slots, members, kernels, into)
        sizes.append(sum(bytes_of(own) for own in found.values()))
        return found

    def counted_factors(slots, members, kernels):
        found = made_factors(slots, members, kernels)
        sizes.append(bytes_of(pair.whole for pair in found.values()))
        return found

    for module in (grouping, context, copies):
        monkeypatch.setattr(module, "perturbed_copies", counted_copies)
    monkeypatch.setattr(context, "member_factors", counted_factors)
    return sizes


@pytest.mark.parametrize("members", [DENSE, LOW, (DENSE[0],), ((),)], ids=["dense", "low-rank", "one", "itself"])
@pytest.mark.parametrize("keep_bytes", [1 << 30, 0], ids=["kept", "a-module-at-a-time"])
@pytest.mark.parametrize("family", FAMILIES)
def test_scratch_is_what_is_made(family: str, keep_bytes: int, members: tuple[Member, ...], made: list[int]) -> None:
    model = random_model(family)
    ids = torch.arange(3, 9).repeat(len(members), 1)
    with torch.no_grad(), members_at(model, members, keep_bytes=keep_bytes):
        begun = len(made)  # what is made before the first call stays as long as the context
        model(input_ids=ids)
    expected = sum(made[:begun]) + max(made[begun:], default=0)
    assert scratch_bytes(tuned_weights(model), members, keep_bytes) == expected > 0


@pytest.mark.parametrize("count", [1, 2])
def test_a_subspace_is_counted_with_the_scratch(folder: Path, count: int) -> None:
    model = load_model(str(folder), dtype="bfloat16", device="cpu")
    tuned, members = tuned_weights(model), SUBSPACE[:count]
    with torch.no_grad(), members_at(model, members, tuned=tuned):
        [kernel] = tuned.kernels.values()
    held = sum(side.nbytes for pair in kernel._subspaces.held.values() for side in pair)
    assert lasting_bytes(tuned, members) == held > 0
    free = tuple(tuple(replace(term, family=LowRank(3)) for term in member) for member in members)
    settings = {"rows": 2, "new_tokens": 0, "copied": 0, "device": CPU}
    found, without = (needed_memory(model, tuned, some, [example(5, 0)], **settings) for some in (members, free))
    assert found.scratch - without.scratch == held


def test_scratch_of_a_model_without_values_is_the_same(folder: Path) -> None:
    blank, real = blank_model(str(folder), dtype="float32", device=CPU), load_model(str(folder), device="cpu")
    for members in (DENSE, LOW, ((),)):
        for keep_bytes in (0, 1 << 30):
            found = [scratch_bytes(tuned_weights(model), members, keep_bytes) for model in (blank, real)]
            assert found[0] == found[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cache_is_that_of_the_model(family: str) -> None:
    model = random_model(family).to(torch.bfloat16)
    with torch.no_grad():
        cache = cache_of(model(input_ids=torch.ones(3, 7, dtype=torch.long), use_cache=True))
    real = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert cache_bytes(model, 3 * 7) == real


def test_a_model_without_attention_keeps_no_cache_that_grows() -> None:
    config = MambaConfig(vocab_size=32, hidden_size=16, state_size=4, num_hidden_layers=1, use_mambapy=False)
    assert needed(MambaForCausalLM(config), [example(5, 0)], new_tokens=4).cache == 0


def needed(model: torch.nn.Module, examples: list[Example], **changes: object) -> Memory:
    settings = {"rows": 2, "new_tokens": 0, "copied": 0, "device": CPU, **changes}
    return needed_memory(model, tuned_weights(model), DENSE, examples, **settings)


def example(prompt: int, *answers: int) -> Example:
    return Example({}, "", ("a",), 0, (3,) * prompt, tuple((4,) * length for length in answers))


def test_what_is_written_takes_a_cache_in_chunks() -> None:
    model = random_model("llama")
    examples = [example(5), example(9), example(7)]
    assert needed(model, examples).cache == 0
    assert needed(model, examples, new_tokens=4).cache == cache_bytes(model, 2 * 2 * (9 + 4))
    most = needed(model, examples * 2000, rows=6000, new_tokens=4).cache
    assert 0.99 * cache_bytes(model, 16384) < most <= cache_bytes(model, 16384)  # a CPU's call, in whole rows


def test_a_base_is_a_second_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model("llama").to("meta")
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10**9)
    found = needed(model, [example(5, 1)], copied=bytes_of(model.parameters()))
    assert found.base == found.weights == bytes_of(model.parameters())
    assert found.certain == 2 * found.weights + found.scratch
    assert found.free == 10**9


def test_weights_that_stand_there_already_count_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000)
    model = random_model("llama")
    assert needed(model, [example(5, 1)]).free == 1000 + bytes_of(model.parameters())


def test_no_device_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: None)
    assert needed(random_model("llama"), [example(5, 1)]) is None


GB = 10**9
REFUSALS = {
    "weights": (Memory(131 * GB, 2 * GB, free=78 * GB), torch.bfloat16, "needs 131 GB for its weights; ", "--device"),
    "float32": (Memory(26 * GB, free=24 * GB), torch.float32, "m in float32 needs 26 GB", "--dtype bfloat16"),
    "base": (
        Memory(50 * GB, 1 * GB, 50 * GB, free=78 * GB),
        torch.bfloat16,
        "50 GB for its weights + 50 GB for a copy of its base + 1 GB for members;",
        "--base-device",
    ),
    "members": (Memory(78 * GB, 2 * GB, free=79 * GB), torch.float16, "+ 2 GB for members", "--tune lora"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_is_refused(case: str) -> None:
    needs, dtype, message, hint = REFUSALS[case]
    with pytest.raises(NoRoomError) as refused:
        check_memory(needs, "m", dtype)
    assert message in str(refused.value)
    assert hint in refused.value.hint


def test_a_device_that_runs_full_while_a_model_is_loaded_is_named_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    random_model("llama").save_pretrained(tmp_path)
    monkeypatch.setattr("transformers.PreTrainedModel.to", full)
    with pytest.raises(NoRoomError, match="does not fit the memory of its device") as refused:
        load_model(str(tmp_path), device="cpu")
    assert "Tried to allocate 2.00 GiB" in refused.value.hint


def test_what_may_be_cut_is_no_reason_to_refuse() -> None:
    check_memory(Memory(1 * GB, activations=90 * GB, cache=90 * GB, free=1 * GB), "m", torch.float32)


def test_the_peak_on_a_gpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = SimpleNamespace(args=SimpleNamespace(device=CPU), state=SimpleNamespace(log_history=[]))
    trainer.kept_step, trainer.callback_handler = 3, SimpleNamespace(callbacks=[])
    trainer.keeper = SimpleNamespace(stopped_by=None, budget=None)
    summary = {"score": None, "steps": 3, "seconds": 1.0, "output": "run"}
    run = SimpleNamespace(metrics=(), evaluations=(), rewinds=(), has_moved_by=lambda steps: True)
    monkeypatch.setattr("zoreward.journal.load_run", lambda folder: run)
    assert ending.found_in(trainer, run)["peak_gb"] is None
    assert "GPU" not in ending.sentence_of({**summary, **ending.found_in(trainer, run)})
    monkeypatch.setattr(scoring, "peak_bytes", lambda device: 1_234_000_000)
    assert ending.found_in(trainer, run)["peak_gb"] == 1.234
    assert "3 steps in 1.0 s, at most 1.23 GB on the GPU; " in ending.sentence_of(
        {**summary, **ending.found_in(trainer, run)}
    )


def test_the_trainer_knows(tiny_model_dir: Path, tmp_path: Path) -> None:
    args = {"template": "{text} it was", "choices": [" bad", " good"], "use_cpu": True, "dtype": "bfloat16"}
    found = {}
    for tune in ("full", "lora"):
        config = ZOConfig(str(tmp_path / tune), tune=tune, drift=True, **args)
        trainer = ZOTrainer(str(tiny_model_dir), objective="accuracy", args=config, train_dataset=ROWS)
        found[tune] = trainer.memory
        assert trainer.memory.weights == bytes_of(trainer.model.parameters())
        assert trainer.memory.scratch == scratch_bytes(trainer.scorer.reader.tuned, DENSE)
    assert found["full"].base == found["full"].weights
    config = ZOConfig(str(tmp_path / "anchor"), drift=True, anchor=0.1, **args)
    trainer = ZOTrainer(str(tiny_model_dir), objective="accuracy", args=config, train_dataset=ROWS)
    assert trainer.memory.base == 2 * trainer.memory.weights  # all of it is tuned
    assert found["lora"].base == 0  # without its adapter the model is the base
    assert 0 < found["lora"].scratch < found["full"].scratch


def test_where_a_copy_does_not_fit_texts_are_written_a_module_at_a_time(
    tokenizer, monkeypatch: pytest.MonkeyPatch, made: list[int]
) -> None:
    model = random_model("llama")
    generator = HFGenerator(engine_of(model, 0), tokenizer)
    prompts, settings = [(5, 6, 7), (8, 9)], Generation(max_new_tokens=6)
    whole = list(generator.generate(prompts, ((),), settings))
    assert max(made) == bytes_of(model.parameters())
    made.clear()
    monkeypatch.setattr(decoding, "bytes_to_keep", lambda device, free, members: 0)
    assert list(generator.generate(prompts, ((),), settings)) == whole
    assert 0 < max(made) < bytes_of(model.parameters()) / 3


def test_the_cache_of_a_gpu_has_places_that_graphs_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoreward.scoring.memory.free_bytes", lambda device: 10 * GB)
    model = random_model("llama")
    rows = [Example({}, "", (), 0, tuple(range(length)), ()) for length in (5, 3)]
    needed = needed_memory(
        model, None, ((), ()), rows, rows=2, new_tokens=20, copied=0, device=torch.device("cuda")
    )  # prompts padded to 16, 16 + 20 tokens in 48 places
    assert needed is not None and needed.cache == 2 * 2 * 48 * 2 * 2 * 2 * 8 * 4  # layers, heads, width, float32
