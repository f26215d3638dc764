"""A model that ranks hold together: a step's time and memory, and whether its parts move as whole weights do.

    torchrun --nproc-per-node 2 benchmarks/tensor_parallel.py --shape opt-13b --whole     # beside one GPU that holds it
    torchrun --nproc-per-node 2 benchmarks/tensor_parallel.py --shape opt-66b             # which one does not
    torchrun --nproc-per-node 2 benchmarks/tensor_parallel.py --shape tiny --cpu --whole --tokens 16      # anywhere

OPT's shapes with random weights, made in their places: nothing is read from a disk. A step is along one dense direction
on 16 rows, for candidates of one token. With `--whole` each rank also holds the whole model, by itself, with the same
weights: its step is timed, and what it reads is compared. Then some updates are done, and weights of the first layer
compared bit for bit with whole ones that were moved alone. Each result is a line of results/tensor_parallel.jsonl.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import SHAPES, commit, machine, opt_config, timed
from step import examples_of, random_model
from transformers import OPTForCausalLM

from zoreward.kernels.parts import Part
from zoreward.members import Tuned, tuned_weights, update_
from zoreward.members.tuned import by_kernel
from zoreward.methods import SPSA
from zoreward.neighbours.of_launchers import launch_of
from zoreward.neighbours.of_transformers import divided_by, take_parts_, tensor_plan
from zoreward.records import Term, Update
from zoreward.registry import get_objective
from zoreward.scoring import Division, Generation, Ranks, Scorer, candidate_logprobs, engine_of, sharded
from zoreward.scoring.devices import one_of_its_own
from zoreward.scoring.divided import seen_by_transformers
from zoreward.trainer.optimizer import old_objects_left_alone

OUTPUT = Path(__file__).parent / "results" / "tensor_parallel.jsonl"
ROWS, TIMES = 16, 5
UPDATES = [Update(0.0, (Term(seed, 1e-3), Term(seed + 100, -1e-3)), seed) for seed in range(3)]
COMPARED = ("q_proj.weight", "q_proj.bias", "out_proj.weight", "fc1.weight", "fc2.weight")


def divided_model(shape: str, ranks: Ranks, device: torch.device, dtype: torch.dtype) -> tuple[Any, Division]:
    """This rank's parts of a model of a shape, with weights of their own."""
    with torch.device("meta"):
        model = OPTForCausalLM(opt_config(shape)).to(dtype)
    plan = {name: style for name, style in (tensor_plan(model) or {}).items() if "layers" in name}
    config = divided_by(plan, ranks.size)["distributed_config"]
    with seen_by_transformers(device, ranks.size):
        config, _, mesh = OPTForCausalLM.prepare_distribute_model(config)
        model = OPTForCausalLM.maybe_distribute_model(model, config, mesh)
    model = model.to_empty(device=device).eval().requires_grad_(False)
    model.tie_weights()
    found = take_parts_(model, plan, ranks.size)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.02)
    return model, Division(ranks, {name: Part(*one) for name, one in found.items()})


def fill_(model: torch.nn.Module, division: Division, whole: torch.nn.Module) -> None:
    """Give the parts the weights of a whole model."""
    weights = dict(whole.named_parameters())
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(division.own(name, weights[name], weight))


def scorer_of(model: Any, tuned: Tuned, ranks: Ranks) -> Scorer:
    """Scores couples of the model, by all ranks."""
    spsa = SPSA(eps=1e-3)
    alone = Scorer(engine_of(model, 1, tuned=tuned), get_objective("neg-cross-entropy"), Generation())
    return sharded(alone, ranks, "auto", spsa.ask(spsa.init()).members, ranks.size)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """The median seconds of some times, after one that does not count."""
    timed(work, device)
    return statistics.median(timed(work, device) for _ in range(TIMES))


def measure(scorer: Scorer, tokens: int, device: torch.device) -> dict[str, float]:
    """Seconds of a step and of its update, and the most memory of a step with all that lies there, in GB."""
    spsa = SPSA(eps=1e-3, lr=1e-6)
    state = spsa.init()
    examples = examples_of(ROWS, tokens)

    def step() -> None:
        query = spsa.ask(state)
        scores = [one.score for one in scorer.score(examples, query.members)]
        scorer.engine.apply(spsa.tell(state, query, scores)[0])

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    found = {"step": seconds_of(step, device)}
    peak = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else 0.0
    update = UPDATES[0]
    alone = Update(0.0, update.terms[:1], 0)
    return {**found, "update": seconds_of(lambda: scorer.engine.apply(alone), device), "peak": peak}


def moves_as_a_whole_does(model: Any, tuned: Tuned, division: Division) -> dict[str, bool]:
    """Do some updates; whether weights of the first layer are then what whole ones are that were moved alone."""
    names = [name for name in tuned.weights if ".layers.0." in name and name.endswith(COMPARED)]
    wholes = {name: division.whole(name, tuned.weights[name]).to(tuned.weights[name].device) for name in names}
    for update in UPDATES:
        update_(model, update, tuned=tuned)
    found = {}
    for name, whole in wholes.items():
        for kernel, weights in by_kernel([(whole, tuned.streams[name])], {}):
            kernel.replay_all_(weights, UPDATES)
        own = division.own(name, whole, tuned.weights[name])
        found[name.rpartition("layers.0.")[2]] = torch.equal(own, tuned.weights[name])
    return found


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="opt-13b")
    parser.add_argument("--tokens", type=int, nargs="+", default=[64, 400], help="of a row")
    parser.add_argument("--whole", action="store_true", help="beside a whole model on each rank")
    parser.add_argument("--cpu", action="store_true", help="where there is no GPU; in float32")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--commit", default=commit())
    options = parser.parse_args()
    with one_of_its_own(options.cpu):
        pass  # from now on this process sees its own GPU alone
    device, dtype = (torch.device("cpu"), torch.float32) if options.cpu else (torch.device("cuda"), torch.bfloat16)
    ranks = Ranks(launch_of())
    model, division = divided_model(options.shape, ranks, device, dtype)
    tuned = division.of(tuned_weights(model))
    scorer = scorer_of(model, tuned, ranks)
    lines: list[dict[str, Any]] = []
    if options.whole:
        torch.manual_seed(0)
        whole = random_model(options.shape, device).to(dtype)
        fill_(model, division, whole)
        alone = scorer_of(whole, tuned_weights(whole), Ranks())
        examples, members = examples_of(ROWS, 32), SPSA(eps=1e-2).ask(SPSA().init()).members
        both = [candidate_logprobs(one.engine, examples, members) for one in (scorer, alone)]
        apart = {"logprobs apart": float(np.abs(both[0] - both[1]).max()), "of": float(np.abs(both[1]).max())}
        lines.append({"what": "read", **apart})
    with old_objects_left_alone():
        for tokens in options.tokens:
            lines.append({"what": "divided", "tokens": tokens, **measure(scorer, tokens, device)})
            if options.whole:
                lines.append({"what": "whole, on one rank", "tokens": tokens, **measure(alone, tokens, device)})
    own = moves_as_a_whole_does(model, tuned, division)
    same = {name: all(found[name] for found in ranks.values(own)) for name in own}
    lines.append({"what": "moves as a whole does", **same})
    if ranks.first:
        where = {"shape": options.shape, "ranks": ranks.size, "device": machine(device), "commit": options.commit}
        options.output.parent.mkdir(parents=True, exist_ok=True)
        with options.output.open("a", encoding="utf-8") as file:
            for line in lines:
                print(json.dumps(where | line))
                file.write(json.dumps(where | line) + "\n")


if __name__ == "__main__":
    main()
