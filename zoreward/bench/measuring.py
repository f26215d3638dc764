"""One run of a table."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from zoreward.bench.plan import METHODS, Plan, Run, objectives_of
from zoreward.bench.tuning import Best, Looking, Meter, adamw_step, batches, is_due
from zoreward.config import DEFAULTS
from zoreward.data import without_content
from zoreward.neighbours.of_transformers import silence_
from zoreward.records import Evaluation, Example, NoRoomError
from zoreward.scoring import (
    engine_of,
    evaluate,
    examples_of,
    generation_of,
    length_limit,
    load_model,
    load_tokenizer,
    probe_scores,
    scores_of,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Result = dict[str, Any]
Rows = Sequence[dict[str, Any]]


def do_run(run: Run, plan: Plan, folder: Path, threads: int | None = None) -> Result:
    """Do one run.

    Args:
        run: which.
        plan: without test rows where the run chooses.
        folder: for what a run writes; removed at its end.
        threads: of torch; None: its own choice.

    Returns:
        `dev` and, unless it chooses, `test`; `shown`, rows that went through the model forwards to tune it, and
        `backward`, those that went backwards too; `seconds` of tuning, `peak` bytes of GPU memory; `step`, after which
        the weights were kept, and `curve`, the dev scores. Only `error` where it did not fit the memory.

    Raises:
        ZorewardError: something does not fit together.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    method = METHODS[run.method]
    try:
        if method.kind == "mezo":
            return _mezo(run, plan, folder)
        return {"majority": _majority, "score": _scored, "probe": _probe, "adamw": _adamw}[method.kind](run, plan)
    except NoRoomError as error:
        return {"error": f"out of memory: {error}"}
    except torch.OutOfMemoryError:
        return {"error": "out of memory"}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def threads_for(jobs: int) -> int | None:
    """Return how many threads each of so many runs side by side has; None: as many as torch likes."""
    return None if jobs == 1 else max(1, (os.cpu_count() or 1) // jobs)


def _majority(run: Run, plan: Plan) -> Result:
    """The most frequent answer of the rows to tune on, given always.

    Where rows have answers of their own it is that of the row's own which was right most often; where none of them ever
    was, the one in the place that was.
    """
    metric, _ = objectives_of(plan.task)
    train = _examples(plan, plan.rows.train, "metric")
    texts = Counter(example.candidates[example.reference] for example in train)
    places = Counter(example.reference for example in train)
    scores = {}
    for name in ("dev", "test"):
        examples = _examples(plan, getattr(plan.rows, name), "metric")
        table = np.full((len(examples), max(len(example.candidates) for example in examples)), -np.inf)
        for line, example in zip(table, examples, strict=True):
            often = [(texts[text], places[place]) for place, text in enumerate(example.candidates)]
            line[often.index(max(often))] = 0.0
        scores[name] = scores_of(metric, examples, [table])[0].score
    return {**scores, "shown": 0, "seconds": 0.0, "peak": None}


def _scored(run: Run, plan: Plan) -> Result:
    """A model as it is: zero-shot, with demonstrations, or calibrated."""
    model, tokenizer = _loaded(plan), _tokenizer(plan)
    options: Result = {}
    if run.method == "shots":
        options = {"shots": plan.settings.shots, "shot_rows": plan.rows.train}
    if run.method == "calibrated":
        free = plan.task.content_free
        options = {"content_free": without_content(plan.task.template) if free is None else free}
    meter = Meter(next(model.parameters()).device)
    meter.start()
    dev, test = (_score(model, tokenizer, plan, rows, run.seed, **options) for rows in (plan.rows.dev, plan.rows.test))
    meter.stop()
    result = {"dev": dev.score, "test": test.score, "shown": 0, "seconds": meter.seconds, "peak": meter.peak}
    if run.method == "shots":
        examples = _examples(plan, plan.rows.test, "metric", shots=plan.settings.shots, seed=run.seed)
        result["shots"] = sum(example.shots for example in examples) / len(examples)
    return result


def _probe(run: Run, plan: Plan) -> Result:
    model, tokenizer = _loaded(plan), _tokenizer(plan)
    reader = engine_of(model, tokenizer.pad_token_id)
    train, dev, test = (_examples(plan, rows, "metric") for rows in (plan.rows.train, plan.rows.dev, plan.rows.test))
    metric, _ = objectives_of(plan.task)
    meter = Meter(next(model.parameters()).device)
    meter.start()
    scores = [scored.score for scored in probe_scores(reader, metric, train, (dev, test))]
    meter.stop()
    return {"dev": scores[0], "test": scores[1], "shown": len(train), "seconds": meter.seconds, "peak": meter.peak}


def _mezo(run: Run, plan: Plan, folder: Path) -> Result:
    from zoreward.trainer import ZOConfig, ZOTrainer

    method, settings = METHODS[run.method], plan.settings
    defaults = DEFAULTS["answers", method.tune]  # MeZO's, whatever the objective needs
    metric, smooth = objectives_of(plan.task)
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was cut off
    args = ZOConfig(
        str(folder),
        max_steps=settings.steps,
        learning_rate=run.rate,
        eps=settings.eps.get(run.method, method.eps or defaults["eps"]),
        noise=defaults["noise"],
        num_directions=defaults["num_directions"],
        normalize=defaults["normalize"],
        tune=method.tune,
        per_device_train_batch_size=settings.batch_size,
        seed=run.seed,
        dtype=settings.dtype,
        trust_remote_code=settings.trust_remote_code,
        use_cpu=settings.device == "cpu",
        completions_every=0,
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        **vars(plan.task.writing),
        **vars(plan.prompting),
    )
    objective = metric if method.metric or smooth is None else smooth
    trainer = ZOTrainer(plan.model, objective=objective, args=args, train_dataset=plan.rows.train)
    silence_(trainer)
    trainer.keeper.judges_silence = False  # a table shows such a run as what it is
    model, tokenizer, meter = trainer.model, trainer.processing_class, Meter(args.device)
    best = Best(
        trainer.scorer.reader.tuned.weights, lambda: _score(model, tokenizer, plan, plan.rows.dev, run.seed).score
    )
    trainer.add_callback(Looking(best, meter, settings.eval_every))
    trainer.train()
    steps = trainer.method_state
    forward_rows = 2 * sum(map(len, batches(len(plan.rows.train), settings.batch_size, settings.steps, run.seed)))
    result = {"shown": forward_rows, "silent": steps.silent / max(1, steps.step)}
    return {**_ended(run, plan, model, tokenizer, best, meter), **result}


def _adamw(run: Run, plan: Plan) -> Result:
    settings = plan.settings
    _, smooth = objectives_of(plan.task)
    needs = "choices" if smooth is None else smooth.needs
    # Steps of AdamW are below half a unit in the last place of bfloat16.
    model, tokenizer = _loaded(plan, dtype="float32"), _tokenizer(plan)
    examples = _examples(plan, plan.rows.train, "smooth")
    reader = engine_of(model, tokenizer.pad_token_id)
    weights = dict(reader.tuned.weights)
    optimizer = torch.optim.AdamW(weights.values(), lr=run.rate or 0.0, weight_decay=0.0)
    best = Best(weights, lambda: _score(model, tokenizer, plan, plan.rows.dev, run.seed).score)
    meter = Meter(next(model.parameters()).device)
    forward_rows = 0
    meter.start()
    for step, rows in enumerate(batches(len(examples), settings.batch_size, settings.steps, run.seed), start=1):
        adamw_step(optimizer, reader, [examples[n] for n in rows], needs)
        forward_rows += len(rows)
        if is_due(step, settings.eval_every, settings.steps):
            meter.stop()
            best.look(step)
            meter.start()
    meter.stop()
    return {**_ended(run, plan, model, tokenizer, best, meter), "shown": forward_rows, "backward": forward_rows}


def _ended(run: Run, plan: Plan, model: Any, tokenizer: Any, best: Best, meter: Meter) -> Result:
    """What is told of a tuned model; the test rows are scored with the weights that the dev rows chose."""
    result = {"dev": best.dev, "step": best.step, "curve": best.curve, "seconds": meter.seconds, "peak": meter.peak}
    if not run.chooses:
        best.put_back()
        result["test"] = _score(model, tokenizer, plan, plan.rows.test, run.seed).score
    return result


def _score(model: Any, tokenizer: Any, plan: Plan, rows: Rows, seed: int, **options: Any) -> Evaluation:
    """The score of a model by the task's metric."""
    return evaluate(
        model,
        objectives_of(plan.task)[0],
        rows,
        tokenizer=tokenizer,
        seed=seed,
        generation=generation_of(plan.task.writing, seed),
        **vars(plan.prompting) | options,
    )


def _examples(plan: Plan, rows: Rows, what: str, shots: int = 0, seed: int = 0) -> list[Example]:
    """Rows made ready for the task's metric, or for the smooth objective that it tunes on."""
    metric, smooth = objectives_of(plan.task)
    objective = metric if what == "metric" or smooth is None else smooth
    prompting, trust = plan.prompting, plan.settings.trust_remote_code
    limit = length_limit(prompting.max_length, plan.model, trust_remote_code=trust)
    prompting = replace(prompting, max_length=limit, shots=shots)
    new = plan.task.writing.max_completion_length
    return examples_of(rows, _tokenizer(plan), objective.needs, prompting, max_new_tokens=new, seed=seed)


def _loaded(plan: Plan, dtype: str | None = None) -> PreTrainedModel:
    settings = plan.settings
    return load_model(
        plan.model,
        dtype=dtype or settings.dtype,
        device=settings.device,
        trust_remote_code=settings.trust_remote_code,
    )


def _tokenizer(plan: Plan) -> Any:
    return load_tokenizer(plan.model, trust_remote_code=plan.settings.trust_remote_code)
