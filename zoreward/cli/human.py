"""`zoreward tune human`: two texts are shown, a person says which is better, and the answers are kept as rows."""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from zoreward.cli.prepare import check_folder, made_ready, quiet_transformers, select_device
from zoreward.config import Prompting, TuneOptions, part_of
from zoreward.data import check_prompts, load_rows, with_prompts
from zoreward.neighbours.of_launchers import launch_of
from zoreward.neighbours.of_typer import source_of
from zoreward.noise.seeds import SeedIndex, derive_seed
from zoreward.records import InputError, printable
from zoreward.registry import Objective

if TYPE_CHECKING:
    from zoreward.records import Completion, Example

_ROW = ("prompt", "chosen", "rejected")
# Of two texts alike nothing can be asked: so many in a row mean that the model always writes the same.
_MOST_ALIKE = 20
_HOW = "which is better? 1, 2, = for neither, q to stop asking: "
_PROMPTS = "give --data with prompts; or tune on what was answered: as many --questions as there are answers"


def with_answers(context: typer.Context, objective: Objective, options: TuneOptions) -> TuneOptions:
    """Return the options with a person's answers as rows to tune on, once those that are missing have been given.

    Args:
        context: of the command, which knows what was typed.
        objective: the one that asks, with `answers`, the file, and `questions`, how many there are to be.
        options: of the command; `data` has prompts.

    Raises:
        InputError: there is no file for the answers, or it holds something else, or no answer was given; or the model
            writes nothing that could be asked about.
    """
    asked: Any = objective.function
    if asked.answers is None:
        raise InputError("--answers does not say where your answers are kept", hint="--answers answers.jsonl")
    if options.task is not None:
        raise InputError("human asks about prompts, and a task has answers", hint="give --data with prompts")
    if launch_of() is not None:
        hint = f"start one process, or tune on the answers: zoreward tune preference --data {asked.answers}"
        raise InputError("one process asks, and several were started", hint=hint)
    path = Path(asked.answers)
    count = len(_kept(path))
    if count < asked.questions and not (options.dry_run or options.show_prompts):
        if os.path.realpath(options.data or "") == os.path.realpath(path):  # as in the config.yaml of such a run
            raise InputError(f"--data {options.data} has the answers, and no prompts to ask about", hint=_PROMPTS)
        if source_of(context, "temperature") in ("", "DEFAULT"):
            options = replace(options, temperature=1.0)
        for row in _asked(path, options, count, asked.questions):
            _append(row, path)
        gc.collect()  # the model: it is loaded again to be tuned
        count = len(_kept(path))
    if not count:
        raise InputError("there is no answer to tune on", hint="answer 1 or 2 at least once")
    print(printable(f"tuned on {count} answers, kept in {path}"), file=sys.stderr)
    # The answers' prompts are as they were rendered.
    own: dict[str, Any] = {"data": str(path), "data_config": None, "split": None, "revision": None, "limit": None}
    return replace(options, **own, template=None, prompt="prompt", choices=None, choice_column=None, answer=None)


def _kept(path: Path) -> list[dict[str, Any]]:
    """The answers in the file.

    Raises:
        InputError: it is none of answers, or cannot be made.
    """
    if path.suffix != ".jsonl":
        raise InputError(f"--answers {path} is no .jsonl file", hint="--answers answers.jsonl")
    if not os.path.lexists(path):
        check_folder(str(path.parent), "--answers", hint="give a file in a folder that can be written to")
        return []
    rows = load_rows(path) if path.stat().st_size else []
    for number, row in enumerate(rows, 1):
        if not set(_ROW) <= row.keys():
            hint = "give another file; a new one is made"
            raise InputError(f"--answers {path}: row {number} has no prompt, chosen and rejected", hint=hint)
    return rows


def _append(row: dict[str, Any], path: Path) -> None:
    """Add a line at once, so that what was answered stays; behind a file that an editor left without a last newline."""
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
        cut = file.read(1) not in (b"", b"\n")
        file.write(f"{chr(10) * cut}{json.dumps(row)}\n".encode())


