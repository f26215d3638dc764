"""Contract under test: whoever writes, members write what they write here, θ moves by the same bits, and a run says who
wrote. One set of tests for the engine at hand, for one made up, and for vLLM where it is installed (`make test-vllm`).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file

from conftest import random_model
from launches import free_port
from zoreward import ZOConfig, ZOTrainer, replay
from zoreward.journal import fingerprint, load_run
from zoreward.members import adapted, digest_of_weights, lora_config, tuned_weights, update_
from zoreward.neighbours.of_vllm import TESTED_VLLM, vllm_release
from zoreward.noise import LowRank
from zoreward.records import InputError, ObjectiveError, Request, Term, Update
from zoreward.scoring import Generation, engine_of
from zoreward.scoring.adapter_files import Adapter, AdapterFiles
from zoreward.scoring.served import ServedEngine, Written
from zoreward.trainer.engines import check_share

EPS = 2.0**-5
MEMBERS = tuple((Term(seed, sign * EPS, LowRank(1)),) for seed in (1, 2) for sign in (1, -1))
DENSE = tuple((Term(seed, sign * EPS),) for seed in (1, 2) for sign in (1, -1))
UPDATE = Update(0.01, (Term(7, 0.05, LowRank(1)), Term(8, -0.02)), rounding_seed=9)
GREEDY = Generation(max_new_tokens=8)
CONTEXT = 256
# vLLM's cache keeps prefixes in blocks, on a CPU of so many tokens.
BLOCK = 128


def prompt_of(length: int) -> tuple[int, ...]:
    return tuple(torch.randint(3, 20, (length,), generator=torch.Generator().manual_seed(length)).tolist())


REQUESTS = [Request(prompt_of(length), ()) for length in (3, 5, 12)]
pytestmark = pytest.mark.usefixtures("trials_are_kept")
HAS_VLLM = vllm_release() in TESTED_VLLM
needs_vllm = pytest.mark.skipif(not HAS_VLLM, reason=f"vLLM {' or '.join(TESTED_VLLM)} is not installed")


@pytest.fixture(scope="module")
def checkpoint(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama whose heads are as wide as vLLM's attention takes them, with its tokenizer."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("llama-for-engines")
    config = hf.LlamaConfig(
        vocab_size=32, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=96, max_position_embeddings=CONTEXT, initializer_range=0.2, bos_token_id=1, eos_token_id=1,
        pad_token_id=0,
    )  # fmt: skip
    hf.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class MadeUp:
    """A `Writer` that is transformers: as vLLM it has θ for itself, reads adapters, and knows by name what it wrote."""

    name, holds, takes, rank, folder = "made up", True, None, 8, None

    def __init__(self, model: Any, tokenizer: Any):
        self._model, self._engine, self._kept = model, engine_of(model, 0, tokenizer), dict[Any, Any]()
        self._tuned, self._before = self._engine.tuned, dict[str, torch.Tensor]()

    def write(self, asked: Any, how: Generation, ends: Any) -> list[list[Written]]:
        return [self._written(adapter, prompts, how) for adapter, prompts in asked]

    def _written(self, adapter: Adapter | None, prompts: Any, how: Generation) -> list[Written]:
        key = (adapter and (adapter.name, adapter.folder), tuple(prompts), how)
        if key not in self._kept:
            with self._with(adapter):
                [[texts]] = self._engine.generate([((), [Request(prompt, ()) for prompt in prompts])], how)
                told = [Request(prompt, text.tokens) for prompt, text in zip(prompts, texts, strict=True)]
                [logprobs] = self._engine.logprobs([((), told)])
            self._kept[key] = [Written(text.tokens, value) for text, value in zip(texts, logprobs, strict=True)]
        return self._kept[key]

    @contextmanager
    def _with(self, adapter: Adapter | None) -> Iterator[None]:
        before = {name: weight.detach().clone() for name, weight in self._model.named_parameters()}
        with torch.no_grad():
            for name, moved in added_by(adapter).items() if adapter else ():
                self._model.get_parameter(name).add_(moved)
            yield
            for name, weight in before.items():
                self._model.get_parameter(name).copy_(weight)

    @torch.no_grad()
    def take(self, weights: Any, tuned: Any) -> None:
        for name, weight in self._model.named_parameters():
            weight.copy_(weights[name])
        self._tuned = tuned_weights(self._model, list(tuned.weights))
        self._kept.clear()

    def apply(self, update: Update) -> None:
        update_(self._model, update, tuned=self._tuned)
        self._kept.clear()

    @torch.no_grad()
    def show(self, member: Any) -> None:
        for name, weight in self._before.items():
            self._tuned.weights[name].copy_(weight)
        self._before = {name: weight.clone() for name, weight in self._tuned.weights.items()} if member else {}
        update_(self._model, Update(0.0, tuple(member), 0), tuned=self._tuned)
        self._kept.clear()

    def digest(self) -> str:
        return digest_of_weights(self._tuned)


def added_by(adapter: Adapter) -> dict[str, torch.Tensor]:
    """What an adapter adds to each weight."""
    config = json.loads((adapter.folder / "adapter_config.json").read_text())
    state = load_file(adapter.folder / "adapter_model.safetensors")
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in state.items():
        name, _, side = key.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".lora_")
        pairs.setdefault(name, {})[side] = tensor
    scale = config["lora_alpha"] / config["r"]
    return {
        f"{name}.weight": scale * (own["B"] @ own["A"] if "A" in own else (own["embedding_B"] @ own["embedding_A"]).mT)
        for name, own in pairs.items()
    }


def loaded(checkpoint: Path, dtype: str = "float32") -> Any:
    return hf.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype).eval()


@pytest.fixture(scope="module")
def vllm(checkpoint: Path) -> Any:
    """One for all tests: it takes a while to start."""
    if not HAS_VLLM:
        pytest.skip(f"vLLM {' or '.join(TESTED_VLLM)} is not installed")
    from zoreward.scoring.vllm import VLLMWriter

    options = {"dtype": "float32", "enforce_eager": True, "max_num_seqs": 32, "kv_cache_memory_bytes": 1 << 26}
    return VLLMWriter(str(checkpoint), options, members=4, rank=8)


@pytest.fixture(params=["made up", "vllm"])
def writer(request: pytest.FixtureRequest, checkpoint: Path, tokenizer: Any) -> Any:
    return request.getfixturevalue("vllm") if request.param == "vllm" else MadeUp(loaded(checkpoint), tokenizer)


def served_by(writer: Any, model: Any, tokenizer: Any, kind: type[AdapterFiles] = AdapterFiles) -> ServedEngine:
    local = engine_of(model, 0, tokenizer)
    engine = ServedEngine(local, writer, kind(model, local.tuned), not hasattr(model, "peft_config"))
    engine.take()
    return engine


@pytest.fixture
def served(writer: Any, checkpoint: Path, tokenizer: Any) -> ServedEngine:
    return served_by(writer, loaded(checkpoint), tokenizer)


@pytest.fixture(params=["local", "made up", "vllm"])
def engine(request: pytest.FixtureRequest, checkpoint: Path, tokenizer: Any) -> Any:
    model = loaded(checkpoint)
    if request.param == "local":
        return engine_of(model, 0, tokenizer)
    writer = request.getfixturevalue("vllm") if request.param == "vllm" else MadeUp(loaded(checkpoint), tokenizer)
    return served_by(writer, model, tokenizer)


def at_hand(engine: Any) -> Any:
    return getattr(engine, "local", engine)


def texts_of(engine: Any, members: Any, how: Generation = GREEDY, requests: Any = REQUESTS) -> list[Any]:
    return [texts for chunk in engine.generate([(member, requests) for member in members], how) for texts in chunk]


def assert_same_texts(engine: Any, members: Any, how: Generation = GREEDY, requests: Any = REQUESTS) -> None:
    """They are those of the engine at hand, each member by itself, but for two tokens as likely within 1e-3."""
    local, there = at_hand(engine), texts_of(engine, members, how, requests)
    here = [texts for member in members for texts in texts_of(local, [member], how, requests)]
    for member, own, others in zip(members, there, here, strict=True):
        for request, one, other in zip(requests, own, others, strict=True):
            if one == other:
                continue
            at = next(n for n, (a, b) in enumerate(zip(one.tokens, other.tokens, strict=False)) if a != b)
            prefix = request.prompt + one.tokens[:at]
            asked = [Request(prefix, (text.tokens[at],)) for text in (one, other)]
            [[first, second]] = local.logprobs([(member, asked)])
            assert abs(first - second) < 1e-3, (member, request, one, other)


def differ(engine: Any, members: Any, requests: Any = REQUESTS) -> bool:
    return len({tuple(one.tokens for one in own) for own in texts_of(engine, members, requests=requests)}) > 1


def test_a_population_writes_what_it_writes_here(engine):
    assert differ(engine, MEMBERS)
    assert_same_texts(engine, [(), *MEMBERS])
    assert_same_texts(engine, [MEMBERS[1], (), MEMBERS[0]])


def test_more_members_than_there_is_room_for(engine):
    assert_same_texts(engine, [(Term(seed, EPS, LowRank(1)),) for seed in range(6)])


def test_updates_are_seeds_and_give_the_same_bits(served):
    before = served.writer.digest()
    for step in range(3):
        served.apply(replace(UPDATE, rounding_seed=step))
        served.compare(step)
    assert served.writer.digest() != before
    assert_same_texts(served, [(), *MEMBERS])


def test_other_weights_are_noticed(served):
    served.local.apply(UPDATE)  # and the writer does not
    with pytest.raises(InputError, match="other weights after step 5"):
        served.compare(5)
    served.take()
    served.compare(5)


def test_dense_members_write_one_after_the_other_and_leave_no_trace(served):
    before = served.writer.digest()
    assert "no LoRA adapters" in served.files.problem(DENSE)
    assert_same_texts(served, [(), *DENSE])
    assert differ(served, DENSE)
    assert served.writer.digest() == before


def test_members_of_a_larger_rank_than_there_is_room_for_do_so_too(served):
    member = tuple(Term(seed, EPS, LowRank(2)) for seed in range(8))
    assert "rank 16" in served.files.problem([member], None, served.writer.rank)
    assert_same_texts(served, [member, MEMBERS[0]])


def test_a_prefix_is_not_answered_from_another_member_s_cache(writer, checkpoint, tokenizer):
    """Without new names it would be: this is what the names are for."""
    long = [Request(prompt_of(BLOCK + 20), ())]
    engine = served_by(writer, loaded(checkpoint), tokenizer)
    for members in (MEMBERS[:2], MEMBERS[2:]):
        assert_same_texts(engine, members, requests=long)
    engine.apply(UPDATE)
    assert_same_texts(engine, [(), *MEMBERS[:2]], requests=long)

    class SameNames(AdapterFiles):
        @contextmanager
        def written(self, members):
            with super().written(members) as adapters:
                folders = [one.folder.parent.parent / f"zoreward-same-{n}" for n, one in enumerate(adapters)]
                for one, folder in zip(adapters, folders, strict=True):
                    shutil.copytree(one.folder, folder)
                try:
                    yield [Adapter(f"same-{n}", n + 1, folder) for n, folder in enumerate(folders)]
                finally:
                    for folder in folders:
                        shutil.rmtree(folder)

    engine = served_by(writer, loaded(checkpoint), tokenizer, SameNames)
    assert_same_texts(engine, MEMBERS[:2], requests=long)
    with pytest.raises(AssertionError):
        assert_same_texts(engine, MEMBERS[2:], requests=long)


def test_members_that_draw_have_common_random_numbers(engine):
    how = Generation(max_new_tokens=12, temperature=1.0, seed=5)
    twice = [REQUESTS[0], REQUESTS[0]]
    one, other = texts_of(engine, [MEMBERS[0], MEMBERS[0]], how, twice)
    assert one == other and one[0] != one[1]
    [again] = texts_of(engine, [MEMBERS[0]], how, twice)
    [others] = texts_of(engine, [MEMBERS[0]], replace(how, seed=6), twice)
    assert again == one != others


def test_texts_end_where_they_are_to_end(engine):
    [[plain, *_]] = texts_of(engine, [()])
    stop = plain.text.split()[2]
    how = replace(GREEDY, stop=(stop,))
    assert texts_of(engine, [()], how)[0][0].text == plain.text[: plain.text.index(stop)]
    assert_same_texts(engine, [()], how)
    assert_same_texts(engine, [()], Generation(max_new_tokens=12, repetition_penalty=1.5))


def test_outputs_that_are_not_finite_end_it(engine):
    with torch.no_grad():
        at_hand(engine).model.model.norm.weight[0] = float("nan")
    if isinstance(engine, ServedEngine):
        engine.take()
    with pytest.raises(ObjectiveError, match="not finite"):
        texts_of(engine, [()])


def test_given_answers_are_read_here(served):
    asked = [(member, [Request((5, 6), (7,)), Request((5, 6), (8, 9))]) for member in MEMBERS]
    for there, here in zip(served.logprobs(asked), served.local.logprobs(asked), strict=True):
        np.testing.assert_array_equal(there, here)
    assert served.unit == {**served.local.unit, "engine": served.writer.name}


@pytest.fixture
def tuned_adapter(checkpoint: Path) -> Any:
    model = loaded(checkpoint)
    adapter = adapted(model, lora_config(model, 4, 8), seed=3)
    with torch.no_grad():
        for name, weight in adapter.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.05, generator=torch.Generator().manual_seed(len(name)))
    return adapter.eval().requires_grad_(False)


@pytest.mark.parametrize("members", [MEMBERS, DENSE], ids=["low-rank", "dense"])
def test_members_of_an_adapter_are_adapters(writer, tuned_adapter, tokenizer, checkpoint, members):
    served_by(writer, loaded(checkpoint), tokenizer)  # back to the base
    engine = served_by(writer, tuned_adapter, tokenizer)
    assert differ(engine, [(), *members])
    assert_same_texts(engine, [(), *members])
    engine.apply(UPDATE)
    assert_same_texts(engine, [(), *members])
    engine.compare(1)


# What members are on the disk.


@pytest.mark.parametrize("family", ["llama", "llama-tied", "qwen3"])
def test_in_half_precision_a_member_at_a_power_of_two_is_exact(family):
    model = random_model(family).to(torch.bfloat16)
    tuned, name = tuned_weights(model), "model.layers.0.mlp.up_proj"
    weight = tuned.weights[f"{name}.weight"]
    with AdapterFiles(model, tuned).written(MEMBERS) as adapters:
        state = load_file(adapters[1].folder / "adapter_model.safetensors")
    a, b = (state[f"base_model.model.{name}.lora_{side}.weight"].double() for side in "BA")
    [[term]] = [MEMBERS[1]]
    z = term.family.entries(term.seed, tuned.streams[f"{name}.weight"], tuple(weight.shape), 0, weight.numel())
    wanted = torch.from_numpy(z).double().view(weight.shape) * term.coefficient
    assert float((a @ b - wanted).abs().max()) < 1e-7 * float(wanted.abs().max())


def test_adapters_are_gone_when_they_were_read_and_no_name_comes_twice(checkpoint):
    model = loaded(checkpoint)
    names, files = list[str](), AdapterFiles(model, tuned_weights(model))
    for _ in range(3):
        with files.written([MEMBERS[0], (), MEMBERS[1]]) as adapters:
            assert adapters[1] is None and all(one.folder.is_dir() for one in (adapters[0], adapters[2]))
            names += [name for one in (adapters[0], adapters[2]) for name in (one.name, str(one.folder))]
        assert not adapters[0].folder.exists()
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_layers_of_which_there_are_no_adapters_are_named(family):
    model = random_model(family)
    problem = AdapterFiles(model, tuned_weights(model)).problem(MEMBERS)
    assert "no adapters" in problem and any(name in problem for name in ("c_attn", "wte", "embed_positions"))


# Runs.

ROWS = [{"prompt": text} for text in ("good bad film", "a the it was", "great terrible an", "plot dull bright and not")]


def variety(completions: list[str], **columns: Any) -> list[float]:
    return [float(len(set(text.split()))) for text in completions]


def trainer_of(checkpoint: Path, folder: Path, steps: int = 3, **given: Any) -> ZOTrainer:
    settings: dict[str, Any] = {
        **{"engine": "vllm", "num_directions": 2, "eps": EPS, "learning_rate": 3e-3, "max_completion_length": 4},
        **{"per_device_train_batch_size": 2, "use_cpu": True, "disable_tqdm": True, "logging_steps": 1},
    }
    args = ZOConfig(str(folder), max_steps=steps, **settings | given)
    return ZOTrainer(str(checkpoint), variety, args, train_dataset=ROWS, eval_dataset=ROWS[:2])


@pytest.fixture
def made_up_vllm(monkeypatch: pytest.MonkeyPatch, checkpoint: Path, tokenizer: Any) -> list[dict[str, Any]]:
    """What vLLM is made with, where it is made up."""
    made = []

    def make(source: str, options: Any, **sizes: Any) -> MadeUp:
        made.append({"source": source, **options, **sizes})
        return MadeUp(loaded(Path(source)), tokenizer)

    monkeypatch.setattr("zoreward.scoring.vllm.VLLMWriter", make)
    monkeypatch.setattr("zoreward.scoring.vllm.checked_release", lambda: "0")
    monkeypatch.setattr("zoreward.scoring.vllm.on_gpu", lambda: False)
    return made


def test_a_run_gives_the_bytes_of_one_here_and_says_who_wrote(made_up_vllm, checkpoint, tmp_path):
    here, there = (trainer_of(checkpoint, tmp_path / name, engine=name) for name in ("local", "vllm"))
    here.train()
    there.train()
    [made] = made_up_vllm
    assert (made["source"], made["members"], made["rank"]) == (str(checkpoint), 4, 1)
    assert fingerprint(here.model) == fingerprint(there.model) != fingerprint(loaded(checkpoint))
    first, second = (load_run(tmp_path / name) for name in ("local", "vllm"))
    assert [one.scores for one in first.records()] == [one.scores for one in second.records()]
    assert second.header["unit"]["engine"] == "made up" and "engine" not in first.header["unit"]
    base = loaded(checkpoint)
    replay(str(tmp_path / "vllm"), base)
    assert fingerprint(base) == fingerprint(there.model)


@pytest.mark.parametrize("given", [{}, {"tune": "lora", "lora_rank": 2}, {"noise": "dense"}], ids=str)
def test_a_run_goes_on_and_replays_here(made_up_vllm, checkpoint, tmp_path, given, caplog):
    trainer_of(checkpoint, tmp_path / "run", 2, **given).train()
    again = trainer_of(checkpoint, tmp_path / "run", 4, **given)
    again.train(resume_from_checkpoint=True)
    whole = trainer_of(checkpoint, tmp_path / "whole", 4, **given)
    whole.train()
    assert fingerprint(again.model) == fingerprint(whole.model)
    assert ("Members are scored one at a time" in caplog.text) is ("noise" in given)
    last = trainer_of(checkpoint, tmp_path / "run", 5, **given, engine="local")
    last.train(resume_from_checkpoint=True)
    assert "came from the engine made up; from now on it is local" in caplog.text


def test_the_best_step_and_a_rewind_are_told_to_who_writes(made_up_vllm, checkpoint, tmp_path):
    trainer = trainer_of(
        checkpoint, tmp_path, 6, learning_rate=0.5, load_best_model_at_end=True, eval_strategy="steps", eval_steps=1,
    )  # fmt: skip
    trainer.evaluate()
    trainer.train()
    assert trainer.kept_step < 6
    assert trainer.scorer.engine.writer.digest() == digest_of_weights(trainer.ready.tuned)


def test_who_writes_otherwise_is_refused_before_step_1(made_up_vllm, checkpoint, tmp_path, monkeypatch):
    class Deaf(MadeUp):
        def write(self, asked, how, ends):
            return super().write([(None, prompts) for _, prompts in asked], how, ends)

    def make(source, options, **sizes):
        return Deaf(loaded(Path(source)), trainer_tokenizer)

    trainer_tokenizer = hf.AutoTokenizer.from_pretrained(checkpoint)
    monkeypatch.setattr("zoreward.scoring.vllm.VLLMWriter", make)
    with pytest.raises(InputError, match="nats a token from the engine at hand for a member; rounding explains"):
        trainer_of(checkpoint, tmp_path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"engine": "sglang"}, "there is no engine 'sglang'"),
        ({"engine": "openai:localhost"}, "there is no engine"),
        ({"engine": "local", "gpu_memory_utilization": 0.5}, "gpu_memory_utilization is vLLM's share"),
        ({"share": 0.5}, "not built for share and anchor"),
        ({"tune": "prefix"}, "takes no prefix"),
        ({"engine": "openai:http://127.0.0.1:1"}, "cannot move the weights of a model, only adapters"),
        ({"engine": "openai:http://127.0.0.1:1", "tune": "lora"}, "nobody answers at http://127.0.0.1:1"),
    ],
)
def test_what_an_engine_cannot_is_refused_by_name(made_up_vllm, checkpoint, tmp_path, given, message):
    with pytest.raises(InputError, match=message):
        trainer_of(checkpoint, tmp_path, **given)
    assert not made_up_vllm


def test_a_share_of_the_gpu_that_is_not_free_beside_the_model_is_refused_with_one_that_is(monkeypatch):
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80_000_000_000)
    )
    gpu = torch.device("cuda", 0)
    check_share(0.9, gpu, 72_000_000_000)
    check_share(None, gpu, 0)
    check_share(0.9, torch.device("cpu"), 0)
    with pytest.raises(InputError, match=r"0.9 asks for 72 GB, and 50 GB are free beside the model") as found:
        check_share(0.9, gpu, 50_000_000_000)
    assert found.value.hint.startswith("Take 0.62 or less")


def test_given_answers_are_none_of_its_business(made_up_vllm, checkpoint, tmp_path):
    args = ZOConfig(str(tmp_path), engine="vllm", template="{text}", choices=[" bad", " good"], use_cpu=True)
    rows = [{"text": "good", "label": 1}, {"text": "dull", "label": 0}]
    with pytest.raises(InputError, match="'accuracy' scores answers that are given"):
        ZOTrainer(str(checkpoint), objective="accuracy", train_dataset=rows, args=args)


@pytest.mark.parametrize("release", [None, "0.3.0"])
def test_without_a_vllm_that_was_tested_the_command_that_installs_one_is_told(
    release, monkeypatch, checkpoint, tmp_path
):
    monkeypatch.setattr("zoreward.scoring.vllm.vllm_release", lambda: release)
    with pytest.raises(InputError, match="0.3.0 is not one" if release else "not installed") as found:
        trainer_of(checkpoint, tmp_path)
    assert f"pip install 'vllm=={TESTED_VLLM[-1]}'" in found.value.hint


# A server.


class MadeUpServer:
    """As vLLM's: it loads adapters by path while it runs, and writes with the one that a request names."""

    def __init__(self, writer: MadeUp):
        self.writer, self.loaded, self.names = writer, dict[str, Adapter](), list[str]()
        self.paths, self.key = {"/version", "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/completions"}, ""
        self._turn = threading.Lock()

    def answer(self, path: str, told: Any, key: str | None) -> tuple[int, Any]:
        with self._turn:
            if path not in self.paths:
                return 404, {"detail": "Not Found"}
            if path != "/version" and self.key and key != f"Bearer {self.key}":
                return 401, {"error": "Unauthorized"}
            return getattr(self, path.rpartition("/")[2])(told)

    def version(self, told: Any) -> tuple[int, Any]:
        return 200, {"version": "0.32.0"}

    def load_lora_adapter(self, told: Any) -> tuple[int, Any]:
        if "lora_name" not in told:
            return 422, {}
        assert told["lora_name"] not in self.names
        if not Path(told["lora_path"], "adapter_config.json").exists():
            return 404, {"error": "no adapter"}
        self.names.append(told["lora_name"])
        self.loaded[told["lora_name"]] = Adapter(told["lora_name"], len(self.names), Path(told["lora_path"]))
        return 200, "loaded"

    def unload_lora_adapter(self, told: Any) -> tuple[int, Any]:
        return (200, "unloaded") if self.loaded.pop(told["lora_name"], None) else (404, "")

    def completions(self, told: Any) -> tuple[int, Any]:
        how = Generation(told["max_tokens"], told["temperature"])
        [[one]] = self.writer.write([(self.loaded[told["model"]], [tuple(told["prompt"])])], how, ())
        choice = {"text": "", "token_ids": one.tokens, "logprobs": {"token_logprobs": [one.logprob]}}
        return 200, {"choices": [choice]}


