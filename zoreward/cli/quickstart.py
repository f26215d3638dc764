"""`zoreward quickstart`: watch a language model get better by forward passes alone, with what is shipped."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from zoreward.cli.flags import command
from zoreward.cli.prepare import quiet_transformers
from zoreward.cli.printing import Outcome, report, show_table, unexpected
from zoreward.cli.saving import digest_of_rows, save_model
from zoreward.cli.tune import check_output, write_config
from zoreward.config import QuickstartOptions
from zoreward.data import load_rows
from zoreward.neighbours.of_transformers import silence_
from zoreward.records import ZorewardError, printable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from zoreward.trainer import ZOTrainer

SHIPPED = Path(__file__).parents[1] / "quickstart"  # made by benchmarks/quickstart/make.py
MODEL, TRAIN, HELDOUT = (str(SHIPPED / name) for name in ("model", "train.jsonl", "heldout.jsonl"))
OBJECTIVE = "accuracy"
PROMPT: dict[str, Any] = {"template": "{text} It was", "choices": [" bad", " good"]}
STEPS = QuickstartOptions.max_steps
# With half the ε, two batches of three scored the same on both sides and taught nothing; with this, one of three.
LOGGING: dict[str, Any] = {"logging_steps": 20}
SETTINGS: dict[str, Any] = {"per_device_train_batch_size": 32, "eps": 2e-2, "learning_rate": 5e-4}

YOURS = """\
zoreward tune accuracy --model facebook/opt-125m --data train.jsonl \\
    --eval-data dev.jsonl --template "{text} It was" --label label \\
    --choice " bad" --choice " good" --steps 500 --batch-size 64 \\
    --output runs/mine"""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Accuracy on the held-out rows, all between 0 and 1, and what the tuning took.

    Args:
        before: the shipped model, zero-shot.
        majority: always the more frequent label.
        threshold: the shipped model with one label-free threshold; see `above_median`.
        after: the tuned model.
        steps: of the tuning.
        seconds: that the tuning took, without loading and evaluating.
    """

    before: float
    majority: float
    threshold: float
    after: float
    steps: int
    seconds: float


def majority(references: Sequence[int]) -> float:
    """Return the accuracy of always giving the more frequent label.

    >>> majority([1, 0, 1, 1])
    0.75
    """
    return max(references.count(label) for label in set(references)) / len(references)


def above_median(logprobs: NDArray[Any], references: Sequence[int]) -> float:
    """Return the accuracy of label 1 for the rows whose log p(label 1) − log p(label 0) lies above the rows' median.

    A model may know the answer and only prefer one of the words: this takes the preference away, without labels.

    Args:
        logprobs: (N, 2), as an objective gets them.
        references: N right labels, 0 or 1.

    >>> import numpy as np
    >>> above_median(np.array([[-1.0, -9.0], [-1.0, -7.0], [-1.0, -5.0], [-1.0, -3.0]]), [0, 0, 1, 0])
    0.75
    """
    import numpy as np

    difference_N = logprobs[:, 1] - logprobs[:, 0]
    predictions_N = difference_N > np.median(difference_N)
    return float(np.mean(predictions_N == np.asarray(references)))


def make_trainer(output: Path, *, seed: int, steps: int) -> ZOTrainer:
    """Return a trainer of the shipped model on the shipped rows."""
    quiet_transformers()
    from zoreward.trainer import ZOConfig, ZOTrainer

    # On the CPU also where there are GPUs: the model is too small for them, and the result is the same everywhere.
    args = ZOConfig(
        str(output), **PROMPT, **SETTINGS, max_steps=steps, seed=seed, disable_tqdm=True, use_cpu=True, **LOGGING
    )
    trainer = ZOTrainer(MODEL, objective=OBJECTIVE, args=args, train_dataset=load_rows(TRAIN))
    silence_(trainer)
    return trainer


def compare(trainer: ZOTrainer) -> Comparison:
    """Evaluate, tune while showing it, and evaluate again."""
    from zoreward.cli.progress import ProgressCallback
    from zoreward.scoring import evaluate

    rows = load_rows(HELDOUT)

    def score(objective: str | Callable[..., float]) -> float:
        return evaluate(trainer.model, objective, rows, tokenizer=trainer.processing_class, **PROMPT).score

    share = majority([row["label"] for row in rows])
    progress = ProgressCallback(trainer)
    trainer.add_callback(progress)
    with _one_thread():
        before, threshold = score(OBJECTIVE), score(above_median)
        start = time.perf_counter()
        with progress:
            trainer.train()
        seconds = round(time.perf_counter() - start, 3)
        return Comparison(before, share, threshold, score(OBJECTIVE), trainer.state.global_step, seconds)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch work with one thread: for so small a model two are not faster, and on a busy machine far slower."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def make_command() -> Callable[..., int]:
    """Return the command."""
    return command(_quickstart, QuickstartOptions)


def _quickstart(context: typer.Context, options: QuickstartOptions) -> Outcome | int:
    with contextlib.ExitStack() as stack:
        if options.output is not None:
            check_output(options.output)
        print("Loading a tiny language model that ships with zoreward …")
        output = Path(options.output or stack.enter_context(tempfile.TemporaryDirectory(prefix="zoreward-")))
        trainer = make_trainer(output, seed=options.seed, steps=options.max_steps)
        if options.output is not None:
            fixed = {"objective": OBJECTIVE, "model": MODEL, "data": TRAIN, "device": "cpu"}
            given = {"max_steps": options.max_steps, "seed": options.seed, "output": options.output}
            write_config(output, {**fixed, **PROMPT, **SETTINGS, **LOGGING, **given})
        print(_what_happens(trainer))
        try:
            comparison = compare(trainer)
            if options.output is not None:
                rows = digest_of_rows([example.row for example in trainer.train_dataset], None, None, None)
                save_model(trainer, output, keep="last", rows=rows)
        except Exception as error:
            return report(error if isinstance(error, ZorewardError) else unexpected(error), code=1)
    if options.json:
        _show(comparison, options)
    return Outcome(asdict(comparison), lambda: _show(comparison, options))


def _what_happens(trainer: ZOTrainer) -> str:
    weights = sum(weight.numel() for weight in trainer.model.parameters())
    return (
        f"Tuning its {weights:,} weights on the accuracy over {len(trainer.train_dataset)} restaurant reviews, was it "
        f"bad or good: {trainer.args.max_steps} steps of forward passes, no gradient."
    )


def _show(comparison: Comparison, options: QuickstartOptions) -> None:
    from rich.console import Console

    console = Console()
    rows = [
        ("always the more frequent answer", f"{comparison.majority:.1%}"),
        ("before, zero-shot", f"{comparison.before:.1%}"),
        ("before, with one threshold (the median)", f"{comparison.threshold:.1%}"),
        (f"after {comparison.steps} steps, {comparison.seconds:.0f} s", f"{comparison.after:.1%}"),
    ]
    show_table(("held-out reviews", "accuracy"), rows, console=console, is_last_bold=True)
    where = f"The run and the tuned model are in {options.output}.\n" if options.output is not None else ""
    text = f"{where}The same for your own model and rows:\n\n{YOURS}\n"
    console.print(printable(text), markup=False, highlight=False, soft_wrap=True)