def _asked(path: Path, options: TuneOptions, count: int, questions: int) -> Iterator[dict[str, Any]]:
    """Yield the missing answers as rows, until there are enough or the person stops."""
    print(printable(f"{questions - count} questions; each answer is kept in {path}"), file=sys.stderr)
    for example, texts in _texts(options, count):
        turns = [str(turn.get("content")) for turn in example.messages or ()]
        prompt = "\n".join(turns) if turns else example.prompt
        print(printable(f"\n[{count + 1} of {questions}] {prompt}"), file=sys.stderr)
        for place, text in enumerate(texts, 1):
            print(printable(f"\n  {place}: {text.strip()}"), file=sys.stderr)
        better = _answer()
        if better is None:
            return
        if better:
            yield _row(example, texts[better - 1], texts[2 - better])
            count += 1
        if count >= questions:
            return


def _answer() -> int | None:
    """1 or 2; 0 for neither; None where there is no more to be had."""
    while True:
        print(_HOW, end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        word = line.strip().lower()
        if not line or word in ("q", "quit"):
            print(file=sys.stderr)
            return None
        if word in ("1", "2", "="):
            return int(word.replace("=", "0"))


def _row(example: Example, chosen: str, rejected: str) -> dict[str, Any]:
    if example.messages is None:
        return {"prompt": example.prompt, "chosen": chosen, "rejected": rejected}
    turns = {
        name: [{"role": "assistant", "content": text}] for name, text in (("chosen", chosen), ("rejected", rejected))
    }
    return {"prompt": list(example.messages), **turns}


def _behind(example: Example, text: Completion, tokenizer: Any) -> str:
    """What was written, with the space in front of it: some tokenizers decode it only behind another token."""
    if example.messages is None:
        prompt, whole = (
            tokenizer.decode(tokens, skip_special_tokens=True)
            for tokens in (example.prompt_tokens, (*example.prompt_tokens, *text.tokens))
        )
        end = whole[len(prompt) :]
        if whole.startswith(prompt) and end.strip() == text.text.strip():
            return str(end)
    return text.text


def _texts(options: TuneOptions, first: int) -> Iterator[tuple[Example, list[str]]]:
    """Yield prompts, one after the other, each with two texts of the model's that differ."""
    prompting = part_of(Prompting, options)
    place: dict[str, Any] = {"config": options.data_config, "revision": options.revision, "split": options.split}
    rows = with_prompts(load_rows(str(options.data), limit=options.limit, **place), prompting)
    check_prompts(rows, prompting)
    device = select_device(options.device)
    quiet_transformers()
    from zoreward.scoring import check_needs, engine_of, generation_of, head_of, load_model, prompts_of

    trust: dict[str, Any] = {"trust_remote_code": options.trust_remote_code}
    head = head_of(options.model, **trust)
    check_needs("completions", head)
    examples, tokenizer = made_ready(rows, "completions", options, head)
    where: dict[str, Any] = {"dtype": options.dtype, "device": device, "device_map": options.device_map}
    model = load_model(options.model, **where, **trust).eval()
    engine, number, alike = engine_of(model, tokenizer.pad_token_id, tokenizer), first, 0
    while alike < _MOST_ALIKE:
        example = examples[number % len(examples)]
        seed = derive_seed(options.seed, number, SeedIndex.SAMPLING)
        [[texts]] = engine.generate([((), prompts_of([example, example]))], generation_of(options, seed))
        number += 1
        behind = [_behind(example, text, tokenizer) for text in texts]
        alike = alike + 1 if behind[0].strip() == behind[1].strip() or not all(behind) else 0
        if not alike:
            yield example, behind
    hint = "raise --temperature or --max-new-tokens, or give other prompts"
    raise InputError(f"the model wrote the same text twice, {alike} times in a row", hint=hint)
