"""Small random models with real tokenizers; nothing here is downloaded."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # else a name that is nowhere is asked for again and again: 47 s, measured

WORDS = "good bad film a the it was great terrible an awful lovely plot dull bright and not very is this".split()
# What is tried on more than one; tests/test_families.py tries members on all.
FAMILIES = ["llama", "llama-tied", "gpt2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("opt", "qwen3"))]
__all__ = ["FAMILIES", "random_model", "tiny_model_dir", "tiny_t5_dir", "tokenizer"]


def random_model(family: str, seed: int = 0) -> PreTrainedModel:
    """See `families`. Libraries are imported by tests alone: the process that hands tests out starts without them."""
    import families

    return families.random_model(family, seed)


def pytest_collection() -> None:
    """Get ready to import libraries; garbage is looked for afterwards, else for a sixth of the time that they take."""
    import torch

    gc.disable()
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported, and transformers may do that


def pytest_collection_finish() -> None:
    """Keep the garbage collector off what is imported: transformers calls it after each training, for half a second."""
    gc.enable()
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def set_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run asks whether objects are set aside already: to count those of the tests takes longer than some runs.

    And accelerate has Python look for garbage when a run ends, 60 ms each time: 7 % of a test of a run. And each step
    waits for the disk.
    """
    monkeypatch.setattr(gc, "get_freeze_count", lambda: 1)
    monkeypatch.setattr("accelerate.utils.memory.gc.collect", lambda *generation: 0)
    monkeypatch.setattr(os, "fsync", lambda file: None)


def pytest_sessionfinish() -> None:
    """Let Python end as it does: libraries complain of what is not collected."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word; an unknown word is <unk>."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<pad>", "<end>", "<unk>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<end>", bos_token="<end>", unk_token="<unk>"
    )


@pytest.fixture(scope="session")
def tiny_model_dir(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved two-layer Llama and its tokenizer."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    random_model("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_t5_dir(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved two-layer T5, and a tokenizer that puts EOS behind a text and knows no BOS."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-t5")
    random_model("t5").save_pretrained(folder)
    ending = PreTrainedTokenizerFast.from_pretrained(tiny_model_dir, bos_token=None)
    ending.backend_tokenizer.post_processor = processors.TemplateProcessing("$A <end>", None, [("<end>", 1)])
    ending.save_pretrained(folder)
    return folder


@pytest.fixture
def quick_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's patches `triton.language` anew at each call of a function inside a kernel: once will do."""
    import torch

    if not torch.cuda.is_available():
        from triton.runtime.interpreter import InterpretedFunction

        slow = InterpretedFunction.__call__

        def call(self, *args, **kwargs):
            ours = self.fn.__module__.startswith("zoreward.")
            return self.rewrite()(*args, **kwargs) if ours else slow(self, *args, **kwargs)

        monkeypatch.setattr(InterpretedFunction, "__call__", call)


@pytest.fixture(scope="module")
def commands() -> Callable[[list[str]], Any]:
    """Builds the options of each command and objective once: for each line anew, that takes most of its time."""
    from zoreward.cli import command_for

    kept: dict[tuple[str | bytes, ...], Any] = {}

    def command_of(words: list[str]) -> Any:
        first: tuple[str | bytes, ...] = tuple(words[:2]) if words[0] in ("tune", "eval") else (words[0],)
        own = words[1].rpartition(":")[0] if len(first) > 1 else ""
        first += (Path(own).read_bytes(),) if os.path.isfile(own) else ()
        if first not in kept:
            kept[first] = command_for(words)
        return kept[first]

    return command_of


@pytest.fixture
def commands_are_kept(commands: Callable[[list[str]], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoreward.cli.command_for", commands)


@pytest.fixture(scope="module")
def trials() -> dict[Any, Any]:
    return {}


@pytest.fixture
def trials_are_kept(trials: dict[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run tries whether members share a pass of its model, and how that pads: a fifth of a test of a run.

    Where runs are not about that, models of one kind and config are tried once. What does not go well is not kept.
    """
    from zoreward.scoring import forward, local

    def keep(module: Any, name: str) -> None:
        trial = getattr(module, name)

        def kept(model: Any, *args: Any, **options: Any) -> Any:
            members = tuple(args[0][:2]) if name == "self_check" else ()
            asked = [type(term.family) for member in members for term in member] if members else args
            key = (name, type(model), model.config.to_json_string(), model.dtype, *asked)
            if key not in trials:
                found = trial(model, *args, **options)
                if members and found.problem:
                    return found
                trials[key] = found
            return replace(trials[key], members=members) if members else trials[key]

        monkeypatch.setattr(module, name, kept)

    keep(local, "self_check")
    for name in ("check_causal", "pads_exactly", "shares_prefix"):
        keep(forward, name)
