"""Contract under test: ranks that hold a model together read what one process reads, and move the same weights by the
same bits; their run is saved, replayed, resumed and refused as any other.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, OPTConfig, OPTForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

import launches
from conftest import random_model
from test_ranks import ANSWERS, ROWS, at_step, kept, launched, place, said_by  # noqa: F401 (a fixture)
from zoreward import ZOConfig, ZOTrainer
from zoreward.journal import load_run, replay
from zoreward.kernels import cpu, portable
from zoreward.kernels.parts import Part, PartKernels
from zoreward.kernels.subspaces import Keeping
from zoreward.records import InputError, Request, Term, Update
from zoreward.scoring import engine_of, load_model

Kernels = pytest.importorskip("zoreward.kernels.gpu").Kernels
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
REQUESTS = [Request(tuple(range(3, 5 + n)), (target,)) for n in range(4) for target in (3, 7)]
COUPLE = ((Term(1, 0.05),), (Term(1, -0.05),))


def opt() -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 48, "num_hidden_layers": 2}
    return OPTForCausalLM(OPTConfig(vocab_size=96, num_attention_heads=4, max_position_embeddings=64, **sizes))


MODELS = {"llama": lambda: random_model("llama"), "opt": opt}


def trainer(model: Path, output: Path, **options: Any) -> ZOTrainer:
    given = {"learning_rate": 1e-2, "max_steps": 3, "num_directions": 2, "eval_steps": 1, "eval_strategy": "steps"}
    args = ZOConfig(
        str(output), per_device_train_batch_size=8, use_cpu=True, disable_tqdm=True, save_strategy="no",
        **{**given, **ANSWERS, **options},
    )  # fmt: skip
    return ZOTrainer(str(model), objective="neg-cross-entropy", train_dataset=ROWS, eval_dataset=ROWS[::3], args=args)


def logprobs_of(engine: Any) -> list[list[float]]:
    return [own.tolist() for own in engine.logprobs([(member, REQUESTS) for member in ((), *COUPLE)])]


@pytest.fixture(scope="session")
def without_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("transformers would divide the model over GPUs")


@pytest.fixture(scope="module", params=[("llama", "float32"), ("opt", "float32"), ("llama", "bfloat16")], ids=str)
def divided(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: PreTrainedTokenizerFast,
    without_gpu: None,
) -> tuple[Path, str]:
    """A folder with a model, and in it what two ranks that hold it together have done."""
    family, dtype = request.param
    folder = tmp_path_factory.mktemp("divided")
    MODELS[family]().save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")

    def work(rank: int) -> None:
        own = trainer(folder / "base", folder / "run", dtype=dtype, tensor_parallel=2)
        before = logprobs_of(own.scorer.engine)
        held = sum(weight.numel() for weight in own.model.parameters())
        own.train()
        own.save_model(str(folder / "model"))
        told = {
            "before": before,
            "held": held,
            "weights": own.memory.weights if own.memory else 0,
            "eval": [log for log in own.state.log_history if "eval_score" in log],
        }
        (folder / f"told-{rank}.json").write_text(json.dumps(told))

    codes = launches.ended(launches.start(2, folder / "log", work))
    assert codes == [0, 0], (folder / "log").read_text()[-5000:]
    return folder, dtype


def told_by(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"told-{rank}.json").read_text()) for rank in range(2)]


def test_ranks_that_hold_a_model_together_read_what_one_process_reads(divided):
    folder, dtype = divided
    first, second = told_by(folder)
    model = load_model(str(folder / "base"), dtype=dtype, device="cpu")
    whole = logprobs_of(engine_of(model, 0))
    assert first["before"] == second["before"]
    assert first["held"] < sum(weight.numel() for weight in model.parameters())
    assert first["weights"] == first["held"] * torch.finfo(getattr(torch, dtype)).bits // 8  # as was forecast
    exact = {"float32": 1e-5, "bfloat16": 0.2}[dtype]  # partial sums are rounded
    torch.testing.assert_close(torch.tensor(first["before"]), torch.tensor(whole), atol=exact, rtol=0)
    assert first["before"][1] != first["before"][2]  # members differ


def test_the_weights_are_bit_for_bit_those_of_one_process_with_these_scores(divided):
    folder, dtype = divided
    run = load_run(folder / "run")
    assert run.n_steps == 3
    alone = replay(run, load_model(str(folder / "base"), dtype=dtype, device="cpu"))
    saved = load_model(str(folder / "model"), dtype=dtype, device="cpu")
    base = load_model(str(folder / "base"), dtype=dtype, device="cpu").state_dict()
    for name, weight in saved.state_dict().items():
        assert torch.equal(weight, alone.state_dict()[name]), name
    moved = [name for name, weight in saved.state_dict().items() if not torch.equal(weight, base[name])]
    assert {name.split(".")[-2] for name in moved} >= {"q_proj", "v_proj"}


def test_a_saved_model_knows_nothing_of_its_division(divided):
    folder, _ = divided
    config, before = ((folder / name / "config.json").read_text() for name in ("model", "base"))
    assert "distributed" not in config
    assert json.loads(config).keys() == json.loads(before).keys()


def test_a_run_goes_on_and_back_to_its_best_step(tiny_model_dir, tmp_path, without_gpu):
    whole = {"max_steps": 4, "load_best_model_at_end": True, "tensor_parallel": 2, "learning_rate": 0.3}

    def work(rank: int) -> None:
        trainer(tiny_model_dir, tmp_path / "run", **{**whole, "max_steps": 2, "load_best_model_at_end": False}).train()
        own = trainer(tiny_model_dir, tmp_path / "run", **whole)
        own.train(resume_from_checkpoint=True)
        own.save_model(str(tmp_path / "model"))
        trainer(tiny_model_dir, tmp_path / "undisturbed", **whole).train()

    codes = launches.ended(launches.start(2, tmp_path / "log", work))
    assert codes == [0, 0], (tmp_path / "log").read_text()[-5000:]
    one, other = (load_run(tmp_path / name) for name in ("run", "undisturbed"))
    assert [record.scores for record in one.records()] == [record.scores for record in other.records()]
    assert 0 < one.best_step < 4  # to which it went back
    saved = load_model(str(tmp_path / "model"), device="cpu").state_dict()
    alone = replay(one, load_model(str(tiny_model_dir), device="cpu"), step=one.best_step).state_dict()
    assert all(torch.equal(weight, alone[name]) for name, weight in saved.items())


@pytest.mark.parametrize("split", ["members", pytest.param("rows", marks=pytest.mark.slow)])
def test_groups_of_ranks_share_the_work_as_ranks_do(split, tiny_model_dir, tmp_path, without_gpu):
    """Two groups of two, whose run goes on with one group."""
    options = {"tensor_parallel": 2, "ranks_split": split, "max_steps": 4}

    def work(rank: int) -> None:
        own = trainer(tiny_model_dir, tmp_path / "four", **options)
        own.train()
        own.save_model(str(tmp_path / "model"))
        trainer(tiny_model_dir, tmp_path / "two", **{**options, "max_steps": 2}).train()

    def go_on(rank: int) -> None:
        trainer(tiny_model_dir, tmp_path / "two", **options).train(resume_from_checkpoint=True)

    for size, task in ((4, work), (2, go_on)):
        codes = launches.ended(launches.start(size, tmp_path / "log", task))
        assert codes == [0] * size, (tmp_path / "log").read_text()[-5000:]
    run, two = (load_run(tmp_path / name) for name in ("four", "two"))
    unit = run.header["unit"]
    assert (unit["ranks"], unit["split"], unit["tensor_parallel"]) == (2, split, 2)
    assert unit["members"] == (2 if split == "members" else 4)
    assert [record.scores for record in run.records()] == [record.scores for record in two.records()]
    saved = load_model(str(tmp_path / "model"), device="cpu").state_dict()
    alone = replay(run, load_model(str(tiny_model_dir), device="cpu")).state_dict()
    assert all(torch.equal(weight, alone[name]) for name, weight in saved.items())


@pytest.mark.slow
def test_a_rank_that_dies_in_a_layer_ends_the_others_and_the_run_goes_on(place, without_gpu):  # noqa: F811
    divided = ("--tensor-parallel", "2")
    assert launched(2, place, "whole", *divided) == [0, 0]
    log = (place / "log").read_text()
    assert log.count("on the 12 test rows") == 1 and "weights are tuned" in log
    whole = kept(place / "whole")
    for died in (0, 1):
        codes = launched(2, place, f"killed-{died}", *divided, before=at_step(6, died, signal.SIGKILL))
        assert sorted(codes) == [-signal.SIGKILL, 1]
        log = (place / "log").read_text()
        assert "error: another rank has ended, or cannot be reached" in log and "Traceback" not in log
        assert launched(2, place, f"killed-{died}", *divided, "--resume") == [0, 0]
        assert kept(place / f"killed-{died}") == whole


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
# Seven columns: lines begin in the middle of what is drawn at a time. 8 lines of 128: one program's work on a GPU.
@pytest.mark.parametrize(("name", "columns"), [("cpu", 7), ("cpu", 128), ("portable", 128), ("gpu", 128)])
@pytest.mark.parametrize(("dim", "first", "count"), [(0, 5, 8), (0, 8, 8), (0, 8, 5), (0, 0, 8), (1, 3, 4)])
def test_a_part_moves_as_the_whole_does_there(name, dtype, columns, dim, first, count, quick_interpreter):
    torch.manual_seed(0)
    device = DEVICE if name == "gpu" else "cpu"
    whole, vector, bias = (torch.randn(*shape).to(dtype) for shape in ((19, columns), (6,), (19,)))
    part = Part((19, columns), dim, first)
    own, plain = whole.narrow(dim, first, count).to(device).contiguous().clone(), vector.to(device).clone()
    beneath = {"cpu": lambda: Keeping(cpu), "portable": lambda: Keeping(portable), "gpu": lambda: Kernels(1024, 1024)}
    kernels = PartKernels(beneath[name](), {3: part, 4: Part((19,), 0, 9)})
    line = bias[9:16].to(device).clone()
    weights, alone = [(plain, 9), (own, 3), (line, 4)], [(vector, 9), (whole, 3), (bias, 4)]

    def same(found: torch.Tensor, expected: torch.Tensor) -> bool:
        return torch.equal(found.cpu(), expected)

    copies = kernels.perturb_all(weights, COUPLE)
    wholes = cpu.perturb_all(alone, COUPLE)
    assert all(same(copy, one[9:16]) for copy, one in zip(copies[2], wholes[2], strict=True))
    assert all(map(same, copies[0], wholes[0]))
    assert all(same(copy, part.of(one, own)) for copy, one in zip(copies[1], wholes[1], strict=True))
    again = kernels.perturb_all(weights, COUPLE[::-1], copies)
    assert again[1][0] is copies[1][0] and same(again[1][0], part.of(wholes[1][1], own))
    updates = [Update(0.01, (Term(5, 0.1), Term(6, -0.2)), 7), Update(0.0, (Term(8, 0.3),), 9)]
    kernels.replay_all_(weights, updates)
    cpu.replay_all_(alone, updates)
    assert same(own, part.of(whole, own)) and same(plain, vector) and same(line, bias[9:16])


def test_what_cannot_be_divided_is_refused_before_weights_are_read(tmp_path, tokenizer, tiny_model_dir):
    three = LlamaConfig(hidden_size=24, num_attention_heads=3, num_hidden_layers=1, vocab_size=96)
    for name, config in (("three", three), ("bloom", random_model("bloom").config)):
        config.save_pretrained(tmp_path / name)  # no weights
        tokenizer.save_pretrained(tmp_path / name)

    def refused(model: Path, **options: Any) -> Any:
        return lambda rank: trainer(model, tmp_path / "run", **{"tensor_parallel": 2, **options})

    tries = {
        "three heads": refused(tmp_path / "three"),
        "no plan": refused(tmp_path / "bloom"),
        "four": refused(tiny_model_dir, tensor_parallel=4),
        "low rank": refused(tiny_model_dir, noise="low-rank"),
        "lora": refused(tiny_model_dir, tune="lora"),
        "a head": refused(tiny_model_dir, tune="head"),
        "blocks": refused(tiny_model_dir, blocks=2),
    }
    first, second = said_by(2, tmp_path, tries)
    assert first == second
    for name, words in {
        "three heads": "2 ranks cannot share the 3 attention heads",
        "no plan": "cannot be divided among ranks: nobody says how, for Bloom",
        "four": "tensor_parallel=4 divides a model among 4 ranks, and 2 started",
        "low rank": "tensor_parallel=2 is not built for low-rank directions",
        "lora": "is not built for adapters",
        "a head": "is not built for a part of the weights (tune=head)",
        "blocks": "is not built for anchor, share and blocks",
    }.items():
        assert words in first[name] and first[name].startswith("InputError"), first[name]


def test_a_model_is_not_divided_by_a_process_alone(tiny_model_dir, tmp_path):
    with pytest.raises(InputError, match="divides a model among 2 ranks, and 1 started"):
        trainer(tiny_model_dir, tmp_path / "run", tensor_parallel=2)
