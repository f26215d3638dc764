"""One run of a table."""

from __future__ import annotations

import gc
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from zoreward.bench.plan import METHODS, Plan, Run, objectives_of
from zoreward.bench.tuning import Best, Looking, Meter, adamw_step, batches
from zoreward.config import DEFAULTS
from zoreward.data import without_content
from zoreward.neighbours.of_transformers import silence_
from zoreward.records import Evaluation, Example, InputError, NoRoomError, ObjectiveError
from zoreward.scoring import (
    checked_device,
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
from zoreward.scoring.devices import first_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Result = dict[str, Any]
Rows = Sequence[dict[str, Any]]


def do_run(run: Run, plan: Plan, folder: Path, threads: int | None = None) -> Result:
    """Do one run, with the model that the run before it had where they can share one; see `forget_model`.

    Args:
        run: which.
        plan: the task, the model and the rows.
        folder: for what a run writes; removed at its end.
        threads: of torch; None: its own choice.

    Returns:
        `dev` and `test`; `shown`, rows that went through the model forwards to tune it, and `backward`, those that went
        backwards too; `seconds` of tuning, `peak` bytes of GPU memory; of a method that tunes `rate`, `eps`, whether
        they were `found`, or are a `guess`, the dev score of each rate that was `tried`, `step`, after which the
        weights were kept, and `curve`, the dev scores. Only `error` where it did not fit the memory.

    Raises:
        ZorewardError: something does not fit together.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    kind = METHODS[run.method].kind
    try:
        if kind in ("zo", "adamw"):
            return _tuned(run, plan, folder)
        return {"majority": _majority, "score": _scored, "probe": _probe}[kind](run, plan)
    except BaseException as error:
        forget_model()  # nobody knows how it stands
        if isinstance(error, NoRoomError | torch.OutOfMemoryError):
            return {"error": f"out of memory: {error}" if isinstance(error, NoRoomError) else "out of memory"}
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        gc.collect()  # a trainer and its callbacks hold each other
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@lru_cache(maxsize=1)
def _in_memory(name: str, dtype: str | None, device: str | None, trust: bool) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A model, and a copy of its weights in the computer's memory, from which each run gets them back."""
    forget_model()  # for two at a time there may be no room
    model = load_model(name, dtype=dtype, device=device, trust_remote_code=trust)
    return model, {name: weight.detach().to("cpu", copy=True) for name, weight in _weights_of(model)}


def forget_model() -> None:
    """Free the memory of the model that runs share."""
    _in_memory.cache_clear()


def _weights_of(model: PreTrainedModel) -> list[tuple[str, torch.Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


@torch.no_grad()
def _loaded(plan: Plan, dtype: str | None = None) -> PreTrainedModel:
    """The model as it was loaded, bit for bit, whatever runs before have done to it."""
    settings = plan.settings
    name = os.path.abspath(plan.model) if os.path.isdir(plan.model) else plan.model
    dtype = dtype or settings.dtype
    if dtype is None and checked_device(settings.device or first_device()).type == "cpu":
        dtype = "float32"  # by name, as AdamW asks for it
    model, weights = _in_memory(name, dtype, settings.device, settings.trust_remote_code)
    for name, weight in _weights_of(model):
        weight.copy_(weights[name])
    return model.eval()


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


@dataclass(frozen=True, slots=True)
class _Tuning:
    """A model that stands at its base weights, and how it is tuned.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        weights: those that are tuned, by name.
        train: tunes them; says what rate was taken.
    """

    model: Any
    tokenizer: Any
    weights: Mapping[str, torch.Tensor]
    train: Any


def _tuned(run: Run, plan: Plan, folder: Path) -> Result:
    """A method that tunes: by every rate, by which the dev rows choose one, as they choose a step of each."""
    rates, tried = run.rates or (None,), list[tuple[float, float | None]]()
    best, result, problem = None, Result(), None
    prepared = _adamw if METHODS[run.method].kind == "adamw" else _zo
    with ExitStack() as stack:
        for rate in rates:
            stack.close()
            tuning = stack.enter_context(prepared(run, plan, rate, folder))
            meter = Meter(next(tuning.model.parameters()).device)
            looks = Best(tuning.weights, _scorer(tuning, plan, plan.rows.dev, run.seed), best.dev if best else None)
            try:
                found = tuning.train(looks, meter)
            except ObjectiveError as error:  # the outputs of the model are not finite any more
                problem, dev = error, None
            else:
                dev = looks.dev
                if best is None or dev > best.dev:
                    best, result = looks, {**found, **meter.measured, "step": looks.step, "curve": looks.curve}
            if rate is not None:
                tried.append((rate, dev))
        if best is None:
            assert problem is not None
            raise problem
        if result["rate"] != rates[-1] is not None:
            stack.close()
            tuning = stack.enter_context(prepared(run, plan, result["rate"], folder))
        best.put_back(tuning.weights)
        test = _scorer(tuning, plan, plan.rows.test, run.seed)()
    return {"dev": best.dev, "test": test, "tried": tried, **result}


def _scorer(tuning: _Tuning, plan: Plan, rows: Rows, seed: int) -> Any:
    return lambda: _score(tuning.model, tuning.tokenizer, plan, rows, seed).score


@contextmanager
def _zo(run: Run, plan: Plan, rate: float | None, folder: Path) -> Iterator[_Tuning]:
    from zoreward.trainer import ZOTrainer

    method = METHODS[run.method]
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was cut off, or the rate before
    metric, smooth = objectives_of(plan.task)
    objective = metric if method.metric or smooth is None else smooth
    args = _config(run, plan, rate, folder)
    trainer = ZOTrainer(_loaded(plan), objective=objective, args=args, train_dataset=plan.rows.train)
    silence_(trainer)
    trainer.keeper.judges_silence = False  # a table shows such a run as what it is

    def train(best: Best, meter: Meter) -> Result:
        trainer.add_callback(Looking(best, meter, plan.settings.eval_every, trainer))
        meter.start()
        try:
            trainer.train()
        except InputError as error:
            if args.max_forwards is None:
                raise
            dev = f"; of --max-forwards {plan.settings.forwards} the others are for dev scores"
            raise InputError(f"{error}{dev}", hint=error.hint) from error
        meter.stop()
        state, taken, found = trainer.method_state, trainer.args, trainer.found
        meter.shown += found.rows if found else 0
        told: Result = {"rate": taken.learning_rate, "eps": taken.eps, "found": found is not None}
        told |= {"guess": True} if found is not None and not found.converged else {}
        return {**told, "steps": state.step, "silent": state.silent / max(1, state.step)}

    try:
        yield _Tuning(trainer.model, trainer.processing_class, trainer.scorer.reader.tuned.weights, train)
    finally:
        if method.tune == "lora":
            trainer.model.unload()  # which leaves the base as it was


def _config(run: Run, plan: Plan, rate: float | None, folder: Path) -> Any:
    """The options of a run: those of `zoreward tune` where nothing is said, or MeZO's."""
    from zoreward.trainer import ZOConfig

    method, settings = METHODS[run.method], plan.settings
    options: Result = {"method": method.method}
    if method.method is None:  # MeZO, whatever the objective needs
        mezo = DEFAULTS["answers", method.tune]
        options = {"method": "spsa", **{name: mezo[name] for name in ("noise", "num_directions")}}
        options |= {} if rate is None else {"normalize": mezo["normalize"], "eps": mezo["eps"]}
    if run.method in settings.eps:
        options["eps"] = settings.eps[run.method]
    return ZOConfig(
        str(folder),
        **options,
        max_steps=settings.steps or -1,
        max_forwards=_for_steps(plan),
        learning_rate=rate,
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


def _for_steps(plan: Plan) -> int | None:
    """The forward passes of a run that its dev scores leave: four, or as often as is asked for.

    Raises:
        InputError: they leave none.
    """
    settings = plan.settings
    if settings.forwards is None:
        return None
    looks = -(-settings.steps // settings.eval_every) if settings.steps and settings.eval_every else 4
    for_looks = looks * -(-len(plan.rows.dev) // settings.batch_size)
    if for_looks >= settings.forwards:
        hint = f"{looks} dev scores alone take {for_looks}; or score fewer dev rows: --dev-rows"
        raise InputError(f"--max-forwards {settings.forwards} does not pay for one step", hint=hint)
    return settings.forwards - for_looks


# What a step of AdamW takes: once forwards, and backwards, which costs twice as much.
_ADAMW_FORWARDS = 3


@contextmanager
def _adamw(run: Run, plan: Plan, rate: float | None, folder: Path) -> Iterator[_Tuning]:
    settings = plan.settings
    _, smooth = objectives_of(plan.task)
    needs = "choices" if smooth is None else smooth.needs
    # Steps of AdamW are below half a unit in the last place of bfloat16.
    model, tokenizer = _loaded(plan, dtype="float32"), _tokenizer(plan)
    examples = _examples(plan, plan.rows.train, "smooth")
    reader = engine_of(model, tokenizer.pad_token_id)
    weights = dict(reader.tuned.weights)
    paid = _for_steps(plan)
    steps = min(settings.steps or paid, paid // _ADAMW_FORWARDS) if paid else settings.steps
    if not steps:
        raise InputError(f"--max-forwards {settings.forwards} does not pay for one step", hint="give more of them")

    def train(best: Best, meter: Meter) -> Result:
        for weight in weights.values():
            weight.requires_grad_(True)  # a run along directions leaves it off
        optimizer = torch.optim.AdamW(weights.values(), lr=rate or 0.0, weight_decay=0.0)
        meter.start()
        for step, rows in enumerate(batches(len(examples), settings.batch_size, steps, run.seed), start=1):
            adamw_step(optimizer, reader, [examples[n] for n in rows], needs)
            meter.shown += len(rows)
            meter.backward += len(rows)
            best.look_if_due(step, settings.eval_every, steps, meter)
        meter.stop()
        return {"rate": rate, "steps": steps}

    yield _Tuning(model, tokenizer, weights, train)


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


def _tokenizer(plan: Plan) -> Any:
    return load_tokenizer(plan.model, trust_remote_code=plan.settings.trust_remote_code)
