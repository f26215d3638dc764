"""A run that workers help with, which come and go: whoever is idle takes the next unit of work, and the first score
that comes counts.

A unit is some members of a step, as many as share a forward pass, on all its rows. The coordinator has the journal. A
worker has the model at the same weights, by the same updates, and is told members as terms, rows as numbers, and lines
of the journal. What comes back are scores.
"""

from __future__ import annotations

import ipaddress
import math
import socket
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from transformers.utils import logging

from zoreward.noise.families import family_from_json
from zoreward.records import Example, InputError, Member, Scored, Term, ZorewardError, named, one_line
from zoreward.scoring.channel import Channel, accepted, place_of_address
from zoreward.scoring.scorer import Scorer

# Strangers that are greeted at a time: more are turned away.
MOST_STRANGERS = 64
# Bytes of the journal in one message, or one line.
CHUNK = 1 << 20
# Seconds until a worker that there is nothing for is told so, and asks again.
POLL = 5.0
# Seconds from one look at the journal to the next while a worker waits.
LOOK = 0.02
# A unit that is out is taken up by somebody else too when it has been out so many times as long as they need for one.
AGAIN = 2.0
# How long those who are told the end are waited for.
SECONDS_TO_PART = 3.0
# A coordinator answers within a few, whatever it does.
SECONDS_OF_SILENCE = 300.0
_OWN = 0  # the coordinator, among those who take units


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """What workers are told of a run once it is open.

    Args:
        config: all its options.
        journal: the file.
        check: is given the header that a worker would write; raises an InputError where it is another run's.
        version: of zoreward.
    """

    config: Mapping[str, Any]
    journal: Path
    check: Callable[[Mapping[str, Any]], None]
    version: str


@dataclass(slots=True, eq=False)
class _Worker:
    """Who is at the other end of a connection.

    Args:
        number: of the connection, from 1.
        name: what it calls itself.
        has_joined: whether it is of this run.
    """

    number: int
    name: str
    has_joined: bool = False


