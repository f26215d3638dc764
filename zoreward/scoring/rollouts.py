"""`rollout_func`: what a user's function has the model write in several turns, or with tools; one member at a time."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from zoreward.records import Completion, Example, Member, ObjectiveError, ZorewardError, named
from zoreward.registry import is_ctrl_c, place_of
from zoreward.scoring.decoding import end_tokens_of

if TYPE_CHECKING:
    from zoreward.scoring.local import LocalEngine

# What a rollout says of tokens, which nobody here reads; all else are columns for the objective.
_OF_TOKENS = ("prompt_ids", "completion_ids", "logprobs", "logprob_token_ids", "env_mask")


@dataclass(frozen=True, slots=True, eq=False)
class Rollouts:
    """A `rollout_func` as TRL's GRPOTrainer takes it, and the trainer that it is given.

    Args:
        function: is called with prompts, texts or lists of messages, and the trainer. It returns a dict with
            `completion_ids`, a list of tokens for each prompt; `prompt_ids` and `logprobs` are not read; other lists
            are columns, of a value for each prompt, and what is no list is a column of the same value.
        trainer: whose `model` is the member that writes, and whose `num_generations` is 1.
    """

    function: Callable[[list[Any], Any], Any]
    trainer: Any

    def written(
        self, engine: LocalEngine, examples: Sequence[Example], member: Member, *, seed: int, rows: int | None = None
    ) -> list[Completion]:
        """Return what a member writes for each row.

        Args:
            engine: the model at hand, which is shown as the member while the function is at work.
            examples: N rows.
            member: who writes.
            seed: of torch's, NumPy's and Python's random numbers, for the function alone: the same for all members.
            rows: most prompts of one call; None: all.

        Raises:
            ObjectiveError: the function raised, or returned something else than a completion for each prompt.
        """
        found: list[Completion] = []
        size = rows or len(examples)
        with torch.no_grad(), engine.shown((member,)):
            for start in range(0, len(examples), size):
                some = examples[start : start + size]
                prompts = [list(one.messages) if one.messages else one.prompt for one in some]
                with _seeded(seed + start):
                    found += self._completions(engine, self._called(copy.deepcopy(prompts)), len(some))
        return found

    def _called(self, prompts: list[Any]) -> Any:
        try:
            return self.function(prompts, self.trainer)
        except (ZorewardError, torch.OutOfMemoryError):
            raise
        except BaseException as error:
            if is_ctrl_c(error):
                raise
            raise ObjectiveError(f"rollout_func raised {named(error)}", hint=place_of(error)) from error

    def _completions(self, engine: LocalEngine, output: Any, count: int) -> list[Completion]:
        """What the function returned for so many prompts, as completions."""
        assert engine.generator is not None
        tokenizer = engine.generator.tokenizer
        if not isinstance(output, Mapping) or "completion_ids" not in output:
            what = f"a dict of {', '.join(map(str, output))}" if isinstance(output, Mapping) else type(output).__name__
            hint = "It returns a dict: prompt_ids, completion_ids, logprobs, and columns for the rewards."
            raise ObjectiveError(f"rollout_func returned {what}, without completion_ids", hint=hint)
        lists = {"completion_ids": list(output["completion_ids"])}
        lists |= {name: one for name, one in output.items() if name not in _OF_TOKENS and isinstance(one, list)}
        for name, values in lists.items():
            if len(values) != count:
                hint = "One for each prompt: trainer.num_generations is 1, members take the place of generations."
                message = f"rollout_func returned {len(values)} {name} for {count} prompts"
                raise ObjectiveError(message, hint=hint)
        alike = {name: one for name, one in output.items() if name not in (*_OF_TOKENS, *lists)}
        ends, found = end_tokens_of(engine.model, tokenizer), []
        for n, tokens in enumerate(lists.pop("completion_ids")):
            ids = tuple(map(int, tokens))
            columns = {**alike, **{name: values[n] for name, values in lists.items()}}
            text = tokenizer.decode(list(ids), skip_special_tokens=True)
            found.append(Completion(str(text), ids, bool(ids) and ids[-1] in ends, columns))
        return found


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Give whoever draws inside numbers by a seed, and leave those of the process as they were."""
    from transformers import set_seed

    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            set_seed(seed % 2**32)
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
