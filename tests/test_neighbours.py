"""Contract under test: that of our neighbours. What we use of theirs without a promise still is as we take it to be.

Each test says which name of which library has changed, and where it is used; `make test-newest` runs them with what was
released last. `test_each_contract_can_be_broken` breaks some and sees that they notice.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import json
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pyarrow.parquet
import pytest
import torch
import transformers as hf
import trl
import typer
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers import cache_utils, trainer_callback
from transformers.integrations import TensorBoardCallback

import zoreward
import zoreward_objectives
from conftest import random_model
from zoreward.neighbours import of_launchers, of_peft, of_torch
from zoreward.neighbours.of_accelerate import place_of
from zoreward.neighbours.of_datasets import names_of_classes
from zoreward.neighbours.of_transformers import (
    adapter_config_path,
    attention_by,
    cache_of,
    checkpoint_of,
    counts_from_last_key,
    is_out_of_patience,
    is_plain_attention,
    keys_and_values,
    library_name,
    makes_bias_table,
    masked_class_name,
    missing_weights,
    plain_attention,
    recount_patience_,
    silence_,
    start_logger,
    tensorboard_writers,
    use_one_gpu_,
)
from zoreward.neighbours.of_typer import UsageError, print_help, source_of, words_of
from zoreward.neighbours.transformers_cache_layer import FixedLayer, cache_of_layers
from zoreward.trainer import ZOConfig, ZOTrainer, from_grpo

LIBRARIES = ("accelerate", "datasets", "huggingface_hub", "peft", "safetensors", "sklearn", "torch", "transformers")
LIBRARIES += ("trl", "typer")
IDS = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 3]])


def holds(true: bool, told: str) -> None:
    """Fail with a sentence, and nothing else, unless `true`."""
    if not true:
        pytest.fail(told, pytrace=False)


# --- names -----------------------------------------------------------------------------------------------------------


def imported_names() -> list[tuple[str, str, str]]:
    """(file, module, name) for each name of a neighbour that our code imports, wherever in a file."""
    folders = [Path(inspect.getfile(package)).parent for package in (zoreward, zoreward_objectives)]
    found = set()
    for path in (path for folder in folders for path in folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in LIBRARIES:
                found |= {(path.name, node.module, alias.name) for alias in node.names}
    return sorted(found)


def missing_names(names: list[tuple[str, str, str]]) -> list[str]:
    """A sentence for each of them that is not there."""
    told = []
    for file, module, name in names:
        try:
            if not hasattr(importlib.import_module(module), name):
                importlib.import_module(f"{module}.{name}")
        except ImportError:
            told.append(f"{module}.{name} is gone; {file} imports it")
    return told


def test_every_name_that_is_imported_is_there() -> None:
    names = imported_names()
    assert ("transformers_cache_layer.py", "transformers.cache_utils", "StaticLayer") in names
    told = missing_names(names)
    holds(not told, "\n".join(told))


def test_a_name_that_is_gone_is_told() -> None:
    names = [("a.py", "transformers.cache_utils", "NoSuchLayer"), ("b.py", "torch.no_such", "it")]
    names += [("c.py", "torch", "nn")]
    assert missing_names(names) == [
        "transformers.cache_utils.NoSuchLayer is gone; a.py imports it",
        "torch.no_such.it is gone; b.py imports it",
    ]


# --- transformers: the cache -----------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_cache_is_layers_of_keys_and_values() -> None:
    where = "(neighbours/of_transformers.py)"
    cache = cache_of(random_model("llama")(input_ids=IDS, use_cache=True))
    holds(isinstance(cache, hf.DynamicCache), f"a model's cache is a {type(cache).__name__}, no DynamicCache {where}")
    kinds = {type(layer) for layer in cache.layers}
    holds(kinds == {cache_utils.DynamicLayer}, f"layers of plain attention are no DynamicLayer: {kinds} {where}")
    holds(is_plain_attention(cache), f"is_plain_attention does not know a cache of plain attention {where}")
    shapes = {(tuple(keys.shape), tuple(values.shape)) for keys, values in keys_and_values(cache)}
    holds(
        shapes == {((2, 2, 4, 8), (2, 2, 4, 8))},
        f"keys and values of a layer are not (rows, heads, tokens, width): {shapes} {where}",
    )
    before = [layer.keys.clone() for layer in cache.layers]
    cache.reorder_cache(torch.tensor([1, 1, 0]))
    same = all(torch.equal(layer.keys, old[[1, 1, 0]]) for layer, old in zip(cache.layers, before, strict=True))
    holds(same, "Cache.reorder_cache does not repeat rows as they are numbered (scoring/logprobs.py)")


def test_a_cache_can_be_begun_with_a_prefix() -> None:
    where = "(members/new_weights.py)"
    cache = hf.DynamicCache(config=random_model("llama").config)
    holds(cache.get_seq_length() == 0, f"a new cache has a length of {cache.get_seq_length()}, not 0 {where}")
    for number in range(2):
        cache.update(torch.ones(3, 2, 5, 8), torch.ones(3, 2, 5, 8), number)
    holds(cache.get_seq_length() == 5, f"DynamicCache.update(keys, values, layer) does not append tokens {where}")
    cache.zoreward_prefix = True
    holds(cache.zoreward_prefix, f"a cache takes no attribute {where}")


def test_a_sliding_window_has_layers_of_its_own() -> None:
    cache = hf.DynamicCache(config=random_model("mistral").config)
    kinds = {type(layer) for layer in cache.layers}
    told = f"layers with a sliding window are plain: {kinds}; their rows would be cut wrongly"
    holds(bool(kinds) and not is_plain_attention(cache), f"{told} (neighbours/of_transformers.py)")


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_a_step_reads_and_writes_a_cache_of_ours(family: str) -> None:
    """A `Cache` of layers of our own, with a mask and positions that are given."""
    model = random_model(family)
    read = model(input_ids=IDS[:, :3], use_cache=True)
    place = torch.tensor([3])
    pairs = keys_and_values(cache_of(read))
    layers = [FixedLayer(keys, values, 6, place) for keys, values in pairs]
    for layer, (keys, values) in zip(layers, pairs, strict=True):
        layer.keys[:, :, :3], layer.values[:, :, :3] = keys, values
    bias = torch.full((2, 1, 1, 6), torch.finfo(torch.float32).min)
    bias[..., :4] = 0
    cache = {library_name(): cache_of_layers(layers)}
    positions = torch.tensor([[3], [3]])
    found = model(input_ids=IDS[:, 3:], attention_mask=bias, position_ids=positions, use_cache=True, **cache).logits
    expected = model(input_ids=IDS).logits[:, 3:]
    told = f"Cache(layers=…) of StaticLayers is not read as given, with a mask of four dimensions: {family}"
    # The same float32 products in other batches: 48 · 2^-24 a layer, logits of size 30.
    holds(
        bool((found - expected).abs().max() < 1e-3),
        f"{told} (neighbours/transformers_cache_layer.py, scoring/packing.py)",
    )
    holds(
        bool(layers[0].keys[:, :, 3].any()),
        f"{family} does not write into its cache by update (neighbours/transformers_cache_layer.py)",
    )


@torch.no_grad()
def test_generate_hands_the_cache_over_by_name() -> None:
    model, names = random_model("llama"), []
    model.register_forward_pre_hook(lambda module, args, kwargs: names.append(set(kwargs)), with_kwargs=True)
    model.generate(IDS, max_new_tokens=2, do_sample=False)
    told = f"generate does not hand the cache over as {library_name()!r}, but {names}: a prefix is lost"
    holds(all(library_name() in given for given in names), f"{told} (members/new_weights.py)")


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "qwen3"])
def test_layers_attend_by_a_function_of_ours(family: str) -> None:
    model, calls = random_model(family), []
    expected = model(input_ids=IDS).logits

    def attention(module: nn.Module, query: Any, key: Any, value: Any, mask: Any, **others: Any) -> Any:
        calls.append((query.shape[:1] + query.shape[2:], set(others)))
        return plain_attention()(module, query, key, value, mask, **others)

    with attention_by(model, attention):
        found = model(input_ids=IDS).logits
    told = f"{family} does not look up its attention in its config at each call (neighbours/of_transformers.py)"
    holds(len(calls) == len(keys_and_values(cache_of(model(input_ids=IDS)))) and torch.equal(found, expected), told)
    told = f"{family} does not call its attention with (rows, heads, queries, width) and scaling: {calls[0]}"
    holds(calls[0][0] == (2, 4, 8) and "scaling" in calls[0][1], f"{told} (scoring/stepping.py)")
    holds(model.config._attn_implementation == "sdpa", "the config is not as it was (neighbours/of_transformers.py)")


def test_local_attention_is_known_by_its_config() -> None:
    kinds = {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "hidden_size": 8, "num_heads": 2}
    model = hf.GPTNeoForCausalLM(hf.GPTNeoConfig(vocab_size=32, **kinds))
    told = "GPT-Neo's config does not name the kinds of its layers in attention_layers (neighbours/of_transformers.py)"
    holds(counts_from_last_key(model) and not counts_from_last_key(random_model("llama")), told)


# --- transformers: modules -------------------------------------------------------------------------------------------


def test_conv1d_multiplies_by_its_weight_as_it_is_stored() -> None:
    from transformers.pytorch_utils import Conv1D

    layer, x = Conv1D(3, 5), torch.randn(2, 5)
    right = layer.weight.shape == (5, 3) and torch.allclose(layer(x), x @ layer.weight + layer.bias, atol=1e-6)
    holds(right, "Conv1D is no longer x·W + bias with W (inputs, outputs) (members/low_rank.py)")


def test_a_table_of_positions_is_looked_up_by_torch() -> None:
    seen: list[Any] = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is F.embedding:
                seen.append(args[1])
            return function(*args, **(kwargs or {}))

    model = random_model("opt")
    with Watch(), torch.no_grad():
        model(input_ids=IDS)
    tables = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    right = len(tables) == 2 and all(any(table is weight for weight in seen) for table in tables)
    holds(right, "embeddings are not looked up by F.embedding(ids, weight, …) (members/low_rank.py)")


def test_t5_makes_its_bias_in_a_method_of_its_own() -> None:
    model, calls = random_model("t5"), []

    def counted(plain: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: calls.append(plain) or plain(*args, **kwargs)

    for module in model.modules():
        if makes_bias_table(module):
            module.__dict__["compute_bias"] = counted(module.compute_bias)
    with torch.no_grad():
        model(input_ids=IDS, decoder_input_ids=IDS)
    told = "T5's attention makes no table by compute_bias: members would share one (neighbours/of_transformers.py)"
    holds(len(calls) >= 2, told)


def test_names_of_a_body_begin_with_its_prefix() -> None:
    for family in ("llama", "gpt2", "bert"):
        model = random_model(family)
        body = f"{model.base_model_prefix}."
        told = f"no weight of {family} begins with base_model_prefix={body!r}: heads are not told apart"
        holds(any(name.startswith(body) for name, _ in model.named_parameters()), f"{told} (members/new_weights.py)")


def test_a_loaded_model_says_what_was_missing(tiny_model_dir: Path) -> None:
    load = hf.AutoModelForSequenceClassification.from_pretrained
    model, report = load(tiny_model_dir, num_labels=2, output_loading_info=True)
    told = f"output_loading_info has no sets missing_keys and mismatched_keys: {report} (neighbours/of_transformers.py)"
    holds(missing_weights(report) == ["score.weight"], told)
    told = f"a model's config does not say where it is from: {checkpoint_of(model)!r} (neighbours/of_transformers.py)"
    holds(checkpoint_of(model) == str(tiny_model_dir), told)


def test_bert_is_in_the_table_of_masked_models() -> None:
    right = masked_class_name("bert") == "BertForMaskedLM" and masked_class_name("llama") == ""
    told = "MODEL_FOR_MASKED_LM_MAPPING_NAMES no longer maps a type to a class's name (neighbours/of_transformers.py)"
    holds(right, told)


def test_an_adapter_s_config_is_found(tmp_path: Path) -> None:
    right = adapter_config_path(str(tmp_path)) is None
    (tmp_path / "adapter_config.json").write_text("{}")
    right = right and adapter_config_path(str(tmp_path)) == str(tmp_path / "adapter_config.json")
    holds(right, "find_adapter_config_file(folder) gives no path, or no None (neighbours/of_transformers.py)")


# --- transformers: the trainer ---------------------------------------------------------------------------------------


def overridden() -> list[str]:
    """The methods of `transformers.Trainer` that our trainers have in their place."""
    ours = [vars(kind) for kind in ZOTrainer.__mro__ if kind.__module__.startswith("zoreward.")]
    return sorted(
        {name for names in ours for name in names if callable(getattr(hf.Trainer, name, None))}
        - {"__init__", "__doc__"}
    )


def test_no_private_method_of_the_trainer_is_replaced() -> None:
    private = [name for name in overridden() if name.startswith("_")]
    holds(not private, f"Trainer has private methods of names that ours have too: {private} (trainer/loop.py)")


USED = ("train", "evaluate", "predict", "save_model", "create_optimizer", "create_model_card", "push_to_hub", "log")
USED += ("get_train_dataloader", "create_optimizer_and_scheduler")


@pytest.mark.parametrize("name", USED)
def test_the_trainer_s_methods_take_what_ours_take(name: str) -> None:
    theirs = getattr(hf.Trainer, name, None)
    holds(theirs is not None, f"Trainer.{name} is gone (trainer/loop.py)")
    ours = inspect.signature(getattr(ZOTrainer, name)).parameters
    taken = list(inspect.signature(theirs).parameters)
    told = f"Trainer.{name} takes {taken}, ours takes {list(ours)} (trainer/loop.py)"
    holds(list(ours)[: len(taken)] == taken or {"args", "metadata"} <= set(ours), told)


EVENTS = [name for name in dir(hf.TrainerCallback) if name.startswith("on_") and name != "on_prediction_step"]


class Events(hf.TrainerCallback):
    """Takes down each event, with what the state says then."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []
        for name in EVENTS:
            setattr(self, name, lambda args, state, control, name=name, **more: self.saw(name, state, more))

    def saw(self, name: str, state: Any, more: dict[str, Any]) -> None:
        logged = sorted(
            more.get("logs", {}).keys() & {"loss", "grad_norm", "learning_rate", "eval_runtime", "train_runtime"}
        )
        self.seen.append((name, state.global_step, state.epoch, state.max_steps, state.num_train_epochs, logged))


