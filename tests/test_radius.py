"""Contract under test: the ε and the learning rate that a run finds follow from what random moves change."""

from __future__ import annotations

import functools
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from conftest import random_model
from zoreward.journal import load_run
from zoreward.journal.replaying import replay
from zoreward.methods import SPSA
from zoreward.noise import canonical_name, definition, stream_of
from zoreward.records import InputError
from zoreward.scoring import LocalEngine
from zoreward.trainer import ZOConfig, ZOTrainer
from zoreward.trainer.radius import _radius, told_of_pace

pytestmark = pytest.mark.usefixtures("trials_are_kept")

WORDS = "good bad great awful lovely dull fine poor rich flat warm cold".split()
ROWS = [{"text": f"{word} film", "label": n % 2} for n, word in enumerate(WORDS)]
CHOICES = {"template": "{text} it was", "choices": [" not", " very"]}


def made(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    objective: Any = "neg-cross-entropy",
    dev: Any = None,
    **changes: Any,
) -> Any:
    settings = {"max_steps": 4, "per_device_train_batch_size": 4, **CHOICES, **changes}
    args = ZOConfig(str(folder), use_cpu=True, disable_tqdm=True, **settings)
    model, rows = random_model("llama", 1), {"train_dataset": ROWS, "eval_dataset": dev}
    return ZOTrainer(model, objective=objective, args=args, **rows, processing_class=tokenizer)


GOOD, BAD = "good great lovely bright".split(), "bad awful dull terrible".split()
PAIRS = [
    {"prompt": f"{the} film was", "chosen": f" {good} {good}{end}", "rejected": f" {bad} and {bad}{end}"}
    for the in ("this", "the")
    for good, bad in zip(GOOD, BAD, strict=True)
    for end in ("", " film")
]


def made_of_pairs(folder: Path, tokenizer: Any, objective: str = "preference", copies: int = 1, **changes: Any) -> Any:
    settings = {"max_steps": 3, "per_device_train_batch_size": 8, **changes}
    args, sets = ZOConfig(str(folder), use_cpu=True, disable_tqdm=True, **settings), (PAIRS[:8] * copies, PAIRS[8:])
    rows = dict(zip(("train_dataset", "eval_dataset"), sets, strict=True))
    return ZOTrainer(random_model("llama", 1), objective=objective, args=args, **rows, processing_class=tokenizer)


