"""An elastic run: what a coordinator is made of, and what a worker does. See docs/ranks.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback
from transformers.trainer_callback import TrainerState
from transformers.utils import logging

from zoreward.journal import JOURNAL_NAME, StoredRun, advance, load_run
from zoreward.journal.reader import Scan
from zoreward.records import InputError
from zoreward.scoring import Scorer, members_of_a_pass
from zoreward.scoring.channel import Channel
from zoreward.scoring.elastic import Coordinator, ElasticScorer, Opened, ask, member_from, told_scores
from zoreward.trainer.header import header_of, refuse_other_run, unit_of
from zoreward.trainer.replicas import COMPARE_EVERY, digest_of_weights
from zoreward.trainer.resuming import put_base_back_

if TYPE_CHECKING:
    from zoreward.trainer.loop import ZOTrainer

# Units of a step, where there are as many members: workers are not known when a run begins, and may differ in speed.
UNITS = 16
_HINT = "Give the worker what the run began with: the same model, rows and code."


def coordinate(trainer: ZOTrainer, coordinator: Coordinator) -> None:
    """Have workers help with the steps of a run. Call it before the run is opened or resumed.

    The unit of work is then small enough to be shared, and stands in the header of the run; of a run that goes on, it
    stays what it was.
    """
    first = trainer.method.ask(trainer.method.init())
    size, most = members_of_a_pass(first.parts[0], UNITS), trainer.scorer.reader.together
    scorer = trainer.scorer.cut_as({"members": min(size, most or size)})
    known = {one.name: getattr(scorer, one.name) for one in fields(Scorer)}
    trainer.run.scorer = ElasticScorer(**known, coordinator=coordinator, places=_places(trainer))
    trainer.add_callback(_Digests(trainer, coordinator))


def _places(trainer: ZOTrainer) -> dict[int, int]:
    return {id(example): number for number, example in enumerate(trainer.run.rows)}


def open_to_workers(trainer: ZOTrainer, coordinator: Coordinator, config: Mapping[str, Any]) -> None:
    """Tell workers of a run that is open.

    Args:
        trainer: of the run.
        coordinator: tells them.
        config: all options of the run, as its config.yaml has them.
    """
    assert isinstance(trainer.run.scorer, ElasticScorer)
    trainer.run.scorer = replace(trainer.run.scorer, places=_places(trainer))  # a resume may have made its rows anew
    folder, address = trainer.args.output_dir, coordinator.address
    header = load_run(folder).header
    config = {**config, "dtype": config["dtype"] or trainer.ready.dtype}  # its default is not the same on all devices

    def check(of_worker: Mapping[str, Any]) -> None:
        try:
            refuse_other_run(address, _compared(header), _compared(of_worker))
        except InputError as error:
            raise InputError(str(error), hint=_HINT) from None

    together, query = header["unit"]["members"], trainer.method.ask(trainer.method.init())
    if together is None or together >= len(query.parts[0]):
        logging.get_logger(__name__).warning(
            "The members of a step share one pass, so workers will have nothing to do. More directions make more of "
            "them; a run that goes on keeps the passes that it began with."
        )
    coordinator.open(Opened(config, Path(folder, JOURNAL_NAME), check, header["versions"]["zoreward"]))


def _compared(header: Mapping[str, Any]) -> dict[str, Any]:
    """What of a header must be the same for a worker: not the dev rows, nor on what device it is."""
    config = {name: value for name, value in header["config"].items() if name not in ("use_cpu", "dtype")}
    return {**header, "config": config, "rows": {"tune": header["rows"]["tune"]}}


class _Digests(TrainerCallback):
    """Tells a coordinator now and then which weights are the right ones."""

    def __init__(self, trainer: ZOTrainer, coordinator: Coordinator):
        self._trainer, self._coordinator = trainer, coordinator

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % COMPARE_EVERY == 0:
            self._coordinator.digests[state.global_step] = digest_of_weights(self._trainer.ready.tuned)


@dataclass(slots=True)
class Followed:
    """What a worker has done.

    Args:
        steps: of the run, when it ended.
        is_finished: whether that was its last one.
        members: how many were scored here.
        digest: of the weights, after so many steps, where they are compared.
    """

    steps: int = 0
    is_finished: bool = False
    members: int = 0
    digest: tuple[int, str] | None = None


def follow(trainer: ZOTrainer, channel: Channel, address: str) -> Followed:
    """Score members for a run until it ends, and do its updates.

    Args:
        trainer: made with the options of the run, at the weights that the run began with.
        channel: to its coordinator.
        address: of the coordinator, for messages.

    Raises:
        InputError: the coordinator refuses this worker, since something differs; nothing was scored.
        OSError: the coordinator is gone.
    """
    ready, rows = trainer.ready, trainer.run.rows
    header = header_of(ready, trainer.objective, trainer.method, trainer.args, rows, None)
    ask(channel, "join", header=json.loads(json.dumps(header, default=str)))
    logging.get_logger(__name__).warning("joined the run at %s", address)
    if ready.start:  # going back, the prefix is read again
        trainer.model.save_pretrained(ready.start)
    scan, scorer, found, done = Scan(Path(address)), trainer.scorer, Followed(), None
    while True:
        reply = ask(channel, "work", have=scan.end, done=done, digest=found.digest)
        done = None
        if "end" in reply:
            found.is_finished = bool(reply["end"])
            return found
        if "lines" in reply:
            back = len(scan.rewinds)
            for line in reply["lines"].encode("ascii").splitlines():
                scan.take(line)
            if not found.steps:
                scorer = trainer.scorer.cut_as(unit_of(scan.header))
                if trainer.objective.compares_with_base and unit_of(scan.header)["ranks"] > 1:
                    rows = scorer.with_base(rows)  # in the passes of the ranks that began the run
            if (run := scan.run) is not None:
                _move(trainer, run, found, goes_back=len(scan.rewinds) > back)
        else:
            number, unit, about = reply["unit"]
            members = [member_from(told) for told in about["members"]]
            state = TrainerState(**about["state"])
            scored = scorer.score([rows[n] for n in about["rows"]], members, seed=about["seed"], trainer_state=state)
            found.members += len(members)
            done = [number, unit, told_scores(scored)]


def _move(trainer: ZOTrainer, run: StoredRun, found: Followed, *, goes_back: bool) -> None:
    """Bring the weights to where a run stands, and digest them where they are compared."""
    model, tuned = trainer.ready.model, trainer.ready.tuned
    if goes_back and found.steps:
        put_base_back_(trainer.ready, run, trainer.args)
        found.steps = 0
    while found.steps < run.n_steps:
        stop = run.n_steps if goes_back else min(run.n_steps, (found.steps // COMPARE_EVERY + 1) * COMPARE_EVERY)
        advance(run, model, tuned, found.steps, stop)
        found.steps = stop
        if stop % COMPARE_EVERY == 0 and not goes_back:
            found.digest = (stop, digest_of_weights(tuned))