class Line(nn.Module):
    """A model that transformers' own trainer tunes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.weight * x).mean()}


RUNS: dict[str, dict[str, Any]] = {
    "accumulated": {"max_steps": 7, "gradient_accumulation_steps": 2, "eval_strategy": "steps", "eval_steps": 2},
    "epochs": {"num_train_epochs": 2, "eval_strategy": "epoch", "logging_strategy": "epoch", "save_strategy": "epoch"},
    "half an epoch": {"num_train_epochs": 1.5, "logging_first_step": True, "eval_strategy": "steps", "eval_steps": 3},
    "from the start on": {"max_steps": 3, "eval_strategy": "steps", "eval_steps": 9, "eval_on_start": True},
    "nothing saved": {"max_steps": 5, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "no"},
}


@pytest.mark.parametrize("kind", RUNS)
def test_callbacks_see_what_the_trainer_s_own_loop_shows_them(kind: str, tmp_path: Path, tokenizer: Any) -> None:
    seen = []
    for name in ("theirs", "ours"):
        events = Events()
        how = {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 2, "learning_rate": 1e-3}
        how |= {"logging_steps": 2, "save_steps": 2, "metric_for_best_model": "runtime", **RUNS[kind]}
        args = ZOConfig(str(tmp_path / name), use_cpu=True, disable_tqdm=True, template="{text} it was", **how)
        args.choices = [" not", " very"]
        if name == "theirs":
            rows: list[dict[str, Any]] = [{"x": float(n)} for n in range(9)]
            hf.Trainer(Line(), args, train_dataset=rows, eval_dataset=rows[:2], callbacks=[events]).train()
        else:
            rows = [{"text": "good film", "label": n % 2} for n in range(9)]
            trainer = ZOTrainer(
                random_model("llama"), objective="neg-cross-entropy", args=args, train_dataset=rows,
                eval_dataset=rows[:2], processing_class=tokenizer, callbacks=[events],
            )  # fmt: skip
            trainer.train()
        seen.append(events.seen)
    assert len(seen[0]) > 20
    told = "Trainer's own loop fires other events, in another order, than ours"
    holds(seen[1] == seen[0], f"{told}: {[pair for pair in zip(*seen, strict=False) if pair[0] != pair[1]][:3]}")


def test_a_loader_of_batches_goes_on_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    from accelerate import skip_first_batches

    args = ZOConfig(str(tmp_path), use_cpu=True, max_steps=7, per_device_train_batch_size=2, data_seed=3)
    loaders = [
        hf.Trainer(nn.Linear(1, 1), args, train_dataset=[{"x": float(n)} for n in range(6)]).get_train_dataloader()
        for _ in range(2)
    ]
    loaders[1] = skip_first_batches(loaders[1], 1)
    told = []
    for loader in loaders:
        loader.set_epoch(4)
        told.append([batch["x"].tolist() for batch in loader])
    right = (
        len(loaders[0]) == 3
        and told[0][1:] == told[1]
        and sorted(x for batch in told[0] for x in batch) == [*map(float, range(6))]
    )
    holds(right, f"get_train_dataloader, its set_epoch or skip_first_batches give other rows: {told} (trainer/loop.py)")


def test_a_run_s_memory_is_measured_where_that_is_asked_for(tmp_path: Path, tokenizer: Any) -> None:
    args = ZOConfig(str(tmp_path), use_cpu=True, disable_tqdm=True, skip_memory_metrics=False, max_steps=1)
    args.template, args.choices = "{text} it was", [" not", " very"]
    rows = [{"text": "good film", "label": n % 2} for n in range(4)]
    trainer = ZOTrainer(
        random_model("llama"), objective="accuracy", args=args, train_dataset=rows, processing_class=tokenizer
    )
    told = "Trainer._memory_tracker no longer measures between start and stop_and_update_metrics"
    holds(
        {"init_mem_cpu_alloc_delta", "train_mem_cpu_alloc_delta"} <= trainer.train().metrics.keys(),
        told + " (trainer/loop.py)",
    )


def test_a_state_knows_when_something_is_due(tmp_path: Path) -> None:
    args = ZOConfig(str(tmp_path), use_cpu=True, max_steps=8, logging_steps=0.25)
    state = trainer_callback.TrainerState(train_batch_size=2, max_steps=8)
    state.compute_steps(args, 8)
    holds(state.logging_steps == 2, f"TrainerState.compute_steps sets other steps: {state} (trainer/resuming.py)")


def test_early_stopping_counts_scores_that_are_no_better() -> None:
    callback, args = hf.EarlyStoppingCallback(2), SimpleNamespace(greater_is_better=True)
    found = []
    for scores in ([0.5, 0.4, 0.5], [0.5, 0.4, 0.6], [0.5, 0.4]):
        recount_patience_([callback, None], args, scores)
        found.append(is_out_of_patience([None, callback]))
    told = "EarlyStoppingCallback.check_metric_value no longer counts in early_stopping_patience_counter"
    holds(found == [True, False, False], f"{told}: {found} (neighbours/of_transformers.py)")


def test_a_trainer_is_silent_without_its_callbacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for tqdm_is_off in (True, False):
        args = ZOConfig(str(tmp_path), use_cpu=True, disable_tqdm=tqdm_is_off, logging_steps=1, max_steps=1)
        trainer = hf.Trainer(nn.Linear(1, 1), args, train_dataset=[{"x": 0.0}])
        silence_(trainer)
        trainer.log({"score": 0.25})
        told = f"a Trainer prints by other callbacks than before: {trainer.callback_handler.callbacks}"
        holds("0.25" not in "".join(capsys.readouterr()), f"{told} (neighbours/of_transformers.py)")


def test_tensorboard_s_callback_holds_its_writer_before_and_in_a_run() -> None:
    callback = TensorBoardCallback.__new__(TensorBoardCallback)  # it need not be installed
    for writer in (None, object()):
        callback.tb_writer = writer
        assert tensorboard_writers([callback, object()]) == ([] if writer is None else [writer])
    assert list(inspect.signature(TensorBoardCallback.__init__).parameters) == ["self", "tb_writer"]


def test_a_logger_that_is_not_known_raises() -> None:
    with pytest.raises(ValueError, match="no_such_logger"):
        start_logger("no_such_logger")


def test_the_default_flow_says_what_is_due(tmp_path: Path) -> None:
    args = ZOConfig(str(tmp_path), use_cpu=True, max_steps=4, logging_steps=2, eval_strategy="steps", eval_steps=2)
    state, due = trainer_callback.TrainerState(max_steps=4), []
    state.compute_steps(args, 4)
    for state.global_step in (1, 2):
        control = trainer_callback.TrainerControl()
        trainer_callback.DefaultFlowCallback().on_step_end(args, state, control)
        due.append((control.should_log, control.should_evaluate))
    told = f"DefaultFlowCallback no longer says by should_log and should_evaluate what is due: {due}"
    holds(due == [(False, False), (True, True)], f"{told} (trainer/resuming.py)")


def test_the_number_of_gpus_can_be_set(tmp_path: Path) -> None:
    args = ZOConfig(str(tmp_path), use_cpu=True)
    assert args.n_gpu == 0
    use_one_gpu_(args)
    told = "TrainingArguments.n_gpu does not read _n_gpu: a spread model is copied (neighbours/of_transformers.py)"
    holds(args.n_gpu == 1, told)


# --- accelerate and torch --------------------------------------------------------------------------------------------


def test_accelerate_keeps_a_module_s_forward_and_reads_it_at_each_call() -> None:
    from zoreward.members.forwards import has_other_forward

    layer = nn.Linear(2, 2)
    add_hook_to_module(layer, AlignDevicesHook(io_same_device=True))
    where = "(neighbours/of_accelerate.py)"
    kept = layer.__dict__.get("_old_forward")
    holds(kept is not None, f"accelerate no longer keeps a module's forward as _old_forward {where}")
    right = place_of(layer) == "_old_forward" and not has_other_forward(layer)
    holds(right, f"what accelerate keeps as _old_forward is not the method of the class {where}")
    layer.__dict__["_old_forward"] = lambda x: x + 41
    holds(
        bool((layer(torch.ones(1, 2)) == 42).all()), f"accelerate's hook does not read _old_forward at a call {where}"
    )


def test_a_module_reads_weights_and_forward_where_we_hang_them() -> None:
    layer, x = nn.Linear(2, 2, bias=False), torch.ones(1, 2)
    of_torch.weights_in(layer)["weight"] = torch.full((2, 2), 3.0)
    holds(bool((layer(x) == 6).all()), "nn.Module does not read its weights from _parameters (neighbours/of_torch.py)")
    layer.__dict__["forward"] = lambda x: x + 1
    holds(bool((layer(x) == 2).all()), "nn.Module does not call a forward of its own __dict__ (members/context.py)")


@pytest.mark.parametrize("layer", [nn.Linear(2, 2), nn.LayerNorm(2), nn.Embedding(2, 2)], ids=str)
def test_plain_layers_have_the_forward_of_their_class(layer: nn.Module) -> None:
    kind = type(layer)
    right = "forward" in vars(kind) and "forward" not in layer.__dict__
    holds(
        right, f"{kind.__name__} has a forward of another class: fast ways are lost (members/grouping.py, low_rank.py)"
    )


def test_models_are_made_of_plain_layers() -> None:
    for family in ("llama", "opt", "qwen3"):
        kinds = {type(module).forward for module in random_model(family).modules()}
        holds(nn.Linear.forward in kinds, f"{family} has no plain nn.Linear: members are copied (members/low_rank.py)")


def test_foreach_copy_fills_tensors_where_they_are() -> None:
    places, values = [torch.zeros(2), torch.zeros(3)], [torch.ones(2), torch.full((3,), 2.0)]
    addresses = [place.data_ptr() for place in places]
    of_torch.copy_all_(places, values)
    right = all(map(torch.equal, places, values)) and addresses == [place.data_ptr() for place in places]
    holds(right, "torch._foreach_copy_(to, from) does not copy in place (neighbours/of_torch.py)")


def test_hooks_of_a_module_can_be_looked_at() -> None:
    layer, hook = nn.Linear(1, 1), lambda module, args, kwargs: None
    layer.register_forward_pre_hook(hook, with_kwargs=True)
    right = of_torch.hooks_before_forward(layer) == [hook]
    holds(right, "nn.Module._forward_pre_hooks does not hold the hooks themselves (neighbours/of_torch.py)")


def test_tensors_made_of_others_say_so() -> None:
    from torch.testing._internal.two_tensor import TwoTensor

    weights = TwoTensor(torch.ones(1), torch.ones(1)), nn.Parameter(torch.ones(1))
    right = [of_torch.is_made_of_tensors(weight) for weight in weights] == [True, False]
    holds(right, "__tensor_flatten__ no longer tells quantised weights from plain ones (neighbours/of_torch.py)")


def exchanged(rank: int, store: Any) -> list[Any]:
    group = of_torch.GlooGroup(store, rank, 2, 30.0)
    every = [one.tolist() for one in group.gather(torch.tensor([rank, 5]))]
    least, first = torch.tensor([float(rank), -float(rank)]), torch.tensor([7 + rank])
    group.least_(least)
    group.from_first_(first)
    return [every, least.tolist(), first.tolist()]


def test_a_group_of_gloo_s_needs_no_default_group() -> None:
    store = torch.distributed.HashStore()
    with ThreadPoolExecutor(2) as both:
        found = list(both.map(exchanged, (0, 1), (store, store)))
    right = found == [[[[0, 5], [1, 5]], [0.0, -1.0], [7]]] * 2 and not torch.distributed.is_initialized()
    holds(right, f"ProcessGroupGloo does not exchange what it is given: {found} (neighbours/of_torch.py)")


# --- launchers -------------------------------------------------------------------------------------------------------


def test_launchers_name_a_launch_as_we_read_it() -> None:
    from accelerate.utils import launch
    from torch.distributed.elastic.agent.server import local_elastic_agent

    names = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"]
    names += ["TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_USE_AGENT_STORE"]
    text = inspect.getsource(local_elastic_agent)
    missing = [name for name in names if f'"{name}"' not in text]
    holds(not missing, f"torchrun does not set {missing} (neighbours/of_launchers.py)")
    text = inspect.getsource(launch)
    missing = [name for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED") if f'"{name}"' not in text]
    holds(not missing, f"accelerate launch does not set {missing} (neighbours/of_launchers.py)")


def test_a_process_of_a_launch_can_be_taken_for_one_by_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    launch = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_PORT": "1"}
    for name, value in launch.items():
        monkeypatch.setenv(name, value)
    with of_launchers.alone():
        args = hf.TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
        found = (args.world_size, args.process_index, torch.distributed.is_initialized())
    told = f"TrainingArguments sees a launch where its variables are unset: {found} (neighbours/of_launchers.py)"
    holds(found == (1, 0, False), told)
    assert of_launchers.launch_of() == of_launchers.Launch(1, 2, 1, 2, 0, ("localhost", 1), False)


# --- PEFT ------------------------------------------------------------------------------------------------------------


def adapted_model(**options: Any) -> Any:
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "embed_tokens"], **options)
    return peft.get_peft_model(random_model("llama"), config)


def test_lora_s_weights_go_by_their_names() -> None:
    names = [name for name, weight in adapted_model().named_parameters() if weight.requires_grad]
    told = f"LoRA's weights are no longer named .lora_A., .lora_B., .lora_embedding_A., .lora_embedding_B.: {names}"
    for part in (".lora_A.default.", ".lora_B.default.", ".lora_embedding_A.", ".lora_embedding_B."):
        holds(any(part in name for name in names), f"{told} (neighbours/of_peft.py)")
    drawn = {name for name in names if of_peft.is_lora_A(name) or of_peft.is_lora_embedding_B(name)}
    filled = {name for name, weight in adapted_model().named_parameters() if name in names and bool(weight.any())}
    holds(drawn == filled, f"LoRA's random matrices are {sorted(filled)} (neighbours/of_peft.py)")
    told = f"PEFT's prefix of names: {names} (noise/seeds.py)"
    holds(all(name.startswith("base_model.model.") for name in names), told)


def test_layers_of_an_adapter_say_what_is_at_work() -> None:
    layers = of_peft.adapter_layers(adapted_model())
    right = bool(layers) and all(
        layer.merged is False and layer.disable_adapters is False and list(layer.active_adapters) == ["default"]
        for layer in layers
    )
    holds(right, "BaseTunerLayer has other merged, disable_adapters or active_adapters (neighbours/of_peft.py)")

    model = adapted_model(modules_to_save=["lm_head"])
    inner = model.get_base_model()
    changed = of_peft.layers_that_merging_changes(model)
    weights = {id(weight) for layer in changed for weight in layer.parameters()}
    right = {id(weight) for weight in inner.model.embed_tokens.base_layer.parameters()} <= weights
    right = right and {id(weight) for weight in inner.lm_head.original_module.parameters()} <= weights
    told = f"layers no longer keep what they were as base_layer, or original_module: {changed} (neighbours/of_peft.py)"
    holds(right and len(changed) == len(of_peft.adapter_layers(model)) + 1, told)


def test_peft_has_tables_of_architectures() -> None:
    right = of_peft.has_lora_layers_for("llama") and not of_peft.has_lora_layers_for("no-such-model")
    right = right and not of_peft.has_lora_layers_for(None)
    holds(right, "PEFT no longer knows the layers for LoRA by the type of a model (neighbours/of_peft.py)")
    right = not of_peft.reshapes_prefixes_of("llama")  # of the releases that are taken, newer ones have none at all
    holds(right, "PEFT hands prefixes to llama in another shape (neighbours/of_peft.py)")


def test_a_config_says_its_kind_made_or_read(tmp_path: Path) -> None:
    config = peft.LoraConfig(target_modules=["q_proj"])
    config.save_pretrained(tmp_path)
    kinds = {of_peft.adapter_kind(config), of_peft.adapter_kind(peft.PeftConfig.from_pretrained(tmp_path))}
    holds(kinds == {"LORA"}, f"a config's peft_type is another: {kinds} (neighbours/of_peft.py)")


def test_warnings_of_peft_that_we_hide_are_still_given_so() -> None:
    def adapted() -> None:
        peft.get_peft_model(random_model("gpt2"), peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"]))

    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        adapted()
        with of_peft.quiet_peft():
            before = len(shown)
            adapted()
    told = f"PEFT warns in other words: {[str(warning.message) for warning in shown]} (neighbours/of_peft.py)"
    holds(0 < before == len(shown), told)


def test_what_an_adapter_s_file_holds_are_its_own_weights() -> None:
    model = adapted_model()
    state = model.state_dict(keep_vars=True)
    held = peft.get_peft_model_state_dict(model, state_dict=state, adapter_name="default", save_embedding_layers=False)
    trained = {id(weight) for weight in model.parameters() if weight.requires_grad}
    told = "get_peft_model_state_dict gives copies, or more than an adapter (members/adapters.py)"
    holds({id(weight) for weight in held.values()} == trained, told)


def test_a_prefix_is_an_embedding_of_keys_and_values() -> None:
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)
    model = peft.get_peft_model(random_model("opt"), config)
    encoder, width = of_peft.prefix_encoder(model), random_model("opt").config.hidden_size
    shape, counts = tuple(encoder.embedding.weight.shape), of_peft.prefix_shape(model)
    right = shape == (5, 2 * 2 * width) and counts == (5, 2, 4) and not encoder.prefix_projection
    holds(right, f"a prefix's weight has another shape: {shape}, {counts} (neighbours/of_peft.py)")
    right = isinstance(model.get_base_model(), hf.OPTForCausalLM)
    right = right and of_peft.adapter_kind(model.active_peft_config) == "PREFIX_TUNING"
    holds(right, "PeftModel.get_base_model or PeftConfig.peft_type are others (neighbours/of_peft.py)")


# --- Typer and the rest ----------------------------------------------------------------------------------------------


def small_app() -> tuple[Any, list[Any]]:
    """A command, and what it saw each time it was called."""
    app, seen = typer.Typer(add_completion=False), list[Any]()

    def callback(context: typer.Context, count: int = 1, other: int = 2) -> int:
        seen.append(([source_of(context, name) for name in ("count", "other", "no_such")], words_of(context)))
        return count

    settings = {"token_normalize_func": lambda word: {"many": "count"}.get(word, word)}
    app.callback()(lambda: None)
    app.command("run", context_settings=settings)(callback)
    return typer.main.get_command(app), seen


def test_typer_gives_the_exit_code_back_and_says_where_a_value_is_from() -> None:
    command, seen = small_app()
    code = command.main(args=["run", "--count", "3"], prog_name="x", standalone_mode=False, obj=("words",))
    told = "Typer's main(standalone_mode=False) does not return what the command returns (cli/__init__.py)"
    holds(code == 3, told)
    told = f"context.get_parameter_source or find_root().obj are others: {seen} (neighbours/of_typer.py)"
    holds(seen == [(["COMMANDLINE", "DEFAULT", ""], ("words",))], told)
    code = command.main(args=["run", "--many", "4"], prog_name="x", standalone_mode=False)
    holds(code == 4, "token_normalize_func does not give flags their aliases (cli/flags.py)")


@pytest.mark.parametrize("names", [[], ["run"]])
def test_typer_s_help_is_the_same_without_a_line_that_is_parsed(
    names: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command, _ = small_app()
    command.main(args=[*names, "--help"], prog_name="x", standalone_mode=False)
    parsed = capsys.readouterr().out
    told = "contexts of Typer's commands are made otherwise, so their help is another (neighbours/of_typer.py)"
    holds(print_help(command, ["x", *names]) and capsys.readouterr().out == parsed, told)
    holds(not print_help(command, ["x", "no-such"]), told)


def test_typer_s_help_imports_no_pydantic() -> None:
    code = """
