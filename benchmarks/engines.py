"""Tokens a second and memory of members that write: the model at hand, and vLLM.

python benchmarks/engines.py --model MODEL --members 32 --rows 16 --new-tokens 48

Each engine runs in a process of its own: the same low-rank members, prompts of random tokens, greedy texts. The
first call, which warms up, is not counted. Memory is what torch has reserved on a GPU, else what the process has held.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import time
from typing import Any

import torch

from zoreward.members import tuned_weights
from zoreward.noise import LowRank
from zoreward.records import Request, Term, Update
from zoreward.scoring import Generation, engine_of, load_model, load_tokenizer

EPS = 2.0**-7


def main() -> None:
    """Measure one engine after the other, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--engines", nargs="+", default=["local", "vllm"])
    parser.add_argument(
        "--tune", default="full", help=r"which weights; of OPT those with adapters in vLLM: 'proj|fc\d'"
    )
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--gpu-memory-utilization", type=float, default=0.6, help="of vLLM, on a GPU")
    options = vars(parser.parse_args())
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        found = pool.map(measured, [{**options, "engine": engine} for engine in options["engines"]], chunksize=1)
    print(f"{'engine':14} {'load, s':>8} {'tokens/s':>9} {'s a call':>9} {'update, s':>10} {'memory, GB':>11}")
    for one in found:
        values = (one["load"], one["tokens_per_second"], one["seconds"], one["update"], one["memory"])
        print(
            f"{one['engine']:14} {values[0]:8.1f} {values[1]:9.1f} {values[2]:9.2f} {values[3]:10.3f} {values[4]:11.2f}"
        )
    print(json.dumps({"options": options, "found": found}))


def measured(options: dict[str, Any]) -> dict[str, Any]:
    """Let members write with one engine, and do an update."""
    start = time.perf_counter()
    model, tokenizer = (
        load_model(options["model"], dtype=options["dtype"], device=options["device"]),
        load_tokenizer(options["model"]),
    )
    tuned = tuned_weights(model, options["tune"])
    engine: Any = engine_of(model, tokenizer.pad_token_id, tokenizer, tuned=tuned)
    if options["engine"] != "local":
        engine = on_vllm(engine, options)
    load, size = time.perf_counter() - start, model.get_input_embeddings().weight.shape[0]
    draw = torch.Generator().manual_seed(0)
    prompts = torch.randint(3, size, (options["rows"], options["prompt_tokens"]), generator=draw).tolist()
    requests = [Request(tuple(prompt), ()) for prompt in prompts]
    signs = [(seed, sign) for seed in range(-(-options["members"] // 2)) for sign in (1, -1)]
    members = [(Term(seed, sign * EPS, LowRank(1)),) for seed, sign in signs[: options["members"]]]
    work, how = [(member, requests) for member in members], Generation(max_new_tokens=options["new_tokens"])
    seconds, updates, speeds = [], [], []
    for turn in range(options["rounds"] + 1):
        start = time.perf_counter()
        texts = [text for chunk in engine.generate(work, how) for own in chunk for text in own]
        took = time.perf_counter() - start
        start = time.perf_counter()
        engine.apply(Update(0.0, tuple(Term(seed, 1e-4, LowRank(1)) for seed in range(16)), turn))
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if turn:
            seconds.append(took)
            speeds.append(sum(len(text.tokens) for text in texts) / took)
            updates.append(time.perf_counter() - start)
    on_gpu = torch.cuda.is_available()
    memory = torch.cuda.max_memory_reserved() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    times = {"seconds": seconds, "tokens_per_second": speeds, "update": updates}
    medians = {name: statistics.median(values) for name, values in times.items()}
    name = engine.unit.get("engine", "local")
    return {"engine": name, "load": load, **medians, "memory": memory / 1e9}


def on_vllm(local: Any, options: dict[str, Any]) -> Any:
    """vLLM, with as much room as a run gives it."""
    from zoreward.scoring.adapter_files import AdapterFiles
    from zoreward.scoring.memory import cache_bytes
    from zoreward.scoring.served import ServedEngine
    from zoreward.scoring.vllm import VLLMWriter, on_gpu

    length, count = options["prompt_tokens"] + options["new_tokens"], options["members"] * options["rows"]
    given: dict[str, Any] = {"dtype": str(local.model.dtype).removeprefix("torch."), "max_model_len": length}
    if on_gpu():
        given["gpu_memory_utilization"] = options["gpu_memory_utilization"]
    else:
        given |= {"enforce_eager": True, "max_num_seqs": min(64, count)}
        given["kv_cache_memory_bytes"] = cache_bytes(local.model, min(64, count) * (length + 128) + 128)
    writer = VLLMWriter(options["model"], given, members=options["members"], rank=1)
    engine = ServedEngine(local, writer, AdapterFiles(local.model, local.tuned), True)
    engine.files.folder = writer.folder
    engine.take()
    return engine


if __name__ == "__main__":
    main()
