"""Contract under test: a `Run` alone does what `ZOTrainer` does with it: the same weights and journal, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase, TrainerCallback

from conftest import random_model
from zoreward.journal import Journal
from zoreward.members import tuned_weights
from zoreward.scoring import scorer_of
from zoreward.trainer import Run, ZOConfig, ZOTrainer

ROWS = [{"text": f"{word} film", "label": n % 2} for n, word in enumerate("good bad great awful lovely dull".split())]


class Batches(TrainerCallback):
    """Keeps the rows of each step."""

    def __init__(self) -> None:
        self.rows: list[Any] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.rows.append(self.trainer.last_rows)  # type: ignore[attr-defined]


def made(folder: Path, tokenizer: PreTrainedTokenizerBase, **changes: Any) -> tuple[ZOTrainer, Batches]:
    settings = {"max_steps": 5, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "eps": 1e-2, **changes}
    args = ZOConfig(str(folder), use_cpu=True, disable_tqdm=True, template="{text} it was",
                    choices=[" not", " very"], **settings)  # fmt: skip
    seen = Batches()
    seen.trainer = ZOTrainer(  # type: ignore[attr-defined]
        random_model("llama"), objective="neg-cross-entropy", args=args, train_dataset=ROWS,
        processing_class=tokenizer, callbacks=[seen],
    )  # fmt: skip
    return seen.trainer, seen  # type: ignore[attr-defined]


def steps_in(folder: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / "journal.jsonl").read_text().splitlines())
    return [{**line, "crc": ""} for line in lines if line["kind"] == "step"]


@pytest.mark.parametrize("method", [{"num_directions": 2, "weight_decay": 0.1}, {"method": "svrg", "full_every": 2}])
def test_a_run_alone_does_what_the_trainer_does(
    method: dict[str, Any], tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    trainer, seen = made(tmp_path / "trainer", tokenizer, **method)
    trainer.train()

    model = random_model("llama").eval().requires_grad_(False)
    engine = scorer_of(model, tokenizer, trainer.objective, trainer.scorer.generation, tuned=tuned_weights(model))
    header = {"fingerprint": "ab" * 32, "dtype": "float32", "streams": engine.reader.tuned.streams}
    with Journal(tmp_path / "alone", header) as journal:
        run = Run(engine, trainer.method, trainer.train_dataset, journal, batches=seen.rows)
        steps = list(run)

    assert [step.record.step for step in steps] == [0, 1, 2, 3, 4]
    assert run.state == trainer.method_state and run.last is steps[-1]
    assert steps_in(tmp_path / "alone") == steps_in(tmp_path / "trainer")
    for name, weight in trainer.model.named_parameters():
        assert torch.equal(weight, model.get_parameter(name)), name


def test_a_step_that_fails_leaves_the_run_where_it_was(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    trainer, _ = made(tmp_path / "run", tokenizer)
    run, before = trainer.run, {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    rows = trainer.train_dataset[:2]

    def full(record: object) -> None:
        raise OSError("no space left on device")

    run.journal = type("Full", (), {"append": staticmethod(full)})()
    step = run.ask_score_tell(rows)
    with pytest.raises(OSError, match="no space"):
        run.journal_and_apply(step)
    assert run.state == trainer.method.init() and run.last is None
    assert all(torch.equal(weight, before[name]) for name, weight in trainer.model.named_parameters())