def change_by_hand(trainer: Any, radius: float, directions: int) -> float:
    """KL between the two answers of θ and of θ + r z, the shift that all rows share aside: by moving whole copies."""
    model = random_model("llama", 1).eval()
    tokens = [example.prompt_tokens for example in trainer.train_dataset]
    answers = [tokens[0] for tokens in trainer.train_dataset[0].candidate_tokens]
    named = {canonical_name(name): weight.data for name, weight in model.named_parameters()}
    base = {name: weight.clone() for name, weight in named.items()}

    def margins() -> np.ndarray:
        with torch.no_grad():
            logits = [model(torch.tensor([prompt])).logits[0, -1, answers].double() for prompt in tokens]
        return np.array([float(row[1] - row[0]) for row in logits])

    before, changes = margins(), []
    for number in range(directions):
        for name, weight in named.items():
            z = definition.normal(10_000 + number, stream_of(name), 0, weight.numel())
            weight.copy_(base[name] + radius * torch.from_numpy(z).view_as(weight))
        shift = margins() - before
        p, q = (1 / (1 + np.exp(-m)) for m in (before, before + shift - shift.mean()))
        changes.append(float((p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean()))
    return float(np.mean(changes))


def test_random_moves_of_the_radius_change_a_choice_by_as_much_as_said(tmp_path: Path, tokenizer: Any) -> None:
    trainer = made(tmp_path, tokenizer)
    trainer.train()
    found = trainer.found
    assert found.converged and found.nats == 0.01
    # KL grows with the square of the radius. The mean of 8 directions scatters by a quarter or so here, that of 24
    # others by less: a factor of 2 is more than three standard errors.
    assert 0.005 < change_by_hand(trainer, found.radius, 24) < 0.02
    # As many steps as there are, of one direction: signs that mean nothing lead 1.5 radii away.
    assert found.eps == found.radius
    assert math.isclose(found.learning_rate * math.sqrt(4), 1.5 * found.radius, rel_tol=0.005)


def test_a_text_loses_as_much_of_its_log_probability_as_said(tmp_path: Path, tokenizer: Any) -> None:
    def length(completions: list[str], **columns: Any) -> list[float]:
        return [float(len(text)) for text in completions]

    trainer = made(tmp_path, tokenizer, length, choices=None, max_completion_length=6, num_directions=4)
    trainer.train()
    found = trainer.found
    assert found.nats == 0.2 and found.converged
    eps, loss = found.looks[-1]
    assert 0.25 <= loss / 0.2 * (found.radius / eps) ** 2 <= 4
    assert math.isclose(found.learning_rate, 1.5 * found.radius * math.sqrt(4 / 4), rel_tol=0.005)


def ratios_by_hand(trainer: Any, radius: float, directions: int) -> tuple[np.ndarray, np.ndarray]:
    """log π(y|x) of θ + r z less that of θ, of each answer and direction, by moving whole copies; and its tokens."""
    model = random_model("llama", 1).eval()
    answers = [(one.prompt_tokens, own) for one in trainer.train_dataset for own in one.candidate_tokens]
    named = {canonical_name(name): weight.data for name, weight in model.named_parameters()}
    base = {name: weight.clone() for name, weight in named.items()}

    def sums() -> list[float]:
        with torch.no_grad():
            tables = [model(torch.tensor([[*x, *y]])).logits[0].double().log_softmax(-1) for x, y in answers]
        return [
            sum(float(table[len(x) - 1 + t, token]) for t, token in enumerate(y))
            for table, (x, y) in zip(tables, answers, strict=True)
        ]

    before, moved = np.array(sums()), []
    for number in range(directions):
        for name, weight in named.items():
            z = definition.normal(10_000 + number, stream_of(name), 0, weight.numel())
            weight.copy_(base[name] + radius * torch.from_numpy(z).view_as(weight))
        moved.append(sums() - before)
    return np.array(moved), np.array([len(y) for _, y in answers])


@pytest.mark.parametrize("objective", ["preference", "log-likelihood"])
def test_a_token_of_a_given_answer_changes_by_as_much_as_said(objective: str, tmp_path: Path, tokenizer: Any) -> None:
    options = {"num_directions": 4, "max_steps": 4}
    if objective == "preference":
        trainer = made_of_pairs(tmp_path, tokenizer, noise="dense", **options)
    else:
        trainer = made(tmp_path, tokenizer, objective, choices=None, answer=" {text} was great", **options)
    trainer.train()
    found = trainer.found
    assert found.converged and found.nats == 0.0125 and "a token of an answer changes" in str(found)
    ratios_KR, tokens_R = ratios_by_hand(trainer, found.radius, 24)
    if objective == "preference":  # two answers a row: what moves both alike is no change
        ratios_KR, tokens_R = ratios_KR[:, ::2] - ratios_KR[:, 1::2], tokens_R[::2] + tokens_R[1::2]
    assert 0.5 < float((ratios_KR**2 / (2 * tokens_R)).mean()) / 0.0125 < 2
    assert found.eps == found.radius
    # Four steps of four directions: signs that mean nothing lead 0.6 radii away; with fewer than 64 rows less far.
    rows = len(trainer.train_dataset)
    assert rows < 64 and math.isclose(found.learning_rate, 0.6 * math.sqrt(rows / 64) * found.radius, rel_tol=0.005)


@pytest.mark.parametrize(("copies", "steps", "share"), [(1, 2, 8 / 64), (4, 2, 0.5), (8, 1, 1.0), (12, 150, 1.0)])
def test_few_pairs_lead_a_shorter_way_and_many_the_whole_however_few_the_steps(
    copies: int, steps: int, share: float, tmp_path: Path, tokenizer: Any
) -> None:
    trainer = made_of_pairs(tmp_path, tokenizer, copies=copies, num_directions=2, max_steps=steps)
    with trainer.holding_run():
        found = trainer.found

    way = found.learning_rate * math.sqrt(steps / 2)  # of steps whose signs are drawn
    assert math.isclose(way, 0.6 * math.sqrt(share) * found.radius, rel_tol=0.01)


def test_pairs_that_can_be_told_apart_are_learned_with_no_rate_given(tmp_path: Path, tokenizer: Any) -> None:
    margins = {}
    for name, rate in (("found", None), ("published", 1e-6)):
        trainer = made_of_pairs(tmp_path / name, tokenizer, copies=8, learning_rate=rate, max_steps=20)
        trainer.train()
        margins[name] = {key: trainer.evaluate()[f"eval_metric/{key}"] for key in ("margin", "share")}
    assert margins["found"]["share"] > 0.6 and margins["found"]["margin"] > 0.5
    assert abs(margins["published"]["margin"]) < 0.01


def test_a_bound_of_the_kl_shortens_the_steps_of_pairs(tmp_path: Path, tokenizer: Any) -> None:
    rates = []
    for name, bound in (("none", None), ("bound", 0.0125)):
        trainer = made_of_pairs(tmp_path / name, tokenizer, drift=True, max_kl=bound, num_directions=2)
        with trainer.holding_run():
            rates.append(trainer.args.learning_rate)
    assert math.isclose(rates[1] / rates[0], math.sqrt(0.1) / 0.6, rel_tol=0.01), "a tenth of the bound, of 0.0125 nats"


def test_a_run_of_pairs_goes_on_with_the_rate_it_found(tmp_path: Path, tokenizer: Any) -> None:
    whole = made_of_pairs(tmp_path / "whole", tokenizer)
    whole.train()
    made_of_pairs(tmp_path / "parts", tokenizer).train(resume_from_checkpoint=None)
    path = tmp_path / "parts" / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    [last] = [n for n, line in enumerate(lines) if json.loads(line).get("step") == 2 and b'"scores"' in line]
    path.write_bytes(b"".join(lines[:last]))  # as if it had been killed after two steps
    resumed = made_of_pairs(tmp_path / "parts", tokenizer)
    resumed.train(resume_from_checkpoint=True)
    header = load_run(tmp_path / "parts").header
    assert (
        resumed.found is None and resumed.method == whole.method and header["method"]["lr"] == whole.found.learning_rate
    )
    model = random_model("llama", 1)
    replay(tmp_path / "parts", model)
    weights = (one.named_parameters() for one in (whole.model, resumed.model, model))
    for (name, weight), (_, other), (_, replayed) in zip(*weights, strict=True):
        assert torch.equal(weight, other) and torch.equal(weight, replayed), name


def test_what_is_given_is_kept(tmp_path: Path, tokenizer: Any) -> None:
    given_rate = made(tmp_path / "rate", tokenizer, learning_rate=1e-4)
    given_rate.train()
    assert given_rate.found is None and (given_rate.args.eps, given_rate.method.normalize) == (1e-3, "none")
    given_eps = made(tmp_path / "eps", tokenizer, eps=3e-3)
    given_eps.train()
    assert given_eps.method.eps == 3e-3 and given_eps.args.learning_rate == given_eps.found.learning_rate
    rate_of_pairs = made_of_pairs(tmp_path / "pairs", tokenizer, learning_rate=1e-4)
    assert (rate_of_pairs.method.num_directions, rate_of_pairs.args.noise) == (1, "dense"), "and what goes with it"
    directions = made_of_pairs(tmp_path / "directions", tokenizer, num_directions=2)
    assert directions.given.finds_rate and directions.method.num_directions == 2


def test_rows_may_have_different_numbers_of_answers(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{**row, "ends": [" not", " very", " so"][: 2 + n % 2], "label": n % 2} for n, row in enumerate(ROWS)]
    args = ZOConfig(str(tmp_path), use_cpu=True, disable_tqdm=True, max_steps=1, template="{text} it was",
                    choice_column="ends", label="label")  # fmt: skip
    trainer = ZOTrainer(
        random_model("llama", 1), objective="accuracy", args=args, train_dataset=rows, processing_class=tokenizer
    )
    trainer.train()
    found = trainer.found
    assert found.converged
    # The same slowly, with the KL of each row over its own answers: half the distance changes a quarter as much.
    model, changes = random_model("llama", 1).eval(), []
    named = {canonical_name(name): weight.data for name, weight in model.named_parameters()}
    base = {name: weight.clone() for name, weight in named.items()}

    def distributions() -> list[torch.Tensor]:
        with torch.no_grad():
            logits = [model(torch.tensor([row.prompt_tokens])).logits[0, -1].double() for row in trainer.train_dataset]
        answers = [[tokens[0] for tokens in row.candidate_tokens] for row in trainer.train_dataset]
        return [row[own].log_softmax(0) for row, own in zip(logits, answers, strict=True)]

    before = distributions()
    for number in range(24):
        for name, weight in named.items():
            z = definition.normal(10_000 + number, stream_of(name), 0, weight.numel())
            weight.copy_(base[name] + found.radius * torch.from_numpy(z).view_as(weight))
        changes += [float((p.exp() * (p - q)).sum()) for p, q in zip(before, distributions(), strict=True)]
    assert 0.005 < np.mean(changes) < 0.02


def test_a_radius_is_closed_in_where_the_change_is_a_cliff() -> None:
    """A saturated model: nothing changes up to 0.2, and then too much does."""
    radius, looks, converged = _radius(lambda distance: 1e-20 if distance < 0.2 else 1.0, 0.01, first=0.01)
    assert not converged and 0.15 < radius < 0.2 and len(looks) == 10
    radius, _, converged = _radius(lambda distance: math.inf if distance > 0.1 else distance**4, 1e-6, first=0.5)
    assert converged and radius == pytest.approx(10**-1.5, rel=0.5)


def test_ranks_and_a_given_normalize_are_found_a_rate_too(tmp_path: Path, tokenizer: Any) -> None:
    for normalize in ("running", "rank"):
        trainer = made(tmp_path / normalize, tokenizer, normalize=normalize, num_directions=4, max_steps=20)
        trainer.train()
        terms = [term for record in load_run(tmp_path / normalize).records() for term in record.update.terms]
        moved = math.sqrt(sum(term.coefficient**2 for term in terms))
        assert 0.7 < moved / (1.5 * trainer.found.radius) < 1.4, normalize


def test_what_is_printed_is_what_is_used(tmp_path: Path, tokenizer: Any) -> None:
    trainer = made(tmp_path, tokenizer, eps=3e-3)
    trainer.train()
    assert "eps 0.003 " in str(trainer.found) and f"learning rate {trainer.method.lr:g}," in str(trainer.found)


def test_an_eps_that_the_dtype_would_hide_is_raised(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shows(tuned: object, args: ZOConfig, *, given: bool, one_at_a_time: bool = False) -> float:
        assert not given
        return max(args.eps, 0.04)  # as if less were rounded away

    monkeypatch.setattr("zoreward.trainer.loop.eps_that_shows", shows)
    trainer = made(tmp_path, tokenizer)
    trainer.train()
    assert trainer.found.radius < 0.04 == trainer.found.eps == trainer.method.eps == trainer.args.eps
    header = json.loads((tmp_path / "journal.jsonl").read_text().splitlines()[0])
    assert header["method"]["eps"] == 0.04 and "eps 0.04 " in str(trainer.found)


METHODS = ["sign", "es", "fzoo", "lozo", "bcd", "sparse", "momentum", "eggroll"]
FEW = {"num_directions": 4}  # of the 8 to 30 that are the default
OPTIONS: dict[str, dict[str, Any]] = {"bcd": {"blocks": 2}, "es": FEW, "fzoo": FEW, "eggroll": FEW}
# Of methods that keep what is found in the same fields, one is tried each time.
LIKE_ANOTHER = ("sign", "fzoo", "lozo", "sparse")


@pytest.mark.parametrize(
    "method",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in LIKE_ANOTHER)) for name in ["spsa", *METHODS]],
)
def test_a_run_that_is_over_goes_on_for_longer_with_the_rate_it_found(
    method: str, tmp_path: Path, tokenizer: Any
) -> None:
    options = OPTIONS.get(method, {})
    first = made(tmp_path, tokenizer, method=method, max_steps=2, **options)
    first.train()
    longer = made(tmp_path, tokenizer, method=method, max_steps=3, **options)
    longer.train(resume_from_checkpoint=True)
    assert (longer.method, longer.method_state.step) == (first.method, 3)