@pytest.fixture
def server(checkpoint: Path, tokenizer: Any) -> Iterator[Any]:
    made = MadeUpServer(MadeUp(loaded(checkpoint), tokenizer))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
            status, answer = made.answer(self.path, told, self.headers.get("Authorization"))
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST

        def log_message(self, *about: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        made.url = f"http://127.0.0.1:{listening.server_address[1]}"
        yield made
        listening.shutdown()


def test_a_server_writes_for_a_run_that_tunes_an_adapter(server, checkpoint, tmp_path):
    given = {"tune": "lora", "lora_rank": 2}
    there = trainer_of(checkpoint, tmp_path / "there", engine=f"openai:{server.url}", **given)
    there.train()
    here = trainer_of(checkpoint, tmp_path / "here", engine="local", **given)
    here.train()
    assert fingerprint(here.model) == fingerprint(there.model)
    assert load_run(tmp_path / "there").header["unit"]["engine"] == "a server of vllm 0.32.0"
    assert server.names and not server.loaded


def test_a_server_that_cannot_is_told_so_by_name(server, checkpoint, tmp_path, monkeypatch):
    def refused(message: str) -> str:
        with pytest.raises(InputError, match=message) as found:
            trainer_of(checkpoint, tmp_path, engine=f"openai:{server.url}", tune="lora")
        return found.value.hint

    server.key = "secret"
    assert "VLLM_API_KEY" in refused("asks for a key")
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    monkeypatch.setattr(
        server, "load_lora_adapter", lambda told: (400, "rank 8 is greater than 4") if told else (422, "")
    )
    assert "--max-lora-rank" in refused("rank 8 is greater than 4")
    server.paths -= {"/v1/load_lora_adapter"}
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" in refused("does not load adapters while it runs")
    server.paths -= {"/version"}
    refused("is no server of vLLM's")


# Processes of a vLLM that is there.

REWARD = """
def variety(completions, **columns):
    return [float(len(set(text.split()))) for text in completions]
"""


@pytest.fixture
def command(checkpoint: Path, tmp_path: Path) -> list[str]:
    (tmp_path / "reward.py").write_text(REWARD)
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    options = {
        **{"model": checkpoint, "data": tmp_path / "rows.jsonl", "engine": "vllm", "device": "cpu", "steps": 20},
        **{"num-directions": 2, "batch-size": 2, "max-new-tokens": 6, "lr": 3e-3, "eps": EPS, "completions-every": 0},
        **{"output": tmp_path / "run"},
    }
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    return [sys.executable, "-m", "zoreward", "tune", f"{tmp_path / 'reward.py'}:variety", *words]


def steps_in(journal: Path) -> int:
    return journal.read_text().count('"step"') if journal.exists() else 0


def started(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """A process in a session of its own, by which those that it starts are found."""
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)


def left_of(session: int) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(ProcessLookupError):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def wait_for(what: Any, process: subprocess.Popen[bytes], log: Path, seconds: float = 300) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert process.poll() is None and time.monotonic() < until, log.read_text()[-3000:]
        time.sleep(0.1)


@needs_vllm
@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_replays_here_and_leaves_nobody_behind(command, checkpoint, tmp_path):
    log, journal = tmp_path / "log", tmp_path / "run" / "journal.jsonl"
    process = started(command, log)
    wait_for(lambda: steps_in(journal) >= 5, process, log)
    process.kill()
    process.wait()
    assert not left_of(process.pid)
    assert 5 <= steps_in(journal) < 20

    process = started([*command, "--resume"], log)
    wait_for(lambda: steps_in(journal) >= 9, process, log)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it
    assert process.wait(120) == 130, log.read_text()[-3000:]
    assert not left_of(process.pid)

    done = subprocess.run([*command, "--resume"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert load_run(tmp_path / "run").n_steps == 20
    told = log.read_text() + done.stderr + done.stdout
    assert not any(word in told for word in ("INFO", "WARNING", "Triton", "Loading safetensors")), told
    replayed = replay(str(tmp_path / "run"), loaded(checkpoint))
    assert fingerprint(replayed) == fingerprint(loaded(tmp_path / "run" / "model")) != fingerprint(loaded(checkpoint))


@needs_vllm
@pytest.mark.slow
def test_in_bfloat16_updates_have_the_same_bits_and_members_nearly_the_same_scores(checkpoint, tokenizer):
    from zoreward.scoring.vllm import VLLMWriter

    options = {"dtype": "bfloat16", "enforce_eager": True, "max_num_seqs": 32, "kv_cache_memory_bytes": 1 << 26}
    writer = VLLMWriter(str(checkpoint), options, members=4, rank=1)
    engine = served_by(writer, loaded(checkpoint, "bfloat16"), tokenizer)
    before = writer.digest()
    for step in range(4):
        engine.apply(replace(UPDATE, rounding_seed=step))
        engine.compare(step)
    assert writer.digest() != before
    written = engine.written([(member, REQUESTS) for member in ((), *MEMBERS)], GREEDY)
    for member, own in zip(((), *MEMBERS), written, strict=True):
        told = [replace(one, target=text.tokens) for one, text in zip(REQUESTS, own, strict=True)]
        [here], there = engine.logprobs([(member, told)]), [text.logprob for text in own]
        assert np.abs(here - there).sum() / sum(len(text.tokens) for text in own) < 0.1


@needs_vllm
@pytest.mark.slow
def test_a_server_of_vllm_s_writes_what_is_written_here(checkpoint, tmp_path):
    log, port = tmp_path / "log", free_port()
    words = ["--enable-lora", "--max-loras", "4", "--max-lora-rank", "8", "--max-cpu-loras", "16", "--enforce-eager"]
    words += ["--dtype", "float32", "--host", "127.0.0.1", "--port", str(port), "--kv-cache-memory-bytes", str(1 << 26)]
    environment = ["env", "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True", "OMP_NUM_THREADS=1"]
    server = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint)]
    process = started([*environment, *server, *words], log)
    try:
        wait_for(lambda: "startup complete" in log.read_text(), process, log)
        given = {"tune": "lora", "lora_rank": 4, "per_device_eval_batch_size": 4}
        there = trainer_of(checkpoint, tmp_path / "there", engine=f"openai:http://127.0.0.1:{port}", **given)
        there.train()
        here = trainer_of(checkpoint, tmp_path / "here", engine="local", **given)
        here.train()
        assert fingerprint(here.model) == fingerprint(there.model)
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
        for one in left_of(process.pid):
            one.kill()
