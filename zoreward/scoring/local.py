"""The engine at hand: a model of transformers in this process, tried out on real rows before it is trusted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from zoreward.members import SelfCheck, Tuned, are_factored, called_model, kept_members, self_check, update_
from zoreward.records import Completion, Example, InputError, Member, Request, Update, named
from zoreward.registry import is_ctrl_c, place_of
from zoreward.scoring.decoding import HFGenerator, completion_of, forced_logits
from zoreward.scoring.forward import Reader, not_finite, reader_of
from zoreward.scoring.logprobs import (
    batches_of,
    divided_logprobs,
    groups_of,
    halves_of_groups,
    in_halves,
    read_batch,
    request_logprobs,
    side_by_side,
)
from zoreward.scoring.packing import Packer
from zoreward.scoring.protocol import Generation, OwnPasses, Split, Work
from zoreward.scoring.requests import means_of, requests_of
from zoreward.scoring.stepping import Stepper

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, eq=False)
class LocalEngine(Reader):
    """An `Engine`: a model, how it is read, and what reads and writes faster where it can.

    Args:
        generator: writes texts; None where no tokenizer was given.
        packer: reads answers of one token in a way of its own; None where that is of no use.
        ranks: for how many processes its work is cut: what the model itself is asked, and by `split` what members are.
        split: whether ranks share `members`, or the `rows` that members are asked about.
    """

    generator: HFGenerator | None = None
    packer: Packer | None = None
    ranks: int = 1
    split: Split = "members"

    def logprobs(
        self, work: Work, *, rows: int | None = None, passes: OwnPasses | None = None
    ) -> list[NDArray[np.float64]]:
        """See `Engine.logprobs`; where only some `passes` are made, there is +inf where nothing was read."""
        found: list[NDArray[np.float64]] = []
        asked = list(_asked_alike(work))
        # Dense members would each take a copy of the weights at the same time.
        if (
            len(asked) > 1
            and rows is self.rows is None
            and self.grouped
            and self.pads
            and all(are_factored(members) for members, _ in asked)
        ):
            with ends_told(self.model):
                found = [own for own_MR in divided_logprobs(self, asked) for own in own_MR]
            if any(np.isnan(own).any() for own in found):
                raise not_finite()
            return found
        for members, requests in asked:
            # The model itself is read in batches as full as can be.
            together, parts = self.together if any(members) else None, self._parts(members)
            reader = replace(self, rows=rows or self.rows, together=together, parts=parts)
            with ends_told(self.model):
                logprobs_MR = reader._packed(requests, members, passes) if self.packer is not None else None
                if logprobs_MR is None:
                    logprobs_MR = request_logprobs(reader, requests, members, passes)
            if np.isnan(logprobs_MR).any():  # an argmax would take NaN for the first answer
                raise not_finite()
            found += list(logprobs_MR)
        return found

    def _parts(self, members: Sequence[Member]) -> int:
        """Into how many passes at least the rows are cut that these members are asked about."""
        return self.ranks if self.split == "rows" or not any(members) else 1

    def _packed(
        self, requests: Sequence[Request], members: Sequence[Member], passes: OwnPasses | None
    ) -> NDArray[np.float64] | None:
        """What the packer reads, for as many members at a time as share a pass; None where it does not suit them all.

        Each member has passes of its own in it, and all rows.
        """
        size, groups = self.together or len(members), side_by_side(requests)
        chunks = [members[first : first + size] for first in range(0, len(members), size)]
        rows = 1 if self.parts > 1 else self.rows  # it reads no part of them
        if self.packer is None or not all(self.packer.suits(groups, chunk, rows) for chunk in chunks):
            return None
        found = []
        for turn, chunk in enumerate(chunks):
            mine = passes is None or passes.of([chunk], turn)
            one = self.packer.logprobs(groups, chunk) if mine else np.full((len(chunk), len(requests)), np.inf)
            if one is None:
                return None
            found.append(one)
        return np.concatenate(found)

    def generate(
        self, work: Work, how: Generation, *, passes: OwnPasses | None = None
    ) -> Iterator[list[list[Completion]]]:
        """See `Engine.generate`; where only some calls are made, there is None where nothing was written."""
        if self.generator is None:
            raise InputError("texts are written with a tokenizer, and none was given", hint="Give it to engine_of.")
        for members, requests in _asked_alike(work):
            prompts = [request.prompt for request in requests]
            groups = self.generator.generate(prompts, members, how, parts=self._parts(members), passes=passes)
            while True:
                with ends_told(self.model):  # and not around the yield, where whoever asked may end it
                    group = next(groups, None)
                if group is None:
                    break
                tokenizer = self.generator.tokenizer
                yield [
                    [completion_of(tokenizer, text, how) if text is not None else None for text in texts]  # type: ignore[misc]
                    for texts in group
                ]

    def apply(self, update: Update) -> None:
        """See `Engine.apply`."""
        update_(self.model, update, tuned=self.tuned)

    def weights(self) -> Tuned:
        """See `Engine.weights`."""
        return self.tuned

    @property
    def unit(self) -> dict[str, Any]:
        """See `Engine.unit`: for how many members a pass is sized, and its tokens where it reads answers, or writes.

        Where work is cut for several ranks, also for how many, and what they share.
        """
        written = self.generator.tokens if self.generator else None
        of_ranks = {"ranks": self.ranks, "split": self.split} if self.ranks > 1 else {}
        sizes = {"device": self.device.type, "members": self.together, "read": self.tokens, "written": written}
        return {**sizes, **of_ranks}

    def cut_as(self, unit: Mapping[str, Any]) -> LocalEngine:
        """Return the engine with another unit of work, or a part of one: what it leaves out stays.

        The unit of another kind of device is not taken up.
        """
        unit = {**self.unit, **unit}
        if unit["device"] != self.device.type:
            return self
        if self.generator is not None:
            self.generator.together, self.generator.tokens = unit["members"], unit["written"]
        of_ranks = {name: unit[name] for name in ("ranks", "split") if name in unit}
        return replace(self, together=unit["members"], tokens=unit["read"], **of_ranks)


def engine_of(
    model: nn.Module,
    pad_token_id: int,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    tuned: Tuned | None = None,
    tokens: int | None = None,
) -> LocalEngine:
    """Look at a model once and return an engine that asks it.

    Args:
        model: the model; of a PeftModel the one inside is read with.
        pad_token_id: fills rows up. A classifier that knows its own gets that one: it reads the last token before.
        tokenizer: of the model; needed where texts are written.
        tuned: its tuned weights; by default `tuned_weights(model)`.
        tokens: tokens of one forward pass.

    Raises:
        InputError: it is no language model of a known kind.

    Example:
        >>> engine = engine_of(model, tokenizer.pad_token_id, tokenizer)  # doctest: +SKIP
        >>> engine.logprobs([((), [Request((5, 6), (7,))])])  # doctest: +SKIP
        [array([-2.3])]
    """
    reader = reader_of(model, pad_token_id, tuned=tuned, tokens=tokens)
    known = {field.name: getattr(reader, field.name) for field in fields(Reader)}
    return LocalEngine(**known, generator=None if tokenizer is None else HFGenerator(reader, tokenizer))


def checked_engine(
    model: nn.Module,
    pad_token_id: int,
    examples: Sequence[Example],
    members: Sequence[Member],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    tuned: Tuned | None = None,
    packer: Packer | None = None,
) -> LocalEngine:
    """Return an engine that answers for members together, or one at a time where this model cannot.

    Args:
        model: the model.
        pad_token_id: fills rows up on the left.
        examples: real rows to try it on; where they have no answers, it is writing that is tried.
        members: at least two, different from each other.
        tokenizer: see `engine_of`.
        tuned: its tuned weights; by default `tuned_weights(model)`.
        packer: tried too; by default one with graphs where the model is on a GPU.
    """
    engine = engine_of(model, pad_token_id, tokenizer, tuned=tuned)
    if tokenizer is not None and not any(example.requests for example in examples):
        generator = checked_generator(engine, tokenizer, examples, members)
        return replace(engine, generator=generator, problem=generator.reader.problem, check=generator.reader.check)
    asked = requests_of(examples)
    requests = [request for own in asked for request in own]
    engine = _fitting(engine, requests, members)
    check = self_check(engine.model, members, lambda some: _logits_of(engine, requests, some), tuned=engine.tuned)
    engine = replace(engine, problem=check.problem, check=check)
    if packer is None and engine.device.type == "cuda" and engine.grouped and not engine.tuned.parts:
        packer = Packer(engine)
    return replace(engine, packer=_checked_packer(packer, engine, asked, check))


def checked_generator(
    reader: Reader,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    members: Sequence[Member],
    *,
    stepper: Stepper | None = None,
) -> HFGenerator:
    """Return a generator that writes for members together, or one at a time where this model cannot.

    Where it would write by steps of its own, these are compared with the model's `generate`, and left if they differ.

    Args:
        reader: the model.
        tokenizer: the model's.
        examples: real rows to try it on; the first four are taken.
        members: at least two, different from each other.
        stepper: see `HFGenerator`.
    """
    prompts = [example.prompt_tokens for example in examples[:4]]
    if not reader.pads:
        prompts = [prompts[0]] * len(prompts)
    logits_of = cache(partial(forced_logits, reader, tokenizer, prompts))
    check = self_check(reader.model, members, logits_of, tuned=reader.tuned)
    generator = HFGenerator(replace(reader, problem=check.problem, check=check), tokenizer, stepper=stepper)
    stepper = generator.stepper
    if stepper is not None and stepper.suits(check.members):
        reader = generator.reader
        plain = logits_of(check.members)
        for _ in range(2):  # as it is, then replayed
            by_steps = forced_logits(reader, tokenizer, prompts, check.members, stepper)
            if stepper.problem is None and (problem := check.agree(by_steps, plain)):
                stepper.give_up(problem)
            if stepper.problem is not None:
                break
        stepper.forget()
        stepper.checked = True
    return generator


def passes_sized_for(engine: LocalEngine, examples: Sequence[Example], members: Sequence[Member]) -> int:
    """Return for how many of a step's members passes should be sized.

    Copies of the weights at a member are made once where they are kept, or where one pass reads all rows; else anew in
    each pass, of which there are the more, the more members share them. 64 dense members of OPT-1.3B on 16 rows of 400
    tokens then took 9.4 s on an H200 in the place of the 2.0 that low-rank ones take, whose corrections cost little.

    Args:
        engine: reads them.
        examples: the rows of a step.
        members: that are scored together.

    Returns:
        all of them where they share weights, or write texts; else an even number, as θ + εz and θ − εz share z.
    """
    requests = [request for own in requests_of(examples) for request in own]
    kept = kept_members(engine.tuned, members)
    if kept == len(members) or not requests:
        return len(members)
    groups, behind, _, _ = groups_of(engine, requests, engine.tokens)
    tokens = sum(len(group[0].prompt) + more for group, more in zip(groups, behind, strict=True))
    most = max(kept, engine.tokens // tokens)
    return min(len(members), max(2, most - most % 2))


def _asked_alike(work: Work) -> Iterator[tuple[list[Member], Sequence[Request]]]:
    """Members that stand side by side and are asked one and the same list."""
    for _, same in groupby(work, key=lambda asked: id(asked[1])):
        pairs = list(same)
        yield [member for member, _ in pairs], pairs[0][1]


def _logits_of(engine: LocalEngine, requests: Sequence[Request], members: Sequence[Member]) -> torch.Tensor:
    """The logits that answers are read from under one member or two, in the same batches of rows: (M, rows, V)."""
    seen: list[torch.Tensor] = []

    def look(logits: torch.Tensor) -> None:
        seen.append(logits.float().cpu().view(len(members), -1, logits.shape[-1]))

    looking = replace(engine, tokens=engine.tokens * len(members) // 2, look=look)
    looking.logprobs([(member, requests) for member in members])
    return torch.cat(seen, dim=1)


def _checked_packer(
    packer: Packer | None, engine: LocalEngine, asked: Sequence[Sequence[Request]], check: SelfCheck
) -> Packer | None:
    """Compare what the packer reads with what is read without it; None if it is of no use here."""
    requests = [request for own in asked for request in own]
    if packer is None or not packer.suits(side_by_side(requests), check.members, engine.rows):
        return None
    plain_MR = np.stack(engine.logprobs([(member, requests) for member in check.members]))
    plain = torch.from_numpy(means_of(asked, plain_MR))
    for _ in range(2):  # as it is, then replayed
        packed_MR = packer.logprobs(side_by_side(requests), check.members)
        if packed_MR is None:
            return None
        if problem := check.agree(torch.from_numpy(means_of(asked, packed_MR)), plain):
            packer.give_up(problem)
            return None
    return packer


def _fitting(engine: LocalEngine, requests: Sequence[Request], members: Sequence[Member]) -> LocalEngine:
    """Return the engine with as many tokens at once as the memory holds, tried on the longest rows."""
    [longest, *_], _, _ = batches_of(engine, requests, len(members))
    read = partial(read_batch, engine, members=len(members))
    try:
        with torch.no_grad(), engine.logits_in_float32(), engine.shown(members):
            fits, _ = next(in_halves([longest], read, halves_of_groups))
    except torch.OutOfMemoryError:
        raise
    except Exception:  # what else may be wrong with this model is found out, and told, later
        return engine
    return replace(engine, tokens=engine.tokens * len(fits) // len(longest))


@contextmanager
def ends_told(model: nn.Module) -> Iterator[None]:
    """Name the model where it raises what would end the process, as if that were what was asked for.

    Raises:
        InputError: in the place of SystemExit and the like; not of the user's Ctrl-C.
    """
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        if is_ctrl_c(error):
            raise
        raise InputError(f"{type(called_model(model)).__name__} raised {named(error)}", hint=place_of(error)) from error
