"""Who writes in a run: the model at hand, vLLM, or a server of vLLM's. What goes with which, and how they are made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers.utils import logging

from zoreward.members import has_adapter
from zoreward.neighbours.of_launchers import launch_of
from zoreward.records import InputError, Member
from zoreward.scoring import Scorer, adapter_base, free_bytes, length_limit, size
from zoreward.scoring.memory import cache_bytes
from zoreward.scoring.served import Writer, served

if TYPE_CHECKING:
    from zoreward.trainer.inputs import Given
    from zoreward.trainer.ready import Ready

LOCAL, VLLM, SERVER = "local", "vllm", "openai:"
# Rows on which members are compared with those of the model at hand.
TRIAL_ROWS = 4
# Of a GPU's memory what vLLM leaves where nobody says how much it takes: for rewards, and scores of given answers.
LEFT = 0.1
# Tokens up to which vLLM makes ready for prompts that are longer than those at hand.
LONGER = 2048
# Sequences that are written at a time on a CPU, and tokens of a block of its cache.
CPU_SEQUENCES, BLOCK = 64, 128


def check_engine(model: Any, given: Given) -> None:
    """Find out, before a model is loaded, that another engine cannot write in a run.

    Raises:
        InputError: it cannot; the message names it.
    """
    args, engine = given.args, given.args.engine
    if engine != VLLM and args.gpu_memory_utilization is not None:
        raise InputError("gpu_memory_utilization is vLLM's share", hint="Leave it out, or take engine=vllm.")
    if engine == LOCAL:
        return
    if engine != VLLM and not engine.startswith((f"{SERVER}http://", f"{SERVER}https://")):
        hint = "Take local, vllm, or openai:http://host:port."
        raise InputError(f"there is no engine {engine!r}", hint=hint)
    refusals = {
        f"writes texts, and {given.objective.name!r} scores answers that are given": (
            given.objective.needs != "completions"
        ),
        "writes with causal models": given.head.kind != "causal",
        "is not built for several ranks": launch_of() is not None or args.tensor_parallel is not None,
        "is not built for device_map": args.device_map is not None,
        "is not built for share and anchor": args.share is not None or bool(args.anchor),
        "takes no prefix": args.tune == "prefix",
        "reads a model itself, by a folder or Hub id": engine == VLLM and not isinstance(model, str),
        "cannot move the weights of a model, only adapters (take tune=lora)": engine != VLLM and not given.adapter,
    }
    for told, refused in refusals.items():
        if refused:
            raise InputError(f"engine={engine} {told}", hint="Leave engine out: the model at hand can.")
    if engine == VLLM:
        from zoreward.scoring.vllm import checked_release

        checked_release()
    else:
        from zoreward.scoring.server import checked_server

        checked_server(engine.removeprefix(SERVER))


def served_elsewhere(scorer: Scorer, ready: Ready, given: Given, members: Sequence[Member]) -> Scorer:
    """Return a scorer whose texts are written by the engine that is asked for; the scorer itself where it is its own.

    Args:
        scorer: of the model at hand.
        ready: that.
        given: what the run is given.
        members: those of a step.

    Raises:
        InputError: the engine cannot write for this model.
    """
    engine = given.args.engine
    if engine == LOCAL:
        return scorer
    if has_adapter(ready.model):
        _check_adapter(ready.model, engine)

    def make(rank: int) -> Writer:
        if engine == VLLM:
            return _vllm(scorer, ready, given, len(members), rank)
        from zoreward.scoring.server import ServerWriter

        return ServerWriter(engine.removeprefix(SERVER))

    return served(scorer, make, given.examples[:TRIAL_ROWS], members)


def _check_adapter(model: Any, engine: str) -> None:
    """Refuse adapters of which vLLM knows nothing."""
    [config] = model.peft_config.values()
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    for name in ("use_dora", "modules_to_save"):
        kind = f"one with {name}" if getattr(config, name, None) else kind
    if kind != "LORA":
        raise InputError(f"engine={engine} takes LoRA adapters, and this is {kind}", hint="Leave engine out.")


def _vllm(scorer: Scorer, ready: Ready, given: Given, members: int, rank: int) -> Writer:
    """vLLM, with room for the texts of a step."""
    from zoreward.scoring.vllm import VLLMWriter, on_gpu

    args, model = given.args, scorer.reader.model
    source = adapter_base(ready.source) or ready.source
    rows = [*given.examples, *(given.eval_examples or ())]
    longest = max(len(one.prompt_tokens) for one in rows) + args.max_completion_length
    context = length_limit(args.max_length, source, trust_remote_code=args.trust_remote_code)
    most = max(longest, min(2 * longest + LONGER, context or longest))
    options: dict[str, Any] = {
        "dtype": ready.dtype,
        "max_model_len": most,
        "trust_remote_code": args.trust_remote_code,
        "generation_config": "vllm",  # and not the checkpoint's own settings
    }
    if on_gpu():
        options["gpu_memory_utilization"] = _share_of_gpu(args.gpu_memory_utilization)
    else:
        sequences = min(CPU_SEQUENCES, members * args.rows_a_step)
        tokens = max(most + BLOCK, sequences * (longest + BLOCK))
        options |= {"enforce_eager": True, "max_num_seqs": sequences}
        if args.gpu_memory_utilization is None:
            options["kv_cache_memory_bytes"] = cache_bytes(model, tokens)
        else:
            options["gpu_memory_utilization"] = args.gpu_memory_utilization
    return VLLMWriter(source, options, members=members, rank=rank)


def check_share(asked: float | None, device: torch.device, free: int) -> None:
    """Refuse a share of a GPU's memory for vLLM that is not free beside the model at hand.

    Args:
        asked: the share, or None.
        device: of the model; on a CPU all of the GPU is vLLM's.
        free: bytes beside the model.

    Raises:
        InputError: it is not free.
    """
    if asked is None or device.type != "cuda":
        return
    total = torch.cuda.get_device_properties(device).total_memory
    if asked * total > free:
        raise InputError(
            f"gpu_memory_utilization={asked:g} asks for {size(int(asked * total))}, and {size(free)} are free beside "
            "the model",
            hint=f"Take {int(100 * free / total) / 100:g} or less; or keep the model on the CPU: device=cpu.",
        )


def _share_of_gpu(asked: float | None) -> float:
    """The share of the first GPU's memory that vLLM takes: what is asked for, or free beside the model at hand."""
    device = torch.device("cuda", 0)
    torch.cuda.empty_cache()
    free, total = free_bytes(device) or 0, torch.cuda.get_device_properties(device).total_memory
    check_share(asked, device, free)
    share = asked if asked is not None else free / total - LEFT
    logging.get_logger(__name__).info("vLLM takes %.2f of the GPU's memory.", share)
    return share
