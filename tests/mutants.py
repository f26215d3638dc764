"""Break the code on purpose, one place at a time, and see that the tests notice: `make mutants`.

Each mutant is one replacement in a copy of the project. Its tests must fail there; a mutant that survives, or whose
text is no longer found, is an error.

    make mutants                            # all of them; each costs a run of its tests
    make mutants ARGS=--list                # what there is
    make mutants ARGS="methods/ journal/"   # those of some rooms
    make mutants ARGS="'a torn line counts'"
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Mutant:
    """What is broken, where, and which tests must notice."""

    name: str
    file: str
    old: str
    new: str
    tests: str


MUTANTS = [
    Mutant(
        "an answer loses what a token takes over the border",
        "zoreward/data/tokens.py",
        "border = min(shared_length(stem, own) for own in wholes)",
        "border = len(stem)",
        "tests/test_border.py",
    ),
    Mutant(
        "one candidate's tokens say where all begin",
        "zoreward/data/tokens.py",
        "border = min(shared_length(stem, own) for own in wholes)",
        "border = shared_length(stem, wholes[0])",
        "tests/test_border.py",
    ),
    Mutant(
        "a name of a class is read as a number",
        "zoreward/data/choices.py",
        "if isinstance(label, NamedLabel) and set(texts) <= set(label.names):",
        "if isinstance(label, NamedLabel) and set(texts) < set(label.names):",
        "tests/test_rows.py",
    ),
    Mutant(
        "SVRG's anchor follows the weights",
        "zoreward/methods/svrg.py",
        "antithetic_pairs(fresh, self.eps, self.at_anchor(state))",
        "antithetic_pairs(fresh, self.eps)",
        "tests/test_methods.py",
    ),
    Mutant(
        "SVRG's two estimates are along different z",
        "zoreward/methods/svrg.py",
        "antithetic_pairs(fresh, self.eps, self.at_anchor(state))",
        "antithetic_pairs(self.directions.fresh(state.step + 1000), self.eps, self.at_anchor(state))",
        "tests/test_methods.py",
    ),
    Mutant(
        "LOZO steps along the next V",
        "zoreward/methods/directions.py",
        "along(z, c) for z, c in zip(self.at(step), coefficients, strict=True)",
        "along(z, c) for z, c in zip(self.at(step + 1), coefficients, strict=True)",
        "tests/test_methods.py",
    ),
    Mutant(
        "members of a block move all weights",
        "zoreward/members/blocks.py",
        "return tuple(term for term in terms if term.block is None or term.block == block)",
        "return terms",
        "tests/test_blocks.py",
    ),
    Mutant(
        "every block decays in every turn",
        "zoreward/members/blocks.py",
        "turn = update.block is None or update.block == block",
        "turn = True",
        "tests/test_blocks.py",
    ),
    Mutant(
        "momentum's past terms move the block at hand",
        "zoreward/methods/directions.py",
        "terms += [along(z, scale * c) for",
        "terms += [replace(along(z, scale * c), block=self.block(step)) for",
        "tests/test_methods.py",
    ),
    Mutant(
        "SubZero steps in the next subspace",
        "zoreward/noise/subspace.py",
        "derive_seed(run_seed, step - step % refresh, 0)",
        "derive_seed(run_seed, step - step % refresh + refresh * (step % 2), 0)",
        "tests/test_methods.py",
    ),
    Mutant(
        "subspaces pile up",
        "zoreward/kernels/subspaces.py",
        "if key[:2] not in wanted]",
        "if key[:2] in ()]",
        "tests/test_lowrank.py",
    ),
    Mutant(
        "what is kept forgets the options",
        "zoreward/registry/kept.py",
        "json.dumps([name, options, source, row], sort_keys=True)",
        "json.dumps([name, source, row], sort_keys=True)",
        "tests/test_patience.py",
    ),
    Mutant(
        "a call that was given up still logs",
        "zoreward/registry/attempts.py",
        "    for number in range(1, tries + 1):\n        notes = Notes()",
        "    notes = Notes()\n    for number in range(1, tries + 1):",
        "tests/test_patience.py",
    ),
    Mutant(
        "dev rows are tuned on",
        "zoreward/data/splits.py",
        "return Split(drawn[:cut], drawn[cut:],",
        "return Split(drawn, drawn[cut:],",
        "tests/test_splits.py",
    ),
    Mutant(
        "test rows are tuned on",
        "zoreward/data/splits.py",
        "for i, row in enumerate(rows) if i not in scored]",
        "for i, row in enumerate(rows)]",
        "tests/test_splits.py",
    ),
    Mutant(
        "calibration by means instead of sums",
        "zoreward/scoring/answers.py",
        "candidate_logprobs(reader, some)[0] * token_counts(some)",
        "candidate_logprobs(reader, some)[0]",
        "tests/test_baselines.py",
    ),
    Mutant(
        "the update goes downhill",
        "zoreward/methods/steps.py",
        "share * weight / len(weights)",
        "-share * weight / len(weights)",
        "tests/test_spsa.py",
    ),
    Mutant(
        "a direction counts K-fold",
        "zoreward/methods/steps.py",
        "share * weight / len(weights)",
        "share * weight",
        "tests/test_spsa.py",
    ),
    Mutant(
        "each member sees a row of its neighbour",
        "zoreward/members/grouping.py",
        "return value[self.current * share : (self.current + 1) * share]",
        "return value.roll(1, 0)[self.current * share : (self.current + 1) * share]",
        "tests/test_members.py",
    ),
    Mutant(
        "half precision is rounded to nearest",
        "zoreward/kernels/cpu.py",
        "_round_bf16(acc, bits) if dtype == torch.bfloat16 else noise.round_fp16(acc, bits)",
        "_to_nearest(acc, dtype)",
        "tests/test_rounding.py",
    ),
    Mutant(
        "all tensors share one z",
        "zoreward/noise/seeds.py",
        "table[name] = stream\n",
        "table[name] = 0\n",
        "tests/test_noise.py",
    ),
    Mutant(
        "biases decay",
        "zoreward/kernels/cpu.py",
        "update.decay != 0 and weight.ndim >= 2",
        "update.decay != 0",
        "tests/test_rounding.py tests/test_spsa.py",
    ),
    Mutant(
        "weights stay perturbed after an error",
        "zoreward/members/grouping.py",
        "        yield\n    finally:\n        for slot in filled:",
        "        yield\n    except ZeroDivisionError:\n        for slot in filled:",
        "tests/test_members.py",
    ),
    Mutant(
        "the factors of a low-rank direction are one",
        "zoreward/noise/factors.py",
        "FACTOR_A, FACTOR_B = 2, 3",
        "FACTOR_A, FACTOR_B = 2, 2",
        "tests/test_lowrank.py",
    ),
    Mutant(
        "a low-rank embedding is looked up unperturbed",
        "zoreward/members/low_rank.py",
        "return grouped.baddbmm_(a[member, ids.reshape(len(a), -1)], b.mT).view(y.shape)",
        "return y",
        "tests/test_lowrank.py",
    ),
    Mutant(
        "the rank forgets ties",
        "zoreward/methods/estimators.py",
        "(first[score] + last[score]) / 2",
        "first[score]",
        "tests/test_estimators.py",
    ),
    Mutant(
        "positions count the padding",
        "zoreward/scoring/reader.py",
        "(mask.cumsum(1) - 1).clamp(min=0)",
        "torch.arange(ids.shape[1], device=ids.device).repeat(len(ids), 1)",
        "tests/test_scoring.py",
    ),
    Mutant(
        "candidates are summed, not averaged",
        "zoreward/scoring/logprobs.py",
        "= sums_MR / lengths",
        "= sums_MR",
        "tests/test_scoring.py",
    ),
    Mutant(
        "a replay walks backwards",
        "zoreward/journal/replaying.py",
        "        taken.append(update)",
        "        taken.insert(0, update)",
        "tests/test_replay.py",
    ),
    Mutant(
        "a torn line counts",
        "zoreward/journal/reader.py",
        """            break
        found.take""",
        """            line += b" "
        found.take""",
        "tests/test_journal.py",
    ),
    Mutant(
        "a line that is missing goes unnoticed",
        "zoreward/journal/lines.py",
        "found = zlib.crc32(line[:-_CRC_BYTES], crc)",
        "found = zlib.crc32(line[:-_CRC_BYTES])",
        "tests/test_journal.py",
    ),
    Mutant(
        "only the last accumulated batch is scored",
        "zoreward/trainer/loop.py",
        "self._rows += inputs",
        "self._rows = list(inputs)",
        "tests/test_trainer.py",
    ),
    Mutant(
        "the weights move before the step is written down",
        "zoreward/trainer/loop.py",
        """        self._write_step(record)
        update_(self.scorer.reader.model, record.update, tuned=self.scorer.reader.tuned)
