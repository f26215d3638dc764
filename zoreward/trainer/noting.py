"""What a run notes beside its journal, for people to look at: who it was, how long it took, what the dev rows got."""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers.utils import logging

from zoreward.journal.notes import append_note
from zoreward.members import has_adapter
from zoreward.neighbours.of_transformers import tensorboard_writers
from zoreward.records import Example, Scored, Writing, one_line
from zoreward.registry import Objective
from zoreward.scoring.certainty import error_of_mean, row_scores
from zoreward.scoring.requests import have_same_answers
from zoreward.trainer.resuming import rows_told
from zoreward.trainer.window import completion_rows

if TYPE_CHECKING:
    from zoreward.trainer.loop import ZOTrainer

# Of texts so many rows are kept, of a text so many characters; and a table of so many classes at most.
TEXTS, PROMPT, COMPLETION, CLASSES = 8, 800, 1600, 40
# Lines of a table that is shown as text.
SHOWN = 16


@contextlib.contextmanager
def noted(trainer: ZOTrainer) -> Iterator[None]:
    """Note who a run is before the block, and how long it took behind it."""
    first, start, folder = trainer.method_state.step, time.perf_counter(), trainer.args.output_dir
    weights = trainer.scorer.reader.tuned.weights.values()
    model = trainer.model.get_base_model() if has_adapter(trainer.model) else trainer.model
    session = {
        "command": trainer.provenance.get("command"),
        "found": trainer.found and str(trainer.found),
        "rows": rows_told(trainer.train_dataset, trainer.eval_dataset, trainer.provenance),  # type: ignore[arg-type]
        "tuned": sum(weight.numel() for weight in weights),
        "weights": sum(weight.numel() for weight in trainer.model.parameters()),
        "model_class": type(model).__name__,
        "adapter": has_adapter(trainer.model),
        "device": str(trainer.args.device),
        "max_steps": trainer.args.max_steps,
    }
    append_note(folder, "session", session)
    try:
        yield
    finally:
        seconds = round(time.perf_counter() - start, 3)
        if steps := trainer.method_state.step - first:
            append_note(folder, "end", {"seconds": seconds, "first": first, "steps": steps})


def answers_of(objective: Objective, examples: Sequence[Example], scored: Scored, *, texts: bool) -> dict[str, Any]:
    """Return what became of the dev rows, in little room.

    `standard_error` of the score, where it is a mean over rows; of choices that all rows have, `choices` and
    `confusion`, how many rows of each right answer (row) were given each answer (column); of texts `texts`, the first
    rows' prompts, completions and scores.

    Args:
        objective: what the rows were scored by.
        examples: the rows.
        scored: what came of them.
        texts: whether texts may be kept.
    """
    try:
        found: dict[str, Any] = {}
        of_rows = row_scores(objective, scored)
        if (error := error_of_mean(of_rows or ())) is not None:
            found["standard_error"] = error
        if isinstance(scored, Writing):
            if texts:
                rows = zip(examples, scored.completions, of_rows or [None] * len(examples), strict=True)
                names = ("prompt", "completion", "score")
                kept = [(row.prompt[-PROMPT:], text.text[:COMPLETION], score) for row, text, score in rows][:TEXTS]
                found["texts"] = [dict(zip(names, one, strict=True)) for one in kept]
        elif objective.needs == "choices" and scored.logprobs_NC is not None and have_same_answers(examples):
            choices = examples[0].candidates
            if 1 < len(choices) <= CLASSES and all(example.reference >= 0 for example in examples):
                found["choices"] = list(choices)
                confusion_CC = np.zeros((len(choices), len(choices)), dtype=int)
                chosen_N = np.argmax(scored.logprobs_NC[:, : len(choices)], axis=1)
                np.add.at(confusion_CC, ([example.reference for example in examples], chosen_N), 1)
                found["confusion"] = confusion_CC.tolist()
        return found
    except Exception as error:  # a row that is not what it should be: the run does not need this
        logging.get_logger(__name__).warning("The dev rows' answers are not kept: %s.", one_line(error))
        return {}


def send_completions(trainer: ZOTrainer) -> None:
    """Send the table of what the last step's members wrote to where a run is logged, as TRL's trainers do.

    Weights & Biases and Trackio get all of it; TensorBoard, whose pages show it as text, the best member's lines.

    Args:
        trainer: of the run, behind a step.
    """
    table = completion_rows(trainer.last_rows, trainer.last_scored)
    for name in ("wandb", "trackio"):
        if name in trainer.args.report_to:
            logger = importlib.import_module(name)  # the callback of this name has imported it
            if getattr(logger, "run", logger) is not None:
                import pandas

                logger.log({"completions": logger.Table(dataframe=pandas.DataFrame(table))})
    for writer in tensorboard_writers(trainer.callback_handler.callbacks):
        best = [line for line in table if line["member"] == table[0]["member"]][:SHOWN]
        if best:
            writer.add_text("completions", _as_markdown(best), trainer.state.global_step)


def _as_markdown(table: Sequence[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for line in table for name in line))
    lines: list[list[Any]] = [names, ["---"] * len(names), *([line.get(name) for name in names] for line in table)]
    cells = [[one_line(cell, COMPLETION).replace("|", "\\|").replace("<", "&lt;") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
