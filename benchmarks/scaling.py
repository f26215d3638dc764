"""What several GPUs are worth: steps of W ranks beside those of one, and what a step is made of.

    torchrun --nproc-per-node 2 benchmarks/scaling.py --shape opt-1.3b      # two GPUs: steps of 1 and 2 ranks
    python benchmarks/scaling.py --parts --shape opt-1.3b                   # one GPU: what scaling_model.py needs
    python benchmarks/scaling.py --table                                    # what was measured, as a table
    torchrun --nproc-per-node 2 benchmarks/scaling.py --shape tiny --cpu --directions 2 --tokens 16    # anywhere

OPT's shapes with random weights in bfloat16. A step is what `zoreward tune` does for candidates of one token, with its
journal and all that ranks tell each other. Two ways to share it: 16 rows and K directions, whose members are split;
and one direction on 16 rows for each rank. Where fewer ranks are measured than there are, several groups of them do
the same at the same time, so that all keep the same weights, which is compared behind each case.

With `--split texts` low-rank members write behind each of 16 prompts instead, 64 of them 48 tokens.

    efficiency = T_1 / (W · T_W)

T_1 is one rank's time for the same members and rows, cut into passes as one process cuts them or as W ranks do,
whichever is faster. Each result is a line in a file, and is not measured again: what was interrupted goes on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from measure import SHAPES, commit, machine, timed
from runs import Result, results_in
from step import examples_of, random_model

from zoreward.journal import Journal
from zoreward.methods import SPSA
from zoreward.neighbours.of_launchers import launch_of
from zoreward.records import Example, Update
from zoreward.registry import get_objective
from zoreward.scoring import Generation, LocalEngine, Ranks, Scorer, engine_of, sharded
from zoreward.scoring.devices import one_of_its_own
from zoreward.trainer.optimizer import old_objects_left_alone
from zoreward.trainer.replicas import digest_of_weights, shared_journal
from zoreward.trainer.run import Run

KEY = ("what", "shape", "noise", "tokens", "split", "directions", "members", "rows", "ranks", "cut")
RESULTS = Path(__file__).parent / "results" / "scaling.jsonl"
ROWS = 16
# The most members that parts are measured for; what lies beyond is extrapolated.
MOST_MEMBERS, MOST_DIRECTIONS = 128, 64
NOISES = {"dense": 0, "low-rank": 1}
PROMPT_TOKENS = 8  # of those behind which texts are written


@dataclass(frozen=True)
class Case:
    """A step that is measured.

    Args:
        noise: of its directions, and `directions`, how many there are.
        tokens: of a row, and `rows`, how many there are.
        split: what ranks share.
        ranks: how many do it; `cut`: into passes for how many it is cut.
    """

    noise: str
    tokens: int
    split: str
    directions: int
    rows: int
    ranks: int
    cut: int


def key_of(what: str, shape: str, **known: Any) -> tuple[Any, ...]:
    """Return what names a result."""
    return tuple({"what": what, "shape": shape, **known}.get(name) for name in KEY)


def cases_of(options: argparse.Namespace, size: int) -> Iterator[Case]:
    """The steps to measure, those of many ranks first."""
    counts = options.ranks or [2**n for n in range(1, size.bit_length())]
    for ranks, tokens, noise in itertools.product(sorted(counts, reverse=True), options.tokens, options.noise):
        shares = [("members", directions, ROWS) for directions in options.directions]
        for share in [*shares, ("rows", 1, ROWS * ranks)]:
            if share[0] in options.split:
                for measured, cut in ((ranks, ranks), (1, ranks), (1, 1)):
                    yield Case(noise, tokens, *share, measured, cut)
    for ranks in counts if "texts" in options.split else ():
        for measured, cut in ((ranks, ranks), (1, ranks), (1, 1)):
            yield Case("low-rank", options.new_tokens, "texts", options.writers // 2, ROWS, measured, cut)


class Bench:
    """The ranks of this launch, their model, and the file of results.

    Args:
        options: the command line's.
    """

    def __init__(self, options: argparse.Namespace):
        self.shape, self.seconds, self.output = options.shape, options.seconds, options.output
        self.device = torch.device("cpu" if options.cpu else "cuda")
        self.everyone, self._commit, self._groups = Ranks(launch_of()), options.commit, dict[int, Ranks]()
        torch.manual_seed(0)
        model = random_model(options.shape, self.device)
        self.engine: LocalEngine = engine_of(model, 1)
        self.scorer = Scorer(self.engine, get_objective("neg-cross-entropy"), Generation())
        model.generation_config.eos_token_id = None  # so that no text ends before the others
        words: Any = SimpleNamespace(eos_token_id=None, pad_token_id=1, decode=lambda tokens, **_: str(tokens))
        written = Generation(max_new_tokens=options.new_tokens, temperature=1.0)
        self.writer = Scorer(engine_of(model, 1, words, tuned=self.engine.tuned), get_objective(length), written)
        self._done = {tuple(key) for key in self.everyone.from_first([*results_in(self.output, *KEY)])}

    def is_done(self, key: tuple[Any, ...]) -> bool:
        """Whether the file has it."""
        return key in self._done

    def write(self, key: tuple[Any, ...], **found: Any) -> None:
        """Append a result to the file."""
        self._done.add(key)
        if not self.everyone.first:
            return
        where = {"device": machine(self.device), "torch": torch.__version__, "commit": self._commit}
        line = {**dict(zip(KEY, key, strict=True)), **found, **where}
        self.output.parent.mkdir(parents=True, exist_ok=True)
        with self.output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)

    def group(self, size: int) -> Ranks:
        """The group of so many ranks that this one is in; several of them do the same."""
        if size not in self._groups:
            self._groups[size] = self.everyone.within(size) if size > 1 else Ranks()
        return self._groups[size]

    def median(self, work: Callable[[], object], most: int = 30) -> float:
        """The median seconds of a piece of work, which all ranks do as often, after one time that does not count."""
        timed(work, self.device)
        first = timed(work, self.device)
        return statistics.median([first, *(timed(work, self.device) for _ in range(self._often(first, most) - 1))])

    def pace(self, step: Callable[[], object], most: int = 30) -> float:
        """The median seconds of a step among others, where the device works on while Python begins the next one."""
        step()
        first = timed(step, self.device)
        if self._often(first, most) == 1:
            return first
        marks = []
        for _ in range(self._often(first, most) + 1):
            step()
            marks.append(time.perf_counter())
        return statistics.median(after - before for before, after in itertools.pairwise(marks))

    def _often(self, seconds: float, most: int) -> int:
        return int(self.everyone.from_first(min(most, max(1, int(self.seconds / seconds)))))


def length(completions: Sequence[str]) -> list[float]:
    """A reward that costs nothing."""
    return [float(len(text)) for text in completions]


def measure_step(bench: Bench, case: Case) -> None:
    """Measure steps of a case, and what they are made of."""
    ranks, cutters = bench.group(case.ranks), bench.group(case.cut)
    writes = case.split == "texts"
    examples = examples_of(case.rows, PROMPT_TOKENS if writes else case.tokens)
    spsa = SPSA(eps=1e-3, lr=1e-6, num_directions=case.directions, rank=NOISES[case.noise])
    members = spsa.ask(spsa.init()).members
    alone = (bench.writer if writes else bench.scorer).cut_as({"members": len(members)})
    scorer = sharded(alone, cutters, "members" if writes else case.split, members)  # type: ignore[arg-type]
    if case.ranks < case.cut:
        scorer = alone.cut_as(scorer.reader.unit)
    with tempfile.TemporaryDirectory() as own:
        folder = ranks.from_first(own)
        journal = shared_journal(ranks, folder, lambda: Journal(folder, {}))
        with journal, old_objects_left_alone():
            run = Run(scorer, spsa, examples, journal)

            def step() -> None:
                run.journal_and_apply(run.ask_score_tell(examples))
                ranks.any(False, False)  # whether to end, and the clock

            before = ranks.sent
            step()
            sent = ranks.sent - before
            seconds = bench.pace(step)
            assert run.last is not None
            is_short = bench.everyone.from_first(seconds <= bench.seconds)
            parts = parts_of(bench, run, ranks, own_share(scorer, ranks, examples) if is_short else None)
            ranks.any(False)  # so that no folder goes before all are done
    digests = bench.everyone.values(digest_of_weights(bench.engine.tuned))
    same = len(set(digests)) == 1
    found = {"seconds": seconds, "bytes": sent, **parts, "digests": "equal" if same else "DIFFERENT"}
    bench.write(key_of("step", bench.shape, **asdict(case)), **found, unit=scorer.reader.unit)


def own_share(scorer: Scorer, ranks: Ranks, examples: Sequence[Example]) -> Callable[[Sequence[Any]], object]:
    """What a rank scores of a step, without telling anybody."""
    local = Scorer(scorer.reader, scorer.objective, scorer.generation)

    def score(members: Sequence[Any]) -> object:
        owned = getattr(scorer.engine, "owners", lambda members: None)(members)
        if owned is not None:
            own = [members[m] for m in owned[ranks.rank]]
            return local.score(examples, own) if own else None
        return local.score(examples[ranks.rank :: ranks.size], members)

    return score


def parts_of(
    bench: Bench, run: Run, ranks: Ranks, score: Callable[[Sequence[Any]], object] | None
) -> dict[str, float | None]:
    """The seconds of what a step consists of: a rank's scores, the update, the exchange; None: not measured."""
    query = run.method.ask(run.state)
    assert run.last is not None
    update = run.last.record.update
    numbers = 1 + -(-len(query.members) // ranks.size)

    def exchange() -> None:
        ranks.floats([0.0] * numbers)
        ranks.word_of_first("")
        ranks.any(False, False)

    return {
        "score": bench.median(lambda: score(query.members)) if score else None,
        "update": bench.median(lambda: run.scorer.engine.apply(update)),
        "exchange": bench.median(exchange, most=50) if ranks.several else 0.0,
    }


def measure_parts(bench: Bench, tokens: Sequence[int], noises: Sequence[str]) -> None:
    """Measure what one rank takes for some members, and for an update along some directions.

    Where one piece takes longer than four times `--seconds`, larger ones are left out.
    """
    for noise in noises:
        spsa = SPSA(eps=1e-3, lr=1e-6, num_directions=MOST_DIRECTIONS, rank=NOISES[noise])
        query = spsa.ask(spsa.init())
        update, _ = spsa.tell(spsa.init(), query, [float(m % 3) for m in range(len(query.members))])
        for directions in (1, 4, 16, MOST_DIRECTIONS):
            key = key_of("update", bench.shape, noise=noise, directions=directions)
            if not bench.is_done(key):
                part = Update(update.decay, update.terms[:directions], update.rounding_seed)
                bench.write(key, seconds=bench.median(lambda part=part: bench.engine.apply(part)))  # type: ignore[misc]
        for length in tokens:
            measure_scores(bench, noise, length, query.members)


def measure_scores(bench: Bench, noise: str, tokens: int, members: Sequence[Any]) -> None:
    """Measure what one rank takes to score 1, 2, 4 … members on 16 rows, all of one pass."""
    examples, took = examples_of(ROWS, tokens), 0.0
    for count in (1, 2, 4, 8, 16, 32, 64, MOST_MEMBERS):
        key = key_of("score", bench.shape, noise=noise, tokens=tokens, members=count, rows=ROWS)
        if bench.is_done(key) or bench.everyone.from_first(took > 4 * bench.seconds):
            continue
        scorer = bench.scorer.cut_as({"members": count})
        took = bench.median(lambda scorer=scorer, count=count: scorer.score(examples, members[:count]))  # type: ignore[misc]
        bench.write(key, seconds=took)


def table(results: Sequence[Result]) -> list[str]:
    """The steps that were measured, as lines of Markdown, with what ranks are worth.

    >>> one = dict(what="step", shape="s", noise="dense", tokens=4, split="rows", directions=1, rows=32, update=0.1)
    >>> lone = [one | dict(ranks=1, cut=cut, seconds=cut * 1.0, bytes=0) for cut in (1, 2)]
    >>> table([*lone, one | dict(ranks=2, cut=2, seconds=0.625, bytes=144)])[-1]
    '| s | dense | 4 | rows | 1 | 32 | 2 | 625 ms | 0.80 | 16 % | 144 |'
    """
    lines = ["| shape | noise | tokens | split | K | rows | ranks | step | efficiency | update | bytes a rank |"]
    lines += ["|" + "---|" * 11]
    names = ("shape", "noise", "tokens", "split", "directions", "rows")
    steps = [one for one in results if one["what"] == "step"]
    for one in steps:
        alone = [
            other["seconds"]
            for other in steps
            if other["ranks"] == 1
            and other["cut"] in (1, one["cut"])
            and all(other[name] == one[name] for name in names)
        ]
        if one["ranks"] == 1 or not alone:
            continue
        efficiency = min(alone) / (one["ranks"] * one["seconds"])
        cells = [*(one[name] for name in names), one["ranks"], f"{1e3 * one['seconds']:.3g} ms", f"{efficiency:.2f}"]
        cells += [f"{100 * one['update'] / one['seconds']:.0f} %", one["bytes"]]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def main() -> None:
    """Measure, or print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="opt-1.3b")
    parser.add_argument("--tokens", type=int, nargs="+", default=[64, 400], help="of a row")
    parser.add_argument("--directions", type=int, nargs="+", default=[8, 32], help="K, where members are split")
    parser.add_argument("--noise", nargs="+", choices=NOISES, default=[*NOISES])
    parser.add_argument("--split", nargs="+", choices=["members", "rows", "texts"], default=["members", "rows"])
    parser.add_argument("--writers", type=int, default=64, help="members, where texts are written")
    parser.add_argument("--new-tokens", type=int, default=48, help="of each text")
    parser.add_argument("--ranks", type=int, nargs="+", help="how many; by default 2, 4, 8 … as far as there are")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each figure, which is of one time at least")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--parts", action="store_true", help="measure what scaling_model.py needs, in place of steps")
    parser.add_argument("--table", action="store_true", help="print what the file has")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--commit", default=commit())
    options = parser.parse_args()
    if not options.table:
        with one_of_its_own(options.cpu):
            pass  # from now on this process sees its own GPU alone
        bench = Bench(options)
        if options.parts:
            measure_parts(bench, options.tokens, options.noise)
        else:
            for case in cases_of(options, bench.everyone.size):
                if not bench.is_done(key_of("step", bench.shape, **asdict(case))):
                    measure_step(bench, case)
        if not bench.everyone.first:
            return
    print("\n".join(table([*results_in(options.output, *KEY).values()])))


if __name__ == "__main__":
    main()