def test_a_refused_resume_leaves_the_trainer_as_it_was(tmp_path: Path, tokenizer: Any) -> None:
    first = made(tmp_path, tokenizer, max_steps=2)
    first.train()
    for changes, told in (({"method": "es"}, "method='?spsa'?, not"), ({"template": "{text} is"}, "template")):
        other = made(tmp_path, tokenizer, max_steps=4, **changes)
        before = (other.method, other.args.eps, other.args.learning_rate, other.args.normalize)
        with pytest.raises(InputError, match=told):
            other.train(resume_from_checkpoint=True)
        assert (other.method, other.args.eps, other.args.learning_rate, other.args.normalize) == before


@pytest.mark.parametrize(
    "method",
    # Which weights or subspace a direction moves has no part in the rate.
    [pytest.param(name, marks=[pytest.mark.slow] * (name in ("lozo", "sparse"))) for name in METHODS],
)
def test_every_method_gets_a_rate_by_which_its_steps_lead_as_far(method: str, tmp_path: Path, tokenizer: Any) -> None:
    """The root of the sum of squared coefficients is how far the run's directions led, were they unrelated."""
    trainer = made(tmp_path, tokenizer, method=method, max_steps=20, **OPTIONS.get(method, {}))
    trainer.train()
    terms = [term for record in load_run(tmp_path).records() for term in record.update.terms]
    if method == "momentum":  # a direction comes back with each of ten steps
        by_seed: dict[int, float] = {}
        for term in terms:
            by_seed[term.seed] = by_seed.get(term.seed, 0.0) + term.coefficient
        moved = math.sqrt(sum(value**2 for value in by_seed.values()))
    else:
        moved = math.sqrt(sum(term.coefficient**2 for term in terms))
    blocks = math.sqrt(2) if method == "bcd" else 1
    # Scores of real rows: their spread differs from step to step, and FZOO's members share the noise of the base.
    assert 0.8 < moved / (1.5 * trainer.found.radius * blocks) < 1.25