class Coordinator:
    """Listens for workers, tells them of a run, and hands out units of work.

    One thread answers each connection; none of them touches the model.

    Args:
        address: tcp://host:port; port 0: any that is free.
        token: what a worker must know.

    Attributes:
        address: with the port, as workers call it; and `is_local`, whether only this machine can reach it.
        is_finished: whether the run has done its last step, which workers are told with its end.
        digests: steps done → a digest of the weights behind them. A worker that has another one is sent away.

    Raises:
        InputError: that is no address, or nothing can listen there.
    """

    def __init__(self, address: str, token: str):
        host, port = place_of_address(address)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._socket = socket.create_server((host, port), family=family, backlog=MOST_STRANGERS)
        except OSError as error:
            hint = "Take another port, or 0 for any that is free; the host is one of this machine's."
            raise InputError(f"nothing can listen at {address}: {error.strerror or error}", hint=hint) from error
        self.is_local = ipaddress.ip_address(self._socket.getsockname()[0]).is_loopback
        shown = f"[{host}]" if ":" in host else socket.gethostname() if host == "0.0.0.0" else host
        self.address = f"tcp://{shown}:{self._socket.getsockname()[1]}"
        self.digests: dict[int, str] = {}
        self._token, self._changed = token, threading.Condition()
        self._strangers = threading.BoundedSemaphore(MOST_STRANGERS)
        self._opened: Opened | None = None
        self.is_finished = self._ended = False
        self._count = 0
        self._workers: dict[int, _Worker] = {}
        self._round, self._units = 0, list[dict[str, Any]]()
        self._scored: dict[int, list[Scored]] = {}
        self._out: list[dict[int, float]] = []  # of each unit who has it, and since when
        self._took: dict[int, deque[float]] = {}  # seconds that each needs for a unit
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def workers(self) -> list[str]:
        """The names of those who have joined."""
        return [worker.name for worker in list(self._workers.values()) if worker.has_joined]

    def open(self, opened: Opened) -> None:
        """Tell workers of the run, which has its header now."""
        with self._changed:
            self._opened = opened
            self._changed.notify_all()

    def close(self) -> None:
        """Tell workers that the run is over, and listen no more."""
        with self._changed:
            if self._ended:
                return
            self._ended = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._workers, SECONDS_TO_PART)
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # which ends the wait for the next one
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def shared(self, units: Sequence[dict[str, Any]], work: Callable[[int], list[Scored]]) -> list[list[Scored]]:
        """Return what comes of units of work, by whoever was first; all of them are done when this returns.

        Args:
            units: what a worker is told of each.
            work: does one here.
        """
        with self._changed:
            self._round, self._units, self._scored = self._round + 1, list(units), {}
            self._out = [{} for _ in units]
            self._changed.notify_all()
            number = self._taken(_OWN)
        try:
            while True:
                if number is not None:
                    self._keep(_OWN, self._round, number, work(number))
                with self._changed:
                    if len(self._scored) == len(units):
                        return [self._scored[n] for n in range(len(units))]
                    if (number := self._taken(_OWN)) is None:
                        self._changed.wait(LOOK)
        finally:
            with self._changed:
                self._units = []

    def _taken(self, who: int) -> int | None:
        """The next unit for somebody; one that others are late with where there is no other. The lock is held."""
        now, free, late = time.monotonic(), None, None
        patience = AGAIN * statistics.median(self._took[who]) if self._took.get(who) else None
        for number in range(len(self._units)):
            holders = self._out[number]
            if number in self._scored:
                continue
            if not holders:
                free = number
                break
            if late is None and patience is not None and now - min(holders.values()) > patience:
                late = number
        found = late if free is None else free
        if found is not None:
            self._out[found][who] = now
        return found

    def _keep(self, who: int, of_round: int, number: int, scored: list[Scored]) -> None:
        """Keep what came of a unit, if nobody was faster."""
        with self._changed:
            if of_round != self._round or number not in range(len(self._units)) or who not in self._out[number]:
                return  # of a step that is over
            if len(scored) != len(self._units[number]["members"]):
                raise ValueError("there is a score for each member")
            took = self._took.setdefault(who, deque(maxlen=8))
            took.append(time.monotonic() - self._out[number][who])
            self._scored.setdefault(number, scored)
            self._changed.notify_all()

    # Those at the other end.

    def _listen(self) -> None:
        while not self._ended:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                if not self._ended:
                    time.sleep(LOOK)  # out of files, say
                continue
            if not self._strangers.acquire(blocking=False):
                connection.close()
                continue
            threading.Thread(target=self._meet, args=(connection,), daemon=True).start()

    def _meet(self, connection: socket.socket) -> None:
        try:
            channel = accepted(connection, self._token)
        except OSError:
            connection.close()
            return
        finally:
            self._strangers.release()
        with self._changed:
            self._count += 1
            worker = self._workers[self._count] = _Worker(self._count, f"worker {self._count}")
        try:
            while True:
                reply = self._answer(worker, channel.receive())
                channel.send(reply)
                if reply.keys() & {"end", "refused"}:
                    break
        except OSError:
            pass
        except Exception as error:  # it knows the token, and not how to speak
            logging.get_logger(__name__).warning("%s is sent away: %s.", worker.name, named(error))
        finally:
            channel.close()
            self._leave(worker)

    def _leave(self, worker: _Worker) -> None:
        with self._changed:
            del self._workers[worker.number]
            self._took.pop(worker.number, None)
            for holders in self._out:
                holders.pop(worker.number, None)
            self._changed.notify_all()
        if worker.has_joined and not self._ended:
            logging.get_logger(__name__).warning("%s has left; what it had in hand is scored again.", worker.name)

    def _answer(self, worker: _Worker, message: Mapping[str, Any]) -> dict[str, Any]:
        """What a message is answered with; any exception means that it is not as it should be."""
        try:
            return {"begin": self._begin, "join": self._join, "work": self._work}[message["kind"]](worker, message)
        except ZorewardError as error:
            logging.get_logger(__name__).warning("%s is sent away: %s.", worker.name, error)
            return {"refused": str(error), "hint": error.hint}

    def _begin(self, worker: _Worker, message: Mapping[str, Any]) -> dict[str, Any]:
        worker.name = f"worker {one_line(str(message['name']), 60)}"
        with self._changed:
            self._changed.wait_for(lambda: self._opened or self._ended, POLL)
        if self._ended:
            return {"end": self.is_finished}
        if self._opened is None:
            return {"wait": True}
        if message["version"] != self._opened.version:
            told = f"it has zoreward {one_line(str(message['version']), 30)}, and the run {self._opened.version}"
            raise InputError(told, hint="Install the version that the run has.")
        return {"config": self._opened.config}

    def _join(self, worker: _Worker, message: Mapping[str, Any]) -> dict[str, Any]:
        self._run.check(message["header"])
        worker.has_joined = True
        logging.get_logger(__name__).warning("%s has joined.", worker.name)
        return {"joined": True}

    def _work(self, worker: _Worker, message: Mapping[str, Any]) -> dict[str, Any]:
        if not worker.has_joined:
            raise ValueError("it has not joined")
        have, done, digest = message["have"], message["done"], message["digest"]
        if not (type(have) is int and have >= 0):
            raise ValueError("it has no number of bytes")
        if done is not None:
            of_round, number, told = done
            self._keep(worker.number, of_round, number, scored_from(told))
        if digest is not None:
            step, found = digest
            if self.digests.get(step, found) != found:
                raise InputError(f"it has other weights after step {int(step)}", hint="Start it again.")
        until = time.monotonic() + POLL
        with self._changed:
            while True:
                # While units are handed out nothing is written: whoever has all lines stands where their members do.
                if have < self._run.journal.stat().st_size and (lines := self._lines(have)):
                    return {"lines": lines}
                if self._ended:
                    return {"end": self.is_finished}
                if (number := self._taken(worker.number)) is not None:
                    return {"unit": [self._round, number, self._units[number]]}
                if time.monotonic() > until:
                    return {"wait": True}
                self._changed.wait(LOOK)

    @property
    def _run(self) -> Opened:
        if self._opened is None:
            raise ValueError("it was told of no run")
        return self._opened

    def _lines(self, start: int) -> str:
        """Whole lines of the journal from a byte on."""
        with self._run.journal.open("rb") as file:
            file.seek(start)
            lines = file.read(CHUNK)
            lines += file.readline() if len(lines) == CHUNK else b""
        return lines[: lines.rfind(b"\n") + 1].decode("ascii")


