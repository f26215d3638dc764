"""A run of several ranks: who writes its journal, that all are alike, and what they cannot do yet."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from transformers.utils import logging as transformers_logging

from zoreward.journal import JOURNAL_NAME, Journal, StoredRun, load_run, reopen
from zoreward.members import digest_of_weights
from zoreward.neighbours.of_launchers import Launch, launch_of
from zoreward.records import InputError, RanksError, Rewind, StepRecord
from zoreward.scoring import Ranks
from zoreward.trainer.header import digest_of

if TYPE_CHECKING:
    from zoreward.methods import SPSAState
    from zoreward.scoring import LocalEngine
    from zoreward.trainer.inputs import Given
    from zoreward.trainer.options import ZOConfig
    from zoreward.trainer.ready import Ready

# Steps from one comparison of the weights to the next. What differs is noticed before, where scores follow from it: the
# journal's line is compared in each step.
COMPARE_EVERY = 50
# What a difference is called, by the field of the header. Where the model lies may differ.
_DIFFERENCES = {
    "fingerprint": "other base weights",
    "rows": "other rows",
    "config": "other options",
    "options": "other options of the objective",
    "method": "other options of the method",
    "code": "other code of the objective",
    "versions": "other versions of libraries",
    "unit": "another unit of work",
}
_WITHOUT = ("model",)


class SharedJournal:
    """The journal of a run of several ranks: rank 0 writes, and the others go on when it has.

    Args:
        ranks: all of them.
        journal: the open journal of rank 0; None on others.
    """

    def __init__(self, ranks: Ranks, journal: Journal | None):
        self._ranks, self._journal = ranks, journal

    def begin(self, header: dict[str, Any]) -> None:
        """See `Journal.begin`."""
        self._write(lambda journal: journal.begin(header), "")

    def append(self, record: StepRecord) -> None:
        """See `Journal.append`.

        Raises:
            RanksError: rank 0 has written another step.
        """
        self._write(lambda journal: journal.append(record), repr(record))

    def append_evaluation(
        self,
        step: int,
        score: float,
        metrics: Mapping[str, float | None] | None = None,
        groups: Sequence[float] = (),
    ) -> None:
        """See `Journal.append_evaluation`."""
        told = repr((step, score, list(groups)))
        self._write(lambda journal: journal.append_evaluation(step, score, metrics, groups), told)

    def append_rewind(self, rewind: Rewind) -> None:
        """See `Journal.append_rewind`."""
        self._write(lambda journal: journal.append_rewind(rewind), repr(rewind))

    def held(self) -> contextlib.AbstractContextManager[Any]:
        """See `Journal.held`."""
        return self._journal.held() if self._journal is not None else contextlib.nullcontext()

    def close(self) -> None:
        """Close the file."""
        if self._journal is not None:
            self._journal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _write(self, write: Callable[[Journal], None], told: str) -> None:
        if self._journal is not None:
            write(self._journal)
        self._ranks.word_of_first(told)


def shared_journal(ranks: Ranks, folder: str, make: Callable[[], Journal]) -> Journal:
    """Return the journal of a new run, which rank 0 has begun.

    Raises:
        RanksError: a rank does not see it.
    """
    if not ranks.several:
        return make()
    journal = make() if ranks.first else None
    try:
        ranks.word_of_first("")
        sees = ranks.floats([float(Path(folder, JOURNAL_NAME).is_file())])[:, 0]
        if not sees.all():
            rank = int(sees.argmin())
            hint = "Put it on a disk that all machines share."
            raise RanksError(f"rank {rank} does not see the run folder '{folder}'", hint=hint)
    except BaseException:
        if journal is not None:
            journal.close()
            Path(folder, JOURNAL_NAME).unlink(missing_ok=True)
        raise
    return SharedJournal(ranks, journal)  # type: ignore[return-value]


def reopened(ranks: Ranks, folder: str) -> tuple[Journal, StoredRun | None] | None:
    """Return what `reopen` does; only rank 0 has the file open."""
    if not ranks.several:
        return reopen(folder)
    opened = reopen(folder) if ranks.first else None
    [is_there, is_begun] = ranks.from_first([opened is not None, opened is not None and opened[1] is not None])
    if not is_there:
        return None
    journal, stored = opened or (None, load_run(folder) if is_begun else None)
    return SharedJournal(ranks, journal), stored  # type: ignore[return-value]


def joined(args: ZOConfig | None = None) -> Ranks:
    """Return the ranks of the launch that this process is of. Those but the first one are silent from now on.

    Args:
        args: options, if they are known yet.

    Raises:
        InputError: they ask for what several ranks cannot do yet; the message names it.
        RanksError: the others do not come.
    """
    launch = launch_of()
    if args is not None:
        if args.tensor_parallel is not None:
            _refuse_to_divide(args, launch)
        if launch is not None:
            _refuse_over_ranks(args)
    ranks = Ranks(launch)
    if not ranks.first:
        transformers_logging.set_verbosity_error()
        logging.getLogger("zoreward").setLevel(logging.ERROR)
    return ranks


def _refuse_over_ranks(args: ZOConfig) -> None:
    if args.device_map is not None:
        hint = "Leave it out, where one GPU holds the model; or start one process."
        raise InputError("device_map spreads a model that each of several ranks is to hold", hint=hint)
    if args.kl and args.method == "svrg":
        hint = "Leave kl out, take method=spsa, or start one process."
        raise InputError("kl is not taken from the scores of svrg by several ranks yet", hint=hint)
    if getattr(args, "rows_per_direction", None) is not None:
        hint = "Leave it out, or start one process."
        raise InputError("rows_per_direction divides rows that several ranks cannot share yet", hint=hint)


def _refuse_to_divide(args: ZOConfig, launch: Launch | None) -> None:
    size, started = args.tensor_parallel, launch.size if launch is not None else 1
    assert size is not None
    if started % size:
        hint = f"Start as many, or a multiple: torchrun --nproc-per-node {size} …"
        raise InputError(f"tensor_parallel={size} divides a model among {size} ranks, and {started} started", hint=hint)


def refuse_other_inputs(ranks: Ranks, given: Given) -> None:
    """See that all ranks have the same rows, objective and options, before they share any work.

    Raises:
        RanksError: some have not; the message names them.
    """
    if ranks.several:
        told = {
            "other rows to tune on": digest_of(given.examples) or "",
            "other dev rows": digest_of(given.eval_examples) or "",
            "another objective": given.objective.name,
            "other options": _text_of(given.args.changed()),
            "another run folder": given.args.output_dir,
        }
        ranks.refuse_unlike(told)


def refuse_other_runs(
    ranks: Ranks, header: Mapping[str, Any], state: SPSAState, engine: LocalEngine, ready: Ready, done: int
) -> None:
    """See that all ranks begin, or go on, with the same: base, rows, options, state of the method, weights.

    And that what was tried on real rows came out alike: it says by which passes scores are read.

    Raises:
        RanksError: some do not; the message names them.
    """
    if not ranks.several:
        return
    told = {
        _DIFFERENCES.get(name, f"another {name}"): _text_of(value)
        for name, value in header.items()
        if name not in _WITHOUT
    }
    stepper = engine.generator.stepper if engine.generator is not None else None
    tried = [engine.problem is None, engine.packer is None, stepper is None or stepper.problem is None]
    told |= {"another outcome of the trial of members": _text_of(tried)}
    told |= {"another state of the method": _text_of(asdict(state)), "other steps done": str(done)}
    ranks.refuse_unlike({**told, "other weights": _digest_of_group(ready)})


def compare_weights(ranks: Ranks, ready: Ready, step: int) -> None:
    """See that all ranks have the same weights.

    Raises:
        RanksError: some have not; the message names them.
    """
    if ranks.several:
        ranks.refuse_unlike({f"other weights after step {step}": _digest_of_group(ready)})


def _digest_of_group(ready: Ready) -> str:
    """The digest of this rank's weights; where several hold a model together, those of all of them."""
    own = digest_of_weights(ready.tuned)
    return own if ready.division is None else " ".join(ready.division.ranks.values(own))


def _text_of(value: Any) -> str:
    return json.dumps(value, default=str, sort_keys=True)