def test_a_run_goes_on_with_what_it_found(tmp_path: Path, tokenizer: Any) -> None:
    whole = made(tmp_path / "whole", tokenizer, max_steps=6)
    whole.train()
    begun = made(tmp_path / "parts", tokenizer, max_steps=6)

    class Stop(Exception):
        pass

    def fail(step: Any) -> None:
        if step.record.step == 3:
            raise Stop

    done = begun.run.journal_and_apply
    begun.run.journal_and_apply = lambda step: (fail(step), done(step))  # type: ignore[method-assign]
    with pytest.raises(Stop):
        begun.train()
    resumed = made(tmp_path / "parts", tokenizer, max_steps=6)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.found is None and resumed.method == whole.method
    for (name, weight), other in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(weight, other), name
    header = json.loads((tmp_path / "parts" / "journal.jsonl").read_text().splitlines()[0])
    assert header["method"]["eps"] == whole.found.eps and header["config"]["learning_rate"] == whole.found.learning_rate
    model = random_model("llama", 1)
    replay(tmp_path / "parts", model)
    for (name, weight), other in zip(whole.model.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(weight, other), name


def test_answers_that_do_not_change_are_told(tmp_path: Path, tokenizer: Any, caplog: Any) -> None:
    same = [{"text": "good film", "label": n % 2} for n in range(8)]  # all rows move alike
    args = ZOConfig(str(tmp_path), use_cpu=True, disable_tqdm=True, max_steps=1, **CHOICES)
    trainer = ZOTrainer(
        random_model("llama"), objective="neg-cross-entropy", args=args, train_dataset=same, processing_class=tokenizer
    )
    with caplog.at_level("WARNING"):
        trainer.train()
    assert not trainer.found.converged and trainer.args.learning_rate > 0
    assert "are guesses" in caplog.text and "--lr" in caplog.text


def test_slopes_over_their_running_rms_are_the_formula() -> None:
    """w = g / √v, v the weighted mean of mean_k g² with weights 0.9^age over the steps that have scores."""
    method = SPSA(eps=0.5, lr=0.1, seed=3, num_directions=2, normalize="running")
    state, told = method.init(), []
    scores = ([0.3, 0.1, 0.2, 0.4], [0.5, 0.5, 0.5, 0.5], [math.nan, 0.1, 0.2, 0.3], [9.0, 1.0, 2.0, 7.0])
    for step, scored in enumerate(scores):
        update, state = method.tell(state, method.ask(state), scored)
        slopes = [scored[0] - scored[1], scored[2] - scored[3]]  # over 2ε = 1
        if not any(map(math.isnan, scored)):
            told.append(sum(slope**2 for slope in slopes) / 2)
        weights = [0.9**age for age in range(len(told))][::-1]
        rms = math.sqrt(sum(w * v for w, v in zip(weights, told, strict=True)) / sum(weights))
        silent = any(map(math.isnan, scored)) or not any(slopes)
        expected = [] if silent else [0.1 * slope / rms / 2 for slope in slopes]
        assert np.allclose([term.coefficient for term in update.terms], expected, rtol=1e-6), step
    assert (state.silent, state.unscored) == (2, 1)


def test_the_scale_of_the_scores_does_not_matter_to_running_slopes() -> None:
    method, updates = SPSA(eps=0.5, lr=0.1, normalize="running"), []
    for scale in (1.0, 1024.0):
        state, terms = method.init(), []
        for scores in ([0.25, 0.125], [0.5, 0.75], [0.5, 0.375]):
            update, state = method.tell(state, method.ask(state), [scale * score for score in scores])
            terms.append(update.terms)
        updates.append(terms)
    assert updates[0] == updates[1]


@pytest.mark.parametrize(("objective", "method"), [("neg-cross-entropy", "spsa"), ("accuracy", "svrg")])
def test_max_forwards_pay_for_the_search_the_scores_and_so_many_steps(
    objective: str, method: str, tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    logprobs = LocalEngine.logprobs

    def counted(self: LocalEngine, work: Any, **how: Any) -> Any:
        read.append(sum(len(requests) // 2 for _, requests in work))  # a row has two answers
        return logprobs(self, work, **how)

    def begun(forwards: int) -> Any:
        changes = {"max_forwards": forwards, "eval_strategy": "steps", "eval_steps": 0.25, "max_steps": -1}
        trainer = made(tmp_path, tokenizer, objective, method=method, dev=ROWS[:8], **changes)
        read.clear()  # the trial of a few rows
        return trainer

    monkeypatch.setattr(LocalEngine, "logprobs", counted)
    trainer = begun(90)
    trainer.evaluate()
    trainer.train()
    budget, steps = trainer.keeper.budget, trainer.method_state.step
    assert sum(read) / 4 == budget.spent <= 90
    assert budget.steps == steps == trainer.args.max_steps and budget.scores == len(load_run(tmp_path).evaluations) == 5
    dearest = 12 // 4 * 2 if method == "svrg" else 2  # of all rows
    assert budget.spent + dearest + budget.score > 90, "another step is not paid"
    if trainer.found:
        assert math.isclose(trainer.found.learning_rate * math.sqrt(steps), 1.5 * trainer.found.radius, rel_tol=0.005)
        assert load_run(tmp_path).header["searched"] == trainer.found.rows == 4 * budget.search

    again = begun(90)
    again.train(resume_from_checkpoint=True)
    assert (again.method_state.step, read) == (steps, []), "all of it is spent"
    more = begun(110)
    more.train(resume_from_checkpoint=True)
    assert more.method_state.step > steps and budget.spent + sum(read) / 4 <= 110


def test_seconds_say_how_many_steps_the_rate_is_for(tmp_path: Path, tokenizer: Any) -> None:
    def slow(logprobs: np.ndarray, references: list[int]) -> float:
        time.sleep(0.05)
        return float(np.mean([row[reference] for row, reference in zip(logprobs, references, strict=True)]))

    rates = []
    for name, seconds, forwards in (("all", None, None), ("few", 1.0, None), ("both", 1.0, 100_000)):
        trainer = made(tmp_path / name, tokenizer, slow, max_steps=1000, max_seconds=seconds, max_forwards=forwards)
        with trainer.holding_run():
            rates.append(trainer.args.learning_rate)
    # Two members sleep in each step: a second pays for ten steps at most, and the rate goes as 1/√T.
    assert min(rates[1:]) >= 0.99 * rates[0] * math.sqrt(1000 / 10)


def test_max_forwards_that_pay_for_no_step_are_refused(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = made(tmp_path, tokenizer, max_forwards=3)
    monkeypatch.setattr(LocalEngine, "logprobs", lambda *args, **how: pytest.fail("a look is taken"))
    with pytest.raises(InputError, match="max_forwards=3 does not pay for one step") as caught:
        trainer.train()
    monkeypatch.undo()
    least = int(caught.value.hint.split()[4].rstrip(":"))
    assert made(tmp_path, tokenizer, max_forwards=least).train().global_step == 1
    assert made(tmp_path / "few", tokenizer, max_forwards=900).train().global_step == 4, "as many as are asked for"


def test_long_steps_are_told_of_before_the_first(
    tmp_path: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_of_pairs(tmp_path / "short", tokenizer).train()
    assert "A step will take" not in caplog.text  # it takes some milliseconds
    a_second_a_row = functools.partial(told_of_pace, 1.0)
    monkeypatch.setitem(ZOTrainer.train.__globals__, "told_of_pace", lambda pace, *step: a_second_a_row(*step))
    made_of_pairs(tmp_path / "long", tokenizer).train()
    [told] = [message for message in caplog.messages if message.startswith("A step will take about")]
    assert "0:17:04 here, as 128 members read 8 rows, and 3 steps 0:51:12" in told and "--num-directions" in told