""",
        """        update_(self.scorer.reader.model, record.update, tuned=self.scorer.reader.tuned)
        self._write_step(record)
""",
        "tests/test_resume.py",
    ),
    Mutant(
        "an evaluation that a kill prevented is not made up for",
        "zoreward/trainer/resumable.py",
        "if self.eval_dataset is not None and wanted and not evaluated:",
        "if False:",
        "tests/test_resume.py",
    ),
    Mutant(
        "a snapshot is believed whatever its checksum",
        "zoreward/journal/snapshot.py",
        "if digest.hexdigest() != said:",
        "if False:",
        "tests/test_snapshot.py",
    ),
    Mutant(
        "a run that chooses is given the test rows",
        "zoreward/bench/driver.py",
        "return replace(plan, rows=replace(plan.rows, test=[])) if run.chooses else plan",
        "return plan",
        "tests/test_bench.py",
    ),
    Mutant(
        "the best step's weights are not put back",
        "zoreward/bench/tuning.py",
        "weight.copy_(self._copies[name])",
        "pass",
        "tests/test_bench.py",
    ),
    Mutant(
        "AdamW sees the rows in the same order in every epoch",
        "zoreward/bench/tuning.py",
        "manual_seed(seed + epoch)",
        "manual_seed(seed)",
        "tests/test_bench.py",
    ),
    Mutant(
        "a GPU gives both members of a couple the same sign",
        "zoreward/kernels/triton_kernels.py",
        "tl.load(script + (2 * n + 1) * LINE + 1)",
        "tl.load(script + LINE + 1)",
        "tests/test_gpu_kernels.py",
    ),
    Mutant(
        "a GPU rounds half precision to nearest",
        "zoreward/kernels/triton_noise.py",
        "moved = tl.minimum(pattern + bits",
        "moved = tl.minimum(pattern + 0x7FFF + ((pattern >> 16) & 1)",
        "tests/test_gpu_kernels.py",
    ),
    Mutant(
        "all members have the first one's relative positions",
        "zoreward/members/grouping.py",
        "self.current = member\n                    lines",
        "self.current = 0\n                    lines",
        "tests/test_families.py -k t5",
    ),
    Mutant(
        "a new head draws over what was pretrained",
        "zoreward/members/heads.py",
        'if name in missing or name.rpartition(".")[0] in outputs[-1:])',
        'if "pooler." not in name or name in missing)',
        "tests/test_whole.py -k new_head",
    ),
    Mutant(
        "a warm-up is left out",
        "zoreward/trainer/options.py",
        "return SchedulerType.CONSTANT_WITH_WARMUP",
        "return SchedulerType.CONSTANT",
        "tests/test_trainer.py -k warmup",
    ),
    Mutant(
        "the majority is an answer that no row offers",
        "zoreward/bench/measuring.py",
        "often = [(texts[text], places[place]) for place, text in enumerate(example.candidates)]",
        "often = [places[place] for place in range(len(line))]",
        "tests/test_bench.py -k majority",
    ),
    Mutant(
        "an encoder's padding is read",
        "zoreward/scoring/logprobs.py",
        "attention_mask=mask[origin],",
        "",
        "tests/test_pairs.py",
    ),
    Mutant(
        "a GPU forgets where weights went",
        "zoreward/kernels/gpu.py",
        "known is not None and known.addresses == addresses and known.shapes == shapes",
        "known is not None",
        "tests/test_gpu_kernels.py",
    ),
]


def survives(mutant: Mutant) -> bool:
    """Return whether the tests pass although the code is broken."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("zoreward", "objectives", "tests", "pyproject.toml"):
            source, target = ROOT / name, Path(folder) / name
            shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
        file = Path(folder, mutant.file)
        text = file.read_text(encoding="utf-8")
        if text.count(mutant.old) != 1:
            sys.exit(f"mutant '{mutant.name}': its text occurs {text.count(mutant.old)} times in {mutant.file}")
        file.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *mutant.tests.split()]
        paths = os.pathsep.join([folder, str(Path(folder, "objectives"))])
        done = subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": paths}, capture_output=True)
        if done.returncode not in (0, 1):  # 1: tests failed; anything else: they could not run
            sys.exit(f"mutant '{mutant.name}': pytest ended with {done.returncode}\n{done.stdout.decode()[-2000:]}")
        return done.returncode == 0


def chosen_by(words: list[str]) -> list[Mutant]:
    """Return the mutants whose file or name holds one of the words; without words all of them."""
    told = {f"{mutant.file}: {mutant.name}": mutant for mutant in MUTANTS}
    for word in words:
        if not any(word in text for text in told):
            sys.exit(f"no mutant's file or name holds {word!r}; --list shows them")
    return [mutant for text, mutant in told.items() if not words or any(word in text for word in words)]


def main() -> None:
    """Try every mutant, or those that are asked for; exit 1 if one survives."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="WORD", help="only mutants whose file or name holds a word")
    parser.add_argument("--list", action="store_true", help="print which mutants there are, and try none")
    asked = parser.parse_args()
    chosen = chosen_by(asked.words)
    if asked.list:
        print("\n".join(f"{mutant.file}: {mutant.name}" for mutant in chosen))
        return
    alive = []
    for mutant in chosen:
        result = survives(mutant)
        print(f"{'SURVIVED' if result else 'killed  '}  {mutant.name}", flush=True)
        alive += [mutant.name] * result
    print(f"{len(chosen) - len(alive)} of {len(chosen)} mutants killed")
    sys.exit(bool(alive))


if __name__ == "__main__":
    main()