@dataclass(frozen=True, slots=True, eq=False)
class ElasticScorer(Scorer):
    """A `Scorer` whose members are scored by whoever is at hand. What others' members wrote is not known here.

    Args:
        coordinator: hands them out.
        places: id of an `Example` → its number among the rows that are tuned on, by which workers know it.
    """

    coordinator: Coordinator = field(kw_only=True)
    places: Mapping[int, int] = field(kw_only=True)

    def score(
        self,
        examples: Sequence[Example],
        members: Sequence[Member] = ((),),
        *,
        seed: int = 0,
        rows: int | None = None,
        trainer_state: Any = None,
    ) -> list[Scored]:
        """See `Scorer.score`."""
        how: dict[str, Any] = {"seed": seed, "rows": rows, "trainer_state": trainer_state}
        size = self.reader.together or len(members)
        numbers = [self.places.get(id(example), -1) for example in examples]
        is_shared = any(members) and size < len(members) and rows is None and -1 not in numbers
        if not (is_shared and self.coordinator.workers):
            return Scorer.score(self, examples, members, **how)
        parts = [members[m : m + size] for m in range(0, len(members), size)]
        state = {name: getattr(trainer_state, name, None) for name in ("global_step", "epoch", "max_steps")}
        about = {"rows": numbers, "seed": seed, "state": state}
        units = [{"members": [told_terms(member) for member in part], **about} for part in parts]
        found = self.coordinator.shared(units, lambda n: Scorer.score(self, examples, parts[n], **how))
        return [one for part in found for one in part]


def told_terms(member: Member) -> list[list[Any]]:
    """Return a member as JSON holds it.

    >>> told_terms((Term(7, 0.5),)), member_from(told_terms((Term(7, 0.5),))) == (Term(7, 0.5),)
    ([[7, 0.5, None, 'normal']], True)
    """
    return [
        [term.seed, term.coefficient, term.block, term.family.distribution, *term.family.to_json(term.seed)]
        for term in member
    ]


def member_from(told: Sequence[Sequence[Any]]) -> Member:
    """Return the member that `told_terms` has told."""
    return tuple(
        Term(seed, coefficient, family_from_json(seed, family, distribution), block=block)
        for seed, coefficient, block, distribution, *family in told
    )


def told_scores(scored: Sequence[Scored]) -> list[list[Any]]:
    """Return what members are worth, as JSON holds it: float64 with all bits."""
    return [[one.score, one.part_scores, one.metrics] for one in scored]


def scored_from(told: Any) -> list[Scored]:
    """Return what `told_scores` has told.

    Raises:
        ValueError: it is not that.

    >>> scored_from([[0.1, {"f1": 0.1}, {}]])[0].score
    0.1
    """
    found = []
    for score, parts, metrics in told:
        if not isinstance(score, float) or math.isinf(score):
            raise ValueError("a score is a number, or NaN")
        if not all(isinstance(value, float | int) for value in (*parts.values(), *metrics.values())):
            raise ValueError("what is told beside a score are numbers")
        found.append(Scored(score, parts, metrics=metrics))
    return found


def ask(channel: Channel, kind: str, **message: Any) -> dict[str, Any]:
    """Ask the coordinator something, again and again as long as it says to wait; return its answer.

    Raises:
        InputError: it refuses this worker; the message says why.
        OSError: it is gone.
    """
    while True:
        channel.send({"kind": kind, **message})
        reply = channel.receive(SECONDS_OF_SILENCE)
        if "refused" in reply:
            raise InputError(str(reply["refused"]), hint=str(reply.get("hint") or ""))
        if "wait" not in reply:
            return reply
        message |= {"done": None} if "done" in message else {}