import sys, typer, typer.main
from zoreward.neighbours.of_typer import print_help
app = typer.Typer(add_completion=False)
app.command()(lambda: None)
print_help(typer.main.get_command(app), ["x"])
assert "pydantic" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    told = "a help of Typer's imports pydantic where no line is parsed (neighbours/of_typer.py)"
    holds(done.returncode == 0, f"{told}: {done.stderr[-500:]}")


def test_typer_s_usage_errors_have_one_base() -> None:
    command, _ = small_app()
    told = "Typer's usage errors are no longer of the base of BadParameter, with a ctx and format_message"
    for words in (["run", "--no-such"], ["run", "--count", "x"], ["no-such"]):
        try:
            command.main(args=words, prog_name="x", standalone_mode=False)
            caught: Any = None
        except Exception as error:
            caught = error
        right = isinstance(caught, UsageError) and caught.format_message() and caught.ctx.command_path.startswith("x")
        holds(bool(right), f"{told}: {caught!r} (neighbours/of_typer.py)")


def test_what_is_registered_for_the_end_of_a_process_can_be_called_before() -> None:
    code = "import atexit; from zoreward.neighbours.of_python import run_exit_functions as end; "
    code += "atexit.register(print, 'at its end'); end(); print('and after')"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stdout
    told = f"atexit._run_exitfuncs no longer calls what is registered: {printed!r} (neighbours/of_python.py)"
    holds(printed.split("\n") == ["at its end", "and after", ""], told)


def test_safetensors_keeps_what_is_said_of_a_file_under_metadata(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    save_file({"w": torch.ones(2)}, path, {"format": "ours"})
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    head = json.loads(data[8 : 8 + size])
    told = f"a safetensors file is no longer a length, JSON with __metadata__, and the tensors: {head}"
    right = head.get("__metadata__") == {"format": "ours"} and head["w"]["data_offsets"] == [0, 8]
    holds(right and head["w"]["dtype"] == "F32", f"{told} (journal/trajectory.py, journal/snapshot.py)")
    text = json.dumps({"__metadata__": {"a": "b"}, "w": head["w"]}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    with safe_open(path, "pt") as file:
        right = file.metadata() == {"a": "b"} and torch.equal(file.get_tensor("w"), torch.ones(2))
    holds(
        right, "safetensors does not read a head that is written by hand (journal/trajectory.py, journal/snapshot.py)"
    )


def test_features_are_written_down_with_their_kind(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features(label=ClassLabel(names=["bad", "good"]), text=Value("string"))
    Dataset.from_dict({"label": [0], "text": ["a"]}, features=features).to_parquet(tmp_path / "rows.parquet")
    written = json.loads(pyarrow.parquet.read_schema(tmp_path / "rows.parquet").metadata[b"huggingface"])
    for described in (features, written["info"]["features"]):
        names = {column: names_of_classes(feature) for column, feature in described.items()}
        told = f"datasets describes features otherwise: {described} (neighbours/of_datasets.py)"
        holds(names == {"label": ("bad", "good"), "text": None}, told)


def test_a_dataset_that_is_not_there_has_an_error_of_its_own() -> None:
    from datasets import exceptions

    told = "datasets has no DatasetNotFoundError: a wrong name is told as something else (data/hub.py)"
    holds(hasattr(exceptions, "DatasetNotFoundError"), told)


# --- TRL -------------------------------------------------------------------------------------------------------------


def fields_of_grpo() -> list[str]:
    return [field.name for field in dataclasses.fields(trl.GRPOConfig)]


def test_every_field_of_grpo_is_in_one_of_three_groups() -> None:
    nothing = " ".join(from_grpo.WITHOUT_MEANING.values()).split()
    groups = [*from_grpo.KEPT, *from_grpo.TRANSLATED, *from_grpo.REFUSED, *nothing]
    new = sorted(set(fields_of_grpo()) - set(groups))
    told = f"GRPOConfig has fields that nobody has translated, refused or put aside: {new} (trainer/from_grpo.py)"
    holds(not new, told)
    twice = sorted(name for name, count in Counter(groups).items() if count > 1)
    holds(not twice, f"in two groups: {twice} (trainer/from_grpo.py)")


def test_every_argument_of_grpo_s_trainer_is_taken_or_has_a_hint() -> None:
    ours = inspect.signature(ZOTrainer.__init__).parameters
    theirs = set(inspect.signature(trl.GRPOTrainer.__init__).parameters) - {"rollout_func"}  # which is taken
    new = sorted(theirs - set(ours) - from_grpo.OTHER_ARGUMENTS.keys())
    holds(not new, f"GRPOTrainer takes {new}, which ZOTrainer answers with a TypeError (trainer/from_grpo.py)")


# --- that they can fail ----------------------------------------------------------------------------------------------


def kept_nowhere(module: nn.Module, hook: Any) -> nn.Module:
    return module


BREAKS: dict[str, tuple[Callable[..., None], str, Any]] = {
    "a field that is new": (
        test_every_field_of_grpo_is_in_one_of_three_groups,
        f"{__name__}.fields_of_grpo",
        lambda: ["beta", "gamma"],
    ),
    "a layer of another class": (
        test_a_cache_is_layers_of_keys_and_values,
        "transformers.cache_utils.DynamicLayer",
        type("Other", (), {}),
    ),
    "rows are not repeated": (
        test_a_cache_is_layers_of_keys_and_values,
        "transformers.cache_utils.Cache.reorder_cache",
        lambda self, rows: None,
    ),
    "nothing is appended": (
        test_a_cache_can_be_begun_with_a_prefix,
        "transformers.cache_utils.DynamicLayer.get_seq_length",
        lambda self: 0,
    ),
    "accelerate keeps nothing": (
        test_accelerate_keeps_a_module_s_forward_and_reads_it_at_each_call,
        f"{__name__}.add_hook_to_module",
        kept_nowhere,
    ),
    "a private method has a name of ours": (
        test_no_private_method_of_the_trainer_is_replaced,
        f"{__name__}.overridden",
        lambda: ["train", "_fire"],
    ),
    "nothing is copied": (
        test_foreach_copy_fills_tensors_where_they_are,
        "torch._foreach_copy_",
        lambda to, given: None,
    ),
    "patience is not counted": (
        test_early_stopping_counts_scores_that_are_no_better,
        "transformers.EarlyStoppingCallback.check_metric_value",
        lambda *args: None,
    ),
    "copies of weights": (
        test_what_an_adapter_s_file_holds_are_its_own_weights,
        "peft.get_peft_model_state_dict",
        lambda model, state_dict, **options: {name: weight.clone() for name, weight in state_dict.items()},
    ),
    "no base of usage errors": (
        test_typer_s_usage_errors_have_one_base,
        f"{__name__}.UsageError",
        typer.Exit,
    ),
    "no exit code": (
        test_typer_gives_the_exit_code_back_and_says_where_a_value_is_from,
        f"{__name__}.small_app",
        lambda: (SimpleNamespace(main=lambda **options: 0), []),
    ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_each_contract_can_be_broken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    contract, place, other = BREAKS[name]
    monkeypatch.setattr(place, other)
    with pytest.raises(pytest.fail.Exception, match=r"\(.*\.py.*\)"):
        contract()
